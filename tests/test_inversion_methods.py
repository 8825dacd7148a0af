"""Methods on top of a trained velocity, and MedShift's own relatives, against closed forms of exact velocities."""

import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.gaussian import GaussianMixtures, Gaussians, IdentityCodec, IsotropicGaussians

from medshift.baselines.cycle_diffusion import CycleDiffusion, EditFriendly
from medshift.baselines.exact_inverse import ExactInverse
from medshift.baselines.flow_edit import FlowEdit
from medshift.baselines.fresh_noise import FreshNoise
from medshift.baselines.rf_solver import RFSolver
from medshift.baselines.same_budget import SameBudget, SameBudgetConfig, SameBudgetTraining
from medshift.baselines.two_networks import TwoNetworks, TwoNetworksConfig, TwoNetworksTraining
from medshift.codec import PatchCodec
from medshift.errors import ParameterError
from medshift.guidance import CountingVelocity
from medshift.ode import leg_knots
from medshift.pairwise import Pair
from medshift.train import TrainConfig, train
from medshift.translate import MedShift

MEANS = torch.tensor([[-1.0, 0.0, 0.5, 0.0], [1.0, 0.5, 0.0, 0.0]], dtype=torch.float64)
SHIFT = (MEANS[1] - MEANS[0])[:, None, None]
EQUAL = IsotropicGaussians(MEANS, (0.5, 0.5))
UNEQUAL = IsotropicGaussians(MEANS, (0.4, 0.6))
REPLAYS = (CycleDiffusion, EditFriendly)
STOCHASTIC = (CycleDiffusion, EditFriendly, FlowEdit)
FREE = (*STOCHASTIC, RFSolver, ExactInverse)
CODEC = IdentityCodec()


def shift(field, n_domains: int = 2) -> MedShift:
    return MedShift(field, IdentityCodec(), n_domains)


def points(field, n: int, generator: torch.Generator, domain: int = 0) -> torch.Tensor:
    """Points of a domain as images (n, 4, 1, 1) of the identity codec."""
    return field.sample(domain, n, generator)[:, :, None, None]


def normal(x: torch.Tensor, draws: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(len(x), draws, *x.shape[1:], generator=generator, dtype=x.dtype)


def given_noise(method, x: torch.Tensor, generator: torch.Generator, **knobs) -> dict:
    """The knobs, with the noise that a stochastic method asks for."""
    draws = method.draws(**knobs) if hasattr(method, "draws") else 0
    return {**knobs, "noise": normal(x, draws, generator)} if draws else knobs


def wavy(x: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """A field that no data has, neither linear nor the same for two labels."""
    place = label.reshape(-1, *(1,) * (x.ndim - 1))
    return torch.sin((2 + place) * x + t) - 0.3 * place * x.roll(1, 1)


def rate(t: float, s: float) -> float:
    """γ of the velocity mu + γ (x - t mu) of a Gaussian of spread s."""
    return (t * s**2 - (1 - t)) / ((1 - t) ** 2 + t**2 * s**2)


def variance(t: float, s: float) -> float:
    return (1 - t) ** 2 + t**2 * s**2


# What all of them have in common


@pytest.mark.parametrize("kind", FREE)
def test_evaluations_per_image_are_those_counted(kind, generator: torch.Generator) -> None:
    x = torch.randn(3, 4, 2, 2, generator=generator)
    for tau, steps, more in ((0.0, 7, {}), (0.3, 5, {}), (0.25, 8, {"averages": 3}), (0.6, 4, {"iterations": 2})):
        counted = CountingVelocity(wavy)
        method = kind(shift(counted))
        if more and kind is not {"averages": FlowEdit, "iterations": ExactInverse}[next(iter(more))]:
            continue
        knobs = {"tau": tau, "steps": steps, **more}
        method.translate(x, 0, 1, **given_noise(method, x, generator, **knobs))
        assert counted.nfe(len(x)) == method.nfe(**knobs) > 0


@pytest.mark.parametrize("kind", FREE)
def test_a_network_on_patches_takes_images_of_any_size(kind, generator: torch.Generator) -> None:
    method = trained(SameBudgetTraining, SameBudgetConfig(channels=(8, 16), norm_groups=4, head_channels=8))
    with torch.no_grad():
        method.network.unet.conv_out.weight.normal_(std=0.05, generator=generator)
    free, x = kind(method.translator().model), torch.randn(2, 1, 9, 11, generator=generator)
    knobs, latent = {"tau": 0.3, "steps": 4}, torch.zeros(2, 4, 5, 6)
    more = given_noise(free, latent, generator, **knobs)
    out, back = free.translate(x, "b", "c", **more), free.translate(x, "b", "b", **more)
    assert out.shape == x.shape and not out.requires_grad and torch.isfinite(out).all()
    assert (out - x).abs().max() > 5 * (back - x).abs().max()


@pytest.mark.parametrize("kind", FREE)
def test_tau_one_is_the_image_without_an_evaluation(kind, generator: torch.Generator) -> None:
    counted = CountingVelocity(wavy)
    method, x = kind(shift(counted)), torch.randn(3, 4, 2, 2, generator=generator)
    assert torch.equal(method.translate(x, 0, 1, tau=1.0), x)
    assert counted.calls == method.nfe(tau=1.0) == 0


@pytest.mark.parametrize("kind", FREE)
def test_a_mixed_batch_is_its_images_one_at_a_time(kind, generator: torch.Generator) -> None:
    method, x = kind(shift(wavy, 3)), torch.randn(4, 4, 2, 2, generator=generator, dtype=torch.float64)
    source, target = torch.tensor([0, 1, 2, 0]), torch.tensor([1, 0, 2, 2])
    knobs = given_noise(method, x, generator, tau=0.3, steps=6)
    together = method.translate(x, source, target, **knobs)
    for i in range(4):
        own = {**knobs, "noise": knobs["noise"][i : i + 1]} if "noise" in knobs else knobs
        alone = method.translate(x[i : i + 1], int(source[i]), int(target[i]), **own)
        torch.testing.assert_close(alone[0], together[i], atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", FREE)
def test_what_is_out_of_range_is_refused(kind, generator: torch.Generator) -> None:
    method, x = kind(shift(wavy)), torch.randn(2, 4, 2, 2, generator=generator)
    good = given_noise(method, x, generator, tau=0.3, steps=4)
    for bad in ({"tau": 1.5}, {"tau": -0.1}, {"steps": 0}):
        with pytest.raises(ParameterError):
            method.translate(x, 0, 1, **{**good, **bad})
    with pytest.raises(ParameterError, match="Unknown domain"):
        method.translate(x, 0, 2, **good)
    if kind in STOCHASTIC:
        for wrong in (None, good["noise"][:, 1:], good["noise"][:, :, :1]):
            with pytest.raises(ParameterError, match="expected standard normal"):
                method.translate(x, 0, 1, **{**good, "noise": wrong})
    for knob, owner in (("averages", FlowEdit), ("iterations", ExactInverse)):
        if kind is owner:
            with pytest.raises(ParameterError, match=knob):
                method.translate(x, 0, 1, **good, **{knob: 0})


@pytest.mark.parametrize("kind", STOCHASTIC)
@settings(max_examples=10)
@given(tau=st.floats(0, 0.95), steps=st.integers(1, 12), seed=st.integers(0, 99))
def test_source_to_source_is_the_identity_bit_for_bit_whatever_the_field(kind, tau, steps, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    method, x = kind(shift(wavy)), torch.randn(2, 4, 3, 2, generator=generator)
    knobs = given_noise(method, x, generator, tau=tau, steps=steps)
    assert torch.equal(method.translate(x, 1, 1, **knobs), x)
    assert (method.translate(x, 1, 0, **knobs) - x).abs().max() > 1e-3


@pytest.mark.parametrize("kind", STOCHASTIC)
def test_every_noise_given_is_used(kind, generator: torch.Generator) -> None:
    method, x = kind(shift(wavy)), torch.randn(1, 4, 2, 2, generator=generator, dtype=torch.float64)
    knobs = given_noise(method, x, generator, tau=0.3, steps=5)
    plain = method.translate(x, 0, 1, **knobs)
    for k in range(knobs["noise"].shape[1]):
        other = knobs["noise"].clone()
        other[:, k] += 0.5
        assert not torch.allclose(plain, method.translate(x, 0, 1, **{**knobs, "noise": other}), atol=1e-4)


# The same law, another coupling


@pytest.mark.parametrize("tau", [0.1, 0.4, 0.8])
def test_medshift_and_sdedit_have_one_law_and_two_couplings(tau: float, generator: torch.Generator) -> None:
    x = points(UNEQUAL, 6000, generator)
    model = shift(UNEQUAL)
    inverted = model.translate(x, 0, 1, tau=tau, steps=30).flatten(1)
    fresh = FreshNoise(model).translate(x, 0, 1, tau=tau, noise=normal(x, 1, generator)[:, 0], steps=30).flatten(1)
    gain = 0.6 / math.sqrt(variance(tau, 0.6))
    law_mean = MEANS[1] + gain * tau * (MEANS[0] - MEANS[1])
    for out in (inverted, fresh):
        torch.testing.assert_close(out.mean(0), law_mean, atol=0.03, rtol=0)
        spread = float((out - law_mean).square().mean().sqrt())
        assert spread == pytest.approx(gain * math.sqrt(variance(tau, 0.4)), rel=0.02)
    kept = [float(torch.corrcoef(torch.stack([x[:, 0, 0, 0], out[:, 0]]))[0, 1]) for out in (inverted, fresh)]
    # A decode leg is affine here, so fresh noise leaves the correlation that x_tau has with x.
    assert kept[0] > 0.9999
    assert kept[1] == pytest.approx(tau * 0.4 / math.sqrt(variance(tau, 0.4)), abs=0.02)


# Stochastic samplers and their noises


@pytest.mark.parametrize("kind", REPLAYS)
@pytest.mark.parametrize(("tau", "steps"), [(0.0, 3), (0.3, 2), (0.3, 50), (0.7, 20)])
def test_replay_shifts_equal_spreads_by_the_closed_form_at_any_number_of_steps(
    kind, tau, steps, generator: torch.Generator
) -> None:
    method, x = kind(shift(EQUAL)), points(EQUAL, 6, generator)
    out = method.translate(x, 0, 1, **given_noise(method, x, generator, tau=tau, steps=steps))
    share = (1 - tau) ** 2 / variance(tau, 0.5)
    torch.testing.assert_close(out, x + share * SHIFT, atol=1e-10, rtol=0)
    medshift = EQUAL.transport(x, torch.zeros(6, dtype=torch.int64), torch.ones(6, dtype=torch.int64), tau)
    torch.testing.assert_close(medshift, x + (1 - math.sqrt(1 - share)) * SHIFT, atol=1e-10, rtol=0)


def ancestral(model: MedShift, x: torch.Tensor, t: float, s: float, label: int) -> tuple[torch.Tensor, float]:
    """Mean and standard deviation of q(x_s | x_t, x_1 = x̂), by Bayes' rule for Gaussians."""
    v = model.velocity(x, torch.tensor(t, dtype=x.dtype), torch.full((len(x),), label))
    data = x + (1 - t) * v
    added = (1 - t) ** 2 - (t / s * (1 - s)) ** 2  # variance of the noise between s and t
    if s == 1:
        return data, 0.0
    precision = 1 / (1 - s) ** 2 + (t / s) ** 2 / added
    mean = (s * data / (1 - s) ** 2 + t / s * x / added) / precision
    return mean, precision**-0.5


@pytest.mark.parametrize("kind", REPLAYS)
def test_a_translation_is_the_sampler_fed_with_the_noises_found(kind, generator: torch.Generator) -> None:
    """An independent sampler reproduces the image under A and the translation under B, from one set of noises."""
    model, x = shift(wavy), torch.randn(3, 4, 2, 2, generator=generator, dtype=torch.float64)
    method, knobs = kind(model), {"tau": 0.2, "steps": 9}
    noise = normal(x, method.draws(**knobs), generator)
    found = method.noises(x, 0, noise=noise, **knobs)
    knots = leg_knots(0.2, "refined", 9)
    paths = [0.2 * x + 0.8 * noise[:, 0]] * 2
    for k, (t, s) in enumerate(pairwise(knots[:-1])):
        for label in (0, 1):
            mean, spread = ancestral(model, paths[label], t, s, label)
            paths[label] = mean + spread * found[:, k]
    ends = [ancestral(model, paths[label], knots[-2], 1.0, label)[0] for label in (0, 1)]
    out = method.translate(x, 0, 1, noise=noise, **knobs)
    torch.testing.assert_close(ends[1] + (x - ends[0]), out, atol=1e-9, rtol=0)
    assert (out - x).abs().max() > 0.1


@pytest.mark.parametrize("kind", REPLAYS)
def test_the_noises_of_an_exact_field_have_the_variance_that_their_path_gives_them(kind, generator) -> None:
    spread, tau, steps = 0.5, 0.3, 40
    method, x = kind(shift(EQUAL)), points(EQUAL, 4000, generator)
    knobs = {"tau": tau, "steps": steps, "grid": "uniform"}
    found = method.noises(x, 0, **given_noise(method, x, generator, **knobs)).flatten(2)
    knots = leg_knots(tau, "uniform", steps)[:-1]
    expected = []
    for t, s in pairwise(knots):
        ratio = t * (1 - s) / (s * (1 - t))
        gain = t / s * variance(s, spread) / variance(t, spread)  # of the step's mean, for an exact field
        shared = (ratio if kind is CycleDiffusion else 0.0) * (1 - s) * (1 - t)
        both = t * s * spread**2 + shared
        left = variance(s, spread) - 2 * gain * both + gain**2 * variance(t, spread)
        expected.append(left / ((1 - s) ** 2 * (1 - ratio**2)))
    measured = found.square().mean((0, 2))
    torch.testing.assert_close(measured, torch.tensor(expected, dtype=torch.float64), atol=0, rtol=0.05)
    assert found.mean((0, 2)).abs().max() < 5 * measured.max().sqrt() / math.sqrt(16_000)
    lag = (found[:, 1:] * found[:, :-1]).mean((0, 2)) / (measured[1:] * measured[:-1]).sqrt()
    if kind is CycleDiffusion:
        assert lag.abs().max() < 0.05
    else:
        assert lag.max() < -0.3 and measured.min() > 1.5


def test_the_noises_of_a_markov_path_become_standard_normal_with_small_steps(generator: torch.Generator) -> None:
    method, x = CycleDiffusion(shift(EQUAL)), points(EQUAL, 1000, generator)
    excess = []
    for steps in (25, 100, 300):
        knobs = {"tau": 0.3, "steps": steps, "grid": "uniform"}
        found = method.noises(x, 0, **given_noise(method, x, generator, **knobs))
        below = sum(s <= 0.7 for s in leg_knots(0.3, "uniform", steps)[1:])
        excess.append(float(found[:, :below].square().mean() - 1))
    assert excess[0] > 2.5 * excess[1] > 0 and abs(excess[2]) < 0.02


@pytest.mark.parametrize("tau", [0.0, 0.3])
def test_the_law_of_a_replayed_markov_path_is_that_of_the_sampler_as_steps_grow(tau, generator) -> None:
    method, x = CycleDiffusion(shift(UNEQUAL)), points(UNEQUAL, 4000, generator)
    carried = tau * 0.6**2 / variance(tau, 0.6)  # of a deviation at tau, by the target's SDE
    law_mean = MEANS[1] + carried * tau * (MEANS[0] - MEANS[1])
    law_std = math.sqrt(0.6**2 + carried**2 * (variance(tau, 0.4) - variance(tau, 0.6)))
    errors = []
    for steps in (8, 32, 128):
        out = method.translate(x, 0, 1, **given_noise(method, x, generator, tau=tau, steps=steps)).flatten(1)
        torch.testing.assert_close(out.mean(0), law_mean, atol=0.03, rtol=0)
        errors.append(abs(float((out - law_mean).square().mean().sqrt()) - law_std))
    assert errors[0] > 2 * errors[1] and errors[2] < 0.015


def test_noises_need_two_steps(generator: torch.Generator) -> None:
    x = torch.randn(1, 4, 1, 1, generator=generator)
    with pytest.raises(ParameterError, match="two"):
        CycleDiffusion(shift(wavy)).noises(x, 0, tau=0.0, noise=x[:, None], steps=1)


# FlowEdit


def test_flow_edit_shifts_equal_covariances_by_eulers_closed_form_and_so_as_medshift(generator) -> None:
    mix = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    covariance = 0.1 * torch.eye(4, dtype=torch.float64) + 0.1 * mix @ mix.T
    field = Gaussians(MEANS, torch.stack([covariance] * 2))
    values, vectors = torch.linalg.eigh(covariance)
    x, tau = torch.randn(5, 4, 1, 1, generator=generator, dtype=torch.float64), 0.2
    truth, errors = field.transport(x.flatten(1), 0, 1, tau), []
    for steps in (20, 80):
        kept = torch.ones(4, dtype=torch.float64)
        for t, t_next in pairwise(leg_knots(tau, "uniform", steps)):
            kept *= torch.tensor([1 + (t_next - t) * rate(t, float(v.sqrt())) for v in values], dtype=torch.float64)
        moved = SHIFT.flatten() - tau * vectors @ (kept * (vectors.T @ SHIFT.flatten()))
        method = FlowEdit(shift(field))
        out = method.translate(x, 0, 1, **given_noise(method, x, generator, tau=tau, steps=steps)).flatten(1)
        torch.testing.assert_close(out, x.flatten(1) + moved, atol=1e-10, rtol=0)
        errors.append(float((out - truth).abs().max()))
    assert errors[0] / errors[1] == pytest.approx(4, abs=0.6)


def test_averages_take_the_noise_out_of_flow_edit_and_leave_its_mean(generator: torch.Generator) -> None:
    x = points(UNEQUAL, 1, generator).expand(4000, -1, -1, -1)
    method, knobs = FlowEdit(shift(UNEQUAL)), {"tau": 0.2, "steps": 10}
    without = method.translate(x[:1], 0, 1, noise=torch.zeros(1, 8, 4, 1, 1), **knobs)
    spread = []
    for averages in (1, 4):
        own = {**knobs, "averages": averages}
        out = method.translate(x, 0, 1, **given_noise(method, x, generator, **own))
        # The velocities are affine, so their mean over the noise is that at no noise.
        torch.testing.assert_close(out.mean(0), without[0], atol=0.02, rtol=0)
        spread.append(out.var(0).mean())
    assert float(spread[0] / spread[1]) == pytest.approx(4, rel=0.1)


# Solvers


def exact(field: IsotropicGaussians, x: torch.Tensor, tau: float) -> torch.Tensor:
    zeros = torch.zeros(len(x), dtype=torch.int64)
    return field.transport(x, zeros, zeros + 1, tau)


@pytest.mark.parametrize("increment", [0.5, 2 / 3, 1.0])
def test_rf_solver_is_of_second_order_and_euler_is_not(increment: float, generator: torch.Generator) -> None:
    model, x = shift(wavy), torch.randn(4, 4, 2, 2, generator=generator, dtype=torch.float64)
    truth = model.translate(x, 0, 1, tau=0.25, steps=400, solver="rk4", grid="uniform")
    errors = [
        float((RFSolver(model, increment).translate(x, 0, 1, tau=0.25, steps=n, grid="uniform") - truth).abs().max())
        for n in (40, 80, 160)
    ]
    for coarse, fine in pairwise(errors):
        assert coarse / fine == pytest.approx(4, abs=0.6)
    euler = model.translate(x, 0, 1, tau=0.25, steps=80, solver="euler", grid="uniform")
    assert float((euler - truth).abs().max()) > 10 * errors[1]


@pytest.mark.parametrize(("increment", "solver"), [(0.5, "midpoint"), (1.0, "heun")])
@pytest.mark.parametrize("grid", ["uniform", "refined"])
def test_rf_solver_as_published_is_the_midpoint_rule(increment, solver, grid, generator: torch.Generator) -> None:
    model, x = shift(wavy), torch.randn(3, 4, 2, 2, generator=generator, dtype=torch.float64)
    out = RFSolver(model, increment).translate(x, 0, 1, tau=0.1, steps=7, grid=grid)
    same = model.translate(x, 0, 1, tau=0.1, steps=7, grid=grid, solver=solver)
    torch.testing.assert_close(out, same, atol=1e-12, rtol=0)
    assert RFSolver(model).nfe(0.1, steps=7, grid=grid) == model.nfe(0.1, steps=7, grid=grid, solver=solver)


def test_rf_solver_agrees_with_heun_to_their_order(generator: torch.Generator) -> None:
    x = points(UNEQUAL, 10, generator)
    model = shift(UNEQUAL)
    apart = (RFSolver(model).translate(x, 0, 1, tau=0.1) - model.translate(x, 0, 1, tau=0.1)).abs().max()
    euler = model.translate(x, 0, 1, tau=0.1, solver="euler", steps=30)
    assert apart < 0.01 < 0.05 < (euler - exact(UNEQUAL, x, 0.1)).abs().max()


def test_rf_solver_refuses_an_increment_outside_the_interval() -> None:
    for increment in (0.0, 1.5, -0.5):
        with pytest.raises(ParameterError, match="increment"):
            RFSolver(shift(wavy), increment)


@pytest.mark.parametrize("tau", [0.0, 0.3])
def test_the_exact_inverse_returns_the_image_where_euler_does_not(tau: float, generator: torch.Generator) -> None:
    means = torch.tensor([[[-1.0, 0, 0, 0], [0.6, 0, 0, 0.5]], [[1.0, 0, 0, 0], [0, 1.0, 0, 0]]], dtype=torch.float64)
    field = GaussianMixtures(means, torch.full((2, 2), 0.4, dtype=torch.float64))
    model, x = shift(field), points(field, 20, generator)
    method = ExactInverse(model)
    back = method.translate(x, 0, 0, tau=tau, iterations=8)
    assert (back - x).abs().max() < 1e-5 and method.residual(x, 0, tau=tau, iterations=8).max() < 1e-6
    euler = model.translate(x, 0, 0, tau=tau, solver="euler", grid="uniform", steps=50)
    assert (euler - x).abs().max() > 0.02


def test_the_exact_inverse_translates_gaussians_by_eulers_own_closed_form(generator: torch.Generator) -> None:
    """Each mode's deviation is divided by the decode leg's gain under A and multiplied by that under B."""
    x, tau, steps = points(UNEQUAL, 6, generator), 0.3, 20
    gains = [1.0, 1.0]
    for t, t_next in pairwise(leg_knots(tau, "uniform", steps)):
        gains = [g * (1 + (t_next - t) * rate(t, s)) for g, s in zip(gains, (0.4, 0.6), strict=True)]
    flat = x.flatten(1)
    closed = MEANS[1] + gains[1] * (tau * (MEANS[0] - MEANS[1]) + (flat - MEANS[0]) / gains[0])
    out = ExactInverse(shift(UNEQUAL)).translate(x, 0, 1, tau=tau, steps=steps, iterations=40)
    torch.testing.assert_close(out.flatten(1), closed, atol=1e-10, rtol=0)


def test_the_residual_is_what_the_fixed_point_has_left(generator: torch.Generator) -> None:
    """One step, one mode: the error of round n is (h γ)^n times that of the start, and the residual (1 + h γ) of it."""
    x, tau = points(EQUAL, 5, generator), 0.9
    h, g = 0.1, rate(0.9, 0.5)
    zero = torch.zeros(5, dtype=torch.int64)
    start = h * EQUAL(x, torch.tensor(0.9, dtype=torch.float64), zero)
    for iterations in (1, 2, 5):
        left = (start * (h * g) ** iterations).flatten(1).square().mean(1).sqrt()
        found = ExactInverse(shift(EQUAL)).residual(x, 0, tau=tau, steps=10, iterations=iterations)
        torch.testing.assert_close(found, left, atol=1e-12, rtol=1e-6)


# Two networks, and MedShift with their budget

PAIR = Pair("b", "c", ("a", "b", "c"))
TINY = {"channels": (8,), "norm_groups": 4, "head_channels": 8, "learning_rate": 2e-2}


def one_domain(field, k: int) -> MedShift:
    """The network of domain k, which is its own label 0."""

    def velocity(x: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        assert not label.any()
        return field(x, t, label + k)

    return MedShift(velocity, CODEC, 1)


def test_two_exact_networks_are_medshift_at_zero_and_the_closed_form(generator: torch.Generator) -> None:
    x = points(UNEQUAL, 20, generator)
    method = TwoNetworks(one_domain(UNEQUAL, 0), one_domain(UNEQUAL, 1), PAIR)
    out = method.translate(x, "b", "c", solver="rk4", steps=60)
    torch.testing.assert_close(out, exact(UNEQUAL, x, 0.0), atol=1e-5, rtol=0)
    for tau in (0.0, 0.3):
        same = shift(UNEQUAL).translate(x, 0, 1, tau=tau)
        torch.testing.assert_close(method.translate(x, 1, 2, tau=tau), same, atol=1e-12, rtol=0)
    swapped = TwoNetworks(one_domain(UNEQUAL, 1), one_domain(UNEQUAL, 0), PAIR).translate(x, "b", "c")
    assert (swapped - out).abs().max() > 1


def test_two_networks_cost_what_is_counted(generator: torch.Generator) -> None:
    counted = [CountingVelocity(wavy), CountingVelocity(wavy)]
    method = TwoNetworks(MedShift(counted[0], CODEC, 1), MedShift(counted[1], CODEC, 1), PAIR)
    x = torch.randn(3, 4, 2, 2, generator=generator)
    method.translate(x, "b", "c", tau=0.3, steps=6, solver="midpoint")
    assert counted[0].nfe(3) == counted[1].nfe(3) > 0
    assert counted[0].nfe(3) + counted[1].nfe(3) == method.nfe(0.3, steps=6, solver="midpoint")


def test_two_networks_serve_their_pair_alone() -> None:
    first, second = one_domain(UNEQUAL, 0), one_domain(UNEQUAL, 1)
    x = torch.zeros(1, 4, 1, 1)
    for source, target in (("c", "b"), ("a", "c"), (1, 1)):
        with pytest.raises(ParameterError, match="trained from b to c"):
            TwoNetworks(first, second, PAIR).translate(x, source, target)
    with pytest.raises(ParameterError, match="one each"):
        TwoNetworks(first, shift(UNEQUAL), PAIR)
    with pytest.raises(ParameterError, match="codec"):
        TwoNetworks(first, MedShift(UNEQUAL, IdentityCodec(), 1), PAIR)
    with pytest.raises(ParameterError, match="expected two"):
        SameBudget(shift(UNEQUAL, 3), PAIR)
    with pytest.raises(ParameterError, match="trained from b to c"):
        SameBudget(shift(UNEQUAL), PAIR).translate(x, "c", "b", tau=0.3)


def test_same_budget_is_medshift_from_its_first_to_its_second_label(generator: torch.Generator) -> None:
    x = torch.randn(3, 4, 2, 2, generator=generator)
    counted = CountingVelocity(wavy)
    model = shift(counted)
    method, knobs = SameBudget(model, PAIR), {"tau": 0.2, "steps": 5, "guidance": 2.0, "solver": "euler"}
    out = method.translate(x, "b", "c", **knobs)
    assert counted.nfe(3) == method.nfe(**knobs) > 0
    assert torch.equal(out, model.translate(x, 0, 1, **knobs))


def draw(step: int, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """Eight images of N(-1, .3²) and eight of N(1, .5²)."""
    images = torch.randn(16, 1, 8, 8, generator=generator)
    return (torch.cat([0.3 * images[:8] - 1, 0.5 * images[8:] + 1]),)


def trained(kind, config):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind(PatchCodec(2), PAIR, config)


@pytest.mark.parametrize(
    ("kind", "config"),
    [(TwoNetworksTraining, TwoNetworksConfig(**TINY)), (SameBudgetTraining, SameBudgetConfig(**TINY))],
)
def test_training_lowers_the_losses_and_gives_a_translation(kind, config, tmp_path: Path) -> None:
    method = trained(kind, config)
    names = set(method.optimizers())
    plan = TrainConfig(steps=60, schedule="constant", precision="fp32", checkpoint_every=60)
    losses = [
        {name: float(value) for name, value in record.losses.items()}
        for record in train(method, draw, folder=tmp_path, config=plan)
    ]
    assert set(losses[0]) == names
    for name in names:
        # The untrained field is zero; what is left at the end is mostly what x_t does not tell.
        assert sum(row[name] for row in losses[-10:]) / 10 < 0.7 * losses[0][name]
    x = draw(0, torch.Generator().manual_seed(5))[0][:8]
    out = method.translator().translate(x, "b", "c", tau=0.0)
    assert out.shape == x.shape and not out.requires_grad
    assert float(x.mean()) < -0.9 and float(out.mean()) == pytest.approx(1, abs=0.4)
    with pytest.raises(ParameterError, match="trained from b to c"):
        method.translator().translate(x, "c", "b", tau=0.0)


def test_neither_network_learns_from_the_others_half(generator: torch.Generator) -> None:
    method = trained(TwoNetworksTraining, TwoNetworksConfig(**TINY))
    with torch.no_grad():  # an untrained network is the zero field, whose inner gradients vanish
        for network in method.networks.values():
            network.unet.conv_out.weight.normal_(std=0.1, generator=generator)
    images = draw(0, generator)[0]
    losses = method.step((images,), torch.Generator().manual_seed(1))
    for own, other in (("source", "target"), ("target", "source")):
        mine, theirs = ([*method.networks[name].parameters()] for name in (own, other))
        grads = torch.autograd.grad(losses[own], mine, allow_unused=True, retain_graph=True)
        assert sum(g is not None and bool(g.abs().sum() > 0) for g in grads) > len(mine) / 2
        assert all(g is None for g in torch.autograd.grad(losses[own], theirs, allow_unused=True, retain_graph=True))
    changed = torch.cat([images[:8], images[8:] + 3])
    again = method.step((changed,), torch.Generator().manual_seed(1))
    assert torch.equal(again["source"], losses["source"]) and not torch.allclose(again["target"], losses["target"])


def test_same_budget_trains_each_half_under_its_own_label_and_some_under_none(generator: torch.Generator) -> None:
    for dropout, expected in ((0.0, {0, 1}), (0.5, {0, 1, 2})):
        method = trained(SameBudgetTraining, SameBudgetConfig(**TINY, label_dropout=dropout))
        labels: list[int] = []
        method.network.register_forward_pre_hook(lambda module, args, seen=labels: seen.extend(args[2].tolist()))
        method.step(draw(0, generator), generator)
        assert set(labels) == expected
        assert set(labels[:8]) <= {0, 2} and set(labels[8:]) <= {1, 2}


@pytest.mark.parametrize("kind", [TwoNetworksTraining, SameBudgetTraining])
def test_default_networks_have_a_million_weights_and_a_state_in_json(kind) -> None:
    method = trained(kind, TwoNetworksConfig() if kind is TwoNetworksTraining else SameBudgetConfig())
    for name in method.kept:
        assert 0.9e6 < sum(p.numel() for p in method.modules()[name].parameters()) < 1.1e6
    assert set(method.averaged) == set(method.kept) == set(method.optimizers())
    state = json.loads(json.dumps(method.state()))
    assert state["kind"] == kind.kind and state["pair"] == ["b", "c"]
    again = type(method.config)(**state["config"])
    rebuilt = trained(kind, again)
    for name in method.kept:
        rebuilt.modules()[name].load_state_dict(method.modules()[name].state_dict())
    assert json.loads(json.dumps(rebuilt.state())) == state
