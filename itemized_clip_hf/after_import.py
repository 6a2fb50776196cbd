"""Calls functions once modules have been imported, so that nothing is imported for their sake."""

import importlib.abc
import importlib.machinery
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType


class AfterImport(importlib.abc.MetaPathFinder):
    """
    A finder that finds nothing of its own: modules load as ever, and when they have, functions are called, each of them once.

    The packages' modules import each other. A function therefore waits for the end of the outermost module of them that its
    thread is importing, when none is half imported any more.

    Args:
        packages: whose modules are waited for.
        actions: module of these packages -> what is called after its import.
    """

    def __init__(self, packages: Sequence[str], actions: Mapping[str, Callable[[], object]]):
        self._packages = frozenset(packages)
        self._actions = dict(actions)
        self._imports = _Imports()

    def install(self) -> None:
        """Watches imports from now on; for modules that are there already the functions are called at once."""
        sys.meta_path.insert(0, self)
        for name in [name for name in self._actions if name in sys.modules]:
            self._finish(name)

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """What the other finders find, watched."""
        if name.partition(".")[0] not in self._packages:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(name, path, target)
            if spec is not None:
                self._watch(spec)
                return spec
        return None

    def _watch(self, spec: importlib.machinery.ModuleSpec) -> None:
        loader = spec.loader
        if loader is None:
            return
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            self._imports.depth += 1
            try:
                execute(module)
            finally:
                self._imports.depth -= 1
            self._finish(spec.name)

        loader.exec_module = exec_module  # type: ignore[method-assign]

    def _finish(self, name: str) -> None:
        if name in self._actions:
            self._imports.waiting.append(name)
        while self._imports.waiting and not self._imports.depth:
            action = self._actions.pop(self._imports.waiting.pop(0), None)
            if action is not None:
                action()


class _Imports(threading.local):
    """Of one thread: how many modules it is within, and which ended there."""

    def __init__(self) -> None:
        self.depth = 0
        self.waiting: list[str] = []
