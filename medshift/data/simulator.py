"""The head as a training simulator renders it: a few materials with smooth borders instead of a CT.

Four labels are segmented from the two densities (air, soft tissue, spongy bone, compact bone); the marrow
between the tables is filled, bone thinner than a few millimetres is dropped, and each material gets one
density. What is lost cannot be computed back: an image made from the result lacks information that the CT's
images have.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from medshift.data.deformation import support
from medshift.data.volume import BONE, WATER, HeadVolume

AIR, SOFT, SPONGY, COMPACT = range(4)
BONE_OF = (0.0, 0.0, 0.3, 0.7)  # bone density of each label; water fills the rest of tissue
OPENING_MM = 2.5  # thinner bone is lost
CLOSING_MM = 4.0  # narrower gaps in bone, such as diploë, are filled
CLASS_MM = 2.5  # standard deviation over which bone is judged compact or spongy
SMOOTH_MM = 1.0  # standard deviation of the labels' smoothing


def simulator_volume(volume: HeadVolume) -> HeadVolume:
    """Render a head from its four labels, with borders smoothed and one voxel wide.

    A label's indicator is smoothed by a Gaussian and thresholded again at 1/2. The threshold is a ramp of one
    voxel (the slope of a flat border is known), which gives border voxels their share of both materials.

    Args:
        volume: The head.

    Returns:
        The same grid, landmarks and cut faces. Away from borders both densities are constant per label.
    """
    labels = segment(volume)
    box = support(labels != AIR, [3, 3, 3])
    cropped = labels[box]
    blur = _Blur(cropped, volume.spacing, SMOOTH_MM)
    tissue = _ramp(blur(cropped != AIR), blur.gain)
    smooth_bone = blur(cropped >= SPONGY)
    bone = torch.minimum(_ramp(smooth_bone, blur.gain), tissue)
    compact = _ramp(blur(cropped == COMPACT) / smooth_bone.clamp(min=1e-3), blur.gain)
    mineral = bone * (BONE_OF[SPONGY] + (BONE_OF[COMPACT] - BONE_OF[SPONGY]) * compact)
    density = torch.zeros_like(volume.density)
    density[BONE][box] = mineral
    density[WATER][box] = (tissue - mineral).clamp(min=0)
    return replace(volume, density=density, name=f"{volume.name}-simulator")


def segment(volume: HeadVolume) -> Tensor:
    """Label a head's voxels: (D, H, W) uint8 of `AIR`, `SOFT`, `SPONGY`, `COMPACT`.

    Bone begins at half of its local maximum (the usual rule for the thickness of a wall in CT); gaps narrower
    than `CLOSING_MM` are filled unless they hold air, and walls thinner than `OPENING_MM` are dropped. Bone
    is compact where the densest of it within `CLOSING_MM`, averaged over `CLASS_MM`, is nearer to compact
    than to spongy.
    """
    water, mineral = volume.density
    labels = (water + mineral > 0.5).to(torch.uint8)
    box = support(mineral > BONE_OF[SPONGY] / 2, [6, 6, 6])
    tissue, mineral = labels[box].bool(), mineral[box]
    level = BONE_OF[COMPACT] / 2
    edge = (_brightest(mineral) / 2).clamp(BONE_OF[SPONGY] / 2, level)
    bone = mineral >= edge
    gap, wall = _voxels(CLOSING_MM, volume.spacing), _voxels(OPENING_MM, volume.spacing)
    bone |= _erode(_dilate(bone, gap), gap) & tissue
    bone = _dilate(_erode(bone, wall), wall)
    for _ in range(max(gap) // 2):
        mineral = _brightest(mineral)
    blur = _Blur(bone, volume.spacing, CLASS_MM)
    mean = blur(mineral * bone) / blur(bone).clamp(min=1e-3)
    compact = mean > (BONE_OF[SPONGY] + BONE_OF[COMPACT]) / 2
    labels[box] = torch.where(bone, SPONGY + compact.to(torch.uint8), labels[box])
    return labels


def _voxels(width_mm: float, spacing: Sequence[float]) -> list[int]:
    """Sides [voxels] of a box about `width_mm` wide, at least two, so that a single voxel counts as thin."""
    return [max(2, round(width_mm / side)) for side in spacing]


def _dilate(mask: Tensor, sides: Sequence[int], direction: int = 1) -> Tensor:
    """Binary dilation of (D, H, W) by a box reaching forward (1) or back (-1) from each voxel."""
    for axis, side in enumerate(sides):
        grown, size = mask.clone(), mask.shape[axis]
        for step in range(1, min(side, size)):
            near, far = (0, step) if direction > 0 else (step, 0)
            grown.narrow(axis, far, size - step).logical_or_(mask.narrow(axis, near, size - step))
        mask = grown
    return mask


def _erode(mask: Tensor, sides: Sequence[int]) -> Tensor:
    """The adjoint erosion, by the mirrored box: opening and closing then shift nothing and are idempotent."""
    return ~_dilate(~mask, sides, -1)


def _brightest(values: Tensor) -> Tensor:
    """Largest value of (D, H, W) among the 3 x 3 x 3 neighbours."""
    for axis in range(3):
        largest, pairs = values.clone(), values.shape[axis] - 1
        for one, other in ((0, 1), (1, 0)):
            part = largest.narrow(axis, one, pairs)
            torch.maximum(part, values.narrow(axis, other, pairs), out=part)
        values = largest
    return values


class _Blur:
    """Gaussian mean over (D, H, W), a matrix product per axis; at the faces over what lies inside."""

    def __init__(self, like: Tensor, spacing: Sequence[float], sigma_mm: float) -> None:
        sigma = [max(sigma_mm / side, 0.6) for side in spacing]  # voxels; a narrower Gaussian is no average
        self.gain = math.prod(sigma) ** (1 / 3) * math.sqrt(2 * math.pi)  # 1 / slope of a flat border
        self.weights = []
        for size, width in zip(like.shape, sigma, strict=True):
            place = torch.arange(size, dtype=torch.float32, device=like.device)
            weights = torch.exp(-0.5 * ((place[:, None] - place) / width) ** 2)
            self.weights.append(weights / weights.sum(dim=1, keepdim=True))

    def __call__(self, values: Tensor) -> Tensor:
        along_z, along_y, along_x = self.weights
        values = along_y @ (values.to(torch.float32) @ along_x.T)
        return (along_z @ values.flatten(1)).view_as(values)


def _ramp(smooth: Tensor, gain: float) -> Tensor:
    """Threshold a smoothed indicator at 1/2, over one voxel."""
    return (0.5 + (smooth - 0.5) * gain).clamp(0, 1)
