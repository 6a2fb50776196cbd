"""Attributes that are others for a moment."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def temporarily(target: object, **values: Any) -> Iterator[None]:
    """
    Attributes of an object, methods too, are others inside this context and as before after it, however it ends.

    >>> from types import SimpleNamespace
    >>> settings = SimpleNamespace(steps=10)
    >>> with temporarily(settings, steps=1):
    ...     print(settings.steps)
    1
    >>> settings.steps
    10
    """
    before = {name: vars(target)[name] for name in values if name in vars(target)}
    for name, value in values.items():
        setattr(target, name, value)
    try:
        yield
    finally:
        for name in values:
            if name in before:
                setattr(target, name, before[name])
            else:  # of the class
                delattr(target, name)
