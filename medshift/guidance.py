"""Wrappers around velocities: a velocity in, a velocity out.

Classifier-free guidance needs no flag in the network and none in the solver: it is another velocity. With the
null label standing for "no domain", the guided field is

    v_w(x, t, c) = v(x, t, null) + w (v(x, t, c) - v(x, t, null)),

so w = 1 is the conditional field alone and w = 0 the unconditional one. Written against the K domains the
network was trained on, v_w - v_c = (w - 1) sum_k p(k | x_t) (v_c - v_k): guidance pushes away from the mean
of all domains.

References:
    Ho and Salimans, Classifier-Free Diffusion Guidance, 2022, arXiv:2207.12598.
    Zheng et al., Guided Flows for Generative Modeling and Decision Making, 2023, arXiv:2311.13443.
"""

import math
from numbers import Real

import torch

from medshift.errors import ParameterError
from medshift.flow import Batch, Labels, Time, Velocity


def branches(scale: float) -> int:
    """How many network evaluations a guided velocity costs: 1 at scale 0 and 1, else 2.

    Raises:
        ParameterError: `scale` is negative or not finite.
    """
    if not (isinstance(scale, Real) and math.isfinite(scale) and scale >= 0):
        raise ParameterError(
            f"The guidance scale is {scale!r}, expected a finite number >= 0 "
            "(1 is the plain conditional field, 0 the unconditional one)."
        )
    return 1 if scale in (0, 1) else 2


def guided(velocity: Velocity, scale: float, null_label: int) -> Velocity:
    """Classifier-free guidance of `velocity`.

    Args:
        velocity: a field trained with and without labels.
        scale: the guidance scale w >= 0.
        null_label: the class that stands for "no domain", `n_domains`.

    Returns:
        The guided velocity. It evaluates the conditional and the null branch in one batch of 2B; at scale 1
        only the conditional branch (it *is* `velocity`) and at scale 0 only the null branch.

    Raises:
        ParameterError: `scale` is negative or not finite.
    """
    if branches(scale) == 2:

        def both_branches(x: Batch, t: Time, label: Labels) -> Batch:
            labels = torch.cat([label, torch.full_like(label, null_label)])
            times = t if t.ndim == 0 else torch.cat([t, t])
            conditional, unconditional = velocity(torch.cat([x, x]), times, labels).chunk(2)
            return unconditional + scale * (conditional - unconditional)

        return both_branches

    if scale == 1:
        return velocity

    def null_branch(x: Batch, t: Time, label: Labels) -> Batch:
        return velocity(x, t, torch.full_like(label, null_label))

    return null_branch


def in_precision(velocity: Velocity, dtype: torch.dtype | None) -> Velocity:
    """`velocity` evaluated under autocast to `dtype`, its result in the precision of x; `None` leaves it as it is.

    The integrator's sums stay in the precision of x, so the error is that of single evaluations: with bfloat16, a
    translation differs from that in float32 by far less than the noise of any domain.
    """
    if dtype is None:
        return velocity

    def evaluate(x: Batch, t: Time, label: Labels) -> Batch:
        with torch.autocast(x.device.type, dtype):
            return velocity(x, t, label).to(x.dtype)

    return evaluate


class CountingVelocity:
    """A velocity that counts what it is asked, to be put around the network, inside every other wrapper.

    The number of network evaluations per image (NFE) is `rows` divided by the batch size: a guided step
    evaluates twice the batch in one call, and counts as two.

    Attributes:
        calls: how often the network was called.
        rows: how many samples went through it in all.
    """

    def __init__(self, velocity: Velocity) -> None:
        """Wrap `velocity`, with both counts at zero."""
        self.velocity = velocity
        self.calls = 0
        self.rows = 0

    def __call__(self, x: Batch, t: Time, label: Labels) -> Batch:
        """Evaluate the wrapped velocity and count the call and its rows."""
        self.calls += 1
        self.rows += len(x)
        return self.velocity(x, t, label)

    def nfe(self, batch_size: int) -> float:
        """Network evaluations per image since construction, for batches of this size."""
        return self.rows / batch_size
