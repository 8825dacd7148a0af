"""Procedural heads: one anatomy per seed, with landmarks known from the construction.

A standard head of signed distance functions (`medshift.data.anatomy`) is seen through a smooth deformation of space of
its own for each person, and painted into two density maps, bone first, then what is hollow in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from medshift.data import anatomy as an
from medshift.data.anatomy import Build, ellipsoid, overlap, rod, union
from medshift.data.canvas import CORTEX, Canvas
from medshift.data.person import Space, draw_build, landmarks
from medshift.data.volume import HeadVolume
from medshift.errors import ParameterError

DENTINE, ENAMEL, MARROW_OF_EAR = 1.0, 1.5, 0.86  # relative to cortical bone
FAT, MUSCLE, BRAIN, FLUID = 0.94, 1.04, 1.04, 1.007  # g/cm3
BONE_LEVEL = 0.2
HEAD = ((-200, -200, -42), (200, 200, 200))  # the box of the vault (x, y, z)
SPACING_RANGE = (1.0, 4.0)
UPPER = ((8.5, 7), (6.6, 6), (7.6, 8), (7, 9), (6.9, 9), (10, 11), (9.8, 11), (8.8, 10))  # tooth width and depth [mm]
LOWER = ((5.3, 6), (5.9, 6), (6.8, 7.5), (7, 8), (7.1, 8), (11, 10), (10.5, 10), (10, 9.5))


def phantom(seed: int, *, spacing_mm: float = 1.5) -> HeadVolume:
    """Make the head of one person.

    Args:
        seed: Names the person; same seed, same anatomy at any voxel size.
        spacing_mm: Side of the cubic voxels [mm], from 1 to 4.

    Returns:
        A head in a box of 264 x 252 x 192 mm (z, y, x) or up to a voxel more, cut through the neck by the inferior
        face, with 23 landmarks named as the CT's.

    Raises:
        ParameterError: The seed is not an integer from 0 to 2^63 - 1 or the spacing is out of range.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise ParameterError(f"seed is {seed!r}; expected an integer from 0 to 2^63 - 1.")
    number = isinstance(spacing_mm, int | float) and not isinstance(spacing_mm, bool)
    if not number or not SPACING_RANGE[0] <= spacing_mm <= SPACING_RANGE[1]:
        raise ParameterError(f"spacing_mm is {spacing_mm!r}; expected a number of mm from 1 to 4.")
    generator = torch.Generator().manual_seed(seed)
    build, space = draw_build(generator), Space(generator)
    spacing = float(spacing_mm)
    canvas = Canvas.blank(space, spacing, generator)
    _soft_tissue(canvas, build)
    for paint in (_brain, _vault, _face_and_jaw, _neck, _skull_base, _eyes, _airways, _ethmoid, _ears, _teeth):
        paint(canvas, build)
    water = (canvas.tissue - canvas.bone).clamp_(min=0)
    density = torch.stack([water, canvas.bone])
    return HeadVolume(density, (spacing,) * 3, landmarks(build, space), ("inferior",), "phantom", f"phantom-{seed}")


def bone_mask(volume: HeadVolume) -> Tensor:
    """Voxels (D, H, W) bool that hold bone or tooth; walls much thinner than a voxel are below the level."""
    return volume.density[1] >= BONE_LEVEL


def _soft_tissue(canvas: Canvas, build: Build) -> None:
    canvas.fields |= {name: torch.full_like(canvas.bone, 1e3) for name in ("depth", "wall", "skin")}
    head = canvas.crop(*HEAD)
    depth, wall = an.cavity(head.p), an.thickness(head.p, build)
    head.skin.copy_(depth - wall - build.scalp)
    impressions = torch.minimum(head.relief, 0.5 * wall)  # in the inner table; the outer one stays as it is
    head.depth.copy_(depth + impressions)
    head.wall.copy_(wall + impressions)
    low = canvas.crop((-90, -130, -200), (90, 110, 55))
    m = an.mirrored(low.p)
    face = union(ellipsoid(m, (0, -46, -8), (71, 53, 46)), ellipsoid(m, (0, -42, -56), (62, 60, 44)), blend=10)
    pads = union(ellipsoid(m, (0, -84, -76), (28, 23, 25)), ellipsoid(m, (0, -95, -48), (22, 11, 15)), blend=8)
    bridge = rod(m, ((0, -95, 26, 4), (0, -106, 4, 6), (0, -110, -11, 7.5)))
    nose = union(bridge, ellipsoid(m, (9, -101, -16), (7, 9, 7)), blend=6)
    neck = overlap(ellipsoid(m, (0, 15, -60), (56, 53, 1e5)), low.p[2] - 5, blend=10)
    whole = union(low.skin, union(face, pads, nose, blend=7), neck, blend=14)
    ear = ellipsoid((m[0] - 0.15 * (m[1] - 10), m[1], m[2]), (74, 16, 3), (3, 16, 30))
    low.skin.copy_(union(whole, ear, blend=5))
    muscle = canvas.fill(canvas.skin + 4.5) * (MUSCLE - FAT)
    canvas.fields["skin"] = canvas.fill(canvas.skin)
    canvas.tissue.copy_((FAT * canvas.skin + muscle) * (1 + 0.03 * canvas.grain))


def _vault(canvas: Canvas, build: Build) -> None:
    canvas = canvas.crop(*HEAD)
    depth, wall = canvas.depth, canvas.wall
    outer = torch.clamp(wall / 2, max=build.tables)
    inner = torch.clamp(wall / 2, max=0.8 * build.tables)
    whole, brain = canvas.fill(depth - wall), canvas.fill(depth)
    spongy = canvas.fill(depth - wall + outer) - canvas.fill(depth - inner)
    marrow = (build.marrow * (1 + 1.2 * canvas.grain + 0.25 * canvas.relief)).clamp_(0.1, 0.9)
    canvas.add_share(whole - brain, 1.0)
    canvas.bone.copy_((CORTEX * (whole - brain) - (CORTEX - marrow) * spongy.clamp_(min=0)).clamp_(min=0))
    _sutures(canvas.crop((-90, -110, 5), (90, 110, 130)))
    _grooves(canvas.crop((-90, -40, 12), (90, 50, 102)))
    canal = canvas.crop((-20, -14, -50), (20, 32, 30))
    stem = rod(an.mirrored(canal.p), ((0, 0, 17, 10), (0, 8, -6, 13), (0, 12, -34, 15.5)))
    canal.carve(canal.fill(stem), BRAIN)


def _sutures(canvas: Canvas) -> None:
    (x, y, z), wave = an.mirrored(canvas.p), 1.5 * canvas.grain
    coronal = y + 16 + 0.22 * (110 - z)
    lambdoid = torch.where(y > 30, (z - 66 + 0.9 * x) * 0.74, 50.0)
    sagittal = torch.where((coronal > 0) & (lambdoid > 0), x, 50.0)
    for seam in (coronal, lambdoid, sagittal):
        gap = canvas.fill((seam + wave).abs() - 0.5) - canvas.fill((seam + wave).abs() + 0.5)
        canvas.bone.mul_(1 - 0.6 * gap * canvas.fill(1.5 - canvas.depth))


def _grooves(canvas: Canvas) -> None:
    x, y, z = an.mirrored(canvas.p)
    wave = 3 * canvas.relief
    flat = torch.where(x > 25, 0.0, 50.0), y + wave, z
    artery = canvas.fill(union(*(rod(flat, branch) for branch in an.MENINGEAL)))
    canvas.bone.mul_(1 - 0.7 * artery * canvas.fill(canvas.depth - 1.3))


def _face_and_jaw(canvas: Canvas, build: Build) -> None:
    upper = canvas.crop((-72, -108, -45), (72, 0, 48))
    upper.add_cortical(torch.maximum(an.face(upper.p), -upper.depth), 1.5, 0.9 * build.marrow)
    lower = canvas.crop((-64, -100, -95), (64, 0, 2))
    lower.add_cortical(an.mandible(lower.p), 1.9, build.marrow)


def _neck(canvas: Canvas, build: Build) -> None:
    part = canvas.crop((-45, -20, -200), (45, 65, -30))
    for distance, _ in an.vertebrae(part.p):
        part.add_cortical(distance, 0.8, 0.95 * build.marrow)
    hyoid = canvas.crop((-30, -62, -100), (30, -20, -82))
    hyoid.add_cortical(rod(an.mirrored(hyoid.p), an.HYOID), 1.0, build.marrow)


def _brain(canvas: Canvas, build: Build) -> None:
    canvas = canvas.crop(*HEAD)
    inside = canvas.fill(canvas.depth)
    surface = inside - canvas.fill(canvas.depth + 2.5)
    canvas.tissue.add_(inside * (BRAIN - canvas.tissue)).sub_((BRAIN - FLUID) * surface)
    part = canvas.crop((-30, -36, 20), (30, 60, 66))
    m, r = an.mirrored(part.p), build.ventricles
    lateral = rod(m, ((8, -27, 50, 4 * r), (10, 0, 59, 5 * r), (20, 32, 49, 6 * r), (21, 54, 46, 2.5 * r)))
    temporal = rod(m, ((21, 34, 44, 4 * r), (30, 16, 26, 2.5 * r), (30, -8, 21, 2 * r)))
    third = an.block(m, (0, 2, 42), (1.5 * r, 14, 9), 1.0)
    part.carve(part.fill(union(lateral, temporal, third)), FLUID)


def _skull_base(canvas: Canvas, build: Build) -> None:
    part = canvas.crop((-70, -62, -38), (70, 32, 38))
    part.add_cortical(an.base(part.p), 1.3, 1.05 * build.marrow)
    m = an.mirrored(part.p)
    part.add_cortical(union(rod(m, an.PETROUS), rod(m, an.MASTOID), blend=6), 1.5, MARROW_OF_EAR)
    part.carve(part.fill(torch.maximum(ellipsoid(part.p, (0, -24, 22), (8, 6, 7.5)), 0.8 - an.dorsum(m))), BRAIN)


def _eyes(canvas: Canvas, build: Build) -> None:
    part = canvas.crop((-56, -112, -8), (56, -30, 38))
    m = an.mirrored(part.p)
    socket = torch.maximum(an.orbit(part.p), 1.5 - part.depth)
    part.carve(part.fill(socket), FAT)
    part.add(torch.maximum(rod(m, an.RIM) + 1.2, -socket), 0.85)
    muscles = [rod(m, ((15, -38, 19, 1.5), ((32 + x), -64, 14 + z, 3), (32 + x, -72, 14 + z, 1)))
               for x, z in ((12, 0), (-12, 0), (0, 11), (0, -11))]  # fmt: skip
    nerve = rod(m, ((13, -36, 19, 2.5), (31, -60, 14, 2.5)))
    part.carve(part.fill(union(nerve, *muscles)), MUSCLE)
    part.carve(part.fill(ellipsoid(m, (32, -71, 14), (12, 12, 12))), 1.01)
    part.carve(part.fill(ellipsoid(m, (32, -80, 14), (4.5, 2, 4.5))), 1.09)


def _airways(canvas: Canvas, build: Build) -> None:
    part = canvas.crop((-56, -118, -50), (56, -18, 64))
    m, x = an.mirrored(part.p), part.p[0]
    nose = union(ellipsoid(m, (0, -68, -9), (13.5, 28, 13)), ellipsoid(m, (0, -70, 10), (6, 22, 14)), blend=5)
    nostril = rod(m, ((5, -92, -13, 4.5), (6, -104, -20, 3.5)))
    part.carve(part.fill(torch.maximum(union(nose, nostril), 2.0 - part.depth)))
    for side, index in ((-1, 0), (1, 1)):
        q = (x * side, part.p[1], part.p[2])
        size = build.maxillary_sinus[index]
        cheek = an.maxilla_wall(q) + 2.4 + 9 * (1 - size)
        floor = torch.maximum(-27 - q[2] - 0.3 * (q[1] + 62), 0.5 - rod(q, an.RIM))
        part.carve(part.fill(overlap(cheek, 1.3 - an.orbit(part.p), 15.2 - q[0], floor, blend=5)))
        size = build.sphenoid_sinus[index]
        air = ellipsoid(q, (7.2 * size, -36, 7), (7 * size, 12 * size, 9 * size))
        part.carve(part.fill(torch.maximum(air, 2.0 - part.depth)))
        if (size := build.frontal_sinus[index]) < 0.4:
            continue
        plan = ellipsoid(q, (10 * size, -80, 36 + 4 * size), (10 * size, 40, 11 * size)) + 2.5 * part.relief
        layer = torch.maximum(1.7 - part.depth, part.depth - part.wall + 1.9)
        part.carve(part.fill(overlap(plan, layer, 0.4 - q[0], part.p[1] + 55, blend=1)))
    _nasal_walls(part, build)
    throat = canvas.crop((-14, -50, -200), (14, -8, 4))
    column = ((0, -40, -12, 9), (0, -27, -22, 8), (0, -25, -60, 6.5), (0, -31, -84, 8), (0, -28, -125, 8))
    throat.carve(throat.fill(rod(throat.p, column)))


def _nasal_walls(part: Canvas, build: Build) -> None:
    m, (x, y, z) = an.mirrored(part.p), part.p
    bent = x - build.septum * an.bump(z, -2, 14) * an.bump(y, -75, 20)
    septum = torch.maximum(bent.abs() - 0.55, an.block(part.p, (0, -66, 0), (30, 26, 23), 3))
    part.add(septum, 0.65)
    scrolls = [((8.5, -84, -13), (9, -50, -12), 4.5), ((6.5, -80, 0), (7, -48, 0), 3.6)]
    for front, back, radius in scrolls:
        scroll = rod(m, ((*front, radius), (*back, radius)))
        part.carve(part.fill(scroll) * 0.9, MUSCLE)
        part.add(rod(m, ((front[0] + 1, *front[1:], 0.9), (back[0] + 1, *back[1:], 0.9))), 0.7)


def _cells(canvas: Canvas, pitch: Sequence[float], wall: float) -> Tensor:
    """Share of each voxel in the walls [mm] of an irregular honeycomb."""
    air = torch.ones_like(canvas.grain)
    for i, coordinate in enumerate(canvas.p):
        bent = coordinate + canvas.grain * 3 + 0.25 * canvas.p[i - 1]
        centre = (torch.remainder(bent / pitch[i] + 0.31 * i, 1) - 0.5).abs() * pitch[i]
        air = air * (1 - (canvas.fill(centre - wall / 2) - canvas.fill(centre + wall / 2)))
    return 1 - air


def _ethmoid(canvas: Canvas, build: Build) -> None:
    part = canvas.crop((-16, -82, 2), (16, -42, 30))
    m = an.mirrored(part.p)
    region = an.block(m, (7.8, -62, 15), (6.3, 18, 10), 3)
    region = overlap(region, 0.8 - an.orbit(part.p), 1.5 - part.depth)
    part.carve(part.fill(region))
    part.add_share(part.fill(region - 0.4) * _cells(part, (9, 8, 9), 0.7), 0.85)


def _ears(canvas: Canvas, build: Build) -> None:
    part = canvas.crop((-84, -20, -34), (84, 34, 20))
    m = an.mirrored(part.p)
    fluid = union(rod(m, ((20, -6, 6, 2.2), (27, -6, 6, 2.2))), ellipsoid(m, (29, -11, 4), (3.5, 3, 2.5)))
    part.carve(part.fill(fluid) * 0.9, FLUID)
    region = overlap(union(rod(m, an.MASTOID) + 2.4, ellipsoid(m, (46, 6, 7), (9, 7, 6)), blend=4), 1.5 - part.depth)
    canal = rod(m, an.CANAL)
    region = torch.maximum(region, 1.5 - canal)
    part.carve(part.fill(region) * (1 - _cells(part, (5, 5.5, 5), 1.3)) * build.mastoid_air)
    part.carve(part.fill(union(canal, ellipsoid(m, *an.MIDDLE_EAR))))


def _teeth(canvas: Canvas, build: Build) -> None:
    for jaw, (arch, sizes, neck, sign) in enumerate(
        ((an.UPPER_ARCH, UPPER, -39.0, -1), (an.LOWER_ARCH, LOWER, -56.0, 1))
    ):
        angle = torch.linspace(0, math.pi / 2, 500, dtype=torch.float64)
        x, y = arch[0] * angle.sin(), arch[2] - arch[1] * angle.cos()
        length = torch.cat([angle.new_zeros(1), (x.diff() ** 2 + y.diff() ** 2).sqrt().cumsum(0)])
        fit = float(length[-1]) / (sum(width for width, _ in sizes) + 1.0)
        for side in (0, 1):
            along = 0.0
            for k, (width, depth) in enumerate(sizes):
                place = float(angle[int(torch.searchsorted(length, along + fit * width / 2).clamp(max=499))])
                along += fit * width
                quadrant = 2 * jaw + side
                if build.wisdom[quadrant] if k == 7 else quadrant * 7 + k not in build.missing:
                    _tooth(canvas, arch, place, (-1, 1)[side], neck, sign, fit * width, depth, k)


def _tooth(
    canvas: Canvas, arch: Sequence[float], angle: float, side: int, neck: float, sign: int, width: float,
    depth: float, kind: int,
) -> None:  # fmt: skip
    x0, y0 = an.arch_point(arch, angle)
    x0 *= side
    part = canvas.crop((x0 - 6, y0 - 6, neck - 16), (x0 + 6, y0 + 6, neck + 16), margin=9)
    tangent = (side * arch[0] * math.cos(angle), arch[1] * math.sin(angle))
    norm = math.hypot(*tangent)
    c, s = tangent[0] / norm, tangent[1] / norm
    x, y = part.p[0] - x0, part.p[1] - y0
    up = (part.p[2] - neck) * sign  # from the neck towards the biting edge
    q = (c * x + s * y, c * y - s * x, up)
    edge = 1 + (0.09 if kind < 3 else 0.0) * up.clamp(0, 8)  # front teeth narrow to a cutting edge
    crown = an.block((q[0], q[1] * edge, up), (0, 0, 3.7), (width / 2 - 0.15, depth / 2, 4.2), 2.2)
    reach = -12.0 - (3.0 if kind == 2 else 0.0)
    spread = width / 4 if kind > 4 else 0.0
    roots = [rod(q, ((t, 0, 1, width * (0.38 if spread == 0 else 0.24)), (1.15 * t, 0, reach, 0.9)))
             for t in ({-spread, spread})]  # fmt: skip
    root = union(*roots)
    part.add(root, DENTINE)
    whole = part.fill(crown)
    part.add_share(whole, ENAMEL)
    core = part.fill(union(crown + 1.4, rod(q, ((0, 0, -1, width * 0.33), (0, 0, 4, width * 0.3)))))
    part.bone.copy_(torch.where(whole > 0, part.bone - core * whole * (ENAMEL - DENTINE), part.bone))
    pulp = part.fill(rod(q, ((0, 0, -8, 0.5), (0, 0, 3, 0.9))))
    part.bone.mul_(1 - 0.7 * pulp)
