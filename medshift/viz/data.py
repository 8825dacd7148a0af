"""Pictures of notebook 01: the head and its landmarks, the five domains, many heads, the law of views."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from medshift.data.views import LOW_BAND, OBLIQUE
from medshift.data.volume import HeadVolume
from medshift.viz.images import fig_grid
from medshift.viz.theme import PALETTE

BONE_OVER_WATER = 2.56  # attenuation of cortical bone in units of water's at 70 keV
AXES = {"x": 2, "y": 1, "z": 0}
TITLES = {"x": "x, to the left [mm]", "y": "y, to posterior [mm]", "z": "z, superior [mm]"}


def _section(axis: Axes, head: HeadVolume, cut: str, at: float, across: str, along: str) -> None:
    """Draw the section at ``cut`` = ``at`` mm; superior is drawn up, anterior up in axial sections."""
    attenuation = (head.density[0] + BONE_OVER_WATER * head.density[1]).numpy()
    n, spacing = head.shape, head.spacing
    k = int(np.clip(round(at / spacing[AXES[cut]] + (n[AXES[cut]] - 1) / 2), 0, n[AXES[cut]] - 1))
    image = attenuation.take(k, axis=AXES[cut])
    if AXES[along] > AXES[across]:
        image = image.T
    half = {a: n[i] * spacing[i] / 2 for a, i in AXES.items()}
    up = along == "z"
    bounds = (-half[across], half[across], *((-half[along], half[along]) if up else (half[along], -half[along])))
    axis.imshow(image, cmap="gray", vmin=0, vmax=BONE_OVER_WATER, extent=bounds, origin="lower" if up else "upper")


def _cross(axis: Axes, point: tuple[float, float, float], across: str, along: str, colour: str) -> None:
    place = dict(zip("xyz", point, strict=True))
    axis.plot(place[across], place[along], "+", color=colour, markersize=5, markeredgewidth=0.9)


def fig_sections(head: HeadVolume, footer: str) -> Figure:
    """Axial, coronal and sagittal sections through the centre, every landmark projected on each."""
    figure, axes = plt.subplots(1, 3, figsize=(7.0, 2.5))
    planes = [("axial", "z", "x", "y"), ("coronal", "y", "x", "z"), ("sagittal", "x", "y", "z")]
    for axis, (title, cut, across, along) in zip(axes, planes, strict=True):
        _section(axis, head, cut, 0.0, across, along)
        for point in head.landmarks.values():
            _cross(axis, point, across, along, PALETTE["vermilion"])
        axis.set(title=title, xlabel=TITLES[across], ylabel=TITLES[along])
    figure.supxlabel(f"attenuation, 0 to {BONE_OVER_WATER} of water's; {footer}", fontsize=6, color="0.35")
    return figure


def fig_landmarks(head: HeadVolume, footer: str, columns: int = 5) -> Figure:
    """Two sections through every landmark: sagittal above, axial below."""
    names = list(head.landmarks)
    rows = -(-len(names) // columns)
    figure, axes = plt.subplots(2 * rows, columns, figsize=(7.0, 2.1 * rows), squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for i, name in enumerate(names):
        x, y, z = point = head.landmarks[name]
        top, bottom = axes[2 * (i // columns), i % columns], axes[2 * (i // columns) + 1, i % columns]
        _section(top, head, "x", x, "y", "z")
        _cross(top, point, "y", "z", PALETTE["vermilion"])
        _section(bottom, head, "z", z, "x", "y")
        _cross(bottom, point, "x", "y", PALETTE["vermilion"])
        top.set_title(name, fontsize=6)
    figure.supxlabel(
        f"above sagittal, anterior to the left; below axial, anterior up; {footer}", fontsize=6, color="0.35"
    )
    return figure


def fig_domains(pictures: Mapping[str, tuple[Tensor, Tensor]], footer: str) -> Figure:
    """Named views (columns) in each domain, one exposure and free of noise (rows).

    Args:
        pictures: row name -> (images (V,1,H,W), view names given by the key "views").
        footer: what the data is.
    """
    from medshift.data.views import NAMED_VIEWS

    rows = [list(images) for pair in pictures.values() for images in pair]
    names = [f"{name}\n{kind}" for name in pictures for kind in ("exposure", "noise-free")]
    return fig_grid(rows, list(NAMED_VIEWS), names, footer=footer, side=1.0)


def fig_heads(pictures: Mapping[str, Tensor], footer: str) -> Figure:
    """Lateral views of several heads, one row a split."""
    rows = [list(images) for images in pictures.values()]
    columns = [str(i + 1) for i in range(max(map(len, rows)))]
    return fig_grid(rows, columns, list(pictures), footer=footer, side=1.0)


def fig_folder(pictures: Mapping[str, Tensor], footer: str) -> Figure:
    """Images of a user's own domains, one row a domain."""
    rows = [list(images) for images in pictures.values()]
    return fig_grid(rows, [str(i + 1) for i in range(max(map(len, rows)))], list(pictures), footer=footer)


def fig_view_law(views: pd.DataFrame, footer: str) -> Figure:
    """Directions of the source for training views and for every tier; the held-out regions are shaded."""
    figure, axis = plt.subplots(figsize=(5.2, 2.7))
    groups = [
        ("training, all domains", views["role"].str.startswith("train"), "0.75", 2, "."),
        ("validation", views["role"] == "validation", PALETTE["green"], 9, "x"),
        ("T0", views["role"] == "T0", PALETTE["blue"], 9, "o"),
        ("T1", views["role"] == "T1", PALETTE["vermilion"], 9, "^"),
        ("T2", views["role"] == "T2", PALETTE["purple"], 9, "s"),
        ("T3", views["role"] == "T3", PALETTE["black"], 9, "D"),
    ]
    for name, chosen, colour, size, marker in groups:
        rows = views[chosen]
        axis.scatter(rows["azimuth"], rows["elevation"], s=size, c=colour, marker=marker, linewidths=0.5, label=name)
    for side in (-1, 1):
        axis.axvspan(
            *sorted((side * OBLIQUE[0], side * OBLIQUE[1])), color=PALETTE["vermilion"], alpha=0.12, linewidth=0
        )
    axis.axhspan(*LOW_BAND, color=PALETTE["vermilion"], alpha=0.12, linewidth=0)
    axis.set(xlabel="azimuth [deg], 0 = AP, 90 = source at the left", ylabel="elevation [deg]", xlim=(-180, 180))
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    figure.supxlabel(footer, fontsize=6, color="0.35")
    return figure
