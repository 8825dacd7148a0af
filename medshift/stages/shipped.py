"""Take weights that the repository ships instead of training them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from medshift import checkpoint
from medshift.errors import CheckpointError
from medshift.stages.job import Job

WEIGHTS = Path(__file__).resolve().parents[1] / "weights"


def build(job: Job, *, profile: str, training: str, sha256: str) -> dict[str, str]:
    """Copy the checkpoint of one training.

    Args:
        job: where to.
        profile: that it was trained under.
        training: its name.
        sha256: of its weights, which its card says too.

    Raises:
        CheckpointError: the weights are not those of the card.
    """
    source = WEIGHTS / profile / training
    held = checkpoint.load(source)
    found = shipped_sha256(held)
    card = json.loads((source / "card.json").read_text(encoding="utf-8"))
    if not found == card["sha256"] == sha256:
        raise CheckpointError(f"The weights in {source} are not those of their card; get the repository's files again.")
    shutil.copytree(source, job.folder, dirs_exist_ok=True)
    return {f"{training}'s weights' SHA-256, shipped": sha256}


def shipped_sha256(held: checkpoint.Checkpoint) -> str:
    """SHA-256 of all weights of a checkpoint, by module and name."""
    named = {f"{stem}.{name}": value for stem, tensors in held.tensors.items() for name, value in tensors.items()}
    return checkpoint.weights_sha256(named)
