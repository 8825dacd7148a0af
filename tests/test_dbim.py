"""DBIM: its bridge against the joint Gaussian of the diffusion, the sampler's states in closed form, its orders."""

import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles.gaussian import IdentityCodec
from torch import Tensor

from medshift.codec import PatchCodec
from medshift.errors import ParameterError
from medshift.paired.dbim import (
    DBIM,
    DDBMConfig,
    DDBMTraining,
    coefficients,
    denoised,
    multistep,
    preconditioning,
    step_times,
    transition,
)
from medshift.pairwise import Pair

PAIR = Pair("a", "b", ("a", "b"))
TINY: dict[str, Any] = {"channels": (16,), "norm_groups": 4, "head_channels": 16}
CONFIG = DDBMConfig()
inner = st.floats(1e-4, 0.999)


def f64(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def bridge(t: float) -> tuple[float, float, float]:
    a, b, c = coefficients(f64(t))
    return a.item(), b.item(), c.item()


def alpha(t: float) -> float:
    return math.exp(-0.05 * t - 0.5 * t * t)


def rho2(t: float) -> float:
    return math.exp(0.1 * t + t * t) - 1


def given_ends(*known: float) -> tuple[Tensor, Tensor]:
    """Of x at known[0], diffused from x_0: gain on the states at the other times, and variance, given x_0 and those."""
    times = torch.tensor(known, dtype=torch.float64)
    scale = torch.tensor([alpha(t) for t in known], dtype=torch.float64)
    clock = torch.tensor([rho2(t) for t in known], dtype=torch.float64)
    joint = scale[:, None] * scale * torch.minimum(clock[:, None], clock)  # x_t = α_t (x_0 + W(ρ_t²))
    gain = torch.linalg.solve(joint[1:, 1:], joint[0, 1:])
    assert len(times) == len(gain) + 1
    return gain, joint[0, 0] - gain @ joint[0, 1:]


def affine(step: Any) -> list[float]:
    """Coefficients of step(x, x_hat, y, noise), which is linear."""
    return [step(*(f64(float(k == j)) for j in range(4))).item() for k in range(4)]


class Oracle:
    """The network whose x̂_0 is `target`, a tensor or a function of x, t and y; keeps what it was given."""

    def __init__(self, target: Any) -> None:
        self.target, self.states, self.times = target, list[Tensor](), list[float]()

    def __call__(self, scaled: Tensor, t: Tensor, y: Tensor) -> Tensor:
        skip, out, into = preconditioning(t.to(scaled), CONFIG.sigma_data, CONFIG.covariance)
        x = scaled / into
        self.states.append(x)
        self.times.append(float(t))
        target = self.target(x, float(t), y) if callable(self.target) else self.target
        return (target - skip * x) / out


# The bridge


def test_ends_are_exact() -> None:
    assert bridge(0.0) == (0, 1, 0) and bridge(1.0) == (1, 0, 0)
    single = [value.tolist() for value in coefficients(torch.tensor([0.0, 1.0]))]
    assert single == [[0, 1], [1, 0], [0, 0]]


@given(t=inner)
def test_the_coefficients_are_the_diffusions_law_held_at_its_end(t: float) -> None:
    gain, spread = given_ends(t, 1.0)
    a, b, c = bridge(t)
    assert a == pytest.approx(gain.item(), rel=1e-9) and c**2 == pytest.approx(spread.item(), rel=1e-8)
    assert b == pytest.approx(alpha(t) - a * alpha(1.0), rel=1e-8)
    rough = [value.item() for value in coefficients(torch.tensor(t))]
    assert rough == pytest.approx([a, b, c], rel=2e-3, abs=1e-6)


@given(t=st.floats(0, 1), sigma=st.floats(0.2, 3), share=st.floats(-0.9, 0.95))
def test_the_preconditioning_is_the_best_linear_guess(t: float, sigma: float, share: float) -> None:
    """Against the covariance matrix of (x_0, x_T, ε), regression of x_0 on x_t."""
    covariance = share * sigma**2
    joint = torch.tensor([[sigma**2, covariance, 0], [covariance, sigma**2, 0], [0, 0, 1]], dtype=torch.float64)
    a, b, c = bridge(t)
    weights, x0 = torch.tensor([b, a, c], dtype=torch.float64), torch.tensor([1.0, 0, 0], dtype=torch.float64)
    skip, out, into = preconditioning(f64(t), sigma, covariance)
    power = weights @ joint @ weights
    assert (into**2 * power).item() == pytest.approx(1)
    assert skip.item() == pytest.approx((x0 @ joint @ weights / power).item(), abs=1e-12)
    residual = x0 - skip * weights
    assert out.item() ** 2 == pytest.approx((residual @ joint @ residual).item(), abs=1e-9)
    assert abs((residual @ joint @ weights).item()) < 1e-9 * sigma**2 + 1e-12


def test_a_network_of_zeros_leaves_the_linear_guess(generator: torch.Generator) -> None:
    x, y = torch.randn(2, 3, 4, 5, 6, generator=generator)
    t = torch.tensor([0.1, 0.5, 1.0])
    network = DDBMTraining(PatchCodec(2), PAIR).network  # its last convolution is zero
    guess = denoised(network, x, t, y, CONFIG)
    torch.testing.assert_close(guess, preconditioning(t, 1.0, 0.5).skip[:, None, None, None] * x)
    torch.testing.assert_close(guess[2], 0.5 * x[2])  # at T, κ / σ²


# Steps


@given(s=inner, t=inner)
def test_a_step_with_eta_one_is_ancestral(s: float, t: float) -> None:
    """x_t given x_0 and x_s, and x_T too, by conditioning of the joint Gaussian."""
    t, s = sorted((s, t))
    if s - t < 1e-3:
        return
    gain, spread = given_ends(t, s, 1.0)
    assert abs(gain[1].item()) < 1e-6  # Markov: x_T is of no use beside x_s
    gain, spread = given_ends(t, s)
    of_x, of_target, of_y, of_noise = affine(lambda x, h, y, z: transition(x, h, y, s=s, t=t, eta=1.0, noise=z))
    assert of_x == pytest.approx(gain.item(), rel=1e-6) and of_y == pytest.approx(0, abs=1e-6)
    assert of_target == pytest.approx(alpha(t) - gain.item() * alpha(s), rel=1e-6, abs=1e-9)
    assert of_noise**2 == pytest.approx(spread.item(), rel=1e-8)


@given(s=inner, t=inner, eta=st.floats(0, 1))
def test_a_step_keeps_the_law_for_every_eta(s: float, t: float, eta: float) -> None:
    t, s = sorted((s, t))
    if s - t < 1e-6:
        return
    (a_s, b_s, c_s), (a_t, b_t, c_t) = bridge(s), bridge(t)
    of_x, of_target, of_y, of_noise = affine(lambda x, h, y, z: transition(x, h, y, s=s, t=t, eta=eta, noise=z))
    assert of_x * b_s + of_target == pytest.approx(b_t, rel=1e-9)
    assert of_x * a_s + of_y == pytest.approx(a_t, rel=1e-9, abs=1e-12)
    assert of_x**2 * c_s**2 + of_noise**2 == pytest.approx(c_t**2, rel=1e-9)
    omega = eta * alpha(t) * math.sqrt(rho2(t) * max(0, 1 - rho2(t) / rho2(s)))
    assert of_noise == pytest.approx(omega, rel=1e-6, abs=1e-12)


@given(s=inner, t=inner)
def test_the_first_order_is_the_step_without_noise(s: float, t: float) -> None:
    t, s = sorted((s, t))
    if s - t < 1e-6:
        return
    step = affine(lambda x, h, y, z: transition(x, h, y, s=s, t=t, eta=0.0, noise=z))
    first = affine(lambda x, h, y, z: multistep(x, y, [h], [s], t))
    assert first == pytest.approx(step, rel=1e-7, abs=1e-10)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_polynomials_below_the_order_are_integrated_exactly(order: int) -> None:
    """∫ e^λ (λ - λ_s)^k dλ by a fine midpoint rule; the next power is not exact."""
    times, t = [0.6, 0.7, 0.85][:order], 0.4

    def lam(t: float) -> float:
        _, b, c = bridge(t)
        return math.log(b / c)

    start, end = lam(0.6), lam(t)
    grid = start + (end - start) * (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    x, y = f64(0.3), f64(-1.2)
    (a_s, _, c_s), (a_t, _, c_t) = bridge(0.6), bridge(t)
    for power in range(order + 1):
        integral = ((grid - start) ** power * grid.exp()).mean().item() * (end - start)
        exact = a_t * -1.2 + c_t * ((0.3 - a_s * -1.2) / c_s + integral)
        held = [f64((lam(u) - start) ** power) for u in times]
        found = multistep(x, y, held, times, t).item()
        assert (found == pytest.approx(exact, abs=1e-8)) == (power < order)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_orders_converge_as_they_should(order: int) -> None:
    """x_0 of law N(μ, s²): with κ = b/c and z = (x - a x_T)/c, z - κ μ grows as √(κ² s² + 1)."""
    mu, spread, y = 0.7, 0.4, f64(-0.5)

    def exact(t: float) -> Tensor:
        a, b, c = bridge(t)
        return a * y + b * mu + 1.3 * c * math.sqrt((b / c) ** 2 * spread**2 + 1)

    def guess(x: Tensor, t: float) -> Tensor:
        a, b, c = bridge(t)
        return mu + b * spread**2 / (b**2 * spread**2 + c**2) * (x - a * y - b * mu)

    def error(steps: int) -> float:
        grid = torch.linspace(0.9, 0.2, steps + 1, dtype=torch.float64).tolist()
        # The exact past, so that the start is of the full order too.
        x, held = exact(grid[order - 1]), [guess(exact(t), t) for t in grid[: order - 1]][::-1]
        for k in range(order - 1, steps):
            held = [guess(x, grid[k]), *held][:order]
            x = multistep(x, y, held, grid[k::-1][: len(held)], grid[k + 1])
        return abs(x - exact(grid[-1])).item()

    errors = [error(steps) for steps in (40, 80, 160)]
    rates = [math.log2(a / b) for a, b in zip(errors, errors[1:], strict=False)]
    assert rates == pytest.approx([order] * 2, abs=0.25)


# The sampler


@pytest.mark.parametrize("steps", [1, 2, 3, 8])
@pytest.mark.parametrize(("order", "eta"), [(1, 0.0), (1, 0.5), (1, 1.0), (2, 0.0), (3, 0.0)])
def test_states_have_the_bridges_law_and_a_known_target_is_returned(steps: int, order: int, eta: float) -> None:
    """One image for each draw of noise; moments follow by superposition."""
    oracle, knobs = Oracle(f64(2.0)), {"steps": steps, "order": order, "eta": eta}
    sampler = DBIM(oracle, IdentityCodec(), PAIR, CONFIG)
    draws = sampler.draws(**knobs)
    assert draws == (0 if steps == 1 else 1 if eta == 0 else steps - 1)
    y = torch.full((draws + 1, 1, 1, 1), -1.0, dtype=torch.float64)
    noise = torch.cat([torch.zeros(1, draws), torch.eye(draws)]).double()[..., None, None, None]
    out = sampler.translate(y, "a", "b", noise=noise, **knobs)
    torch.testing.assert_close(out, torch.full_like(out, 2.0))
    assert len(oracle.times) == steps == sampler.nfe(**knobs)
    assert oracle.times == pytest.approx([1.0, *(0.999 - k * 0.9989 / max(steps - 1, 1) for k in range(steps - 1))])
    for x, t in zip(oracle.states, oracle.times, strict=True):
        a, b, c = bridge(t)
        assert x[0].item() == pytest.approx(2 * b - a, abs=1e-9)
        assert (x[1:] - x[0]).square().sum().item() == pytest.approx(c**2, abs=1e-9)


@pytest.mark.parametrize("order", [2, 3])
def test_higher_orders_are_nearer_with_the_same_evaluations(order: int) -> None:
    """Posterior mean of N(y + 1, 0.3²) for each image; the limit is the sampler with many steps."""

    def mean(x: Tensor, t: float, y: Tensor) -> Tensor:
        a, b, _ = bridge(t)
        return y + 1 + 0.09 / (b * 0.09 + alpha(t) * rho2(t)) * (x - a * y - b * (y + 1))  # c² / b = α ρ²

    sampler = DBIM(Oracle(mean), IdentityCodec(), PAIR, CONFIG)
    y = torch.zeros(1, 1, 1, 1, dtype=torch.float64)

    def out(steps: int, order: int) -> float:
        return sampler.translate(y, "a", "b", noise=torch.ones(1, 1, 1, 1, 1), steps=steps, order=order).item()

    limit = out(1000, 3)
    assert limit == pytest.approx(1.3, abs=5e-3)  # the quantile of the noise is kept
    assert abs(out(20, order) - limit) < 0.5 * abs(out(20, 1) - limit)
    assert abs(out(40, order) - limit) < abs(out(20, order) - limit)


def test_what_is_asked_wrongly_is_refused() -> None:
    sampler = DBIM(Oracle(torch.zeros(())), PatchCodec(1), PAIR, CONFIG)
    x = torch.zeros(2, 1, 3, 5)
    for noise in (None, torch.zeros(2, 2, 1, 3, 5), torch.zeros(2, 1, 3, 5)):
        with pytest.raises(ParameterError, match=r"expected \(2, 1, 1, 3, 5\)"):
            sampler.translate(x, "a", "b", noise=noise, steps=4)
    for steps in (0, -1, 1001, 2.5):
        for ask in (sampler.nfe, sampler.draws, step_times):
            with pytest.raises(ParameterError, match="from 1 to 1000"):
                ask(steps=steps)
    for knobs in ({"eta": 1.5}, {"eta": -0.1}, {"order": 4}, {"order": 2, "eta": 0.5}):
        with pytest.raises(ParameterError, match="order and eta"):
            sampler.draws(**knobs)
    with pytest.raises(ParameterError, match="from a to b"):
        sampler.translate(x, "b", "a", steps=1)
    for wrong in ({"sigma_data": 0.0}, {"covariance": 1.0}, {"covariance": -2.0}):
        with pytest.raises(ParameterError, match="sigma_data and covariance"):
            DDBMConfig(**wrong)


# Training


def method(seed: int = 0, **changes: Any) -> DDBMTraining:
    torch.manual_seed(seed)
    return DDBMTraining(PatchCodec(1), PAIR, DDBMConfig(**{**TINY, **changes}))


def views(generator: torch.Generator, n: int = 8) -> list[Tensor]:
    """A target that is a function of the source: its negative, brighter."""
    y = torch.randn(n, 1, 4, 4, generator=generator).repeat_interleave(2, -1).repeat_interleave(2, -2)
    return [torch.cat([y, 0.5 - y])]


def test_the_loss_weighs_the_prediction_and_its_states_lie_on_the_bridge(generator: torch.Generator) -> None:
    trained, seen = method(), []

    def network(scaled: Tensor, t: Tensor, y: Tensor) -> Tensor:
        seen.append((scaled, t, y))
        return 0.2 * scaled

    trained.network = network  # type: ignore[assignment]
    batch = views(generator, 512)
    y, x0 = batch[0].chunk(2)
    losses = trained.step(batch, generator)
    ((scaled, t, given_y),) = seen
    assert torch.equal(given_y, y)
    assert 1e-4 <= t.min() < 0.02 and 0.98 < t.max() <= 1 and abs(t.mean() - 0.5) < 0.05
    wide = t.double()[:, None, None, None]
    skip, out, into = preconditioning(wide, 1.0, 0.5)
    x = scaled / into
    # What the network is asked for, in units of its output
    torch.testing.assert_close(losses["network"].double(), (0.2 * scaled - (x0 - skip * x) / out).square().mean())
    torch.testing.assert_close(losses["denoising"].double(), (skip * x + out * 0.2 * scaled - x0).square().mean())
    a, b, c = coefficients(wide)
    noise = ((x - a * y - b * x0) / c)[t > 0.01]
    assert noise.mean().abs() < 0.02 and abs(noise.std() - 1) < 0.02


def test_training_learns_the_target(generator: torch.Generator) -> None:
    trained = method(learning_rate=3e-3)
    test = views(torch.Generator().manual_seed(7), 16)
    y, x0 = test[0].chunk(2)

    def loss() -> float:
        return trained.step(test, torch.Generator().manual_seed(3))["network"].item()

    before = loss()
    for _ in range(60):
        trained.optimizer.zero_grad()
        trained.step(views(generator), generator)["network"].backward()
        trained.optimizer.step()
    assert all(p.grad is not None for p in trained.network.parameters() if p.requires_grad)
    assert loss() < 0.5 * before
    sampler = trained.translator()
    noise = torch.randn(16, 1, 1, 8, 8, generator=generator)
    for order in (1, 3):
        out = sampler.translate(y, "a", "b", noise=noise, steps=5, order=order)
        assert (out - x0).abs().mean() < 0.3 * (y - x0).abs().mean()
        assert not torch.equal(out, sampler.translate(y, "a", "b", noise=-noise, steps=5, order=order))


def test_randomness_is_the_generators_and_the_state_is_plain(generator: torch.Generator) -> None:
    batch, losses, trained = views(generator), [], method()
    for seed in (1, 1, 2):
        torch.manual_seed(100 + len(losses))
        losses.append(trained.step(batch, torch.Generator().manual_seed(seed))["network"].item())
    assert losses[0] == losses[1] != losses[2]
    state = json.loads(json.dumps(trained.state()))
    assert state["kind"] == "ddbm" and DDBMConfig(**state["config"]) == trained.config
    assert set(trained.modules()) == {"network", "codec"} and set(trained.optimizers()) <= set(trained.modules())
    assert not any(p.requires_grad for p in trained.codec.parameters())
    assert trained.name == trained.translator().name == "DBIM"
    assert sum(p.numel() for p in DDBMTraining(PatchCodec(2), PAIR).network.parameters()) in range(900_000, 1_100_000)
