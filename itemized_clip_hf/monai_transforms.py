"""
MONAI: the processor as a dictionary transform, and scans and heat maps as `MetaTensor`.

`MetaTensor`s go into the processor as they are, in every layout of MONAI's transforms. This module needs the extra `monai`.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .data.study import Scan
from .processing.processing_itemized_clip import ItemizedCLIPProcessor
from .processing.scans_itemized_clip import ProcessedScan, is_study

try:
    from monai.data import MetaTensor
    from monai.transforms import MapTransform
except ImportError:
    raise ImportError("itemized_clip_hf.monai_transforms needs MONAI: pip install 'itemized-clip-hf[monai]'.") from None

if TYPE_CHECKING:
    from .explain.maps import HeatMap


class ItemizedCLIPProcessd(MapTransform):
    """
    The scans and items of a study -> what the model takes, as a deterministic dictionary transform.

        transform = Compose([ItemizedCLIPProcessd(["AX_T1", "AX_T2"], processor, text_key="items", max_scans=2, max_items=8)])
        loader = DataLoader(CacheDataset(studies, transform), batch_size=4)
        model(**{name: batch[name] for name in processor.model_input_names})

    Args:
        keys: of the scans of a study, whose names are the scans' sequence names. What stands under a key is anything that the
            processor takes for a scan: a path, which this package reads, an array (D, H, W), a `MetaTensor`. One key may hold a
            whole study: a dictionary of scans, a list, a folder.
        processor: [`ItemizedCLIPProcessor`].
        text_key: of the items, a list of strings.
        max_scans: every study is padded to that many scans, with `scan_mask`, so that studies can be batched.
        max_items: the same of items, with `item_mask`.
        accept: codes of the checks that a scan is used in spite of, see `itemized-clip inspect`.
        allow_missing_keys: a study may lack some of the scans.

    `PersistentDataset` needs `hash_transform=monai.data.utils.pickle_hashing`: without it files of another processor are taken.

    The transform takes the keys of scans and text away and adds `pixel_values` (N, C, D, H, W), `scan_mask` (N,),
    `scan_name_ids` (N, 110) where the processor has names, `scan_affines` (N, 4, 4), voxels (d, h, w) -> mm in RAS+ and NaN for
    scans without geometry, and with a text `input_ids` and `attention_mask` (K, T) and `item_mask` (K,).

    Raises:
        KeyError: a key is missing.
        ValueError: a scan cannot be used, or there are more scans or items than their limits.
    """

    def __init__(
        self,
        keys: Hashable | Sequence[Hashable],
        processor: ItemizedCLIPProcessor,
        text_key: Hashable | None = None,
        max_scans: int | None = None,
        max_items: int | None = None,
        accept: Sequence[str] = (),
        allow_missing_keys: bool = False,
    ):
        super().__init__(keys, allow_missing_keys)
        for name, limit in (("max_scans", max_scans), ("max_items", max_items)):
            if limit is not None and limit < 1:
                raise ValueError(f"{name} is {limit}, expected 1 or more.")
        self.processor = processor
        self.text_key = text_key
        self.max_scans = max_scans
        self.max_items = max_items
        self.accept = list(accept)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The study with the model's inputs in place of its scans and text."""
        study = {key: data[key] for key in self.key_iterator(data)}
        if not study:
            raise ValueError(f"the study has none of the scans {[str(key) for key in self.keys]}.")
        made = {key: value for key, value in data.items() if key not in study and key != self.text_key}
        taken = [str(name) for name in self._names() if name in made]
        if taken:
            raise ValueError(f"the study holds {taken} already, which this transform adds: rename them.")
        return {**made, **self._images(study), **self._texts(data)}

    def _names(self) -> list[str]:
        texts = ["input_ids", "attention_mask", "item_mask"] if self.text_key is not None else []
        return ["pixel_values", "scan_mask", "scan_affines", *texts]

    def _images(self, study: dict[Hashable, Any]) -> dict[Hashable, Any]:
        values = list(study.values())
        whole = values[0] if len(values) == 1 and is_study(values[0]) else {str(k): scan for k, scan in study.items()}
        processor = self.processor.image_processor
        scans = processor.process_study(whole, **({"accept": self.accept} if self.accept else {}))
        if self.max_scans is not None and len(scans) > self.max_scans:
            raise ValueError(
                f"the study has {len(scans)} scans, more than max_scans={self.max_scans}: choose some, or raise it."
            )
        batch = dict(processor.collate([scans], return_tensors="pt"))
        missing = (self.max_scans or len(scans)) - len(scans)
        inputs: dict[Hashable, Any] = {
            name: torch.cat([value[0], value.new_zeros(missing, *value.shape[2:])]) for name, value in batch.items()
        }
        affines = [scan.voxel_affine() for scan in scans]
        unknown = np.full((4, 4), np.nan)
        stacked = np.stack([unknown if affine is None else affine for affine in affines] + [unknown] * missing)
        return {**inputs, "scan_affines": torch.from_numpy(stacked)}

    def _texts(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        if self.text_key is None:
            return {}
        items = data[self.text_key]
        items = [items] if isinstance(items, str) else list(items)
        encoded = self.processor.encode_text([items], num_slots=self.max_items, padding="max_length")
        return {name: torch.as_tensor(value)[0] for name, value in encoded.items()}


def to_meta_tensor(image: "Scan | HeatMap | ProcessedScan") -> MetaTensor:
    """
    A scan, a processed scan or a heat map for MONAI's transforms.

    Returns:
        (1, X, Y, Z), of processed scans (C, X, Y, Z): the axes of a NIfTI file, of which the depth is the last, with the affine
        in mm, RAS. A scan that came in as a `MetaTensor` comes out in its layout, and its heat maps lie on it voxel by voxel.

    Raises:
        ValueError: it has no affine, for which MONAI would put the identity.
    """
    if isinstance(image, ProcessedScan):
        volume = image.pixel_values.numpy(force=True)
        affine = image.voxel_affine()
    else:
        values: Any = image.values if hasattr(image, "values") else image.array
        volume, affine = np.asarray(values)[None], image.affine
    if affine is None:
        raise ValueError("it has no affine, for which MONAI would put the identity: use its array.")
    depth_last = np.ascontiguousarray(volume.transpose(0, 3, 2, 1))
    return MetaTensor(torch.from_numpy(depth_last), torch.from_numpy(np.asarray(affine, float)[:, [2, 1, 0, 3]].copy()))
