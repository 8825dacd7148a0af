r"""SDEdit on the same network: the decode leg of MedShift from freshly noised data instead of an inverted image.

x_tau = tau x + (1 - tau) ε, then the flow of the target's label from tau to 1. Its noise level matches a diffusion
model's where a/σ = τ/(1-τ). With an exact field its outputs have the same *law* as MedShift's at every tau
(`medshift.theory`); what differs is how each output hangs together with its source.

References:
    Meng et al., SDEdit: Guided Image Synthesis and Editing with Stochastic Differential Equations, 2022,
    arXiv:2108.01073.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from medshift.flow import interpolate
from medshift.translate import Domain, MedShift


class FreshNoise:
    """SDEdit in its flow-matching form, with the network of a `MedShift`."""

    name = "SDEdit on the same network"
    needs_pairs = False

    def __init__(self, model: MedShift) -> None:
        self.model = model

    def nfe(self, tau: float, *, guidance: float = 1.0, **solver: Any) -> int:
        """Network evaluations per image: half of MedShift's."""
        return self.model.nfe(tau, guidance=guidance, **solver) // 2

    @torch.no_grad()
    def translate(
        self, images: Tensor, source: Domain, target: Domain, *, tau: float, noise: Tensor, **knobs: Any
    ) -> Tensor:
        """Images (B,1,H,W) as `target` would show them, drawn with `noise`.

        Args:
            images: (B,1,H,W).
            source: not used: the method does not ask where an image comes from.
            target: label or name.
            tau: where the decode leg starts.
            noise: standard normal, shaped like the latents.
            knobs: `guidance`, `steps`, `solver`, `grid` of `MedShift.decode`.
        """
        latent = self.model.codec.encode(images)
        x_tau = interpolate(latent, noise.to(latent), torch.tensor(tau, dtype=latent.dtype, device=latent.device))
        return self.model.decode(x_tau, target, tau, size=(images.shape[-2], images.shape[-1]), **knobs)
