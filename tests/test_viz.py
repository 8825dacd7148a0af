"""Figures: what is drawn is what was given, in one grey window."""

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from medshift.data.phantom import phantom
from medshift.evaluate import TWIN
from medshift.tradeoff import HEUN, PUBLISHED
from medshift.viz.data import fig_landmarks, fig_sections
from medshift.viz.images import fig_grid
from medshift.viz.tradeoff import METRICS, fig_tradeoff, log_odds


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    matplotlib.pyplot.close("all")


def test_a_grid_has_one_grey_window_and_keeps_rows_and_columns() -> None:
    images = [[torch.full((1, 4, 4), 0.1 * (i + 3 * j)) for i in range(3)] for j in range(2)]
    figure = fig_grid(images, ["a", "b", "c"], ["one", "two"])
    axes = [axis for axis in figure.axes if axis.images]
    assert len(axes) == 6 and {axis.images[0].get_clim() for axis in axes} == {(-1.0, 1.0)}
    shown = [float(np.asarray(axis.images[0].get_array()).mean()) for axis in axes]
    np.testing.assert_allclose(shown, [0.0, 0.1, 0.2, 0.3, 0.4, 0.5], atol=1e-6)


def test_log_odds_are_symmetric_and_finite_at_one() -> None:
    tau = np.array([0.02, 0.5, 0.98])
    np.testing.assert_allclose(log_odds(tau), -log_odds(1 - tau), atol=1e-12)
    assert np.isfinite(log_odds(1.0)) and log_odds(1.0) > log_odds(0.98)


def table(methods: dict[str, list[str]], taus: list[float]) -> pd.DataFrame:
    rows = []
    for column, names in methods.items():
        for name in names:
            for tau in taus:
                values = {m: 0.5 + tau for m in METRICS}
                rows.append({column: name, "tau": tau} | values | {f"{m}_low": 0.4 for m in METRICS})
    frame = pd.DataFrame(rows)
    return frame.assign(**{f"{m}_high": 1.6 for m in METRICS})


def test_the_trade_off_draws_every_curve_every_floor_and_the_chosen_tau() -> None:
    sweep = table({"solver": [HEUN, PUBLISHED]}, [0.02, 0.3, 1.0])
    floors = table({"method": ["doing nothing", "histogram match", TWIN]}, [0.0])
    floors.loc[floors["method"] == TWIN, list(METRICS)] += 0.3
    figure: Figure = fig_tradeoff(sweep, floors, title="T2", chosen=0.3)
    panels = [axis for axis in figure.axes if axis.get_ylabel() in METRICS.values()]
    assert len(panels) == len(METRICS)
    for axis in panels:
        labels = {str(line.get_label()) for line in axis.lines}
        assert {f"MedShift, {HEUN}", f"MedShift, {PUBLISHED}", TWIN} <= labels
        # Two floors of equal values would hide each other: they are one line with both names.
        assert "doing nothing = histogram match" in labels and "doing nothing" not in labels
        verticals = [line for line in axis.lines if len(set(np.asarray(line.get_xdata(), dtype=float))) == 1]
        assert any(np.allclose(np.asarray(v.get_xdata(), dtype=float), float(log_odds(0.3))) for v in verticals)


def test_landmarks_are_drawn_where_they_are() -> None:
    head = phantom(0, spacing_mm=4.0)
    figure = fig_sections(head, "phantom")
    sagittal = next(axis for axis in figure.axes if axis.get_title() == "sagittal")
    drawn = {(round(float(x[0]), 3), round(float(y[0]), 3)) for x, y in (line.get_data() for line in sagittal.lines)}
    assert drawn == {(round(y, 3), round(z, 3)) for _, y, z in head.landmarks.values()}
    assert len([axis for axis in fig_landmarks(head, "phantom").axes if axis.images]) == 2 * len(head.landmarks)
