"""Stages: library calls whose result is a folder named by a key of all that decides it.

A stage's key hashes its arguments, its inputs' keys and the sources of the modules it names. A finished stage with
that key is used as it is. An unfinished one keeps its work in ``<name>-<key>.partial`` and goes on from there, so a
stage that can resume (training) resumes; the folder gets its final name only when the stage is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Stage:
    """A finished stage: its folder, its key, and whether this call built it."""

    folder: Path
    key: str
    built: bool
    seconds: float


def source_hash(modules: Sequence[str]) -> str:
    """SHA-256 of the sources of ``modules`` (``data`` means every file of that subpackage)."""
    digest = hashlib.sha256()
    for module in sorted(modules):
        path = PACKAGE / module.replace(".", "/")
        files = sorted(path.rglob("*.py")) + sorted(path.rglob("*.csv")) if path.is_dir() else [path.with_suffix(".py")]
        for file in files:
            digest.update(str(file.relative_to(PACKAGE)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def stage_key(arguments: dict[str, object], inputs: Sequence[Stage], modules: Sequence[str]) -> str:
    """Twelve hexadecimal digits that change when anything that decides the stage changes."""
    text = json.dumps([arguments, [stage.key for stage in inputs], source_hash(modules)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def run_stage(
    root: Path,
    name: str,
    build: Callable[[Path], None],
    *,
    arguments: dict[str, object],
    inputs: Sequence[Stage] = (),
    modules: Sequence[str] = (),
) -> Stage:
    """Return the stage's folder, building it first where no finished one has its key.

    Args:
        root: ``runs/<profile>``.
        name: of the stage.
        build: writes the results into the folder it is given; called again on the same folder after an interruption.
        arguments: JSON values that decide the result.
        inputs: stages it reads.
        modules: medshift modules whose source decides the result.
    """
    key = stage_key(arguments, inputs, modules)
    folder = root / f"{name}-{key}"
    if (folder / "config.json").is_file():
        seconds = json.loads((folder / "config.json").read_text())["seconds"]
        return Stage(folder, key, built=False, seconds=seconds)
    partial = folder.with_name(folder.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    build(partial)
    seconds = time.monotonic() - start
    config = {
        "stage": name,
        "key": key,
        "arguments": arguments,
        "inputs": {stage.folder.name: stage.key for stage in inputs},
        "modules": list(modules),
        "seconds": round(seconds, 1),
    }
    (partial / "config.json").write_text(json.dumps(config, indent=1))
    os.replace(partial, folder)
    return Stage(folder, key, built=True, seconds=seconds)
