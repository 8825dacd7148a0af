"""Distances of sets against closed forms, independent implementations and what their estimators promise."""

import inspect
from math import exp

import numpy as np
import pytest
import torch
from prdc import compute_prdc
from scipy.linalg import sqrtm
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric

from medshift.errors import ParameterError
from medshift.metrics.realism import (
    cmmd,
    conditional_fid,
    density_coverage,
    fid,
    fid_bias_note,
    kid,
)

PAIRED = {
    "fid": fid,
    "kid": kid,
    "density": lambda a, b: density_coverage(a, b).density,
    "coverage": lambda a, b: density_coverage(a, b).coverage,
    "conditional": lambda a, b: conditional_fid(a, a, b, components=3),
}
EQUAL_SIZES = {**{k: PAIRED[k] for k in ("fid", "density", "coverage", "conditional")}, "cmmd": cmmd}


def two_sets(n: int = 60, d: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(d, d))
    return rng.normal(size=(n, d)), rng.normal(size=(n, d)) @ mix + 0.5


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def exact_gaussian(rng: np.random.Generator, n: int, mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Rows whose sample mean and covariance are exactly those given."""
    rows = rng.normal(size=(n, len(mean)))
    rows -= rows.mean(0)
    own = np.linalg.cholesky(np.cov(rows, rowvar=False))
    return rows @ np.linalg.inv(own).T @ np.linalg.cholesky(covariance).T + mean


def frechet(m_a: np.ndarray, s_a: np.ndarray, m_b: np.ndarray, s_b: np.ndarray) -> float:
    root = np.real(sqrtm(s_a))
    return float(((m_a - m_b) ** 2).sum() + np.trace(s_a + s_b - 2 * np.real(sqrtm(root @ s_b @ root))))


# --- FID ---


def test_fid_of_commuting_gaussians_is_the_closed_form() -> None:
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    p, q, shift = np.array([4.0, 1.0, 0.25, 9.0]), np.array([1.0, 1.0, 4.0, 0.01]), np.array([1.0, -2.0, 0.0, 0.5])
    a = exact_gaussian(rng, 50, np.zeros(4), turn * p @ turn.T)
    b = exact_gaussian(rng, 50, shift, turn * q @ turn.T)
    assert fid(a, b) == pytest.approx((shift**2).sum() + ((np.sqrt(p) - np.sqrt(q)) ** 2).sum(), rel=1e-10)


@pytest.mark.parametrize(("n", "d"), [(200, 6), (40, 40), (15, 60)])
def test_fid_equals_torch_fidelity_also_with_singular_covariances(n: int, d: int) -> None:
    a, b = two_sets(n, d)
    statistics = [fid_features_to_statistics(torch.from_numpy(x)) for x in (a, b)]
    expected = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    # Theirs takes roots of the eigenvalues, about -1e-13, of a singular product; hence the wider tolerance.
    assert fid(a, b) == pytest.approx(expected, rel=1e-9 if n > d else 1e-5)


def test_fid_of_a_line_of_features_is_finite_and_right() -> None:
    rng = np.random.default_rng(3)
    line = rng.normal(size=(30, 1)) * np.array([[1.0, 0.0, 0.0]])
    turned = line[:, [1, 0, 2]]
    # Orthogonal supports: the mixed trace is zero.
    expected = ((line.mean(0) - turned.mean(0)) ** 2).sum() + 2 * line[:, 0].var(ddof=1)
    assert fid(line, turned) == pytest.approx(expected, rel=1e-12)


def test_fid_is_large_between_equal_laws_where_rows_are_fewer_than_features() -> None:
    rng = np.random.default_rng(4)
    few, many = (fid(rng.normal(size=(n, 30)), rng.normal(size=(n, 30))) for n in (20, 3000))
    assert few > 10 > 1 > many
    assert "singular" in fid_bias_note(20, 30) and "at 20 only" in fid_bias_note(20, 30)
    assert "biased" in fid_bias_note(299, 30) and "singular" not in fid_bias_note(31, 30)
    assert fid_bias_note(300, 30) == ""


# --- KID and CMMD ---


@pytest.mark.parametrize(("n", "d"), [(60, 6), (20, 50)])
def test_kid_equals_torch_fidelity_on_one_subset_of_all_rows(n: int, d: int) -> None:
    a, b = two_sets(n, d)
    expected = kid_features_to_metric(
        torch.from_numpy(a), torch.from_numpy(b), kid_subsets=1, kid_subset_size=n, verbose=False
    )
    assert kid(a, b) == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-10)


def test_kid_is_the_mean_of_its_subsets_and_unbiased_between_equal_laws() -> None:
    rng = np.random.default_rng(5)
    values = [kid(rng.normal(size=(20, 4)), rng.normal(size=(30, 4))) for _ in range(300)]
    error = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values)) < 3.5 * error
    assert min(values) < 0, "an unbiased estimate of zero is negative now and then"


@pytest.mark.parametrize("n", [2, 23])
def test_cmmd_equals_a_loop_over_pairs(n: int) -> None:
    a, b = (unit(x) for x in two_sets(n, 8))

    def mean_kernel(x: np.ndarray, y: np.ndarray) -> float:
        return sum(exp(-float(((p - q) ** 2).sum()) / 200.0) for p in x for q in y) / (len(x) * len(y))

    expected = 1000.0 * (mean_kernel(a, a) + mean_kernel(b, b) - 2 * mean_kernel(a, b))
    assert cmmd(a, b) == pytest.approx(expected, abs=1e-9)


def test_cmmd_compares_means_and_no_more() -> None:
    a, b = (unit(x) for x in two_sets(200, 8))
    assert cmmd(a, b) == pytest.approx(10.0 * ((a.mean(0) - b.mean(0)) ** 2).sum(), rel=0.02)
    assert cmmd(unit(np.ones((3, 4))), -unit(np.ones((3, 4)))) == pytest.approx(2000 * (1 - exp(-0.02)), rel=1e-9)


def test_cmmd_refuses_rows_that_are_no_unit_vectors() -> None:
    a, b = (unit(x) for x in two_sets())
    with pytest.raises(ParameterError, match="unit vectors"):
        cmmd(a, 1.01 * b)


# --- density and coverage ---


@pytest.mark.parametrize(("k", "shift"), [(1, 0.0), (5, 0.0), (5, 1.5), (20, 0.7)])
def test_density_and_coverage_equal_prdc(k: int, shift: float) -> None:
    rng = np.random.default_rng(6)
    real, fake = rng.normal(size=(80, 5)), rng.normal(size=(80, 5)) + shift
    fake[:4] = real[:4]  # rows in both sets
    real[10:13] = real[10]  # balls of no radius
    expected = compute_prdc(real, fake, nearest_k=k)
    got = density_coverage(real, fake, k)
    assert got.coverage == expected["coverage"]
    assert got.density == pytest.approx(expected["density"], rel=1e-14)


def test_two_sets_of_one_law_have_the_expected_density_and_coverage() -> None:
    rng = np.random.default_rng(7)
    n, k = 60, 5
    values = np.array([density_coverage(rng.normal(size=(n, 3)), rng.normal(size=(n, 3)), k) for _ in range(300)])
    i = np.arange(k)
    expected = np.array([1.0, 1.0 - np.prod((n - 1 - i) / (2 * n - 1 - i))])
    assert expected[1] == pytest.approx(0.97, abs=0.003)
    assert (np.abs(values.mean(0) - expected) < 3.5 * values.std(0) / np.sqrt(len(values))).all()


def test_coverage_needs_as_many_rows_as_neighbours() -> None:
    a, b = two_sets(5)
    density_coverage(a, b, 4)
    for k in (0, 5):
        with pytest.raises(ParameterError, match="from 1 to 4"):
            density_coverage(a, b, k)


# --- conditional FID ---


def test_conditional_fid_is_its_closed_form_from_joint_covariances() -> None:
    rng = np.random.default_rng(8)
    n, p, q = 400, 3, 4
    x = rng.normal(size=(n, p)) @ rng.normal(size=(p, p))
    y, y_hat = (x @ rng.normal(size=(p, q)) + rng.normal(size=(n, q)) @ rng.normal(size=(q, q)) + s for s in (0, 1))

    def blocks(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        s = np.cov(np.hstack([x, z]), rowvar=False)
        xx, zx = s[:p, :p], s[p:, :p]
        return zx, s[p:, p:] - zx @ np.linalg.pinv(xx) @ zx.T

    (yx, y_given), (hx, h_given) = blocks(y), blocks(y_hat)
    middle = np.trace((yx - hx) @ np.linalg.pinv(np.cov(x, rowvar=False)) @ (yx - hx).T)
    expected = frechet(y.mean(0), y_given, y_hat.mean(0), h_given) + middle
    assert conditional_fid(x, y, y_hat, components=p) == pytest.approx(expected, rel=1e-9)


def test_the_mirrored_answer_is_seen_though_its_set_is_right() -> None:
    rng = np.random.default_rng(9)
    x, n = rng.normal(size=(4000, 2)), lambda: 0.5 * rng.normal(size=(4000, 2))
    y, fresh, mirrored = x + n(), x + n(), -x + n()
    assert fid(y, mirrored) < 0.01
    # Tr[(2Σ_xx) Σ_xx^{-1} (2Σ_xx)] = 4·2
    assert conditional_fid(x, y, mirrored, components=2) == pytest.approx(8.0, rel=0.05)
    assert conditional_fid(x, y, fresh, components=2) < 0.01


def test_a_fresh_draw_scores_what_the_docstring_says() -> None:
    rng = np.random.default_rng(10)
    n, p, q, values = 400, 5, 2, []
    for _ in range(40):
        x = rng.normal(size=(n, p))
        values.append(conditional_fid(x, *(x[:, :q] + rng.normal(size=(n, q)) for _ in "ab"), components=p))
    means = 2.0 * q / n  # ‖Δm‖² adds Tr(Σ_{y|x} + Σ_{ŷ|x})/N
    assert np.mean(values) == pytest.approx(p * 2.0 * q / n + means, rel=0.2)


def test_an_uninformative_source_leaves_fid() -> None:
    rng = np.random.default_rng(11)
    y, y_hat = two_sets(3000, 4)
    assert conditional_fid(rng.normal(size=(3000, 2)), y, y_hat, components=2) == pytest.approx(fid(y, y_hat), rel=0.02)


def test_components_bound_what_the_condition_holds() -> None:
    rng = np.random.default_rng(12)
    x = rng.normal(size=(500, 3)) * np.array([10.0, 1.0, 1.0])
    y, y_hat = x + 0, x * np.array([1.0, -1.0, -1.0])  # wrong off the first axis alone
    assert conditional_fid(x, y, y_hat, components=1) < 0.2
    assert conditional_fid(x, y, y_hat, components=3) == pytest.approx(8.0, rel=0.2)
    flat = np.hstack([x, np.zeros((500, 4)), x[:, :1]])  # fewer directions with spread than components
    assert conditional_fid(flat, y, y_hat, components=7) == pytest.approx(
        conditional_fid(x, y, y_hat, components=3), rel=1e-6
    )


def test_conditional_fid_refuses_what_it_cannot_answer() -> None:
    a, b = two_sets(10, 4)
    with pytest.raises(ParameterError, match="pairs"):
        conditional_fid(a[:9], a, b, components=2)
    for components in (0, 5):
        with pytest.raises(ParameterError, match="from 1 to 4"):
            conditional_fid(a, a, b, components=components)
    with pytest.raises(ParameterError, match="nothing to condition on"):
        conditional_fid(np.ones((10, 4)), a, b, components=2)


# --- what holds for all ---


@pytest.mark.parametrize("name", [*PAIRED, "cmmd"])
def test_order_of_rows_does_not_matter(name: str) -> None:
    a, b = two_sets()
    metric = PAIRED.get(name, lambda p, q: cmmd(unit(p), unit(q)))
    order = np.random.default_rng(1).permutation(len(a))
    other = order if name == "conditional" else order[::-1]  # pairs stay pairs
    assert metric(a[order], b[other]) == pytest.approx(metric(a, b), rel=1e-9)


@pytest.mark.parametrize(("n", "d"), [(40, 5), (12, 30)])
def test_a_set_with_itself(n: int, d: int) -> None:
    a, _ = two_sets(n, d)
    scale = float((a**2).sum())
    assert 0 <= fid(a, a) < 1e-12 * scale
    assert 0 <= conditional_fid(a, a, a, components=3) < 1e-12 * scale
    assert abs(cmmd(unit(a), unit(a))) < 1e-9
    assert density_coverage(a, a.copy()).coverage == 1.0
    assert kid(a, a) < 0, "the diagonal is missing within the sets and present between them"


@pytest.mark.parametrize("name", [*PAIRED, "cmmd"])
def test_bad_features_are_refused(name: str) -> None:
    metric = {**PAIRED, "cmmd": cmmd}[name]
    a, b = (unit(x) for x in two_sets(20))
    damaged = a.copy()
    damaged[3, 2] = np.nan
    with pytest.raises(ParameterError, match="NaN"):
        metric(damaged, b)
    with pytest.raises(ParameterError, match="no spread"):
        metric(a[:1], b[:1])
    with pytest.raises(ParameterError, match="of one kind"):
        metric(a, b[:, :3])
    with pytest.raises(ParameterError, match="of one kind"):
        metric(a[0], b[0])


@pytest.mark.parametrize("name", list(EQUAL_SIZES))
def test_unequal_sizes_are_refused_where_they_bias(name: str) -> None:
    a, b = (unit(x) for x in two_sets(20))
    with pytest.raises(ParameterError, match="(take 15 of each|needs pairs|15 truths)"):
        EQUAL_SIZES[name](a, b[:15])
    assert np.isfinite(kid(a, b[:15]))


def test_constant_features_are_no_error() -> None:
    flat, other = np.full((6, 3), 2.0), np.full((6, 3), 3.0)
    assert fid(flat, other) == pytest.approx(3.0)
    assert density_coverage(flat, other) == (0.0, 0.0)
    assert np.isfinite(kid(flat, other))


def test_no_metric_draws_at_random() -> None:
    assert not any("seed" in inspect.signature(f).parameters for f in (fid, kid, cmmd, density_coverage))
