"""The keys of a protocol: what is asked of which studies, where the answers are, and which figures count (method 8.1)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...domains import load_domain
from ...specs import check_keys, conform

Prompts = dict[str, list[str]]
"""Finding or class -> its prompts."""


@dataclass
class Protocol:
    """
    Args:
        name: of the file.
        title: as people call it.
        domain: whose models it is for.
        findings: names of findings, each present or not, or name -> prompt or prompts; or `classes`, one of which is true.
        classes: the same for a choice among classes.
        prompts: name -> prompt or prompts where `findings` or `classes` has none; else the domain's.
        needs_prompts: the published prompts are not known: they have to be passed.
        best_prompt: of several prompts the one with the best AUC counts, instead of their mean. Selects on the test labels.
        tasks: name -> classes among which is chosen, of `classes`; without tasks all classes are ranked.
        columns: finding or class -> its column in the label table, where it differs.
        readers: `{"prefix": p, "columns": [...]}`: where a column `p...` is missing, the majority of the readers' columns.
        ignored_classes: labels whose images are left out.
        renamed_classes: label -> class.
        threshold_points: of the reference's threshold search, see `metrics.reference_threshold`; None: no such columns.
        headline: figure that stands for the whole: by default `auc`, `balanced_accuracy` of tasks, `top1`.
        tables: name -> pattern of the label table in the data's folder; several are evaluated one by one.
        lists: patterns of files of study ids in that folder; where there are any, they say which studies count.
        exclude: ids of studies that are left out.
        array_spacing: mm, depth first, of volumes without geometry, which are then taken as stored in the domain's orientation.
        scan_name: name of every scan, with `{name}` for its own and `{last}` for what stands behind the last "-" of it.
        published: figures of the published data set, for comparison.
        variants: name -> changes.
    """

    name: str
    title: str = ""
    domain: str | None = None
    findings: list[str] | dict[str, str | list[str] | None] | None = None
    classes: list[str] | dict[str, str | list[str] | None] | None = None
    prompts: dict[str, str | list[str]] = field(default_factory=dict)
    needs_prompts: bool = False
    best_prompt: bool = False
    tasks: dict[str, list[str]] = field(default_factory=dict)
    columns: dict[str, str] = field(default_factory=dict)
    readers: dict[str, str | list[str]] = field(default_factory=dict)
    ignored_classes: list[str] = field(default_factory=list)
    renamed_classes: dict[str, str] = field(default_factory=dict)
    threshold_points: int | None = None
    headline: str | None = None
    tables: dict[str, str] = field(default_factory=lambda: {"": "*labels*.csv"})
    lists: list[str] = field(default_factory=list)
    exclude: list[str] = field(default_factory=list)
    array_spacing: list[float] | None = None
    scan_name: str = "{name}"
    published: dict[str, Any] = field(default_factory=dict)
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self):
        if (self.findings is None) == (self.classes is None):
            raise ValueError(f"protocol {self.name}: it needs either `findings` or `classes`.")
        if self.headline is None:
            self.headline = "auc" if self.findings is not None else "balanced_accuracy" if self.tasks else "top1"
        unknown = sorted({c for members in self.tasks.values() for c in members} - set(self.names))
        if unknown:
            raise ValueError(f"protocol {self.name}: its tasks name {unknown}, which are no classes of it.")
        self._check_values()

    def _check_values(self):
        """Raises where a value is of the right type, but none that a protocol can have."""
        where = f"protocol {self.name}"
        if not self.names or len(set(self.names)) < len(self.names) or not all(name.strip() for name in self.names):
            raise ValueError(f"{where}: its findings or classes are missing, blank, or duplicates: {self.names[:5]}.")
        if self.domain is not None:
            load_domain(self.domain)
        try:
            self.scan_name.format(name="", last="")
        except (KeyError, IndexError, ValueError, AttributeError, TypeError):
            raise ValueError(
                f"{where}: scan_name is {self.scan_name!r}, expected text with {{name}} or {{last}}."
            ) from None
        for pattern in (*self.tables.values(), *self.lists):
            if not pattern.strip() or Path(pattern).is_absolute() or ".." in Path(pattern).parts:
                raise ValueError(f"{where}: {pattern!r} is no pattern of files inside the data's folder.")
        if self.readers:
            check_keys(self.readers, ("prefix", "columns"), f"{where}: readers")
            conform(self.readers.get("prefix"), str, f"{where}: readers: prefix")
            conform(self.readers.get("columns"), list[str], f"{where}: readers: columns")
        spacing = self.array_spacing
        if spacing is not None and (len(spacing) != 3 or not all(0 < step < 1000 for step in spacing)):
            raise ValueError(f"{where}: array_spacing is {spacing}, expected three positive numbers of mm.")
        if self.array_spacing is not None and (
            self.domain is None or not load_domain(self.domain).image.get("orientation")
        ):
            raise ValueError(f"{where}: array_spacing needs a domain with an orientation.")
        if self.threshold_points is not None and not 2 <= self.threshold_points <= 10**7:
            raise ValueError(f"{where}: threshold_points is {self.threshold_points}, expected at least 2.")
        for name, prompts in ({**own, **self.prompts} if isinstance(own := self._own, dict) else self.prompts).items():
            texts = [prompts] if isinstance(prompts, str) else prompts
            if texts is not None and not (texts and all(text.strip() for text in texts)):
                raise ValueError(f"{where}: {name!r} has no prompt, or a blank one.")

    @property
    def _own(self):
        return self.findings if self.findings is not None else self.classes

    @property
    def names(self) -> list[str]:
        """Findings or classes, in their order."""
        return list(self._own)

    def choose_prompts(self, given: Mapping[str, Any] | None = None) -> Prompts:
        """
        Prompts of every finding or class.

        Args:
            given: name -> prompt or prompts, instead of the protocol's.

        Raises:
            ValueError: a name has none, or prompts are given for a name that is not in the protocol.
        """
        found = self.known_prompts(given)
        missing = [name for name in self.names if name not in found]
        if missing:
            what = "prompts of this protocol are not public: pass them" if self.needs_prompts else "pass prompts"
            raise ValueError(
                f"{what} (--prompts FILE, name -> text or texts); {len(missing)} have none, e.g. {missing[:5]}."
            )
        return found

    def known_prompts(self, given: Mapping[str, Any] | None = None) -> Prompts:
        """
        Prompts of the findings or classes that have any, in their order.

        Raises:
            ValueError: prompts are given for a name that is not in the protocol.
        """
        own = self._own
        sources = [dict(given or {}), self.prompts, own if isinstance(own, dict) else {}]
        if not self.needs_prompts and self.domain is not None:
            sources.append(load_domain(self.domain).prompts)
        unknown = sorted(set(sources[0]) - set(self.names))
        if unknown:
            raise ValueError(f"protocol {self.name} has no {unknown[:5]}; it asks for {self.names}.")
        found = {name: next((s[name] for s in sources if s.get(name) is not None), None) for name in self.names}
        return {
            name: [prompts] if isinstance(prompts, str) else list(prompts)
            for name, prompts in found.items()
            if prompts is not None
        }

    def name_scan(self, name: str | None, prepared: bool = False) -> str:
        """
        The published name of a scan.

        Args:
            prepared: its name ends in that of a window already, which stays at the end.
        """
        own, window = name or "scan", ""
        if prepared and self.domain is not None:
            windows = load_domain(self.domain).image.get("windows") or {}
            window = next((f"_{one}" for one in windows if one and own.endswith(f"_{one}")), "")
            own = own.removesuffix(window)
        return self.scan_name.format(name=own, last=own.split("-")[-1]) + window


def require_findings(protocol: Protocol) -> None:
    """Raises a ValueError where a protocol chooses among classes, which are not calibrated."""
    if protocol.findings is None:
        raise ValueError(
            f"protocol {protocol.name} chooses among classes: only findings, each by itself, can be calibrated."
        )
