"""Run a grid: by processes of this machine, one for each GPU; by Slurm; or as shell lines for anything else.

All of them do the same thing to the same folders: a run that is finished is skipped, one that fails leaves a row with
its error, and whoever finishes a run writes the table anew. So any of them can be killed and any other go on.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from medshift.errors import MedShiftError, ParameterError
from medshift.repro.ahead import stage_item
from medshift.repro.grid import Grid, GridRun, load_grid
from medshift.repro.grid_table import collect, execute, failure_file, finished, keep_failure
from medshift.repro.pool import Item, Pool, cores
from medshift.repro.profiles import load_profile
from medshift.repro.progress import Screen
from medshift.repro.receipts import Task
from medshift.repro.run import pick_device
from medshift.repro.stage import Plan


class GridError(MedShiftError):
    """Some runs of a grid failed; the others are in its table."""

    exit_code = 4


def run_grid(grid: Grid, *, workers: int = 1) -> None:
    """Run what is missing on this machine and write the table.

    What several runs share (data, networks) is built first, each by one worker.

    Args:
        grid: expanded.
        workers: processes; on GPUs one each, in turns.

    Raises:
        ParameterError: fewer than one worker.
        GridError: some runs failed; they are rows of the table.
    """
    if workers < 1:
        raise ParameterError(f"workers is {workers}, expected at least 1.")
    missing = [run for run in grid.runs if not finished(grid, run)]
    done = len(grid.runs) - len(missing)
    print(f"{grid.name}: {len(grid.runs)} runs, {done} finished, {len(missing)} to do", file=sys.stderr, flush=True)
    if missing:
        _work(grid, missing, workers)
    table = collect(grid)
    failed = table[table["state"] == "failed"]
    print(f"Table: {grid.table}", file=sys.stderr)
    if len(failed):
        first = failed.iloc[0]
        raise GridError(f"{len(failed)} of {len(table)} runs failed; run {first['run']}: {first['error']}")


def grid_items(grid: Grid, *, stages_only: bool = False) -> list[Item]:
    """What is missing of a grid as things to do: what several runs share, each once, and the runs.

    Args:
        grid: expanded.
        stages_only: leave out runs that are notebooks.
    """
    missing = [run for run in grid.runs if not finished(grid, run) and not (stages_only and isinstance(run.work, Task))]
    wanted = {plan.folder_name for run in missing for plan in _shared(run)}
    items = [
        stage_item(plan, grid.root)
        for plan in grid.prerequisites()
        if plan.folder_name in wanted and plan.find(grid.root) is None
    ]
    for run in missing:
        after = frozenset(plan.folder_name for plan in _shared(run))
        items.append(Item(run.name, f"run {run.index}", DoRun(grid, run), after))
    return items


def _work(grid: Grid, missing: Sequence[GridRun], workers: int) -> None:
    items, screen = grid_items(grid), Screen()

    def show() -> None:
        ended = len(pool.done) + len(pool.failures)
        notes = [f"{label} {100 * share:.0f} %" for label, share, _ in pool.at_work.values()]
        screen.show(grid.name, ended / len(items), ", ".join([*notes, f"{len(items) - ended} to go"]))

    pool = Pool(workers, show)
    try:
        pool.work(items)
    finally:
        pool.close()
        screen.close()
    labels = {item.key: item.label for item in items}
    for key, failure in pool.failures.items():
        print(f"      {labels[key]} failed: {failure.message}", file=sys.stderr, flush=True)
    for run in missing:
        if run.name in pool.failures and not failure_file(grid, run).is_file():
            keep_failure(grid, run, pool.failures[run.name].message)


def _shared(run: GridRun) -> list[Plan]:
    return list(run.work.chain())[:-1] if isinstance(run.work, Plan) else list(run.work.plans.values())


@dataclass(frozen=True)
class DoRun:
    """One run of a grid as the work of a process."""

    grid: Grid
    run: GridRun

    def __call__(self, device: str, progress: Callable[[str], Callable[..., None]]) -> None:
        """Do it, or keep its error."""
        execute(self.grid, self.run, device=device)


def run_here(grid: Grid, *, device: str, progress: Callable[[str], Callable[..., None]]) -> Any:
    """Run what is missing in this process, as a notebook does, and return the table; failed runs are rows of it."""
    report = progress(grid.name)
    for number, run in enumerate(grid.runs):
        report(number / len(grid.runs), f"run {number + 1} of {len(grid.runs)}")
        if finished(grid, run):
            continue
        try:
            execute(grid, run, device=device)
        except MedShiftError:
            continue  # kept by `execute`, shown in the table
    report(1.0, "done")
    return collect(grid)


def run_one(grid: Grid, index: int) -> None:
    """Do the run of that number and write the table.

    Raises:
        ParameterError: there is no such run.
    """
    if not 0 <= index < len(grid.runs):
        raise ParameterError(f"There is no run {index}; {grid.name} has runs 0 to {len(grid.runs) - 1}.")
    run = grid.runs[index]
    try:
        if not finished(grid, run):
            execute(grid, run, device=pick_device("auto"))
    except MedShiftError as error:
        raise GridError(f"{grid.name}, run {index}: {error}") from None
    finally:
        collect(grid)


def print_commands(grid: Grid, file: str) -> None:
    """One shell line for each run that is not finished."""
    for run in grid.runs:
        if not finished(grid, run):
            words = ["medshift", "grid", file, "--profile", grid.profile.name, "--out", str(grid.out)]
            print(shlex.join([*words, "--run", str(run.index)]))


class _SubmittedRun:
    """One run as submitit pickles it; requeued by Slurm, it goes on from what it had written."""

    def __init__(self, file: str, profile: str, out: str, index: int):
        self.file, self.profile, self.out, self.index = file, profile, out, index

    def __call__(self) -> int:
        profile = load_profile(self.profile)
        run_one(load_grid(self.file, profile, out_dir=self.out, limit=sys.maxsize), self.index)
        return self.index

    def checkpoint(self) -> Any:
        """What Slurm queues anew after a preemption or a timeout."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def submit(grid: Grid, settings: Sequence[str], *, executor: str = "slurm") -> None:
    """Hand the runs that are not finished to Slurm through submitit, as one array.

    Args:
        grid: expanded.
        settings: ``key=value`` as submitit's `update_parameters` takes them, with ``slurm_`` left out.
        executor: ``slurm``, or ``local`` and ``debug`` to try it without; these wait for the end.

    Raises:
        ParameterError: submitit or Slurm is not there, or it does not know a setting.
    """
    try:
        import submitit
    except ImportError:
        raise ParameterError("submitit is not installed; pip install 'medshift[cluster]'.") from None
    options: dict[str, Any] = {}
    for item in settings:
        key, sign, value = item.partition("=")
        if not sign:
            raise ParameterError(f"{item!r} is no setting; write --slurm partition=gpu time=60.")
        options[f"slurm_{key}"] = int(value) if value.isdigit() else value
    todo = [run for run in grid.runs if not finished(grid, run)]
    folder = grid.table.with_name(f"{grid.name}-jobs")
    try:
        manager = submitit.AutoExecutor(folder=folder, cluster=executor)
        manager.update_parameters(name=f"medshift-{grid.name}", **options)
    except (RuntimeError, NameError, TypeError) as error:
        raise ParameterError(f"submitit cannot use {executor}: {str(error).splitlines()[0]}") from None
    jobs = [
        _SubmittedRun(str(grid.path.resolve()), grid.profile.name, str(grid.out.resolve()), run.index) for run in todo
    ]
    if executor == "slurm":
        with manager.batch():
            submitted = [manager.submit(job) for job in jobs]
        ids = ", ".join(job.job_id for job in submitted[:3])
        print(f"{len(submitted)} runs submitted ({ids} …); logs in {folder}; the table {grid.table} grows with them.")
        return
    for start in range(0, len(jobs), cores()):  # the local executor has no cap of its own
        for job in [manager.submit(one) for one in jobs[start : start + cores()]]:
            job.exception()
    collect(grid)
