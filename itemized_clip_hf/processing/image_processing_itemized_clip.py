"""Pictures, scans and studies -> `pixel_values`, `scan_mask`, `scan_name_ids` (spec 7.5)."""

import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch.nn import functional as F
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.processing_utils import ImagesKwargs
from transformers.utils import logging

from .geometry_itemized_clip import axis_spacing, permutation, reorient, scaling, shift
from .sequence_names_itemized_clip import encode_scan_name
from .settings_itemized_clip import check_settings

try:
    from PIL import Image, ImageOps
except ImportError:
    Image = ImageOps = None  # type: ignore[assignment]

logger = logging.get_logger(__name__)

DECISIVE = (
    "scan_size",
    "fit",
    "in_plane_size",
    "spacing",
    "orientation",
    "thickest_axis_first",
    "windows",
    "percentiles",
    "use_scan_names",
    "num_channels",
    "do_resize",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
)
"""Settings that decide which numbers the model gets of a scan."""

FITS = ("slices", "crop", "stretch", "picture")
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")


@dataclass
class ProcessedScan:
    """
    One scan as the model sees it.

    Args:
        name: sequence name, with the window's name appended where a series is shown in several windows.
        pixel_values: (C, D, H, W) float32.
        to_source: (4, 4), voxel indices (d, h, w) here -> voxel indices of the array that came in.
        source: the scan that came in, for its shape and affine.
    """

    name: str | None
    pixel_values: torch.Tensor
    to_source: np.ndarray | None
    source: Any

    def token_affine(self, grid: tuple[int, int, int]) -> np.ndarray | None:
        """(4, 4), token indices of a grid (D, H, W) over the scan -> mm in RAS+ scanner space; None without geometry."""
        affine = getattr(self.source, "affine", None)
        if affine is None or self.to_source is None:
            return None
        return np.asarray(affine, float) @ self.to_source @ scaling(self.pixel_values.shape[1:], grid)


class ItemizedCLIPImageProcessorKwargs(ImagesKwargs, total=False):
    """
    domain (`str`): the domain these settings belong to.
    scan_size (`list[int]`): voxels of one scan as the model takes it, `[depth, height, width]`; depth 1 for pictures.
    fit (`str`): how a scan reaches that size. `"slices"`: pad to a square in the plane, bilinear to `in_plane_size`, nearest
        slice to the depth, centre crop. `"crop"`: pad with zeros and crop. `"stretch"`: trilinear. `"picture"`: bicubic to
        the shortest side, centre crop.
    in_plane_size (`int`): of `"slices"`.
    spacing (`list[float]`): mm `[depth, height, width]` to resample to before `"crop"`; needs scans with an affine, arrays
        are taken to have it.
    orientation (`str`): directions of the x, y and z axes that a scan with an affine is brought to, e.g. `"RPI"`. Arrays are
        taken as they are, depth first.
    thickest_axis_first (`bool`): take the axis with the largest spacing for the depth, instead of z.
    windows (`dict[str, list[float]]`): name -> [lowest, highest] HU. Several windows make several scans of a series, in their
        order; files hold them as pairs, for the library sorts what it writes.
    percentiles (`list[float]`): of a volume's intensities that become 0 and 1.
    multi_scan (`bool`): a flat list of scans, and the volume files of a folder, are one study, not a batch of studies.
    use_scan_names (`bool`): return `scan_name_ids`.
    num_channels (`int`): 1 for volumes, 3 for pictures.
    train_crop_scale (`list[float]`): smallest and largest share of a picture's area in a random training crop.
    train_turns (`bool`): random quarter turns and flips of square pictures in training; true of pictures from above only.
    accept (`list[str]`): codes of the checks (`itemized-clip inspect`) that a scan is used in spite of; never saved.
    layout (`str`): what the volume files of a folder are where their names leave it open: `"study"`, scans of one study, or
        `"cohort"`, a study each; never saved.
    """

    domain: str | None
    scan_size: list[int] | tuple[int, ...] | None
    fit: str | None
    in_plane_size: int | None
    spacing: list[float] | tuple[float, ...] | None
    orientation: str | None
    thickest_axis_first: bool | None
    windows: dict | list | None
    percentiles: list[float] | tuple[float, ...] | None
    multi_scan: bool | None
    use_scan_names: bool | None
    num_channels: int | None
    train_crop_scale: list[float] | tuple[float, ...] | None
    train_turns: bool | None
    accept: list[str] | tuple[str, ...] | None
    layout: str | None


def _in_order(windows, usual: Mapping | None) -> dict | None:
    """Windows from pairs, or from a dict; one sorted when it was written gets the order of the domain that has them."""
    if windows is None:
        return None
    found = dict(windows)
    if isinstance(windows, Mapping) and usual and list(found) == sorted(usual):
        return {name: found[name] for name in usual}
    return found


def _is_scan(x) -> bool:
    return hasattr(x, "array") and hasattr(x, "affine")


def _is_study(x) -> bool:
    folder = isinstance(x, (str, os.PathLike)) and os.path.isdir(x)
    return folder or isinstance(x, (list, tuple, Mapping)) or hasattr(x, "scans")


def _refuse_study_in_list(opened, images) -> None:
    several = isinstance(images, (list, tuple)) and len(images) > 1
    if several and len(opened.scans) > 1 and not getattr(opened, "visits", None):
        raise ValueError(
            f"an entry of a list of {len(images)} is a folder of {len(opened.scans)} scans, where each is one scan of a study: "
            "pass each study by itself, or list its files."
        )


class ItemizedCLIPImageProcessor(BaseImageProcessor):
    """
    Image processor of all domains; the settings are those of [`ItemizedCLIPImageProcessorKwargs`].

    Unsigned 8-bit volumes are taken as already windowed and multiplied by `rescale_factor`; others go through `windows` or
    `percentiles`. `do_rescale=False` leaves all intensities alone.
    """

    valid_kwargs = ItemizedCLIPImageProcessorKwargs
    model_input_names = ["pixel_values", "scan_mask"]

    # Filled by the installed package: how a file or scan is opened and checked for a domain, and the settings of each domain.
    reader: ClassVar[Callable[..., Any] | None] = None
    presets: ClassVar[Mapping[str, dict]] = {}

    domain = None
    scan_size = (1, 224, 224)
    fit = "picture"
    in_plane_size = 256
    spacing = None
    orientation = None
    thickest_axis_first = False
    windows = None
    percentiles = None
    multi_scan = False
    use_scan_names = False
    num_channels = 3
    train_crop_scale = None
    train_turns = False
    accept = ()
    layout = None
    do_resize = True
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = True
    do_convert_rgb = True
    image_mean = (0.48145466, 0.4578275, 0.40821073)
    image_std = (0.26862954, 0.26130258, 0.27577711)

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self._set_attributes(**kwargs)
        check_settings({name: getattr(self, name, None) for name in DECISIVE + ("train_crop_scale",)})
        self.windows = _in_order(self.windows, self.presets.get(self.domain or "", {}).get("windows"))
        if self.fit not in FITS:
            raise ValueError(f"fit is {self.fit!r}, expected one of {list(FITS)}.")
        if self.fit == "slices" and max(self.scan_size[1:]) > self.in_plane_size:
            raise ValueError(
                f"in_plane_size is {self.in_plane_size}, less than the {list(self.scan_size[1:])} voxels that are cut from it."
            )

    def to_dict(self) -> dict[str, Any]:
        """Settings as they are saved: lists, windows in their order, and not what a caller says of the input at hand."""
        written = {
            name: list(value) if isinstance(value, tuple) else value for name, value in super().to_dict().items()
        }
        for name in ("accept", "layout"):
            written.pop(name, None)
        if isinstance(written.get("windows"), Mapping):
            written["windows"] = [[name, list(limits)] for name, limits in written["windows"].items()]
        return written

    @property
    def backend(self) -> str:
        return "pil"

    @classmethod
    def from_domain(cls, domain: str, **kwargs) -> "ItemizedCLIPImageProcessor":
        """The preset of a domain (`brain-mri`, `chest-ct`, ...), with changes as keyword arguments."""
        if domain not in cls.presets:
            known = sorted(cls.presets) or "none: presets come with the installed package itemized-clip-hf"
            raise ValueError(f"unknown domain {domain!r}; known: {known}.")
        return cls(**{**cls.presets[domain], "domain": domain, **kwargs})

    def _validate_preprocess_kwargs(
        self, do_rescale=None, rescale_factor=None, do_normalize=None, image_mean=None, image_std=None, **kwargs
    ):
        if do_rescale and rescale_factor is None:
            raise ValueError("do_rescale needs a rescale_factor.")
        if do_normalize and (image_mean is None or image_std is None):
            raise ValueError("do_normalize needs image_mean and image_std.")

    def _preprocess_image_like_inputs(self, images, *args, return_tensors=None, **settings) -> BatchFeature:
        studies = [self._process_study(study, settings) for study in self.split_studies(images, **settings)]
        return self.collate(studies, return_tensors=return_tensors, use_scan_names=settings["use_scan_names"])

    def process_study(
        self,
        study,
        generator: torch.Generator | None = None,
        on_error: Callable[[str | None, Exception], None] | None = None,
        **settings,
    ) -> list[ProcessedScan]:
        """
        The scans of one study with the way back to their sources, which heat maps need.

        Args:
            study: a scan or a list or dict of scans, in any form that a call takes.
            generator: draws the random crop of training; centred crops without it.
            on_error: called with the name of a scan that cannot be used, and why; the study then goes on without it, unless
                none is left. Without it the error is raised.
            settings: changes to the processor's own settings.
        """
        settings = {**{name: getattr(self, name, None) for name in self._valid_kwargs_names}, **settings}
        return self._process_study(study, self._standardize_kwargs(**settings), generator, on_error)

    def collate(
        self, studies: list[list[ProcessedScan]], return_tensors=None, use_scan_names: bool | None = None
    ) -> BatchFeature:
        """Processed studies, padded to the largest number of scans and masked."""
        if not studies:
            raise ValueError("there is no study to process: `images` is empty.")
        most = max(len(study) for study in studies)
        shape = studies[0][0].pixel_values.shape
        pixel_values = torch.zeros(len(studies), most, *shape)
        scan_mask = torch.zeros(len(studies), most, dtype=torch.bool)
        name_ids = np.zeros((len(studies), most, 110), dtype=np.int64)
        for i, study in enumerate(studies):
            for j, scan in enumerate(study):
                if scan.pixel_values.shape != shape:
                    raise ValueError(
                        f"scans of {tuple(shape)} and {tuple(scan.pixel_values.shape)} voxels cannot be batched; "
                        "leave do_resize on."
                    )
                pixel_values[i, j] = scan.pixel_values
                scan_mask[i, j] = True
                name_ids[i, j] = encode_scan_name(scan.name)
        data = {"pixel_values": pixel_values.numpy(), "scan_mask": scan_mask.numpy()}
        if self.use_scan_names if use_scan_names is None else use_scan_names:
            data["scan_name_ids"] = name_ids
        return BatchFeature(data, tensor_type=return_tensors)

    def split_studies(self, images, **settings) -> list:
        """The studies that `images` holds: a flat list is one study where studies have several scans, else a batch."""
        picture = settings.get("scan_size", self.scan_size)[0] == 1
        if isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == 4 and picture:
            return list(images)
        if not isinstance(images, (list, tuple)):
            return [images]
        if not len(images):
            raise ValueError("there is no study to process: `images` is empty.")
        if any(_is_study(image) for image in images) or not settings.get("multi_scan", self.multi_scan):
            return list(images)
        return [images]

    def _process_study(self, study, settings, generator=None, on_error=None) -> list[ProcessedScan]:
        scans = self._listed_scans(study)
        for skipped in getattr(study, "skipped", ()):
            if on_error is None:
                logger.warning(f"{skipped.scan} is left out: {skipped.reason}")
            else:
                on_error(skipped.scan, ValueError(skipped.reason))
        if not scans:
            raise ValueError("a study needs at least one scan, this one is empty.")
        listed = study if isinstance(study, (list, tuple)) else ()
        files = sum(isinstance(source, (str, os.PathLike)) for source in listed)
        if files > 1 and settings.get("domain") and not settings.get("multi_scan"):
            raise ValueError(
                f"the study has {files} files, expected one: studies of {settings['domain']} have one scan. Pass each file as "
                "a study of its own, or a dictionary (name -> file) if they are of one patient."
            )
        if isinstance(getattr(study, "scans", study), Mapping) and settings.get("multi_scan"):
            settings = {**settings, "layout": "study"}  # folders that it names are scans of it
        processed: list[ProcessedScan] = []
        last_error = None
        for name, source in scans:
            try:
                scan = self._load(source, settings)
                if hasattr(scan, "scans"):  # a file or folder that holds a whole study
                    _refuse_study_in_list(scan, study)
                    processed += self._process_study(scan, settings, generator, on_error)
                else:
                    name = name if name is not None else getattr(scan, "name", None)
                    processed += self._process_scan(name, scan, settings, generator)
            except (OSError, ValueError) as error:
                if on_error is None:
                    raise
                is_path = isinstance(source, (str, os.PathLike))
                on_error(os.path.basename(os.fspath(source)) if name is None and is_path else name, error)
                last_error = error
        if last_error is not None and len(scans) == 1:
            raise last_error
        if not processed:
            raise ValueError(f"none of the {len(scans)} scans of the study could be used; the last error: {last_error}")
        sources = [scan.source for scan in processed if hasattr(scan.source, "require_visit_of")]
        for source in sources[1:]:
            source.require_visit_of(sources[0])
        return processed

    def _listed_scans(self, study) -> list[tuple[str | None, Any]]:
        """Name and source of each scan, files still closed."""
        study = getattr(study, "scans", study)
        if isinstance(study, Mapping):
            return [(str(name), scan) for name, scan in study.items()]
        scans = study if isinstance(study, (list, tuple)) else [study]
        return [(getattr(scan, "name", None) if _is_scan(scan) else None, scan) for scan in scans]

    def _load(self, scan, settings):
        """A picture, an array, or a scan or study that was opened and checked."""
        is_path = isinstance(scan, (str, os.PathLike))
        if Image is not None and is_path and os.fspath(scan).lower().endswith(PICTURE_SUFFIXES):
            return open_picture(scan)
        if Image is not None and isinstance(scan, Image.Image):
            return upright(scan)
        if type(self).reader is not None and (is_path or _is_scan(scan)):
            stated = {"layout": settings.get("layout"), "settings": settings}
            return type(self).reader(scan, settings.get("domain", self.domain), settings.get("accept") or (), **stated)
        if is_path:
            raise ImportError(
                f"reading {os.fspath(scan)} needs the package: install itemized_clip_hf from a clone of its repository "
                "(pip install -e '.[volumes]') and import it, or pass an array."
            )
        return scan

    def _process_scan(self, name, scan, settings, generator) -> list[ProcessedScan]:
        if settings["scan_size"][0] == 1:
            pixel_values, to_source = self._process_picture(scan, settings, generator)
            return [ProcessedScan(name, pixel_values, to_source, scan)]
        return self._process_volume(name, scan, settings, generator)

    def _process_volume(self, name, scan, settings, generator) -> list[ProcessedScan]:
        depth, height, width = settings["scan_size"]
        standard, windows = self._standardize_volume(name, scan, settings)
        processed = []
        for stored in standard:
            for window, limits in windows.items():
                view = stored.pixel_values if limits is None else _apply_window(stored.pixel_values, limits)
                transform = stored.to_source
                if settings["do_resize"]:
                    if settings["fit"] == "slices":
                        top, left = (view.shape[1] - height) // 2, (view.shape[2] - width) // 2
                        view, step = view[:, top : top + height, left : left + width], shift((0, top, left))
                    elif settings["fit"] == "crop":
                        view, step = pad_and_crop(view, (depth, height, width), generator=generator)
                    else:
                        step = scaling(view.shape, (depth, height, width))
                        view = _trilinear(view, (depth, height, width))
                    transform = transform @ step
                pixel_values = _normalize(view[None], settings) if settings["do_normalize"] else view[None]
                full_name = _join_names(stored.name, window)
                processed.append(ProcessedScan(full_name, pixel_values.contiguous(), transform, scan))
        return processed

    def _standardize_volume(
        self, name, scan, settings, store: Callable = lambda view, in_hu: view
    ) -> tuple[list[ProcessedScan], dict[str, Any]]:
        """
        What does not depend on a draw: depth first, spacing, intensities and, for `"slices"`, in-plane size and depth.

        Args:
            store: turns each volume, told whether it is in HU, to what is kept.

        Returns:
            volumes (D, H, W) in [0, 1], one a window; and `{"": None}`. Where windows come after the resampling (`"crop"`,
            `"stretch"`): one volume in HU, and window name -> limits.
        """
        label = f"scan {name!r}" if name is not None else "the scan"
        volume, to_source, spacing = _depth_first(scan, label, settings)
        rescales, windows = _intensities(volume, label, scan, settings)
        slices = settings["do_resize"] and settings["fit"] == "slices"
        if slices:
            chosen = nearest_slices(len(volume), settings["scan_size"][0])
            to_source = to_source @ scaling((len(volume), 1, 1), (len(chosen), 1, 1))
            # Each once, before anything is computed on them: all that follows works on each slice by itself.
            distinct, repeats = np.unique(chosen, return_inverse=True)
            volume = volume if len(distinct) == len(volume) else volume[distinct]
        standard = []
        for window, rescale in rescales.items():
            view, transform = rescale(volume), to_source
            if slices:
                view, step = _fit_plane(view, settings["in_plane_size"])
                view = store(view, False)
                view = view if len(repeats) == len(distinct) else view[torch.from_numpy(repeats)]
                transform = transform @ step
            elif settings["do_resize"] and settings["spacing"] is not None and spacing is not None:
                size = [max(int(n * s / t), 1) for n, s, t in zip(view.shape, spacing, settings["spacing"])]
                transform = transform @ scaling(view.shape, size)
                view = _trilinear(view, size)
            if not slices:
                view = store(view, windows != {"": None})
            standard.append(ProcessedScan(_join_names(name, window), view, transform, scan))
        return standard, windows

    def standardize_scan(self, scan) -> list[ProcessedScan]:
        """
        The fixed part of the preprocessing of one scan, for storage; what a training step draws is left out.

        Returns:
            one [`ProcessedScan`] per volume to store, `pixel_values` (D, H, W): int16 HU at the domain's spacing where windows
            are applied after the resampling, else uint8, 0 to 255 over the window or the percentiles. A scan object of it
            whose `prepared` is True goes through the processor in place of the original.
        """
        settings = self._standardize_kwargs(**{name: getattr(self, name, None) for name in self._valid_kwargs_names})
        scale = 1 / settings["rescale_factor"]

        def store(view: torch.Tensor, in_hu: bool) -> torch.Tensor:
            if not in_hu:
                return view.mul_(scale).round_().to(torch.uint8)
            low, high = (float(limit) for limit in view.aminmax())
            if low < -32768 or high > 32767:
                raise ValueError(f"a scan holds values from {low:g} to {high:g}; expected HU.")
            return view.round_().to(torch.int16)

        return self._standardize_volume(getattr(scan, "name", None), scan, settings, store)[0]

    def _process_picture(self, scan, settings, generator) -> tuple[torch.Tensor, np.ndarray]:
        """(C, 1, H, W) and the index transform, with the picture as a (1, H, W) volume."""
        picture = _channels_first(scan, settings["num_channels"], settings["do_convert_rgb"])
        if settings["do_rescale"] and picture.is_floating_point():
            _warn_of_unit_interval(picture, "the picture", "multiplied by rescale_factor as if they were 0 to 255")
        _, old_height, old_width = picture.shape
        height, width = settings["scan_size"][1:]
        to_source = np.eye(4)
        if settings["do_resize"]:
            if generator is not None and settings["train_crop_scale"] is not None:
                top, left, rows, columns = draw_crop(old_height, old_width, settings["train_crop_scale"], generator)
                picture = resize_picture(picture[:, top : top + rows, left : left + columns], (height, width))
                to_source = shift((0, top, left)) @ scaling((1, rows, columns), (1, height, width))
            else:
                factor = max(height / old_height, width / old_width)
                size = (max(round(old_height * factor), height), max(round(old_width * factor), width))
                picture = resize_picture(picture, size)
                top, left = (size[0] - height) // 2, (size[1] - width) // 2
                picture = picture[:, top : top + height, left : left + width]
                to_source = scaling((1, old_height, old_width), (1, *size)) @ shift((0, top, left))
        if generator is not None and settings["train_turns"]:
            picture, step = turn_picture(picture, generator)
            to_source = to_source @ step
        pixel_values = picture.float()
        if settings["do_rescale"]:
            pixel_values = pixel_values * settings["rescale_factor"]
        if settings["do_normalize"]:
            pixel_values = _normalize(pixel_values, settings)
        return pixel_values[:, None].contiguous(), to_source


def _depth_first(scan, label: str, settings) -> tuple[np.ndarray, np.ndarray, list[float] | None]:
    """A volume with the depth first, its index transform and its spacing in mm, where known."""
    if Image is not None and isinstance(scan, Image.Image):
        raise ValueError(f"{label} is a picture; this processor takes volumes of {list(settings['scan_size'])} voxels.")
    affine = getattr(scan, "affine", None) if _is_scan(scan) else None
    array = scan.array if _is_scan(scan) else scan
    array = array.numpy(force=True) if isinstance(array, torch.Tensor) else np.asarray(array)
    if array.ndim == 4 and array.shape[0] == 1 and affine is None:
        array = array[0]
    if array.ndim != 3:
        raise ValueError(
            f"{label} has shape {array.shape}; expected a volume with three axes (depth, height, width). A series of volumes "
            "has to be split first: choose one of them, or pass a list of scans."
        )
    if min(array.shape) < 1:
        raise ValueError(f"{label} is empty: its shape is {array.shape}.")
    if array.dtype.kind not in "buif":
        raise ValueError(f"{label} holds values of type {array.dtype}, expected numbers.")
    prepared = getattr(scan, "prepared", False)
    lowest, highest = (0, 1) if prepared else (array.min(), array.max())
    if not np.isfinite(lowest) or not np.isfinite(highest):
        bad = int((~np.isfinite(array)).sum())
        raise ValueError(
            f"{label} holds {bad} voxels that are NaN or infinite, of {array.size}; replace them first (np.nan_to_num with a "
            "value that means air or background)."
        )
    if prepared:
        return array, np.eye(4), None
    if lowest == highest:
        raise ValueError(f"{label} is constant (every voxel is {array.flat[0]}): there is nothing to see in it.")
    if affine is None:
        return array, np.eye(4), None
    affine = np.asarray(affine, float)
    if settings["orientation"] is not None:
        array, transform = reorient(array, affine, settings["orientation"])
    else:
        array, transform = array.transpose(2, 1, 0), permutation((2, 1, 0))
    spacing = np.abs(transform[:3, :3].T) @ axis_spacing(affine)
    order = (2, 1, 0)
    if settings["thickest_axis_first"]:
        order = {2: (2, 1, 0), 1: (1, 2, 0), 0: (0, 2, 1)}[
            max((2, 1, 0), key=lambda axis: round(float(spacing[axis]), 3))
        ]
    return array.transpose(order), transform @ permutation(order), [float(spacing[axis]) for axis in order]


def _intensities(volume: np.ndarray, label: str, scan, settings) -> tuple[dict[str, Callable], dict[str, Any]]:
    """
    Window name -> function that brings voxels to [0, 1]; and the windows that are left for after the resampling, as in
    `_standardize_volume`.
    """
    nothing_left: dict[str, Any] = {"": None}
    windowed = volume.dtype == np.uint8 and (not _is_scan(scan) or getattr(scan, "prepared", False))
    windows = dict(settings["windows"] or {})
    if not settings["do_rescale"]:
        return {"": _tensor}, nothing_left
    if windowed:
        return {"": lambda voxels: _tensor(voxels).mul_(settings["rescale_factor"])}, nothing_left
    if windows and volume.dtype == np.uint8:
        raise ValueError(
            f"{label} holds 8-bit values, which cannot be Hounsfield units. If it shows a window already, pass it as an array; "
            "else convert the original series again."
        )
    if windows or settings["percentiles"] is None:
        taken = "taken for HU" if windows else "multiplied by rescale_factor as if they were 0 to 255"
        _warn_of_unit_interval(volume, label, taken)
    if windows and settings["fit"] != "slices":
        return {"": _tensor}, dict(windows)
    if windows:
        return {name: partial(_apply_window, limits=limits) for name, limits in windows.items()}, nothing_left
    if settings["percentiles"] is not None:
        # In the order of the memory: the depth-first view may run backwards.
        low, high = percentiles(np.asarray(scan.array) if _is_scan(scan) else volume, settings["percentiles"])
        if high <= low:
            low, high = float(volume.min()), float(volume.max())
        return {"": partial(_apply_window, limits=(low, high), epsilon=1e-8)}, nothing_left
    return {"": lambda voxels: _tensor(voxels).mul_(settings["rescale_factor"])}, nothing_left


def _warn_of_unit_interval(values, label: str, taken: str) -> None:
    if values.min() >= 0 and 0 < values.max() <= 1:
        logger.warning(f"{label} holds values in [0, 1], which are {taken}; do_rescale=False leaves them as they are.")


def _tensor(voxels) -> torch.Tensor:
    """float32 copy."""
    return torch.from_numpy(np.array(voxels, dtype=np.float32, order="C"))


def _apply_window(voxels, limits, epsilon: float = 0.0) -> torch.Tensor:
    low, high = limits
    values = voxels.clone() if isinstance(voxels, torch.Tensor) else _tensor(voxels)
    return values.clamp_(low, high).sub_(low).div_(high - low + epsilon)


def percentiles(volume: np.ndarray, shares) -> list[float]:
    """Percentiles with linear interpolation, by counting where voxels are integers of few different values."""
    if volume.dtype.kind in "iu":
        lowest, highest = int(volume.min()), int(volume.max())
        if highest - lowest < 1 << 20:
            counts = np.bincount(np.subtract(volume.ravel(order="K"), lowest, dtype=np.int64))
            below, results = np.cumsum(counts), []
            for share in shares:
                position = share / 100 * (volume.size - 1)
                ranks = [int(position), min(int(position) + 1, volume.size - 1)]
                left, right = np.searchsorted(below, ranks, side="right").tolist()
                results.append(lowest + left + (position - int(position)) * (right - left))
            return results
    return [_percentile_from_tail(volume.reshape(-1), share) for share in shares]


def _percentile_from_tail(values: np.ndarray, share: float) -> float:
    """A percentile near either end by sorting that end only, which a sample bounds."""
    position = share / 100 * (values.size - 1)
    rank = int(position)
    low_end = share < 50
    sample = values[:: max(values.size // 20_000, 1)]
    guess = np.percentile(sample, share, method="nearest")
    if (sample == guess).mean() > 0.01:  # background of one value
        below = int((values < guess).sum())
        if below <= rank and rank + 1 < below + int((values == guess).sum()):
            return float(guess)
    bound = np.percentile(sample, min(2 * share + 0.5, 100) if low_end else max(2 * share - 100.5, 0))
    tail = values[values <= bound] if low_end else values[values >= bound]
    first = rank if low_end else rank - (values.size - tail.size)
    if not 0 <= first < tail.size - 1:
        return float(np.percentile(values, share))
    left, right = np.partition(tail, [first, first + 1])[first : first + 2].astype(float)
    return float(left + (position - rank) * (right - left))


def nearest_slices(count: int, wanted: int) -> np.ndarray:
    """Which of `count` slices stand for `wanted` ones: the nearest to each one's centre, as torch's "nearest-exact" takes."""
    positions = torch.arange(count, dtype=torch.float64)[None, None]
    return F.interpolate(positions, size=wanted, mode="nearest-exact")[0, 0].long().numpy()


def _trilinear(volume: torch.Tensor, size) -> torch.Tensor:
    """Along the depth and in the plane, the smaller result first: half the time of one step."""
    old_depth, *old_plane = volume.shape
    depth, *plane = size
    if depth < old_depth:
        volume = _resize_depth(volume, depth)
    if plane != old_plane:
        volume = F.interpolate(volume[:, None], size=tuple(plane), mode="bilinear", align_corners=False)[:, 0]
    return _resize_depth(volume, depth) if depth > old_depth else volume


def _resize_depth(volume: torch.Tensor, depth: int) -> torch.Tensor:
    """Linear along the first axis, outer faces in place."""
    old = len(volume)
    resized = volume.new_empty(depth, *volume.shape[1:])
    for index in range(depth):
        position = min(max((index + 0.5) * old / depth - 0.5, 0), old - 1)
        below = int(position)
        torch.lerp(volume[below], volume[min(below + 1, old - 1)], position - below, out=resized[index])
    return resized


def _fit_plane(volume: torch.Tensor, side: int) -> tuple[torch.Tensor, np.ndarray]:
    """Slices padded to a square, centred, and resized to `side` (the Pub-Brain-5 recipe), with the index transform."""
    depth, height, width = volume.shape
    longest = max(height, width)
    top, left = (longest - height) // 2, (longest - width) // 2
    transform = shift((0, -top, -left)) @ scaling((depth, longest, longest), (depth, side, side))
    if height != width:
        volume = F.pad(volume, (left, longest - width - left, top, longest - height - top))
    if longest != side:
        volume = F.interpolate(volume[:, None], size=(side, side), mode="bilinear", align_corners=False)[:, 0]
    return volume, transform


def _join_names(name: str | None, window: str) -> str | None:
    return f"{name}_{window}" if name and window else (window or name)


def pad_and_crop(
    volume: torch.Tensor,
    size: tuple[int, int, int],
    generator: torch.Generator | None = None,
    offsets: list[int] | None = None,
) -> tuple[torch.Tensor, np.ndarray]:
    """
    Zero padding to at least `size`, then a crop of `size`: centred, drawn, or at given offsets.

    Args:
        volume: (D, H, W).
        generator: draws the padding in front and the start of the crop, uniform over the whole free range.
        offsets: the six of them: padding in front along depth, height, width, then start of the crop.

    Returns:
        the volume and its index transform.
    """
    pads = [max(wanted - found, 0) for wanted, found in zip(size, volume.shape)]
    free = [found + pad - wanted for wanted, found, pad in zip(size, volume.shape, pads)]
    if offsets is None:
        if generator is None:
            offsets = [room // 2 for room in (*pads, *free)]
        else:
            offsets = [int(torch.randint(room + 1, (1,), generator=generator)) for room in (*pads, *free)]
    front, start = offsets[:3], offsets[3:]
    padding = [x for pad, low in zip(pads[::-1], front[::-1]) for x in (low, pad - low)]
    volume = F.pad(volume, padding)
    volume = volume[tuple(slice(first, first + wanted) for first, wanted in zip(start, size))]
    return volume, shift([first - low for first, low in zip(start, front)])


def draw_crop(height: int, width: int, scale, generator: torch.Generator) -> tuple[int, int, int, int]:
    """Top, left, rows and columns of a random crop: area share uniform in `scale`, aspect ratio in 3/4 .. 4/3."""
    for _ in range(10):
        share, aspect, y, x = torch.rand(4, generator=generator).tolist()
        area = height * width * (scale[0] + share * (scale[1] - scale[0]))
        ratio = np.exp(np.log(3 / 4) + aspect * (np.log(4 / 3) - np.log(3 / 4)))
        rows, columns = round((area / ratio) ** 0.5), round((area * ratio) ** 0.5)
        if 0 < rows <= height and 0 < columns <= width:
            return int(y * (height - rows + 1)), int(x * (width - columns + 1)), rows, columns
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side


def draw_turn(generator: torch.Generator) -> tuple[int, int]:
    """Quarter turns, 0 to 3, and whether to mirror, 0 or 1."""
    turns, mirror = (torch.randint(high, (1,), generator=generator) for high in (4, 2))
    return int(turns), int(mirror)


def turn_picture(picture: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, np.ndarray]:
    """One of the eight quarter turns and mirror images of a square picture (C, S, S), and its index transform."""
    side = picture.shape[1]
    if picture.shape[2] != side:
        raise ValueError(f"train_turns needs square pictures, got {side} x {picture.shape[2]}.")
    turns, mirror = draw_turn(generator)
    quarter = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, side - 1], [0, 0, 0, 1]])
    transform = np.linalg.matrix_power(quarter, turns)
    picture = picture.rot90(turns, (1, 2))
    if mirror:
        picture = picture.flip(2)
        transform = transform @ np.array([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, side - 1], [0, 0, 0, 1]])
    return picture, transform


def open_picture(source) -> Any:
    """
    The picture of a file or a binary stream, upright.

    Raises:
        ValueError: it is truncated, damaged, of another kind, too large, or holds several pages.
    """
    name = os.path.basename(os.fspath(source)) if isinstance(source, (str, os.PathLike)) else "a picture"
    try:
        with Image.open(source) as picture:
            pages, kind = getattr(picture, "n_frames", 1), picture.format
            picture.load()
    except FileNotFoundError:
        raise
    except Image.DecompressionBombError:
        raise ValueError(f"{name} claims more pixels than Pillow opens (`PIL.Image.MAX_IMAGE_PIXELS`).") from None
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
        raise ValueError(f"{name} cannot be read as a picture: {type(error).__name__}.") from None
    if pages > 1 and kind in ("GIF", "PNG", "TIFF", "WEBP"):
        logger.warning(f"{name} holds {pages} pages or frames; the first is used.")
    return upright(picture)


def upright(picture) -> Any:
    """A PIL image as its EXIF orientation shows it."""
    if picture.getexif().get(0x0112, 1) == 1:
        return picture
    return ImageOps.exif_transpose(picture)


def resize_picture(picture: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Bicubic with antialiasing; 8-bit pictures through Pillow, so that files give the same pixels as in common pipelines."""
    if tuple(picture.shape[1:]) == tuple(size):
        return picture
    if picture.dtype == torch.uint8 and picture.shape[0] in (1, 3) and Image is not None:
        array = picture.permute(1, 2, 0).contiguous().numpy()
        image = Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
        pixels = np.array(image.resize((size[1], size[0]), Image.Resampling.BICUBIC))
        return torch.from_numpy(pixels).view(*size, -1).permute(2, 0, 1)
    resized = F.interpolate(picture[None].float(), size=size, mode="bicubic", align_corners=False, antialias=True)[0]
    return resized.round().clamp(0, 255).to(torch.uint8) if picture.dtype == torch.uint8 else resized


def _channels_first(picture, num_channels: int, convert_rgb: bool) -> torch.Tensor:
    """(C, H, W) of a PIL image or an array (H, W), (H, W, C) or (C, H, W)."""
    if Image is not None and isinstance(picture, Image.Image):
        if picture.mode.startswith(("I", "F")):
            raise ValueError(
                f"a picture holds more than 8 bits a channel (mode {picture.mode}): scale it to 0..255 first, with limits that "
                "suit its sensor."
            )
        if convert_rgb:
            picture = picture.convert("RGB" if num_channels == 3 else "L")
        picture = np.array(picture)
    if _is_scan(picture):
        raise ValueError(f"a volume of {np.shape(picture.array)} voxels was given for a picture.")
    array = picture.numpy(force=True) if isinstance(picture, torch.Tensor) else np.asarray(picture)
    if array.dtype.kind in "ui" and array.dtype.itemsize > 1 and (array.min() < 0 or array.max() > 255):
        raise ValueError(
            f"a picture holds values from {array.min()} to {array.max()} ({array.dtype}): scale it to 0..255 first, with "
            "limits that suit its sensor."
        )
    if array.ndim == 2:
        array = array[None]
    elif array.ndim == 3 and array.shape[-1] in (1, 3, 4) and array.shape[0] not in (1, 3, 4):
        array = array.transpose(2, 0, 1)
    elif array.ndim == 3 and array.shape[0] not in (1, 3, 4) or array.ndim != 3:
        raise ValueError(
            f"a picture has shape {array.shape}; expected (height, width), (height, width, channels) or channels first."
        )
    if convert_rgb and array.shape[0] == 4:
        array = array[:3]
    if convert_rgb and array.shape[0] == 1 and num_channels == 3:
        array = array.repeat(3, axis=0)
    if convert_rgb and array.shape[0] != num_channels:
        raise ValueError(f"a picture has {array.shape[0]} channels, the model takes {num_channels}.")
    return torch.from_numpy(np.ascontiguousarray(array))


def _normalize(pixel_values: torch.Tensor, settings) -> torch.Tensor:
    """(x - mean) / std with the constants of each channel, axis 0."""

    def constants(value):
        value = torch.as_tensor(value, dtype=torch.float32).flatten()
        if len(value) not in (1, len(pixel_values)):
            raise ValueError(
                f"image_mean or image_std holds {len(value)} values for {len(pixel_values)} channels: pass one value, or one "
                "per channel."
            )
        return value.view(-1, *[1] * (pixel_values.ndim - 1))

    return (pixel_values - constants(settings["image_mean"])) / constants(settings["image_std"])
