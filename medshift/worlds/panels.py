"""What notebook 00 shows, computed: one function a panel, each of the exact and the learned field alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor

from medshift.flow import Velocity
from medshift.guidance import guided
from medshift.worlds import measures
from medshift.worlds.gallery import Coloured
from medshift.worlds.learned import Snapshot, field_error
from medshift.worlds.legs import Legs, from_noise, two_legs
from medshift.worlds.measures import Lattice
from medshift.worlds.mixture import Mixture
from medshift.worlds.translation import journeys

__all__ = [
    "SCALES",
    "TIMES",
    "Column",
    "Guided",
    "Journey",
    "column",
    "errors_by_label",
    "flows",
    "guided_to",
    "identities",
    "learning",
    "translated",
]

TIMES = tuple(k / 10 for k in range(11))  # of particles on their way
SCALES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0)  # of guidance
# Scales at which the tilted law's spread is known; it leaves that of all domains together within a few hundredths of 0.
FINE = (*(k / 40 for k in range(20)), *(0.5 + k / 4 for k in range(19)))
LEGS = ((1.0, 1.0), (2.0, 2.0), (1.0, 2.0), (2.0, 1.0))  # scales of guidance on the first and on the second leg


class Column(NamedTuple):
    """A field at one time, and what it makes of noise: title, velocities (G, 2), samples (N, 2)."""

    title: str
    arrows: Tensor
    samples: Tensor


def column(title: str, velocity: Velocity, grid: Tensor, noise: Tensor, t: float, label: int) -> Column:
    """The velocities at `grid` (G, 2) at a time under a label, and the samples that start as `noise` (N, 2)."""
    with torch.no_grad():
        arrows = velocity(grid, torch.tensor(t), torch.full((len(grid),), label))
    return Column(title, arrows, from_noise(velocity, noise, label)[-1])


def learning(
    snapshots: Sequence[Snapshot], exact: Velocity, grid: Tensor, noise: Tensor, t: float, label: int
) -> list[Column]:
    """Columns of a few snapshots, sooner ones closer together, and of the exact field last."""
    chosen = [snapshots[k] for k in (0, 1, 2, 4, 8) if k < len(snapshots) - 1] + [snapshots[-1]]
    fields: list[tuple[str, Velocity]] = [(f"step {one.step}", one.velocity) for one in chosen]
    fields.append(("exact", exact))
    return [column(title, velocity, grid, noise, t, label) for title, velocity in fields]


def errors_by_label(
    velocities: Sequence[Velocity], domains: Sequence[Mixture], names: Sequence[str], *, n: int = 2000
) -> dict[str, list[float]]:
    """RMS distance of each velocity to the exact one, by the label's name; see `field_error`."""
    return {name: [field_error(v, domains, k, n=n) for v in velocities] for k, name in enumerate(names)}


def flows(fields: Mapping[str, Velocity], noise: Tensor, label: int) -> dict[str, list[Tensor]]:
    """Particles (N, 2) of each field at `TIMES`, by 40 equal Heun steps from `noise`."""
    return {name: from_noise(v, noise, label, grid="uniform")[::4] for name, v in fields.items()}


class Guided(NamedTuple):
    """Samples under guidance and the law that they are often taken to follow.

    Attributes:
        samples: points (N, 2) by field and scale.
        tilted: p(x | c)^w p(x)^(1-w) by scale.
        spreads: columns w and ``guided, <field>``.
        known: columns w and ``tilted law``, at scales close together.
    """

    samples: dict[str, dict[float, Tensor]]
    tilted: dict[float, Lattice]
    spreads: pd.DataFrame
    known: pd.DataFrame


def guided_to(label: int, fields: Mapping[str, Velocity], noise: Tensor, domains: Sequence[Mixture]) -> Guided:
    """Samples of each field that start as `noise` (N, 2), guided to a label at `SCALES`."""
    null = len(domains)
    samples = {
        name: {w: from_noise(guided(v, w, null), noise, label)[-1] for w in SCALES} for name, v in fields.items()
    }
    spreads = pd.DataFrame(
        {"w": SCALES}
        | {f"guided, {name}": [measures.spread_of(made[w]) for w in SCALES] for name, made in samples.items()}
    )
    spread_of = [measures.spread_of(measures.tilted(domains, label, w, n=101)) for w in FINE]
    known = pd.DataFrame({"w": FINE, "tilted law": spread_of})
    return Guided(samples, {w: measures.tilted(domains, label, w) for w in SCALES}, spreads, known)


class Journey(NamedTuple):
    """Translations A to B at one tau.

    Attributes:
        tau: where the legs meet.
        x: points of A (N, 2).
        legs: z_tau and result (N, 2) by field.
        before: anatomy of each point in A (N,).
        after: anatomy of its result in B (N,), by field.
        laws: p_A, p_tau^A, p_tau^B and p_B.
    """

    tau: float
    x: Tensor
    legs: dict[str, Legs]
    before: Tensor
    after: dict[str, Tensor]
    laws: tuple[Lattice, Lattice, Lattice, Lattice]


def translated(
    pair: Coloured, fields: Mapping[str, Velocity], x: Tensor, taus: Sequence[float]
) -> dict[float, Journey]:
    """Points x (N, 2) of A to B by each field, by tau."""
    a, b = pair.domains
    made = {name: journeys(v, x, taus) for name, v in fields.items()}
    ends = measures.density(a), measures.density(b)
    return {
        tau: Journey(
            tau,
            x,
            {name: legs[k] for name, legs in made.items()},
            pair.anatomy(x, 0),
            {name: pair.anatomy(legs[k].out, 1) for name, legs in made.items()},
            (ends[0], measures.density(a, tau), measures.density(b, tau), ends[1]),
        )
        for k, tau in enumerate(taus)
    }


def identities(fields: Mapping[str, Velocity], x: Tensor, tau: float) -> dict[str, Tensor]:
    """Where points x (N, 2) of A come back to from A to A, with guidance `LEGS` on the two legs, by its name."""
    return {
        f"{name}, w = {first:g}, {second:g}": two_legs(v, x, 0, 0, tau, guidance=(first, second)).out
        for name, v in fields.items()
        for first, second in LEGS
    }
