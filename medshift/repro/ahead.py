"""Build what notebooks read before they need it: several stages at a time, while notebooks that have all theirs run.

Stages are built in the order of the notebooks, each by one process of a `Pool` as soon as its inputs are there. A
stage's result does not depend on who builds it beside it; it may depend, in its last bits, on the number of threads,
which is the same for every stage and every kernel: the cores shared evenly.
"""

from __future__ import annotations

import itertools
import os
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from medshift.errors import MedShiftError
from medshift.repro.pool import Item, Pool
from medshift.repro.progress import EVERY, Screen
from medshift.repro.receipts import Task
from medshift.repro.stage import Plan

THREADS = "OMP_NUM_THREADS"
SHOWN = 2  # stages at work that a line names


class StageError(MedShiftError):
    """A stage could not be built; what was finished before is kept."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class BuildStage:
    """One stage as the work of a process."""

    plan: Plan
    root: Path
    data: str

    def __call__(self, device: str, progress: Callable[[str], Callable[..., None]]) -> None:
        """Build it; its inputs are there."""
        self.plan.ensure(self.root, device=device, data=self.data, progress=progress)


def stage_item(plan: Plan, root: Path, data: str = "") -> Item:
    """A stage as a thing to do, once the stages it reads are done."""
    after = frozenset(one.folder_name for one in plan.inputs.values())
    return Item(plan.folder_name, plan.label or plan.name, BuildStage(plan, root, data), after)


def stages_missing(task: Task) -> list[Item]:
    """The stages that a notebook reads and that are not there yet, inputs first."""
    found: dict[str, Item] = {}
    for plan in itertools.chain.from_iterable(asked.chain() for asked in task.plans.values()):
        if plan.folder_name not in found and plan.find(task.runs) is None:
            found[plan.folder_name] = stage_item(plan, task.runs, task.parameters.data)
    return list(found.values())


def _runs_missing(task: Task) -> list[Item]:
    """Runs of its grids that are not there yet, and what they share; a notebook does those that failed itself."""
    from medshift.repro.workers import grid_items

    return [item for grid in task.grids for item in grid_items(grid, stages_only=True)]


class Ahead:
    """A context in which the stages of notebooks are built, and `wait` returns when those of one are there.

    Args:
        tasks: notebooks in the order in which they will run.
        workers: processes; with one, nothing is built here and notebooks build what they read themselves.
    """

    def __init__(self, tasks: Iterable[Task], workers: int):
        self.stages: dict[Path, frozenset[str]] = {}  # executed notebook -> the stages it cannot do without
        self.needs: dict[Path, frozenset[str]] = {}  # and those with the runs of its grids
        self.items: dict[str, Item] = {}
        for task in tasks if workers > 1 else ():
            stages, runs = stages_missing(task), _runs_missing(task)
            self.stages[task.target] = frozenset(item.key for item in stages)
            self.needs[task.target] = frozenset(item.key for item in (*stages, *runs))
            for item in (*stages, *runs):
                self.items.setdefault(item.key, item)
        self.changed = threading.Condition()
        self.broken: BaseException | None = None
        self.pool = Pool(workers, self._notify)
        self.thread = threading.Thread(target=self._build, daemon=True)
        self.before = os.environ.get(THREADS)

    def __enter__(self) -> Ahead:
        if self.pool.workers > 1 and self.before is None:
            os.environ[THREADS] = str(self.pool.threads)  # of kernels, which run beside the processes
        if self.items:
            self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.pool.closed = True
        if self.thread.ident:
            self.thread.join()
        self.pool.close()
        if self.before is None:
            os.environ.pop(THREADS, None)

    def wait(self, task: Task) -> None:
        """Return when all that a notebook reads is there, showing how far that is.

        Raises:
            StageError: something it reads could not be built.
        """
        needed, vital = (kept.get(task.target, frozenset()) for kept in (self.needs, self.stages))
        screen = Screen()
        try:
            while left := needed - self.pool.done - self.pool.failures.keys():
                self._raise_for(vital)
                with self.changed:
                    self.changed.wait(timeout=EVERY)
                screen.show(f"{task.notebook.stem[:2]}: {len(left)} stages to go", *self._state(needed, left))
        finally:
            screen.close()
        self._raise_for(vital)

    def _raise_for(self, vital: frozenset[str]) -> None:
        if self.broken:
            raise self.broken
        if lost := sorted(vital & self.pool.failures.keys()):
            failure = self.pool.failures[lost[0]]
            for line in failure.lines:
                print(f"    {line}", file=sys.stderr)
            raise StageError(f"{self.items[lost[0]].label}: {failure.message}", failure.exit_code)

    def _state(self, needed: frozenset[str], left: frozenset[str]) -> tuple[float, str]:
        at_work = list(self.pool.at_work.values())
        share = (len(needed - left) + sum(done for _, done, _ in at_work) / 2) / max(1, len(needed))
        notes = [f"{label} {100 * done:.0f} %{f' ({note})' if note else ''}" for label, done, note in at_work[:SHOWN]]
        return min(share, 0.999), "; ".join(notes)

    def _build(self) -> None:
        try:
            self.pool.work(list(self.items.values()))
        except BaseException as error:  # raised again where a notebook waits
            self.broken = error
        self._notify()

    def _notify(self) -> None:
        with self.changed:
            self.changed.notify_all()
