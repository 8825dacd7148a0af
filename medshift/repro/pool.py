"""Processes that work off a list of things, each as soon as all that it needs is done.

Every process has its share of the cores and does one thing at a time: on a CPU two of one thread do more than one of
two threads, and what is not parallel at all runs beside the rest. A process that dies is a failure of what it had, and
is replaced. A process ends with its parent, however that ends.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from medshift.errors import MedShiftError
from medshift.repro.progress import Progress

POLL = 0.5  # seconds after which a pool that waits looks whether it is closed
LAST_LINES = 20  # of a traceback that are kept
MOST_WORKERS = 4  # by default: each may hold 1.6 GB


class Work(Protocol):
    """A thing to do; it travels to a process by pickle."""

    def __call__(self, device: str, progress: Callable[[str], Callable[..., None]]) -> None:
        """Do it on a device; ``progress`` gives, for a label, what is told the share done."""


@dataclass(frozen=True)
class Item:
    """A thing to do, with a name of its own and the names of what has to be done before."""

    key: str
    label: str
    work: Work
    after: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Failure:
    """Why a thing could not be done, in one line, with the last lines of the traceback of a mistake of ours."""

    message: str
    exit_code: int
    lines: tuple[str, ...] = ()
    died: bool = False


class Pool:
    """A fixed number of processes.

    Args:
        workers: how many; on GPUs they take turns over them.
        changed: called after each message of a process, from the thread that works.
    """

    def __init__(self, workers: int, changed: Callable[[], None] = lambda: None):
        self.workers, self.changed = workers, changed
        self.threads = max(1, cores() // workers)
        self.done: set[str] = set()
        self.failures: dict[str, Failure] = {}
        self.at_work: dict[int, tuple[str, float, str]] = {}  # slot -> label, share done, note
        self.closed = False
        self._context = multiprocessing.get_context("spawn")
        self._processes: dict[int, tuple[Any, Connection]] = {}

    def work(self, items: Sequence[Item]) -> Mapping[str, Failure]:
        """Do all items, in their order where nothing else decides; returns what failed, by key.

        What needs a failed item fails too, without being tried. Keys in ``after`` that no item has count as done.
        """
        waiting, busy = list(items), dict[int, Item]()
        while (waiting or busy) and not self.closed:
            waiting = self._without_orphans(waiting)
            pending = {item.key for item in (*waiting, *busy.values())}
            for slot in (s for s in range(self.workers) if s not in busy):
                ready = next((item for item in waiting if not item.after & pending), None)
                if ready is None:
                    break
                waiting.remove(ready)
                self._send(slot, ready)
                busy[slot] = ready
            for pipe in wait([self._processes[slot][1] for slot in busy], timeout=POLL):
                slot = next(s for s in busy if self._processes[s][1] is pipe)
                if self._receive(slot, busy[slot]):
                    del busy[slot]
                self.changed()
        return self.failures

    def close(self) -> None:
        """End all processes; a training among them writes its checkpoint first.

        One without work ends by itself, so that it gives back what it holds of the system.
        """
        self.closed = True
        for slot, (process, pipe) in self._processes.items():
            if slot in self.at_work:
                process.terminate()
            pipe.close()
        for process, _ in self._processes.values():
            process.join(timeout=30)
            if process.is_alive():
                process.kill()
        self._processes.clear()

    def _without_orphans(self, waiting: Sequence[Item]) -> list[Item]:
        left = []
        for item in waiting:
            if lost := sorted(item.after & self.failures.keys()):
                self.failures[item.key] = self.failures[lost[0]]
            else:
                left.append(item)
        return left if len(left) == len(waiting) else self._without_orphans(left)

    def _send(self, slot: int, item: Item) -> None:
        self.at_work[slot] = (item.label, 0.0, "")
        try:
            (self._processes.get(slot) or self._start(slot))[1].send(item.work)
        except (BrokenPipeError, OSError):  # it died while it was idle
            self._drop(slot)
            self._start(slot)[1].send(item.work)

    def _receive(self, slot: int, item: Item) -> bool:
        """Take one message; returns whether the item has come to its end."""
        process, pipe = self._processes[slot]
        try:
            kind, said = pipe.recv()
        except (EOFError, OSError):
            process.join()
            code = process.exitcode or 0
            reason = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            said = Failure(f"its process died ({reason}), most likely for lack of memory", 5, died=True)
            kind = "end"
            self._drop(slot)
        if kind == "progress":
            self.at_work[slot] = said
            return False
        del self.at_work[slot]
        if said is None:
            self.done.add(item.key)
        else:
            self.failures[item.key] = said
        return True

    def _start(self, slot: int) -> tuple[Any, Connection]:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs, slot, self.threads), daemon=True)
        process.start()
        theirs.close()
        self._processes[slot] = process, ours
        return self._processes[slot]

    def _drop(self, slot: int) -> None:
        process, pipe = self._processes.pop(slot)
        pipe.close()
        process.join(timeout=5)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def workers_by_default() -> int:
    """One process a core, four at most."""
    return min(MOST_WORKERS, cores())


def _serve(pipe: Connection, slot: int, threads: int) -> None:
    """What a process does: one thing after the other until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to all; the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    torch.set_num_threads(threads)
    device = f"cuda:{slot % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"

    def progress(label: str) -> Progress:
        return Progress(label, lambda *state: pipe.send(("progress", state)))

    while True:
        try:
            work = pipe.recv()
        except (EOFError, OSError):
            return
        failure = None
        try:
            work(device, progress)
        except Exception as error:
            failure = failure_of(error)
        pipe.send(("end", failure))


def _end_with_parent() -> None:
    """Stop as by a signal when the parent is gone: a training then writes its checkpoint."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def failure_of(error: BaseException) -> Failure:
    """What is told of an error: its message, and of a mistake of ours the end of its traceback too."""
    text = (str(error).splitlines() or [""])[0]
    if isinstance(error, MedShiftError):
        return Failure(str(error), error.exit_code)
    lines = "".join(traceback.format_exception(error)).splitlines()[-LAST_LINES:]
    return Failure(f"{type(error).__name__}: {text}", 5 if isinstance(error, MemoryError) else 4, tuple(lines))
