"""The nearest training image of the target domain: a lookup that passes weak tests.

On new views of a head that was trained on, retrieval looks like translation. The distance is taken after the
unpaired tone curve and a blur, so that geometry decides, not tone or noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from medshift.tone import ToneCurves, blurred
from medshift.translate import Domain


class NearestTarget:
    """Returns, for each image, the training image of the target domain that is nearest to it.

    Args:
        training: one tensor (N,1,H,W) a domain, in label order.
        domains: their names.
    """

    name = "nearest target training image"
    needs_pairs = False

    def __init__(self, training: Sequence[Tensor], domains: Sequence[str]):
        self.curves, self.training = ToneCurves(training, domains), list(training)

    def translate(self, images: Tensor, source: Domain, target: Domain, *args: Any, **knobs: Any) -> Tensor:
        """Training images (N,1,H,W) of the target domain."""
        b = self.curves.index(target)
        query = blurred(self.curves.apply(images, source, target), 1.0).flatten(1)
        index = torch.cdist(query, blurred(self.training[b], 1.0).flatten(1)).argmin(dim=1)
        return self.training[b][index]

    def nfe(self, *args: Any, **knobs: Any) -> int:
        """No network is evaluated."""
        return 0
