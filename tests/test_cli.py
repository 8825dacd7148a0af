"""The command line: quick to answer, and a user's mistake is one line and an exit code."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest

from medshift import __version__, cli
from medshift.cli import COMMANDS, main, parser
from medshift.errors import CheckpointError, DataError, MedShiftError, ParameterError, TrainingError
from medshift.repro import runner
from medshift.repro.execution import NotebookError
from medshift.repro.stage import Stage

CELL = 'profile: str = "smoke"  # how large\nstrength: float = 1.0  # of it'


@pytest.fixture
def tasks(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[Any], dict[str, Any]]]:
    """What would have been run."""
    asked: list[tuple[list[Any], dict[str, Any]]] = []
    monkeypatch.setattr(runner, "run_tasks", lambda tasks, **options: asked.append((tasks, options)))
    return asked


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    cell = nbformat.v4.new_code_cell(CELL, metadata={"tags": ["parameters"]})
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "mine.ipynb")
    return tmp_path / "mine.ipynb"


def test_every_command_has_help_and_needs_no_torch() -> None:
    code = """
import contextlib, io, sys
from medshift.cli import COMMANDS, main
for words in ([], *([name] for name in COMMANDS)):
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main([*words, "--help"])
    assert "usage: medshift" in out.getvalue() and "exit codes" in out.getvalue(), words
    assert not words or len(out.getvalue().split("\\n\\n")) > 3, words
heavy = {"torch", "matplotlib", "pandas", "numpy", "papermill"} & set(sys.modules)
sys.exit(str(heavy) if heavy else 0)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr


def test_the_help_names_every_command_and_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    text = parser().format_help()
    assert all(f"\n    {name} " in text for name in COMMANDS)
    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert left.value.code == 0 and capsys.readouterr().out == f"medshift {__version__}\n"


def test_the_command_line_starts_without_torch() -> None:
    code = "import sys, medshift.cli, medshift.repro.runner, medshift.repro.pipeline; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("words", [[], ["no-such"], ["run"], ["run", "01", "-p", "tau"], ["paper", "--seed", "x"]])
def test_words_that_are_no_command_leave_with_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 2 and "usage: medshift" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["paper", "--profile", "tiny"], "No profile is called 'tiny'"),
        (["paper", "--profile", "smoke", "--only", "77"], "No notebook is called '77'"),
        (["paper", "--profile", "smoke", "--data", "nowhere"], "nowhere is not a folder"),
        (["paper", "--profile", "smoke", "--set", "seize=3"], "no setting 'seize'"),
        (["paper", "--profile", "smoke", "--set", "size"], "section.key=value"),
        (["paper", "--profile", "smoke", "--set", "size=[1"], "no value"),
        (["paper", "--profile", "smoke", "--seed", "-1"], "parameter seed"),
        (["paper", "--profile", "paper"], "trains on your own images"),
        (["run", "44"], "No notebook is called '44'"),
        (["run", "03", "-p", "tua", "1"], "did you mean 'tau'"),
        (["run", "03", "-p", "tau", "1", "-p", "tau", "2"], "'tau' is given twice"),
        (["run", "03", "-p", "tau", "3"], "parameter tau"),
        (["run", "03", "-p", "out_dir", "x", "--out", "y"], "by out_dir and by --out"),
        (["params", "44"], "No notebook is called '44'"),
        (["data", "--profile", "tiny"], "No profile is called 'tiny'"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("medshift: ") and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == [], "nothing was begun"


def test_files_that_cannot_be_used(tmp_path: Path, mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = tmp_path / "values.yaml"
    values.write_bytes(b"\xff\xfe")
    wrong = tmp_path / "wrong.ipynb"
    wrong.write_text("{")
    bare = tmp_path / "bare.ipynb"
    nbformat.write(nbformat.v4.new_notebook(), bare)
    for arguments, code in (
        (["run", str(mine), "-f", str(values)], 3),
        (["run", str(mine), "-f", str(tmp_path / "nowhere.yaml")], 3),
        (["run", str(wrong)], 3),
        (["params", str(wrong)], 3),
        (["run", str(bare)], 2),
        (["run", str(mine), "--out", str(values)], 3),
        (["data", "--profile", "smoke", "--out", str(values)], 3),
    ):
        assert main(arguments) == code, arguments
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("medshift: ")]
        assert len(lines) == 1 and str(tmp_path) in lines[0]


def test_run_hands_on_parameters_of_the_command_and_of_a_file(
    tmp_path: Path, mine: Path, tasks: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "values.yaml").write_text("strength: 1e-4\n")
    words = ["run", str(mine), "-p", "seed", "3", "-f", str(tmp_path / "values.yaml"), "--out", str(tmp_path / "o")]
    assert main([*words, "--force", "--limit", "2"]) == 0
    (((one,), options),) = tasks
    assert one.parameters.strength == 1e-4 and one.parameters.seed == 3 and one.out == tmp_path / "o"
    assert options == {"force": True, "limit": 120.0, "workers": 0}
    assert main([*words, "-p", "strength", "2"]) == 2
    assert "'strength' is given by -p and in" in capsys.readouterr().err


def test_paper_hands_on_its_options(tasks: list[Any], tmp_path: Path) -> None:
    words = ["paper", "--profile", "smoke", "--only", "03,01_data", "--seed", "7", "--set", "size=16", "--out", "o"]
    assert main(words) == 0
    ((made, options),) = tasks
    assert [one.notebook.stem for one in made] == ["01_data", "03_train"]
    assert options == {"force": False, "limit": 0.0, "workers": 0}
    assert {(one.parameters.seed, one.profile.size, str(one.out)) for one in made} == {(7, 16, "o")}


def test_params_lists_names_types_defaults_and_help(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["params", str(mine)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "type", "default", "what", "it", "is"]
    assert lines[-1].split() == ["strength", "number", "1.0", "of", "it"]
    assert lines[0].index("default") == lines[-1].index("1.0") and lines[0].index("type") == lines[-1].index("number")
    assert main(["params", "04"]) == 0 and "tau_grid" in capsys.readouterr().out


def test_data_says_what_was_made(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from medshift.repro.stage import Plan

    for built, word in ((True, "Made"), (False, "Already made")):
        stage = Stage("views", tmp_path / "views-1", "1", built, 1.0, {})
        monkeypatch.setattr(Plan, "ensure", lambda plan, root, stage=stage, **options: stage)
        assert main(["data", "--profile", "smoke", "--out", str(tmp_path)]) == 0
        assert capsys.readouterr().out == f"{word}: {tmp_path / 'views-1'}\n"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MedShiftError("m"), 1),
        (ParameterError("m"), 2),
        (DataError("m"), 3),
        (CheckpointError("m"), 3),
        (TrainingError("m"), 4),
        (NotebookError("m", 4), 4),
        (NotebookError("m", 5), 5),
    ],
)
def test_an_errors_exit_code_is_the_commands(
    error: Exception, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(options: Any) -> None:
        raise error

    monkeypatch.setitem(cli.COMMANDS, "params", command)
    assert main(["params", "01"]) == code and capsys.readouterr().err == "medshift: m\n"
    assert str(code) in cli.EXIT_CODES or code == 1


def test_our_own_mistakes_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setitem(cli.COMMANDS, "params", lambda options: json.loads("{"))
    with pytest.raises(ValueError):
        main(["params", "01"])
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interruption_is_130_and_says_how_to_go_on(number: signal.Signals) -> None:
    code = """
import signal, sys, time
from medshift import cli
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests themselves run in the background
cli.COMMANDS["params"] = lambda options: (print("working", flush=True), time.sleep(60))
sys.exit(cli.main(["params", "01"]))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0
    )
    assert process.stdout.readline() == "working\n"
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and said == "medshift: interrupted; the same command goes on from here.\n"
