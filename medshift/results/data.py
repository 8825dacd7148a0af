"""What 01_data draws: heads, named projections, and how unseen the evaluation views are."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from medshift.data.acquisition import acquire
from medshift.data.domains import DOMAINS, is_synthetic, poses_of
from medshift.data.heads import Heads, HeadSplit
from medshift.data.projection import level_for, project
from medshift.data.simulator import simulator_volume
from medshift.data.views import NAMED_VIEWS, directions, named_view, neighbours
from medshift.data.volume import HeadVolume
from medshift.stages.views import phantom_spacing

LEAST_PIXELS = 64  # pictures for people are not drawn smaller


def arguments_of(views: Path) -> dict[str, Any]:
    """What the stage ``views`` was told."""
    return dict(json.loads((views / "config.json").read_text())["arguments"])


@lru_cache(maxsize=1)
def _heads(source: str, size: int) -> Heads:
    return Heads("phantom" if source == "phantom" else "cranium", phantom_spacing_mm=phantom_spacing(size))


def head(views: Path, number: int) -> HeadVolume:
    """A head of the stage ``views``, by number."""
    told = arguments_of(views)
    return _heads(told["source"], told["size"])[number]


def _acquired(volumes: dict[bool, HeadVolume], poses: Tensor, size: int, seed: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Domain -> (one exposure, free of noise) of the views; ``volumes`` by whether the domain is synthetic."""
    pitch = float(poses[:, 5].min()) / size
    projections = {kind: project(level_for(volume, pitch), poses, size) for kind, volume in volumes.items()}
    pictures = {}
    for domain in DOMAINS:
        p = projections[is_synthetic(domain)]
        arguments = (p.line_integrals, p.open_field, poses[:, 5], domain)
        noisy = acquire(*arguments, generator=torch.Generator().manual_seed(seed))
        pictures[domain] = (noisy, acquire(*arguments, generator=None, clean=True))
    return pictures


def named_views(views: Path, number: int = 0) -> dict[str, tuple[Tensor, Tensor]]:
    """Domain -> (one exposure, free of noise) of the named radiographic projections of a head (N,1,H,W)."""
    volume, told = head(views, number), arguments_of(views)
    poses = torch.cat([named_view(name) for name in NAMED_VIEWS])
    volumes = {False: volume, True: simulator_volume(volume)}
    return _acquired(volumes, poses, max(told["size"], LEAST_PIXELS), told["seed"])


def lateral_views(views: Path, each: int = 4) -> dict[str, Tensor]:
    """Split -> lateral views (N,1,H,W) of its first heads in the domain real-exposure."""
    told, pose = arguments_of(views), named_view("lateral")
    split, size = HeadSplit(**told["heads"]), max(told["size"], LEAST_PIXELS)
    pictures = {}
    for name in ("train", "validation", "test"):
        images = []
        for number in split.numbers(name)[:each]:
            p = project(level_for(head(views, number), float(pose[0, 5]) / size), pose, size)
            generator = torch.Generator().manual_seed(number)
            images.append(acquire(p.line_integrals, p.open_field, pose[:, 5], "real-exposure", generator=generator))
        pictures[name] = torch.cat(images)
    return pictures


def view_list(views: Path) -> pd.DataFrame:
    """Every view, one row each."""
    return pd.read_csv(views / "views.csv", keep_default_na=False)


def view_table(views: Path) -> pd.DataFrame:
    """Views by role, with how near the nearest training view of another role comes."""
    table = view_list(views)
    forbidden = len(neighbours(poses_of(table), table["role"].tolist()))
    train = table[table["role"].str.startswith("train:")]
    trained = directions(train["azimuth"].to_numpy(), train["elevation"].to_numpy())
    rows = []
    for role, group in table.groupby("role", sort=False):
        cosine = directions(group["azimuth"].to_numpy(), group["elevation"].to_numpy()) @ trained.T
        if str(role).startswith("train:"):
            cosine[:, (train["role"] == role).to_numpy()] = -1
        angle = np.rad2deg(np.arccos(np.clip(cosine.max(axis=1), -1, 1)))
        row = {
            "role": role,
            "views": len(group),
            "heads": group["head"].nunique(),
            "regions": group["region"].nunique(),
        }
        rows.append(
            row | {"nearest training direction, median [deg]": float(np.median(angle)), "least [deg]": angle.min()}
        )
    return pd.DataFrame(rows).assign(**{"forbidden neighbours": forbidden})
