"""Every method by its name: which are trained for a pair, which come free with a MedShift, which need images alone.

Modules are imported when a method is asked for, so that a change of one baseline is no change of the others.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from medshift import checkpoint
from medshift.codec import from_description
from medshift.errors import CheckpointError, ParameterError
from medshift.methods_index import FLOORS, FREE_MODULES, OTHERS, TRAINED
from medshift.network import VelocityNetwork
from medshift.pairwise import Pair, PairMethod
from medshift.translate import Codec, MedShift, Translator


def itself(model: MedShift) -> MedShift:
    """MedShift as a method on top of itself."""
    return model


def _of(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)


def free(name: str, model: MedShift, **options: Any) -> Translator:
    """A method on top of a trained MedShift.

    Raises:
        ParameterError: no method of `FREE_MODULES` has that name.
    """
    if name not in FREE_MODULES:
        raise ParameterError(f"No method on top of MedShift is called {name!r}; there are {', '.join(FREE_MODULES)}.")
    return _of(*FREE_MODULES[name])(model, **options)


# Each by name, ready to be called with a MedShift.
FREE: Mapping[str, Callable[..., Translator]] = {
    name: lambda model, name=name, **options: free(name, model, **options) for name in FREE_MODULES
}


def floor(name: str, training: Sequence[Tensor], domains: Sequence[str]) -> Translator:
    """A method that is fitted to unpaired training images, one tensor (N,1,H,W) a domain.

    Raises:
        ParameterError: no method of `FLOORS` has that name.
    """
    if name not in FLOORS:
        raise ParameterError(f"No method without a network is called {name!r}; there are {', '.join(FLOORS)}.")
    return _of(*FLOORS[name])(training, domains)


def other(name: str) -> Any:
    """The class of one of `OTHERS`; what it is made of differs."""
    return _of(*OTHERS[name])


def training(kind: str, codec: Codec, pair: Pair, config: Mapping[str, Any], **nets: VelocityNetwork) -> PairMethod:
    """An untrained method; its weights come from torch's global random state.

    Args:
        kind: one of `TRAINED`.
        codec: images to latents and back; its weights are laid out channels last, in which bfloat16 is quick.
        pair: what it is for.
        config: entries of its configuration that differ from the defaults.
        nets: networks it is built on: ``base`` of CycleGAN-Turbo's recipe, ``teacher`` of a reflow.

    Raises:
        ParameterError: no such kind, or an entry that its configuration does not have.
    """
    if kind not in TRAINED:
        raise ParameterError(f"No trained method is called {kind!r}; there are {', '.join(TRAINED)}.")
    module, method, settings = TRAINED[kind]
    try:
        made = _of(module, settings)(**config)
    except TypeError as error:
        raise ParameterError(f"The settings of {kind} are not what it knows: {error}.") from None
    if isinstance(codec, nn.Module):
        codec.to(memory_format=torch.channels_last)
    return _of(module, method)(codec, pair, made, **nets)


def open_training(
    folder: Path, *, device: torch.device | str = "cpu", nets: Mapping[str, VelocityNetwork] = MappingProxyType({})
) -> PairMethod:
    """The method of a checkpoint with the weights that translate: moving averages where it kept them.

    Args:
        folder: of the run or of the checkpoint.
        device: where to put it.
        nets: the network that it is built on, by the keyword of `BUILT_ON`; a reflow translates without its teacher.

    Raises:
        CheckpointError: no or a damaged checkpoint, or one of another kind, or without the base it needs.
    """
    held = checkpoint.load(folder)
    method = held.state.get("method", {})
    if method.get("kind") not in TRAINED:
        raise CheckpointError(
            f"{held.path} is a checkpoint of {method.get('kind', 'an unknown method')!r}; those trained for one pair "
            f"are {', '.join(TRAINED)}."
        )
    description = {key: value for key, value in method["codec"].items() if key != "fingerprint"}
    codec = from_description(description, held.tensors["codec"])
    source, target = method["pair"]
    pair = Pair(source, target, tuple(method["domains"]))
    with torch.random.fork_rng(devices=[]):  # the weights drawn here are thrown away
        made = training(method["kind"], codec, pair, method["config"], **nets)
    modules = made.modules()
    for name in made.kept:
        modules[name].load_state_dict(kept_weights(held, name))
    for module in modules.values():
        module.to(device).requires_grad_(False).eval()
    return made


def kept_weights(held: checkpoint.Checkpoint, name: str) -> dict[str, Tensor]:
    """Tensors of a module of a checkpoint as they translate, in float32: its moving average if there is one."""
    average = held.tensors.get(f"{name}-ema")
    found = held.tensors.get(name) if average is None else average
    if found is None:
        raise CheckpointError(f"{held.path} has no {name}.safetensors; train again.")
    if average is not None:
        found = {key[len("module.") :]: value for key, value in found.items() if key.startswith("module.")}
    return {key: value.float() if value.is_floating_point() else value for key, value in found.items()}


def open_trained(
    folder: Path, *, device: torch.device | str = "cpu", base: VelocityNetwork | None = None
) -> Translator:
    """The translator of a checkpoint; see `open_training`."""
    return open_training(folder, device=device, nets={} if base is None else {"base": base}).translator()
