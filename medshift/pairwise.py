"""What methods have in common that are trained for one pair of domains, from one of them to the other.

A `PairMethod` is a `medshift.train.Trainable`, so `medshift.train.train` drives it, and gives the `Translator` that
its modules make. All of them work on the codec's standardised latents, so that they differ by their method and not by
the space they see. A batch holds as many images of the source as of the target, in this order; unless a method says
that it needs pairs, no two of them show the same view.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from medshift.errors import ParameterError
from medshift.train import Trainable
from medshift.translate import Codec, Domain, Translator

__all__ = ["OneStep", "Pair", "PairMethod", "Recipe", "encoded_halves", "method_state", "through_codec"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a method is trained, beside its losses; see `medshift.schedules.TrainConfig`.

    Args:
        batch: images of an optimiser step, half of them of each domain.
        schedule: of the learning rate.
        warmup: share of the steps in which the learning rate rises.
        clip_norm: largest norm of an optimiser's gradient.
        ema_decay: limit of the decay of the moving average.
    """

    batch: int
    schedule: Literal["one-cycle", "cosine", "constant"] = "one-cycle"
    warmup: float = 0.1
    clip_norm: float = 1.0
    ema_decay: float = 0.999


@dataclass(frozen=True)
class Pair:
    """The two domains that a method was trained for.

    Args:
        source: name of the domain translated from.
        target: name of the domain translated to.
        domains: all names in label order.
    """

    source: str
    target: str
    domains: tuple[str, ...]

    def __post_init__(self) -> None:
        for name in (self.source, self.target):
            if name not in self.domains:
                raise ParameterError(f"Unknown domain {name!r}: expected one of {', '.join(self.domains)}.")
        if self.source == self.target:
            raise ParameterError(f"Source and target are both {self.source!r}; expected two domains.")

    def check(self, source: Domain, target: Domain) -> None:
        """Refuse a translation that the method was not trained for.

        Raises:
            ParameterError: `source` or `target` is another domain than in training, or none at all.
        """
        asked = tuple(self._names(domain) for domain in (source, target))
        if asked != (self.source, self.target):
            raise ParameterError(
                f"This method was trained from {self.source} to {self.target} and knows nothing else, but was asked "
                f"to go from {asked[0]} to {asked[1]}. Train it for that pair, or take MedShift, which serves all."
            )

    def _names(self, domain: Domain) -> str:
        labels = domain.unique().tolist() if isinstance(domain, Tensor) else [domain]
        known = [self.domains[k] if isinstance(k, int) and 0 <= k < len(self.domains) else str(k) for k in labels]
        return " and ".join(known)


class PairMethod(Trainable, Protocol):
    """A method trained for one pair.

    Attributes:
        kind: by which a checkpoint names it.
        name: as it stands in tables and figures.
        deviation: in one sentence, what differs from the method as published.
        needs_pairs: whether a batch holds the same views in both domains.
        recipe: how it is trained.
        kept: names of the modules that translation needs; of those in `averaged`, their moving averages.
        pair: what it is trained for.
    """

    kind: str
    name: str
    deviation: str
    needs_pairs: bool
    recipe: Recipe
    kept: tuple[str, ...]
    pair: Pair

    def modules(self) -> Mapping[str, nn.Module]:
        """All modules by name, the frozen codec among them as ``codec``."""

    def translator(self) -> Translator:
        """The translator that the modules, as they are now, make."""


class OneStep:
    """Translation by one evaluation of a generator, from one domain to one other.

    Args:
        generator: latents of the source to latents of the target, of the same shape.
        codec: images to latents and back.
        pair: what the generator was trained for.
    """

    name = "one step"
    needs_pairs = False

    def __init__(self, generator: nn.Module, codec: Codec, pair: Pair) -> None:
        self.generator, self.codec, self.pair = generator, codec, pair

    def nfe(self) -> int:
        """Network evaluations per image: 1."""
        return 1

    def translate(self, images: Tensor, source: Domain, target: Domain) -> Tensor:
        """Images (B,1,H,W) of `source` as `target` would show them, same shape, not clamped.

        Raises:
            ParameterError: another pair than it was trained for.
        """
        self.pair.check(source, target)
        return through_codec(self.codec, images, self.generator)


def encoded_halves(codec: Codec, batch: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Latents (B,C,h,w), float32, of the source's and of the target's half of a batch of images (2B,1,H,W).

    They are made in the precision of the training, as those of MedShift are: see `medshift.flow_training.FlowMatching`.
    """
    images = batch[0]
    if len(images) % 2:
        raise ParameterError(f"A batch of {len(images)} images has no two halves; expected an even number.")
    with torch.no_grad():
        latents = codec.encode(images.float())
    source, target = latents.chunk(2)
    return source, target


@torch.no_grad()
def through_codec(codec: Codec, images: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """decode(change(encode(images))), images (B,1,H,W), cropped to their size and not clamped."""
    size = (images.shape[-2], images.shape[-1])
    return codec.decode(change(codec.encode(images)).float(), size=size)


def method_state(method: PairMethod, codec: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON values of a method's checkpoint: kind, pair, codec and hyper-parameters."""
    return {
        "kind": method.kind,
        "pair": [method.pair.source, method.pair.target],
        "domains": list(method.pair.domains),
        "codec": {**codec.describe(), "fingerprint": codec.fingerprint()},
        "config": dict(config),
    }
