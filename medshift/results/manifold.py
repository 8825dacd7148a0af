"""What 05_shared_manifold draws: embeddings, numbers of sharing, spectra, and the swap test."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from medshift.metrics.bootstrap import hierarchical_interval
from medshift.results.findings import measured, stated
from medshift.stages.latents import INVERTED, NOISED
from medshift.viz.evidence import Curve, Panel, fig_panels
from medshift.viz.manifold import fig_embedding
from medshift.viz.theme import DOMAIN_COLOURS, PALETTE

PUBLISHED_TAU = 0.3


def _pairs(study: Path) -> pd.DataFrame:
    return pd.read_csv(study / "pairs.csv")


def _first_pair(study: Path, kind: str) -> pd.DataFrame:
    table = _pairs(study)
    first = table.iloc[0]
    here = (table["first"] == first["first"]) & (table["second"] == first["second"]) & (table["kind"] == kind)
    return table[here].sort_values("tau")


def embedding_figure(study: Path, footer: str) -> tuple[str, Figure]:
    """Caption and figure: UMAP and PCA of z_tau of all domains."""
    table, pair = pd.read_csv(study / "embedding.csv"), _first_pair(study, INVERTED)
    n = f"n = {table['view'].nunique()} views in each of {table['domain'].nunique()} domains, unseen heads"
    figure = fig_embedding(
        table,
        pair.set_index("tau")["auc"],
        first=str(pair["first"].iloc[0]),
        second=str(pair["second"].iloc[0]),
        title="Inverted latents z_τ in the plane",
        footer=f"{n}; {footer}",
    )
    return (
        f"UMAP (fixed seed) and PCA of z_τ of all domains by τ, with the domain classifier's AUC; {n}; {footer}.",
        figure,
    )


def sharing_figure(study: Path, footer: str) -> tuple[str, Figure]:
    """Caption and figure: AUC, mixing, distances and retrieval against tau, inverted beside merely noised."""
    domains = pd.read_csv(study / "domains.csv")
    names = {INVERTED: "inverted z_τ", NOISED: "merely noised"}
    shades = {INVERTED: PALETTE["blue"], NOISED: PALETTE["orange"]}

    def pair_curves(column: str, bands: bool = False) -> list[Curve]:
        made = []
        for kind, name in names.items():
            t = _first_pair(study, kind)
            low, high = (list(t["auc_low"]), list(t["auc_high"])) if bands else (None, None)
            made.append(Curve(name, list(t["tau"]), list(t[column]), low, high, shades[kind], kind == NOISED))
        return made

    mixing = []
    for kind, name in names.items():
        rows = domains[domains["kind"] == kind].sort_values("tau")
        mixing.append(Curve(name, list(rows["tau"]), list(rows["mixing"]), colour=shades[kind], dashed=kind == NOISED))
    pair = _first_pair(study, INVERTED)
    panels = [
        Panel("AUC of a domain classifier", pair_curves("auc", bands=True), {"nothing to tell": 0.5}),
        Panel("mixing of neighbours", mixing, {"mixed": 1.0}),
        Panel("sliced W2", pair_curves("sliced_w2")),
        Panel("MMD², unbiased", pair_curves("mmd")),
        Panel("same view found, top 1", pair_curves("retrieval"), {"chance": float(pair["chance"].iloc[0])}),
        Panel("median rank of the same view", pair_curves("median_rank"), log_y=True),
    ]
    names_of = f"{pair['first'].iloc[0]} and {pair['second'].iloc[0]}"
    n = f"{names_of}; mixing: all domains; n = {int(pair['views'].iloc[0])} views a domain, AUC with 95 % over heads"
    caption = f"Numbers of a shared manifold against τ, of inverted and of merely noised latents, {n}; {footer}."
    return caption, fig_panels(panels, title="How shared is z_τ?", footer=f"{n}; {footer}")


def spectrum_figure(study: Path, footer: str, taus: tuple[float, ...] = (0.02, 0.1, 0.3)) -> tuple[str, Figure]:
    """Caption and figure: radial power of z_tau over that of merely noised data, domain by domain."""
    spectra = pd.read_csv(study / "spectra.csv")
    there = sorted(spectra["tau"].unique())
    panels = []
    for tau in dict.fromkeys(min(there, key=lambda t: abs(t - wanted)) for wanted in taus):
        curves = []
        for domain, rows in spectra[spectra["tau"] == tau].groupby("domain", sort=False):
            both = rows.pivot(index="frequency", columns="kind", values="power")
            ratio = (both[INVERTED] / both[NOISED]).iloc[1:]  # at 0 stand the means, one number a view
            shade = DOMAIN_COLOURS.get(str(domain), "")
            curves.append(Curve(str(domain), list(ratio.index), list(ratio), colour=shade))
        label = "power of z_τ / noised data's"
        xlabel = "spatial frequency [cycles/latent pixel]"
        panels.append(
            Panel(label, curves, {"theory": 1.0}, title=f"τ = {tau:g}", xlabel=xlabel, x="linear", limits=(0.0, 1.5))
        )
    caption = f"Radial power spectrum of inverted latents over that of merely noised ones, unseen heads; {footer}."
    return caption, fig_panels(panels, title="What is missing in z_τ: its spectrum against theory", footer=footer)


def sharing_table(study: Path) -> pd.DataFrame:
    """All pairs compared, every tau, inverted beside merely noised."""
    table = _pairs(study)
    rows = []
    for key, group in table.groupby(["first", "second", "tau"], sort=False):
        (first, second, tau), by = cast(tuple[str, str, float], key), group.set_index("kind")
        row: dict[str, Any] = {"domains": f"{first}, {second}", "τ": f"{tau:g}"}
        for kind, name in ((INVERTED, "z_τ"), (NOISED, "noised")):
            auc, low, high = (float(by[column].loc[kind]) for column in ("auc", "auc_low", "auc_high"))
            row[f"AUC, {name}"] = f"{auc:.2f} [{low:.2f}, {high:.2f}]"
        for kind, name in ((INVERTED, "z_τ"), (NOISED, "noised")):
            row[f"sliced W2, {name}"] = f"{float(by['sliced_w2'].loc[kind]):.3f}"
            row[f"retrieval, {name}"] = f"{float(by['retrieval'].loc[kind]):.2f}"
        rows.append(row | {"n": int(by["views"].iloc[0])})
    return pd.DataFrame(rows)


def _swap(study: Path) -> pd.DataFrame:
    return pd.read_csv(study / "swap.csv", keep_default_na=False)


def swap_table(study: Path) -> pd.DataFrame:
    """PSNR to the truth of the target decoded from its own z_tau and from the source's, and the price of the swap."""
    table = _swap(study)
    rows = []
    for tau, group in table.groupby("tau"):
        own, other = (group[group["method"] == whose].sort_values("view") for whose in ("own", "other"))
        row: dict[str, Any] = {"τ": f"{tau:g}"}
        for name, some in (("own z_τ", own), ("the source's z_τ", other)):
            row[f"PSNR from {name} [dB]"] = str(hierarchical_interval(some["psnr_clean"].to_numpy(), some))
        gap = own["psnr_clean"].to_numpy() - other["psnr_clean"].to_numpy()
        row["own minus source's [dB]"] = str(hierarchical_interval(gap, own))
        rows.append(row | {"n": len(own)})
    return pd.DataFrame(rows)


def manifold_findings(study: Path) -> list[dict[str, Any]]:
    """Sharing at the paper's tau, in z_tau and in noised data; retrieval; the price of the swap."""
    found = []
    for name, kind, text in (
        ("shared_auc_z", INVERTED, "AUC of a domain classifier on inverted z_τ"),
        ("shared_auc_noised", NOISED, "the same on merely noised data"),
    ):
        table = _first_pair(study, kind)
        row = table.iloc[(table["tau"] - PUBLISHED_TAU).abs().argmin()]
        found.append(
            stated(name, row["auc"], f"{text} at τ = {row['tau']:g}", low=row["auc_low"], high=row["auc_high"],
                   n=int(row["n"]), figure="05_sharing")
        )  # fmt: skip
    for name, kind, text in (
        ("retrieval_inverted", INVERTED, "same view found across domains, inverted z_τ"),
        ("retrieval_fresh", NOISED, "the same with fresh noise"),
    ):
        table = _first_pair(study, kind)
        row = table.iloc[(table["tau"] - 0.05).abs().argmin()]
        n, share = int(row["views"]), float(row["retrieval"])
        low, high = _wilson(share, n)
        text = f"{text}, top 1 at τ = {row['tau']:g}, chance {row['chance']:.3f}"
        found.append(stated(name, share, text, low=low, high=high, n=n, figure="05_sharing"))
    swap = _swap(study)
    tau = swap["tau"].iloc[(swap["tau"] - PUBLISHED_TAU).abs().argmin()]
    here = swap[swap["tau"] == tau]
    own, other = (here[here["method"] == whose].sort_values("view") for whose in ("own", "other"))
    gap = own["psnr_clean"].to_numpy() - other["psnr_clean"].to_numpy()
    text = f"PSNR of the target decoded from its own z_τ minus from the source's, τ = {tau:g}"
    found.append(measured("swap_gain", gap, own["head"], text, unit="dB", figure="05_swap"))
    return found


def _wilson(share: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion; views as if independent, said in the notebook."""
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(round(share * n), n, method="wilson")
    return float(np.clip(low, 0, 1)), float(np.clip(high, 0, 1))
