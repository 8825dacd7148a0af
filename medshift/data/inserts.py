"""Objects that no training head has: a burr hole, an aneurysm clip, an electrode wire, a skull fracture.

Objects are placed by rays from the centroid of the braincase to the outer skull, and rasterised with each
voxel's share of the object (by subsampling), so that a wire thinner than a voxel has the right mass.

Metal is stored as the density of cortical bone with the same attenuation at 65 keV, near the mean energy
behind a head, where bone has 0.541 /cm: titanium (4.51 g/cm3, 2.86 /cm) is 5.3 times bone; a lead of one
fifth cobalt-nickel alloy MP35N (8.43 g/cm3, 11.0 /cm) and four fifths polymer (0.22 /cm) is 4.4. At other
energies this is approximate: the attenuation of metal falls faster with energy than that of bone.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import grid_sample, normalize

from medshift.data.volume import BONE, HeadVolume
from medshift.errors import DataError, ParameterError

TITANIUM, LEAD = 5.3, 4.4  # bone density of equal attenuation at 65 keV
CLIP_RADIUS_MM, WIRE_RADIUS_MM = 0.6, 0.65
SKULL_MM = 15.0  # how far below the outer table of the vault skull is removed; no vault is as thick
SURFACE = 0.3  # bone density that counts as skull
FINE_MM = 0.5  # distance of the subsamples that find a voxel's share of a skull defect
BRAINCASE_MM = 110.0  # below the top of the head lies the face


def with_insert(
    volume: HeadVolume, kind: str, seed: int, *, reference: HeadVolume | None = None
) -> tuple[HeadVolume, Tensor]:
    """Put one object into a head.

    Args:
        volume: The head.
        kind: "burr-hole" (12-14 mm of skull replaced by soft tissue), "clip" (titanium, low in the
            braincase), "wire" (a lead from the vault to near the centroid) or "fracture" (a gap of
            1.5-2.5 mm in the vault).
        seed: Names the object; same seed, same object, bit for bit.
        reference: Head on the same grid in which to look for the skull, by default `volume` itself. With
            one reference, a CT and its simulator volume get the same object in the same place.

    Returns:
        The head with the object, and the share (D, H, W) in [0, 1] of each voxel that the object takes.

    Raises:
        ParameterError: The kind is unknown, or `reference` has another grid.
        DataError: The head has no vault on which to place the object.
    """
    if kind not in _KINDS:
        raise ParameterError(f"Unknown insert {kind!r}; expected one of {', '.join(_KINDS)}.")
    place = volume if reference is None else reference
    if place.shape != volume.shape or place.spacing != volume.spacing:
        raise ParameterError(f"{place.name} and {volume.name} have different grids; resample one of them.")
    draw, metal = _KINDS[kind]
    generator = torch.Generator().manual_seed(seed)
    vault = _Vault.of(place)
    for _ in range(50):
        share = draw(vault, generator)
        if share is not None:
            break
    else:
        raise DataError(f"{place.name}: no place found for a {kind}; expected a skull around its centroid.")
    water, bone = volume.density
    if metal:
        density = torch.stack([water * (1 - share), bone * (1 - share) + metal * share])
    else:
        density = torch.stack([water + bone.clamp(max=1) * share, bone * (1 - share)])
        share = torch.where(bone > 0, share, 0)
    return replace(volume, density=density, name=f"{volume.name}-{kind}{seed}"), share


def tube(volume: HeadVolume, path: Tensor, radius_mm: float) -> Tensor:
    """Share (D, H, W) of each voxel in a round-ended tube along a polyline (N, 3) of world points [mm]."""
    steps = (path[1:] - path[:-1]).norm(dim=-1).div(radius_mm).ceil().long().clamp(min=1)
    parts = zip(path[:-1], path[1:], steps.tolist(), strict=True)
    near = torch.cat([*(a + (b - a) * torch.arange(n)[:, None] / n for a, b, n in parts), path[-1:]])
    return _share(volume, near, radius_mm, lambda points: _distance(points, path) < radius_mm, radius_mm / 2)


def _burr_hole(vault: "_Vault", generator: torch.Generator) -> Tensor | None:
    direction = _upward(generator)
    radius = 6 + float(torch.rand((), generator=generator))
    found = vault.outer(torch.cat([direction[None], _cone(direction, 0.07)]))
    if bool(found.isnan().any()):
        return None
    normal = torch.linalg.svd(found - found.mean(dim=0))[2][-1]
    normal = normal * (normal @ direction).sign()

    def inside(points: Tensor) -> Tensor:
        offset = points - found[0]
        height = offset @ normal
        beside = (offset - height[:, None] * normal).norm(dim=-1)
        return (beside < radius) & (height > -SKULL_MM) & (height < 4)

    axis = found[0] + torch.arange(-SKULL_MM, 5)[:, None] * normal
    return _share(vault.volume, axis, radius + 0.5, inside)


def _fracture(vault: "_Vault", generator: torch.Generator) -> Tensor | None:
    start = _upward(generator)
    width, length, wiggle, phase = torch.rand(4, generator=generator)
    width, length = 1.5 + float(width), 45 + 30 * float(length)
    heading = normalize(torch.linalg.cross(start, torch.randn(3, generator=generator)), dim=0)
    radius = float((vault.outer(start[None]) - vault.centre).norm())
    if math.isnan(radius):
        return None
    along = torch.linspace(0, length / radius, 41)[:, None]
    aside = 0.02 * (1 + wiggle) * torch.sin(12 * along + 6 * phase)
    lateral = torch.linalg.cross(start, heading)
    rays = normalize(start * along.cos() + heading * along.sin() + lateral * aside, dim=-1)
    found = vault.outer(rays)
    if bool(found.isnan().any()) or float(rays[:, 2].min()) < math.sin(math.radians(10)):
        return None

    def inside(points: Tensor) -> Tensor:  # within a sheet swept along the rays
        offset = points - vault.centre
        reach = offset.norm(dim=-1)
        return _distance(offset / reach[:, None], rays) * reach < width / 2

    sheet = found[:, None] - torch.arange(-4, SKULL_MM)[:, None] * rays[:, None]
    return _share(vault.volume, sheet.flatten(0, 1), width / 2 + 0.5, inside)


def _wire(vault: "_Vault", generator: torch.Generator) -> Tensor | None:
    entry = vault.outer(_upward(generator)[None])[0]
    target = vault.centre + 24 * (torch.rand(3, generator=generator) - 0.5)
    if bool(entry.isnan().any()):
        return None
    bow = torch.linalg.cross(entry - target, torch.randn(3, generator=generator))
    bend = (entry + target) / 2 + 8 * normalize(bow, dim=0)
    t = torch.linspace(0, 1, 41)[:, None]
    path = (1 - t) ** 2 * entry + 2 * t * (1 - t) * bend + t**2 * target
    return vault.tissue(tube(vault.volume, path, WIRE_RADIUS_MM))


def _clip(vault: "_Vault", generator: torch.Generator) -> Tensor | None:
    centre = vault.centre + 30 * (torch.rand(3, generator=generator) - torch.tensor([0.5, 0.5, 1.0]))
    along, across, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator))[0].T
    angle = torch.linspace(0.3, 2 * math.pi - 0.3, 25)
    spring = torch.stack([-4 + 2.5 * angle.cos(), 2.5 * angle.sin()], dim=-1)
    upper, lower = torch.tensor([[9.0, 0.75], [0.0, 0.75]]), torch.tensor([[0.0, -0.75], [9.0, -0.75]])
    plan = torch.cat([upper, spring, lower])
    return vault.tissue(tube(vault.volume, centre + plan @ torch.stack([along, across]), CLIP_RADIUS_MM))


_Draw = Callable[["_Vault", torch.Generator], Tensor | None]
_KINDS: dict[str, tuple[_Draw, float]] = {
    "burr-hole": (_burr_hole, 0.0),
    "clip": (_clip, TITANIUM),
    "wire": (_wire, LEAD),
    "fracture": (_fracture, 0.0),
}


@dataclass(frozen=True)
class _Vault:
    """A head seen from the centroid (3,) of its braincase, a world point [mm]."""

    volume: HeadVolume
    centre: Tensor

    @classmethod
    def of(cls, volume: HeadVolume) -> "_Vault":
        mass = volume.density.sum(dim=0)
        skull = (volume.density[BONE] >= SURFACE).flatten(1).any(dim=1).nonzero()
        if len(skull) == 0:
            raise DataError(f"{volume.name}: there is no bone in it; expected a head.")
        mass[: max(0, int(skull[-1]) - round(BRAINCASE_MM / volume.spacing[0]))] = 0
        index = [
            mass.movedim(axis, 0).flatten(1).sum(1) @ torch.arange(n).to(mass) / mass.sum()
            for axis, n in enumerate(volume.shape)
        ]
        return cls(volume, volume.index_to_world(torch.stack(index)).cpu())

    def outer(self, directions: Tensor) -> Tensor:
        """Outermost skull (N, 3) [mm] along rays (N, 3) from the centroid; NaN where a ray meets none."""
        radii = torch.arange(0, sum(self.volume.extent) / 2, 0.5)
        points = self.centre + directions[:, None] * radii[:, None]
        size = torch.tensor(self.volume.extent).flip(0)
        bone = self.volume.density[None, BONE:].cpu()
        value = grid_sample(bone, (2 * points / size)[None, None], align_corners=False)[0, 0, 0]
        last = ((value >= SURFACE) * torch.arange(len(radii))).amax(dim=1).clamp(max=len(radii) - 2)
        here, beyond = (value.gather(1, (last + k)[:, None])[:, 0] for k in (0, 1))
        radius = 0.5 * (last + (here - SURFACE) / (here - beyond))
        radius = torch.where(last > 0, radius, math.nan)
        return self.centre + directions * radius[:, None]

    def tissue(self, share: Tensor) -> Tensor | None:
        """The share, if nearly all of it lies in tissue."""
        total = self.volume.density.sum(dim=0)
        return share if float((share * (total > 0.5)).sum()) > 0.98 * float(share.sum()) > 0 else None


def _upward(generator: torch.Generator) -> Tensor:
    """A direction (3,) that is uniform between 25 and 75 degrees above the horizontal."""
    low, high = math.sin(math.radians(25)), math.sin(math.radians(75))
    height, turn = torch.rand(2, generator=generator).tolist()
    z = low + (high - low) * height
    r = math.sqrt(1 - z * z)
    return torch.tensor([r * math.cos(2 * math.pi * turn), r * math.sin(2 * math.pi * turn), z])


def _cone(direction: Tensor, slope: float) -> Tensor:
    """Twelve directions (12, 3) around one."""
    one = normalize(torch.linalg.cross(direction, direction.roll(1) + torch.tensor([1.0, 0.0, 0.0])), dim=0)
    other = torch.linalg.cross(direction, one)
    angle = torch.arange(12)[:, None] * (math.pi / 6)
    return normalize(direction + slope * (angle.cos() * one + angle.sin() * other), dim=-1)


def _distance(points: Tensor, path: Tensor) -> Tensor:
    """Distance (P,) of points (P, 3) from a polyline (N, 3)."""
    start, edge = path[:-1], path[1:] - path[:-1]
    squared = torch.full(points.shape[:1], math.inf)
    for a, e in zip(start, edge, strict=True):
        offset = points - a
        part = ((offset @ e) / (e @ e)).clamp(0, 1)
        torch.minimum(squared, (offset - part[:, None] * e).square().sum(dim=-1), out=squared)
    return squared.sqrt()


def _share(
    volume: HeadVolume,
    near: Tensor,
    margin_mm: float,
    inside: Callable[[Tensor], Tensor],
    fine_mm: float = FINE_MM,
) -> Tensor:
    """Share (D, H, W) of each voxel that is `inside`, looked for within a margin of points `near` (N, 3)."""
    size, spacing = torch.tensor(volume.shape), torch.tensor(volume.spacing)
    reach = (margin_mm / spacing).ceil().long().add(1).tolist()
    window = torch.cartesian_prod(*(torch.arange(-r, r + 1) for r in reach))
    seeds = volume.world_to_index(near).round().long().unique(dim=0)
    index = (seeds[:, None] + window).flatten(0, 1)
    index = index[((index >= 0) & (index < size)).all(dim=-1)]
    flat = ((index[:, 0] * size[1] + index[:, 1]) * size[2] + index[:, 2]).unique()
    index = torch.stack([flat // (size[1] * size[2]), flat // size[2] % size[1], flat % size[2]], dim=-1)
    counts = (spacing / fine_mm).ceil().clamp(min=2)
    offsets = torch.cartesian_prod(*((torch.arange(int(n)) + 0.5) / n - 0.5 for n in counts))
    share = torch.zeros(volume.shape)
    for some in torch.arange(len(flat)).split(256):
        points = volume.index_to_world((index[some, None] + offsets).flatten(0, 1))
        share.view(-1)[flat[some]] = inside(points).view(len(some), -1).float().mean(dim=1)
    return share.to(volume.density.device)
