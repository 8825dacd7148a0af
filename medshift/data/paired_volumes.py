"""Two MR volumes of one head as pairs of axial slices on one grid.

The second volume is brought onto the grid of the first through world coordinates: with A the affine that takes voxel
indices to millimetres, the value at voxel i of the first is that of the second at A_second^-1 A_first i, interpolated
linearly. Both are first put into the order of axes next to RAS, so the third axis runs from inferior to superior
however a file stores it. Where the second does not reach, its lowest value stands (air). Nothing is registered: head
motion between the two scans stays.

Intensities have no unit in MR. Every volume is mapped on its own, from its lowest value and 99.5th percentile to
[-1, 1], and clipped.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from medshift.data.scan import check_size
from medshift.errors import DataError

__all__ = ["MrVolume", "axial_pairs", "middle_slices", "read_mr", "resampled_slice"]

PERCENTILE = 99.5
UNITS_MM = {"meter": 1000.0, "micron": 0.001}


@dataclass(frozen=True, eq=False)
class MrVolume:
    """An MR volume.

    Attributes:
        values: (X, Y, Z) float32 in [-1, 1]; the axes are those next to right, anterior and superior.
        affine: (4, 4) from voxel indices to world coordinates [mm], RAS.
        path: Names the volume in errors.
    """

    values: np.ndarray
    affine: np.ndarray
    path: Path

    @property
    def spacing(self) -> np.ndarray:
        """Voxel size (3,) [mm]."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)


def read_mr(path: str | Path) -> MrVolume:
    """Read a 3-D NIfTI file; needs nibabel.

    Raises:
        DataError: nibabel is missing; the file is missing, damaged or not one 3-D volume, has no spacing or an unknown
            orientation (neither qform nor sform), or holds one value alone or values that are not finite.
    """
    path = Path(path)
    try:
        import nibabel
    except ImportError as error:
        raise DataError(f'{path}: NIfTI needs nibabel; run: pip install "medshift[medical]".') from error
    try:
        image: Any = nibabel.load(path)
        header = image.header
        if header.get_data_dtype().kind not in "iuf":
            raise DataError(f"{path}: voxels are {header.get_data_dtype()}; expected one number each.")
        shape = _three_sizes(image.shape, path)
        affine = _checked_affine(nibabel, image, path)
        canonical = nibabel.as_closest_canonical(type(image)(image.dataobj, affine, header))
        values = canonical.get_fdata(dtype=np.float32, caching="unchanged")
    except DataError:
        raise
    except Exception as error:  # nibabel lets through whatever numpy, zlib or struct raise
        raise DataError(f"{path}: cannot be read as NIfTI ({error}); convert or copy it again.") from error
    return MrVolume(_scaled(values.reshape(values.shape[: len(shape)]), path), np.asarray(canonical.affine), path)


def resampled_slice(moving: MrVolume, grid: MrVolume, index: int) -> np.ndarray:
    """The values (X, Y) of `moving` at the voxels of the axial slice `index` of `grid`."""
    to_moving = np.linalg.inv(moving.affine) @ grid.affine
    x, y = np.indices(grid.values.shape[:2], dtype=float)
    points = np.stack([x, y, np.full_like(x, index), np.ones_like(x)])
    where = np.tensordot(to_moving[:3], points, axes=1)
    # "grid-constant" also interpolates towards the outside, so rounding cannot blank a voxel on the very border.
    return ndimage.map_coordinates(moving.values, where, order=1, mode="grid-constant", cval=-1.0)


def middle_slices(count: int, share: float) -> range:
    """The middle `share` of `count` slices, at least one."""
    kept = max(1, round(share * count))
    return range((count - kept) // 2, (count - kept) // 2 + kept)


def axial_pairs(
    fixed: MrVolume, moving: MrVolume, share: float
) -> Iterator[tuple[int, np.ndarray, np.ndarray, tuple[float, float]]]:
    """The middle `share` of the axial slices of `fixed`, each with `moving` on its grid.

    Yields:
        The slice's index from inferior, both pictures (H, W) in [-1, 1], and their pixel size (down, across) [mm].
        Pictures are in the radiological convention: anterior on top, the patient's right on the left.

    Raises:
        DataError: The middle of one lies outside of the other.
    """
    middle = np.append((np.array(fixed.values.shape) - 1) / 2, 1.0)
    inside = (np.linalg.inv(moving.affine) @ fixed.affine @ middle)[:3]
    if (inside < -0.5).any() or (inside > np.array(moving.values.shape) - 0.5).any():
        raise DataError(
            f"'{fixed.path}' and '{moving.path}' lie apart: the middle of the first is outside of the second. Take "
            "two volumes of one session whose headers share one frame."
        )
    across, down = (float(s) for s in fixed.spacing[:2])
    for k in middle_slices(fixed.values.shape[2], share):
        pictures = fixed.values[:, :, k], resampled_slice(moving, fixed, k)
        first, second = (np.ascontiguousarray(picture[::-1, ::-1].T) for picture in pictures)
        yield k, first, second, (down, across)


def _three_sizes(shape: tuple[int, ...], path: Path) -> tuple[int, ...]:
    """The three sizes of an image, whose further axes must be of length 1."""
    if len(shape) < 3 or any(n != 1 for n in shape[3:]) or min(shape) < 1:
        raise DataError(f"{path}: the image is {len(shape)}-D of shape {shape}; expected one 3-D volume.")
    check_size(shape, path)
    return shape[:3]


def _checked_affine(nibabel: Any, image: Any, path: Path) -> np.ndarray:
    """From voxel indices to world coordinates [mm], (4, 4)."""
    header = image.header
    if not (int(header["sform_code"]) > 0 or int(header["qform_code"]) > 0):
        raise DataError(
            f"{path}: unknown orientation: neither qform nor sform is set, so left and right cannot be told; convert "
            "it again, e.g. by dcm2niix."
        )
    with nibabel.openers.ImageOpener(str(path)) as file:  # `load` has put 1 mm where the file says 0
        stored = type(header)(file.read(header.template_dtype.itemsize), check=False)
    zooms = np.asarray(stored["pixdim"][1:4], dtype=float)
    affine = np.array(image.affine, dtype=float)
    affine[:3] *= UNITS_MM.get(header.get_xyzt_units()[0], 1.0)
    volume = abs(np.linalg.det(affine[:3, :3])) if np.isfinite(affine).all() else 0.0
    if not ((zooms > 0).all() and volume > 0):
        raise DataError(f"{path}: the header has no voxel spacing (pixdim {zooms.tolist()}); convert it again.")
    return affine


def _scaled(values: np.ndarray, path: Path) -> np.ndarray:
    if not np.isfinite(values).all():
        raise DataError(f"{path}: holds NaN or infinite values; mend or remove it.")
    low, high = float(values.min()), float(np.percentile(values, PERCENTILE))
    if not high > low:
        raise DataError(f"{path}: {PERCENTILE} % of the voxels hold one value ({low:g}); expected a picture.")
    return np.clip(2 * (values - low) / (high - low) - 1, -1, 1).astype(np.float32)
