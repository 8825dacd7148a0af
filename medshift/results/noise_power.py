"""04: whether a translation has the target's noise, by what differs between two exposures of the same view.

A single image's high-pass part is noise and fine structure alike. Here several exposures of each view were translated
one by one, so the difference of two translations is noise by definition (`medshift.metrics.noise`): its level, its
spectrum, and its variance against the mean. Each is compared to as many exposures of the target, and beside it stand
other exposures of the target itself, the least distance that so few views allow, and the untranslated source.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from safetensors.torch import load_file
from torch import Tensor

from medshift.data.domains import EvaluationSet
from medshift.metrics.noise import (
    noise_from_pair,
    noise_power_spectrum,
    spectrum_distance,
    variance_against_mean,
)
from medshift.metrics.structure import masked_mean
from medshift.results.findings import left_out, measured, over_heads, ratio_over_heads
from medshift.stages.objects import ABSENT
from medshift.viz.evidence import Curve, Panel, fig_panels

MEDSHIFT, FLOOR, NOTHING = "MedShift", "target, other exposures", "source, untranslated"
SATURATED = 0.98  # display units; brighter than that a display has no noise left
BINS = 12
FIGURE = "04_noise"


def stacks(untouched: Path, objects: Path, pair: tuple[str, str]) -> tuple[dict[str, Tensor], EvaluationSet]:
    """Exposures (K,N,1,H,W) of the target, of what is compared to it, and the views of T3 without objects.

    The first entry is the target's exposures 0 to K-1; translations are of the source's exposures 0 to K-1.
    """
    views = EvaluationSet(untouched, "T3")
    images = load_file(objects / "images.safetensors")[ABSENT].float()
    k = len(images)
    found = {"target": torch.stack([views.exposure(pair[1], i) for i in range(k)]), MEDSHIFT: images}
    found[FLOOR] = torch.stack([views.exposure(pair[1], k + i) for i in range(k)])
    found[NOTHING] = torch.stack([views.exposure(pair[0], i) for i in range(k)])
    return found, views


def _open(every: dict[str, Tensor], views: EvaluationSet) -> Tensor:
    """Where the field is open and no domain saturates (N,1,H,W)."""
    bright = torch.stack([stack.mean(dim=0) for stack in every.values()]).amax(dim=0)
    return views.open_field & (bright < SATURATED)


def noise_level(stack: Tensor, mask: Tensor) -> Tensor:
    """Standard deviation (N,) of the noise of exposures (K,N,1,H,W) in the mask, from pairs of neighbours."""
    pairs = [noise_from_pair(a, b).square() for a, b in zip(stack[0::2], stack[1::2], strict=False)]
    return masked_mean(torch.stack(pairs).mean(dim=0), mask).sqrt()


def variance_distance(output: Tensor, target: Tensor, mask: Tensor) -> float:
    """Root mean square over means of 10 log10(variance of ``output`` / of ``target`` at the same mean) [dB].

    Means are compared where both have them. Stacks (K,N,1,H,W), mask (N,1,H,W).
    """
    ours, theirs = (variance_against_mean(stack, mask, BINS) for stack in (output, target))
    common = (theirs.mean >= ours.mean.min()) & (theirs.mean <= ours.mean.max())
    if not common.any():
        return float("nan")
    at = np.interp(theirs.mean[common], ours.mean, ours.variance)
    return float(np.sqrt(np.mean((10 * np.log10(at / theirs.variance[common])) ** 2)))


def noise_table(untouched: Path, objects: Path, pair: tuple[str, str]) -> pd.DataFrame:
    """Noise level, spectrum and variance against the mean of translations, of the floor and of the source."""
    every, views = stacks(untouched, objects, pair)
    mask, heads, target = _open(every, views), views.table["head"].to_numpy(), every["target"]
    level, rows = noise_level(target, mask), []
    for name in (MEDSHIFT, FLOOR, NOTHING):
        stack = every[name]

        def spectrum(head: Any, stack: Tensor = stack) -> float:
            kept = np.flatnonzero(heads != head)
            ours, theirs = (noise_from_pair(x[0, kept], x[1, kept]) for x in (stack, target))
            return spectrum_distance(ours, theirs, views.open_field[kept], views.open_field[kept])

        def variance(head: Any, stack: Tensor = stack) -> float:
            kept = np.flatnonzero(heads != head)
            return variance_distance(stack[:, kept], target[:, kept], mask[kept])

        row: dict[str, Any] = {"images": name}
        row["noise std / target"] = str(over_heads((noise_level(stack, mask) / level).numpy(), heads))
        for column, number in (("noise spectrum distance [dB]", spectrum), ("variance at a mean [dB]", variance)):
            found = left_out(number, heads)
            ends = f" [{found.low:.2f}, {found.high:.2f}]" if np.isfinite(found.low) else ""
            row[column] = f"{found.mean:.2f}{ends}"
        rows.append(row | {"n": len(views), "heads": len(set(heads)), "exposures": len(stack)})
    return pd.DataFrame(rows)


def noise_findings(untouched: Path, objects: Path, pair: tuple[str, str]) -> list[dict[str, Any]]:
    """The noise level of translations over the target's."""
    every, views = stacks(untouched, objects, pair)
    mask = _open(every, views)
    ratio = noise_level(every[MEDSHIFT], mask) / noise_level(every["target"], mask)
    text = "noise of translations over the target's, standard deviation between two exposures of a view"
    return [measured("pair_noise", ratio.numpy(), views.table["head"], text, figure=FIGURE, null=1.0)]


def noise_figure(untouched: Path, objects: Path, pair: tuple[str, str], footer: str) -> tuple[str, Figure]:
    """Caption and figure: noise power over the target's by frequency, and variance against the mean."""
    every, views = stacks(untouched, objects, pair)
    mask, heads = _open(every, views), views.table["head"].to_numpy()
    powers, lines = {}, []
    for name, stack in every.items():
        frequency, power = noise_power_spectrum(noise_from_pair(stack[0], stack[1]), views.open_field)
        powers[name] = power.numpy()
        curve = variance_against_mean(stack, mask, BINS)
        lines.append(Curve(name, list(curve.mean), list(curve.variance), dashed=name == "target"))
    spectra = []
    for name in (MEDSHIFT, FLOOR, NOTHING):
        y, low, high = ratio_over_heads(powers[name], powers["target"], heads)
        spectra.append(Curve(name, list(frequency.numpy()), y, low, high))
    panels = [
        Panel("noise power over the target's", spectra, {"as the target": 1.0}, xlabel="cycles/pixel", x="linear",
              log_y=True, title="spectrum"),
        Panel("variance [display units²]", [lines[k] for k in (1, 2, 3, 0)], xlabel="mean [display units]", x="linear",
              log_y=True, title="against the mean"),
    ]  # fmt: skip
    n = f"n = {len(views)} views of {len(set(heads))} heads, {len(every[MEDSHIFT])} exposures of each"
    caption = (
        f"Noise as what differs between exposures of a view, {pair[0]} to {pair[1]}: its spectrum over the target's, "
        f"geometric mean and 95 % over heads, and its variance against the mean, where nothing saturates; "
        f"{n}; {footer}."
    )
    title = f"Is the noise the target's? T3 without objects: {pair[0]} → {pair[1]}"
    return caption, fig_panels(panels, title=title, footer=f"{n}; shaded: 95 % over heads; {footer}", width=3.2)
