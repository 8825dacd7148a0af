"""A message in a widget's place: what went wrong in a callback, which a notebook would show nowhere; or that nobody
is there to answer."""

from __future__ import annotations

import html
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import ipywidgets as widgets

from medshift.errors import MedShiftError

# JupyterLab puts the class on every widget whose kernel is gone; the slider still moves then, and nothing answers.
GONE = """<style>
.medshift-gone { display: none; }
.jupyter-widgets-disconnected .medshift-gone { display: block; }
.medshift-picture.jupyter-widgets-disconnected { opacity: .35; }
</style><p class="medshift-gone" role="status">The kernel is gone, and the picture no longer follows the sliders;
Run, Run All Cells brings it back.</p>"""


def gone() -> widgets.HTML:
    """A line that the browser shows by itself once the kernel behind the widgets around it is gone."""
    return widgets.HTML(GONE)


class Message:
    """One line that is empty as long as all is well.

    Attributes:
        widget: to be put where it is to stand.
    """

    def __init__(self) -> None:
        """Start empty."""
        self.widget = widgets.HTML(layout=widgets.Layout(min_height="2em"))  # else what stands below would jump
        self.widget.add_class("medshift-message")
        self._lock = threading.RLock()

    def say(self, text: str) -> None:
        """Show a line; the empty string takes it away."""
        self.widget.value = f'<p role="status">{html.escape(text)}</p>' if text else ""

    @contextmanager
    def of_errors(self) -> Iterator[None]:
        """Clear the line, and put an error of what runs inside into it; the notebook stays usable.

        One at a time: JupyterLab has some callbacks run in the kernel's main thread and some in another, and of two at
        once the older one could show its picture last.

        A mistake of the user's is told by its own words, any other error with its kind, to be reported.
        """
        with self._lock:
            self.say("")
            try:
                yield
            except MedShiftError as error:
                self.say(str(error))
            except Exception as error:  # noqa: BLE001  in a callback nobody else would see it
                self.say(f"{type(error).__name__}: {error}")
