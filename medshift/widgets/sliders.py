"""`Pictures` in a live kernel: one slider a dial over one persistent image."""

from __future__ import annotations

import html
from typing import Any

import ipywidgets as widgets

from medshift.widgets.message import Message, gone
from medshift.widgets.pictures import Dial, Pictures

FITS = 12  # letters of a value that fit beside a slider


def sliders(pictures: Pictures) -> widgets.Widget:
    """A box of sliders, picture and words.

    The picture follows while a slider is dragged: its bytes are ready, and ipywidgets sends only the newest of what
    waits. What the picture shows stands under it in words.
    """
    dials = [(dropdown if max(map(len, dial.values)) > FITS else slider)(dial) for dial in pictures.dials]
    picture = image()
    picture.add_class("medshift-picture")
    words, message = widgets.HTML(), Message()

    def turn(change: Any = None) -> None:
        with message.of_errors():
            place = tuple(dial.index for dial in dials)
            picture.value = pictures.frames[place]
            words.value = f"<small>{html.escape(pictures.texts[place])}</small>"

    for dial in dials:
        dial.observe(turn, "index")
    turn()
    title = widgets.HTML(f"<b>{html.escape(pictures.title)}</b>")
    return widgets.VBox([title, gone(), *dials, picture, words, message.widget])


def image() -> widgets.Image:
    """An empty picture that is shown pixel for pixel: a box would stretch it to its own width."""
    return widgets.Image(format="png", layout=widgets.Layout(align_self="flex-start", max_width="100%"))


def slider(dial: Dial, **layout: Any) -> widgets.SelectionSlider:
    """A slider over the values of a dial; its ``index`` is the place, and its class names the dial."""
    made = widgets.SelectionSlider(
        options=[(value, i) for i, value in enumerate(dial.values)],
        index=dial.start,
        description=dial.name,
        continuous_update=True,
        style={"description_width": "9em"},
        layout=widgets.Layout(width="32em", **layout),
    )
    made.add_class("medshift-dial")
    return made


def dropdown(dial: Dial) -> widgets.Dropdown:
    """A list of a dial's values, for those that are too long to stand beside a slider; its ``index`` is the place."""
    made = widgets.Dropdown(
        options=[(value, i) for i, value in enumerate(dial.values)],
        index=dial.start,
        description=dial.name,
        style={"description_width": "9em"},
        layout=widgets.Layout(width="32em"),
    )
    made.add_class("medshift-dial")
    return made
