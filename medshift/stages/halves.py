"""Batches for methods of one pair: as many images of the source as of the target, in this order.

Unpaired, the two halves show different views, and no view is in both training sets. Paired, each view is there in both
domains, which takes projections of both volumes of a head (stage `paired_views`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from medshift.data.acquisition import acquire
from medshift.data.batches import host_generator, sent
from medshift.data.domains import domain_index, is_synthetic
from medshift.data.projection import Projection, load_projections
from medshift.errors import ParameterError
from medshift.stages.images import FolderImages, open_images

PAIRED = "paired"  # the role of views that both domains show

Draw = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]


def halves(views: Path, source: str, target: str, batch: int, *, device: str, data: str = "", paired: str = "") -> Draw:
    """The ``batches`` of a training: images (2B,1,H,W) and labels (2B,), the source's half first.

    Args:
        views: folder of the stage ``views`` or ``folders``.
        source: domain of the first half.
        target: domain of the second half.
        batch: 2B.
        device: to put them on.
        data: the user's own folder, or empty.
        paired: folder of a stage ``paired_views``, whose views then are in both halves.

    Raises:
        ParameterError: an odd batch, or pairs asked for of a user's own images.
    """
    if batch % 2 or batch < 2:
        raise ParameterError(f"A batch of {batch} has no two halves; choose an even number.")
    images = open_images(views, data)
    if isinstance(images, FolderImages):
        if paired:
            raise ParameterError("Your own images have no known pairs; a paired method cannot be trained on them.")
        return _of_folders(images, source, target, batch // 2, device)
    labels = torch.tensor([domain_index(source), domain_index(target)]).repeat_interleave(batch // 2).to(device)
    names = [f"{PAIRED}.{_kind(d)}" if paired else f"train-{d}.{_kind(d)}" for d in (source, target)]
    folder = Path(paired) if paired else images.folder
    held = [load_projections(folder / f"{name}.safetensors") for name in names]

    def draw(step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        own = own_generator(generator)
        noise = own if generator.device.type == "cpu" else generator
        first = _choice(held[0], batch // 2, own)
        second = first if paired else _choice(held[1], batch // 2, own)
        parts = [_images(held[0], *first, source, noise), _images(held[1], *second, target, noise)]
        return torch.cat(parts).to(device), labels

    return draw


def own_generator(generator: torch.Generator) -> torch.Generator:
    """A generator on the host, seeded from a step's, which may be a GPU's; nothing waits for that."""
    host = host_generator(generator)
    return torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=host, device=host.device)))


def _kind(domain: str) -> str:
    return "simulated" if is_synthetic(domain) else "real"


def _choice(views: Projection, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Which views, and which of them are mirrored: a mirrored head is a head."""
    index = torch.randint(len(views.poses), (n,), generator=generator, device=generator.device)
    return index, torch.rand(n, generator=generator, device=generator.device) < 0.5


def _images(views: Projection, index: Tensor, flip: Tensor, domain: str, generator: torch.Generator) -> Tensor:
    """Made on the generator's device; which views, and which of them are mirrored, is known to the host."""
    place = generator.device
    lines, field = sent(views.line_integrals[index], place).float(), sent(views.open_field[index], place)
    image = acquire(lines, field, sent(views.poses[index, 5], place), domain, generator=generator)
    return torch.where(sent(flip, place)[:, None, None, None], image.flip(-1), image)


def _of_folders(images: FolderImages, source: str, target: str, n: int, device: str) -> Draw:
    numbers = [images.domains.index(name) for name in (source, target)]
    labels = torch.tensor(numbers).repeat_interleave(n).to(device)
    counts = [images.found.counts()[name]["train"] for name in (source, target)]

    def draw(step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        host = host_generator(generator)
        drawn = torch.rand(2, n, generator=host, device=host.device).tolist()
        chosen = [
            images.found.image(number, "train", int(u * count))
            for number, count, row in zip(numbers, counts, drawn, strict=True)
            for u in row
        ]
        return sent(torch.stack(chosen), device), labels

    return draw
