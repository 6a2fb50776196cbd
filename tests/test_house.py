"""The rules of the house that a linter does not know: sizes, and imports that go one way."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "itemized_clip_hf"
FILES = [*sorted(PACKAGE.rglob("*.py")), ROOT / "itemized_clip_cli.py", *sorted((ROOT / "benchmarks").glob("*.py"))]
LOWEST = {"modeling", "processing", "domains"}
"""They know none of the other rooms; `domains` looks into the two others for what their settings may be."""


def functions(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node.name, node.end_lineno - node.lineno + 1


def test_sizes():
    assert not [(path.name, name, lines) for path in FILES for name, lines in functions(path) if lines > 60]
    sizes = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert not {name: lines for name, lines in sizes.items() if lines > 450}


def rooms_imported_by(path: Path) -> set[str]:
    """First folders or modules of the package that a file imports, wherever in it."""
    place = path.relative_to(PACKAGE).parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = place[: len(place) - node.level + 1]
            parts = [*base, *(node.module or "").split(".")]
            names = [name.name for name in node.names]
            found |= {parts[0]} if parts[0] else set(names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("itemized_clip_hf."):
            found.add(node.module.split(".")[1])
    return found


@pytest.mark.parametrize("room", sorted(LOWEST))
def test_the_lowest_rooms_know_none_of_the_others(room):
    allowed = {room, "specs"} | (LOWEST if room == "domains" else set())
    for path in (PACKAGE / room).rglob("*.py"):
        assert rooms_imported_by(path) <= allowed, path.name


def test_nothing_imports_the_verbs():
    for path in PACKAGE.rglob("*.py"):
        if "cli" not in path.relative_to(PACKAGE).parts:
            assert "cli" not in rooms_imported_by(path), path


def test_objectives_load_no_model():
    for path in (PACKAGE / "trainer" / "objectives").glob("*.py"):
        assert not rooms_imported_by(path) & {"models", "hub", "evaluation"}, path.name
