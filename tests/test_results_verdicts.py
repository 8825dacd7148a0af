"""Findings of 04 on constructed results: whichever way the data go, value, sign and interval go with them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from medshift.errors import ParameterError
from medshift.evaluate import TWIN
from medshift.results import every_pair, failures, guidance_cube, prediction, realism, solvers, tradeoff
from medshift.results.crossfit import choices, chosen_by_others, cross_fitted
from medshift.stages.judged import NOTHING, TARGET
from medshift.stages.prediction import TRAINING, UNSEEN
from medshift.stages.sweep import FRESH, MEDSHIFT
from medshift.tradeoff import HEUN, PUBLISHED

HEADS, VIEWS = 6, 12
TAUS = [0.005, 0.02, 0.3, 0.6]
SIGNS = pytest.mark.parametrize("sign", [1, -1])


def by_name(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {row["finding"]: row for row in rows}


def noise(seed: int = 0, n: int = VIEWS) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.01, n)


def views(n: int = VIEWS, **columns: Any) -> pd.DataFrame:
    """Rows in an order that is not that of the views, so that what is paired must be paired by view."""
    table = pd.DataFrame({"view": range(n), "head": np.arange(n) % HEADS, "region": "az000", "insert": ""})
    for name, values in columns.items():
        table[name] = values
    return table.sample(frac=1, random_state=len(columns))


# ---- chosen by others --------------------------------------------------------------------------------------------


def test_no_head_chooses_the_setting_it_is_judged_at() -> None:
    """Each head is best at a setting of its own by luck: picked on itself it gains, picked by others it does not."""
    rows = []
    for head in range(4):
        for setting in range(4):
            rows.append({"view": head, "head": head, "tau": setting, "psnr_clean": 1.0 if setting == head else 0.0})
    scores = pd.DataFrame(rows)
    assert scores.groupby("head")["psnr_clean"].max().eq(1).all()
    picked = cross_fitted(scores, ["tau"])
    assert picked["psnr_clean"].eq(0).all() and picked["view"].tolist() == [0, 1, 2, 3]
    with pytest.raises(ParameterError, match="there is 1 head"):
        chosen_by_others(scores[scores["head"] == 0], ["tau"])


def test_heads_that_agree_choose_the_best_of_several_columns() -> None:
    table = pd.concat(
        [views(encode=a, decode=b, psnr_clean=10 * a - b + noise()) for a in (1.0, 2.0) for b in (1.0, 3.0)]
    )
    assert set(chosen_by_others(table, ["encode", "decode"]).values()) == {(2.0, 1.0)}
    assert choices(table, ["encode", "decode"]) == "(2, 1)"


# ---- the trade-off -----------------------------------------------------------------------------------------------


def study(folder: Path, *, gain: float, tier: float) -> Path:
    folder.mkdir(parents=True)
    pair = {"source": "a", "target": "b"}
    rows = [
        views(psnr_clean=25 + gain + (tier if role == "T0" else 0) + noise(k), solver=HEUN, role=role, tau=0.02, **pair)
        for k, role in enumerate(("T0", "T2"))
    ]
    pd.concat(rows).to_csv(folder / "headline.csv", index=False)
    floors = [
        views(psnr_clean=level + noise(k), method=name, role="T2", **pair)
        for k, (name, level) in enumerate({"floor": 25.0, "worse floor": 20.0, TWIN: 35.0}.items())
    ]
    pd.concat(floors).to_csv(folder / "floors.csv", index=False)
    (folder / "chosen.json").write_text(json.dumps({f"a > b | {HEUN}": 0.02, f"b > a | {HEUN}": 0.3}))
    return folder


@SIGNS
def test_headroom_and_the_gap_of_tiers(tmp_path: Path, sign: int) -> None:
    found = by_name(tradeoff.tradeoff_findings(study(tmp_path / "s", gain=2.0 * sign, tier=1.5 * sign)))
    assert found["headroom"]["value"] == pytest.approx(0.2 * sign, abs=0.01), "of the best floor, in shares of the twin"
    assert found["tier_gap"]["value"] == pytest.approx(1.5 * sign, abs=0.01)
    assert found["tier_gap"]["low"] < 1.5 * sign < found["tier_gap"]["high"] and found["tier_gap"]["p"] < 1e-6


def test_a_pair_has_its_own_tau(tmp_path: Path) -> None:
    folder = study(tmp_path / "s", gain=0, tier=0)
    assert (tradeoff.chosen_tau(folder, ("a", "b")), tradeoff.chosen_tau(folder, ("b", "a"))) == (0.02, 0.3)


def test_a_ratio_of_spectra_is_that_of_the_powers() -> None:
    images = torch.randn(VIEWS, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    curve = tradeoff.ratio_curve("x", 2 * images, images, np.arange(VIEWS) % HEADS, 4.0)
    np.testing.assert_allclose(curve.y, 4.0, rtol=1e-5)
    assert curve.x[0] == pytest.approx(1 / 16 / 4)


# ---- realism and its prediction ----------------------------------------------------------------------------------


def judged(folder: Path, *, auc: dict[float, float], slope: float = 1.0, law: float = 0.5, best: float = 0.02) -> Path:
    """Scores and sets over TAUS: structure rises with tau times ``slope``, invented edges at the ends of the grid."""
    folder.mkdir(parents=True)
    pair, rows = {"source": "a", "target": "b"}, []
    for k, tau in enumerate(TAUS):
        rows.append(
            views(method=MEDSHIFT, tau=tau, psnr_clean=30 - 4 * abs(np.log(tau / best)) + noise(k),
                  ssim_source=0.5 + 0.1 * slope * tau + noise(k) / 100, shift=0.1 * slope + noise(k), high_pass=1.0,
                  high_pass_target=1.0, ssim_clean=0.5,
                  edge_precision_clean=0.8 + (0.1 if tau == 0.02 else 0.0) * slope + noise(k) / 10,
                  edge_precision_source=0.8 + 0.1 * slope * tau + noise(k) / 100,
                  drift_mm=np.arange(VIEWS) / 10, **pair)
        )  # fmt: skip
    rows.append(views(method=NOTHING, tau=np.nan, psnr_clean=20.0 + noise(9), ssim_source=1.0, shift=0.0, **pair))
    pd.concat(rows).to_csv(folder / "scores.csv", index=False)
    sets = [
        {"method": method, "tau": tau, "value": value, "low": value - 0.02, "high": value + 0.03}
        for method, values in ((MEDSHIFT, auc), (FRESH, auc), (realism.SAME_LAW, dict.fromkeys(auc, law)))
        for tau, value in values.items()
    ]
    sets += [{"method": m, "tau": np.nan, "value": v, "low": v, "high": v} for m, v in ((NOTHING, 1.0), (TARGET, 0.5))]
    table = pd.DataFrame(sets).assign(metric="AUC", features="pixels+texture", n=240, note="")
    kid = table[table["method"] == MEDSHIFT].assign(metric="KID", features="ST-AlexNet", low=np.nan, high=np.nan)
    pd.concat([table, kid]).to_csv(folder / "sets.csv", index=False)
    return folder


def said(folder: Path, auc: dict[float, float]) -> Path:
    folder.mkdir(parents=True)
    rows = [
        {"images": images, "tau": t, "auc": v, "low": v - 0.01, "high": v + 0.01, "n": 240}
        for images in (TRAINING, UNSEEN)
        for t, v in auc.items()
    ]
    pd.DataFrame(rows).to_csv(folder / "auc.csv", index=False)
    return folder


RISING = dict(zip(TAUS, (0.55, 0.6, 0.8, 0.95), strict=True))


@SIGNS
def test_what_tau_trades_has_the_sign_of_the_data(tmp_path: Path, sign: int) -> None:
    auc = RISING if sign > 0 else {t: 1.5 - v for t, v in RISING.items()}
    found = by_name(realism.realism_findings(judged(tmp_path / "j", auc=auc, slope=sign), 0.021))
    assert found["realism_slope"]["value"] == pytest.approx(-0.35 * sign), "0.02, the nearest evaluated, minus 0.6"
    low, high = found["realism_slope"]["low"], found["realism_slope"]["high"]
    assert (low, high) == pytest.approx((-0.35 * sign - np.hypot(0.02, 0.03), -0.35 * sign + np.hypot(0.03, 0.02)))
    assert found["structure_slope"]["value"] == pytest.approx(0.058 * sign, abs=1e-3)
    assert found["low_tau_invented"]["value"] == pytest.approx(0.1 * sign, abs=5e-3)
    assert found["published_tau_invented"]["value"] == pytest.approx(0.03 * sign, abs=1e-3)
    assert found["high_tau_shift"]["value"] == pytest.approx(0.1 * sign, abs=0.01)
    assert found["composition_auc"]["value"] == auc[0.3]
    assert all(row["p"] < 1e-3 for row in found.values() if row["p"] is not None)


@SIGNS
def test_a_prediction_that_is_off_is_off_by_what_the_control_does_not_explain(tmp_path: Path, sign: int) -> None:
    measured = {t: 0.1 + 0.8 * v + (0.04 * sign if t == 0.3 else 0.0) for t, v in RISING.items()}
    control = pd.DataFrame({"tau": TAUS, "predicted": list(RISING.values())})
    control["measured"] = control["predicted"] + 0.01
    control = control.assign(gap=0.01, low=0.0, high=0.02, draws=4, n=240)
    folders = judged(tmp_path / "j", auc=measured, law=0.7), said(tmp_path / "p", RISING)
    found = by_name(prediction.prediction_findings(*folders, control, 0.3, suffix="_x"))
    gap = measured[0.3] - RISING[0.3]
    assert found["network_excess_x"]["value"] == pytest.approx(gap - 0.01)
    worst = max(RISING, key=lambda t: abs(measured[t] - RISING[t]))
    assert found["noise_classify_error_x"]["value"] == pytest.approx(measured[worst] - RISING[worst])
    assert found["law_auc_x"]["value"] == 0.7
    slope, exact = found["noise_classify_slope_x"], found["control_slope_x"]
    assert slope["low"] < np.polyfit(list(RISING.values()), list(measured.values()), 1)[0] < slope["high"]
    assert exact["value"] == pytest.approx(1) and found["control_error_x"]["value"] == pytest.approx(0.01)


def test_the_table_says_of_how_many_views_a_metric_is(tmp_path: Path) -> None:
    folder = judged(tmp_path / "j", auc=RISING)
    scores = pd.read_csv(folder / "scores.csv")
    scores.loc[(scores["view"] < 5) & (scores["tau"] == 0.3), "drift_mm"] = np.nan
    scores.to_csv(folder / "scores.csv", index=False)
    table = realism.realism_table(folder)
    ours = table[(table["method"] == MEDSHIFT) & (table["tau"] == 0.3)].iloc[0]
    assert (ours["views"], ours["views with drift_mm"]) == (VIEWS, VIEWS - 5)
    assert ours["drift_mm"] == pytest.approx(np.mean([v / 10 for v in range(5, VIEWS)]))
    assert "views with psnr_clean" not in table
    assert (ours["AUC (pixels+texture)"], ours["AUC (pixels+texture)_low"]) == (0.8, pytest.approx(0.78))
    shown = realism.as_text(table)
    assert shown["AUC (pixels+texture)"].iloc[TAUS.index(0.3)] == "0.8 [0.78, 0.83]"
    assert shown["KID (ST-AlexNet)"].iloc[TAUS.index(0.3)] == "0.8" and not any(c.endswith("_low") for c in shown)
    assert table["method"].tolist() == [*[MEDSHIFT] * 4, *[FRESH] * 4, NOTHING, TARGET]


# ---- pairs -------------------------------------------------------------------------------------------------------


def test_a_pair_is_judged_at_its_own_tau_and_all_pairs_by_the_worst(tmp_path: Path) -> None:
    places = {f"{k} > x": judged(tmp_path / str(k), auc=RISING, best=best) for k, best in enumerate((0.02, 0.6))}
    found = by_name(every_pair.pairs_findings(places))
    assert found["all_pairs_gain"]["value"] == pytest.approx(10, abs=0.05), "both, each at its best tau"
    assert (found["pairs_tau_below"]["value"], found["pairs_tau_not_below"]["value"]) == (1, 1)
    assert found["pairs_tau_below"]["n"] == 2
    table = every_pair.pairs_table(places, 0.02)
    assert table["τ chosen by the other heads"].tolist() == ["0.02", "0.6"]
    assert float(table["gain at τ = 0.02 [dB]"].iloc[1].split()[0]) == pytest.approx(10 - 4 * np.log(30), abs=0.05)
    scores = pd.read_csv(places["1 > x"] / "scores.csv")
    scores.loc[scores["method"] == NOTHING, "psnr_clean"] += 13 + noise(3)
    scores.to_csv(places["1 > x"] / "scores.csv", index=False)
    worst = by_name(every_pair.pairs_findings(places))["all_pairs_gain"]
    assert worst["value"] == pytest.approx(-3, abs=0.05) and worst["high"] < 0 and "1 > x" in worst["text"]
    plain = 2 * (worst["value"] - worst["low"])
    assert worst["high"] - worst["low"] > plain, "the upper end, of one pair picked among two, is the wider"


# ---- solvers -----------------------------------------------------------------------------------------------------


@SIGNS
def test_the_noise_that_euler_keeps_is_a_finding_at_each_tau(tmp_path: Path, sign: int) -> None:
    kept = pd.concat([
        views(solver=name, tau=tau, retention=share + noise(k), nfe=10)
        for k, (name, tau, share) in enumerate([
            (solvers.AS_PUBLISHED, 0.3, 1 - 0.1 * sign), (solvers.AS_PUBLISHED, 0.02, 1 + 0.2 * sign),
            ("Heun", 0.3, 1.0),
        ])
    ])  # fmt: skip
    kept.to_csv(tmp_path / "retention.csv", index=False)
    pair = {"role": "T2", "source": "a"}
    headline = [views(psnr_clean=30 + noise(1), solver=HEUN, **pair),
                views(psnr_clean=30 - 2 * sign + noise(2), solver=PUBLISHED, **pair)]  # fmt: skip
    pd.concat(headline).to_csv(tmp_path / "headline.csv", index=False)
    flat = torch.full((8,), 0.05, dtype=torch.float64) ** 2
    spectrum = solvers.NoiseSpectrum(16 * flat, flat, torch.ones(8, dtype=torch.float64))
    recipe = {solvers.AS_PUBLISHED: {"solver": "euler", "grid": "uniform", "steps": 50}}
    found = by_name(solvers.solver_findings(tmp_path, recipe, spectrum, tmp_path))
    assert found["solver_gap"]["value"] == pytest.approx(2 * sign, abs=0.02)
    assert found["euler_noise_0_3"]["value"] == pytest.approx(1 - 0.1 * sign, abs=0.01)
    assert found["euler_noise_0_02"]["value"] == pytest.approx(1 + 0.2 * sign, abs=0.01)
    assert "τ = 0.02" in found["euler_noise_0_02"]["text"] and "τ = 0.3" in found["euler_noise_predicted_0_3"]["text"]
    assert found["euler_noise_predicted_0_3"]["low"] == pytest.approx(0.713, abs=0.002)
    assert found["euler_noise_predicted_0_3"]["high"] > 0.88


# ---- guidance ----------------------------------------------------------------------------------------------------


@SIGNS
def test_guidance_gains_and_loses_as_the_cube_says(tmp_path: Path, sign: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = []
    for target in ("b", "a"):
        for tau in (0.02, 0.3):
            for encode in (1.0, 3.0):
                for decode in (1.0, 3.0):
                    unequal = float(encode != decode)
                    rows.append(
                        views(source="a", target=target, tau=tau, encode=encode, decode=decode, role="T2",
                              psnr_clean=30 + sign * (encode - 1) + noise(len(rows)),
                              psnr_source=40 - sign * unequal + noise(len(rows)),
                              high_pass=(1 + 0.2 * sign * (encode - 1)) * 2 + noise(len(rows)), high_pass_target=2.0)
                    )  # fmt: skip
    pd.concat(rows).to_csv(tmp_path / "scores.csv", index=False)
    monkeypatch.setattr(guidance_cube, "_edge_finding", lambda *a: {"finding": "guidance_edges", "p": None, "value": 0})
    found = by_name(guidance_cube.cube_findings(tmp_path, tmp_path, 0.03))
    assert found["cube_best_w"]["value"] == pytest.approx(2.0 if sign > 0 else 0.0, abs=0.02)
    assert found["cube_over_tau"]["value"] == pytest.approx(2.0 if sign > 0 else 0.0, abs=0.02)
    assert "τ = 0.02" in found["cube_best_w"]["text"] and "τ = 0.3" in found["cube_over_tau"]["text"]
    assert found["guidance_high_psnr"]["value"] == pytest.approx(2.0 * sign, abs=0.02)
    assert found["guidance_high_pass"]["value"] == pytest.approx(1 + 0.4 * sign, abs=0.02)
    assert found["guidance_one_leg_aa"]["value"] == pytest.approx(-sign, abs=0.02), "one leg minus both"


def test_the_contrast_of_edges_is_blind_to_noise_and_sees_a_scale() -> None:
    grid = torch.linspace(-1, 1, 48)
    disc = ((grid[:, None] ** 2 + grid[None] ** 2) < 0.3).float()[None, None].expand(4, 1, 48, 48)
    mask = torch.ones_like(disc, dtype=torch.bool)
    rough = torch.randn(disc.shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(guidance_cube.edge_contrast(1.3 * disc, disc, mask).float(), torch.full((4,), 1.3))
    shown = guidance_cube.edge_contrast(disc + 0.2 * rough, disc, mask)
    assert (shown - 1).abs().max() < 0.1, "noise of a fifth of the edge, averaged over all edge pixels"
    assert guidance_cube.edge_contrast(-disc, disc, mask).float().tolist() == pytest.approx([-1.0] * 4)


# ---- failure signatures ------------------------------------------------------------------------------------------


@SIGNS
def test_collapse_and_what_forward_noise_regains(tmp_path: Path, sign: int) -> None:
    rows = []
    for version in ("clamped", "noise-free"):
        shift = 1.0 if version == "clamped" else 2.0
        for tau in (0.02, 0.1):
            for start, gain in ((1.0, 0.0), (0.99, sign * shift), (0.95, sign * shift / 2)):
                rows.append(
                    views(version=version, tau=tau, start=start, psnr_clean=25 + gain + noise(len(rows)),
                          z_std=0.8 + 0.1 * (version == "clamped") * sign + noise(len(rows)) / 10, noised_std=1.0)
                )  # fmt: skip
    pd.concat(rows).to_csv(tmp_path / "scores.csv", index=False)
    found = by_name(failures.collapse_findings(tmp_path))
    assert found["forward_noise_gain"]["value"] == pytest.approx(2.0 if sign > 0 else -1.0, abs=0.02)
    assert found["forward_noise_gain_clamped"]["value"] == pytest.approx(1.0 if sign > 0 else -0.5, abs=0.02)
    assert ("0.99" if sign > 0 else "0.95") in found["forward_noise_gain"]["text"]
    assert found["collapse_clamped"]["value"] == pytest.approx(0.8 + 0.1 * sign, abs=0.01)
    assert found["collapse_clean"]["value"] == pytest.approx(0.8, abs=0.01)


@SIGNS
def test_mismatch_is_parted_domains_minus_mixed_ones_each_at_its_tau(tmp_path: Path, sign: int) -> None:
    places = {}
    for share, best, level in ((0.0, 0.02, 0.0), (1.0, 0.3, 3.0 * sign)):
        places[share] = judged(tmp_path / str(share), auc=RISING, best=best)
        scores = pd.read_csv(places[share] / "scores.csv")
        scores["psnr_clean"] += level
        scores.to_csv(places[share] / "scores.csv", index=False)
    (found,) = failures.mismatch_findings(places)
    assert found["value"] == pytest.approx(3.0 * sign, abs=0.05) and "(0.3 and 0.02)" in found["text"]


def test_a_control_is_the_mean_of_its_draws_with_students_interval(tmp_path: Path) -> None:
    draws = [{"draw": k, "tau": tau, "predicted": 0.5, "measured": 0.5 + tau * k, "n": 40}
             for k in range(3) for tau in (0.1, 0.2)]  # fmt: skip
    pd.DataFrame(draws).to_csv(tmp_path / "control.csv", index=False)
    found = prediction.control_table(tmp_path).set_index("tau")
    reach = 4.302653 / np.sqrt(3)  # of Student's t with two degrees of freedom, over a spread of one
    for tau in (0.1, 0.2):
        row = found.loc[tau]
        assert row["gap"] == pytest.approx(tau) and row["draws"] == 3 and row["n"] == 40
        assert (row["low"], row["high"]) == pytest.approx((tau - tau * reach, tau + tau * reach), rel=1e-5)
