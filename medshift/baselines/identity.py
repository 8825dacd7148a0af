"""Doing nothing: the floor that every structure-to-source metric rewards most."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from medshift.translate import Domain


class Identity:
    """Returns the source image as it is."""

    name = "doing nothing"
    needs_pairs = False

    def translate(self, images: Tensor, source: Domain, target: Domain, *args: Any, **knobs: Any) -> Tensor:
        """The images (N,1,H,W), unchanged."""
        return images

    def nfe(self, *args: Any, **knobs: Any) -> int:
        """No network is evaluated."""
        return 0
