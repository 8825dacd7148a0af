"""Heads as two density maps (water, cortical bone) on a voxel grid, and new heads made from one by warps.

World frame [mm], as in DICOM (LPS): x to the patient's left, y to posterior, z to superior, the origin at
the centre of the volume. Tensors index (z, y, x), an increasing index is an increasing coordinate, and voxel
k has its centre at (k - (n - 1)/2) * spacing.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from medshift.data.deformation import SLAB, Deformation, cell_basis, move_surface, spline, support, uniform
from medshift.errors import DataError, ParameterError

WATER, BONE = 0, 1
BONE_HU = 1560.0  # cortical bone (ICRU-44) at 70 keV; its attenuation is 2.56 times that of water
FACES = ("inferior", "superior", "anterior", "posterior", "right", "left")  # low, high of z; of y; of x


@dataclass(frozen=True, eq=False)
class HeadVolume:
    """A head as densities of two basis materials, with what the projector must know about it.

    Attributes:
        density: (2, D, H, W) float32, water and cortical bone relative to pure water (1 g/cm3) and to ICRU-44
            cortical bone (1.92 g/cm3); air is (0, 0).
        spacing: Voxel size (z, y, x) [mm].
        landmarks: Name to world position (x, y, z) [mm].
        cut: Faces of the box, of `FACES`, that cut through tissue.
        source: Where the head comes from: "cranium", "phantom" or "user".
        name: Names this head among others.

    Raises:
        DataError: Values are negative or not finite; a shape, spacing, landmark or face is not as above.
    """

    density: Tensor
    spacing: tuple[float, float, float]
    landmarks: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    cut: tuple[str, ...] = ()
    source: str = "user"
    name: str = "head"

    def __post_init__(self) -> None:
        density, spacing = self.density, self.spacing
        if density.ndim != 4 or density.shape[0] != 2 or density.numel() == 0:
            raise DataError(f"{self.name}: density has shape {tuple(density.shape)}; expected (2, D, H, W).")
        if density.dtype != torch.float32:
            raise DataError(f"{self.name}: density is {density.dtype}; expected float32, so convert it.")
        _check_spacing(spacing, self.name)
        low, high = (float(v) for v in torch.aminmax(density))
        if not (low >= 0 and high < float("inf")):  # also false for NaN
            raise DataError(f"{self.name}: densities span {low} to {high}; expected finite values >= 0.")
        for label, point in self.landmarks.items():
            if len(point) != 3 or not np.isfinite(point).all():
                raise DataError(f"{self.name}: landmark {label!r} is {point}; expected finite (x, y, z).")
        if unknown := set(self.cut) - set(FACES):
            raise DataError(f"{self.name}: unknown cut faces {sorted(unknown)}; expected some of {FACES}.")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels (D, H, W) along z, y, x."""
        depth, height, width = self.density.shape[1:]
        return depth, height, width

    @property
    def extent(self) -> tuple[float, float, float]:
        """Size of the box (z, y, x) [mm], outer face to outer face."""
        (d, h, w), (z, y, x) = self.shape, self.spacing
        return d * z, h * y, w * x

    def world_to_index(self, points: Tensor) -> Tensor:
        """World points (..., 3) as (x, y, z) [mm] to fractional voxel indices (..., 3) as (z, y, x)."""
        spacing, centre = self._frame(points)
        return points.flip(-1) / spacing + centre

    def index_to_world(self, index: Tensor) -> Tensor:
        """Fractional voxel indices (..., 3) as (z, y, x) to world points (..., 3) as (x, y, z) [mm]."""
        spacing, centre = self._frame(index)
        return ((index - centre) * spacing).flip(-1)

    def _frame(self, like: Tensor) -> tuple[Tensor, Tensor]:
        return like.new_tensor(self.spacing), (like.new_tensor(self.shape) - 1) / 2


def _check_spacing(spacing: Sequence[float], name: str) -> None:
    if len(spacing) != 3 or not all(0 < s < float("inf") for s in spacing):
        raise DataError(f"{name}: spacing is {tuple(spacing)}; expected three positive lengths [mm].")


def from_hounsfield(
    hu: Tensor | np.ndarray,
    spacing: tuple[float, float, float],
    *,
    landmarks: Mapping[str, tuple[float, float, float]] | None = None,
    cut: Sequence[str] = (),
    source: str = "user",
    name: str = "head",
) -> HeadVolume:
    """Split a CT into water and cortical bone so that the two together have the CT's attenuation at 70 keV.

    Up to 0 HU a voxel is thin water, up to 1560 HU a mixture of water and bone by volume, above, denser bone.
    mu = mu_water * (water + 2.56 * bone) returns the CT's value exactly and is continuous at both joins.

    Args:
        hu: (D, H, W) Hounsfield units in the frame of this module; below -1000 counts as air.
        spacing: Voxel size (z, y, x) [mm].
        landmarks: World positions (x, y, z) [mm].
        cut: Faces that cut through tissue.
        source: Where the head comes from.
        name: Names the head, also in errors.

    Raises:
        DataError: The values are not finite, not 3-D, or the spacing is not positive.
    """
    values = torch.as_tensor(hu).to(torch.float32)
    if values.ndim != 3 or values.numel() == 0:
        raise DataError(f"{name}: the CT has shape {tuple(values.shape)}; expected a 3-D volume (D, H, W).")
    if not bool(torch.isfinite(values).all()):
        raise DataError(f"{name}: the CT holds values that are not finite; set them, outside to -1000 HU.")
    _check_spacing(spacing, name)
    mixed = values.clamp(0, BONE_HU) / BONE_HU
    water = torch.where(values <= 0, (1 + values / 1000).clamp(min=0), 1 - mixed)
    bone = torch.where(values > BONE_HU, (1 + values / 1000) / (1 + BONE_HU / 1000), mixed)
    z, y, x = (float(s) for s in spacing)
    return HeadVolume(torch.stack([water, bone]), (z, y, x), dict(landmarks or {}), tuple(cut), source, name)


def resample(volume: HeadVolume, spacing_mm: float | Sequence[float]) -> HeadVolume:
    """Average a volume onto a coarser grid that fills the same box: mass and cut faces stay where they were.

    A coarse voxel is the exact mean of what it covers, a box filter of its own size. The spacing is the one
    nearest to `spacing_mm` that divides the box; an axis that is already as coarse stays.

    Args:
        volume: The head.
        spacing_mm: Wanted voxel size [mm], one length or (z, y, x).

    Raises:
        ParameterError: A wanted size is not positive.
    """
    wanted = [spacing_mm] * 3 if isinstance(spacing_mm, int | float) else list(spacing_mm)
    if len(wanted) != 3 or not all(0 < s < float("inf") for s in wanted):
        raise ParameterError(f"spacing_mm is {spacing_mm}; expected one positive length or three (z, y, x).")
    density, spacing = volume.density, list(volume.spacing)
    for axis, (size, extent) in enumerate(zip(volume.shape, volume.extent, strict=True)):
        coarse = max(1, round(extent / wanted[axis]))
        if coarse < size:
            density = torch.tensordot(density, _overlap(size, coarse).to(density), dims=([1], [1]))
            spacing[axis] = extent / coarse
        else:
            density = density.movedim(1, -1)
    z, y, x = spacing
    return replace(volume, density=density.contiguous(), spacing=(z, y, x))


def _overlap(fine: int, coarse: int) -> Tensor:
    """(coarse, fine): the share of each coarse cell that each fine one covers, both dividing one length."""
    edges = torch.arange(coarse + 1, dtype=torch.float64) * fine / coarse
    low, high = edges[:-1, None], edges[1:, None]
    cells = torch.arange(fine, dtype=torch.float64)
    covered = (torch.minimum(high, cells + 1) - torch.maximum(low, cells)).clamp(min=0)
    return covered * coarse / fine


def warp(
    volume: HeadVolume,
    seed: int,
    *,
    affine: float = 0.07,
    displacement_mm: float = 6.0,
    thickness: float = 1.5,
) -> HeadVolume:
    """Make another head of this one: other proportions, another shape, a skull of other thickness.

    Tissue from q comes to lie at p with p + u(p) = q, u a cubic B-spline whose normal component vanishes on
    the box's faces: a bijection of the box, so a cut stays at its face and nothing is drawn in from outside.
    Anisotropic scaling is carried by the voxel size, hence exactly.

    Args:
        volume: The head.
        seed: Names the new head; same seed, same head, bit for bit.
        affine: Largest relative change of a side; shears reach a third of it.
        displacement_mm: Largest length of the displacement [mm], before scaling.
        thickness: Largest change of the skull's thickness [mm]; half of it falls to each table.

    Returns:
        The new head; landmarks move with the tissue (not with the thickness), `cut` faces stay.

    Raises:
        ParameterError: An amount is negative or not finite, or the displacement would fold the head.
    """
    for label, amount, limit in (
        ("affine", affine, 0.5),
        ("displacement_mm", displacement_mm, float("inf")),
        ("thickness", thickness, float("inf")),
    ):
        if not 0 <= amount < limit:
            raise ParameterError(f"{label} is {amount}; expected at least 0 and less than {limit}.")
    generator = torch.Generator().manual_seed(seed)
    scale = 1 + affine * uniform((3,), generator)
    deformation = Deformation.random(volume.extent, generator, shear=affine / 3, largest_mm=displacement_mm)
    knots = (*deformation.knots.shape[:3], 1)
    table_mm = thickness / 4 * (uniform((1,), generator) + uniform(knots, generator))
    density = deformation.pull(_move_tables(volume, table_mm))
    z, y, x = (spacing * float(factor) for spacing, factor in zip(volume.spacing, scale, strict=True))
    landmarks = {}
    for label, (right, back, up) in volume.landmarks.items():
        moved = deformation.push(torch.tensor([up, back, right], dtype=torch.float64)) * scale
        landmarks[label] = (float(moved[2]), float(moved[1]), float(moved[0]))
    name = f"{volume.name}-warp{seed}"
    return replace(volume, density=density, spacing=(z, y, x), landmarks=landmarks, name=name)


def _move_tables(volume: HeadVolume, table_mm: Tensor) -> Tensor:
    """Move the surface of bone outward by a smooth field (knots in mm), inward where it is negative.

    Water fills what bone leaves and yields where bone comes. No voxel loses more than half of its bone in a
    step: thin walls thin, but stay.
    """
    density, spacing = volume.density.clone(), volume.spacing
    box = support(density[BONE] > 0, [2, 2, 2])
    steps = math.ceil(float(table_mm.abs().max()) / min(spacing))
    basis = [cell_basis(n, k - 3)[b] for n, k, b in zip(volume.shape, table_mm.shape, box, strict=False)]
    for _ in range(steps):
        padded = pad(density[BONE][box][None], (1,) * 6, mode="replicate")[0]
        for start in range(0, len(basis[0]), SLAB):
            step_mm = spline(table_mm / steps, [basis[0][start : start + SLAB], *basis[1:]], density)[..., 0]
            low, depth = box[0].start + start, len(step_mm)
            water, bone = density[:, low : low + depth, box[1], box[2]]
            moved = move_surface(padded[start : start + depth + 2], step_mm, spacing)
            moved = torch.maximum(moved, bone / 2)
            water += bone.clamp(max=1) - moved.clamp(max=1)
            water.clamp_(min=0)
            bone.copy_(moved)
    return density
