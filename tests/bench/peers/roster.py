"""Everyone who takes part, by name; and who cannot, and why."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import torch

from medshift.fast import compiled, fast
from medshift.guidance import in_precision
from medshift.network import VelocityNetwork
from peers.ours import Ours

BASE = "predecessor"
FAST = "fast"
ALL = (FAST, "plain", "autocast", BASE, "torchcfm", "torchcfm-bf16", "diffusers", "diffusers-bf16")
NAMES = tuple(os.environ.get("MEDSHIFT_BENCH_PEERS", ",".join(ALL)).split(","))
COMPILED = ("fast-compiled",)


def absent(names: tuple[str, ...] = NAMES) -> str | None:
    """Why not all of these peers can take part, or None."""
    if unknown := sorted(set(names) - {*ALL, *COMPILED}):
        return f"No peer is called {', '.join(unknown)}; MEDSHIFT_BENCH_PEERS takes names of {', '.join(ALL)}."
    if missing := sorted({FAST, "plain", BASE} - set(names)):
        return f"MEDSHIFT_BENCH_PEERS lacks {', '.join(missing)}, to which the others are compared."
    if any(name.startswith("torchcfm") for name in names) and importlib.util.find_spec("torchcfm") is None:
        return "torchcfm is not installed: `make bench` installs it, or leave it out of MEDSHIFT_BENCH_PEERS."
    return None


def half(name: str) -> bool:
    """Whether a peer takes its products in bfloat16."""
    return name in ("autocast", *COMPILED) or name.endswith("bf16")


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
