"""Floors: what each can do exactly, and what it cannot."""

import pytest
import torch
from oracles.gaussian import IdentityCodec, IsotropicGaussians

from medshift.baselines.blur_tone import BlurTone
from medshift.baselines.forward_noised import ForwardNoised
from medshift.baselines.fresh_noise import FreshNoise
from medshift.baselines.histogram import HistogramMatch
from medshift.baselines.identity import Identity
from medshift.baselines.nearest import NearestTarget
from medshift.errors import ParameterError
from medshift.tone import blurred
from medshift.translate import MedShift

DOMAINS = ("a", "b")


def smooth(n: int, seed: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.nn.functional.interpolate(torch.rand(n, 1, 16, 16, generator=g), size=64, mode="bilinear") * 1.6 - 0.8


def test_identity_returns_the_very_images() -> None:
    x = smooth(2, 0)
    assert Identity().translate(x, "a", "b") is x


def test_histogram_match_recovers_a_monotone_tone_curve() -> None:
    a, b = smooth(64, 1), smooth(64, 2)
    match = HistogramMatch([a, torch.sin(b * 1.4)], DOMAINS)
    x = smooth(8, 3)
    error = (match.translate(x, "a", "b") - torch.sin(x * 1.4)).abs()
    assert error.mean() < 0.015
    back = match.translate(match.translate(x, 0, 1), 1, 0)
    assert (back - x).abs().mean() < 0.01


def test_blur_tone_finds_blur_and_tone() -> None:
    g = torch.Generator().manual_seed(4)
    a = smooth(96, 1) + 0.15 * torch.randn(96, 1, 64, 64, generator=g)
    b = smooth(96, 2) + 0.15 * torch.randn(96, 1, 64, 64, generator=g)
    floor = BlurTone([a, 0.5 * blurred(b, 0.8) + 0.1], DOMAINS)
    assert floor.fit(0, 1)[0] == 0.8
    # Blur cannot sharpen: backwards the best blur is none.
    assert floor.fit(1, 0)[0] == 0.0


def test_nearest_returns_a_training_image_and_finds_a_copy() -> None:
    a, b = smooth(32, 1), smooth(32, 2)
    query = b[[7, 3]] * 0.5  # the same anatomy in domain a's tone
    found = NearestTarget([b * 0.5, b], DOMAINS).translate(query, "a", "b")
    torch.testing.assert_close(found, b[[7, 3]])
    other = NearestTarget([a, b], DOMAINS).translate(smooth(4, 9), 0, 1)
    assert all(any(torch.equal(o, t) for t in b) for o in other)


# The same network from fresh noise, and with forward-noised first steps


def gaussian_model() -> tuple[IsotropicGaussians, MedShift]:
    means = torch.tensor([[-1.0, 0.0, 0.5, 0.0], [1.0, 0.5, 0.0, 0.0]], dtype=torch.float64)
    oracle = IsotropicGaussians(means, [0.4, 0.6])
    return oracle, MedShift(oracle, IdentityCodec(), 2)


def test_fresh_noise_has_the_law_of_inversion_and_another_coupling(generator: torch.Generator) -> None:
    oracle, model = gaussian_model()
    x = oracle.sample(0, 20_000, generator)[:, :, None, None]
    noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    inverted = model.translate(x, 0, 1, tau=0.3, steps=40).flatten(1)
    fresh = FreshNoise(model).translate(x, 0, 1, tau=0.3, noise=noise, steps=40).flatten(1)
    torch.testing.assert_close(fresh.mean(0), inverted.mean(0), atol=0.02, rtol=0)
    torch.testing.assert_close(torch.cov(fresh.T), torch.cov(inverted.T), atol=0.02, rtol=0)
    source = x.flatten(1)
    kept = [torch.corrcoef(torch.stack([source[:, 0], o[:, 0]]))[0, 1] for o in (inverted, fresh)]
    assert kept[0] > 0.999 and kept[1] < 0.5


def test_fresh_noise_at_one_is_the_image_and_costs_half() -> None:
    _, model = gaussian_model()
    x = torch.randn(3, 4, 1, 1, dtype=torch.float64)
    method = FreshNoise(model)
    assert torch.equal(method.translate(x, 0, 1, tau=1.0, noise=torch.randn_like(x)), x)
    assert 2 * method.nfe(0.3) == model.nfe(0.3) and 2 * method.nfe(0.3, guidance=2.0) == model.nfe(0.3, guidance=2.0)


def test_a_start_at_one_is_plain_inversion_bit_for_bit(generator: torch.Generator) -> None:
    oracle, model = gaussian_model()
    x = oracle.sample(0, 5, generator)[:, :, None, None]
    noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    plain = ForwardNoised(model, 1.0)
    for tau in (0.02, 0.3, 1.0):
        assert torch.equal(plain.encode(x, 0, tau, noise=noise), model.encode(x, 0, tau))
        assert torch.equal(plain.translate(x, 0, 1, tau=tau, noise=noise), model.translate(x, 0, 1, tau=tau))
    assert plain.nfe(0.3) == model.nfe(0.3)


def test_forward_noise_replaces_the_noise_a_clean_source_lacks(generator: torch.Generator) -> None:
    """A source at the mean, free of spread, has z_tau without spread; a forward-noised start gives it the target's."""
    oracle, model = gaussian_model()
    x = oracle.means[0].expand(4000, -1)[:, :, None, None]
    noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    plain, started = (ForwardNoised(model, start).encode(x, 0, 0.2, noise=noise) for start in (1.0, 0.5))
    assert plain.std(dim=0).max() < 1e-9
    # The flow of A carries the spread .5 of the noise at t = .5 on by c(.2) / c(.5).
    c = [((1 - t) ** 2 + t**2 * 0.4**2) ** 0.5 for t in (0.2, 0.5)]
    assert started.std(dim=0).mean() == pytest.approx(0.5 * c[0] / c[1], rel=0.03)
    assert ForwardNoised(model, 0.5).nfe(0.2) < model.nfe(0.2)


def test_a_start_below_tau_or_outside_the_unit_interval_is_refused() -> None:
    _, model = gaussian_model()
    x = torch.zeros(1, 4, 1, 1, dtype=torch.float64)
    with pytest.raises(ParameterError, match="above the start"):
        ForwardNoised(model, 0.5).translate(x, 0, 1, tau=0.6, noise=x)
    for start in (0.0, 1.2):
        with pytest.raises(ParameterError, match="expected a time"):
            ForwardNoised(model, start)
