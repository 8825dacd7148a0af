"""Edges of drawings whose edges are known."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from medshift.errors import ParameterError
from medshift.metrics import edges
from medshift.metrics.edges import INVENTED, KEPT, LOST, EdgeMap, head_of, margin

SIDE = 96
AIR = 0.9


def everywhere(image: Tensor) -> Tensor:
    """A head that fills the image, so that every edge of a drawing counts."""
    return torch.ones(len(image), 1, *image.shape[2:], dtype=torch.bool)


def edge_map(output: Tensor, reference: Tensor, mask: Tensor | None = None, **options: Any) -> EdgeMap:
    return edges.edge_map(output, reference, mask, head=everywhere(reference), **options)


def edge_thresholds(reference: Tensor, **options: Any) -> Tensor:
    return edges.edge_thresholds(reference, head=everywhere(reference), **options)


def block(image: Tensor, rows: tuple[int, int], columns: tuple[int, int], contrast: float) -> Tensor:
    """The image with a block whose outermost pixels are half covered: there, and only there, its edges lie."""
    image = image.clone()
    for inset in (0, 1):
        y, x = (slice(start + inset, stop - inset) for start, stop in (rows, columns))
        image[..., y, x] += contrast / 2
    return image


def square(dx: int = 0, dy: int = 0) -> Tensor:
    """A square of 40 pixels on air."""
    return block(torch.ones(1, 1, SIDE, SIDE), (28 + dy, 68 + dy), (28 + dx, 68 + dx), -1.0)


def bar(image: Tensor, contrast: float = -0.8) -> Tensor:
    """The image with a bar of 12 by 28 pixels inside the square."""
    return block(image, (42, 54), (34, 62), contrast)


def smooth(seed: int, n: int = 1) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.nn.functional.interpolate(torch.randn(n, 1, 12, 12, generator=g), size=SIDE, mode="bicubic")


def test_an_image_keeps_its_own_edges() -> None:
    result = edge_map(square(), square())
    assert result.precision == result.recall == result.f1 == 1
    assert result.kept == result.edges and int(result.edges) == pytest.approx(4 * 39, abs=8)
    assert set(result.labels.unique().tolist()) == {0, KEPT}


@pytest.mark.parametrize("tolerance", [0.0, 1.0, 2.0, 3.5])
@pytest.mark.parametrize("shift", [0, 1, 2, 3, 4])
def test_shift_within_the_tolerance_is_forgiven_and_beyond_it_is_not(shift: int, tolerance: float) -> None:
    result = edge_map(square(shift), square(), tolerance=tolerance)
    if shift <= tolerance:
        assert result.precision == result.recall == 1
    else:  # the two sides along the shift stay, but for their ends
        assert result.precision == pytest.approx(0.5, abs=0.07)
        assert result.recall == pytest.approx(0.5, abs=0.07)
    diagonal = edge_map(square(shift, shift), square(), tolerance=tolerance)
    if shift > tolerance:
        assert diagonal.f1 < 0.12


def test_an_added_bar_is_invented_and_a_removed_one_lost() -> None:
    added = edge_map(bar(square()), square(), tolerance=1.0)
    assert int(added.invented) == pytest.approx(2 * (11 + 27), abs=8)
    assert added.lost == 0 and added.recall == 1
    assert float(added.precision) == pytest.approx(int(added.kept) / int(added.kept + added.invented))
    where = (added.labels[0] == INVENTED).nonzero()
    assert where.min(0).values.tolist() == pytest.approx([42, 34], abs=1)
    assert where.max(0).values.tolist() == pytest.approx([53, 61], abs=1)

    removed = edge_map(square(), bar(square()), tolerance=1.0)
    assert removed.lost == added.invented and removed.invented == 0 and removed.precision == 1
    assert torch.equal(removed.labels == LOST, added.labels == INVENTED)
    assert float(removed.recall) == pytest.approx(1 - int(removed.lost) / int(removed.edges))


def test_a_thin_line_has_an_edge_on_either_side() -> None:
    line = square()
    line[..., 30:66, 48] += 0.9
    assert int(edge_map(line, square()).invented) == pytest.approx(2 * 36, abs=8)


def test_edges_of_too_little_contrast_are_lost() -> None:
    levels = torch.tensor([[0.08, 0.08]])  # the edge of a block slopes by a quarter of its contrast

    def recall(contrast: float) -> float:
        return float(edge_map(bar(square(), contrast), bar(square()), thresholds=levels).recall)

    assert recall(-0.4) == 1 and recall(-0.2) == recall(0.0) == pytest.approx(156 / 232, abs=0.03)


@settings(max_examples=20)
@given(seed=st.integers(0, 50), tolerance=st.sampled_from([0.0, 1.0, 1.5, 3.0]), sigma=st.sampled_from([1.0, 2.0]))
def test_precision_is_recall_with_the_roles_exchanged(seed: int, tolerance: float, sigma: float) -> None:
    a, b = smooth(seed), smooth(seed) + 0.3 * smooth(seed + 1)
    levels = edge_thresholds(a, sigma=sigma)
    forward = edge_map(a, b, sigma=sigma, tolerance=tolerance, thresholds=levels)
    backward = edge_map(b, a, sigma=sigma, tolerance=tolerance, thresholds=levels)
    assert forward.precision == pytest.approx(float(backward.recall))
    assert forward.recall == pytest.approx(float(backward.precision))
    assert forward.f1 == pytest.approx(float(backward.f1))
    p, r = float(forward.precision), float(forward.recall)
    assert 0 < p <= 1 and 0 < r <= 1 and float(forward.f1) == pytest.approx(2 / (1 / p + 1 / r))


def test_counts_are_those_of_the_labels() -> None:
    result = edge_map(smooth(1, 3), smooth(2, 3))
    assert result.labels.shape == (3, SIDE, SIDE)
    for label, count in ((KEPT, result.kept), (INVENTED, result.invented), (LOST, result.lost)):
        assert torch.equal((result.labels == label).sum((1, 2)), count) and (count > 0).all()
    assert (result.edges >= result.lost).all()


def test_the_blade_is_no_edge_and_hides_what_lies_behind_it() -> None:
    mask = torch.ones(1, 1, SIDE, SIDE, dtype=torch.bool)
    mask[..., 80:, :] = False
    blade = square().where(mask, torch.tensor(-3.0))
    result = edge_map(blade, square(), mask)
    assert result.precision == result.recall == 1 and result.invented == 0
    assert edge_map(blade, square()).invented > 80  # without the mask it is one

    shut = margin()
    assert not result.labels[:, 80 - shut :].any() and edge_map(blade, square()).labels[:, 80 - shut :].any()
    hidden = torch.ones_like(mask)
    hidden[..., 60:, :] = False
    rows = edge_map(square(), square(), hidden).labels[0].nonzero()[:, 0]
    assert rows.max() == 60 - shut - 1  # the blade's margin, and the lower side behind it


def test_an_edge_may_find_its_partner_in_the_margin() -> None:
    mask = torch.ones(1, 1, SIDE, SIDE, dtype=torch.bool)
    last = 67 + margin()  # the square's lower edge is the last row that counts
    mask[..., last + 1 :, :] = False
    result = edge_map(square(0, 1), square(0, 0), mask)
    assert result.precision == result.recall == 1
    assert edge_map(square(0, 0), square(0, 0), mask).labels[0, 67, 40:56].all()


def test_without_edges_precision_and_recall_are_not_numbers() -> None:
    flat = torch.full_like(square(), 0.3)
    neither = edge_map(flat, flat + 0.1)
    assert neither.precision.isnan() and neither.recall.isnan() and neither.f1.isnan() and neither.edges == 0
    erased = edge_map(flat, square())
    assert erased.precision.isnan() and erased.recall == 0 and erased.f1 == 0 and erased.lost == erased.edges > 100
    invented = edge_map(square(), flat)
    assert invented.recall.isnan() and invented.precision == 0 and invented.f1 == 0 and invented.invented > 100


def test_nothing_in_common_scores_zero() -> None:
    apart = torch.ones(1, 1, SIDE, SIDE)
    apart[..., 12:20, 12:80] = 0
    result = edge_map(apart, square())
    assert result.precision == 0 and result.recall == 0 and result.f1 == 0


def test_dither_has_no_edges() -> None:
    dither = 0.01 * torch.randn(1, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    assert edge_map(dither, torch.zeros_like(dither)).invented == 0
    assert edge_map(dither, dither).edges == 0


def test_an_image_is_judged_by_itself() -> None:
    a, b = smooth(3, 4), smooth(4, 4)
    together = edge_map(a, b)
    alone = [edge_map(a[i : i + 1], b[i : i + 1]) for i in range(4)]
    assert torch.equal(together.labels, torch.cat([one.labels for one in alone]))
    torch.testing.assert_close(together.f1, torch.cat([one.f1 for one in alone]))


def test_thresholds_are_the_gradient_per_pixel() -> None:
    ramp = torch.linspace(-1, 1, SIDE).expand(1, 1, SIDE, SIDE)
    slope = 2 / (SIDE - 1)
    torch.testing.assert_close(edge_thresholds(ramp), torch.full((1, 2), slope).double(), rtol=1e-4, atol=0)
    torch.testing.assert_close(edge_thresholds(ramp.transpose(2, 3) * 3), torch.full((1, 2), 3 * slope).double())
    torch.testing.assert_close(edge_thresholds(torch.zeros_like(ramp)), torch.full((1, 2), 0.01).double())


def test_an_edge_is_found_from_the_stated_gradient_on() -> None:
    # A blurred step of height h has the greatest slope h / (sigma sqrt(2 pi)) after smoothing.
    peak = 1 / (2.0 * math.sqrt(2 * math.pi))
    found = [
        int(edge_map(square(), square(), sigma=2.0, thresholds=torch.tensor([[f * peak, f * peak]])).edges)
        for f in (0.9, 1.1)
    ]
    assert found[0] > 110 and found[1] == 0


def test_images_and_options_out_of_range_are_refused() -> None:
    image = square()
    for wrong in (image * float("nan"), image[..., 1:], image.repeat(2, 1, 1, 1)):
        with pytest.raises(ParameterError):
            edge_map(wrong, image)
    for options in ({"sigma": 0.0}, {"sigma": float("nan")}, {"tolerance": -1.0}):
        with pytest.raises(ParameterError, match="sigma"):
            edge_map(image, image, **options)
    for levels in (torch.zeros(1, 2), torch.ones(2, 2)):
        with pytest.raises(ParameterError, match="Thresholds"):
            edge_map(image, image, thresholds=levels)
    with pytest.raises(ParameterError, match="Quantiles"):
        edge_thresholds(image, quantiles=(0.9, 0.8))
    narrow = torch.zeros_like(image, dtype=torch.bool)
    narrow[..., 40 : 40 + 2 * margin(), :] = True
    with pytest.raises(ParameterError, match="narrower"):
        edge_map(image, image, narrow)
    with pytest.raises(ParameterError, match="head must be bool"):
        edges.edge_map(image, image, head=torch.ones(1, 1, 3, 3, dtype=torch.bool))


# A head in air: an outline of contrast 1.2, and structures inside of a quarter of it.


def skull(dx: int = 0, *, inside: bool = True) -> Tensor:
    image = block(torch.full((1, 1, SIDE, SIDE), AIR), (12, 84), (12 + dx, 84 + dx), -1.2)
    return block(image, (24, 40), (24, 72), -0.3) if inside else image


def with_bone(image: Tensor) -> Tensor:
    return block(image, (52, 64), (30, 66), -0.3)


def test_a_bone_inside_the_head_is_invented_or_lost_though_the_outline_is_four_times_as_steep() -> None:
    added, removed = edges.edge_map(with_bone(skull()), skull()), edges.edge_map(skull(), with_bone(skull()))
    assert int(added.invented) == pytest.approx(2 * (11 + 35), abs=10) and added.lost == 0 and added.recall == 1
    assert int(removed.lost) == pytest.approx(2 * (11 + 35), abs=10) and removed.invented == 0
    assert removed.precision == 1 and float(removed.recall) == pytest.approx(0.58, abs=0.05)
    where = (added.labels[0] == INVENTED).nonzero()
    assert where.min(0).values.tolist() == pytest.approx([52, 30], abs=1)
    assert where.max(0).values.tolist() == pytest.approx([63, 65], abs=1)
    blind = edge_map(with_bone(skull()), skull())
    assert blind.invented == 0, "thresholds of the whole image see the outline alone"


def test_the_outline_alone_is_no_edge_and_saves_no_output() -> None:
    empty = edges.edge_map(skull(inside=False), skull(inside=False))
    assert empty.edges == 0 and empty.precision.isnan() and empty.recall.isnan()
    smeared = edges.edge_map(skull(inside=False), skull())
    assert smeared.recall == 0 and smeared.lost == smeared.edges > 100 and smeared.precision.isnan()
    assert edge_map(skull(inside=False), skull()).recall > 0.9, "with the outline it would pass"
    for dx in (1, 3):
        moved = edges.edge_map(skull(dx, inside=False), skull(inside=False))
        assert moved.invented == 0 and moved.lost == 0


def test_what_appears_in_the_air_is_invented() -> None:
    small = block(torch.full((1, 1, SIDE, SIDE), AIR), (12, 60), (12, 60), -1.2)
    small = block(small, (28, 44), (24, 48), -0.3)
    ghost = edges.edge_map(block(small, (72, 84), (20, 76), -0.3), small)
    assert int(ghost.invented) == pytest.approx(2 * (11 + 55), abs=10) and ghost.recall == 1


def test_the_head_is_what_is_darker_than_air_with_its_holes() -> None:
    within, at_least = torch.zeros(2, 1, 1, SIDE, SIDE, dtype=torch.bool)
    within[..., 12:84, 12:84] = True
    at_least[..., 14:82, 14:82] = True
    noise = 0.05 * torch.randn(1, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    for image in (skull(), skull() + noise, block(skull(), (60, 70), (40, 60), 1.2)):
        found = head_of(image)
        # Smoothing rounds the corners off.
        assert not (found & ~within).any() and (at_least & ~found).sum() <= 8
    mask = torch.ones_like(within)
    mask[..., 70:, :] = False
    assert not head_of(skull(), mask)[..., 70:, :].any()
    assert torch.equal(head_of(torch.cat([skull(), square()]))[1:], head_of(square()))


@pytest.mark.parametrize("rounding", [0.0, 1e-7])
def test_without_a_head_there_is_no_threshold_and_no_edge(rounding: float) -> None:
    flat = torch.full_like(square(), 0.1) + rounding * (square() > 0)
    assert not head_of(flat).any() and edges.edge_thresholds(flat).isinf().all()
    found = edges.edge_map(square(), flat)
    assert found.edges == found.invented == found.kept == 0 and found.precision.isnan() and found.recall.isnan()
