"""A folder of studies and a file of reports -> a training set."""

from .estimate import estimate_size
from .plan import Plan, plan_studies
from .run import prepare
from .study import prepare_study

__all__ = ["Plan", "estimate_size", "plan_studies", "prepare", "prepare_study"]
