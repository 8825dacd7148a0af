"""What typical wrong answers to the exercises of notebook 00 give, so that a check can name the mistake.

Each function compares an answer with what such mistakes end at, and returns a hint, or a general one where none fits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from medshift.flow import Velocity
from medshift.ode import integrate, time_grid
from medshift.worlds.answers import same

__all__ = ["BRIDGES", "LEGS", "in_guidance", "in_sampling", "in_velocity", "in_weights"]

# Hints to the wrong letters of `check_bridge`.
BRIDGES = {
    "a": "Noise is an end of generation; a bridge for translation has images at both.",
    "b": "That is one leg of MedShift, not a translation: which images come out of one?",
    "d": "z_τ lies on the way; a bridge is named by its two ends.",
}
LEGS = {
    "a": "The legs meet at τ. It would hold if A's and B's noised laws were one law there.",
    "c": "That holds for one value of τ alone. Which?",
    "d": "Noise makes two domains alike, but when are they the same?",
}


def in_sampling(made: Tensor, velocity: Velocity, noise: Tensor, label: Tensor, steps: int) -> str:
    """A hint to samples `made` (B, 2) that are not those of `steps` equal Euler steps from `noise` (B, 2)."""

    def walk(times: list[float], length: float, *, still: bool = False, labels: Tensor = label) -> Tensor:
        x = noise
        for t in times:
            x = x + length * velocity(noise if still else x, torch.tensor(t), labels)
        return x

    h = 1 / steps
    starts = [k * h for k in range(steps)]
    *_, heun = integrate(velocity, noise, label, time_grid("uniform", steps), solver="heun")
    hints = {
        "That is the noise itself.": noise,
        "That walks from t = 1 to t = 0: which end is noise?": walk([1 - t for t in starts], -h),
        "That runs the clock from 1 to 0: which end is noise?": walk([1 - t for t in starts], h),
        "That walks against the velocity: look at the sign.": walk(starts, -h),
        "That asks for the velocity at each step's end: what is known there?": walk([t + h for t in starts], h),
        "The last step is missing.": walk(starts[:-1], h),
        "There is a step too many.": walk([*starts, 1.0], h),
        "Each step has length 1: how much time does one take?": walk(starts, 1.0),
        "Each step asks for the velocity at t = 0: does time go on?": walk([0.0] * steps, h),
        "Each step asks for the velocity at the noise: where is the particle now?": walk(starts, h, still=True),
        "The labels are not handed on.": walk(starts, h, labels=torch.zeros_like(label)),
        "That is Heun's method, and a better one; here Euler's is asked for.": heun.x,
    }
    named = next((hint for hint, wrong in hints.items() if same(made, wrong)), "")
    return named or "Where is a particle that stands at x with velocity v after a time 1/steps?"


def in_weights(weights: Tensor, x: Tensor, t: float, targets: Tensor) -> str:
    """A hint to `weights` (N,) that are not p(x_1 | x_t = x) of equally likely `targets` (N, 2)."""
    if abs(float(weights.sum()) - 1) > 1e-3:
        return f"They sum to {float(weights.sum()):.3g}; expected 1."
    far, raw = (x - t * targets).square().sum(1), (x - targets).square().sum(1)
    hints = {
        "All are equal; is each target as likely once x_t is known?": torch.zeros(len(targets)),
        "Those are of distances to the targets; where does a path to one stand at t?": -raw / (2 * (1 - t) ** 2),
        "What is the standard deviation of the noise that is left in x_t?": -far / 2,
        "A factor is missing in the exponent of the Gaussian.": -far / (1 - t) ** 2,
        "The exponent has a standard deviation below it, not a variance.": -far / (2 * (1 - t)),
        "The farthest target is the likeliest there; look at the sign.": far / (2 * (1 - t) ** 2),
    }
    named = next((hint for hint, logits in hints.items() if same(weights, logits.softmax(0))), "")
    return named or "Given x_1, x_t is Gaussian: with which mean and standard deviation?"


def in_velocity(velocity: Tensor, weights: Tensor, each: Tensor, t: float) -> str:
    """A hint to a `velocity` (2,) that is not the average of `each` (N, 2) with `weights` (N,)."""
    hints = {
        "That is the plain average; use the weights.": each.mean(0),
        "That is the way to the mean target; how much time is left for it?": (1 - t) * weights @ each,
        "That is the sum; use the weights.": each.sum(0),
        "That points away from the targets.": -weights @ each,
    }
    named = next((hint for hint, wrong in hints.items() if same(velocity, wrong, 1e-3)), "")
    return named or "A straight path that must be at x_1 when t = 1: which velocity does it have at x_t?"


def in_guidance(made: Tensor, conditional: Tensor, null: Tensor, scale: float) -> str:
    """A hint to a velocity `made` that is not the guided one of two others, all (B, 2)."""
    apart = conditional - null
    hints = {
        "That is the conditional field, whatever the scale.": conditional,
        "The two fields have changed places.": conditional - scale * apart,
        "Ho and Salimans count so: their 0 is the plain conditional field; here 1 is.": conditional + scale * apart,
        "Scale 0 should leave the null field, all of it.": scale * conditional,
        "That is only the difference of the two; from where does it start?": scale * apart,
    }
    named = next((hint for hint, wrong in hints.items() if same(made, wrong)), "")
    return named or "It is a straight line through both fields: at scale 0 the null one, at scale 1 the conditional."
