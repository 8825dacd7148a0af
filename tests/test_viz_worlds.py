"""Figures of the lesson: what is drawn is what was given."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.quiver import Quiver

from medshift.viz import couplings as pairs
from medshift.viz import worlds as draw
from medshift.worlds import couplings, gallery, learned, legs, measures, panels, translation
from medshift.worlds.couplings import Coupling
from medshift.worlds.mixture import exact_velocity

RNG = np.random.default_rng(0)
LAW = measures.density(gallery.world("ring")[0], n=21)


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def cloud(n: int = 12) -> np.ndarray:
    return RNG.normal(size=(n, 2))


def dots(axis: Axes) -> list[np.ndarray]:
    return [np.asarray(c.get_offsets()) for c in axis.collections if isinstance(c, PathCollection)]


def rows(points: np.ndarray) -> list[tuple[float, ...]]:
    return sorted(map(tuple, np.round(points, 6)))


def test_paths_join_each_noise_with_its_target_and_arrows_are_the_field() -> None:
    noise, targets, grid, field = (cloud() for _ in range(4))
    figure = draw.fig_paths(torch.tensor(noise), targets, grid, field, LAW, t=0.4, mark=[0.1, 0.2])
    lines = [np.asarray(line.get_xydata()) for line in figure.axes[0].lines if len(np.asarray(line.get_xydata())) == 2]
    np.testing.assert_allclose(np.stack(lines), np.stack([noise, targets], 1))
    quiver = next(c for c in figure.axes[1].collections if isinstance(c, Quiver))
    np.testing.assert_allclose(np.stack([quiver.U, quiver.V], 1), field)
    np.testing.assert_allclose(quiver.XY, grid)


def test_arrows_of_the_average_last_for_the_time_that_remains() -> None:
    targets, weights = cloud(30), RNG.dirichlet(np.ones(30))
    figure = draw.fig_average([0.5, 0.5], 0.4, targets, weights, {"average": [1.0, -2.0], "exact": [1.0, -2.0]}, [3, 5])
    (axis,) = figure.axes
    ends = [tuple(np.round(text.xy, 6)) for text in axis.texts]
    assert [tuple(np.round(targets[k], 6)) for k in (3, 5)] == ends[:2] and ends[2:] == [(1.1, -0.7)] * 2
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "average: (1.00, -2.00)",
        "exact: (1.00, -2.00)",
    ]
    sized = next(c for c in axis.collections if isinstance(c, PathCollection) and len(c.get_sizes()) == 30)
    np.testing.assert_allclose(sized.get_sizes() / sized.get_sizes().sum(), weights)


def test_learning_shows_loss_floor_and_an_error_for_each_label() -> None:
    network = learned.LearnedVelocity(2, width=8)
    snapshots = [learned.Snapshot(*at, network) for at in ((0, float("nan")), (5, 2.0), (9, 1.5))]
    figure = draw.fig_learning(snapshots, 1.2, {"label 0": [3, 2, 1], "null label": [4, 3, 2]})
    np.testing.assert_allclose(figure.axes[0].lines[0].get_xydata()[1:], [[5, 2.0], [9, 1.5]])
    curves = {str(line.get_label()): np.asarray(line.get_ydata()) for axis in figure.axes for line in axis.lines}
    assert set(curves) == {"learned field", "exact field: the floor", "label 0", "null label"}
    assert set(curves["exact field: the floor"]) == {1.2} and curves["null label"].tolist() == [4, 3, 2]


def test_snapshots_have_a_column_each_with_field_above_and_samples_below() -> None:
    grid, columns = cloud(), [(f"step {k}", cloud(), cloud(20)) for k in range(3)]
    figure = draw.fig_snapshots(columns, grid, (LAW, LAW), t=0.4)
    above, below = figure.axes[:3], figure.axes[3:]
    for axis, under, (title, field, samples) in zip(above, below, columns, strict=True):
        quiver = next(c for c in axis.collections if isinstance(c, Quiver))
        np.testing.assert_allclose(np.stack([quiver.U, quiver.V], 1), field)
        assert axis.get_title() == title and rows(dots(under)[0]) == rows(samples)


def test_particles_keep_the_colour_of_where_they_started() -> None:
    start, end = cloud(30), cloud(30)
    figure = draw.fig_particles({"exact": [start, start, end]}, [0.0, 0.5, 1.0], [LAW] * 3, columns=(0, 2))
    left, right = dots(figure.axes[1])
    assert rows(left) == rows(end[start[:, 0] < 0]) and rows(right) == rows(end[start[:, 0] >= 0])
    assert [axis.get_title() for axis in figure.axes] == ["t = 0", "t = 1"]
    single = draw.fig_points({"one": end, "two": start}, LAW, start=start)
    assert rows(dots(single.axes[0])[1]) == rows(end[start[:, 0] >= 0])
    plain = draw.fig_points({"one": end}, LAW)
    assert rows(dots(plain.axes[0])[0]) == rows(end)


def test_solver_errors_say_the_order_that_the_table_has() -> None:
    steps = [8, 16, 32, 64]
    table = pd.DataFrame(
        [(s, n, n * k, n ** -float(p)) for s, k, p in (("euler", 1, 1), ("heun", 2, 2)) for n in steps],
        columns=["solver", "steps", "evaluations", "error"],
    )
    axis, other = draw.fig_solver_errors(table).axes
    assert [str(line.get_label()) for line in axis.lines] == ["euler: order 1.00", "heun: order 2.00"]
    assert list(np.asarray(other.lines[1].get_xdata())) == [16, 32, 64, 128]


def test_guidance_shows_samples_and_every_spread_and_the_known_one_without_gaps() -> None:
    samples = {"exact": {w: cloud(9) for w in (1.0, 2.0)}, "learned": {w: cloud(9) for w in (1.0, 2.0)}}
    spreads = pd.DataFrame({"w": [1, 2], "guided, exact": [1.0, 0.5], "guided, learned": [0.9, 0.6]})
    known = pd.DataFrame({"w": [0, 0.5, 1, 2], "tilted law": [1.2, 1.1, 1.0, 0.9]})
    made = panels.Guided(samples, dict.fromkeys((1.0, 2.0), LAW), spreads, known)
    *shown, last = draw.fig_guidance(made, shown=(1.0, 2.0)).axes
    assert [rows(dots(axis)[0]) for axis in shown] == [rows(points) for points in samples["exact"].values()]
    assert {str(line.get_label()): list(np.asarray(line.get_ydata())) for line in last.lines} == {
        "tilted law": [1.2, 1.1, 1.0, 0.9],
        "guided, exact": [1.0, 0.5],
        "guided, learned": [0.9, 0.6],
    }


def test_legs_mark_changed_anatomy_by_crosses_and_count_it_a_row_for_each_field() -> None:
    x = torch.tensor(cloud(4))
    fields = {name: legs.Legs(torch.tensor(cloud(4)), torch.tensor(cloud(4))) for name in ("exact", "learned")}
    after = {"exact": torch.tensor([0, 1, 2, 4]), "learned": torch.tensor([0, 1, 2, 3])}
    journey = panels.Journey(0.3, x, fields, torch.tensor([0, 1, 2, 3]), after, (LAW,) * 4)
    axes = pairs.fig_legs(journey).axes
    for axis, points in zip(axes[:3], (x, *fields["exact"]), strict=True):
        kept, lost = dots(axis)
        assert rows(kept) == rows(points[:3].numpy()) and rows(lost) == rows(points[3:].numpy())
    for axis, points in zip(axes[3:], (x, *fields["learned"]), strict=True):
        kept, lost = dots(axis)
        assert rows(kept) == rows(points.numpy()) and len(lost) == 0
    assert "exact field: 25% changed" in axes[2].get_title() and "τ = 0.3" in axes[1].get_title()
    assert "learned field: 0% changed" in axes[5].get_title()


def test_the_sweep_draws_closed_forms_measurements_and_floor() -> None:
    world = gallery.coloured()
    field = exact_velocity(world.domains)
    table = translation.tau_sweep(world, {"exact": field, "learned": field}, [0.3, 0.8], n=40, repeats=2)
    known = translation.known_answers(world, [0.0, 0.5, 1.0])
    figure = pairs.fig_tau(table, known, world.least_change())
    shift, changed, error, divergence = figure.axes
    np.testing.assert_allclose(shift.lines[0].get_ydata(), known["shift"])
    for line, name in zip(shift.lines[1:], ("exact", "learned"), strict=False):
        np.testing.assert_allclose(np.asarray(line.get_ydata(), float), table[table["method"] == name]["shift"])
    lines = {str(line.get_label()): np.asarray(line.get_ydata()) for line in changed.lines}
    np.testing.assert_allclose(lines["closed form, exact field"], known["changed"])
    np.testing.assert_allclose(lines["closed form, fresh noise"], known["fresh"])
    assert lines["least of any coupling"][0] == world.least_change()
    bars = {str(c.get_label()): c for c in error.containers}
    for name, bar in bars.items():
        np.testing.assert_allclose(np.asarray(bar[0].get_ydata(), float), table[table["method"] == name]["error"])
    assert set(bars) == {"exact", "learned", "fresh noise, exact"}
    np.testing.assert_allclose(divergence.lines[0].get_ydata(), known["divergence"][1:])
    names = {text.get_text() for text in figure.legends[0].get_texts()}
    assert "B itself: the floor" in names and len(names) == 7


def test_identity_panels_say_the_distance_they_show() -> None:
    x = cloud(10)
    figure = pairs.fig_identity(x, {"same": x, "moved": x + [0.3, 0.4]}, np.zeros(10, int), LAW)
    titles = [axis.get_title() for axis in figure.axes]
    assert titles[:2] == ["same\nRMS 0", "moved\nRMS 0.5"]
    np.testing.assert_allclose(dots(figure.axes[1])[1], x + [0.3, 0.4])


def test_couplings_join_every_source_with_its_partner() -> None:
    x = torch.tensor(cloud(6))
    made = [Coupling(f"plan {k}", x, torch.tensor(cloud(6)), k + 0.5, 0.25, 0.125) for k in range(4)]
    figure = pairs.fig_couplings(made, [0, 1, 2, 3, 4, 0], (LAW, LAW))
    for axis, coupling in zip(figure.axes, made, strict=False):
        lines = next(c for c in axis.collections if isinstance(c, LineCollection))
        drawn = np.stack(lines.get_segments())
        np.testing.assert_allclose(drawn, np.stack([coupling.x, coupling.y], 1))
        assert axis.get_title() == f"{coupling.name}\ncost {coupling.cost:.2f}, changed 25%\nerror 0.12"
    assert couplings.as_table(made)["cost"].tolist() == [0.5, 1.5, 2.5, 3.5]


def test_lost_noise_draws_lines_of_the_closed_form_and_marks_of_the_measurement() -> None:
    table = pd.DataFrame(
        [
            ("euler", 0.1, 10, 0.3, 0.31),
            ("euler", 0.1, 50, 0.8, 0.79),
            ("heun", 0.1, 10, 0.9, 0.9),
            ("heun", 0.1, 50, 1, 1),
        ],
        columns=["solver", "spread", "steps", "exact", "measured"],
    )
    (axis,) = pairs.fig_lost_noise(table).axes
    drawn = [list(np.asarray(line.get_ydata())) for line in axis.lines[:4]]
    assert drawn == [[0.3, 0.8], [0.31, 0.79], [0.9, 1], [0.9, 1]]
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["10", "50"]


def test_shift_paths_are_drawn_with_their_mixing_and_their_noise() -> None:
    paths = {name: measures.shift_path((1.0, 1.0), (-1.0, 0.0), g) for name, g in (("a", (0, 0)), ("b", (0.9, -0.9)))}
    left, middle, right = pairs.fig_shift_paths(paths).axes
    for k, path in enumerate(paths.values()):
        np.testing.assert_allclose(left.lines[k].get_xydata(), path.shifted)
        np.testing.assert_allclose(middle.lines[2 * k + 1].get_ydata(), path.mixing[:, 1])
        np.testing.assert_allclose(right.lines[k].get_xydata(), path.mean)
    dot = right.lines[-1]
    np.testing.assert_allclose(dot.get_xydata()[0], next(iter(paths.values())).mean[-1])
    radii = [float(patch.radius) for patch in right.patches]
    np.testing.assert_allclose(radii[: len(radii) // 2], paths["a"].noise[::30])
