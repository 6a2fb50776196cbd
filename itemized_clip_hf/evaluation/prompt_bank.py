"""A bank of phrasings and labeled studies -> the AUC of each phrasing, and the prompts of each finding that do best."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from transformers.utils import logging

from ..data.files import write_text
from ..data.kinds import study_name
from ..data.layout import Layout
from ..domains import load_domain
from ..modeling.modeling_itemized_clip import ItemizedCLIPModel
from ..processing.processing_itemized_clip import ItemizedCLIPProcessor
from ..provenance import describe_for_others, hash_json, installed_versions
from ..specs import read_choice, write_yaml
from . import bootstrap as boot
from .encode import texts_by_label
from .estimates import Estimate, estimates_to
from .metrics import auroc
from .prompt_selection import (
    FOLDS,
    MAX_ENSEMBLES,
    MIN_OF_EACH,
    Ensemble,
    EnsembleScores,
    Selection,
    list_ensembles,
    select,
)
from .protocols import Prompts, Protocol
from .protocols.images import open_record
from .protocols.labels import Truth, is_list
from .protocols.run import ProtocolScorer, Scored, hash_images, hash_truth
from .score_file import ScoreFile
from .text_table import format_table, null_for_nan
from .training_notes import trained_on_notes

logger = logging.get_logger(__name__)

LARGEST = 3
"""Phrasings of an ensemble."""
_ANY_TABLE = ("*labels*.csv", "*.csv")
"""Patterns of label tables that say nothing of a split."""
_ON_TEST = (
    "CHOSEN ON TEST LABELS: protocol {} is evaluated on these studies. Its figures with the chosen prompts are too good; "
    "choose on other studies and pass their table with --labels."
)


@dataclass
class Bank:
    """
    Phrasings of some findings, those of the default first.

    Args:
        phrasings: finding -> texts, without repetition.
        default: finding -> how many of the first texts are what is used so far.
        ensembles: finding -> from `list_ensembles`.
    """

    phrasings: Prompts
    default: dict[str, int]
    ensembles: dict[str, list[Ensemble]]

    @classmethod
    def of(cls, texts: Mapping[str, str | Sequence[str]], protocol: Protocol, largest: int = LARGEST) -> "Bank":
        """
        Args:
            texts: finding -> phrasings.
            protocol: whose prompts are the default; the first phrasing is where it has none.
            largest: phrasings of an ensemble.

        Raises:
            ValueError: the protocol has no such finding, there is nothing to choose among, or too much.
        """
        if largest < 1:
            raise ValueError(f"an ensemble of {largest} phrasings is none; expected 1 or more.")
        given = texts_by_label(texts)
        protocol.known_prompts(given)  # are they findings of it?
        known = protocol.known_prompts()
        defaults = {name: known.get(name, own[:1]) for name, own in given.items()}
        phrasings = {name: list(dict.fromkeys([*defaults[name], *own])) for name, own in given.items()}
        if all(len(own) == 1 for own in phrasings.values()):
            raise ValueError("the bank has no finding with several phrasings: there is nothing to choose.")
        counts = {name: len(dict.fromkeys(own)) for name, own in defaults.items()}
        ensembles = {
            name: list_ensembles(len(own), largest, tuple(range(counts[name]))) for name, own in phrasings.items()
        }
        total = sum(map(len, ensembles.values()))
        if total > MAX_ENSEMBLES:
            raise ValueError(
                f"the bank makes {total:,} ensembles of up to {largest} phrasings, more than {MAX_ENSEMBLES:,}: choose a "
                "smaller --largest, or fewer phrasings."
            )
        return cls(phrasings, counts, ensembles)

    def texts(self, name: str, ensemble: Ensemble) -> list[str]:
        """Texts of an ensemble of a finding."""
        return [self.phrasings[name][number] for number in ensemble]

    def columns(self) -> dict[str, list[str]]:
        """Column of the scores -> its texts, finding by finding."""
        return {
            json.dumps([name, *ensemble]): self.texts(name, ensemble)
            for name, ensembles in self.ensembles.items()
            for ensemble in ensembles
        }


class BankScorer(ProtocolScorer):
    """
    Scores studies with all ensembles of a bank: the text side costs little beside the vision tower, which works once.

    Args:
        bank: its columns are what is scored.
        others: of `ProtocolScorer`.
    """

    def __init__(self, model: ItemizedCLIPModel, processor: ItemizedCLIPProcessor, bank: Bank, *others: Any):
        super().__init__(model, processor, *others)
        self.columns = bank.columns()
        self.about["prompts"] = hash_json(list(self.columns.items()))


@dataclass
class PromptChoice:
    """
    Prompts that were chosen.

    Args:
        prompts: finding -> texts, as `predict` and `evaluate` take them.
        results: figures and what they rest on, ready for JSON.
        chosen: what is kept beside the prompts: studies, model, what the choice is worth.
    """

    prompts: Prompts
    results: dict[str, Any] = field(default_factory=dict)
    chosen: dict[str, Any] = field(default_factory=dict)

    def write(self, path: str | os.PathLike) -> None:
        """`prompts` and `chosen` as YAML, or as JSON where the name ends in `.json`; figures beside it, in `.results.json`."""
        path, content = Path(path), {"prompts": self.prompts, "chosen": self.chosen}
        write_text(path.with_suffix(".results.json"), json.dumps(self.results, indent=1) + "\n")
        if path.suffix.lower() == ".json":
            write_text(path, json.dumps(content, indent=1) + "\n")
        else:
            write_text(path, write_yaml(content))


def select_prompts(
    model: ItemizedCLIPModel,
    processor: ItemizedCLIPProcessor,
    data: str | os.PathLike,
    bank: Mapping[str, str | Sequence[str]],
    protocol: Protocol | None = None,
    labels: Mapping[str, str] | str | None = None,
    id_column: str | None = None,
    skip_missing: bool = False,
    scores_file: str | os.PathLike | None = None,
    largest: int = LARGEST,
    folds: int = FOLDS,
    batch_size: int = 8,
    resamples: int = boot.RESAMPLES,
    seed: int = 0,
    progress: bool = False,
    open_study: Callable[[dict], Any] | None = None,
    opened_with: Mapping[str, Any] | None = None,
    num_workers: int = 0,
    trained_on: str | os.PathLike | None = None,
) -> PromptChoice:
    """
    AUC of every phrasing of a bank, and for each finding the ensemble that forward selection under cross-validation finds.

    An ensemble is the mean of normalized text embeddings, as in `encode_prompts`. What choosing is worth is told by studies
    that had no say in the choice, see `prompt_selection.select`.

    Args:
        data, labels, id_column, skip_missing: labeled studies, see `read_truth` and `ProtocolStudies`; not those that the
            prompts are to be evaluated on.
        bank: finding -> phrasings.
        protocol: findings or classes (each against the rest), columns and default prompts; if None the bank's findings and the
            prompts of the model's domain, or the first phrasing where that has none.
        largest: phrasings of an ensemble.
        folds: of the cross-validation, and of the one within it.
        scores_file, batch_size, resamples, seed, open_study, opened_with, num_workers, trained_on: as in `evaluate_protocol`.

    Raises:
        ValueError: what `Bank.of`, `read_truth` and `ProtocolStudies` raise, several label tables, or no study can be read.
    """
    protocol = protocol or bank_protocol(bank, model.config.domain)
    known = Bank.of(bank, protocol, largest)
    opening = open_study or partial(open_record, layout=Layout.of_processor(processor))
    scoring = {"batch_size": batch_size, "progress": progress, "num_workers": num_workers}
    scorer = BankScorer(
        model, processor, known, protocol, {}, opening, dict(opened_with or {}), id_column, skip_missing, scoring
    )
    scored = scorer.score(data, labels, scores_file)
    if len(scored.truths) > 1:
        raise ValueError(
            f"prompts are chosen by one label table, found {sorted(scored.truths)}: pass it with --labels."
        )
    truth = next(iter(scored.truths.values()))
    selections = _select_all(known, protocol, truth, scored.scores, resamples, folds, seed)
    notes = trained_on_notes(model, trained_on, scored.studies.ids)
    if on_test := is_test_split(protocol, data, labels):
        notes.append(_ON_TEST.format(protocol.name))
        logger.warning(notes[-1])
    settings = {"largest": largest, "folds": folds, "resamples": resamples, "seed": seed}
    return _assemble(scorer, known, scored, selections, notes, on_test, settings)


def bank_protocol(bank: Mapping[str, Any], domain: str | None) -> Protocol:
    """Findings of a bank, with the prompts of a domain for those that it names."""
    prompts: dict[str, Any] = load_domain(domain).prompts if domain else {}
    return Protocol("bank", domain=domain, findings=list(bank), prompts={n: prompts[n] for n in bank if n in prompts})


def is_test_split(protocol: Protocol, data: str | os.PathLike, labels: Mapping[str, str] | str | None) -> bool:
    """Whether labels are those that `evaluate` would find for the protocol by itself, or are called so."""
    if protocol.name == "bank":
        return False
    if labels is None and not is_list(Path(data)):
        return True
    files = [data] if labels is None else list(labels.values()) if isinstance(labels, Mapping) else [labels]
    patterns = [pattern for pattern in protocol.tables.values() if pattern not in _ANY_TABLE]
    return any(fnmatch(Path(file).name, pattern) for file in files for pattern in patterns)


@dataclass
class _Chosen:
    """Selection of one finding, AUC of each phrasing, and numbers of studies."""

    selection: Selection
    phrasings: list[Estimate]
    counts: dict[str, int]


def _select_all(
    bank: Bank, protocol: Protocol, truth: Truth, scores: ScoreFile, resamples: int, folds: int, seed: int
) -> dict[str, _Chosen]:
    rows = [number for number, study in enumerate(truth.ids) if study in scores]
    if not rows:
        raise ValueError("none of the studies of the label table has scores.")
    table = np.stack([scores.scores[truth.ids[number]] for number in rows])
    if truth.labels is not None:
        labels = truth.labels[rows]
    else:
        assert truth.classes is not None
        labels = np.eye(len(protocol.names))[truth.classes[rows]]
    counts, start, found = boot.study_counts(len(rows), resamples, seed), 0, {}
    for name, ensembles in bank.ensembles.items():
        truths, columns = labels[:, protocol.names.index(name)], table[:, start : start + len(ensembles)]
        start += len(ensembles)
        known = ~np.isnan(truths)
        own = EnsembleScores(truths[known], columns[known], ensembles, tuple(range(bank.default[name])))
        drawn = None if counts is None else counts[:, known]
        phrasings = [_auc(own, (number,), drawn) for number in range(len(bank.phrasings[name]))]
        sizes = {
            "positive": int(own.labels.sum()),
            "negative": int((~own.labels).sum()),
            "unknown": int((~known).sum()),
        }
        several = len(bank.phrasings[name]) > 1
        found[name] = _Chosen(select(own, drawn, folds, seed) if several else Selection(own.default), phrasings, sizes)
    return found


def _auc(scores: EnsembleScores, ensemble: Ensemble, counts: np.ndarray | None) -> Estimate:
    column = scores.table[:, scores.column[ensemble]]
    if scores.labels.all() or not scores.labels.any():
        return Estimate(float("nan"))
    resampled = None if counts is None else boot.resampled_auroc(scores.labels, column, counts)
    return boot.estimate(auroc(scores.labels, column), resampled, "auc", len(column))


def _mean_worth(selections: Mapping[str, _Chosen]) -> dict[str, Estimate]:
    """Means over the findings that something was chosen for, of the same resampled studies."""
    rows = [one.selection for one in selections.values() if one.selection.held_out]
    means = {}
    for name in ("default", "chosen", "difference") if rows else ():
        drawn = [row.resampled[name] for row in rows if name in row.resampled]
        resampled = None if not drawn else np.nanmean(np.stack(drawn), 0)
        count = min(row.held_out[name].count or 0 for row in rows)
        means[name] = boot.estimate(float(np.mean([row.held_out[name].value for row in rows])), resampled, "auc", count)
    return means


def _assemble(
    scorer: BankScorer,
    bank: Bank,
    scored: Scored,
    selections: Mapping[str, _Chosen],
    notes: list[str],
    on_test: bool,
    settings: dict[str, Any],
) -> PromptChoice:
    ids, mean = scored.studies.ids, _mean_worth(selections)
    prompts = {name: bank.texts(name, one.selection.chosen) for name, one in selections.items()}
    few = [name for name, one in selections.items() if not one.selection.held_out and len(bank.phrasings[name]) > 1]
    if few:
        notes.append(
            f"Fewer than {MIN_OF_EACH} studies with or without the finding, so nothing was chosen: {', '.join(few)}."
        )
    described = describe_for_others(scorer.model, scorer.about["model"], scorer.about["processor"])
    chosen = {
        "studies": {"count": len(ids), "ids_sha256": hash_ids(ids), "labels_sha256": hash_truth(scored.truths)},
        "on_test_labels": on_test,
        "protocol": scorer.protocol.name,
        **described,
        "held_out_auc": {name: {"mean": one.to_dict()} for name, one in mean.items()},
    }
    results = {
        "findings": {name: _describe_finding(bank, name, one) for name, one in selections.items()},
        "mean": estimates_to(mean),
        "missing": scored.studies.missing,
        "unreadable": [{"id": study, "reason": why} for study, why in sorted(scored.scores.errors.items())],
        "notes": notes,
        **{name: chosen[name] for name in ("on_test_labels", "protocol")},
        **described,
        "data": {**chosen["studies"], "images_sha256": hash_images(scored.studies)},
        "settings": settings,
        "versions": installed_versions(),
    }
    return PromptChoice(prompts, null_for_nan(results), null_for_nan(chosen))


def _describe_finding(bank: Bank, name: str, one: _Chosen) -> dict[str, Any]:
    selection, texts = one.selection, bank.phrasings[name]
    default = tuple(range(bank.default[name]))
    return {
        **one.counts,
        "phrasings": [{"text": text, "auc": auc.to_dict()} for text, auc in zip(texts, one.phrasings)],
        "default": bank.texts(name, default),
        "chosen": bank.texts(name, selection.chosen),
        "held_out_auc": estimates_to(selection.held_out),
        "chosen_without_each_fold": [bank.texts(name, ensemble) for ensemble in selection.by_fold],
    }


def format_choice(results: Mapping[str, Any]) -> str:
    """Tables of the figures, from their JSON: phrasings, and what choosing is worth."""
    rows, worth = [], []
    for name, finding in results["findings"].items():
        for one in finding["phrasings"]:
            mark = "*" if one["text"] in finding["chosen"] else ""
            rows.append([name, _show(one["auc"]), mark, one["text"]])
        worth.append([name, f"{finding['positive']}/{finding['negative']}", *_worth(finding["held_out_auc"])])
    if len(worth) > 1:
        worth.append(["mean", "", *_worth(results["mean"])])
    parts = [
        "AUC (%) of each phrasing, 95 % interval; *: chosen, several are averaged",
        format_table(["finding", "auc", "", "phrasing"], rows),
        "\nAUC (%) in studies that had no say in the choice",
        format_table(["finding", "with/without", "default", "chosen", "difference"], worth),
        *_doubt(results["mean"]),
        *results["notes"],
    ]
    return "\n".join(parts)


def _doubt(mean: Mapping[str, Any]) -> list[str]:
    """Says so where choosing is not shown to be worth anything."""
    gain = mean.get("difference")
    if gain is None or gain.get("low") is None or gain["low"] > 0:
        return []
    return ["choosing gained nothing that these studies can show: the defaults are as good a choice"]


def _worth(figures: Mapping[str, Any]) -> list[str]:
    return [_show(figures[name]) if name in figures else "-" for name in ("default", "chosen", "difference")]


def _show(figure: Mapping[str, Any]) -> str:
    return Estimate.from_dict(figure, "auc").format(" to ")


def hash_ids(ids: Sequence[str]) -> str:
    """SHA-256 of a set of studies: the order of ids, capitals and suffixes of files do not matter."""
    return hash_json(sorted(study_name(name).casefold() for name in ids))


def choice_notes(path: str | os.PathLike, ids: Sequence[str], model_sha256: str) -> list[str]:
    """
    What who evaluates with a file of chosen prompts has to know, and a warning of each.

    Args:
        path: of the prompts; their scores are looked for beside it, to tell which studies they were chosen on.
        ids: of the studies that are evaluated.
        model_sha256: from `hash_model`, of the model that is evaluated.
    """
    chosen = read_choice(path)
    if chosen is None:
        return []
    notes = []
    name, studies = Path(path).name, chosen.get("studies", {})
    seen = _scored_ids(Path(path).with_suffix(".scores.jsonl"))
    both = sum(study_name(one).casefold() in seen for one in ids)
    if studies.get("ids_sha256") == hash_ids(ids):
        both = len(ids)
    if both:
        notes.append(
            f"CHOSEN ON TEST LABELS: the prompts of {name} were chosen by the labels of {both} of these {len(ids)} studies: "
            "the figures are too good."
        )
    elif chosen.get("on_test_labels"):
        notes.append(f"CHOSEN ON TEST LABELS: so {name} says of its prompts, by protocol {chosen.get('protocol')}.")
    if chosen.get("model", {}).get("sha256") != model_sha256:
        notes.append(f"The prompts of {name} were chosen with another model.")
    for note in notes:
        logger.warning(note)
    return notes


def _scored_ids(path: Path) -> set[str]:
    """Ids of the studies of a file of scores; none where there is no such file."""
    if not path.is_file():
        return set()
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines()[1:]:
        try:
            entries.append(json.loads(line))
        except ValueError:  # the last line of a run that was killed
            continue
    return {study_name(str(entry["id"])).casefold() for entry in entries if "scores" in entry}
