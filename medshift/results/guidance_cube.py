"""04(f): guidance of the encode leg × of the decode leg × tau, against the truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pandas as pd
import torch
from matplotlib.figure import Figure
from safetensors.torch import load_file
from torch import Tensor

from medshift.data.domains import EvaluationSet
from medshift.metrics.physics import eroded
from medshift.results.crossfit import choices, cross_fitted
from medshift.results.findings import measured
from medshift.results.realism import nearest_tau
from medshift.viz.evidence import fig_heatmaps

FIGURE = "04_cube"
LEGS = ["encode", "decode"]


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


def cube_findings(study: Path, views: Path, chosen: float) -> list[dict[str, Any]]:
    """What guidance does at the tau that validation chose, at a high one, with a high scale, and on one leg alone.

    The best scales are those that the other heads choose, so they were not picked on the head they are judged on.
    """
    scores, source, target = _read(study)
    ours = scores[scores["target"] == target]
    best, high, strong = nearest_tau(ours["tau"], chosen), float(ours["tau"].max()), float(ours["encode"].max())

    def gain(tau: float) -> tuple[pd.Series, pd.Series, str]:
        here = ours[ours["tau"] == tau]
        guided = here[(here["encode"] != 1) | (here["decode"] != 1)]
        picked, reference = cross_fitted(guided, LEGS), _cell(scores, target, tau, 1.0, 1.0)
        difference = picked["psnr_clean"].to_numpy() - reference["psnr_clean"].to_numpy()
        return pd.Series(difference), reference["head"], choices(guided, LEGS)

    at_best, heads, which = gain(best)
    at_high, heads_high, which_high = gain(high)
    guided, reference = _cell(scores, target, best, strong, strong), _cell(scores, target, best, 1.0, 1.0)
    equal, one = _cell(scores, source, high, strong, strong), _cell(scores, source, high, 1.0, strong)
    sharp = guided["high_pass"].to_numpy() / guided["high_pass_target"].to_numpy()
    loss = guided["psnr_clean"].to_numpy() - reference["psnr_clean"].to_numpy()
    unequal = one["psnr_source"].to_numpy() - equal["psnr_source"].to_numpy()
    return [
        measured("cube_best_w", at_best, heads, f"PSNR of the best guidance by the other heads, {which}, minus none, "
                 f"τ = {best:g}, chosen on validation", unit="dB", figure=FIGURE),
        measured("cube_over_tau", at_high, heads_high, "PSNR of the best guidance by the other heads, "
                 f"{which_high}, minus none at an over-large τ = {high:g}", unit="dB", figure=FIGURE),
        measured("guidance_high_psnr", loss, reference["head"], f"PSNR at w = {strong:g} on both legs minus w = 1, "
                 f"τ = {best:g}", unit="dB", figure=FIGURE),
        measured("guidance_high_pass", sharp, guided["head"], "high-pass contrast, noise and edges alike, over that of "
                 f"the target's exposure at w = {strong:g}, τ = {best:g}", figure=FIGURE, null=1.0),
        measured("guidance_one_leg_aa", unequal, one["head"], "A → A: PSNR to the source with the "
                 f"decode leg alone at w = {strong:g} minus both legs, τ = {high:g}", unit="dB", figure=FIGURE),
        _edge_finding(study, views, best, strong),
    ]  # fmt: skip


def edge_contrast(image: Tensor, truth: Tensor, mask: Tensor, share: float = 0.05) -> Tensor:
    """Contrast (N,) of the truth's edges in an image, 1 for the truth's own: <∇image, ∇truth> / <∇truth, ∇truth>.

    Over the pixels of the open field with the steepest ``share`` of the truth's gradients. Linear in the image, so its
    noise averages out, which a standard deviation of the high-pass part does not allow. Above 1 edges are sharper or
    stronger than they should be.

    Args:
        image: (N,1,H,W).
        truth: (N,1,H,W), free of noise.
        mask: True in the open field (N,1,H,W).
        share: of the open pixels that count as edges.
    """
    slopes = [torch.stack(torch.gradient(x.double(), dim=(-2, -1))) for x in (image, truth)]
    steep = slopes[1].square().sum(0).sqrt() * eroded(mask, 1)
    level = torch.stack([torch.quantile(s[m], 1 - share) for s, m in zip(steep, mask, strict=True)])
    edges = steep >= level[:, None, None, None]
    shown, true = ((slopes[k] * slopes[1]).sum(0) * edges for k in (0, 1))
    return shown.flatten(1).sum(1) / true.flatten(1).sum(1)


def _edge_finding(study: Path, views: Path, tau: float, strong: float) -> dict[str, Any]:
    """Contrast of the truth's edges with strong guidance over that without, on the views whose images are kept."""
    scores, source, target = _read(study)
    images = load_file(study / "images.safetensors")
    names = [f"{target}/{tau:g}/{w:g}/{w:g}" for w in (strong, 1.0)]
    some = EvaluationSet(views, str(scores["role"].iloc[0]), limit=len(images[names[0]]))
    truth, mask = some.clean(target), some.open_field
    guided, plain = (edge_contrast(images[name].float(), truth, mask).numpy() for name in names)
    text = f"contrast of the truth's edges at w = {strong:g} over that at w = 1, τ = {tau:g}, {source} to {target}"
    return measured("guidance_edges", guided / plain, some.table["head"], text, figure=FIGURE, null=1.0)
