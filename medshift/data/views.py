"""The law of C-arm views, the evaluation tiers cut out of it, and the rule that keeps splits apart.

A *view* is one pose of the C-arm around one head: azimuth (0 = the source in front of the face, +90 = at the
patient's left), elevation (> 0: the source above), roll about the beam [deg], the isocentre's shift in the detector's
plane and the side of the square field at the isocentre [mm]. One wide law draws them all; every domain sees the same
law, so that domains differ by acquisition alone.

Tiers (unseen means unseen):

- ``T0`` new views of training heads from trained directions: interpolation, never a headline;
- ``T1`` training heads from directions at least 15 degrees from any training view: both posterior obliques and the
  lowest band of elevations;
- ``T2`` unseen heads: the headline;
- ``T3`` unseen heads that carry an insert no training view has;
- ``validation`` heads and poses of its own, where tau, guidance and checkpoints are chosen.

No training view of one domain lies within 2 degrees *and* 5 mm of a view of another domain or of an evaluation view,
whatever the head: see `neighbours` and `separate`.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation
from torch import Tensor

from medshift.errors import ParameterError

ELEVATION = 30.0  # deg, either way
ROLL = 15.0  # deg, either way
SHIFT = 25.0  # mm, either way, along both axes of the detector
FIELD_OF_VIEW = (220.0, 320.0)  # mm at the isocentre

OBLIQUE = (128.0, 142.0)  # |azimuth| of the held-out posterior obliques [deg]
LOW_BAND = (-30.0, -27.0)  # the held-out elevations [deg]
GUARD = 15.0  # deg between any held-out and any training direction
SEPARATION_DEG, SEPARATION_MM = 2.0, 5.0

# Radiographic projections as points of the law. Waters tilts 37 degrees in the clinic, beyond the arm's 30 here.
NAMED_VIEWS = {
    "AP": (0.0, 0.0),
    "lateral": (90.0, 0.0),
    "Towne": (0.0, 30.0),
    "Caldwell": (180.0, 15.0),
    "Waters": (180.0, 30.0),
}


def named_view(name: str, fov: float = 270.0) -> Tensor:
    """The pose (1, 6) of a named radiographic projection, centred, with a field of ``fov`` mm."""
    if name not in NAMED_VIEWS:
        raise ParameterError(f"No view is called {name!r}; the named views are {', '.join(NAMED_VIEWS)}.")
    azimuth, elevation = NAMED_VIEWS[name]
    return torch.tensor([[azimuth, elevation, 0.0, 0.0, 0.0, fov]])


def directions(azimuth: np.ndarray, elevation: np.ndarray) -> np.ndarray:
    """Unit vectors (N, 3) from the isocentre to the source, in the patient's frame (left, posterior, superior)."""
    a, e = np.deg2rad(azimuth), np.deg2rad(elevation)
    return np.stack([np.sin(a) * np.cos(e), -np.cos(a) * np.cos(e), np.sin(e)], axis=-1)


def _held_out_directions() -> np.ndarray:
    """A grid (M, 3), one point a degree, over every held-out direction."""
    elevations = np.arange(-ELEVATION, ELEVATION + 0.5)
    oblique = np.arange(OBLIQUE[0], OBLIQUE[1] + 0.5)
    blocks = [
        np.meshgrid(np.concatenate([oblique, -oblique]), elevations),
        np.meshgrid(np.arange(-180.0, 180.0), np.arange(LOW_BAND[0], LOW_BAND[1] + 0.5)),
    ]
    return np.concatenate([directions(a.ravel(), e.ravel()) for a, e in blocks])


def distance_to_held_out(poses: Tensor) -> np.ndarray:
    """Angle [deg] (N,) between each view's direction and the nearest held-out direction."""
    pose = poses.double().numpy()
    cosine = directions(pose[:, 0], pose[:, 1]) @ _held_out_directions().T
    return np.rad2deg(np.arccos(np.clip(cosine.max(axis=1), -1.0, 1.0)))


def region_of(poses: Tensor) -> list[str]:
    """The pose region of each view: a held-out region, or a cell of 45 degrees of azimuth (``az000`` to ``az315``)."""
    names = []
    for azimuth, elevation, *_ in poses.tolist():
        wrapped = (azimuth + 180.0) % 360.0 - 180.0
        if OBLIQUE[0] <= abs(wrapped) <= OBLIQUE[1]:
            names.append("posterior-oblique-" + ("left" if wrapped > 0 else "right"))
        elif LOW_BAND[0] <= elevation <= LOW_BAND[1]:
            names.append("low-elevation")
        else:
            names.append(f"az{int(round(wrapped / 45.0)) * 45 % 360:03d}")
    return names


def _draw(n: int, generator: torch.Generator) -> Tensor:
    """``n`` poses (n, 6) of the whole law."""
    u = torch.rand(n, 6, generator=generator, dtype=torch.float64)
    low = torch.tensor([-180.0, -ELEVATION, -ROLL, -SHIFT, -SHIFT, FIELD_OF_VIEW[0]], dtype=torch.float64)
    high = torch.tensor([180.0, ELEVATION, ROLL, SHIFT, SHIFT, FIELD_OF_VIEW[1]], dtype=torch.float64)
    return low + u * (high - low)


def draw_trained(n: int, generator: torch.Generator) -> Tensor:
    """``n`` poses (n, 6) at least 15 degrees from every held-out direction."""
    kept = torch.empty(0, 6, dtype=torch.float64)
    while len(kept) < n:
        poses = _draw(4 * n + 16, generator)
        kept = torch.cat([kept, poses[torch.from_numpy(distance_to_held_out(poses) >= GUARD)]])
    return kept[:n].float()


def draw_held_out(n: int, generator: torch.Generator) -> Tensor:
    """``n`` poses (n, 6) in the held-out regions, the three regions in turn."""
    poses = _draw(n, generator)
    u = torch.rand(n, generator=generator, dtype=torch.float64)
    for i in range(n):
        if i % 3 < 2:
            poses[i, 0] = (1 if i % 3 == 0 else -1) * (OBLIQUE[0] + u[i] * (OBLIQUE[1] - OBLIQUE[0]))
        else:
            poses[i, 1] = LOW_BAND[0] + u[i] * (LOW_BAND[1] - LOW_BAND[0])
    return poses.float()


def neighbours(
    poses: Tensor, roles: list[str], *, degrees: float = SEPARATION_DEG, millimetres: float = SEPARATION_MM
) -> np.ndarray:
    """Pairs of views that are too alike and must not be, (P, 2) indices.

    Args:
        poses: (N, 6).
        roles: N names; a pair counts where the roles differ and at least one is a training domain (``train:...``).
        degrees: the largest angle of the rotation that takes one pose to the other.
        millimetres: the largest distance between the two shifts.
    """
    pose = poses.double().numpy()
    tree = cKDTree(directions(pose[:, 0], pose[:, 1]))
    # The angle between directions never exceeds that between rotations, so this finds every candidate.
    pairs = tree.query_pairs(2.0 * math.sin(math.radians(degrees) / 2.0) + 1e-9, output_type="ndarray")
    if not len(pairs):
        return pairs.reshape(0, 2)
    role = np.asarray(roles)
    trained = np.char.startswith(role, "train:")
    i, j = pairs.T
    pairs = pairs[(role[i] != role[j]) & (trained[i] | trained[j])]
    i, j = pairs.T
    rotation = Rotation.from_euler("ZXY", pose[:, [0, 1, 2]] * [1.0, -1.0, 1.0], degrees=True)
    angle = np.rad2deg((rotation[i].inv() * rotation[j]).magnitude()) if len(pairs) else np.empty(0)
    distance = np.linalg.norm(pose[i, 3:5] - pose[j, 3:5], axis=1)
    return pairs[(angle <= degrees) & (distance <= millimetres)]


def separate(poses: Tensor, roles: list[str], held_out: list[bool], generator: torch.Generator) -> Tensor:
    """Redraw views, each within its own region, until no two forbidden ones are neighbours; poses (N, 6)."""
    poses = poses.clone()
    for _ in range(100):
        pairs = neighbours(poses, roles)
        if not len(pairs):
            return poses
        for index in sorted({int(max(pair)) for pair in pairs}):
            if held_out[index]:
                poses[index] = draw_held_out(3, generator)[index % 3]
            else:
                poses[index] = draw_trained(1, generator)[0]
    raise ParameterError(
        f"{len(poses)} views cannot be kept {SEPARATION_DEG} degrees or {SEPARATION_MM} mm apart; ask for fewer views."
    )
