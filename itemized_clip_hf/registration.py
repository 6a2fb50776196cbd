"""
What the package tells `transformers`: its configs, models, processors, pipelines and default loss.

Nothing is imported for it. The library is told when it is there and our module is, whichever comes last: its Auto classes and
pipelines import our module when they are imported, and each of our modules registers what it holds at its own end.
"""

from collections.abc import Iterable
from functools import partial
from importlib import import_module
from typing import Any

from .after_import import AfterImport

CONFIGS = f"{__package__}.modeling.configuration_itemized_clip"
CLASSIFIER = f"{__package__}.modeling.classification_itemized_clip"
MODELS = f"{__package__}.modeling.modeling_itemized_clip"
SEGMENTATION = f"{__package__}.modeling.segmentation_itemized_clip"
IMAGE_PROCESSOR = f"{__package__}.processing.image_processing_itemized_clip"
PROCESSOR = f"{__package__}.processing.processing_itemized_clip"
PIPELINES = f"{__package__}.pipelines"


def register() -> None:
    """Registers everything, now or when it is needed."""
    AfterImport(
        ["transformers", __package__],
        {
            "transformers.models.auto.configuration_auto": partial(import_module, CONFIGS),
            "transformers.models.auto.modeling_auto": import_models,
            "transformers.models.auto.image_processing_auto": partial(import_module, IMAGE_PROCESSOR),
            "transformers.models.auto.processing_auto": partial(import_module, PROCESSOR),
            "transformers.pipelines": partial(import_module, PIPELINES),
            CONFIGS: register_configs,
            MODELS: register_models,
            CLASSIFIER: register_classifier,
            SEGMENTATION: register_segmentation,
            IMAGE_PROCESSOR: register_image_processor,
            PROCESSOR: register_processor,
            PIPELINES: register_pipelines,
        },
    ).install()


def register_configs() -> None:
    """With `AutoConfig`."""
    from transformers import AutoConfig

    from .modeling.configuration_itemized_clip import ItemizedCLIPConfig, ItemizedCLIPVisionConfig

    for config in (ItemizedCLIPConfig, ItemizedCLIPVisionConfig):
        AutoConfig.register(config.model_type, config)
        config.register_for_auto_class()  # a checkpoint carries the code that loads it where the package is not installed


def register_models() -> None:
    """With `AutoModel` and `AutoModelForZeroShotImageClassification`; the default loss goes to `LOSS_MAPPING`."""
    from transformers import AutoModel, AutoModelForZeroShotImageClassification
    from transformers.loss.loss_utils import LOSS_MAPPING

    from .modeling.configuration_itemized_clip import ItemizedCLIPConfig, ItemizedCLIPVisionConfig
    from .modeling.modeling_itemized_clip import ItemizedCLIPModel, ItemizedCLIPVisionModel

    AutoModel.register(ItemizedCLIPConfig, ItemizedCLIPModel)
    AutoModel.register(ItemizedCLIPVisionConfig, ItemizedCLIPVisionModel)
    AutoModelForZeroShotImageClassification.register(ItemizedCLIPConfig, ItemizedCLIPModel)
    ItemizedCLIPModel.register_for_auto_class("AutoModel")
    ItemizedCLIPVisionModel.register_for_auto_class("AutoModel")
    LOSS_MAPPING["ItemizedCLIP"] = _default_loss


def import_models() -> None:
    """The modules of all models, each of which registers what it holds."""
    for module in (MODELS, CLASSIFIER, SEGMENTATION):
        import_module(module)


def register_classifier() -> None:
    """With `AutoModelForImageClassification`."""
    from transformers import AutoModelForImageClassification

    from .modeling.classification_itemized_clip import ItemizedCLIPForImageClassification
    from .modeling.configuration_itemized_clip import ItemizedCLIPConfig

    AutoModelForImageClassification.register(ItemizedCLIPConfig, ItemizedCLIPForImageClassification)
    ItemizedCLIPForImageClassification.register_for_auto_class("AutoModelForImageClassification")


def register_segmentation() -> None:
    """With `AutoModelForSemanticSegmentation`."""
    from transformers import AutoModelForSemanticSegmentation

    from .modeling.configuration_itemized_clip import ItemizedCLIPConfig
    from .modeling.segmentation_itemized_clip import ItemizedCLIPForSemanticSegmentation

    AutoModelForSemanticSegmentation.register(ItemizedCLIPConfig, ItemizedCLIPForSemanticSegmentation)
    ItemizedCLIPForSemanticSegmentation.register_for_auto_class("AutoModelForSemanticSegmentation")


def register_image_processor() -> None:
    """With `AutoImageProcessor`; it gets the way to open files, and the settings of the domains."""
    from transformers import AutoImageProcessor

    from .domains import Presets
    from .modeling.configuration_itemized_clip import ItemizedCLIPConfig
    from .processing.image_processing_itemized_clip import ItemizedCLIPImageProcessor

    AutoImageProcessor.register(ItemizedCLIPConfig, image_processor_classes={"pil": ItemizedCLIPImageProcessor})
    ItemizedCLIPImageProcessor.register_for_auto_class("AutoImageProcessor")
    ItemizedCLIPImageProcessor.reader = staticmethod(_open_image)
    ItemizedCLIPImageProcessor.presets = Presets(lambda domain: {**domain.image, "domain": domain.name})


def register_processor() -> None:
    """With `AutoProcessor`; it gets the text settings of the domains."""
    from transformers import AutoProcessor

    from .domains import Presets
    from .modeling.configuration_itemized_clip import ItemizedCLIPConfig
    from .processing.processing_itemized_clip import ItemizedCLIPProcessor

    AutoProcessor.register(ItemizedCLIPConfig, ItemizedCLIPProcessor)
    ItemizedCLIPProcessor.register_for_auto_class("AutoProcessor")
    ItemizedCLIPProcessor.presets = Presets(lambda domain: domain.text)


def register_pipelines() -> None:
    """Of studies and of pictures."""
    from transformers import AutoModel
    from transformers.pipelines import PIPELINE_REGISTRY

    from .classification_pipeline import ItemizedCLIPClassificationPipeline
    from .pipelines import ItemizedCLIPFeaturePipeline, ItemizedCLIPImagePipeline, ItemizedCLIPPipeline

    PIPELINE_REGISTRY.register_pipeline(
        "zero-shot-study-classification", pipeline_class=ItemizedCLIPPipeline, pt_model=AutoModel, type="multimodal"
    )
    # The library picks a pipeline by its task alone: these classes make the library's own one of every other model.
    PIPELINE_REGISTRY.supported_tasks["zero-shot-image-classification"]["impl"] = ItemizedCLIPImagePipeline
    PIPELINE_REGISTRY.supported_tasks["image-feature-extraction"]["impl"] = ItemizedCLIPFeaturePipeline
    PIPELINE_REGISTRY.supported_tasks["image-classification"]["impl"] = ItemizedCLIPClassificationPipeline


def _open_image(source: Any, domain: str | None = None, accept: Iterable[str] = (), **layout: Any) -> Any:
    from .data.open import open_image

    return open_image(source, domain, accept, **layout)


def _default_loss(**features: Any) -> Any:
    from .trainer.objectives import default_loss

    return default_loss(**features)
