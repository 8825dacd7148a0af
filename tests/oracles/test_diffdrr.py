"""The projector against DiffDRR (Gopalakrishnan & Golland, arXiv:2208.12737), whose camera is another.

DiffDRR's world is RAS, ours LPS: x and y change sign. A view (azimuth, elevation, roll) is its Euler rotation
ZXY (azimuth, elevation, -roll) of the AP orientation; the C-arm is at (shift_u, 810, shift_v) before that.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from medshift.data.projection import SOURCE_DETECTOR, SOURCE_ISOCENTRE, project, project_points
from medshift.data.volume import HeadVolume

pytest.importorskip("diffdrr", reason="the oracle needs diffdrr: pip install medshift[oracle]")
pytestmark = [pytest.mark.slow, pytest.mark.oracle]

SIZE, FOV = 48, 200.0
POSES = torch.tensor(
    [
        [0.0, 0.0, 0.0, 0.0, 0.0, FOV],
        [90.0, 0.0, 0.0, 0.0, 0.0, FOV],
        [180.0, 15.0, 0.0, 0.0, 0.0, FOV],
        [-35.0, 28.0, 12.0, 15.0, -9.0, FOV],
        [140.0, -25.0, -15.0, -25.0, 20.0, FOV],
    ]
)


def lopsided_head() -> HeadVolume:
    """A soft ellipsoid with a hollow and a ball of bone, off every axis; unequal sides of voxels."""
    shape, spacing = (60, 90, 80), (2.0, 1.5, 1.6)
    axes = [(torch.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing, strict=True)]
    z, y, x = torch.meshgrid(*axes, indexing="ij")

    def blob(
        centre: tuple[float, float, float], radii: tuple[float, float, float], edge: float = 4.0
    ) -> Tensor:
        scaled = [(axis - c) / r for axis, c, r in zip((x, y, z), centre, radii, strict=True)]
        return torch.sigmoid((1 - torch.stack(scaled).norm(dim=0)) * min(radii) / edge)

    water = blob((0, 0, 0), (42, 48, 38)) - 0.8 * blob((-12, -20, 8), (10, 9, 8))
    bone = blob((20, 14, 16), (9, 7, 8), edge=2.5)
    for maps in (water, bone):
        maps[maps < 1e-3] = 0
    marks = {"ball": (20.0, 14.0, 16.0), "off": (-30.0, 22.0, -25.0)}
    return HeadVolume(torch.stack([water, bone]), spacing, marks)


def diffdrr_camera(volume: HeadVolume, channel: int, renderer: str) -> tuple[Any, Any]:
    """DiffDRR's module for one material, and its poses."""
    import numpy as np
    from diffdrr.data import read
    from diffdrr.drr import DRR
    from diffdrr.pose import convert
    from torchio import ScalarImage  # type: ignore[import-not-found]

    density = volume.density[channel].permute(2, 1, 0).flip(0, 1)[None].contiguous()  # (1, X, Y, Z), RAS
    affine = np.diag([*reversed(volume.spacing), 1.0])
    subject = read(ScalarImage(tensor=density, affine=affine), orientation="AP")
    subject.density.set_data(density)  # `read` takes Hounsfield units and rescales them
    pixel = FOV / SIZE * SOURCE_DETECTOR / SOURCE_ISOCENTRE
    module = DRR(subject, sdd=SOURCE_DETECTOR, height=SIZE, delx=pixel, renderer=renderer)
    turn = POSES[:, :3] * torch.tensor([1.0, 1.0, -1.0])
    place = torch.stack([POSES[:, 3], torch.full((len(POSES),), SOURCE_ISOCENTRE), POSES[:, 4]], dim=1)
    pose = convert(turn, place, parameterization="euler_angles", convention="ZXY", degrees=True)
    return module, pose


@pytest.mark.parametrize(
    ("renderer", "options", "largest_mm", "mean_mm"),
    # Siddon's voxels are constant, another model of the density: near edges it differs by a share of a voxel.
    [("trilinear", {"n_points": 1500}, 0.03, 0.001), ("siddon", {}, 2.0, 0.25)],
)
@pytest.mark.parametrize("channel", [0, 1])
def test_line_integrals_agree(
    renderer: str, options: dict[str, int], largest_mm: float, mean_mm: float, channel: int
) -> None:
    volume = lopsided_head()
    ours = project(volume, POSES, SIZE, step_mm=0.5).line_integrals[:, channel]
    module, pose = diffdrr_camera(volume, channel, renderer)
    theirs = module(pose, **options)[:, 0]
    error = (ours - theirs).abs()
    hit = theirs > 1
    print(
        f"{renderer}, {channel}: max {error.max():.4f}, mean {error[hit].mean():.4f} of {theirs.max():.1f} mm"
    )
    assert theirs.max() > 10
    assert error.max() < largest_mm
    assert error[hit].mean() < mean_mm
    assert (ours - theirs.flip(-1)).abs().max() > 3  # the head is lopsided: a mirrored camera would be seen


def test_points_agree() -> None:
    volume = lopsided_head()
    module, pose = diffdrr_camera(volume, 0, "siddon")
    points = torch.tensor(list(volume.landmarks.values()))
    ours = project_points(points, POSES, SIZE)
    ras = points * torch.tensor([-1.0, -1.0, 1.0])
    theirs = module.perspective_projection(pose, ras.expand(len(POSES), -1, -1))
    # DiffDRR counts from the field's corner, we from the first pixel's centre.
    assert torch.allclose(ours + 0.5, theirs, atol=1e-2)
