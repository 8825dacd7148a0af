"""99_explorer in a real browser: what a slider says is what is shown, and nothing that is done to it breaks it.

A smoke run in a folder of its own makes the network and the lattice. The test opens the same folder, so it knows to
the pixel what each setting has to show, and can translate by `MedShift.translate` what is off the lattice.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
import torch
from PIL import Image

from browser.lab import ROOT, Server, with_parameters
from browser.sheets import Notebook
from medshift.ode import DEFAULT_STEPS
from medshift.repro.run import configure
from medshift.results.explorer import LESSONS, failures_of, leg_at, shown_at
from medshift.stages.lattice import load_lattice
from medshift.stages.network import open_translator
from medshift.viz.explorer import SIDE, STEP, TOP, ExplorerCanvas, Shown, leg_strip
from medshift.widgets.explorer import MORE_SCALES, MORE_TAUS, STEPS
from medshift.widgets.own_image import read_file

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(900)]

TRANSLATION, TRUTH, ERROR = 1, 2, 3  # places of the images in a frame
NAMES = {"τ": "medshift-tau", "guidance": "medshift-guidance", "steps": "medshift-steps"}


class Explorer:
    """The open notebook, and what it has to show."""

    def __init__(self, notebook: Notebook, out: Path) -> None:
        self.notebook, self.page, self.out = notebook, notebook.page, out
        run = configure("99_explorer", {"profile": "smoke", "out_dir": str(out), "device": "cpu"})
        self.network, self.lattice = run.folder("network"), load_lattice(run.folder("lattice"))
        self.canvas = ExplorerCanvas()
        self.values: dict[str, list[float]] = {
            "τ": sorted({*self.lattice.taus, *MORE_TAUS}),
            "guidance": sorted({*self.lattice.scales, *MORE_SCALES}),
            "steps": list(STEPS),
        }

    # What is there.

    def picture(self) -> np.ndarray:
        return self.notebook.pixels(self.page.locator("img.medshift-picture").first)

    def strip(self) -> np.ndarray:
        return self.notebook.pixels(self.page.locator("img.medshift-strip").first)

    def block(self, place: int, picture: np.ndarray | None = None) -> np.ndarray:
        """One of the four images in a frame."""
        sheet = self.picture() if picture is None else picture
        return sheet[TOP : TOP + SIDE, 4 + place * STEP : 4 + place * STEP + SIDE]

    def message(self) -> str:
        return self.page.locator(".medshift-message").first.text_content().strip()

    def busy(self) -> bool:
        return self.page.locator(".medshift-stop").is_visible()

    # What is done.

    def slider(self, name: str) -> Any:
        return self.page.locator(f".{NAMES[name]}")

    def turn(self, name: str, value: float) -> None:
        """Turn a slider to a value by the keyboard."""
        steps = self.values[name].index(value)
        self.notebook.keys(self.slider(name), "Home", *["ArrowRight"] * steps)
        self.reads(name, value)

    def reads(self, name: str, value: float) -> None:
        readout = self.slider(name).locator(".widget-readout")
        self.notebook.until(lambda: readout.text_content() == f"{value:g}", f"the readout of {name} says {value:g}")

    def choose(self, name: str, number: int) -> None:
        self.page.locator(f".medshift-{name} select").select_option(index=number)

    def home(self) -> None:
        """τ = 0.1, guidance 1, 15 steps, the first view of the first pair."""
        self.choose("view", 0)
        self.choose("pair", 0)
        for name, value in (("τ", 0.1), ("guidance", 1.0), ("steps", DEFAULT_STEPS)):
            self.turn(name, value)
        self.shows(0.1)

    # What has to be seen.

    def frame(self, tau: float, scale: float = 1.0, *, pair: int = 0, view: int = 0) -> np.ndarray:
        """A frame of the lattice."""
        place = self.lattice.taus.index(tau), self.lattice.scales.index(scale)
        return _pixels(self.canvas.frame(shown_at(self.lattice, pair, view, *place)))

    def shows(self, tau: float, scale: float = 1.0, *, pair: int = 0, view: int = 0) -> None:
        """Wait until picture and strip are, pixel for pixel, those of a place of the lattice."""
        frame = self.frame(tau, scale, pair=pair, view=view)
        place = self.lattice.taus.index(tau), self.lattice.scales.index(scale)
        leg = _pixels(leg_strip(*leg_at(self.lattice, pair, view, *place)))
        self.notebook.until(
            lambda: not self.busy() and _same(self.picture(), frame) and _same(self.strip(), leg),
            f"picture and strip of τ = {tau:g}, guidance {scale:g}, and nothing under way",
        )

    def translated(self, image: torch.Tensor, tau: float, scale: float, steps: int, pair: int = 0) -> np.ndarray:
        """The translation's place of a frame, from `MedShift.translate`."""
        model = open_translator(self.network, "cpu")
        source, target = self.lattice.pairs[pair]
        result = model.translate(image, source, target, tau=tau, guidance=scale, steps=steps)
        return self.block(TRANSLATION, _pixels(self.canvas.frame(Shown(image[0], result[0], None))))

    def finishes(self, expected: np.ndarray) -> None:
        """Wait until the translation's place shows it, to two of 255 grey levels, and nothing is under way."""
        self.notebook.until(lambda: _near(self.block(TRANSLATION), expected), "the translation")
        self.notebook.until(lambda: not self.busy(), "the bar is gone")


def _pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and bool((one == other).all())


def _near(one: np.ndarray, other: np.ndarray) -> bool:
    return bool(np.abs(one.astype(int) - other).max() <= 2)


@pytest.fixture(scope="module")
def opened(browser: Any, server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Explorer]:
    out = tmp_path_factory.mktemp("out")
    source = nbformat.read(ROOT / "notebooks" / "99_explorer.ipynb", as_version=4)
    target = server.folder / "99_explorer.ipynb"
    with_parameters(source, target, profile="smoke", out_dir=str(out), device="cpu", offline=True)
    context = browser.new_context(viewport={"width": 1400, "height": 1100})
    notebook = Notebook.opened(context.new_page(), server, target.name)
    notebook.run_all(patience=600)
    assert not notebook.tracebacks()
    notebook.page.locator("img.medshift-picture").first.wait_for()
    yield Explorer(notebook, out)
    context.close()


@pytest.fixture
def explorer(opened: Explorer) -> Iterator[Explorer]:
    """The open explorer in its first setting; nobody may have complained when a test is over."""
    opened.home()
    yield opened
    opened.notebook.assert_quiet()


def test_the_lattice_is_shown_by_the_keyboard(explorer: Explorer) -> None:
    explorer.turn("τ", 0.8)
    explorer.shows(0.8)
    high = explorer.picture(), explorer.strip()
    explorer.notebook.shot("explorer-0.8")
    explorer.notebook.keys(explorer.slider("τ"), "ArrowLeft", "ArrowLeft", "ArrowLeft")
    explorer.reads("τ", 0.1)
    explorer.shows(0.1)
    low = explorer.picture(), explorer.strip()
    explorer.notebook.shot("explorer-0.1")
    for place in (TRANSLATION, ERROR):
        assert not _same(explorer.block(place, low[0]), explorer.block(place, high[0])), place
    for place in (0, TRUTH):
        assert _same(explorer.block(place, low[0]), explorer.block(place, high[0])), place
    assert not _same(low[1], high[1])
    for name in ("picture", "strip"):  # as many pixels as were drawn, no more
        shown = explorer.page.locator(f"img.medshift-{name}").first
        assert shown.evaluate("one => one.clientWidth === one.naturalWidth"), name
    explorer.turn("guidance", 2.0)
    explorer.shows(0.1, 2.0)
    explorer.choose("pair", 1)
    explorer.shows(0.1, 2.0, pair=1)
    explorer.choose("view", 1)
    explorer.shows(0.1, 2.0, pair=1, view=1)


def test_the_lattice_is_shown_by_the_mouse(explorer: Explorer) -> None:
    taus = explorer.values["τ"]
    share = {tau: taus.index(tau) / (len(taus) - 1) for tau in taus}
    explorer.notebook.drag(explorer.slider("τ"), share[0.1], share[0.8])
    explorer.reads("τ", 0.8)
    explorer.shows(0.8)
    explorer.notebook.drag(explorer.slider("τ"), share[0.8], share[0.1])
    explorer.reads("τ", 0.1)
    explorer.shows(0.1)


def test_the_gallery_names_each_failure_in_full_and_shows_it(explorer: Explorer) -> None:
    failures = failures_of(explorer.lattice)
    menu, picture = explorer.page.locator(".medshift-dial select"), explorer.page.locator("img.medshift-picture").nth(1)
    names = [name.replace("\xa0", " ") for name in menu.locator("option").all_text_contents()]
    assert names == [LESSONS[name].title for name in failures]
    for number, failure in enumerate(failures.values()):
        menu.select_option(index=number)
        frame = _pixels(explorer.canvas.frame(failure.shown))
        explorer.notebook.until(lambda f=frame: _same(explorer.notebook.pixels(picture), f), names[number])
    picture.scroll_into_view_if_needed()
    explorer.notebook.shot("gallery")


def test_what_is_off_the_lattice_is_translated_and_remembered(explorer: Explorer) -> None:
    before = explorer.block(TRANSLATION)
    explorer.turn("steps", 5)
    explorer.turn("guidance", 3.0)
    image = explorer.lattice.tensors["source/0"][:1].float()
    expected = explorer.translated(image, 0.1, 3.0, 5)
    assert not _near(before, expected)
    explorer.finishes(expected)
    explorer.notebook.shot("explorer-live-done")
    explorer.turn("guidance", 1.0)
    explorer.turn("guidance", 3.0)
    explorer.finishes(expected)
    assert explorer.message() == ""


def test_stop_is_heard_while_a_long_one_runs(explorer: Explorer) -> None:
    from playwright.sync_api import TimeoutError as TooLate

    explorer.turn("guidance", 3.0)
    explorer.turn("steps", 60)
    explorer.finishes(explorer.translated(explorer.lattice.tensors["source/0"][:1].float(), 0.1, 3.0, 60))
    for tau in (0.0, 0.01, 0.15, 0.4):  # on a fast machine one may have ended before it is stopped
        before = explorer.picture()
        explorer.turn("τ", tau)
        with suppress(TooLate):
            explorer.page.locator(".medshift-stop").click(timeout=1000)
        explorer.notebook.until(lambda: not explorer.busy(), "the bar is gone")
        if "Stopped" in explorer.message():
            break
    assert "Stopped" in explorer.message()
    explorer.notebook.shot("explorer-stopped")
    explorer.page.wait_for_timeout(1500)
    assert _same(explorer.picture(), before) and not explorer.busy()


def test_the_last_setting_is_what_is_shown(explorer: Explorer) -> None:
    for end in ("End", "Home") * 4:
        for name in NAMES:
            explorer.notebook.keys(explorer.slider(name), end)
    for first, last in ((0.0, 1.0), (1.0, 0.0), (0.0, 1.0)):
        for name in NAMES:
            explorer.notebook.drag(explorer.slider(name), first, last, moves=8)
    for name, value in (("guidance", 2.0), ("steps", DEFAULT_STEPS), ("τ", 0.8)):
        explorer.turn(name, value)
    explorer.shows(0.8, 2.0)
    explorer.page.wait_for_timeout(1500)  # nothing that was dropped comes late
    explorer.shows(0.8, 2.0)
    assert explorer.message() == ""


def test_a_restarted_kernel_brings_all_back(explorer: Explorer) -> None:
    explorer.turn("τ", 0.8)
    explorer.shows(0.8)
    explorer.turn("steps", 60)
    gone = explorer.page.locator(".medshift-gone")
    assert gone.count() and not any(line.is_visible() for line in gone.all())
    explorer.notebook.restart()
    explorer.page.locator(".jupyter-widgets-disconnected").first.wait_for()
    explorer.notebook.idle()
    gone.first.wait_for(state="visible")
    assert all(line.is_visible() and "Run All Cells" in line.text_content() for line in gone.all())
    faded = explorer.page.locator("img.medshift-picture").first.evaluate("one => getComputedStyle(one).opacity")
    assert float(faded) < 0.5
    explorer.notebook.shot("explorer-disconnected")
    lost = [line for line in explorer.notebook.complaints if "Connection lost" not in line]
    assert not lost, lost
    explorer.notebook.complaints.clear()
    explorer.notebook.run_all(patience=300)
    assert not explorer.notebook.tracebacks()
    explorer.page.locator("img.medshift-picture").first.wait_for()
    assert gone.count() and not any(line.is_visible() for line in gone.all())
    explorer.home()
    explorer.turn("τ", 0.8)
    explorer.shows(0.8)


def _upload(explorer: Explorer, path: Path) -> None:
    with explorer.page.expect_file_chooser() as chooser:
        explorer.page.locator(".medshift-upload").click()
    chooser.value.set_files(path)


@pytest.fixture
def own(explorer: Explorer) -> Iterator[Explorer]:
    """The explorer with the part for an image of one's own unfolded."""
    title = explorer.page.get_by_text("An X-ray of your own", exact=True)
    if not explorer.page.locator(".medshift-upload").is_visible():
        title.click()
    explorer.page.locator(".medshift-upload").scroll_into_view_if_needed()
    yield explorer
    title.click()


def test_what_is_no_grey_picture_is_told_in_its_place(own: Explorer, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    (tmp_path / "scan.pdf").write_bytes(b"%PDF-1.7\n%%EOF\n")
    (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    Image.fromarray(generator.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(tmp_path / "photo.png")
    for name, words in (("scan.pdf", "no PNG, TIFF or DICOM"), ("torn.png", "cannot be read"), ("photo.png", "colour")):
        _upload(own, tmp_path / name)
        own.notebook.until(lambda w=words, n=name: w in own.message() and n in own.message(), f"{name}: {words}")
        assert str(tmp_path) not in own.message() and "Error" not in own.message()
        own.notebook.shot(f"explorer-{name}")
        own.turn("τ", 0.8)
        own.shows(0.8)
        assert own.message() == ""
        own.turn("τ", 0.1)
        own.shows(0.1)


def test_what_is_too_large_is_told_in_its_place(own: Explorer, tmp_path: Path) -> None:
    Image.new("L", (10_000, 10_000)).save(tmp_path / "huge.png", compress_level=1)
    field = own.page.locator(".medshift-path input")
    for text, words in ((tmp_path / "huge.png", "10000 × 10000"), (tmp_path / "none.png", "no file")):
        field.fill(str(text))
        field.press("Enter")
        own.notebook.until(lambda w=words: w in own.message(), words)
        own.turn("τ", 0.8)
        own.shows(0.8)
        own.turn("τ", 0.1)
        own.shows(0.1)


@pytest.mark.parametrize("way", ["upload", "path"])
def test_an_x_ray_of_ones_own_is_translated(own: Explorer, tmp_path: Path, way: str) -> None:
    rows, columns = np.mgrid[0:150, 0:200]
    path = tmp_path / f"my <b>hand & foot, {way}.png"
    Image.fromarray((40 + rows + 100 * (np.hypot(rows - 75, columns - 90) > 50)).astype(np.uint8)).save(path)
    own.turn("steps", 5)
    if way == "upload":
        _upload(own, path)
    else:
        field = own.page.locator(".medshift-path input")
        field.fill(str(path))
        field.press("Enter")
    size = own.lattice.tensors["source/0"].shape[-1]
    own.finishes(own.translated(read_file(path, size), 0.1, 1.0, 5))
    chosen = own.page.locator(".medshift-view select").evaluate("one => one.selectedOptions[0].textContent")
    assert path.name in chosen.replace("\xa0", " ") and own.message() == ""
    own.notebook.shot(f"explorer-own-{way}")
    own.choose("pair", 1)
    own.finishes(own.translated(read_file(path, size), 0.1, 1.0, 5, pair=1))
