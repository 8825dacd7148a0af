"""Findings and tables of the evidence, on results whose answers are known."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from medshift.errors import ParameterError
from medshift.results import prediction, realism, rules, snr, solvers
from medshift.results.findings import COLUMNS, left_out, measured, over_heads, stated
from medshift.rules import log_odds
from medshift.stages.prediction import TRAINING, UNSEEN
from medshift.stages.sweep import MEDSHIFT

TAUS = [0.005, 0.01, 0.02, 0.04, 0.07, 0.12, 0.3, 0.6, 0.85]


def judged(folder: Path, best: float, *, gain: float = 10.0, heads: int = 4) -> Path:
    """Scores that peak at ``best`` as a parabola in log-odds; structure rises with tau, realism falls."""
    folder.mkdir(parents=True)
    rng, rows, sets, cycles = np.random.default_rng(0), [], [], []
    offsets = rng.normal(0, 2, 4 * heads)
    for tau in TAUS:
        x = log_odds([tau])[0] - log_odds([best])[0]
        for view in range(4 * heads):
            row = {"method": MEDSHIFT, "tau": tau, "view": view, "head": view % heads, "region": "az000", "insert": ""}
            row |= {"psnr_clean": 20 + gain - x**2 + offsets[view], "ssim_source": 0.5 + 0.05 * log_odds([tau])[0]}
            rows.append(row)
        for metric in ("FID", "KID"):
            sets.append({"method": MEDSHIFT, "tau": tau, "metric": metric, "features": "ST-AlexNet", "value": tau})
        cycles.append({"tau": tau, "view": 0, "psnr_source": 30 + tau})
    pd.DataFrame(rows).to_csv(folder / "scores.csv", index=False)
    pd.DataFrame(sets).assign(low=np.nan, high=np.nan, n=9, note="").to_csv(folder / "sets.csv", index=False)
    pd.DataFrame(cycles).to_csv(folder / "cycle.csv", index=False)
    return folder


def predicted(folder: Path, half: float) -> Path:
    """AUC of .5 to 1 that crosses .6 where the odds are those of ``half``."""
    folder.mkdir(parents=True)
    auc = [float(np.clip(0.6 + 0.2 * (log_odds([t])[0] - log_odds([half])[0]), 0.5, 1)) for t in TAUS]
    rows = [
        {"images": images, "tau": t, "auc": a, "low": a - 0.02, "high": a + 0.02, "n": 240}
        for images in (TRAINING, UNSEEN)
        for t, a in zip(TAUS, auc, strict=True)
    ]
    pd.DataFrame(rows).to_csv(folder / "auc.csv", index=False)
    (folder / "spread.json").write_text(json.dumps({"spread": 5.0, "half_shift_tau": 0.1}))
    return folder


def case(root: Path, name: str, best: float, half: float) -> rules.Case:
    return rules.Case(judged(root / name / "judged", best), predicted(root / name / "prediction", half))


def test_a_finding_of_views_counts_heads_and_leaves_out_what_was_not_measured() -> None:
    values = [1.0, 3.0, np.nan, 2.0, 4.0]
    row = measured("gain", values, [0, 0, 0, 1, 1], "text", unit="dB", figure="04_x")
    assert set(row) == set(COLUMNS) == set(stated("gain", 1.0, "text"))
    assert row["value"] == pytest.approx(2.5) and row["n"] == 4 and row["low"] < 2.5 < row["high"]
    assert row["p"] > 0.05, "two heads of 2 and 3 settle nothing"
    assert row["heads"] == 2
    same = measured("regret", [0.0, 0.0, 0.0], [0, 1, 1], "text")
    assert (same["low"], same["value"], same["high"], same["p"], same["n"]) == (0, 0, 0, 1.0, 3)


def test_the_auc_rule_finds_the_tau_that_noise_decides_and_constants_do_not(tmp_path: Path) -> None:
    """Every pair has another best tau, and its noised data say which: only rules that look at them follow."""
    learning = {name: case(tmp_path, name, best, best) for name, best in (("a", 0.02), ("b", 0.04))}
    testing = {name: case(tmp_path, name, best, best) for name, best in (("c", 0.01), ("d", 0.12))}
    threshold, constant = rules.learn(learning)
    assert threshold == 0.6 and constant in (0.02, 0.04)
    table = rules.regrets(testing, threshold, constant).groupby("rule")["regret"].mean()
    assert table[rules.AUC_FIXED] == pytest.approx(0, abs=1e-9)
    assert table[rules.CONSTANT] > 0.3 and table[rules.CYCLE] > 5
    chosen = rules.choices(testing["d"], threshold, constant)
    assert chosen[rules.AUC_FIXED] == 0.12 and chosen[rules.CYCLE] == 0.85 and chosen[rules.AS_PUBLISHED] == 0.3
    found = {row["finding"]: row for row in rules.rules_findings(learning, testing)}
    assert set(found) == set(rules.FINDINGS.values()) and found["regret_cycle"]["low"] > 0
    shown = rules.rules_table(learning, testing)
    told = shown[shown["rule"] == rules.CYCLE]["regret, other pairs and phantoms [dB]"].iloc[0]
    cycle = found["regret_cycle"]
    assert told == f"{cycle['value']:.2f} [{cycle['low']:.2f}, {cycle['high']:.2f}]", (
        "table and ledger say one interval"
    )
    assert len(shown) == len(rules.RULES) + 1 and "0.01, 0.12" in shown.iloc[-1].tolist()


def test_a_rule_without_the_truth_does_not_see_it(tmp_path: Path) -> None:
    one, other = case(tmp_path, "one", 0.02, 0.1), case(tmp_path, "other", 0.6, 0.1)
    assert rules.choices(one, 0.6, 0.02) == rules.choices(other, 0.6, 0.02)


def test_a_jackknife_of_a_mean_of_equal_heads_is_the_t_interval() -> None:
    values, heads = np.random.default_rng(0).normal(2, 1, 24), np.arange(24) % 6
    found = left_out(lambda head: float(values[heads != head].mean()), heads)
    expected = over_heads(values, heads)
    assert (found.mean, found.low, found.high) == pytest.approx((expected.mean, expected.low, expected.high))
    assert np.isnan(left_out(lambda head: 1.0, [0, 1]).low)
    assert stated("x", 1.0, "text", low=float("nan"), high=float("nan"))["low"] is None


def test_curves_that_are_one_up_to_the_spread_collapse_on_the_axis_that_knows_it(tmp_path: Path) -> None:
    """Twice the spread and half the odds: as one curve against their product, apart against tau."""
    settings = []
    for name, odds, spread in (("a", 0.02, 5.0), ("b", 0.04, 5.0 * 0.02 / 0.98 / (0.04 / 0.96))):
        folder = predicted(tmp_path / f"{name}-p", odds)
        (folder / "spread.json").write_text(json.dumps({"spread": spread, "half_shift_tau": 0.1}))
        settings.append(snr.Setting(judged(tmp_path / name, odds), folder))
    plain, scaled = snr.collapse(settings)
    assert scaled < 0.2 * plain and plain > 0.5
    found = {row["finding"]: row for row in snr.snr_findings(dict(zip(("full", "half"), settings, strict=True)))}
    assert found["collapse_gain"]["value"] == pytest.approx(plain - scaled) and found["collapse_gain"]["low"] > 0


def test_the_spread_of_curves_is_that_of_their_distance() -> None:
    one = pd.Series([0.0, -2.0], index=[0.0, 1.0])
    assert snr.spread_of_curves([one, one]) == 0
    assert snr.spread_of_curves([one, one + 2]) == pytest.approx(2**0.5), "standard deviation of 0 and 2"
    with pytest.raises(ParameterError, match="in common"):
        snr.spread_of_curves([one, one.set_axis([3.0, 4.0])])


@pytest.mark.parametrize(("full", "half"), [(0.02, 0.04), (0.03, 0.03)])
def test_the_ratio_of_odds_of_the_best_taus(tmp_path: Path, full: float, half: float) -> None:
    settings = [
        snr.Setting(judged(tmp_path / name, best), predicted(tmp_path / f"{name}-p", best))
        for name, best in (("full", full), ("half", half))
    ]
    every = dict(zip(("full", "half", "coarse"), (*settings, settings[0]), strict=True))
    found = {row["finding"]: row for row in snr.snr_findings(every)}
    ratio = log_odds([half])[0] - log_odds([full])[0]
    assert np.log(found["snr_odds_ratio"]["value"]) == pytest.approx(ratio, abs=1e-6)
    assert log_odds([found["tau_half_auc6"]["value"]])[0] == pytest.approx(log_odds([full])[0], abs=1e-6)
    # Noise and classify names the very taus that are best, so it is off by nothing, and says the same ratio.
    assert np.log(found["snr_predicted_ratio"]["value"]) == pytest.approx(ratio, abs=1e-6)
    for name in every:
        assert found[f"snr_off_{name}"]["value"] == pytest.approx(1, abs=1e-6)
        assert found[f"snr_off_{name}"]["low"] < 1 < found[f"snr_off_{name}"]["high"]
    table = snr.snr_table({"a": settings[0]})
    assert table["spread s_Δ"].tolist() == [5.0]


def test_the_plateau_holds_the_taus_within_a_fifth_of_a_decibel(tmp_path: Path) -> None:
    scores = realism.scores_of(judged(tmp_path / "j", 0.02))
    best, low, high = snr.best_tau(scores)
    assert best == 0.02 and low <= 0.02 <= high
    assert snr.peak_tau(scores) == pytest.approx(0.02, rel=1e-6)
    assert snr.peak_tau(scores[scores["tau"] <= 0.02]) == 0.02, "at an end of the grid, that end"


def test_the_nearest_evaluated_tau() -> None:
    assert realism.nearest_tau(pd.Series([*TAUS, np.nan]), 0.31) == 0.3


def test_the_law_identity_holds_to_four_digits() -> None:
    table = prediction.law_table()
    left, right = (table[c].to_numpy() for c in table.columns[1:])
    np.testing.assert_allclose(left, right, rtol=1e-4)
    assert (left > 1e-3).all() and (np.diff(left) > 0).all()


def test_the_bracket_is_tight_where_noise_is_all_there_is() -> None:
    flat = torch.full((8,), 0.05, dtype=torch.float64) ** 2
    modes = torch.ones(8, dtype=torch.float64)
    euler = {"solver": "euler", "grid": "uniform", "steps": 50}
    only = solvers.predicted_retention(solvers.NoiseSpectrum(flat, flat, modes), 0.3, **euler)
    assert only[0] == pytest.approx(only[1]) == pytest.approx(0.713, abs=0.002)
    richer = solvers.predicted_retention(solvers.NoiseSpectrum(16 * flat, flat, modes), 0.3, **euler)
    assert richer[0] == pytest.approx(only[0]) and richer[1] > 0.88
