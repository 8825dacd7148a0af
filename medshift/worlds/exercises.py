r"""The checks of the nine exercises of notebook 00: each takes an answer and says whether it is right, and why.

A check prints one line that begins with "Right:", or raises `NotYet`. What is right is measured on the spot, on two
domains whose flows are known. `check_generate`, `check_drop` and `check_bridge` are of the three questions that the
paper's summary asks its reader: how one samples from v_θ, what is done with the label in training, and which marginals
the Schrödinger bridge connects. The checks of letters and numbers stand in `medshift.worlds.predictions`, and are
offered here too.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from medshift.guidance import guided
from medshift.ode import integrate, time_grid
from medshift.theory import half_shift_tau, shift_share
from medshift.worlds import mistakes, two_gaussians
from medshift.worlds.answers import NotYet, Watched, letters, number, returned, right, rms, same, tensor
from medshift.worlds.mixture import Mixture
from medshift.worlds.predictions import check_bridge, check_identity, check_orders, check_steps
from medshift.worlds.two_gaussians import NULL, domains, seeded

__all__ = [
    "NotYet",
    "check_marginal",
    "check_bridge",
    "check_drop",
    "check_generate",
    "check_guide",
    "check_half_shift",
    "check_identity",
    "check_orders",
    "check_steps",
]

SURE = 1 - 1e-6  # a right answer leaves such an interval once in a million


def check_generate(generate: Any) -> None:
    """``generate(velocity, noise, label, steps)`` returns samples (B, 2), by equal Euler steps.

    Compared with the Euler steps of `medshift.ode`, and with the exact flow.

    Raises:
        NotYet: it does something else, or changes its arguments.
    """
    noise, label = torch.randn(512, 2, generator=seeded(1)), torch.arange(512) % 2
    velocity, errors = domains(), []
    for steps in (8, 64):
        given, name = noise.clone(), f"generate(velocity, noise, label, {steps})"
        made = tensor(returned(generate, "generate", Watched(velocity), given, label, steps), name, noise.shape)
        if not torch.equal(given, noise):
            raise NotYet("the noise that was handed in has changed: `x += ...` writes into it, `x = x + ...` does not.")
        *_, euler = integrate(velocity, noise, label, time_grid("uniform", steps), solver="euler")
        if not same(made, euler.x):
            raise NotYet(
                f"{name} ends {rms(made, euler.x):.2g} (RMS) from where {steps} equal Euler steps from noise to data "
                f"end. {mistakes.in_sampling(made, velocity, noise, label, steps)}"
            )
        errors.append(rms(made, two_gaussians.exact_ends(noise, label)))
    right(
        f"from noise at t = 0 along v to data at t = 1. The samples end {errors[0]:.3f} (RMS) from the exact flow's "
        f"with 8 steps and {errors[1]:.3f} with 64: what is left is the solver's."
    )


def check_drop(drop: Any) -> None:
    """``drop(label, probability, null_label, generator)`` returns labels for training with guidance.

    Raises:
        NotYet: labels in, not out, change; shares are not those of a coin for each sample, at batch size 1 too; the
            randomness is not the generator's.
    """
    generator, label = seeded(2), torch.arange(1000) % 3
    for probability in (0.0, 1.0, 0.3):
        share = float(_dropped(drop, label, probability, generator).double().mean())
        low, high = (n / 1000 for n in _likely(1000, probability))
        if not low <= share <= high:
            reverse = " Does the comparison point the right way?" if low <= 1 - share <= high else ""
            raise NotYet(
                f"with probability {probability:g}, {share:.1%} of 1000 labels became null; expected {low:.1%} to "
                f"{high:.1%}.{reverse}"
            )
    if not torch.equal(*(_dropped(drop, label, 0.5, seeded(3)) for _ in range(2))):
        raise NotYet("two generators of one seed drop different labels; draw the random numbers from `generator`.")
    if torch.equal(*(_dropped(drop, label, 0.5, generator) for _ in range(2))):
        raise NotYet("two calls in a row drop the same labels; each should draw anew from `generator`.")
    alone = sum(int(_dropped(drop, label[:1], 0.1, generator).sum()) for _ in range(2000))
    low, high = _likely(2000, 0.1)
    if not low <= alone <= high:
        raise NotYet(
            f"in 2000 batches of one sample, {alone} labels became null; expected {low:g} to {high:g} at probability "
            "0.1. What does your rule do where a batch holds one sample?"
        )
    counts = torch.tensor([float(_dropped(drop, label[:8], 0.3, generator).sum()) for _ in range(800)])
    if not 0.7 < (ratio := float(counts.var()) / (8 * 0.3 * 0.7)) < 1.35:
        bound = "all samples of a batch share one fate" if ratio > 1 else "batches lose nearly the same number"
        raise NotYet(
            f"from batch to batch, the number of null labels among 8 varies {ratio:.2g} times as much as that of "
            f"independent coins: {bound}. Decide for each sample on its own."
        )
    right(
        f"a coin for each sample, {alone} of 2000 at batch size 1 and probability 0.1. So one network learns the field "
        "of each domain and, under the null label, that of all of them together."
    )


def _likely(n: int, probability: float) -> tuple[float, float]:
    """How many of n coins fall, all but surely."""
    from scipy.stats import binom  # takes longer to import than everything else here together

    return (n * probability,) * 2 if probability in (0, 1) else binom.interval(SURE, n, probability)


def _dropped(drop: Any, label: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Which labels became null, (B,) bool."""
    given = label.clone()
    made = tensor(returned(drop, "drop", given, probability, 3, generator), "drop(...)", label.shape, whole=True)
    if not torch.equal(given, label):
        raise NotYet("the labels that were handed in have changed; return new ones, since the data set keeps these.")
    if not bool(((made == label) | (made == 3)).all()):
        raise NotYet("some labels are neither what they were nor the null label; expected one of the two.")
    return made == 3


def check_marginal(marginal: Any) -> None:
    """``marginal(x, t, targets)`` returns posterior weights (N,) and the marginal velocity (2,).

    The targets (N, 2) are equally likely.

    Raises:
        NotYet: the weights or the velocity are others, or not finite where the exponentials underflow.
    """
    targets = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.2, 1.6]])
    points = Mixture(targets, torch.zeros(3), torch.ones(3))
    for x, t in ((torch.tensor([0.3, 0.4]), 0.5), (torch.tensor([3.0, 3.0]), 0.95)):
        where, answer = f"at x = {_rounded(x)}, t = {t:g}", returned(marginal, "marginal", x, t, targets)
        if not isinstance(answer, (tuple, list)) or len(answer) != 2:
            raise NotYet("marginal(x, t, targets) returns one thing; expected two: weights (N,), velocity (2,).")
        if isinstance(answer[0], Tensor) and t > 0.9 and bool(answer[0].isnan().any()):
            raise NotYet(f"weights are NaN {where}: every exponential is 0 there. What does softmax do about it?")
        weights, velocity = tensor(answer[0], "weights", (3,)), tensor(answer[1], "velocity", (2,))
        expected = points.responsibilities(x[None], t)[0]
        if not same(weights, expected):
            raise NotYet(f"weights {_rounded(weights)} {where}. {mistakes.in_weights(weights, x, t, targets)}")
        each = points.component_velocities(x[None], t)[0]
        if not same(velocity, expected @ each, 1e-3):
            hint = mistakes.in_velocity(velocity, expected, each, t)
            raise NotYet(f"velocity {_rounded(velocity)} {where}, with the right weights. {hint}")
    right(
        "weights p(x_1 | x_t) ∝ exp(-|x_t - t x_1|² / 2(1-t)²), velocities (x_1 - x_t) / (1-t), and their average is "
        "the marginal velocity, which the loss has as its minimiser."
    )


def check_half_shift(half_shift: Any) -> None:
    """``half_shift(spread)`` returns the τ at which half of the shift is done.

    Raises:
        NotYet: `medshift.theory.shift_share` at that τ is not one half.
    """
    for spread in (1.0, 0.5, 0.1, 5.0):
        name = f"half_shift({spread:g})"
        tau = number(returned(half_shift, "half_shift", spread), name)
        if abs(tau - 1 / (math.sqrt(3) * spread)) < 1e-3:
            raise NotYet(f"{name} is {tau:.3f}: those are the odds τ / (1 - τ). What is τ?")
        if not 0 < tau < 1:
            raise NotYet(f"{name} is {tau:.3g}; expected a τ between 0 and 1.")
        if abs(tau - half_shift_tau(spread)) > 1e-3:
            raise NotYet(
                f"{name} is {tau:.3f}, and there {shift_share(tau, spread):.0%} of the shift is done; expected 50 %. "
                "Set the share to 1/2 and solve for the odds τ / (1 - τ) first."
            )
    taus = ", ".join(f"{half_shift_tau(s):.3f} at s = {s:g}" for s in (0.5, 1, 5))
    right(f"τ / (1 - τ) = 1 / (√3 s), so {taus}. The wider the data along the shift, the lower the τ that moves them.")


def check_guide(guide: Any, spread: Any) -> None:
    """``guide(conditional, null, scale)`` returns the guided velocity; `spread` is a letter.

    The letter says what scale 3 makes of the spread along the line through two domains: a narrower, b wider, c the
    same.

    Raises:
        NotYet: it is another velocity, or the spread that is measured says otherwise.
    """
    field, t = domains(), torch.tensor(0.4)
    x, label = torch.randn(64, 2, generator=seeded(7)), torch.arange(64) % 2
    fields = field(x, t, label), field(x, t, torch.full_like(label, NULL))
    for scale in (1.0, 0.0, 3.0):
        given, name = [each.clone() for each in fields], f"guide(conditional, null, {scale:g})"
        made = tensor(returned(guide, "guide", *given, scale), name, x.shape)
        if not all(map(torch.equal, given, fields)):
            raise NotYet("a velocity that was handed in has changed; return a new one.")
        if not same(made, expected := guided(field, scale, NULL)(x, t, label)):
            hint = mistakes.in_guidance(made, *fields, scale)
            raise NotYet(f"{name} is {rms(made, expected):.2g} (RMS) from the guided velocity. {hint}")
    (said,) = letters(spread, "spread", "abc")
    plain, strong = (two_gaussians.spread_along(guided(field, scale, NULL)) for scale in (1.0, 3.0))
    if said != ("c" if abs(strong / plain - 1) < 0.05 else "a" if strong < plain else "b"):
        raise NotYet(
            f"spread: {said} is not what is measured along the line through the domains. Guidance pushes away from the "
            "other domain: which samples are pushed the hardest?"
        )
    right(
        f"null + w (conditional - null). Along the line through the domains the spread is {plain:.2f} at w = 1 and "
        f"{strong:.2f} at w = 3: samples nearest to the other domain are pushed the hardest, and B's law is left."
    )


def _rounded(values: Tensor) -> list[float]:
    return [round(float(value), 3) for value in values]
