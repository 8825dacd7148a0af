"""04(g): the paper's failure signatures made visible, clean sources, and dissimilar domains."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from safetensors.torch import load_file

from medshift.data.domains import EvaluationSet
from medshift.metrics.edges import edge_map
from medshift.results.crossfit import choices, cross_fitted
from medshift.results.findings import measured, over_heads
from medshift.results.realism import nearest_tau, scores_of
from medshift.stages.sweep import MEDSHIFT, load_sweep
from medshift.viz.evidence import Curve, Panel, fig_panels
from medshift.viz.failures import Failure, fig_failures
from medshift.viz.images import fig_grid

COLLAPSE = "04_collapse"


def failure_figure(
    views: Path, sweep: Path, cube: Path, pair: tuple[str, str], chosen: float, footer: str, view: int = 0
) -> tuple[str, Figure]:
    """Caption and figure: tau too low, as validation chose it, too high, guidance too high and on one leg, one view."""
    some = EvaluationSet(views, "T2", limit=view + 1)
    swept = load_sweep(sweep)[MEDSHIFT]
    guided = load_file(cube / "images.safetensors")
    source, truth = some.exposure(pair[0], 0)[view:], some.clean(pair[1])[view:]
    mask = some.open_field[view:]
    taus = sorted(swept)
    middle = nearest_tau(pd.Series(taus), chosen)
    scales = sorted({float(name.split("/")[2]) for name in guided})
    low = nearest_tau(pd.Series([float(name.split("/")[1]) for name in guided]), chosen)
    strong = f"{scales[-1]:g}"
    outputs = {
        f"τ = {taus[0]:g}, too low": swept[taus[0]][view],
        f"τ = {middle:g}, chosen": swept[middle][view],
        f"τ = {taus[-1]:g}, too high": swept[taus[-1]][view],
        f"w = {strong}, τ = {low:g}": guided[f"{pair[1]}/{low:g}/{strong}/{strong}"][view].float(),
        f"w = {strong}, decode only": guided[f"{pair[1]}/{low:g}/1/{strong}"][view].float(),
        f"w = {strong}, encode only": guided[f"{pair[1]}/{low:g}/{strong}/1"][view].float(),
    }
    rows = []
    for name, output in outputs.items():
        edges = edge_map(output[None], truth, mask)
        note = f"{int(edges.invented[0])} invented, {int(edges.lost[0])} lost of {int(edges.edges[0])}"
        rows.append(Failure(name, source[0], output, truth[0], edges, note))
    caption = (
        f"Failure signatures on one view of an unseen head, {pair[0]} to {pair[1]}, with edges invented and lost; "
        f"n = 1, an example; {footer}."
    )
    return caption, fig_failures(rows, title=f"Failure signatures, unseen head: {pair[0]} → {pair[1]}", footer=footer)


def collapse_figure(study: Path, footer: str) -> tuple[str, Figure]:
    """Caption and figure: spectrum of z_tau over what merely noised data have, by source and start of the inversion."""
    spectra = pd.read_csv(study / "spectra.csv")
    tau = spectra["tau"].min()
    panels = []
    for start, rows in spectra[spectra["tau"] == tau].groupby("start", sort=False):
        curves = []
        for version, group in rows.groupby("version", sort=False):
            both = group.pivot(index="frequency", columns="kind", values="power")
            ratio = (both["inverted"] / both["noised"]).iloc[1:]  # at 0 stand the means, one number a view
            curves.append(Curve(str(version), list(ratio.index), list(ratio)))
        title = "plain inversion" if start == 1 else f"forward noise down to t = {start:g}"
        panels.append(
            Panel(
                "power of z_τ over noised data's",
                curves,
                {"as theory says": 1.0},
                title=title,
                xlabel="spatial frequency [cycles/latent pixel]",
                x="linear",
                limits=(0.0, 1.3),
            )
        )
    scores = pd.read_csv(study / "scores.csv")
    n = f"τ = {tau:g}, n = {scores['view'].nunique()} views of {scores['head'].nunique()} heads, means without interval"
    caption = f"Radial power of inverted latents over that of merely noised ones; {n}; {footer}."
    return caption, fig_panels(panels, title="Clean and clamped sources collapse the latent", footer=f"{n}; {footer}")


def collapse_table(study: Path) -> pd.DataFrame:
    """By source, start and tau: spread of z_tau, PSNR and high-pass noise of what comes out."""
    scores, spectra = pd.read_csv(study / "scores.csv"), pd.read_csv(study / "spectra.csv")
    rows = []
    for (version, start, tau), group in scores.groupby(["version", "start", "tau"], sort=False):
        here = spectra[(spectra["version"] == version) & (spectra["start"] == start) & (spectra["tau"] == tau)]
        std = here.groupby("kind")["std"].first()
        rows.append(
            {
                "source": version,
                "inverted from t": f"{start:g}",
                "τ": f"{tau:g}",
                "std of z_τ": std["inverted"],
                "std of noised data": std["noised"],
                "PSNR [dB]": str(over_heads(group["psnr_clean"], group["head"])),
                "high-pass / target": group["high_pass"].mean() / group["high_pass_target"].mean(),
                "n": len(group),
            }
        )
    return pd.DataFrame(rows)


def collapse_findings(study: Path) -> list[dict[str, Any]]:
    """How far the latents of clamped and of noise-free sources collapse, and what forward-noised steps bring.

    The start of the forward noise is, for every head, the best of those tried on the other heads.
    """
    scores, found = pd.read_csv(study / "scores.csv", keep_default_na=False), []
    tau = scores["tau"].min()
    for version, suffix in (("clamped", "clamped"), ("noise-free", "clean")):
        rows = scores[(scores["version"] == version) & (scores["tau"] == tau)]
        plain, noised = rows[rows["start"] == 1.0].sort_values("view"), rows[rows["start"] < 1.0]
        picked = cross_fitted(noised, ["start"])
        gain = picked["psnr_clean"].to_numpy() - plain["psnr_clean"].to_numpy()
        ratio = plain["z_std"].to_numpy() / plain["noised_std"].to_numpy()
        text = f"std of z_τ over that of noised data, {version} source, τ = {tau:g}"
        found.append(measured(f"collapse_{suffix}", ratio, plain["head"], text, figure=COLLAPSE, null=1.0))
        starts = f"t = {choices(noised, ['start'])}, chosen by the other heads"
        text = f"PSNR with forward noise down to {starts}, minus plain inversion, {version} source, τ = {tau:g}"
        name = "forward_noise_gain" if suffix == "clean" else f"forward_noise_gain_{suffix}"
        found.append(measured(name, gain, plain["head"], text, unit="dB", figure=COLLAPSE))
    return found


def mismatch_findings(judged: Mapping[float, Path]) -> list[dict[str, Any]]:
    """Training on domains that share no pose against training on the same number of views that share all.

    Each network is judged, on every head, at the tau that the other heads choose for it.
    """
    rows, taus = {}, {}
    for share, folder in judged.items():
        scores = _ours(folder)
        rows[share], taus[share] = cross_fitted(scores, ["tau"]), choices(scores, ["tau"])
    difference = rows[1.0]["psnr_clean"].to_numpy() - rows[0.0]["psnr_clean"].to_numpy()
    text = (
        "PSNR after training on domains without a common pose minus on domains with one mix, each at the τ its other "
        f"heads choose ({taus[1.0]} and {taus[0.0]})"
    )
    return [measured("mismatch_tv", difference, rows[0.0]["head"], text, unit="dB", figure="04_mismatch")]


def _ours(folder: Path) -> pd.DataFrame:
    scores = scores_of(folder)
    return scores[scores["method"] == MEDSHIFT]


def mismatch_figure(
    judged: Mapping[float, Path], sweeps: Mapping[float, Path], views: Path, pair: tuple[str, str], footer: str
) -> list[tuple[str, str, Figure]]:
    """Name, caption and figure: PSNR against tau, and images, by total variation between the domains' poses."""
    curves = []
    for share, folder in judged.items():
        scores = _ours(folder)
        taus = sorted(scores["tau"].unique())
        intervals = [over_heads(g["psnr_clean"], g["head"]) for _, g in scores.groupby("tau")]
        name = f"total variation of poses {share:g}"
        curves.append(
            Curve(name, taus, [i.mean for i in intervals], [i.low for i in intervals], [i.high for i in intervals])
        )
    n = f"n = {scores['view'].nunique()} views of {scores['head'].nunique()} heads; shaded: 95 % over heads"
    lines = fig_panels(
        [Panel("PSNR to noise-free truth [dB]", curves)],
        title="Training on dissimilar domains",
        footer=f"{n}; {footer}",
    )
    some = EvaluationSet(views, "T2", limit=4)
    swept = {share: load_sweep(folder)[MEDSHIFT] for share, folder in sweeps.items()}
    taus = sorted(next(iter(swept.values())))
    shown = [taus[0], min(taus, key=lambda tau: abs(tau - 0.07)), min(taus, key=lambda tau: abs(tau - 0.3))]
    rows = [
        [
            some.exposure(pair[0], 0)[i],
            *(swept[share][tau][i] for tau in shown for share in swept),
            some.clean(pair[1])[i],
        ]
        for i in range(len(some))
    ]
    titles = ["source", *(f"τ = {tau:g}\nTV {share:g}" for tau in shown for share in swept), "truth"]
    images = fig_grid(rows, titles, [f"view {i + 1}" for i in range(len(rows))], footer=footer, side=0.8)
    caption = f"PSNR against τ after training on domains that share all (0) or no (1) directions; {n}; {footer}."
    return [
        ("mismatch", caption, lines),
        ("mismatch_images", f"The same, as images: TV is the total variation of the poses; {footer}.", images),
    ]
