"""Laws of head volumes: attenuation and mass are kept, warps are bijections that carry landmarks."""

import math

import pytest
import torch
from torch import Tensor

from medshift.data.volume import BONE, WATER, HeadVolume, from_hounsfield, resample, warp
from medshift.errors import DataError, ParameterError


def _places(size: int, spacing: float) -> tuple[Tensor, Tensor, Tensor]:
    """World coordinates z, y, x [mm] of a cube's voxels."""
    axis = (torch.arange(size) - (size - 1) / 2) * spacing
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    return z, y, x


def _skull(size: int = 48, spacing: float = 3.5) -> HeadVolume:
    """A spherical shell of bone, 58-66 mm, around a brain, with skin to 70 mm, cut below."""
    z, y, x = _places(size, spacing)
    radius = (x**2 + y**2 + (z + 40) ** 2).sqrt()
    whole, outer, inner = ((edge - radius).div(spacing).add(0.5).clamp(0, 1) for edge in (70.0, 66.0, 58.0))
    bone = outer - inner
    density, vertex = torch.stack([whole - bone, bone]), {"vertex": (0.0, 0.0, 26.0)}
    return HeadVolume(density, (spacing,) * 3, vertex, ("inferior",), "phantom", "shell")


def test_hounsfield_attenuation_is_reproduced() -> None:
    hu = torch.linspace(-1000, 3000, 4001).reshape(1, 1, -1)
    water, bone = from_hounsfield(hu, (1.0, 1.0, 1.0)).density
    torch.testing.assert_close(water + 2.56 * bone, 1 + hu / 1000, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("join", [0.0, 1560.0])
def test_hounsfield_is_continuous_at_its_joins(join: float) -> None:
    density = from_hounsfield(torch.tensor([[[join - 0.01, join + 0.01]]]), (1.0, 1.0, 1.0)).density
    assert float((density[..., 0] - density[..., 1]).abs().max()) < 1e-4


def test_hounsfield_below_air_is_air() -> None:
    assert float(from_hounsfield(torch.full((2, 2, 2), -3024.0), (1.0, 1.0, 1.0)).density.abs().max()) == 0


@pytest.mark.parametrize(
    ("hu", "spacing"),
    [
        (torch.zeros(3, 3), (1.0, 1.0, 1.0)),
        (torch.full((2, 2, 2), math.nan), (1.0, 1.0, 1.0)),
        (torch.full((2, 2, 2), math.inf), (1.0, 1.0, 1.0)),
        (torch.zeros(2, 2, 2), (1.0, 0.0, 1.0)),
        (torch.zeros(2, 2, 2), (1.0, math.nan, 1.0)),
    ],
)
def test_bad_ct_is_refused_by_name(hu: Tensor, spacing: tuple[float, float, float]) -> None:
    with pytest.raises(DataError, match="scan7"):
        from_hounsfield(hu, spacing, name="scan7")


def test_bad_volume_is_refused() -> None:
    good = torch.zeros(2, 2, 2, 2)
    with pytest.raises(DataError, match="cut faces"):
        HeadVolume(good, (1.0, 1.0, 1.0), cut=("below",))
    with pytest.raises(DataError, match="landmark"):
        HeadVolume(good, (1.0, 1.0, 1.0), {"nasion": (0.0, math.nan, 0.0)})
    with pytest.raises(DataError, match="densities"):
        HeadVolume(good - 0.1, (1.0, 1.0, 1.0))


def test_world_frame() -> None:
    volume = HeadVolume(torch.zeros(2, 4, 6, 8), (3.0, 2.0, 1.0))
    corner = volume.index_to_world(torch.zeros(3))
    torch.testing.assert_close(corner, torch.tensor([-3.5, -5.0, -4.5]))
    points = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(volume.index_to_world(volume.world_to_index(points)), points)
    assert volume.extent == (12.0, 12.0, 8.0)


def test_resample_keeps_mass_box_and_means() -> None:
    volume = _skull()
    coarse = resample(volume, (5.0, 8.0, 4.1))
    assert coarse.shape == (34, 21, 41)
    assert coarse.extent == pytest.approx(volume.extent, rel=1e-6)
    cell = [math.prod(v.spacing) for v in (volume, coarse)]
    mass, kept = volume.density.sum((1, 2, 3)) * cell[0], coarse.density.sum((1, 2, 3)) * cell[1]
    torch.testing.assert_close(kept, mass, rtol=1e-5, atol=0)
    ramp = HeadVolume(torch.stack([_places(48, 1.0)[0] + 30] * 2), (1.0, 1.0, 1.0))
    place = _places(24, 2.0)[0][:, 0, 0]
    torch.testing.assert_close(resample(ramp, 2.0).density[0, :, 3, 3], place + 30, rtol=1e-5, atol=1e-4)


def test_resample_does_not_alias() -> None:
    stripes = torch.zeros(2, 48, 48, 48)
    stripes[:, ::2] = 1
    coarse = resample(HeadVolume(stripes, (1.0, 1.0, 1.0)), (2.0, 1.0, 1.0)).density
    torch.testing.assert_close(coarse, torch.full_like(coarse, 0.5))


def test_resample_leaves_a_coarse_axis_and_refuses_nonsense() -> None:
    volume = _skull()
    assert torch.equal(resample(volume, 1.0).density, volume.density)
    with pytest.raises(ParameterError):
        resample(volume, 0.0)


@pytest.mark.parametrize("seed", range(4))
def test_warp_is_a_bijection_of_the_box(seed: int) -> None:
    """Warped coordinates, read off as densities, have a positive Jacobian and keep faces in their planes."""
    size, spacing = 48, 3.5
    q = [p + 100 for p in _places(size, spacing)]
    box = (spacing,) * 3
    first = warp(HeadVolume(torch.stack([q[0], q[1]]), box), seed, thickness=0).density
    second = warp(HeadVolume(torch.stack([q[2], q[2]]), box), seed, thickness=0).density
    source = torch.stack([first[0], first[1], second[0]])
    inner = source[:, 1:-1, 1:-1, 1:-1]  # at the border the nearest voxel's centre is repeated
    slopes = torch.stack(torch.gradient(inner, spacing=spacing, dim=(1, 2, 3)), dim=-1).movedim(0, -2)
    determinant = torch.linalg.det(slopes)
    assert 0.2 < float(determinant.min()) < float(determinant.max()) < 3
    assert float((source - torch.stack(q)).norm(dim=0).max()) > 4
    for axis in range(3):
        face = source[axis].movedim(axis, 0)
        assert float((face[0] - face[0].mean()).abs().max()) < 0.5 * spacing
        assert float((face[0].mean() - q[axis].min()).abs()) < 0.5 * spacing


@pytest.mark.parametrize("seed", range(4))
def test_warp_carries_landmarks(seed: int) -> None:
    z, y, x = _places(64, 2.5)
    landmarks = {"a": (30.0, -25.0, 20.0), "b": (-41.0, 10.0, -38.0), "c": (5.0, 52.0, 45.0)}
    for label, (a, b, c) in landmarks.items():
        ball = (7.0 - ((x - a) ** 2 + (y - b) ** 2 + (z - c) ** 2).sqrt()).div(2.5).add(0.5).clamp(0, 1)
        warped = warp(HeadVolume(torch.stack([ball, ball]), (2.5,) * 3, landmarks), seed)
        weight = warped.density[BONE] / warped.density[BONE].sum()
        index = torch.stack([weight.movedim(k, 0).flatten(1).sum(1) @ torch.arange(64.0) for k in range(3)])
        centre = warped.index_to_world(index)
        assert float((centre - torch.tensor(warped.landmarks[label])).norm()) < 1


def test_warp_is_reproducible_and_seeds_differ() -> None:
    volume = _skull()
    one, same, other = warp(volume, 1), warp(volume, 1), warp(volume, 2)
    assert torch.equal(one.density, same.density)
    assert one.landmarks == same.landmarks and one.spacing == same.spacing
    assert float((one.density - other.density).abs().mean()) > 0.01 and one.spacing != other.spacing
    assert one.name != other.name and one.cut == ("inferior",)


def test_warp_by_nothing_is_the_identity() -> None:
    volume = _skull()
    same = warp(volume, 5, affine=0, displacement_mm=0, thickness=0)
    torch.testing.assert_close(same.density, volume.density, atol=1e-4, rtol=0)
    assert same.landmarks["vertex"] == pytest.approx(volume.landmarks["vertex"], abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_warp_keeps_air_tissue_and_the_cut(seed: int) -> None:
    volume = _skull()
    warped = warp(volume, seed)
    mass = float(warped.density.sum()) * math.prod(warped.spacing)
    assert 0.75 < mass / (float(volume.density.sum()) * math.prod(volume.spacing)) < 1.3
    new = warped.density
    for face in (new[:, -1], new[:, :, 0], new[:, :, -1], new[..., 0], new[..., -1]):
        assert float(face.max()) == 0
    bottom = [float((v.density[:, 0].sum(0) > 0.5).sum()) for v in (volume, warped)]
    assert bottom[0] > 500 and bottom[1] == pytest.approx(bottom[0], rel=0.15)
    assert float(warped.density.sum(0).max()) < 1.001 and float(warped.density.min()) >= 0


def test_thickness_moves_bone_and_leaves_no_hole() -> None:
    """Tables that move by at most t/2 change the shell's volume by at most area * t, up and down."""
    volume = _skull(64, 2.5)
    inside = volume.density.sum(0)
    area, cell = 2 * math.pi * 62 * (62 + 40), 2.5**3  # the box ends 40 mm below the sphere's centre
    changes = []
    for seed in range(6):
        warped = warp(volume, seed, affine=0, displacement_mm=0, thickness=1.5)
        changes.append(float((warped.density[BONE] - volume.density[BONE]).sum()) * cell / area)
        total = warped.density.sum(0)
        assert float(total[inside > 0.999].min()) > 0.999  # no hole where there was tissue
        assert float((warped.density[WATER]).min()) >= 0
    assert max(changes) > 0.2 and min(changes) < -0.2 and max(map(abs, changes)) < 1.5


def test_warp_refuses_what_would_fold() -> None:
    volume = _skull()
    with pytest.raises(ParameterError, match="fold"):
        warp(volume, 0, displacement_mm=60)
    with pytest.raises(ParameterError, match="thickness"):
        warp(volume, 0, thickness=-1)
