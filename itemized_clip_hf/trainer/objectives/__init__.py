"""Training objectives: one file each, the file's name is the objective's name."""

import importlib
import inspect
import pkgutil
from typing import Any

import torch

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
    """
    Names of the files in this folder.

    >>> available_objectives()
    ['clip', 'dreamlip', 'flair', 'hlip', 'itemized_clip', 'mps', 'siglip', 'smartclip']
    """
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load_objective(name: str, **weights: Any) -> Objective:
    """
    The objective of that name, with its weights where they differ from the defaults.

    Two studies of one item each, and a pooler, width 4, with two heads:

    >>> import torch
    >>> from itemized_clip_hf.modeling.pooling_itemized_clip import ItemizedCLIPItemPooler
    >>> objective = load_objective("mps", normal_check=False)
    >>> terms = objective(
    ...     image_embeds=torch.eye(2, 4),
    ...     image_tokens=torch.zeros(2, 3, 4),
    ...     item_embeds=torch.eye(2, 4)[:, None],
    ...     item_mask=torch.tensor([[True], [True]]),
    ...     is_normal=None,
    ...     logit_scale=torch.tensor(0.0),
    ...     logit_bias=torch.tensor(0.0),
    ...     pooler=ItemizedCLIPItemPooler(4, 2),
    ... )
    >>> sorted(terms), round(float(terms["loss"]), 4)
    (['loss', 'mps'], 1.0064)

    Raises:
        ValueError: there is no such objective, or it has no such weight.
    """
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
    made: Objective = objective(**weights)
    return made


def objective_name(objective: Objective) -> str:
    """Name of the file that an objective is defined in."""
    return type(objective).__module__.rpartition(".")[2]


def default_loss(config: Any = None, **features: Any) -> dict[str, torch.Tensor]:
    """ItemizedCLIP with the weights of the model's domain: what a model computes when no objective was set."""
    from ...domains import load_domain

    domain = getattr(config, "domain", None)
    weights = load_domain(domain).objective if domain else {}
    return load_objective("itemized_clip", **weights)(**features)
