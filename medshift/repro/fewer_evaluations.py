"""The plan behind "how few evaluations are enough?" in 04_tau_tradeoff, and the solvers that take part. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medshift.repro.profiles import Profile
from medshift.repro.stage import Plan

PUBLISHED = "Euler, uniform, 50"
TAUS = (0.02, 0.1, 0.3)
FEATURES = "ST-AlexNet"

# Name of a family -> solver, grid, and intervals on the whole of [0, 1].
FAMILIES: Mapping[str, tuple[str, str, tuple[int, ...]]] = {
    "Euler, uniform": ("euler", "uniform", (50, 30, 20, 15, 10, 5)),
    "Euler, refined": ("euler", "refined", (50, 30, 20, 15, 10, 5)),
    "midpoint, refined": ("midpoint", "refined", (15, 10, 8, 6, 5, 4, 3, 2)),
    "Heun, uniform": ("heun", "uniform", (15, 10, 6, 4, 2)),
    "Heun, refined": ("heun", "refined", (15, 10, 8, 6, 5, 4, 3, 2)),
    "RK4, refined": ("rk4", "refined", (6, 4, 3, 2, 1)),
}
TOLERANCES = (1e-1, 1e-2, 1e-3)  # of the adaptive solver


def candidates() -> dict[str, dict[str, Any]]:
    """Name -> knobs of a leg, the published recipe first."""
    fixed = {
        f"{family}, {steps}": {"solver": solver, "grid": grid, "steps": steps}
        for family, (solver, grid, numbers) in FAMILIES.items()
        for steps in numbers
    }
    return fixed | {f"dopri5, {t:g}": {"solver": "dopri5", "tolerance": t} for t in TOLERANCES}


def evaluations_plan(profile: Profile, inputs: Mapping[str, Plan], pair: tuple[str, str]) -> Plan:
    """Every candidate at every tau, on twice as many views as the comparison of solvers takes."""
    arguments = {
        "source": pair[0],
        "target": pair[1],
        "role": "T2",
        "views": 2 * profile.evidence.solvers,
        "taus": list(TAUS),
        "candidates": candidates(),
        "features": FEATURES,
        "batch": profile.tradeoff.batch,
    }
    return Plan("evaluations", "medshift.stages.evaluations", arguments, inputs, "counting evaluations")
