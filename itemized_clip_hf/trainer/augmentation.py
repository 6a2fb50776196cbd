"""Random changes to the volumes of training: MONAI's transforms by name, and studies that are mirrored with their texts."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from ..data.reports.sides import swap_sides_of_all
from ..processing.geometry_itemized_clip import axis_codes
from ..processing.scans_itemized_clip import ProcessedScan
from ..specs import did_you_mean

IMAGE, MASK = "image", "mask"
GROUPS = ("spatial", "intensity")
"""Parts of `monai.transforms` whose random transforms keep the shape of a volume and run no code of the recipe."""
LEFT_RIGHT = "left-right"
FLIP = "RandFlipd"
FLIP_PROB = 0.1
"""MONAI's own default."""
MOST_TURN = 0.7
"""Least cosine between an axis before and after a transform: about 45 degrees."""
_FILLED_IN = ("keys", "allow_missing_keys", "lazy", "device")
_PROBES = 16


class AugmentationError(RuntimeError):
    """A transform does what texts do not allow; an error of the recipe, not of a study: it ends the run."""


@dataclass(frozen=True)
class AugmentationSettings:
    """
    Args:
        transforms: names of MONAI's random dictionary transforms with their arguments (all but `keys`), in order:
            `[{"RandAffined": {"prob": 0.5, "rotate_range": [0.1, 0, 0]}}, "RandGaussianNoised"]`; axes are (depth, height,
            width). `{"RandFlipd": {"prob": 0.5, "spatial_axis": "left-right"}}` mirrors a study, all its scans alike.
        draw: `"scan"`: every scan of a study by a draw of its own, its windows alike; `"study"`: all scans by one.
        swap_sides: exchange left and right in the items and in the sequence names of a mirrored study; a study whose text
            does not tell how (`data.reports.sides`) is not mirrored. Without it mirroring is refused.
    """

    transforms: Sequence[Any] = ()
    draw: str = "scan"
    swap_sides: bool = False

    @classmethod
    def read(cls, settings: "AugmentationSettings | Mapping[str, Any]") -> "AugmentationSettings":
        """
        From a dictionary of the arguments, as recipes hold it; MONAI is not needed for it.

        Raises:
            ValueError: what was found, and what was expected.
        """
        if isinstance(settings, cls):
            return settings
        if not isinstance(settings, Mapping):
            raise ValueError(f"augmentation is {settings!r}, expected transforms, draw, swap_sides.")
        unknown = sorted(set(settings) - set(cls.__dataclass_fields__))
        if unknown:
            raise ValueError(f"augmentation takes no {unknown}, expected {list(cls.__dataclass_fields__)}.")
        stated = cls(**settings)
        if stated.draw not in ("scan", "study"):
            raise ValueError(f"augmentation: draw is {stated.draw!r}, expected 'scan' or 'study'.")
        if not isinstance(stated.swap_sides, bool):
            raise ValueError(f"augmentation: swap_sides is {stated.swap_sides!r}, expected true or false.")
        if isinstance(stated.transforms, str) or not isinstance(stated.transforms, Sequence) or not stated.transforms:
            raise ValueError(f"augmentation: transforms is {stated.transforms!r}, expected a list of them.")
        named = [name_and_arguments(entry) for entry in stated.transforms]
        flips = [arguments for name, arguments in named if name == FLIP]
        if len(flips) > 1 or any(arguments.get("spatial_axis") != LEFT_RIGHT for arguments in flips):
            raise ValueError(
                f"augmentation: {FLIP} is {flips}, expected one with spatial_axis: {LEFT_RIGHT}. Which axis that is differs "
                "from scan to scan, and texts say nothing of heads that lie upside down or look backwards."
            )
        for arguments in flips:
            prob = arguments.get("prob", FLIP_PROB)
            if isinstance(prob, bool) or not isinstance(prob, (int, float)) or not 0 <= prob <= 1 or len(arguments) > 2:
                raise ValueError(f"augmentation: {FLIP} is {arguments}, expected prob, from 0 to 1, and spatial_axis.")
        if flips and not stated.swap_sides:
            raise ValueError(
                f"augmentation: {FLIP} mirrors studies whose texts say left and right: set swap_sides: true, which exchanges "
                f"these words in a mirrored study, or leave {FLIP} out."
            )
        if stated.swap_sides and not flips:
            raise ValueError(f"augmentation: swap_sides is true, but there is no {FLIP} that mirrors a study.")
        return stated


def name_and_arguments(entry: Any) -> tuple[str, dict[str, Any]]:
    """
    A transform of a list: its name and its arguments.

    >>> name_and_arguments({"RandGaussianNoised": {"std": 0.1}}), name_and_arguments("RandBiasFieldd")
    (('RandGaussianNoised', {'std': 0.1}), ('RandBiasFieldd', {}))
    """
    if isinstance(entry, str):
        return entry, {}
    if isinstance(entry, Mapping) and len(entry) == 1:
        ((name, arguments),) = entry.items()
        if isinstance(name, str) and (arguments is None or isinstance(arguments, Mapping)):
            return name, dict(arguments or {})
    raise ValueError(f"augmentation: a transform is {entry!r}, expected its name, or name: {{argument: value}}.")


class Augmentation:
    """
    Draws changes to the standardized scans of a study.

    Args:
        settings: [`AugmentationSettings`], or a dictionary of its arguments.

    Raises:
        ImportError: MONAI is not installed.
        ValueError: a transform or an argument is unknown, not random, changes the shape, mirrors or turns the volume.

    Every change comes from the seed of the study's visit alone, and from no other draw: with and without it a run takes the
    same studies, scans and items.
    """

    def __init__(self, settings: AugmentationSettings | Mapping[str, Any]):
        self.settings = AugmentationSettings.read(settings)
        named = [name_and_arguments(entry) for entry in self.settings.transforms]
        self.mirror_prob = next((float(a.get("prob", FLIP_PROB)) for name, a in named if name == FLIP), 0.0)
        others = [(name, arguments) for name, arguments in named if name != FLIP]
        self._transforms = [(name, make_transform(name, arguments)) for name, arguments in others]
        for name, arguments in others:
            try_transform(name, arguments)

    def apply(
        self,
        scans: list[ProcessedScan],
        texts: list[str],
        seed: int,
        orientation: str | None = None,
        masks: list[torch.Tensor | None] | None = None,
    ) -> "AugmentedStudy":
        """
        A study with its changes of one visit.

        Args:
            scans: standardized, before the normalization: `pixel_values` (C, D, H, W).
            texts: what the visit says of the study.
            seed: of the visit.
            orientation: of scans without an affine, (x, y, z), as the image processor has it.
            masks: (M, D, H, W) of each scan, changed with it, by nearest neighbor; None for a scan without.

        Raises:
            AugmentationError: which side is left cannot be told, or a transform mirrored or turned a volume.
        """
        study = AugmentedStudy(scans, texts, masks if masks is not None else [None] * len(scans))
        rng = np.random.default_rng(seed)
        if rng.random() < self.mirror_prob:
            study = mirrored(study, orientation)
        seeds = rng.integers(2**32, size=max(len(scans), 1)).tolist()
        places = source_numbers(study.scans) if self.settings.draw == "scan" else [0] * len(scans)
        pairs = [
            self._change(scan.pixel_values, mask, seeds[place])
            for scan, mask, place in zip(study.scans, study.masks, places)
        ]
        changed = [replace(scan, pixel_values=pixels, to_source=None) for scan, (pixels, _) in zip(study.scans, pairs)]
        return replace(study, scans=changed, masks=[mask for _, mask in pairs])

    def _change(
        self, pixels: torch.Tensor, mask: torch.Tensor | None, seed: int
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """One scan and its mask by one draw; its values stay in their range."""
        from monai.data import MetaTensor

        data: dict[str, Any] = {IMAGE: MetaTensor(pixels.clone(), torch.eye(4, dtype=torch.float64))}
        if mask is not None:
            data[MASK] = MetaTensor(mask.float(), torch.eye(4, dtype=torch.float64))
        seeds = np.random.default_rng(seed).integers(2**32, size=len(self._transforms)).tolist()
        for (name, transform), own in zip(self._transforms, seeds):
            data = transform.set_random_state(seed=own)(data)
            require_kept(name, data[IMAGE], pixels)
        changed = data[IMAGE].as_tensor().to(pixels.dtype).clamp_(*(float(limit) for limit in pixels.aminmax()))
        if not bool(changed.isfinite().all()):
            raise AugmentationError(
                f"augmentation with {[name for name, _ in self._transforms]} made values that are not finite."
            )
        return changed, None if mask is None else data[MASK].as_tensor().round().to(mask.dtype)


@dataclass(frozen=True)
class AugmentedStudy:
    """
    Args:
        scans: changed; without a way back to their sources.
        texts: with sides exchanged where the study is mirrored.
        masks: (M, D, H, W) of each scan, or None.
        is_mirrored: whether left is right.
    """

    scans: list[ProcessedScan]
    texts: list[str]
    masks: list[torch.Tensor | None] = field(default_factory=list)
    is_mirrored: bool = False


def mirrored(study: AugmentedStudy, orientation: str | None) -> AugmentedStudy:
    """Left and right of all scans, masks, texts and names exchanged; the study itself where its words do not tell how."""
    texts = swap_sides_of_all([*study.texts, *(scan.name for scan in study.scans)])
    if texts is None:
        return study
    axes = [1 + left_right_axis(scan, orientation) for scan in study.scans]
    count = len(study.texts)
    scans = [
        replace(scan, name=name, pixel_values=scan.pixel_values.flip(axis))
        for scan, name, axis in zip(study.scans, texts[count:], axes)
    ]
    masks = [None if mask is None else mask.flip(axis) for mask, axis in zip(study.masks, axes)]
    return AugmentedStudy(scans, [str(text) for text in texts[:count]], masks, True)


def left_right_axis(scan: ProcessedScan, orientation: str | None) -> int:
    """
    Which of (D, H, W) runs between left and right: by the scan's affine, else by the orientation that arrays are taken to have.

    Raises:
        AugmentationError: neither says.
    """
    affine = scan.voxel_affine()
    codes = orientation[::-1] if affine is None and orientation is not None else None
    codes = axis_codes(affine) if affine is not None else codes
    if codes is None:
        raise AugmentationError(
            f"scan {scan.name!r} has no affine and the processor no orientation: which side is left cannot be told. Leave out "
            f"{FLIP}, or pass scans with their geometry."
        )
    return next(axis for axis, code in enumerate(codes) if code in "LR")


def source_numbers(scans: list[ProcessedScan]) -> list[int]:
    """Number of each scan's source: the windows of a scan share one."""
    known: list[Any] = []
    numbers = []
    for scan in scans:
        place = next((i for i, source in enumerate(known) if source is scan.source), None)
        if place is None or scan.source is None:
            place = len(known)
            known.append(scan.source)
        numbers.append(place)
    return numbers


def require_monai() -> Any:
    """`monai.transforms`; ImportError with the cure where it is not installed."""
    try:
        import monai.transforms
    except ImportError:
        raise ImportError("augmentation needs MONAI: pip install 'itemized-clip-hf[monai]'.") from None
    return monai.transforms


def known_transforms(transforms: Any) -> dict[str, Any]:
    """MONAI's random dictionary transforms that training takes, by name."""
    return {
        name: cls
        for name, cls in vars(transforms).items()
        if name.startswith("Rand")
        and name.endswith("d")
        and inspect.isclass(cls)
        and issubclass(cls, transforms.Randomizable)
        and issubclass(cls, transforms.MapTransform)
        and cls.__module__.split(".")[2] in GROUPS
    }


def make_transform(name: str, arguments: Mapping[str, Any]) -> Any:
    """
    A transform of MONAI for a scan and its mask.

    Raises:
        ValueError: there is none, or it does not take these arguments.
    """
    known = known_transforms(require_monai())
    if name not in known:
        hint = did_you_mean(name, known)
        raise ValueError(f"augmentation: {name!r} is not one of MONAI's transforms for it, {sorted(known)}.{hint}")
    parameters = inspect.signature(known[name]).parameters
    unknown = sorted(set(arguments) - (set(parameters) - set(_FILLED_IN)))
    if unknown:
        takes = [parameter for parameter in parameters if parameter not in _FILLED_IN]
        raise ValueError(f"augmentation: {name} takes no {unknown}, expected {takes}.")
    is_spatial = known[name].__module__.split(".")[2] == "spatial"
    filled: dict[str, Any] = {"keys": [IMAGE, MASK] if is_spatial else [IMAGE], "allow_missing_keys": True}
    if is_spatial and "mode" in parameters:
        filled["mode"] = (arguments.get("mode", "bilinear"), "nearest")
    try:
        return known[name](**{**arguments, **filled})
    except (TypeError, ValueError) as error:
        raise ValueError(f"augmentation: {name} does not take {dict(arguments)}: {error}") from None


def try_transform(name: str, arguments: Mapping[str, Any]) -> None:
    """
    Tries a transform on a volume of noise, and one that moves voxels on volumes that hold their own coordinates.

    Raises:
        ValueError: it does not work, mirrors the volume, turns it by 45 degrees and more, or changes its shape: what texts say
            of left, upper and anterior would not hold.
    """
    always = {"prob": 1.0} if "prob" in inspect.signature(known_transforms(require_monai())[name]).parameters else {}
    transform = make_transform(name, {**arguments, **always})
    is_spatial = MASK in transform.keys
    shape = (16, 48, 48) if is_spatial else (12, 24, 24)
    noise = torch.rand(1, *shape, generator=torch.Generator().manual_seed(0))
    axes = torch.stack(torch.meshgrid(*(torch.arange(float(n)) for n in shape), indexing="ij"))
    volumes = torch.cat([axes, torch.ones(1, *shape)]) if is_spatial else noise
    for draw in range(_PROBES if is_spatial else 1):
        try:
            moved = transform.set_random_state(seed=draw)({IMAGE: volumes.clone()})[IMAGE]
        except (TypeError, ValueError, RuntimeError, IndexError) as error:
            raise ValueError(f"augmentation: {name} does not work with {dict(arguments)}: {error}") from None
        if moved.shape != volumes.shape:
            raise ValueError(
                f"augmentation: {name} makes {tuple(moved.shape[1:])} voxels of {shape}, expected as many: leave it out."
            )
        if is_spatial:
            _require_direction(name, slopes_of(torch.as_tensor(moved), axes), ValueError)


def slopes_of(moved: torch.Tensor, axes: torch.Tensor) -> np.ndarray:
    """
    Linear map (3, 3) of a transform, by what it made of the coordinates in the middle of a volume.

    Args:
        moved: (4, D, H, W), the coordinates and a volume of ones, after the transform.
        axes: (3, D, H, W), the coordinates before.
    """
    middle = (slice(None), *(slice(n // 4, -n // 4) for n in axes.shape[1:]))
    values, before = moved[middle].flatten(1), axes[middle].flatten(1)
    inside = values[3] > 0.999  # what was not filled in
    design = torch.cat([before, torch.ones(1, before.shape[1])])[:, inside].t()
    slopes: np.ndarray = torch.linalg.lstsq(design, values[:3, inside].t()).solution[:3].numpy()
    return slopes


def require_kept(name: str, changed: Any, before: torch.Tensor) -> None:
    """
    Looks at what a transform made of a scan, by the affine that MONAI keeps of it.

    Raises:
        AugmentationError: another shape, or another direction of an axis.
    """
    if changed.shape != before.shape:
        raise AugmentationError(
            f"augmentation: {name} made {tuple(changed.shape)} voxels of {tuple(before.shape)}, expected as many."
        )
    _require_direction(name, np.asarray(changed.affine)[:3, :3], AugmentationError)


def _require_direction(name: str, matrix: np.ndarray, error: type[Exception]) -> None:
    """Raises where an axis of a linear map (3, 3) does not run about as it did."""
    lengths = np.linalg.norm(matrix, axis=0)
    cosines = np.diag(matrix) / np.where(lengths > 0, lengths, 1.0)
    if np.linalg.norm(matrix) > 0 and cosines.min() < MOST_TURN:
        raise error(
            f"augmentation: {name} mirrors a volume or turns it by 45 degrees and more: what texts say of left, upper and "
            f"anterior would not hold. Narrow its ranges; {FLIP} with spatial_axis: {LEFT_RIGHT} and swap_sides: true mirrors."
        )
