"""Receipts: a notebook runs again when, and only when, what it shows may have changed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest

from medshift.errors import DataError
from medshift.repro import receipts
from medshift.repro.cells import notebook_folder
from medshift.repro.keys import Code
from medshift.repro.parameters import NOTEBOOKS
from medshift.repro.profiles import load_profile
from medshift.repro.receipts import Task, file_hash
from medshift.repro.runner import task
from medshift.repro.stage import write_json

CELL = 'profile: str = "smoke"  # how large\nstrength: float = 1.0  # of it'
CODE = "import medshift.flow\nfrom medshift.repro.run import configure\n\nrun = 1  # a comment"
EVENTS: list[dict[str, Any]] = [
    {"stage": "views", "built": True},
    {"figure": "mi_line", "caption": "A line.", "files": ["mi_line.png", "mi_line.json"]},
    {"table": "mi_t", "files": ["mi_t.csv"]},
    {"record": {"psnr": 1.0, "tau": 0.1}},
    {"record": {"psnr": 2.0}},
]


def write(path: Path, *sources: str, text: str = "# Title") -> Path:
    cells = [nbformat.v4.new_markdown_cell(text), nbformat.v4.new_code_cell(CELL, metadata={"tags": ["parameters"]})]
    cells += [nbformat.v4.new_code_cell(source) for source in sources]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


def finished(made: Task) -> Task:
    """As if the notebook had run."""
    (made.folder / "figures").mkdir(parents=True)
    made.target.write_text("executed")
    for event in EVENTS:
        for name in event.get("files", []):
            (made.folder / "figures" / name).write_text(name)
    made.write_receipt(EVENTS, 12.34)
    return made


@pytest.fixture
def again(tmp_path: Path) -> Callable[..., Task]:
    """The task of a notebook that has run once, looked at anew, as a later process would."""
    path = write(tmp_path / "mine.ipynb", CODE)
    finished(task(path, {}, out_dir=str(tmp_path)))
    return lambda **values: task(path, values, out_dir=str(tmp_path))


def test_what_never_ran_is_stale_and_what_ran_is_fresh(tmp_path: Path, again: Callable[..., Task]) -> None:
    assert again().stale() == "" and again(strength=2).stale() == "never run"
    assert again(strength=2).folder != again().folder
    for values in ({"device": "cpu"}, {"offline": True}, {"strength": "1"}):
        assert again(**values).stale() == "", values
    again().target.unlink()
    assert again().stale() == "never run"


def test_a_receipt_holds_what_a_reader_may_ask(again: Callable[..., Task], tmp_path: Path) -> None:
    held = again().receipt
    assert held["seconds"] == 12.3 and held["record"] == {"psnr": 2.0, "tau": 0.1}
    assert held["files"] == {
        n: file_hash(again().folder / "figures" / n) for n in ("mi_line.png", "mi_line.json", "mi_t.csv")
    }
    assert held["shown"] == EVENTS[1:3]
    assert str(tmp_path) not in json.dumps(held)


def test_comments_blank_lines_and_outputs_are_no_change(tmp_path: Path, again: Callable[..., Task]) -> None:
    write(tmp_path / "mine.ipynb", CODE.replace("a comment", "another").replace("\n\n", "\n\n\n"))
    assert again().stale() == ""
    notebook = nbformat.read(tmp_path / "mine.ipynb", as_version=4)
    notebook.cells[2].update(execution_count=3, outputs=[nbformat.v4.new_output("stream", text="printed")])
    nbformat.write(notebook, tmp_path / "mine.ipynb")
    assert again().stale() == ""


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        ({"sources": [CODE.replace("run = 1", "run = 2")]}, "the notebook's code changed"),
        ({"sources": [CODE, "pass"]}, "the notebook's code changed"),
        ({"sources": [CODE, "%%bash\nls ("]}, "the notebook's code changed"),
        ({"sources": [CODE, "'''open"]}, "the notebook's code changed"),
        ({"sources": [CODE], "text": "# Another title"}, "the notebook's text changed"),
        ({"sources": [CODE + "\nimport medshift.codec"]}, "medshift.codec is new"),
        ({"sources": [CODE.replace("import medshift.flow", "")]}, "medshift.flow is no longer used"),
    ],
)
def test_edits_of_a_notebook_are_named(
    tmp_path: Path, again: Callable[..., Task], edit: dict[str, Any], reason: str
) -> None:
    write(tmp_path / "mine.ipynb", *edit.pop("sources"), **edit)
    assert reason in again().stale()


def test_code_and_versions_behind_a_notebook_are_named(
    again: Callable[..., Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    code = receipts.code_of(["medshift.flow"])
    for changed, reason in (
        (Code(code.modules | {"medshift.flow": "0"}, code.packages), "medshift.flow changed"),
        (Code(code.modules, code.packages | {"torch": "0.1"}), f"package torch: {code.packages['torch']} → 0.1"),
    ):
        monkeypatch.setattr(receipts, "code_of", lambda roots, changed=changed: changed)
        assert again().stale() == reason


def test_the_profile_behind_a_notebook_is_named(again: Callable[..., Task]) -> None:
    changed = again()
    smaller = changed.profile.model_copy(update={"size": 16})
    assert Task(changed.notebook, changed.parameters, smaller).stale() == "argument profile.size: 32 → 16"


def test_deleted_and_altered_figures_are_drawn_again(again: Callable[..., Task]) -> None:
    figure = again().folder / "figures" / "mi_line.png"
    figure.write_text("altered")
    assert again().stale() == "figures/mi_line.png is another than was drawn"
    figure.unlink()
    assert again().stale() == "figures/mi_line.png is missing"


def test_a_stage_that_is_gone_or_would_be_another_is_named(tmp_path: Path) -> None:
    def look(**values: Any) -> Task:
        return task(notebook_folder() / "03_train.ipynb", {"profile": "smoke", **values}, out_dir=str(tmp_path))

    made = look()
    assert list(made.plans) == ["views", "codec", "network"] == list(NOTEBOOKS["03_train"].stages)
    for plan in made.plans.values():
        (made.runs / plan.folder_name).mkdir(parents=True)
        write_json(made.runs / plan.folder_name / "config.json", {})
    finished(made)
    assert look().stale() == ""
    codec = made.runs / made.plans["codec"].folder_name
    codec.rename(tmp_path / "elsewhere")
    assert look().stale() == f"its input {codec.name} is gone"
    (tmp_path / "elsewhere").rename(codec)
    (codec / "config.json").write_text("{")
    with pytest.raises(DataError, match="delete"):
        look().stale()
    held = json.loads(made.receipt_file.read_text())
    held["parts"]["inputs"]["codec"] = "codec-0"
    write_json(made.receipt_file, held)
    assert look().stale() == "input codec is another one"


@pytest.mark.parametrize("damage", [b"", b"{", b"[1]", b"null", b"5", b"{}", b'{"parts": {}}', b"\xff\xfe\x00"])
def test_a_damaged_receipt_says_what_to_do(again: Callable[..., Task], damage: bytes) -> None:
    again().receipt_file.write_bytes(damage)
    with pytest.raises(DataError, match="receipt.json cannot be read .*delete it and run again"):
        again().stale()


def test_a_notebook_depends_on_what_it_imports_and_not_on_what_runs_it(tmp_path: Path) -> None:
    for name in ("01_data", "02_codec", "03_train", "04_tau_tradeoff"):
        parts = task(notebook_folder() / f"{name}.ipynb", {"profile": "smoke"}, out_dir=str(tmp_path)).parts
        modules = set(parts["modules"])
        assert any(module.startswith("medshift.viz.") for module in modules)
        assert any(module.startswith("medshift.results.") for module in modules)
        assert not any(module.startswith(("medshift.repro", "medshift.cli")) for module in modules)
        assert {"out_dir", "data", "device", "offline", "profile"}.isdisjoint(parts["arguments"]["parameters"])


def test_imports_are_found_wherever_they_stand() -> None:
    found = receipts._imports(
        [
            "import medshift.flow as f, numpy",
            "from medshift.results import data as results\nfrom medshift.repro.run import configure",
            "def draw():\n    from medshift.viz.codec import fig_losses",
            "!ls (",
            "'from medshift import ode'",
            "from . import x\nimport medshift_other, medshift.no_such",
        ]
    )
    assert set(found) >= {"medshift.flow", "medshift.results.data", "medshift.viz.codec"}
    assert not [name for name in found if "repro" in name or name.endswith((".ode", "other", "no_such"))]


def test_a_notebook_that_reads_others_results_is_stale_when_they_change(tmp_path: Path) -> None:
    def reads() -> dict[str, str]:
        parameters = NOTEBOOKS["90_claims"](profile="smoke", out_dir=str(tmp_path))
        one = Task(notebook_folder() / "90_claims.ipynb", parameters, load_profile("smoke"))
        return one.parts["inputs"]

    before = reads()
    assert before["04_findings.csv"] == "absent" and before["claims.yaml"] != "absent"
    figures = tmp_path / "build" / "smoke" / "figures"
    figures.mkdir(parents=True)
    (figures / "04_findings.csv").write_text("finding,value\na,1\n")
    first = reads()
    (figures / "04_findings.csv").write_text("finding,value\na,2\n")
    for one, other in ((before, first), (first, reads())):
        assert {name for name in before if one[name] != other[name]} == {"04_findings.csv"}
