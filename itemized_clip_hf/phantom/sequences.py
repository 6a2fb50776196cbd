"""The four MRI sequences: how bright each tissue is, and how a clean image becomes a noisy scan."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from .anatomy import TISSUES

SEQUENCES = ("T1", "T2", "FLAIR", "SWI")
"""Names of the scans of every study."""

TISSUE_INTENSITY = {
    "T1": {"scalp": 0.95, "skull": 0.12, "csf": 0.18, "grey": 0.56, "white": 0.75, "deep_grey": 0.62},
    "T2": {"scalp": 0.62, "skull": 0.08, "csf": 1.00, "grey": 0.60, "white": 0.46, "deep_grey": 0.50},
    "FLAIR": {"scalp": 0.70, "skull": 0.08, "csf": 0.14, "grey": 0.60, "white": 0.50, "deep_grey": 0.55},
    "SWI": {"scalp": 0.48, "skull": 0.10, "csf": 0.82, "grey": 0.64, "white": 0.58, "deep_grey": 0.50},
}
"""Mean intensity of each tissue before the gain; a calcification looks like grey matter except where listed below."""

CALCIFICATION_INTENSITY = {"SWI": 0.25}

NOISE = 0.045
"""Standard deviation of the noise, on the scale of `TISSUE_INTENSITY`."""

_CONTRAST = np.array(
    [
        [
            CALCIFICATION_INTENSITY.get(name, table["grey"]) if tissue == "calcification" else table[tissue]
            for tissue in TISSUES
        ]
        for name, table in TISSUE_INTENSITY.items()
    ],
    dtype=np.float32,
)


def render_tissues(fractions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """
    Turn tissue fractions ``(T, D, H, W)`` into clean images ``(len(SEQUENCES), D, H, W)``, float32.

    Contrasts vary a little from study to study.
    """
    contrast = _CONTRAST * rng.uniform(0.94, 1.06, _CONTRAST.shape).astype(np.float32)
    return (contrast @ fractions.reshape(len(fractions), -1)).reshape(len(contrast), *fractions.shape[1:])


def acquire(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """
    Add each sequence's own texture, bias field, noise and gain.

    Args:
        images: clean images, ``(S, D, H, W)`` float32.
        rng: source of randomness; what is drawn from it depends on the shape of ``images`` only.

    Returns:
        float32 array of the same shape, without negative values, in arbitrary units.
    """
    count, shape = len(images), images.shape[1:]
    field = 0.12 * smooth_field(rng, count, (2, 3, 3), shape)
    field += 0.04 * smooth_field(rng, count, (5, 9, 9), shape)
    scans = images * np.exp(field)
    noise = rng.standard_normal(images.shape, dtype=np.float32)
    noise *= NOISE
    scans += noise
    gain = 300 * np.exp(rng.uniform(-0.7, 0.7, count))
    scans *= gain.astype(np.float32)[:, None, None, None]
    return np.abs(scans, out=scans)


def smooth_field(
    rng: np.random.Generator, count: int, knots: tuple[int, int, int], shape: tuple[int, int, int]
) -> np.ndarray:
    """
    Draw ``count`` smooth random fields of unit variance, ``(count, D, H, W)`` float32.

    Args:
        rng: source of randomness.
        count: number of fields.
        knots: number of independent values along each axis; more knots give finer structure.
        shape: ``(D, H, W)``.
    """
    depth, height, width = (_weights(n, size) for n, size in zip(knots, shape))
    field = rng.standard_normal((count, *knots), dtype=np.float32) @ width.T
    field = height @ field
    return (depth @ field.reshape(count, knots[0], -1)).reshape(count, *shape)


@lru_cache(maxsize=32)
def _weights(knots: int, size: int) -> np.ndarray:
    positions = (np.arange(size) + 0.5) / size * (knots - 1)
    weights = np.exp(-0.5 * ((positions[:, None] - np.arange(knots)) / 0.6) ** 2)
    return (weights / np.linalg.norm(weights, axis=1, keepdims=True)).astype(np.float32)
