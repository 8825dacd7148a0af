"""Blur, then a tone curve: the two things that any eye sees first between a simulator and a detector.

The blur is the Gaussian whose mean radial power spectrum, after the tone curve, is nearest (in mean squared
log-ratio) to the target's on unpaired training images. A blur cannot add noise; where the target is noisier than the
source, a blur of zero wins and this floor is the histogram match.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from medshift.metrics.physics import radial_power_spectrum
from medshift.tone import ToneCurves, apply_curve, blurred, quantiles
from medshift.translate import Domain

SIGMAS = (0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.5, 2.0)  # pixels


class BlurTone:
    """Blur and tone curve between domains, both fitted to unpaired training images (see `ToneCurves`)."""

    name = "blur + tone curve"
    needs_pairs = False

    def __init__(self, training: Sequence[Tensor], domains: Sequence[str]):
        self.curves, self.training = ToneCurves(training, domains), list(training)
        self._fits: dict[tuple[int, int], tuple[float, Tensor, Tensor]] = {}

    def fit(self, a: int, b: int) -> tuple[float, Tensor, Tensor]:
        """The blur [pixels] and the source's and target's quantiles for one pair."""
        if (a, b) not in self._fits:
            wanted = radial_power_spectrum(self.training[b])[1].mean(dim=0)
            target = self.curves.quantiles[b]
            best = None
            for sigma in SIGMAS:
                soft = blurred(self.training[a], sigma)
                source = quantiles(soft)
                spectrum = radial_power_spectrum(apply_curve(soft, source, target))[1].mean(dim=0)
                misfit = float((spectrum / wanted).log().square().mean())
                if best is None or misfit < best[0]:
                    best = (misfit, sigma, source, target)
            assert best is not None
            self._fits[a, b] = best[1:]
        return self._fits[a, b]

    def translate(self, images: Tensor, source: Domain, target: Domain, *args: Any, **knobs: Any) -> Tensor:
        """Images (N,1,H,W), blurred and with the target's tone."""
        sigma, source_quantiles, target_quantiles = self.fit(self.curves.index(source), self.curves.index(target))
        return apply_curve(blurred(images, sigma), source_quantiles, target_quantiles)

    def nfe(self, *args: Any, **knobs: Any) -> int:
        """No network is evaluated."""
        return 0
