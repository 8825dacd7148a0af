"""People: what differs from head to head, as a deformation of space, a set of sizes, and the landmarks that follow."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from medshift.data import anatomy as an
from medshift.data.anatomy import Build, Point, union

EXTENT = (264.0, 252.0, 192.0)  # mm (z, y, x)
ORIGIN = (0.0, 10.5, -16.0)  # world position of the standard head's origin [mm]


class Space:
    """A person's deformation: world positions [mm] to the standard head, c = (w - origin) / scale + u(w)."""

    def __init__(self, generator: torch.Generator):
        def normal() -> float:
            return float(torch.randn((), generator=generator).clamp(-1.7, 1.7))

        size = 1 + 0.028 * normal()
        self.scale = [(size + 0.022 * normal()) * s for s in (0.985, 0.985, 0.985)]
        coarse, fine = Spline(26.0, generator, 1.6), Spline(10.0, generator, 0.55)
        z, y, x = torch.meshgrid(*(k.float() for k in coarse.knots), indexing="ij")
        low = torch.sigmoid((-25 - z) / 14) * torch.sigmoid((20 - y) / 15)
        jaw, length, chin, profile, bun, sides, top, cheeks, brow = (normal() for _ in range(9))
        hill = an.bump
        coarse.values[0] += 3.2 * jaw * low * x / 50 + 3.6 * sides * hill(z, 55, 45) * hill(y, 25, 60) * x / 70
        coarse.values[0] += 3 * cheeks * hill(z, -15, 22) * hill(y, -45, 40) * x / 60
        coarse.values[1] += 3.6 * chin * low + 6.5 * profile * hill(y, -90, 50) * hill(z, 65, 35)
        coarse.values[1] += 6 * bun * hill(y, 95, 45) * hill(z, 20, 40) + 2 * brow * hill(y, -95, 40) * hill(z, 28, 14)
        coarse.values[2] += 5 * length * torch.sigmoid((-15 - z) / 14) * torch.sigmoid((-10 - y) / 15)
        coarse.values[2] += 4.5 * top * hill(z, 105, 45)
        self.fields = (coarse, fine)

    def axes(self, spacing: float) -> list[Tensor]:
        """World coordinates [mm] of the voxel centres along z, y and x."""
        counts = [math.ceil(extent / spacing - 1e-6) for extent in EXTENT]
        return [(torch.arange(n) - (n - 1) / 2) * spacing for n in counts]

    def grid(self, axes: Sequence[Tensor]) -> Point:
        """Standard coordinates (x, y, z), each (D, H, W), of a grid."""
        shift = self.fields[0].grid(axes) + self.fields[1].grid(axes)
        z, y, x = axes[0][:, None, None], axes[1][:, None], axes[2]
        return tuple(shift[i].add_((w - ORIGIN[i]) / self.scale[i]) for i, w in enumerate((x, y, z)))  # type: ignore

    def to_world(self, points: Tensor) -> Tensor:
        """World positions of standard points (P, 3), by fixed point iteration of a contraction."""
        origin, scale = (torch.tensor(v, dtype=torch.float64) for v in (ORIGIN, self.scale))
        world = origin + scale * points
        for _ in range(20):
            world = origin + scale * (points - self.fields[0].at(world) - self.fields[1].at(world))
        return world


class Spline:
    """A random cubic B-spline field of the world, (channels, z, y, x), independent of the voxel grid."""

    def __init__(self, knot_mm: float, generator: torch.Generator, amplitude: float, channels: int = 3):
        self.knot_mm = knot_mm
        halves = [math.ceil((extent / 2 + 4) / knot_mm) + 1 for extent in EXTENT]
        self.knots = [torch.arange(-n, n + 1, dtype=torch.float64) * knot_mm for n in halves]
        shape = (channels, *(len(k) for k in self.knots))
        self.values = amplitude * torch.randn(shape, generator=generator).clamp_(-2.5, 2.5)

    def _weights(self, axis: int, at: Tensor) -> Tensor:
        u = (at[:, None] - self.knots[axis].to(at)).abs() / self.knot_mm
        return torch.where(u < 1, 2 / 3 - u**2 + u**3 / 2, (2 - u).clamp(min=0) ** 3 / 6)

    def grid(self, axes: Sequence[Tensor]) -> Tensor:
        """Values (channels, D, H, W) on a grid."""
        wz, wy, wx = (self._weights(i, axis) for i, axis in enumerate(axes))
        return torch.einsum("zk,ckji->czji", wz, self.values).transpose(2, 3).matmul(wy.T).transpose(2, 3).matmul(wx.T)

    def at(self, points: Tensor) -> Tensor:
        """Values (P, channels) at world points (P, 3) as (x, y, z)."""
        wx, wy, wz = (self._weights(i, points[:, 2 - i]) for i in (2, 1, 0))
        return torch.einsum("pk,pj,pi,ckji->pc", wz, wy, wx, self.values.to(points))


def draw_build(generator: torch.Generator) -> Build:
    """Draw what differs between people besides the deformation of space."""

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    def pair(low: float, high: float, spread: float) -> tuple[float, float]:
        middle = uniform(low, high)
        return middle * uniform(1 - spread, 1 + spread), middle * uniform(1 - spread, 1 + spread)

    lost = [i for i in range(28) if uniform(0, 1) < 0.16 and i % 7 >= 3]
    keep = uniform(0, 1)
    return Build(
        vault=uniform(5.2, 8.6), tables=uniform(1.2, 1.8), glabella=uniform(4, 7.5), inion=uniform(2, 6),
        scalp=uniform(4.5, 6.5), frontal_sinus=pair(0.4, 1.5, 0.3), maxillary_sinus=pair(0.75, 1.0, 0.08),
        sphenoid_sinus=pair(0.75, 1.1, 0.2), mastoid_air=uniform(0.35, 0.95), septum=uniform(-2.5, 2.5),
        ventricles=uniform(0.8, 1.4), marrow=uniform(0.32, 0.48),
        wisdom=tuple(uniform(0, 1) < 0.5 for _ in range(4)), missing=tuple(lost) if keep < 0.7 else (),
    )  # fmt: skip


def landmarks(build: Build, space: Space) -> dict[str, tuple[float, float, float]]:
    """World positions (x, y, z) [mm] of the named points, found on the surfaces of the standard head.

    `vertex` and `opisthocranion` are the highest and the most posterior points of the midline in the world.
    """

    def skull(p: Point) -> Tensor:
        return union(an.cavity(p) - an.thickness(p, build), an.face(p))

    names = ("nasion", "glabella", "inion", "bregma", "lambda", "zygion_left")
    starts = ((0, -70, 26), (0, -60, 40), (0, 50, 3), (0, -14.4, 60), (0, 40, 66), (65, -31, -3))
    ways = ((0, -1, 0), (0, -1, 0), (0, 1, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0))
    found = dict(zip(names, _surface(skull, starts, ways), strict=True))
    jaw = _surface(an.mandible, [(0, -88, -83), (48, -26, -57)], [(0, -1, 0), (0.1, 0.6, -0.8)])
    found |= dict(zip(("pogonion", "gonion_left"), jaw, strict=True))
    below = _surface(an.base, [(0, -7, -20), (51, 13, -24)], [(0, 0.6, -0.8), (0, 0, -1)])
    found |= dict(zip(("basion", "mastoid_left"), below, strict=True))
    tops = _surface(skull, [(0, y, 60) for y in range(-40, 61, 2)], [(0, 0, 1)] * 51)
    found["vertex"] = tops[space.to_world(tops)[:, 2].argmax()]
    backs = _surface(skull, [(0, 40, z) for z in range(10, 71, 2)], [(0, 1, 0)] * 31)
    found["opisthocranion"] = backs[space.to_world(backs)[:, 1].argmax()]
    found |= {name: torch.tensor(point, dtype=torch.float64) for name, point in an.LANDMARKS.items()}
    for name in [n for n in found if n.endswith("_left")]:
        found[name.replace("left", "right")] = found[name] * torch.tensor([-1.0, 1, 1], dtype=torch.float64)
    world = space.to_world(torch.stack(list(found.values()))).tolist()
    return {name: (x, y, z) for name, (x, y, z) in zip(found, world, strict=True)}


def _surface(shape: Callable[[Point], Tensor], starts: Sequence[Sequence[float]], ways: Sequence) -> Tensor:
    """Where rays (start, unit direction) leave a shape for good, (P, 3), within 1e-3 mm."""
    origin, step = (torch.tensor(v, dtype=torch.float64)[:, None] for v in (starts, ways))
    low, width = torch.zeros(len(starts), 1, 1, dtype=torch.float64), 80.0
    for _ in range(3):
        reach = low + torch.linspace(0, width, 101, dtype=torch.float64)[:, None]
        inside = shape(tuple((origin + reach * step).unbind(-1))) < 0  # type: ignore[arg-type]
        last = 100 - inside.flip(1).int().argmax(1)[:, None, None]
        low, width = reach.gather(1, last), width / 100
    return (origin + (low + width / 2) * step)[:, 0]
