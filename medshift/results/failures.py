"""04(g): the paper's failure signatures made visible, unseen objects, clean sources, and dissimilar domains."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from safetensors.torch import load_file

from medshift.data.domains import INSERTS, EvaluationSet
from medshift.metrics.bootstrap import hierarchical_interval
from medshift.metrics.edges import edge_map
from medshift.metrics.objects import FAINTEST, SMOOTHINGS, contrast_recovery, hotelling_dprime, template_channels
from medshift.results.findings import measured
from medshift.results.realism import highest, scores_of
from medshift.stages.objects import ABSENT, PRESENT
from medshift.stages.sweep import MEDSHIFT, load_sweep
from medshift.viz.evidence import Curve, Panel, fig_panels
from medshift.viz.failures import Failure, fig_failures
from medshift.viz.images import fig_grid

COLLAPSE = "04_collapse"


def failure_figure(
    views: Path, sweep: Path, cube: Path, pair: tuple[str, str], footer: str, view: int = 0
) -> tuple[str, Figure]:
    """Caption and figure: tau too low, right and too high, guidance too high and on one leg, one unseen view."""
    some = EvaluationSet(views, "T2", limit=view + 1)
    swept = load_sweep(sweep)[MEDSHIFT]
    guided = load_file(cube / "images.safetensors")
    source, truth = some.exposure(pair[0], 0)[view:], some.clean(pair[1])[view:]
    mask = some.open_field[view:]
    taus = sorted(swept)
    middle = min(taus, key=lambda tau: abs(tau - 0.02))
    scales = sorted({float(name.split("/")[2]) for name in guided})
    low = min(float(name.split("/")[1]) for name in guided)
    strong = f"{scales[-1]:g}"
    outputs = {
        f"τ = {taus[0]:g}, too low": swept[taus[0]][view],
        f"τ = {middle:g}": swept[middle][view],
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
    caption = f"Failure signatures on an unseen head, {pair[0]} to {pair[1]}, with edges invented and lost; {footer}."
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
    n = f"τ = {tau:g}, n = {pd.read_csv(study / 'scores.csv')['view'].nunique()} views"
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
                "PSNR [dB]": str(hierarchical_interval(group["psnr_clean"].to_numpy(), group)),
                "high-pass / target": group["high_pass"].mean() / group["high_pass_target"].mean(),
                "n": len(group),
            }
        )
    return pd.DataFrame(rows)


def collapse_findings(study: Path) -> list[dict[str, Any]]:
    """How far the latents of clamped and of noise-free sources collapse, and what forward-noised steps bring.

    The start of the forward noise is the best of those tried on the very views, which favours it.
    """
    scores, found = pd.read_csv(study / "scores.csv", keep_default_na=False), []
    tau = scores["tau"].min()
    for version, suffix in (("clamped", "clamped"), ("noise-free", "clean")):
        rows = scores[(scores["version"] == version) & (scores["tau"] == tau)]
        of = {start: group.sort_values("view") for start, group in rows.groupby("start")}
        plain = of.pop(1.0)
        gains = {start: group["psnr_clean"].to_numpy() - plain["psnr_clean"].to_numpy() for start, group in of.items()}
        best = max(gains, key=lambda start: float(gains[start].mean()))
        ratio = plain["z_std"].to_numpy() / plain["noised_std"].to_numpy()
        text = f"std of z_τ over that of noised data, {version} source, τ = {tau:g}"
        found.append(measured(f"collapse_{suffix}", ratio, plain["head"], text, figure=COLLAPSE, null=1.0))
        text = f"PSNR with forward noise down to t = {best:g} minus plain inversion, {version} source, τ = {tau:g}"
        name = "forward_noise_gain" if suffix == "clean" else f"forward_noise_gain_{suffix}"
        found.append(measured(name, gains[best], plain["head"], text, unit="dB", figure=COLLAPSE))
    return found


def object_scores(views: Path, untouched: Path, objects: Path, target: str) -> pd.DataFrame:
    """One row a view of T3: contrast of the object in the translation over the truth's, mean over exposures."""
    images = {name: tensor.float() for name, tensor in load_file(objects / "images.safetensors").items()}
    there, gone = EvaluationSet(views, "T3"), EvaluationSet(untouched, "T3")
    truth = there.clean(target), gone.clean(target)
    mask = there.open_field & gone.open_field
    shares = [
        contrast_recovery(present, absent, *truth, mask)
        for present, absent in zip(images[PRESENT], images[ABSENT], strict=True)
    ]
    table = there.table[["head", "region", "insert"]].assign(view=range(len(there)))
    return table.assign(recovery=torch.stack(shares).nanmean(dim=0).numpy())


def object_table(views: Path, untouched: Path, objects: Path, target: str) -> pd.DataFrame:
    """By kind of object: contrast recovery, and d' of the Hotelling observer in translations and in the truth."""
    scores = object_scores(views, untouched, objects, target)
    rows = []
    for kind in (*INSERTS, "all"):
        here = scores if kind == "all" else scores[scores["insert"] == kind]
        here = here[here["recovery"].notna()]
        if len(here):
            # One head gives no interval, and says so by giving none.
            several = here["head"].nunique() > 1
            found = hierarchical_interval(here["recovery"].to_numpy(), here) if several else here["recovery"].mean()
            text = str(found) if several else f"{found:.2f}"
            low, high = here["recovery"].min(), here["recovery"].max()
            rows.append({"object": kind, "contrast / truth": text, "lowest": low, "highest": high, "n": len(here)})
    return pd.DataFrame(rows)


def object_findings(views: Path, untouched: Path, objects: Path, target: str) -> list[dict[str, Any]]:
    """Contrast of objects that no training head has, over the truth's."""
    scores = object_scores(views, untouched, objects, target)
    text = "contrast of unseen objects in translations over the truth's, 1 is right"
    return [measured("insert_contrast", scores["recovery"], scores["head"], text, figure="04_objects", null=1.0)]


def object_figure(
    views: Path, untouched: Path, objects: Path, pair: tuple[str, str], footer: str
) -> tuple[str, Figure]:
    """Caption and figure: one view of each kind, and what the object adds to source, truth and translation."""
    images = load_file(objects / "images.safetensors")
    there, gone = EvaluationSet(views, "T3"), EvaluationSet(untouched, "T3")
    scores = object_scores(views, untouched, objects, pair[1])
    rows, names = [], []
    for kind in INSERTS:
        here = scores[(scores["insert"] == kind) & scores["recovery"].notna()]
        if not len(here):
            continue
        i = int(here["view"].iloc[0])
        mean = (images[PRESENT].float() - images[ABSENT].float()).mean(dim=0)
        rows.append(
            [
                there.exposure(pair[0], 0)[i],
                images[PRESENT][0, i].float(),
                there.clean(pair[1])[i],
                (there.clean(pair[0]) - gone.clean(pair[0]))[i] * 2,
                mean[i] * 2,
                (there.clean(pair[1]) - gone.clean(pair[1]))[i] * 2,
            ]
        )
        names.append(f"{kind}\n× {here['recovery'].iloc[0]:.2f}")
    titles = [
        "source",
        "translation",
        "truth",
        "object in\nsource × 2",
        "object in\ntranslation × 2",
        "object in\ntruth × 2",
    ]
    figure = fig_grid(rows, titles, names, footer=footer)
    return f"Objects no training head has: what each adds to source, translation and truth; {footer}.", figure


def mismatch_findings(judged: Mapping[float, Path]) -> list[dict[str, Any]]:
    """Training on domains that share no pose against training on the same number of views that share all."""
    best = {share: _best(folder) for share, folder in judged.items()}
    tau = highest(best[0.0].groupby("tau")["psnr_clean"].mean())
    rows = {share: scores[scores["tau"] == tau].sort_values("view") for share, scores in best.items()}
    difference = rows[1.0]["psnr_clean"].to_numpy() - rows[0.0]["psnr_clean"].to_numpy()
    text = f"PSNR after training on domains without a common pose minus on domains with one mix, τ = {tau:g}"
    return [measured("mismatch_tv", difference, rows[0.0]["head"], text, unit="dB", figure="04_mismatch")]


def _best(folder: Path) -> pd.DataFrame:
    scores = scores_of(folder)
    return scores[scores["method"] == MEDSHIFT]


def mismatch_figure(
    judged: Mapping[float, Path], sweeps: Mapping[float, Path], views: Path, pair: tuple[str, str], footer: str
) -> list[tuple[str, str, Figure]]:
    """Name, caption and figure: PSNR against tau, and images, by total variation between the domains' poses."""
    curves = []
    for share, folder in judged.items():
        scores = _best(folder)
        taus = sorted(scores["tau"].unique())
        intervals = [hierarchical_interval(g["psnr_clean"].to_numpy(), g) for _, g in scores.groupby("tau")]
        name = f"total variation of poses {share:g}"
        curves.append(
            Curve(name, taus, [i.mean for i in intervals], [i.low for i in intervals], [i.high for i in intervals])
        )
    n = f"n = {scores['view'].nunique()} views of {scores['head'].nunique()} heads, 95 % intervals"
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


def dprime_table(views: Path, untouched: Path, objects: Path, target: str) -> pd.DataFrame:
    """d' of each object for a channelised Hotelling observer, in translations and in as many exposures of the truth."""
    images = {name: tensor.float() for name, tensor in load_file(objects / "images.safetensors").items()}
    there, gone = EvaluationSet(views, "T3"), EvaluationSet(untouched, "T3")
    # Views with and without the object share their seeds, and so the noise of an exposure: the observer, who assumes
    # independent noise, gets the first half of the exposures with the object and the second half without.
    half = len(images[PRESENT]) // 2
    truth = {
        PRESENT: torch.stack([there.exposure(target, k) for k in range(half)]),
        ABSENT: torch.stack([gone.exposure(target, half + k) for k in range(half)]),
    }
    translated = {PRESENT: images[PRESENT][:half], ABSENT: images[ABSENT][half : 2 * half]}
    template = there.clean(target) - gone.clean(target)
    seen = (template * there.open_field).abs().flatten(1).amax(dim=1) > FAINTEST
    rows = []
    for kind in INSERTS:
        index = np.flatnonzero((there.table["insert"] == kind).to_numpy() & seen.numpy())
        row: dict[str, Any] = {"object": kind, "views": len(index), "exposures": half}
        if len(index) * (2 * half - 2) >= len(SMOOTHINGS) + 2:  # what the observer's covariance needs
            channels = template_channels(template[index], there.open_field[index])
            for name, some in (("truth", truth), ("translation", translated)):
                found = hotelling_dprime(some[PRESENT][:, index], some[ABSENT][:, index], channels)
                squared = float((found * found.abs()).mean())  # d' of a noisy estimate averages as its signed square
                row[f"d' in {name}"] = np.sign(squared) * abs(squared) ** 0.5
            row["ratio"] = row["d' in translation"] / row["d' in truth"]
        rows.append(row)
    return pd.DataFrame(rows)
