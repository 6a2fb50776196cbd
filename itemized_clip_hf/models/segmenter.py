"""A model that draws masks, from a folder or a name."""

import os
from typing import Any

import torch

from ..bars import without_library_bars
from ..modeling.segmentation_itemized_clip import ItemizedCLIPForSemanticSegmentation
from ..processing.processing_itemized_clip import ItemizedCLIPProcessor
from .check_folder import check_finite, explain
from .load import load, pick_device
from .names import split_revision


def load_segmenter(
    model: str | os.PathLike[str], device: str = "auto", revision: str | None = None
) -> tuple[ItemizedCLIPForSemanticSegmentation, ItemizedCLIPProcessor]:
    """
    Model and processor, ready to use.

    Args:
        model: folder or Hub name of an [`ItemizedCLIPForSemanticSegmentation`]; other arguments as of `load`.

    Raises:
        ValueError: the model draws no masks, or a file of it is damaged.
        ImportError: MONAI is not installed.
    """
    base, processor = load(model, "cpu", revision=revision)
    if getattr(base.config, "mask_decoder", None) is None:
        raise ValueError(
            f"{model} draws no masks: it is a model without a mask decoder. Train one from it: itemized-clip train --task "
            "segmentation -m MODEL -i LIST -o OUTPUT."
        )
    name, revision = split_revision(str(model), revision)
    with without_library_bars():
        segmenter, found = explain(
            name,
            "weights",
            ItemizedCLIPForSemanticSegmentation.from_pretrained,
            name,
            revision=revision or "main",
            output_loading_info=True,
        )
    if found["missing_keys"]:
        missing = sorted(found["missing_keys"])
        raise ValueError(f"{model}: {len(missing)} weights of the mask decoder are missing, e.g. {missing[:3]}.")
    check_finite(segmenter, str(model))
    place = pick_device(device)
    if place.type == "cpu":
        lay_out_for_cpu(segmenter)
    return segmenter.eval().to(place), processor


def lay_out_for_cpu(model: ItemizedCLIPForSemanticSegmentation) -> None:
    """Weights of the decoder in the order in which convolutions take half the time on a CPU; their values stay."""
    decoder: Any = model.mask_decoder
    decoder.to(memory_format=torch.channels_last_3d)
