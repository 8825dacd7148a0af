"""99: what the explorer shows at each setting of its dials, read from a lattice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.ndimage import binary_dilation, center_of_mass, label, sum_labels
from torch import Tensor

from medshift.metrics.objects import FAINTEST, contrast_recovery
from medshift.metrics.structure import psnr, ssim
from medshift.stages.lattice import WRONG, Lattice, edges_of, invented
from medshift.viz.explorer import Curve, Shown, Spot
from medshift.viz.images import fig_grid

BARE = ("bare-result", "bare-truth")  # what a failure has of its view without the insert
SMALLEST = 3.0  # pixels of an image: a ring about less would hide what it shows


class Lesson(NamedTuple):
    """A failure's title, and what to look at."""

    title: str
    words: str


# By the names of `medshift.repro.explorer.FAILURES`.
LESSONS = {
    "tau too low": Lesson(
        "τ too low: anatomy is invented",
        "Only noise is left of the source's fine structure. The ring stands about edges that the truth has not; PSNR "
        "hardly sees them.",
    ),
    "tau too high": Lesson(
        "τ too high: nothing changes", "The legs are too short for the target's tone: the error is the gap itself."
    ),
    "guidance too high": Lesson(
        "guidance too high", "Pushed away from the mean of all domains: contrast overshoots, edges sharpen."
    ),
    "guidance on one leg": Lesson(
        "guidance on the decode leg alone", "What one leg adds the other does not take back."
    ),
    "too few steps": Lesson(
        "too few steps of Euler", "The legs no longer undo each other: noise is lost, and another head comes back."
    ),
    "clean source": Lesson(
        "clean source: the latent collapses", "No noise to be blown up: z_τ has less contrast than noised data."
    ),
    "unseen object": Lesson(
        "an object that no training head has",
        "It is carried over, not erased: the number compares what it changes in the translation with what it changes "
        "in the truth, 1 being right.",
    ),
}


def pair_name(pair: tuple[str, str]) -> str:
    """``source → target``."""
    return f"{pair[0]} → {pair[1]}"


def shown_at(lattice: Lattice, pair: int, view: int, tau: int, scale: int) -> Shown:
    """What stands at one place of the lattice, each dial given by its index."""
    row = lattice.places[pair, view, scale, tau]
    words = f"τ = {lattice.taus[tau]:g}, guidance {lattice.scales[scale]:g}: {measures_in_words(*row)}"
    result = lattice.tensors[f"up/{pair}/{scale}"][tau, -1, view].float()
    return Shown(
        lattice.tensors[f"source/{pair}"][view].float(),
        result,
        lattice.tensors[f"truth/{pair}"][view].float(),
        words,
        curves_of(lattice, pair, view),
        row,
    )


def measures_in_words(structure: float, agreement: float) -> str:
    """``SSIM to the source 0.912, 30.1 dB to the truth``."""
    return f"SSIM to the source {structure:.3f}, {agreement:.1f} dB to the truth"


def measured_of(shown: Shown, field: Tensor) -> tuple[float, float]:
    """SSIM to the source and PSNR to the truth [dB] inside the open field (1,H,W), of a result with a truth."""
    assert shown.truth is not None
    result, mask = shown.result[None], field[None]
    return float(ssim(result, shown.source[None], mask)), float(psnr(result, shown.truth[None], mask))


def curves_of(lattice: Lattice, pair: int, view: int) -> tuple[Curve, ...]:
    """The trade-off of one view, a curve a guidance scale."""
    places = lattice.places
    curves = []
    for s, scale in enumerate(lattice.scales):
        points = [places[pair, view, s, t] for t in range(len(lattice.taus))]
        structure, agreement = zip(*points, strict=True)
        curves.append(Curve(f"guidance {scale:g}", lattice.taus, structure, agreement))
    return tuple(curves)


def leg_at(lattice: Lattice, pair: int, view: int, tau: int, scale: int) -> tuple[list[Tensor], list[str]]:
    """The trajectory of the latent, decoded: down under the source's label, z_τ, up under the target's; with titles."""
    taus, n = lattice.taus, len(lattice.taus)
    down, up = lattice.tensors[f"down/{pair}/{scale}"], lattice.tensors[f"up/{pair}/{scale}"]
    frames = [lattice.tensors[f"source/{pair}"][view], *(down[t, view] for t in range(n - 1, tau - 1, -1))]
    titles = ["t = 1", *(f"↓ {taus[t]:g}" for t in range(n - 1, tau, -1)), f"z_τ, {taus[tau]:g}"]
    frames += [up[tau, t, view] for t in range(tau + 1, n + 1)]
    titles += [*(f"↑ {taus[t]:g}" for t in range(tau + 1, n)), "t = 1"]
    return [frame.float() for frame in frames], titles


def filmstrip(lattice: Lattice, pair: int, footer: str) -> tuple[str, Figure]:
    """Caption and figure: every view of a pair, its source, its translations over τ at the first scale, its truth."""
    last = {"source": lattice.tensors[f"source/{pair}"], "truth": lattice.tensors[f"truth/{pair}"]}
    results = lattice.tensors[f"up/{pair}/0"][:, -1]
    rows = [
        [image.float() for image in (last["source"][v], *results[:, v], last["truth"][v])]
        for v in range(len(lattice.views))
    ]
    titles = ["source", *(f"τ = {tau:g}" for tau in lattice.taus), "truth"]
    names = [view.replace(", ", "\n") for view in lattice.views]
    caption = (
        f"{pair_name(lattice.pairs[pair])} on views of unseen heads, guidance {lattice.scales[0]:g}, over τ; the truth "
        "is free of noise."
    )
    return caption, fig_grid(rows, titles, names, footer=f"{pair_name(lattice.pairs[pair])}; {footer}", side=0.75)


class Failure(NamedTuple):
    """One failure of the gallery.

    Attributes:
        shown: its frame.
        invented: edge pixels of the result that the truth has not, see `medshift.stages.lattice.edges_of`.
        lost: edge pixels of the truth that the result has not.
        best: PSNR to the truth [dB] at the best τ of the same view, guidance 1 or the lattice's lowest.
        contrast: of an object over that in the truth, see `contrast_recovery`; NaN without one.
    """

    shown: Shown
    invented: int
    lost: int
    best: float
    contrast: float


def failures_of(lattice: Lattice) -> dict[str, Failure]:
    """Every failure of the gallery by its name; title and what to look at are in `LESSONS`."""
    return {name: _failure(lattice, number, wrong) for number, (name, wrong) in enumerate(lattice.failures.items())}


def _failure(lattice: Lattice, number: int, wrong: Mapping[str, Any]) -> Failure:
    pair, view = int(wrong["pair"]), int(wrong["view"])
    here = {part: lattice.tensors.get(f"{WRONG}/{number}/{part}") for part in ("source", "result", *BARE)}
    source, result, bare, bare_truth = (None if image is None else image[0].float() for image in here.values())
    assert source is not None and result is not None
    truth, field = lattice.tensors[f"truth/{pair}"][view].float(), lattice.tensors["open_field"][view]
    shown = Shown(source, result, truth, curves=curves_of(lattice, pair, view))
    measured = measured_of(shown, field)
    edges = edges_of(result[None], truth[None], field[None])
    counts = int(edges.invented[0]), int(edges.lost[0])
    contrast, spot = float("nan"), largest(invented(result[None], truth[None], field[None])[0])
    knobs = ", ".join(f"{knob} = {value}" for knob, value in wrong["knobs"].items()).replace("tau", "τ")
    words = f"{knobs}: {measures_in_words(*measured)}; edge pixels: {counts[0]} invented, {counts[1]} lost"
    if bare is not None and bare_truth is not None:
        contrast = float(contrast_recovery(result[None], bare[None], truth[None], bare_truth[None], field[None]))
        spot = largest((truth - bare_truth).abs()[0] * field[0])
        words = f"{words}; the object's contrast is {contrast:.2f} of the truth's"
    best = max(shown.curves[0].agreement)
    return Failure(replace(shown, words=words, here=measured, spot=spot), *counts, best, contrast)


def largest(weight: Tensor) -> Spot | None:
    """A circle about the part of an image (H,W) that weighs most, what is 2 pixels apart counting as one; or None.

    Weights below `FAINTEST` do not count.
    """
    where = weight.numpy() > FAINTEST
    parts, n = label(binary_dilation(where, np.ones((3, 3), bool)), np.ones((3, 3), bool))
    if n == 0:
        return None
    part = where & (parts == 1 + int(np.argmax(sum_labels(weight.numpy(), parts, range(1, n + 1)))))
    row, column = center_of_mass(part)
    reach = float(np.hypot(*(np.argwhere(part) - (row, column)).T).max())
    return Spot(float(row), float(column), max(SMALLEST, reach + 2))


def gallery_table(lattice: Lattice) -> pd.DataFrame:
    """One row a failure: knobs, SSIM to the source, PSNR to the truth and at the best τ [dB], edges, contrast."""
    rows = []
    for name, one in failures_of(lattice).items():
        assert one.shown.here is not None
        structure, agreement = (round(value, 3) for value in one.shown.here)
        rows.append(
            {
                "failure": LESSONS[name].title,
                "knobs": ", ".join(f"{k} = {v}" for k, v in lattice.failures[name]["knobs"].items()),
                "view": lattice.views[int(lattice.failures[name]["view"])],
                "SSIM to source": structure,
                "PSNR [dB]": agreement,
                "PSNR at the best τ [dB]": round(one.best, 3),
                "edge pixels invented": one.invented,
                "edge pixels lost": one.lost,
                "object's contrast / truth's": one.contrast,
            }
        )
    return pd.DataFrame(rows)
