"""A volume that lies askew in the scanner: axes at right angles, none along the scanner's."""

import numpy as np


def make_oblique(spacing=(5.0, 2.0, 2.0), origin=(10.0, -40.0, 7.0)) -> np.ndarray:
    """(4, 4), depth towards the head, rows backwards, columns to the left, turned by 0.2 about z and 0.1 about x."""
    upright = np.array([[0, 0, -1], [0, -1, 0], [1, 0, 0]], float)
    (c, s), (d, t) = (np.cos(0.2), np.sin(0.2)), (np.cos(0.1), np.sin(0.1))
    turned = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, d, -t], [0, t, d]]) @ upright
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turned * spacing, origin
    return affine
