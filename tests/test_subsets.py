"""Intervals and floors of whole sets: they cover what they say, and no row is drawn twice."""

import numpy as np
import pytest
from scipy.stats import t as student

from medshift.errors import ParameterError
from medshift.metrics.realism import density_coverage, fid, kid
from medshift.metrics.subsets import disjoint_halves, jackknife_interval

HEADS = np.tile(np.arange(8), 15)


def gap(a: np.ndarray, b: np.ndarray) -> float:
    return float(b.mean() - a.mean())


def draw(rng: np.random.Generator, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Two sets of other views of the same heads, of laws that differ."""
    head = np.sqrt(share) * rng.normal(size=(8, 4))
    a, b = (head[HEADS] + np.sqrt(1 - share) * rng.normal(size=(120, 4)) for _ in "ab")
    return a, b + np.array([1.0, 0.0, 0.0, 0.0])


def test_of_a_difference_of_means_it_is_students_on_the_heads() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 120, 3)) + rng.normal(size=8)[HEADS, None]
    by_head = [gap(a[HEADS == h], b[HEADS == h]) for h in range(8)]
    got = jackknife_interval(gap, a, b, heads=(HEADS, HEADS), confidence=0.9)
    assert got.standard_error == pytest.approx(np.std(by_head, ddof=1) / np.sqrt(8))
    assert got.reach == pytest.approx(student.ppf(0.95, 7) * got.standard_error)
    assert (got.value, got.heads) == (gap(a, b), 8)
    assert (got.low, got.high) == pytest.approx((got.value - got.reach, got.value + got.reach))


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_intervals_cover_the_mean_value_about_as_often_as_they_say(share: float) -> None:
    rng = np.random.default_rng(1)
    metrics = {"FID": fid, "KID": kid, "coverage": lambda a, b: density_coverage(b, a).coverage}
    found = {name: [] for name in metrics}
    for _ in range(100):
        sets = draw(rng, share)
        for name, metric in metrics.items():
            found[name].append(jackknife_interval(metric, *sets, heads=(HEADS, HEADS)))
    for name, made in found.items():
        mean = np.mean([m.value for m in made])
        covered = np.mean([m.low <= mean <= m.high for m in made])
        assert 0.89 <= covered <= 1.0, name
        error = np.sqrt(np.mean([m.standard_error**2 for m in made])) / np.std([m.value for m in made])
        assert 0.8 < error < 1.6, name


def test_every_head_is_left_out_once_of_all_sets_and_no_row_is_drawn_twice() -> None:
    seen = []

    def spy(a: np.ndarray, b: np.ndarray) -> float:
        seen.append((a.tolist(), b.tolist()))
        return 0.0

    first, other = np.array([0, 1, 2, 0, 1, 2, 0]), np.array([2, 1, 0, 2, 1, 0, 2])
    jackknife_interval(spy, np.arange(7), 10 + np.arange(7), heads=(first, other))
    assert seen[0] == (list(range(7)), list(range(10, 17)))
    for head, (a, b) in enumerate(seen[1:]):
        assert len(set(a)) == len(a) == len(b) == len(set(b)), "equal sizes stay equal"
        assert set(a) <= set(np.flatnonzero(first != head)) and set(b) <= set(10 + np.flatnonzero(other != head))
        assert len(a) == min((first != head).sum(), (other != head).sum())


def test_sets_of_unequal_sizes_are_not_cut() -> None:
    sizes = []

    def spy(a: np.ndarray, b: np.ndarray) -> float:
        sizes.append((len(a), len(b)))
        return 0.0

    heads = np.array([0, 0, 1, 1]), np.array([0, 1])
    jackknife_interval(spy, np.zeros(4), np.zeros(2), heads=heads)
    assert sizes == [(4, 2), (2, 1), (2, 1)]


@pytest.mark.parametrize(
    ("heads", "confidence", "message"),
    [
        ((np.zeros(8), np.zeros(8)), 0.95, "1 heads"),
        ((np.arange(8), np.arange(8)), 1.0, "between 0 and 1"),
        ((np.arange(8), np.arange(1, 9)), 0.95, "not of the same heads"),
        ((np.arange(8), np.arange(7)), 0.95, "one a row of each"),
        ((np.arange(8),), 0.95, "one a row of each"),
    ],
)
def test_intervals_refuse_heads_that_cannot_be_left_out(heads: tuple, confidence: float, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        jackknife_interval(gap, np.zeros((8, 2)), np.zeros((8, 2)), heads=heads, confidence=confidence)


def test_no_interval_of_no_sets() -> None:
    with pytest.raises(ParameterError, match="one a row of each"):
        jackknife_interval(gap, heads=())


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
