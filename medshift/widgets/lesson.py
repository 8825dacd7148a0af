"""The sliders of notebook 00: each the figure of a panel, at every value of one dial; and a training to be watched."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from matplotlib.figure import Figure
from torch import Tensor

from medshift.flow import Velocity
from medshift.viz.couplings import fig_legs
from medshift.viz.worlds import fig_points, fig_snapshots
from medshift.widgets.pictures import Dial, Pictures, png_of
from medshift.widgets.show import is_static
from medshift.worlds.learned import Snapshot
from medshift.worlds.legs import from_noise
from medshift.worlds.measures import Lattice
from medshift.worlds.panels import TIMES, Column, Guided, Journey

__all__ = ["guidance", "learning", "legs", "particles", "solvers", "watched"]

COUNTS = (1, 2, 4, 8, 16, 32, 64)  # of steps


def watched(training: Iterable[Snapshot], picture: Callable[[Snapshot], Figure]) -> list[Snapshot]:
    """All snapshots of a training; in a live kernel one picture follows it, drawn as each snapshot comes.

    A batch run draws none: its page would keep the last alone, which the notebook's own figure shows.

    Args:
        training: as `medshift.worlds.learned.train` yields it.
        picture: draws a snapshot; the figure is closed here.
    """
    if is_static():
        return list(training)
    from IPython.display import Image, display

    kept: list[Snapshot] = []
    handle = None
    for snapshot in training:
        kept.append(snapshot)
        drawn = Image(data=png_of(picture(snapshot)))
        if handle is None:
            handle = display(drawn, display_id=True)
        else:
            handle.update(drawn)
    return kept


def learning(columns: Sequence[Column], grid: Tensor, laws: tuple[Lattice, Lattice], t: float) -> Pictures:
    """Field and samples after so many training steps, beside the exact ones, which are the last column."""
    return Pictures.drawn(
        "What the network knows after so many steps",
        (Dial("training steps", tuple(column.title.removeprefix("step ") for column in columns[:-1])),),
        lambda k: fig_snapshots([columns[k], columns[-1]], grid, laws, t=t),
        lambda k: f"Field and samples, {columns[k].title}, beside the exact ones.",
    )


def particles(flows: Mapping[str, Sequence[Tensor]], laws: Sequence[Lattice]) -> Pictures:
    """Particles of each field at `TIMES`, over the true law of each."""
    start = next(iter(flows.values()))[0]
    return Pictures.drawn(
        "Particles on their way",
        (Dial("t", tuple(f"{time:g}" for time in TIMES), 5),),
        lambda k: fig_points({name: states[k] for name, states in flows.items()}, laws[k], start=start),
        lambda k: f"Particles of the exact and the learned field at t = {TIMES[k]:g}.",
    )


def solvers(fields: Mapping[str, Velocity], noise: Tensor, label: int, law: Lattice) -> Pictures:
    """Samples of Euler and of Heun from `noise` (N, 2) with few equal steps, by field, over the true law."""
    ends = {
        f"{solver}, {name}": [from_noise(v, noise, label, steps=n, solver=solver, grid="uniform")[-1] for n in COUNTS]
        for name, v in fields.items()
        for solver in ("euler", "heun")
    }
    return Pictures.drawn(
        "A field, walked in a few steps",
        (Dial("steps", tuple(map(str, COUNTS)), 2),),
        lambda k: fig_points({name: made[k] for name, made in ends.items()}, law),
        lambda k: f"Samples of Euler and of Heun with {COUNTS[k]} equal steps over the true law, by field.",
    )


def guidance(made: Guided) -> Pictures:
    """Guided samples of each field over the tilted law, by scale."""
    scales = list(made.tilted)
    return Pictures.drawn(
        "Guided samples",
        (Dial("w", tuple(f"{w:g}" for w in scales), scales.index(1.0)),),
        lambda k: fig_points({name: of[scales[k]] for name, of in made.samples.items()}, made.tilted[scales[k]]),
        lambda k: f"Guided samples of both fields at w = {scales[k]:g} over the tilted law.",
    )


def legs(journeys: Mapping[float, Journey], start: float) -> Pictures:
    """A, z_τ and the translation of each field, coloured by anatomy, by τ."""
    taus = list(journeys)
    return Pictures.drawn(
        "Where the two legs meet",
        (Dial("τ", tuple(f"{tau:g}" for tau in taus), taus.index(start)),),
        lambda k: fig_legs(journeys[taus[k]]),
        lambda k: f"A, z at τ = {taus[k]:g} and the translation, coloured by anatomy, a row for each field.",
    )
