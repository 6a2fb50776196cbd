"""Progress bars of the library, where they would only tell of its own work."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def without_library_bars() -> Iterator[None]:
    """No bar of `transformers` for loading and writing weights; those of downloads stay, and all are as before afterwards."""
    from transformers.utils import logging

    def no_bar(factory: Callable[..., Any], arguments: tuple[Any, ...], settings: dict[str, Any]) -> Any:
        return factory(*arguments, **{**settings, "disable": True})

    before = logging.set_tqdm_hook(no_bar)
    try:
        yield
    finally:
        logging.set_tqdm_hook(before)
