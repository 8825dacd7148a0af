"""The checks of notebook 00's exercises: right answers in several forms pass, wrong ones are told what is wrong."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.gaussian import IsotropicGaussians
from torch import Tensor

from medshift.flow import drop_labels
from medshift.guidance import guided
from medshift.ode import integrate, time_grid
from medshift.theory import half_shift_tau, mode_retention
from medshift.worlds import exercises, two_gaussians
from medshift.worlds.exercises import NotYet
from medshift.worlds.mixture import Mixture
from medshift.worlds.two_gaussians import MEANS, NULL, SPREADS, domains, seeded

Check = Callable[..., None]


def generate(velocity: Any, noise: Tensor, label: Tensor, steps: int) -> Tensor:
    x = noise
    for k in range(steps):
        x = x + velocity(x, torch.tensor(k / steps), label) / steps
    return x


def generate_in_place(velocity: Any, noise: Tensor, label: Tensor, steps: int) -> Tensor:
    for k in range(steps):
        noise += velocity(noise, torch.tensor(k / steps), label) / steps
    return noise


def generate_per_sample(velocity: Any, noise: Tensor, label: Tensor, steps: int) -> Tensor:
    x, t = noise.clone(), torch.zeros(len(noise))
    while float(t[0]) < 1 - 0.5 / steps:
        x += velocity(x, t, label) / steps
        t = t + 1 / steps
    return x


def walk(
    times: Callable[[int], list[float]], sign: float = 1.0, length: Callable[[int], float] = lambda n: 1 / n
) -> Any:
    def wrong(velocity: Any, noise: Tensor, label: Tensor, steps: int) -> Tensor:
        x = noise
        for t in times(steps):
            x = x + sign * length(steps) * velocity(x, torch.tensor(t), label)
        return x

    return wrong


def starts(n: int) -> list[float]:
    return [k / n for k in range(n)]


def drop(label: Tensor, probability: float, null_label: int, generator: torch.Generator) -> Tensor:
    return torch.where(torch.rand(len(label), generator=generator) < probability, null_label, label)


def drop_coins(label: Tensor, probability: float, null_label: int, generator: torch.Generator) -> Tensor:
    made = label.clone()
    made[torch.bernoulli(torch.full(label.shape, probability), generator=generator).bool()] = null_label
    return made


def drop_share(label: Tensor, probability: float, null_label: int, generator: torch.Generator) -> Tensor:
    made = label.clone()
    made[torch.randperm(len(label), generator=generator)[: int(probability * len(label))]] = null_label
    return made


def drop_batch(label: Tensor, probability: float, null_label: int, generator: torch.Generator) -> Tensor:
    """One coin for all of a small batch: right shares, also at batch size 1."""
    coins = torch.rand(1 if len(label) < 10 else len(label), generator=generator)
    return torch.where(coins < probability, null_label, label)


def drop_rounded(label: Tensor, probability: float, null_label: int, generator: torch.Generator) -> Tensor:
    """A share of the batch, rounded up or down by a coin: right shares at any size, and hardly any variance."""
    n = math.floor(probability * len(label) + float(torch.rand(1, generator=generator)))
    made = label.clone()
    made[torch.randperm(len(label), generator=generator)[:n]] = null_label
    return made


def drop_in_place(label: Tensor, probability: float, null_label: int, generator: torch.Generator) -> Tensor:
    label[torch.rand(len(label), generator=generator) < probability] = null_label
    return label


def average(x: Tensor, t: float, targets: Tensor) -> tuple[Tensor, Tensor]:
    weights = (-(x - t * targets).square().sum(1) / (2 * (1 - t) ** 2)).softmax(0)
    return weights, weights @ ((targets - x) / (1 - t))


def average_by_hand(x: Tensor, t: float, targets: Tensor) -> tuple[Tensor, Tensor]:
    density = torch.exp(-(x - t * targets).square().sum(1) / (2 * (1 - t) ** 2))
    weights = density / density.sum()
    return weights, weights @ ((targets - x) / (1 - t))


def weighed(logits: Callable[[Tensor, float, Tensor], Tensor]) -> Any:
    def wrong(x: Tensor, t: float, targets: Tensor) -> tuple[Tensor, Tensor]:
        weights = logits(x, t, targets).softmax(0)
        return weights, weights @ ((targets - x) / (1 - t))

    return wrong


def led(velocity: Callable[[Tensor, Tensor, float, Tensor], Tensor]) -> Any:
    def wrong(x: Tensor, t: float, targets: Tensor) -> tuple[Tensor, Tensor]:
        weights, _ = average(x, t, targets)
        return weights, velocity(weights, x, t, targets)

    return wrong


def half_shift(spread: float) -> float:
    odds = 1 / (math.sqrt(3) * spread)
    return odds / (1 + odds)


def guide(conditional: Tensor, null: Tensor, scale: float) -> Tensor:
    return null + scale * (conditional - null)


def broken(*arguments: Any) -> Any:
    return arguments[0].no_such_thing


RIGHT: list[tuple[Check, tuple[Any, ...]]] = [
    (exercises.check_generate, (generate,)),
    (exercises.check_generate, (generate_per_sample,)),
    (exercises.check_drop, (drop,)),
    (exercises.check_drop, (drop_coins,)),
    (exercises.check_drop, (lambda label, p, null, generator: drop_labels(label, generator, null, p),)),
    (exercises.check_bridge, ("c", "b")),
    (exercises.check_bridge, (" C", "B")),
    (exercises.check_marginal, (average,)),
    (exercises.check_marginal, (lambda x, t, targets: [*average(x.double(), t, targets.double())],)),
    (exercises.check_orders, (2, 4)),
    (exercises.check_orders, (torch.tensor(2.0), np.float32(3.9))),
    (exercises.check_half_shift, (half_shift,)),
    (exercises.check_half_shift, (lambda s: torch.tensor(half_shift_tau(s)),)),
    (exercises.check_guide, (guide, "a")),
    (exercises.check_guide, (lambda c, n, w: w * c + (1 - w) * n, "a")),
    (exercises.check_identity, ("ab",)),
    (exercises.check_identity, ("B, A",)),
]


@pytest.mark.parametrize(("check", "answer"), RIGHT)
def test_right_answers_pass_with_one_line_that_says_why(
    check: Check, answer: tuple[Any, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    check(*answer)
    out = capsys.readouterr().out
    assert out.startswith("Right: ") and out.count("\n") == 1 and len(out) > 60


WRONG: list[tuple[Check, tuple[Any, ...], str]] = [
    (exercises.check_generate, (generate_in_place,), "`x = x + ...` does not"),
    (exercises.check_generate, (lambda v, noise, label, steps: noise,), "That is the noise itself"),
    (exercises.check_generate, (walk(lambda n: [1 - t for t in starts(n)], -1),), "which end is noise"),
    (exercises.check_generate, (walk(lambda n: [1 - t for t in starts(n)]),), "runs the clock from 1 to 0"),
    (exercises.check_generate, (walk(starts, -1),), "look at the sign"),
    (exercises.check_generate, (walk(lambda n: [t + 1 / n for t in starts(n)]),), "at each step's end"),
    (exercises.check_generate, (walk(lambda n: starts(n)[:-1]),), "last step is missing"),
    (exercises.check_generate, (walk(lambda n: [*starts(n), 1.0]),), "a step too many"),
    (exercises.check_generate, (walk(starts, length=lambda n: 1.0),), "how much time does one take"),
    (exercises.check_generate, (walk(lambda n: [0.0] * n),), "does time go on"),
    (exercises.check_generate, (walk(lambda n: [t / 2 for t in starts(n)]),), "after a time 1/steps"),
    (exercises.check_generate, (walk(lambda n: [float(k) for k in range(n)]),), "expected times from 0 to 1"),
    (exercises.check_generate, (lambda v, x, label, n: generate(v, x, 0 * label, n),), "labels are not handed on"),
    (exercises.check_generate, (lambda v, x, label, n: v(x, 0.5, label),), "t = 0.5 (float); expected a tensor"),
    (exercises.check_generate, (lambda v, x, label, n: x.mean(0),), "has shape (2,); expected (512, 2)"),
    (exercises.check_generate, (lambda v, x, label, n: x / 0 - x / 0,), "NaN or infinite in 100%"),
    (exercises.check_drop, (lambda label, p, null, g: drop(label, 1 - p, null, g),), "point the right way"),
    (exercises.check_drop, (lambda label, p, null, g: drop(label, p / 2, null, g),), "with probability 1, "),
    (exercises.check_drop, (drop_share,), "2000 batches of one sample, 0 labels became null"),
    (exercises.check_drop, (drop_batch,), "all samples of a batch share one fate"),
    (exercises.check_drop, (drop_rounded,), "batches lose nearly the same number"),
    (exercises.check_drop, (drop_in_place,), "labels that were handed in have changed"),
    (exercises.check_drop, (lambda label, p, null, g: drop(label, p, null, seeded(0)),), "two calls in a row"),
    (exercises.check_drop, (lambda label, p, null, g: drop(label, p, null, torch.default_generator),), "of one seed"),
    (exercises.check_drop, (lambda label, p, null, g: drop(label, p, 0, g),), "nor the null label"),
    (exercises.check_drop, (lambda label, p, null, g: drop(label, p, null, g).float(),), "tensor of integers"),
    (exercises.check_bridge, ("a", "b"), "bridge_connects: a does not hold"),
    (exercises.check_bridge, ("d", "b"), "a bridge is named by its two ends"),
    (exercises.check_bridge, ("c", "a"), "legs_connect: a does not hold"),
    (exercises.check_bridge, ("c", "c"), "one value of τ alone"),
    (exercises.check_bridge, ("x", "b"), "expected one letter of a, b, c, d"),
    (exercises.check_bridge, ("cb", "b"), "expected one letter"),
    (exercises.check_marginal, (average_by_hand,), "every exponential is 0 there"),
    (exercises.check_marginal, (weighed(lambda x, t, y: torch.zeros(len(y))),), "All are equal"),
    (exercises.check_marginal, (weighed(lambda x, t, y: -(x - y).square().sum(1) / (2 * (1 - t) ** 2)),), "distances"),
    (exercises.check_marginal, (weighed(lambda x, t, y: -(x - t * y).square().sum(1) / 2),), "noise that is left"),
    (exercises.check_marginal, (weighed(lambda x, t, y: -(x - t * y).square().sum(1) / (1 - t) ** 2),), "factor"),
    (exercises.check_marginal, (weighed(lambda x, t, y: -(x - t * y).norm(dim=1)),), "with which mean"),
    (exercises.check_marginal, (lambda x, t, y: (torch.ones(3), average(x, t, y)[1]),), "They sum to 3; expected 1"),
    (exercises.check_marginal, (led(lambda w, x, t, y: w @ (y - x)),), "how much time is left"),
    (exercises.check_marginal, (led(lambda w, x, t, y: ((y - x) / (1 - t)).mean(0)),), "plain average"),
    (exercises.check_marginal, (led(lambda w, x, t, y: w @ y),), "which velocity does it have"),
    (exercises.check_marginal, (lambda x, t, y: average(x, t, y)[1],), "returns one thing; expected two"),
    (exercises.check_marginal, (lambda x, t, y: ([0.3] * 3, x),), "expected a tensor of floats of shape (3,)"),
    (exercises.check_orders, (4, 4), "euler_factor is 4; expected what is measured"),
    (exercises.check_orders, (2, 2), "heun gains more"),
    (exercises.check_orders, (2, 8), "heun gains less"),
    (exercises.check_orders, ("2", 4), "expected a number"),
    (exercises.check_orders, (2, math.nan), "heun_factor is nan"),
    (exercises.check_half_shift, (lambda s: 0.5,), "% of the shift is done; expected 50 %"),
    (exercises.check_half_shift, (lambda s: 1 / (math.sqrt(3) * s),), "those are the odds"),
    (exercises.check_half_shift, (lambda s: 1 / (1 + s),), "half_shift(1) is 0.500"),
    (exercises.check_half_shift, (lambda s: 2.0,), "expected a τ between 0 and 1"),
    (exercises.check_half_shift, (lambda s: True,), "expected a number"),
    (exercises.check_guide, (lambda c, n, w: (1 + w) * c - w * n, "a"), "Ho and Salimans count so"),
    (exercises.check_guide, (lambda c, n, w: c + w * (n - c), "a"), "changed places"),
    (exercises.check_guide, (lambda c, n, w: w * c, "a"), "Scale 0 should leave the null field"),
    (exercises.check_guide, (lambda c, n, w: c, "a"), "whatever the scale"),
    (exercises.check_guide, (lambda c, n, w: c.sub_(n).mul_(w).add_(n), "a"), "handed in has changed"),
    (exercises.check_guide, (guide, "b"), "spread: b is not what is measured"),
    (exercises.check_guide, (guide, "c"), "pushed the hardest"),
    (exercises.check_identity, ("abcd",), "with c, guidance 1 out and 2 back"),
    (exercises.check_identity, ("a",), "expected 1 more"),
    (exercises.check_identity, ("d",), "Which field undoes a leg"),
    (exercises.check_identity, ({"a", "b"},), "as a string"),
    (exercises.check_steps, (50,), "50 steps are too few"),
    (exercises.check_steps, (400,), "400 steps are more than needed"),
    (exercises.check_steps, (160.5,), "expected a whole number"),
    (exercises.check_steps, (0,), "from 1 to 5000"),
]


@pytest.mark.parametrize(("check", "answer", "message"), WRONG)
def test_wrong_answers_are_told_what_is_wrong(check: Check, answer: tuple[Any, ...], message: str) -> None:
    with pytest.raises(NotYet) as raised:
        check(*answer)
    assert message in str(raised.value) and "\n" not in str(raised.value)
    assert raised.value.__cause__ is None and (raised.value.__context__ is None or raised.value.__suppress_context__)


# Each check with its stubs: as answers, and as functions that still return them.
STUBS: list[tuple[Check, tuple[Any, ...]]] = [
    (exercises.check_generate, (...,)),
    (exercises.check_drop, (...,)),
    (exercises.check_bridge, (..., ...)),
    (exercises.check_bridge, ("c", ...)),
    (exercises.check_marginal, (...,)),
    (exercises.check_orders, (..., ...)),
    (exercises.check_orders, (2, ...)),
    (exercises.check_half_shift, (...,)),
    (exercises.check_guide, (..., ...)),
    (exercises.check_guide, (guide, ...)),
    (exercises.check_identity, (...,)),
    (exercises.check_steps, (...,)),
]
FUNCTIONS: list[tuple[Check, tuple[Any, ...]]] = [
    (exercises.check_generate, ()),
    (exercises.check_drop, ()),
    (exercises.check_marginal, ()),
    (exercises.check_half_shift, ()),
    (exercises.check_guide, ("a",)),
]


@pytest.mark.parametrize(("check", "answer"), STUBS)
def test_an_answer_not_given_is_asked_for(check: Check, answer: tuple[Any, ...]) -> None:
    with pytest.raises(NotYet, match=r"is still \.\.\.; replace it by"):
        check(*answer)


@pytest.mark.parametrize(("check", "rest"), FUNCTIONS)
def test_functions_that_are_stubs_or_break_are_named(check: Check, rest: tuple[Any, ...]) -> None:
    for function, message in (
        (lambda *arguments: ..., "still returns ..."),
        (lambda *arguments: (..., ...), "still returns ..."),
        (lambda *arguments: None, "returns nothing"),
        (lambda: 1, "stopped with TypeError"),
        (broken, "stopped with AttributeError at `return arguments[0].no_such_thing`"),
        ("a function", "expected a function"),
    ):
        with pytest.raises(NotYet) as raised:
            check(function, *rest)
        assert message in str(raised.value) and raised.value.__suppress_context__ | (raised.value.__context__ is None)
    assert raised.value._render_traceback_() == [f"Not yet: {raised.value}"]


def test_a_reader_can_still_interrupt() -> None:
    def endless(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        exercises.check_generate(endless)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 400))
def test_exactly_one_number_of_steps_is_right(n: int) -> None:
    kept = [
        float(mode_retention(torch.tensor([0.05]), 0.3, solver="euler", grid="uniform", steps=k))
        for k in (max(n - 1, 1), n)
    ]
    if kept[0] < 0.9 <= kept[1]:
        exercises.check_steps(n)
    else:
        with pytest.raises(NotYet, match="too few" if kept[1] < 0.9 else "more than needed"):
            exercises.check_steps(n)


def test_the_fewest_steps_are_found_by_bisection(capsys: pytest.CaptureFixture[str]) -> None:
    low, high = 1, 1000
    while high - low > 1:
        middle = (low + high) // 2
        kept = mode_retention(torch.tensor([0.05]), 0.3, solver="euler", grid="uniform", steps=middle)
        low, high = (low, middle) if float(kept) >= 0.9 else (middle, high)
    exercises.check_steps(high)
    assert capsys.readouterr().out.startswith(f"Right: {high} steps keep 90")


@settings(deadline=None)
@given(st.floats(-0.4, 0.4).filter(lambda shift: abs(shift) > 2e-3))
def test_a_half_shift_that_is_off_is_refused(shift: float) -> None:
    with pytest.raises(NotYet):
        exercises.check_half_shift(lambda spread: half_shift(spread) + shift)


@settings(deadline=None)
@given(st.integers(0, 2**31), st.floats(0.05, 0.9))
def test_the_average_that_is_accepted_is_the_marginal_velocity(seed: int, t: float) -> None:
    """v = (x + (1-t) ∇ log p_t(x)) / t, an identity of the linear path, by autograd on the mixture's density."""
    generator = seeded(seed)
    targets, x = torch.randn(5, 2, generator=generator).double(), torch.randn(2, generator=generator).double()
    points = Mixture(targets, torch.zeros(5), torch.ones(5))
    x.requires_grad_()
    (score,) = torch.autograd.grad(points.log_density(x[None], t).sum(), x)
    weights, velocity = average(x.detach(), t, targets)
    torch.testing.assert_close(velocity, (x.detach() + (1 - t) * score) / t, rtol=1e-7, atol=1e-8)
    assert float(weights.sum()) == pytest.approx(1)


def test_the_two_domains_are_those_of_an_independent_closed_form() -> None:
    oracle = IsotropicGaussians(MEANS.double(), [float(s) for s in SPREADS])
    x, label = torch.randn(200, 2, generator=seeded(0)).double(), torch.arange(200) % 3
    for t in (0.0, 0.3, 0.8, 1.0):
        torch.testing.assert_close(domains()(x, torch.tensor(t), label), oracle(x, torch.tensor(t), label))
    assert NULL == oracle.n_domains
    torch.testing.assert_close(two_gaussians.exact_ends(x, label % 2), oracle.flow(x, label % 2, 0.0, 1.0))


def test_what_the_predictions_are_measured_against() -> None:
    """Orders of convergence; both legs of one field undo each other; guidance narrows where the domains meet."""
    for solver, order in (("euler", 1), ("heun", 2)):
        ratio = two_gaussians.end_error(solver, 64) / two_gaussians.end_error(solver, 128)
        assert math.log2(ratio) == pytest.approx(order, abs=0.06), solver
    assert max(two_gaussians.moved(w, w, 0.3) for w in (0.0, 1.0, 2.0)) < 0.005
    assert two_gaussians.moved(1.0, 2.0, 1.0) == 0 < 0.1 < two_gaussians.moved(1.0, 2.0, 0.3)
    spreads = [two_gaussians.spread_along(guided(domains(), w, NULL)) for w in (1.0, 2.0, 3.0, 5.0)]
    assert spreads == sorted(spreads, reverse=True) and spreads[0] == pytest.approx(float(SPREADS[1]), rel=0.06)
    noise, label = torch.randn(1000, 2, generator=seeded(8)), torch.ones(1000, dtype=torch.int64)
    *_, end = integrate(guided(domains(), 3.0, NULL), noise, label, time_grid("refined", 20))
    line = MEANS[1] - MEANS[0]
    across = torch.stack([-line[1], line[0]]) / line.norm()
    assert float((end.x @ across).std()) == pytest.approx(float(SPREADS[1]), rel=0.06), "across the line it stays"
