"""How large the benches of the peers are: FULL for a report, QUICK to see that they run; and their training cases."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from measuring import CPU, QUICK
from peers.roster import NAMES
from trainings import Trainings, autoencoder, rendered

from medshift.codec import PatchCodec
from medshift.flow_training import load_flow

WEIGHTS = Path(__file__).parents[2] / "medshift/weights/cpu/medshift"


@dataclass(frozen=True)
class Sizes:
    """Of the benches of the peers.

    Args:
        sides: of the latents.
        batches: images at once.
        large: side of the latents of single steps and of the whole translation.
        steps: Euler steps on the whole of [0, 1].
        swept: values of tau of the sweep, and its targets.
        turns: measured, of what is quick; what is slow has three.
        training: side of the images and batch, of both codecs.
        spacing: of the procedural heads [mm].
        first: peers whose first image is timed, each in a process; None for all.
        memory: whether each training is done in a process of its own as well, for its peak.
    """

    sides: tuple[int, ...] = (32, 64, 96)
    batches: tuple[int, ...] = (1, 8, 32)
    large: int = 96
    steps: int = 50
    swept: tuple[tuple[float, ...], tuple[int, ...]] = ((0.02, 0.05, 0.1, 0.2, 0.3, 0.45, 0.6), (0, 1, 2, 3, 4))
    turns: int = 7
    training: tuple[tuple[str, int, int], ...] = (("patch", 64, 32), ("kl", 128, 32))
    spacing: float = 2.0
    first: tuple[str, ...] | None = None
    memory: bool = True


TINY = Sizes(
    sides=(16,),
    batches=(1, 2),
    large=16,
    steps=4,
    swept=((0.3, 0.6), (0, 1)),
    turns=1,
    training=(("patch", 32, 2), ("kl", 32, 2)),
    spacing=4.0,
    first=("fast",),
    memory=False,
)
SIZES = TINY if QUICK else Sizes()
SLOW = 1 if QUICK else 3  # turns of what is slow


def training_case(kind: str, place: Path, sizes: Sizes = SIZES) -> Trainings:
    """The shipped network on latents of 4 channels: patches of two, or a KL autoencoder of stride 4, untrained."""
    side, batch = next((side, batch) for name, side, batch in sizes.training if name == kind)
    codec = PatchCodec(2) if kind == "patch" else autoencoder((32, 64, 64), 4, torch.device(CPU))
    views = rendered(place / f"views-{side}", side, spacing=sizes.spacing)
    return Trainings(load_flow(WEIGHTS).network, codec, views, batch, NAMES, place / f"run-{kind}")
