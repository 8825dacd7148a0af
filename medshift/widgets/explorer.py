"""The explorer: a view, a pair of domains, and sliders for τ, guidance and steps.

Settings of the lattice are answered from memory while a slider is dragged. Any other is translated in the background:
a bar shows how far it is, Stop drops it, and so does the next move. What was translated once is remembered.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import ipywidgets as widgets
from torch import Tensor

from medshift.ode import DEFAULT_STEPS
from medshift.results.explorer import curves_of, leg_at, measured_of, measures_in_words, pair_name, shown_at
from medshift.stages.lattice import Lattice
from medshift.translate import MedShift
from medshift.viz.explorer import ExplorerCanvas, Shown, leg_strip
from medshift.widgets.live import Knobs, Newest, Step, translation
from medshift.widgets.message import Message, gone
from medshift.widgets.own_image import UPLOAD_MB, read_file, read_upload
from medshift.widgets.pictures import Dial
from medshift.widgets.sliders import image, slider

MORE_TAUS = (0.0, 0.01, 0.15, 0.4, 0.9, 1.0)
MORE_SCALES = (0.0, 1.5, 3.0, 4.0, 6.0)
STEPS = (5, 10, 15, 30, 60)
STRIP = 12  # frames of a live trajectory at most
REMEMBERED = 64  # translations off the lattice, the latest ones
OWN_KEPT = 8  # images of one's own among the views, the latest ones
OWN = "your own image"


class Answer(NamedTuple):
    """What a translation off the lattice shows: its frame, and the states on its way with their titles."""

    shown: Shown
    frames: list[Tensor]
    titles: list[str]


class Explorer:
    """All of it in one box.

    Args:
        lattice: what is answered from memory.
        open_model: opens the network, which only settings off the lattice need.

    Attributes:
        widget: to be displayed.
        newest: the translation under way.
    """

    def __init__(self, lattice: Lattice, open_model: Callable[[], MedShift]) -> None:
        """Build the box and show the first view."""
        self.lattice, self._model, self.newest = lattice, cache(open_model), Newest()
        self._canvas = ExplorerCanvas()
        self._own: dict[int, Tensor] = {}
        self._known: OrderedDict[tuple[int, int, Knobs], Answer] = OrderedDict()
        self._numbers = count(len(lattice.views))
        self._taus = sorted({*lattice.taus, *MORE_TAUS})
        self._scales = sorted({*lattice.scales, *MORE_SCALES})
        self._build()
        self._turn()

    def _build(self) -> None:
        lattice = self.lattice
        self.view = widgets.Dropdown(options=[(n, i) for i, n in enumerate(lattice.views)], description="view")
        self.pair = widgets.Dropdown(
            options=[(pair_name(pair), i) for i, pair in enumerate(lattice.pairs)], description="domains"
        )
        for dropdown, name in ((self.view, "view"), (self.pair, "pair")):
            dropdown.layout.width, dropdown.style.description_width = "32em", "9em"
            dropdown.add_class(f"medshift-{name}")
        start = self._taus.index(min(lattice.taus, key=lambda tau: abs(tau - 0.3)))
        self.tau = slider(Dial("τ", tuple(f"{tau:g}" for tau in self._taus), start))
        self.guidance = slider(
            Dial("guidance", tuple(f"{w:g}" for w in self._scales), self._scales.index(lattice.scales[0]))
        )
        self.steps = slider(Dial("steps of a leg", tuple(map(str, STEPS)), STEPS.index(DEFAULT_STEPS)))
        for one, name in ((self.tau, "tau"), (self.guidance, "guidance"), (self.steps, "steps")):
            one.add_class(f"medshift-{name}")
        self.picture, self.strip = image(), image()
        self.picture.add_class("medshift-picture")
        self.strip.add_class("medshift-strip")
        self.message = Message()
        self.bar = widgets.FloatProgress(min=0, max=1, layout=widgets.Layout(width="16em", visibility="hidden"))
        self.halt = widgets.Button(description="Stop", layout=widgets.Layout(width="6em", visibility="hidden"))
        self.halt.add_class("medshift-stop")
        for one in (self.view, self.pair):
            one.observe(self._turn, "value")
        for one in (self.tau, self.guidance, self.steps):
            one.observe(self._turn, "index")
        self.halt.on_click(self._stop)
        note = widgets.HTML(
            f"<small>Answered at once: τ in {{{', '.join(f'{t:g}' for t in lattice.taus)}}}, guidance "
            f"{' or '.join(f'{w:g}' for w in lattice.scales)}, {DEFAULT_STEPS} steps. Anything else is translated now, "
            "in seconds.</small>"
        )
        live = widgets.HBox([self.bar, self.halt])
        dials = [self.view, self.pair, self.tau, self.guidance, self.steps]
        own = widgets.Accordion([self._upload()], titles=["An X-ray of your own"])
        self.widget = widgets.VBox([gone(), *dials, note, live, self.message.widget, self.picture, self.strip, own])

    def _upload(self) -> widgets.Widget:
        """The row that takes a file, and a path for what is too large to be sent through the browser."""
        self.upload = widgets.FileUpload(accept=".png,.tif,.tiff,.dcm", multiple=False, description="Choose a file")
        self.path = widgets.Text(placeholder="or its path where the kernel runs, then Enter", continuous_update=False)
        self.path.layout.width = "28em"
        self.upload.add_class("medshift-upload")
        self.path.add_class("medshift-path")
        self.upload.observe(self._uploaded, "value")
        self.path.observe(self._named, "value")
        words = widgets.HTML(
            f"<small>Grey PNG, TIFF or DICOM, air bright; at most {UPLOAD_MB} MB through the browser, larger ones by "
            "their path. It is taken as an image of the source domain chosen above, scaled to the size the network "
            "knows, and leaves this machine for nowhere.</small>"
        )
        return widgets.VBox([widgets.HBox([self.upload, self.path]), words])

    # What the dials say.

    def _size(self) -> int:
        return int(self.lattice.tensors["source/0"].shape[-1])

    def _knobs(self) -> Knobs:
        return Knobs(self._taus[self.tau.index], self._scales[self.guidance.index], STEPS[self.steps.index])

    def _place(self) -> tuple[int, int, int, int] | None:
        """Pair, view, τ and scale as indices of the lattice, or None off it."""
        knobs, lattice = self._knobs(), self.lattice
        on = knobs.tau in lattice.taus and knobs.guidance in lattice.scales and knobs.steps == DEFAULT_STEPS
        if self.view.value in self._own or not on:
            return None
        return self.pair.value, self.view.value, lattice.taus.index(knobs.tau), lattice.scales.index(knobs.guidance)

    # What is shown.

    def _turn(self, change: Any = None) -> None:
        with self.message.of_errors():
            self.newest.stop()
            self._rest()
            place = self._place()
            if place is not None:
                self._show(shown_at(self.lattice, *place), *leg_at(self.lattice, *place))
            else:
                self._live()

    def _show(self, shown: Shown, frames: list[Tensor], titles: list[str]) -> None:
        self.picture.value = self._canvas.frame(shown)
        self.strip.value = leg_strip(frames, titles)

    def _live(self) -> None:
        """Show what is remembered, or translate in the background; the last picture stays until then."""
        knobs, pair, view = self._knobs(), self.pair.value, self.view.value
        key = (pair, view, knobs)
        if key in self._known:
            self._known.move_to_end(key)
            self._show(*self._known[key])
            return
        source, target = self.lattice.pairs[pair]
        image = self._own[view] if view in self._own else self.lattice.tensors[f"source/{pair}"][view].float()[None]
        self.bar.value, self.bar.layout.visibility, self.halt.layout.visibility = 0.0, "visible", "visible"
        self.message.say("Translating; the picture is still the one before.")
        taken: list[Step] = []

        def follow(step: Step) -> None:
            taken.append(step)
            self.bar.value = step.done
            if step.done == 1.0:
                answer = self._known[key] = self._answer(image, taken, knobs, pair, view)
                while len(self._known) > REMEMBERED:
                    self._known.popitem(last=False)
                self._rest()
                self.message.say("")
                self._show(*answer)

        def failed(error: Exception) -> None:
            self._rest()
            self.message.say(str(error))

        self.newest.ask(lambda: translation(self._model(), image, source, target, knobs), step=follow, failed=failed)

    def _answer(self, image: Tensor, taken: list[Step], knobs: Knobs, pair: int, view: int) -> Answer:
        """The last step as something to be shown, with measures where the truth is known, and some of the others."""
        words = f"τ = {knobs.tau:g}, guidance {knobs.guidance:g}, {knobs.steps} steps"
        shown = Shown(image[0], taken[-1].image[0], None, f"{words}: nobody knows the truth of your own image")
        if view not in self._own:
            truth = self.lattice.tensors[f"truth/{pair}"][view].float()
            shown = replace(shown, truth=truth, curves=curves_of(self.lattice, pair, view))
            here = measured_of(shown, self.lattice.tensors["open_field"][view])
            shown = replace(shown, here=here, words=f"{words}: {measures_in_words(*here)}")
        n = min(STRIP, len(taken))
        steps = [taken[round(k * (len(taken) - 1) / max(1, n - 1))] for k in range(n)]
        return Answer(shown, [step.image[0] for step in steps], [step.title for step in steps])

    def _rest(self) -> None:
        self.bar.layout.visibility = self.halt.layout.visibility = "hidden"

    def _stop(self, button: Any = None) -> None:
        with self.message.of_errors():
            self.newest.stop()
            under_way = self.halt.layout.visibility == "visible"  # it may have ended just before
            self._rest()
            if under_way:
                self.message.say("Stopped; the picture is the one before. Move a slider to go on.")

    # An image of one's own.

    def _uploaded(self, change: Any) -> None:
        with self.message.of_errors():
            if self.upload.value:
                file = self.upload.value[0]
                self._add(str(file["name"]), read_upload(str(file["name"]), bytes(file["content"]), self._size()))

    def _named(self, change: Any) -> None:
        with self.message.of_errors():
            if self.path.value.strip():
                path = Path(self.path.value.strip()).expanduser()
                self._add(path.name, read_file(path, self._size()))

    def _add(self, name: str, image: Tensor) -> None:
        """Put an image among the views, in place of the oldest where there are many, and go to it."""
        number = next(self._numbers)
        options = [*self.view.options, (f"{OWN}: {name}", number)]
        if len(self._own) == OWN_KEPT:
            oldest = next(iter(self._own))
            del self._own[oldest]
            options = [option for option in options if option[1] != oldest]
            for key in [key for key in self._known if key[1] == oldest]:
                del self._known[key]
        self._own[number] = image
        self.view.options = options
        self.view.value = number
