"""What a model makes of mosaics: figures with one value per mosaic, and what they are worth over seeds and mosaics."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from mosaic_pictures import GRID, PATCH, Mosaic
from torch.nn import functional as F

from itemized_clip_hf.domains import load_domain
from itemized_clip_hf.evaluation import bootstrap as boot
from itemized_clip_hf.evaluation.encode import encode_studies, encode_texts
from itemized_clip_hf.evaluation.grounding import PointingGame, energy_in_mask, swap_margins
from itemized_clip_hf.evaluation.metrics import auroc
from itemized_clip_hf.evaluation.protocols import load_protocol
from itemized_clip_hf.evaluation.tasks.items import ItemEvaluation, evaluate_items
from itemized_clip_hf.evaluation.zero_shot import score_studies
from itemized_clip_hf.explain.maps import HeatMap, explain_items

BATCH = 64
AUC = "zero-shot AUC"
BETTER = {
    AUC: "higher",
    "pointing game": "higher",
    "token pointing": "higher",
    "energy in tile": "higher",
    "item swap": "higher",
    "mAMS": "lower",
    "MLL": "higher",
    "COMPLETE@10": "higher",
    "COMPLETE@100": "higher",
    "COMPLETE@1000": "higher",
    "mean rank": "lower",
    "I2T@10": "higher",
    "T2I@10": "higher",
}
"""Figure -> which way is better. `token pointing` needs no pooler: the hottest token is the one most like the item."""


def classes_of(mosaics: Sequence[Mosaic]) -> tuple[list[str], np.ndarray]:
    """The protocol's classes, and whether each mosaic has a tile of each: (S, 30)."""
    names = load_protocol("rsicd").classes
    return list(names), np.array([[name in mosaic.classes for name in names] for mosaic in mosaics])


def score_classes(model, processor, mosaics: Sequence[Mosaic]) -> np.ndarray:
    """Scores (S, 30) of the protocol's prompts, both templates averaged."""
    prompts = {name: load_domain("remote-sensing").labels[name] for name in classes_of(mosaics)[0]}
    return score_studies(model, processor, [mosaic.picture for mosaic in mosaics], prompts, batch_size=BATCH)[1]


def mean_auc(truth: np.ndarray, scores: np.ndarray) -> float:
    """Mean over the classes that some of the mosaics have, and some do not: truth and scores (S, C)."""
    used = [column for column in range(truth.shape[1]) if 0 < truth[:, column].sum() < len(truth)]
    return float(np.mean([auroc(truth[:, column], scores[:, column]) for column in used]))


def localize(maps: Sequence[Sequence[HeatMap]], mosaics: Sequence[Mosaic]) -> dict[str, np.ndarray]:
    """
    Means over the items of each mosaic, (S,): hottest patch in the tile, energy in it, pairs of items that tell their tiles
    apart; `chance` is the share of patches in the tile, what even maps would have.

    Args:
        maps: of every item of every mosaic.
    """
    rows = []
    for own, mosaic in zip(maps, mosaics):
        game, energies, masks = PointingGame(), [], mosaic.masks()
        for heat, mask in zip(own, masks):
            game.add("", [heat], [mask])
            energies.append(energy_in_mask([heat], [mask])[0])
        margins = swap_margins([[heat] for heat in own], [[mask] for mask in masks])
        _, hit, chance = game.rates()
        rows.append((hit, np.mean(energies), np.mean(margins[~np.isnan(margins)] > 0), chance))
    return dict(zip(("pointing game", "energy in tile", "item swap", "chance"), np.array(rows).T))


@torch.no_grad()
def point_by_tokens(model, processor, mosaics: Sequence[Mosaic]) -> np.ndarray:
    """
    Share of the items of each mosaic whose most similar token lies in the tile, (S,): cosine of the text with the projected
    tokens, which every model has. Only `dreamlip` trains it; elsewhere it comes of training class token or pooler.
    """
    texts = [text for mosaic in mosaics for text in mosaic.items]
    embeds = iter(F.normalize(encode_texts(model, processor, texts), dim=-1))
    found = []
    for encoded in encode_studies(model, processor, [mosaic.picture for mosaic in mosaics], BATCH):
        for number, tokens in zip(encoded.numbers, F.normalize(encoded.tokens, dim=-1)):
            own = torch.stack([next(embeds) for _ in mosaics[number].items])
            hottest = (own @ tokens.t()).argmax(1).cpu().numpy()
            rows, columns = hottest // GRID * PATCH, hottest % GRID * PATCH
            masks = mosaics[number].masks()
            found.append(np.mean([mask[row, column] for mask, row, column in zip(masks, rows, columns)]))
    return np.array(found)


def retrieval(found: ItemEvaluation) -> dict[str, np.ndarray]:
    """Figures of items among all items of all mosaics, (S,); those of texts as means over the items of each mosaic."""
    figures = {name.replace("_", " "): values for name, values in found.per_study().items()}
    for name, values in found.per_text().items():
        figures[name] = np.array([values[own].mean() for own in found.places])
    return {name: values for name, values in figures.items() if name in BETTER and not np.isnan(values).all()}


def measure(model, processor, mosaics: Sequence[Mosaic]) -> dict[str, np.ndarray]:
    """Figure -> one value per mosaic (S,), and the class scores, (S, 30). A model without trained pooler has no maps."""
    rows = [{"images": mosaic.picture, "items": mosaic.items} for mosaic in mosaics]
    figures = retrieval(evaluate_items(model, processor, rows, batch_size=BATCH))
    figures["token pointing"] = point_by_tokens(model, processor, mosaics)
    if model.config.scoring == "items":
        maps = [explain_maps(model, processor, mosaic) for mosaic in mosaics]
        figures |= localize(maps, mosaics)
    return figures | {"scores": score_classes(model, processor, mosaics)}


def explain_maps(model, processor, mosaic: Mosaic) -> list[HeatMap]:
    """Attention of every item of a mosaic."""
    return [heat for (heat,) in explain_items(model, processor, mosaic.picture, mosaic.items)]


def resample(runs: Sequence[Mapping[str, np.ndarray]], truth: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
    """Figure -> its value in every resample of the mosaics, (seeds, R); `counts` are from `draw_counts`."""
    drawn = {}
    for name in BETTER:
        if name == AUC:
            drawn[name] = np.stack([resampled_auc(truth, run["scores"], counts) for run in runs])
        elif name in runs[0]:
            drawn[name] = np.stack([boot.resampled_mean(run[name], counts) for run in runs])
    return drawn


def resampled_auc(truth: np.ndarray, scores: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Mean over the classes in every resample, (R,); a class that a resample does not have is left out of it."""
    columns = range(truth.shape[1])
    return np.nanmean([boot.resampled_auroc(truth[:, c], scores[:, c], counts) for c in columns], axis=0)


def summarize(
    arms: Mapping[str, Mapping[int, Mapping[str, np.ndarray]]], truth: np.ndarray, first: str, resamples: int = 1000
) -> dict[str, dict]:
    """
    Arm -> figure -> mean over seeds, 95 % interval over seeds and mosaics, each seed's value, and the difference from `first`.

    Both arms of a difference are of the seeds that both have, and of the same seeds and the same mosaics in every resample.

    Args:
        arms: arm -> seed -> figures from `measure`.
        truth: (S, 30), see `classes_of`.
    """
    counts = boot.draw_counts(len(truth), resamples)
    drawn = {
        name: dict(zip(sorted(runs), by_seed(resample([runs[seed] for seed in sorted(runs)], truth, counts))))
        for name, runs in arms.items()
    }
    values = {
        name: {
            seed: {
                figure: mean_auc(truth, run["scores"]) if figure == AUC else float(np.nanmean(run[figure]))
                for figure in BETTER
                if figure == AUC or figure in run
            }
            for seed, run in sorted(runs.items())
        }
        for name, runs in arms.items()
    }
    summary: dict[str, dict] = {}
    for name, own in values.items():
        summary[name] = {}
        for figure in next(iter(own.values())):
            entry = estimate(own, drawn[name], figure)
            entry["seeds"] = {str(seed): round(found[figure], 4) for seed, found in own.items()}
            shared = [seed for seed in own if seed in values.get(first, {}) and figure in values[first][seed]]
            if name != first and shared:
                change = {seed: {figure: own[seed][figure] - values[first][seed][figure]} for seed in shared}
                paired = {seed: {figure: drawn[name][seed][figure] - drawn[first][seed][figure]} for seed in shared}
                entry["difference"] = estimate(change, paired, figure)
            summary[name][figure] = entry
    return summary


def by_seed(drawn: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """(seeds, R) of every figure -> for every seed (R,) of every figure."""
    seeds = len(next(iter(drawn.values())))
    return [{name: values[seed] for name, values in drawn.items()} for seed in range(seeds)]


def estimate(values: Mapping[int, Mapping], drawn: Mapping[int, Mapping], figure: str) -> dict[str, float]:
    """Mean over seeds, and the interval of resamples that draw seeds too; with one seed over mosaics alone."""
    each = np.stack([drawn[seed][figure] for seed in values])
    chosen = np.random.default_rng(0).integers(len(each), size=(each.shape[1], len(each)))
    low, high = boot.interval(each[chosen, np.arange(each.shape[1])[:, None]].mean(1))
    value = float(np.mean([found[figure] for found in values.values()]))
    return {"value": round(value, 4), "low": round(low, 4), "high": round(high, 4)}
