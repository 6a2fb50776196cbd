"""Finds transformers' common tests, or skips this folder."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from transformers_source import MISSING, find_source, install

SOURCE = find_source()
if SOURCE is not None:
    install(SOURCE)


class _Skipped(pytest.Module):
    """A test module that cannot be imported without the source distribution."""

    def collect(self):
        pytest.skip(MISSING, allow_module_level=True)


def pytest_pycollect_makemodule(module_path, parent):
    if SOURCE is None and module_path.is_relative_to(Path(__file__).parent):
        return _Skipped.from_parent(parent, path=module_path)
    return None


def pytest_configure(config):
    kinds = ("accelerate_tests", "flash_attn_test", "flash_attn_3_test", "flash_attn_4_test", "torch_compile_test")
    for marker in (*kinds, "is_training_test"):
        config.addinivalue_line("markers", f"{marker}: of transformers' common tests")
