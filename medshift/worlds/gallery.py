"""Named worlds, worlds that a reader draws, and the two coloured domains that a translation goes between.

A world is two domains in the plane. Those with a name are shapes in two parts, one label each. The *coloured* ones
are what a translation of images has: both hold the same anatomies, here five clusters side by side, and differ in the
vertical coordinate, their colour. They hold them in different proportions, and of one anatomy the second domain has
hardly any. Anatomy and colour are independent, so that a translation is two known maps of one coordinate each, see
`medshift.worlds.translation`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from medshift.errors import ParameterError
from medshift.worlds.mixture import Mixture

__all__ = ["LIMIT", "WORLDS", "Coloured", "coloured", "drawing", "drawn", "world"]

LIMIT = 4.0  # no drawn point is farther from the centre along an axis
INKS = "#o"  # of a typed world, one a label
COLOUR = 0.6  # the vertical coordinate of B's clusters, and of A's with a minus sign
REACH = 2.0  # of a typed drawing: its longer side runs from -2 to 2

World = tuple[Mixture, Mixture]


@dataclass(frozen=True)
class Coloured:
    """Domains A (label 0) and B (label 1); component k of either is anatomy k.

    Attributes:
        domains: A and B.
        rare: the anatomy that B hardly has.
    """

    domains: World
    rare: int

    def anatomy(self, x: Tensor, domain: int) -> Tensor:
        """The anatomy (B,) int64 of points (B, 2): the nearest cluster of that domain."""
        return torch.cdist(x.double(), self.domains[domain].means).argmin(1)

    def least_change(self) -> float:
        """The least share of points whose anatomy changes under *any* coupling of A and B.

        Half of the summed differences of the proportions, their total variation. A map that changes fewer does not
        reach B's law.
        """
        return float((self.domains[0].weights - self.domains[1].weights).abs().sum() / 2)


def coloured(spread: float = 0.15) -> Coloured:
    """The two coloured domains, with clusters of this standard deviation."""
    places = torch.tensor([-2.3, -1.15, 0.0, 1.1, 2.2], dtype=torch.float64)
    proportions = [[0.22, 0.22, 0.22, 0.16, 0.18], [0.30, 0.20, 0.30, 0.01, 0.19]]
    a, b = (
        Mixture(
            torch.stack([places, torch.full_like(places, colour)], 1),
            torch.full_like(places, spread),
            torch.tensor(shares, dtype=torch.float64),
        )
        for colour, shares in zip((-COLOUR, COLOUR), proportions, strict=True)
    )
    return Coloured((a, b), rare=3)


def drawn(points: Tensor, spread: float) -> Mixture:
    """Equal Gaussians of standard deviation `spread` about drawn points (N, 2).

    Raises:
        ParameterError: fewer than two points, one that is not finite or lies outside [-4, 4]², or a spread <= 0.
    """
    if points.ndim != 2 or points.shape[1] != 2 or len(points) < 2:
        raise ParameterError(f"Points of shape {tuple(points.shape)} draw no world; give two or more, (N, 2).")
    if not bool(points.isfinite().all()) or float(points.abs().max()) > LIMIT:
        raise ParameterError(f"A drawn point is not finite or lies outside [-{LIMIT:g}, {LIMIT:g}]²; move it inside.")
    if not 0 < spread < math.inf:
        raise ParameterError(f"The spread is {spread}; expected a number above 0.")
    return Mixture(points, torch.full((len(points),), float(spread), dtype=torch.float64), torch.ones(len(points)))


def drawing(rows: Sequence[str], ink: str = "#", spread: float | None = None) -> Mixture:
    """A mixture from a typed picture: one Gaussian for each character that is `ink`.

    Args:
        rows: lines of text, the top one first; the longer side is laid over [-2, 2].
        ink: the character that counts.
        spread: of each Gaussian; half the distance of two characters if none is given.

    Raises:
        ParameterError: fewer than two characters of ink.
    """
    height, width = len(rows), max((len(row) for row in rows), default=0)
    cell = 2 * REACH / max(height, width, 1)
    places = [(i, j) for i, row in enumerate(rows) for j, character in enumerate(row) if character == ink]
    if len(places) < 2:
        raise ParameterError(f"The drawing has {len(places)} characters {ink!r}; two or more are needed.")
    points = [[(j - (width - 1) / 2) * cell, ((height - 1) / 2 - i) * cell] for i, j in places]
    return drawn(torch.tensor(points, dtype=torch.float64), cell / 2 if spread is None else spread)


def world(name: str) -> World:
    """The world of that name, or the one typed: rows between "/", "#" for label 0 and "o" for label 1.

    Raises:
        ParameterError: neither a name nor a drawing of both labels.
    """
    if name in WORLDS:
        return WORLDS[name]()
    if INKS[0] not in name:
        raise ParameterError(
            f"There is no world {name!r}; choose one of {', '.join(WORLDS)}, or draw one: "
            "rows between '/', '#' for one label and 'o' for the other, as in '## oo/#   o'."
        )
    rows = name.split("/")
    return drawing(rows, INKS[0]), drawing(rows, INKS[1])


def _two_moons() -> World:
    angle = torch.linspace(0, math.pi, 20, dtype=torch.float64)
    upper = 1.5 * torch.stack([angle.cos(), angle.sin()], 1) + torch.tensor([-0.75, -0.4])
    return drawn(upper, 0.12), drawn(-upper, 0.12)


def _ring() -> World:
    angle = (torch.arange(20, dtype=torch.float64) + 0.5) * math.pi / 20
    upper = 1.9 * torch.stack([angle.cos(), angle.sin()], 1)
    return drawn(upper, 0.12), drawn(-upper, 0.12)


def _spiral() -> World:
    turn = torch.linspace(0.25, 1, 24, dtype=torch.float64).sqrt()
    arm = 2.1 * turn[:, None] * torch.stack([(3 * math.pi * turn).cos(), (3 * math.pi * turn).sin()], 1)
    return drawn(arm, 0.1), drawn(-arm, 0.1)


def _checkerboard() -> World:
    rows = ["## ## ", "## ## ", " oo oo", " oo oo"]
    board = [row * 1 for row in (*rows, *rows)]
    return drawing(board, "#"), drawing(board, "o")


WORLDS: Mapping[str, Callable[[], World]] = MappingProxyType(
    {"two moons": _two_moons, "ring": _ring, "spiral": _spiral, "checkerboard": _checkerboard}
)
