"""The shapes of a standard head: signed distances [mm] from tables of points, negative inside.

Standard frame [mm]: x to the left, y to posterior, z to superior, the origin midway between the ear canals, the plane
z = 0 through both canals and the lower orbital rims. Sides are mirror images here, described once for x >= 0; a
person's own asymmetry is a deformation applied before these functions (`medshift.data.phantom`). Every function takes
coordinates (x, y, z) of any common shape, a grid or a single point.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Point = tuple[Tensor, Tensor, Tensor]
Triple = tuple[float, float, float]

# The brain's cavity as ellipsoids (centre, semi-axes): vault by lobes, temporal lobe, posterior fossa.
FRONTAL = ((0, -25, 50), (57, 57, 57))
PARIETAL = ((8, 14, 54), (58.5, 62, 57))
OCCIPITAL = ((0, 34, 40), (55, 51, 52))
TEMPORAL = ((39, -20, 18), (25, 34, 20))
CEREBELLAR = ((15, 33, 3), (36, 37, 29))

# Rods: points (x, y, z, radius), joined in order; a fifth number stretches the cross-section to either side along z.
ORBIT = ((32, -66, 14, 17), (14, -36, 19, 4))
RIM = (
    (20, -81, 30, 3.5),
    (34, -80, 34, 4),
    (46, -72, 30, 4.5),
    (52, -63, 18, 4.5),
    (50, -64, 6, 4),
    (42, -71, -3, 3.5),
    (29, -77, -4, 3),
    (18, -80, 4, 2.8),
    (14, -81, 16, 2.5),
    (15, -83, 26, 3.2),
    (20, -81, 30, 3.5),
)
BROW = ((5, -86, 35, 5), (22, -83.5, 37, 5), (40, -76, 37, 4.5), (53, -62, 30, 4))
ZYGOMA = ((46, -68, -8, 8), (54, -58, -6, 6))
ARCH = ((54, -58, -6, 2.2, 4), (62, -46, -5, 2.1, 3.5), (66, -31, -3, 2, 3.2), (64, -15, 1, 2, 3), (57, -4, 4, 2.5, 2))
NASAL_BONE = ((2, -89, 27, 3), (3.5, -97, 14, 1.8), (3, -103, 5, 1))
FRONTAL_PROCESS = ((20, -82, -8, 3.5), (13, -86, 6, 2.8), (8, -88, 25, 3.2))
SPINE = ((0, -86, -21, 3.2), (0, -97, -21.5, 1))
UPPER_ARCH = (27.0, 49.0, -46.0)  # half width, depth and y of the ellipse on which the upper teeth stand
LOWER_ARCH = (25.5, 46.0, -46.0)
BODY = (
    (0, -88, -72, 5.5, 10),
    (11, -85, -72, 5.2, 10),
    (22, -76, -71, 5, 9.5),
    (32, -60, -69, 5.2, 8.5),
    (42, -40, -65, 5.2, 8),
    (47, -28, -60, 4, 7),
)
RAMUS_EDGES = (
    ((47, -38, -55, 3.4), (48, -38, -28, 3), (49, -37, -6, 1.8)),
    ((48.5, -21, -61, 3.6), (50.5, -15, -32, 3.2), (51, -13, -16, 3.4), (51, -12.5, -7, 4.2)),
)
RAMUS_PLATE = ((47.5, -30, -58, 4, 8), (49.5, -25.5, -25, 3.6, 11))
CONDYLE = ((51, -12.5, -5.5), (9.5, 4.5, 4.5))
CHIN = ((0, -90, -84), (14, 6, 5.5))
PETROUS = ((51, 8, 2, 12), (36, -4, 4, 9.5), (24, -12, 5, 7.5), (13, -20, 6, 4.5))
MASTOID = ((54, 9, 3, 11), (53, 14, -10, 10), (51, 13, -24, 5))
CLIVUS = ((0, -26, 9, 10), (0, -16, -2, 8), (0, -7, -20, 5.5))
SPHENOID = ((0, -35, 8), (17, 17, 13))
LESSER_WING = ((7, -27, 24, 3), (22, -37, 26, 2.4), (42, -48, 30, 1.6))
MAXILLA = ((30, -62, -15), (18, 21, 20))
GREATER_WING = ((14, -34, 2, 4), (34, -48, 4, 3), (47, -57, 12, 3.5), (50, -58, 24, 3))
OCCIPITAL_CONDYLE = ((14, 1, -27), (6, 10, 6))
CANAL = ((70, 2, -2, 3.6), (57, 0, 0, 3.6), (42, -3, 2, 3.4))
MIDDLE_EAR = ((39, -3, 3), (3.5, 6, 7))
ATLAS = (
    (0, -8, -41, 4, 1),
    (10, -5, -41, 4, 1),
    (19, 3, -40, 7, 2),
    (19, 14, -41, 4, 0),
    (11, 27, -42, 3.5, 0),
    (0, 32, -42, 4, 1),
)
ATLAS_WING = ((22, 6, -41, 5), (38, 9, -42, 3.5))
DENS = ((0, 2, -62, 6.5), (0, -1, -50, 5), (0, -2, -37, 4))
AXIS_MASS = ((9, 3, -56, 6), (18, 6, -54, 6.5), (17, 14, -64, 5))
MENINGEAL = (  # grooves of the middle meningeal artery on the lateral wall, in the plane of y and z
    ((0, -28, 14, 1.0), (0, -26, 38, 1.0), (0, -14, 62, 0.9), (0, -12, 84, 0.8), (0, -4, 100, 0.6)),
    ((0, -26, 36, 0.9), (0, 0, 46, 0.9), (0, 22, 62, 0.8), (0, 46, 72, 0.6)),
    ((0, 12, 54, 0.8), (0, 40, 50, 0.6)),
    ((0, -18, 56, 0.8), (0, -34, 76, 0.7), (0, -36, 94, 0.6)),
)
HYOID = ((0, -56, -93, 3, 1.5), (14, -50, -92, 2.5, 1), (23, -26, -86, 1.6, 0))
# Landmarks that are points of the tables above, not of a surface.
LANDMARKS = {
    "anterior_nasal_spine": (0, -96.5, -21.5),
    "sella": (0, -24, 20),
    "orbit_left": (32, -71, 14),  # centre of the eyeball
    "orbitale_left": (31, -77, -5.0),
    "porion_left": (56, 0, 3.3),  # roof of the bony ear canal at its outer end
}


def ellipsoid(p: Point, centre: Sequence[float], radii: Sequence[float]) -> Tensor:
    """Distance to an ellipsoid, exact to first order at its surface."""
    squares = [((c - m) / r).square_() for c, m, r in zip(p, centre, radii, strict=True)]
    slope = squares[0] / radii[0] ** 2
    slope = slope + squares[1] / radii[1] ** 2 + squares[2] / radii[2] ** 2
    level = (squares[0] + squares[1] + squares[2]).sqrt_()
    return (level - 1).mul_(level).div_(slope.sqrt_().clamp_(min=1e-6))


def rod(p: Point, points: Sequence[Sequence[float]]) -> Tensor:
    """Distance to a chain of tapered capsules through rows (x, y, z, radius[, stretch along z])."""
    best: Tensor | None = None
    for a, b in zip(points[:-1], points[1:], strict=True):
        step = [b[i] - a[i] for i in range(3)]
        x, y, z = (p[i] - a[i] for i in range(3))
        along = ((x * step[0] + y * step[1] + z * step[2]) / sum(s * s for s in step)).clamp_(0, 1)
        x, y, z = x - along * step[0], y - along * step[1], z - along * step[2]
        if len(a) == 5:
            z = (z.abs_() - (a[4] + along * (b[4] - a[4]))).clamp_(min=0)
        distance = (x * x + y * y + z * z).sqrt_() - (a[3] + along * (b[3] - a[3]))
        best = distance if best is None else torch.minimum(best, distance)
    assert best is not None
    return best


def block(p: Point, centre: Triple, half: Triple, rounding: float) -> Tensor:
    """Distance to a box with rounded edges."""
    x, y, z = ((c - m).abs() - (h - rounding) for c, m, h in zip(p, centre, half, strict=True))
    outside = (x.clamp(min=0) ** 2 + y.clamp(min=0) ** 2 + z.clamp(min=0) ** 2).sqrt_()
    return outside + torch.maximum(torch.maximum(x, y), z).clamp_(max=0) - rounding


def union(*distances: Tensor, blend: float = 0.0) -> Tensor:
    """Union of shapes; a `blend` [mm] above 0 rounds the valleys between them."""
    result = distances[0]
    for other in distances[1:]:
        lower = torch.minimum(result, other)
        if blend > 0:
            lower = lower - (blend - (result - other).abs()).clamp_(min=0).square_() / (4 * blend)
        result = lower
    return result


def overlap(*distances: Tensor, blend: float = 0.0) -> Tensor:
    """Intersection of shapes, the dual of `union`."""
    return -union(*(-d for d in distances), blend=blend)


def mirrored(p: Point) -> Point:
    """Fold the right side onto the left."""
    return p[0].abs(), p[1], p[2]


def bump(value: Tensor, centre: float, width: float) -> Tensor:
    """A smooth hill of height 1."""
    return torch.exp(-(((value - centre) / width) ** 2))


def cavity(p: Point) -> Tensor:
    """Distance to the inner table: the space of the brain without the spinal canal."""
    m = mirrored(p)
    cerebrum = union(ellipsoid(m, *FRONTAL), ellipsoid(m, *PARIETAL), ellipsoid(m, *OCCIPITAL), blend=14)
    floor = (16.5 - p[2] - 0.25 * p[1]) / 1.031  # from the orbits' roofs down to the tentorium
    cerebrum = overlap(cerebrum, floor, blend=6)
    return union(cerebrum, ellipsoid(m, *TEMPORAL), ellipsoid(m, *CEREBELLAR), blend=7)


@dataclass(frozen=True)
class Build:
    """What differs between people besides the deformation of space: thicknesses [mm], sizes, counts."""

    vault: float = 6.5  # thickness of the calvarium
    tables: float = 1.5  # thickness of its outer table
    glabella: float = 5.5  # by how much the frontal bone bulges there
    inion: float = 4.0  # height of the external occipital protuberance
    scalp: float = 5.5
    frontal_sinus: tuple[float, float] = (1.0, 1.0)  # right, left, relative; absent below 0.4
    maxillary_sinus: tuple[float, float] = (1.0, 1.0)
    sphenoid_sinus: tuple[float, float] = (1.0, 1.0)
    mastoid_air: float = 0.7  # share of the mastoid that is pneumatised
    septum: float = 0.0  # deviation of the nasal septum
    ventricles: float = 1.0
    marrow: float = 0.4  # bone fraction of diploe and marrow
    wisdom: tuple[bool, ...] = (True,) * 4
    missing: tuple[int, ...] = ()  # absent teeth, 0..27 without the wisdom teeth


def thickness(p: Point, build: Build) -> Tensor:
    """Distance between inner and outer table [mm], thin over the orbits, the base and the temporal squama."""
    x, y, z = mirrored(p)
    base = torch.sigmoid((9 - z - 0.25 * y) / 3) * torch.sigmoid((50 - y) / 7)
    temple = bump(z, 24, 24) * bump(y, -18, 34) * torch.sigmoid((x - 46) / 4)
    wall = build.vault * (1 - 0.5 * temple) * (1 - base) + 2.6 * base
    front = bump(x, 0, 22) * bump(z, 39, 15) * torch.sigmoid((-58 - y) / 5)
    back = build.inion * bump(x, 0, 9) * bump(z, 3, 7) + 1.5 * bump(z, 3, 5) * bump(x, 0, 40)
    return wall + build.glabella * front + back * torch.sigmoid((y - 60) / 5)


def orbit(p: Point) -> Tensor:
    """Distance to the orbit's cone, open to the front, on either side."""
    x, y, z = mirrored(p)
    return rod((x, y, 14 + (z - 14) * 1.06), ((35, -92, 13.5, 18), *ORBIT))


def arch_point(arch: Sequence[float], angle: float) -> tuple[float, float]:
    """Point (x, y) of a dental arch; angle 0 at the midline, pi / 2 at its left end."""
    return arch[0] * math.sin(angle), arch[2] - arch[1] * math.cos(angle)


def _alveolar(arch: Sequence[float], z: float, radius: float, stretch: float) -> list[tuple[float, ...]]:
    points = [arch_point((arch[0] - 0.5, arch[1] - 1.5, arch[2]), a) for a in (0, 0.3, 0.6, 0.9, 1.2, 1.5)]
    return [(x, y, z, radius, stretch) for x, y in points]


def face(p: Point) -> Tensor:
    """Distance to the facial skeleton before its cavities are hollowed out."""
    m = mirrored(p)
    maxilla = union(maxilla_wall(m), rod(m, _alveolar(UPPER_ARCH, -33, 5.2, 3)), blend=7)
    midface = union(ellipsoid(m, (0, -66, -8), (21, 23, 15)), ellipsoid(m, (0, -64, 14), (17, 22, 16)), blend=6)
    cheek = union(rod(m, ZYGOMA), rod(m, ((48, -66, -8, 6), (52, -63, 12, 4.5), (52, -62, 26, 4.5))), blend=5)
    frame = union(rod(m, RIM), rod(m, BROW), cheek, blend=4)
    walls = overlap(orbit(p) - 1.8, (-72 - m[1] - 0.55 * (m[0] - 18).clamp(min=0)) * 0.88)
    nose = union(rod(m, NASAL_BONE), rod(m, FRONTAL_PROCESS), blend=3)
    palate = ellipsoid(m, (0, -70, -25), (24, 26, 3.6))
    bone = union(maxilla, midface, frame, nose, blend=4)
    return union(bone, walls, palate, rod(m, SPINE), rod(m, ARCH), pterygoid(m), blend=1.5)


def maxilla_wall(m: Point) -> Tensor:
    """Distance to the body of the maxilla, a box whose front and side recede downwards."""
    x, y, z = m
    low = (-15 - z).clamp(min=-15, max=20)
    return block((x + 0.3 * low, y - 0.12 * low - 0.25 * (x - 24), z), *MAXILLA, 12)


def pterygoid(m: Point) -> Tensor:
    """Distance to the pterygoid plates behind the maxilla."""
    x, y, z = m
    inner = block((x - 0.1 * (z + 16), y, z), (11, -40, -13), (0.9, 6, 14), 0.8)
    return torch.minimum(inner, block((x + 0.25 * (z + 16), y - 0.3 * x, z), (16, -44, -13), (0.9, 7, 14), 0.8))


def mandible(p: Point) -> Tensor:
    """Distance to the lower jaw."""
    m = mirrored(p)
    edges = [rod(m, edge) for edge in RAMUS_EDGES]
    ramus = union(*edges, _plate(m), ellipsoid(m, *CONDYLE), blend=4)
    alveolar = rod(m, _alveolar(LOWER_ARCH, -62, 4.6, 2))
    return union(union(rod(m, BODY), ellipsoid(m, *CHIN), alveolar, blend=5), ramus, blend=5)


def _plate(m: Point) -> Tensor:
    # A sagittal sheet: a rod stretched along y instead of z, so the two axes are exchanged.
    return rod((m[0], m[2], m[1]), tuple((x, z, y, r, s) for x, y, z, r, s in RAMUS_PLATE))


def base(p: Point) -> Tensor:
    """Distance to the solid parts of the skull base: petrous bone, mastoid, clivus, body and wings of the sphenoid."""
    m = mirrored(p)
    ear = union(rod(m, PETROUS), rod(m, MASTOID), blend=6)
    body = union(rod(m, CLIVUS), ellipsoid(m, *SPHENOID), rod(m, GREATER_WING), rod(m, LESSER_WING), blend=4)
    sella = ellipsoid(p, (0, -24, 22), (8, 6, 7))
    return union(ear, torch.maximum(body, -sella), ellipsoid(m, *OCCIPITAL_CONDYLE), dorsum(m), blend=3)


def dorsum(m: Point) -> Tensor:
    """Distance to the dorsum sellae with the posterior clinoid processes."""
    return rod(m, ((0, -17.5, 14, 1.6), (0, -17.5, 24, 1.2), (7, -18.5, 26, 1.6)))


def vertebrae(p: Point) -> list[tuple[Tensor, str]]:
    """Distances to atlas, axis and the vertebrae below, each with its name."""
    m = mirrored(p)
    atlas = union(rod(m, ATLAS), rod(m, ATLAS_WING), blend=4)
    axis_body = union(rod(m, DENS), block(m, (0, 3, -66), (9, 7.5, 7), 3), rod(m, AXIS_MASS), blend=4)
    found = [(atlas, "atlas"), (union(axis_body, _arch(m, -66, 8), blend=4), "axis")]
    for number, z in enumerate((-84.0, -101.0, -118.0), start=3):
        shift = 0.06 * (-66 - z)
        body = block(m, (0, 4 + shift, z), (9.5, 7.5, 6.6), 2.5)
        pillar = rod(m, ((17, 13 + shift, z + 6, 5.5), (16, 16 + shift, z - 6, 5.5)))
        side = rod(m, ((9, 4 + shift, z, 4), (19, 4 + shift, z - 2, 3), (17, 13 + shift, z, 4)))
        found.append((union(body, pillar, side, _arch(m, z, 4 + shift), blend=3), f"C{number}"))
    return found


def _arch(m: Point, z: float, shift: float) -> Tensor:
    lamina = rod(m, ((16, 14 + shift / 2, z + 1, 3.5), (0, 28 + shift, z - 4, 3), (0, 40 + shift, z - 9, 3.2)))
    return lamina
