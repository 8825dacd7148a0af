"""The path, its velocity, the law of the times, and what the loss is minimal at."""

import pytest
import torch
from oracles.gaussian import IsotropicGaussians

from medshift.errors import ParameterError
from medshift.flow import (
    TIME_LAWS,
    drop_labels,
    flow_matching_loss,
    interpolate,
    sample_time,
    velocity_target,
)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("sigma_min", [0.0, 1e-4, 0.1])
def test_the_path_runs_from_noise_to_data_at_the_target_velocity(sigma_min):
    x1, noise = torch.randn(2, 5, 2, 3, 3, generator=rng(), dtype=torch.float64)
    zero, one = torch.zeros(()), torch.ones(())
    torch.testing.assert_close(interpolate(x1, noise, zero, sigma_min), noise)
    torch.testing.assert_close(interpolate(x1, noise, one, sigma_min), x1 + sigma_min * noise)
    times = torch.rand(5, generator=rng(1), dtype=torch.float64)
    at = interpolate(x1, noise, times, sigma_min)
    for i, t in enumerate(times):
        torch.testing.assert_close(at[i], interpolate(x1[i : i + 1], noise[i : i + 1], t, sigma_min)[0])
    _, slope = torch.func.jvp(lambda t: interpolate(x1, noise, t, sigma_min), (times,), (torch.ones_like(times),))
    torch.testing.assert_close(slope, velocity_target(x1, noise, sigma_min))


@pytest.mark.parametrize("law", TIME_LAWS)
@pytest.mark.parametrize("stratified", [True, False])
def test_every_law_of_the_times_reaches_both_ends(law, stratified):
    t = sample_time(20000, rng(), law, stratified=stratified)
    assert t.shape == (20000,) and t.min() >= 0 and t.max() <= 1
    share = 0.5 if law == "logit-normal-mixed" else 1.0
    for end in (t < 0.02, t > 0.98):
        assert end.float().mean() > 0.8 * share * 0.02
    assert float((t < 0.5).float().mean()) == pytest.approx(0.5, abs=0.02)


def test_the_laws_are_what_they_are_called():
    probes = torch.tensor([0.1, 0.25, 0.5, 0.8])

    def cdf(law, **knobs):
        t = sample_time(40000, rng(3), law, **knobs)
        return (t[:, None] < probes).float().mean(0)

    logit_normal = torch.special.ndtr(torch.logit(probes))
    arcsine = 2 / torch.pi * probes.sqrt().asin()
    torch.testing.assert_close(cdf("uniform"), probes, atol=1e-3, rtol=0)
    torch.testing.assert_close(cdf("arcsine"), arcsine, atol=1e-3, rtol=0)
    mixed = 0.3 * probes + 0.7 * logit_normal
    torch.testing.assert_close(cdf("logit-normal-mixed", uniform_share=0.3), mixed, atol=0.01, rtol=0)


def test_stratified_times_have_one_in_each_stratum():
    t = sample_time(64, rng())
    assert sorted((t * 64).floor().int().tolist()) == list(range(64))
    assert not torch.equal(t, t.sort().values)


def test_labels_are_dropped_one_by_one_and_never_in_place():
    label = torch.arange(3).repeat(4000)
    before = label.clone()
    dropped = drop_labels(label, rng(), 3, 0.1)
    assert torch.equal(label, before)
    assert float((dropped == 3).float().mean()) == pytest.approx(0.1, abs=0.01)
    assert torch.equal(dropped[dropped != 3], label[dropped != 3])
    # A batch of one is dropped as often: a rounded share of the batch would never be.
    generator = rng(1)
    one = torch.zeros(1, dtype=torch.int64)
    singles = torch.cat([drop_labels(one, generator, 3, 0.1) for _ in range(2000)])
    assert float((singles == 3).float().mean()) == pytest.approx(0.1, abs=0.03)
    assert torch.equal(drop_labels(label, rng(), 3, 0.0), label)
    assert torch.all(drop_labels(label, rng(), 3, 1.0) == 3)


@pytest.mark.parametrize("dropout", [0.0, 0.3, 1.0])
def test_the_loss_is_stationary_at_the_marginal_velocity(dropout):
    """E[(v - u) g(x_t, t)] = 0 for every g: no linear correction of the exact velocity lowers the loss."""
    field = IsotropicGaussians(torch.tensor([[-1.0], [0.8]], dtype=torch.float64), (0.3, 0.6))
    n = 40000
    label = torch.arange(2).repeat_interleave(n // 2)
    x1 = torch.cat([field.sample(k, n // 2, rng(k)) for k in range(2)])
    weights = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)

    def corrected(x, t, label):
        x, t = x[:, 0], t.reshape(-1)
        basis = torch.stack([torch.ones_like(x), x, t], 1)
        per_label = weights[torch.where(label == 2, 0, label)]
        return field(x[:, None], t, label) + (basis * per_label).sum(1, keepdim=True)

    loss = flow_matching_loss(corrected, x1, label, rng(9), null_label=2, label_dropout=dropout)
    (gradient,) = torch.autograd.grad(loss, weights)
    assert gradient.abs().max() < 0.03
    # A wrong velocity is noticed: with the sign of time turned, or the label of the other domain.
    for wrong in (
        lambda x, t, c: field(x, 1 - t.reshape(-1), c),
        lambda x, t, c: field(x, t, torch.where(c == 2, 2, 1 - c)) + 0.2 * (c == 2)[:, None],
    ):
        assert flow_matching_loss(wrong, x1, label, rng(9), null_label=2, label_dropout=dropout) > loss + 0.01


def test_the_loss_is_that_of_its_own_draws():
    seen = {}

    def velocity(x, t, label):
        seen.update(x=x, t=t, label=label)
        return torch.zeros_like(x)

    x1 = torch.randn(6, 2, 4, 4, generator=rng(2))
    label = torch.tensor([0, 1, 0, 1, 1, 0])
    loss = flow_matching_loss(velocity, x1, label, rng(5), null_label=2, sigma_min=0.01, label_dropout=0.5)
    t = seen["t"].reshape(-1, 1, 1, 1)
    noise = (seen["x"] - t * x1) / (1 - 0.99 * t)
    torch.testing.assert_close(loss, (x1 - 0.99 * noise).square().mean(), rtol=1e-4, atol=0)
    assert seen["t"].shape == (6,) and seen["label"].dtype == torch.int64
    assert torch.equal(label, torch.tensor([0, 1, 0, 1, 1, 0]))
    again = flow_matching_loss(velocity, x1, label, rng(5), null_label=2, sigma_min=0.01, label_dropout=0.5)
    assert torch.equal(loss, again)
    other = flow_matching_loss(velocity, x1, label, rng(6), null_label=2, sigma_min=0.01, label_dropout=0.5)
    assert not torch.equal(loss, other)


def test_the_loss_of_a_half_precision_network_is_of_single_precision():
    x1 = torch.randn(4, 1, 2, 2, generator=rng())
    label = torch.zeros(4, dtype=torch.int64)
    loss = flow_matching_loss(lambda x, t, c: x.bfloat16(), x1, label, rng(), null_label=1)
    assert loss.dtype == torch.float32 and loss.shape == ()


@pytest.mark.parametrize(
    "knobs",
    [
        {"sigma_min": 1.0},
        {"sigma_min": -0.1},
        {"label_dropout": 1.5},
        {"time_law": "beta"},
        {"uniform_share": 0.0},
    ],
)
def test_knobs_out_of_range_are_refused(knobs):
    x1, label = torch.zeros(2, 1, 1, 1), torch.zeros(2, dtype=torch.int64)
    knobs = {"time_law": "logit-normal-mixed", **knobs}
    with pytest.raises(ParameterError):
        flow_matching_loss(lambda x, t, c: x, x1, label, rng(), null_label=1, **knobs)
