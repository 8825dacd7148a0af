"""Intervals of means over nested and crossed units: they cover what they say, by simulation and in closed form."""

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy.optimize import brentq
from scipy.stats import t as student
from scipy.stats import ttest_1samp

from medshift.errors import ParameterError
from medshift.metrics.intervals import hierarchical_interval

UNBALANCED = {4: [10, 20, 40, 80], 8: [10, 20, 30, 40, 50, 60, 70, 80], 20: list(range(10, 110, 5))}


def views(sizes: list[int]) -> pd.DataFrame:
    head = np.repeat(np.arange(len(sizes)), sizes)
    return pd.DataFrame({"head": head, "region": np.arange(len(head)) % 4})


def half_width(values: np.ndarray, table: pd.DataFrame, confidence: float = 0.95) -> float:
    found = hierarchical_interval(values, table, confidence=confidence)
    assert found.high - found.mean == pytest.approx(found.mean - found.low)
    return (found.high - found.low) / 2


def squared_half_width(sizes: list[int]) -> np.ndarray:
    """The matrix Q (H,H) with which the half width of head means m is √(mᵀQm), from the intervals of H² of them."""
    table, one = views(sizes), np.eye(len(sizes))
    head = table["head"].to_numpy()
    q = np.array([[half_width((a + b)[head], table) ** 2 for b in one] for a in one])
    single = np.diag(q) / 4
    return (q - single[:, None] - single[None, :]) / 2


def freedom_of(values: np.ndarray, table: pd.DataFrame) -> float:
    """Degrees of freedom, read off the widths at two confidences."""
    ratio = half_width(values, table) / half_width(values, table, 0.5)
    return float(brentq(lambda v: student.ppf(0.975, v) / student.ppf(0.75, v) - ratio, 0.5, 1000))


@pytest.mark.parametrize("balanced", [True, False])
@pytest.mark.parametrize("heads", [4, 8, 20])
def test_intervals_cover_the_truth_as_often_as_they_say(heads: int, balanced: bool) -> None:
    """With none, .4 and .9 of the variance between heads, 40 000 normal draws each."""
    sizes = [50] * heads if balanced else UNBALANCED[heads]
    q, rng, n = squared_half_width(sizes), np.random.default_rng(heads), np.array(sizes)
    for share in (0.0, 0.4, 0.9):
        means = np.sqrt(share + (1 - share) / n) * rng.normal(size=(40_000, heads))
        reach = np.sqrt(np.einsum("ri,ij,rj->r", means, q, means))
        covered = (np.abs(means @ n / n.sum()) <= reach).mean()
        assert 0.93 <= covered <= 0.97 + 0.003, (share, covered)


def test_views_within_a_head_change_the_interval_by_their_mean_alone() -> None:
    rng, table = np.random.default_rng(0), views([5, 9, 14])
    values = rng.normal(size=len(table))
    means = pd.Series(values).groupby(table["head"]).transform("mean").to_numpy()
    assert half_width(values, table) == pytest.approx(half_width(means, table))


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_the_variance_is_that_of_the_mean(share: float) -> None:
    """4 heads of 50 views: the variance is share/4 + (1-share)/200, and so is the estimates' expectation, tr(QΣ)/t²."""
    q = squared_half_width([50] * 4) / student.ppf(0.975, 3) ** 2
    assert np.trace(q) * (share + (1 - share) / 50) == pytest.approx(share / 4 + (1 - share) / 200)


def test_the_variance_of_independent_views_is_right_of_unequal_heads_too() -> None:
    sizes = UNBALANCED[4]
    freedom = freedom_of(np.random.default_rng(5).normal(size=sum(sizes)), views(sizes))
    q = squared_half_width(sizes) / student.ppf(0.975, freedom) ** 2
    assert np.trace(q @ np.diag(1 / np.array(sizes))) == pytest.approx(1 / sum(sizes))


def test_with_equal_heads_it_is_students_on_their_means() -> None:
    rng, table = np.random.default_rng(3), views([7] * 5)
    values = rng.normal(size=35) + table["head"].to_numpy()
    got = hierarchical_interval(values, table, confidence=0.9)
    expected = ttest_1samp(pd.Series(values).groupby(table["head"]).mean(), 0.0).confidence_interval(0.9)
    assert (got.low, got.high) == pytest.approx((expected.low, expected.high))
    assert (got.n, got.heads, got.unit) == (35, 5, "head")


def test_the_standard_error_is_that_of_a_regression_on_nothing_with_clustered_errors() -> None:
    rng, table = np.random.default_rng(4), views([6] * 4)
    values = rng.normal(size=24)
    fit = sm.OLS(values, np.ones(24)).fit(cov_type="cluster", cov_kwds={"groups": table["head"].to_numpy()})
    assert half_width(values, table) == pytest.approx(student.ppf(0.975, 3) * float(fit.bse[0]))


def test_degrees_of_freedom_are_satterthwaites_of_the_quadratic_form() -> None:
    """ν = (tr M)² / tr M², with M the quadratic form times the covariance of independent views."""
    sizes = np.array([10, 20, 40, 80])
    table, w = views(list(sizes)), sizes / sizes.sum()
    deviation = np.diag(w) @ (np.eye(4) - np.outer(np.ones(4), w))
    form = deviation.T @ np.diag(1 / (1 - w)) @ deviation @ np.diag(1 / sizes)
    freedom = freedom_of(np.random.default_rng(5).normal(size=len(table)), table)
    assert freedom == pytest.approx(np.trace(form) ** 2 / np.trace(form @ form), rel=1e-3) and freedom < 3


def test_intervals_over_heads_are_wider_than_intervals_over_views() -> None:
    rng, table = np.random.default_rng(0), views([20] * 6)
    values = rng.normal(size=6)[table["head"]] + 0.3 * rng.normal(size=120)
    over_heads = hierarchical_interval(values, table)
    single = hierarchical_interval(values, table.assign(view=np.arange(120)), levels=("view",))
    assert over_heads.high - over_heads.low > 3 * (single.high - single.low)


def test_of_one_head_regions_are_the_units_and_of_one_region_views() -> None:
    rng, table = np.random.default_rng(6), views([40])
    values = rng.normal(size=4)[table["region"]] + 0.1 * rng.normal(size=40)
    got = hierarchical_interval(values, table)
    assert got.unit == "region" and got.heads == 1
    regions = hierarchical_interval(values, table.assign(head=table["region"]), levels=("head",))
    assert (got.low, got.high) == (regions.low, regions.high)
    assert hierarchical_interval(values, table.assign(region=0)).unit == "view"
    assert hierarchical_interval(values, table.assign(seed=3), levels=("seed", "head", "region")).unit == "region"


def crossed(seeds: int, heads: int, per: int = 4) -> pd.DataFrame:
    grid = np.stack(np.meshgrid(np.arange(seeds), np.arange(heads), np.arange(per), indexing="ij"), -1).reshape(-1, 3)
    return pd.DataFrame(grid, columns=["seed", "head", "region"])


@pytest.mark.parametrize(("of_seed", "of_head"), [(1.0, 1.0), (0.0, 1.0), (1.0, 0.0)])
def test_of_crossed_seeds_and_heads_the_truth_is_covered_no_less_than_stated(of_seed: float, of_head: float) -> None:
    table, rng, covered = crossed(5, 8), np.random.default_rng(7), 0
    for _ in range(300):
        values = of_seed * rng.normal(size=5)[table["seed"]] + of_head * rng.normal(size=8)[table["head"]]
        found = hierarchical_interval(values + rng.normal(size=len(table)), table, levels=("seed", "head", "region"))
        covered += found.low <= 0.0 <= found.high
    assert found.unit == "seed and head" and covered / 300 >= 0.93


def test_an_interval_over_seeds_alone_would_forget_that_all_see_the_same_heads() -> None:
    table, rng = crossed(5, 8), np.random.default_rng(8)
    values = rng.normal(size=8)[table["head"]] + 0.05 * rng.normal(size=len(table))
    both, seeds = (hierarchical_interval(values, table, levels=of) for of in (("seed", "head"), ("seed",)))
    assert both.high - both.low > 5 * (seeds.high - seeds.low)


def test_heads_that_each_belong_to_one_seed_leave_the_interval_over_seeds() -> None:
    table = crossed(4, 3)
    own = table.assign(head=table["head"] + 3 * table["seed"])
    values = np.random.default_rng(8).normal(size=len(table)) + table["seed"].to_numpy()
    got, seeds = (hierarchical_interval(values, own, levels=levels) for levels in (("seed", "head"), ("seed",)))
    assert (got.low, got.high) == pytest.approx((seeds.low, seeds.high))


def test_order_of_views_and_names_of_heads_do_not_matter() -> None:
    rng, table = np.random.default_rng(9), views([5, 9, 14, 3])
    values, order = rng.normal(size=len(table)), rng.permutation(len(table))
    got = hierarchical_interval(values, table)
    other = hierarchical_interval(values[order], table.iloc[order].assign(head=lambda t: "h" + t["head"].astype(str)))
    assert (got.low, got.high) == pytest.approx((other.low, other.high))


def test_equal_values_have_no_width() -> None:
    got = hierarchical_interval(np.full(10, 2.5), views([4, 6]))
    assert got.low == got.mean == got.high == 2.5


@pytest.mark.parametrize(
    ("values", "change", "levels", "message"),
    [
        (np.ones(3), {}, ("head",), "each view one finite"),
        (np.array([1.0, np.nan]), {}, ("head",), "finite"),
        (np.ones(2), {}, ("seed",), "no column 'seed'"),
        (np.ones(2), {}, (), "name a level"),
        (np.ones(2), {"head": [1.0, np.nan]}, ("head",), "at least two views, each with head"),
    ],
)
def test_misfits_are_refused(values: np.ndarray, change: dict, levels: tuple[str, ...], message: str) -> None:
    table = pd.DataFrame({"head": [1, 2], "region": ["a", "b"]}).assign(**change)
    with pytest.raises(ParameterError, match=message):
        hierarchical_interval(values, table, levels=levels)
    with pytest.raises(ParameterError, match="at least two"):
        hierarchical_interval(np.ones(1), table.iloc[:1])
