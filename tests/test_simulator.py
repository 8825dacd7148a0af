"""Laws of the simulator's head: piecewise constant, thin bone and marrow gone, stable when applied again."""

import pytest
import torch
from torch import Tensor

from medshift.data.simulator import AIR, BONE_OF, COMPACT, SOFT, SPONGY, segment, simulator_volume
from medshift.data.volume import BONE, WATER, HeadVolume
from medshift.errors import DataError


def _head(*, plate: int = 0, spacing: float = 1.5) -> HeadVolume:
    """A quarter of a skull: tables around grainy marrow, a brain, a spongy ball, perhaps a plate."""
    axis = (torch.arange(52) + 0.5) * spacing
    z, y, x = torch.meshgrid(axis, axis, axis - 39 * (spacing / 1.5), indexing="ij")
    radius = (x**2 + y**2 + z**2).sqrt()
    whole, outer, inner, marrow_outer, marrow_inner = (
        ((edge - radius) / spacing + 0.5).clamp(0, 1) for edge in (74.0, 69.0, 61.5, 67.0, 63.5)
    )
    grain = torch.rand(x.shape, generator=torch.Generator().manual_seed(0))
    bone = outer - inner - (marrow_outer - marrow_inner) * (0.5 + 0.2 * grain)
    ball = ((14 - (x**2 + (y - 22) ** 2 + (z - 22) ** 2).sqrt()) / spacing + 0.5).clamp(0, 1)
    bone = torch.maximum(bone, ball * (0.25 + 0.1 * grain))
    if plate:
        bone[:, 30 : 30 + plate, 10:42] = bone[:, 30 : 30 + plate, 10:42].clamp(min=0.9)
    return HeadVolume(torch.stack([whole * (1 - bone), bone]), (spacing,) * 3, cut=("inferior",))


def _core(labels: Tensor, label: int) -> Tensor:
    """Voxels whose 7 x 7 x 7 neighbours all carry the label (the reach of the smoothing)."""
    other = (labels != label).float()[None, None]
    return torch.nn.functional.max_pool3d(other, 7, stride=1, padding=3)[0, 0] == 0


def test_each_material_is_constant_where_the_head_is_not() -> None:
    head = _head()
    labels, rendered = segment(head), simulator_volume(head)
    seen = 0
    for label in (SOFT, SPONGY):
        core = _core(labels, label)
        seen += int(core.any())
        assert float(rendered.density[BONE][core].var()) < 1e-10
        torch.testing.assert_close(rendered.density[BONE][core].mean(), torch.tensor(BONE_OF[label]))
        torch.testing.assert_close(rendered.density[WATER][core].mean(), torch.tensor(1 - BONE_OF[label]))
    assert seen == 2
    assert float(head.density[BONE][_core(labels, SPONGY)].std()) > 0.02


def test_marrow_is_filled_with_compact_bone_of_one_density() -> None:
    head = _head()
    labels, rendered = segment(head), simulator_volume(head)
    axis = (torch.arange(52) + 0.5) * 1.5
    z, y, x = torch.meshgrid(axis, axis, axis - 39, indexing="ij")
    radius = (x**2 + y**2 + z**2).sqrt()
    wall = (radius > 63.5) & (radius < 67)
    assert float((labels[wall] == COMPACT).float().mean()) == 1
    assert float(head.density[BONE][wall].std()) > 0.1
    assert float((rendered.density[BONE][wall] - BONE_OF[COMPACT]).abs().max()) < 1e-3


@pytest.mark.parametrize("spacing", [1.5, 0.8])
def test_thin_plates_vanish_and_thick_ones_stay(spacing: float) -> None:
    bone = {}
    for plate in (0, 1, 6):
        rendered = simulator_volume(_head(plate=plate, spacing=spacing)).density[BONE]
        bone[plate] = rendered[2:6, 30:36, 20:32]
    assert float((bone[1] - bone[0]).abs().max()) < 1e-3
    assert float(bone[6][:, 2:4].min()) > 0.25


def test_air_stays_air_and_the_rest_is_tissue() -> None:
    head = _head()
    rendered, labels = simulator_volume(head), segment(head)
    air = _core(labels, AIR)
    assert bool(air.any()) and float(rendered.density.sum(0)[air].abs().max()) == 0
    assert float(rendered.density.sum(0)[_core(labels, SOFT)].sub(1).abs().max()) < 1e-5
    total = float(rendered.density.sum()) / float(head.density.sum())
    assert 0.98 < total < 1.02
    assert (rendered.cut, rendered.spacing, rendered.landmarks) == (head.cut, head.spacing, head.landmarks)


def test_second_application_changes_little() -> None:
    """Only curved borders move on: by less than 1 % of the mass, 2 % of that of bone."""
    once = simulator_volume(_head(plate=6))
    twice = simulator_volume(once)
    change = (twice.density - once.density).abs()
    assert float(change.sum()) < 0.01 * float(once.density.sum())
    assert float(change[BONE].sum()) < 0.02 * float(once.density[BONE].sum())
    first = (once.density - _head(plate=6).density).abs()
    assert float(change.sum()) < 0.15 * float(first.sum())


def test_flat_border_keeps_its_place_to_a_fraction_of_a_voxel() -> None:
    for share in (0.1, 0.3, 0.7, 0.9):
        bone = torch.zeros(24, 24, 24)
        bone[:, :, 12:], bone[:, :, 11] = BONE_OF[COMPACT], share * BONE_OF[COMPACT]
        rendered = simulator_volume(HeadVolume(torch.stack([1 - bone, bone]), (1.0, 1.0, 1.0))).density[BONE]
        width = float(rendered[12, 12].sum()) / BONE_OF[COMPACT]
        assert abs(width - (12 + share)) < 0.55


def test_empty_volume_stays_empty() -> None:
    empty = HeadVolume(torch.zeros(2, 8, 8, 8), (1.0, 1.0, 1.0))
    assert float(simulator_volume(empty).density.abs().max()) == 0
    with pytest.raises(DataError):
        HeadVolume(torch.zeros(2, 8, 8), (1.0, 1.0, 1.0))
