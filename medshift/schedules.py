"""What a training run is told: its length, schedule, precision and seeds.

Learning rate, decay of the moving average and seeds are functions of the step, so a resumed run has nothing to
restore for them.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import numpy as np
import torch

from medshift.errors import ParameterError

__all__ = ["TrainConfig", "autocast_dtype", "average_decay", "schedule", "step_seed", "training_dtype"]

DRAWS = 1  # stream of random numbers of draws that serve several steps; 0 is that of steps
START_FACTOR = 1e-3  # the one-cycle schedule starts and ends at this share of the peak


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long and how to train.

    Args:
        steps: optimiser steps in all.
        seed: of every random number of the run.
        schedule: "one-cycle", "cosine" or "constant", see `schedule`.
        warmup: share of the steps in which the learning rate rises, in [0, 1).
        clip_norm: largest norm of an optimiser's gradient; inf for none.
        accumulation: micro-batches per step and process.
        echo: steps that an example serves, each time with other noise, see `medshift.train`.
        ema_decay: limit of the moving average's decay, see `average_decay`.
        precision: "auto" for bfloat16 autocast where the hardware has it; "bf16" for it or an error; "fp32".
        checkpoint_every: steps between checkpoints; the last step has one anyway.
        keep: how many checkpoints stay.
        check_every: steps between checks that losses are finite; each is a wait for the device.
    """

    steps: int
    seed: int = 0
    schedule: Literal["one-cycle", "cosine", "constant"] = "one-cycle"
    warmup: float = 0.1
    clip_norm: float = 1.0
    accumulation: int = 1
    echo: int = 1
    ema_decay: float = 0.999
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    checkpoint_every: int = 500
    keep: int = 2
    check_every: int = 10

    def __post_init__(self) -> None:
        for name in ("steps", "accumulation", "echo", "checkpoint_every", "keep", "check_every"):
            if getattr(self, name) < 1:
                raise ParameterError(f"{name} is {getattr(self, name)}, expected at least 1.")
        if self.schedule not in ("one-cycle", "cosine", "constant") or self.precision not in ("auto", "bf16", "fp32"):
            raise ParameterError(f"Unknown schedule {self.schedule!r} or precision {self.precision!r}.")
        if not (0 <= self.warmup < 1 and 0 <= self.ema_decay < 1 and self.clip_norm > 0 and self.seed >= 0):
            raise ParameterError(
                "warmup and ema_decay must lie in [0, 1), clip_norm above 0 and seed at or above 0; got "
                f"{self.warmup}, {self.ema_decay}, {self.clip_norm}, {self.seed}."
            )


def autocast_dtype(device: torch.device | str) -> torch.dtype | None:
    """bfloat16 where the device multiplies it in hardware, else None, meaning float32."""
    kind = torch.device(device).type
    if kind == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    elif kind == "cpu":
        abilities = torch.cpu.get_capabilities()
        fast = any(abilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    else:
        fast = False
    return torch.bfloat16 if fast else None


def training_dtype(precision: str, device: torch.device | str) -> torch.dtype | None:
    """What a training of this precision is autocast to; None for float32.

    Raises:
        ParameterError: "bf16" on a device that would only emulate it, many times slower than float32.
    """
    able = autocast_dtype(device)
    if precision == "bf16" and able is None:
        raise ParameterError(
            f'precision is "bf16", but {device} has no bfloat16 in hardware; choose "auto", there float32, or "fp32".'
        )
    return None if precision == "fp32" else able


def step_seed(seed: int, step: int, index: int, stream: int = 0) -> int:
    """A seed of 63 bits for micro-batch `index`, counted over all ranks, of a step; unrelated between neighbours."""
    entropy = (seed, step, index, stream) if stream else (seed, step, index)
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1)


def schedule(step: int, config: TrainConfig) -> float:
    """Factor of the peak learning rate for the step that follows `step` finished ones.

    "one-cycle" rises and falls along a half cosine each, from a thousandth of the peak and back to it; "cosine"
    rises in a straight line and falls to 0 along a half cosine; "constant" stays where its rise has ended.
    """
    rise = round(config.warmup * config.steps)
    up = min((step + 1) / (rise + 1), 1.0)
    down = max(step - rise, 0) / max(config.steps - 1 - rise, 1)
    if config.schedule == "constant":
        return up
    if config.schedule == "cosine":
        return up * (1 + math.cos(math.pi * down)) / 2
    phase = math.pi * (1 - step / rise) if step < rise else math.pi * down
    return START_FACTOR + (1 - START_FACTOR) * (1 + math.cos(phase)) / 2


def average_decay(step: int, limit: float) -> float:
    """Decay of the moving average in step 1, 2, …: rises as (1 + step) / (10 + step) up to `limit`.

    The average starts as a copy of the weights after step 1, so it is at no time drawn towards zero or towards
    the random initial weights.
    """
    return min(limit, (1 + step) / (10 + step))
