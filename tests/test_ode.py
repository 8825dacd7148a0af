"""Solvers over given knots, and the knots: orders, second opinions, counts, several times at once."""

import math

import numpy as np
import pytest
import torch
from torchdiffeq import odeint

from medshift.errors import ParameterError
from medshift.ode import DEFAULT_STEPS, SOLVERS, integrate, leg_knots, stages, states_at, time_grid

LABEL = torch.zeros(4, dtype=torch.int64)
FIXED = [solver for solver in SOLVERS if solver != "dopri5"]


def pendulum(x, t, label):
    """Neither linear in x nor constant in t; x (B, 2)."""
    return torch.stack([x[:, 1], -torch.sin(3 * x[:, 0]) + torch.cos(2 * t) * x[:, 1]], 1)


@pytest.fixture
def start():
    return torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def end(*args, **kwargs):
    *_, last = integrate(*args, **kwargs)
    return last


def uneven(n: int, backward: bool = False) -> list[float]:
    knots = [math.sin(0.5 * math.pi * k / n) for k in range(n)] + [1.0]
    return knots[::-1] if backward else knots


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2), ("rk4", 4)])
def test_orders_on_a_nonlinear_equation(start, solver, order, backward):
    truth = end(pendulum, start, LABEL, uneven(2, backward), solver="dopri5", tolerance=1e-11).x
    counts = (40, 80, 160) if order < 4 else (20, 40, 80)
    errors = [
        float((end(pendulum, start, LABEL, uneven(n, backward), solver=solver).x - truth).abs().max()) for n in counts
    ]
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert slope == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(
    ("solver", "theirs"), [("euler", "euler"), ("midpoint", "midpoint"), ("heun", "heun2"), ("rk4", "rk4")]
)
def test_torchdiffeq_is_of_the_same_opinion_at_every_knot(start, solver, theirs, backward):
    knots = uneven(12, backward)
    states = list(integrate(pendulum, start, LABEL, knots, solver=solver))
    time = torch.tensor(knots, dtype=torch.float64)
    other = odeint(lambda t, x: pendulum(x, t, LABEL), start, time, method=theirs)
    assert [state.t for state in states] == knots
    torch.testing.assert_close(torch.stack([state.x for state in states]), other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("solver", SOLVERS)
def test_there_and_back_is_the_identity(start, solver):
    there = end(pendulum, start, LABEL, uneven(400), solver=solver, tolerance=1e-9).x
    back = end(pendulum, there, LABEL, uneven(400, backward=True), solver=solver, tolerance=1e-9).x
    torch.testing.assert_close(back, start, atol=0.02 if solver == "euler" else 1e-4, rtol=0)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_evaluations_are_counted_and_times_stay_inside(start, solver, dtype):
    times = []

    def spy(x, t, label):
        assert t.shape == () and t.dtype == dtype and x.dtype == dtype
        times.append(float(t))
        return pendulum(x, t, label)

    for knots in (time_grid("refined", 7), time_grid("refined", 7)[::-1]):
        times.clear()
        states = list(integrate(spy, start.to(dtype), LABEL, knots, solver=solver))
        assert states[-1].evaluations == len(times)
        if solver != "dopri5":
            assert [state.evaluations for state in states] == [k * stages(solver) for k in range(8)]
        assert min(times) >= 0 and max(times) <= 1


@pytest.mark.parametrize("solver", SOLVERS)
def test_one_knot_evaluates_nothing(start, solver):
    def never(x, t, label):
        raise AssertionError("evaluated")

    (state,) = integrate(never, start, LABEL, [1.0], solver=solver)
    assert state.x is start and state.evaluations == 0
    (x,) = states_at(never, start, LABEL, (1.0, 0.5, 0.0), [1.0], solver=solver)
    assert torch.equal(x, start)


def test_nothing_is_evaluated_before_it_is_asked_for(start):
    calls = []
    walk = integrate(lambda x, t, c: calls.append(1) or x, start, LABEL, uneven(5), solver="euler")
    next(walk)
    assert not calls
    next(walk)
    assert len(calls) == 1


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("grid", ["uniform", "refined"])
def test_states_at_several_times_are_bit_for_bit_those_of_separate_runs(start, solver, grid):
    knots = time_grid(grid, 10)[::-1]
    times = [0.3, 1.0, 0.0, 0.02, knots[4], 0.31, 0.3, 0.95]
    together = states_at(pendulum, start, LABEL, knots, times, solver=solver)
    for time, state in zip(times, together, strict=True):
        alone = states_at(pendulum, start, LABEL, knots, [time], solver=solver)[0]
        assert torch.equal(state, alone)
        if solver != "dopri5":
            path = leg_knots(time, grid, 10)[::-1]
            assert torch.equal(state, end(pendulum, start, LABEL, path, solver=solver).x)
    on_grid = end(pendulum, start, LABEL, knots[:5], solver=solver).x
    torch.testing.assert_close(together[4], on_grid, atol=1e-4, rtol=0)


def test_several_times_share_one_trajectory(start):
    calls = []

    def spy(x, t, label):
        calls.append(float(t))
        return pendulum(x, t, label)

    knots = time_grid("uniform", 10)[::-1]
    states_at(spy, start, LABEL, knots, [0.75, 0.5, 0.42], solver="euler")
    # Down to .5 in five intervals, two short ones off it, and nothing past the last knot above the last time.
    assert len(calls) == 5 + 2
    assert calls.count(1.0) == 1


@pytest.mark.parametrize("steps", [1, 7, 10, 50])
@pytest.mark.parametrize("tau", [0.0, 1e-12, 0.02, 0.1 + 0.2, 0.29, 0.3, 0.45, 0.6, 0.999, 1.0])
def test_a_uniform_leg_counts_in_integers(tau, steps):
    knots = leg_knots(tau, "uniform", steps)
    assert len(knots) - 1 == math.ceil(steps * (1 - tau) - 1e-9)
    assert knots[-1] == 1 and abs(knots[0] - tau) < 1e-9
    assert all(knot == round(knot * steps) / steps for knot in knots[1:])


@pytest.mark.parametrize("steps", [1, 2, 15, 60])
def test_the_refined_grid_is_dense_at_both_ends_and_does_not_know_tau(steps):
    knots = time_grid("refined", steps)
    widths = np.diff(knots)
    assert knots[0] == 0 and knots[-1] == 1 and len(knots) == steps + 1 and (widths > 0).all()
    for tau in (0.0, 0.02, 0.3, 0.9):
        assert leg_knots(tau, "refined", steps)[1:] == tuple(knot for knot in knots if knot > tau)
    if steps >= 15:
        middle = widths.argmax()
        assert (np.diff(widths)[:middle] > -1e-4).all() and (np.diff(widths)[middle:] < 0).all()
        assert widths[0] < 0.95 * widths.max() and widths[-1] < 0.05 * widths.max()
        away = 1 - np.array(knots)
        geometric = away[:-2][(away[:-2] > 0.05) & (away[:-2] < 0.4)]
        ratios = geometric[:-1] / geometric[1:]
        assert ratios.max() / ratios.min() < 1.35


def test_the_default_leg_costs_thirty_evaluations_of_heun():
    assert DEFAULT_STEPS == 15
    for tau, intervals in ((0.0, 15), (0.02, 15), (0.1, 15), (0.3, 13), (0.6, 11), (1.0, 0)):
        assert len(leg_knots(tau)) - 1 == intervals


@pytest.mark.parametrize(
    "call",
    [
        lambda x: list(integrate(pendulum, x, LABEL, [0, 1], solver="leapfrog")),
        lambda x: stages("leapfrog"),
        lambda x: states_at(pendulum, x, LABEL, [0, 1], [0.5], solver="leapfrog"),
    ],
)
def test_an_unknown_solver_is_answered_with_the_list(start, call):
    with pytest.raises(ParameterError, match="euler, midpoint, heun, rk4, dopri5"):
        call(start)


@pytest.mark.parametrize("knots", [[], [0.0, 0.0], [0.0, 0.5, 0.2], [1.0, 0.5, 0.7]])
def test_knots_must_be_monotone(start, knots):
    with pytest.raises(ParameterError, match="strictly"):
        list(integrate(pendulum, start, LABEL, knots))


def test_other_arguments_out_of_range_are_refused(start):
    for grid, steps in (("cosine", 10), ("uniform", 0), ("refined", -3), ("uniform", 2.0), ("refined", "9")):
        with pytest.raises(ParameterError):
            time_grid(grid, steps)
    for time in (-0.1, 1.1, float("nan")):
        with pytest.raises(ParameterError):
            leg_knots(time)
        with pytest.raises(ParameterError):
            states_at(pendulum, start, LABEL, (1.0, 0.0), [time])
    with pytest.raises(ParameterError, match="CountingVelocity"):
        stages("dopri5")
