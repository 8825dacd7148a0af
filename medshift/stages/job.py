"""What a stage is told besides its arguments; nothing of it may change the result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path


def silent(done: float, note: str = "") -> None:
    """Report no progress."""


@dataclass(frozen=True)
class Job:
    """Where a stage reads and writes, and on what it runs.

    Args:
        folder: to write into; after an interruption the stage finds there what it had written.
        inputs: folders of finished stages by name.
        device: torch's name of it.
        data: folder of the user's own images, or empty.
        progress: told the share done, 0 to 1, and a note.
    """

    folder: Path
    inputs: Mapping[str, Path] = field(default_factory=dict)
    device: str = "cpu"
    data: str = ""
    progress: Callable[..., None] = silent
