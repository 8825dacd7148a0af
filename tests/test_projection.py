"""Laws of the projector: closed forms, conventions, collimation, convergence, the cache."""

from __future__ import annotations

import errno
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor
from torch.nn.functional import avg_pool2d, grid_sample

from medshift.data import projection as module
from medshift.data.projection import (
    POSE_COLUMNS,
    SOURCE_DETECTOR,
    SOURCE_ISOCENTRE,
    camera,
    level_for,
    load_projections,
    project,
    project_points,
    save_projections,
)
from medshift.data.volume import FACES, HeadVolume
from medshift.errors import DataError, ParameterError


def poses(n: int, seed: int = 0, *, fov: tuple[float, float] = (220.0, 320.0)) -> Tensor:
    """Poses (n, 6) all over the C-arm's range."""
    generator = torch.Generator().manual_seed(seed)
    low = torch.tensor([-180.0, -30.0, -15.0, -25.0, -25.0, fov[0]])
    high = torch.tensor([180.0, 30.0, 15.0, 25.0, 25.0, fov[1]])
    return low + torch.rand(n, 6, generator=generator) * (high - low)


def pose(
    azimuth: float = 0, elevation: float = 0, roll: float = 0, u: float = 0, v: float = 0, fov: float = 200
):
    return torch.tensor([[azimuth, elevation, roll, u, v, fov]], dtype=torch.float32)


def coordinates(
    shape: tuple[int, int, int], spacing: tuple[float, float, float]
) -> tuple[Tensor, Tensor, Tensor]:
    """World coordinates x, y, z (D, H, W) of the voxels' centres."""
    axes = [(torch.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing, strict=True)]
    z, y, x = torch.meshgrid(*axes, indexing="ij")
    return x, y, z


def water(
    density: Tensor, spacing: tuple[float, float, float] = (1.0, 1.0, 1.0), **kwargs: Any
) -> HeadVolume:
    return HeadVolume(torch.stack([density, torch.zeros_like(density)]), spacing, **kwargs)


def rays(views: Tensor, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Sources (N, 1, 1, 3) and unit directions (N, size, size, 3), from scipy's rotations alone."""
    view = views.double().numpy()
    rotation = Rotation.from_euler("ZXY", view[:, :3] * [1, -1, 1], degrees=True)
    right, beam, down = (rotation.apply(axis)[:, None, None] for axis in ([1, 0, 0], [0, 1, 0], [0, 0, -1]))
    shift = view[:, 3, None, None, None] * right + view[:, 4, None, None, None] * down
    pixel = ((np.arange(size) + 0.5) / size - 0.5) * view[:, 5, None]  # in the isocentre's plane
    target = pixel[:, None, :, None] * right + pixel[:, :, None, None] * down - shift
    source = -SOURCE_ISOCENTRE * beam - shift
    direction = target - source
    return source, direction / np.linalg.norm(direction, axis=-1, keepdims=True)


def box_crossings(
    views: Tensor, size: int, sides: tuple[float, float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Distances where each ray enters and leaves a centred box of ``sides`` (x, y, z); equal if it misses."""
    source, direction = rays(views, size)
    with np.errstate(divide="ignore"):
        faces = np.stack([(sign * np.array(sides) / 2 - source) / direction for sign in (-1, 1)])
    enter, leave = faces.min(0).max(-1), faces.max(0).min(-1)
    return enter, np.maximum(enter, leave)


# Line integrals


@pytest.mark.parametrize("step", [None, 7.0])
def test_a_volume_full_of_water_measures_its_own_box(step: float | None) -> None:
    volume = water(torch.ones(30, 50, 40), (3.0, 1.5, 2.0))
    views = torch.cat([poses(8), pose(), pose(90), pose(0, 90)])
    enter, leave = box_crossings(views, 24, (80.0, 75.0, 90.0))
    lines = project(volume, views, 24, step_mm=step).line_integrals
    assert leave.max() - enter.min() > 100
    np.testing.assert_allclose(lines[:, 0], leave - enter, atol=2e-3)
    assert not lines[:, 1].any()


def test_a_cube_inside_air_is_measured_to_a_tenth_of_a_millimetre() -> None:
    x, y, z = coordinates((64, 80, 64), (1.25, 1.0, 1.25))
    side = 50.0
    volume = water(
        ((x.abs() < side / 2) & (y.abs() < side / 2) & (z.abs() < side / 2)).float(), (1.25, 1.0, 1.25)
    )
    views = torch.cat([poses(12, fov=(90.0, 120.0)), pose(fov=90), pose(90, fov=90), pose(30, 20, fov=90)])
    enter, leave = box_crossings(views, 40, (side, side, side))
    source, direction = rays(views, 40)
    ends = np.stack([source + t[..., None] * direction for t in (enter, leave)])
    # Rays near an edge or along a face see the voxels' own blur; it cancels where a face is crossed well.
    from_edge = np.sort(side / 2 - np.abs(ends), axis=-1)[..., 1].min(0)
    crossed = (side / 2 - np.abs(ends)).argmin(-1)
    slope = np.stack([np.take_along_axis(np.abs(direction), c[..., None], -1)[..., 0] for c in crossed]).min(
        0
    )
    clear = (leave > enter) & (from_edge > 4) & (slope > 0.3)
    assert clear.mean() > 0.1
    assert clear.any(axis=(1, 2)).all()
    lines = project(volume, views, 40).line_integrals[:, 0].numpy()
    assert np.abs(lines - (leave - enter))[clear].max() < 0.1


def test_ellipsoids_have_their_closed_forms() -> None:
    spacing, radii, centre = (1.5, 1.0, 1.2), np.array([40.0, 50.0, 45.0]), np.array([5.0, -4.0, 3.0])
    x, y, z = coordinates((3 * 64, 3 * 116, 3 * 80), (0.5, 1 / 3, 0.4))
    square = sum(((p - c) / r) ** 2 for p, c, r in zip((x, y, z), centre, radii, strict=True))
    solid, soft = (square < 1).float(), torch.exp(-8 * square)
    density = torch.nn.functional.avg_pool3d(torch.stack([solid, soft]), 3)  # partial volumes
    views = poses(6)
    source, direction = (
        (ray - offset) / radii for ray, offset in zip(rays(views, 32), (centre, 0), strict=True)
    )
    a, b, c = (direction**2).sum(-1), (source * direction).sum(-1), (source**2).sum(-1)
    chord = 2 * np.sqrt(np.maximum(b**2 - a * (c - 1), 0)) / a
    gaussian = np.sqrt(np.pi / 8 / a) * np.exp(-8 * (c - b**2 / a))
    lines = project(HeadVolume(density, spacing), views, 32).line_integrals.numpy()
    assert np.abs(lines[:, 1] - gaussian).max() < 0.006 * gaussian.max()  # the voxels' blur takes 0.4 %
    error = (lines[:, 0] - chord)[chord > 40]  # grazing rays see the blur of the rim
    assert abs(error.mean()) < 0.05
    assert error.std() < 0.2
    assert abs(lines[:, 0].mean() / chord.mean() - 1) < 2e-3


def test_materials_stay_apart_and_integrals_are_linear() -> None:
    generator = torch.Generator().manual_seed(1)
    first, second = (torch.rand(2, 20, 24, 22, generator=generator) for _ in range(2))
    spacing, views = (4.0, 4.0, 4.0), poses(3)
    one, two, both, swapped = (
        project(HeadVolume(d, spacing), views, 16).line_integrals
        for d in (first, second, 2 * first + 0.5 * second, first.flip(0))
    )
    assert one.max() > 10
    torch.testing.assert_close(both, 2 * one + 0.5 * two, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(swapped, one.flip(1), rtol=1e-5, atol=1e-4)


def test_doubling_every_length_doubles_the_integrals(monkeypatch: pytest.MonkeyPatch) -> None:
    density = torch.rand(18, 20, 22, generator=torch.Generator().manual_seed(2))
    views = poses(3)
    before = project(water(density, (3.0, 4.0, 3.5)), views, 12).line_integrals
    monkeypatch.setattr(module, "SOURCE_ISOCENTRE", 2 * SOURCE_ISOCENTRE)
    monkeypatch.setattr(module, "SOURCE_DETECTOR", 2 * SOURCE_DETECTOR)
    doubled = views * torch.tensor([1.0, 1.0, 1.0, 2.0, 2.0, 2.0])
    after = project(water(density, (6.0, 8.0, 7.0)), doubled, 12).line_integrals
    torch.testing.assert_close(after, 2 * before, rtol=1e-4, atol=1e-3)


def test_the_midpoint_rule_is_of_second_order() -> None:
    x, y, z = coordinates((80, 80, 80), (1.0, 1.0, 1.0))
    volume = water(1 + 0.5 * torch.sin(0.09 * x + 0.06 * y - 0.05 * z + 1.0))  # not zero at the box's faces
    views = poses(4, fov=(60.0, 80.0))
    exact = project(volume, views, 12, step_mm=0.1).line_integrals
    steps = (16.0, 8.0, 4.0)
    errors = [
        (project(volume, views, 12, step_mm=s).line_integrals - exact).square().mean().sqrt() for s in steps
    ]
    slope = np.polyfit(np.log(steps), np.log([float(e) for e in errors]), 1)[0]
    assert 1.8 < slope < 2.3


def test_a_view_does_not_depend_on_its_batch_nor_on_the_chunk() -> None:
    volume = water(torch.rand(20, 24, 22, generator=torch.Generator().manual_seed(3)), (4.0, 4.0, 4.0))
    views = poses(5)
    together = project(volume, views, 16).line_integrals
    alone = torch.cat([project(volume, view[None], 16).line_integrals for view in views])
    pieces = project(volume, views, 16, chunk=301).line_integrals
    torch.testing.assert_close(alone, together, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(pieces, together, rtol=1e-5, atol=1e-4)


def test_pixels_of_another_size_see_the_same_rays() -> None:
    volume = water(torch.rand(20, 24, 22, generator=torch.Generator().manual_seed(4)), (4.0, 4.0, 4.0))
    coarse, fine = (project(volume, poses(2), size).line_integrals for size in (8, 24))
    torch.testing.assert_close(coarse, fine[..., 1::3, 1::3], rtol=1e-4, atol=1e-3)


def test_air_and_empty_batches_are_no_special_case() -> None:
    air = water(torch.zeros(4, 5, 6), cut=("inferior",))
    assert not project(air, poses(2), 8).line_integrals.any()
    assert project(air, poses(2), 8).open_field.all()
    assert project(air, poses(0), 8).line_integrals.shape == (0, 2, 8, 8)
    assert project(air, poses(2), 8).landmarks.shape == (2, 0, 2)


# Conventions


@pytest.mark.parametrize(
    ("view", "point", "side"),
    [
        (pose(), (40, 0, 0), "right"),  # AP: the patient's left at the right
        (pose(), (0, 0, 40), "top"),
        (pose(90), (0, 40, 0), "right"),  # from the patient's left: posterior at the right
        (pose(-90), (0, -40, 0), "right"),
        (pose(180), (40, 0, 0), "left"),
        (pose(180, 25), (0, 0, 40), "top"),
        (pose(0, 30), (0, -40, 0), "bottom"),  # from above, what is near the source sinks
        (pose(0, -30), (0, -40, 0), "top"),
        (pose(0, 0, 90), (0, 0, 40), "left"),  # the picture turns anticlockwise
        (pose(0, 0, 90), (40, 0, 0), "top"),
    ],
)
def test_marker_lies_where_the_convention_says(
    view: Tensor, point: tuple[float, float, float], side: str
) -> None:
    x, y, z = coordinates((52, 52, 52), (2.0, 2.0, 2.0))
    ball = torch.stack([p - c for p, c in zip((x, y, z), point, strict=True)]).norm(dim=0) < 5
    image = project(water(ball.float(), (2.0, 2.0, 2.0)), view, 20).line_integrals[0, 0]
    halves = {"left": image[:, :10], "right": image[:, 10:], "top": image[:10], "bottom": image[10:]}
    assert image.sum() > 0
    assert halves[side].sum() > 0.99 * image.sum()


def test_the_source_stands_where_the_pose_says() -> None:
    views = torch.cat([pose(), pose(90), pose(180), pose(0, 30), pose(0, 0, 0, 10, -20)])
    source = camera(views).source
    half, tall = SOURCE_ISOCENTRE / 2, SOURCE_ISOCENTRE * math.sqrt(0.75)
    expected = [(0, -810, 0), (810, 0, 0), (0, 810, 0), (0, -tall, half), (-10, -810, -20)]
    torch.testing.assert_close(source, torch.tensor(expected, dtype=torch.float32), atol=1e-3, rtol=0)
    view = camera(poses(9))
    beam = torch.linalg.cross(view.right, view.down)  # right-handed: the picture is not mirrored
    torch.testing.assert_close(view.detector, view.source + SOURCE_DETECTOR * beam, atol=1e-2, rtol=0)


def test_shift_and_magnification_of_points() -> None:
    points = torch.tensor([[20.0, 0.0, -30.0], [20.0, -90.0, -30.0], [20.0, 90.0, -30.0]])
    size, fov = 100, 200.0
    still = project_points(points, pose(fov=fov), size)[0] - (size - 1) / 2
    for scale, at in zip((1, 810 / 720, 810 / 900), still, strict=True):
        torch.testing.assert_close(at, scale * torch.tensor([10.0, 15.0]), atol=1e-3, rtol=0)
    moved = project_points(points[:1], pose(0, 0, 0, 12.0, -8.0, fov), size)[0] - (size - 1) / 2
    torch.testing.assert_close(moved[0] - still[0], torch.tensor([6.0, -4.0]), atol=1e-3, rtol=0)


def test_markers_project_where_project_points_says() -> None:
    marks = {"a": (30.0, -20.0, 25.0), "b": (-35.0, 30.0, -20.0)}
    x, y, z = coordinates((50, 56, 60), (1.6, 1.5, 1.5))
    balls = []
    for mark in marks.values():
        far = torch.stack([p - c for p, c in zip((x, y, z), mark, strict=True)]).norm(dim=0)
        balls.append(torch.sigmoid(2 * (4 - far)) * (far < 7))
    views, size = poses(8, fov=(190.0, 220.0)), 96
    volume = HeadVolume(torch.stack(balls), (1.6, 1.5, 1.5), marks)
    result = project(volume, views, size)
    weight = result.line_integrals / result.line_integrals.sum(dim=(2, 3), keepdim=True)
    pixel = torch.arange(size, dtype=torch.float32)
    centroid = torch.stack([(weight.sum(2) * pixel).sum(-1), (weight.sum(3) * pixel).sum(-1)], dim=-1)
    assert (centroid - result.landmarks).norm(dim=-1).max() < 0.3
    assert len(POSE_COLUMNS) == result.poses.shape[1]


# Resolution


def skull(seed: int = 5) -> HeadVolume:
    """A shell of bone around textured water: detail at every scale down to the voxel of 1.2 mm."""
    shape, spacing = (110, 150, 130), (1.2, 1.2, 1.2)
    x, y, z = coordinates(shape, spacing)
    far = torch.stack([x / 70, y / 84, z / 62]).norm(dim=0)
    noise = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    bone = ((far > 0.86) & (far < 0.93)).float() * (0.6 + 0.4 * noise)
    return HeadVolume(torch.stack([(far < 1) * (1 - bone) * (0.8 + 0.4 * noise), bone]), spacing)


def test_the_level_of_a_pixel_is_what_supersampling_gives() -> None:
    volume, views, size = skull(), poses(2, fov=(260.0, 260.0)), 48
    supersampled = avg_pool2d(project(volume, views, 4 * size, step_mm=1.2).line_integrals, 4)
    level = project(level_for(volume, 260.0 / size), views, size).line_integrals
    point_sampled = project(volume, views, size).line_integrals
    error, aliased = ((image - supersampled).square().mean().sqrt() for image in (level, point_sampled))
    assert level_for(volume, 260.0 / size).density.numel() < volume.density.numel() / 8
    assert error < 0.02 * supersampled.std()
    assert error < 0.6 * aliased
    torch.testing.assert_close(level.mean(dim=(2, 3)), supersampled.mean(dim=(2, 3)), rtol=5e-3, atol=0)


def test_a_level_keeps_cut_faces_and_landmarks() -> None:
    volume = water(torch.ones(20, 20, 20), landmarks={"a": (1.0, 2.0, 3.0)}, cut=("inferior",))
    level = level_for(volume, 4.0)
    assert level.cut == volume.cut and level.landmarks == volume.landmarks
    assert level.extent == pytest.approx(volume.extent)
    with pytest.raises(ParameterError):
        level_for(volume, 0.0)


# Collimation


def open_rays_through_tissue(volume: HeadVolume, face: str, views: Tensor, opened: Tensor) -> Tensor:
    """Rays (N, size, size) that are open and meet the face's plane where interpolated density exceeds 0.1."""
    axis, high = divmod(FACES.index(face), 2)
    world = 2 - axis
    sides = np.array(volume.extent[::-1])
    source, direction = rays(views, opened.shape[-1])
    plane = (1 if high else -1) * sides[world] / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        crossing = source + ((plane - source[..., world]) / direction[..., world])[..., None] * direction
    unit = torch.from_numpy(np.delete(crossing / (sides / 2), world, axis=-1)).float()  # the lower axis first
    image = volume.density.sum(0).select(axis, -1 if high else 0)
    density = grid_sample(
        image.expand(len(views), 1, -1, -1), unit, padding_mode="border", align_corners=False
    )
    return (density[:, 0] > 0.1) & (unit.abs() <= 1).all(-1) & opened[:, 0]


def stump(face: str, *, filled: bool = True) -> HeadVolume:
    """Tissue that reaches only one face of the box, in two islands on it."""
    axis, high = divmod(FACES.index(face), 2)
    density = torch.zeros(2, 40, 40, 40)
    density[0, :30, 12:30, 8:22] = 1
    density[1, :20, 5:9, 25:30] = 0.5
    if not filled:
        density[:, :4] = 0
    density = density.flip(1) if high else density
    return HeadVolume(density.movedim(1, axis + 1).contiguous(), (3.0, 4.0, 3.5), cut=(face,))


@pytest.mark.parametrize("face", FACES)
def test_no_open_ray_crosses_a_cut_face_at_tissue(face: str) -> None:
    volume, views, size = stump(face), torch.cat([poses(9, seed=6), pose(), pose(90), pose(0, 30)]), 48
    result = project(volume, views, size)
    assert not open_rays_through_tissue(volume, face, views, result.open_field).any()
    # The pixels' whole area is safe, not their centres alone.
    fine = result.open_field.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    assert not open_rays_through_tissue(volume, face, views, fine).any()
    assert open_rays_through_tissue(volume, face, views, torch.ones_like(fine)).any()
    torch.testing.assert_close(result.open_fraction, result.open_field.double().mean(dim=(1, 2, 3)).float())


def test_the_blade_is_straight_perpendicular_to_the_axis_and_no_further_in_than_needed() -> None:
    volume, views, size = stump("inferior"), poses(20, seed=7), 96
    opened = project(volume, views, size).open_field
    touched = open_rays_through_tissue(volume, "inferior", views, torch.ones_like(opened))
    view = camera(views)
    axis = torch.nn.functional.normalize(-torch.stack([view.right[:, 2], view.down[:, 2]], dim=1), dim=1)
    pixel = torch.arange(size, dtype=torch.float32)
    height = axis[:, :1, None] * pixel + axis[:, 1:, None] * pixel[:, None]
    last_open = torch.where(opened[:, 0], height, -torch.inf).amax(dim=(1, 2))
    first_closed = torch.where(opened[:, 0], torch.inf, height).amin(dim=(1, 2))
    first_touched = torch.where(touched, height, torch.inf).amin(dim=(1, 2))
    seen = torch.isfinite(first_touched)
    assert seen.sum() > 15
    assert (last_open <= first_closed + 1e-3).all()
    voxel = 4.0 * 1.25 / (220 / size)  # pixels; the outline lies up to a voxel around the tissue
    assert (first_touched - last_open)[seen].max() < 2 * voxel + 2


def test_nothing_is_closed_without_a_cut_or_without_tissue_at_it() -> None:
    whole = stump("inferior")
    uncut = HeadVolume(whole.density, whole.spacing)
    assert project(uncut, poses(3), 16).open_field.all()
    assert project(stump("inferior", filled=False), poses(3), 16).open_field.all()


def test_a_view_that_looks_through_the_cut_is_reported_not_refused() -> None:
    result = project(stump("inferior"), torch.cat([pose(0, 90, fov=60), pose(0, 0, fov=60, v=-120)]), 16)
    assert result.open_fraction[0] < 0.2
    assert result.open_fraction[1] == 0
    assert result.line_integrals.isfinite().all()


# The cache


def test_cache_returns_what_was_saved_to_half_precision(tmp_path: Path) -> None:
    volume = HeadVolume(skull().density, (1.2, 1.2, 1.2), {"a": (1.0, 2.0, 3.0)}, ("inferior",))
    result = project(level_for(volume, 8.0), poses(3), 32)
    save_projections(tmp_path / "views.safetensors", result)
    loaded = load_projections(tmp_path / "views.safetensors")
    assert loaded.line_integrals.dtype == torch.float16
    error = (loaded.line_integrals.float() - result.line_integrals).abs()
    assert (error <= 2**-11 * result.line_integrals + 1e-6).all()
    assert error.max() < 0.07
    for name in ("open_field", "landmarks", "poses"):
        assert torch.equal(getattr(loaded, name), getattr(result, name))
    assert os.listdir(tmp_path) == ["views.safetensors"]


@pytest.mark.parametrize("damage", ["cut", "flipped", "text", "missing"])
def test_a_damaged_cache_is_one_clear_error(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "views.safetensors"
    save_projections(path, project(water(torch.ones(8, 8, 8), (9.0, 9.0, 9.0)), poses(2), 16))
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "text":
        path.write_text("not a cache")
    else:
        content[-100] ^= 1
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"views\.safetensors.*(render|project)"):
        load_projections(path)


def test_a_full_disk_leaves_the_old_cache_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "views.safetensors"
    result = project(water(torch.ones(8, 8, 8), (9.0, 9.0, 9.0)), poses(2), 16)
    save_projections(path, result)
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match="No space left"):
        save_projections(path, result)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["views.safetensors"]
    with pytest.raises(DataError, match="nowhere"):
        save_projections(tmp_path / "nowhere" / "views.safetensors", result)


# Arguments


@pytest.mark.parametrize(
    "views",
    [
        torch.zeros(6),
        torch.zeros(2, 5),
        torch.zeros(1, 6, dtype=torch.int64),
        pose(fov=0),
        pose(fov=-1),
        pose(math.nan),
    ],
)
def test_bad_poses_are_refused(views: Tensor) -> None:
    with pytest.raises(ParameterError, match="[Pp]oses"):
        project(water(torch.ones(2, 2, 2)), views, 4)


@pytest.mark.parametrize("arguments", [{"size": 0}, {"step_mm": 0.0}, {"step_mm": math.nan}, {"chunk": 0}])
def test_bad_sizes_and_steps_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ParameterError, match="positive"):
        project(water(torch.ones(2, 2, 2)), pose(), **{"size": 4, **arguments})
