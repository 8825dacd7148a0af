"""04(c): one network on every pair of domains that was measured, each at the tau that its other heads choose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medshift.data.domains import DOMAINS
from medshift.metrics.intervals import Interval
from medshift.results.crossfit import choices, chosen_by_others, cross_fitted
from medshift.results.findings import over_heads, stated
from medshift.results.realism import highest, nearest_tau, scores_of
from medshift.stages.judged import NOTHING
from medshift.stages.sweep import MEDSHIFT

PUBLISHED = 0.3  # the least of the paper's tau
FIGURE = "04_pairs"


def _ours(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scores of MedShift at every tau, and of doing nothing on the same views."""
    scores = scores_of(folder)
    return scores[scores["method"] == MEDSHIFT], scores[scores["method"] == NOTHING].sort_values("view")


def _gain(rows: pd.DataFrame, nothing: pd.DataFrame, confidence: float = 0.95) -> Interval:
    """PSNR of one row a view above doing nothing."""
    rows = rows.sort_values("view")
    gain = rows["psnr_clean"].to_numpy() - nothing["psnr_clean"].to_numpy()
    return over_heads(gain, rows["head"], confidence)


def pairs_table(judged: dict[str, Path], chosen: float) -> pd.DataFrame:
    """Every pair: PSNR at its own tau, doing nothing, and the gain there and at the tau chosen for the first pair.

    Its own tau is that of the best PSNR over the other heads, so it may differ between heads; means and intervals are
    over heads.
    """
    rows = []
    for pair, folder in judged.items():
        ours, nothing = _ours(folder)
        own = cross_fitted(ours, ["tau"])
        same = ours[ours["tau"] == nearest_tau(ours["tau"], chosen)]
        rows.append(
            {
                "pair": pair.replace(">", "→"),
                "τ of the best PSNR": f"{highest(ours.groupby('tau')['psnr_clean'].mean()):g}",
                "τ chosen by the other heads": choices(ours, ["tau"]),
                "PSNR there [dB]": str(over_heads(own["psnr_clean"], own["head"])),
                "doing nothing [dB]": str(over_heads(nothing["psnr_clean"], nothing["head"])),
                "gain there [dB]": str(_gain(own, nothing)),
                f"gain at τ = {chosen:g} [dB]": str(_gain(same, nothing)),
                "SSIM to truth": own["ssim_clean"].mean(),
                "high-pass / target": own["high_pass"].mean() / own["high_pass_target"].mean(),
                "n": len(own),
                "heads": own["head"].nunique(),
            }
        )
    return pd.DataFrame(rows)


def pairs_findings(judged: dict[str, Path]) -> list[dict[str, Any]]:
    """The pair that gains least at its own tau, and on how many pairs the best tau lies below the published ones.

    That all pairs gain needs each to gain, so the lower end is the least of their 95 % intervals; that one of them does
    not is picked among all, so the upper end is the least of theirs at 1 - 5 %/pairs (Bonferroni).
    """
    gains, below, above = {}, 0, 0
    for pair, folder in judged.items():
        ours, nothing = _ours(folder)
        own = cross_fitted(ours, ["tau"])
        gains[pair] = _gain(own, nothing), _gain(own, nothing, 1 - 0.05 / len(judged))
        taus = np.array(list(chosen_by_others(ours, ["tau"]).values()))
        below, above = below + int((taus < PUBLISHED).all()), above + int((taus >= PUBLISHED).all())
    worst = min(gains, key=lambda pair: gains[pair][0].mean)
    found = gains[worst][0]
    every, n = len(DOMAINS) * (len(DOMAINS) - 1), len(judged)
    text = (
        f"least PSNR gain over doing nothing among {n} of {every} ordered pairs, each at the τ its other heads choose: "
        f"{worst}; upper end Bonferroni over {n}"
    )
    leave = f"pairs whose best τ is %s {PUBLISHED:g} whichever head is left out, of {n} measured"
    return [
        stated("all_pairs_gain", found.mean, text, low=min(plain.low for plain, _ in gains.values()),
               high=min(wide.high for _, wide in gains.values()), n=found.n, heads=found.heads, unit="dB",
               figure=FIGURE),
        stated("pairs_tau_below", below, leave % "below", n=n, unit=f"of {n}", figure=FIGURE),
        stated("pairs_tau_not_below", above, leave % "at or above", n=n, unit=f"of {n}", figure=FIGURE),
    ]  # fmt: skip
