"""The runner: what is fresh is left alone, what is not is run, and the reader is told how long it takes."""

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nbformat
import pytest

from medshift.errors import DataError, ParameterError
from medshift.repro import runner
from medshift.repro.ahead import StageError
from medshift.repro.execution import NotebookError
from medshift.repro.parameters import NOTEBOOKS
from medshift.repro.receipts import Task
from medshift.repro.runner import paper, run_task, run_tasks, select, task

CELL = 'profile: str = "smoke"  # how large\nstrength: float = 1.0  # of it'
DRAW = """import matplotlib.pyplot as plt
from medshift.repro.run import configure

run = configure({path!r}, globals())
figure, axis = plt.subplots()
axis.plot([0, strength])
run.figure(figure, "line", "A line.")
run.record(strength=strength)"""


def write(folder: Path, name: str) -> Path:
    path = folder / f"{name}.ipynb"
    cells = [nbformat.v4.new_code_cell(CELL, metadata={"tags": ["parameters"]})]
    cells += [nbformat.v4.new_code_cell(DRAW.format(path=str(path)))]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


class Kernel:
    """Stands in for `execute`: writes the notebook and a figure, or fails."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Mapping[str, Any], float]] = []
        self.fails = ""

    def __call__(
        self, source: Path, parameters: Mapping[str, Any], target: Path, *, events: Path, limit: float = 0.0
    ) -> None:
        self.calls.append((source.stem, dict(parameters), limit))
        if source.stem == self.fails:
            raise NotebookError(f"{source.stem}: cell [2] failed", 4)
        (target.parent / "figures").mkdir(exist_ok=True)
        (target.parent / "figures" / f"{source.stem}.png").write_text(json.dumps(dict(parameters)))
        event = {"figure": source.stem, "caption": "A line.", "files": [f"{source.stem}.png"]}
        events.write_text(json.dumps(event) + "\n")
        target.write_text("executed")


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel()
    monkeypatch.setattr(runner, "execute", made)
    return made


@pytest.fixture
def look(tmp_path: Path) -> Callable[..., Task]:
    """The task of a notebook of one's own, looked at anew, as a later process would."""
    write(tmp_path, "mine")
    write(tmp_path, "other")
    return lambda name="mine", **values: task(tmp_path / f"{name}.ipynb", values, out_dir=str(tmp_path / "out"))


def test_a_fresh_notebook_is_skipped_and_not_touched(
    look: Callable[..., Task], kernel: Kernel, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_tasks([look()]) == 1
    files = [path for path in look().folder.rglob("*") if path.is_file() and path.suffix != ".lock"]
    before = {path: path.stat().st_mtime_ns for path in files}
    assert {path.name for path in files} == {"mine.ipynb", "mine.receipt.json", "mine.png"}, "no events are left"
    capsys.readouterr()
    assert run_tasks([look()]) == 0 and len(kernel.calls) == 1
    assert {path: path.stat().st_mtime_ns for path in files} == before
    said = capsys.readouterr().err
    assert "[1/1] mine (smoke): fresh, skipped" in said and str(look().folder / "figures") in said


def test_what_is_stale_or_asked_for_runs_again(look: Callable[..., Task], kernel: Kernel) -> None:
    run_tasks([look()])
    assert run_tasks([look()], force=True) == 1
    figure = look().folder / "figures" / "mine.png"
    figure.unlink()
    assert run_tasks([look()]) == 1 and figure.is_file()
    figure.write_text("altered")
    assert run_tasks([look()]) == 1 and figure.read_text() != "altered"
    assert run_tasks([look()]) == 0
    assert run_tasks([look(strength=2)]) == 1 and run_tasks([look()]) == 0, "other parameters stand beside it"
    assert len(kernel.calls) == 5


def test_an_edit_while_a_notebook_runs_makes_it_stale(
    tmp_path: Path, look: Callable[..., Task], kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def edited(source: Path, *arguments: Any, **named: Any) -> None:
        kernel(source, *arguments, **named)
        notebook = nbformat.read(source, as_version=4)
        notebook.cells[-1].source += "\nrun.record(more=1)"
        nbformat.write(notebook, source)

    monkeypatch.setattr(runner, "execute", edited)
    run_tasks([look()])
    assert "code changed" in look().stale()


def test_the_kernel_gets_what_differs_and_no_absolute_path(
    tmp_path: Path, look: Callable[..., Task], kernel: Kernel
) -> None:
    (tmp_path / "images").mkdir()
    run_tasks([look(strength="2")], limit=60.0)
    ((name, values, limit),) = kernel.calls
    places = {"profile": "smoke", "device": "auto", "out_dir": ".", "data": "", "offline": False}
    assert (name, values, limit) == ("mine", {"strength": 2.0, **places}, 60.0)


def test_a_failure_keeps_what_came_before_and_stops(
    look: Callable[..., Task], kernel: Kernel, capsys: pytest.CaptureFixture[str]
) -> None:
    kernel.fails = "other"
    with pytest.raises(NotebookError):
        run_tasks([look(), look("other"), look(strength=3)])
    assert [name for name, _, _ in kernel.calls] == ["mine", "other"]
    kernel.fails = ""
    assert run_tasks([look(), look("other"), look(strength=3)]) == 2
    assert "[1/3] mine (smoke): fresh" in capsys.readouterr().err


def test_a_failed_run_is_not_fresh_though_the_earlier_notebook_stands(
    look: Callable[..., Task], kernel: Kernel
) -> None:
    run_tasks([look()])
    kernel.fails = "mine"
    with pytest.raises(NotebookError):
        run_tasks([look()], force=True)
    assert look().target.read_text() == "executed" and look().stale() == "never run"


def test_a_notebook_that_another_process_ran_meanwhile_is_left(look: Callable[..., Task], kernel: Kernel) -> None:
    waiting = look()
    assert waiting.stale() == "never run"
    run_tasks([look()])
    assert run_task(waiting) == 0.0 and len(kernel.calls) == 1


def test_how_long_is_left_is_learnt_from_receipts_and_from_this_run(
    look: Callable[..., Task], kernel: Kernel, capsys: pytest.CaptureFixture[str]
) -> None:
    run_tasks([look(), look("other")])
    assert "no estimate of the time left" in capsys.readouterr().err
    for name, minutes in (("mine", 10), ("other", 5)):
        path = look(name).receipt_file
        path.write_text(json.dumps(json.loads(path.read_text()) | {"seconds": 60 * minutes}))
    run_tasks([look(), look("other")], force=True)
    said = re.findall(r"about (\d+) min left|(less than a minute) left", capsys.readouterr().err)
    assert said[0] == ("15", "") and said[1][0] in ("2", "3"), "this machine is far faster than the receipt says"


def test_the_clock_of_the_companion_counts_what_is_not_fresh(tmp_path: Path) -> None:
    tasks = [task(runner.find_notebook(name), {"profile": "cpu", "overrides": "source=phantom"}, out_dir=str(tmp_path))
             for name in ("01", "03")]  # fmt: skip
    clock = runner._Clock(tasks)
    assert clock.estimate(0) == "about 21 min left in all" and clock.estimate(1) == "about 18 min left in all"
    clock.skip(tasks[0])
    assert clock.estimate(1) == "about 18 min left in all"
    clock = runner._Clock(tasks)
    clock.done(tasks[0], 60 * 6.0)  # half as fast as foreseen
    assert clock.estimate(1) == "about 36 min left in all"


def test_an_output_folder_that_cannot_be_written_is_a_data_error(
    tmp_path: Path, kernel: Kernel, look: Callable[..., Task]
) -> None:
    (tmp_path / "file").write_text("")
    for place in ("file", "file/below"):
        with pytest.raises(DataError, match="cannot be written .*--out"):
            run_tasks([task(tmp_path / "mine.ipynb", {}, out_dir=str(tmp_path / place))])
    assert kernel.calls == []


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_read_only_output_folder_is_a_data_error(tmp_path: Path, kernel: Kernel, look: Callable[..., Task]) -> None:
    (tmp_path / "closed").mkdir(mode=0o555)
    with pytest.raises(DataError, match="cannot be written"):
        run_tasks([task(tmp_path / "mine.ipynb", {}, out_dir=str(tmp_path / "closed"))])


def test_a_task_is_refused_before_anything_starts(tmp_path: Path, look: Callable[..., Task]) -> None:
    for values, message in (
        ({"strenght": 1}, "did you mean 'strength'"),
        ({"data": str(tmp_path / "nowhere")}, "is not a folder"),
        ({"profile": "smok"}, "No profile"),
        ({"profile": "paper"}, "trains on your own images"),
        ({"overrides": "seize=1"}, "no setting"),
        ({"out_dir": "x"}, "by out_dir and by --out"),
    ):
        with pytest.raises(ParameterError, match=message):
            look(**values)
    assert not (tmp_path / "out").exists()
    assert task(tmp_path / "mine.ipynb", {"out_dir": "x"}).out == Path("x"), "a parameter like any other"
    assert task(tmp_path / "mine.ipynb", {}).out == Path(".")


def test_notebooks_are_selected_by_number_or_name_in_order() -> None:
    assert select([]) == list(NOTEBOOKS)
    assert select(["04", "01_data"]) == ["01_data", "04_tau_tradeoff"]
    with pytest.raises(ParameterError, match="No notebook is called '44'"):
        select(["01", "44"])
    with pytest.raises(ParameterError, match="did you mean '03_train'"):
        select(["03_trian"])


def test_paper_runs_the_companions_notebooks(tmp_path: Path, kernel: Kernel) -> None:
    tasks = paper("smoke", only=["03", "01"], out_dir=str(tmp_path))
    assert [name for name, _, _ in kernel.calls] == ["01_data", "03_train"]
    assert [one.target for one in tasks] == [
        tmp_path / "build" / "smoke" / f"{n}.ipynb" for n in ("01_data", "03_train")
    ]


@pytest.mark.slow
def test_a_notebook_of_ones_own_runs_draws_and_is_fresh(look: Callable[..., Task], tmp_path: Path) -> None:
    assert run_tasks([look(strength=2)]) == 1
    made = look(strength=2)
    assert made.stale() == "" and made.receipt["record"] == {"strength": 2.0}
    assert set(made.receipt["files"]) == {f"mi_line{suffix}" for suffix in (".png", ".pdf", ".svg", ".json")}
    assert str(tmp_path) not in made.receipt_file.read_text()
    before = made.target.stat().st_mtime_ns
    assert run_tasks([look(strength=2)]) == 0 and made.target.stat().st_mtime_ns == before
    figure = made.folder / "figures" / "mi_line.pdf"
    drawn = figure.read_bytes()
    figure.unlink()
    assert run_tasks([look(strength=2)]) == 1 and figure.read_bytes() == drawn


def test_a_number_of_workers_that_is_none_is_refused(look: Callable[..., Task], kernel: Kernel) -> None:
    with pytest.raises(ParameterError, match="workers is -1"):
        run_tasks([look()], workers=-1)
    assert not kernel.calls


def test_a_notebook_is_not_begun_when_a_stage_it_reads_cannot_be_built(
    look: Callable[..., Task], kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wait(self: Any, task: Task) -> None:
        if task.notebook.stem == "other":
            raise StageError("training the network: its process died (SIGKILL)", 5)

    monkeypatch.setattr(runner.Ahead, "wait", wait)
    with pytest.raises(StageError, match="process died"):
        run_tasks([look(), look("other")])
    assert [name for name, _, _ in kernel.calls] == ["mine"], "what came before is kept"
