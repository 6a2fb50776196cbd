"""Attention of every item over the tokens of a study -> one volume per scan, in the grid of the scan as it came in."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from ..data.readers.nifti import write_nifti
from ..domains import available_domains, load_domain
from ..evaluation.encode import encode_inputs, encode_texts
from ..evaluation.quantity import DEFAULT, check_quantity, convert, normalizes_pool_inputs, without_calibration
from ..evaluation.zero_shot import score_encoded
from ..modeling.modeling_itemized_clip import ItemizedCLIPModel
from ..processing.geometry_itemized_clip import scaling
from ..processing.processing_itemized_clip import ItemizedCLIPProcessor
from ..processing.scans_itemized_clip import ProcessedScan
from .attribution import ATTENTION, attribute, check_attribution
from .attribution import require_pooler as require_pooler


@dataclass(repr=False)
class HeatMap:
    """
    Attention of one item in one scan.

    Args:
        item: the text.
        scan_name: name of the processed scan (with its window, where a series is shown in several).
        values: attention per voxel of the source, in the source's axis order and shape, in units of the mean attention of
            a token: 1 is what even attention over the whole study would give.
        affine: of the source, (4, 4), or None for arrays.
        source: the source's voxels.
        share: part of the item's attention over the study that falls on this scan, in [0, 1].
        tokens: (D, H, W), the same attention per token.
        voxel_to_token: (4, 4), voxel indices of the source -> token indices, centres at integers.
        similarity: of the item with the whole study, as `itemized-clip predict` scores it, in [-1, 1]; None if it is not known.
        series: name of the source, without a window; None for arrays.
        path: file or folder that the source was read from, where it is known.
        quantity, score: the score that was asked for, see `evaluation.quantity`; the similarity by default.
        attribution: what the values are, a name of `explain.attribution.ATTRIBUTIONS`; what is said of attention here holds
            for it.
        window: HU that pictures show black and white; None: by the percentiles of the tissue.
    """

    item: str
    scan_name: str | None
    values: np.ndarray
    affine: np.ndarray | None
    source: np.ndarray
    share: float
    tokens: np.ndarray
    voxel_to_token: np.ndarray
    similarity: float | None = None
    series: str | None = None
    path: str | None = None
    quantity: str = DEFAULT
    score: float | None = None
    attribution: str = ATTENTION
    window: tuple[float, float] | None = None

    def _repr_png_(self) -> bytes | None:
        """For notebooks: slices with the map on top; None where matplotlib is missing."""
        from .plots import item_png

        return item_png([self])

    def __repr__(self) -> str:
        score = "" if self.score is None else f", {self.quantity} {self.score:.3f}"
        shape = " x ".join(map(str, self.values.shape))
        what = self.attribution
        return f"HeatMap({self.item!r}, scan {self.scan_name!r}, {shape}, {self.share:.0%} of the {what}{score})"

    def touched_tokens(self, mask: np.ndarray) -> np.ndarray:
        """Tokens (D, H, W) that hold at least one voxel of a mask in the source's grid."""
        return touched_tokens(mask, self.voxel_to_token, self.tokens.shape)


def write_map(path: str | os.PathLike, heat: HeatMap) -> None:
    """A heat map as NIfTI in the space of its scan, with its unit and range in the header."""
    highest = max(float(heat.values.max()), 1.0)
    unit = f"{heat.attribution} / mean {heat.attribution} of a patch"
    write_nifti(path, heat.values, heat.affine, unit, (0.0, highest))


def touched_tokens(mask: np.ndarray, voxel_to_token: np.ndarray, grid: Sequence[int]) -> np.ndarray:
    """
    Tokens (D, H, W) that hold at least one voxel of a mask.

    Args:
        mask: (D, H, W), or (H, W) of a picture.
        voxel_to_token: (4, 4), indices of the mask -> indices of the tokens.
        grid: shape of the tokens.
    """
    voxels = np.argwhere(mask.reshape(mask.shape if mask.ndim == 3 else (1, *mask.shape)))
    homogeneous = np.concatenate([voxels, np.ones((len(voxels), 1))], axis=1)
    indices = np.floor(homogeneous @ voxel_to_token.T + 0.5 + 1e-6)[:, :3].astype(int)
    inside = ((indices >= 0) & (indices < grid)).all(axis=1)
    touched = np.zeros(grid, dtype=bool)
    touched[tuple(indices[inside].T)] = True
    return touched


def paint_tokens(values: np.ndarray, voxel_to_value: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """
    Values (D, H, W) in another grid, by nearest neighbours; 0 outside of them.

    Args:
        voxel_to_value: (4, 4), indices of the other grid -> indices of the values.
        shape: of the other grid, (D, H, W) or (H, W).
    """
    grid = shape if len(shape) == 3 else (1, *shape)
    painted = np.zeros(grid, dtype=values.dtype)
    rows, columns = np.meshgrid(*(np.arange(n) for n in grid[1:]), indexing="ij")
    for number in range(grid[0]):  # one plane at a time: coordinates take far more memory than voxels
        voxels = np.stack([np.full(rows.shape, number), rows, columns, np.ones(rows.shape)], -1)
        indices = np.floor(voxels @ voxel_to_value.T + 0.5 + 1e-6)[..., :3].astype(int)
        inside = ((indices >= 0) & (indices < values.shape)).all(-1)
        painted[number][inside] = values[tuple(indices[inside].T)]
    return painted.reshape(shape)


def source_to_token(to_source: np.ndarray, scan_size: Sequence[int], grid: Sequence[int]) -> np.ndarray:
    """
    Index transform (4, 4) from the voxels of a source to the tokens of its processed scan.

    Args:
        to_source: voxel indices of the processed scan -> voxel indices of the source.
        scan_size: voxels of the processed scan.
        grid: tokens of the processed scan.
    """
    return np.linalg.inv(to_source @ scaling(scan_size, grid))


def token_map_to_source(
    token_map: np.ndarray,
    to_source: np.ndarray,
    scan_size: Sequence[int],
    source_shape: Sequence[int],
    order: str = "linear",
) -> np.ndarray:
    """
    A map over the token grid, resampled to the grid of the source.

    Args:
        token_map: (D, H, W) tokens.
        to_source: (4, 4), voxel indices of the processed scan -> voxel indices of the source.
        scan_size: voxels of the processed scan.
        source_shape: of the array that came in.
        order: `"linear"` interpolates between token centres, `"nearest"` paints blocks.

    Returns:
        array of `source_shape`; 0 outside the field that the model saw.
    """
    matrix = torch.from_numpy(source_to_token(to_source, scan_size, token_map.shape)).float()
    size = torch.tensor(token_map.shape, dtype=torch.float32)
    tokens_in = torch.from_numpy(np.ascontiguousarray(token_map)).float()[None, None]
    plane = [torch.arange(n, dtype=torch.float32) for n in source_shape[1:]]
    rows, columns = torch.meshgrid(*plane, indexing="ij")
    painted = np.empty(tuple(source_shape), dtype=np.float32)
    for number in range(source_shape[0]):  # one plane at a time: coordinates take far more memory than voxels
        voxels = torch.stack([torch.full_like(rows, number), rows, columns], dim=-1)
        tokens = voxels @ matrix[:3, :3].t() + matrix[:3, 3]
        inside = ((tokens >= -0.5 - 1e-4) & (tokens <= size - 0.5 + 1e-4)).all(-1)
        # grid_sample counts faces at -1 and 1, x (the last axis) first
        coordinates = ((tokens + 0.5) / size * 2 - 1).flip(-1)
        values = F.grid_sample(
            tokens_in,
            coordinates[None, None],
            mode="bilinear" if order == "linear" else "nearest",
            padding_mode="border",
            align_corners=False,
        )
        painted[number] = (values[0, 0, 0] * inside).numpy()
    return painted


@torch.no_grad()
def attention_maps(
    model: ItemizedCLIPModel,
    inputs: Mapping[str, torch.Tensor],
    item_embeds: torch.Tensor,
    normalize_queries: bool = True,
) -> torch.Tensor:
    """
    Attention (B, M, L) of M items over the tokens of each study, mean over heads, without the empty slot.

    Args:
        inputs: image inputs of the processor, on the model's device.
        item_embeds: (M, P).
        normalize_queries: L2-normalise the items before the pooler, as the reference's figures do.
    """
    encoded = encode_inputs(model, inputs)
    embeds = item_embeds.expand(len(encoded.tokens), -1, -1)
    return attend(model, embeds, encoded.tokens, encoded.keep_mask, normalize_queries)


def attend(
    model: ItemizedCLIPModel,
    item_embeds: torch.Tensor,
    tokens: torch.Tensor,
    keep_mask: torch.Tensor | None,
    normalize_queries: bool = True,
) -> torch.Tensor:
    """`attention_maps` of projected tokens (B, L, P) and the items of each study (B, M, P)."""
    require_pooler(model)
    queries = F.normalize(item_embeds, dim=-1) if normalize_queries else item_embeds
    return model.item_pooler(queries, tokens, keep_mask, output_attentions=True)[1]


def explain_items(
    model: ItemizedCLIPModel,
    processor: ItemizedCLIPProcessor,
    study: Any,
    items: list[str],
    order: str = "linear",
    on_bad_scan: Callable[[str | None, Exception], Any] | None = None,
    scores: str = DEFAULT,
    attribution: str = ATTENTION,
) -> Iterator[list[HeatMap]]:
    """
    Heat maps of one study, item by item: a list with one map per scan.

    Args:
        study: anything the processor takes as one study.
        items: texts to look for.
        order: `"linear"` or `"nearest"`, see `token_map_to_source`.
        on_bad_scan: called with the name of a scan that is left out, and why; without it the error is raised.
        scores: quantity of the score that the maps carry beside the similarity, see `evaluation.quantity`.
        attribution: what the maps show, a name of `explain.attribution.ATTRIBUTIONS`.

    Raises:
        ValueError: there is no such quantity or attribution, or the model's pooler is untrained.
    """
    scores = without_calibration(check_quantity(scores))
    check_attribution(attribution)
    image_processor = processor.image_processor
    scans = image_processor.process_study(study, on_error=on_bad_scan)
    inputs = image_processor.collate([scans], return_tensors="pt").to(model.device)
    require_pooler(model)
    with torch.no_grad():
        item_embeds = encode_texts(model, processor, items)
        study_tokens = encode_inputs(model, inputs)
        attention = attribute(model, item_embeds[None], study_tokens.tokens, study_tokens.keep_mask, attribution)[0]
    similarities = score_encoded(model, item_embeds, study_tokens)
    pooled = similarities
    if not normalizes_pool_inputs(scores):
        pooled = score_encoded(model, item_embeds, study_tokens, normalize_pool_inputs=False)
    quantities = convert(model, pooled, scores)[0].tolist()
    patch_size = model.config.vision.patch_shape
    windows = [display_window(image_processor, scan) for scan in scans]
    for number, maps in enumerate(paint_items(attention, items, scans, patch_size, order, similarities[0].tolist())):
        for heat, window in zip(maps, windows):
            heat.window = window
            heat.quantity, heat.score, heat.attribution = scores, quantities[number], attribution
        yield maps


def paint_items(
    attention: torch.Tensor,
    items: list[str],
    scans: list,
    patch_size: Sequence[int],
    order: str = "linear",
    similarities: Sequence[float] | None = None,
) -> Iterator[list[HeatMap]]:
    """
    Heat maps of items whose attention over a study is known, item by item: a list with one map per scan.

    Args:
        attention: (M, L) from `attend`; tokens of padded scans, behind those of the real ones, are passed over.
        scans: processed scans of the study.
        similarities: of the items with the study, for the maps to carry.
    """
    scan_size = tuple(scans[0].pixel_values.shape[1:])
    grid = tuple(voxels // size for voxels, size in zip(scan_size, patch_size))
    relative, shares = relate_to_mean(attention, len(scans), grid)
    sources = [source_array(scan) for scan in scans]
    for k, item in enumerate(items):
        similarity = None if similarities is None else similarities[k]
        yield [
            paint_scan(item, scan, source, relative[k, n], float(shares[k, n]), order, similarity)
            for n, (scan, source) in enumerate(zip(scans, sources))
        ]


def relate_to_mean(attention: torch.Tensor, scans: int, grid: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """
    Args:
        attention: (M, L) of the tokens of a study; those of padded scans, behind the real ones, are passed over.
        scans: number of real ones.
        grid: tokens of a scan (D, H, W).

    Returns:
        (M, scans, D, H, W), in units of the mean over the study, and the part of each scan, (M, scans).
    """
    values = attention.float().cpu().numpy()[:, : scans * int(np.prod(grid))]
    values = values.reshape(len(values), scans, *grid)
    total = np.maximum(values.sum(axis=(1, 2, 3, 4), keepdims=True), 1e-12)
    shares = np.array([[values[k, n].sum() / total[k].item() for n in range(scans)] for k in range(len(values))])
    return values / total * values[0].size, shares


def paint_scan(
    item: str,
    scan: ProcessedScan,
    source: np.ndarray,
    tokens: np.ndarray,
    share: float,
    order: str = "linear",
    similarity: float | None = None,
) -> HeatMap:
    """
    The heat map of one item in one scan.

    Args:
        source: from `source_array`.
        tokens: (D, H, W), attention in units of the mean over the study.
        share: part of the item's attention that falls on the scan.
        order: see `token_map_to_source`.
        similarity: of the item with the study, for the map to carry.
    """
    scan_size = tuple(scan.pixel_values.shape[1:])
    picture = scan_size[0] == 1
    to_source: Any = scan.to_source
    painted = token_map_to_source(
        tokens, to_source, scan_size, (1, *source.shape[:2]) if picture else source.shape, order
    )
    return HeatMap(
        item=item,
        scan_name=scan.name,
        values=painted[0] if picture else painted,
        affine=getattr(scan.source, "affine", None),
        source=source,
        share=share,
        tokens=tokens,
        voxel_to_token=source_to_token(to_source, scan_size, tokens.shape),
        similarity=similarity,
        series=getattr(scan.source, "name", None),
        path=getattr(scan.source, "path", None),
    )


def explain_study(
    model: ItemizedCLIPModel,
    processor: ItemizedCLIPProcessor,
    study: Any,
    items: list[str],
    order: str = "linear",
    attribution: str = ATTENTION,
) -> list[HeatMap]:
    """All heat maps of one study, those of the first item first; `explain_items` needs less memory."""
    found = explain_items(model, processor, study, items, order, attribution=attribution)
    return [heat for maps in found for heat in maps]


def display_window(image_processor: Any, scan: ProcessedScan) -> tuple[float, float] | None:
    """HU that pictures of a scan show: of its own window, or those of the domain; None where neither has any."""
    if source_array(scan).dtype == np.uint8:  # it shows a window already
        return None
    windows = dict(image_processor.windows or {})
    named = [limits for name, limits in windows.items() if name and (scan.name or "").endswith(name)]
    domain = image_processor.domain
    shown = load_domain(domain).display_window if domain in available_domains() else None
    limits = (named or [shown or windows.get("")])[0]
    return None if limits is None else (float(limits[0]), float(limits[1]))


def source_array(scan: ProcessedScan) -> np.ndarray:
    """Voxels of what a processed scan was made from; pictures as (H, W[, C])."""
    source = scan.source
    if hasattr(source, "array") and hasattr(source, "affine"):
        return np.asarray(source.array)
    if isinstance(source, torch.Tensor):
        source = source.numpy(force=True)
    array = np.asarray(source)
    if scan.pixel_values.shape[1] > 1:  # a volume
        return array[0] if array.ndim == 4 else array
    if array.ndim == 3 and array.shape[0] in (1, 3, 4) and array.shape[-1] not in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    return array
