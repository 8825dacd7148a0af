"""Domains, the plan of views, and the two kinds of data set drawn from it: unpaired for training, paired for truth.

A view is indexed by (head, pose region, seed). `plan_views` lays down all of them, `render` projects them once to line
integrals, and images are made from those on demand: training draws fresh noise at every step, evaluation re-makes any
of a view's exposures, or its noise-free expectation, bit for bit from the view's seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from medshift.data.acquisition import acquire
from medshift.data.batches import host_generator, sent
from medshift.data.heads import Heads, HeadSplit
from medshift.data.inserts import with_insert
from medshift.data.projection import POSE_COLUMNS, Projection, level_for, load_projections, project, save_projections
from medshift.data.simulator import simulator_volume
from medshift.data.views import FIELD_OF_VIEW, draw_held_out, draw_trained, region_of, separate
from medshift.data.volume import HeadVolume
from medshift.errors import ParameterError

DOMAINS = ("synthetic-low", "synthetic-high", "real-low", "real-normal", "real-exposure")
TIERS = ("T0", "T1", "T2", "T3")
INSERTS = ("burr-hole", "clip", "wire", "fracture")
EXPOSURES = 8
STAND_IN = "stand-in for X-DigiSkull, physics-simulated acquisition; no patient X-ray"


def domain_index(domain: str | int, domains: Sequence[str] = DOMAINS) -> int:
    """The label of a domain given by name or number; ParameterError for any other."""
    if isinstance(domain, str) and domain in domains:
        return list(domains).index(domain)
    if isinstance(domain, int) and not isinstance(domain, bool) and 0 <= domain < len(domains):
        return domain
    raise ParameterError(f"No domain is called {domain!r}; the domains are {', '.join(domains)}.")


def is_synthetic(domain: str | int) -> bool:
    """Whether a domain is rendered from the simulator's volume."""
    return DOMAINS[domain_index(domain)].startswith("synthetic")


@dataclass(frozen=True)
class ViewCounts:
    """How many views are drawn: per domain for training, in all for validation and for each tier."""

    train: int
    validation: int
    T0: int
    T1: int
    T2: int
    T3: int


def plan_views(counts: ViewCounts, split: HeadSplit, seed: int) -> pd.DataFrame:
    """Every view of the data set, one row each: role, head, region, seed, pose and insert.

    The role is ``train:<domain>``, ``validation`` or a tier. Heads take turns within a role; `views.separate` keeps
    the roles apart.
    """
    generator = torch.Generator().manual_seed(seed)
    heads = {name: split.numbers(name) for name in ("train", "validation", "test")}
    blocks = [(f"train:{domain}", counts.train, heads["train"]) for domain in DOMAINS]
    blocks += [("validation", counts.validation, heads["validation"])]
    blocks += [("T0", counts.T0, heads["train"]), ("T1", counts.T1, heads["train"])]
    blocks += [("T2", counts.T2, heads["test"]), ("T3", counts.T3, heads["test"])]
    rows, poses = [], []
    for role, n, numbers in blocks:
        poses.append((draw_held_out if role == "T1" else draw_trained)(n, generator))
        for i in range(n):
            insert = INSERTS[i // len(numbers) % len(INSERTS)] if role == "T3" else ""
            rows.append({"role": role, "head": numbers[i % len(numbers)], "insert": insert})
    roles = [str(row["role"]) for row in rows]
    pose = separate(torch.cat(poses), roles, [role == "T1" for role in roles], generator)
    table = pd.DataFrame(rows)
    table["region"] = region_of(pose)
    table["seed"] = [seed * 1_000_003 + i for i in range(len(table))]
    table[list(POSE_COLUMNS)] = pose.numpy()
    return table


def poses_of(table: pd.DataFrame) -> Tensor:
    """The poses (N, 6) of a table of views."""
    return torch.tensor(table[list(POSE_COLUMNS)].to_numpy(), dtype=torch.float32)


def render(
    table: pd.DataFrame,
    heads: Heads,
    size: int,
    folder: Path,
    *,
    device: str | torch.device = "cpu",
    progress: Callable[[float], None] = lambda done: None,
) -> None:
    """Project every view of ``table`` and write ``<folder>/<role>.<real|simulated>.safetensors`` and ``views.csv``.

    Training views of a domain are projected from that domain's volume alone; evaluation views from both, so that each
    has a truth in every domain. Heads are made one after the other, so memory stays that of one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts: dict[tuple[str, str], list[tuple[list[int], Projection]]] = {}
    numbers = sorted(table["head"].unique())
    for done, number in enumerate(numbers):
        head = heads[int(number)]
        simulated = simulator_volume(head)
        for insert, of_volume in table[table["head"] == number].groupby("insert", sort=True):
            volumes = _with(str(insert), head, simulated, int(number))
            levels = {kind: _at(level_for(volume, FIELD_OF_VIEW[0] / size), device) for kind, volume in volumes.items()}
            for role, rows in of_volume.groupby("role", sort=True):
                for kind in _wanted(str(role)):
                    projection = _held(project(levels[kind], poses_of(rows), size))
                    parts.setdefault((str(role), kind), []).append((rows.index.tolist(), projection))
        progress((done + 1) / len(numbers))
    for (role, kind), pieces in parts.items():
        order = torch.tensor([i for index, _ in pieces for i in index]).argsort()
        save_projections(folder / f"{_file(role)}.{kind}.safetensors", _concatenate([p for _, p in pieces], order))
    table.to_csv(folder / "views.csv", index=False)


def _with(insert: str, head: HeadVolume, simulated: HeadVolume, number: int) -> dict[str, HeadVolume]:
    """Both volumes of a head, with the same insert in the same place where there is one."""
    if not insert:
        return {"real": head, "simulated": simulated}
    return {
        "real": with_insert(head, insert, number)[0],
        "simulated": with_insert(simulated, insert, number, reference=head)[0],
    }


def _at(volume: HeadVolume, device: str | torch.device) -> HeadVolume:
    """The volume on a device: that is where `project` works, whatever the poses' own."""
    return replace(volume, density=volume.density.to(device))


def _held(projection: Projection) -> Projection:
    """On the host: all views of a large profile together would fill a GPU."""
    return Projection(**{f.name: getattr(projection, f.name).cpu() for f in fields(Projection)})


def _wanted(role: str) -> tuple[str, ...]:
    domain = role.removeprefix("train:")
    if domain in DOMAINS:
        return ("simulated" if is_synthetic(domain) else "real",)
    return ("real", "simulated")


def _file(role: str) -> str:
    return role.replace("train:", "train-")


def _concatenate(pieces: list[Projection], order: Tensor) -> Projection:
    return Projection(**{f.name: torch.cat([getattr(p, f.name) for p in pieces])[order] for f in fields(Projection)})


class TrainingSet:
    """Unpaired training images: each domain has views no other domain has, and fresh noise at every draw.

    `__call__(step, generator)` is the ``batches`` of `medshift.train`: images (B,1,H,W) and labels (B,), classes
    balanced in expectation. A mirrored head is a head, so half of the images are flipped left to right. Images are
    made on the generator's device; a GPU draws other numbers than a CPU from the same seed.

    Args:
        folder: what `render` wrote.
        batch: B.
        device: to put them on.
    """

    def __init__(self, folder: Path, batch: int, *, device: str | torch.device = "cpu"):
        self.batch, self.device = batch, torch.device(device)
        self.domains = DOMAINS
        self.views = [
            load_projections(folder / f"train-{d}.{'simulated' if is_synthetic(d) else 'real'}.safetensors")
            for d in DOMAINS
        ]

    def __call__(self, step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        host = host_generator(generator)
        label = torch.randint(len(DOMAINS), (self.batch,), generator=host, device=host.device).sort().values
        counts = label.bincount(minlength=len(DOMAINS)).tolist()
        images = [self._draw(domain, n, host, generator) for domain, n in enumerate(counts) if n]
        return torch.cat(images).to(self.device), sent(label, self.device)

    def _draw(self, domain: int, n: int, host: torch.Generator, generator: torch.Generator) -> Tensor:
        views, place = self.views[domain], generator.device
        index = torch.randint(len(views.poses), (n,), generator=host, device=host.device)
        image = acquire(
            sent(views.line_integrals[index], place).float(),
            sent(views.open_field[index], place),
            sent(views.poses[index, 5], place),
            DOMAINS[domain],
            generator=generator,
        )
        flip = sent(torch.rand(n, generator=host, device=host.device) < 0.5, place)
        return torch.where(flip[:, None, None, None], image.flip(-1), image)

    def images(self, domain: str | int, n: int, seed: int = 0) -> Tensor:
        """``n`` images (n,1,H,W) of one domain, unflipped views in order, for floors and statistics."""
        domain = domain_index(domain)
        views = self.views[domain]
        n = min(n, len(views.poses))
        generator = torch.Generator().manual_seed(seed)
        return acquire(
            views.line_integrals[:n].float(),
            views.open_field[:n],
            views.poses[:n, 5],
            DOMAINS[domain],
            generator=generator,
        )


class EvaluationSet:
    """Views with the truth of every domain: ≥ 8 exposures each, and the image free of noise.

    Args:
        folder: what `render` wrote.
        role: ``validation`` or a tier.
        limit: the first so many views alone; views take turns over heads, so these cover the heads evenly.
    """

    def __init__(self, folder: Path, role: str, *, limit: int | None = None):
        views = pd.read_csv(folder / "views.csv", keep_default_na=False)
        self.table = views[views["role"] == role].reset_index(drop=True).iloc[:limit]
        if self.table.empty:
            raise ParameterError(f"There are no views of {role!r} in {folder}; its roles are {set(views['role'])}.")
        self.role, n = role, len(self.table)
        self._lines, opened = {}, None
        for kind in ("real", "simulated"):
            projection = load_projections(folder / f"{_file(role)}.{kind}.safetensors")
            self._lines[kind], opened = projection.line_integrals[:n].float(), projection.open_field[:n]
            self.landmarks = projection.landmarks[:n]
        assert opened is not None
        self.open_field: Tensor = opened

    def __len__(self) -> int:
        return len(self.table)

    def _image(self, domain: str | int, seeds: list[int] | None) -> Tensor:
        number = domain_index(domain)
        lines = self._lines["simulated" if is_synthetic(number) else "real"]
        fov = torch.tensor(self.table["fov"].to_numpy(), dtype=torch.float32)
        if seeds is None:
            return acquire(lines, self.open_field, fov, DOMAINS[number], generator=None, clean=True)
        # One seed per image: a view's exposure does not depend on the views beside it.
        return torch.cat(
            [
                acquire(
                    lines[i : i + 1],
                    self.open_field[i : i + 1],
                    fov[i : i + 1],
                    DOMAINS[number],
                    generator=torch.Generator().manual_seed(seed),
                )
                for i, seed in enumerate(seeds)
            ]
        )

    def clean(self, domain: str | int) -> Tensor:
        """The images (N,1,H,W) of one domain free of noise."""
        return self._image(domain, None)

    def exposure(self, domain: str | int, number: int) -> Tensor:
        """Exposure ``number`` (0 to 7) of every view in one domain (N,1,H,W)."""
        if not 0 <= number < EXPOSURES:
            raise ParameterError(f"Exposure {number} does not exist; every view has exposures 0 to {EXPOSURES - 1}.")
        label = domain_index(domain)
        return self._image(domain, [(int(s) * 64 + label) * 64 + number for s in self.table["seed"]])
