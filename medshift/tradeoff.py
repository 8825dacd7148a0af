"""The study of notebook 04: tau chosen on validation alone, then sweeps and headlines on every tier, to files.

Primary endpoint, declared here: headroom, (PSNR - best floor) / (noise twin - best floor) to the noise-free truth, on
T2 (unseen heads), synthetic-high to real-normal, Heun on the refined grid, w = 1, at the tau that validation heads
chose. Everything else is secondary.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors.torch import save_file
from torch import Tensor

from medshift.data.domains import TIERS, EvaluationSet
from medshift.evaluate import choose_tau, score, score_floors, tau_sweep, translate_taus
from medshift.metrics.physics import radial_power_spectrum
from medshift.metrics.structure import psnr, ssim
from medshift.translate import AS_PUBLISHED, MedShift, Translator

HEUN, PUBLISHED = "Heun, refined", "Euler 50, as published"
SOLVERS: dict[str, Mapping[str, Any]] = {HEUN: {}, PUBLISHED: AS_PUBLISHED}
PAIRS = (("synthetic-high", "real-normal"), ("real-normal", "synthetic-high"))
PANEL_VIEWS = 4


@dataclass(frozen=True)
class Settings:
    """How much the study evaluates; how many views of each role, and the guidance of both legs."""

    taus: Sequence[float]
    views: Mapping[str, int]
    headline: int
    batch: int
    device: str = "cpu"
    guidance: float = 1.0


def tier_solvers(pair: tuple[str, str], tier: str) -> dict[str, Mapping[str, Any]]:
    """The solvers swept: both for the first pair; for the way back both on unseen heads, else the default alone."""
    return SOLVERS if pair == PAIRS[0] or tier == "T2" else {HEUN: SOLVERS[HEUN]}


def study(
    translator: MedShift,
    floors: Sequence[Translator],
    views: Path,
    folder: Path,
    settings: Settings,
    progress: Callable[[float, str], None] = lambda done, note: None,
) -> None:
    """Evaluate and write sweep.csv, headline.csv, floors.csv, chosen.json, spectra.csv and panels.safetensors.

    Args:
        translator: the trained model.
        floors: baselines without a network.
        views: what `domains.render` wrote.
        folder: where the files go.
        settings: how much.
        progress: told the share done and what is being done.
    """
    work = [(pair, role) for pair in PAIRS for role in ("validation", *TIERS)]
    sweeps, headlines, floor_rows, chosen = [], [], [], {}
    for done, (pair, role) in enumerate(work):
        progress(done / len(work), f"{pair[0]} to {pair[1]}, {role}")
        some = EvaluationSet(views, role, limit=settings.views[role])
        solvers = SOLVERS if role == "validation" else tier_solvers(pair, role)
        guided = {name: {**solver, "guidance": settings.guidance} for name, solver in solvers.items()}
        table = tau_sweep(translator, some, *pair, settings.taus, guided, batch=settings.batch, device=settings.device)
        sweeps.append(table)
        if role == "validation":
            for solver in solvers:
                chosen[f"{pair[0]} > {pair[1]} | {solver}"] = choose_tau(table, solver)
        many = EvaluationSet(views, role, limit=settings.headline)
        floor_rows.append(score_floors(floors, many, *pair))
        for solver in tier_solvers(pair, role) if role in TIERS else {}:
            tau = chosen[f"{pair[0]} > {pair[1]} | {solver}"]
            [output] = translate_taus(
                translator,
                many.exposure(pair[0], 0),
                *pair,
                [tau],
                settings.batch,
                device=settings.device,
                guidance=settings.guidance,
                **SOLVERS[solver],
            )
            headlines.append(score(output, many, *pair, method=translator.name, solver=solver, tau=tau))
            if role == "T2":
                _spectra(many, pair, output, solver, folder)
    pd.concat(sweeps).to_csv(folder / "sweep.csv", index=False)
    pd.concat(headlines).to_csv(folder / "headline.csv", index=False)
    pd.concat(floor_rows).to_csv(folder / "floors.csv", index=False)
    _join_spectra(folder)
    (folder / "chosen.json").write_text(json.dumps(chosen, indent=1))
    for pair in PAIRS:
        save_file(panels(translator, views, pair, settings), folder / f"panels-{pair[0]}.safetensors")
    progress(1.0, "done")


def _spectra(views: EvaluationSet, pair: tuple[str, str], output: Tensor, solver: str, folder: Path) -> None:
    """Write the mean radial power spectra of one translation, its source and its truths."""
    images = {
        f"MedShift, {solver}": output,
        "truth, one exposure": views.exposure(pair[1], 0),
        "truth, noise-free": views.clean(pair[1]),
        "source": views.exposure(pair[0], 0),
    }
    rows = []
    for name, image in images.items():
        frequency, power = radial_power_spectrum(image)
        rows += [
            {"source": pair[0], "target": pair[1], "image": name, "frequency": float(f), "power": float(p)}
            for f, p in zip(frequency, power.mean(dim=0), strict=True)
        ]
    pd.DataFrame(rows).to_csv(folder / f"spectra-{pair[0]}-{solver.split(',')[0].replace(' ', '')}.part", index=False)


def _join_spectra(folder: Path) -> None:
    parts = sorted(folder.glob("spectra-*.part"))
    table = pd.concat([pd.read_csv(part) for part in parts]).drop_duplicates(["source", "image", "frequency"])
    table.to_csv(folder / "spectra.csv", index=False)
    for part in parts:
        part.unlink()


def panels(translator: MedShift, views: Path, pair: tuple[str, str], settings: Settings) -> dict[str, Tensor]:
    """Images for the panel source | tau ... | truth | twin: the first T2 views, one of each head."""
    some = EvaluationSet(views, "T2", limit=min(PANEL_VIEWS, settings.views["T2"]))
    source = some.exposure(pair[0], 0)
    taus = panel_taus(settings.taus)
    outputs = translate_taus(
        translator, source, *pair, taus, settings.batch, device=settings.device, guidance=settings.guidance
    )
    images = {f"tau {tau:g}": output for tau, output in zip(taus, outputs, strict=True)}
    images |= {"source": source, "truth": some.clean(pair[1]), "exposure": some.exposure(pair[1], 0)}
    return {name: image.contiguous() for name, image in (images | {"twin": some.exposure(pair[1], 1)}).items()}


def panel_taus(taus: Sequence[float]) -> list[float]:
    """At most six of ``taus`` from the lowest to the highest."""
    n = min(6, len(taus))
    return [taus[round(i * (len(taus) - 1) / (n - 1))] for i in range(n)]


def study_unpaired(
    translator: MedShift,
    images: Tensor,
    pair: tuple[str, str],
    folder: Path,
    settings: Settings,
    progress: Callable[[float, str], None] = lambda done, note: None,
) -> None:
    """The study on a user's own images, where no truth exists: agreement with the source against tau, and a panel.

    Args:
        translator: the trained model.
        images: test images (N,1,H,W) of the first domain of ``pair``.
        pair: source and target domain.
        folder: where sweep.csv and panels.safetensors go.
        settings: how much.
        progress: told the share done and what is being done.
    """
    rows = []
    shown: dict[str, Tensor] = {"source": images[:PANEL_VIEWS].contiguous()}
    for done, (name, solver) in enumerate(SOLVERS.items()):
        progress(done / len(SOLVERS), name)
        outputs = translate_taus(
            translator,
            images,
            *pair,
            settings.taus,
            settings.batch,
            device=settings.device,
            guidance=settings.guidance,
            **solver,
        )
        for tau, output in zip(settings.taus, outputs, strict=True):
            part = pd.DataFrame(
                {"psnr_source": psnr(output, images).numpy(), "ssim_source": ssim(output, images).numpy()}
            )
            rows.append(part.assign(tau=tau, solver=name, view=range(len(images)), source=pair[0], target=pair[1]))
            if name == HEUN and tau in panel_taus(settings.taus):
                shown[f"tau {tau:g}"] = output[:PANEL_VIEWS].contiguous()
    pd.concat(rows).to_csv(folder / "sweep.csv", index=False)
    save_file(shown, folder / f"panels-{pair[0]}.safetensors")
    progress(1.0, "done")


def spread_over_views(sweep: pd.DataFrame) -> pd.DataFrame:
    """Means with intervals over images by solver and tau, for images without heads or truth."""
    rows = []
    for (solver, tau), group in sweep.groupby(["solver", "tau"], sort=False):
        row: dict[str, object] = {"solver": solver, "tau": tau, "n": len(group)}
        for metric in ("psnr_source", "ssim_source"):
            mean, error = group[metric].mean(), 1.96 * group[metric].std() / len(group) ** 0.5
            row |= {metric: mean, f"{metric}_low": mean - error, f"{metric}_high": mean + error}
        rows.append(row)
    return pd.DataFrame(rows)
