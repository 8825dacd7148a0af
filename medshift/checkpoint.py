"""Checkpoints: folders of safetensors and JSON that are either whole or not there.

A run's folder holds its last checkpoints, one folder each::

    step-00001200/
        state.json              what rebuilds the model, what the run was, counters, SHA-256 of each file below
        network.safetensors     weights
        network-ema.safetensors their moving average
        optimizer.safetensors   moments of the optimiser
        codec.safetensors       statistics and weights of the codec

A checkpoint is written under a temporary name, flushed to the disk and then renamed; the older ones are removed
only after that. So whatever stops the program, even inside a write, the newest folder of that name is complete,
and which one is newest is read off the names. Nothing is ever pickled or unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from medshift.errors import CheckpointError, ParameterError

__all__ = ["Checkpoint", "latest", "load", "pack", "save", "unpack", "weights_sha256"]

FORMAT = 1
STATE = "state.json"
TEMPORARY = ".partial"
_NAME = re.compile(r"step-(\d{8,})")
_REFERENCE, _PAIRS, _TUPLE = "__tensor__", "__pairs__", "__tuple__"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory.

    Args:
        path: its folder.
        step: optimiser steps done.
        state: what `save` was given as state.
        tensors: file stem -> name -> tensor, on the CPU.
    """

    path: Path
    step: int
    state: dict[str, Any]
    tensors: dict[str, dict[str, Tensor]]


def save(
    folder: Path | str,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    *,
    keep: int = 2,
) -> Path:
    """Write the checkpoint of a step and remove all but the newest `keep`.

    Args:
        folder: of the run; made if it is not there.
        step: optimiser steps done.
        tensors: one safetensors file per entry.
        state: JSON values.
        keep: how many checkpoints stay.

    Returns:
        The checkpoint's folder.

    Raises:
        CheckpointError: the disk is full or refuses the write (what was there before stays as it was), or another
            checkpoint of that step is there.
        ParameterError: `keep` below 1.
    """
    if keep < 1:
        raise ParameterError(f"keep is {keep}; at least one checkpoint has to stay.")
    folder = Path(folder)
    target = folder / f"step-{step:08d}"
    partial = target.with_name(target.name + TEMPORARY)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_partial(folder)
        partial.mkdir()
        hashes = {}
        for stem, named in tensors.items():
            hashes[f"{stem}.safetensors"] = _write_tensors(partial / f"{stem}.safetensors", named)
        document = {"format": FORMAT, "step": step, "sha256": hashes, "state": dict(state)}
        _write_text(partial / STATE, json.dumps(document, indent=1))
        if target.exists():
            shutil.rmtree(partial)
            _check_same(target, hashes)
        else:
            _flush(partial)
            os.rename(partial, target)
            _flush(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        held = latest(folder)
        raise CheckpointError(
            f"The checkpoint {target} could not be written: {error}. Free some disk space or choose another folder, "
            f"and run again; {f'{held} is intact' if held else 'there was none before it'}."
        ) from error
    for old in _complete(folder)[:-keep]:
        # Renamed first, so that one removed by half does not pass for a checkpoint.
        shutil.rmtree(old.rename(old.with_name(old.name + TEMPORARY)), ignore_errors=True)
    return target


def latest(folder: Path | str) -> Path | None:
    """The newest complete checkpoint of a run, or None where there is none."""
    complete = _complete(Path(folder))
    return complete[-1] if complete else None


def load(path: Path | str, *, only: tuple[str, ...] | None = None) -> Checkpoint:
    """Read a checkpoint, or the newest of a run's folder, and check each file against its hash.

    Args:
        path: ``step-…`` or the folder that holds such.
        only: stems of the files to read; all of them by default.

    Raises:
        CheckpointError: there is none, it is of another format, or a file is missing, cut short or changed.
    """
    path = Path(path)
    if path.is_file():
        raise CheckpointError(
            f"{path} is a file; a checkpoint is a folder of safetensors and {STATE}. Other formats, above all pickles "
            "(.pt, .pth, .ckpt), are never read."
        )
    if not (path / STATE).exists() and not _NAME.fullmatch(path.name):
        newest = latest(path)
        if newest is None:
            raise CheckpointError(f"There is no checkpoint in {path}: it has no folder step-… . Train first.")
        path = newest
    document = _read_state(path)
    stems = [Path(name).stem for name in document["sha256"]]
    for stem in only or ():
        if stem not in stems:
            raise CheckpointError(f"The checkpoint {path} has no {stem}.safetensors; it holds {', '.join(stems)}.")
    tensors = {
        Path(name).stem: _read_tensors(path / name, digest)
        for name, digest in document["sha256"].items()
        if only is None or Path(name).stem in only
    }
    return Checkpoint(path, document["step"], document["state"], tensors)


def weights_sha256(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of tensors; equal for bit-equal weights alone."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        value = value.detach().cpu().contiguous()
        digest.update(f"{name}:{value.dtype}:{tuple(value.shape)}:".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def pack(value: Any, tensors: dict[str, Tensor], path: str = "") -> Any:
    """JSON for nested dicts, lists and tuples, such as an optimiser's state; tensors move to `tensors` by path."""
    if isinstance(value, Tensor):
        tensors[path] = value
        return {_REFERENCE: path}
    if isinstance(value, Mapping):
        return {_PAIRS: [[key, pack(item, tensors, f"{path}/{key}")] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        items = [pack(item, tensors, f"{path}/{index}") for index, item in enumerate(value)]
        return {_TUPLE: items} if isinstance(value, tuple) else items
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise CheckpointError(f"{path} is a {type(value).__name__}; a checkpoint holds tensors and JSON values only.")


def unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of `pack`."""
    if isinstance(value, list):
        return [unpack(item, tensors) for item in value]
    if isinstance(value, dict):
        if _REFERENCE in value:
            return tensors[value[_REFERENCE]]
        if _TUPLE in value:
            return tuple(unpack(item, tensors) for item in value[_TUPLE])
        return {key: unpack(item, tensors) for key, item in value[_PAIRS]}
    return value


def _complete(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def _remove_partial(folder: Path) -> None:
    for path in folder.glob(f"step-*{TEMPORARY}"):
        shutil.rmtree(path)


def _check_same(target: Path, hashes: dict[str, str]) -> None:
    if _read_state(target)["sha256"] != hashes:
        raise CheckpointError(f"{target} is there already and holds other weights; choose another folder.")


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    _flush(path)


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    # A copy of its own for each: safetensors refuses tensors that share memory.
    owned = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    save_file(owned, path)
    _flush(path)
    return _file_sha256(path)


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remedy(path: Path) -> str:
    older = [other for other in _complete(path.parent) if other != path]
    then = f"training then goes on from {older[-1].name}" if older else "there is no older one, so train again"
    return f"Delete the folder {path}; {then}."


def _read_state(path: Path) -> dict[str, Any]:
    try:
        document = json.loads((path / STATE).read_text(encoding="utf-8"))
        version = document["format"]
        complete = {"step", "sha256", "state"} <= set(document)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path / STATE} is missing. {_remedy(path)}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path / STATE} is damaged or cut short. {_remedy(path)}") from error
    if version != FORMAT:
        raise CheckpointError(
            f"{path} has format {version}, and this version reads format {FORMAT}; use the version that wrote it."
        )
    if not complete:
        raise CheckpointError(f"{path / STATE} is incomplete. {_remedy(path)}")
    return document


def _read_tensors(path: Path, digest: str) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing. {_remedy(path.parent)}")
    if _file_sha256(path) != digest:
        raise CheckpointError(f"{path} is cut short or was changed: its SHA-256 is wrong. {_remedy(path.parent)}")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is no safetensors file ({error}). {_remedy(path.parent)}") from error
