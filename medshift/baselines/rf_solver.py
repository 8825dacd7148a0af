r"""RF-Solver: MedShift's two legs by a Taylor step of second order, the derivative along the path by a difference.

    x_{t+h} = x_t + h v + h²/2 v',    v' = (v(x_t + δ h v, t + δ h) - v(x_t, t)) / (δ h),

on both legs, h negative on the way to tau. The published code has δ = 1/2. Written out, the step is

    x_{t+h} = x_t + h [ (1 - 1/(2δ)) v(x_t, t) + 1/(2δ) v(x_t + δ h v, t + δ h) ],

which is the family of explicit Runge-Kutta methods of second order with two stages: δ = 1/2 *is* the midpoint rule, and
δ = 1 is Heun's. So the method as published gives what MedShift gives with ``solver="midpoint"``, up to rounding, at the
same cost; it stands here under its name so that the two can be seen to agree.

What differs from the published method: the solver alone is taken, without RF-Edit's sharing of attention features
between the legs; labels instead of text, guidance 1.

References:
    Wang et al., Taming Rectified Flow for Inversion and Editing, 2024, arXiv:2411.04746.
    Hairer, Nørsett and Wanner, Solving Ordinary Differential Equations I, section II.1 (the family).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from medshift.errors import ParameterError
from medshift.flow import Labels
from medshift.ode import DEFAULT_STEPS, at_time, leg_knots
from medshift.translate import Domain, MedShift, check_tau

__all__ = ["RFSolver"]


class RFSolver:
    """Inversion by RF-Solver, with the network of a `MedShift`.

    Args:
        model: the trained model.
        increment: δ, the difference's share of an interval, in (0, 1].

    Raises:
        ParameterError: `increment` out of its range.
    """

    name = "RF-Solver"
    needs_pairs = False

    def __init__(self, model: MedShift, increment: float = 0.5) -> None:
        if not 0 < increment <= 1:
            raise ParameterError(f"increment is {increment}, expected a share of an interval in (0, 1].")
        self.model, self.increment = model, increment

    @torch.no_grad()
    def translate(
        self,
        images: Tensor,
        source: Domain,
        target: Domain,
        *,
        tau: float,
        steps: int = DEFAULT_STEPS,
        grid: str = "refined",
    ) -> Tensor:
        """Images (B,1,H,W) of `source` as `target` would show them, same shape, not clamped.

        Args:
            images: (B,1,H,W), about [-1, 1].
            source: their domain: label, name, or labels (B,).
            target: the domain wanted, likewise.
            tau: where the two legs meet, in [0, 1].
            steps: intervals on the whole of [0, 1], of which a leg runs those above tau.
            grid: one of `medshift.ode.GRIDS`; "uniform" as published.

        Raises:
            ParameterError: any argument out of its range.
        """
        a, b = self.model.labels(source, images), self.model.labels(target, images)
        knots = leg_knots(check_tau(tau), grid, steps)
        z_tau = self._leg(self.model.codec.encode(images), a, knots[::-1])
        return self.model.codec.decode(self._leg(z_tau, b, knots), size=(images.shape[-2], images.shape[-1]))

    def nfe(self, tau: float, *, steps: int = DEFAULT_STEPS, grid: str = "refined") -> int:
        """Network evaluations per image: two for each interval of each leg."""
        return 4 * (len(leg_knots(check_tau(tau), grid, steps)) - 1)

    def _leg(self, x: Tensor, label: Labels, knots: Sequence[float]) -> Tensor:
        """The latent (B,C,h,w) at the last of `knots` from that at the first."""
        for t, t_next in pairwise(knots):
            h, share = t_next - t, self.increment
            slope = self.model.velocity(x, at_time(t, x), label)
            ahead = at_time((1 - share) * t + share * t_next, x)
            derivative = (self.model.velocity(x + share * h * slope, ahead, label) - slope) / (share * h)
            x = x + h * slope + h**2 / 2 * derivative
        return x
