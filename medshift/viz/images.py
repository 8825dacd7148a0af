"""Grids of X-ray images in one grey window."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from torch import Tensor

from medshift.viz.theme import WINDOW


def fig_grid(
    rows: Sequence[Sequence[Tensor]],
    column_titles: Sequence[str],
    row_titles: Sequence[str],
    *,
    footer: str = "",
    side: float = 0.95,
    window: tuple[float, float] = WINDOW,
) -> Figure:
    """Images (H,W) or (1,H,W) in rows and columns, all in one grey window.

    Args:
        rows: images.
        column_titles: above the first row.
        row_titles: left of the first column.
        footer: one line below, for what the data is and the window.
        side: of an image [inch].
        window: display values drawn black and white.
    """
    n, m = len(rows), max(len(row) for row in rows)
    figure, axes = plt.subplots(n, m, figsize=(m * side, n * side + 0.35), squeeze=False)
    for i, row in enumerate(rows):
        for j in range(m):
            axis = axes[i, j]
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            if j >= len(row):
                axis.set_visible(False)
                continue
            axis.imshow(row[j].squeeze().detach().cpu().numpy(), vmin=window[0], vmax=window[1], cmap="gray")
            if i == 0:
                axis.set_title(column_titles[j], fontsize=7)
            if j == 0:
                axis.set_ylabel(row_titles[i], fontsize=7)
    note = f"display window [{window[0]:g}, {window[1]:g}]"
    figure.supxlabel(f"{footer}; {note}" if footer else note, fontsize=6, color="0.35")
    return figure
