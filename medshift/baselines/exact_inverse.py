r"""The exact inverse of Euler: an implicit encode leg, so that the explicit decode leg as published undoes it.

Euler decodes by x_{k+1} = x_k + h v(x_k, t_k, B). Its inverse asks for the x_k that leads to a known x_{k+1},

    x_k = x_{k+1} - h v(x_k, t_k, A),

an equation for x_k: an implicit Euler step on the way from 1 to tau. It is solved by `iterations` rounds of
y ← x_{k+1} - h v(y, t_k, A) from y = x_{k+1}. One round moves by the velocity at (x_{k+1}, t_k), about what plain Euler
does. A round shrinks the error by the factor h L, L the Lipschitz constant of v in x, so it converges where h < 1/L;
near t = 1 the velocity of a mode of spread s has L up to 1/(2s), and the finest modes ask for h < 2s. How far the
iteration came is told by `residual`.

With the same label on both legs decode undoes encode whatever the field is. That is a fact about inversion: each leg is
still Euler's, and loses or, here on the way to tau, gains the fine modes as Euler does.

What differs from the published methods: a flow instead of DDIM, plain fixed-point rounds without acceleration or
averaging, guidance 1.

References:
    Hong et al., On Exact Inversion of DPM-Solvers, 2024, arXiv:2311.18387 (backward Euler).
    Pan et al., Effective Real Image Editing with Accelerated Iterative Diffusion Inversion, 2023, arXiv:2309.04907
    (fixed-point iteration).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from numbers import Integral

import torch
from torch import Tensor

from medshift.errors import ParameterError
from medshift.flow import Labels
from medshift.ode import at_time, leg_knots
from medshift.translate import AS_PUBLISHED, Domain, MedShift, check_tau

__all__ = ["ExactInverse"]

STEPS: int = AS_PUBLISHED["steps"]


class ExactInverse:
    """Implicit Euler on the encode leg, explicit Euler on the decode leg, with the network of a `MedShift`."""

    name = "exact inverse of Euler"
    needs_pairs = False

    def __init__(self, model: MedShift) -> None:
        self.model = model

    @torch.no_grad()
    def encode(self, images: Tensor, source: Domain, *, tau: float, steps: int = STEPS, iterations: int = 4) -> Tensor:
        """z_tau (B,C,h,w) of images (B,1,H,W): the latents that Euler's decode leg takes back to them.

        Args:
            images: (B,1,H,W), about [-1, 1].
            source: their domain: label, name, or labels (B,).
            tau: where to stop, in [0, 1].
            steps: equal intervals on the whole of [0, 1], of which the leg runs those above tau.
            iterations: rounds of the fixed point for each step.

        Raises:
            ParameterError: any argument out of its range.
        """
        x = self.model.codec.encode(images)
        label = self.model.labels(source, images)
        for *_, z_tau in self._leg(x, label, tau, steps, iterations):
            x = z_tau
        return x

    def translate(
        self, images: Tensor, source: Domain, target: Domain, *, tau: float, steps: int = STEPS, iterations: int = 4
    ) -> Tensor:
        """Images (B,1,H,W) of `source` as `target` would show them, same shape, not clamped; see `encode`."""
        self.model.labels(target, images)  # a wrong target is told before the encode leg, not after it
        z_tau = self.encode(images, source, tau=tau, steps=steps, iterations=iterations)
        size = (images.shape[-2], images.shape[-1])
        return self.model.decode(z_tau, target, tau, size=size, steps=steps, solver="euler", grid="uniform")

    @torch.no_grad()
    def residual(
        self, images: Tensor, source: Domain, *, tau: float, steps: int = STEPS, iterations: int = 4
    ) -> Tensor:
        """How far the fixed points are from being ones: the root mean square over components, of the worst step (B,).

        It is |x_k + h v(x_k, t_k, A) - x_{k+1}| in standard deviations of the latents, for images (B,1,H,W); one more
        evaluation for each step. Around 1e-7 is float32's rounding; where it is not small take more `iterations` or
        `steps`. The arguments are those of `encode`.
        """
        after = self.model.codec.encode(images)
        label = self.model.labels(source, images)
        worst = after.new_zeros(len(after))
        for t, h, x in self._leg(after, label, tau, steps, iterations):
            missed = x + h * self.model.velocity(x, at_time(t, x), label) - after
            worst = torch.maximum(worst, missed.flatten(1).square().mean(1).sqrt())
            after = x
        return worst

    def nfe(self, tau: float, *, steps: int = STEPS, iterations: int = 4) -> int:
        """Network evaluations per image: `iterations` for each step of the encode leg, one for each of the other."""
        return (_checked(iterations) + 1) * (len(leg_knots(check_tau(tau), "uniform", steps)) - 1)

    def _leg(
        self, x: Tensor, label: Labels, tau: float, steps: int, iterations: int
    ) -> Iterator[tuple[float, float, Tensor]]:
        """Each step of the encode leg: the time it leads to, its length, and the latent (B,C,h,w) there."""
        rounds = _checked(iterations)
        for t_after, t in pairwise(leg_knots(check_tau(tau), "uniform", steps)[::-1]):
            h, time, start = t_after - t, at_time(t, x), x
            for _ in range(rounds):
                x = start - h * self.model.velocity(x, time, label)
            yield t, h, x


def _checked(iterations: int) -> int:
    if not isinstance(iterations, Integral) or iterations < 1:
        raise ParameterError(f"iterations is {iterations!r}, expected a whole number >= 1 of rounds for each step.")
    return int(iterations)
