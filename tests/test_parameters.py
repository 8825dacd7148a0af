"""Parameters: a notebook's cell and its model say the same, and a wrong value is refused before a kernel starts."""

import json
import math
from pathlib import Path
from typing import Any

import nbformat
import pytest
from hypothesis import given
from hypothesis import strategies as st
from papermill.translators import papermill_translators

from medshift.errors import DataError, MedShiftError, ParameterError
from medshift.repro.cells import find_notebook, model_of, notebook_folder, read_cell
from medshift.repro.parameters import (
    NOTEBOOKS,
    Parameters,
    TradeoffParameters,
    TrainParameters,
    check,
    suggestion,
    table,
)
from medshift.repro.values import parse_pairs, read_mapping

PRESENT = [name for name in NOTEBOOKS if (notebook_folder() / f"{name}.ipynb").is_file()]
CELL = """profile: str = "smoke"  # how large
strength: float = 1  # of it
names: list = ["a"]  # some
count: int = 3"""


def write(path: Path, *cells: str, tags: tuple[str, ...] = ("parameters",)) -> Path:
    """A notebook whose first cells are tagged, followed by one that is not."""
    tagged = [nbformat.v4.new_code_cell(cell, metadata={"tags": list(tags)}) for cell in cells]
    notebook = nbformat.v4.new_notebook(cells=[*tagged, nbformat.v4.new_code_cell("pass")])
    nbformat.write(notebook, path)
    return path


# The cell and the model


@pytest.mark.parametrize("name", PRESENT)
def test_a_notebooks_cell_and_its_model_say_the_same(name: str) -> None:
    cell = read_cell(notebook_folder() / f"{name}.ipynb")
    fields = NOTEBOOKS[name].model_fields
    assert list(cell) == list(fields), "names and their order"
    for key, (annotation, default, text) in cell.items():
        kind = next(k for k in (bool, int, float, str, list) if isinstance(fields[key].default, k))
        assert annotation == kind.__name__, key
        assert default == fields[key].default and type(default) is type(fields[key].default), key
        assert text == fields[key].description, key


@pytest.mark.parametrize("name", PRESENT)
def test_notebooks_are_committed_stripped(name: str) -> None:
    notebook = nbformat.read(notebook_folder() / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec.name == "python3" and "version" not in notebook.metadata.language_info
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    shown = [cell for cell in code if "exercise" not in cell.metadata.get("tags", [])]
    assert not any(line.startswith(("def ", "class ")) for cell in shown for line in cell.source.splitlines())
    # A lesson has nine parts where another notebook has three or four.
    most = 200 if len(shown) < len(code) else 120
    assert sum(bool(line.strip()) for cell in shown for line in cell.source.splitlines()) <= most


@pytest.mark.parametrize("name", PRESENT)
def test_a_notebook_calls_the_stages_its_model_names(name: str) -> None:
    """A receipt watches the stages the model names, and `_Clock` tells the time they take."""
    notebook = nbformat.read(notebook_folder() / f"{name}.ipynb", as_version=4)
    source = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    called = {word.partition('"')[0] for word in source.split('run.stage("')[1:]}
    called |= {"views"} if "run.images" in source else set()
    assert called <= set(NOTEBOOKS[name].stages), f"{name} calls {called}"
    assert f'configure("{name}", globals())' in source
    assert {"smoke", "cpu"} <= set(NOTEBOOKS[name].minutes)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_defaults_are_accepted_and_listed(name: str) -> None:
    made = check(NOTEBOOKS[name], {}, name)
    assert all(getattr(made, key) == info.default for key, info in NOTEBOOKS[name].model_fields.items())
    rows = table(NOTEBOOKS[name])
    assert [row[0] for row in rows] == list(NOTEBOOKS[name].model_fields)
    assert all(len(row) == 4 and all(row[:2]) and row[3] for row in rows)
    assert check(NOTEBOOKS[name], made.model_dump(), name) == made


def test_the_table_tells_ranges() -> None:
    rows = {row[0]: row for row in table(TradeoffParameters)}
    assert rows["guidance"] == (
        "guidance",
        "number (≤ 20, ≥ 0)",
        "1.0",
        "scale of classifier-free guidance, 1 for none",
    )
    assert "≥ 0" in rows["tau_grid"][1] and "≤ 1" in rows["tau_grid"][1]


# Values


@pytest.mark.parametrize(
    ("name", "near"),
    [("tua", "'tau'"), ("Tau", "'tau'"), ("sed", "'seed'"), ("outdir", "'out_dir'"), ("τ", "there are")],
)
def test_an_unknown_name_suggests_the_nearest(name: str, near: str) -> None:
    with pytest.raises(ParameterError, match="03_train has no parameter") as caught:
        check(TrainParameters, {name: 1}, "03_train")
    assert repr(name) in str(caught.value) and near in str(caught.value)


@pytest.mark.parametrize(
    ("model", "values", "where"),
    [
        (TrainParameters, {"tau": 1.01}, "tau"),
        (TrainParameters, {"tau": -0.01}, "tau"),
        (TrainParameters, {"tau": math.nan}, "tau"),
        (TrainParameters, {"tau": math.inf}, "tau"),
        (TrainParameters, {"tau": "much"}, "tau"),
        (TrainParameters, {"tau": None}, "tau"),
        (TrainParameters, {"tau": True}, "tau"),
        (TrainParameters, {"tau": [0.5]}, "tau"),
        (TrainParameters, {"seed": -1}, "seed"),
        (TrainParameters, {"seed": 2**31}, "seed"),
        (TrainParameters, {"seed": 1.5}, "seed"),
        (TrainParameters, {"seed": False}, "seed"),
        (TrainParameters, {"profile": 3}, "profile"),
        (TrainParameters, {"offline": "perhaps"}, "offline"),
        (TradeoffParameters, {"tau_grid": [0.5, 0.1]}, "tau_grid: the values must rise"),
        (TradeoffParameters, {"tau_grid": [0.5, 0.5]}, "tau_grid: the values must rise"),
        (TradeoffParameters, {"tau_grid": [0.5]}, "tau_grid: one value"),
        (TradeoffParameters, {"tau_grid": [0.5, 1.5]}, r"tau_grid\[1\]"),
        (TradeoffParameters, {"tau_grid": [0.5, True]}, r"tau_grid\[1\]"),
        (TradeoffParameters, {"tau_grid": [math.nan, 0.5]}, r"tau_grid\[0\]"),
        (TradeoffParameters, {"tau_grid": 0.5}, "tau_grid"),
        (TradeoffParameters, {"guidance": 21}, "guidance"),
    ],
)
def test_a_wrong_value_is_one_line_with_the_name_the_value_and_the_help(
    model: type[Parameters], values: dict[str, Any], where: str
) -> None:
    with pytest.raises(ParameterError, match=f"^nb: parameter {where}") as caught:
        check(model, values, "nb")
    (name,) = values
    assert "(got " in str(caught.value) and str(model.model_fields[name].description) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_numbers_that_yaml_takes_for_text_arrive_as_numbers() -> None:
    assert parse_pairs([("tau", "1e-4")]) == {"tau": "1e-4"}
    assert check(TrainParameters, parse_pairs([("tau", "1e-4")]), "nb").tau == 1e-4
    grid = check(TradeoffParameters, parse_pairs([("tau_grid", "[1e-4, .5, 1]")]), "nb").tau_grid
    assert grid == [1e-4, 0.5, 1.0] and all(type(value) is float for value in grid)
    assert type(check(TrainParameters, {"tau": 1}, "nb").tau) is float


def test_parameters_cannot_be_changed_once_checked() -> None:
    with pytest.raises(ValueError, match="frozen"):
        check(TrainParameters, {}, "nb").tau = 0.5  # type: ignore[attr-defined]


VALUES: dict[str, st.SearchStrategy[Any]] = {
    "profile": st.text(),
    "data": st.text(),
    "overrides": st.text(),
    "seed": st.integers(0, 2**31 - 1),
    "offline": st.booleans(),
    "tau_grid": st.lists(st.floats(0, 1), min_size=2, max_size=4, unique=True).map(sorted) | st.just([]),
    "guidance": st.floats(0, 20),
}


@given(values=st.fixed_dictionaries({}, optional=VALUES))
def test_accepted_values_survive_papermills_translation(values: dict[str, Any]) -> None:
    accepted = check(TradeoffParameters, values, "nb")
    translator = papermill_translators.find_translator("python3", "python")
    held: dict[str, Any] = {}
    exec(translator.codify(accepted.model_dump(), "Parameters"), held)
    assert check(TradeoffParameters, {k: v for k, v in held.items() if k != "__builtins__"}, "nb") == accepted


@given(grid=st.lists(st.floats(allow_nan=True), max_size=5))
def test_a_grid_is_accepted_exactly_if_it_rises_within_the_unit_interval(grid: list[float]) -> None:
    rises = all(a < b for a, b in zip(grid, grid[1:], strict=False)) and all(0 <= value <= 1 for value in grid)
    try:
        assert check(TradeoffParameters, {"tau_grid": grid}, "nb").tau_grid == grid
        accepted = True
    except ParameterError:
        accepted = False
    assert accepted == (rises and len(grid) != 1)


# Pairs and files


def test_pairs_are_yaml() -> None:
    read = parse_pairs([("a", "3"), ("b", "[0.1, 0.2]"), ("c", "text"), ("d", "true"), ("e", ""), ("f", "null")])
    assert read == {"a": 3, "b": [0.1, 0.2], "c": "text", "d": True, "e": "", "f": "null"}
    # What is no YAML, or would be a date, is text.
    texts = ["[0.1", "a: b: c", "2024-13-45", "2024-01-31", "0b_", "9" * 5000, "%", "\x00", "@x"]
    assert [parse_pairs([("a", text)])["a"] for text in texts] == texts


def test_a_name_given_twice_is_refused() -> None:
    with pytest.raises(ParameterError, match="'tau' is given twice"):
        parse_pairs([("tau", "1"), ("seed", "1"), ("tau", "1")])


@given(text=st.text(max_size=20))
def test_any_text_is_read_or_kept(text: str) -> None:
    try:
        value = parse_pairs([("a", text)])["a"]
    except ParameterError:
        return  # a mapping that names a key twice
    assert value is not None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tau: 0.1\ntau: 0.2", "'tau' stands there twice"),
        ("a: {b: 1, b: 1}", "'b' stands there twice"),
        ("- tau: 1", "a list; expected lines `name: value`"),
        ("tau", "a str; expected"),
        ("", "is empty; expected"),
        ("# only a comment", "is empty; expected"),
        ("1: 2", "expected lines"),
        ("\ttau: 1", "line 1: .*tab"),
        ("tau: 1\nseed:\t[", "tab"),
        ("tau: [1", "line 1"),
        ("tau: 1\n---\ntau: 2", "another document"),
        ("tau: !!python/object/apply:os.getcwd []", "line 1"),
        ("tau: \x00", "not YAML"),
        ("tau: 0b_", "invalid literal"),
        ("[1]: 2\n", "line 1|expected lines"),
    ],
)
def test_a_file_that_is_no_mapping_says_why_and_where(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "values.yaml"
    path.write_text(text)
    with pytest.raises(ParameterError, match=message) as caught:
        read_mapping(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00\x01", b"tau: \xe4"])
def test_a_file_that_is_no_text_is_a_data_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "values.yaml").write_bytes(content)
    for path in (tmp_path / "values.yaml", tmp_path, tmp_path / "nowhere.yaml"):
        with pytest.raises(DataError, match="cannot be read"):
            read_mapping(path)


def test_a_mapping_is_read_as_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "values.yaml"
    path.write_text("tau: 0.1\ndata: 2024-01-31\ngrids: [a, b]\n", encoding="utf-8")
    assert read_mapping(path) == {"tau": 0.1, "data": "2024-01-31", "grids": ["a", "b"]}


@given(blob=st.binary(max_size=40))
def test_any_file_is_a_mapping_or_an_error_a_user_can_mend(tmp_path: Path, blob: bytes) -> None:
    (tmp_path / "any.yaml").write_bytes(blob)
    try:
        assert isinstance(read_mapping(tmp_path / "any.yaml"), dict)
    except MedShiftError:
        pass


# A notebook of one's own


def test_a_notebook_of_ones_own_gets_a_model_from_its_cell(tmp_path: Path) -> None:
    model = model_of(write(tmp_path / "mine.ipynb", CELL))
    made = check(model, {"strength": "2", "count": 4}, "mine")
    assert made.model_dump(exclude={"out_dir"}) == {
        "profile": "smoke", "seed": 0, "device": "auto", "data": "", "overrides": "", "offline": False,
        "strength": 2.0, "names": ["a"], "count": 4,
    }  # fmt: skip
    assert type(check(model, {}, "mine").strength) is float
    assert model.model_fields["strength"].description == "of it" and model.stages == ()
    for wrong in ({"count": 1.5}, {"count": True}, {"strengt": 1}, {"strength": math.inf}, {"names": "a"}):
        with pytest.raises(ParameterError):
            check(model, wrong, "mine")


def test_its_defaults_of_common_parameters_are_its_own_and_their_ranges_stay(tmp_path: Path) -> None:
    model = model_of(write(tmp_path / "mine.ipynb", 'profile: str = "smoke"\nseed: int = 7'))
    assert check(model, {}, "mine").seed == 7 and Parameters().seed == 0
    assert model.model_fields["seed"].description == Parameters.model_fields["seed"].description
    with pytest.raises(ParameterError, match="seed"):
        check(model, {"seed": -1}, "mine")
    wrong = model_of(write(tmp_path / "wrong.ipynb", "seed: int = -7"))
    with pytest.raises(ParameterError, match="parameter seed"):
        check(wrong, {}, "wrong")


def test_a_copy_of_a_companions_notebook_elsewhere_is_ones_own(tmp_path: Path) -> None:
    assert model_of(notebook_folder() / "01_data.ipynb") is NOTEBOOKS["01_data"]
    copy = write(tmp_path / "01_data.ipynb", "extra: int = 1")
    assert "extra" in model_of(copy).model_fields


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ((), "has 0 cells tagged 'parameters'"),
        ((CELL, CELL), "has 2 cells tagged 'parameters'"),
        (("a: int = 1 + x",), "line 1"),
        (("a: int = 1\nb: int = f(1)",), "line 2"),
        (("a = 1",), "line 1"),
        (("a: int",), "line 1"),
        (("import os",), "line 1"),
        (("a.b: int = 1",), "line 1"),
        (("a: int = ",), "line 1"),
        (("a: int = 1\n  b: int = 2",), "line 2"),
        (("%matplotlib inline",), "line 1"),
        (("a: int = 1\na: int = 2",), "'a' stands there twice"),
        (("_a: int = 1",), "'_a' cannot be"),
        (("stages: list = []",), "'stages' cannot be"),
        (("copy: int = 1",), "'copy' cannot be"),
    ],
)
def test_a_parameters_cell_that_cannot_be_used_says_why(tmp_path: Path, cells: tuple[str, ...], message: str) -> None:
    path = write(tmp_path / "mine.ipynb", *cells)
    with pytest.raises(ParameterError, match=message) as caught:
        model_of(path)
    assert str(path) in str(caught.value)


V4 = '{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": '


@pytest.mark.parametrize(
    "content",
    ["", "x", "[]", "5", "null", "{}", '{"nbformat": 99}', '{"nbformat": "x"}', '{"nbformat": 4}', V4 + "5}"]
    + [V4 + "[5]}", V4 + '[{"cell_type": "code"}]}', '{"nbformat": 3}', "[" * 9_000, b"\xff\xfe\x00", b"\x89PNG\r\n"],
    ids=lambda content: repr(content)[:30],
)  # fmt: skip
def test_a_file_that_is_no_notebook_is_a_data_error(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "mine.ipynb"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match="cannot be read as a notebook .*give an .ipynb file") as caught:
        model_of(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_notebook_in_an_old_format_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.ipynb", CELL)
    old = json.loads(path.read_text()) | {"nbformat_minor": 2}
    for cell in old["cells"]:
        cell.pop("id", None)
    path.write_text(json.dumps(old))
    assert "strength" in model_of(path).model_fields


def test_notebooks_are_found_by_path_name_and_number(tmp_path: Path) -> None:
    own = write(tmp_path / "mine.ipynb", CELL)
    assert find_notebook(str(own)) == own
    for text in ("01", "01_data", str(notebook_folder() / "01_data.ipynb")):
        assert find_notebook(text) == notebook_folder() / "01_data.ipynb"
    for text in ("44", "", "mine", str(tmp_path), str(tmp_path / "x.ipynb"), "medshift/cli.py"):
        with pytest.raises(ParameterError, match="No notebook is called"):
            find_notebook(text)
    with pytest.raises(ParameterError, match="did you mean '01_data'"):
        find_notebook("01_dat.ipynb")


def test_a_suggestion_is_the_nearest_name_or_all_of_them() -> None:
    assert suggestion("tua", ["seed", "tau"]) == "; did you mean 'tau'?"
    assert suggestion("zzz", ["seed", "tau"]) == "; there are seed, tau."
