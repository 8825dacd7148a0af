"""04(b): realism against structure and against truth."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from medshift.evaluate import TWIN
from medshift.results.findings import measured, over_heads, stated
from medshift.stages.judged import NOTHING, TARGET
from medshift.stages.sweep import FRESH, MEDSHIFT
from medshift.viz.evidence import fig_realism_structure

HIGH, PUBLISHED = 0.6, 0.3  # the paper's highest tau, and that of its headline
FIGURE_OF = {"realism": "04_realism_structure_", "prediction": "04_prediction_"}
SAME_LAW = "inverted against fresh"  # no method but a comparison of two, among the metrics of sets


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
    """Every method and tau: means of metrics of images, and metrics of sets with their 95 % ends; a column a metric.

    A metric that some views lack, as drift where no landmark could be measured, is followed by how many views have it.
    """
    scores, sets = scores_of(judged), sets_of(judged)
    columns = [c for c in scores.columns if c.split("_")[0] in PER_IMAGE and not c.endswith("_target")]
    without = -1.0  # stands for no tau while tables are joined, which NaN would not survive
    scores["tau"], sets["tau"] = scores["tau"].fillna(without), sets["tau"].fillna(without)
    groups = scores.groupby(["method", "tau"], sort=False)
    means, counts = groups[columns].mean(), groups[columns].count()
    size = groups.size()
    for column in columns:
        if 0 < counts[column].sum() < size.sum():
            means.insert(list(means.columns).index(column) + 1, f"views with {column}", counts[column])
    means.insert(0, "views", size)
    wide = sets[(sets["method"] != SAME_LAW) & sets["value"].notna()].pivot_table(
        index=["method", "tau"], columns="column", values="value", sort=False
    )
    for end in ("low", "high"):
        there = sets[(sets["method"] != SAME_LAW) & sets[end].notna()]
        wide = wide.join(
            there.assign(column=there["column"] + f"_{end}").pivot_table(
                index=["method", "tau"], columns="column", values=end, sort=False
            )
        )
    joined = means.join(wide, how="outer").reset_index()
    joined["tau"] = joined["tau"].where(joined["tau"] != without)
    order = {name: k for k, name in enumerate([MEDSHIFT, FRESH, NOTHING, TWIN, TARGET])}
    joined["order"] = joined["method"].map(order).fillna(len(order))
    joined = joined.sort_values(["order", "tau"]).drop(columns="order").reset_index(drop=True)
    return joined.dropna(axis=1, how="all")


def as_text(table: pd.DataFrame) -> pd.DataFrame:
    """A table whose numbers have three significant digits, since its columns differ by orders of magnitude.

    Columns ``x_low`` and ``x_high`` become the interval behind ``x``.
    """
    shown = pd.DataFrame(index=table.index)
    for column in table:
        if str(column).endswith(("_low", "_high")):
            continue
        values = table[column]
        if not pd.api.types.is_numeric_dtype(values):
            shown[column] = values
            continue
        text = ["" if np.isnan(v) else f"{v:.3g}" for v in values]
        if f"{column}_low" in table:
            ends = zip(table[f"{column}_low"], table[f"{column}_high"], strict=True)
            text = [t if np.isnan(a) else f"{t} [{a:.3g}, {b:.3g}]" for t, (a, b) in zip(text, ends, strict=True)]
        shown[column] = text
    return shown


PER_IMAGE = ("psnr", "ssim", "mae", "st", "lpips", "ms", "edge", "invented", "lost", "drift", "landmarks", "high")


def not_computed(judged: Path) -> pd.DataFrame:
    """Columns that stay empty, and why."""
    sets = sets_of(judged)
    missing = sets[sets["note"].astype(str).str.startswith("not computed")].copy()
    missing["note"] = missing["note"].str.replace(str(Path.home()), "~")  # a reader's home is not this one
    return missing[["column", "note"]].drop_duplicates().rename(columns={"column": "metric", "note": "why"})


def _with_ends(judged: Path, metrics: dict[str, str]) -> pd.DataFrame:
    """Method, tau and every metric of `realism_table` named, with its 95 % ends over heads, NaN where it has none."""
    scores, sets = scores_of(judged), sets_of(judged)
    rows: dict[tuple[str, float], dict[str, Any]] = {}

    def put(row: pd.Series, name: str, ends: tuple[float, float, float]) -> None:
        tau = -1.0 if np.isnan(row["tau"]) else float(row["tau"])
        here = rows.setdefault((row["method"], tau), {"method": row["method"], "tau": row["tau"]})
        here |= dict(zip((name, f"{name}_low", f"{name}_high"), ends, strict=True))

    for name, kind in metrics.items():
        if kind == "images":
            for _, group in scores.groupby(["method", "tau"], sort=False, dropna=False):
                found = over_heads(group[name], group["head"])
                put(group.iloc[0], name, (found.mean, found.low, found.high))
        else:
            for _, row in sets[sets["column"] == name].iterrows():
                put(row, name, (row["value"], row["low"], row["high"]))
    return pd.DataFrame(rows.values())


def realism_structure_figure(judged: Path, pair: str, footer: str) -> tuple[str, Figure]:
    """Caption and figure: the paper's trade-off, and the same with the truth, with intervals both ways."""
    kid, auc = "KID (ST-AlexNet)", "AUC (pixels+texture)"
    table = _with_ends(judged, {"ssim_source": "images", "psnr_clean": "images", kid: "sets", auc: "sets"})
    curves = table[table["method"].isin([MEDSHIFT, FRESH])]
    fixed = table[table["tau"].isna() & ~table["method"].isin([TARGET])]
    panels = [
        ("ssim_source", "SSIM to source (structure)", kid, "KID (ST-AlexNet), lower is more real"),
        ("ssim_source", "SSIM to source (structure)", auc, "AUC against target, .5 is as real"),
        ("psnr_clean", "PSNR to noise-free truth [dB]", kid, "KID (ST-AlexNet), lower is more real"),
    ]
    scores = scores_of(judged)
    n = (
        f"n = {int(scores.groupby(['method', 'tau']).size().iloc[0])} against as many of other views, of "
        f"{scores['head'].nunique()} unseen heads; bars: 95 % over heads"
    )
    caption = (
        f"Realism against structure as the paper draws it (top), and against the truth (bottom), {pair}; from the "
        f"ringed point, the lowest τ, each line goes to the highest; {n}; {footer}."
    )
    figure = fig_realism_structure(curves, panels, fixed, title=f"T2: {pair}", footer=f"{n}; {footer}")
    return caption, figure


def prediction_of(prediction: Path, images: str) -> pd.DataFrame:
    """Noise and classify: AUC by tau with its interval."""
    table = pd.read_csv(prediction / "auc.csv")
    return table[table["images"] == images].sort_values("tau")


def aucs(judged: Path, method: str) -> pd.DataFrame:
    """Two-sample AUC of a method by tau with its interval."""
    sets = sets_of(judged)
    return sets[(sets["method"] == method) & (sets["metric"] == "AUC")].sort_values("tau")


def realism_findings(judged: Path, chosen: float) -> list[dict[str, Any]]:
    """What tau trades on one pair, between the tau that validation chose and the paper's highest."""
    scores = scores_of(judged)
    ours = scores[scores["method"] == MEDSHIFT]
    low, high = nearest_tau(ours["tau"], chosen), nearest_tau(ours["tau"], HIGH)
    least = float(ours["tau"].min())
    heads = ours[ours["tau"] == low].sort_values("view")["head"]
    auc = aucs(judged, MEDSHIFT).set_index("tau")
    at_low, at_high = row_at(auc, low), row_at(auc, high)
    slope = at_low["value"] - at_high["value"]
    # Ends of a difference of two estimates taken as independent; the same heads on both sides make it too wide.
    down = math.hypot(at_low["value"] - at_low["low"], at_high["high"] - at_high["value"])
    up = math.hypot(at_low["high"] - at_low["value"], at_high["value"] - at_high["low"])
    structure = _paired(ours, "ssim_source", high) - _paired(ours, "ssim_source", low)
    invented = _share_invented(ours, least) - _share_invented(ours, low)
    source, done = ours["source"].iloc[0], ours[ours["tau"] == high].sort_values("view")
    figure, curves, predicted = (
        FIGURE_OF["realism"] + source,
        f"04_tradeoff_T2_{source}",
        FIGURE_OF["prediction"] + source,
    )
    paper = nearest_tau(ours["tau"], PUBLISHED)
    at, of_source = row_at(auc, paper), _share_invented(ours, paper, "source") - _share_invented(ours, high, "source")
    return [
        stated("realism_slope", slope, f"AUC against the target at τ = {low:g}, chosen on validation, minus at "
               f"τ = {high:g}", low=slope - down, high=slope + up, n=int(at_low["n"]), heads=heads.nunique(),
               figure=figure),
        measured("structure_slope", structure, heads, f"SSIM to the source at τ = {high:g} minus at τ = {low:g}",
                 figure=figure),
        measured("low_tau_invented", invented, heads,
                 f"share of edges that the truth lacks at τ = {least:g} minus at τ = {low:g}, chosen on validation",
                 figure="04_failures"),
        measured("published_tau_invented", of_source, heads,
                 f"share of edges that the source lacks at τ = {paper:g} minus at τ = {high:g}", figure=figure),
        stated("composition_auc", at["value"], f"AUC of translations against the target at the paper's τ = {paper:g}",
               low=at["low"], high=at["high"], n=int(at["n"]), heads=heads.nunique(), figure=predicted),
        measured("high_tau_shift", done["shift"], done["head"], f"share of the way to the truth gone at τ = {high:g}",
                 figure=curves),
    ]  # fmt: skip


def row_at(table: pd.DataFrame, tau: float) -> dict[str, float]:
    """The numbers of the one row at a tau, which is the index."""
    numbers = table.select_dtypes("number")
    return dict(zip(numbers.columns, numbers.to_numpy()[list(table.index).index(tau)].tolist(), strict=True))


def _paired(rows: pd.DataFrame, metric: str, tau: float) -> np.ndarray:
    return rows[rows["tau"] == tau].sort_values("view")[metric].to_numpy()


def _share_invented(rows: pd.DataFrame, tau: float, reference: str = "clean") -> np.ndarray:
    """Share of an output's edges that the truth, or the ``source``, lacks, view by view."""
    return 1 - _paired(rows, f"edge_precision_{reference}", tau)
