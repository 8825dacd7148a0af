"""04(f): guidance of the encode leg × of the decode leg × tau, against the truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pandas as pd
from matplotlib.figure import Figure

from medshift.results.findings import measured
from medshift.viz.evidence import fig_heatmaps

FIGURE = "04_cube"


def _cell(scores: pd.DataFrame, target: str, tau: float, encode: float, decode: float) -> pd.DataFrame:
    rows = scores[(scores["target"] == target) & (scores["tau"] == tau)]
    return rows[(rows["encode"] == encode) & (rows["decode"] == decode)].sort_values("view")


def _read(study: Path) -> tuple[pd.DataFrame, str, str]:
    """Scores, source and target."""
    scores = pd.read_csv(study / "scores.csv", keep_default_na=False)
    source = str(scores["source"].iloc[0])
    return scores, source, next(t for t in scores["target"].unique() if t != source)


def cube_figure(study: Path, footer: str) -> tuple[str, Figure]:
    """Caption and figure: what guidance of each leg changes in PSNR to the truth, one map a tau."""
    scores, _, target = _read(study)
    rows = scores[scores["target"] == target]
    maps = {}
    for tau, group in rows.groupby("tau"):
        means = group.groupby(["encode", "decode"])["psnr_clean"].mean().unstack()
        plain = float(means.to_numpy()[0, 0])  # scales rise from 1
        maps[f"τ = {tau:g}, (1, 1): {plain:.1f} dB"] = means - plain
    n = f"n = {rows['view'].nunique()} views of {rows['head'].nunique()} heads"
    figure = fig_heatmaps(
        maps,
        xlabel="guidance, decode",
        ylabel="guidance, encode",
        unit="PSNR minus that of (1, 1) [dB]",
        title="Guidance of each leg: PSNR to the noise-free truth against that without guidance",
        footer=f"{n}; {footer}",
    )
    return f"PSNR by guidance of the encode and the decode leg at several τ, minus that without; {n}; {footer}.", figure


def cube_table(study: Path) -> pd.DataFrame:
    """Every cell: PSNR and SSIM to the truth, edge noise, and A to A."""
    scores, source, target = _read(study)
    rows = []
    for key, group in scores[scores["target"] == target].groupby(["tau", "encode", "decode"]):
        tau, encode, decode = (float(str(part)) for part in cast(tuple[float, float, float], key))
        same = _cell(scores, source, tau, encode, decode)
        rows.append(
            {
                "τ": f"{tau:g}",
                "encode": f"{encode:g}",
                "decode": f"{decode:g}",
                "PSNR [dB]": group["psnr_clean"].mean(),
                "SSIM": group["ssim_clean"].mean(),
                "high-pass / target": group["high_pass"].mean() / group["high_pass_target"].mean(),
                "PSNR of A → A to its source [dB]": same["psnr_source"].mean(),
                "n": len(group),
            }
        )
    return pd.DataFrame(rows)


def cube_findings(study: Path) -> list[dict[str, Any]]:
    """What guidance does at the best tau, at a high one, with a high scale, and on one leg alone.

    The best scale is picked on the views it is judged on, which favours guidance.
    """
    scores, source, target = _read(study)
    ours = scores[scores["target"] == target]
    plain = ours[(ours["encode"] == 1) & (ours["decode"] == 1)].groupby("tau")["psnr_clean"].mean()
    best, high, strong = float(str(plain.idxmax())), float(ours["tau"].max()), float(ours["encode"].max())

    def gain(tau: float) -> tuple[pd.Series, pd.Series, str]:
        means = ours[ours["tau"] == tau].groupby(["encode", "decode"])["psnr_clean"].mean().drop((1.0, 1.0))
        encode, decode = cast(tuple[float, float], means.idxmax())
        here, reference = _cell(scores, target, tau, encode, decode), _cell(scores, target, tau, 1.0, 1.0)
        difference = here["psnr_clean"].to_numpy() - reference["psnr_clean"].to_numpy()
        return pd.Series(difference), reference["head"], f"({encode:g}, {decode:g})"

    at_best, heads, which = gain(best)
    at_high, heads_high, which_high = gain(high)
    guided, reference = _cell(scores, target, best, strong, strong), _cell(scores, target, best, 1.0, 1.0)
    equal, one = _cell(scores, source, high, strong, strong), _cell(scores, source, high, 1.0, strong)
    sharp = guided["high_pass"].to_numpy() / guided["high_pass_target"].to_numpy()
    loss = guided["psnr_clean"].to_numpy() - reference["psnr_clean"].to_numpy()
    unequal = one["psnr_source"].to_numpy() - equal["psnr_source"].to_numpy()
    return [
        measured("cube_best_w", at_best, heads, f"PSNR of the best guidance, {which}, minus none, τ = {best:g}",
                 unit="dB", figure=FIGURE),
        measured("cube_over_tau", at_high, heads_high,
                 f"PSNR of the best guidance, {which_high}, minus none at an over-large τ = {high:g}",
                 unit="dB", figure=FIGURE),
        measured("guidance_high_psnr", loss, reference["head"], f"PSNR at w = {strong:g} on both legs minus w = 1, "
                 f"τ = {best:g}", unit="dB", figure=FIGURE),
        measured("guidance_high_edges", sharp, guided["head"], "high-pass strength over the truth's "
                 f"at w = {strong:g}, τ = {best:g}", figure=FIGURE, null=1.0),
        measured("guidance_one_leg_aa", unequal, one["head"], "A → A: PSNR to the source with the "
                 f"decode leg alone at w = {strong:g} minus both legs, τ = {high:g}", unit="dB", figure=FIGURE),
    ]  # fmt: skip
