"""Pictures under dials: nothing missing, frames of one size, a player that holds all, sliders that follow."""

import io
import re
from html.parser import HTMLParser

import IPython.display
import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from medshift.errors import DataError, ParameterError
from medshift.widgets.message import Message
from medshift.widgets.pictures import Dial, Pictures, places, png_of
from medshift.widgets.show import STATIC, show
from medshift.widgets.sliders import sliders
from medshift.widgets.static import filmstrip, player

TAU, SCALE = Dial("τ", ("0", "0.3", "1"), 1), Dial("w", ("1", "2"))


def draw(tau: int, scale: int) -> Figure:
    figure, axis = plt.subplots(figsize=(2, 1.5))
    axis.plot([0, 10**tau], [0, scale + 1])
    axis.set_ylabel("y" * (1 + 5 * scale))  # a tight box would follow this
    return figure


def describe(tau: int, scale: int) -> str:
    return f"line <{tau}> & {scale}"


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    plt.close("all")  # what other tests left open
    return Pictures.drawn("Lines", (TAU, SCALE), draw, describe)


class Player(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.images: dict[str, dict[str, str | None]] = {}
        self.dials: list[dict[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        held = dict(attrs)
        if tag == "img":
            self.images[str(held["data-place"])] = held
        if tag == "input":
            self.dials.append(held)


def test_every_setting_is_drawn_once_at_one_size_and_no_figure_stays_open(pictures: Pictures) -> None:
    assert list(pictures.frames) == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]
    assert {Image.open(io.BytesIO(frame)).size for frame in pictures.frames.values()} == {(200, 150)}
    assert len(set(pictures.frames.values())) == 6 and not plt.get_fignums()


def test_few_colours_show_the_figure_as_it_is() -> None:
    figure = draw(1, 1)
    buffer = io.BytesIO()
    with plt.rc_context({"savefig.bbox": "standard"}):
        figure.savefig(buffer, format="png", dpi=100)
    full = np.asarray(Image.open(buffer).convert("RGB")).astype(int)
    small = png_of(figure)
    assert np.abs(np.asarray(Image.open(io.BytesIO(small)).convert("RGB")).astype(int) - full).max() <= 8
    assert len(small) < len(buffer.getvalue())


def test_the_player_holds_every_picture_and_shows_where_the_dials_start(pictures: Pictures) -> None:
    found = Player(player(pictures))
    assert set(found.images) == {" ".join(map(str, place)) for place in places(pictures.dials)}
    assert [place for place, image in found.images.items() if "hidden" not in image] == ["1 0"]
    assert found.images["2 1"]["alt"] == "τ = 1, w = 2: line <2> & 1"
    assert [(d["max"], d["value"], d["data-values"]) for d in found.dials] == [("2", "1", "0|0.3|1"), ("1", "0", "1|2")]
    assert "http" not in player(pictures).replace("http-equiv", "")


def test_the_filmstrip_shows_the_first_dial_from_end_to_end(pictures: Pictures) -> None:
    many = Dial("t", tuple(map(str, range(21))), 7)
    longer = Pictures("t", (many,), {(i,): pictures.frames[0, 0] for i in range(21)}, {(i,): "" for i in range(21)})
    assert longer.strip() == [(0,), (5,), (7,), (10,), (15,), (20,)]
    assert pictures.strip() == [(0, 0), (1, 0), (2, 0)]
    width, height = Image.open(io.BytesIO(filmstrip(pictures))).size
    assert width == 3 * 206 and height > 150


def test_a_missing_picture_and_a_dial_without_values_are_refused(pictures: Pictures) -> None:
    with pytest.raises(ParameterError, match="no picture at τ = 0.3, w = 2"):
        Pictures("x", pictures.dials, {k: v for k, v in pictures.frames.items() if k != (1, 1)}, pictures.texts)
    with pytest.raises(ParameterError, match="no description"):
        Pictures("x", pictures.dials, pictures.frames, {})
    for values, start in (((), 0), (("1",), 1)):
        with pytest.raises(ParameterError, match="at least one value"):
            Dial("τ", values, start)


def test_sliders_show_the_picture_of_their_places(pictures: Pictures) -> None:
    title, lost, tau, scale, picture, words, message = sliders(pictures).children
    assert "kernel is gone" in lost.value
    assert picture.value == pictures.frames[1, 0] and "line &lt;1&gt; &amp; 0" in words.value
    tau.index, scale.index = 2, 1
    assert picture.value == pictures.frames[2, 1] and tau.value == 2 and tau.continuous_update
    assert message.value == "" and title.value == "<b>Lines</b>"


def test_what_fails_in_a_callback_is_told_in_the_widget() -> None:
    message = Message()
    with message.of_errors():
        raise DataError("no <image>")
    assert "no &lt;image&gt;" in message.widget.value
    with message.of_errors():
        raise ZeroDivisionError("by 0")
    assert "ZeroDivisionError: by 0" in message.widget.value
    with message.of_errors():
        pass
    assert message.widget.value == ""


def test_a_batch_run_leaves_a_strip_and_a_player_and_no_widget(
    pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[object] = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    monkeypatch.setenv(STATIC, "1")
    show(pictures)
    strip, page = shown
    assert isinstance(strip, IPython.display.Image) and isinstance(page, IPython.display.HTML)
    assert re.search(r"Lines. Frames at τ = 0, w = 1, ", str(strip.alt)) and 'class="medshift-player"' in page.data
    monkeypatch.setenv(STATIC, "0")
    show(pictures)
    assert isinstance(shown[2], ipywidgets.Widget) and len(shown) == 3
