"""Call any translator on many images: batch by batch, with the noise it asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from medshift.knobs import draws_of
from medshift.stages.sweep import noise_of
from medshift.translate import Codec, Translator


@torch.no_grad()
def translated(
    translator: Translator,
    codec: Codec,
    images: Tensor,
    source: str,
    target: str,
    knobs: Mapping[str, Any],
    *,
    batch: int,
    device: str = "cpu",
    seed: tuple[int, ...] = (0,),
    done: Callable[[float], None] = lambda share: None,
) -> Tensor:
    """Translations (N,1,H,W), float32, on the CPU.

    Args:
        translator: the method.
        codec: whose latents noise is shaped like.
        images: (N,1,H,W).
        source: domain translated from.
        target: domain translated to.
        knobs: of `translate`.
        batch: images translated at once.
        device: to translate on.
        seed: of the noise, which is drawn for each image by itself, so no batch decides it.
        done: told the share done.
    """
    draws = draws_of(translator, knobs)
    outputs = []
    for start in range(0, len(images), batch):
        part = images[start : start + batch].to(device)
        given = dict(knobs)
        if draws:
            shape = noise_shape(translator, codec, part)
            noise = torch.stack([noise_of((draws, *shape), *seed, start + i) for i in range(len(part))]).to(device)
            given["noise"] = noise if hasattr(translator, "draws") else noise[:, 0]
        outputs.append(translator.translate(part, source, target, **given).float().cpu())
        done((start + len(part)) / len(images))
    return torch.cat(outputs)


def noise_shape(translator: Translator, codec: Codec, images: Tensor) -> tuple[int, ...]:
    """Shape of one noise: that of an image (1,H,W) for methods that work on images, else of its latent (C,h,w)."""
    if getattr(translator, "noise_space", "latent") == "image":
        return tuple(images.shape[1:])
    return tuple(codec.encode(images[:1]).shape[1:])
