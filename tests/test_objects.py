"""Contrast recovery and observers against closed forms."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from medshift.errors import ParameterError
from medshift.metrics.objects import contrast_recovery, hotelling_dprime, template_channels

SIDE = 16


def disc(side: int = SIDE, contrast: float = 0.3, radius: float = 2.5) -> Tensor:
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    distance = ((x - side / 2) ** 2 + (y - side / 2 - 1) ** 2).sqrt()
    return contrast * torch.sigmoid(2 * (radius - distance))[None, None]


def line(contrast: float = 0.3) -> Tensor:
    image = torch.zeros(1, 1, SIDE, SIDE)
    for i in range(3, 13):
        image[..., i, i] = contrast
    return image


def white(k: int, n: int = 1, std: float = 0.1, seed: int = 0) -> Tensor:
    return std * torch.randn(k, n, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mixing(std: float = 0.1) -> Tensor:
    """A root A (P,P) of a covariance AAᵀ: noise of long range, stronger at one side, and a white floor."""
    i = torch.arange(SIDE, dtype=torch.float64)
    one = torch.exp(-((i[:, None] - i[None, :]) ** 2) / (2 * 2.0**2))
    blur = torch.kron(one, one)
    blur = blur / blur.square().sum(1).max().sqrt() * (1 + 0.5 * (i / SIDE).repeat(SIDE))[:, None]
    return torch.linalg.cholesky(std**2 * (blur @ blur.T + 0.3 * torch.eye(SIDE**2, dtype=torch.float64)))


def coloured(k: int, n: int = 1, seed: int = 0) -> Tensor:
    return (white(k, n, 1.0, seed).flatten(2) @ mixing().T).unflatten(2, (1, SIDE, SIDE))


def closed_form(signal: Tensor, covariance: Tensor, channels: Tensor) -> float:
    u = channels.double().reshape(-1, SIDE**2).T
    delta = u.T @ signal.double().flatten()
    return float((delta @ torch.linalg.solve(u.T @ covariance @ u, delta)).sqrt())


# Contrast recovery.


@settings(max_examples=25)
@given(share=st.floats(-2, 3), seed=st.integers(0, 20))
def test_recovery_is_the_share_of_the_contrast(share: float, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    back, other = torch.rand(2, 3, 1, SIDE, SIDE, generator=g)
    t = disc().expand(3, -1, -1, -1)
    torch.testing.assert_close(
        contrast_recovery(other + share * t, other, back + t, back), torch.full((3,), share), atol=1e-5, rtol=1e-5
    )


def test_recovery_counts_the_object_alone() -> None:
    t = disc()
    elsewhere = torch.zeros_like(t)
    elsewhere[..., :3, :3] = 0.5  # where the truth does not change
    t[..., :3, :3] = 0
    flat = torch.zeros_like(t)
    torch.testing.assert_close(contrast_recovery(0.5 * t + elsewhere, flat, t, flat), torch.tensor([0.5]))


def test_recovery_is_of_each_image_and_its_open_field() -> None:
    back = torch.zeros(3, 1, SIDE, SIDE)
    truth, out = back.clone(), back.clone()
    truth[:, :, 4:8], truth[:, :, 12:] = 0.2, 0.2
    out[:, :, 4:8] = torch.tensor([0.2, 0.1, -0.2])[:, None, None, None]
    out[:, :, 12:] = 7.0
    mask = torch.ones_like(back, dtype=torch.bool)
    mask[:, :, 12:] = False
    torch.testing.assert_close(contrast_recovery(out, back, truth, back, mask), torch.tensor([1.0, 0.5, -1.0]))


def test_noise_of_the_outputs_averages_out() -> None:
    t, n = disc(32, 0.2), 400
    g = torch.Generator().manual_seed(0)
    a, b = 0.1 * torch.randn(2, n, 1, 32, 32, generator=g)
    flat = torch.zeros(n, 1, 32, 32)
    got = contrast_recovery(0.7 * t + a, b, flat + t, flat)
    spread = 0.1 * math.sqrt(2) / float(t.square().sum().sqrt())
    assert float(got.mean()) == pytest.approx(0.7, abs=4 * spread / math.sqrt(n))
    assert float(got.std()) == pytest.approx(spread, rel=0.15)


def test_recovery_of_an_object_that_is_not_seen_is_no_number() -> None:
    t = torch.cat([disc(), disc(contrast=0.01), disc()])
    mask = torch.ones_like(t, dtype=torch.bool)
    mask[2, :, 4:] = False
    flat = torch.zeros_like(t)
    assert contrast_recovery(t, flat, t, flat, mask).isnan().tolist() == [False, True, True]


def test_recovery_refuses_what_cannot_be_compared() -> None:
    t = disc()
    for images in (
        (t, t, t, t[..., 1:]),
        (t[..., 1:], t, t, t),
        (t, t * float("nan"), t, t),
        (t, t, t, t * float("inf")),
    ):
        with pytest.raises(ParameterError):
            contrast_recovery(*images)
    with pytest.raises(ParameterError, match="open"):
        contrast_recovery(t, t, t, t, torch.zeros_like(t, dtype=torch.bool))


# Observers.


@pytest.mark.parametrize("signal", [disc(), line()])
def test_in_white_noise_the_observer_is_the_matched_filter(signal: Tensor) -> None:
    expected = float(signal.square().sum().sqrt()) / 0.1
    present, absent = signal + white(1500, seed=1), white(1500, seed=2)
    hotelling = hotelling_dprime(present, absent, template_channels(signal))
    # The standard error of d' is near sqrt((2 + d'²/4) / K).
    within = 4 * math.sqrt((2 + expected**2 / 4) / 1500)
    assert float(hotelling) == pytest.approx(expected, abs=within)


@pytest.mark.parametrize("signal", [disc(), line()])
def test_in_coloured_noise_the_channels_closed_form_is_met(signal: Tensor) -> None:
    channels, root = template_channels(signal), mixing()
    covariance = root @ root.T
    expected = closed_form(signal, covariance, channels)
    present, absent = signal + coloured(1500, seed=1), coloured(1500, seed=2)
    within = 4 * math.sqrt((2 + expected**2 / 4) / 1500)
    assert float(hotelling_dprime(present, absent, channels)) == pytest.approx(expected, abs=within)


@pytest.mark.parametrize("signal", [disc(), line()])
def test_the_channels_reach_most_of_the_ideal_linear_observer(signal: Tensor) -> None:
    root = mixing()
    everything = torch.eye(SIDE**2).reshape(1, SIDE**2, SIDE, SIDE)
    ideal = closed_form(signal, root @ root.T, everything)
    assert 0.85 * ideal < closed_form(signal, root @ root.T, template_channels(signal)) <= ideal


def test_every_pixel_a_channel_is_the_hotelling_observer() -> None:
    rng = torch.Generator().manual_seed(4)
    mix = torch.randn(9, 9, generator=rng, dtype=torch.float64)
    signal = torch.randn(9, generator=rng, dtype=torch.float64)
    exposures = torch.randn(2, 4000, 9, generator=rng, dtype=torch.float64) @ mix.T
    present, absent = (exposures[0] + signal).reshape(-1, 1, 1, 3, 3), exposures[1].reshape(-1, 1, 1, 3, 3)
    expected = float((signal @ torch.linalg.solve(mix @ mix.T, signal)).sqrt())
    got = float(hotelling_dprime(present, absent, torch.eye(9).reshape(1, 9, 3, 3)))
    assert got == pytest.approx(expected, abs=4 * math.sqrt((2 + expected**2 / 4) / 4000))


@pytest.mark.parametrize("contrast", [0.0, 0.06])
def test_squared_detectability_is_unbiased_from_few_exposures(contrast: float) -> None:
    signal, channels = disc(contrast=contrast), template_channels(disc())
    runs, k1, k0 = 600, 6, 4
    noise = white(k1 + k0, runs, seed=5)
    squares = []
    for i in range(runs):
        d = float(hotelling_dprime(signal + noise[:k1, i : i + 1], noise[k1:, i : i + 1], channels))
        squares.append(d * abs(d))
    expected = float(signal.square().sum()) / 0.1**2
    error = np.std(squares) / math.sqrt(runs)
    assert error < 0.4 and np.mean(squares) == pytest.approx(expected, abs=4 * error)
    assert contrast or min(squares) < 0
    # Uncorrected, the mean would be further off than chance explains.
    freedom, c = k1 + k0 - 2, 4
    raw = (np.array(squares) + c * (1 / k1 + 1 / k0)) * freedom / (freedom - c - 1)
    assert raw.mean() > expected + 8 * error


def test_detectability_grows_as_the_root_of_the_dose() -> None:
    generator = torch.Generator().manual_seed(7)
    transmission = torch.exp(-disc(contrast=0.15).double())
    contrast = 1 - transmission
    found = []
    doses = (200.0, 800.0, 3200.0)
    for dose in doses:
        rates = (dose * t.expand(1200, 1, 1, SIDE, SIDE) for t in (transmission, torch.ones_like(transmission)))
        present, absent = (torch.poisson(rate, generator=generator) / dose for rate in rates)
        found.append(float(hotelling_dprime(present, absent, template_channels(contrast))))
    slope = np.polyfit(np.log(doses), np.log(found), 1)[0]
    assert slope == pytest.approx(0.5, abs=0.03)
    assert found[0] == pytest.approx(math.sqrt(200) * float(contrast.square().sum().sqrt()), rel=0.15)


def test_views_share_a_covariance_and_nothing_else() -> None:
    signals = torch.cat([disc(contrast=0.3), disc(contrast=0.1), -disc(contrast=0.3)])
    channels = template_channels(disc()).expand(3, -1, -1, -1)
    present, absent = signals + white(400, 3, seed=8), white(400, 3, seed=9)
    d = hotelling_dprime(present, absent, channels)
    expected = signals.square().sum((1, 2, 3)).sqrt() / 0.1
    torch.testing.assert_close(d, expected.double(), atol=0.6, rtol=0)
    torch.testing.assert_close(hotelling_dprime(present, absent, channels[:1]), d)
    torch.testing.assert_close(hotelling_dprime(present.flip(1), absent.flip(1), channels).flip(0), d)
    # Three views of two exposures are enough for four channels together, and no view alone is.
    assert torch.isfinite(hotelling_dprime(present[:2], absent[:2], channels)).all()
    with pytest.raises(ParameterError, match="too few for 4 channels"):
        hotelling_dprime(present[:2, :1], absent[:2, :1], channels[:1])


def test_observers_do_not_depend_on_units() -> None:
    signal, channels = disc(), template_channels(disc())
    present, absent = signal + coloured(20, seed=1), coloured(20, seed=2)
    d = hotelling_dprime(present, absent, channels)
    torch.testing.assert_close(hotelling_dprime(5 * present + 3, 5 * absent + 3, channels), d)
    scales = torch.tensor([1.0, 100.0, 0.01, 3.0])[None, :, None, None]
    torch.testing.assert_close(hotelling_dprime(present, absent, scales * channels), d)
    torch.testing.assert_close(hotelling_dprime(present[torch.randperm(20)], absent, channels), d)


def test_the_fewest_exposures_for_the_channels() -> None:
    signal, channels = disc(), template_channels(disc())
    assert torch.isfinite(hotelling_dprime(signal + white(4), white(4, seed=1), channels)).all()
    with pytest.raises(ParameterError, match="too few"):
        hotelling_dprime(signal + white(4), white(3, seed=1), channels)


def test_channels_are_the_template_and_its_smoothings() -> None:
    channels = template_channels(disc(33), smoothings=(0.0, 1.5))
    torch.testing.assert_close(channels.square().sum((2, 3)), torch.ones(1, 2, dtype=torch.float64))
    torch.testing.assert_close(channels[:, :1], disc(33).double() / disc(33).double().square().sum().sqrt())
    point = torch.zeros(1, 1, 33, 33)
    point[..., 16, 16] = 0.5
    y, x = torch.meshgrid(torch.arange(33) - 16, torch.arange(33) - 16, indexing="ij")
    gauss = torch.exp(-(x**2 + y**2).double() / (2 * 1.5**2))
    blurred = template_channels(point, smoothings=(0.0, 1.5))[0, 1]
    torch.testing.assert_close(blurred, gauss / gauss.square().sum().sqrt(), atol=2e-4, rtol=0)

    mask = torch.ones(1, 1, SIDE, SIDE, dtype=torch.bool)
    mask[..., :8] = False
    assert template_channels(disc(), mask)[..., :8].abs().max() == 0


def test_channels_refuse_objects_that_are_not_seen_and_repeats() -> None:
    hidden = torch.zeros(1, 1, SIDE, SIDE, dtype=torch.bool)
    hidden[..., 0, 0] = True
    for template, mask in ((disc(contrast=0.0), None), (disc(contrast=0.01), None), (disc(), hidden)):
        with pytest.raises(ParameterError, match="below 0.02"):
            template_channels(template, mask)
    for smoothings in ((), (1.0, 1.0), (-1.0,), (float("nan"),)):
        with pytest.raises(ParameterError, match="smoothings"):
            template_channels(disc(), smoothings=smoothings)


def test_observers_refuse_what_they_cannot_judge() -> None:
    signal, channels = disc(), template_channels(disc())
    present, absent = signal + white(20), white(20, seed=1)
    for a, b, u in (
        (present[:, 0], absent[:, 0], channels),
        (present, absent[..., 1:], channels),
        (present, absent, channels[..., 1:]),
        (present, absent, channels.expand(2, -1, -1, -1)),
        (present[:1], absent, channels),
        (present * float("nan"), absent, channels),
    ):
        with pytest.raises(ParameterError):
            hotelling_dprime(a, b, u)
    still = torch.zeros_like(absent)
    with pytest.raises(ParameterError, match="singular"):
        hotelling_dprime(still + signal, still, channels)
    with pytest.raises(ParameterError, match="singular"):
        hotelling_dprime(present, absent, torch.cat([channels, channels[:, :1]], dim=1))
