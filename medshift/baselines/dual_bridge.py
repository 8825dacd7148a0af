"""DDIB with one conditional network: MedShift at tau = 0, all the way to noise and back.

References:
    Su et al., Dual Diffusion Implicit Bridges for Image-to-Image Translation, 2022, arXiv:2203.08382.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from medshift.translate import Domain, MedShift


class DualBridge:
    """The dual bridge through noise, with the network of a `MedShift`."""

    name = "DDIB, one network"
    needs_pairs = False

    def __init__(self, model: MedShift) -> None:
        self.model = model

    def translate(self, images: Tensor, source: Domain, target: Domain, **knobs: Any) -> Tensor:
        """Images (B,1,H,W) of `source` as `target` would show them; the knobs are those of `MedShift.translate`."""
        return self.model.translate(images, source, target, tau=0.0, **knobs)

    def nfe(self, **knobs: Any) -> int:
        """Network evaluations per image."""
        return self.model.nfe(0.0, **knobs)
