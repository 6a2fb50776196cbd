"""
A first look at the values of options, before a verb imports anything heavy: what cannot work is told at once.

Each function raises a ValueError or OSError that says what was found, what was expected and what to do, as the code does that
would meet the value later.
"""

import re
from pathlib import Path

from itemized_clip_hf.data.codes import known_codes
from itemized_clip_hf.data.dicomweb import is_study_url, split_study_url
from itemized_clip_hf.data.files import require_source, require_writable
from itemized_clip_hf.domains import load_domain
from itemized_clip_hf.evaluation.operating_points import check_point
from itemized_clip_hf.evaluation.protocols import find_protocol
from itemized_clip_hf.evaluation.tasks import available_tasks
from itemized_clip_hf.models.names import require_model, split_name
from itemized_clip_hf.recipes import read_recipe
from itemized_clip_hf.specs import read_prompts

DEVICES = "auto cpu cuda hpu mps mtia npu xla xpu"

output = require_writable
model = require_model
prompts = read_prompts


def source(path: str) -> None:
    """A file, a folder, a pattern, or the address of a study on a DICOMweb server."""
    if is_study_url(path):
        split_study_url(path)
    else:
        require_source(path)


def domain(name: str) -> None:
    load_domain(name)


def code(name: str) -> None:
    known_codes([name])


def named_model(entry: str) -> None:
    """`MODEL` or `NAME=MODEL`."""
    require_model(split_name(entry)[1])


def label_table(entry: str) -> None:
    """`FILE` or `TABLE=FILE`."""
    require_source(entry.partition("=")[2] if "=" in entry and not Path(entry).exists() else entry, "label table")


def protocol(name: str) -> None:
    if name not in available_tasks():
        find_protocol(name)


def point(name: str) -> None:
    """The rule of an operating point."""
    check_point(name)


def tokenizer(path: str) -> None:
    if not Path(path).exists():
        raise FileNotFoundError(f"there is no tokenizer at {path}.")


def device(name: str) -> None:
    if not re.fullmatch(rf"({DEVICES.replace(' ', '|')})(:\d+)?", name) or name.startswith("auto:"):
        raise ValueError(
            f"there is no device {name!r}: expected one of {DEVICES}, or one with its number such as cuda:1."
        )


def recipe(name: str) -> None:
    read_recipe(name)
