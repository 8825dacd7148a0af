"""Execution: what a notebook leaves behind is a result, or it is called failed."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest

from medshift.errors import MedShiftError
from medshift.repro.execution import NotebookError, execute, read_events
from medshift.repro.keys import PACKAGE

EARLIER = '{"an earlier": "good one"}'


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Path]:
    """Executes a notebook of these cells where an earlier one had been executed; gives the finished one's path."""
    target = tmp_path / "out" / "build" / "smoke" / "mine.ipynb"
    target.parent.mkdir(parents=True)
    target.write_text(EARLIER)

    def call(*cells: str, limit: float = 0.0, **parameters: Any) -> Path:
        tagged = nbformat.v4.new_code_cell("value: int = 1", metadata={"tags": ["parameters"]})
        code = [nbformat.v4.new_code_cell(cell) for cell in cells]
        nbformat.write(nbformat.v4.new_notebook(cells=[tagged, *code]), tmp_path / "mine.ipynb")
        execute(tmp_path / "mine.ipynb", parameters, target, events=target.parent / ".events", limit=limit)
        return target

    return call


def refused(run: Callable[..., Path], tmp_path: Path, *cells: str, **options: Any) -> NotebookError:
    """The error of a notebook that did not end well; the earlier one is still there, whole."""
    with pytest.raises(NotebookError) as caught:
        run(*cells, **options)
    folder = tmp_path / "out" / "build" / "smoke"
    assert (folder / "mine.ipynb").read_text() == EARLIER
    assert sorted(path.name for path in folder.glob("*.ipynb")) == ["mine.failed.ipynb", "mine.ipynb"]
    assert nbformat.read(folder / "mine.failed.ipynb", as_version=4).cells
    assert str(folder / "mine.failed.ipynb") in str(caught.value) and isinstance(caught.value, MedShiftError)
    return caught.value


def outputs(path: Path) -> str:
    return json.dumps([cell.get("outputs", []) for cell in nbformat.read(path, as_version=4).cells])


def test_a_notebook_that_runs_to_its_end_is_a_result(tmp_path: Path, run: Callable[..., Path]) -> None:
    failed = tmp_path / "out" / "build" / "smoke" / "mine.failed.ipynb"
    failed.write_text("of an earlier try")
    path = run(
        "import os, sys\nfrom pathlib import Path\nprint('value', value, os.environ['MEDSHIFT_STATIC'])",
        "Path(os.environ['MEDSHIFT_EVENTS']).write_text('told'); Path('here').write_text('')",
        "os.write(1, b'\\xff\\xfe\\x00 bytes\\n')\nos.write(2, b'\\xff\\x00')",
        "getattr(sys.stdout, 'buffer', None) and sys.stdout.buffer.write(b'\\xff')\nprint('\\x00 é', flush=True)",
        "import medshift.errors\nprint(medshift.errors.__file__, sys.prefix + '/lib', Path.home() / 'x')",
        "Path(sys.prefix)",
        "# only a comment",
        "",
        value=3,
    )
    assert "value 3 1" in outputs(path) and not failed.exists()
    assert (path.parent / ".events").read_text() == "told", "the runner's file is named by a path that holds anywhere"
    assert (tmp_path / "out" / "here").is_file(), "the kernel works in the output folder"
    text = path.read_text(encoding="utf-8")
    places = {str(place) for place in (tmp_path, PACKAGE.parent, Path.home(), Path(sys.prefix))} - {"/"}
    assert [place for place in places if place in text] == []
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert [path.name for path in path.parent.glob("*.ipynb")] == ["mine.ipynb"]
    assert notebook.metadata.papermill.parameters == {"value": 3} and not notebook.metadata.papermill.exception


def test_a_failing_cell_shows_itself_and_its_last_lines(tmp_path: Path, run: Callable[..., Path]) -> None:
    error = refused(run, tmp_path, "one = 1", "print('before')\nvalues = [one / 0]  # here", "never = 1")
    assert error.exit_code == 4 and "cell [3] failed with ZeroDivisionError" in str(error)
    assert "    values = [one / 0]  # here" in str(error) and "division by zero" in str(error)
    assert "\x1b" not in str(error) and len(str(error).splitlines()) < 30


def test_a_killed_kernel_is_no_result(tmp_path: Path, run: Callable[..., Path]) -> None:
    error = refused(run, tmp_path, "import os, signal", "os.kill(os.getpid(), signal.SIGKILL)")
    assert error.exit_code == 5 and "kernel died" in str(error)


def test_a_kernel_killed_before_its_first_cell_is_told_as_such(
    tmp_path: Path, run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tmp_path / "jupyter" / "kernels" / "python3" / "kernel.json"
    spec.parent.mkdir(parents=True)
    dying = [sys.executable, "-c", "import os, time; time.sleep(0.5); os.kill(os.getpid(), 9)", "{connection_file}"]
    spec.write_text(json.dumps({"argv": dying, "display_name": "dying", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    with pytest.raises(NotebookError, match="kernel died") as error:
        run("1 + 1")
    assert error.value.exit_code == 5


def test_a_cell_that_leaves_is_no_success(tmp_path: Path, run: Callable[..., Path]) -> None:
    error = refused(run, tmp_path, "import sys; sys.exit()", "left_out = 1")
    assert error.exit_code == 4 and "did not run to its end" in str(error)


@pytest.mark.slow
@pytest.mark.parametrize("cell", ["import os; os._exit(0)", "raise SystemExit('why')", "raise KeyboardInterrupt"])
def test_other_ways_to_leave_are_no_success_either(tmp_path: Path, run: Callable[..., Path], cell: str) -> None:
    assert refused(run, tmp_path, cell, "left_out = 1").exit_code in (4, 5)


def test_a_refused_input_is_the_message_alone(tmp_path: Path, run: Callable[..., Path]) -> None:
    cell = "from medshift.errors import DataError\nraise DataError('x.png is damaged; delete it.')"
    error = refused(run, tmp_path, cell)
    assert error.exit_code == 3 and str(error).startswith("mine: x.png is damaged; delete it.\n")
    assert "Traceback" not in str(error) and "raise" not in str(error)


@pytest.mark.parametrize(
    ("ename", "evalue", "code"),
    [
        ("MemoryError", "", 5),
        ("_ArrayMemoryError", "Unable to allocate 1 PiB", 5),
        ("OutOfMemoryError", "CUDA out of memory.", 5),
        ("RuntimeError", "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried", 5),
        ("RuntimeError", "shapes differ", 4),
        ("ParameterError", "tau", 2),
        ("CheckpointError", "x", 3),
        ("TrainingError", "the loss is not finite", 4),
    ],
)
def test_an_errors_name_decides_the_exit_code(ename: str, evalue: str, code: int) -> None:
    from papermill.exceptions import PapermillExecutionError

    from medshift.repro.execution import _cell_error

    raised = PapermillExecutionError(1, 2, "work()", ename, evalue, ["\x1b[31mlast line\x1b[0m"])
    error = _cell_error(raised, "mine")
    assert error.exit_code == code and ("memory ran out" in str(error)) == (code == 5)


@pytest.mark.slow
def test_memory_that_runs_out_is_told_as_such(tmp_path: Path, run: Callable[..., Path]) -> None:
    error = refused(run, tmp_path, "import numpy as np\nnp.empty(10**17)")
    assert error.exit_code == 5 and "memory ran out" in str(error)


@pytest.mark.slow
def test_a_limit_stops_a_cell_and_later_ones(tmp_path: Path, run: Callable[..., Path]) -> None:
    start = time.monotonic()
    error = refused(run, tmp_path, "import time", "time.sleep(1000)", "time.sleep(1000)", limit=3.0)
    assert time.monotonic() - start < 60
    assert error.exit_code == 5 and "longer than its limit of 0.05 minutes" in str(error)


@pytest.mark.slow
def test_a_cell_that_prints_too_much_is_cut(run: Callable[..., Path]) -> None:
    cells = ["for _ in range(1000):\n    print('x' * 100_000)", "print('after')", "print('y' * 3_000_000)"]
    path = run(*cells)
    assert path.stat().st_size < 3_000_000 and "after" in outputs(path)
    assert outputs(path).count("the rest is left out") == 2


def test_half_written_events_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "events"
    assert read_events(path) == []
    path.write_text('{"figure": "é"}\n{"table": "t"}\n{"rec', encoding="utf-8")
    assert read_events(path) == [{"figure": "é"}, {"table": "t"}]
