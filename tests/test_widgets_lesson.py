"""The lesson's sliders show what its figures show, and a training is drawn while it runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import IPython.display
import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.figure import Figure

from medshift.viz.couplings import fig_legs
from medshift.widgets import lesson
from medshift.widgets.pictures import png_of
from medshift.widgets.show import STATIC
from medshift.worlds import gallery, panels
from medshift.worlds.learned import LearnedVelocity, Snapshot
from medshift.worlds.mixture import exact_velocity


class Training:
    """Three snapshots; it knows how many were asked for."""

    def __init__(self) -> None:
        self.asked = 0

    def __iter__(self) -> Iterator[Snapshot]:
        for step in (0, 5, 9):
            self.asked += 1
            yield Snapshot(step, 1.0, LearnedVelocity(2, width=4))


@pytest.mark.parametrize("static", ["", "1"])
def test_a_training_is_drawn_while_it_runs_and_not_at_all_in_a_batch_run(
    static: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    training, drawn, shown = Training(), [], []

    class Handle:
        def update(self, picture: Any) -> None:
            shown.append(picture)

    def display(picture: Any, *, display_id: bool) -> Handle:
        shown.append(picture)
        return Handle()

    def picture(snapshot: Snapshot) -> Figure:
        drawn.append((snapshot.step, training.asked))
        return plt.figure(figsize=(1, 1))

    monkeypatch.setenv(STATIC, static)
    monkeypatch.setattr(IPython.display, "display", display)
    kept = lesson.watched(training, picture)
    assert [snapshot.step for snapshot in kept] == [0, 5, 9]
    assert drawn == ([] if static else [(0, 1), (5, 2), (9, 3)]), "each before the next was trained"
    assert len(shown) == len(drawn) and not plt.get_fignums()


def test_the_slider_of_the_legs_shows_the_figure_of_its_tau() -> None:
    pair = gallery.coloured()
    field, x = exact_velocity(pair.domains), pair.domains[0].sample(20, torch.Generator().manual_seed(0))
    journeys = panels.translated(pair, {"exact": field}, x, [0.3, 1.0])
    made = lesson.legs(journeys, 0.3)
    assert made.dials[0].values == ("0.3", "1") and made.start == (0,)
    assert made.frames[1,] == png_of(fig_legs(journeys[1.0])) != made.frames[0,]
    assert torch.equal(journeys[1.0].legs["exact"].out, x) and "z at τ = 1" in made.texts[1,]
