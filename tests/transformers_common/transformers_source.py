"""
Where transformers' own common tests lie, and what they import that a source distribution leaves out.

The mixins are no part of the installed library. They are taken from the source distribution of the installed version:
`$TRANSFORMERS_SOURCE`, or `<repository>/.cache/transformers-<version>`, where fetch.py puts it.
"""

import os
import sys
import types
from importlib.metadata import version
from pathlib import Path
from unittest import mock

VERSION = version("transformers")
CACHE = Path(__file__).resolve().parents[2] / ".cache" / f"transformers-{VERSION}"
PACKAGE = "transformers_tests"
MISSING = f"the tests of transformers {VERSION} are not here: `make test` fetches them (or set TRANSFORMERS_SOURCE)"

# Arguments that every config has to take, with values that are not the defaults.
COMMON_CONFIG_ARGUMENTS = {
    "return_dict": False,
    "output_hidden_states": True,
    "output_attentions": True,
    "dtype": "float16",
    "chunk_size_feed_forward": 5,
    "architectures": ["SomeModel"],
    "id2label": {0: "label"},
    "label2id": {"label": 0},
    "problem_type": "regression",
}


def _fits(folder: Path) -> bool:
    """Whether the folder holds the tests, and not those of another version (a clone of the repository does not say)."""
    info = folder / "PKG-INFO"
    if info.is_file() and f"Version: {VERSION}" not in info.read_text(encoding="utf-8").splitlines():
        return False
    return (folder / "tests" / "test_modeling_common.py").is_file()


def find_source() -> Path | None:
    """Folder of the unpacked source distribution, or None."""
    folders = [Path(folder) for folder in (os.environ.get("TRANSFORMERS_SOURCE"), CACHE) if folder]
    return next((folder.resolve() for folder in folders if _fits(folder)), None)


def _module(name: str, **contents) -> types.ModuleType:
    module = types.ModuleType(name)
    vars(module).update(contents)
    sys.modules[name] = module
    return module


def install(source: Path):
    """
    Makes the common tests importable as `transformers_tests.test_*_common`.

    They import each other relatively, and helpers of their repository that are not distributed: those are replaced by
    the little that is needed without network, export and generation.
    """
    _module(PACKAGE, __path__=[str(source / "tests")])
    for folder in ("exporters", "generation", "utils"):
        _module(f"{PACKAGE}.{folder}", __path__=[])
    _module(f"{PACKAGE}.exporters.test_export", ExportTesterMixin=type("ExportTesterMixin", (), {}))
    _module(f"{PACKAGE}.generation.test_utils", GenerationTesterMixin=type("GenerationTesterMixin", (), {}))
    _module(f"{PACKAGE}.utils.test_configuration_utils", config_common_kwargs=COMMON_CONFIG_ARGUMENTS)
    _module("fetch_hub_objects_for_ci", url_to_local_path=lambda url: url)
    __import__("transformers.processing_utils")  # which would keep what is replaced below, were it first imported there
    # On import this one runs tests/__init__.py, which is not distributed, and makes no use of it.
    with mock.patch("transformers.utils.direct_transformers_import"):
        __import__(f"{PACKAGE}.test_configuration_common")
