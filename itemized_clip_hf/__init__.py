"""ItemizedCLIP for transformers: images whose text is a list of independent findings."""

import importlib
from typing import TYPE_CHECKING, Any

from .registration import register
from .version import __version__

if TYPE_CHECKING:
    from .modeling.classification_itemized_clip import ItemizedCLIPForImageClassification
    from .modeling.configuration_itemized_clip import ItemizedCLIPConfig, ItemizedCLIPVisionConfig
    from .modeling.modeling_itemized_clip import ItemizedCLIPModel, ItemizedCLIPVisionModel
    from .modeling.pretrained_itemized_clip import ItemizedCLIPPreTrainedModel
    from .modeling.segmentation_itemized_clip import ItemizedCLIPForSemanticSegmentation
    from .pipelines import ItemizedCLIPPipeline
    from .processing.image_processing_itemized_clip import ItemizedCLIPImageProcessor
    from .processing.processing_itemized_clip import ItemizedCLIPProcessor
    from .trainer.trainer import ItemizedCLIPTrainer
    from .trainer.training_args import ItemizedCLIPTrainingArguments

_MODULES = {
    "ItemizedCLIPConfig": ".modeling.configuration_itemized_clip",
    "ItemizedCLIPForImageClassification": ".modeling.classification_itemized_clip",
    "ItemizedCLIPForSemanticSegmentation": ".modeling.segmentation_itemized_clip",
    "ItemizedCLIPImageProcessor": ".processing.image_processing_itemized_clip",
    "ItemizedCLIPModel": ".modeling.modeling_itemized_clip",
    "ItemizedCLIPPipeline": ".pipelines",
    "ItemizedCLIPPreTrainedModel": ".modeling.pretrained_itemized_clip",
    "ItemizedCLIPProcessor": ".processing.processing_itemized_clip",
    "ItemizedCLIPTrainer": ".trainer.trainer",
    "ItemizedCLIPTrainingArguments": ".trainer.training_args",
    "ItemizedCLIPVisionConfig": ".modeling.configuration_itemized_clip",
    "ItemizedCLIPVisionModel": ".modeling.modeling_itemized_clip",
}

__all__ = [
    "ItemizedCLIPConfig",
    "ItemizedCLIPForImageClassification",
    "ItemizedCLIPForSemanticSegmentation",
    "ItemizedCLIPImageProcessor",
    "ItemizedCLIPModel",
    "ItemizedCLIPPipeline",
    "ItemizedCLIPPreTrainedModel",
    "ItemizedCLIPProcessor",
    "ItemizedCLIPTrainer",
    "ItemizedCLIPTrainingArguments",
    "ItemizedCLIPVisionConfig",
    "ItemizedCLIPVisionModel",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register()
