"""Find the head in a CT: remove what lies outside it (holder, cushion, table), name the faces that cut it."""

from collections.abc import Callable

import numpy as np
from scipy import ndimage

from medshift.data.volume import FACES
from medshift.errors import DataError

TISSUE_HU = -300.0  # between skin and the foam of a cushion (-900), near half-way from air to skin
AIR_HU = -1000.0
RIM_MM = 2.0  # kept around the skin for its partial volumes
CLOSING_MM = 5.0
MIN_HEAD_CM3 = 200.0
MIN_CUT_MM2 = 100.0
CROSS = ndimage.generate_binary_structure(3, 1)
IN_PLANE = CROSS & (np.arange(3) == 1)[:, None, None]  # slices may be thick


def isolate_head(
    hu: np.ndarray, spacing: tuple[float, float, float], *, name: str = "CT"
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Set everything outside the head's outline to air.

    Args:
        hu: (D, H, W) float32 Hounsfield units in the frame of `medshift.data.volume`.
        spacing: Voxel size (z, y, x) [mm].
        name: Names the CT in errors.

    Returns:
        A copy of `hu` without what is not head, and the faces of the box that cut through tissue.

    Raises:
        DataError: Nothing in the CT is as large as a head.
    """
    outline = head_outline(hu, spacing, name=name)
    return np.where(outline, hu, np.float32(AIR_HU)), cut_faces(outline & (hu > TISSUE_HU), spacing)


def head_outline(hu: np.ndarray, spacing: tuple[float, float, float], *, name: str = "CT") -> np.ndarray:
    """(D, H, W) bool: the head with its cavities and a rim of `RIM_MM`; what a thin bridge joins to it is out.

    Raises:
        DataError: The largest object above `TISSUE_HU` is smaller than `MIN_HEAD_CM3`.
    """
    tissue = hu > TISSUE_HU
    core = _largest(_padded(ndimage.binary_opening, tissue, CROSS, 1))
    volume_cm3 = core.sum() * float(np.prod(spacing)) / 1000
    if volume_cm3 < MIN_HEAD_CM3:
        raise DataError(
            f"{name}: the largest object above {TISSUE_HU:.0f} HU has {volume_cm3:.0f} cm3; expected a head "
            f"of at least {MIN_HEAD_CM3:.0f} cm3, so check the CT's spacing and units."
        )
    core = ndimage.binary_dilation(core, CROSS, iterations=2, mask=tissue)  # gives back the ears' thin edges
    pixel = min(spacing[1:])
    outline = _padded(ndimage.binary_closing, core, IN_PLANE, max(1, round(CLOSING_MM / pixel)))
    for index, section in enumerate(outline):
        outline[index] = ndimage.binary_fill_holes(section)
    outline = ndimage.binary_dilation(outline, CROSS)
    return ndimage.binary_dilation(outline, IN_PLANE, iterations=max(1, round(RIM_MM / pixel) - 1))


def cut_faces(tissue: np.ndarray, spacing: tuple[float, float, float]) -> tuple[str, ...]:
    """Faces of the box on which tissue, (D, H, W) bool, covers more than `MIN_CUT_MM2`."""
    cut = []
    for index, face in enumerate(FACES):
        axis, end = index // 2, -(index % 2)
        area = float(np.prod(spacing)) / spacing[axis] * tissue.take(end, axis).sum()
        if area > MIN_CUT_MM2:
            cut.append(face)
    return tuple(cut)


def _largest(mask: np.ndarray) -> np.ndarray:
    labels, count = ndimage.label(mask)
    if count == 0:
        return np.zeros_like(mask)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return labels == sizes.argmax()


def _padded(
    operation: Callable[..., np.ndarray], mask: np.ndarray, structure: np.ndarray, iterations: int
) -> np.ndarray:
    """Morphology that sees tissue go on behind a face that cuts it, where scipy would see air and erode."""
    wide = operation(np.pad(mask, iterations, mode="edge"), structure, iterations=iterations)
    inner = slice(iterations, -iterations)
    return wide[inner, inner, inner]
