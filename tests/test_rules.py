"""Rules for tau: what each chooses where the answer is known."""

import numpy as np
import pandas as pd
import pytest

from medshift.errors import ParameterError
from medshift.rules import best_rank, crossing, knee, largest_below, log_odds, regret

TAUS = [0.01, 0.05, 0.1, 0.3, 0.7]


def test_log_odds_are_logits_between_the_ends() -> None:
    np.testing.assert_allclose(log_odds([0.2, 0.5, 0.9]), [np.log(0.25), 0.0, np.log(9.0)])
    assert np.isfinite(log_odds([0.0, 1.0])).all()


@pytest.mark.parametrize("bend", [1, 2, 3])
def test_a_knee_is_where_two_straight_lines_meet(bend: int) -> None:
    x = log_odds(TAUS)
    rising = np.minimum(x - x[0], x[bend] - x[0]) * 3 + np.maximum(x - x[bend], 0) * 0.1
    assert knee(TAUS, rising) == TAUS[bend]
    assert knee(TAUS, -5 * rising + 2) == TAUS[bend], "neither scale nor sign decides"


def test_ranks_average_realism_and_structure_and_ties_change_less() -> None:
    assert best_rank(TAUS, [1, 2, 3, 4, 5], [0.1, 0.9, 0.2, 0.3, 0.4]) == 0.05
    # Realism falls exactly as structure rises: every tau has one mean rank, and the highest is taken.
    assert best_rank(TAUS, [1, 2, 3, 4, 5], [0.1, 0.2, 0.3, 0.4, 0.5]) == 0.7


def test_the_largest_tau_below_a_threshold() -> None:
    auc = [0.52, 0.58, 0.6, 0.9, 1.0]
    assert largest_below(TAUS, auc, 0.6) == 0.1
    assert largest_below(TAUS, auc, 0.5) == 0.01, "where none is, the least"
    assert largest_below(TAUS, [0.52, 0.7, 0.59, 0.9, 1.0], 0.6) == 0.1


def test_a_crossing_is_between_two_taus_in_log_odds() -> None:
    found = crossing(TAUS, [0.5, 0.5, 0.5, 0.7, 1.0], 0.6)
    assert log_odds([found])[0] == pytest.approx(log_odds([0.1, 0.3]).mean())
    assert np.isnan(crossing(TAUS, [0.5] * 5, 0.6)) and crossing(TAUS, [0.9] * 5, 0.6) == 0.01


def scores() -> pd.DataFrame:
    values = {0.01: [20.0, 30.0], 0.1: [26.0, 28.0], 0.3: [21.0, 21.0]}
    return pd.DataFrame(
        [{"view": v, "tau": t, "psnr_clean": p} for t, both in values.items() for v, p in enumerate(both)]
    )


def test_regret_is_against_the_best_mean_view_by_view() -> None:
    assert regret(scores(), 0.1).tolist() == [0.0, 0.0]
    assert regret(scores(), 0.01).tolist() == [6.0, -2.0], "a view may gain"
    with pytest.raises(ParameterError, match="0.01, 0.1, 0.3"):
        regret(scores(), 0.2)


@pytest.mark.parametrize("taus", [[0.1, 0.05, 0.3], [0.1, 0.1, 0.3]])
def test_taus_that_do_not_rise_are_refused(taus: list[float]) -> None:
    with pytest.raises(ParameterError, match="must rise"):
        knee(taus, [1.0, 2.0, 3.0])


def test_a_knee_needs_three_finite_values() -> None:
    for taus, values in (([0.1, 0.2], [1.0, 2.0]), ([0.1, 0.2, 0.3], [1.0, np.nan, 2.0])):
        with pytest.raises(ParameterError, match="three taus"):
            knee(taus, values)
