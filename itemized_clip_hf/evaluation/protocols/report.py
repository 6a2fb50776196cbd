"""Results of a protocol for people: a table and plots."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ...explain.figures import new_figure, save_figure
from ...explain.maps import explain_items
from ...explain.plots import plot_item, slug
from ...modeling.modeling_itemized_clip import ItemizedCLIPModel, scale_and_bias
from ...processing.processing_itemized_clip import ItemizedCLIPProcessor
from .. import metrics
from ..estimates import column_title
from ..quantity import describe
from ..results import ProtocolResult, Subgroups, TableResult
from ..scaling import sigmoid
from ..text_table import format_table
from .images import as_published
from .labels import Truth
from .run import Evaluation
from .schema import Protocol


def format_results(results: dict[str, Any]) -> str:
    """The whole of a run as plain text, from its JSON."""
    result = ProtocolResult.from_dict(results)
    lines = [result.title or result.protocol]
    for name, table in result.tables.items():
        lines += ["", f"{name}: {table.studies} studies" if name else f"{table.studies} studies", _format_table(table)]
        for column, found in (table.by or {}).items():
            lines += ["", _format_groups(column, found)]
        lines += [f"left out: {count}, {reason}" for reason, count in (table.left_out or {}).items()]
        lines += [f"label unknown: {count} studies, {finding}" for finding, count in table.unknown_labels.items()]
    name, headline = result.headline
    about = ", 95 % interval over studies" if headline.has_interval else ""
    lines += ["", f"{column_title(name)}: {headline.format()}{about}"]
    if result.missing:
        lines.append(f"without images: {len(result.missing)} studies, e.g. {', '.join(result.missing[:5])}")
    if result.unreadable:
        lines.append(f"could not be read: {len(result.unreadable)} studies, listed in the results")
    lines.append(f"Scores are the {describe(result.quantity)}.")
    return "\n".join([*lines, *result.notes])


def _format_table(table: TableResult) -> str:
    rows = {name: row.estimates for name, row in table.rows.items()}
    rows["mean" if rows else ""] = table.mean
    shown = list(dict.fromkeys(metric for estimates in rows.values() for metric in estimates))
    body = [[name, *(row[m].format() if m in row else "-" for m in shown)] for name, row in rows.items()]
    return format_table(["", *map(column_title, shown)], body)


def _format_groups(column: str, found: Subgroups) -> str:
    body = [
        [f"{value}{' (small)' if one.small else ''}", one.studies, one.estimate.format()]
        for value, one in found.groups.items()
    ]
    lines = [format_table([f"by {column}", "studies", column_title(found.metric)], body)]
    if found.gap is not None and found.between is not None:
        lines.append(f"largest gap: {found.gap.format(' to ')}, {found.between[0]} above {found.between[1]}")
    else:
        lines.append("no gap: fewer than two groups are large enough")
    if found.left_out:
        lines.append(f"not compared, too rare in a group: {', '.join(found.left_out)}")
    return "\n".join(lines)


def draw_evaluation(
    model: ItemizedCLIPModel,
    processor: ItemizedCLIPProcessor,
    protocol: Protocol,
    evaluation: Evaluation,
    folder: str | Path,
    open_study: Callable[[dict], Any],
    worst: int = 6,
) -> list[Path]:
    """
    ROC and calibration curves of findings or the confusion of classes, and heat maps of the studies that the model is most
    wrong about (of the first prompt, or of the best one where it counts alone), as PNG.

    Args:
        open_study: as in `evaluate_protocol`.
        worst: number of these studies.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for table, truth in evaluation.truths.items():
        scores = best_columns(protocol, evaluation.results, table, evaluation.scores[table])
        start = f"{table}-" if table else ""
        if protocol.findings is None:
            files.append(_plot_confusion(protocol, scores, truth, folder / f"{start}confusion.png"))
        else:
            probabilities, is_calibrated = probabilities_of(model, protocol, evaluation, table, scores)
            words = "calibrated probability" if is_calibrated else "sigmoid of the logit, uncalibrated"
            files.append(_plot_curves(protocol, scores, truth, None, folder / f"{start}roc.png"))
            files.append(_plot_curves(protocol, probabilities, truth, words, folder / f"{start}calibration.png"))
    if model.config.scoring == "global":  # no attention to draw
        return files
    table, truth = next(iter(evaluation.truths.items()))
    scores = best_columns(protocol, evaluation.results, table, evaluation.scores[table])
    places = {study: number for number, study in enumerate(evaluation.studies.ids)}
    for rank, (study, name, _) in enumerate(worst_studies(protocol, scores, truth, worst), 1):
        row = evaluation.results["tables"][table].get("findings", {}).get(name, {})
        prompt = row.get("prompt", evaluation.results["prompts"][name][0])
        opened = as_published(protocol, open_study(evaluation.studies[places[study]]))
        maps = next(explain_items(model, processor, opened, [prompt], on_bad_scan=lambda scan, error: None))
        present = ""
        if truth.labels is not None:
            present = "-present" if truth.labels[truth.ids.index(study), protocol.names.index(name)] else "-absent"
        files.append(folder / f"worst-{rank}-{slug(study)}-{slug(name)}{present}.png")
        plot_item(maps, files[-1])
    return files


def best_columns(protocol: Protocol, results: dict, table: str, scores: np.ndarray) -> np.ndarray:
    """(S, F): the column that counts of every finding or class."""
    if not protocol.best_prompt:
        return scores
    chosen, start = [], 0
    for name in protocol.names:
        prompts = results["prompts"][name]
        chosen.append(start + prompts.index(results["tables"][table]["findings"][name]["prompt"]))
        start += len(prompts)
    return scores[:, chosen]


def probabilities_of(
    model: ItemizedCLIPModel, protocol: Protocol, evaluation: Evaluation, table: str, scores: np.ndarray
) -> tuple[np.ndarray, bool]:
    """Calibrated probabilities (S, F) where all findings have them for the prompts that count, else sigmoids of the logits."""
    known = []
    for number, name in enumerate(protocol.names):
        row = evaluation.results["tables"][table]["findings"][name]
        prompts = [row["prompt"]] if row.get("prompt") else evaluation.results["prompts"][name]
        finding = None if evaluation.calibration is None else evaluation.calibration.of_prompts(prompts)
        if finding is not None and finding.scaling is not None:
            known.append(finding.scaling.probability(scores[:, number]))
    if len(known) == len(protocol.names):
        return np.stack(known, 1), True
    scale, bias = (float(value.detach()) for value in scale_and_bias(model))
    return sigmoid(scale * scores.astype(float) + bias), False


def _plot_curves(protocol: Protocol, scores: np.ndarray, truth: Truth, quantity: str | None, path: Path) -> Path:
    """ROC curves, or, where the scores are to be probabilities, by the name of the quantity, their calibration."""
    assert truth.labels is not None
    columns = min(4, len(protocol.names))
    rows = -(-len(protocol.names) // columns)
    figure = new_figure(max(3.2 * columns, 4.0), 3.4 * rows)
    figure.set_layout_engine("constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat[len(protocol.names) :]:
        axis.axis("off")
    for number, (name, axis) in enumerate(zip(protocol.names, axes.flat)):
        known = ~np.isnan(truth.labels[:, number])
        labels, own = truth.labels[known, number], scores[known, number].astype(float)
        axis.tick_params(labelsize=8)
        if quantity is None:
            _draw_roc(axis, name, labels, own)
        else:
            _draw_calibration(axis, name, labels, own)
    words = ("false positive rate", "true positive rate") if quantity is None else (quantity, "share of positives")
    figure.supxlabel(words[0], fontsize=9)
    figure.supylabel(words[1], fontsize=9)
    return save_figure(figure, path)


def _draw_roc(axis: Any, name: str, labels: np.ndarray, scores: np.ndarray) -> None:
    true_rate, false_rate = metrics.rates(labels, scores, np.concatenate([[-np.inf], np.unique(scores)]))
    axis.plot([0, 1], [0, 1], color="0.8", linewidth=1)
    axis.plot(false_rate, true_rate, color="tab:blue", linewidth=1.5)
    axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    positives = f"{int(labels.sum())} of {len(labels)} positive"
    axis.set_title(f"{name}\nAUC {metrics.auroc(labels, scores):.3f}, {positives}", fontsize=8)


def _draw_calibration(axis: Any, name: str, labels: np.ndarray, probability: np.ndarray) -> None:
    """
    Studies in groups of equal size by probability, on a logarithmic axis where most probabilities are small: one of the even
    bins of [0, 1] would hold them all.
    """
    shares = calibration_groups(labels, probability)
    small = float(np.median(probability)) < 0.05
    lowest = max(float(shares[0].min()) / 2, 1e-12)
    line = np.geomspace(lowest, 1, 100) if small else np.linspace(0, 1, 2)
    axis.plot(line, line, color="0.8", linewidth=1)
    axis.plot(*shares, color="tab:blue", linewidth=1, marker="o", markersize=4)
    axis.set(ylim=(-0.04, 1.04), xlim=(lowest, 1) if small else (-0.02, 1.02))
    if small:
        axis.set_xscale("log")
    error = metrics.expected_calibration_error(labels, probability)
    axis.set_title(f"{name}\ncalibration error {error:.3f}, {len(labels)} studies", fontsize=8)


def calibration_groups(labels: np.ndarray, probability: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean probability and share of positives of up to ten groups of equal size, at least five studies each, lowest first."""
    groups = np.array_split(np.argsort(probability, kind="stable"), int(np.clip(len(labels) // 5, 1, 10)))
    return np.array([probability[g].mean() for g in groups]), np.array([labels[g].mean() for g in groups])


def _plot_confusion(protocol: Protocol, scores: np.ndarray, truth: Truth, path: Path) -> Path:
    assert truth.classes is not None
    count = len(protocol.names)
    table = np.zeros((count, count))
    np.add.at(table, (truth.classes, scores.argmax(1)), 1)
    shares = table / np.maximum(table.sum(1, keepdims=True), 1)
    side = 4 + 0.28 * count
    figure = new_figure(side, side)
    figure.set_layout_engine("constrained")
    axis = figure.subplots()
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axis.set_xticks(range(count), protocol.names, rotation=90, fontsize=7)
    axis.set_yticks(range(count), protocol.names, fontsize=7)
    axis.set(xlabel="predicted", ylabel="true")
    axis.set_title(f"% of each true class, {int(table.sum())} images", fontsize=9)
    for row, column in zip(*np.nonzero(shares >= 0.05)):
        colour = "white" if shares[row, column] > 0.5 else "black"
        axis.text(column, row, f"{100 * shares[row, column]:.0f}", ha="center", va="center", fontsize=6, color=colour)
    return save_figure(figure, path)


def worst_studies(protocol: Protocol, scores: np.ndarray, truth: Truth, count: int = 6) -> list[tuple[str, str, float]]:
    """
    Studies that the model is most wrong about: (id, finding or class, how wrong).

    Of findings the positives with the lowest share of negatives below them and the negatives with the lowest share of positives
    above them; of classes the true ones that rank lowest.
    """
    found: list[tuple[str, str, float]] = []
    if truth.classes is not None:
        ranks = metrics.true_class_ranks(scores, truth.classes)
        found = [(i, protocol.names[c], float(r)) for i, c, r in zip(truth.ids, truth.classes, ranks)]
        return sorted(found, key=lambda entry: -entry[2])[:count]
    assert truth.labels is not None
    for number, name in enumerate(protocol.names):
        labels, own = truth.labels[:, number], scores[:, number]
        for present in (1, 0):
            others = np.sort(own[labels == 1 - present])
            mine = np.flatnonzero(labels == present)
            if not len(others):
                continue
            below = np.searchsorted(others, own[mine]) / len(others)
            wrong = 1 - below if present else below
            found += [(truth.ids[study], name, float(w)) for study, w in zip(mine, wrong)]
    return sorted(found, key=lambda entry: -entry[2])[:count]
