"""Couplings of finite sets: each against what defines it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from medshift.errors import ParameterError
from medshift.worlds import couplings, gallery
from medshift.worlds.legs import two_legs
from medshift.worlds.mixture import Mixture, exact_velocity


def two_sets(seed: int, n: int = 24, m: int = 24) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 2, generator=g), torch.randn(m, 2, generator=g) + 1


def squared(x: Tensor, y: Tensor) -> Tensor:
    return (x[:, None].double() - y[None].double()).square().sum(-1)


@settings(max_examples=12)
@given(seed=st.integers(0, 10_000))
def test_optimal_transport_is_the_assignment_and_cheaper_than_any_other_plan(seed: int) -> None:
    x, y = two_sets(seed)
    plan, n = couplings.optimal_plan(x, y), len(x)
    rows, columns = linear_sum_assignment(squared(x, y).numpy())
    cost = couplings.plan_cost(plan, x, y)
    assert cost == pytest.approx(float(squared(x, y)[rows, columns].mean()))
    permutation = torch.eye(n)[torch.randperm(n, generator=torch.Generator().manual_seed(seed))].double() / n
    for other in (permutation, torch.full((n, n), 1 / n**2).double(), couplings.bridge_plan(x, y, 0.5)):
        assert cost <= couplings.plan_cost(other, x, y) + 1e-6


def test_plans_have_both_marginals_for_sets_of_unlike_size() -> None:
    x, y = two_sets(1, 18, 30)
    for plan in (couplings.optimal_plan(x, y), couplings.bridge_plan(x, y, 0.4)):
        torch.testing.assert_close(plan.sum(1), torch.full((18,), 1 / 18).double(), atol=1e-6, rtol=0)
        torch.testing.assert_close(plan.sum(0), torch.full((30,), 1 / 30).double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("sigma", [0.3, 1.0, 3.0])
def test_the_bridge_is_brownian_motions_law_of_endpoints_reweighed_at_either_end(sigma: float) -> None:
    """P_ij = a_i exp(-‖x_i - y_j‖² / 2σ²) b_j: the double differences of log P + d / 2σ² vanish."""
    x, y = two_sets(2)
    reweighed = couplings.bridge_plan(x, y, sigma).log() + squared(x, y) / (2 * sigma**2)
    double = reweighed - reweighed[:1] - reweighed[:, :1] + reweighed[:1, :1]
    assert float(double.abs().max()) < 1e-6


def test_the_bridge_runs_from_optimal_transport_to_independence() -> None:
    x, y = two_sets(3)
    costs = [couplings.plan_cost(couplings.bridge_plan(x, y, s), x, y) for s in (0.1, 0.2, 0.5, 1.0, 3.0, 50.0)]
    best, independent = couplings.plan_cost(couplings.optimal_plan(x, y), x, y), float(squared(x, y).mean())
    assert costs == sorted(costs)
    assert costs[0] == pytest.approx(best, rel=0.02) and costs[-1] == pytest.approx(independent, rel=1e-3)


@pytest.mark.parametrize("sigma", [0.0, -1.0, math.nan, math.inf])
def test_a_bridge_needs_noise(sigma: float) -> None:
    with pytest.raises(ParameterError, match="above 0"):
        couplings.bridge_plan(*two_sets(4), sigma)


def test_a_bridge_that_does_not_settle_is_refused() -> None:
    with pytest.raises(ParameterError, match="not settled"):
        couplings.bridge_plan(*two_sets(5, 60, 60), 0.005)


def test_the_marginal_error_is_a_distance_of_weighted_sets() -> None:
    x, y = two_sets(6)
    assert couplings.marginal_error(x, x[torch.randperm(len(x))]) == pytest.approx(0, abs=1e-6)
    assert couplings.marginal_error(x, y) == pytest.approx(couplings.marginal_error(y, x))
    twice = couplings.marginal_error(torch.cat([x, x[:4]]), y)
    weights = torch.ones(len(x)) + torch.tensor([1.0] * 4 + [0.0] * (len(x) - 4))
    assert couplings.marginal_error(x, y, weights) == pytest.approx(twice)
    # A shift by d moves a projection by d cos θ, whose mean square over directions is d² / 2.
    along = [couplings.marginal_error(x, x + torch.tensor(d)) ** 2 for d in ([1.5, 0.0], [0.0, 1.5])]
    assert sum(along) == pytest.approx(1.5**2)


def test_between_gaussians_of_one_spread_medshift_from_noise_is_optimal_transport() -> None:
    a, b = (Mixture(torch.tensor([[0.0, m]]), torch.tensor([0.3]), torch.ones(1)) for m in (-1.0, 0.7))
    x = a.sample(60, torch.Generator().manual_seed(0))
    out = two_legs(exact_velocity([a, b]), x, 0, 1, 0.0, steps=80).out
    assert float((x - out).square().sum(1).mean()) == pytest.approx(1.7**2, rel=1e-3)
    assert torch.equal(couplings.optimal_plan(x, out).argmax(1), torch.arange(60))


def test_the_comparison_keeps_to_what_couplings_must() -> None:
    world = gallery.coloured()
    exact = {"exact": exact_velocity(world.domains)}
    made = couplings.compared(world, exact, n=120, taus=(0.0, 0.6), sigmas=(0.5, 1.0))
    by_name = {coupling.name: coupling for coupling in made}
    plans = ["optimal transport", "Schrödinger bridge, σ = 0.5", "Schrödinger bridge, σ = 1", "independent"]
    costs = [by_name[name].cost for name in plans]
    assert costs == sorted(costs)
    for name in ("MedShift exact, τ = 0", "MedShift exact, τ = 0.6", "fresh noise exact, τ = 0.6"):
        map_ = by_name[name]
        best = couplings.plan_cost(couplings.optimal_plan(map_.x, map_.y), map_.x, map_.y)
        assert best <= map_.cost + 1e-6  # no map beats the transport to where it goes
    # At tau > 0 it is no coupling of A and B: cheaper than transport between the two, and not there.
    assert by_name["MedShift exact, τ = 0.6"].cost < by_name["optimal transport"].cost
    assert by_name["MedShift exact, τ = 0.6"].error > 1.3 * by_name["B itself"].error
    assert all(torch.equal(coupling.x, made[0].x) for coupling in made[:-1])
    table = couplings.as_table(made)
    assert table["coupling"].tolist() == [*by_name] and math.isnan(table["cost"].iloc[-1])
