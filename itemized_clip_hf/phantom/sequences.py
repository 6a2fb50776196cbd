"""The four MRI sequences: how bright each tissue is, and how a clean image becomes a noisy scan."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from .anatomy import TISSUES

SEQUENCES = ("T1", "T2", "FLAIR", "SWI")
"""Names of the scans of every study."""

TISSUE_INTENSITY = {
    "T1": {
        "fat": 1.0,
        "muscle": 0.42,
        "bone": 0.06,
        "marrow": 0.60,
        "csf": 0.16,
        "grey": 0.50,
        "white": 0.76,
        "deep_grey": 0.60,
        "calcification": 0.50,
    },
    "T2": {
        "fat": 0.70,
        "muscle": 0.24,
        "bone": 0.05,
        "marrow": 0.36,
        "csf": 1.00,
        "grey": 0.58,
        "white": 0.40,
        "deep_grey": 0.46,
        "calcification": 0.52,
    },
    "FLAIR": {
        "fat": 0.62,
        "muscle": 0.30,
        "bone": 0.05,
        "marrow": 0.34,
        "csf": 0.10,
        "grey": 0.60,
        "white": 0.45,
        "deep_grey": 0.54,
        "calcification": 0.56,
    },
    "SWI": {
        "fat": 0.34,
        "muscle": 0.38,
        "bone": 0.06,
        "marrow": 0.20,
        "csf": 0.76,
        "grey": 0.62,
        "white": 0.54,
        "deep_grey": 0.44,
        "calcification": 0.16,
    },
}
"""Mean intensity of each tissue before the gain."""

NOISE = {"T1": 0.030, "T2": 0.032, "FLAIR": 0.042, "SWI": 0.036}
"""Standard deviation of the noise in the real and in the imaginary part, on the scale of `TISSUE_INTENSITY`."""

BIAS = {"T1": 0.14, "T2": 0.11, "FLAIR": 0.16, "SWI": 0.13}
"""Standard deviation of the logarithm of the receiver coil's uneven sensitivity."""

TEXTURE = {"T1": 0.035, "T2": 0.045, "FLAIR": 0.05, "SWI": 0.06}
"""Standard deviation of the relative differences within a tissue."""

_CONTRAST = np.array([[table[tissue] for tissue in TISSUES] for table in TISSUE_INTENSITY.values()], dtype=np.float32)


def render_tissues(fractions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """
    Turn tissue fractions ``(T, D, H, W)`` into clean images ``(len(SEQUENCES), D, H, W)``, float32.

    Contrasts vary a little from study to study.
    """
    contrast = _CONTRAST * rng.uniform(0.94, 1.06, _CONTRAST.shape).astype(np.float32)
    return (contrast @ fractions.reshape(len(fractions), -1)).reshape(len(contrast), *fractions.shape[1:])


def acquire(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """
    Add each sequence's own texture, bias field, Rician noise and gain.

    Args:
        images: clean images, ``(S, D, H, W)`` float32.
        rng: source of randomness; what is drawn from it depends on the shape of ``images`` only.

    Returns:
        magnitudes, a float32 array of the same shape in arbitrary units.
    """
    count, shape = len(images), images.shape[1:]
    field = _by_sequence(BIAS) * smooth_field(rng, count, (2, 3, 3), shape)
    field += _by_sequence(TEXTURE) * smooth_field(rng, count, (9, 17, 17), shape)
    real = images * np.exp(field, out=field)
    noise = rng.standard_normal(images.shape, dtype=np.float32)
    noise *= _by_sequence(NOISE)
    real += noise
    # The imaginary part has the noise of the opposite voxel: half the draws, and each voxel's magnitude is Rician.
    imaginary = noise[:, ::-1, ::-1, ::-1]
    gain = 300 * np.exp(rng.uniform(-0.7, 0.7, count))
    scans = np.square(real, out=real)
    scans += np.square(imaginary, out=imaginary)
    np.sqrt(scans, out=scans)
    scans *= gain.astype(np.float32)[:, None, None, None]
    return scans


def _by_sequence(table: dict[str, float]) -> np.ndarray:
    """One value for each sequence, ``(len(SEQUENCES), 1, 1, 1)`` float32."""
    return np.array([table[name] for name in SEQUENCES], dtype=np.float32)[:, None, None, None]


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
