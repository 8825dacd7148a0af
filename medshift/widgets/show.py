"""`show`: sliders where there is a kernel to move them, a filmstrip and a player where there is none."""

from __future__ import annotations

import os

from medshift.widgets.pictures import Pictures
from medshift.widgets.static import filmstrip, player

STATIC = "MEDSHIFT_STATIC"


def is_static() -> bool:
    """Whether this is a batch run, whose pages nobody will answer."""
    return os.environ.get(STATIC, "") not in ("", "0")


def show(pictures: Pictures) -> None:
    """Show pictures under their dials.

    Args:
        pictures: drawn before, so that a move is answered from memory.
    """
    from IPython.display import display

    if is_static():
        show_static(pictures)
    else:
        from medshift.widgets.sliders import sliders

        display(sliders(pictures))


def show_static(pictures: Pictures) -> None:
    """Leave a labelled filmstrip, for those who print or read where no script runs, and a player."""
    from IPython.display import HTML, Image, display

    strip = ", ".join(pictures.setting(place) for place in pictures.strip())
    picture = filmstrip(pictures)
    width = int.from_bytes(picture[16:20], "big")
    display(Image(data=picture, width=min(width, 900), alt=f"{pictures.title}. Frames at {strip}."))
    display(HTML(player(pictures)))
