"""The only place that sets rcParams, and the colours and the grey window that every figure shares."""

from __future__ import annotations

import textwrap

import matplotlib
import seaborn as sns

# Okabe and Ito's palette: told apart by colour-blind readers.
PALETTE = {
    "blue": "#0072B2",
    "vermilion": "#D55E00",
    "green": "#009E73",
    "purple": "#CC79A7",
    "orange": "#E69F00",
    "sky": "#56B4E9",
    "black": "#000000",
    "grey": "#7F7F7F",
}
DOMAIN_COLOURS = {
    "synthetic-low": PALETTE["sky"],
    "synthetic-high": PALETTE["blue"],
    "real-low": PALETTE["orange"],
    "real-normal": PALETTE["vermilion"],
    "real-exposure": PALETTE["purple"],
}
WINDOW = (-1.0, 1.0)  # the display range of every X-ray image
COLUMN = 3.5  # inches, one column of a paper


def heading(title: str, footer: str, inches: float) -> str:
    """A title over the line that says n and the data, broken where a figure of that width ends; 7 points high."""
    return "\n".join([title, *textwrap.wrap(footer, int(19 * inches))])


def use_theme() -> None:
    """Set fonts, sizes and colours once for a session."""
    sns.set_theme(context="paper", style="ticks", palette=list(PALETTE.values()))
    matplotlib.rcParams.update(
        {
            "figure.dpi": 110,
            "savefig.dpi": 200,
            "savefig.bbox": "tight",
            "savefig.pad_inches": 0.03,
            "font.size": 8,
            "axes.titlesize": 8,
            "axes.labelsize": 8,
            "legend.fontsize": 7,
            "xtick.labelsize": 7,
            "ytick.labelsize": 7,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "lines.linewidth": 1.3,
            "figure.constrained_layout.use": True,
            "pdf.fonttype": 42,
            "svg.hashsalt": "medshift",
            "image.cmap": "gray",
            "image.interpolation": "nearest",
        }
    )
