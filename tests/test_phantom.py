"""Laws of the procedural head: landmarks lie on what they name, the skull is closed, a seed is an anatomy."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from medshift.data.phantom import bone_mask, phantom
from medshift.data.volume import HeadVolume
from medshift.errors import ParameterError

SPACING = 3.0
ON_BONE = ("nasion", "glabella", "inion", "bregma", "lambda", "vertex", "opisthocranion", "pogonion",
           "gonion_left", "gonion_right", "zygion_left", "zygion_right", "mastoid_left", "basion",
           "orbitale_left", "orbitale_right")  # fmt: skip


@pytest.fixture(scope="module")
def heads() -> list[HeadVolume]:
    return [phantom(seed, spacing_mm=SPACING) for seed in (0, 1, 7)]


@pytest.fixture(scope="module")
def fine() -> HeadVolume:
    return phantom(1, spacing_mm=1.5)


def sample(volume: HeadVolume, points: Tensor) -> Tensor:
    """Densities (2, P) at world points (P, 3) [mm]."""
    half = torch.tensor(volume.extent).flip(0) / 2
    grid = (points.float() / half)[None, None, None]
    return grid_sample(volume.density[None], grid, align_corners=False)[0, :, 0, 0]


def mass(volume: HeadVolume) -> Tensor:
    """Volumes [ml] of water and cortical bone."""
    return volume.density.double().sum((1, 2, 3)) * math.prod(volume.spacing) / 1000


def around(point: tuple[float, float, float], radius: float) -> Tensor:
    """Points (P, 3) of a ball."""
    step = torch.arange(-radius, radius + 0.1, 0.5)
    ball = torch.cartesian_prod(step, step, step)
    return torch.tensor(point) + ball[ball.norm(dim=1) <= radius]


def test_is_a_plausible_head(heads: list[HeadVolume]) -> None:
    for head in heads:
        water, bone = mass(head).tolist()
        assert head.source == "phantom" and head.cut == ("inferior",) and head.density.dtype == torch.float32
        assert 3000 < water < 4800 and 300 < bone < 700
        assert float(head.density.min()) >= 0 and float(head.density[0].max()) < 1.3
        assert 1.0 < float(head.density[1].max()) <= 1.51  # enamel is denser than cortical bone


def test_only_the_neck_is_cut() -> None:
    for seed in range(30, 36):
        head = phantom(seed, spacing_mm=4)
        total = head.density.sum(0)
        assert float(total[0].max()) > 0.9
        for face in (total[-1], total[:, 0], total[:, -1], total[:, :, 0], total[:, :, -1]):
            assert float(face.max()) == 0


def test_surface_landmarks_lie_on_bone(fine: HeadVolume) -> None:
    for name in ON_BONE:
        bone = sample(fine, around(fine.landmarks[name], 2.0))[1]
        assert float(bone.max()) > 0.3, name
        outside = sample(fine, around(fine.landmarks[name], 4.0))[1]
        assert float(outside.min()) < 0.15, name


def test_vertex_is_the_top_of_the_skull(heads: list[HeadVolume], fine: HeadVolume) -> None:
    for head in (*heads, fine):
        x, y, z = head.landmarks["vertex"]
        heights = torch.arange(z - 30, z + 12, 0.1)
        bone = sample(head, torch.stack([torch.full_like(heights, x), torch.full_like(heights, y), heights], 1))[1]
        assert abs(float(heights[(bone > bone.max() / 2).nonzero()[-1]]) - z) < 2
        layer = int(bone_mask(head).any(2).any(1).nonzero()[-1])
        top = (layer - (head.shape[0] - 1) / 2) * head.spacing[0]
        assert abs(top - z) < 2 + head.spacing[0] / 2


def test_porion_is_the_roof_of_an_air_canal_in_dense_bone(fine: HeadVolume) -> None:
    for side in ("left", "right"):
        x, y, z = fine.landmarks[f"porion_{side}"]
        water, bone = sample(fine, torch.tensor([[x, y, z - 3.3]]))[:, 0]
        assert float(water + bone) < 0.3
        assert float(sample(fine, around((x, y, z + 2.5), 1.5))[1].max()) > 0.5


def test_orbits_hold_soft_tissue_and_sella_lies_over_bone(fine: HeadVolume) -> None:
    for name in ("orbit_left", "orbit_right"):
        water, bone = sample(fine, around(fine.landmarks[name], 8.0))
        assert float(bone.max()) < 0.05 and 0.9 < float(water.min()) < float(water.max()) < 1.15
    x, y, z = fine.landmarks["sella"]
    assert float(sample(fine, torch.tensor([[x, y, z]]))[1]) < 0.3
    assert float(sample(fine, torch.tensor([[x, y, z - float(d)] for d in range(4, 9)]))[1].max()) > 0.3


def test_landmarks_are_where_an_anatomist_expects_them(heads: list[HeadVolume]) -> None:
    for head in heads:
        at = {name: torch.tensor(point) for name, point in head.landmarks.items()}
        assert len(at) >= 14
        assert 155 < float((at["glabella"] - at["opisthocranion"]).norm()) < 215  # cranial length
        assert 95 < float((at["nasion"] - at["pogonion"]).norm()) < 135  # height of the face
        assert 115 < float((at["zygion_left"] - at["zygion_right"]).norm()) < 155
        assert 80 < float((at["gonion_left"] - at["gonion_right"]).norm()) < 125
        for name in (n for n in at if n.endswith("_left")):
            assert float(at[name][0]) > 0 > float(at[name.replace("left", "right")][0])


@pytest.mark.parametrize("index", range(3))
def test_calvarium_is_closed(heads: list[HeadVolume], index: int) -> None:
    head = phantom((0, 1, 7)[index], spacing_mm=2.0)
    azimuth, elevation = torch.meshgrid(torch.linspace(0, 2 * math.pi, 41)[:-1], torch.linspace(0.35, 1.55, 16),
                                        indexing="ij")  # fmt: skip
    ways = torch.stack([azimuth.cos() * elevation.cos(), azimuth.sin() * elevation.cos(), elevation.sin()], -1)
    reach = torch.arange(30, 120, 0.25)
    brain = torch.tensor([0.0, 12.0, 31.0])
    points = brain + ways.reshape(-1, 1, 3) * reach[:, None]
    solid = (sample(head, points.reshape(-1, 3))[1] > 0.25).reshape(-1, len(reach))
    assert bool(solid.any(1).all())
    first, last = solid.int().argmax(1), len(reach) - 1 - solid.flip(1).int().argmax(1)
    thick = (last - first) * 0.25
    assert 3 < float(thick.min()) and float(thick.max()) < 12


def test_same_seed_same_head_other_seed_another(heads: list[HeadVolume]) -> None:
    again = phantom(1, spacing_mm=SPACING)
    assert torch.equal(again.density, heads[1].density) and again.landmarks == heads[1].landmarks
    for other in (heads[0], heads[2]):
        apart = [math.dist(other.landmarks[n], again.landmarks[n]) for n in again.landmarks]
        assert sum(apart) / len(apart) > 1.5
        differing = bone_mask(other) != bone_mask(again)
        assert float(differing.sum() / bone_mask(again).sum()) > 0.2


def test_global_random_state_is_untouched() -> None:
    state = torch.get_rng_state()
    phantom(2, spacing_mm=4)
    assert torch.equal(state, torch.get_rng_state())


def test_nearly_but_not_exactly_symmetric(heads: list[HeadVolume]) -> None:
    for head in heads:
        silhouette = head.density.sum(0).sum(1)  # (z, x), mass seen from the front
        relative = (silhouette - silhouette.flip(1)).abs().sum() / (2 * silhouette.sum())
        assert 0.005 < float(relative) < 0.08
        left, right = mass_of_sides(head)
        assert abs(left / right - 1) < 0.05


def mass_of_sides(head: HeadVolume) -> tuple[float, float]:
    bone, half = head.density[1], head.shape[2] // 2
    return float(bone[:, :, -half:].sum()), float(bone[:, :, :half].sum())


def test_anatomy_does_not_depend_on_the_voxel_size(fine: HeadVolume, heads: list[HeadVolume]) -> None:
    coarse = heads[1]
    assert coarse.landmarks == fine.landmarks and coarse.extent == pytest.approx(fine.extent)
    grams = torch.tensor([1.0, 1.92], dtype=torch.float64)
    assert float(mass(coarse) @ grams) == pytest.approx(float(mass(fine) @ grams), rel=0.01)
    assert mass(coarse).tolist() == pytest.approx(mass(fine).tolist(), rel=0.02)
    for axis in (1, 2, 3):  # projections converge, not masses alone
        rough = coarse.density[1].sum(axis - 1) * 3
        smooth = torch.nn.functional.avg_pool2d(fine.density[1].sum(axis - 1)[None] * 1.5, 2)[0]
        assert float((rough - smooth).abs().sum() / smooth.sum()) < 0.06


@pytest.mark.parametrize("spacing", [2.5, 4.0])
def test_any_spacing_in_range(fine: HeadVolume, spacing: float) -> None:
    other = phantom(1, spacing_mm=spacing)
    assert other.landmarks == fine.landmarks and other.spacing == (spacing,) * 3
    assert mass(other).tolist() == pytest.approx(mass(fine).tolist(), rel=0.02)


def test_air_in_the_head(fine: HeadVolume) -> None:
    """Sinuses, nose and throat: air enclosed by the face, seen from the front through the skull."""
    at = fine.landmarks
    x, y, z = at["orbitale_left"]
    assert float(sample(fine, around((x, y + 14, z - 8), 3.0)).sum(0).max()) < 0.1  # maxillary sinus
    x, y, z = at["anterior_nasal_spine"]
    nose = sample(fine, torch.tensor([[x + side, y + 20, z + 8] for side in (-3.0, 3.0)]))
    assert float(nose.sum(0).min()) < 0.2


@pytest.mark.parametrize("seed", [-1, 2**63, 1.5, True, "1", None])
def test_bad_seed(seed: object) -> None:
    with pytest.raises(ParameterError, match="seed"):
        phantom(seed, spacing_mm=4)  # type: ignore[arg-type]


@pytest.mark.parametrize("spacing", [0, 0.9, 4.1, -1.5, float("nan"), float("inf"), "1.5", True])
def test_bad_spacing(spacing: object) -> None:
    with pytest.raises(ParameterError, match="spacing_mm"):
        phantom(0, spacing_mm=spacing)  # type: ignore[arg-type]
