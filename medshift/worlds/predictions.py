"""The checks of those exercises of notebook 00 whose answers are letters and numbers: predictions.

See `medshift.worlds.exercises`, which offers all nine.
"""

from __future__ import annotations

from typing import Any

import torch

from medshift.ode import DEFAULT_STEPS
from medshift.theory import kl_divergence, mode_retention, translated_law
from medshift.worlds import mistakes, two_gaussians
from medshift.worlds.answers import NotYet, letters, number, right

__all__ = ["SCALES", "TAU", "check_bridge", "check_identity", "check_orders", "check_steps"]

# Scales of guidance on the leg to noise and on that back, for each letter of `check_identity`; where the legs meet.
SCALES, TAU = {"a": (1.0, 1.0), "b": (2.0, 2.0), "c": (1.0, 2.0), "d": (2.0, 1.0)}, 0.3


def check_bridge(bridge_connects: Any, legs_connect: Any) -> None:
    """Which marginals the paper's bridge connects, and which MedShift's legs do; a letter each.

    Raises:
        NotYet: a statement does not hold.
    """
    (first,) = letters(bridge_connects, "bridge_connects", "abcd")
    (second,) = letters(legs_connect, "legs_connect", "abcd")
    if first != "c":
        raise NotYet(f"bridge_connects: {first} does not hold. {mistakes.BRIDGES[first]}")
    if second != "b":
        raise NotYet(f"legs_connect: {second} does not hold. {mistakes.LEGS[second]}")
    a, b = two_gaussians.as_gaussians()
    off = [kl_divergence(translated_law(a, b, tau), b) for tau in (0.0, TAU)]
    right(
        "the bridge is meant to connect p_A and p_B; MedShift's legs do so at τ = 0 alone. For two Gaussians its "
        f"translations are KL {off[0]:.2f} nat from p_B at τ = 0, and {off[1]:.2f} at τ = {TAU:g}: as far as A's "
        f"noised law is from B's there ({kl_divergence(a.noised(TAU), b.noised(TAU)):.2f})."
    )


def check_orders(euler: Any, heun: Any) -> None:
    """By which factor the error at t = 1 shrinks when the steps double, for Euler and for Heun.

    Raises:
        NotYet: a factor is off by more than a tenth of what is measured between 64 and 128 steps.
    """
    said = {"euler": number(euler, "euler_factor"), "heun": number(heun, "heun_factor")}
    found = {solver: two_gaussians.end_error(solver, 64) / two_gaussians.end_error(solver, 128) for solver in said}
    for solver, factor in found.items():
        if abs(said[solver] / factor - 1) > 0.1:
            raise NotYet(
                f"{solver}_factor is {said[solver]:g}; expected what is measured, and from 64 to 128 steps {solver} "
                f"gains {'more' if said[solver] < factor else 'less'}. An error of order p is proportional to "
                "(1/steps)^p: of which order is it?"
            )
    right(f"measured {found['euler']:.2f} for Euler, of order 1, and {found['heun']:.2f} for Heun, of order 2.")


def check_identity(identity: Any) -> None:
    """Which of the settings `SCALES` carry A to A unchanged at τ = 0.3; their letters, such as "ad".

    Raises:
        NotYet: a setting that was named does not, or one does that was not named.
    """
    said = letters(identity, "identity", "".join(SCALES), several=True)
    far = {letter: two_gaussians.moved(*scales, TAU) for letter, scales in SCALES.items()}
    if wrong := sorted(letter for letter in said if far[letter] > 0.02):
        raise NotYet(
            f"identity: with {wrong[0]}, guidance {SCALES[wrong[0]][0]:g} out and {SCALES[wrong[0]][1]:g} back, points "
            f"of A come back {far[wrong[0]]:.2f} (RMS) from where they were. Which field undoes a leg?"
        )
    if missing := sum(far[letter] <= 0.02 for letter in set(far) - said):
        raise NotYet(
            f"identity: {', '.join(sorted(said))} holds; expected {missing} more. What undoes a leg, for any field?"
        )
    shown = ", ".join(f"{letter} {distance:.3f}" for letter, distance in far.items())
    right(
        f"points of A come back (RMS) {shown} from where they were. The field of the way out, run back, undoes it "
        "whatever the field: A to A tests the solver, not the translation."
    )


def check_steps(steps: Any) -> None:
    """The fewest equal Euler steps on [0, 1] that keep 90 % of a mode of s = 0.05 from A to A at τ = 0.3.

    Raises:
        NotYet: they keep less, or fewer would do.
    """
    n = int(number(steps, "euler_steps", whole=True))
    if not 1 <= n <= 5000:
        raise NotYet(f"euler_steps is {n}; expected a number of steps from 1 to 5000.")
    mode = torch.tensor([0.05])
    kept, less = (float(mode_retention(mode, TAU, solver="euler", grid="uniform", steps=max(k, 1))) for k in (n, n - 1))
    if kept < 0.9:
        raise NotYet(f"{n} steps are too few: {kept:.1%} are kept; expected 90 %. How many steps fit into s?")
    if less >= 0.9:
        raise NotYet(f"{n} steps are more than needed: {kept:.2%} are kept, and {less:.2%} with one step less.")
    right(
        f"{n} steps keep {kept:.2%}; a step is 1/{0.05 * n:.0f} of s. Heun keeps "
        f"{float(mode_retention(mode, TAU)):.1%} with {DEFAULT_STEPS} intervals of the refined grid: "
        "fine noise is lost by the solver, not by the method."
    )
