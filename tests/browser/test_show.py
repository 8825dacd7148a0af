"""`show` in a real browser: every dial moves its own picture; and notebook 00, which is made of such dials."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from browser.lab import ROOT, Server, of_cells, with_parameters
from browser.sheets import Notebook
from medshift.repro.editions import edition, read_notebook

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(900)]

LESSON = ROOT / "notebooks" / "00_flow_matching.ipynb"
TWO_SHOWS = """
import io
from PIL import Image
from medshift.widgets.pictures import Dial, Pictures, places
from medshift.widgets.show import show

def grey(level):
    buffer = io.BytesIO()
    Image.new("L", (80, 60), level).save(buffer, "png")
    return buffer.getvalue()

def pictures(title, first):
    dials = (Dial("tens", tuple("01234"), 2), Dial("ones", ("0", "1", "2")))
    levels = {(i, j): first + 10 * i + j for i, j in places(dials)}
    frames, texts = ({place: make(n) for place, n in levels.items()} for make in (grey, "level <{}>".format))
    return Pictures(title, dials, frames, texts)

show(pictures("Dark & cold", 0))
show(pictures("Light", 100))
"""
RAISES = """
import ipywidgets
button = ipywidgets.Button(description="Break")
button.add_class("test-break")
button.on_click(lambda _: 1 / 0)
button
"""


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1400, "height": 1100})
    yield context.new_page()
    context.close()


class Box:
    """The number-th of the pictures that were shown, with its sliders."""

    def __init__(self, notebook: Notebook, number: int) -> None:
        self.notebook = notebook
        self.box = notebook.page.locator(".widget-vbox", has=notebook.page.locator("img.medshift-picture")).nth(number)
        self.picture = self.box.locator("img.medshift-picture")

    def dial(self, number: int) -> Any:
        return self.box.locator(".medshift-dial").nth(number)

    def level(self) -> int:
        """Grey level of a uniform picture."""
        found = self.notebook.pixels(self.picture)
        assert found.min() == found.max()
        return int(found[0, 0, 0])

    def shows(self, level: int) -> None:
        self.notebook.until(lambda: self.level() == level and f"level <{level}>" in self.box.text_content(), f"{level}")


def test_every_dial_moves_its_own_picture(page: Any, server: Server) -> None:
    name = of_cells(server.folder / "two shows.ipynb", TWO_SHOWS).name
    notebook = Notebook.opened(page, server, name)
    notebook.run_all()
    assert not notebook.tracebacks()
    dark, light = Box(notebook, 0), Box(notebook, 1)
    dark.shows(20)
    light.shows(120)
    notebook.keys(dark.dial(0), "ArrowRight")
    dark.shows(30)
    notebook.keys(dark.dial(1), "End")
    dark.shows(32)
    notebook.keys(dark.dial(0), "Home")
    dark.shows(2)
    notebook.drag(light.dial(0), 0.5, 1.0)
    light.shows(140)
    notebook.drag(light.dial(1), 0.0, 1.0)
    light.shows(142)
    dark.shows(2)
    assert "Dark & cold" in dark.box.text_content()
    width = dark.picture.evaluate("picture => [picture.clientWidth, picture.naturalWidth]")
    assert width == [80, 80]  # pixels are shown as they were drawn
    notebook.shot("show")
    notebook.assert_quiet()


def test_an_exception_in_a_callback_would_be_found(page: Any, server: Server) -> None:
    """What `assert_quiet` relies on: it shows in the log console alone."""
    notebook = Notebook.opened(page, server, of_cells(server.folder / "raises.ipynb", RAISES).name)
    notebook.run_all()
    assert not notebook.logged()
    page.locator(".test-break").click()
    notebook.until(notebook.logged, "the log console counts an entry")


def test_the_lesson_moves(page: Any, server: Server, tmp_path: Path) -> None:
    target = server.folder / "lesson.ipynb"
    students = edition(read_notebook(LESSON), "student", LESSON.name)
    with_parameters(students, target, profile="smoke", out_dir=str(tmp_path), device="cpu", steps=60)
    notebook = Notebook.opened(page, server, target.name)
    notebook.run_all(patience=600)
    number = page.locator("img.medshift-picture").count()
    assert number == sum(cell.source.count("show(") for cell in students.cells if cell.cell_type == "code")
    for k in range(number):
        box = Box(notebook, k)
        box.picture.scroll_into_view_if_needed()
        source = box.picture.get_attribute("src")
        readout = box.dial(0).locator(".widget-readout")
        before, said = notebook.pixels(box.picture), readout.text_content()
        key = (
            "ArrowLeft" if box.dial(0).locator(".noUi-handle").get_attribute("aria-valuenow") != "0.0" else "ArrowRight"
        )
        notebook.keys(box.dial(0), key)
        notebook.until(lambda b=box, s=source: b.picture.get_attribute("src") != s, f"another picture in box {k}")
        assert readout.text_content() != said
        after = notebook.pixels(box.picture)
        assert after.shape == before.shape and (after != before).any(), k  # the picture does not jump
        notebook.shot(f"lesson-{k}")
    notebook.assert_quiet()
