"""The process and sampler of CDTSDE against closed forms: marginals, the four-term form, the SDE, and DoSSR."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from medshift.domain_shift import (
    ShiftSchedule,
    marginal_mean,
    path_weight,
    reverse_step,
    sample,
    second_order,
    step_grid,
)
from medshift.errors import ParameterError
from medshift.mixing_field import ConstantField, modulated

SCHEDULE = ShiftSchedule()
SHAPE = (1, 2, 5, 4)


def tensor(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def at(t: int) -> tuple[Tensor, Tensor]:
    time = torch.tensor(t)
    return SCHEDULE.signal(time), SCHEDULE.noise(time)


def random_field(seed: int = 0) -> Callable[[int], Tensor]:
    """A pixel-wise field of the paper's family with a random g that does not depend on time."""
    g = 1.8 * torch.rand(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 0.9
    return lambda t: modulated(SCHEDULE.mixing(torch.tensor([t])), g)


def averaged(field: Callable[[int], Tensor]) -> Callable[[int], Tensor]:
    return lambda t: field(t).mean().expand(SHAPE)


def ends(t: int, s: int, field: Callable[[int], Tensor]) -> dict[str, Tensor]:
    (alpha_t, sigma_t), (alpha_s, sigma_s) = at(t), at(s)
    of = {"alpha_t": alpha_t, "alpha_s": alpha_s, "sigma_t": sigma_t, "sigma_s": sigma_s}
    return of | {"lam_t": field(t), "lam_s": field(s)}


def moments(
    grid: list[int], field: Callable[[int], Tensor], x0: Tensor, y: Tensor, *, stochastic: bool = True
) -> list[tuple[int, Tensor, Tensor]]:
    """Mean and variance of x at each time, the step being affine in x_t and z, for the true x_0 as data prediction."""
    alpha, sigma = at(grid[0])
    mean, variance = alpha * y, (sigma**2).expand(SHAPE)
    found = [(grid[0], mean, variance)]
    zero, one = torch.zeros(SHAPE, dtype=torch.float64), torch.ones(SHAPE, dtype=torch.float64)
    for t, s in zip(grid[:-1], grid[1:], strict=True):
        noise = (zero, one) if stochastic else (None, None)
        knobs = ends(t, s, field)
        offset = reverse_step(zero, x0, y, **knobs, noise=noise[0]).x
        slope = reverse_step(one, x0, y, **knobs, noise=noise[0]).x - offset
        drawn = reverse_step(zero, x0, y, **knobs, noise=noise[1]).x - offset if stochastic else zero
        mean, variance = offset + slope * mean, slope**2 * variance + drawn**2
        found.append((s, mean, variance))
    return found


@pytest.mark.parametrize("stochastic", [True, False])
@pytest.mark.parametrize("grid", [[500, 400, 300, 200, 100, 1], [500, 499, 250, 3], [500, 7]])
def test_every_step_keeps_the_marginal_of_a_pixel_wise_field(grid: list[int], stochastic: bool) -> None:
    x0, y, field = tensor(1, *SHAPE), tensor(2, *SHAPE), random_field()
    for t, mean, variance in moments(grid, field, x0, y, stochastic=stochastic):
        alpha, sigma = at(t)
        torch.testing.assert_close(mean, marginal_mean(x0, y, lam=field(t), alpha=alpha), atol=1e-12, rtol=0)
        torch.testing.assert_close(variance, (sigma**2).expand(SHAPE), atol=1e-12, rtol=0)


def test_the_averaged_field_fails_that_very_test() -> None:
    x0, y, field = tensor(1, *SHAPE), tensor(2, *SHAPE), random_field()
    t, mean, _ = moments([500, 400, 300, 200], averaged(field), x0, y)[-1]
    off = (mean - marginal_mean(x0, y, lam=field(t), alpha=at(t)[0])).abs().max()
    assert off > 0.1


def exact_prediction(
    field: Callable[[int], Tensor], y: Tensor, delta: float, s: float
) -> Callable[[Tensor, int], Tensor]:
    """E[x_0 | x_t, y] for x_0 | y ~ N(y + delta, s²)."""

    def predict(x: Tensor, t: int) -> Tensor:
        alpha, sigma = at(t)
        lam = field(t)
        weight = (alpha * (1 - lam) / sigma) ** 2
        pull = (alpha * (1 - lam) / sigma**2) * (x - alpha * lam * y)
        return ((y + delta) / s**2 + pull) / (1 / s**2 + weight)

    return predict


@pytest.mark.parametrize("stochastic", [True, False])
def test_with_the_exact_prediction_means_hold_for_any_number_of_steps_and_spread_grows_to_the_truth(
    stochastic: bool,
) -> None:
    n, field, delta, s = 4000, random_field(), 0.7, 0.5
    y = tensor(3, *SHAPE).expand(n, *SHAPE[1:])
    spread = {}
    for steps in (5, 50, 250):
        noise = tensor(steps, n, steps if stochastic else 1, *SHAPE[1:])
        predict = exact_prediction(field, y, delta, s)
        made = sample(predict, field, y, schedule=SCHEDULE, steps=steps, noise=noise, stochastic=stochastic)
        assert made.clamped == 0
        torch.testing.assert_close((made.x - y).mean(0), torch.full(SHAPE[1:], delta).double(), atol=0.04, rtol=0)
        spread[steps] = float((made.x - y).std(0).mean())
    assert spread[5] < spread[50] < spread[250] < s * 1.02
    assert spread[250] == pytest.approx(s, rel=0.06)
    if stochastic:
        assert spread[5] < 0.75 * s  # the under-dispersion of few steps


def test_averaging_in_sampling_alone_leaves_a_bias_that_more_steps_do_not_remove() -> None:
    field, delta, s = random_field(), 1.0, 0.5
    y = tensor(3, *SHAPE)
    # Trained with the pixel-wise field, sampled with its mean: the prediction reads x_t under the wrong Λ.
    predict = exact_prediction(field, y, delta, s)
    worst = []
    for steps in (50, 250):
        noise = torch.zeros(1, 1, *SHAPE[1:], dtype=torch.float64)
        made = sample(predict, averaged(field), y, schedule=SCHEDULE, steps=steps, noise=noise, stochastic=False)
        right = sample(predict, field, y, schedule=SCHEDULE, steps=steps, noise=noise, stochastic=False)
        assert float((right.x - y - delta).abs().max()) < 1e-10
        worst.append(float((made.x - y - delta).abs().max()))
    assert min(worst) > 0.05 and worst[1] > 0.7 * worst[0]


def four_terms(
    x_t: Tensor, x_hat: Tensor, y: Tensor, z: Tensor, *, t: int, s: int, field: Callable[[int], Tensor]
) -> Tensor:
    """The released form with Υ in denominators."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = at(t), at(s)
    wide_t, wide_s = alpha_t * (1 - field(t)), alpha_s * (1 - field(s))
    rho_t, rho_s = field(t) / (1 - field(t)), field(s) / (1 - field(s))
    low_t, low_s = sigma_t / wide_t, sigma_s / wide_s
    r = low_s / low_t
    inner = r**2 * x_t / wide_t + (rho_s - r**2 * rho_t) * y + (1 - r**2) * x_hat
    return wide_s * (inner + low_s * (1 - r**2).sqrt() * z)


@pytest.mark.parametrize(("t", "s"), [(499, 300), (300, 299), (200, 1)])
def test_it_equals_the_four_terms_where_the_field_is_below_one(t: int, s: int) -> None:
    field = random_field(4)
    x, x_hat, y, z = (tensor(k, *SHAPE) for k in range(4))
    made = reverse_step(x, x_hat, y, **ends(t, s, field), noise=z)
    torch.testing.assert_close(made.x, four_terms(x, x_hat, y, z, t=t, s=s, field=field), atol=1e-12, rtol=1e-12)
    assert made.clamped == 0


def test_from_a_field_of_one_it_draws_from_the_marginal_and_is_finite() -> None:
    field = random_field(5)
    x, x_hat, y, z = (tensor(k, *SHAPE) for k in range(4))
    made = reverse_step(x, x_hat, y, **ends(500, 400, field), noise=z).x
    alpha, sigma = at(400)
    torch.testing.assert_close(
        made, marginal_mean(x_hat, y, lam=field(400), alpha=alpha) + sigma * z, atol=1e-12, rtol=0
    )
    beyond = reverse_step(x, x_hat, y, **ends(700, 600, lambda t: torch.ones(SHAPE).double()), noise=z)
    assert torch.isfinite(beyond.x).all() and beyond.clamped == 0


def dossr(x_t: Tensor, x_hat: Tensor, y: Tensor, z: Tensor, eta: tuple[Tensor, Tensor], t: int, s: int) -> Tensor:
    """DoSSR's step with scalars throughout."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = at(t), at(s)
    ratio = sigma_s / sigma_t
    kappa = alpha_t * (1 - eta[0]) / (alpha_s * (1 - eta[1]))
    mean_t = alpha_t * (eta[0] * y + (1 - eta[0]) * x_hat)
    mean_s = alpha_s * (eta[1] * y + (1 - eta[1]) * x_hat)
    root = (1 - (ratio * kappa).square()).clamp(min=0).sqrt()
    return mean_s + ratio.square() * kappa * (x_t - mean_t) + sigma_s * root * z


def test_without_modulation_it_is_dossr_bit_for_bit() -> None:
    y, x = tensor(1, *SHAPE), tensor(2, *SHAPE)
    linear = ConstantField(2)
    for t, s in ((500, 300), (300, 100), (100, 3)):
        eta = SCHEDULE.mixing(torch.tensor(t)), SCHEDULE.mixing(torch.tensor(s))
        lam = [linear(e.view(1), y) for e in eta]
        z, x_hat = tensor(t, *SHAPE), tensor(s, *SHAPE)
        knobs = ends(t, s, random_field()) | {"lam_t": lam[0], "lam_s": lam[1]}
        assert torch.equal(reverse_step(x, x_hat, y, **knobs, noise=z).x, dossr(x, x_hat, y, z, eta, t, s))


def test_the_forward_sde_in_small_steps_has_these_marginals() -> None:
    n, field = 40_000, random_field(6)
    x0, y = tensor(1, *SHAPE), tensor(2, *SHAPE)
    generator = torch.Generator().manual_seed(0)
    alpha, sigma = at(0)
    x = (
        marginal_mean(x0, y, lam=field(0), alpha=alpha)
        + sigma * torch.randn(n, *SHAPE[1:], generator=generator).double()
    )
    for t in range(400):
        (alpha, sigma), (after, sigma_after) = at(t), at(t + 1)
        drift = (after / alpha).log()
        diffusion = sigma_after**2 - sigma**2 - 2 * drift * sigma**2
        moved = drift * x + alpha * (field(t + 1) - field(t)) * (y - x0)
        x = x + moved + diffusion.sqrt() * torch.randn(x.shape, generator=generator).double()
    alpha, sigma = at(400)
    torch.testing.assert_close(
        x.mean(0, keepdim=True), marginal_mean(x0, y, lam=field(400), alpha=alpha), atol=0.02, rtol=0
    )
    torch.testing.assert_close(x.std(0), sigma.expand(SHAPE[1:]), atol=0.01, rtol=0.01)


def march(n: int, order: int, stochastic: bool) -> Tensor:
    """The mean of x at t = 200 from a fixed x at t = 400; noise is left at zero.

    The prediction is affine in x, so means have an equation of their own, but it is no posterior mean: of that one the
    mean path has a constant prediction, and every order is exact.
    """
    field, y = random_field(7), tensor(2, *SHAPE)

    def predict(x: Tensor, t: int) -> Tensor:
        return math.cos(t / 60) * x + 0.3 * y

    grid = [400 - round(200 * k / n) for k in range(n + 1)]
    x, before = y + tensor(3, *SHAPE), y
    for k, (t, later) in enumerate(zip(grid[:-1], grid[1:], strict=True)):
        x_hat = predict(x, t)
        made = reverse_step(
            x, x_hat, y, **ends(t, later, field), noise=torch.zeros(SHAPE).double() if stochastic else None
        ).x
        if order == 2 and k:
            three = (grid[k - 1], t, later)
            parts = [at(i) for i in three]
            made = made + second_order(
                x_hat,
                before,
                lam=[field(i) for i in three],
                alpha=[p[0] for p in parts],
                sigma=[p[1] for p in parts],
                stochastic=stochastic,
            )
        x, before = made, x_hat
    return x


@pytest.mark.parametrize("stochastic", [True, False])
def test_the_second_order_converges_faster(stochastic: bool) -> None:
    reference = march(200, 2, stochastic)
    errors = {
        (n, order): float((march(n, order, stochastic) - reference).abs().max()) for n in (10, 20) for order in (1, 2)
    }
    first, second = errors[10, 1] / errors[20, 1], errors[10, 2] / errors[20, 2]
    assert 1.6 < first < 2.5 and second > 3.0, (first, second)
    assert errors[20, 2] < 0.2 * errors[20, 1]


def test_the_true_image_as_prediction_comes_back_whatever_the_steps() -> None:
    x0, y = tensor(1, *SHAPE), tensor(2, *SHAPE)
    for steps in (1, 3, 500):
        made = sample(
            lambda x, t: x0,
            random_field(),
            y,
            schedule=SCHEDULE,
            steps=steps,
            noise=tensor(3, 1, steps, *SHAPE[1:]),
            order=2,
        )
        assert torch.equal(made.x, x0)


def test_a_field_that_falls_in_time_is_counted_and_stays_finite() -> None:
    x, x_hat, y, z = (tensor(k, *SHAPE) for k in range(4))
    falling = {300: torch.full(SHAPE, 0.2).double(), 200: torch.full(SHAPE, 1.0).double()}
    made = reverse_step(x, x_hat, y, **ends(300, 200, lambda t: falling[t]), noise=z)
    assert made.clamped == math.prod(SHAPE) and torch.isfinite(made.x).all()


@pytest.mark.parametrize("wrong", [1.01, -0.01, math.nan])
def test_a_field_outside_its_range_is_refused(wrong: float) -> None:
    x = tensor(1, *SHAPE)
    bad = torch.full(SHAPE, wrong).double()
    with pytest.raises(ParameterError, match=r"stay in \[0, 1\]"):
        reverse_step(x, x, x, **ends(300, 200, lambda t: bad), noise=x)


@pytest.mark.parametrize("steps", [0, -1, 501, 2.5, True])
def test_steps_that_do_not_exist_are_refused(steps: int) -> None:
    with pytest.raises(ParameterError, match="from 1 to 500"):
        step_grid(SCHEDULE, steps)


@pytest.mark.parametrize(("length", "last"), [(1000, 1000), (1000, 1), (100, 500)])
def test_a_start_beyond_the_schedule_is_refused(length: int, last: int) -> None:
    with pytest.raises(ParameterError, match="t1"):
        ShiftSchedule(length, last)


def test_noise_of_another_shape_and_an_unknown_order_are_refused() -> None:
    y = tensor(1, *SHAPE)
    for noise, order in ((tensor(1, 1, 4, *SHAPE[1:]), 1), (tensor(1, 1, 5, *SHAPE[1:]), 3)):
        with pytest.raises(ParameterError, match="expected 1 or 2"):
            sample(lambda x, t: x, random_field(), y, schedule=SCHEDULE, steps=5, noise=noise, order=order)


def test_the_schedule_is_stable_diffusions_and_mixing_ends_at_one() -> None:
    t = torch.arange(1000)
    assert float(SCHEDULE.signal(t)[499] ** 2) == pytest.approx(0.2777, abs=1e-4)
    assert float(SCHEDULE.signal(t)[0] ** 2) == pytest.approx(0.99915, abs=1e-5)
    torch.testing.assert_close(SCHEDULE.signal(t) ** 2 + SCHEDULE.noise(t) ** 2, torch.ones(1000).double())
    mixing = SCHEDULE.mixing(t)
    assert float(mixing[0]) < 1e-5 and (mixing[500:] == 1).all() and (mixing[:501].diff() > 0).all()
    # The SDE's g² is the schedule's β: what the noise grows by beyond the drift.
    grown = (
        SCHEDULE.noise(t)[1:] ** 2
        - (SCHEDULE.signal(t)[1:] / SCHEDULE.signal(t)[:-1]) ** 2 * SCHEDULE.noise(t)[:-1] ** 2
    )
    torch.testing.assert_close(
        path_weight(SCHEDULE, t)[1:], SCHEDULE.signal(t)[1:] ** 2 / (grown * 1000), rtol=1e-9, atol=0
    )


@pytest.mark.parametrize("t", [torch.tensor([1000]), torch.tensor([-1]), torch.tensor([0.5])])
def test_times_that_are_not_in_the_schedule_are_refused(t: Tensor) -> None:
    with pytest.raises(ParameterError, match="integers from 0 to 999"):
        SCHEDULE.signal(t)
