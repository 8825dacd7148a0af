"""Intervals and floors from disjoint subsets: they cover what they say, and no row is drawn twice."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medshift.errors import ParameterError
from medshift.metrics.realism import fid, kid
from medshift.metrics.subsets import disjoint_halves, disjoint_interval


def two_sets(n: int = 60, d: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(d, d))
    return rng.normal(size=(n, d)), rng.normal(size=(n, d)) @ mix + 0.5


def test_the_interval_covers_the_mean_value_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(13)
    made = [
        disjoint_interval(kid, rng.normal(size=(160, 3)), 1.1 * rng.normal(size=(160, 3)) + 0.8, seed=i)
        for i in range(120)
    ]
    values = np.array([m.value for m in made])
    covered = np.mean([m.low <= values.mean() <= m.high for m in made])
    assert 0.89 <= covered <= 0.99
    assert np.sqrt(np.mean([m.standard_error**2 for m in made])) == pytest.approx(values.std(), rel=0.15)


def test_the_interval_is_of_the_full_size_and_says_how_much_more_subsets_are_biased() -> None:
    rng = np.random.default_rng(14)
    a, b = rng.normal(size=(2, 400, 4))
    got = disjoint_interval(fid, a, b, subsets=8)
    assert got.value == fid(a, b) and got.subsets == 8
    assert got.subset_mean > 4 * got.value, "FID of 50 is about 8 times as biased as FID of 400"
    assert got.low == pytest.approx(2 * got.value - got.high)
    assert disjoint_interval(fid, a, b, subsets=8, confidence=0.5).high < got.high
    assert disjoint_interval(fid, a, b, subsets=8, seed=1) != got


def test_whole_heads_make_intervals_longer_where_heads_differ() -> None:
    rng = np.random.default_rng(15)
    head = np.repeat(np.arange(8), 40)
    a = rng.normal(size=(8, 3))[head] + 0.2 * rng.normal(size=(320, 3))
    b = a + 1.0 + 2.0 * rng.normal(size=(8, 3))[head]
    mean = lambda p, q: float((q - p).mean())  # noqa: E731
    rows, heads = (disjoint_interval(mean, a, b, groups=g) for g in (None, head))
    assert heads.standard_error > 2.5 * rows.standard_error
    by_head = [mean(a[head == h], b[head == h]) for h in range(8)]
    assert heads.standard_error == pytest.approx(np.std(by_head, ddof=1) / np.sqrt(8))


@settings(max_examples=25)
@given(
    rows=st.lists(st.integers(0, 6), min_size=20, max_size=60).filter(lambda g: len(set(g)) >= 3),
    subsets=st.integers(2, 3),
    seed=st.integers(0, 5),
)
def test_subsets_hold_every_row_once_and_whole_groups(rows: list[int], subsets: int, seed: int) -> None:
    head, seen = np.array(rows), []

    def spy(a: np.ndarray, b: np.ndarray) -> float:
        assert (a == b).all(), "pairs stay pairs"
        seen.append(a[:, 0].astype(int))
        return 0.0

    index = np.arange(len(head), dtype=float)[:, None]
    disjoint_interval(spy, index, index, groups=head, subsets=subsets, seed=seed)
    parts = seen[1:]
    assert len(parts) == subsets and sorted(np.concatenate(parts)) == list(range(len(head)))
    groups = [set(head[part]) for part in parts]
    assert sum(map(len, groups)) == len(set(rows)), "no head in two subsets"


def test_sets_with_heads_of_their_own_are_cut_to_equal_sizes() -> None:
    rng = np.random.default_rng(16)
    a, b = two_sets(60, 2)
    heads = (rng.permutation(np.repeat(np.arange(4), [10, 20, 12, 18])), np.repeat(np.arange(4, 8), 15))
    sizes = []

    def spy(p: np.ndarray, q: np.ndarray) -> float:
        sizes.append((len(p), len(q)))
        return kid(p, q)

    got = disjoint_interval(spy, a, b, groups=heads, subsets=4)
    assert got.value == kid(a, b) and sizes[0] == (60, 60)
    assert all(p == q <= 15 for p, q in sizes[1:])
    with pytest.raises(ParameterError, match="all of them or none"):
        disjoint_interval(kid, a, b, groups=(heads[0], heads[1] - 2), subsets=2)


def test_unequal_shares_are_weighted() -> None:
    theta = {0: 1.0, 1: 2.0, 2: 4.0}
    head = np.arange(3)
    rows = head[:, None].astype(float)
    of = lambda a: theta[int(a[0, 0])] if len(a) == 1 else 10.0 + len(a)  # noqa: E731
    got = disjoint_interval(of, rows, subsets=2)
    single = next(v for v in theta.values() if np.isclose(got.subset_mean, (2 * 12.0 + v) / 3))
    expected = (2 * (12.0 - got.subset_mean) ** 2 + (single - got.subset_mean) ** 2) / 3
    assert got.standard_error == pytest.approx(np.sqrt(expected))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"subsets": 1}, "at least 2"),
        ({"confidence": 1.0}, "between 0 and 1"),
        ({"groups": np.zeros(60)}, "1 groups"),
        ({"subsets": 61}, "60 groups"),
        ({"groups": np.arange(59)}, "one a row"),
        ({"groups": (np.arange(60),)}, "one a row"),
    ],
)
def test_intervals_refuse_what_they_cannot_deal(arguments: dict, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        disjoint_interval(kid, *two_sets(60), **arguments)


def test_no_interval_of_no_sets() -> None:
    nothing: Callable[..., float] = lambda: 0.0  # noqa: E731
    with pytest.raises(ParameterError, match="none was given"):
        disjoint_interval(nothing)


def test_halves_share_no_row_and_no_head() -> None:
    head = np.repeat(np.arange(5), [3, 9, 4, 6, 8])
    a, b = disjoint_halves(30, groups=head)
    assert len(a) == len(b) > 0 and not set(head[a]) & set(head[b])
    c, d = disjoint_halves(31)
    assert len(c) == len(d) == 15 and not set(c) & set(d)
    assert [len(side) for side in disjoint_halves(31, size=4)] == [4, 4]
    assert any((disjoint_halves(31, seed=s)[0] != c).any() for s in range(1, 3))


@pytest.mark.parametrize(
    "arguments", [{"n": 1}, {"n": 4, "groups": np.zeros(4)}, {"n": 4, "groups": np.arange(3)}, {"n": 9, "size": 5}]
)
def test_halves_refuse_what_they_cannot_split(arguments: dict) -> None:
    with pytest.raises(ParameterError, match="half|halved"):
        disjoint_halves(**arguments)
