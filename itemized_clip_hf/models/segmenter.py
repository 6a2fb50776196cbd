"""A model that draws masks, from a folder or a name."""

import os
from typing import Any

import torch

from ..modeling.segmentation_itemized_clip import ItemizedCLIPForSemanticSegmentation
from ..processing.processing_itemized_clip import ItemizedCLIPProcessor
from .load import load_head


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
    segmenter, processor = load_head(model, ItemizedCLIPForSemanticSegmentation, device, revision=revision)
    if segmenter.device.type == "cpu":
        lay_out_for_cpu(segmenter)
    return segmenter, processor


def lay_out_for_cpu(model: ItemizedCLIPForSemanticSegmentation) -> None:
    """Weights of the decoder in the order in which convolutions take half the time on a CPU; their values stay."""
    decoder: Any = model.mask_decoder
    decoder.to(memory_format=torch.channels_last_3d)
