"""Results of evaluations: estimates with their unit, and what is made of them; `to_dict` gives the JSON of files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .estimates import Estimate, Estimates, estimates_from, estimates_to


@dataclass
class FindingResult:
    """
    A finding, present or not.

    Args:
        positive, negative, unknown: studies by their label.
        estimates: none where all known labels are the same.
        prompt: the one that counts, where the best of several is chosen.
        threshold: of `accuracy` and what follows it; None where there is none.
    """

    positive: int
    negative: int
    unknown: int = 0
    estimates: Estimates = field(default_factory=dict)
    prompt: str | None = None
    threshold: float | None = None

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> FindingResult:
        """From a row of `findings` of a file."""
        positive, negative = int(content["positive"]), int(content["negative"])
        estimates = estimates_from(content, positive + negative)
        return cls(
            positive,
            negative,
            int(content.get("unknown", 0)),
            estimates,
            content.get("prompt"),
            content.get("threshold"),
        )

    def to_dict(self) -> dict[str, Any]:
        """The row of a file."""
        content: dict[str, Any] = {"positive": self.positive, "negative": self.negative}
        if self.unknown:
            content["unknown"] = self.unknown
        if self.prompt is not None:
            content["prompt"] = self.prompt
        if self.estimates:
            shown = estimates_to(self.estimates)
            ranked: dict[str, Any] = {m: shown.pop(m) for m in ("auc", "average_precision") if m in shown}
            content |= {**ranked, "threshold": self.threshold, **shown}
        return content


@dataclass
class ChoiceResult:
    """
    A choice among classes.

    Args:
        studies: whose class is among them.
        classes: class -> studies of it.
        estimates: none where all studies are of one class.
    """

    studies: int
    classes: dict[str, int]
    estimates: Estimates = field(default_factory=dict)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> ChoiceResult:
        """From a row of `tasks` of a file."""
        studies = int(content["studies"])
        return cls(studies, dict(content["classes"]), estimates_from(content, studies))

    def to_dict(self) -> dict[str, Any]:
        """The row of a file."""
        return {"studies": self.studies, "classes": self.classes, **estimates_to(self.estimates)}


@dataclass
class GroupResult:
    """
    The headline figure of a group of studies.

    Args:
        small: too few studies to be compared with other groups.
    """

    studies: int
    estimate: Estimate
    small: bool = False


@dataclass
class Subgroups:
    """
    The groups of a column of the label table.

    Args:
        metric: of all figures.
        groups: value of the column -> its figure.
        gap: the largest difference between two groups that are not small; None where there are fewer than two.
        between: these groups, the higher figure first.
        left_out: findings that do not count, since a group has too few positives or negatives of them.
    """

    metric: str
    groups: dict[str, GroupResult]
    gap: Estimate | None = None
    between: tuple[str, str] | None = None
    left_out: list[str] = field(default_factory=list)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Subgroups:
        """From an entry of `by` of a file."""
        metric = content["metric"]
        groups = {
            name: GroupResult(
                int(row["studies"]), Estimate.from_dict(row, metric, int(row["studies"])), bool(row.get("small"))
            )
            for name, row in content["groups"].items()
        }
        gap, between = content.get("gap"), None
        if gap is not None:
            between = (str(gap["between"][0]), str(gap["between"][1]))
        estimate = None if gap is None else Estimate.from_dict(gap, metric)
        return cls(metric, groups, estimate, between, list(content.get("findings_left_out", ())))

    def to_dict(self) -> dict[str, Any]:
        """The entry of a file."""
        groups = {
            name: {"studies": one.studies, **one.estimate.to_dict(), **({"small": True} if one.small else {})}
            for name, one in self.groups.items()
        }
        content: dict[str, Any] = {"metric": self.metric, "groups": groups}
        if self.gap is not None and self.between is not None:
            content["gap"] = {**self.gap.to_dict(), "between": list(self.between)}
        return {**content, "findings_left_out": self.left_out} if self.left_out else content


@dataclass
class TableResult:
    """
    Results on one label table.

    Args:
        studies: that have scores and a row.
        mean: over findings or tasks, or of the ranking of all classes.
        findings, tasks: name -> result; None where the protocol has none.
        left_out: reason -> number of studies; None where that is not known.
        by: column of the label table -> its groups; None where none were asked for.
    """

    studies: int
    mean: Estimates
    findings: dict[str, FindingResult] | None = None
    tasks: dict[str, ChoiceResult] | None = None
    left_out: dict[str, int] | None = None
    by: dict[str, Subgroups] | None = None

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> TableResult:
        """From an entry of `tables` of a file."""
        findings, tasks, by = content.get("findings"), content.get("tasks"), content.get("by")
        studies = int(content["studies"])
        return cls(
            studies,
            estimates_from(content["mean"], studies),
            None if findings is None else {name: FindingResult.from_dict(row) for name, row in findings.items()},
            None if tasks is None else {name: ChoiceResult.from_dict(row) for name, row in tasks.items()},
            content.get("left_out"),
            None if by is None else {column: Subgroups.from_dict(row) for column, row in by.items()},
        )

    def to_dict(self) -> dict[str, Any]:
        """The entry of a file."""
        content: dict[str, Any] = {"studies": self.studies}
        if self.findings is not None:
            content["findings"] = {name: row.to_dict() for name, row in self.findings.items()}
        if self.tasks is not None:
            content["tasks"] = {name: row.to_dict() for name, row in self.tasks.items()}
        content["mean"] = estimates_to(self.mean)
        if self.left_out is not None:
            content["left_out"] = self.left_out
        if self.by is not None:
            content["by"] = {column: row.to_dict() for column, row in self.by.items()}
        return content

    @property
    def rows(self) -> Mapping[str, FindingResult | ChoiceResult]:
        """Findings or tasks; empty for a ranking."""
        return self.findings if self.findings is not None else self.tasks if self.tasks is not None else {}

    @property
    def unknown_labels(self) -> dict[str, int]:
        """Finding -> studies whose label is unknown, of the findings that have such."""
        return {name: row.unknown for name, row in (self.findings or {}).items() if row.unknown}


@dataclass(frozen=True)
class Measured:
    """
    A figure of a card or of the `model-index`: one metric on one data set.

    Args:
        benchmark: its name for people.
        dataset: name of the protocol or task.
        table: of the protocol, or group of the task; empty where there is one.
        studies: that it rests on.
        data_sha256: of the data.
    """

    benchmark: str
    dataset: str
    table: str
    metric: str
    studies: int | None
    data_sha256: str | None
    estimate: Estimate

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Measured:
        """From a row of `measured` of a `card.yaml`."""
        studies = row.get("studies")
        return cls(
            row["benchmark"],
            row.get("dataset") or "",
            row.get("table") or "",
            row["metric"],
            studies,
            row.get("data_sha256"),
            Estimate.from_dict(row, row["metric"], studies),
        )

    def to_dict(self) -> dict[str, Any]:
        """The row of a `card.yaml`, rounded to four digits."""
        about = {
            "benchmark": self.benchmark,
            "dataset": self.dataset,
            "table": self.table,
            "metric": self.metric,
            "studies": self.studies,
            "data_sha256": self.data_sha256,
        }
        return about | {name: round(value, 4) for name, value in self.estimate.to_dict().items()}


@dataclass
class ProtocolResult:
    """
    Results of a protocol.

    Args:
        protocol, title: of the protocol.
        headline: name and estimate of what stands for all.
        tables: label table -> its results.
        missing: ids of studies that have no images.
        unreadable: `{"id", "reason"}` of studies that could not be read.
        notes: sentences for people.
        quantity: what a score is.
        basis: all that the figures rest on: model, processor, data, prompts, settings, intervals, versions.
    """

    protocol: str
    title: str
    headline: tuple[str, Estimate]
    tables: dict[str, TableResult]
    missing: list[str] = field(default_factory=list)
    unreadable: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    quantity: str = "similarity"
    basis: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> ProtocolResult:
        """From the JSON of `itemized-clip evaluate`; ValueError, KeyError or TypeError where it is not that."""
        tables = {name: TableResult.from_dict(table) for name, table in content["tables"].items()}
        headline = content.get("headline") or {"name": "", "value": None}
        count = next(iter(tables.values())).studies if len(tables) == 1 else None
        known = ("protocol", "title", "quantity", "headline", "tables", "missing", "unreadable", "notes")
        return cls(
            content["protocol"],
            content.get("title") or "",
            (headline["name"], Estimate.from_dict(headline, headline["name"], count)),
            tables,
            list(content.get("missing", ())),
            list(content.get("unreadable", ())),
            list(content.get("notes", ())),
            content.get("quantity", "similarity"),
            {name: value for name, value in content.items() if name not in known},
        )

    def to_dict(self) -> dict[str, Any]:
        """The JSON of `itemized-clip evaluate`."""
        return {
            "protocol": self.protocol,
            "title": self.title,
            "quantity": self.quantity,
            "headline": {"name": self.headline[0], **self.headline[1].to_dict()},
            "tables": {name: table.to_dict() for name, table in self.tables.items()},
            "missing": self.missing,
            "unreadable": self.unreadable,
            "notes": self.notes,
            **self.basis,
        }

    def groups(self) -> Iterator[tuple[str, int | None, Estimates]]:
        """Name, studies and estimates of every table: its means."""
        for name, table in self.tables.items():
            yield name, table.studies, table.mean

    def model_index(self, model_name: str) -> list[dict[str, Any]]:
        """The `model-index` metadata of a model card: every mean of every table."""
        entries = []
        for name, table in self.tables.items():
            rows = [row for row in measured_figures(self) if row.table == name]
            dataset = {"type": self.protocol, "name": f"{self.title}{f', {name}' if name else ''}"}
            start = "mean " if table.findings is not None else ""
            metrics = [
                {"type": row.metric, "name": f"{start}{row.metric}", "value": round(row.estimate.value, 4)}
                for row in rows
            ]
            task = {"type": "zero-shot-image-classification", "name": "zero-shot scores"}
            entries.append({"task": task, "dataset": dataset, "metrics": metrics})
        return [{"name": model_name, "results": entries}]


@dataclass
class TaskResult:
    """
    Results of a task without a label table: retrieval, items, segmentation.

    Args:
        protocol: name of the task.
        figures: group -> metric -> estimate; one group "" where there are none.
        facts: what else it says before the figures, e.g. `studies`, `texts`, `mode`.
        rest: what it says behind them, e.g. `unreadable`, and all that the figures rest on.
    """

    protocol: str
    figures: dict[str, Estimates]
    facts: dict[str, Any] = field(default_factory=dict)
    rest: dict[str, Any] = field(default_factory=dict)
    title: str = ""

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> TaskResult:
        """From the JSON of `itemized-clip evaluate`; ValueError, KeyError or TypeError where it is not that."""
        figures, studies = content["figures"], content.get("studies") or content.get("images")
        if all("value" in entry for entry in figures.values()):
            figures = {"": figures}
        names = list(content)
        place = names.index("figures")
        return cls(
            content["protocol"],
            {group: estimates_from(entries, studies) for group, entries in figures.items()},
            {name: content[name] for name in names[:place] if name not in ("protocol", "title")},
            {name: content[name] for name in names[place + 1 :] if name not in ("protocol", "title")},
            content.get("title") or "",
        )

    def to_dict(self) -> dict[str, Any]:
        """The JSON of `itemized-clip evaluate`."""
        groups = {group: estimates_to(estimates) for group, estimates in self.figures.items()}
        figures: Mapping[str, Any] = groups[""] if list(groups) == [""] else groups
        return {"protocol": self.protocol, **self.facts, "figures": figures, **self.rest}

    @property
    def basis(self) -> dict[str, Any]:
        """All that the figures rest on."""
        return {**self.facts, **self.rest}

    def groups(self) -> Iterator[tuple[str, int | None, Estimates]]:
        """Name, studies and estimates of every group."""
        studies = self.basis.get("studies") or self.basis.get("images")
        for name, estimates in self.figures.items():
            yield name, studies, estimates


def read_result(content: Mapping[str, Any]) -> ProtocolResult | TaskResult:
    """
    Results of `itemized-clip evaluate` from their JSON.

    Raises:
        ValueError: it is not that.
    """
    try:
        return ProtocolResult.from_dict(content) if "tables" in content else TaskResult.from_dict(content)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not results of `itemized-clip evaluate`: {error!r}.") from None


def measured_figures(result: ProtocolResult | TaskResult) -> list[Measured]:
    """
    Of a protocol the means of every table and the figures and gaps of its groups, of a task all its figures; without those that
    have no value.
    """
    rows = [*result.groups(), *(_subgroup_figures(result) if isinstance(result, ProtocolResult) else ())]
    title = result.title or result.protocol
    data = result.basis.get("data") or {}
    return [
        Measured(
            f"{title}{f', {group}' if group else ''}",
            result.protocol,
            group,
            metric,
            studies,
            data.get("sha256"),
            estimate,
        )
        for group, studies, estimates in rows
        for metric, estimate in estimates.items()
        if estimate.is_known
    ]


def _subgroup_figures(result: ProtocolResult) -> Iterator[tuple[str, int | None, Estimates]]:
    """Name, studies and estimates of every group of every column, and of the largest gap between them."""
    for table, own in result.tables.items():
        start = f"{table}, " if table else ""
        for column, found in (own.by or {}).items():
            rare = f", without {', '.join(found.left_out)}" if found.left_out else ""
            for value, one in found.groups.items():
                small = " (small)" if one.small else ""
                yield f"{start}{column} = {value}{small}{rare}", one.studies, {found.metric: one.estimate}
            if found.gap is not None:
                studies = sum(one.studies for one in found.groups.values() if not one.small)
                yield f"{start}by {column}{rare}", studies, {f"largest gap of {found.metric}": found.gap}
