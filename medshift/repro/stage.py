"""Stages as plans: known by key before they exist, built once, reused for as long as nothing they depend on changes.

A stage's key hashes its arguments, its inputs' keys, and the code it reaches (`medshift.repro.keys`). It lies in
``runs/<profile>/<name>-<key>``. An unfinished one is ``<name>-<key>.partial`` and goes on from there, so a training
resumes; the folder gets its final name only when it is complete. A lock per key lets one process build while others
wait for the result.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from medshift.errors import DataError, MedShiftError
from medshift.repro.keys import code_of, differences, digest
from medshift.repro.provenance import hardware, versions


class DeviceMemoryError(MedShiftError):
    """A GPU's memory is too small for a stage as it is planned."""

    exit_code = 5


@dataclass(frozen=True)
class Stage:
    """A finished stage: where it is, whether this call built it, and what it says of itself."""

    name: str
    folder: Path
    key: str
    built: bool
    seconds: float
    facts: Mapping[str, str]


@dataclass(frozen=True)
class Plan:
    """A stage that may or may not have been built.

    Args:
        name: of the stage, the folder's prefix.
        module: full name of the module whose ``build(job, **arguments)`` makes it.
        arguments: JSON values that decide the result.
        inputs: plans of the stages it reads, by the name it knows them under.
        label: what a progress line calls the work.
        also: full names of modules that its arguments choose, which count beside those that ``module`` imports.
        note: what the user is told before it is built.
    """

    name: str
    module: str
    arguments: Mapping[str, Any]
    inputs: Mapping[str, Plan] = field(default_factory=dict)
    label: str = ""
    also: tuple[str, ...] = ()
    note: str = ""

    @cached_property
    def parts(self) -> dict[str, Any]:
        """All that decides the result, by kind: stage, arguments, inputs, modules, packages."""
        code = code_of([self.module, *self.also])
        return {
            "stage": self.name,
            "arguments": json.loads(json.dumps(dict(self.arguments))),
            "inputs": {name: plan.folder_name for name, plan in self.inputs.items()},
            "modules": code.modules,
            "packages": code.packages,
        }

    @cached_property
    def key(self) -> str:
        """Twelve hexadecimal digits."""
        return digest(self.parts)

    @property
    def folder_name(self) -> str:
        """``<name>-<key>``."""
        return f"{self.name}-{self.key}"

    def find(self, root: Path) -> Stage | None:
        """The finished stage under ``root`` (``runs/<profile>``), or None.

        Raises:
            DataError: the folder is there but what it says of itself cannot be read.
        """
        folder = root / self.folder_name
        if not (folder / "config.json").is_file():
            return None
        config = read_config(folder)
        return Stage(self.name, folder, self.key, False, config["seconds"], config["facts"])

    def reason(self, root: Path) -> str:
        """Why there is no finished stage: what changed since the one most like it, else what is missing."""
        if (root / f"{self.folder_name}.partial").is_dir():
            return "begun, will go on from where it stopped"
        olds = [path for path in root.glob(f"{self.name}-*/config.json") if not path.parent.name.endswith(".partial")]
        if not olds:
            return "never built"
        # A grid leaves trainings with other arguments beside the profile's own: compare with the one most like this.
        newest_first = sorted(olds, key=lambda path: path.stat().st_mtime, reverse=True)
        changes = min((differences(read_config(path.parent), self.parts) for path in newest_first), key=len)
        more = f", and {len(changes) - 4} more" if len(changes) > 4 else ""
        return "; ".join(changes[:4]) + more

    def ensure(
        self,
        root: Path,
        *,
        device: str = "cpu",
        data: str = "",
        progress: Callable[[str], Callable[..., None]] | None = None,
    ) -> Stage:
        """The finished stage, built first, with its inputs, where there is none.

        Args:
            root: ``runs/<profile>``.
            device: to build on.
            data: folder of the user's own images, or empty.
            progress: called with a label, gives what is told the share done.

        Raises:
            DataError: ``root`` cannot be written, or a finished folder is damaged.
            DeviceMemoryError: a stage needs more memory than the GPU has.
        """
        if found := self.find(root):
            return found
        inputs = {
            name: plan.ensure(root, device=device, data=data, progress=progress) for name, plan in self.inputs.items()
        }
        with locked(root / f".{self.folder_name}.lock", self.folder_name):
            if found := self.find(root):  # built by another process while this one waited
                return found
            from medshift.stages.job import Job, silent

            self.tell()
            partial = root / f"{self.folder_name}.partial"
            partial.mkdir(exist_ok=True)
            folders = {name: stage.folder for name, stage in inputs.items()}
            report = progress(self.label or self.name) if progress else silent
            return self._build(root, Job(partial, folders, device, data, report))

    def _build(self, root: Path, job: Any) -> Stage:
        clock = job.folder / "seconds"  # of all calls that worked on it
        start = time.monotonic() - _seconds(clock)
        try:
            facts = importlib.import_module(self.module).build(job, **self.arguments) or {}
        except BaseException as error:
            clock.write_text(f"{time.monotonic() - start:.1f}")
            if type(error).__name__ == "OutOfMemoryError":  # torch's; by name, since plans load no torch
                raise DeviceMemoryError(self._too_large(job.device, error)) from error
            raise
        seconds = round(time.monotonic() - start, 1)
        clock.unlink(missing_ok=True)
        made_on = {"packages": versions(self.parts["packages"]), "hardware": hardware(job.device)}
        write_json(job.folder / "env.json", made_on)
        write_json(job.folder / "config.json", self.parts | {"key": self.key, "facts": facts, "seconds": seconds})
        target = root / self.folder_name
        if target.exists():  # without a config.json, else it would have been found: the remains of a deletion
            shutil.rmtree(target)
        os.replace(job.folder, target)
        return Stage(self.name, target, self.key, True, seconds, facts)

    def tell(self) -> None:
        """Tell the user what there is to know before it is built."""
        if self.note:
            print(self.note, file=sys.stderr, flush=True)

    def _too_large(self, device: str, error: BaseException) -> str:
        held = self.arguments.get("accumulation")
        mend = f"--set train.accumulation={2 * held} (it is {held}), or " if held else ""
        why = (str(error).splitlines() or [""])[0]
        return (
            f"{self.label or self.name}: memory ran out on {device} ({why}). Free it of other programs, or make the "
            f"work smaller: {mend}a smaller profile. Nothing that is finished is lost."
        )

    def chain(self) -> Iterator[Plan]:
        """This plan and all it depends on, inputs first, each once."""
        seen: dict[str, Plan] = {}
        for plan in self.inputs.values():
            seen |= {inner.folder_name: inner for inner in plan.chain()}
        yield from (seen | {self.folder_name: self}).values()


def read_config(folder: Path) -> dict[str, Any]:
    """What a finished stage says of itself.

    Raises:
        DataError: config.json is no JSON object.
    """
    try:
        config = {"seconds": 0.0, "facts": {}} | json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return config | {"seconds": float(config["seconds"]), "facts": dict(config["facts"])}
    except (OSError, ValueError, TypeError) as error:
        raise DataError(
            f"{folder / 'config.json'} cannot be read ({error}); delete {folder} and run the same command again to "
            "build it anew."
        ) from None


def write_json(path: Path, value: object) -> None:
    """Write JSON that is either whole or absent."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def _seconds(clock: Path) -> float:
    """What earlier calls took; 0 where that was not written, or not to its end."""
    try:
        return float(clock.read_text())
    except (OSError, ValueError):
        return 0.0


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold a file lock, saying so when another process has it. The system lets go of it when a process dies.

    Raises:
        DataError: the lock's folder cannot be written.
    """
    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"waiting for another process that makes {what}", file=sys.stderr, flush=True)
            lock.acquire()
    except OSError as error:
        raise DataError(
            f"{path.parent} cannot be written ({error.strerror}); make it writable or choose another folder with --out."
        ) from None
    try:
        yield
    finally:
        lock.release()
