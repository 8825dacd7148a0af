"""What 99_explorer calls: the explorer and the gallery of failures, live or as pages without a kernel."""

from __future__ import annotations

from collections.abc import Callable

from medshift.results.explorer import LESSONS, failures_of, leg_at, pair_name, shown_at
from medshift.stages.lattice import Lattice
from medshift.translate import MedShift
from medshift.viz.explorer import ExplorerCanvas, leg_strip
from medshift.widgets.pictures import Dial, Pictures, Place
from medshift.widgets.show import is_static, show, show_static

STATIC_PAIRS = 2  # of which a page without a kernel has a player; more would weigh megabytes


def show_explorer(lattice: Lattice, open_model: Callable[[], MedShift]) -> None:
    """The explorer in a live kernel; on a page, a player of τ and guidance for the first pairs and a trajectory.

    Args:
        lattice: what is answered from memory.
        open_model: opens the network, for settings off the lattice.
    """
    if not is_static():
        from IPython.display import display

        from medshift.widgets.explorer import Explorer

        display(Explorer(lattice, open_model).widget)
        return
    from IPython.display import Markdown, display

    display(Markdown(left_out(lattice)))
    for pair in range(min(STATIC_PAIRS, len(lattice.pairs))):
        show_static(explorer_pictures(lattice, pair, 0))
    show_static(leg_pictures(lattice, 0, 0))


def left_out(lattice: Lattice) -> str:
    """What a page without a kernel does not show, and where it can be seen."""
    shown = min(STATIC_PAIRS, len(lattice.pairs))
    return (
        f"*This page has no kernel: below are {shown} of {len(lattice.pairs)} pairs of domains, the first of "
        f"{len(lattice.views)} views, and the steps of the lattice. In JupyterLab every view and pair can be chosen, "
        "and settings between.*"
    )


def explorer_pictures(lattice: Lattice, pair: int, view: int) -> Pictures:
    """One view of one pair at every τ and scale."""
    canvas, dials = ExplorerCanvas(), (_dial("τ", lattice.taus), _dial("guidance", lattice.scales, first=True))
    shown = {
        (t, s): shown_at(lattice, pair, view, t, s)
        for t in range(len(lattice.taus))
        for s in range(len(lattice.scales))
    }
    title = f"{pair_name(lattice.pairs[pair])}, {lattice.views[view]}"
    frames: dict[Place, bytes] = {place: canvas.frame(one) for place, one in shown.items()}
    texts: dict[Place, str] = {p: f"source, translation, truth and error; {one.words}" for p, one in shown.items()}
    return Pictures(title, dials, frames, texts)


def leg_pictures(lattice: Lattice, pair: int, view: int) -> Pictures:
    """The trajectory of one latent at every τ, guidance the first scale."""
    frames: dict[Place, bytes] = {}
    texts: dict[Place, str] = {}
    for t, tau in enumerate(lattice.taus):
        images, titles = leg_at(lattice, pair, view, t, 0)
        frames[t,] = leg_strip(images, titles)
        texts[t,] = f"decoded states of the latent from the source down to z_τ at {tau:g} and up to the translation"
    title = f"The way of the latent, {pair_name(lattice.pairs[pair])}"
    return Pictures(title, (_dial("τ", lattice.taus),), frames, texts)


def show_gallery(lattice: Lattice) -> None:
    """The failures, one after the other."""
    show(gallery_pictures(lattice))


def gallery_pictures(lattice: Lattice) -> Pictures:
    """A frame a failure, and in words what to look at."""
    canvas, found = ExplorerCanvas(), failures_of(lattice)
    lessons = [LESSONS[name] for name in found]
    frames: dict[Place, bytes] = {(i,): canvas.frame(one.shown) for i, one in enumerate(found.values())}
    texts: dict[Place, str] = {(i,): lesson.words for i, lesson in enumerate(lessons)}
    return Pictures(
        "Failures, on unseen heads", (Dial("failure", tuple(lesson.title for lesson in lessons)),), frames, texts
    )


def _dial(name: str, values: tuple[float, ...], *, first: bool = False) -> Dial:
    start = 0 if first else min(range(len(values)), key=lambda i: abs(values[i] - 0.3))
    return Dial(name, tuple(f"{value:g}" for value in values), start)
