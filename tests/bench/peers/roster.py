"""Everyone who takes part, by name; and who cannot, and why."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch

from medshift.fast import compiled, fast
from medshift.guidance import in_precision
from medshift.network import VelocityNetwork
from peers.ours import Ours

BASE = "predecessor"
FAST = "fast"
NAMES = (FAST, "plain", "autocast", BASE, "torchcfm", "torchcfm-bf16", "diffusers", "diffusers-bf16")
COMPILED = ("fast-compiled",)


def absent(name: str) -> str | None:
    """Why a peer cannot take part, or None."""
    if name.startswith("torchcfm") and importlib.util.find_spec("torchcfm") is None:
        return "not installed: torchcfm (pip install --no-deps torchcfm)"
    return None


def make(name: str, network: VelocityNetwork) -> Any:
    """A peer with the weights of a network."""
    null = network.null_label
    if name == FAST:
        return Ours("fast (ours)", fast(network), null)
    if name == "fast-compiled":
        return Ours("fast (ours), torch.compile", compiled(fast(network)), null)
    if name == "plain":
        return Ours("plain (ours)", network, null)
    if name == "autocast":
        return Ours("plain (ours), bfloat16 autocast", in_precision(network, torch.bfloat16), null)
    dtype = torch.bfloat16 if name.endswith("-bf16") else None
    if name == BASE:
        from peers.predecessor import Predecessor

        return Predecessor(network)
    if name.startswith("torchcfm"):
        from peers.torchcfm_peer import TorchCFM

        return TorchCFM(network, dtype=dtype)
    from peers.diffusers_peer import Diffusers

    return Diffusers(network, dtype=dtype)
