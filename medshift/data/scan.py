"""A CT in Hounsfield units, brought into the world frame of `medshift.data.volume` from any order of axes."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

import numpy as np

from medshift.errors import DataError

MAX_VOXELS = 2**28
SPACING_MM = (0.05, 20.0)
AIR_HU = -500.0


@dataclass(frozen=True, eq=False)
class Scan:
    """A CT in the world frame.

    Attributes:
        hu: (D, H, W) float32 Hounsfield units; z to superior, y to posterior, x to the patient's left.
        spacing: Voxel size (z, y, x) [mm].
    """

    hu: np.ndarray
    spacing: tuple[float, float, float]


def place(values: np.ndarray, spacing: Sequence[float], axes: np.ndarray, path: Path) -> Scan:
    """Reorder and flip an array so that its axes become (z, y, x) of the world frame; nothing is interpolated.

    Args:
        values: 3-D array of Hounsfield units.
        spacing: Voxel size [mm] per axis of `values`.
        axes: (3, 3); row a is the unit vector (x, y, z), in LPS, along which index a of `values` increases.
        path: Names the file in errors.

    Raises:
        DataError: Spacing or size is implausible, the axes are oblique, or values are not finite.
    """
    if not all(np.isfinite(s) and SPACING_MM[0] <= s <= SPACING_MM[1] for s in spacing):
        raise DataError(
            f"{path}: the voxel spacing is {tuple(float(s) for s in spacing)} mm; expected from "
            f"{SPACING_MM[0]} to {SPACING_MM[1]} mm per axis, so repair the file's spacing."
        )
    check_size(values.shape, path)
    if not np.abs(axes @ axes.T - np.eye(3)).max() < 1e-2:  # also for NaN
        raise DataError(f"{path}: the axes are not at right angles (tilted gantry?); resample, e.g. by dcm2niix.")
    order = max(permutations(range(3)), key=lambda p: sum(abs(axes[p[w], w]) for w in range(3)))
    if min(abs(axes[order[w], w]) for w in range(3)) < 0.75:
        raise DataError(f"{path}: the axes are turned by more than 40 degrees; resample it to axial slices.")
    x, y, z = order
    flips = tuple(axis for axis, (a, w) in enumerate(((z, 2), (y, 1), (x, 0))) if axes[a, w] < 0)
    hu = np.ascontiguousarray(np.flip(values.transpose(z, y, x), flips), dtype=np.float32)
    if not np.isfinite(hu).all():
        raise DataError(f"{path}: the CT holds values that are not finite; replace them, for air by -1000 HU.")
    return Scan(hu, (float(spacing[z]), float(spacing[y]), float(spacing[x])))


def check_size(shape: Sequence[int], path: Path) -> None:
    """Refuse a shape that would fill the memory before anything is allocated for it."""
    if int(np.prod(shape, dtype=object)) > MAX_VOXELS:
        raise DataError(f"{path}: {tuple(shape)} voxels; expected at most {MAX_VOXELS}, so crop it to the head.")


def check_hounsfield(scan: Scan, path: Path) -> None:
    """Refuse what cannot be in Hounsfield units: a head CT always holds air, raw counts and MR no such "
    "value."""
    if scan.hu.min() > AIR_HU:
        raise DataError(
            f"{path}: the lowest value is {scan.hu.min():.0f}; expected Hounsfield units, in which air is "
            "-1000. Export the CT with its rescale slope and intercept."
        )
