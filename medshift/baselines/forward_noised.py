r"""Inversion whose first steps are forward noising: from t = 1 to `start` by adding noise, from there by the ODE.

Where a source has no noise of its own (clamped air, a clean simulator) the encode leg has a collapsed spectrum: there
is nothing to blow up into noise. Replacing the first steps by x_start = start x + (1 - start) ε gives z_tau the
spectrum it should have, and gives up the fine noise of the source, which a translation need not keep.

References:
    Staniszewski et al., There and Back Again: On the relation between Noise and Image Inversions in Diffusion Models,
    2024, arXiv:2410.23530.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from medshift.errors import ParameterError
from medshift.flow import interpolate
from medshift.ode import DEFAULT_STEPS, states_at, time_grid
from medshift.translate import Domain, MedShift


class ForwardNoised:
    """MedShift with forward-noised first steps.

    Attributes:
        start: time below which the ODE takes over; 1 is plain MedShift.
    """

    name = "MedShift, forward-noised start"
    needs_pairs = False

    def __init__(self, model: MedShift, start: float) -> None:
        if not 0 < start <= 1:
            raise ParameterError(f"start is {start}, expected a time in (0, 1]: 1 is plain inversion.")
        self.model, self.start = model, start

    @torch.no_grad()
    def encode(
        self,
        images: Tensor,
        source: Domain,
        tau: float,
        *,
        noise: Tensor,
        steps: int = DEFAULT_STEPS,
        solver: str = "heun",
        grid: str = "refined",
    ) -> Tensor:
        """z_tau (B, C, h, w) of images (B,1,H,W), with `noise` (B, C, h, w) added at the start.

        Raises:
            ParameterError: `tau` above `start`.
        """
        if tau > self.start:
            raise ParameterError(f"tau is {tau}, above the start {self.start} of the inversion; choose a lower tau.")
        latent = self.model.codec.encode(images)
        x = interpolate(latent, noise.to(latent), torch.tensor(self.start, dtype=latent.dtype, device=latent.device))
        knots = [self.start, *(k for k in time_grid(grid, steps)[::-1] if k < self.start)]
        label = self.model.labels(source, images)
        return states_at(self.model.velocity, x, label, knots, [tau], solver=solver)[0]

    def translate(
        self, images: Tensor, source: Domain, target: Domain, *, tau: float, noise: Tensor, **knobs: Any
    ) -> Tensor:
        """Images (B,1,H,W) of `source` as `target` would show them; see `encode`."""
        z_tau = self.encode(images, source, tau, noise=noise, **knobs)
        return self.model.decode(z_tau, target, tau, size=(images.shape[-2], images.shape[-1]), **knobs)

    def nfe(self, tau: float, *, steps: int = DEFAULT_STEPS, solver: str = "heun", grid: str = "refined") -> int:
        """Network evaluations per image."""
        both = self.model.nfe(tau, steps=steps, solver=solver, grid=grid)
        skipped = self.model.nfe(self.start, steps=steps, solver=solver, grid=grid) // 2
        return both - skipped
