"""Run notebooks one after the other: papermill into a temporary file, renamed on success."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from medshift.errors import MedShiftError, ParameterError
from medshift.repro.profiles import Profile, load_profile, require_data, resolve
from medshift.repro.progress import Watcher
from medshift.repro.run import parse_overrides

# Minutes on two cores, only ever used to say how long is left; corrected by what the run itself takes.
EXPECTED = {
    "smoke": {"01_data": 0.4, "02_codec": 0.3, "03_train": 0.4, "04_tau_tradeoff": 0.4},
    "cpu": {"01_data": 3.0, "02_codec": 4.5, "03_train": 18.0, "04_tau_tradeoff": 14.0},
}
NOTEBOOKS = ("01_data", "02_codec", "03_train", "04_tau_tradeoff")


class NotebookError(MedShiftError):
    """A cell of a notebook failed; the executed notebook up to there is kept."""

    exit_code = 4


def notebook_folder() -> Path:
    """``notebooks`` of this checkout."""
    return Path(__file__).resolve().parents[2] / "notebooks"


def select(only: Sequence[str]) -> list[str]:
    """The notebooks to run, in order; ``only`` holds numbers (``04``) or names."""
    if not only:
        return list(NOTEBOOKS)
    unknown = [name for name in only if not any(n == name or n[:2] == name for n in NOTEBOOKS)]
    if unknown:
        raise ParameterError(f"No notebook is called {unknown[0]!r}; there are {', '.join(NOTEBOOKS)}.")
    return [n for n in NOTEBOOKS if n in only or n[:2] in only]


def execute(name: str, parameters: dict[str, object], target: Path) -> None:
    """Execute one notebook to ``target``; a failed one is kept as ``*.failed.ipynb`` beside it.

    Raises:
        NotebookError: a cell failed or the kernel died.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    target.parent.mkdir(parents=True, exist_ok=True)
    temporary, failed = target.with_suffix(".tmp.ipynb"), target.with_suffix(".failed.ipynb")
    try:
        papermill.execute_notebook(
            str(notebook_folder() / f"{name}.ipynb"),
            str(temporary),
            parameters,
            kernel_name="python3",
            progress_bar=False,
            # A kernel on this machine talks over loopback alone; its warning of that would scare and say nothing.
            extra_arguments=["--IPKernelApp.log_level=40"],
        )
    except PapermillExecutionError as error:
        os.replace(temporary, failed)
        raise NotebookError(f"{name}, cell {error.exec_count}: {error.ename}: {error.evalue}\nSee {failed}.") from None
    except DeadKernelError:
        os.replace(temporary, failed)
        raise NotebookError(f"{name}: its kernel died, most likely for lack of memory. See {failed}.") from None
    failed.unlink(missing_ok=True)
    os.replace(temporary, target)


def paper(
    profile: str = "auto",
    *,
    only: Sequence[str] = (),
    data: str = "",
    seed: int = 0,
    overrides: str = "",
    out_dir: str = ".",
) -> list[Path]:
    """Run the companion's notebooks under one profile and return the executed copies."""
    settings: Profile = load_profile(resolve(profile), parse_overrides(overrides))
    require_data(settings, data)
    if data and not Path(data).is_dir():
        raise ParameterError(f"{data} is not a folder; give the folder that holds one folder of images per domain.")
    names, done = select(only), []
    expected = EXPECTED.get(settings.name, {})
    parameters = {
        "profile": settings.name,
        "seed": seed,
        "out_dir": str(Path(out_dir).resolve()),
        "data": str(Path(data).resolve()) if data else "",
        "overrides": overrides,
    }
    start, planned = time.monotonic(), 0.0
    for i, name in enumerate(names):
        left = sum(expected.get(n, 0.0) for n in names[i:])
        if planned:
            left *= max(0.5, min(3.0, (time.monotonic() - start) / 60.0 / planned))
        estimate = f"about {left:.0f} min left" if left else "no estimate of the time left"
        print(f"[{i + 1}/{len(names)}] {name} ({settings.name}): {estimate}", file=sys.stderr, flush=True)
        target = Path(out_dir) / "build" / settings.name / f"{name}.ipynb"
        begun = time.monotonic()
        with Watcher(target.with_suffix(".progress")):
            execute(name, parameters, target)
        done.append(target)
        planned += expected.get(name, 0.0)
        print(f"      done in {(time.monotonic() - begun) / 60:.1f} min: {target}", file=sys.stderr, flush=True)
    print(f"Figures and tables: {Path(out_dir) / 'build' / settings.name / 'figures'}", file=sys.stderr)
    return done
