"""ItemizedCLIP for transformers: images whose text is a list of independent findings."""

import importlib

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
)
from transformers.loss.loss_utils import LOSS_MAPPING
from transformers.pipelines import PIPELINE_REGISTRY

from .domains import Presets
from .evaluation.pipeline import ItemizedCLIPImagePipeline, ItemizedCLIPPipeline
from .modeling.configuration_itemized_clip import ItemizedCLIPConfig, ItemizedCLIPVisionConfig
from .modeling.modeling_itemized_clip import ItemizedCLIPModel, ItemizedCLIPPreTrainedModel, ItemizedCLIPVisionModel
from .processing.image_processing_itemized_clip import ItemizedCLIPImageProcessor
from .processing.processing_itemized_clip import ItemizedCLIPProcessor
from .version import __version__

_LAZY = {
    "ItemizedCLIPTrainer": ".trainer.trainer",
    "ItemizedCLIPTrainingArguments": ".trainer.training_args",
}

__all__ = [
    "ItemizedCLIPConfig",
    "ItemizedCLIPImageProcessor",
    "ItemizedCLIPModel",
    "ItemizedCLIPPipeline",
    "ItemizedCLIPPreTrainedModel",
    "ItemizedCLIPProcessor",
    "ItemizedCLIPVisionConfig",
    "ItemizedCLIPVisionModel",
    "__version__",
    *_LAZY,
]


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _open_image(source, domain=None, accept=()):
    from .data.open import open_image

    return open_image(source, domain, accept)


def _default_loss(**features):
    from .trainer.objectives import default_loss

    return default_loss(**features)


def _register():
    AutoConfig.register(ItemizedCLIPConfig.model_type, ItemizedCLIPConfig)
    AutoConfig.register(ItemizedCLIPVisionConfig.model_type, ItemizedCLIPVisionConfig)
    AutoModel.register(ItemizedCLIPConfig, ItemizedCLIPModel)
    AutoModel.register(ItemizedCLIPVisionConfig, ItemizedCLIPVisionModel)
    AutoModelForZeroShotImageClassification.register(ItemizedCLIPConfig, ItemizedCLIPModel)
    AutoImageProcessor.register(ItemizedCLIPConfig, image_processor_classes={"pil": ItemizedCLIPImageProcessor})
    AutoProcessor.register(ItemizedCLIPConfig, ItemizedCLIPProcessor)
    # So that a checkpoint carries the code that loads it where the package is not installed.
    ItemizedCLIPConfig.register_for_auto_class()
    ItemizedCLIPVisionConfig.register_for_auto_class()
    ItemizedCLIPModel.register_for_auto_class("AutoModel")
    ItemizedCLIPVisionModel.register_for_auto_class("AutoModel")
    ItemizedCLIPImageProcessor.register_for_auto_class("AutoImageProcessor")
    ItemizedCLIPProcessor.register_for_auto_class("AutoProcessor")

    PIPELINE_REGISTRY.register_pipeline(
        "zero-shot-study-classification", pipeline_class=ItemizedCLIPPipeline, pt_model=AutoModel, type="multimodal"
    )
    # The library's class for all other models, and for theirs a subclass of it that scores each label by itself.
    PIPELINE_REGISTRY.supported_tasks["zero-shot-image-classification"]["impl"] = ItemizedCLIPImagePipeline
    LOSS_MAPPING["ItemizedCLIP"] = _default_loss
    ItemizedCLIPImageProcessor.reader = staticmethod(_open_image)
    ItemizedCLIPImageProcessor.presets = Presets(lambda domain: domain.image)
    ItemizedCLIPProcessor.presets = Presets(lambda domain: domain.text)


_register()
