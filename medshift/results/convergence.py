"""Whether a training's error on validation views has come to rest, by the rule of notebooks 06 and 07."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

MOVING = 0.02  # a curve that moves by more over its last fifth has not converged


def moved(watched: Sequence[Mapping[str, float]] | None) -> float | None:
    """By how much an error still moved over the last fifth of a training.

    The slope of a line through that part of the curve times its length, over its mean.

    Args:
        watched: looks at validation views: ``images`` seen and ``mae``, in order; none of a method without a training.

    Returns:
        None without a curve, infinity where fewer than three looks make no line.
    """
    if not watched:
        return None
    last = [row for row in watched if row["images"] >= 0.8 * watched[-1]["images"]]
    if len(last) < 3:
        return float("inf")
    x, y = np.array([row["images"] for row in last], dtype=float), np.array([row["mae"] for row in last])
    return float(abs(np.polyfit(x, y, 1)[0]) * (x[-1] - x[0]) / y.mean())
