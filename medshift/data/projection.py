"""C-arm views of a head: line integrals [mm] of water and cortical bone along the rays of a cone beam.

    L_m(ray) = integral of density_m dl   over the part of the ray, from source to detector, inside the volume

in mm of material m, as densities are relative to pure material. Density is trilinear between voxel centres
and constant in the outer half of a border voxel: a head that the box cuts ends at its face, and mass is
neither added nor lost. The midpoint rule takes ceil(length / step) equal steps on each ray, so a ray's value
does not depend on what it is rendered with.

World frame [mm], as in `medshift.data.volume`: x to the patient's left, y posterior, z superior. The source
of azimuth a and elevation e is at SOURCE_ISOCENTRE * (sin a cos e, -cos a cos e, sin e). Images are as the
source sees them: at roll 0 the top row is superior, and for a = 0 (AP) the patient's left is at the right.
Roll turns the detector clockwise, hence the picture anticlockwise: the C-arm's rotation is
R_z(a) R_x(-e) R_y(roll), intrinsic. Shifts move the picture right and down by that many mm at the isocentre.
"""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn.functional import grid_sample

from medshift.data.volume import FACES, HeadVolume, resample
from medshift.errors import DataError, ParameterError

POSE_COLUMNS = ("azimuth", "elevation", "roll", "shift_u", "shift_v", "fov")  # deg, deg, deg, mm, mm, mm

# Philips Azurion 1.2, Instructions for Use 4522 203 52421, p. 312: the set-up with an FD20 detector [mm].
SOURCE_ISOCENTRE = 810.0
SOURCE_DETECTOR = 1195.0

TISSUE = 0.1  # density above which a cut face counts as tissue


@dataclass(frozen=True, eq=False)
class Camera:
    """Where the C-arm stands in N views, in the world frame."""

    source: Tensor  # (N, 3) focal spot [mm]
    detector: Tensor  # (N, 3) centre of the field on the detector [mm]
    right: Tensor  # (N, 3) unit vector along growing columns
    down: Tensor  # (N, 3) unit vector along growing rows
    side: Tensor  # (N,) side of the square field on the detector [mm]


@dataclass(frozen=True, eq=False)
class Projection:
    """N views of one head.

    Attributes:
        line_integrals: (N, 2, size, size) of water and cortical bone [mm], also behind the blade.
        open_field: (N, 1, size, size) bool, False behind the collimator's blade.
        landmarks: (N, L, 2) pixels (column, row), see `project_points`; the order is the volume's.
        poses: (N, 6), columns `POSE_COLUMNS`.
    """

    line_integrals: Tensor
    open_field: Tensor
    landmarks: Tensor
    poses: Tensor

    @property
    def open_fraction(self) -> Tensor:
        """(N,) share of the field that the blade leaves open."""
        return self.open_field.float().mean(dim=(1, 2, 3))


def camera(poses: Tensor) -> Camera:
    """Place source and detector for poses (N, 6).

    Raises:
        ParameterError: The poses are not (N, 6), not finite, or a field of view is not positive.
    """
    if poses.ndim != 2 or poses.shape[1] != len(POSE_COLUMNS) or not poses.is_floating_point():
        raise ParameterError(f"Poses are {poses.dtype} {tuple(poses.shape)}; expected floats (N, 6).")
    if not bool(torch.isfinite(poses).all()) or not bool((poses[:, 5] > 0).all()):
        raise ParameterError("Poses must be finite, with a field of view above 0 mm; correct the table.")
    a, e, r = torch.deg2rad(poses[:, :3]).unbind(dim=1)
    outward = torch.stack([a.sin() * e.cos(), -a.cos() * e.cos(), e.sin()], dim=1)
    level = torch.stack([a.cos(), a.sin(), torch.zeros_like(a)], dim=1)
    plumb = torch.linalg.cross(level, outward)
    cos, sin = r.cos()[:, None], r.sin()[:, None]
    right, down = cos * level + sin * plumb, cos * plumb - sin * level
    # The patient moves by the shift; in the patient's frame the C-arm moves the other way.
    offset = -poses[:, 3:4] * right - poses[:, 4:5] * down
    return Camera(
        source=offset + SOURCE_ISOCENTRE * outward,
        detector=offset - (SOURCE_DETECTOR - SOURCE_ISOCENTRE) * outward,
        right=right,
        down=down,
        side=poses[:, 5] * SOURCE_DETECTOR / SOURCE_ISOCENTRE,
    )


def project_points(points: Tensor, poses: Tensor, size: int) -> Tensor:
    """Image world points (P, 3) [mm] in views of size x size pixels.

    Returns:
        (N, P, 2) pixels (column, row): (0, 0) is the centre of the top left pixel, (-1/2, -1/2) its corner.
    """
    view = camera(poses)
    relative = points.to(poses)[None] - view.source[:, None]  # (N, P, 3)
    depth = relative @ (view.detector - view.source)[:, :, None] / SOURCE_DETECTOR
    in_plane = relative @ torch.stack([view.right, view.down], dim=2) * SOURCE_DETECTOR / depth
    return in_plane * (size / view.side)[:, None, None] + (size - 1) / 2


def level_for(volume: HeadVolume, pixel_mm: float) -> HeadVolume:
    """The volume averaged for pixels of ``pixel_mm`` at the isocentre: no aliasing, and faster.

    A pixel averages over its width p, a kernel of variance p^2/12. Voxels of width v, which are means and are
    interpolated linearly, have v^2/12 + v^2/6: the same at v = p/sqrt(3). An axis as coarse as that stays.

    Raises:
        ParameterError: ``pixel_mm`` is not positive.
    """
    return resample(volume, pixel_mm / 3**0.5)


def project(
    volume: HeadVolume, poses: Tensor, size: int, *, step_mm: float | None = None, chunk: int = 2**19
) -> Projection:
    """Line integrals of both materials for every view, on the volume's device.

    Rays are infinitely thin. For pixels wider than a voxel, pass ``level_for(volume, fov / size)``.

    Args:
        volume: The head.
        poses: (N, 6), columns `POSE_COLUMNS`.
        size: Pixels along a side of the square field.
        step_mm: Longest step along a ray [mm]; by default half the smallest side of a voxel.
        chunk: Sample points evaluated at once; bounds the memory (about 40 bytes each).

    Raises:
        ParameterError: A pose is invalid, or ``size``, ``step_mm`` or ``chunk`` is not positive.
    """
    step = min(volume.spacing) / 2 if step_mm is None else step_mm
    if size < 1 or chunk < 1 or not 0 < step < float("inf"):
        raise ParameterError(f"size {size}, step_mm {step} and chunk {chunk} must be positive.")
    poses, (density, centre, half) = poses.to(volume.density), _support(volume)
    lines = volume.density.new_empty(len(poses), 2, size, size)
    at_once = max(1, chunk // size**2)
    for i in range(0, len(poses), at_once):
        source, direction = _rays(poses[i : i + at_once], size)
        length = direction.norm(dim=1)
        integral = _integrate(density, (source - centre) / half, direction / half, length, step, chunk)
        lines[i : i + at_once] = integral.unflatten(0, (-1, size, size)).movedim(3, 1)
    marks = poses.new_tensor(list(volume.landmarks.values())).reshape(-1, 3)
    return Projection(lines, _open_field(volume, poses, size), project_points(marks, poses, size), poses)


def _support(volume: HeadVolume) -> tuple[Tensor, Tensor, Tensor]:
    """The densities in the box of their non-zero voxels, its centre and its half sides (x, y, z) [mm]."""
    low, high = [], []
    for axis, n in enumerate(volume.shape):
        others = [d for d in range(4) if d != axis + 1]
        filled = volume.density.amax(dim=others).nonzero()
        # One voxel of air is kept: interpolation fades out into it.
        low.append(max(int(filled[0]) - 1, 0) if len(filled) else 0)
        high.append(min(int(filled[-1]) + 2, n) if len(filled) else n)
    box = volume.density[:, low[0] : high[0], low[1] : high[1], low[2] : high[2]].contiguous()
    spacing, start, end = (box.new_tensor(triple) for triple in (volume.spacing, low, high))
    centre = (start + end - box.new_tensor(volume.shape)) / 2 * spacing
    return box, centre.flip(0), ((end - start) / 2 * spacing).flip(0)


def _rays(poses: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Source and source-to-detector vector of every pixel (R, 3), R = N * size^2, rows before columns."""
    view = camera(poses)
    pixel = (torch.arange(size).to(poses) - (size - 1) / 2) / size
    offset = pixel * view.side[:, None]
    across = offset[:, None, :, None] * view.right[:, None, None]
    along = offset[:, :, None, None] * view.down[:, None, None]
    direction = (view.detector - view.source)[:, None, None] + across + along
    return view.source[:, None, None].expand_as(direction).reshape(-1, 3), direction.reshape(-1, 3)


def _integrate(
    density: Tensor, origin: Tensor, direction: Tensor, length: Tensor, step: float, chunk: int
) -> Tensor:
    """Integrals (R, 2) [mm] over t in [0, 1] of origin + t direction, (R, 3) where the box is [-1, 1]^3.

    `length` (R,) is that of the whole ray, in mm like `step`.
    """
    slope = torch.where(direction.abs() < 1e-9, 1e-9, direction)
    faces = torch.stack([(-1 - origin) / slope, (1 - origin) / slope])
    enter = faces.amin(0).amax(1).clamp(min=0)
    inside = (faces.amax(0).amin(1).clamp(max=1) - enter).clamp(min=0)
    steps = (inside * length / step).ceil()
    result = density.new_zeros(len(origin), 2)
    # Rays of like length share a piece, so that few points are wasted on shorter ones.
    order = steps.argsort(descending=True, stable=True)[: int((steps > 0).sum())]
    while len(order):
        most = int(steps[order[0]])
        rays, order = order.split([n := min(len(order), max(1, chunk // most)), len(order) - n])
        k = torch.arange(most, device=order.device)
        dt = (inside[rays] / steps[rays])[:, None]
        t = enter[rays, None] + (k + 0.5) * dt
        points = torch.addcmul(origin[rays, None], t[..., None], direction[rays, None])  # (n, most, 3)
        # A batch of one ray each, because the CPU's kernel runs in parallel over the batch alone.
        box, grid = density.expand(n, -1, -1, -1, -1), points[:, None, None]
        sampled = grid_sample(box, grid, padding_mode="border", align_corners=False)
        weight = (k < steps[rays, None]) * (dt * length[rays, None])
        result[rays] = torch.einsum("nmk,nk->nm", sampled[:, :, 0, 0], weight)
    return result


def _open_field(volume: HeadVolume, poses: Tensor, size: int) -> Tensor:
    """(N, 1, size, size): False behind one straight blade for each cut face.

    Part of the tissue is missing from a ray that crosses a cut face where there is tissue. Such rays are the
    image of the face's tissue. The blade's edge is perpendicular to the face's normal as the detector sees it
    (for an inferior cut: to the head's axis) and spares no pixel that such a ray touches.
    """
    view = camera(poses)
    pixel = torch.arange(size).to(poses)
    field = poses.new_ones(len(poses), 1, size, size, dtype=torch.bool)
    for face in volume.cut:
        axis, high = divmod(FACES.index(face), 2)
        outline = _tissue_outline(volume, axis, bool(high))
        if not len(outline):
            continue
        basis = torch.stack([view.right, view.down], dim=2)[:, 2 - axis] * (1.0 if high else -1.0)  # (N, 2)
        norm = basis.norm(dim=1, keepdim=True)
        # Seen along its normal, no direction is the face's own: the blade then comes from below.
        edge = torch.where(norm > 1e-3, basis / norm, basis.new_tensor([0.0, 1.0]))
        first = (project_points(outline, poses, size) @ edge[:, :, None]).amin(dim=(1, 2))  # (N,)
        centre = edge[:, :1, None] * pixel + edge[:, 1:, None] * pixel[:, None]  # (N, size, size)
        reach = edge.abs().sum(dim=1) / 2  # of a pixel's furthest corner
        field &= (centre < (first - reach)[:, None, None])[:, None]
    return field


def _tissue_outline(volume: HeadVolume, axis: int, high: bool) -> Tensor:
    """Points (P, 3) [mm] whose convex hull holds all tissue of a face; `axis` in the order (z, y, x)."""
    tissue = volume.density.sum(0).select(axis, -1 if high else 0) > TISSUE
    rows = tissue.any(dim=1).nonzero()[:, 0]
    columns = tissue[rows].int()
    first, last = columns.argmax(1), tissue.shape[1] - 1 - columns.flip(1).argmax(1)
    # Interpolation carries tissue up to a voxel beyond the centres of the outermost ones.
    ends = [torch.stack([rows + i, end], dim=1) for end in (first - 1, last + 1) for i in (-1, 1)]
    plane = torch.cat(ends).to(volume.density)
    index = torch.cat([plane[:, :axis], plane.new_full((len(plane), 1), 0.0), plane[:, axis:]], dim=1)
    index[:, axis] = volume.shape[axis] - 0.5 if high else -0.5
    limit = index.new_tensor(volume.shape) - 0.5
    return volume.index_to_world(torch.minimum(index, limit).clamp(min=-0.5))


def save_projections(path: str | os.PathLike[str], projection: Projection) -> None:
    """Write a projection as safetensors, its line integrals as float16; the file appears whole or not at all.

    Raises:
        DataError: The file cannot be written.
    """
    target = Path(path)
    tensors = {k: v.detach().cpu().contiguous() for k, v in vars(projection).items()}
    tensors["line_integrals"] = tensors["line_integrals"].half()
    content = save(tensors, metadata={"poses": ",".join(POSE_COLUMNS), "crc32": str(_checksum(tensors))})
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise DataError(f"{target}: cannot be written ({error.strerror}); make room for it.") from error


def load_projections(path: str | os.PathLike[str]) -> Projection:
    """Read what `save_projections` wrote; line integrals stay float16.

    Raises:
        DataError: The file is missing, damaged or not a file of projections.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in Projection.__dataclass_fields__}
            checksum = (file.metadata() or {}).get("crc32")
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: no readable projections ({error}). Delete it, render again.") from error
    if checksum != str(_checksum(tensors)):
        raise DataError(f"{path}: damaged, its checksum differs. Delete it, render again.")
    return Projection(**tensors)


def _checksum(tensors: dict[str, Tensor]) -> int:
    """CRC-32 of all values, which the format itself does not keep."""
    total = 0
    for name in sorted(tensors):
        total = zlib.crc32(tensors[name].contiguous().numpy().data, total)
    return total
