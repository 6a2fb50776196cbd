"""Pictures, scans and studies -> `pixel_values`, `scan_mask`, `scan_name_ids` (method 7.5)."""

import os
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.processing_utils import ImagesKwargs
from transformers.utils import TensorType, logging

from .intensities_itemized_clip import normalize_channels
from .pictures_itemized_clip import is_picture, is_picture_file, open_picture, process_picture, upright
from .scans_itemized_clip import (
    ProcessedScan,
    is_meta_tensor,
    is_path,
    is_scan,
    is_study,
    join_names,
    list_scans,
    require_one_file,
    require_one_visit,
    require_single_scans,
    scan_of_meta_tensor,
)
from .sequence_names_itemized_clip import LENGTH, encode_scan_name
from .settings_itemized_clip import PREPROCESSING_FIELDS, check_settings, order_windows, rename_settings
from .volumes_itemized_clip import process_volume, standardize_volume

logger = logging.get_logger(__name__)

FITS = ("slices", "crop", "stretch", "picture")

OnError = Callable[[str | None, Exception], None]


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
    train_rot90_flip (`bool`): random quarter turns and flips of square pictures in training, for pictures taken from above.
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
    windows: dict[str, list[float]] | list[Any] | None
    percentiles: list[float] | tuple[float, ...] | None
    multi_scan: bool | None
    use_scan_names: bool | None
    num_channels: int | None
    train_crop_scale: list[float] | tuple[float, ...] | None
    train_rot90_flip: bool | None
    accept: list[str] | tuple[str, ...] | None
    layout: str | None


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
    presets: ClassVar[Mapping[str, dict[str, Any]]] = {}

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
    train_rot90_flip = False
    accept = ()
    layout = None
    do_resize = True
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = True
    do_convert_rgb = True
    image_mean = (0.48145466, 0.4578275, 0.40821073)
    image_std = (0.26862954, 0.26130258, 0.27577711)

    def __init__(self, **kwargs: Any) -> None:
        kwargs = rename_settings(kwargs)
        super().__init__(**kwargs)
        self._set_attributes(**kwargs)  # type: ignore[no-untyped-call]  # the library's
        check_settings({name: getattr(self, name, None) for name in (*PREPROCESSING_FIELDS, "train_crop_scale")})
        self.windows = order_windows(self.windows, self.presets.get(self.domain or "", {}).get("windows"))
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
        windows: Any = written.get("windows")
        if isinstance(windows, Mapping):
            written["windows"] = [[name, list(limits)] for name, limits in windows.items()]
        return written

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As the library's; a setting under its former name is read under its present one."""
        return super().from_dict(rename_settings(image_processor_dict), **rename_settings(kwargs))

    @property
    def backend(self) -> str:
        """The library's name for a processor that needs no torchvision."""
        return "pil"

    @classmethod
    def from_domain(cls, domain: str, **kwargs: Any) -> "ItemizedCLIPImageProcessor":
        """
        The preset of a domain (`brain-mri`, `chest-ct`, or the YAML file of one), with changes as keyword arguments.

        >>> import itemized_clip_hf
        >>> processor = itemized_clip_hf.ItemizedCLIPImageProcessor.from_domain("remote-sensing", scan_size=[1, 32, 32])
        >>> processor(np.zeros((40, 48, 3), np.uint8))["pixel_values"].shape
        (1, 1, 3, 1, 32, 32)
        """
        if domain not in cls.presets:
            known = sorted(cls.presets) or "none: presets come with the installed package itemized-clip-hf"
            raise ValueError(f"unknown domain {domain!r}; known: {known}.")
        return cls(**{"domain": domain, **cls.presets[domain], **kwargs})

    def _validate_preprocess_kwargs(  # type: ignore[override]  # the library's names what is not used here
        self,
        do_rescale: bool | None = None,
        rescale_factor: float | None = None,
        do_normalize: bool | None = None,
        image_mean: Any = None,
        image_std: Any = None,
        **kwargs: Any,
    ) -> None:
        if do_rescale and rescale_factor is None:
            raise ValueError("do_rescale needs a rescale_factor.")
        if do_normalize and (image_mean is None or image_std is None):
            raise ValueError("do_normalize needs image_mean and image_std.")

    def _preprocess_image_like_inputs(
        self, images: Any, *args: Any, return_tensors: str | TensorType | None = None, **settings: Any
    ) -> BatchFeature:
        studies = [self._process_study(study, settings) for study in self.split_studies(images, **settings)]
        return self.collate(studies, return_tensors=return_tensors, use_scan_names=settings["use_scan_names"])

    def process_study(
        self,
        study: Any,
        generator: torch.Generator | None = None,
        on_error: OnError | None = None,
        **settings: Any,
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
        return self._process_study(study, self._own_settings(**settings), generator, on_error)

    def collate(
        self,
        studies: list[list[ProcessedScan]],
        return_tensors: str | TensorType | None = None,
        use_scan_names: bool | None = None,
    ) -> BatchFeature:
        """Processed studies, padded to the largest number of scans and masked."""
        if not studies:
            raise ValueError("there is no study to process: `images` is empty.")
        max_scans = max(len(study) for study in studies)
        shape = studies[0][0].pixel_values.shape
        pixel_values = torch.zeros(len(studies), max_scans, *shape)
        scan_mask = torch.zeros(len(studies), max_scans, dtype=torch.bool)
        name_ids = np.zeros((len(studies), max_scans, LENGTH), dtype=np.int64)
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

    def split_studies(self, images: Any, **settings: Any) -> list[Any]:
        """The studies that `images` holds: a flat list is one study where studies have several scans, else a batch."""
        picture = settings.get("scan_size", self.scan_size)[0] == 1
        if isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == 4 and picture:
            return list(images)
        if not isinstance(images, (list, tuple)):
            return [images]
        if not len(images):
            raise ValueError("there is no study to process: `images` is empty.")
        if any(is_study(image) for image in images) or not settings.get("multi_scan", self.multi_scan):
            return list(images)
        return [images]

    def _process_study(
        self,
        study: Any,
        settings: dict[str, Any],
        generator: torch.Generator | None = None,
        on_error: OnError | None = None,
    ) -> list[ProcessedScan]:
        scans = list_scans(study)
        for skipped in getattr(study, "skipped", ()):
            if on_error is None:
                logger.warning(f"{skipped.scan} is left out: {skipped.reason}")
            else:
                on_error(skipped.scan, ValueError(skipped.reason))
        if not scans:
            raise ValueError("a study needs at least one scan, this one is empty.")
        require_one_file(study, settings)
        if isinstance(getattr(study, "scans", study), Mapping) and settings.get("multi_scan"):
            settings = {**settings, "layout": "study"}  # folders that it names are scans of it
        processed: list[ProcessedScan] = []
        last_error = None
        for name, source in scans:
            try:
                opened = self._open(source, settings)
                if hasattr(opened, "scans"):  # a file or folder that holds a whole study
                    require_single_scans(opened, study)
                    processed += self._process_study(opened, settings, generator, on_error)
                else:
                    name = name if name is not None else getattr(opened, "name", None)
                    processed += self._process_scan(name, opened, settings, generator)
            except (OSError, ValueError) as error:
                if on_error is None:
                    raise
                on_error(os.path.basename(os.fspath(source)) if name is None and is_path(source) else name, error)
                last_error = error
        if last_error is not None and len(scans) == 1:
            raise last_error
        if not processed:
            raise ValueError(f"none of the {len(scans)} scans of the study could be used; the last error: {last_error}")
        require_one_visit(processed)
        return processed

    def _open(self, source: Any, settings: Mapping[str, Any]) -> Any:
        """A picture, an array, or a scan or study that was opened and checked."""
        if is_picture_file(source):
            return open_picture(source)
        if is_picture(source):
            return upright(source)
        if is_meta_tensor(source) and settings["scan_size"][0] > 1:
            source = scan_of_meta_tensor(source)
        reader = type(self).reader
        if reader is not None and (is_path(source) or is_scan(source)):
            stated = {"layout": settings.get("layout"), "settings": settings}
            return reader(source, settings.get("domain", self.domain), settings.get("accept") or (), **stated)
        if is_path(source):
            raise ImportError(
                f"reading {os.fspath(source)} needs the package: install itemized_clip_hf from a clone of its repository "
                "(pip install -e '.[volumes]') and import it, or pass an array."
            )
        return source

    def _process_scan(
        self, name: str | None, scan: Any, settings: Mapping[str, Any], generator: torch.Generator | None
    ) -> list[ProcessedScan]:
        if settings["scan_size"][0] == 1:
            processed = [ProcessedScan(name, *process_picture(scan, settings, generator), scan)]
        else:
            processed = process_volume(name, scan, settings, generator)
        if settings["do_normalize"]:
            self.normalize_scans(processed, settings)
        for view in processed:
            view.pixel_values = view.pixel_values.contiguous()
        return processed

    def normalize_scans(self, scans: list[ProcessedScan], settings: Mapping[str, Any] | None = None) -> None:
        """The last step of the preprocessing, in place, for scans that were processed with `do_normalize=False`."""
        stated = settings if settings is not None else self._own_settings()
        for scan in scans:
            scan.pixel_values = normalize_channels(scan.pixel_values, stated["image_mean"], stated["image_std"])

    def standardize_scan(self, scan: Any) -> list[ProcessedScan]:
        """
        The fixed part of the preprocessing of one scan, for storage; what a training step draws is left out.

        Args:
            scan: as one scan of a call, opened.

        Returns:
            one [`ProcessedScan`] per volume to store, `pixel_values` (D, H, W): int16 HU at the domain's spacing where windows
            are applied after the resampling, else uint8, 0 to 255 over the window or the percentiles. A scan object of it
            whose `prepared` is True goes through the processor in place of the original.
        """
        settings = self._own_settings()
        scale = 1 / settings["rescale_factor"]

        def store(volume: torch.Tensor, in_hu: bool) -> torch.Tensor:
            if not in_hu:
                return volume.mul_(scale).round_().to(torch.uint8)
            low, high = (float(limit) for limit in volume.aminmax())
            if low < -32768 or high > 32767:
                raise ValueError(f"a scan holds values from {low:g} to {high:g}; expected HU.")
            return volume.round_().to(torch.int16)

        name = getattr(scan, "name", None)
        standardized, _ = standardize_volume(name, scan, settings, store)
        return [ProcessedScan(join_names(name, window), *fitted, scan) for window, fitted in standardized.items()]

    def _own_settings(self, **changes: Any) -> dict[str, Any]:
        """The processor's settings with changes, in the form that preprocessing takes."""
        settings = {
            **{name: getattr(self, name, None) for name in self._valid_kwargs_names},
            **rename_settings(changes),
        }
        return self._standardize_kwargs(**settings)
