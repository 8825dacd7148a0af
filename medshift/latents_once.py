"""Training on latents that were encoded once, in place of encoding every batch again.

A frozen codec gives an image the same latent in every epoch. Where no augmentation changes the images, they can be
encoded before the training::

    latents = codec.encode(images)                                     # once
    method = FlowMatching(network, latents_once(codec), domains)
    train(method, lambda step, generator: draw(latents, labels), ...)  # batches of latents

With a `KLCodec` the encoder costs more than a step of a small network. The weights are bit for bit those of a training
on the images, as long as batches of both kinds are encoded alike (a codec may round differently at another batch
size), and so is the checkpoint: it holds the whole codec.
"""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import Tensor

from medshift.codec import KLCodec, PatchCodec

__all__ = ["latents_once"]

C = TypeVar("C", PatchCodec, KLCodec)


def latents_once(codec: C) -> C:
    """`codec`, sharing its weights, whose `encode` returns latents (B, C, h, w) as they are; it decodes as before.

    Only for a training's batches: everything else that encodes images needs `codec` itself.
    """
    made = copy.copy(codec)
    object.__setattr__(made, "encode", _as_it_is)
    return made


def _as_it_is(latents: Tensor) -> Tensor:
    return latents
