"""Series as volumes: slices of one kind, no two of them in one place."""

from collections import defaultdict
from collections.abc import Iterator
from itertools import combinations

import numpy as np

from ..resample import is_even
from .files import Unusable
from .pixels import read_plane
from .slices import Slice
from .stack import MIN_SLICES

MAX_VOLUMES = 4
"""Most volumes of one series that are kept, as of echoes or b-values; of a longer (dynamic) one only the first is."""
SAME_PLACE = 0.02
"""mm up to which two slices lie in one place; headers round positions."""
# What tells the volumes of one series apart, and how it is written behind the name.
_MARKS = {
    "stack": "stack{}",
    "echo": "TE{}",
    "b_value": "b{}",
    "kind": "{}",
    "time": "t{}",
    "acquisition": "acq{}",
    "direction": "dir{}",
}


def split_series(slices: list[Slice], name: str, skipped) -> Iterator[tuple[str, list[Slice]]]:
    """A series as volumes: slices of one orientation and size, no two of them in one place; with a suffix for the name."""
    parts: list[list[Slice]] = []
    for one in slices:
        part = next((part for part in parts if part[0].fits(one)), None)
        if part is None:
            parts.append([one])
        else:
            part.append(one)
    for number, part in enumerate(parts):
        suffix = f"-{number + 1}" if number else ""
        volumes = _split_repeats(part)
        if volumes is None:
            part, repeats = _drop_repeats(part)
            if repeats:
                skipped[name + suffix, "another slice of the series holds the same image"] += repeats
            volumes = _split_repeats(part)
        if volumes is None:
            skipped[name + suffix, "several slices lie in one place and nothing in the header tells them apart"] += 1
            continue
        if len(volumes) > MAX_VOLUMES:
            label = f"{name}{suffix}"
            skipped[label, f"it holds {len(volumes)} volumes; the first is used, the others are left out"] += 1
            volumes = volumes[:1]
        for mark, volume in volumes:
            yield suffix + mark, volume


def _split_repeats(slices: list[Slice]) -> list[tuple[str, list[Slice]]] | None:
    differ = _places_differ(slices)
    if differ and (len(slices) < 2 * MIN_SLICES or is_even(_heights(slices))):
        return [("", slices)]
    usable = [mark for mark in _MARKS if len({one.marks[mark] for one in slices}) > 1]
    for count in (1,) if differ else (1, 2, 3):
        for marks in combinations(usable, count):
            groups: dict[tuple, list[Slice]] = defaultdict(list)
            for one in slices:
                groups[tuple(one.marks[mark] for mark in marks)].append(one)
            if differ and not _interleaved(list(groups.values())):
                continue
            if all(_places_differ(group) for group in groups.values()):
                named = []
                for index, (values, group) in enumerate(sorted(groups.items(), key=lambda item: _order(item[0]))):
                    words = [
                        _MARKS[mark].format(index + 1 if mark == "direction" else value)
                        for mark, value in zip(marks, values)
                        if value not in (None, "")
                    ]
                    named.append(("_" + "_".join(words) if words else "", group))
                return named
    return [("", slices)] if differ else None


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
    kept: list[Slice] = []
    for first, *others in places.values():
        kept.append(first)
        kept += [one for one in others if not _same_pixels(first, one)]
    return kept, len(slices) - len(kept)


def _same_pixels(first: Slice, second: Slice) -> bool:
    try:
        a, b = (read_plane(one, str(one.file.header.Modality), {}) for one in (first, second))
    except (Unusable, ImportError):
        return False
    return np.array_equal(a, b)


def _order(values: tuple) -> list:
    def number(value):
        try:
            return (0, float(value), "")
        except (TypeError, ValueError):
            return (1, 0.0, str(value))

    return [number(value) for value in values]


def _heights(slices: list[Slice]) -> np.ndarray:
    return np.sort([one.height for one in slices])


def _places_differ(slices: list[Slice]) -> bool:
    return len(slices) < 2 or float(np.diff(_heights(slices)).min()) > SAME_PLACE
