"""A lesson's two editions: what students get holds no solution, what is handed out afterwards no marker."""

import ast
from pathlib import Path
from typing import Any

import nbformat
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from medshift.cli import main
from medshift.errors import DataError, ParameterError
from medshift.repro import editions
from medshift.repro.editions import edition, lesson, read_notebook

SHIFT = '''def half_shift(spread):
    """The τ."""
    ### BEGIN SOLUTION
    ### STUB return ...  # a number
    odds = 1 / (math.sqrt(3) * spread)
    return odds / (1 + odds)
    ### END SOLUTION


### BEGIN SOLUTION
### STUB spread = ...  # a letter
### STUB
### STUB other = ...
spread = "a"
other = "b"
### END SOLUTION
print("tried")'''
BEGIN, STUB, END = "### BEGIN SOLUTION", "### STUB a = ...", "### END SOLUTION"
IDENTITY = """### BEGIN SOLUTION
### STUB identity = ...
identity = "ab"
### END SOLUTION"""
STUDENT = '''def half_shift(spread):
    """The τ."""
    return ...  # a number


spread = ...  # a letter

other = ...
print("tried")'''
SOLUTION = '''def half_shift(spread):
    """The τ."""
    odds = 1 / (math.sqrt(3) * spread)
    return odds / (1 + odds)


spread = "a"
other = "b"
print("tried")'''


def code(source: str, name: str, *tags: str) -> Any:
    metadata = {"tags": list(tags), "papermill": {"duration": 1.0}}
    output = new_output("stream", text="old")
    return new_code_cell(source, id=name, metadata=metadata, outputs=[output], execution_count=3)


def made(*cells: Any) -> Any:
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    widgets = {"application/vnd.jupyter.widget-state+json": {"state": {}, "version_major": 2, "version_minor": 0}}
    return new_notebook(cells=list(cells), metadata={"kernelspec": kernel, "widgets": widgets})


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A lesson of two exercises."""
    cells = [
        new_markdown_cell("# A lesson", id="text-00"),
        code('seed: int = 0  # of all\nout_dir: str = ".."  # where build/ goes', "cell-01", "parameters"),
        code("import math\nfrom medshift.worlds import exercises", "cell-02"),
        code(SHIFT, "cell-03", "exercise"),
        code("exercises.check_half_shift(half_shift)", "cell-04", "check"),
        new_markdown_cell("**Why.** The odds.", id="text-05", metadata={"tags": ["solution"]}),
        code(IDENTITY, "cell-06", "exercise"),
        code("exercises.check_identity(identity)", "cell-07", "check"),
        code("after = seed + 1", "cell-08"),
    ]
    nbformat.write(made(*cells), tmp_path / "lesson.ipynb")
    return tmp_path / "lesson.ipynb"


def test_the_two_editions_of_a_lesson(source: Path, tmp_path: Path) -> None:
    paths = lesson(source, out_dir=str(tmp_path))
    assert [p.relative_to(tmp_path).as_posix() for p in paths] == [
        "build/lesson/lesson-student.ipynb",
        "build/lesson/lesson-solution.ipynb",
    ]
    student, solution = (nbformat.read(path, as_version=4) for path in paths)
    ids = [cell.id for cell in nbformat.read(source, as_version=4).cells]
    assert [cell.id for cell in solution.cells] == ids
    assert [cell.id for cell in student.cells] == [name for name in ids if name != "text-05"]
    assert student.cells[3].source == STUDENT and solution.cells[3].source == SOLUTION
    for notebook in (student, solution):
        nbformat.validate(notebook)
        assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
        assert set(notebook.metadata) == {"kernelspec", "language_info"}
        for cell in notebook.cells:
            assert set(cell.metadata) <= {"tags"}
            assert cell.cell_type != "code" or (cell.outputs == [] and cell.execution_count is None)
        assert notebook.cells[1].source == 'seed: int = 0  # of all\nout_dir: str = "../.."  # where build/ goes'
    assert student.cells[4].metadata.tags == ["check", "raises-exception"]
    assert solution.cells[4].metadata.tags == ["check"]


def test_writing_twice_gives_the_same_bytes_and_leaves_the_source(source: Path, tmp_path: Path) -> None:
    before = source.read_bytes()
    first = [path.read_bytes() for path in lesson(source, out_dir=str(tmp_path))]
    paths = lesson(source, out_dir=str(tmp_path))
    assert [path.read_bytes() for path in paths] == first and source.read_bytes() == before
    assert sorted(tmp_path.rglob("*.ipynb*")) == sorted([source, *paths])
    assert sorted((tmp_path / "build" / "lesson").iterdir()) == sorted(paths), "no temporary file stays"


def test_students_fail_at_their_checks_and_nowhere_else_and_solutions_run(source: Path, tmp_path: Path) -> None:
    student, solution = (nbformat.read(path, as_version=4) for path in lesson(source, out_dir=str(tmp_path)))
    client = NotebookClient(student, timeout=120, kernel_name="python3")
    with client.setup_kernel():  # one for both, since torch takes seconds to import
        for client.nb in (student, solution):
            for index, cell in enumerate(client.nb.cells):
                client.execute_cell(cell, index)  # raises unless the cell is tagged raises-exception
    for notebook, expected in ((student, ["cell-04", "cell-07"]), (solution, [])):
        errors = {c.id: o for c in notebook.cells for o in c.get("outputs", []) if o.output_type == "error"}
        assert list(errors) == expected and all(error.ename == "NotYet" for error in errors.values())
        assert all(len(o.traceback) == 1 and "still" in o.traceback[0] for o in errors.values()), "no traceback of ours"
        assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
    assert all("Right: " in solution.cells[index].outputs[0].text for index in (4, 7))


LINE = st.sampled_from(["a = 1", "b = [2]", "# a comment", "", 'c = "### STUBBORN"'])
ANSWER = st.sampled_from(["secret = 1", "secret += 2", "# secret", "if True:\n    secret = 3"])
REGION = st.tuples(st.lists(LINE, max_size=3), st.lists(ANSWER, min_size=1, max_size=4))


@given(st.lists(REGION, min_size=1, max_size=3), st.lists(LINE, max_size=2), st.booleans())
def test_no_solution_reaches_students_and_nothing_else_is_lost(
    regions: list[tuple[list[str], list[str]]], end: list[str], inside: bool
) -> None:
    pad = "    " if inside else ""
    text, outside, answers = ["def f():"] if inside else [], ["def f():"] if inside else [], []
    for i, (lines, answer) in enumerate(regions):
        here = [pad + line for line in lines]
        code_lines = [pad + line for block in answer for line in block.splitlines()]
        stub = f"{pad}answer_{i} = ...  # yours"
        begin = [f"{pad}{BEGIN}", f"{pad}### STUB {stub.strip()}"]
        text += [*here, *begin, *code_lines, f"{pad}{END}"]
        outside += [*here, stub]
        answers += [*here, *code_lines]
    text, outside = text + [pad + line for line in end], outside + [pad + line for line in end]
    answers = (["def f():"] if inside else []) + answers + [pad + line for line in end]
    source = made(code("\n".join(text), "one", "exercise"))
    try:
        ast.parse("\n".join(answers))
    except SyntaxError:  # a comment alone is no body
        with pytest.raises(ParameterError, match="no Python in the solution edition"):
            edition(source, "solution", "it")
    else:
        assert edition(source, "solution", "it").cells[0].source.rstrip() == "\n".join(answers).rstrip()
    student = edition(source, "student", "it").cells[0].source
    assert student.rstrip() == "\n".join(outside).rstrip() and "secret" not in student
    assert source.cells[0].source == "\n".join(text), "the source is left as it is"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([BEGIN, STUB, "a = 1"], "never ended"),
        (["a = 1", END], "ends no region"),
        ([BEGIN, STUB, BEGIN, STUB, "a = 1", END, END], "nested"),
        ([BEGIN, "a = 1", END], "without a stub"),
        ([STUB, BEGIN, STUB, "a = 1", END], "outside of a region"),
        (["## BEGIN SOLUTION", STUB, "a = 1", END], "is not '### BEGIN SOLUTION'"),
        ([BEGIN, STUB, "a = 1", "### end solution"], "is not '### BEGIN SOLUTION'"),
        ([BEGIN, STUB, "a = 1", "### END SOLUTION of 1"], "is not '### BEGIN SOLUTION'"),
        ([BEGIN, "### STUB a = (", "a = 1", END], "no Python in the student edition"),
        (["a = 1"], "expected a code cell with"),
    ],
)
def test_markers_that_could_hand_out_a_solution_are_refused(lines: list[str], message: str, tmp_path: Path) -> None:
    nbformat.write(made(code("\n".join(lines), "the-cell", "exercise")), tmp_path / "wrong.ipynb")
    with pytest.raises(ParameterError, match="the-cell") as raised:
        lesson(tmp_path / "wrong.ipynb", out_dir=str(tmp_path))
    assert message in str(raised.value) and "wrong.ipynb" in str(raised.value)
    assert not (tmp_path / "build").exists(), "nothing was begun"


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([code("a = 1", "x")], "has no exercise"),
        ([code(SHIFT, "x", "exercise"), code(SHIFT, "y")], "cell 'y' holds a marker of a solution but no tag"),
        ([code(SHIFT, "x", "exercise"), new_markdown_cell(BEGIN, id="y")], "cell 'y' holds a marker"),
        ([new_markdown_cell(SHIFT, id="x", metadata={"tags": ["exercise"]})], "expected a code cell"),
        ([code(SHIFT, "x", "exercise", "solution")], "not tagged 'solution'"),
    ],
)
def test_tags_that_do_not_fit_are_refused(
    cells: list[Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nbformat.write(made(*cells), tmp_path / "wrong.ipynb")
    assert main(["lesson", str(tmp_path / "wrong.ipynb"), "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("medshift: ") and error.count("\n") == 1


@pytest.mark.parametrize(
    "text", ["{", "", "[]", '{"nbformat": 3, "worksheets": []}', '{"cells": [{}], "nbformat": 4, "nbformat_minor": 5}']
)
def test_files_that_are_no_notebooks(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "wrong.ipynb").write_text(text)
    assert main(["lesson", str(tmp_path / "wrong.ipynb"), "--out", str(tmp_path)]) == 3
    error = capsys.readouterr().err
    assert "cannot be read as a notebook" in error and error.count("\n") == 1 and not (tmp_path / "build").exists()


def test_a_folder_that_cannot_be_written(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["lesson", str(source), "--out", str(tmp_path / "file")]) == 3
    assert "cannot be written" in capsys.readouterr().err


def test_a_full_disk_leaves_former_editions(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = lesson(source, out_dir=str(tmp_path))
    before = [path.read_bytes() for path in paths]
    text = source.read_text().replace("A lesson", "Another lesson")
    source.write_text(text)

    def full(path: Path, text: str, **options: Any) -> int:
        path.write_bytes(text[:100].encode())
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(editions.Path, "write_text", full)
    with pytest.raises(DataError, match="No space left"):
        lesson(source, out_dir=str(tmp_path))
    assert [path.read_bytes() for path in paths] == before
    assert sorted((tmp_path / "build" / "lesson").iterdir()) == sorted(paths)


def test_cells_without_ids_get_the_same_ones_each_time(tmp_path: Path) -> None:
    old = made(new_markdown_cell("# A"), code(SHIFT, "x", "exercise"))
    for cell in old.cells:
        del cell["id"]
    old.nbformat_minor = 4
    (tmp_path / "old.ipynb").write_text(nbformat.writes(old))
    assert [cell.id for cell in read_notebook(tmp_path / "old.ipynb").cells] == ["cell-00", "cell-01"]


def test_the_command_says_where_the_editions_are(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lesson", str(source), "--out", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [Path(line).name for line in lines] == ["lesson-student.ipynb", "lesson-solution.ipynb"]
    assert all(Path(line).is_file() for line in lines)
    assert main(["lesson", "no-such", "--out", str(tmp_path)]) == 2
