"""Path energies: pixel-wise <= global <= linear, equality for proportional weights alone, and what is measured."""

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.patches import Ellipse
from scipy.integrate import quad
from scipy.optimize import minimize_scalar

from medshift.errors import ParameterError
from medshift.path_energy import (
    Profiles,
    energies,
    energy,
    family_optimum,
    family_path,
    global_energy,
    global_optimum,
    heterogeneity,
    linear_path,
    pixel_energy,
    pixel_optimum,
    sde_weight,
    time_profiles,
    two_pixels,
)
from medshift.viz.path_energy import fig_curved_path, fig_energies

T = np.linspace(0, 1, 13)
FINE = np.linspace(0, 1, 4001)


def profiles_of(pixels: int, nodes: int = len(T)) -> st.SearchStrategy[np.ndarray]:
    return arrays(np.float64, (pixels, nodes), elements=st.floats(0.02, 50))


contrasts = arrays(np.float64, (3,), elements=st.floats(-5, 5)).filter(lambda c: (abs(c) > 0.05).all())
uneven = st.lists(st.floats(0.01, 1), min_size=12, max_size=12).map(
    lambda d: np.concatenate([[0.0], np.cumsum(d)[:-1] / sum(d), [1.0]])
)


def random_world(seed: int, pixels: int = 6, t: np.ndarray = T) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return np.exp(rng.standard_normal((pixels, len(t)))), rng.standard_normal(pixels)


@settings(max_examples=60)
@given(profiles_of(3), contrasts, uneven)
def test_pixel_wise_is_at_most_global_is_at_most_any_schedule_on_any_grid(w, contrast, t) -> None:
    pixel, whole, linear = pixel_energy(w, contrast, t), global_energy(w, contrast, t), energy(t, w, contrast, t)
    assert pixel <= whole * (1 + 1e-12) and whole <= linear * (1 + 1e-12)
    assert energy(pixel_optimum(w, t), w, contrast, t) == pytest.approx(pixel, rel=1e-10)
    assert energy(global_optimum(w, contrast, t), w, contrast, t) == pytest.approx(whole, rel=1e-10)


@settings(max_examples=40)
@given(profiles_of(1), arrays(np.float64, (3,), elements=st.floats(0.05, 20)), contrasts, st.floats(2, 10))
def test_pixel_wise_equals_global_if_and_only_if_the_weights_are_proportional(
    profile, scales, contrast, factor
) -> None:
    proportional = scales[:, None] * profile
    assert heterogeneity(proportional, contrast, T) == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(
        pixel_optimum(proportional, T), np.tile(global_optimum(proportional, contrast, T), (3, 1)), atol=1e-12
    )
    one_off = proportional.copy()
    one_off[0, :6] *= factor  # one pixel has another profile
    assert heterogeneity(one_off, contrast, T) > 1e-9
    # A pixel without contrast costs nothing, whatever its profile.
    assert heterogeneity(one_off, contrast * [0, 1, 1], T) == pytest.approx(0, abs=1e-12)


def test_closed_forms_are_the_integrals() -> None:
    """Σ Δ²/∫1/w and 1/∫1/(Σ w Δ²), with the integrals done by hand and by quadrature."""
    rates, contrast = np.array([3.0, -2.0, 0.7]), np.array([1.0, -0.5, 2.0])
    w = np.exp(rates[:, None] * FINE)
    by_hand = float((contrast**2 * rates / -np.expm1(-rates)).sum())
    whole = 1 / quad(lambda t: 1 / float((contrast**2 * np.exp(rates * t)).sum()), 0, 1, epsabs=1e-13)[0]
    linear = float((contrast**2 * np.expm1(rates) / rates).sum())
    assert pixel_energy(w, contrast, FINE) == pytest.approx(by_hand, rel=1e-6)
    assert energy(pixel_optimum(w, FINE), w, contrast, FINE) == pytest.approx(by_hand, rel=1e-6)
    assert energy(global_optimum(w, contrast, FINE), w, contrast, FINE) == pytest.approx(whole, rel=1e-6)
    assert energy(linear_path(FINE), w, contrast, FINE) == pytest.approx(linear, rel=1e-6)
    assert by_hand < whole < linear
    exact = np.expm1(-rates[:, None] * FINE) / np.expm1(-rates[:, None])  # Λ of 1/w, by hand
    np.testing.assert_allclose(pixel_optimum(w, FINE), exact, atol=1e-6)


def test_optima_solve_the_normal_equations() -> None:
    """Against the minimum of the quadratic form of the inner nodes, by a linear solver."""
    w, contrast = random_world(1)
    pooled = (contrast[:, None] ** 2 * w).sum(0, keepdims=True)
    for profile, found in zip(np.concatenate([w, pooled]), [*pixel_optimum(w, T), global_optimum(w, contrast, T)],
                              strict=True):  # fmt: skip
        difference = np.diff(np.eye(len(T)), axis=0)
        form = difference.T @ np.diag((profile[1:] + profile[:-1]) / 2 / np.diff(T)) @ difference
        inner = np.linalg.solve(form[1:-1, 1:-1], -form[1:-1, -1])
        np.testing.assert_allclose(found[1:-1], inner, atol=1e-10)


def test_every_perturbation_costs() -> None:
    w, contrast = random_world(2)
    rng = np.random.default_rng(3)
    pixel, whole = pixel_optimum(w, T), global_optimum(w, contrast, T)
    for size in (1e-3, 0.1):
        for _ in range(20):
            push = size * rng.standard_normal(w.shape) * (T > 0) * (T < 1)
            assert energy(pixel + push, w, contrast, T) > pixel_energy(w, contrast, T)
            assert energy(whole + push[0], w, contrast, T) > global_energy(w, contrast, T)
    assert energy(np.tile(whole, (6, 1)), w, contrast, T) == pytest.approx(global_energy(w, contrast, T), rel=1e-12)


def test_under_the_weight_of_the_sde_contrast_alone_gives_nothing() -> None:
    contrast = np.random.default_rng(0).standard_normal((2, 16, 16)) ** 3
    w = sde_weight(FINE)
    found = energies(w, contrast, FINE)
    assert found["pixel-wise"] == pytest.approx(found["global"], rel=1e-10)
    assert found["pixel-wise, one g"] == pytest.approx(found["global, one g"], rel=1e-10)
    assert found["global"] < 0.9 * found["linear"]  # the schedule matters, that it is per pixel does not
    assert heterogeneity(w, contrast, FINE) == pytest.approx(0, abs=1e-10)


def test_the_weight_of_the_sde_is_that_of_stable_diffusions_schedule() -> None:
    beta = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    kept = np.concatenate([[1.0], np.cumprod(1 - beta)])
    assert kept[500] == pytest.approx(0.2777, abs=5e-5) and kept[1] == pytest.approx(0.99915, abs=5e-6)
    steps = np.arange(501)
    rate = -np.gradient(np.log(kept), edge_order=2)[steps] * 500  # g² = β a unit of t
    np.testing.assert_allclose(sde_weight(steps / 500), kept[steps] / rate, rtol=5e-3)
    assert sde_weight(T)[-1] == pytest.approx(0.2777 / (500 * beta[499]), rel=1e-2)
    whole = sde_weight(np.array([0.0, 0.25, 1.0]), horizon=1000)
    assert whole[1] == pytest.approx(sde_weight(np.array([0.0, 0.5, 1.0]))[1] / 2, rel=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_the_papers_family_lies_between_and_its_g_is_the_best(seed: int) -> None:
    w, contrast = random_world(seed)
    e = energies(w, contrast, T)
    assert e["pixel-wise"] <= e["pixel-wise, one g"] <= e["global, one g"] <= e["linear"]
    assert e["global"] <= e["global, one g"]
    for g_max in (0.05, 0.9):
        best, shared = (family_optimum(w, contrast, T, g_max=g_max, shared=s) for s in (False, True))

        def searched(of: np.ndarray, about: np.ndarray, bound: float) -> float:
            def cost(g: float) -> float:
                return energy(family_path(np.full(about.shape, g), T), of, about, T)

            return float(minimize_scalar(cost, bounds=(-bound, bound), method="bounded", options={"xatol": 1e-10}).x)

        np.testing.assert_allclose(
            best, [searched(w[p : p + 1], contrast[p : p + 1], g_max) for p in range(6)], atol=2e-5
        )
        assert float(shared) == pytest.approx(searched(w, contrast, g_max), abs=2e-5)
        path = family_path(best, T)
        assert path.min() >= 0 and path.max() <= 1 and (np.diff(path) >= 0).all()


def test_the_family_is_about_the_schedule_it_is_given() -> None:
    cosine = (1 - np.cos(np.pi * FINE)) / 2
    cosine[0], cosine[-1] = 0, 1
    truth = np.array([0.6, -0.4])
    w = 1 / np.gradient(family_path(truth, FINE, cosine), FINE, axis=-1).clip(1e-3)  # Λ̇ ∝ 1/w makes the truth optimal
    found = family_optimum(w, np.array([1.0, 3.0]), FINE, schedule=cosine)
    np.testing.assert_allclose(found, truth, atol=5e-3)
    np.testing.assert_array_equal(family_path(0.0, FINE, cosine), cosine)


def pairs(n: int, seed: int, y_std: torch.Tensor, x_std: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sources and targets that share part of their noise."""
    g = torch.Generator().manual_seed(seed)
    shared, own = torch.randn(2, n, *y_std.shape, generator=g, dtype=torch.float64)
    return 1 + y_std * (0.6 * shared + 0.8 * own), x_std * shared


def test_profiles_are_inverse_variances_of_the_mixtures() -> None:
    y, x0 = pairs(9, 0, torch.rand(1, 3, 4).double() + 0.1, torch.rand(1, 3, 4).double() + 0.1)
    y[:, 0, 0, 0], x0[:, 0, 0, 0] = 1.0, 0.0  # air: the same in every image
    found = time_profiles(y, x0, t=T, floor=0.02)
    floor = 0.02 * float(torch.stack([y.var(0), x0.var(0)]).mean())
    slow = torch.stack([1 / (floor + (t * y + (1 - t) * x0).var(0)) for t in T], dim=-1)
    np.testing.assert_allclose(found.weights, slow, rtol=1e-10)
    np.testing.assert_allclose(found.contrast**2, (y - x0).square().mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.weights[0, 0, 0], 1 / floor, rtol=1e-12)
    # Scaling the images scales nothing but the weights, and the energy not at all.
    tenfold = time_profiles(10 * y, 10 * x0, t=T, floor=0.02)
    assert pixel_energy(*vars(tenfold).values()) == pytest.approx(pixel_energy(*vars(found).values()), rel=1e-10)


def test_groups_average_the_variance_and_add_the_contrast() -> None:
    y, x0 = pairs(7, 1, torch.rand(2, 3, 3).double() + 0.1, torch.rand(2, 3, 3).double() + 0.1)
    single = time_profiles(y, x0, t=T)
    labels = torch.tensor([3, 7, 7] * 6).reshape(2, 3, 3)
    grouped = time_profiles(y, x0, labels, t=T)
    assert grouped.weights.shape == (2, len(T))
    for k, label in enumerate((3, 7)):
        inside = (labels == label).numpy()
        np.testing.assert_allclose(1 / grouped.weights[k], (1 / single.weights[inside]).mean(0), rtol=1e-10)
        assert grouped.contrast[k] ** 2 == pytest.approx((single.contrast[inside] ** 2).sum(), rel=1e-12)
    each = time_profiles(y, x0, torch.arange(18).reshape(2, 3, 3), t=T)
    np.testing.assert_allclose(each.weights, single.weights.reshape(18, -1), rtol=1e-12)
    bins = time_profiles(y, x0, 3, t=T)
    ordered = np.sort(single.contrast.ravel() ** 2).reshape(3, 6).sum(1)
    np.testing.assert_allclose(bins.contrast**2, ordered, rtol=1e-12)
    assert heterogeneity(*vars(time_profiles(y, x0, 1, t=T)).values()) == pytest.approx(0, abs=1e-12)


def held_out_gain(y_std: torch.Tensor, x_std: torch.Tensor) -> tuple[float, float]:
    """Heterogeneity on the pairs of the fit, and the gain of these paths under weights of other pairs."""
    fit, other = (time_profiles(*pairs(12, seed, y_std, x_std), t=T) for seed in (0, 1))
    world = (other.weights, other.contrast, T)
    whole = energy(global_optimum(fit.weights, fit.contrast, T), *world)
    return heterogeneity(fit.weights, fit.contrast, T), 1 - energy(pixel_optimum(fit.weights, T), *world) / whole


def test_heterogeneity_by_chance_does_not_survive_other_pairs() -> None:
    same = torch.full((40,), 0.5).double()
    found, gain = held_out_gain(same, 0.8 * same)
    assert found > 0.02 and gain < 0  # 12 pairs of pixels that are all alike
    ramp = torch.linspace(0.1, 1, 40).double()
    found, gain = held_out_gain(ramp, ramp.flip(0))
    assert found > 0.2 and gain > 0.15


def test_only_the_pixel_wise_path_leaves_the_segment() -> None:
    toy = two_pixels(FINE)
    world = (toy.weights, toy.contrast, FINE)
    pixel, whole = pixel_optimum(toy.weights, FINE), global_optimum(toy.weights, toy.contrast, FINE)
    paths = {"linear": linear_path(FINE), "global": whole, "pixel-wise": pixel}
    assert abs(pixel[0] - pixel[1]).max() > 0.5
    np.testing.assert_allclose(pixel[0], 1 - pixel[1, ::-1], atol=1e-9)  # the default world is its own mirror image
    assert abs(whole - FINE).max() > 0.03 and heterogeneity(*world) > 0.4
    alike = two_pixels(FINE, (0.9, 0.9), (0.2, 0.2))
    straight = pixel_optimum(alike.weights, FINE)
    np.testing.assert_allclose(straight[0], straight[1], atol=1e-12)
    ends = np.array([-1.0, 0.0]), np.array([2.0, 3.0])
    left, right = fig_curved_path(*ends, toy.weights, FINE, paths, title="toy").axes
    drawn = {str(line.get_label()): np.array(line.get_data()) for line in left.lines}
    for name in ("linear", "global"):
        np.testing.assert_allclose(drawn[name][1] - drawn[name][0], 1, atol=1e-9)
    np.testing.assert_allclose(drawn["pixel-wise"], ends[0][:, None] + 3 * pixel, atol=1e-9)
    assert len([patch for patch in left.patches if isinstance(patch, Ellipse)]) == 7
    assert len(right.lines) == 4
    matplotlib.pyplot.close("all")


def test_bars_are_shares_of_the_linear_energy() -> None:
    rows = {f"world {seed}": energies(*random_world(seed), T) for seed in range(3)}
    table = pd.DataFrame(rows).T
    (axis,) = fig_energies(table, title="worlds").axes
    heights = {str(bars.get_label()): [bar.get_height() for bar in bars] for bars in axis.containers}
    assert set(heights) == set(table.columns)
    for name, values in heights.items():
        np.testing.assert_allclose(values, table[name] / table["linear"], rtol=1e-12)
    matplotlib.pyplot.close("all")


W, C = random_world(0)
BAD = {
    "a weight of 0": lambda: pixel_optimum(0 * W, T),
    "weights of other pixels": lambda: energy(T, W[:2], C, T),
    "no contrast": lambda: global_optimum(W, 0 * C, T),
    "a path that ends early": lambda: energy(0.9 * T, W, C, T),
    "a path of other nodes": lambda: energy(FINE, W, C, T),
    "nodes that go back": lambda: linear_path(T[::-1]),
    "nodes to 500": lambda: linear_path(500 * T),
    "g above 1": lambda: family_optimum(W, C, T, g_max=1.5),
    "a schedule of the released code": lambda: family_optimum(W, C, T, schedule=1 / (1 + np.exp(3 - 6 * T))),
    "a horizon beyond the schedule": lambda: sde_weight(T, 1001),
    "one pair": lambda: time_profiles(torch.zeros(1, 4), torch.ones(1, 4), t=T),
    "unequal images": lambda: time_profiles(torch.rand(3, 4), torch.rand(3, 5), t=T),
    "copies of one pair": lambda: time_profiles(torch.zeros(3, 4), torch.ones(3, 4), t=T),
    "no floor": lambda: time_profiles(torch.rand(3, 4), torch.rand(3, 4), t=T, floor=0.0),
    "labels of other pixels": lambda: time_profiles(torch.rand(3, 4), torch.rand(3, 4), torch.zeros(5), t=T),
    "more bins than pixels": lambda: time_profiles(torch.rand(3, 4), torch.rand(3, 4), 5, t=T),
}


@pytest.mark.parametrize("call", BAD.values(), ids=BAD.keys())
def test_bad_input_gets_one_error(call) -> None:
    with pytest.raises(ParameterError):
        call()


def test_profiles_go_into_every_function() -> None:
    found: Profiles = time_profiles(*pairs(5, 2, torch.ones(2, 2).double(), torch.ones(2, 2).double()), 2, t=T)
    assert set(energies(found.weights, found.contrast, found.t)) == set(energies(W, C, T))
