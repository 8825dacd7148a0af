"""What 08_ablations draws: paired differences between runs of a grid, how few steps suffice, what is undertrained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from medshift.metrics.intervals import Interval, hierarchical_interval
from medshift.results.training import validation_history

STILL_MOVES = 0.02  # share of the loss
ENOUGH_DB = 0.1  # a setting suffices when its interval excludes a loss of more than this


def _best(rows: pd.DataFrame, column: str) -> Any:
    return rows.sort_values(column, kind="stable").iloc[-1]


def done(table: pd.DataFrame) -> pd.DataFrame:
    """The finished runs of a grid's table."""
    return table[table["state"] == "done"].reset_index(drop=True)


def failures(table: pd.DataFrame) -> pd.DataFrame:
    """The runs that failed or are missing, with their errors."""
    return table[table["state"] != "done"][["run", "state", "error"]].reset_index(drop=True)


def difference(runs: Path, one: str, other: str, metric: str = "psnr_clean") -> Interval:
    """Mean of ``metric`` of one run minus another's, view by view, with its 95 % interval over heads.

    Args:
        runs: folder of the stages.
        one: folder name of the first run.
        other: of the run it is compared to, on the same views.
        metric: a column of scores.csv.
    """
    a, b = (pd.read_csv(runs / name / "scores.csv", keep_default_na=False) for name in (one, other))
    both = a.merge(b, on=["view", "head", "region"], suffixes=("", "_other"), validate="one_to_one")
    return hierarchical_interval((both[metric] - both[f"{metric}_other"]).to_numpy(), both)


def _enough(runs: Path, rows: pd.DataFrame, reference: Any) -> tuple[Any, Interval]:
    """The run of fewest evaluations that loses less than `ENOUGH_DB` to the reference, and its difference."""
    for _, row in rows.sort_values("nfe").iterrows():
        gap = difference(runs, str(row["key"]), str(reference["key"]))
        if gap.low > -ENOUGH_DB:
            return row, gap
    return reference, difference(runs, str(reference["key"]), str(reference["key"]))


def guidance_table(table: pd.DataFrame, runs: Path) -> pd.DataFrame:
    """For every τ: what guidance costs or gains at the most steps, and how few steps suffice without it."""
    table, rows = done(table), []
    most = table["steps"].max()
    for tau, group in table.groupby("tau"):
        fine = group[group["steps"] == most].set_index("guidance")
        plain = group[group["guidance"] == 1.0]
        few, gap = _enough(runs, plain, _best(plain, "steps"))
        row = {"τ": f"{tau:g}", "PSNR at w = 1 [dB]": _spread(fine.loc[1.0], "psnr_clean")}
        for scale in fine.index.drop(1.0):
            change = difference(runs, str(fine.loc[scale, "key"]), str(fine.loc[1.0, "key"]))
            row[f"w = {scale:g} minus w = 1 [dB]"] = str(change)
        rows.append(row | {"steps that suffice at w = 1": int(few["steps"]), "their loss [dB]": str(gap)})
    return pd.DataFrame(rows)


def _spread(row: Any, metric: str, digits: int = 2) -> str:
    return f"{row[metric]:.{digits}f} [{row[f'{metric}_low']:.{digits}f}, {row[f'{metric}_high']:.{digits}f}]"


def size_table(table: pd.DataFrame, runs: Path, network_of: Callable[[int], Path]) -> pd.DataFrame:
    """Every width at equal images seen, the gap to the profile's size, and what its second half of images brought.

    A width whose loss fell by more than `STILL_MOVES` on every unseen validation head was still learning: it is called
    undertrained, and its rank may change with more, whatever its PSNR says.

    Args:
        table: of the grid ``sizes``.
        runs: folder of the stages.
        network_of: number of a run -> folder of the network it used.
    """
    table = done(table)
    rows = []
    for images in sorted(table["images"].unique().tolist()):
        group = table[table["images"] == images]
        base = group[group["width"] == 1.0].iloc[0]
        for _, row in group.sort_values("width").iterrows():
            half = table[(table["width"] == row["width"]) & (table["images"] == images / 2)]
            loss = _last_losses(network_of(int(row["run"])))
            gain, fall, verdict = "", "", ""
            if len(half):
                gain = str(difference(runs, str(row["key"]), str(half.iloc[0]["key"])))
                ratios = loss / _last_losses(network_of(int(half.iloc[0]["run"]))) - 1
                fall = f"{100 * ratios.mean():.0f} % ({100 * ratios.min():.0f} to {100 * ratios.max():.0f})"
                verdict = "undertrained" if (ratios < -STILL_MOVES).all() else "no longer moves"
            rows.append(
                {
                    "width": f"{row['width']:g}",
                    "parameters": f"{row['parameters'] / 1e6:.2f} M",
                    "images seen": int(images),
                    "loss on unseen heads": f"{loss.mean():.3f}",
                    "PSNR [dB]": _spread(row, "psnr_clean"),
                    "SSIM to truth": _spread(row, "ssim_clean", 3),
                    "minus width 1 [dB]": "" if row["width"] == 1 else str(difference(runs, row["key"], base["key"])),
                    "loss against half the images": fall,
                    "PSNR gain over half the images [dB]": gain,
                    "verdict": verdict,
                }
            )
    return pd.DataFrame(rows)


def _last_losses(network: Path) -> pd.Series:
    """Head -> loss at the last look."""
    looks = validation_history(network)
    return looks[looks["step"] == looks["step"].max()].set_index("head")["loss"]


def size_curves(table: pd.DataFrame, network_of: Callable[[int], Path]) -> pd.DataFrame:
    """Validation losses while learning, by width and budget: mean, least and largest over the validation heads.

    Args:
        table: of the grid ``sizes``.
        network_of: number of a run -> folder of the network it used.
    """
    parts = []
    for _, row in done(table).iterrows():
        looks = validation_history(network_of(int(row["run"])))
        if len(looks):
            spread = looks.groupby("images")["loss"].agg(["mean", "min", "max"]).reset_index()
            parts.append(spread.assign(width=row["width"], budget=int(row["images"])))
    columns = ["images", "mean", "min", "max", "width", "budget"]
    return pd.concat(parts) if parts else pd.DataFrame(columns=columns)


def solver_table(table: pd.DataFrame, runs: Path) -> pd.DataFrame:
    """For every τ, grid and solver: its best, and the fewest evaluations that lose less than 0.1 dB to the best of all.

    A solver that never comes that near has no such number.
    """
    table, rows = done(table), []
    for tau, here in table.groupby("tau"):
        reference = _best(here, "psnr_clean")
        for (grid, solver), group in here.groupby(["grid", "solver"], dropna=False, sort=False):
            best = _best(group, "psnr_clean")
            near, gap = _enough(runs, group, reference)
            reached = str(near["key"]) in set(group["key"])
            rows.append(
                {
                    "τ": f"{tau:g}",
                    "solver": solver,
                    "grid": grid if isinstance(grid, str) else "its own",
                    "best PSNR [dB]": _spread(best, "psnr_clean"),
                    "at evaluations": f"{best['nfe']:g}",
                    "fewest within 0.1 dB of the best of all": f"{near['nfe']:g}" if reached else "none",
                    "difference to it [dB]": str(gap) if reached else "",
                }
            )
    return pd.DataFrame(rows)
