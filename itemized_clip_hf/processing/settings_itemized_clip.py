"""Which settings of the image processor make sense: what comes from a damaged file is refused in words."""

import math
from collections.abc import Mapping
from typing import Any, NoReturn

MAX_VOXELS = 1 << 28
"""Most voxels of a scan as a model takes it."""

PREPROCESSING_FIELDS = (
    "scan_size",
    "fit",
    "in_plane_size",
    "spacing",
    "orientation",
    "thickest_axis_first",
    "windows",
    "percentiles",
    "use_scan_names",
    "num_channels",
    "do_resize",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
)
"""Settings that decide which numbers the model gets of a scan."""


RENAMED_SETTINGS = {"train_turns": "train_rot90_flip"}
"""Former names of settings, which folders and recipes of older versions hold."""


def rename_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """
    Settings under their present names.

    Raises:
        ValueError: a setting is given under both names, with different values.

    >>> rename_settings({"train_turns": True, "fit": "picture"})
    {'train_rot90_flip': True, 'fit': 'picture'}
    """
    renamed = {RENAMED_SETTINGS.get(name, name): value for name, value in settings.items()}
    for old, new in RENAMED_SETTINGS.items():
        if old in settings and new in settings and settings[old] != settings[new]:
            raise ValueError(
                f"{old} is {settings[old]!r} and {new} is {settings[new]!r}, expected one of them: {new} is the present name "
                f"of {old}."
            )
    return renamed


def check_settings(settings: Mapping[str, Any]) -> None:
    """
    Raises:
        ValueError: a setting is not of a kind that images can be processed with (setting, found, expected).
    """
    size: Any = settings.get("scan_size")
    if not _numbers(size, 3) or not all(isinstance(n, int) and n > 0 for n in size) or math.prod(size) > MAX_VOXELS:
        _refuse("scan_size", size, f"[depth, height, width] of at most {MAX_VOXELS:,} voxels")
    for name, most in (("in_plane_size", 1 << 14), ("num_channels", 64)):
        value = settings.get(name, 1)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= most:
            _refuse(name, value, f"a whole number from 1 to {most}")
    spacing = settings.get("spacing")
    if spacing is not None and (not _numbers(spacing, 3) or not all(1e-3 <= step <= 1e3 for step in spacing)):
        _refuse("spacing", spacing, "three positive numbers of mm, or nothing")
    orientation = settings.get("orientation")
    if orientation is not None and not _is_orientation(orientation):
        _refuse("orientation", orientation, "three letters such as RPI, or nothing")
    percentiles = settings.get("percentiles")
    if percentiles is not None and (not _numbers(percentiles, 2) or not 0 <= percentiles[0] < percentiles[1] <= 100):
        _refuse("percentiles", percentiles, "two rising numbers from 0 to 100, or nothing")
    share = settings.get("train_crop_scale")
    if share is not None and (not _numbers(share, 2) or not 0 < share[0] <= share[1] <= 1):
        _refuse("train_crop_scale", share, "two rising shares from 0 to 1, or nothing")
    _check_windows(settings.get("windows"))
    _check_statistics(settings)


def order_windows(windows: Any, domain_windows: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """
    Windows by name, in their order, which is that of the scans they make.

    Args:
        windows: pairs, or a dictionary; one that was sorted when it was written gets the order of the domain's.
        domain_windows: those of the domain, if it has any.
    """
    if windows is None:
        return None
    ordered = dict(windows)
    if isinstance(windows, Mapping) and domain_windows and list(ordered) == sorted(domain_windows):
        return {name: ordered[name] for name in domain_windows}
    return ordered


def _check_windows(windows: Any) -> None:
    if windows is None:
        return
    pairs = list(windows.items()) if isinstance(windows, Mapping) else windows
    listed = isinstance(pairs, (list, tuple)) and all(isinstance(p, (list, tuple)) and len(p) == 2 for p in pairs)
    if not listed or not pairs:
        _refuse("windows", windows, "name -> [lowest, highest], or nothing")
    for name, window in pairs:
        if not isinstance(name, str) or not _numbers(window, 2) or not window[0] < window[1]:
            _refuse(f"windows {name!r}", window, "[lowest, highest] HU")


def _check_statistics(settings: Mapping[str, Any]) -> None:
    for name in ("image_mean", "image_std"):
        values = settings.get(name)
        listed = [values] if isinstance(values, (int, float)) else values
        if listed is not None and (not _numbers(listed) or name == "image_std" and not all(v > 0 for v in listed)):
            _refuse(name, values, "a finite number per channel" + (", above 0" if name == "image_std" else ""))
    factor = settings.get("rescale_factor")
    if factor is not None and not _numbers([factor]):
        _refuse("rescale_factor", factor, "a finite number")


def _numbers(values: Any, count: int | None = None) -> bool:
    if not isinstance(values, (list, tuple)) or not values or count not in (None, len(values)):
        return False
    numbers = [v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)]
    return len(numbers) == len(values) and all(abs(v) < 1e9 for v in numbers)


def _is_orientation(letters: Any) -> bool:
    if not isinstance(letters, str) or len(letters) != 3:
        return False
    return all(any(letter in pair for letter in letters) for pair in ("RL", "AP", "SI")) and set(letters) <= set(
        "RLAPSI"
    )


def _refuse(name: str, value: Any, expected: str) -> NoReturn:
    shown = repr(value)
    raise ValueError(f"{name} is {shown if len(shown) < 80 else shown[:77] + '...'}, expected {expected}.")
