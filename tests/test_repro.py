"""Profiles, stages, figures and the command line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from medshift.cli import main
from medshift.errors import ParameterError
from medshift.repro import stages
from medshift.repro.profiles import PROFILES, load_profile
from medshift.repro.run import configure, parse_overrides
from medshift.repro.runner import NOTEBOOKS, notebook_folder, select


@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_loads(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name and sorted(profile.tradeoff.taus) == profile.tradeoff.taus


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"train.image": "3"}, "no setting 'train.image'"),
        ({"train.images": "lots"}, "train.images"),
        ({"train.images": "0"}, "train.images"),
        ({"nothing.at.all": "0"}, "no setting"),
    ],
)
def test_wrong_settings_are_refused(overrides: dict[str, str], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        load_profile("smoke", overrides)


def test_overrides_reach_the_profile() -> None:
    assert load_profile("smoke", parse_overrides("train.images=32 train.learning_rate=1e-4")).train.images == 32
    # YAML reads 1e-4 as text; it must arrive as the number.
    assert load_profile("smoke", {"train.learning_rate": "1e-4"}).train.learning_rate == pytest.approx(1e-4)
    with pytest.raises(ParameterError, match="section.key=value"):
        parse_overrides("train.images")


def test_a_stage_is_built_once_and_again_when_anything_changes(tmp_path: Path) -> None:
    calls = []

    def build(folder: Path) -> None:
        calls.append(folder)
        (folder / "result").write_text("x")

    first = stages.run_stage(tmp_path, "render", build, arguments={"n": 1}, modules=["flow"])
    again = stages.run_stage(tmp_path, "render", build, arguments={"n": 1}, modules=["flow"])
    assert first.built and not again.built and first.folder == again.folder and len(calls) == 1
    keys = {
        first.key,
        stages.stage_key({"n": 2}, [], ["flow"]),
        stages.stage_key({"n": 1}, [first], ["flow"]),
        stages.stage_key({"n": 1}, [], ["flow", "ode"]),
    }
    assert len(keys) == 4


def test_an_interrupted_stage_goes_on_in_the_same_folder_and_is_never_taken_as_finished(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stages.run_stage(tmp_path, "train", fail, arguments={})

    def finish(folder: Path) -> None:
        assert (folder / "half").read_text() == "half"

    done = stages.run_stage(tmp_path, "train", finish, arguments={})
    assert done.built and [p.name for p in tmp_path.iterdir()] == [done.folder.name]


def test_an_edit_of_a_named_module_changes_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one.py").write_text("a = 1")
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "two.py").write_text("b = 1")
    monkeypatch.setattr(stages, "PACKAGE", tmp_path)
    before = stages.source_hash(["one"]), stages.source_hash(["pack"])
    (tmp_path / "pack" / "two.py").write_text("b = 2")
    after = stages.source_hash(["one"]), stages.source_hash(["pack"])
    assert before[0] == after[0] and before[1] != after[1]


def test_parameters_of_a_notebook_are_checked() -> None:
    with pytest.raises(ParameterError, match="seed"):
        configure("01_data", {"profile": "smoke", "seed": "many"})
    with pytest.raises(ParameterError, match="No profile"):
        configure("01_data", {"profile": "smok"})
    with pytest.raises(ParameterError, match="Device"):
        configure("01_data", {"profile": "smoke", "device": "abacus"})


def test_figures_carry_their_provenance_and_pdfs_are_byte_equal(tmp_path: Path) -> None:
    import matplotlib.pyplot as plt
    from PIL import Image

    run = configure("01_data", {"profile": "smoke", "out_dir": str(tmp_path)})
    contents = []
    for _ in range(2):
        figure, axis = plt.subplots()
        axis.plot([0, 1])
        run.figure(figure, "line", "A line.")
        plt.close(figure)
        contents.append((run.figures / "01_line.pdf").read_bytes())
    assert contents[0] == contents[1]
    inside = json.loads(Image.open(run.figures / "01_line.png").text["Description"])
    assert inside["profile"] == "smoke" and inside["notebook"] == "01_data"
    sidecar = json.loads((run.figures / "01_line.json").read_text())
    assert sidecar["caption"] == "A line." and str(tmp_path) not in json.dumps(sidecar)


def test_notebooks_are_selected_by_number_or_name() -> None:
    assert select([]) == list(NOTEBOOKS)
    assert select(["04", "01_data"]) == ["01_data", "04_tau_tradeoff"]
    with pytest.raises(ParameterError, match="No notebook"):
        select(["44"])
    assert all((notebook_folder() / f"{name}.ipynb").is_file() for name in NOTEBOOKS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["paper", "--profile", "tiny"], "No profile is called 'tiny'"),
        (["paper", "--profile", "smoke", "--only", "77"], "No notebook"),
        (["paper", "--profile", "smoke", "--data", "nowhere"], "nowhere is not a folder"),
        (["paper", "--profile", "smoke", "--set", "seize=3"], "no setting"),
        (["paper", "--profile", "paper"], "trains on your own images"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_the_command_line_starts_without_torch() -> None:
    code = "import sys, medshift.cli, medshift.repro.runner; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_are_committed_stripped(name: str) -> None:
    import nbformat

    notebook = nbformat.read(notebook_folder() / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec.name == "python3" and "version" not in notebook.metadata.language_info
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in code) == 1
    assert not any(line.startswith(("def ", "class ")) for cell in code for line in cell.source.splitlines())
    assert sum(bool(line.strip()) for cell in code for line in cell.source.splitlines()) <= 120
