"""One run of a grid done, its failure kept, and all runs collected into one table."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medshift.errors import DataError
from medshift.repro.grid import Grid, GridRun
from medshift.repro.receipts import Task
from medshift.repro.runner import run_task
from medshift.repro.stage import Plan, locked, write_json

if TYPE_CHECKING:
    import pandas as pd


def failure_file(grid: Grid, run: GridRun) -> Path:
    """Where the error of a run is kept until it succeeds."""
    return grid.root / f"{run.name}.failed.json"


def execute(grid: Grid, run: GridRun, **how: Any) -> None:
    """Do one run; its error, whatever it is, is kept as the run's and raised.

    Args:
        grid: of the run.
        run: which.
        how: ``device`` and ``progress`` of `Plan.ensure`.
    """
    try:
        if isinstance(run.work, Plan):
            run.work.ensure(grid.root, **how)
        else:
            if run.work.stale():
                run_task(run.work)
    except Exception as error:
        keep_failure(grid, run, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        raise
    failure_file(grid, run).unlink(missing_ok=True)


def keep_failure(grid: Grid, run: GridRun, error: str) -> None:
    """Put down why a run failed."""
    grid.root.mkdir(parents=True, exist_ok=True)
    write_json(failure_file(grid, run), {"error": error})


def finished(grid: Grid, run: GridRun) -> bool:
    """Whether a run has its result."""
    if isinstance(run.work, Plan):
        return run.work.find(grid.root) is not None
    vars(run.work).pop("receipt", None)
    return not run.work.stale()


def collect(grid: Grid) -> pd.DataFrame:
    """The table of a grid, one row a run whether done, failed or missing; also written to ``build/…/grids``."""
    import pandas as pd

    rows = [_row(grid, run) for run in grid.runs]
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = pd.DataFrame(rows, columns=names)
    text = io.StringIO()
    table.to_csv(text, index=False)
    with locked(grid.table.with_suffix(".lock"), grid.table.name):
        temporary = grid.table.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(text.getvalue(), encoding="utf-8")
        os.replace(temporary, grid.table)
    return table


def _row(grid: Grid, run: GridRun) -> dict[str, Any]:
    head: dict[str, Any] = {"run": run.index, "state": "missing", "error": "", "key": run.name, **run.values}
    if finished(grid, run):
        if isinstance(run.work, Task):
            return head | {"state": "done"} | (run.work.receipt or {})["record"]
        folder = grid.root / run.name
        return head | {"state": "done"} | _summary(folder)
    if failure_file(grid, run).is_file():
        return head | {"state": "failed"} | json.loads(failure_file(grid, run).read_text())
    return head


def _summary(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / "summary.json").read_text()))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}/summary.json cannot be read ({error}); delete {folder} and run again.") from None
