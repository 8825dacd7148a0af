"""04(a): solver × grid × tau at equal evaluations, and the noise each keeps beside what the closed form says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from medshift.data.domains import EvaluationSet
from medshift.metrics.intervals import hierarchical_interval
from medshift.metrics.manifold import latent_spectrum
from medshift.results.findings import measured, stated
from medshift.stages.codec import open_codec
from medshift.theory import mode_retention
from medshift.tradeoff import HEUN, PUBLISHED
from medshift.viz.evidence import Curve, Panel, fig_panels

AS_PUBLISHED = "Euler, uniform, 50, as published"
FIGURE = "04_solvers"


def _means(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """Mean and interval of a column by solver and tau."""
    rows = []
    for (solver, tau), group in table.groupby(["solver", "tau"], sort=False):
        interval = hierarchical_interval(group[column].to_numpy(), group)
        row = {"solver": solver, "tau": tau, "mean": interval.mean, "low": interval.low, "high": interval.high}
        rows.append(row | {"nfe": int(group["nfe"].iloc[0]), "n": interval.n, "heads": interval.heads})
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class NoiseSpectrum:
    """Radial power of a domain's latents and of their noise, and how many modes each radius has, all (K,)."""

    data: Tensor
    noise: Tensor
    modes: Tensor


def noise_spectrum(views: Path, codec: Path, domain: str, n: int = 24) -> NoiseSpectrum:
    """The spectra of the first ``n`` views of T2; noise is what differs between two exposures."""
    some, encode = EvaluationSet(views, "T2", limit=n), open_codec(codec).encode
    first, second = encode(some.exposure(domain, 0)), encode(some.exposure(domain, 1))
    powers = [latent_spectrum(z)[1].mean(dim=0) for z in (first, (first - second) / 2**0.5)]
    h, w = first.shape[-2:]
    radius = torch.hypot(torch.arange(h)[:, None] / h, torch.arange(w)[None, :] / w) * min(h, w)
    modes = torch.bincount(radius.round().long().flatten(), minlength=min(h, w))[: min(h, w)]
    return NoiseSpectrum(powers[0], powers[1], modes.double())


def predicted_retention(spectrum: NoiseSpectrum, tau: float, **solver: Any) -> tuple[float, float]:
    """Share of the noise that a solver keeps in the closed form, of modes of the noise alone and of the whole data.

    A mode is multiplied by the retention of its spread, and the noise in it with it; the root of the noise power kept
    over all modes. Given the anatomy around it, a mode varies by more than its noise and by less than the data do
    without it, so what is measured should lie between the two.
    """
    weight = spectrum.noise * spectrum.modes
    found = []
    for power in (spectrum.noise, spectrum.data):
        gain = mode_retention(power.sqrt(), tau, **solver)
        found.append(float(((gain**2 * weight).sum() / weight.sum()).sqrt()))
    return found[0], found[1]


def solver_table(study: Path, solvers: Mapping[str, Mapping[str, Any]], spectrum: NoiseSpectrum) -> pd.DataFrame:
    """PSNR, SSIM, the noise kept and its closed form, by tau and solver."""
    scores = pd.read_csv(study / "scores.csv", keep_default_na=False)
    kept = _means(pd.read_csv(study / "retention.csv", keep_default_na=False), "retention")
    rows = []
    psnr, ssim = _means(scores, "psnr_clean"), _means(scores, "ssim_clean")
    for p, s in zip(psnr.to_dict("records"), ssim.to_dict("records"), strict=True):
        here = (kept["solver"] == p["solver"]) & (kept["tau"] == p["tau"])
        noise, said = kept[here].iloc[0], predicted_retention(spectrum, p["tau"], **solvers[p["solver"]])
        rows.append(
            {
                "τ": f"{p['tau']:g}",
                "solver": p["solver"],
                "evaluations": p["nfe"],
                "PSNR [dB]": f"{p['mean']:.2f} [{p['low']:.2f}, {p['high']:.2f}]",
                "SSIM to truth": f"{s['mean']:.3f} [{s['low']:.3f}, {s['high']:.3f}]",
                "noise kept A→A": f"{noise['mean']:.3f} [{noise['low']:.3f}, {noise['high']:.3f}]",
                "closed form, noise alone to whole data": f"{said[0]:.3f} to {said[1]:.3f}",
                "n": p["n"],
            }
        )
    return pd.DataFrame(rows).sort_values("τ", kind="stable", key=lambda c: c.astype(float))


def solver_figure(
    study: Path, solvers: Mapping[str, Mapping[str, Any]], spectrum: NoiseSpectrum, footer: str
) -> tuple[str, Figure]:
    """Caption and figure: PSNR to the truth, noise kept, and noise kept in the closed form, against tau."""
    scores = pd.read_csv(study / "scores.csv", keep_default_na=False)
    psnr = _means(scores, "psnr_clean")
    kept = _means(pd.read_csv(study / "retention.csv", keep_default_na=False), "retention")
    said = [predicted_retention(spectrum, row["tau"], **solvers[row["solver"]]) for row in kept.to_dict("records")]
    theory = kept[["solver", "tau"]].assign(low=[s[0] for s in said], high=[s[1] for s in said])
    theory["predicted"] = theory[["low", "high"]].mean(axis=1)

    def curves(table: pd.DataFrame, column: str) -> list[Curve]:
        made = []
        for solver, group in table.groupby("solver", sort=False):
            group = group.sort_values("tau")
            ends = list(group["low"]), list(group["high"])
            made.append(Curve(str(solver), list(group["tau"]), list(group[column]), *ends))
        return made

    # One scale for both, so that they can be compared by eye; bands may leave it.
    every = [*kept["mean"], *theory["low"], *theory["high"]]
    limits = (min(every) - 0.05, min(max(every), 1.6) + 0.05)
    panels = [
        Panel("PSNR to noise-free truth [dB]", curves(psnr, "mean"), title="A → B"),
        Panel("share of noise kept", curves(kept, "mean"), {"exact": 1.0}, title="A → A, measured", limits=limits),
        Panel(
            "share of noise kept",
            curves(theory, "predicted"),
            {"exact": 1.0},
            title="A → A, closed form: a bracket",
            limits=limits,
        ),
    ]
    views = f"A → B: n = {psnr['n'].iloc[0]} views, A → A: {kept['n'].iloc[0]}"
    n = f"{views}, of {psnr['heads'].iloc[0]} heads; shaded: 95 % over heads, of the closed form its bracket"
    caption = (
        "PSNR and noise kept by solver, grid of times and τ, with the closed form for Gaussian modes; evaluations of "
        f"the network, both legs together, in the order of the legend: {evaluations(psnr)}; {n}; {footer}."
    )
    title = "What is the solver's doing? (evaluations are equal at low τ only, see the table)"
    return caption, fig_panels(panels, title=title, footer=f"{n}; {footer}")


def evaluations(psnr: pd.DataFrame) -> str:
    """Evaluations of every solver by tau as text, in the table's order of solvers."""
    parts = []
    for tau, group in psnr.groupby("tau"):
        parts.append(f"τ = {tau:g}: {', '.join(map(str, group['nfe']))}")
    return "; ".join(parts)


def solver_findings(
    study: Path, solvers: Mapping[str, Mapping[str, Any]], spectrum: NoiseSpectrum, tradeoff: Path
) -> list[dict[str, Any]]:
    """The gap of the published recipe to Heun at the tau that validation chose for each, and the noise Euler keeps.

    Of the noise two findings for every tau, ``euler_noise_<tau>`` and ``euler_noise_predicted_<tau>``, the decimal
    point written as an underscore.
    """
    headline = pd.read_csv(tradeoff / "headline.csv", keep_default_na=False)
    headline = headline[(headline["role"] == "T2") & (headline["source"] == headline["source"].iloc[0])]
    heun, euler = (headline[headline["solver"] == name].sort_values("view") for name in (HEUN, PUBLISHED))
    gap = heun["psnr_clean"].to_numpy() - euler["psnr_clean"].to_numpy()
    gap_text = "PSNR of Heun on the refined grid minus Euler 50, each at its own τ from validation"
    found = [measured("solver_gap", gap, heun["head"], gap_text, unit="dB", figure="04_headline")]
    kept = pd.read_csv(study / "retention.csv", keep_default_na=False)
    for tau, rows in kept[kept["solver"] == AS_PUBLISHED].groupby("tau"):
        name = f"{tau:g}".replace(".", "_")
        low, high = predicted_retention(spectrum, float(str(tau)), **solvers[AS_PUBLISHED])
        text = f"share of the noise that Euler 50 keeps from A to A at τ = {tau:g}"
        said = f"the same in the closed form at τ = {tau:g}; ends: modes of the noise alone and of the whole data"
        found.append(measured(f"euler_noise_{name}", rows["retention"], rows["head"], text, figure=FIGURE, null=1.0))
        found.append(
            stated(
                f"euler_noise_predicted_{name}",
                (low + high) / 2,
                said,
                low=min(low, high),
                high=max(low, high),
                n=len(rows),
                figure=FIGURE,
            )  # fmt: skip
        )
    return found
