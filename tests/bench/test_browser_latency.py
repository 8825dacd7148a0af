"""From a move to the changed picture, in the explorer in a real browser; printed, never asserted: `make bench`.

The lattice is made up, so that no network is needed: smooth random images of 64 × 64 at 9 τ, 2 scales, 4 views and 4
pairs, every position of the τ slider on it. A block in the corner of each translation has a grey level that tells its
τ. The page notes when a key or the pointer moved, reads the level of every picture that arrives, and when its frame was
painted.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser.lab import browsing, of_cells, serving
from browser.sheets import Notebook

pytestmark = [pytest.mark.bench, pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(900)]

TAUS, MOVES = 9, 50
LATTICE = """
import pandas as pd
import torch
from torch.nn.functional import interpolate
from medshift.stages.lattice import Lattice
from medshift.viz.theme import WINDOW
from medshift.widgets.explore import show_explorer
from medshift.widgets.explorer import MORE_TAUS

taus, scales, views = tuple(sorted({*MORE_TAUS, 0.05, 0.3, 0.6})), (1.0, 2.0), tuple(f"view {k}" for k in range(4))
pairs = tuple((f"domain {k}", f"domain {k + 1}") for k in range(4))
assert len(taus) == 9
generator = torch.Generator().manual_seed(0)

def smooth(*shape):
    coarse = torch.randn(int(torch.tensor(shape).prod()), 1, 8, 8, generator=generator)
    return interpolate(coarse, (64, 64), mode="bicubic").mul(0.4).clamp(-1, 1).reshape(*shape, 1, 64, 64).half()

tensors = {"open_field": torch.ones(4, 1, 64, 64)}
for p in range(4):
    tensors |= {f"source/{p}": smooth(4), f"truth/{p}": smooth(4)}
    for s in range(2):
        up = smooth(9, 10, 4)
        for t in range(9):
            up[t, -1, :, :, :16, :16] = WINDOW[0] + (WINDOW[1] - WINDOW[0]) * (20 + 25 * t) / 255
        tensors |= {f"down/{p}/{s}": smooth(9, 4), f"up/{p}/{s}": up}
rows = [
    {"pair": p, "view": v, "scale": s, "tau": t, "ssim_source": 0.5 + t / 20, "psnr_truth": 30 - (t - 4) ** 2 / 4 - s}
    for p in range(4) for v in range(4) for s in range(2) for t in range(9)
]
show_explorer(Lattice(pairs, views, taus, scales, {}, tensors, pd.DataFrame(rows)), lambda: None)
"""
WATCH = """([x, y]) => {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [1, 1];
  const pen = canvas.getContext("2d", {willReadFrequently: true});
  const seen = (window.seen = []);
  let start = 0;
  for (const kind of ["keydown", "pointermove"])
    document.addEventListener(kind, (event) => { start = event.timeStamp; }, true);
  document.addEventListener("load", (event) => {
    if (!event.target.matches("img.medshift-picture")) return;
    const from = start;
    pen.drawImage(event.target, x, y, 1, 1, 0, 0, 1, 1);
    const level = pen.getImageData(0, 0, 1, 1).data[0];
    requestAnimationFrame(() => {
      const painted = new MessageChannel();
      painted.port1.onmessage = () => seen.push([level, performance.now() - from]);
      painted.port2.postMessage(0);
    });
  }, true);
}"""


@pytest.fixture
def notebook(tmp_path: Path) -> Iterator[Notebook]:
    for name in ("notebooks", "private"):
        (tmp_path / name).mkdir()
    path = of_cells(tmp_path / "notebooks" / "latency.ipynb", LATTICE)
    with browsing() as browser, serving(path.parent, tmp_path / "private") as server:
        page = browser.new_context(viewport={"width": 1400, "height": 1300}).new_page()
        opened = Notebook.opened(page, server, path.name)
        opened.run_all()
        assert not opened.tracebacks()
        page.locator("img.medshift-picture").wait_for()
        yield opened
        page.context.close()


def test_latency_of_the_explorer(notebook: Notebook) -> None:
    from medshift.viz.explorer import STEP, TOP

    page, slider = notebook.page, notebook.page.locator(".medshift-tau")
    page.evaluate(WATCH, [4 + STEP + 10, TOP + 10])
    notebook.keys(slider, "Home")
    _arrived(notebook, 0)
    there_and_back = [k if k < TAUS else 2 * (TAUS - 1) - k for k in range(2 * (TAUS - 1))]
    walk = [there_and_back[k % len(there_and_back)] for k in range(1, MOVES + 1)]

    keyboard, here = [], 0
    for place in walk:
        page.keyboard.press("ArrowRight" if place > here else "ArrowLeft")
        keyboard.append(_arrived(notebook, place))
        here = place

    notebook.keys(slider, "Home")
    if here:
        _arrived(notebook, 0)
    handle, track = slider.locator(".noUi-handle").bounding_box(), slider.locator(".noUi-base").bounding_box()
    y = handle["y"] + handle["height"] / 2
    page.mouse.move(track["x"], y)
    page.mouse.down()
    drag = []
    for place in walk:
        page.mouse.move(track["x"] + track["width"] * place / (TAUS - 1), y)
        drag.append(_arrived(notebook, place))
    page.mouse.up()
    notebook.assert_quiet()
    assert len(keyboard) == len(drag) == MOVES
    said = " | ".join(f"{np.median(ms):.0f} / {np.percentile(ms, 95):.0f}" for ms in (keyboard, drag))
    print(f"\n| explorer, 64², picture and strip, {MOVES} moves | keyboard, drag [ms]: median / 95 % | {said} |")


def _arrived(notebook: Notebook, place: int) -> float:
    """Wait for the picture of a position; milliseconds from the move to its painted frame."""
    level, found = 20 + 25 * place, []

    def new() -> Any:
        found[:] = [ms for seen, ms in notebook.page.evaluate("window.seen.splice(0)") if abs(seen - level) <= 2]
        return found

    notebook.until(new, f"the picture of position {place}")
    return float(found[-1])
