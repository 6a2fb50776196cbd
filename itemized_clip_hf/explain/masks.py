"""Masks that a text names: a study through a model that draws them, back to the grid of each scan as it came in."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..evaluation.encode import encode_inputs, encode_texts
from ..modeling.segmentation_itemized_clip import ItemizedCLIPForSemanticSegmentation
from ..processing.geometry_itemized_clip import axis_spacing
from ..processing.processing_itemized_clip import ItemizedCLIPProcessor
from ..processing.scans_itemized_clip import ProcessedScan
from .attribution import BEST, attribute
from .maps import source_array, token_map_to_source

NEEDS_MONAI = "Segmentation needs MONAI: pip install 'itemized-clip-hf[monai]'."


@dataclass(frozen=True)
class MaskOptions:
    """
    How masks are made of probabilities.

    Args:
        threshold: probability from which a voxel belongs to the finding.
        keep_largest: connected components that stay, the largest ones; all if None.
        fill_holes: also take what a mask encloses.
        overlap: of neighboring windows, where a scan is larger than the model's field.
    """

    threshold: float = 0.5
    keep_largest: int | None = None
    fill_holes: bool = False
    overlap: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise ValueError(f"threshold is {self.threshold}, expected a probability between 0 and 1.")
        if self.keep_largest is not None and self.keep_largest < 1:
            raise ValueError(f"keep_largest is {self.keep_largest}, expected 1 or more components.")
        if not 0 <= self.overlap < 1:
            raise ValueError(f"overlap is {self.overlap}, expected a share of at least 0 and below 1.")


@dataclass(repr=False)
class DrawnMask:
    """
    One finding in one scan.

    Args:
        item: its text, or the name of a class.
        scan_name: of the scan as it came in; None for arrays.
        values: uint8 in the grid of the scan, 1 inside; 0 also outside of the model's field.
        affine: of the scan, (4, 4), or None for arrays.
        share: part of the item's score over the study that rests on this scan, 0 to 1; None for classes.
        score: cosine of the item and the study, as its heat maps sum to; None for classes.
        field: share of the scan's voxels that the model saw.
        source: the scan's voxels.
    """

    item: str
    scan_name: str | None
    values: np.ndarray
    affine: np.ndarray | None
    share: float | None
    score: float | None
    field: float
    source: np.ndarray

    @property
    def volume_ml(self) -> float | None:
        """Milliliters inside; None without geometry."""
        if self.affine is None:
            return None
        return float(self.values.sum() * np.prod(axis_spacing(np.asarray(self.affine, float))) / 1000)

    def __repr__(self) -> str:
        voxels = int(self.values.sum())
        return f"DrawnMask({self.item!r}, scan {self.scan_name!r}, {voxels} of {self.values.size} voxels)"


@dataclass
class DrawnStudy:
    """
    All masks of a study.

    Args:
        masks: of each item or class, one per scan.
        label_maps: of a model of classes, one per scan: uint8 class numbers.
        notes: what was left out or not seen.
    """

    masks: list[list[DrawnMask]]
    label_maps: list[np.ndarray] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def main(self, item: int) -> DrawnMask:
        """The mask in the scan that most of the item's score rests on."""
        return max(self.masks[item], key=lambda mask: mask.share or 0.0)


@dataclass
class _Source:
    """A scan as it came in, and its views (windows) as the model sees them."""

    scan: ProcessedScan
    views: list[int]


@torch.no_grad()
def draw_study(
    model: ItemizedCLIPForSemanticSegmentation,
    processor: ItemizedCLIPProcessor,
    study: Any,
    items: Sequence[str] = (),
    options: MaskOptions | None = None,
    on_bad_scan: Callable[[str | None, Exception], Any] | None = None,
) -> DrawnStudy:
    """
    Masks of items, or of the model's classes, in every scan of a study.

    A scan that is larger than the model's field (preprocessing `fit: crop`) is drawn window by window, where it is the only
    one of its study; of other scans the field alone is drawn.

    Args:
        study: anything the processor takes as one study.
        items: texts; none for a model of classes.
        options: threshold and what follows it.
        on_bad_scan: called with the name of a scan that is left out, and why; without it the error is raised.

    Raises:
        ValueError: the study cannot be used, or items are missing or not wanted.
    """
    options = options or MaskOptions()
    by_item = model.mask_decoder.by_item
    if by_item != bool(items):
        raise ValueError(
            "this model draws items: pass texts." if by_item else "this model draws its classes: pass no texts."
        )
    notes: list[str] = []

    def leave_out(name: str | None, error: Exception) -> None:
        notes.append(f"{name or 'a scan'} was left out: {error}")
        if on_bad_scan is not None:
            on_bad_scan(name, error)

    own = processor.image_processor
    scans = own.process_study(study, on_error=None if on_bad_scan is None else leave_out)
    sources = _group_by_source(scans)
    texts = dict(processor.encode_text([list(items)])) if by_item else {}
    ids = {name: torch.as_tensor(value).to(model.device) for name, value in texts.items()}
    shares, scores = _shares(model, processor, scans, items) if by_item else (None, None)
    whole = _uncropped(own, scans) if len(sources) == 1 else None
    if whole is not None:
        scans = whole
        probabilities = _slide(model, processor, scans, ids, options.overlap)[None]
    else:
        probabilities = _draw_once(model, processor, scans, ids)
    drawn = DrawnStudy([[] for _ in (items if by_item else class_names(model))], notes=notes)
    for source in sources:
        rows = [0] if whole is not None else source.views
        own_share = None if shares is None else shares[:, source.views].sum(1)
        painted = _paint(probabilities[rows].mean(0), scans[rows[0]], options, by_item)
        _add_source(drawn, list(items) or class_names(model), source, painted, own_share, scores)
    return drawn


def class_names(model: ItemizedCLIPForSemanticSegmentation) -> list[str]:
    """Classes of a model but the background."""
    labels: Any = model.config.id2label or {}
    return [str(labels[number]) for number in range(1, len(labels))]


def _group_by_source(scans: Sequence[ProcessedScan]) -> list[_Source]:
    found: dict[int, _Source] = {}
    for number, scan in enumerate(scans):
        found.setdefault(id(scan.source), _Source(scan, [])).views.append(number)
    return list(found.values())


def _shares(
    model: ItemizedCLIPForSemanticSegmentation,
    processor: ItemizedCLIPProcessor,
    scans: list[ProcessedScan],
    items: Sequence[str],
) -> tuple[np.ndarray, np.ndarray]:
    """Of each item the part of its score that rests on each scan, (K, N), and the score (K,)."""
    inputs = processor.image_processor.collate([scans], return_tensors="pt").to(model.device)
    encoded, embeds = encode_inputs(model, inputs), encode_texts(model, processor, items)
    terms = attribute(model, embeds[None], encoded.tokens, encoded.keep_mask, BEST, normalize_queries=False)[0]
    by_scan = terms.unflatten(1, (len(scans), -1)).sum(2).float().cpu().numpy()
    total = by_scan.sum(1, keepdims=True)
    shares = np.where(total > 0, by_scan / np.maximum(total, 1e-12), 1 / len(scans))
    return shares, model.score_items(embeds, encoded.tokens, encoded.token_mask)[0].cpu().numpy()


def _draw_once(
    model: ItemizedCLIPForSemanticSegmentation,
    processor: ItemizedCLIPProcessor,
    scans: list[ProcessedScan],
    ids: dict[str, torch.Tensor],
) -> np.ndarray:
    """Probabilities (N, K or classes, D, H, W)."""
    inputs = processor.image_processor.collate([scans], return_tensors="pt").to(model.device)
    return _probabilities(model, model(**inputs, **ids).logits[0]).cpu().numpy()


def _probabilities(model: ItemizedCLIPForSemanticSegmentation, logits: torch.Tensor) -> torch.Tensor:
    return logits.float().sigmoid() if model.mask_decoder.by_item else logits.float().softmax(-4)


def _uncropped(image_processor: Any, scans: list[ProcessedScan]) -> list[ProcessedScan] | None:
    """The views of a study's only scan without the crop; None where the model sees all of it anyway."""
    source = scans[0].source
    if image_processor.fit != "crop" or getattr(source, "prepared", False):
        return None
    standardized = image_processor.standardize_scan(source)[0].pixel_values.shape
    size = [max(have, field) for have, field in zip(standardized, image_processor.scan_size)]
    if size == list(image_processor.scan_size):
        return None
    name = getattr(source, "name", None)
    whole: list[ProcessedScan] = image_processor.process_study({name or "scan": source}, scan_size=size)
    return whole


def _slide(
    model: ItemizedCLIPForSemanticSegmentation,
    processor: ItemizedCLIPProcessor,
    scans: list[ProcessedScan],
    ids: dict[str, torch.Tensor],
    overlap: float,
) -> np.ndarray:
    """Probabilities (K or classes, D, H, W) of a scan that is larger than the field, mean over its views."""
    try:
        from monai.inferers import sliding_window_inference
    except ImportError:
        raise ImportError(NEEDS_MONAI) from None
    inputs = processor.image_processor.collate([scans], return_tensors="pt")
    pixels, names = inputs["pixel_values"], inputs.get("scan_name_ids")
    count, channels = pixels.shape[1:3]

    def draw(window: torch.Tensor) -> torch.Tensor:
        views = window.to(model.device).unflatten(1, (count, channels))
        named = {} if names is None else {"scan_name_ids": names.to(model.device).expand(len(views), -1, -1)}
        tiled = {name: value.expand(len(views), *value.shape[1:]) for name, value in ids.items()}
        logits = model(pixel_values=views, **named, **tiled).logits
        return _probabilities(model, logits).mean(1).cpu()

    field = tuple(processor.image_processor.scan_size)
    found: Any = sliding_window_inference(pixels.flatten(1, 2), field, 1, draw, overlap=overlap, mode="gaussian")
    return found[0].numpy()


@dataclass
class _Painted:
    """Of one scan in its own grid: a mask of each item or class, the label map of a model of classes, what the model saw."""

    masks: list[np.ndarray]
    label_map: np.ndarray | None
    field: float


def _paint(probabilities: np.ndarray, scan: ProcessedScan, options: MaskOptions, by_item: bool) -> _Painted:
    """Probabilities (K or classes, D, H, W) in the grid of the model -> masks in that of the scan as it came in."""
    source = source_array(scan)
    size = tuple(scan.pixel_values.shape[1:])
    is_picture = size[0] == 1
    shape = (1, *source.shape[:2]) if is_picture else source.shape
    to_source: Any = scan.to_source
    seen = token_map_to_source(np.ones(size, np.float32), to_source, size, shape, "nearest") > 0
    painted = (token_map_to_source(own, to_source, size, shape) for own in probabilities)
    label_map = None
    if by_item:
        masks = [_clean(own >= options.threshold, options) for own in painted]
    else:
        best = np.where(seen, np.argmax(np.stack(list(painted)), 0), 0)
        masks = [_clean(best == number, options) for number in range(1, len(probabilities))]
        label_map = np.zeros(shape, np.uint8)
        for number, mask in enumerate(masks, start=1):
            label_map[mask & (label_map == 0)] = number
    if is_picture:
        masks, label_map = [mask[0] for mask in masks], None if label_map is None else label_map[0]
    return _Painted(masks, label_map, float(seen.mean()))


def _add_source(
    drawn: DrawnStudy,
    names: list[str],
    source: _Source,
    painted: _Painted,
    shares: np.ndarray | None,
    scores: np.ndarray | None,
) -> None:
    """Adds the masks of one scan."""
    scan = source.scan
    scan_name = scan.name if len(source.views) == 1 else getattr(scan.source, "name", None) or scan.name
    for number, (name, mask) in enumerate(zip(names, painted.masks)):
        drawn.masks[number].append(
            DrawnMask(
                item=name,
                scan_name=scan_name,
                values=mask.astype(np.uint8),
                affine=getattr(scan.source, "affine", None),
                share=None if shares is None else float(shares[number]),
                score=None if scores is None else float(scores[number]),
                field=painted.field,
                source=source_array(scan),
            )
        )
    if painted.label_map is not None:
        drawn.label_maps.append(painted.label_map)
    if painted.field < 0.999:
        where = scan_name or f"scan {len(drawn.masks[0])}"
        drawn.notes.append(f"{where}: the model sees {painted.field:.0%} of it; outside of that masks are empty.")


def _clean(mask: np.ndarray, options: MaskOptions) -> np.ndarray:
    """Largest components, and what they enclose."""
    if not mask.any() or (options.keep_largest is None and not options.fill_holes):
        return mask
    try:
        from scipy import ndimage
    except ImportError:
        raise ImportError("Components and holes of masks need scipy: pip install 'itemized-clip-hf[monai]'.") from None
    cleaned: np.ndarray = mask
    if options.keep_largest is not None:
        # MONAI's own transform needs scikit-image, which this package does without; neighbors touch at a corner, as there.
        numbers, count = ndimage.label(mask, np.ones((3,) * mask.ndim))
        sizes = np.bincount(numbers.ravel(), minlength=count + 1)[1:]
        largest = np.argsort(-sizes, kind="stable")[: options.keep_largest] + 1
        cleaned = np.isin(numbers, largest)
    return ndimage.binary_fill_holes(cleaned) if options.fill_holes else cleaned
