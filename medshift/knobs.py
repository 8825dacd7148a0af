"""What a translator can be asked: its knobs, its domains and its noise, told from its signatures before it runs.

Knobs are the named arguments of `translate`, `nfe` and `draws`. A method on top of a `MedShift` that hands on what it
does not name also takes those of `MedShift.translate`.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from inspect import Parameter
from typing import Any

import torch
from torch import Tensor

from medshift.errors import ParameterError
from medshift.translate import MedShift

__all__ = ["FileNoise", "check_domains", "check_knobs", "draws_of", "knobs_of", "parts_of"]

GIVEN = ("images", "source", "target", "noise")
NAMED = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
Shape = tuple[int, ...]


def parts_of(translator: Any) -> list[Any]:
    """The translator, and the `MedShift` that it is made of, if there is one."""
    return [translator, *(part for part in vars(translator).values() if isinstance(part, MedShift))]


def knobs_of(translator: Any) -> tuple[str, ...]:
    """Names of all knobs."""
    methods = [getattr(translator, name, None) for name in ("translate", "nfe", "draws")]
    if any(p.kind == Parameter.VAR_KEYWORD for p in inspect.signature(translator.translate).parameters.values()):
        methods += [part.translate for part in parts_of(translator)[1:]]
    named = [
        name
        for method in methods
        if method is not None
        for name, parameter in inspect.signature(method).parameters.items()
        if parameter.kind in NAMED and name not in GIVEN
    ]
    return tuple(dict.fromkeys(named))


def check_knobs(translator: Any, knobs: Mapping[str, Any]) -> None:
    """Refuse knobs that a translator does not have, and a call without those that it needs.

    Raises:
        ParameterError: an unknown or a missing knob, or one of a type that it cannot take.
    """
    known = knobs_of(translator)
    for name in knobs:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            there = f"its knobs are {', '.join(known)}" if known else "it has none"
            hint = f"; did you mean {near[0]!r}" if near else ""
            raise ParameterError(f"{translator.name} has no knob {name!r}{hint}: {there}.")
    for name, parameter in inspect.signature(translator.translate).parameters.items():
        needed = parameter.kind in NAMED and parameter.default is Parameter.empty and name not in GIVEN
        if needed and name not in knobs:
            raise ParameterError(f"{translator.name} needs {name}; give it, by --{name} or --set {name}=VALUE.")
        if name in knobs and "Tensor" in str(parameter.annotation) and not isinstance(knobs[name], Tensor):
            raise ParameterError(f"{name} of {translator.name} is a tensor, which no word can stand for; leave it out.")
    plain = {name: value for name, value in knobs.items() if not isinstance(value, Tensor)}
    try:
        # A solver that cannot tell its evaluations beforehand is no mistake; `translate` refuses those that are.
        with contextlib.suppress(ParameterError):
            translator.nfe(**plain)
    except TypeError as error:
        given = ", ".join(f"{name}={value!r}" for name, value in plain.items())
        raise ParameterError(f"{translator.name} cannot take {given or 'no knobs'} ({error}).") from error


def check_domains(translator: Any, source: str, target: str) -> None:
    """Refuse domains that a translator does not know, or a pair that it was not trained for.

    Methods that are no pair's and not on top of a `MedShift` say so at their first image.

    Raises:
        ParameterError: as said.
    """
    if (pair := getattr(translator, "pair", None)) is not None:
        pair.check(source, target)
        return
    for part in parts_of(translator):
        if isinstance(part, MedShift):
            for domain in (source, target):
                part.labels(domain, torch.empty(1))


def draws_of(translator: Any, knobs: Mapping[str, Any]) -> int:
    """How many standard normal tensors an image takes: 0 of a deterministic method."""
    if hasattr(translator, "draws"):
        return int(translator.draws(**knobs))
    return int("noise" in inspect.signature(translator.translate).parameters)


@dataclass
class FileNoise:
    """Draws the ``noise`` of a translator, for each file by itself.

    Args:
        translator: the method.
        knobs: of the calls.
        seed: of all noise.
        shape: from images (B,1,H,W) to the shape of one noise; None for what the translator's own codec says.
    """

    translator: Any
    knobs: Mapping[str, Any]
    seed: int
    shape: Callable[[Tensor], Shape] | None
    known: dict[Shape, Shape] = field(default_factory=dict)  # the last size's

    def __call__(self, images: Tensor, names: list[str]) -> dict[str, Tensor]:
        """The argument ``noise`` for images (B,1,H,W) of files with these names; nothing for methods without.

        It is (B,S,C,h,w) for a method that has `draws`, S of them an image, else (B,C,h,w).
        """
        draws = draws_of(self.translator, self.knobs)
        if not draws:
            return {}
        size = tuple(images.shape[-2:])
        if size not in self.known:
            self.known = {size: self._shape_of(images[:1])}
        noise = torch.stack([self._of(name, (draws, *self.known[size])) for name in names]).to(images)
        return {"noise": noise if hasattr(self.translator, "draws") else noise[:, 0]}

    def _of(self, name: str, shape: Shape) -> Tensor:
        digest = hashlib.sha256(f"{self.seed}:{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        return torch.randn(shape, generator=generator)

    def _shape_of(self, image: Tensor) -> Shape:
        if self.shape:
            return tuple(self.shape(image))
        if getattr(self.translator, "noise_space", "latent") == "image":
            return tuple(image.shape[1:])
        codec = next((part.codec for part in parts_of(self.translator) if hasattr(part, "codec")), None)
        if codec is None:
            raise ParameterError(f"{self.translator.name} draws noise, but has no codec; give its latent_shape.")
        return tuple(codec.encode(image).shape[1:])
