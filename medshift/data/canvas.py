"""The maps that a procedural head is painted into.

Boundaries are linear ramps one voxel wide and thin walls are differences of two ramps, so that line integrals and
masses converge with the voxel size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medshift.data.anatomy import Point
from medshift.data.person import ORIGIN, Space, Spline

CORTEX = 0.97  # compact bone relative to ICRU-44 cortical bone


@dataclass
class Canvas:
    """The maps being painted, on a grid or a part of it (views, changed in place), with standard coordinates."""

    space: Space
    axes: list[Tensor]
    p: Point
    h: float
    fields: dict[str, Tensor]

    @classmethod
    def blank(cls, space: Space, spacing: float, generator: torch.Generator) -> Canvas:
        """The whole grid at a ``spacing``: random textures drawn, nothing painted."""
        axes = space.axes(spacing)
        p = space.grid(axes)
        fields = {"grain": Spline(3.6, generator, 1.0, 1).grid(axes)[0]}
        fields["relief"] = Spline(15.0, generator, 1.3, 1).grid(axes)[0]
        fields |= {"tissue": torch.zeros_like(p[0]), "bone": torch.zeros_like(p[0])}
        return cls(space, axes, p, spacing, fields)

    def __getattr__(self, name: str) -> Tensor:
        try:
            return self.__dict__["fields"][name]
        except KeyError:
            raise AttributeError(name) from None

    def crop(self, low: Sequence[float], high: Sequence[float], margin: float = 14.0) -> Canvas:
        """The part around a box of the standard head (x, y, z)."""
        where, scale = [], self.space.scale
        for i in (2, 1, 0):
            reach = torch.tensor([low[i] * scale[i] + ORIGIN[i] - margin, high[i] * scale[i] + ORIGIN[i] + margin])
            start, stop = torch.searchsorted(self.axes[2 - i], reach).tolist()
            where.append(slice(start, stop))
        at = tuple(where)
        fields = {name: value[at] for name, value in self.fields.items()}
        axes = [axis[w] for axis, w in zip(self.axes, at, strict=True)]
        return Canvas(self.space, axes, tuple(c[at] for c in self.p), self.h, fields)  # type: ignore[arg-type]

    def fill(self, distance: Tensor) -> Tensor:
        """Share of each voxel inside a shape: a ramp one voxel wide."""
        return (0.5 - distance / self.h).clamp_(0, 1)

    def add(self, distance: Tensor, density: float | Tensor = CORTEX) -> None:
        """Add bone where it is denser than what is there."""
        self.add_share(self.fill(distance), density)

    def add_share(self, share: Tensor, density: float | Tensor = CORTEX) -> None:
        torch.maximum(self.bone, share * density, out=self.bone)
        torch.maximum(self.tissue, share, out=self.tissue)

    def add_cortical(self, distance: Tensor, shell: float, marrow: float) -> None:
        """Add a bone with a cortical shell [mm] around trabecular bone."""
        spongy = (marrow * (1 + 0.9 * self.grain)).clamp_(0.1, 0.9)
        share = self.fill(distance)
        torch.maximum(self.bone, CORTEX * share - (CORTEX - spongy) * self.fill(distance + shell), out=self.bone)
        torch.maximum(self.tissue, share, out=self.tissue)

    def carve(self, share: Tensor, density: float = 0.0) -> None:
        """Replace what is there, within the skin, by a soft tissue or, at 0, by air."""
        self.bone.mul_(1 - share)
        self.tissue.add_(share * (density * self.skin - self.tissue))
