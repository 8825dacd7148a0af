"""The ten numbers of the acquisition in one figure, each beside its reference."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from medshift.data.physics_report import PhysicsReport
from medshift.viz.theme import PALETTE

MEASURED, REFERENCE = PALETTE["blue"], PALETTE["black"]


def _pairs(axis: Axes, pairs: dict[str, tuple[float, float]], unit: str) -> None:
    labels, x = list(pairs), np.arange(len(pairs))
    measured, expected = zip(*pairs.values(), strict=True)
    axis.bar(x, measured, width=0.55, color=MEASURED, alpha=0.8)
    axis.plot(x, expected, "_", color=REFERENCE, markersize=16, markeredgewidth=1.5)
    axis.set_xticks(x, [label.replace("fluoroscopy", "fluoro").replace("-", "\n") for label in labels], fontsize=5)
    axis.set_ylabel(unit)


def _curve(axis: Axes, x: np.ndarray, measured: np.ndarray, expected: np.ndarray, labels: tuple[str, str]) -> None:
    axis.plot(x, measured, "o", markersize=2.5, color=MEASURED)
    axis.plot(x, expected, "-", linewidth=0.9, color=REFERENCE)
    axis.set(xlabel=labels[0], ylabel=labels[1])


def physics_table(report: PhysicsReport) -> pd.DataFrame:
    """The ten numbers in words: measured, reference, and their ratio where one is meant."""
    rows: list[tuple[str, float, float]] = []
    rows += [(f"1. half-value layer, {name} [mm Al]", *pair) for name, pair in report.hvl.items()]
    rows += [(f"2. transmission, {name}", *pair) for name, pair in report.transmission.items()]
    for name, mu in report.attenuation.items():
        rows.append((f"3. effective μ, {name}: 250 mm over 10 mm of water", mu[-1] / mu[0], float("nan")))
    rows.append(("4. scatter over primary behind the grid, centre", report.scatter[1], float("nan")))
    for f in (0.5, 1.0, 1.5):
        i = int(np.abs(report.mtf_frequency - f).argmin())
        rows.append((f"5. MTF at {f:g} /mm", report.mtf[0][i], report.mtf[1][i]))
    for kerma, (_, measured, expected) in report.nnps.items():
        rows.append(
            (f"6. noise power at {kerma:g} nGy, mean over rings, relative to model", (measured / expected).mean(), 1)
        )
    product = report.nnps_kerma[1]
    rows.append(("7. NNPS × K, largest over smallest", product.max() / product.min(), 1.0))
    rows.append(("8. variance against mean, slope", *report.variance["slope"]))
    rows.append(("8. variance against mean, floor", *report.variance["floor"]))
    rows.append(("9. DQE, largest; its bound", report.dqe[1].max(), report.dqe[2]))
    slope = np.polyfit(np.log(report.detail[0]), np.log(report.detail[1]), 1)[0]
    rows.append(("10. d′ ∝ K^p, p", slope, 0.5))
    return pd.DataFrame(rows, columns=["number", "measured", "reference"])


def fig_physics(report: PhysicsReport) -> Figure:
    """Ten panels: measured in blue, the reference (SpekPy, fine bins, model, bound) in black."""
    figure, axes = plt.subplots(2, 5, figsize=(10.5, 4.2))
    a = axes.ravel()
    _pairs(a[0], report.hvl, "HVL [mm Al]")
    _pairs(a[1], report.transmission, "transmission")
    a[1].set_yscale("log")
    for name, mu in report.attenuation.items():
        a[2].plot(report.thickness_mm, 10 * mu, label=name)
    a[2].set(xlabel="water [mm]", ylabel="effective μ [1/cm]")
    a[2].legend(fontsize=5, frameon=False)
    shown = a[3].imshow(report.scatter[0], cmap="viridis")
    a[3].set(xticks=[], yticks=[], xlabel=f"centre {report.scatter[1]:.2f}")
    figure.colorbar(shown, ax=a[3], shrink=0.8)
    _curve(a[4], report.mtf_frequency, *report.mtf, ("frequency [1/mm]", "MTF"))
    for kerma, (frequency, measured, expected) in report.nnps.items():
        a[5].loglog(frequency, measured, "o", markersize=2.5, label=f"{kerma:g} nGy")
        a[5].loglog(frequency, expected, color=REFERENCE, linewidth=0.8)
    a[5].set(xlabel="frequency [1/mm]", ylabel="NNPS [mm²]")
    a[5].legend(fontsize=5, frameon=False)
    mean = report.nnps_kerma[1].mean()
    _curve(a[6], report.nnps_kerma[0], report.nnps_kerma[1] / mean, np.ones(len(report.nnps_kerma[0])),
           ("kerma [nGy]", "NNPS × K over its mean"))  # fmt: skip
    a[6].set(xscale="log", ylim=(0.85, 1.15))
    line = report.variance
    slope, floor = line["slope"][1], line["floor"][1]
    _curve(a[7], line["mean"], line["variance"], slope * line["mean"] + floor, ("mean signal", "variance"))
    frequency, dqe, bound = report.dqe
    _curve(a[8], frequency, dqe, np.full_like(frequency, bound), ("frequency [1/mm]", "DQE, and its bound"))
    a[8].set_ylim(0, 1)
    doses, detectability = report.detail
    _curve(a[9], doses, detectability, detectability[0] * np.sqrt(doses / doses[0]), ("kerma [nGy]", "Hotelling d′"))
    a[9].set(xscale="log", yscale="log")
    for i in (1, 5, 6, 9):
        for direction in (a[i].xaxis, a[i].yaxis):
            direction.set_minor_formatter(NullFormatter())
    titles = [
        "half-value layer",
        "150 mm water + 15 mm bone",
        "beam hardening",
        "scatter over primary",
        "slanted-edge MTF",
    ]
    titles += ["noise power", "quantum-limited noise", "variance against mean", "DQE", "1 mm disc, d′ against √K"]
    for i, (axis, title) in enumerate(zip(a, titles, strict=True)):
        axis.set_title(f"{i + 1}. {title}", fontsize=7)
    figure.supxlabel("blue: measured on the chain; black: SpekPy, fine-bin calculation, model or bound", fontsize=6)
    return figure
