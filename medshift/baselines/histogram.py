"""Unpaired histogram matching: one monotone tone curve per pair of domains.

The curve takes the quantiles of all training pixels of the source domain to those of the target domain. It is fitted
to the two unpaired sets, not to single images: matching one image to a domain would also undo its anatomy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from medshift.tone import ToneCurves
from medshift.translate import Domain


class HistogramMatch:
    """Tone curves between domains; see `medshift.tone.ToneCurves` for the arguments."""

    name = "histogram match"
    needs_pairs = False

    def __init__(self, training: Sequence[Tensor], domains: Sequence[str]):
        self.curves = ToneCurves(training, domains)

    def translate(self, images: Tensor, source: Domain, target: Domain, *args: Any, **knobs: Any) -> Tensor:
        """Images (N,1,H,W) with the target's tone."""
        return self.curves.apply(images, source, target)

    def nfe(self, *args: Any, **knobs: Any) -> int:
        """No network is evaluated."""
        return 0
