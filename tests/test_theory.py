"""The Gaussian theory: one law for inverted and fresh noise, half shifts, and what a solver keeps of a mode."""

import math

import pytest
import torch
from oracles.gaussian import IdentityCodec, IsotropicGaussians

from medshift.errors import ParameterError
from medshift.theory import (
    Components,
    Gaussian,
    exact_translation,
    half_shift_tau,
    kl_divergence,
    mode_retention,
    shift_share,
    shift_spread,
    translated_law,
)
from medshift.translate import MedShift


def gaussian(seed: int, d: int = 5) -> Gaussian:
    g = torch.Generator().manual_seed(seed)
    root = torch.randn(d, d, generator=g, dtype=torch.float64)
    return Gaussian(torch.randn(d, generator=g, dtype=torch.float64), root @ root.T / d + 0.05 * torch.eye(d))


@pytest.mark.parametrize("tau", [0.02, 0.1, 0.3, 0.6, 0.95])
def test_translations_are_as_far_from_the_target_as_the_noised_laws_are(tau: float) -> None:
    source, target = gaussian(1), gaussian(2)
    out = kl_divergence(translated_law(source, target, tau), target)
    noised = kl_divergence(source.noised(tau), target.noised(tau))
    assert out == pytest.approx(noised, rel=1e-6) and out > 1e-6


def test_realism_falls_with_tau_whatever_the_pair() -> None:
    source, target = gaussian(3), gaussian(4)
    found = [kl_divergence(translated_law(source, target, t), target) for t in (0.0, 0.05, 0.2, 0.5, 0.8, 1.0)]
    assert found[0] == pytest.approx(0, abs=1e-9) and found == sorted(found)
    assert found[-1] == pytest.approx(kl_divergence(source, target), rel=1e-6)


@pytest.mark.parametrize("tau", [0.1, 0.45])
def test_the_law_is_that_of_translated_samples(tau: float, generator: torch.Generator) -> None:
    """Against MedShift itself on a closed-form field, with samples."""
    oracle = IsotropicGaussians(torch.tensor([[-1.0, 0.5], [1.0, 0.0]], dtype=torch.float64), [0.4, 0.7])
    model = MedShift(oracle, IdentityCodec(), 2)
    x = oracle.sample(0, 20_000, generator)[:, :, None, None]
    out = model.translate(x, 0, 1, tau=tau, steps=60).flatten(1)
    laws = [Gaussian(oracle.means[k], oracle.stds[k] ** 2 * torch.eye(2, dtype=torch.float64)) for k in (0, 1)]
    law = translated_law(*laws, tau)
    torch.testing.assert_close(out.mean(0), law.mean, atol=0.01, rtol=0)
    torch.testing.assert_close(torch.cov(out.T), law.covariance, atol=0.012, rtol=0)
    share = (law.mean - laws[0].mean) @ (laws[1].mean - laws[0].mean) / (laws[1].mean - laws[0].mean).square().sum()
    assert float(share) == pytest.approx(shift_share(tau, 0.7), abs=1e-9)


@pytest.mark.parametrize("spread", [0.1, 1.0, 5.15])
def test_half_of_the_shift_is_done_at_the_tau_that_says_so(spread: float) -> None:
    assert shift_share(half_shift_tau(spread), spread) == pytest.approx(0.5, abs=1e-12)
    odds = half_shift_tau(spread) / (1 - half_shift_tau(spread))
    twice = half_shift_tau(2 * spread) / (1 - half_shift_tau(2 * spread))
    assert odds / twice == pytest.approx(2.0)


def test_the_spread_is_that_of_the_whole_latent_along_the_shift(generator: torch.Generator) -> None:
    """Common brightness: 256 pixels of standard deviation 1 that move together spread by 16 along their mean."""
    shape = (4000, 1, 16, 16)
    common = torch.randn(4000, 1, 1, 1, generator=generator)
    target = common.expand(shape) + 3.0
    assert shift_spread(torch.zeros(2, 1, 16, 16), target) == pytest.approx(16.0, rel=0.03)
    independent = torch.randn(shape, generator=generator) + 3.0
    assert shift_spread(torch.zeros(2, 1, 16, 16), independent) == pytest.approx(1.0, rel=0.03)


def test_no_direction_and_no_spread_are_refused() -> None:
    same = torch.ones(3, 4)
    with pytest.raises(ParameterError, match="no direction"):
        shift_spread(same, same)
    with pytest.raises(ParameterError, match="no spread"):
        shift_spread(torch.zeros(2, 4), torch.ones(1, 4))


def test_euler_keeps_what_the_product_of_its_steps_keeps() -> None:
    """Against the product of (1 ± h gamma) written out; the published step loses 57 % of a mode of .02."""
    spread, tau, steps = 0.05, 0.3, 50
    value, h = 1.0, 1 / steps
    times = [k / steps for k in range(steps, round(tau * steps), -1)]

    def rate(t: float) -> float:
        return (t * spread**2 - (1 - t)) / ((1 - t) ** 2 + t**2 * spread**2)

    for t in times:
        value *= 1 - h * rate(t)
    for t in reversed([t - h for t in times]):
        value *= 1 + h * rate(t)
    modes = torch.tensor([spread, 0.02], dtype=torch.float64)
    kept = mode_retention(modes, tau, solver="euler", grid="uniform", steps=steps)
    assert float(kept[0]) == pytest.approx(value, rel=1e-9) and float(kept[0]) == pytest.approx(0.713, abs=0.002)
    assert float(kept[1]) == pytest.approx(0.43, abs=0.01)


def test_an_accurate_solver_keeps_every_mode() -> None:
    spread = torch.tensor([0.02, 0.05, 0.1, 0.5, 1.0, 3.0])
    for tau in (0.02, 0.3, 0.6):
        assert (mode_retention(spread, tau) - 1).abs().max() < 0.03
        assert (mode_retention(spread, tau, steps=120) - 1).abs().max() < 5e-4
    assert torch.equal(mode_retention(spread, 1.0), torch.ones(6, dtype=torch.float64))
    assert math.isclose(shift_share(1.0, 0.3), 0.0, abs_tol=1e-12) and shift_share(0.0, 0.3) == 1.0


def components(seed: int, d: int = 7, k: int = 3) -> tuple[Components, Gaussian]:
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(d, k, generator=generator, dtype=torch.float64))[0]
    variances = torch.tensor([4.0, 2.0, 0.5], dtype=torch.float64)
    mean = torch.randn(d, generator=generator, dtype=torch.float64)
    dense = basis @ torch.diag(variances - 0.3) @ basis.T + 0.3 * torch.eye(d, dtype=torch.float64)
    return Components(mean, basis, variances, 0.3), Gaussian(mean, dense)


@pytest.mark.parametrize("tau", [0.02, 0.3, 0.8])
def test_translations_by_components_have_the_law_of_the_dense_closed_form(tau: float) -> None:
    (a, dense_a), (b, dense_b) = components(0), components(1)
    origin = exact_translation(torch.zeros(1, 7, dtype=torch.float64), a, b, tau)
    linear = exact_translation(torch.eye(7, dtype=torch.float64), a, b, tau) - origin  # rows: images of axes
    expected = translated_law(dense_a, dense_b, tau)
    torch.testing.assert_close(a.mean @ linear + origin[0], expected.mean)
    torch.testing.assert_close(linear.T @ dense_a.covariance @ linear, expected.covariance)


def test_from_a_domain_to_itself_the_exact_field_changes_nothing() -> None:
    a, _ = components(0)
    x = a.sample(5, torch.Generator().manual_seed(0))
    torch.testing.assert_close(exact_translation(x, a, a, 0.3), x)


def test_components_are_those_of_the_data() -> None:
    a, dense = components(0)
    x = a.sample(40_000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(torch.cov(x.T), dense.covariance, atol=0.06, rtol=0)
    fitted = Components.fit(x, 3)
    torch.testing.assert_close(fitted.variances, a.variances, rtol=0.03, atol=0)
    assert fitted.rest == pytest.approx(0.3, rel=0.03)
    with pytest.raises(ParameterError, match="four or more"):
        Components.fit(x[:3])
