"""Series as volumes: slices of one kind, no two of them in one place."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from .files import UnusableFileError
from .pixels import read_plane
from .resample import is_even
from .slices import OTHER_FIELDS, Slice
from .stack import MIN_SLICES

MAX_VOLUMES = 4
"""Volumes of one series that are kept at most, as of echoes or b-values; of a longer (dynamic) one only the first is."""
SAME_PLACE = 0.02
"""mm up to which two slices lie in one place; headers round positions."""
MAX_DOUBLES = 0.1
"""Share of the places at which a second slice, that nothing tells from the first, is left out."""
# How what tells volumes apart is written behind a name; without a form, by number. In the order of preference.
_MARKS = {
    "stack": "stack{}",
    "echo": "TE{}",
    "b_value": "b{}",
    "kind": "{}",
    "signal": "signal",
    "inversion": "TI{}",
    "flip": "FA{}",
    "repetition": "TR{}",
    "trigger": "trigger{}",
    "time": "t{}",
    "kernel": "kernel",
    "contrast": "contrast",
    "derivation": "{}",
    "acquisition": "acq{}",
    "series": "s{}",
    "direction": "dir",
    **{name: "part" for name in ("description", "frame_of_reference", *OTHER_FIELDS)},
}
# What belongs to a whole series: slices that differ in it are of several, exported under one SeriesInstanceUID.
_SERIES_MARKS = ("series", "description", "frame_of_reference")
# What slices of one volume share, wherever they lie.
_VOLUME_MARKS = tuple("stack echo b_value signal inversion flip repetition time kernel contrast derivation".split())
_MEASURED = ("echo", "inversion", "flip", "repetition", "trigger")
"""Of which headers state the same value with slightly other digits."""


@dataclass
class Volume:
    """Slices of one scan, and what is written behind the series' description where another one has the same."""

    suffix: str
    slices: list[Slice]


def split_series(slices: list[Slice], name: str, skipped: Counter[tuple[str, str]]) -> Iterator[Volume]:
    """
    What one SeriesInstanceUID holds, as volumes: slices of one orientation, size, acquisition, echo, reconstruction ..., no two
    of them in one place.

    Args:
        slices: of one SeriesInstanceUID.
        name: what the series is called in `skipped`.
        skipped: (series, reason) -> how often; what is left out is counted there.
    """
    _join_measured(slices)
    for number, part in enumerate(_parts_that_fit(slices)):
        part_suffix = f"-{number + 1}" if number else ""
        found, left_out = [], []
        for series in _split_by(part, _SERIES_MARKS, odd_ones=False):
            volumes = []
            for group in _split_by(series, _VOLUME_MARKS, odd_ones=True):
                volumes += _split_group(group, name + part_suffix, skipped)
            if len(volumes) > MAX_VOLUMES:
                volumes = sorted(volumes, key=_order_of_volume)
                reason = f"it holds {len(volumes)} volumes; the first is used, the others are left out"
                skipped[name + part_suffix, reason] += 1
                left_out += volumes[1:]
                volumes = volumes[:1]
            found += volumes
        for volume in found:
            alike = [other for other in (*found, *left_out) if _description(other) == _description(volume)]
            yield Volume(part_suffix + _suffix(volume, _naming_marks(alike), alike), volume)


def _description(volume: list[Slice]) -> str | None:
    return volume[0].marks["description"]


def _parts_that_fit(slices: list[Slice]) -> list[list[Slice]]:
    parts: list[list[Slice]] = []
    for one in slices:
        part = next((part for part in parts if part[0].fits(one)), None)
        if part is None:
            parts.append([one])
        else:
            part.append(one)
    return parts


def _join_measured(slices: list[Slice]) -> None:
    """Values within 2 % of the one before become one."""
    for mark in _MEASURED:
        last = joined = None
        for value in sorted({float(one.marks[mark]) for one in slices if one.marks[mark] is not None}):
            if last is None or value - last > max(0.02 * abs(value), 0.05):
                joined = f"{value:g}"
            last = value
            for one in slices:
                if one.marks[mark] == f"{value:g}":
                    one.marks[mark] = joined


def _split_by(slices: list[Slice], marks: tuple[str, ...], odd_ones: bool) -> list[list[Slice]]:
    """
    Groups that differ in marks, each of which parts the slices into some large groups rather than one by one.

    Args:
        odd_ones: whether a few slices that differ from all others make a group, to be left out.
    """
    groups = [slices]
    for mark in marks:
        parted = []
        for group in groups:
            found = list(_grouped(group, (mark,)).values())
            large = sum(len(part) >= MIN_SLICES for part in found)
            systematic = len(found) * MIN_SLICES <= len(group) and large >= (1 if odd_ones else 2)
            parted += found if systematic else [group]
        groups = parted
    return groups


def _grouped(slices: list[Slice], marks: tuple[str, ...]) -> dict[tuple, list[Slice]]:
    groups: dict[tuple, list[Slice]] = defaultdict(list)
    for one in slices:
        groups[tuple(one.marks[mark] for mark in marks)].append(one)
    return groups


def _split_group(slices: list[Slice], name: str, skipped: Counter[tuple[str, str]]) -> list[list[Slice]]:
    """Volumes of slices that agree in all that must agree; doubles that nothing tells apart are left out, if they are few."""
    volumes = _split_repeats(slices)
    if volumes is None:
        slices, repeats = _drop_repeats(slices)
        if repeats:
            skipped[name, "another slice of the series holds the same image"] += repeats
        volumes = _split_repeats(slices)
    if volumes is None:
        first, doubles = _first_of_each_place(slices)
        if doubles <= max(1, MAX_DOUBLES * len(first)) and len(first) >= MIN_SLICES:
            skipped[name, "another slice lies in the same place and nothing tells them apart; the first is used"] += (
                doubles
            )
            volumes = [first]
    if volumes is None:
        skipped[name, "several slices lie in one place and nothing in the header tells them apart"] += 1
    return volumes or []


def _split_repeats(slices: list[Slice]) -> list[list[Slice]] | None:
    differ = _places_differ(slices)
    if differ and (len(slices) < 2 * MIN_SLICES or is_even(_heights(slices))):
        return [slices]
    usable = [mark for mark in _MARKS if len({one.marks[mark] for one in slices}) > 1]
    for count in (1,) if differ else (1, 2, 3):
        for marks in combinations(usable, count):
            groups = list(_grouped(slices, marks).values())
            if not differ and len(groups) > 1 and max(map(len, groups)) < MIN_SLICES:
                continue
            if differ and not _interleaved(groups):
                continue
            if all(_places_differ(group) for group in groups):
                return sorted(groups, key=lambda group: _order(tuple(group[0].marks[mark] for mark in marks)))
    return [slices] if differ else None


def _naming_marks(volumes: list[list[Slice]]) -> tuple[str, ...]:
    """The fewest marks, best known first, by which each volume has values of its own; all that differ, if none do."""

    def value(volume: list[Slice], mark: str):
        return next(iter({one.marks[mark] for one in volume})) if len({o.marks[mark] for o in volume}) == 1 else ""

    usable = [mark for mark in _MARKS if len({value(volume, mark) for volume in volumes}) > 1]
    for count in (1, 2, 3):
        for marks in combinations(usable, count):
            if len({tuple(value(volume, mark) for mark in marks) for volume in volumes}) == len(volumes):
                return marks
    return ()


def _suffix(volume: list[Slice], marks: tuple[str, ...], volumes: list[list[Slice]]) -> str:
    words = []
    for mark in marks:
        value = volume[0].marks[mark]
        if "{}" not in _MARKS[mark]:
            values = sorted({str(other[0].marks[mark]) for other in volumes})
            words.append(f"{_MARKS[mark]}{values.index(str(value)) + 1}")
        elif value not in (None, ""):
            words.append(_MARKS[mark].format(value))
    return "_" + "_".join(words) if words else ""


def _order_of_volume(volume: list[Slice]) -> list:
    return _order(tuple(volume[0].marks[mark] for mark in _MARKS if mark in _VOLUME_MARKS or mark == "acquisition"))


def _first_of_each_place(slices: list[Slice]) -> tuple[list[Slice], int]:
    """Slices in the order of their files without those within `SAME_PLACE` of an earlier one along the normal."""
    first: list[Slice] = []
    for one in sorted(slices, key=lambda one: int(one.file.header.get("InstanceNumber") or 0)):
        if all(abs(one.height - other.height) > SAME_PLACE for other in first):
            first.append(one)
    return first, len(slices) - len(first)


def _interleaved(groups: list[list[Slice]]) -> bool:
    """Whether they are whole volumes of one region, as repeats are whose positions follow the patient's motion."""
    heights = [_heights(group) for group in groups]
    if any(len(own) < MIN_SLICES or not is_even(own) for own in heights):
        return False
    lows, highs = [own[0] for own in heights], [own[-1] for own in heights]
    return max(lows) - min(lows) < 0.5 * (max(highs) - min(lows)) and max(lows) < min(highs)


def _drop_repeats(slices: list[Slice]) -> tuple[list[Slice], int]:
    """Slices without those whose place and pixels another one has, and how many these were."""
    places: dict[tuple, list[Slice]] = defaultdict(list)
    for one in slices:
        places[tuple(np.rint(one.position / SAME_PLACE).astype(int))].append(one)
    if len(slices) > 2 * len(places):  # repeats of another kind
        return slices, 0
    unique: list[Slice] = []
    for first, *others in places.values():
        unique.append(first)
        unique += [one for one in others if not _same_pixels(first, one)]
    return unique, len(slices) - len(unique)


def _same_pixels(first: Slice, second: Slice) -> bool:
    try:
        a, b = (read_plane(one, str(one.file.header.Modality), {}) for one in (first, second))
    except (UnusableFileError, ImportError):
        return False
    return np.array_equal(a, b)


def _order(values: tuple) -> list:
    def number(value: Any):
        try:
            return (0, float(value), "")
        except (TypeError, ValueError):
            return (1, 0.0, str(value))

    return [number(value) for value in values]


def _heights(slices: list[Slice]) -> np.ndarray:
    return np.sort([one.height for one in slices])


def _places_differ(slices: list[Slice]) -> bool:
    return len(slices) < 2 or float(np.diff(_heights(slices)).min()) > SAME_PLACE
