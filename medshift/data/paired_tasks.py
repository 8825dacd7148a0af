"""Paired tasks that can really be made: two images of the same view, both known.

- ``modality``: the simulator's synthetic-high against the C-arm's real-exposure, the strongest change of acquisition.
- ``mask``: an image of real-normal against the mask of dense bone, like the defect maps of CDTSDE's third data set.
- ``dual-energy``: the soft-tissue image against the bone image of one dual-energy acquisition. What changes is spread
  very unevenly over the image.

They have training views of their own (heads and poses of the training views of synthetic-high, projected from both
volumes); the unpaired protocol of the other notebooks never sees these pairs. All images are computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from medshift.data.acquisition import DITHER, SHUTTER, acquire
from medshift.data.domains import DOMAINS, EXPOSURES
from medshift.data.dual_energy import dual_energy
from medshift.data.projection import Projection, load_projections
from medshift.errors import ParameterError

__all__ = ["DENSE_BONE_MM", "TASKS", "Task", "TaskViews", "dense_bone"]

DENSE_BONE_MM = 15.0  # a ray through more cortical bone than this counts as dense bone: a sixth of the open field


@dataclass(frozen=True)
class Task:
    """What is given and what is sought.

    Args:
        name: of the task.
        source: name of the images that are given.
        target: name of those that are sought.
        binary: whether the target is a mask, -1 and 1.
    """

    name: str
    source: str
    target: str
    binary: bool = False


TASKS: Mapping[str, Task] = {
    task.name: task
    for task in (
        Task("modality", "synthetic-high", "real-exposure"),
        Task("mask", "real-normal", "dense bone", binary=True),
        Task("dual-energy", "soft tissue", "bone"),
    )
}


def dense_bone(line_integrals: Tensor, open_field: Tensor) -> Tensor:
    """Mask (N,1,H,W) of -1 and 1: rays through more than 15 mm of cortical bone, in the open field."""
    inside = (line_integrals[:, 1:] > DENSE_BONE_MM) & open_field
    return torch.where(inside, 1.0, -1.0)


class TaskViews:
    """The pairs of a task, from the line integrals of both volumes of each head.

    Args:
        task: one of `TASKS`.
        folder: of the stage ``views``, or ``paired_views`` for training.
        role: ``paired`` for training, else ``validation`` or a tier.
        limit: the first so many views alone.

    Raises:
        ParameterError: no such task, or no such views.
    """

    def __init__(self, task: str, folder: Path, role: str, *, limit: int | None = None) -> None:
        if task not in TASKS:
            raise ParameterError(f"No paired task is called {task!r}; there are {', '.join(TASKS)}.")
        views = pd.read_csv(folder / "views.csv", keep_default_na=False)
        self.task, self.role = TASKS[task], role
        self.table = views[views["role"] == role].reset_index(drop=True).iloc[:limit]
        if self.table.empty:
            raise ParameterError(f"There are no views of {role!r} in {folder}; its roles are {set(views['role'])}.")
        n = len(self.table)
        self.held = {kind: _first(load_projections(folder / f"{role}.{kind}.safetensors"), n) for kind in KINDS}
        self.open_field = self.held["real"].open_field
        self.landmarks = self.held["real"].landmarks

    def __len__(self) -> int:
        return len(self.table)

    def exposure(self, number: int) -> tuple[Tensor, Tensor]:
        """Source and target (N,1,H,W) at exposure 0 to 7; every view has a seed of its own, whatever is beside it."""
        if not 0 <= number < EXPOSURES:
            raise ParameterError(f"Exposure {number} does not exist; every view has exposures 0 to {EXPOSURES - 1}.")
        made = [
            self._pair(torch.tensor([i]), [(int(seed) * 64 + label) * 64 + number for label in self._labels()])
            for i, seed in enumerate(self.table["seed"])
        ]
        return torch.cat([source for source, _ in made]), torch.cat([target for _, target in made])

    def clean(self) -> tuple[Tensor, Tensor]:
        """Source and target (N,1,H,W) free of noise."""
        return self._pair(torch.arange(len(self)), None)

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """n random pairs (n,1,H,W), each with fresh noise, half of them mirrored: a mirrored head is a head.

        The generator is the host's, where projections lie and images are made.
        """
        place = generator.device
        index = torch.randint(len(self), (n,), generator=generator, device=place)
        flip = torch.rand(n, generator=generator, device=place) < 0.5
        seeds = torch.randint(2**62, (2,), generator=generator, device=place)
        pair = self._pair(index, [int(s) for s in seeds])
        source, target = (torch.where(flip[:, None, None, None], image.flip(-1), image) for image in pair)
        return source, target

    def _labels(self) -> tuple[int, int]:
        """Of the seeds; a domain has its own, so that its exposures are those of the other notebooks.

        They are bit for bit where the blades of both volumes agree: here each image has its own volume's, elsewhere
        both have the simulator's, and a blade of another width shifts the stream of noise.
        """
        names = (self.task.source, self.task.target)
        source, target = (DOMAINS.index(n) if n in DOMAINS else len(DOMAINS) + k for k, n in enumerate(names))
        return source, target

    def _pair(self, index: Tensor, seeds: list[int] | None) -> tuple[Tensor, Tensor]:
        generators = [None if seeds is None else torch.Generator().manual_seed(seeds[k]) for k in (0, 1)]
        real, simulated = (_of(self.held[kind], index) for kind in KINDS)
        if self.task.name == "modality":
            return _acquired(*simulated, "synthetic-high", generators[0]), _acquired(
                *real, "real-exposure", generators[1]
            )
        if self.task.name == "mask":
            return _acquired(*real, "real-normal", generators[0]), dense_bone(real[0], real[1])
        soft, bone = dual_energy(*real, generator=generators[0])
        return _finished(soft, real[1], generators[0]), _finished(bone, real[1], generators[1])


KINDS = ("real", "simulated")
Lines = tuple[Tensor, Tensor, Tensor]


def _first(views: Projection, n: int) -> Projection:
    return Projection(views.line_integrals[:n], views.open_field[:n], views.landmarks[:n], views.poses[:n])


def _of(views: Projection, index: Tensor) -> Lines:
    return views.line_integrals[index].float(), views.open_field[index], views.poses[index, 5]


def _acquired(lines: Tensor, field: Tensor, fov: Tensor, domain: str, generator: torch.Generator | None) -> Tensor:
    return acquire(lines, field, fov, domain, generator=generator, clean=generator is None)


def _finished(image: Tensor, open_field: Tensor, generator: torch.Generator | None) -> Tensor:
    """Shutter and dither as every image has them."""
    image = image.where(open_field, SHUTTER)
    if generator is None:
        return image
    return image + DITHER * torch.randn(image.shape, generator=generator, device=image.device)
