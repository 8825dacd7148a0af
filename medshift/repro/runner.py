"""Run notebooks whose receipts are stale, one after the other, and say what is happening and how long it takes."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from medshift.errors import DataError, ParameterError
from medshift.repro.ahead import Ahead
from medshift.repro.cells import find_notebook, model_of
from medshift.repro.comparison import ALL
from medshift.repro.execution import execute, read_events
from medshift.repro.parameters import NOTEBOOKS, Parameters, check, suggestion
from medshift.repro.pool import workers_by_default
from medshift.repro.progress import Watcher
from medshift.repro.receipts import Task
from medshift.repro.run import PLACES, pick_device, profile_of
from medshift.repro.stage import locked


def say(text: str) -> None:
    """One line on standard error."""
    print(text, file=sys.stderr, flush=True)


def task(notebook: Path, values: Mapping[str, Any], *, out_dir: str = ".") -> Task:
    """A notebook with its parameters, checked before anything starts.

    Raises:
        ParameterError: a parameter or a setting of the profile is wrong, or the profile needs a folder of images.
        DataError: a folder that is named is not there.
    """
    if "out_dir" in values and out_dir != ".":
        raise ParameterError("The output folder is given by out_dir and by --out; give it once.")
    parameters = check(model_of(notebook), {"out_dir": out_dir, **values}, notebook.stem)
    if parameters.data and not Path(parameters.data).is_dir():
        raise ParameterError(
            f"{parameters.data} is not a folder; give the folder that holds one folder of images per domain."
        )
    made = Task(notebook, parameters, profile_of(parameters))
    if parameters.offline:
        os.environ["MEDSHIFT_OFFLINE"] = "1"
    _ = made.plans  # fetches the CT, and refuses a profile without its data
    return made


def select(only: Sequence[str]) -> list[str]:
    """The notebooks to run, in order; ``only`` holds numbers (``04``) or names."""
    unknown = [name for name in only if not any(name in (n, n[:2]) for n in NOTEBOOKS)]
    if unknown:
        raise ParameterError(f"No notebook is called {unknown[0]!r}{suggestion(unknown[0], NOTEBOOKS)}")
    return [n for n in NOTEBOOKS if not only or n in only or n[:2] in only]


def paper_tasks(profile: str = "auto", *, only: Sequence[str] = (), out_dir: str = ".", **values: Any) -> list[Task]:
    """The companion's notebooks under one profile, in order; on a user's images those that need no truth.

    Args:
        profile: its name, or ``auto``.
        only: numbers or names of the notebooks wanted; all where empty.
        out_dir: holds runs/ and build/.
        values: parameters that every notebook has; ``retrain``, names of trainings of any of them; and ``pretrained``,
            which goes to those that use the network.

    Raises:
        ParameterError: see `task`; or a notebook is asked for that needs the truth of rendered views.
    """
    values["profile"] = profile
    retrain, names = list(values.pop("retrain", [])), select(only)
    given = {"pretrained": True} if values.pop("pretrained", False) else {}
    made = profile_of(check(Parameters, {"out_dir": out_dir, **values}, "paper"))
    if made.source == "folders":
        blind = [name for name in names if NOTEBOOKS[name].needs_truth]
        if blind and only:
            raise ParameterError(f"{blind[0]} needs the truth of rendered views, which your own images do not have.")
        names = [name for name in names if name not in blind]
    made_of = {
        name: values | _retrained(name, retrain) | {k: v for k, v in given.items() if k in NOTEBOOKS[name].model_fields}
        for name in names
    }
    return [task(find_notebook(name), own, out_dir=out_dir) for name, own in made_of.items()]


def _retrained(notebook: str, names: Sequence[str]) -> dict[str, list[str]]:
    """Those of the trainings to do that are this notebook's, as its parameter.

    Raises:
        ParameterError: no notebook has a training of that name.
    """
    known = {name for model in NOTEBOOKS.values() for name in model.trainings}
    for name in names:
        if name not in {ALL, *known}:
            raise ParameterError(f"No training is called {name!r}{suggestion(name, [ALL, *sorted(known)])}")
    own = [name for name in names if name in {ALL, *NOTEBOOKS[notebook].trainings}]
    return {"retrain": own} if own and NOTEBOOKS[notebook].trainings else {}


def paper(
    profile: str = "auto",
    *,
    only: Sequence[str] = (),
    out_dir: str = ".",
    force: bool = False,
    limit: float = 0.0,
    workers: int = 0,
    **values: Any,
) -> list[Task]:
    """Run the companion's notebooks under one profile, those that are fresh left as they are; see `run_tasks`."""
    tasks = paper_tasks(profile, only=only, out_dir=out_dir, **values)
    run_tasks(tasks, force=force, limit=limit, workers=workers)
    return tasks


def run_tasks(tasks: Sequence[Task], *, force: bool = False, limit: float = 0.0, workers: int = 0) -> int:
    """Run what is stale; returns how many ran.

    Args:
        tasks: in order.
        force: run fresh ones too.
        limit: seconds for each; 0 for none.
        workers: processes that build stages ahead of the notebooks that read them; 1 to have notebooks build all
            they read, one stage after the other; 0 for one a core, up to four, or on GPUs one a GPU.

    Raises:
        ParameterError: fewer than no workers.
        StageError: a stage could not be built; what is finished is kept.
        NotebookError: a notebook did not run to its end; those before it are kept.
        DataError: the output folder cannot be written.
    """
    if workers < 0:
        raise ParameterError(f"workers is {workers}, expected 1 or more, or 0 to choose.")
    clock = _Clock(tasks)
    ran = 0
    with Ahead(tasks, workers or _workers(tasks)) as ahead:
        for i, one in enumerate(tasks, start=1):
            head = f"[{i}/{len(tasks)}] {one.notebook.stem} ({one.folder.name})"
            reason = "asked for" if force else one.stale()
            if not reason:
                clock.skip(one)
                say(f"{head}: fresh, skipped")
                continue
            say(f"{head}: {reason}; {clock.estimate(i - 1)}")
            start = time.monotonic()
            ahead.wait(one)
            ran += run_task(one, limit=limit, force=force) > 0
            seconds = time.monotonic() - start
            clock.done(one, seconds)
            say(f"      done in {seconds / 60:.1f} min: {one.target}")
    for folder in dict.fromkeys(one.folder / "figures" for one in tasks):
        say(f"Figures and tables: {folder}")
    return ran


def _workers(tasks: Sequence[Task]) -> int:
    """How many processes suit this machine; no question is asked of torch where nothing has to be built."""
    missing = [one for one in tasks if any(plan.find(one.runs) is None for plan in one.plans.values())]
    if not missing or pick_device(missing[0].parameters.device) == "cpu":
        return workers_by_default()
    import torch

    return torch.cuda.device_count()


def run_task(one: Task, *, limit: float = 0.0, force: bool = False) -> float:
    """Run a notebook and write its receipt; returns the seconds it took, 0 where another process did it meanwhile."""
    _writable(one.folder)
    events = one.folder / f".{one.notebook.stem}.events"
    with locked(one.folder / f".{one.notebook.stem}.lock", one.target.name):
        vars(one).pop("receipt", None)
        if not force and not one.stale():
            return 0.0
        one.receipt_file.unlink(missing_ok=True)
        events.unlink(missing_ok=True)
        vars(one).pop("parts", None)
        _ = one.parts  # as they are now: an edit while the notebook runs makes it stale, not fresh
        start = time.monotonic()
        with Watcher(events):
            execute(one.notebook, _injected(one), one.target, events=events, limit=limit)
        seconds = time.monotonic() - start
        one.write_receipt(read_events(events), seconds)
        events.unlink(missing_ok=True)
    return seconds


def _injected(one: Task) -> dict[str, Any]:
    """The parameters as the notebook gets them: its kernel works in the output folder, so no path is absolute."""
    values = one.parameters.model_dump() | {"profile": one.profile.name, "out_dir": "."}
    if one.parameters.data:
        values["data"] = os.path.relpath(Path(one.parameters.data).resolve(), one.out.resolve())
    fields = type(one.parameters).model_fields
    return {n: v for n, v in values.items() if n in ("profile", *PLACES) or v != fields[n].default}


def _writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise DataError(
            f"{folder} cannot be written ({error.strerror}); make it writable or choose another folder with --out."
        ) from None


class _Clock:
    """Says how long is left: from the receipt of the last time, else from what the notebook usually takes."""

    def __init__(self, tasks: Iterable[Task]):
        self.expected = [self._of(one) for one in tasks]
        self.planned, self.taken, self.left = 0.0, 0.0, dict(enumerate(self.expected))

    @staticmethod
    def _of(one: Task) -> float:
        """Minutes."""
        if one.receipt and any(plan.find(one.runs) is None for plan in one.plans.values()):
            return type(one.parameters).minutes.get(one.profile.name, 0.0)  # stages have to be built again
        if one.receipt:
            return float(one.receipt["seconds"]) / 60
        return type(one.parameters).minutes.get(one.profile.name, 0.0)

    def skip(self, one: Task) -> None:
        """A fresh notebook takes no time."""
        self.left = {i: minutes for i, minutes in self.left.items() if i != min(self.left)}

    def done(self, one: Task, seconds: float) -> None:
        """Learn from a finished one how fast this machine is."""
        first = min(self.left)
        self.planned += self.left.pop(first)
        self.taken += seconds / 60

    def estimate(self, number: int) -> str:
        """In words, for the notebooks from ``number`` on."""
        minutes = sum(value for i, value in self.left.items() if i >= number)
        if self.planned:
            minutes *= max(0.5, min(3.0, self.taken / self.planned))
        return (
            f"about {minutes:.0f} min left in all"
            if minutes >= 0.5
            else ("less than a minute left in all" if minutes else "no estimate of the time left")
        )
