"""Whether a training's error on validation views has come to rest, by the rule of notebooks 06 and 07."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

MOVING = 0.02  # a curve that moves by more over its last fifth has not converged
MAE, LOSS = "MAE", "loss"
CONVERGED, NOT_CONVERGED, NOT_WATCHED, UNTRAINED = "converged", "not converged", "not watched", "no training"


def moved(watched: Sequence[Mapping[str, float]] | None, of: str = "mae") -> float | None:
    """By how much an error still moved over the last fifth of a training.

    The slope of a line through that part of the curve times its length, over its mean. A schedule that ends at a rate
    of zero flattens every curve at its end, so a small number is necessary for convergence and does not prove it.

    Args:
        watched: looks at validation views: ``images`` seen and the error, in order; none of a method without a
            training.
        of: name of the error in a look.

    Returns:
        None without a curve, infinity where fewer than three looks make no line.
    """
    if not watched:
        return None
    last = [row for row in watched if row["images"] >= 0.8 * watched[-1]["images"]]
    if len(last) < 3:
        return float("inf")
    x, y = np.array([row["images"] for row in last], dtype=float), np.array([row[of] for row in last])
    return float(abs(np.polyfit(x, y, 1)[0]) * (x[-1] - x[0]) / y.mean())


@dataclass(frozen=True)
class Rest:
    """By how much which curve of a training moved at its end; the worst of several trainings.

    Args:
        moved: see `moved`; None where nothing was watched.
        measure: `MAE` to the truth of a method's own translations, or the `LOSS` of the network it stands on.
        trained: whether there was a training at all.
    """

    moved: float | None
    measure: str = ""
    trained: bool = True

    @property
    def state(self) -> str:
        """`CONVERGED`, `NOT_CONVERGED`, `NOT_WATCHED` or `UNTRAINED`."""
        if not self.trained:
            return UNTRAINED
        if self.moved is None:
            return NOT_WATCHED
        return CONVERGED if self.moved <= MOVING else NOT_CONVERGED

    def __str__(self) -> str:
        """``1.6 % (loss)``, or why there is no number."""
        if self.moved is None:
            return self.state
        return f"{100 * self.moved:.1f} % ({self.measure})" if np.isfinite(self.moved) else "fewer than three looks"
