"""Holm's correction and the test over heads: against scipy and a second implementation, and by their error rates."""

import gc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t as student
from scipy.stats import ttest_1samp

from medshift.errors import ParameterError
from medshift.metrics.verdicts import head_test, holm


@pytest.fixture(autouse=True)
def no_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    """statsmodels collects garbage at every correction, a tenth of a second each in a process that holds torch."""
    monkeypatch.setattr(gc, "collect", lambda: 0)


def views(rng: np.random.Generator, heads: int = 8, views: int = 20, within: float = 0.3) -> tuple:
    """Values with mean 0 whose views resemble each other within a head (correlation 0.92), and the heads."""
    head = np.repeat(np.arange(heads), views)
    return rng.normal(size=heads)[head] + within * rng.normal(size=heads * views), head


def stepped(p: list[float]) -> list[float]:
    """Holm's procedure as in the paper: the i-th smallest times the number left, never below one before it."""
    result, highest = [0.0] * len(p), 0.0
    for left, i in zip(range(len(p), 0, -1), sorted(range(len(p)), key=lambda i: p[i]), strict=True):
        highest = max(highest, min(1.0, left * p[i]))
        result[i] = highest
    return result


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_holm_is_the_step_down_procedure_in_the_order_given(p: list[float]) -> None:
    adjusted = holm(p)
    np.testing.assert_allclose(adjusted, stepped(p), atol=1e-12)
    np.testing.assert_allclose(holm(p[::-1]), adjusted[::-1], atol=1e-12)
    assert (adjusted >= np.array(p) - 1e-12).all() and adjusted.min() == pytest.approx(min(1, len(p) * min(p)))


def test_holm_of_one_test_is_the_test() -> None:
    assert holm([0.03]).tolist() == [0.03]


def test_holm_keeps_the_chance_of_any_false_rejection() -> None:
    rng = np.random.default_rng(0)
    wrong = np.mean([(holm(p) <= 0.05).any() for p in rng.uniform(size=(1000, 6))])
    naive = np.mean([(p <= 0.05).any() for p in rng.uniform(size=(1000, 6))])
    assert wrong < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 1000) < 0.2 < naive


@pytest.mark.parametrize("bad", [[], [0.1, np.nan], [1.2], [-0.1, 0.5], [[0.1, 0.2]]])
def test_holm_refuses_what_is_no_family_of_p_values(bad: list) -> None:
    with pytest.raises(ParameterError):
        holm(bad)


def test_head_test_is_scipys_on_the_heads_means() -> None:
    rng = np.random.default_rng(1)
    head = np.repeat([5, 1, 9, 3], [2, 7, 30, 11])  # unequal numbers of views
    values = rng.normal(size=50) + head
    means = np.array([values[head == h].mean() for h in (1, 3, 5, 9)])
    got = head_test(values, head, null=2.0, confidence=0.9)
    expected = ttest_1samp(means, 2.0)
    half = student.ppf(0.95, 3) * means.std(ddof=1) / 2
    np.testing.assert_allclose(got, (means.mean(), means.mean() - half, means.mean() + half, expected.pvalue))


def test_each_head_counts_once_however_many_views_it_has() -> None:
    few = head_test([1.0, 2.0, 6.0], ["a", "b", "c"])
    many = head_test([1.0] * 90 + [2.0, 6.0], ["a"] * 90 + ["b", "c"])
    np.testing.assert_allclose(few, many)
    assert few.mean == pytest.approx(3.0)


def test_order_and_names_of_heads_do_not_matter() -> None:
    values, head = views(np.random.default_rng(2))
    shuffled = np.random.default_rng(3).permutation(len(values))
    np.testing.assert_allclose(head_test(values, head), head_test(values[shuffled], head[shuffled]))
    np.testing.assert_allclose(head_test(values, head), head_test(values, [f"head {h}" for h in head]))


@given(st.floats(-2, 2), st.integers(0, 50))
def test_the_interval_excludes_the_null_value_where_p_is_small(null: float, seed: int) -> None:
    values, head = views(np.random.default_rng(seed), heads=4, views=3)
    result = head_test(values, head, null)
    assert (result.p < 0.05) == (not result.low <= null <= result.high)
    moved = head_test(values - null, head)
    np.testing.assert_allclose(moved, (result.mean - null, result.low - null, result.high - null, result.p), atol=1e-9)


def test_false_positives_are_five_in_a_hundred_where_views_as_units_fail() -> None:
    rng = np.random.default_rng(4)
    runs, ours, naive = 1000, 0, 0
    for _ in range(runs):
        values, head = views(rng)
        ours += head_test(values, head).p < 0.05
        naive += ttest_1samp(values, 0).pvalue < 0.05
    assert abs(ours / runs - 0.05) < 3 * np.sqrt(0.05 * 0.95 / runs)
    assert naive / runs > 0.5


def test_a_true_difference_is_found() -> None:
    values, head = views(np.random.default_rng(5), heads=16)
    assert head_test(values + 3, head).p < 1e-4 and head_test(values + 3, head).low > 0


@pytest.mark.parametrize(
    "values, heads, message",
    [
        ([1.0, 2.0], [1, 1], "at least two"),
        ([1.0, np.nan], [1, 2], "NaN or infinite"),
        ([1.0, np.inf], [1, 2], "NaN or infinite"),
        ([1.0, 2.0, 3.0], [1, 2, np.nan], "label of a head"),
        ([1.0, 2.0], [1, 2, 3], "differ"),
        ([[1.0], [2.0]], [1, 2], "differ"),
        ([], [], "at least two"),
        ([0.3, 0.3, 0.3], [1, 2, 3], "without spread"),
        ([0.1, 0.2, 0.3, 0.3, 0.2, 0.1], [1, 1, 1, 2, 2, 2], "without spread"),  # equal up to rounding
        ([0.0, 0.0], [1, 2], "without spread"),
    ],
)
def test_head_test_refuses_what_it_cannot_judge(values: list, heads: list, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        head_test(values, heads)


@pytest.mark.parametrize("arguments", [{"confidence": 1.0}, {"confidence": 0.0}, {"null": np.nan}])
def test_head_test_refuses_impossible_settings(arguments: dict) -> None:
    with pytest.raises(ParameterError, match="confidence"):
        head_test([1.0, 2.0], [1, 2], **arguments)
