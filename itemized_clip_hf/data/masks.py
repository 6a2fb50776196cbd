"""Masks, told from scans by their values."""

import numpy as np


def mask_reason(array: np.ndarray, max_values: int = 16) -> str | None:
    """Why an array is a mask (few values, all of them integers) rather than a scan; None if it is none."""
    sample = array[len(array) // 2, ::4] if array.ndim == 3 else array
    if len(np.unique(sample)) > max_values:  # most scans end here
        return None
    values = np.unique(array)
    if not 2 <= len(values) <= max_values or not np.array_equal(values, np.rint(values)):
        return None
    return (
        f"it holds {len(values)} different values, all of them integers ({', '.join(f'{v:g}' for v in values[:6])} ...)"
    )
