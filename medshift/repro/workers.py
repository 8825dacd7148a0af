"""Run a grid: by processes of this machine, one for each GPU; by Slurm; or as shell lines for anything else.

All of them do the same thing to the same folders: a run that is finished is skipped, one that fails leaves a row with
its error, and whoever finishes a run writes the table anew. So any of them can be killed and any other go on.
"""

from __future__ import annotations

import multiprocessing
import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from medshift.errors import MedShiftError, ParameterError
from medshift.repro.grid import Grid, GridRun, load_grid
from medshift.repro.grid_table import collect, execute, finished, keep_failure
from medshift.repro.profiles import load_profile
from medshift.repro.progress import Screen
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
        wanted = {plan.folder_name for run in missing for plan in _shared(run)}
        shared = [p for p in grid.prerequisites() if p.folder_name in wanted and p.find(grid.root) is None]
        pool = _Pool(grid, workers)
        try:
            for level in _levels(shared):  # a level's plans do not read each other
                pool.work([("plan", plan, plan.label or plan.name) for plan in level])
            pool.work([("run", run, f"run {run.index}") for run in missing])
        finally:
            pool.close()
    table = collect(grid)
    failed = table[table["state"] == "failed"]
    print(f"Table: {grid.table}", file=sys.stderr)
    if len(failed):
        first = failed.iloc[0]
        raise GridError(f"{len(failed)} of {len(table)} runs failed; run {first['run']}: {first['error']}")


def _shared(run: GridRun) -> list[Plan]:
    return list(run.work.chain())[:-1] if isinstance(run.work, Plan) else list(run.work.plans.values())


def _levels(plans: Sequence[Plan]) -> list[list[Plan]]:
    """Plans in groups such that each reads only finished ones or those of earlier groups."""
    left, levels, names = list(plans), [], {plan.folder_name for plan in plans}
    while left:
        level = [p for p in left if not names & {i.folder_name for i in p.chain() if i is not p} - {p.folder_name}]
        levels.append(level)
        names -= {plan.folder_name for plan in level}
        left = [plan for plan in left if plan not in level]
    return levels


class _Pool:
    """Processes that do one thing at a time; one that dies is a failure of what it had, and is replaced."""

    def __init__(self, grid: Grid, workers: int):
        self.grid, self.screen, self.free = grid, Screen(), list(range(workers))
        self.context = multiprocessing.get_context("spawn")
        self.threads = max(1, _cores() // workers)
        self.processes: dict[int, tuple[Any, Connection]] = {}

    def work(self, items: Sequence[tuple[str, Any, str]]) -> None:
        """Do all items; returns when each is done or has failed."""
        waiting, total = list(items), len(items)
        busy: dict[int, tuple[str, Any, str]] = {}
        while waiting or busy:
            while waiting and self.free:
                slot = self.free.pop()
                process, pipe = self.processes.get(slot) or self._start(slot)
                try:
                    pipe.send(waiting[0][:2])
                except (BrokenPipeError, OSError):
                    self._drop(slot)
                    self.free.append(slot)
                    continue
                busy[slot] = waiting.pop(0)
            for ready in wait([self.processes[slot][1] for slot in busy]):
                slot = next(s for s in busy if self.processes[s][1] is ready)
                item = busy.pop(slot)
                self._receive(slot, item)
                self.free.append(slot)
                left = len(waiting) + len(busy)
                self.screen.show(self.grid.name, (total - left) / total, f"{item[2]} done, {left} to go")

    def _receive(self, slot: int, item: tuple[str, Any, str]) -> None:
        process, pipe = self.processes[slot]
        try:
            error = pipe.recv()
        except EOFError:
            process.join()
            code = process.exitcode or 0
            reason = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            error = f"its process died ({reason}), most likely for lack of memory"
            self._drop(slot)
            if item[0] == "run":
                keep_failure(self.grid, item[1], error)
        if error:
            print(f"      {item[2]} failed: {error}", file=sys.stderr, flush=True)

    def _start(self, slot: int) -> tuple[Any, Connection]:
        ours, theirs = self.context.Pipe()
        process = self.context.Process(target=_serve, args=(theirs, self.grid, slot, self.threads), daemon=True)
        process.start()
        theirs.close()
        self.processes[slot] = process, ours
        return self.processes[slot]

    def _drop(self, slot: int) -> None:
        process, pipe = self.processes.pop(slot)
        pipe.close()
        process.join(timeout=5)

    def close(self) -> None:
        """End all processes; a training among them writes its checkpoint first."""
        self.screen.close()
        for process, pipe in self.processes.values():
            pipe.close()
            process.terminate()
        for process, _ in self.processes.values():
            process.join(timeout=30)
            if process.is_alive():
                process.kill()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _serve(pipe: Connection, grid: Grid, slot: int, threads: int) -> None:
    """What a worker does: one thing after the other until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to all; the parent decides
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    torch.set_num_threads(threads)
    device = f"cuda:{slot % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"
    while True:
        try:
            kind, what = pipe.recv()
        except (EOFError, OSError):
            return
        error = ""
        try:
            if kind == "plan":
                what.ensure(grid.root, device=device)
            else:
                execute(grid, what, device=device)
        except Exception as raised:
            error = f"{type(raised).__name__}: {raised}"
        pipe.send(error)


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
    for start in range(0, len(jobs), _cores()):  # the local executor has no cap of its own
        for job in [manager.submit(one) for one in jobs[start : start + _cores()]]:
            job.exception()
    collect(grid)
