"""Functions after imports: once, and never while a module is half imported."""

import importlib
import sys

import pytest

from itemized_clip_hf.after_import import AfterImport


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """Writes modules of a package that is gone after the test; `watch` installs a finder for it."""
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "watched").mkdir()

    def write(**sources):
        for name, source in sources.items():
            (tmp_path / "watched" / f"{name}.py").write_text(source)
        importlib.invalidate_caches()

    write(__init__="")
    return write


def test_functions_wait_for_the_outermost_module(modules):
    modules(
        outer="import watched.inner\nwatched.log.append('outer')",
        inner="import watched.log_\nwatched.log.append('inner')",
    )
    modules(log_="import watched\nwatched.log = []")
    calls: list[tuple[str, list[str]]] = []

    def after(name):
        return lambda: calls.append((name, list(importlib.import_module("watched").log)))

    AfterImport(["watched"], {f"watched.{name}": after(name) for name in ("inner", "outer")}).install()
    importlib.import_module("watched.outer")
    importlib.reload(sys.modules["watched.outer"])
    assert calls == [("inner", ["inner", "outer"]), ("outer", ["inner", "outer"])]
    assert sys.modules["watched.outer"].__loader__.get_source("watched.outer").startswith("import watched.inner")


def test_modules_that_are_there_already(modules):
    modules(early="")
    importlib.import_module("watched.early")
    calls: list[str] = []
    AfterImport(["watched"], {"watched.early": lambda: calls.append("early")}).install()
    assert calls == ["early"]


def test_a_module_that_fails_calls_nothing_until_it_loads(modules):
    modules(broken="raise ImportError('no')")
    calls: list[str] = []
    AfterImport(["watched"], {"watched.broken": lambda: calls.append("broken")}).install()
    with pytest.raises(ImportError):
        importlib.import_module("watched.broken")
    assert calls == []
    modules(broken="mended = True  # a file of another size")
    importlib.import_module("watched.broken")
    assert calls == ["broken"]


def test_modules_that_are_nowhere_are_missing_as_before(modules):
    AfterImport(["watched"], {}).install()
    with pytest.raises(ModuleNotFoundError, match="watched.nowhere"):
        importlib.import_module("watched.nowhere")
