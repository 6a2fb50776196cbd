"""Generated multi-scan brain-MRI-like studies with known findings, sentences and masks."""

from .dataset import PhantomDataset
from .findings import FINDINGS, Finding
from .nifti import write_dataset, write_study
from .reports import NORMAL, NORMAL_ITEMS, ZERO_SHOT_PROMPTS, located_prompt
from .sequences import SEQUENCES
from .study import COARSE_SHAPE, DEFAULT_SHAPE, PhantomStudy, generate_study

__all__ = [
    "COARSE_SHAPE",
    "DEFAULT_SHAPE",
    "FINDINGS",
    "NORMAL",
    "NORMAL_ITEMS",
    "SEQUENCES",
    "ZERO_SHOT_PROMPTS",
    "Finding",
    "PhantomDataset",
    "PhantomStudy",
    "generate_study",
    "located_prompt",
    "write_dataset",
    "write_study",
]
