"""04(a): the fewest evaluations of the network that translate as well as the recipe as published.

Two standards. *Within its intervals*: mean PSNR to the truth and FID lie in the published recipe's own 95 % intervals,
or are better; with few heads those are wide. *No worse, view by view*: the 95 % intervals of the differences on the
same views exclude a loss of more than `MARGIN_DB` and a FID larger by more than `MARGIN_FID` of the recipe's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from scipy.stats import t as student

from medshift.metrics.intervals import hierarchical_interval
from medshift.results.findings import stated
from medshift.viz.evidence import Curve, Panel, fig_panels

MARGIN_DB, MARGIN_FID = 0.1, 0.05
FIGURE = "04_evaluations"
PSNR, FID = "PSNR [dB]", "FID (ST-AlexNet)"


def compared(study: Path) -> pd.DataFrame:
    """One row a tau and candidate: evaluations, PSNR and FID with intervals, and both as differences to the first.

    Args:
        study: folder of the stage ``evaluations``, whose first candidate is the recipe as published.
    """
    scores = pd.read_csv(study / "scores.csv", keep_default_na=False)
    published = scores["candidate"].iloc[0]
    distances = pd.read_csv(study / "distances.csv", keep_default_na=False)
    rows = []
    for tau, at_tau in scores.groupby("tau"):
        of_tau = distances[distances["tau"] == tau]
        fids = {name: group.set_index("left_out")["fid"] for name, group in of_tau.groupby("candidate")}
        base = at_tau[at_tau["candidate"] == published].sort_values("view")
        for name, group in at_tau.groupby("candidate", sort=False):
            group = group.sort_values("view")
            psnr = hierarchical_interval(group["psnr_clean"].to_numpy(), group)
            gain = hierarchical_interval(group["psnr_clean"].to_numpy() - base["psnr_clean"].to_numpy(), group)
            fid, more = _jackknife(fids[name]), _jackknife(fids[name] - fids[published])
            row: dict[str, Any] = {"tau": tau, "candidate": name, "nfe": group["nfe"].iloc[0], "n": psnr.n}
            row |= {"heads": psnr.heads, "psnr": psnr.mean, "psnr_low": psnr.low, "psnr_high": psnr.high}
            row |= {"gain": gain.mean, "gain_low": gain.low, "gain_high": gain.high}
            row |= dict(zip(("fid", "fid_low", "fid_high"), fid, strict=True))
            rows.append(row | dict(zip(("more", "more_low", "more_high"), more, strict=True)))
    return pd.DataFrame(rows)


def _jackknife(values: pd.Series) -> tuple[float, float, float]:
    """The value of all heads, and its 95 % interval from leaving out each: no row is drawn twice."""
    whole, without = float(values[""]), values.drop("").to_numpy()
    g = len(without)
    error = np.sqrt((g - 1) / g * ((without - without.mean()) ** 2).sum())
    reach = float(student.ppf(0.975, g - 1) * error)
    return whole, whole - reach, whole + reach


def fewest(table: pd.DataFrame) -> pd.DataFrame:
    """For each tau the published recipe, and the candidate of fewest evaluations by either standard.

    Among candidates of equally many evaluations the one of best PSNR counts. The recipe meets both standards itself.
    """
    rows, published = [], table["candidate"].iloc[0]
    for _, at_tau in table.groupby("tau"):
        base = at_tau[at_tau["candidate"] == published].iloc[0]
        within = at_tau[(at_tau["psnr"] >= base["psnr_low"]) & (at_tau["fid"] <= base["fid_high"])]
        no_worse = at_tau[
            (at_tau["candidate"] == published)
            | ((at_tau["gain_low"] >= -MARGIN_DB) & (at_tau["more_high"] <= MARGIN_FID * base["fid"]))
        ]
        for standard, group in (("as published", base.to_frame().T), ("within", within), ("no worse", no_worse)):
            best = group.sort_values(["nfe", "psnr"], ascending=[True, False]).iloc[0]
            rows.append(best.to_dict() | {"standard": standard, "factor": base["nfe"] / best["nfe"]})
    return pd.DataFrame(rows)


def fewest_table(study: Path) -> pd.DataFrame:
    """The rows of `fewest`, as text."""
    named = {"as published": "as published", "within": "within its intervals", "no worse": "no worse, view by view"}
    rows = []
    for row in fewest(compared(study)).to_dict("records"):
        rows.append(
            {
                "τ": f"{row['tau']:g}",
                "standard": named[row["standard"]],
                "solver, grid, steps": row["candidate"],
                "evaluations": f"{row['nfe']:.0f}",
                "fewer by": f"{row['factor']:.1f}",
                PSNR: f"{row['psnr']:.2f} [{row['psnr_low']:.2f}, {row['psnr_high']:.2f}]",
                "difference [dB]": f"{row['gain']:+.2f} [{row['gain_low']:+.2f}, {row['gain_high']:+.2f}]",
                FID: f"{row['fid']:.4f} [{row['fid_low']:.4f}, {row['fid_high']:.4f}]",
                "n": row["n"],
            }
        )
    return pd.DataFrame(rows)


def evaluations_figure(study: Path, footer: str) -> tuple[str, Figure]:
    """Caption and figure: PSNR above and FID below against evaluations, a line a solver and grid, a column a tau."""
    table = compared(study)
    published = table["candidate"].iloc[0]
    table["family"] = table["candidate"].str.rpartition(", ")[0]
    panels = []
    for ylabel, column in (("PSNR to noise-free truth [dB]", "psnr"), (FID, "fid")):
        for tau, at_tau in table.groupby("tau"):
            curves = []
            for family, group in at_tau.groupby("family", sort=False):
                group = group.sort_values("nfe")
                curves.append(Curve(str(family), list(group["nfe"]), list(group[column])))
            base = at_tau[at_tau["candidate"] == published].iloc[0]
            ends = {f"{published}: interval": base[f"{column}_low"], "its other end": base[f"{column}_high"]}
            good = [0.2, 1.0] if column == "psnr" else [0.0, 0.8]  # what fails altogether may leave the panel
            reach = _limits([*at_tau[column].quantile(good), *ends.values()])
            title = f"τ = {tau:g}" if column == "psnr" else ""
            panels.append(Panel(ylabel, curves, ends, title=title, xlabel="evaluations", x="log", limits=reach))
    n = f"n = {table['n'].iloc[0]} views of {table['heads'].iloc[0]} unseen heads, as many others for the FID"
    title = "How few evaluations are enough? Lines across: the 95 % interval of the recipe as published"
    caption = f"PSNR and FID against evaluations of the network, both legs together, by solver and grid; {n}; {footer}."
    figure = fig_panels(panels, title=title, footer=f"{n}; {footer}", columns=table["tau"].nunique())
    for axis in figure.axes:
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
    return caption, figure


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """The range of values, with a little room."""
    room = 0.05 * (max(values) - min(values))
    return min(values) - room, max(values) + room


def evaluations_findings(study: Path) -> list[dict[str, Any]]:
    """By how much fewer evaluations do at each tau, view by view."""
    every = compared(study)
    table, published = fewest(every), every["candidate"].iloc[0]
    chosen = table[table["standard"] == "no worse"]
    return [
        stated(
            f"evaluations_saved_{row['tau']:g}".replace(".", "_"),
            row["factor"],
            f"evaluations of {published} over those of {row['candidate']}, no worse view by view at τ = {row['tau']:g}",
            n=int(row["n"]),
            figure=FIGURE,
        )
        for row in chosen.to_dict("records")
    ]
