"""04(d): tau as a signal-to-noise ratio: the same curves from other resolutions and codecs, and tau predicted."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from medshift.errors import ParameterError
from medshift.results.findings import left_out, over_heads, stated
from medshift.results.realism import highest, prediction_of, scores_of
from medshift.rules import crossing, log_odds
from medshift.stages.prediction import TRAINING
from medshift.stages.sweep import MEDSHIFT
from medshift.viz.evidence import Curve, Panel, fig_panels

LEVEL = 0.6  # the AUC at which a tau is predicted, fixed before any result was seen
WITHIN = 0.2  # dB from the best that count as a plateau
FIGURE = "04_snr"


@dataclass(frozen=True)
class Setting:
    """One resolution and codec: where its translations were judged, and what was predicted before training."""

    judged: Path
    prediction: Path


def _scores(setting: Setting) -> pd.DataFrame:
    scores = scores_of(setting.judged)
    return scores[scores["method"] == MEDSHIFT]


def _spread(setting: Setting) -> dict[str, float]:
    return dict(json.loads((setting.prediction / "spread.json").read_text()))


def predicted_tau(setting: Setting) -> tuple[float, float, float]:
    """The tau at which noised training images are told apart with AUC .6, and from the ends of its interval."""
    table = prediction_of(setting.prediction, TRAINING)
    found = [crossing(list(table["tau"]), list(table[c].clip(0, 1)), LEVEL) for c in ("auc", "high", "low")]
    return found[0], found[1], found[2]


def best_tau(scores: pd.DataFrame) -> tuple[float, float, float]:
    """The tau of the best mean PSNR to the truth, and the lowest and highest within .2 dB of it."""
    means = scores.groupby("tau")["psnr_clean"].mean()
    near = means.index[means >= means.max() - WITHIN]
    return highest(means), float(near.min()), float(near.max())


def peak_tau(scores: pd.DataFrame) -> float:
    """The tau of the vertex of a parabola in log-odds through the best evaluated tau and its neighbours.

    Where the best is at an end of the grid, that end.
    """
    means = scores.groupby("tau")["psnr_clean"].mean()
    k = int(np.argmax(means.to_numpy()))
    if k in (0, len(means) - 1):
        return float(means.index[k])
    x, y = log_odds(list(means.index[k - 1 : k + 2])), means.to_numpy()[k - 1 : k + 2]
    a, b, _ = np.polyfit(x, y, 2)
    return float(1 / (1 + np.exp(b / (2 * a))))


def snr_table(settings: Mapping[str, Setting]) -> pd.DataFrame:
    """By setting: spread along the shift, tau predicted from it and from noised data, and the best tau measured."""
    rows = []
    for name, setting in settings.items():
        spread, scores = _spread(setting), _scores(setting)
        said, low, high = predicted_tau(setting)
        best, first, last = best_tau(scores)
        rows.append(
            {
                "setting": name,
                "spread s_Δ": spread["spread"],
                "τ of half the shift, Gaussian": f"{spread['half_shift_tau']:.3f}",
                f"τ at AUC {LEVEL:g} of noised data": f"{said:.3f} [{low:.3f}, {high:.3f}]",
                "τ of the best PSNR, measured": f"{best:g}",
                "its odds, predicted over measured": "not reached"
                if np.isnan(said)
                else f"{np.exp(log_odds([said])[0] - log_odds([best])[0]):.1f}",
                f"plateau, within {WITHIN:g} dB": f"{first:g} to {last:g}",
                "its PSNR [dB]": scores[scores["tau"] == best]["psnr_clean"].mean(),
                "n": scores["view"].nunique(),
            }
        )
    return pd.DataFrame(rows)


def snr_figure(settings: Mapping[str, Setting], footer: str) -> tuple[str, Figure]:
    """Caption and figure: PSNR below its best against tau, odds times spread, and the AUC of noised data."""
    by_tau, by_spread, by_auc, predicted = [], [], [], []
    for name, setting in settings.items():
        scores, spread = _scores(setting), _spread(setting)["spread"]
        said = prediction_of(setting.prediction, TRAINING)
        taus = sorted(scores["tau"].unique())
        intervals = [_loss(scores, tau) for tau in taus]
        y = [i.mean for i in intervals]
        ends = [i.low for i in intervals], [i.high for i in intervals]
        by_tau.append(Curve(name, taus, y, *ends))
        by_spread.append(Curve(name, list(np.exp(log_odds(taus)) * spread), y, *ends))
        auc = said.set_index("tau").loc[taus]
        by_auc.append(Curve(name, list(auc["auc"]), y, *ends, x_low=list(auc["low"]), x_high=list(auc["high"])))
        predicted.append(Curve(name, list(said["tau"]), list(said["auc"]), list(said["low"]), list(said["high"])))
    below = "PSNR minus the best τ's [dB]"
    panels = [
        Panel(below, by_tau, title="against τ"),
        Panel(below, by_spread, title="against the SNR along the shift", xlabel="s_Δ τ / (1 − τ)", x="log"),
        Panel(below, by_auc, title="against the noised data's AUC", xlabel="AUC, noise and classify", x="linear",
              points=True),
        Panel("AUC, noise and classify", predicted, {"level of the rule": LEVEL}, title="before any training"),
    ]  # fmt: skip
    first = _scores(next(iter(settings.values())))
    n = f"n = {first['view'].nunique()} views of {first['head'].nunique()} heads each; shaded and bars: 95 % over heads"
    title = "Is τ a signal-to-noise ratio? Resolutions and codecs on three axes"
    caption = f"PSNR to the truth relative to each network's best τ, on three axes, and the prediction; {n}; {footer}."
    return caption, fig_panels(panels, title=title, footer=f"{n}; {footer}", columns=2)


def _loss(scores: pd.DataFrame, tau: float) -> Any:
    wide = scores.pivot(index=["view", "head", "region"], columns="tau", values="psnr_clean")
    return over_heads((wide[tau] - wide[wide.mean().idxmax()]).to_numpy(), wide.index.get_level_values("head"))


def spread_of_curves(curves: Sequence[pd.Series]) -> float:
    """How far curves are from being one [dB]: the root mean square of their standard deviation over a common axis.

    Args:
        curves: two or more; the index is the place on the axis, rising. They are compared where all of them are known.

    Raises:
        ParameterError: fewer than two curves, or none of the axis in common.
    """
    if len(curves) < 2:
        raise ParameterError(f"{len(curves)} curves have no spread; give two or more.")
    low, high = max(c.index.min() for c in curves), min(c.index.max() for c in curves)
    if not low < high:
        raise ParameterError(f"The curves have no part of the axis in common ({low:g} to {high:g}).")
    axis = np.linspace(low, high, 101)
    values = np.stack([np.interp(axis, curve.index, curve.to_numpy()) for curve in curves])
    return float(np.sqrt((values.std(axis=0, ddof=1) ** 2).mean()))


def collapse(settings: Sequence[Setting], without: object = None) -> tuple[float, float]:
    """Spread of the curves of PSNR below its best [dB], against tau in log-odds, and against log s_Δ τ / (1 - τ)."""
    plain, scaled = [], []
    for setting in settings:
        scores = _scores(setting)
        means = scores[scores["head"] != without].groupby("tau")["psnr_clean"].mean()
        curve = pd.Series((means - means.max()).to_numpy(), index=log_odds(list(means.index)))
        plain.append(curve)
        scaled.append(curve.set_axis(curve.index + np.log(_spread(setting)["spread"])))
    return spread_of_curves(plain), spread_of_curves(scaled)


def _heads(setting: Setting) -> list[Any]:
    return sorted(_scores(setting)["head"].unique())


def snr_findings(settings: Mapping[str, Setting]) -> list[dict[str, Any]]:
    """What of tau as a signal-to-noise ratio can be tested, settings: ``full``, ``half`` side, ``coarse`` codec.

    The odds of the best tau at half the side over those at the full side; the same ratio of the taus that noise and
    classify predicts; by setting, the odds predicted over the odds of the best; and the spread of the curves before
    and after rescaling. Intervals of what is measured are by leaving out one head at a time, the same head in all
    settings; those of predictions take the ends of the AUC's interval; both together as independent.
    """
    full, half = settings["full"], settings["half"]

    def log_best(setting: Setting, without: object) -> float:
        scores = _scores(setting)
        return float(log_odds([peak_tau(scores[scores["head"] != without])])[0])

    found, n = [], _scores(full)["view"].nunique()
    odds = left_out(lambda head: log_best(half, head) - log_best(full, head), _heads(full))
    text = "odds of the best τ at half the pixels a side over those at the full side"
    found.append(stated("snr_odds_ratio", math.exp(odds.mean), text, low=math.exp(odds.low), high=math.exp(odds.high),
                        n=n, heads=odds.heads, figure=FIGURE))  # fmt: skip
    said = {name: _log_predicted(setting) for name, setting in settings.items()}
    down, up = (
        math.hypot(said["half"][1 + k] - said["half"][0], said["full"][2 - k] - said["full"][0]) for k in (0, 1)
    )
    ratio = said["half"][0] - said["full"][0]
    text = "the same ratio as noise and classify predicts it"
    found.append(stated("snr_predicted_ratio", math.exp(ratio), text, low=math.exp(ratio - down),
                        high=math.exp(ratio + up), figure=FIGURE))  # fmt: skip
    for name, setting in settings.items():
        best = left_out(partial(log_best, setting), _heads(setting))
        off, (middle, first, last) = said[name][0] - best.mean, said[name]
        down, up = math.hypot(middle - first, best.high - best.mean), math.hypot(last - middle, best.mean - best.low)
        text = f"odds of the τ that noise and classify predicts over those of the best, {name}"
        found.append(stated(f"snr_off_{name}", math.exp(off), text, low=math.exp(off - down), high=math.exp(off + up),
                            n=n, heads=best.heads, figure=FIGURE))  # fmt: skip
    return [*found, *_collapse_findings(settings, n), _of_the_rule(full)]


def _collapse_findings(settings: Mapping[str, Setting], n: int) -> list[dict[str, Any]]:
    every = list(settings.values())
    found = []
    for name, text, number in (
        ("collapse_spread_tau", "spread of the curves against τ", lambda head: collapse(every, head)[0]),
        ("collapse_spread_snr", "spread of the curves against s_Δ τ / (1 − τ)", lambda head: collapse(every, head)[1]),
        ("collapse_gain", "spread against τ minus against s_Δ τ / (1 − τ)",
         lambda head: float(np.subtract(*collapse(every, head)))),
    ):  # fmt: skip
        got = left_out(number, _heads(every[0]))
        found.append(stated(name, got.mean, text, low=got.low, high=got.high, n=n, heads=got.heads, unit="dB",
                            figure=FIGURE))  # fmt: skip
    return found


def _log_predicted(setting: Setting) -> tuple[float, float, float]:
    """Log-odds of the predicted tau and of the ends of its interval, in this order; where noised data never reach the
    level, those of the largest tau."""
    most = float(_scores(setting)["tau"].max())
    said, low, high = (float(log_odds([most if np.isnan(t) else t])[0]) for t in predicted_tau(setting))
    return said, min(low, said), max(high, said)


def _of_the_rule(full: Setting) -> dict[str, Any]:
    said, low, high = (float(1 / (1 + np.exp(-x))) for x in _log_predicted(full))
    text = f"τ at which noised training images are told apart with AUC {LEVEL:g}"
    return stated("tau_half_auc6", said, text, low=low, high=high, figure=FIGURE)
