"""Whether a model looks where the finding is: heat maps against masks, and what the score does without what it looked at."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn import functional as F

from ..explain.attribution import ATTENTION, attribute
from ..explain.maps import HeatMap
from ..modeling.modeling_itemized_clip import ItemizedCLIPModel
from .encode import EncodedStudies, encode_inputs
from .zero_shot import score_encoded


@dataclass
class PointingGame:
    """
    Pointing game in the model's own resolution: the patch of a study that an item attends to most touches the item's mask, or
    it does not.

    Chance is the share of patches that touch the mask, what a patch drawn at random would hit.
    """

    hits: dict[str, list[bool]] = field(default_factory=dict)
    chances: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, maps: Sequence, masks: Sequence[np.ndarray]) -> None:
        """
        Args:
            name: kind of finding.
            maps: heat maps of one item, one per scan.
            masks: the item's mask in the grid of each scan's source.
        """
        touched = [heat.touched_tokens(mask) for heat, mask in zip(maps, masks)]
        hottest = max(range(len(maps)), key=lambda n: maps[n].tokens.max())
        self.hits.setdefault(name, []).append(bool(touched[hottest].flat[maps[hottest].tokens.argmax()]))
        self.chances.setdefault(name, []).append(float(np.mean([share.mean() for share in touched])))

    def rates(self, names: Iterable[str] | None = None) -> tuple[int, float, float]:
        """Items, hit rate and chance, over all items of these findings."""
        names = [name for name in (self.hits if names is None else names) if name in self.hits]
        hits = [hit for name in names for hit in self.hits[name]]
        chances = [chance for name in names for chance in self.chances[name]]
        if not hits:
            return 0, float("nan"), float("nan")
        return len(hits), float(np.mean(hits)), float(np.mean(chances))


def energy_in_mask(maps: Sequence[HeatMap], masks: Sequence[np.ndarray]) -> tuple[float, float]:
    """
    Share of an item's attention that falls on patches which touch its mask, and the share of such patches, which even attention
    would give.

    Args:
        maps: heat maps of one item, one per scan.
        masks: the item's mask in the grid of each scan's source.
    """
    touched = [heat.touched_tokens(mask) for heat, mask in zip(maps, masks)]
    inside = sum(float(heat.tokens[own].sum()) for heat, own in zip(maps, touched))
    total = sum(float(heat.tokens.sum()) for heat in maps)
    return inside / max(total, 1e-12), float(np.mean(np.concatenate([own.ravel() for own in touched])))


def swap_margins(maps: Sequence[Sequence[HeatMap]], masks: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """
    Item swap: of every pair of items of one study whether the maps tell the masks apart. (K, K): energy of item k in its own
    mask minus the energy of item j there; positive where exchanging the two texts would be noticed. NaN on the diagonal.

    Args:
        maps: of every item, one per scan.
        masks: of every item, in the grid of each scan's source.
    """
    energy = np.array([[energy_in_mask(own, mask)[0] for mask in masks] for own in maps])
    margins = np.diag(energy)[:, None] - energy.T
    np.fill_diagonal(margins, np.nan)
    return margins


@dataclass
class PatchCurves:
    """
    What an item's score does while patches are taken away or come back.

    Args:
        shares: (steps + 1,) of the patches that are changed.
        deletion: (steps + 1,) TCSim with the patches of highest attribution blanked, from none to all of them.
        insertion: (steps + 1,) TCSim with only these patches shown.
        random_deletion, random_insertion: the same in a random order.
    """

    shares: np.ndarray
    deletion: np.ndarray
    insertion: np.ndarray
    random_deletion: np.ndarray
    random_insertion: np.ndarray

    def areas(self) -> dict[str, float]:
        """Mean heights of the curves: a faithful map has a low `deletion` and a high `insertion` beside random order."""
        names = ("deletion", "insertion", "random_deletion", "random_insertion")
        widths = np.diff(self.shares)
        return {name: float(((own := getattr(self, name))[1:] + own[:-1]) @ widths / 2) for name in names}


@torch.no_grad()
def patch_curves(
    model: ItemizedCLIPModel,
    inputs: Mapping[str, torch.Tensor],
    item_embed: torch.Tensor,
    steps: int = 10,
    seed: int = 0,
    normalize_pool_inputs: bool = True,
    attribution: str = ATTENTION,
) -> PatchCurves:
    """
    Deletion and insertion in the input: patches are blanked before the vision tower, so that no other token knows of them.

    Args:
        inputs: image inputs of the processor of one study, on the model's device.
        item_embed: (P,).
        steps: of equal numbers of patches.
        seed: of the random order.
        attribution: what the order of the patches is by, a name of `explain.attribution.ATTRIBUTIONS`.
    """
    pixels = inputs["pixel_values"]
    # The mean of each scan and channel is what a blanked patch shows.
    blank = pixels.mean(dim=(-3, -2, -1) if pixels.ndim == 6 else (-2, -1), keepdim=True)

    def score(shown: torch.Tensor) -> np.ndarray:
        spread = [_spread(row, model.config.vision.patch_shape, pixels) for row in shown]
        return _score_changed(model, inputs, item_embed, spread, blank, normalize_pool_inputs)

    return _play_curves(model, encode_inputs(model, inputs), item_embed, score, steps, seed, attribution)


@torch.no_grad()
def token_curves(
    model: ItemizedCLIPModel,
    studies: EncodedStudies,
    item_embed: torch.Tensor,
    steps: int = 10,
    seed: int = 0,
    normalize_pool_inputs: bool = True,
    attribution: str = ATTENTION,
) -> PatchCurves:
    """
    Deletion and insertion in the item pooler: the item may no longer attend to tokens, which stay as the vision tower made
    them. What is left of a finding in its neighbours' tokens counts for these.

    Args:
        studies: one study after the vision tower.
        item_embed, steps, seed, attribution: as in `patch_curves`.
    """
    item, tokens = item_embed[None, None], studies.tokens
    if normalize_pool_inputs:
        item, tokens = F.normalize(item, dim=-1), F.normalize(tokens, dim=-1)

    def score(shown: torch.Tensor) -> np.ndarray:
        pooled = model.item_pooler(item.expand(-1, len(shown), -1), tokens, shown[None, None])
        return F.cosine_similarity(pooled.float(), item.float(), dim=-1, eps=1e-6)[0].cpu().numpy()

    return _play_curves(model, studies, item_embed, score, steps, seed, attribution)


def _play_curves(
    model: ItemizedCLIPModel,
    studies: EncodedStudies,
    item_embed: torch.Tensor,
    score: Callable[[torch.Tensor], np.ndarray],
    steps: int,
    seed: int,
    attribution: str,
) -> PatchCurves:
    """The four curves; `score`: which tokens are shown, (n, L), -> scores (n,)."""
    values = attribute(model, item_embed[None, None], studies.tokens, studies.keep_mask, attribution)[0, 0]
    real = torch.ones_like(values, dtype=torch.bool) if studies.token_mask is None else studies.token_mask[0]
    places = real.nonzero()[:, 0]
    shuffled = places[torch.randperm(len(places), generator=torch.Generator().manual_seed(seed)).to(places.device)]
    # Equal values, such as the zeros of tokens that speak against the item, follow each other at random.
    orders = {"": shuffled[values[shuffled].argsort(descending=True, stable=True)], "random_": shuffled}
    edges = np.linspace(0, len(places), steps + 1).round().astype(int)
    curves = {}
    for start, order in orders.items():
        taken = torch.zeros(len(edges), len(real), dtype=torch.bool, device=real.device)
        for row, edge in zip(taken, edges):
            row[order[:edge]] = True
        curves[f"{start}deletion"], curves[f"{start}insertion"] = score(real & ~taken), score(taken)
    return PatchCurves(edges / len(places), **curves)


def _spread(shown: torch.Tensor, patch: Sequence[int], pixels: torch.Tensor) -> torch.Tensor:
    """Tokens (L,) of one study -> voxels, broadcastable to its pixels."""
    if pixels.ndim == 4:
        rows, columns = pixels.shape[-2] // patch[-2], pixels.shape[-1] // patch[-1]
        grid = shown.view(rows, columns).repeat_interleave(patch[-2], 0).repeat_interleave(patch[-1], 1)
        return grid[None, None]
    sizes = [n // p for n, p in zip(pixels.shape[-3:], patch)]
    grid = shown.view(pixels.shape[1], *sizes)
    for axis, step in enumerate(patch, 1):
        grid = grid.repeat_interleave(step, axis)
    return grid[None, :, None]


def _score_changed(
    model: ItemizedCLIPModel,
    inputs: Mapping[str, torch.Tensor],
    item_embed: torch.Tensor,
    shown: list[torch.Tensor],
    blank: torch.Tensor,
    normalize: bool,
    at_once: int = 8,
) -> np.ndarray:
    scores = []
    pixels = inputs["pixel_values"]
    for start in range(0, len(shown), at_once):
        views = [torch.where(own, pixels, blank) for own in shown[start : start + at_once]]
        batch = {
            name: inputs[name].expand(len(views), *inputs[name].shape[1:]) for name in inputs if name != "pixel_values"
        }
        encoded: EncodedStudies = encode_inputs(model, {**batch, "pixel_values": torch.cat(views)})
        scores.append(score_encoded(model, item_embed[None], encoded, normalize)[:, 0])
    return np.concatenate(scores)
