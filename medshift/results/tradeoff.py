"""What 04_tau_tradeoff draws: headroom, every method's scores, the curves in tau, panels and spectra."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from safetensors.torch import load_file
from scipy.stats import ttest_ind
from torch import Tensor

from medshift.data.domains import EvaluationSet
from medshift.data.views import FIELD_OF_VIEW
from medshift.evaluate import FAILURE_DB, TWIN, headroom, summary
from medshift.metrics.physics import radial_power_spectrum
from medshift.results.findings import ratio_over_heads, stated
from medshift.results.realism import nearest_tau
from medshift.stages.sweep import MEDSHIFT, load_sweep
from medshift.tradeoff import HEUN, PUBLISHED, spread_over_views
from medshift.viz.evidence import Curve, Panel, fig_panels
from medshift.viz.images import fig_grid
from medshift.viz.tradeoff import fig_tradeoff


def _read(study: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(study / f"{name}.csv", keep_default_na=False)


def headline_table(study: Path) -> pd.DataFrame:
    """Headroom by pair, tier and solver, at the tau chosen on validation heads."""
    floors, rows = _read(study, "floors"), []
    for (source, target, solver, role), method in _read(study, "headline").groupby(
        ["source", "target", "solver", "role"], sort=False
    ):
        chosen = floors[(floors["source"] == source) & (floors["role"] == role)]
        interval, best = headroom(method, chosen)
        means = chosen.groupby("method")["psnr_clean"].mean()
        rows.append(
            {
                "pair": f"{source} → {target}",
                "tier": role,
                "solver": solver,
                "τ": f"{method['tau'].iloc[0]:g}",
                "PSNR [dB]": method["psnr_clean"].mean(),
                "best floor": f"{best}, {means[best]:.2f} dB",
                "noise twin [dB]": means[TWIN],
                "headroom [95 %]": str(interval),
                "views < 20 dB": float((method["psnr_clean"] < FAILURE_DB).mean()),
                "high-pass / target": float(method["high_pass"].mean() / method["high_pass_target"].mean()),
                "n": len(method),
                "heads": method["head"].nunique(),
            }
        )
    return pd.DataFrame(rows)


def methods_table(study: Path) -> pd.DataFrame:
    """Every method's PSNR and SSIM to the noise-free truth, with intervals, by pair and tier."""
    headline = _read(study, "headline")
    headline["method"] = headline["method"] + ", " + headline["solver"] + ", τ=" + headline["tau"].map("{:g}".format)
    table = summary(pd.concat([headline, _read(study, "floors")]), ["source", "target", "role", "method"])
    for metric, digits in (("psnr_clean", 2), ("ssim_clean", 3)):
        columns = (table[metric], table[f"{metric}_low"], table[f"{metric}_high"])
        table[metric] = [f"{m:.{digits}f} [{a:.{digits}f}, {b:.{digits}f}]" for m, a, b in zip(*columns, strict=True)]
    kept = ["source", "target", "role", "method", "psnr_clean", "ssim_clean", "below_20_db", "high_pass_ratio", "n"]
    names = {"role": "tier", "psnr_clean": "PSNR [dB]", "ssim_clean": "SSIM", "below_20_db": "views < 20 dB"}
    return table[kept].rename(columns={**names, "high_pass_ratio": "high-pass / target"})


def tradeoff_figures(study: Path, footer: str) -> Iterator[tuple[str, str, Figure]]:
    """Name, caption and figure of the trade-off on every tier, for every pair; on a user's folders, one figure."""
    sweep = _read(study, "sweep")
    if "role" not in sweep:
        table, pair = spread_over_views(sweep), f"{sweep['source'].iloc[0]} → {sweep['target'].iloc[0]}"
        note = f"n = {sweep['view'].nunique()} test images; shaded: 95 % over images; {footer}"
        yield "tradeoff", pair, fig_tradeoff(table, pd.DataFrame({"method": []}), title=pair, footer=note)
        return
    chosen = json.loads((study / "chosen.json").read_text())
    floors = _read(study, "floors")
    for (source, target, role), rows in sweep.groupby(["source", "target", "role"], sort=False):
        lines = floors[(floors["source"] == source) & (floors["role"] == role)]
        # Both studies take the first views of a role; on the same ones tau = 1 and doing nothing agree.
        here = summary(lines[lines["view"].isin(rows["view"].unique())], ["method"])
        table = summary(rows, ["solver", "tau"])
        tau = chosen[f"{source} > {target} | {HEUN}"]
        n, heads = int(table["n"].iloc[0]), int(table["heads"].iloc[0])
        note = f"n = {n} views of {heads} heads, curves and lines; shaded: 95 % over heads; {footer}"
        figure = fig_tradeoff(table, here, title=f"{role}: {source} → {target}", chosen=tau, footer=note)
        caption = f"Agreement with source and truth against τ on {role}, {source} to {target}; {note}."
        yield f"tradeoff_{role}_{source}", caption, figure


def panel_figures(study: Path, footer: str) -> Iterator[tuple[str, str, Figure]]:
    """Name, caption and figure of the panels source | tau ... | truth | twin."""
    for path in sorted(study.glob("panels-*.safetensors")):
        source, images = path.stem.removeprefix("panels-"), load_file(path)
        taus = sorted((float(name[4:]), name) for name in images if name.startswith("tau"))
        columns = ["source", *(name for _, name in taus), *(n for n in ("truth", "exposure", "twin") if n in images)]
        titles = [c.replace("tau ", "τ = ") for c in columns]
        titles = [{"truth": "truth,\nnoise-free", "exposure": "truth", "twin": "noise twin"}.get(t, t) for t in titles]
        rows = [[images[c][i] for c in columns] for i in range(len(images["source"]))]
        names = [f"view {i + 1}" for i in range(len(rows))]
        figure = fig_grid(rows, titles, names, footer=footer, side=0.8)
        yield (
            f"panel_{source}",
            f"Translations from {source} against τ, Heun on the refined grid; n = {len(rows)} views of unseen heads.",
            figure,
        )


def spectra_figures(
    study: Path, views: Path, sweeps: Mapping[str, Path], footer: str, size: int
) -> Iterator[tuple[str, str, Figure]]:
    """Name, caption and figure of power spectra over that of the target's exposure, on unseen heads at the chosen tau.

    Args:
        study: stage ``tradeoff``; of it the mean spectrum of the published recipe, whose images are not kept.
        views: stage.
        sweeps: source -> stage of its translations.
        footer: the data.
        size: of an image [pixels].
    """
    means, chosen = _read(study, "spectra"), json.loads((study / "chosen.json").read_text())
    pitch = sum(FIELD_OF_VIEW) / 2 / size
    for key, rows in means.groupby(["source", "target"], sort=False):
        source, target = cast(tuple[str, str], key)
        swept = load_sweep(sweeps[source])[MEDSHIFT]
        tau = nearest_tau(pd.Series(list(swept)), chosen[f"{source} > {target} | {HEUN}"])
        some = EvaluationSet(views, "T2", limit=len(swept[tau]))
        heads, reference = some.table["head"].to_numpy(), some.exposure(target, 0)
        images = {
            f"MedShift, {HEUN}, τ = {tau:g}": swept[tau],
            "another exposure of the target": some.exposure(target, 1),
            "target, noise-free": some.clean(target),
            "source": some.exposure(source, 0),
        }
        curves = [ratio_curve(name, image, reference, heads, pitch) for name, image in images.items()]
        wide = rows.pivot(index="frequency", columns="image", values="power")
        euler = (wide[f"MedShift, {PUBLISHED}"] / wide["truth, one exposure"]).to_numpy()
        curves.append(Curve(f"MedShift, {PUBLISHED}", list(wide.index / pitch), list(euler), dashed=True))
        n = f"n = {len(heads)} views of {len(set(heads))} heads; shaded: 95 % over heads; dashed: a mean, no interval"
        panel = Panel("power over the target's", curves, {"as the target": 1.0},
                      xlabel="spatial frequency at the isocentre [1/mm]", x="linear", log_y=True)  # fmt: skip
        title = f"T2: {source} → {target}"
        caption = (
            "Radial power spectra over that of one exposure of the target, unseen heads, at the τ validation chose, "
            f"{source} to {target}; {n}; {footer}."
        )
        yield f"spectra_{source}", caption, fig_panels([panel], title=title, footer=f"{n}; {footer}", width=4.2)


def ratio_curve(name: str, images: Tensor, reference: Tensor, heads: np.ndarray, pitch: float) -> Curve:
    """Radial power of images (N,1,H,W) over a reference's, geometric mean over heads with its t interval, by [1/mm]."""
    frequency, power = radial_power_spectrum(images)
    _, other = radial_power_spectrum(reference)
    y, low, high = ratio_over_heads(power.double().numpy(), other.double().numpy(), heads)
    return Curve(name, list((frequency / pitch).numpy()), y, low, high)


def tradeoff_findings(study: Path) -> list[dict[str, Any]]:
    """The primary endpoint, and how much easier views of trained heads are than those of unseen ones."""
    headline, floors = _read(study, "headline"), _read(study, "floors")
    source = headline["source"].iloc[0]
    ours = headline[(headline["source"] == source) & (headline["solver"] == HEUN)]
    tiers = {tier: ours[ours["role"] == tier] for tier in ("T0", "T2")}
    interval, best = headroom(tiers["T2"], floors[(floors["source"] == source) & (floors["role"] == "T2")])
    means = [rows.groupby("head")["psnr_clean"].mean() for rows in tiers.values()]
    test = ttest_ind(*means, equal_var=False)
    low, high = test.confidence_interval(0.95)
    gap = float(means[0].mean() - means[1].mean())
    return [
        stated(
            "headroom",
            interval.mean,
            f"(PSNR − best floor) / (noise twin − best floor) on unseen heads; best floor: {best}",
            low=interval.low,
            high=interval.high,
            n=interval.n,
            heads=interval.heads,
            figure="04_headline",
        ),
        stated(
            "tier_gap",
            gap,
            "PSNR on new views of trained heads minus on unseen heads, Welch's interval over heads",
            low=float(low),
            high=float(high),
            n=len(tiers["T0"]) + len(tiers["T2"]),
            heads=int(round(float(test.df))) + 1,
            unit="dB",
            figure="04_headline",
        )
        | {"p": float(test.pvalue)},
    ]


def chosen_tau(study: Path, pair: tuple[str, str]) -> float:
    """The tau that validation heads chose for a pair under the default solver."""
    chosen = json.loads((study / "chosen.json").read_text())
    return float(chosen[f"{pair[0]} > {pair[1]} | {HEUN}"])
