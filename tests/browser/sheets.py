"""A page of the browser and a notebook open in it: what is done to them, what they show, what they complain of.

The waits are those that do not lie. JupyterLab's indicator says *idle* while there is no kernel yet, and *Run All* is
lost then; the status bar's ``Python 3 (ipykernel) | Idle`` is true.
"""

from __future__ import annotations

import base64
import io
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np
import pytest
from PIL import Image

from browser.lab import PATIENCE, ROOT, Server

SHOTS = ROOT / "build" / "browser"
IDLE = "Python 3 (ipykernel) | Idle"
PIXELS = """async (picture) => {
  for (let left = 20; ; left--) {  // another picture may take this one's place while it is decoded
    try { await picture.decode(); break; } catch (error) { if (!left) throw error; }
    await new Promise((done) => setTimeout(done, 50));
  }
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [picture.naturalWidth, picture.naturalHeight];
  canvas.getContext("2d").drawImage(picture, 0, 0);
  return canvas.toDataURL("image/png");
}"""


@dataclass
class Sheet:
    """A page of the browser, and all that it complained of.

    Args:
        page: Playwright's.
        host: the one host that may be asked.
        complaints: errors and warnings of the console, requests that failed or went elsewhere.
    """

    page: Any
    host: str
    complaints: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        page = self.page
        page.set_default_timeout(1000 * PATIENCE)
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.complaints.append(f"page error: {error}"))
        page.on("requestfailed", lambda request: self.complaints.append(f"failed: {request.url} {request.failure}"))
        page.on("response", self._response)
        page.on("request", self._request)

    def _console(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(f"console {message.type}: {message.text}")

    def _response(self, response: Any) -> None:
        if response.status >= 400:
            self.complaints.append(f"{response.status}: {response.url}")

    def _request(self, request: Any) -> None:
        parts = urlsplit(request.url)
        if parts.scheme not in ("data", "blob") and (parts.hostname or "") != self.host:
            self.complaints.append(f"asked elsewhere: {request.url}")

    def until(self, what: Callable[[], object], meaning: str, *, patience: float = PATIENCE) -> None:
        """Wait until `what` is true, while the browser goes on; fail with `meaning` after `patience` seconds."""
        end = time.monotonic() + patience
        while not what():
            if time.monotonic() > end:
                self.shot("failed")
                pytest.fail(f"after {patience:g} s still not: {meaning}; complaints: {self.complaints}")
            self.page.wait_for_timeout(50)

    def pixels(self, picture: Any) -> np.ndarray:
        """What an ``<img>`` shows, drawn onto a canvas: (H,W,3), uint8."""
        data = picture.evaluate(PIXELS).partition(",")[2]
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))

    def shot(self, name: str, part: Any = None) -> None:
        """A screenshot into build/browser, of everything or of a part."""
        SHOTS.mkdir(parents=True, exist_ok=True)
        (part or self.page).screenshot(path=SHOTS / f"{name}.png")


class Notebook(Sheet):
    """A notebook open in JupyterLab."""

    @classmethod
    def opened(cls, page: Any, server: Server, name: str) -> Notebook:
        """Open ``name`` and wait for its kernel."""
        notebook = cls(page, "127.0.0.1")
        alone = f"lab/workspaces/{secrets.token_hex(4)}"  # the usual workspace brings back what was open before
        page.goto(server.address(f"{alone}/tree/{quote(name)}"))
        notebook.idle()
        return notebook

    def idle(self) -> None:
        self.page.get_by_text(IDLE, exact=True).wait_for()

    def prompts(self) -> list[str]:
        found = self.page.locator(".jp-Notebook .jp-CodeCell .jp-InputArea-prompt").all_text_contents()
        return [text.strip() for text in found]

    def menu(self, *items: str) -> None:
        """Choose an entry of the menu bar; one with a shortcut carries it in its name, so its label is asked for."""
        self.page.get_by_role("menuitem", name=items[0], exact=True).click()
        for item in items[1:]:
            label = self.page.locator(".lm-Menu-itemLabel", has_text=re.compile(f"^{re.escape(item)}$"))
            label.first.click()

    def run_all(self, *, patience: float = PATIENCE) -> None:
        """Run All Cells, and wait until every one was run."""
        before = self.prompts()
        self.menu("Run", "Run All Cells")
        self.until(lambda: self.prompts() != before, "a cell runs")
        quiet = 0

        def over() -> bool:
            """All have numbers, or the kernel has had nothing to do for a while.

            JupyterLab takes the stars off the cells that wait as soon as one has failed, and a cell tagged
            ``raises-exception`` may: those after it still run.
            """
            nonlocal quiet
            waits = "[*]:" in self.prompts() or not self.page.get_by_text(IDLE, exact=True).is_visible()
            quiet = 0 if waits else quiet + 1
            return self._numbered() or quiet > 60

        self.until(over, "all cells were run", patience=patience)
        assert self._numbered(), self.tracebacks()

    def _numbered(self) -> bool:
        return all(re.fullmatch(r"\[\d+\]:", text) for text in self.prompts())

    def restart(self) -> None:
        """Restart the kernel by the menu."""
        self.menu("Kernel", "Restart Kernel…")
        self.page.locator(".jp-Dialog-buttonLabel", has_text=re.compile("^Restart$")).click()

    def tracebacks(self) -> list[str]:
        """Of cells that failed; what a cell wrote to stderr has the same type, and is left out."""
        texts = self.page.locator('[data-mime-type="application/vnd.jupyter.stderr"]').all_text_contents()
        return [text for text in texts if "Traceback (most recent call last)" in text]

    def logged(self) -> list[str]:
        """Titles of JupyterLab's log console that count entries: an exception in a callback shows nowhere else."""
        titles = self.page.locator('[title*="log entries"]').evaluate_all("all => all.map((one) => one.title)")
        return [title for title in titles if not re.match(r"\D*0 log entries", title)]

    def assert_quiet(self) -> None:
        """Nobody complained: no console line, no failed request, nothing in the log console."""
        assert not self.complaints, self.complaints
        if self.logged():
            self.page.locator('[title*="log entries"]').first.click()
            pytest.fail(f"in the log console: {self.page.locator('.jp-LogConsolePanel').inner_text()}")

    def drag(self, slider: Any, start: float, end: float, *, moves: int = 25) -> None:
        """Drag the handle of a slider from a share of its track to another."""
        handle = slider.locator(".noUi-handle")
        handle.scroll_into_view_if_needed()
        box, track = handle.bounding_box(), slider.locator(".noUi-base").bounding_box()
        y = box["y"] + box["height"] / 2
        self.page.mouse.move(box["x"] + box["width"] / 2, y)
        self.page.mouse.down()
        for k in range(moves + 1):
            self.page.mouse.move(track["x"] + track["width"] * (start + (end - start) * k / moves), y)
        self.page.mouse.up()

    def keys(self, slider: Any, *keys: str) -> None:
        """Press keys on the handle of a slider."""
        slider.locator(".noUi-handle").focus()
        for key in keys:
            self.page.keyboard.press(key)
