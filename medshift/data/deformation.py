"""Smooth bijections of a box, and surfaces that move along their normals: what `volume.warp` is made of.

The displacement u(p) [mm] is a tensor-product cubic B-spline with knots about `KNOT_MM` apart. Tensors and
vectors run (z, y, x) here. Fields are evaluated slab by slab as matrix products.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from medshift.errors import ParameterError

KNOT_MM = 45.0  # anatomy is deformed on the scale of a cranial bone
SLAB = 8  # slices worked on at a time, so that what they need stays in the cache
STEEPEST = 0.9  # |grad u| below 1 makes the Jacobian I + grad u positive and the iteration of `push` converge


@dataclass(frozen=True, eq=False)
class Deformation:
    """Tissue of the point q = p + u(p) comes to lie at p; u has no component normal to the box on its faces.

    Attributes:
        knots: (nz + 3, ny + 3, nx + 3, 3) float64 coefficients of u [mm], for n intervals a side.
        extent: Sides of the box (z, y, x) [mm]; the origin is at its centre.
    """

    knots: Tensor
    extent: tuple[float, float, float]

    @classmethod
    def random(
        cls,
        extent: tuple[float, float, float],
        generator: torch.Generator,
        *,
        shear: float,
        largest_mm: float,
    ) -> "Deformation":
        """Draw a displacement whose longest is `largest_mm`, and add shears of up to `shear`.

        Raises:
            ParameterError: The displacement is so steep that it could fold the box.
        """
        sides = torch.tensor(extent, dtype=torch.float64)
        intervals = [max(3, round(side / KNOT_MM)) for side in extent]
        probe = [_weights(torch.linspace(0, 1, 4 * n + 1, dtype=torch.float64), n) for n in intervals]
        knots = _seal(uniform((*(n + 3 for n in intervals), 3), generator))
        knots = knots * (largest_mm / spline(knots, probe).norm(dim=-1).max())
        shears = shear * uniform((3, 3), generator).fill_diagonal_(0)
        knots = knots + _seal((_knot_places(intervals) - 0.5) * sides @ shears.T)
        steps = [side / (4 * n) for side, n in zip(extent, intervals, strict=True)]
        slope = torch.stack(torch.gradient(spline(knots, probe), spacing=steps, dim=(0, 1, 2)), dim=-1)
        if (steepest := float(slope.abs().sum(-1).max())) > STEEPEST:
            raise ParameterError(
                f"A displacement of {largest_mm} mm strains a box of {tuple(round(e) for e in extent)} mm by "
                f"{steepest:.2f} and could fold it; the limit is {STEEPEST}, so ask for less."
            )
        return cls(knots, extent)

    def pull(self, density: Tensor) -> Tensor:
        """Deform a density (C, D, H, W) that fills the box: its value at q = p + u(p) for every voxel p."""
        size, intervals = density.shape[1:], [n - 3 for n in self.knots.shape[:3]]
        # B-splines are non-negative and sum to 1, so no displacement exceeds the largest knot.
        reach = [float(self.knots[..., a].abs().max()) * size[a] / self.extent[a] for a in range(3)]
        box = support(density.amax(dim=0) > 0, [int(r) + 2 for r in reach])
        side = torch.tensor(self.extent, dtype=torch.float64)
        target = (2 * (_knot_places(intervals) + self.knots / side) - 1).flip(-1)  # x, y, z as in grid_sample
        basis = [cell_basis(points, n)[part] for points, n, part in zip(size, intervals, box, strict=True)]
        moved = torch.zeros_like(density)
        for start in range(0, len(basis[0]), SLAB):
            grid = spline(target, [basis[0][start : start + SLAB], *basis[1:]], density)
            slab = grid_sample(density[None], grid[None], padding_mode="border", align_corners=False)[0]
            low = box[0].start + start
            moved[:, low : low + slab.shape[1], box[1], box[2]] = slab
        return moved

    def push(self, point: Tensor) -> Tensor:
        """Where tissue of a point q (3,) [mm] goes: solve p + u(p) = q by fixed point, a contraction."""
        side = torch.tensor(self.extent, dtype=torch.float64)
        place, error = point, float("inf")
        while error > 1e-6:
            unit = (place / side + 0.5).clamp(0, 1)
            weights = [_weights(unit[a : a + 1], self.knots.shape[a] - 3) for a in range(3)]
            moved = point - spline(self.knots, weights).flatten()
            error, place = float((moved - place).abs().max()), moved
        return place


def uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Independent draws from [-1, 1), float64."""
    return 2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1


def cell_basis(points: int, intervals: int) -> Tensor:
    """Cubic B-splines (points, intervals + 3) at the centres of `points` equal cells of a side."""
    return _weights((torch.arange(points, dtype=torch.float64) + 0.5) / points, intervals)


def spline(knots: Tensor, basis: Sequence[Tensor], like: Tensor | None = None) -> Tensor:
    """Knots (nz, ny, nx, C) on the grid of three bases (points, n): (Z, Y, X, C), typed as `like`."""
    if like is not None:
        knots, basis = knots.to(like), [b.to(like) for b in basis]
    along_z = torch.tensordot(basis[0], knots, dims=1).flatten(2)
    along_zy = (basis[1] @ along_z).flatten(0, 1)
    # One product with basis ⊗ 1_C leaves the components last, as grid_sample wants them.
    channels = knots.shape[-1]
    same = torch.eye(channels).to(knots)[:, None]
    last = (basis[2].T[:, None, :, None] * same).flatten(2).flatten(0, 1)
    return (along_zy @ last).reshape(len(basis[0]), len(basis[1]), len(basis[2]), -1)


def support(present: Tensor, margin: Sequence[int]) -> tuple[slice, slice, slice]:
    """The box around a (D, H, W) mask, grown by a margin [voxels] and clipped to the grid."""
    box = []
    for axis in range(3):
        where = present.movedim(axis, 0).flatten(1).any(dim=1).nonzero().flatten()
        low, high = (int(where[0]), int(where[-1])) if len(where) else (0, 0)
        box.append(slice(max(0, low - margin[axis]), min(present.shape[axis], high + 1 + margin[axis])))
    return box[0], box[1], box[2]


def move_surface(padded: Tensor, step_mm: Tensor, spacing: Sequence[float]) -> Tensor:
    """One upwind step of b_t = s |grad b|: bone grows by s, or shrinks where s is negative.

    Differences are taken on the side from which the surface comes; no voxel passes its neighbours' values.

    Args:
        padded: (k + 2, h + 2, w + 2) densities.
        step_mm: (k, h, w) normal displacement s of the surface [mm], at most about a voxel.
        spacing: Voxel size (z, y, x) [mm].

    Returns:
        (k, h, w) densities.
    """
    centre, sign = padded[1:-1, 1:-1, 1:-1], step_mm.sign()
    squared, limit = torch.zeros_like(step_mm), torch.zeros_like(step_mm)
    for axis, side in enumerate(spacing):
        inner = [slice(1, -1)] * 3
        inner[axis] = slice(0, -2)
        below = (padded[tuple(inner)] - centre).mul_(sign)
        inner[axis] = slice(2, None)
        rise = (padded[tuple(inner)] - centre).mul_(sign)
        torch.maximum(rise, below, out=rise).clamp_(min=0)
        torch.maximum(limit, rise, out=limit)
        squared.addcmul_(rise, rise, value=side**-2)
    change = torch.minimum(squared.sqrt_().mul_(step_mm.abs()), limit)
    return centre + change.mul_(sign)


def _knot_places(intervals: Sequence[int]) -> Tensor:
    """Positions of the knots (nz, ny, nx, 3) in [0, 1] of the sides; as coefficients, the identity."""
    axes = [torch.arange(-1, n + 2, dtype=torch.float64) / n for n in intervals]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)


def _seal(knots: Tensor) -> Tensor:
    """Mirror the normal component with changed sign beyond each face, so that it vanishes there."""
    knots = knots.clone()
    for axis in range(3):
        normal = knots[..., axis].movedim(axis, 0)
        normal[1], normal[-2] = 0, 0
        normal[0], normal[-1] = -normal[2], -normal[-3]
    return knots


def _weights(place: Tensor, intervals: int) -> Tensor:
    """Weights (..., intervals + 3) of the knots -1 ... intervals + 1 at `place` (...) in [0, 1]."""
    knots = torch.arange(-1, intervals + 2, dtype=place.dtype)
    offset = (place[..., None] * intervals - knots).abs()
    near = 2 / 3 - offset**2 + offset**3 / 2
    return torch.where(offset < 1, near, (2 - offset).clamp(min=0) ** 3 / 6)
