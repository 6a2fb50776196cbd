"""What `import itemized_clip_hf` does to the rest of the process: nothing but its own registrations, and those when needed."""

import os
import subprocess
import sys

import pytest

FOUND = """
from transformers import AutoImageProcessor, AutoModel, AutoModelForZeroShotImageClassification, AutoProcessor
from transformers import AutoModelForSemanticSegmentation
from transformers.loss.loss_utils import LOSS_MAPPING
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.pipelines import PIPELINE_REGISTRY
import itemized_clip_hf as package
config = CONFIG_MAPPING["itemized_clip"]
assert config is package.ItemizedCLIPConfig
assert CONFIG_MAPPING["itemized_clip_vision_model"] is package.ItemizedCLIPVisionConfig
assert AutoModel._model_mapping[config] is package.ItemizedCLIPModel
assert AutoModel._model_mapping[package.ItemizedCLIPVisionConfig] is package.ItemizedCLIPVisionModel
assert AutoModelForZeroShotImageClassification._model_mapping[config] is package.ItemizedCLIPModel
from transformers import AutoModelForImageClassification
assert AutoModelForImageClassification._model_mapping[config] is package.ItemizedCLIPForImageClassification
assert AutoModelForSemanticSegmentation._model_mapping[config] is package.ItemizedCLIPForSemanticSegmentation
assert IMAGE_PROCESSOR_MAPPING[config] == {"pil": package.ItemizedCLIPImageProcessor}
assert PROCESSOR_MAPPING[config] is package.ItemizedCLIPProcessor
assert set(package.ItemizedCLIPProcessor.presets) == set(package.ItemizedCLIPImageProcessor.presets) >= {"brain-mri"}
assert callable(package.ItemizedCLIPImageProcessor.reader) and "ItemizedCLIP" in LOSS_MAPPING
tasks = PIPELINE_REGISTRY.supported_tasks
assert tasks["zero-shot-study-classification"]["impl"] is package.ItemizedCLIPPipeline
for task in ("zero-shot-image-classification", "image-feature-extraction", "image-classification"):
    assert tasks[task]["impl"].__module__.startswith("itemized_clip_hf.")
"""

UNCHANGED = """
import csv, logging, warnings
import matplotlib, pydicom
import transformers.pipelines as pipelines
from transformers.loss.loss_utils import LOSS_MAPPING

def state():
    settings = pydicom.config.settings
    loggers = {name: logging.getLogger(name) for name in ("", "transformers", "torch", "pydicom", "matplotlib", "PIL")}
    return {
        "backend": matplotlib.rcParams._get("backend"),
        "csv": csv.field_size_limit(),
        "pydicom": (settings.reading_validation_mode, settings.writing_validation_mode),
        "loggers": {name: (one.level, list(one.handlers), list(one.filters)) for name, one in loggers.items()},
        "warnings": list(warnings.filters),
        "losses": dict(LOSS_MAPPING),
        "tasks": {name: dict(task) for name, task in pipelines.PIPELINE_REGISTRY.supported_tasks.items()},
    }

before = state()
import itemized_clip_hf
for name in itemized_clip_hf.__all__:
    getattr(itemized_clip_hf, name)
import itemized_clip_hf.explain.plots, itemized_clip_hf.data.open, itemized_clip_hf.data.tables
after = state()
assert after["losses"].pop("ItemizedCLIP").__module__ == "itemized_clip_hf.registration"
del after["tasks"]["zero-shot-study-classification"]
for task, own in (
    ("zero-shot-image-classification", pipelines.ZeroShotImageClassificationPipeline),
    ("image-feature-extraction", pipelines.ImageFeatureExtractionPipeline),
    ("image-classification", pipelines.ImageClassificationPipeline),
):
    assert issubclass(after["tasks"][task]["impl"], own)
    after["tasks"][task]["impl"] = before["tasks"][task]["impl"]  # test_pipelines.py: other models get the library's own class
for name in before:
    assert after[name] == before[name], (name, before[name], after[name])
"""


def run_python(code: str) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr


def test_importing_the_package_imports_nothing_else():
    run_python("""
import sys
import itemized_clip_hf
assert not set(itemized_clip_hf.__all__) - set(dir(itemized_clip_hf))
heavy = {"torch", "transformers", "numpy", "matplotlib", "pydicom", "nibabel", "PIL"} & set(sys.modules)
assert not heavy, heavy
""")


def test_an_imported_library_gets_the_registrations_and_nothing_else_changes():
    run_python(UNCHANGED + FOUND)


@pytest.mark.slow  # ten seconds each
@pytest.mark.parametrize(
    "first",
    [
        "import itemized_clip_hf",
        # modules of the library that import the Auto classes while they are imported
        "import itemized_clip_hf, transformers.modeling_layers",
        "import itemized_clip_hf, transformers.trainer",
        "import itemized_clip_hf, transformers.pipelines",
        # modules of the package that do
        "import itemized_clip_hf.modeling.vision_itemized_clip",
        "import itemized_clip_hf.processing.processing_itemized_clip",
        "import itemized_clip_hf.pipelines",
    ],
)
def test_everything_is_registered_whatever_is_imported_first(first):
    run_python(first + FOUND)


def test_a_name_that_is_not_there():
    import itemized_clip_hf

    with pytest.raises(AttributeError, match="no attribute 'ItemizedClip'"):
        itemized_clip_hf.ItemizedClip  # noqa: B018
