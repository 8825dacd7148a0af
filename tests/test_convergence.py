"""The rule by which a training is called converged, on curves whose answer is known."""

import math

import pytest

from medshift.results.convergence import MOVING, moved


def curve(*errors: float) -> list[dict[str, float]]:
    return [{"images": 100.0 * (k + 1), "mae": error} for k, error in enumerate(errors)]


def test_a_line_moves_by_its_slope_over_its_mean_and_early_looks_do_not_count() -> None:
    falling = [1.0 - 0.001 * k for k in range(11)]  # the last fifth holds looks 40 to 50 of 50
    assert moved(curve(*[9.0] * 39, *falling)) == pytest.approx(0.01 / 0.995)
    assert moved(curve(*[9.0] * 39, *[0.5] * 11)) == pytest.approx(0.0, abs=1e-12) and MOVING > 0


def test_without_a_curve_there_is_no_answer_and_two_looks_make_no_line() -> None:
    assert moved(None) is None and moved([]) is None
    assert moved(curve(1.0, 0.5)) == math.inf
