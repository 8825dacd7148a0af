"""What 05_shared_manifold draws: embeddings, numbers of sharing, spectra, and the swap test."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pandas as pd
from matplotlib.figure import Figure

from medshift.errors import DataError
from medshift.results.findings import measured, over_heads, stated
from medshift.stages.latents import INVERTED, NOISED
from medshift.viz.evidence import Curve, Panel, fig_panels
from medshift.viz.manifold import WIDTH, fig_embedding
from medshift.viz.theme import DOMAIN_COLOURS, PALETTE

PUBLISHED_TAU, RETRIEVED_TAU = 0.3, 0.05
NAMES = {INVERTED: "inverted z_τ", NOISED: "merely noised"}
SHORT = {INVERTED: "z_τ", NOISED: "noised"}
SHADES = {INVERTED: PALETTE["blue"], NOISED: PALETTE["orange"]}
FLOORS = {INVERTED: PALETTE["sky"], NOISED: PALETTE["grey"]}
NOTHING = "nothing to tell, or chance"
# Columns of pairs.csv in a table, their names and decimal places; of distances the floor stands beside them.
TABLED = (("auc", "AUC", 2), ("sliced_w2", "sliced W2", 3), ("mmd", "MMD²", 4), ("retrieval", "retrieval", 2))
DISTANCES = ("sliced_w2", "mmd")


def _pairs(study: Path) -> pd.DataFrame:
    return pd.read_csv(study / "pairs.csv")


def _first_pair(study: Path, kind: str) -> pd.DataFrame:
    table = _pairs(study)
    first = table.iloc[0]
    here = (table["first"] == first["first"]) & (table["second"] == first["second"]) & (table["kind"] == kind)
    return table[here].sort_values("tau")


def _counted(table: pd.DataFrame) -> str:
    """How many views of how many heads; every row of pairs.csv says the same."""
    return f"n = {int(table['views'].iloc[0])} views a domain of {int(table['heads'].iloc[0])} unseen heads"


def embedding_figure(study: Path, footer: str) -> tuple[str, Figure]:
    """Caption and figure: UMAP and PCA of inverted and of merely noised latents, no view in two domains."""
    table, pair = pd.read_csv(study / "embedding.csv"), _first_pair(study, INVERTED)
    auc = pd.concat([_first_pair(study, kind) for kind in NAMES]).set_index(["kind", "tau"])["auc"]
    views, domains = table["view"].nunique(), table["domain"].nunique()
    n = f"n = {views} views of {table['head'].nunique()} unseen heads, each in one of {domains} domains alone"
    figure = fig_embedding(
        table,
        auc,
        NAMES,
        title="z_τ in the plane; AUC: a linear classifier on unseen heads, "
        f"{pair['first'].iloc[0]} against {pair['second'].iloc[0]}, {int(pair['n'].iloc[0])} views",
        footer=f"{n}; {footer}",
    )
    return (
        "UMAP (fixed seed) and PCA of inverted and of merely noised latents by τ, with the domain classifier's AUC; "
        f"UMAP's axes have no unit, PCA's are fitted to each panel; {n}; {footer}.",
        figure,
    )


def sharing_figure(study: Path, footer: str) -> tuple[str, Figure]:
    """Caption and figure: AUC, mixing, distances and retrieval against tau, inverted beside merely noised."""
    domains = pd.read_csv(study / "domains.csv")
    of_pair = {kind: _first_pair(study, kind) for kind in NAMES}
    of_all = {kind: domains[domains["kind"] == kind].sort_values("tau") for kind in NAMES}

    def curves(tables: dict[str, pd.DataFrame], column: str, *, floors: bool = False) -> list[Curve]:
        made = []
        for kind, t in tables.items():
            x, low, high = list(t["tau"]), list(t[f"{column}_low"]), list(t[f"{column}_high"])
            made.append(Curve(NAMES[kind], x, list(t[column]), low, high, SHADES[kind], kind == NOISED))
        for kind, t in tables.items() if floors else ():
            name = f"one domain alone, {NAMES[kind]}"
            made.append(
                Curve(name, list(t["tau"]), list(t[f"{column}_floor"]), None, None, FLOORS[kind], kind == NOISED)
            )
        return made

    pair = of_pair[INVERTED]
    chance, rank = (float(pair[f"{name}_floor"].iloc[0]) for name in ("retrieval", "median_rank"))
    panels = [
        Panel("AUC of a domain classifier", curves(of_pair, "auc"), {NOTHING: 0.5}),
        Panel("mixing of neighbours", curves(of_all, "mixing", floors=True)),
        Panel("sliced W2 [latent units]", curves(of_pair, "sliced_w2", floors=True)),
        Panel("MMD², unbiased", curves(of_pair, "mmd", floors=True)),
        Panel("same view found, top 1", curves(of_pair, "retrieval"), {NOTHING: chance}),
        Panel("median rank of the same view", curves(of_pair, "median_rank"), {NOTHING: rank}, log_y=True),
    ]
    n = (
        f"{pair['first'].iloc[0]} and {pair['second'].iloc[0]}, mixing of all domains; {_counted(pair)}; "
        "no view in two sets, retrieval apart; bands: 95 % over heads"
    )
    figure = fig_panels(panels, title="How shared is z_τ?", footer=f"{n}; {footer}", width=WIDTH / 3)
    caption = f"Numbers of a shared manifold against τ, of inverted and of merely noised latents; {n}; {footer}."
    return caption, figure


def spectrum_figure(study: Path, footer: str, taus: tuple[float, ...] = (0.02, 0.1, 0.3)) -> tuple[str, Figure]:
    """Caption and figure: radial power of z_tau over that of merely noised data, domain by domain."""
    spectra, n = pd.read_csv(study / "spectra.csv"), _counted(_pairs(study))
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
        xlabel = "frequency [cycles/latent pixel]"
        panels.append(
            Panel(label, curves, {"theory": 1.0}, title=f"τ = {tau:g}", xlabel=xlabel, x="linear", limits=(0.0, 1.5))
        )
    caption = f"Radial power of inverted latents over that of merely noised ones, ratio of means; {n}; {footer}."
    title = "What is missing in z_τ: its spectrum against theory"
    return caption, fig_panels(panels, title=title, footer=f"{n}; {footer}", width=WIDTH / 3)


def sharing_table(study: Path) -> pd.DataFrame:
    """All pairs compared, every tau, inverted beside merely noised, with intervals over heads and floors."""
    table = _pairs(study)
    rows = []
    for key, group in table.groupby(["first", "second", "tau"], sort=False):
        first, second, tau = cast(tuple[str, str, float], key)
        row: dict[str, Any] = {"domains": f"{first}, {second}", "τ": f"{tau:g}"}
        for column, name, digits in TABLED:
            row |= _cells(group, column, name, digits, floor=column in DISTANCES)
        rows.append(row | {"chance": f"{group['retrieval_floor'].iloc[0]:.3f}", "n": int(group["views"].iloc[0])})
    return pd.DataFrame(rows)


def mixing_table(study: Path) -> pd.DataFrame:
    """Mixing of all domains at every tau, inverted beside merely noised."""
    rows = []
    for tau, group in pd.read_csv(study / "domains.csv").groupby("tau"):
        row = {"τ": f"{tau:g}"} | _cells(group, "mixing", "mixing", 2, floor=True)
        rows.append(row | {"n": int(group["views"].iloc[0])})
    return pd.DataFrame(rows)


def _cells(group: pd.DataFrame, column: str, name: str, digits: int, *, floor: bool) -> dict[str, Any]:
    """A number with its interval for both kinds of latents, and its floor."""
    cells: dict[str, Any] = {}
    for kind, label in SHORT.items():
        row = group[group["kind"] == kind].iloc[0]
        value, low, high = (f"{row[f'{column}{end}']:.{digits}f}" for end in ("", "_low", "_high"))
        known = row[f"{column}_low"] <= row[f"{column}_high"]  # not where they are NaN
        cells[f"{name}, {label}"] = f"{value} [{low}, {high}]" if known else f"{value} [too few heads]"
        if floor:
            cells[f"{name}, {label}, floor"] = f"{row[f'{column}_floor']:.{digits}f}"
    return cells


def _swap(study: Path) -> pd.DataFrame:
    return pd.read_csv(study / "swap.csv", keep_default_na=False)


def swap_table(study: Path) -> pd.DataFrame:
    """PSNR to the truth of the target decoded from its own z_tau and from the source's, and the price of the swap."""
    rows = []
    for tau, group in _swap(study).groupby("tau"):
        own, other = _own_and_other(group)
        row: dict[str, Any] = {"τ": f"{tau:g}"}
        for name, values in (("own z_τ", own), ("the source's z_τ", other)):
            row[f"PSNR from {name} [dB]"] = str(over_heads(values["psnr_clean"], values["head"]))
        gap = own["psnr_clean"] - other["psnr_clean"]
        row["own minus source's [dB]"] = str(over_heads(gap, own["head"]))
        rows.append(row | {"n": len(own), "heads": own["head"].nunique()})
    return pd.DataFrame(rows)


def _own_and_other(group: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The scores of both decodings at one tau, by view, so that they are of the same views."""
    own, other = (group[group["method"] == whose].set_index("view").sort_index() for whose in ("own", "other"))
    if not own.index.equals(other.index):
        raise DataError("The swap test needs both decodings of the same views; make the stage `manifold` again.")
    return own, other


def manifold_findings(study: Path) -> list[dict[str, Any]]:
    """Sharing at the paper's tau, in z_tau and in noised data; retrieval; the price of the swap."""
    found = []
    for name, kind, text in (
        ("shared_auc_z", INVERTED, "AUC of a domain classifier on inverted z_τ"),
        ("shared_auc_noised", NOISED, "the same on merely noised data"),
    ):
        row = _nearest(_first_pair(study, kind), PUBLISHED_TAU)
        found.append(
            stated(name, row["auc"], f"{text} at τ = {row['tau']:g}", low=row["auc_low"], high=row["auc_high"],
                   n=int(row["n"]), heads=int(row["heads"]), figure="05_sharing")
        )  # fmt: skip
    for name, kind, text in (
        ("retrieval_inverted", INVERTED, "same view found across domains, inverted z_τ"),
        ("retrieval_fresh", NOISED, "the same with fresh noise"),
    ):
        row = _nearest(_first_pair(study, kind), RETRIEVED_TAU)
        text = f"{text}, top 1 at τ = {row['tau']:g}, chance {row['retrieval_floor']:.3f}"
        found.append(
            stated(name, row["retrieval"], text, low=row["retrieval_low"], high=row["retrieval_high"],
                   n=int(row["views"]), heads=int(row["heads"]), figure="05_sharing")
        )  # fmt: skip
    swap = _swap(study)
    tau = _nearest(swap, PUBLISHED_TAU)["tau"]
    own, other = _own_and_other(swap[swap["tau"] == tau])
    gap = own["psnr_clean"] - other["psnr_clean"]
    text = f"PSNR of the target decoded from its own z_τ minus from the source's, τ = {tau:g}"
    found.append(measured("swap_gain", gap, own["head"], text, unit="dB", figure="05_swap"))
    return found


def _nearest(table: pd.DataFrame, tau: float) -> pd.Series:
    """The first row whose tau is nearest."""
    return table.iloc[int((table["tau"] - tau).abs().argmin())]
