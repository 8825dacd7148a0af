"""Laws of inserts: the expected mass, a place in the head, the same object from the same seed."""

import math

import pytest
import torch
from torch import Tensor

from medshift.data.inserts import LEAD, TITANIUM, tube, with_insert
from medshift.data.simulator import simulator_volume
from medshift.data.volume import BONE, WATER, HeadVolume
from medshift.errors import DataError, ParameterError

SPACING, OUTER, INNER = 3.2, 68.0, 60.0
KINDS = ("burr-hole", "clip", "wire", "fracture")


def _radius(size: int = 48, spacing: float = SPACING) -> Tensor:
    axis = (torch.arange(size) - (size - 1) / 2) * spacing
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    return (x**2 + y**2 + z**2).sqrt()


def _skull(size: int = 48, spacing: float = SPACING) -> HeadVolume:
    """A spherical shell of bone around a brain, with skin to 72 mm."""
    radius = _radius(size, spacing)
    whole, outer, inner = (((edge - radius) / spacing + 0.5).clamp(0, 1) for edge in (72.0, OUTER, INNER))
    bone = outer - inner
    return HeadVolume(torch.stack([whole - bone, bone]), (spacing,) * 3, name="shell")


def _change(kind: str, seed: int) -> tuple[Tensor, Tensor, HeadVolume, HeadVolume]:
    """Change of the densities, the mask, and the heads before and after."""
    skull = _skull()
    changed, mask = with_insert(skull, kind, seed)
    return changed.density - skull.density, mask, skull, changed


def _drilled(radius: float) -> float:
    """Volume [mm3] that a cylinder along a radius removes from the shell."""
    balls = [(edge**3 - (edge**2 - radius**2) ** 1.5) * 2 * math.pi / 3 for edge in (OUTER, INNER)]
    return balls[0] - balls[1]


@pytest.mark.parametrize("seed", range(4))
def test_burr_hole_removes_a_cylinder_of_skull(seed: int) -> None:
    change, mask, skull, _ = _change("burr-hole", seed)
    removed = -float(change[BONE].sum()) * SPACING**3
    assert 0.97 * _drilled(6.0) < removed < 1.03 * _drilled(7.0)
    assert float(change.sum()) == pytest.approx(0, abs=1e-2)  # soft tissue takes the place of bone
    points = skull.index_to_world((mask > 0.9).nonzero().float())
    axis = torch.nn.functional.normalize((mask[mask > 0.9][:, None] * points).sum(0), dim=0)
    beside = (points - (points @ axis)[:, None] * axis).norm(dim=-1)
    assert float(beside.max()) < 7.5 and float(axis[2]) > 0.3


@pytest.mark.parametrize("radius", [0.4, 0.65, 2.0])
def test_tube_has_its_volume_on_any_grid(radius: float) -> None:
    path = torch.tensor([[-30.0, -20.0, 5.0], [10.0, 3.0, 20.0], [25.0, 30.0, -12.0]])
    length = float((path[1:] - path[:-1]).norm(dim=-1).sum())
    expected = math.pi * radius**2 * length + 4 / 3 * math.pi * radius**3
    for size, spacing in ((48, 2.0), (96, 1.0)):
        share = tube(HeadVolume(torch.zeros(2, size, size, size), (spacing,) * 3), path, radius)
        assert float(share.sum()) * spacing**3 == pytest.approx(expected, rel=0.03)
        assert 0 <= float(share.min()) and float(share.max()) <= 1


def test_tube_lies_on_its_path() -> None:
    volume = HeadVolume(torch.zeros(2, 40, 40, 40), (1.0, 1.5, 2.0))
    path = torch.tensor([[-12.0, 4.0, 6.0], [15.0, 4.0, 6.0]])
    index = tube(volume, path, 1.5).nonzero().float()
    points = volume.index_to_world(index)
    assert float((points[:, 1:] - path[0, 1:]).abs().max()) < 1.5 + 1.0
    torch.testing.assert_close(points.mean(dim=0), path.mean(dim=0), atol=0.7, rtol=0)


@pytest.mark.parametrize(("kind", "metal"), [("clip", TITANIUM), ("wire", LEAD)])
def test_metal_replaces_what_was_there(kind: str, metal: float) -> None:
    change, mask, skull, changed = _change(kind, 1)
    expected = mask * (metal - skull.density[BONE])
    torch.testing.assert_close(change[BONE], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(changed.density[WATER], skull.density[WATER] * (1 - mask))
    volume = float(mask.sum()) * SPACING**3
    if kind == "clip":  # 34.9 mm of wire of 1.2 mm
        assert volume == pytest.approx(math.pi * 0.36 * 34.9 + 0.9, rel=0.06)
    else:  # from the skull to within 21 mm of the centre, a little bent
        assert math.pi * 0.65**2 * (OUTER - 50) < volume < math.pi * 0.65**2 * (OUTER + 25)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(2))
def test_insert_lies_in_the_head(kind: str, seed: int) -> None:
    _, mask, skull, changed = _change(kind, seed)
    place = _radius()[mask > 0]
    assert float(mask.sum()) > 0 and float(mask.min()) >= 0 and float(mask.max()) <= 1
    assert float(place.max()) < OUTER + SPACING
    if kind in ("burr-hole", "fracture"):
        assert float(place.min()) > INNER - SPACING
        heights = skull.index_to_world((mask > 0).nonzero().float())[:, 2]
        assert float(heights.min()) > 0  # the vault, not the base
    assert torch.equal(changed.density[:, mask == 0], skull.density[:, mask == 0])


@pytest.mark.parametrize("seed", range(2))
def test_fracture_is_a_narrow_gap_through_the_vault(seed: int) -> None:
    change, mask, _, _ = _change("fracture", seed)
    removed = -float(change[BONE].sum()) * SPACING**3
    thickness = OUTER - INNER
    assert 0.85 * 45 * 1.5 * thickness < removed < 1.3 * 75 * 2.5 * thickness
    assert float(change.sum()) == pytest.approx(0, abs=1e-2)
    radius = _radius()
    for depth in (0.25, 0.75):  # it goes through both tables
        level = INNER + depth * thickness
        assert float(mask[(radius - level).abs() < SPACING / 2].sum()) > 0


def test_same_seed_same_object() -> None:
    for kind in KINDS:
        one, same, other = (with_insert(_skull(), kind, seed) for seed in (3, 3, 4))
        assert torch.equal(one[0].density, same[0].density) and torch.equal(one[1], same[1])
        assert not torch.equal(one[1], other[1]) and one[0].name != other[0].name


def test_reference_gives_ct_and_simulator_the_same_object() -> None:
    skull = _skull()
    rendered = simulator_volume(skull)
    for kind in ("wire", "burr-hole"):
        _, mask = with_insert(skull, kind, 2)
        _, same = with_insert(rendered, kind, 2, reference=skull)
        both = (skull.density[BONE] > 0) & (rendered.density[BONE] > 0) if kind == "burr-hole" else mask >= 0
        assert torch.equal(mask[both], same[both])
    with pytest.raises(ParameterError, match="grids"):
        with_insert(skull, "wire", 0, reference=_skull(40))


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ParameterError, match="burr-hole"):
        with_insert(_skull(), "screw", 0)
    with pytest.raises(DataError, match="bone"):
        with_insert(HeadVolume(torch.zeros(2, 8, 8, 8), (1.0, 1.0, 1.0)), "wire", 0)
