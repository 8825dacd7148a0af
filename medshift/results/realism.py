"""04(b, c): realism against structure and against truth, and realism predicted from the data alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import linregress

from medshift.evaluate import TWIN
from medshift.metrics.bootstrap import hierarchical_interval
from medshift.results.findings import measured, stated
from medshift.stages.judged import NOTHING, TARGET
from medshift.stages.prediction import UNSEEN
from medshift.stages.sweep import FRESH, MEDSHIFT
from medshift.theory import Gaussian, kl_divergence, translated_law
from medshift.viz.evidence import Curve, Panel, fig_panels, fig_realism_structure
from medshift.viz.theme import PALETTE

SAME_LAW = "inverted against fresh"
HIGH, LOW = 0.6, 0.02  # the paper's highest tau, and the one that validation chose
COLOURS = {MEDSHIFT: PALETTE["blue"], FRESH: PALETTE["vermilion"]}


def scores_of(judged: Path) -> pd.DataFrame:
    """Metrics of images, one row a view, method and tau."""
    return pd.read_csv(judged / "scores.csv", keep_default_na=False, na_values=[""], dtype={"insert": str})


def sets_of(judged: Path) -> pd.DataFrame:
    """Metrics of sets, one row a metric, features, method and tau."""
    table = pd.read_csv(judged / "sets.csv", keep_default_na=False, na_values=[""])
    table["column"] = table["metric"] + " (" + table["features"] + ")"
    return table


def highest(means: pd.Series) -> float:
    """The tau, which is the index, of the highest value."""
    return float(means.index[int(means.to_numpy().argmax())])


def nearest_tau(taus: pd.Series, wanted: float) -> float:
    """The evaluated tau closest to a wanted one."""
    values = np.sort(taus.dropna().unique())
    return float(values[np.abs(values - wanted).argmin()])


def realism_table(judged: Path) -> pd.DataFrame:
    """Every method and tau: means of metrics of images, and metrics of sets; a column a metric."""
    scores, sets = scores_of(judged), sets_of(judged)
    columns = [c for c in scores.columns if c.split("_")[0] in PER_IMAGE and not c.endswith("_target")]
    without = -1.0  # stands for no tau while tables are joined, which NaN would not survive
    scores["tau"], sets["tau"] = scores["tau"].fillna(without), sets["tau"].fillna(without)
    means = scores.groupby(["method", "tau"], sort=False)[columns].mean()
    wide = sets[(sets["method"] != SAME_LAW) & sets["value"].notna()].pivot_table(
        index=["method", "tau"], columns="column", values="value", sort=False
    )
    joined = means.join(wide, how="outer").reset_index()
    joined["tau"] = joined["tau"].where(joined["tau"] != without)
    order = {name: k for k, name in enumerate([MEDSHIFT, FRESH, NOTHING, TWIN, TARGET])}
    joined["order"] = joined["method"].map(order).fillna(len(order))
    joined = joined.sort_values(["order", "tau"]).drop(columns="order").reset_index(drop=True)
    return joined.dropna(axis=1, how="all")


def as_text(table: pd.DataFrame) -> pd.DataFrame:
    """A table whose numbers have three significant digits, since its columns differ by orders of magnitude."""
    shown = table.copy()
    for column in shown.select_dtypes("number"):
        shown[column] = ["" if np.isnan(v) else f"{v:.3g}" for v in shown[column]]
    return shown


PER_IMAGE = ("psnr", "ssim", "mae", "st", "lpips", "ms", "edge", "invented", "lost", "drift", "high")


def not_computed(judged: Path) -> pd.DataFrame:
    """Columns that stay empty, and why."""
    sets = sets_of(judged)
    missing = sets[sets["note"].astype(str).str.startswith("not computed")].copy()
    missing["note"] = missing["note"].str.replace(str(Path.home()), "~")  # a reader's home is not this one
    return missing[["column", "note"]].drop_duplicates().rename(columns={"column": "metric", "note": "why"})


def realism_structure_figure(judged: Path, pair: str, footer: str) -> tuple[str, Figure]:
    """Caption and figure: the paper's trade-off, and the same with the truth."""
    table = realism_table(judged)
    curves = table[table["method"].isin([MEDSHIFT, FRESH])]
    fixed = table[table["tau"].isna() & (table["method"] != TARGET)]
    kid = "KID (ST-AlexNet)"
    panels = [
        ("ssim_source", "SSIM to source (structure)", kid, f"{kid} (lower: more real)"),
        ("ssim_source", "SSIM to source (structure)", "AUC (pixels+texture)", "AUC against target (.5: as real)"),
        ("psnr_clean", "PSNR to noise-free truth [dB]", kid, f"{kid} (lower: more real)"),
    ]
    n = f"n = {int(scores_of(judged).groupby(['method', 'tau']).size().iloc[0])} against as many of other views"
    caption = (
        f"Realism against structure as the paper draws it (left, middle), and against the truth (right), {pair}; "
        f"numbers are τ; {n}, unseen heads; {footer}."
    )
    figure = fig_realism_structure(curves, panels, fixed, title=f"T2: {pair}", footer=f"{n}; {footer}")
    return caption, figure


def prediction_of(prediction: Path, images: str) -> pd.DataFrame:
    """Noise and classify: AUC by tau with its interval."""
    table = pd.read_csv(prediction / "auc.csv")
    return table[table["images"] == images].sort_values("tau")


def _aucs(judged: Path, method: str) -> pd.DataFrame:
    sets = sets_of(judged)
    return sets[(sets["method"] == method) & (sets["metric"] == "AUC")].sort_values("tau")


def prediction_figure(judged: Path, prediction: Path, pair: str, footer: str) -> tuple[str, Figure]:
    """Caption and figure: AUC predicted from noised data and measured on translations; inverted against fresh noise."""
    said = prediction_of(prediction, UNSEEN)
    curves = [Curve("noised data, no network", *_columns(said, "auc"), colour=PALETTE["black"], dashed=True)]
    for method in (MEDSHIFT, FRESH):
        curves.append(Curve(method, *_columns(_aucs(judged, method), "value"), colour=COLOURS[method]))
    same = _aucs(judged, SAME_LAW)
    floors = sets_of(judged)
    floors = floors[(floors["metric"] == "AUC") & floors["tau"].isna()]
    known = dict(zip(floors["method"], floors["value"], strict=True))
    levels = {name: known[name] for name in (NOTHING, TARGET) if name in known}
    panels = [
        Panel("two-sample AUC against target", curves, levels, title="predicted and measured", limits=(0.3, 1.03)),
        Panel(
            "two-sample AUC",
            [Curve("MedShift against fresh noise", *_columns(same, "value"), colour=PALETTE["green"])],
            {"one law": 0.5},
            title="the law identity on the network",
            limits=(0.3, 1.03),
        ),
    ]
    n = f"{int(said['n'].iloc[0])} noised latents, {int(same['n'].iloc[0])} outputs, both sets, 95 % over heads"
    caption = f"Domain classifier on merely noised data and on translations against τ, {pair}; {n}; {footer}."
    return caption, fig_panels(panels, title=f"Noise and classify, T2: {pair}", footer=f"{n}; {footer}", columns=2)


def _columns(table: pd.DataFrame, value: str) -> tuple[list[float], list[float], list[float], list[float]]:
    return list(table["tau"]), list(table[value]), list(table["low"]), list(table["high"])


def law_table(dimensions: int = 6, taus: tuple[float, ...] = (0.1, 0.3, 0.6), seed: int = 0) -> pd.DataFrame:
    """The law identity where everything is known: KL of translations to the target, and of the two noised laws."""
    import torch

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


def realism_findings(judged: Path, prediction: Path) -> list[dict[str, Any]]:
    """What tau trades, the law identity, and how well noised data predict realism."""
    scores = scores_of(judged)
    ours = scores[scores["method"] == MEDSHIFT]
    low, high = nearest_tau(ours["tau"], LOW), nearest_tau(ours["tau"], HIGH)
    structure = _paired(ours, "ssim_source", high) - _paired(ours, "ssim_source", low)
    heads = ours[ours["tau"] == low].sort_values("view")["head"]
    auc, same = _aucs(judged, MEDSHIFT).set_index("tau"), _aucs(judged, SAME_LAW).set_index("tau")
    at_low, at_high, law = _row(auc, low), _row(auc, high), _row(same, low)
    slope = at_low["value"] - at_high["value"]
    half = math.hypot(*(at["high"] - at["value"] for at in (at_low, at_high)))
    said = prediction_of(prediction, UNSEEN).set_index("tau")
    error = (auc["value"] - said["auc"]).loc[auc.index]
    worst = highest(error.abs())
    measured_there, said_there = _row(auc, worst), _row(said, worst)
    off = measured_there["value"] - said_there["auc"]
    wide = math.hypot(measured_there["high"] - measured_there["value"], said_there["high"] - said_there["auc"])
    fit = linregress(said.loc[auc.index, "auc"], auc["value"])
    error_of_slope = 2.0 * fit.stderr
    paper = nearest_tau(ours["tau"], 0.3)
    at = _row(auc, paper)
    means = ours.groupby("tau")["psnr_clean"].mean()
    best = highest(means)
    plateau = [t for t in means.index if _near_best(ours, t, best)]
    invented = _share_invented(ours, float(means.index.min())) - _share_invented(ours, best)
    source = ours["source"].iloc[0]
    figure, predicted = f"04_realism_structure_{source}", f"04_prediction_{source}"
    done = ours[ours["tau"] == high].sort_values("view")
    return [
        stated("realism_slope", slope, f"AUC against the target at τ = {low:g} minus at τ = {high:g}",
               low=slope - half, high=slope + half, n=int(at["n"]), figure=figure),
        measured("structure_slope", structure, heads, f"SSIM to the source at τ = {high:g} minus at τ = {low:g}",
                 figure=figure),
        stated("truth_best_tau", best, "τ of the best PSNR to the truth; interval: all τ within .2 dB",
               low=min(plateau), high=max(plateau), n=int(len(heads)), figure=f"04_tradeoff_T2_{source}"),
        measured("low_tau_invented", invented, heads,
                 f"share of edges that the truth lacks at τ = {means.index.min():g} minus at τ = {best:g}",
                 figure="04_failures"),
        measured("high_tau_shift", done["shift"], done["head"], f"share of the way to the truth gone at τ = {high:g}",
                 figure=f"04_tradeoff_T2_{source}"),
        stated("law_auc", law["value"], f"AUC of MedShift's against fresh-noise outputs at τ = {low:g}",
               low=law["low"], high=law["high"], n=int(law["n"]), figure=predicted),
        stated("noise_classify_slope", fit.slope, "slope of measured on predicted AUC over τ, ± 2 standard errors",
               low=fit.slope - error_of_slope, high=fit.slope + error_of_slope, n=len(auc), figure=predicted),
        stated("noise_classify_error", off, f"largest AUC measured minus predicted, at τ = {worst:g}",
               low=off - wide, high=off + wide, n=int(at["n"]), figure=predicted),
        stated("composition_auc", at["value"], f"AUC of translations against the target at the paper's τ = {paper:g}",
               low=at["low"], high=at["high"], n=int(at["n"]), figure=predicted),
    ]  # fmt: skip


def _row(table: pd.DataFrame, tau: float) -> dict[str, float]:
    numbers = table.select_dtypes("number")
    return dict(zip(numbers.columns, numbers.to_numpy()[list(table.index).index(tau)].tolist(), strict=True))


def _paired(rows: pd.DataFrame, metric: str, tau: float) -> np.ndarray:
    return rows[rows["tau"] == tau].sort_values("view")[metric].to_numpy()


def _near_best(rows: pd.DataFrame, tau: float, best: float, within: float = 0.2) -> bool:
    return bool((_paired(rows, "psnr_clean", best) - _paired(rows, "psnr_clean", tau)).mean() <= within)


def _share_invented(rows: pd.DataFrame, tau: float) -> np.ndarray:
    """Share of an output's edges that the truth lacks, view by view."""
    return 1 - _paired(rows, "edge_precision_clean", tau)


def interval(rows: pd.DataFrame, metric: str) -> str:
    """Mean and 95 % interval over heads as text."""
    there = rows[rows[metric].notna()]
    return str(hierarchical_interval(there[metric].to_numpy(), there))


def pairs_table(judged: dict[str, Path], tau: float) -> pd.DataFrame:
    """One network, every pair: PSNR at one tau, doing nothing, and the gain, with intervals over heads."""
    rows = []
    for pair, folder in judged.items():
        gain, ours, nothing = _gain(folder, tau)
        rows.append(
            {
                "pair": pair.replace(">", "→"),
                "PSNR [dB]": interval(ours, "psnr_clean"),
                "doing nothing [dB]": interval(nothing, "psnr_clean"),
                "gain [dB]": str(hierarchical_interval(gain, ours)),
                "SSIM to truth": ours["ssim_clean"].mean(),
                "high-pass / target": ours["high_pass"].mean() / ours["high_pass_target"].mean(),
                "n": len(ours),
            }
        )
    return pd.DataFrame(rows)


def _gain(folder: Path, tau: float) -> tuple[np.ndarray, pd.DataFrame, pd.DataFrame]:
    scores = scores_of(folder)
    ours = scores[(scores["method"] == MEDSHIFT) & (scores["tau"] == nearest_tau(scores["tau"], tau))]
    ours, nothing = ours.sort_values("view"), scores[scores["method"] == NOTHING].sort_values("view")
    return ours["psnr_clean"].to_numpy() - nothing["psnr_clean"].to_numpy(), ours, nothing


def pairs_findings(judged: dict[str, Path], tau: float) -> list[dict[str, Any]]:
    """The pair that gains least."""
    gains = {pair: _gain(folder, tau) for pair, folder in judged.items()}
    worst = min(gains, key=lambda pair: gains[pair][0].mean())
    text = f"least PSNR gain over doing nothing among {len(gains)} pairs of one network, {worst}, τ = {tau:g}"
    return [measured("all_pairs_gain", gains[worst][0], gains[worst][1]["head"], text, unit="dB", figure="04_pairs")]
