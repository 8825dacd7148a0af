"""04(d): tau as a signal-to-noise ratio: the same curves from other resolutions and codecs, and tau predicted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from medshift.metrics.bootstrap import hierarchical_interval
from medshift.results.findings import stated
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
        auc = said.set_index("tau").loc[taus, "auc"]
        order = np.argsort(auc.to_numpy())
        by_auc.append(Curve(name, list(auc.to_numpy()[order]), list(np.array(y)[order])))
        predicted.append(Curve(name, list(said["tau"]), list(said["auc"]), list(said["low"]), list(said["high"])))
    below = "PSNR minus the best τ's [dB]"
    panels = [
        Panel(below, by_tau, title="against τ"),
        Panel(below, by_spread, title="against the SNR along the shift", xlabel="s_Δ τ / (1 − τ)", x="log"),
        Panel(below, by_auc, title="against the noised data's AUC", xlabel="AUC, noise and classify", x="linear"),
        Panel("AUC, noise and classify", predicted, {"level of the rule": LEVEL}, title="before any training"),
    ]
    n = f"n = {_scores(next(iter(settings.values())))['view'].nunique()} views each, 95 % intervals over heads"
    title = "τ is a signal-to-noise ratio: resolutions and codecs on three axes"
    caption = f"PSNR to the truth relative to each network's best τ, on three axes, and the prediction; {n}; {footer}."
    return caption, fig_panels(panels, title=title, footer=f"{n}; {footer}", columns=2)


def _loss(scores: pd.DataFrame, tau: float) -> Any:
    wide = scores.pivot(index=["view", "head", "region"], columns="tau", values="psnr_clean")
    table = wide.index.to_frame(index=False)
    return hierarchical_interval((wide[tau] - wide[wide.mean().idxmax()]).to_numpy(), table)


def snr_findings(full: Setting, half: Setting) -> list[dict[str, Any]]:
    """Odds of tau at half the side over those at the full side, for prediction (AUC) and for the measured best.

    The interval of the measured ratio is by leaving out one head at a time (jackknife), the same head on both sides.
    """
    scores = {"full": _scores(full), "half": _scores(half)}
    heads = sorted(scores["full"]["head"].unique())

    def ratio(without: object = None) -> float:
        peaks = {k: peak_tau(s[s["head"] != without]) for k, s in scores.items()}
        return float(log_odds([peaks["half"]])[0] - log_odds([peaks["full"]])[0])

    value, left = ratio(), np.array([ratio(head) for head in heads])
    error = 2.0 * float(np.sqrt((len(heads) - 1) / len(heads) * ((left - left.mean()) ** 2).sum()))
    most = float(scores["full"]["tau"].max())  # where noised data never reach the level, at least this
    said, low, high = (most if np.isnan(tau) else tau for tau in predicted_tau(full))
    return [
        stated(
            "snr_odds_ratio",
            np.exp(value),
            "odds of the best τ at half the pixels a side over those at the full side",
            low=float(np.exp(value - error)),
            high=float(np.exp(value + error)),
            n=scores["full"]["view"].nunique(),
            figure=FIGURE,
        ),
        stated(
            "tau_half_auc6",
            said,
            f"τ at which noised training images are told apart with AUC {LEVEL:g}",
            low=min(low, said),
            high=max(high, said),
            figure=FIGURE,
        ),
    ]
