"""How often the stages that translate evaluate the network and pass images through the codec.

One function a stage, from its arguments and the number of views that there are. Where a τ is chosen only by the
results, the dearest is taken. The adaptive solver dopri5 chooses its own steps: its evaluations are not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from medshift.guidance import branches
from medshift.ode import DEFAULT_STEPS, leg_knots, stages, time_grid
from medshift.tradeoff import PAIRS, SOLVERS, TIERS, tier_solvers

__all__ = ["COUNTS", "DOMAINS", "Counts", "decode_evaluations", "encode_evaluations"]

DOMAINS = 5


class Counts(NamedTuple):
    """Evaluations of the network for one image each, and images encoded and decoded."""

    evaluations: int
    encoded: int
    decoded: int


def encode_evaluations(
    taus: Sequence[float], *, solver: str = "heun", grid: str = "refined", steps: int = DEFAULT_STEPS
) -> int:
    """Evaluations of one encode leg that stops at several τ, as `medshift.ode.states_at` walks it."""
    knots = time_grid(grid, steps)
    between = [tau for tau in set(taus) if min(abs(tau - knot) for knot in knots) > 1e-9 / steps]
    whole = max(sum(knot >= tau - 1e-9 / steps for knot in knots) - 1 for tau in taus)
    return stages(solver) * (whole + len(between))


def decode_evaluations(tau: float, *, solver: str = "heun", grid: str = "refined", steps: int = DEFAULT_STEPS) -> int:
    """Evaluations of one decode leg."""
    return stages(solver) * (len(leg_knots(tau, grid, steps)) - 1)


def _sweep(own: Mapping[str, Any], views: Mapping[str, int]) -> Counts:
    n, taus, cycled = own["views"], own["taus"], own["cycled"]
    down, up = encode_evaluations(taus), sum(map(decode_evaluations, taus))
    fresh = int(own["fresh"])
    back = cycled * len(taus)
    legs = n * (down + (1 + fresh) * up) + 2 * cycled * up
    return Counts(legs, n * (1 + fresh) + back, n * len(taus) * (1 + fresh) + back)


def _tradeoff(own: Mapping[str, Any], views: Mapping[str, int]) -> Counts:
    legs = encoded = decoded = 0
    taus, ways = own["taus"], branches(own["guidance"])
    for pair in PAIRS:
        for role in ("validation", *TIERS):
            solvers = SOLVERS if role == "validation" else tier_solvers(pair, role)
            few, many = min(own["views"][role], views[role]), min(own["headline"], views[role])
            for knobs in solvers.values():
                each = encode_evaluations(taus, **knobs) + sum(decode_evaluations(t, **knobs) for t in taus)
                chosen = 0 if role == "validation" else many  # the headline, at the dearest τ
                legs += ways * (few * each + 2 * chosen * decode_evaluations(min(taus), **knobs))
                encoded, decoded = encoded + few + chosen, decoded + few * len(taus) + chosen
    return Counts(legs, encoded, decoded)


def _latents(own: Mapping[str, Any], views: Mapping[str, int]) -> Counts:
    n, swapped, taus = DOMAINS * own["views"], 2 * own["swapped"], own["taus"]
    legs = n * encode_evaluations(taus) + swapped * sum(map(decode_evaluations, taus))
    return Counts(legs, 2 * n, swapped * len(taus))


def _solvers(own: Mapping[str, Any], views: Mapping[str, int]) -> Counts:
    n, taus, legs = own["views"] + 2 * own["noise_views"], own["taus"], 0
    for knobs in own["solvers"].values():
        legs += n * (encode_evaluations(taus, **knobs) + sum(decode_evaluations(t, **knobs) for t in taus))
    return Counts(legs, n * len(own["solvers"]), n * len(own["solvers"]) * len(taus))


def _cube(own: Mapping[str, Any], views: Mapping[str, int]) -> Counts:
    n, taus, scales = own["views"], own["taus"], own["scales"]
    ways, up = sum(map(branches, scales)), sum(map(decode_evaluations, taus))
    legs = n * ways * encode_evaluations(taus) + n * len(scales) * 2 * ways * up
    return Counts(legs, n * len(scales), n * len(taus) * len(scales) ** 2 * 2)


def _collapse(own: Mapping[str, Any], views: Mapping[str, int]) -> Counts:
    n = own["views"] * 3 * len(own["starts"])  # three versions of each source
    return Counts(n * 2 * sum(map(decode_evaluations, own["taus"])), n * len(own["taus"]), n * len(own["taus"]))


def _objects(own: Mapping[str, Any], views: Mapping[str, int]) -> Counts:
    n = 2 * own["exposures"] * views["T3"]
    return Counts(n * 2 * decode_evaluations(own["tau"]), n, n)


def _proposed(own: Mapping[str, Any], views: Mapping[str, int]) -> Counts:
    return Counts(own["images"] * 2 * decode_evaluations(**own["knobs"]), own["images"], own["images"])


def _lattice(own: Mapping[str, Any], views: Mapping[str, int]) -> Counts:
    n, taus = sum(own["shown"].values()) * len(own["pairs"]), own["taus"]
    ways = sum(map(branches, own["scales"]))
    branched = 2 * sum(range(len(taus)))  # at most one interval for each state above the one it starts at
    legs = n * ways * (encode_evaluations(taus) + sum(map(decode_evaluations, taus)) + branched)
    states = len(taus) + sum(range(2, len(taus) + 2))
    return Counts(legs, n * len(own["scales"]), n * len(own["scales"]) * states)


def _translation(own: Mapping[str, Any], views: Mapping[str, int]) -> Counts:
    n, ways = own["views"], sum(map(branches, own["guidance"]))
    if own["solver"] == "dopri5":
        return Counts(0, n, n)
    knobs = {name: own[name] for name in ("solver", "grid", "steps")}
    return Counts(n * ways * decode_evaluations(own["tau"], **knobs), n, n)


def _evaluations(own: Mapping[str, Any], views: Mapping[str, int]) -> Counts:
    fixed = [knobs for knobs in own["candidates"].values() if knobs["solver"] != "dopri5"]
    n, taus = own["views"], own["taus"]
    images = n * len(taus) * len(own["candidates"])
    return Counts(n * sum(2 * decode_evaluations(t, **knobs) for t in taus for knobs in fixed), images, images)


# Name of a stage -> its counts from its arguments and the views of each role.
COUNTS: Mapping[str, Callable[[Mapping[str, Any], Mapping[str, int]], Counts]] = {
    "sweep": _sweep,
    "tradeoff": _tradeoff,
    "latents": _latents,
    "solvers": _solvers,
    "cube": _cube,
    "collapse": _collapse,
    "objects": _objects,
    "proposed": _proposed,
    "lattice": _lattice,
    "translation": _translation,
    "evaluations": _evaluations,
}
