"""Images as the stages draw them, whether rendered from heads or read from a user's folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import pandas as pd
import torch
from torch import Tensor

from medshift.data.batches import host_generator, sent
from medshift.data.domains import DOMAINS, EvaluationSet, TrainingSet
from medshift.data.folders import FolderSet, read_folders

STATISTICS_IMAGES = 400  # of each domain, for a codec's statistics and the floors' tone curves


class Images(Protocol):
    """Training and validation images of several domains.

    Attributes:
        rendered: whether the truth of every evaluation view is known.
        domains: names in label order.
        folder: of the stage.
    """

    rendered: bool
    domains: tuple[str, ...]
    folder: Path

    def batches(self, n: int, device: str) -> Callable[[int, torch.Generator], tuple[Tensor, Tensor]]:
        """The ``batches`` of a training: n images (n,1,H,W) and labels (n,) a call."""

    def training(self, limit: int | None = None, seed: int = 0) -> list[Tensor]:
        """Training images (N,1,H,W) of every domain on the CPU, at most ``limit`` of each."""

    def validation(self, limit: int) -> dict[str, Tensor]:
        """Domain -> its first validation images (N,1,H,W) on the CPU."""


class RenderedImages:
    """`Images` made from line integrals, with fresh noise at every draw."""

    rendered = True

    def __init__(self, folder: Path):
        self.folder = folder
        self.domains: tuple[str, ...] = DOMAINS

    def batches(self, n: int, device: str) -> Callable[[int, torch.Generator], tuple[Tensor, Tensor]]:
        """See `Images`."""
        return TrainingSet(self.folder, n, device=device)

    def training(self, limit: int | None = None, seed: int = 0) -> list[Tensor]:
        """See `Images`."""
        roles = pd.read_csv(self.folder / "views.csv", usecols=["role"])["role"]
        n = int((roles == f"train:{DOMAINS[0]}").sum())
        views = TrainingSet(self.folder, 1)
        return [views.images(domain, min(n, limit or n), seed=seed) for domain in DOMAINS]

    def validation(self, limit: int) -> dict[str, Tensor]:
        """See `Images`."""
        views = EvaluationSet(self.folder, "validation", limit=limit)
        return {domain: views.exposure(domain, 0) for domain in DOMAINS}


class FolderImages:
    """`Images` of a user's own folders."""

    rendered = False

    def __init__(self, folder: Path, found: FolderSet):
        self.folder, self.found, self.domains = folder, found, found.domains

    def batches(self, n: int, device: str) -> Callable[[int, torch.Generator], tuple[Tensor, Tensor]]:
        """See `Images`."""

        def draw(step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
            host = host_generator(generator)
            seed = int(torch.randint(2**62, (), generator=host, device=host.device))
            images, labels = self.found.batch(n, torch.Generator().manual_seed(seed))
            return sent(images, device), sent(labels, device)

        return draw

    def training(self, limit: int | None = None, seed: int = 0) -> list[Tensor]:
        """See `Images`; without a limit still no more than `STATISTICS_IMAGES` of each, since files are large."""
        return [self.found.images(domain, "train", limit=limit or STATISTICS_IMAGES) for domain in self.domains]

    def validation(self, limit: int) -> dict[str, Tensor]:
        """See `Images`."""
        return {domain: self.found.images(domain, "val", limit=limit) for domain in self.domains}


@lru_cache(maxsize=2)
def folder_set(root: str, size: int) -> FolderSet:
    """A user's folders at one size [pixels]; files are read when asked for and then kept."""
    return read_folders(root, size=size)


def open_images(folder: Path, data: str = "") -> Images:
    """The images of a finished stage ``views`` or ``folders``; the latter needs the user's folder ``data``."""
    listing = folder / "folders.json"
    if not listing.is_file():
        return RenderedImages(folder)
    return FolderImages(folder, folder_set(data, int(json.loads(listing.read_text())["size"])))
