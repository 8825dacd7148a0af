r"""FlowEdit: from source to target along the difference of two velocities, without inversion.

Z starts at the image, Z = x at t = τ, and follows

    dZ/dt = E_ε[ v(Z + x_t - x, t, B) - v(x_t, t, A) ],    x_t = t x + (1 - t) ε,    from τ to 1,

with fresh noise at every step, the mean taken over `averages` draws, by Euler on equal steps as published. Here
D = Z - x is what is integrated, dD/dt = E_ε[v(x_t + D, t, B) - v(x_t, t, A)], so A to A is the identity bit for bit.

For Gaussians of equal covariance the noise cancels: the velocities' difference does not depend on x_t, and the shift in
the limit of small steps is MedShift's at the same τ. Its law is not that of the target otherwise.

What differs from the published method: labels instead of text, guidance 1 on both velocities (3.5 and 13.5 with Stable
Diffusion 3), equal steps of t, and no last phase of plain sampling (n_min = 0, as published by default). Published were
33 of 50 steps, τ = .34 in steps.

References:
    Kulikov et al., FlowEdit: Inversion-Free Text-Based Editing Using Pre-Trained Flow Models, 2025, arXiv:2412.08629.
"""

from __future__ import annotations

from itertools import pairwise
from numbers import Integral

import torch
from torch import Tensor

from medshift.errors import ParameterError
from medshift.flow import interpolate
from medshift.ode import at_time, leg_knots
from medshift.translate import Domain, MedShift, check_tau

__all__ = ["FlowEdit"]

STEPS = 50


class FlowEdit:
    """FlowEdit with the network of a `MedShift`."""

    name = "FlowEdit"
    needs_pairs = False

    def __init__(self, model: MedShift) -> None:
        self.model = model

    @torch.no_grad()
    def translate(
        self,
        images: Tensor,
        source: Domain,
        target: Domain,
        *,
        tau: float,
        noise: Tensor | None = None,
        steps: int = STEPS,
        averages: int = 1,
    ) -> Tensor:
        """Images (B,1,H,W) of `source` as `target` would show them, same shape, not clamped.

        Args:
            images: (B,1,H,W), about [-1, 1].
            source: their domain: label, name, or labels (B,).
            target: the domain wanted, likewise.
            tau: where the integration starts, in [0, 1]; 1 returns decode(encode(images)).
            noise: standard normal (B,S,C,h,w), S of `draws`; None where S is 0.
            steps: equal intervals on the whole of [0, 1], of which those above tau are run.
            averages: noises over which a step's velocity is averaged.

        Raises:
            ParameterError: any argument out of its range, or a noise of another shape.
        """
        a, b = self.model.labels(source, images), self.model.labels(target, images)
        x = self.model.codec.encode(images)
        draws = self.draws(tau, steps=steps, averages=averages)
        expected = (len(x), draws, *x.shape[1:])
        if draws and (noise is None or tuple(noise.shape) != expected):
            raise ParameterError(
                f"The noise is {None if noise is None else tuple(noise.shape)}, expected standard normal of shape "
                f"{expected}: (images, draws of these knobs, latent)."
            )
        fresh = iter(() if noise is None else noise.to(x).unbind(1))
        change = torch.zeros_like(x)
        for t, t_next in pairwise(leg_knots(check_tau(tau), "uniform", steps)):
            time, slope = at_time(t, x), torch.zeros_like(x)
            for _ in range(averages):
                x_t = interpolate(x, next(fresh), time)
                slope += self.model.velocity(x_t + change, time, b) - self.model.velocity(x_t, time, a)
            change = change + (t_next - t) / averages * slope
        return self.model.codec.decode(x + change, size=(images.shape[-2], images.shape[-1]))

    def draws(self, tau: float, *, steps: int = STEPS, averages: int = 1) -> int:
        """Noises S per image: `averages` for each step.

        Raises:
            ParameterError: `averages` is not a whole number >= 1, or see `medshift.ode.leg_knots`.
        """
        if not isinstance(averages, Integral) or averages < 1:
            raise ParameterError(f"averages is {averages!r}, expected a whole number >= 1 of noises for each step.")
        return int(averages) * (len(leg_knots(check_tau(tau), "uniform", steps)) - 1)

    def nfe(self, tau: float, *, steps: int = STEPS, averages: int = 1) -> int:
        """Network evaluations per image: two for each noise."""
        return 2 * self.draws(tau, steps=steps, averages=averages)
