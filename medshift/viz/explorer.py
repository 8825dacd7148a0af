"""One translation looked at from all sides: source, result, truth, error, and where it lies on the trade-off curve.

A frame has to follow a slider, and matplotlib takes tens of milliseconds for one. So `ExplorerCanvas` lets matplotlib
draw what stays, the titles, axes and curves, once for every view, and puts what moves, the pixels of the images, a
ring on the curve and a line of words, over it. Live sliders and static pages show the same frames.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from medshift.viz.theme import PALETTE, WINDOW

ERROR = 0.6  # display values of the error map drawn in full colour
DOTS, SIZE = 100, (9.2, 2.5)  # per inch; inches
COLUMNS = ("source", "translation", "truth, noise-free", "translation − truth")
SIDE = 172  # pixels of an image
TOP, STEP = 30, 180  # pixels: of the images' upper edge, and from one image to the next
RING = 6  # pixels


@dataclass(frozen=True)
class Curve:
    """One trade-off curve of a view: structure kept and agreement with the truth, a point a τ.

    Args:
        name: in the legend.
        taus: of the points.
        structure: SSIM to the source, one a τ.
        agreement: PSNR to the truth [dB], one a τ.
    """

    name: str
    taus: tuple[float, ...]
    structure: tuple[float, ...]
    agreement: tuple[float, ...]


class Spot(NamedTuple):
    """A circle on an image, in its pixels: row and column of the centre, radius."""

    row: float
    column: float
    radius: float


@dataclass(frozen=True)
class Shown:
    """What a frame shows.

    Args:
        source: image (1,H,W) or (H,W) on [-1, 1].
        result: its translation.
        truth: the noise-free image of the target domain, or None where nobody knows it.
        words: a line under the images.
        curves: of this view and pair; none where there is no truth.
        here: SSIM to the source and PSNR to the truth [dB] of the result, or None.
        spot: what to look at, ringed on result and truth, or None.
    """

    source: Tensor
    result: Tensor
    truth: Tensor | None
    words: str = ""
    curves: tuple[Curve, ...] = ()
    here: tuple[float, float] | None = None
    spot: Spot | None = None


class ExplorerCanvas:
    """Frames of one size, as PNG bytes."""

    def __init__(self) -> None:
        """Make room for the backgrounds of a few views."""
        self._background = lru_cache(maxsize=64)(_background)

    def frame(self, shown: Shown) -> bytes:
        """A PNG of `SIZE`; the truth's and the error's place say so where there is no truth.

        The ring is left out where it would stand beside the curve's axes; the words have its numbers.
        """
        known = shown.truth is not None
        back, place = self._background(shown.curves, known)
        sheet = back.copy()
        error = None if shown.truth is None else shown.result - shown.truth
        for i, image in enumerate((shown.source, shown.result, shown.truth, error)):
            if image is not None:
                left = 4 + i * STEP
                sheet[TOP : TOP + SIDE, left : left + SIDE] = _pixels(image, of_error=i == len(COLUMNS) - 1)
        picture = Image.fromarray(sheet)
        pen = ImageDraw.Draw(picture)
        if shown.spot is not None:
            for i in (1, 2) if known else (1,):
                pen.ellipse(_on_sheet(shown.spot, shown.result, 4 + i * STEP), outline=PALETTE["vermilion"], width=2)
        pen.text((4, TOP + SIDE + 20), shown.words, fill=(64, 64, 64), font=_font(), anchor="lm")
        if (
            shown.here is not None
            and place is not None
            and place.get_window_extent().contains(*(spot := place.transData.transform(shown.here)))
        ):
            x, y = spot[0], sheet.shape[0] - spot[1]
            pen.ellipse((x - RING, y - RING, x + RING, y + RING), outline=PALETTE["vermilion"], width=3)
        buffer = io.BytesIO()
        picture.save(buffer, format="png", compress_level=1)
        return buffer.getvalue()


def _on_sheet(spot: Spot, image: Tensor, left: int) -> tuple[float, float, float, float]:
    """The box of a circle on the sheet, where the image's place begins `left` pixels from its edge."""
    height, width = image.shape[-2:]
    scale = SIDE / max(height, width)
    x = left + (SIDE - width * scale) / 2 + (spot.column + 0.5) * scale
    y = TOP + (SIDE - height * scale) / 2 + (spot.row + 0.5) * scale
    reach = spot.radius * scale
    return x - reach, y - reach, x + reach, y + reach


def _pixels(image: Tensor, *, of_error: bool) -> np.ndarray:
    """An image as `SIDE` × `SIDE` colours, its longer side filling the place; white around."""
    values = image.squeeze().detach().cpu().numpy()
    low, high = (-ERROR, ERROR) if of_error else WINDOW
    shade = np.clip((values - low) / (high - low), 0, 1)
    if of_error:
        colours = (255 * colormaps["PuOr"](shade)[..., :3]).round().astype(np.uint8)
    else:
        colours = np.repeat((255 * shade).round().astype(np.uint8)[..., None], 3, axis=2)
    height, width = values.shape
    scale = SIDE / max(height, width)
    shape = (max(1, round(width * scale)), max(1, round(height * scale)))
    made = np.asarray(Image.fromarray(colours).resize(shape, Image.Resampling.NEAREST))
    place = np.full((SIDE, SIDE, 3), 255, np.uint8)
    top, left = (SIDE - made.shape[0]) // 2, (SIDE - made.shape[1]) // 2
    place[top : top + made.shape[0], left : left + made.shape[1]] = made
    return place


def _background(curves: tuple[Curve, ...], known: bool) -> tuple[np.ndarray, plt.Axes | None]:
    """All that stays, and the axes whose coordinates the ring follows."""
    figure = Figure(figsize=SIZE, dpi=DOTS)
    figure.set_layout_engine("none")
    canvas = FigureCanvasAgg(figure)
    width, height = (DOTS * inches for inches in SIZE)
    for i, name in enumerate(COLUMNS):
        text = name if known or i < 2 else f"{name}: not known"
        figure.text((4 + i * STEP + SIDE / 2) / width, 1 - 16 / height, text, ha="center", va="center", fontsize=8)
    place = None
    if curves:
        left = (4 + len(COLUMNS) * STEP + 30) / width
        place = figure.add_axes((left, 0.21, 0.99 - left, 0.64))
        _draw_curves(place, curves)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy(), place


def _draw_curves(axis: plt.Axes, curves: Sequence[Curve]) -> None:
    for curve, colour in zip(curves, (PALETTE["blue"], PALETTE["orange"], PALETTE["green"]), strict=False):
        axis.plot(curve.structure, curve.agreement, "o-", color=colour, ms=2.5, lw=1, label=curve.name)
        ends = (curve.structure[0], curve.agreement[0])
        axis.annotate(f"τ={curve.taus[0]:g}", ends, (2, 4), textcoords="offset points", fontsize=6, color=colour)
    axis.set_xlabel("SSIM to the source", fontsize=7, labelpad=1)
    axis.set_title("PSNR to the truth [dB]", fontsize=8, pad=6)
    axis.tick_params(labelsize=6, pad=1)
    axis.spines[["top", "right"]].set_visible(False)
    axis.margins(0.12)
    axis.legend(fontsize=6, loc="best", frameon=False, handlelength=1.2)


@lru_cache(maxsize=1)
def _font() -> ImageFont.FreeTypeFont:
    """The font that matplotlib ships: it knows τ."""
    return ImageFont.truetype(str(findfont("DejaVu Sans")), 12)


def leg_strip(frames: Sequence[Tensor], titles: Sequence[str], *, side: int = 72) -> bytes:
    """The trajectory of one latent as a filmstrip: its decoded states in order, in one grey window.

    Args:
        frames: images (1,H,W), all of one size.
        titles: above each, such as its time.
        side: of a frame's longer side [pixels].

    Returns:
        PNG bytes.
    """
    step, head = side + 4, 18
    sheet = Image.new("RGB", (len(frames) * step, head + side), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (frame, title) in enumerate(zip(frames, titles, strict=True)):
        values = frame.squeeze().detach().cpu().numpy()
        shade = np.clip((values - WINDOW[0]) / (WINDOW[1] - WINDOW[0]), 0, 1)
        scale = side / max(values.shape)
        shape = (max(1, round(values.shape[1] * scale)), max(1, round(values.shape[0] * scale)))
        picture = Image.fromarray((255 * shade).round().astype(np.uint8)).resize(shape, Image.Resampling.NEAREST)
        sheet.paste(picture, (i * step + (side - shape[0]) // 2, head + (side - shape[1]) // 2))
        pen.text((i * step + side / 2, head / 2), title, fill=(64, 64, 64), font=_font(), anchor="mm")
    buffer = io.BytesIO()
    sheet.save(buffer, format="png", compress_level=1)
    return buffer.getvalue()
