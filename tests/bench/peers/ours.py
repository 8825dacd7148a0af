"""Ours: any velocity in medshift's own loop."""

from __future__ import annotations

import torch
from torch import Tensor

from medshift.flow import Velocity
from medshift.guidance import guided
from medshift.ode import integrate


class Ours:
    """A velocity, as medshift integrates it."""

    def __init__(self, name: str, velocity: Velocity, null_label: int) -> None:
        self.name, self.velocity, self.null_label = name, velocity, null_label

    @torch.no_grad()
    def leg(self, x: Tensor, label: Tensor, knots: tuple[float, ...], scale: float) -> Tensor:
        *_, end = integrate(guided(self.velocity, scale, self.null_label), x, label, knots, solver="euler")
        return end.x
