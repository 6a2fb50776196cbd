"""The folds of the cerebrum: sulci filled with fluid and the grey ribbon along them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .geometry import Ellipsoid

RIBBON = 3.6
"""Thickness of the cortex, mm."""
SULCUS = 1.1
"""Half the width of a sulcus at the surface of the brain, mm."""
DEEPEST = 24.0
"""How far below the surface of the brain the folds reach at most, mm."""
WAVES = 4
"""Plane waves whose sum is zero in the sulci."""


@dataclass(frozen=True)
class Cortex:
    """
    Folds of one brain: the surfaces where a sum of plane waves, the same along each line from the centre, is zero.

    Args:
        waves: 1/mm on a brain of average size, ``(WAVES, 3)`` in the order x, y, z.
        phases: radians, ``(WAVES,)``.
        wander: mm by which sulci leave the straight way down, and the phases of it in radians.
    """

    waves: np.ndarray
    phases: np.ndarray
    wander: tuple[float, float, float]

    def fractions(self, brain: Ellipsoid, points: np.ndarray, voxel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """
        Work out how much of the brain is fluid and grey matter.

        Args:
            brain: the surface of the brain, centred on the head's origin.
            points: voxel centres in head coordinates (mm), ``(3, D, H, W)``.
            voxel: mm along x, y, z.

        Returns:
            fraction of fluid in the sulci and of grey matter, ``(D, H, W)`` float32 each; what is left is white matter.
        """
        csf, grey = np.zeros((2, *points.shape[1:]), dtype=np.float32)
        axes = np.array(brain.semi_axes, dtype=np.float32)
        radius = np.sqrt(((points / axes[:, None, None, None]) ** 2).sum(axis=0))
        depth = (1 - radius) * axes.mean()
        folded = (depth < DEEPEST) & (depth > -float(voxel.max()))
        depth, points = depth[folded], points[:, folded]
        amount, phase_x, phase_y = (np.float32(value) for value in self.wander)
        on_surface = points / radius[folded]
        on_surface[0] += amount * np.sin(depth * np.float32(0.25) + on_surface[1] * np.float32(0.09) + phase_x)
        on_surface[1] += amount * np.sin(depth * np.float32(0.25) + on_surface[0] * np.float32(0.09) + phase_y)
        angles = self.waves.astype(np.float32) @ on_surface
        angles += self.phases.astype(np.float32)[:, None]
        field = np.sin(angles).sum(axis=0)
        # How far the field's zero is, in mm, from its typical slope; voxels blur the edges.
        slope = np.float32(np.sqrt((self.waves**2).sum() / 2))
        distance = np.abs(field) / slope
        blur = np.float32(np.sqrt((voxel[:2] ** 2).mean()))
        ends = np.clip((DEEPEST * (0.65 + 0.1 * angles[0] % 0.35) - depth) / 4, 0, 1)
        gap = ends * np.clip((SULCUS - distance) / blur + 0.5, 0, 1) * np.minimum(1, 2 * SULCUS / blur)
        along = ends * np.clip((SULCUS + RIBBON - distance) / blur + 0.5, 0, 1)
        ribbon = np.clip((RIBBON - depth) / blur + 0.5, 0, 1)
        csf[folded] = gap
        grey[folded] = np.maximum(along, ribbon) * (1 - gap)
        return csf, grey


def sample_cortex(rng: np.random.Generator) -> Cortex:
    """Draw the folds of a brain."""
    direction = rng.uniform(0, np.pi) + np.arange(WAVES) * np.pi / WAVES + rng.uniform(-0.3, 0.3, WAVES)
    frequency = 2 * np.pi / rng.uniform(22, 34, WAVES)
    upwards = 2 * np.pi / rng.uniform(50, 90, WAVES) * rng.choice([-1, 1], WAVES)
    waves = np.stack([np.cos(direction) * frequency, np.sin(direction) * frequency, upwards], axis=1)
    wander = (float(rng.uniform(2, 4)), *rng.uniform(0, 2 * np.pi, 2).tolist())
    return Cortex(waves, rng.uniform(0, 2 * np.pi, WAVES), wander)
