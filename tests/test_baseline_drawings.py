"""Figures of the comparison: labels that never meet, axes that flatten no loss, samples in their place."""

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text

from medshift.viz.baselines import fig_losses, fig_samples
from medshift.viz.labels import MARKER, label_points, plain_log, spread


def boxes_meet(middles: np.ndarray, sizes: np.ndarray) -> bool:
    for i in range(len(middles)):
        for j in range(i):
            if (np.abs(middles[i] - middles[j]) < (sizes[i] + sizes[j]) / 2 - 1e-9).all():
                return True
    return False


def test_labels_of_a_crowd_lie_on_no_other_on_no_point_and_within_bounds() -> None:
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.normal((200, 100), 8, (14, 2)), rng.uniform((0, 0), (400, 200), (26, 2))])
    sizes = np.column_stack([rng.uniform(6, 20, 40), np.full(40, 7.4)])
    middles = spread(points, sizes, (400.0, 200.0))
    assert not boxes_meet(middles, sizes)
    assert (middles >= sizes / 2).all() and (middles <= np.array([400, 200]) - sizes / 2).all()
    for middle, size in zip(middles, sizes, strict=True):
        assert not (np.abs(points - middle) < size / 2 + MARKER).all(axis=1).any()


def test_a_lone_point_has_its_label_at_its_side_and_a_crowded_one_a_leader() -> None:
    figure, axis = plt.subplots(figsize=(4, 3))
    axis.plot([0, 1], [0, 1], ".")
    close = [(0.5 + 1e-3 * k, 0.5) for k in range(12)]
    label_points(axis, [(0.0, 1.0), *close], ["a", *(f"{k}" for k in range(12))], ["black"] * 13)
    figure.draw_without_rendering()  # places texts that stand at an offset
    written = axis.texts
    assert np.hypot(*written[0].get_position()) < 10 and written[0].arrow_patch is None
    assert sum(text.arrow_patch is not None for text in written) >= 6
    sizes = [Text.get_window_extent(text) for text in written]  # without their leaders
    assert not any(a.overlaps(b) for k, a in enumerate(sizes) for b in sizes[:k])
    plt.close(figure)


def losses(**values: list[float]) -> Figure:
    course = {name.replace("_", "-"): [[100.0 * k, v] for k, v in enumerate(own)] for name, own in values.items()}
    return fig_losses({"a training": course}, title="t", footer="f")


def test_losses_that_differ_by_decades_get_a_log_axis_linear_around_zero_where_some_are_negative() -> None:
    for own, scale in (
        ({"near": [1.0, 0.8, 0.5]}, "linear"),
        ({"high": [16.0, 8.0, 3.0], "low": [0.3, 0.2, 0.1]}, "log"),
        ({"critic": [-30.0, 140.0, -33.0], "energy": [0.01, 0.4, 0.1]}, "symlog"),
    ):
        figure = losses(**own)
        axis = figure.axes[0]
        assert axis.get_yscale() == scale
        if scale == "linear":
            assert axis.get_ylim()[0] == 0
        zero = [line for line in axis.lines if set(line.get_ydata()) == {0.0}]
        assert len(zero) == (scale == "symlog")
        plt.close(figure)


@pytest.mark.parametrize("own", [[-30.0, 140.0, -33.0, 0.004], [-1.5, 2.0, 0.001, -0.002], [-200.0, 0.3, 12.0, -0.001]])
def test_numbers_at_an_axis_around_zero_do_not_lie_on_each_other(own: list[float]) -> None:
    figure = losses(critic=own, energy=[0.01, 0.4, 0.1, 0.02])
    figure.draw_without_rendering()
    axis = figure.axes[0]
    bottom, top = sorted(axis.get_ylim())
    ticks = zip(axis.get_yticks(), axis.get_yticklabels(), strict=True)
    shown = [label for tick, label in ticks if bottom <= tick <= top]
    boxes = sorted((label.get_window_extent() for label in shown), key=lambda box: box.y0)
    assert axis.get_yscale() == "symlog" and len(boxes) >= 2
    assert all(low.y1 <= high.y0 for low, high in itertools.pairwise(boxes))
    plt.close(figure)


def test_the_legend_of_losses_stands_beside_the_curves() -> None:
    figure = losses(generator=[3.0, 2.0], discriminator_backward=[1.0, 0.9])
    figure.draw_without_rendering()
    axis = figure.axes[0]
    legend = axis.get_legend()
    assert legend is not None and legend.get_window_extent().x0 >= axis.get_window_extent().x1
    plt.close(figure)


def test_ticks_of_a_log_axis_are_plain_numbers() -> None:
    figure, axis = plt.subplots()
    axis.plot([0.01, 0.2], [0, 1])
    axis.set_xscale("log")
    plain_log(axis.xaxis)
    figure.draw_without_rendering()
    assert {"0.01", "0.02", "0.05", "0.1", "0.2"} <= {text.get_text() for text in axis.get_xticklabels()}
    plt.close(figure)


def test_samples_stand_two_methods_a_row_below_their_references() -> None:
    def views(value: float) -> list[torch.Tensor]:
        return [torch.full((1, 4, 4), value + 0.1 * k) for k in range(3)]

    references, samples = {"source": views(-0.5), "target": views(0.0)}, {"a": views(0.2), "b": views(0.4)}
    figure = fig_samples(references, samples, title="t", footer="f")
    shown = [[float(axis.images[0].get_array()[0, 0]) for axis in figure.axes[7 * k : 7 * k + 7] if axis.images]
             for k in range(2)]  # fmt: skip
    assert np.allclose(shown, [[-0.5, -0.4, -0.3, 0.0, 0.1, 0.2], [0.2, 0.3, 0.4, 0.4, 0.5, 0.6]])
    names = [text.get_text() for axis in figure.axes for text in axis.texts]
    assert names == ["source", "target", "a", "b"]
    plt.close(figure)
