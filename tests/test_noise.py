"""Noise spectra, variance against mean and histogram distance against closed forms and other implementations."""

from typing import Any

import numpy as np
import pytest
import statsmodels.api as sm
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import wasserstein_distance

from medshift.errors import ParameterError
from medshift.metrics.noise import (
    VarianceCurve,
    grey_histograms,
    histogram_w1,
    histograms_w1,
    noise_from_pair,
    noise_from_residual,
    noise_power_spectrum,
    power_distance,
    spectrum_distance,
    variance_against_mean,
)
from medshift.metrics.physics import high_pass_std


def white(n: int, seed: int, side: int = 48, std: float = 1.0) -> torch.Tensor:
    return std * torch.randn(n, 1, side, side, generator=torch.Generator().manual_seed(seed))


def smoothed(noise: torch.Tensor) -> torch.Tensor:
    """Each pixel and its right and lower neighbours averaged in both directions, period at the border."""
    noise = (noise + noise.roll(1, -1)) / 2
    return (noise + noise.roll(1, -2)) / 2


def test_noise_of_a_pair_holds_no_anatomy_and_one_exposures_variance() -> None:
    anatomy = torch.linspace(-1, 1, 48).expand(50, 1, 48, 48)
    noise = noise_from_pair(anatomy + white(50, 0, std=0.2), anatomy + white(50, 1, std=0.2))
    assert noise.std() == pytest.approx(0.2, rel=0.01)
    assert noise.mean((0, 1, 2)).abs().max() < 0.02
    assert (noise_from_pair(anatomy, anatomy) == 0).all()


def test_white_noise_is_flat_at_its_variance() -> None:
    frequency, power = noise_power_spectrum(white(300, 2, std=0.3))
    assert frequency[0] > 0 and frequency[-1] < 0.5 and power.shape == (300, len(frequency))
    # Removing the mean under the window takes a little of the lowest frequency.
    np.testing.assert_allclose(power.mean(0)[1:], 0.09, rtol=0.05)


def test_coloured_noise_has_its_closed_form() -> None:
    frequency, power = noise_power_spectrum(smoothed(white(600, 3, side=64)))
    # |(1 + e^-2πif)/2|² is cos²(πf); averaged over the directions of a ring.
    angle = (np.arange(720) + 0.5) * 2 * np.pi / 720
    f = frequency.numpy()[:, None]
    expected = (np.cos(np.pi * f * np.cos(angle)) ** 2 * np.cos(np.pi * f * np.sin(angle)) ** 2).mean(axis=1)
    np.testing.assert_allclose(power.mean(0)[1:], expected[1:], rtol=0.06)


def test_a_mask_closes_pixels_and_keeps_the_level() -> None:
    noise, mask = white(400, 4), torch.ones(400, 1, 48, 48, dtype=torch.bool)
    mask[..., 26:, :] = False
    damaged = torch.where(mask, noise, torch.full_like(noise, 50.0))
    _, power = noise_power_spectrum(damaged, mask)
    np.testing.assert_allclose(power.mean(0)[1:], 1.0, rtol=0.08)
    torch.testing.assert_close(noise_power_spectrum(noise, mask)[1], power)


def test_the_residual_is_what_its_standard_deviation_is_taken_of() -> None:
    image, mask = white(3, 5) + 0.5, torch.ones(3, 1, 48, 48, dtype=torch.bool)
    mask[..., 30:, :] = False
    residual, inner = noise_from_residual(image, mask)
    for i in range(3):
        spread = residual[i][inner[i]].std(unbiased=False)
        torch.testing.assert_close(spread, high_pass_std(image, mask)[i])
    # A step at the mask's border is further away than the blur reaches.
    step = torch.where(mask, image, torch.ones_like(image))
    np.testing.assert_allclose(noise_from_residual(step, mask)[0][inner], residual[inner], atol=1e-6)


@pytest.mark.parametrize(("factor", "expected"), [(1.0, 0.0), (2.0, 3.0103), (0.1, 10.0)])
def test_spectrum_distance_of_scaled_noise_is_its_decibels(factor: float, expected: float) -> None:
    noise = white(20, 6)
    assert spectrum_distance(noise * factor**0.5, noise) == pytest.approx(expected, abs=1e-4)


def test_spectrum_distance_of_coloured_noise_is_that_of_the_closed_form() -> None:
    noise = white(300, 7, side=64)
    frequency = noise_power_spectrum(noise)[0]
    angle = (np.arange(720) + 0.5) * 2 * np.pi / 720
    f = frequency.numpy()[:, None]
    ring = (np.cos(np.pi * f * np.cos(angle)) ** 2 * np.cos(np.pi * f * np.sin(angle)) ** 2).mean(axis=1)
    expected = np.sqrt(((10 * np.log10(ring)) ** 2).mean())
    assert spectrum_distance(smoothed(noise), noise) == pytest.approx(expected, rel=0.03)


def test_spectrum_distance_takes_sets_of_any_size_in_any_order() -> None:
    a, b = white(12, 8), white(30, 9)
    forward = spectrum_distance(a, b)
    assert 0 < forward < 1
    assert spectrum_distance(b, a) == pytest.approx(forward)
    assert spectrum_distance(a.flip(0), b) == pytest.approx(forward)
    mask = torch.ones_like(a, dtype=torch.bool)
    mask[..., :20] = False
    assert spectrum_distance(a * (1 + 9 * ~mask), a, mask, mask) == pytest.approx(0.0, abs=1e-9)


def poisson_gaussian(
    k: int, gain: float, floor: float, seed: int, low: float = 20.0, high: float = 400.0
) -> torch.Tensor:
    """Exposures (K,2,1,64,64) whose variance is gain · mean + floor."""
    rng = np.random.default_rng(seed)
    quanta = np.linspace(low, high, 2 * 64 * 64).reshape(2, 1, 64, 64)
    counts = rng.poisson(quanta, size=(k, *quanta.shape))
    return torch.from_numpy(gain * counts + np.sqrt(floor) * rng.normal(size=counts.shape))


def line(curve: VarianceCurve) -> Any:
    """The weighted least squares line through a curve: intercept and slope, with their standard errors."""
    return sm.WLS(curve.variance, sm.add_constant(curve.mean), weights=curve.count / curve.variance**2).fit()


def test_line_of_variance_against_mean_is_recovered_within_its_errors() -> None:
    gain, floor = 0.05, 0.1
    for seed in range(4):
        fit = line(variance_against_mean(poisson_gaussian(8, gain, floor, seed)))
        assert (np.abs(fit.params - [floor, gain]) < 4 * fit.bse).all()
        assert (4 * fit.bse < [0.3 * floor, 0.1 * gain]).all()


def test_slope_is_not_flattened_where_noise_is_as_wide_as_the_signal() -> None:
    # Signals of 100 to 110 quanta with noise of 10: bins chosen by the measured mean itself would give half the slope.
    gain, floor = 1.0, 200.0
    slopes = [
        line(variance_against_mean(poisson_gaussian(8, gain, floor, 50 + s, 60.0, 140.0))).params[1] for s in range(24)
    ]
    assert np.mean(slopes) == pytest.approx(gain, abs=0.12)


def test_curve_counts_every_open_pixel_once_and_skips_closed_ones() -> None:
    stack = poisson_gaussian(5, 1.0, 1.0, 9)
    mask = torch.ones(2, 1, 64, 64, dtype=torch.bool)
    mask[1] = False
    curve = variance_against_mean(stack, mask, bins=7)
    assert curve.count.sum() == 64 * 64 and (np.diff(curve.mean) > 0).all()
    spoiled = torch.where(mask, stack, torch.full_like(stack, 1e6))
    np.testing.assert_array_equal(variance_against_mean(spoiled, mask, bins=7).variance, curve.variance)


@given(shift=st.floats(-1.5, 1.5))
def test_histogram_distance_of_a_shift_is_the_shift(shift: float) -> None:
    a = white(2, 10, side=12).double()
    assert histogram_w1(a, a + shift) == pytest.approx(abs(shift), abs=1e-9)


def test_histogram_distance_of_sets_of_other_sizes_counts_open_pixels_alone() -> None:
    a, b = white(3, 11, side=20), 0.5 * white(5, 12, side=20) + 0.1
    mask_a, mask_b = a > -0.5, b < 0.8
    expected = wasserstein_distance(a[mask_a].numpy(), b[mask_b].numpy())
    assert histogram_w1(a, b, mask_a, mask_b) == pytest.approx(expected, rel=1e-6)
    spoiled = torch.where(mask_a, a, torch.full_like(a, 9.0))
    assert histogram_w1(spoiled, b, mask_a, mask_b) == pytest.approx(expected, rel=1e-6)
    assert histogram_w1(spoiled, b) > expected
    # For equal sizes it is the mean distance of sorted values.
    x, y = white(2, 13, side=9), white(2, 14, side=9) - 0.3
    sorted_distance = (x.flatten().sort().values - y.flatten().sort().values).abs().mean()
    assert histogram_w1(x, y) == pytest.approx(float(sorted_distance), rel=1e-5)
    assert histogram_w1(x, x) == 0.0 == histogram_w1(x, x.flip(0))


def test_what_cannot_be_measured_is_refused() -> None:
    image, shut = white(2, 15, side=16), torch.zeros(2, 1, 16, 16, dtype=torch.bool)
    narrow = shut.clone()
    narrow[..., 4:12] = True
    with pytest.raises(ParameterError, match="one shape"):
        noise_from_pair(image, image[:1])
    with pytest.raises(ParameterError, match="NaN"):
        noise_power_spectrum(image * float("nan"))
    with pytest.raises(ParameterError, match="closed"):
        noise_power_spectrum(image, shut)
    with pytest.raises(ParameterError, match="8 x 8"):
        noise_power_spectrum(image[..., :6, :6])
    with pytest.raises(ParameterError, match="boolean"):
        noise_power_spectrum(image, shut.float())
    with pytest.raises(ParameterError, match="narrower"):
        noise_from_residual(image, narrow)
    with pytest.raises(ParameterError, match="no noise at all"):
        spectrum_distance(torch.ones_like(image), image)
    with pytest.raises(ParameterError, match="height and width"):
        spectrum_distance(image, white(2, 16, side=20))
    with pytest.raises(ParameterError, match="three exposures"):
        variance_against_mean(torch.stack([image, image]))
    with pytest.raises(ParameterError, match="cannot fill"):
        variance_against_mean(torch.stack([image] * 3), bins=500)
    with pytest.raises(ParameterError, match="no pixel"):
        histogram_w1(image, image, shut)
    with pytest.raises(ParameterError, match="one shape"):
        histogram_w1(image[:0], image)


def test_a_distance_of_histograms_is_the_exact_one_to_a_bin() -> None:
    a, b = white(3, 11, side=20), 0.5 * white(5, 12, side=20) + 0.1
    mask_a, mask_b = a > -0.5, b < 0.8
    first, other, middles = grey_histograms(a, b, mask_a, mask_b)
    assert first.sum() == mask_a.sum() and other.sum() == mask_b.sum() and len(first) == 3 and len(other) == 5
    width = middles[1] - middles[0]
    assert histograms_w1(first, other, middles) == pytest.approx(histogram_w1(a, b, mask_a, mask_b), abs=width)
    some = histograms_w1(first[1:], other[:4], middles)
    assert some == pytest.approx(histogram_w1(a[1:], b[:4], mask_a[1:], mask_b[:4]), abs=width)
    flat = torch.full_like(a, 0.3)
    *counts, middles = grey_histograms(flat, flat)
    assert histograms_w1(*counts, middles) == 0.0
    with pytest.raises(ParameterError, match="no pixel"):
        histograms_w1(0 * first, other, middles)


def test_a_distance_of_powers_is_that_of_the_noise() -> None:
    a, b = white(4, 8), 1.5 * white(6, 9)
    powers = [noise_power_spectrum(x)[1].numpy() for x in (a, b)]
    assert power_distance(*powers) == spectrum_distance(a, b)
    with pytest.raises(ParameterError, match="K the same"):
        power_distance(powers[0], powers[1][:, 1:])
    with pytest.raises(ParameterError, match="no noise at all"):
        power_distance(0 * powers[0], powers[1])
