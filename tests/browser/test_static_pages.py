"""Pages without kernel and network: a player turns by the keyboard alone, and asks nobody for anything."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from nbformat import v4, write
from PIL import Image

from browser.sheets import Sheet
from medshift.repro.site import build_site
from medshift.widgets.pictures import Dial, Pictures, places
from medshift.widgets.static import player

pytestmark = [pytest.mark.browser, pytest.mark.slow]

DIALS = (Dial("τ", ("0.1", "0.3", "0.8", "1"), 1), Dial("guidance < & >", ("1", "2", "3")))


def _pictures(title: str, first: int) -> Pictures:
    """A picture of one grey level for every setting: `first` + 10 of the first dial + the second."""
    frames: dict[tuple[int, ...], bytes] = {}
    for i, j in places(DIALS):
        buffer = io.BytesIO()
        Image.new("L", (40, 30), first + 10 * i + j).save(buffer, "png")
        frames[i, j] = buffer.getvalue()
    return Pictures(title, DIALS, frames, {place: f"setting {place}" for place in frames})


class Still(Sheet):
    """A page from the disk, and every address that it asked for."""

    def __init__(self, page: Any, path: Path) -> None:
        super().__init__(page, "")
        self.asked: list[str] = []
        page.on("request", lambda request: self.asked.append(request.url))
        page.goto(path.as_uri())

    def turns(self, number: int, first: int) -> None:
        """Turn every dial of the number-th player to each of its values, and look."""
        figure = self.page.locator("figure.medshift-player").nth(number)
        dials = figure.locator("input[type=range]")
        self.sees(figure, first, [1, 0])
        place = [1, 0]
        for k, key, now in ((0, "Home", 0), (0, "ArrowRight", 1), (0, "ArrowRight", 2), (0, "End", 3),
                            (1, "ArrowRight", 1), (1, "End", 2), (0, "ArrowLeft", 2), (1, "Home", 0)):  # fmt: skip
            dials.nth(k).focus()
            self.page.keyboard.press(key)
            place[k] = now
            self.sees(figure, first, place)

    def sees(self, figure: Any, first: int, place: list[int]) -> None:
        """One picture shows, the one of this place; so say the words beside the dials and for those who hear them."""
        shown = figure.locator("img:visible")
        assert shown.count() == 1
        levels = self.pixels(shown)
        assert levels.min() == levels.max() == first + 10 * place[0] + place[1]
        assert str(tuple(place)) in shown.get_attribute("alt")
        for dial, i, k in zip(DIALS, place, range(len(place)), strict=True):
            control = figure.locator("input[type=range]").nth(k)
            assert control.get_attribute("aria-valuetext") == dial.values[i]
            assert figure.locator("output").nth(k).text_content() == dial.values[i]
            assert dial.name in figure.locator("label").nth(k).text_content()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1000, "height": 800})
    yield context.new_page()
    context.close()


def test_players_turn_by_the_keyboard_and_ask_nobody(page: Any, tmp_path: Path) -> None:
    path = tmp_path / "players.html"
    body = player(_pictures("Dark", 0)) + player(_pictures("Light", 100))
    path.write_text(f'<!DOCTYPE html><meta charset="utf-8"><title>Players</title>{body}', encoding="utf-8")
    still = Still(page, path)
    still.turns(0, 0)
    still.turns(1, 100)
    still.shot("player")
    assert [address for address in still.asked if not address.startswith("data:")] == [path.as_uri()]
    assert not still.complaints


def test_a_player_of_the_site_turns_too(page: Any, tmp_path: Path) -> None:
    build = tmp_path / "build" / "smoke"
    build.mkdir(parents=True)
    outputs = [
        v4.new_output("display_data", {"text/html": player(_pictures(title, first))})
        for title, first in (("Dark", 0), ("Light", 100))
    ]
    cells = [v4.new_markdown_cell("# A lesson"), v4.new_code_cell("show(pictures)", outputs=outputs, execution_count=1)]
    write(v4.new_notebook(cells=cells), build / "00_flow_matching.ipynb")
    path = build_site("smoke", out_dir=str(tmp_path)).parent / "00_flow_matching.html"
    still = Still(page, path)
    still.turns(0, 0)
    still.turns(1, 100)
    still.shot("site-player")
    elsewhere = [address for address in still.asked if not address.startswith(("data:", build.as_uri()))]
    assert not elsewhere and not still.complaints
