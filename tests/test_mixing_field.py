"""Mixing fields: exact ends, the paper's bounds, what rises and what is counted, and what each field may depend on."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from medshift.domain_shift import ShiftSchedule
from medshift.errors import ParameterError
from medshift.mixing_field import (
    ChannelField,
    ConstantField,
    MixingField,
    PixelField,
    RandomField,
    falls,
    modulated,
    pixel_mean,
    positions,
)

C, H, W = 3, 6, 5
NAMES = ("linear", "lowest", "nearly one", "pixel", "content", "random", "channel", "uneven channel")
MODULATED = NAMES[:6]
SCHEDULE = ShiftSchedule(40, 20)


def latents(seed: int = 0, n: int = 1, size: tuple[int, int] = (H, W)) -> Tensor:
    return torch.randn(n, C, *size, generator=torch.Generator().manual_seed(seed))


def field(name: str) -> MixingField:
    """A field of each kind, those that learn with weights far from their start."""
    torch.manual_seed(1)
    made: MixingField
    if name in ("linear", "lowest", "nearly one"):
        made = ConstantField(C, {"linear": 0.0, "lowest": -0.9, "nearly one": 0.999}[name])
    elif name in ("pixel", "content"):
        made = PixelField(C, content=name == "content")
        with torch.no_grad():
            made.network[-1].weight.mul_(8)
    elif name == "random":
        made = RandomField(C, seed=3)
    else:
        made = ChannelField(C)
        if name == "uneven channel":
            torch.nn.init.normal_(made.rises, std=2.0)
    return made.requires_grad_(False)


FIELDS = {name: field(name) for name in NAMES}
unit = st.floats(0, 1, width=32)


@pytest.mark.parametrize("name", NAMES)
def test_ends_are_exactly_0_and_1(name: str) -> None:
    y = latents(n=2)
    for end in (0.0, 1.0):
        assert (FIELDS[name](torch.full((2,), end), y) == end).all()
        assert (FIELDS[name](torch.full((2,), end, dtype=torch.float64), y) == end).all()
    mixed = FIELDS[name](torch.tensor([0.0, 1.0]), y)  # also side by side
    assert (mixed[0] == 0).all() and (mixed[1] == 1).all() and mixed.shape == y.shape


@settings(max_examples=50)
@given(lam=unit)
def test_fields_stay_within_0_and_1_and_the_modulated_within_the_papers_bounds(lam: float) -> None:
    y, at = latents(), torch.tensor([lam])
    for name, one in FIELDS.items():
        value = one(at, y)
        assert value.min() >= 0 and value.max() <= 1, name
        if name in MODULATED:
            assert value.min() >= lam**2 - 1e-6 and value.max() <= 2 * lam - lam**2 + 1e-6, name


@settings(max_examples=50)
@given(unit, unit)
def test_all_but_the_pixel_fields_rise(one: float, other: float) -> None:
    low, high = sorted((one, other))
    y = latents()
    for name in set(NAMES) - {"pixel", "content"}:
        rise = FIELDS[name](torch.tensor([high]), y) - FIELDS[name](torch.tensor([low]), y)
        # dΛ/dλ is at least 1 - |g| for the modulated ones.
        slope = 1 - float(FIELDS[name].modulation(torch.tensor([low]), y).abs().max()) if name in MODULATED else 0.0
        assert rise.min() >= slope * (high - low) - 1e-6, name


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"pixel", "content"}))
def test_nothing_falls_in_a_field_that_rises(name: str) -> None:
    assert falls(FIELDS[name], latents(), SCHEDULE) == 0


def test_falls_is_the_share_of_pixels_and_steps_in_which_a_field_falls() -> None:
    def sinking(lam: Tensor, y: Tensor) -> Tensor:  # the first channel falls over the second half of the times
        value = lam.view(-1, 1, 1, 1).expand(-1, *y.shape[1:]).clone()
        middle = SCHEDULE.mixing(torch.tensor(SCHEDULE.last // 2)).to(y)
        value[:, 0] = torch.where(value[:, 0] > middle, 2 * middle - value[:, 0], value[:, 0])
        return value

    assert falls(sinking, latents(), SCHEDULE) == pytest.approx(1 / 2 / C)
    assert falls(lambda lam, y: 1 - modulated(lam, 0 * y), latents(), SCHEDULE) == 1


def test_a_pixel_field_whose_g_falls_fast_enough_in_time_is_counted() -> None:
    """dΛ/dλ = 1 + g (1 - 2λ) + λ (1 - λ) dg/dλ, so g from .9 to -.9 about λ = 1/2 makes it fall there."""

    class Dropping(MixingField):
        def modulation(self, lam: Tensor, y: Tensor) -> Tensor:
            return -0.9 * torch.tanh(20 * (lam.view(-1, 1, 1, 1) - 0.5)).expand(-1, *y.shape[1:])

    assert 0 < falls(Dropping(C), latents(), SCHEDULE) < 0.3
    assert falls(Dropping(C), latents(n=3), SCHEDULE) == falls(Dropping(C), latents(), SCHEDULE)


def test_a_channel_field_starts_as_the_linear_one_and_is_the_same_for_all_pixels() -> None:
    lam, y = torch.linspace(0, 1, 101), latents(n=101)
    start = FIELDS["channel"](lam, y)
    torch.testing.assert_close(start, lam.view(-1, 1, 1, 1).expand_as(start), atol=1e-6, rtol=0)
    assert float(FIELDS["channel"].modulation(lam[1:-1], y[1:-1]).abs().max()) < 1e-4
    value = FIELDS["uneven channel"](lam, y)
    assert torch.equal(value, value[..., :1, :1].expand_as(value))
    apart = (value[:, :1, 0, 0] - value[:, 1:, 0, 0]).abs().max(0).values
    assert (apart > 0.05).all() and (value.diff(dim=0) >= -1e-6).all()


def test_a_channel_field_is_bernsteins_polynomial_of_its_heights() -> None:
    """By de Casteljau's algorithm, which knows no binomials."""
    one, lam = FIELDS["uneven channel"], torch.linspace(0, 1, 23)
    points = [F.pad(row.softmax(0).cumsum(0), (1, 0)).double() for row in one.rises]
    for c, heights in enumerate(points):
        level = heights[:, None].expand(-1, len(lam))
        while len(level) > 1:
            level = (1 - lam) * level[:-1] + lam * level[1:]
        torch.testing.assert_close(one(lam, latents(n=23))[:, c, 0, 0].double(), level[0], atol=1e-6, rtol=0)


def test_the_modulation_of_a_channel_field_gives_it_back() -> None:
    lam, y = torch.linspace(0, 1, 31), latents(n=31)
    one = FIELDS["uneven channel"]
    g = one.modulation(lam, y)
    assert (g[0] == 0).all() and (g[-1] == 0).all() and torch.isfinite(g).all()
    torch.testing.assert_close(modulated(lam, g), one(lam, y), atol=1e-6, rtol=0)


def test_a_channel_field_learns_and_its_modulation_has_finite_gradients() -> None:
    torch.manual_seed(0)
    one, y = ChannelField(C), latents(n=3)
    lam = torch.tensor([0.0, 0.4, 1.0])
    torch.nn.init.normal_(one.rises)
    (one(lam, y).square().sum() + one.modulation(lam, y).square().sum()).backward()
    assert one.rises.grad is not None and torch.isfinite(one.rises.grad).all() and (one.rises.grad != 0).any()


def test_a_pixel_field_depends_on_the_place_and_not_on_the_source() -> None:
    lam = torch.tensor([0.4])
    one = FIELDS["pixel"]
    value = one(lam, latents(0))
    assert torch.equal(value, one(lam, 5 * latents(1)))
    assert (value.std((0, 2, 3)) > 0.01).all() and (value.std(1) > 0.005).any()
    # It is a function of λ in its own right: Λ is no λ (1 + g (1 - λ)) of one g.
    g = [one.modulation(torch.tensor([at]), latents()) for at in (0.1, 0.9)]
    assert float((g[0] - g[1]).abs().max()) > 0.02


def test_a_content_field_sees_its_own_source_and_no_neighbour() -> None:
    one, lam = FIELDS["content"], torch.tensor([0.4, 0.4])
    y = torch.cat([latents(0), latents(1)])
    together = one(lam, y)
    assert float((together[0] - together[1]).abs().max()) > 0.02
    for i in range(2):
        torch.testing.assert_close(one(lam[:1], y[i : i + 1])[0], together[i], atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_one_field_for_a_batch_is_the_field_of_each_time(name: str) -> None:
    """The shortcut of a batch of one λ changes nothing."""
    y, lam = latents(n=3), torch.tensor([0.2, 0.7, 0.2])
    together = FIELDS[name](lam, y)
    for i in range(3):
        alone = FIELDS[name](lam[i].expand(3), y)[i]
        torch.testing.assert_close(alone, together[i], atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [(6, 5), (4, 9), (1, 3)])
def test_coordinates_follow_height_and_width(size: tuple[int, int]) -> None:
    height, width = size
    coarse, fine = (positions(k * height, k * width, torch.zeros(())) for k in (1, 2))
    assert coarse.shape == (1, 4, height, width)
    # Two neighbours a quarter of a pixel either side of a centre x: sin and cos of πx times cos(π/4n).
    shrunk = torch.cos(torch.pi / 4 / torch.tensor([height, height, width, width])).view(1, 4, 1, 1)
    torch.testing.assert_close(F.avg_pool2d(fine, 2), coarse * shrunk, atol=1e-6, rtol=0)
    assert torch.equal(coarse[:, :2], coarse[:, :2, :, :1].expand(-1, -1, -1, width))  # rows alone
    assert torch.equal(coarse[:, 2:], coarse[:, 2:, :1].expand(-1, -1, height, -1))  # columns alone
    cosines = (coarse[0, 1, :, 0], coarse[0, 3, 0])
    assert all((axis.diff() < 0).all() for axis in cosines)  # no two places have the same


def test_a_random_field_knows_no_resolution() -> None:
    lam = torch.tensor([0.4])
    one = FIELDS["random"]
    coarse, fine = (one(lam, latents(size=size)) for size in ((24, 20), (48, 40)))
    assert float((F.avg_pool2d(fine, 2) - coarse).abs().max()) < 0.02 < 0.1 < float(coarse.std())
    still = one.modulation(torch.tensor([0.9]), latents(7, size=(24, 20)))
    assert torch.equal(still, one.modulation(lam, latents(size=(24, 20))))


def test_a_random_field_is_that_of_its_seed() -> None:
    torch.manual_seed(0)
    first = RandomField(C, seed=4).modulation(torch.ones(1), latents())
    torch.manual_seed(9)
    assert torch.equal(first, RandomField(C, seed=4).modulation(torch.ones(1), latents()))
    assert float((first - RandomField(C, seed=5).modulation(torch.ones(1), latents())).abs().max()) > 0.1
    assert not list(RandomField(C).parameters())


@pytest.mark.parametrize("g_max", [0.9, 0.3])
def test_g_is_below_its_bound(g_max: float) -> None:
    torch.manual_seed(0)
    lam, y = torch.tensor([0.3]), latents(size=(16, 16))
    for one in (PixelField(C, g_max=g_max), PixelField(C, content=True, g_max=g_max), RandomField(C, g_max=g_max)):
        g = one.modulation(lam, y)
        assert 0 < float(g.detach().abs().max()) < g_max
        if isinstance(one, PixelField):
            with torch.no_grad():
                one.network[-1].weight.mul_(1e6)  # saturated, it is still within
            assert 0.99 * g_max < float(one.modulation(lam, y).detach().abs().max()) <= g_max * (1 + 1e-6)


def test_pixel_mean_is_the_mean_of_each_image_everywhere() -> None:
    y, lam = latents(n=2), torch.tensor([0.3, 0.8])
    for name in NAMES:
        value, mean = FIELDS[name](lam, y), pixel_mean(FIELDS[name])(lam, y)
        assert mean.shape == value.shape
        for i in range(2):
            expected = float(value[i].double().mean())
            torch.testing.assert_close(mean[i], torch.full_like(mean[i], expected), atol=1e-6, rtol=0)


@pytest.mark.parametrize("g", [1.0, -1.0, 1.5, float("nan"), float("inf")])
def test_a_constant_at_or_beyond_one_is_refused(g: float) -> None:
    with pytest.raises(ParameterError, match="between -1 and 1"):
        ConstantField(C, g)
