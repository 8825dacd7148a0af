"""04(c): realism predicted from noised data alone, beside what is measured on translations."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from scipy.stats import linregress
from scipy.stats import t as student

from medshift.results.findings import over_heads, stated
from medshift.results.realism import (
    FIGURE_OF,
    SAME_LAW,
    aucs,
    highest,
    nearest_tau,
    prediction_of,
    row_at,
    scores_of,
    sets_of,
)
from medshift.stages.judged import NOTHING, TARGET
from medshift.stages.prediction import UNSEEN
from medshift.stages.sweep import FRESH, MEDSHIFT
from medshift.theory import Gaussian, kl_divergence, translated_law
from medshift.viz.evidence import Curve, Panel, fig_panels
from medshift.viz.theme import PALETTE

COLOURS = {MEDSHIFT: PALETTE["blue"], FRESH: PALETTE["vermilion"]}


def _columns(table: pd.DataFrame, value: str) -> tuple[list[float], list[float], list[float], list[float]]:
    return list(table["tau"]), list(table[value]), list(table["low"]), list(table["high"])


def _gap(judged: Path, prediction: Path) -> pd.DataFrame:
    """By tau: measured minus predicted AUC on unseen heads, with the interval of a difference of independent ones."""
    measured, said = aucs(judged, MEDSHIFT).set_index("tau"), prediction_of(prediction, UNSEEN).set_index("tau")
    rows = []
    for tau in measured.index:
        a, b = row_at(measured, tau), row_at(said, tau)
        down = math.hypot(a["value"] - a["low"], b["high"] - b["auc"])
        up = math.hypot(a["high"] - a["value"], b["auc"] - b["low"])
        gap = a["value"] - b["auc"]
        row = {"tau": tau, "gap": gap, "low": gap - down, "high": gap + up}
        rows.append(row | {"measured": a["value"], "predicted": b["auc"], "n": a["n"]})
    return pd.DataFrame(rows)


def control_table(control: Path) -> pd.DataFrame:
    """AUC predicted and measured where the field is exact, by tau, with the 95 % t interval of their gap over draws."""
    table = pd.read_csv(control / "control.csv")
    table["gap"] = table["measured"] - table["predicted"]
    by_tau = table.groupby("tau")
    ends = [over_heads(group["gap"], group["draw"]) for _, group in by_tau]
    result = by_tau[["predicted", "measured", "gap"]].mean().reset_index()
    return result.assign(
        low=[e.low for e in ends], high=[e.high for e in ends], draws=table["draw"].nunique(), n=int(table["n"].iloc[0])
    )


def prediction_figure(
    judged: Path, prediction: Path, control: pd.DataFrame, pair: str, footer: str
) -> tuple[str, Figure]:
    """Caption and figure: AUC predicted and measured; inverted against fresh; the network's gap beside the control's.

    Args:
        judged: stage of the pair.
        prediction: stage of the pair.
        control: of `control_table` on the pair.
        pair: its name.
        footer: the data.
    """
    said, sets = prediction_of(prediction, UNSEEN), sets_of(judged)
    curves = [Curve("noised data, no network", *_columns(said, "auc"), colour=PALETTE["black"], dashed=True)]
    for method in (MEDSHIFT, FRESH):
        curves.append(Curve(method, *_columns(aucs(judged, method), "value"), colour=COLOURS[method]))
    same, gap = aucs(judged, SAME_LAW), _gap(judged, prediction)
    floors = sets[(sets["metric"] == "AUC") & sets["tau"].isna()]
    known = dict(zip(floors["method"], floors["value"], strict=True))
    law = Curve("MedShift against fresh noise", *_columns(same, "value"), colour=PALETTE["green"])
    gaps = [
        Curve("MedShift minus prediction", *_columns(gap, "gap"), colour=PALETTE["sky"]),
        Curve("exact field minus prediction", *_columns(control, "gap"), colour=PALETTE["purple"], dashed=True),
    ]
    least = min(float(t["low"].min()) for t in (said, same, aucs(judged, MEDSHIFT), aucs(judged, FRESH)))
    reach = (math.floor(10 * min(least, *known.values())) / 10, 1.03)
    levels = {name: known[name] for name in (NOTHING, TARGET) if name in known}
    panels = [
        Panel("AUC against target", curves, levels, title="predicted and measured", limits=reach),
        Panel("AUC", [law], {"one law": 0.5}, title="the law identity on the network", limits=reach),
        Panel("AUC, measured − predicted", gaps, {"as predicted": 0.0}, title="what a control explains"),
    ]
    first = f"{int(said['n'].iloc[0])} noised latents or {int(gap['n'].iloc[0])} images"
    n = (
        f"left: {first}, middle: {int(same['n'].iloc[0])}, both sets together, of "
        f"{scores_of(judged)['head'].nunique()} heads; shaded: 95 % over heads, of the exact field over "
        f"{int(control['draws'].iloc[0])} draws of equal size"
    )
    caption = (
        f"Domain classifier on merely noised data and on translations against τ, {pair}, and the same difference where "
        f"the field is exact (Gaussian domains with the leading components of these); {n}; {footer}."
    )
    return caption, fig_panels(panels, title=f"Noise and classify, T2: {pair}", footer=f"{n}; {footer}", columns=3)


def law_table(dimensions: int = 6, taus: tuple[float, ...] = (0.1, 0.3, 0.6), seed: int = 0) -> pd.DataFrame:
    """The law identity where everything is known: KL of translations to the target, and of the two noised laws."""
    generator = torch.Generator().manual_seed(seed)

    def draw() -> Gaussian:
        root = torch.randn(dimensions, dimensions, generator=generator, dtype=torch.float64)
        covariance = root @ root.T / dimensions + 0.1 * torch.eye(dimensions, dtype=torch.float64)
        return Gaussian(torch.randn(dimensions, generator=generator, dtype=torch.float64), covariance)

    source, target = draw(), draw()
    rows = []
    for tau in taus:
        out = kl_divergence(translated_law(source, target, tau), target)
        noised = kl_divergence(source.noised(tau), target.noised(tau))
        rows.append({"τ": f"{tau:g}", "KL(translations ‖ target) [nat]": out, "KL of the noised laws [nat]": noised})
    return pd.DataFrame(rows)


def _slope(measured: pd.Series, said: pd.Series) -> tuple[float, float, float]:
    """Slope of measured on predicted over tau with its t interval, the taus taken as independent."""
    fit = linregress(said, measured)
    reach = float(fit.stderr * student.ppf(0.975, len(said) - 2)) if len(said) > 2 else math.nan
    return float(fit.slope), float(fit.slope - reach), float(fit.slope + reach)


def prediction_findings(
    judged: Path, prediction: Path, control: pd.DataFrame, chosen: float, *, suffix: str = ""
) -> list[dict[str, Any]]:
    """How well noised data predict realism on one pair, what of the deviation a control explains, and the law identity.

    Args:
        judged: stage of the pair.
        prediction: stage of the pair.
        control: of `control_table` on the pair.
        chosen: the tau that validation chose.
        suffix: of the findings' names.
    """
    scores, gap = scores_of(judged), _gap(judged, prediction).set_index("tau")
    source, heads = scores["source"].iloc[0], scores["head"].nunique()
    figure, pair = FIGURE_OF["prediction"] + source, f"{source} to {scores['target'].iloc[0]}"
    worst, at = highest(gap["gap"].abs()), nearest_tau(pd.Series(gap.index), chosen)
    law = row_at(aucs(judged, SAME_LAW).set_index("tau"), at)
    exact = control.set_index("tau")
    far, here, other = row_at(gap, worst), row_at(gap, at), row_at(exact, at)
    excess = here["gap"] - other["gap"]
    down = math.hypot(here["gap"] - here["low"], other["high"] - other["gap"])
    up = math.hypot(here["high"] - here["gap"], other["gap"] - other["low"])
    slope, said = _slope(gap["measured"], gap["predicted"]), _slope(exact["measured"], exact["predicted"])
    most = row_at(exact, highest(exact["gap"].abs()))
    over = "slope of measured on predicted AUC over τ"
    return [
        stated(f"law_auc{suffix}", law["value"], f"AUC of MedShift's against fresh-noise outputs at τ = {at:g}, {pair}",
               low=law["low"], high=law["high"], n=int(law["n"]), heads=heads, figure=figure),
        stated(f"noise_classify_slope{suffix}", slope[0], f"{over}, {pair}", low=slope[1], high=slope[2], n=len(gap),
               figure=figure),
        stated(f"noise_classify_error{suffix}", far["gap"],
               f"largest AUC measured minus predicted, at τ = {worst:g}, {pair}", low=far["low"], high=far["high"],
               n=int(far["n"]), heads=heads, figure=figure),
        stated(f"control_slope{suffix}", said[0], f"{over} where the field is exact, {pair}", low=said[1],
               high=said[2], n=len(exact), figure=figure),
        stated(f"control_error{suffix}", most["gap"],
               f"largest AUC measured minus predicted where the field is exact, {pair}", low=most["low"],
               high=most["high"], n=int(most["n"]), heads=int(most["draws"]), figure=figure),
        stated(f"network_excess{suffix}", excess,
               f"AUC measured minus predicted, minus that where the field is exact, at τ = {at:g}, {pair}",
               low=excess - down, high=excess + up, n=int(here["n"]), heads=heads, figure=figure),
    ]  # fmt: skip
