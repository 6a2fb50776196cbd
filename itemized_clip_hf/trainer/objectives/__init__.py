"""Training objectives: one file each, the file's name is the objective's name."""

import importlib
import inspect
import pkgutil

from ..objective import Draws, Objective, StudyTextObjective

__all__ = [
    "Draws",
    "Objective",
    "StudyTextObjective",
    "available_objectives",
    "default_loss",
    "load_objective",
    "objective_name",
]


def available_objectives() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load_objective(name: str, **weights) -> Objective:
    """The objective of that name, with its weights where they differ from the defaults."""
    if name not in available_objectives():
        raise ValueError(f"there is no objective {name!r}; choose one of {available_objectives()}.")
    module = importlib.import_module(f"{__name__}.{name}")
    objective = next(
        value
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, Objective) and value.__module__ == module.__name__
    )
    known = list(inspect.signature(objective).parameters)
    unknown = sorted(set(weights) - set(known))
    if unknown:
        raise ValueError(f"objective {name!r} takes no {unknown}; it takes {known}.")
    return objective(**weights)


def objective_name(objective: Objective) -> str:
    """Name of the file that an objective is defined in."""
    return type(objective).__module__.rpartition(".")[2]


def default_loss(config=None, **features):
    """ItemizedCLIP with the weights of the model's domain: what a model computes when no objective was set."""
    from ...domains import load_domain

    domain = getattr(config, "domain", None)
    weights = load_domain(domain).objective if domain else {}
    return load_objective("itemized_clip", **weights)(**features)
