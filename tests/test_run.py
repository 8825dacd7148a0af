"""A notebook's `Run`: its parameters as strictly checked inside as outside, its folders, and what it draws."""

import json
import os
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from medshift.errors import ParameterError
from medshift.repro.parameters import NOTEBOOKS, TrainParameters, check
from medshift.repro.progress import EVENTS
from medshift.repro.run import configure, parse_overrides, pick_device, variant
from medshift.repro.stage import Plan, Stage

CELL = 'profile: str = "auto"  # how large\nseed: int = 0  # of numbers\ntau: float = 0.05  # where legs meet'


def inside(*cells: str, notebook: str = "03_train", **more: Any) -> tuple[Any, dict[str, Any]]:
    """configure as a notebook calls it, after cells that IPython has kept and run."""
    variables: dict[str, Any] = {"In": ["", *cells], "Out": {}, **more}
    for cell in cells:
        try:
            exec(cell, variables)
        except SyntaxError:  # IPython keeps such a cell as well
            continue
    return configure(notebook, variables), variables


@pytest.fixture(autouse=True)
def no_gpu_no_runner(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv(EVENTS, raising=False)


def test_values_are_coerced_and_written_back() -> None:
    run, variables = inside(CELL, '# Parameters\nprofile = "smoke"\ntau = "1e-4"\nseed = 3.0\n')
    assert (variables["tau"], variables["seed"]) == (1e-4, 3) and type(variables["seed"]) is int
    assert run.parameters.tau == 1e-4 and run.profile.name == "smoke" and run.notebook == "03_train"
    assert variables["offline"] is False, "parameters that no cell names are there as well"


def test_an_injected_name_that_is_unknown_is_refused_with_the_nearest() -> None:
    with pytest.raises(ParameterError, match="03_train has no parameter 'tua'; did you mean 'tau'"):
        inside(CELL, "# Parameters\ntua = 0.3\n")


def test_a_name_misspelt_in_the_parameters_cell_is_refused() -> None:
    with pytest.raises(ParameterError, match="'tua'; did you mean 'tau'"):
        inside(CELL.replace("tau:", "tua:"))


@pytest.mark.parametrize("line", ["tau = 2", "tau = float('nan')", "seed = 'many'", "tau = True"])
def test_a_wrong_value_is_refused_inside(line: str) -> None:
    with pytest.raises(ParameterError, match=f"parameter {line.split()[0]}"):
        inside(CELL, f"# Parameters\n{line}\n")


def test_a_name_injected_twice_is_refused() -> None:
    with pytest.raises(ParameterError, match="'tau' is given twice"):
        inside(CELL, "# Parameters\ntau = 0.3\ntau = 0.4\n")


def test_a_cell_that_was_mended_and_run_again_counts_as_it_stands_now() -> None:
    run, _ = inside(CELL.replace("tau:", "tua:"), CELL.replace("auto", "smoke"))
    assert run.parameters.tau == 0.05
    run, _ = inside('profile: str = "smoke"\ntau: float == 0.1', CELL.replace("auto", "smoke"))
    assert run.profile.name == "smoke"


def test_other_variables_and_cells_are_no_parameters() -> None:
    cells = ["x = 1\nimages = [1]\nwidth = 3", "def f(profile: str) -> None:\n    return None", "!ls ("]
    run, variables = inside(CELL.replace("auto", "smoke"), *cells)
    assert variables["images"] == [1] and "width" not in run.parameters.model_dump()


def test_outside_of_a_notebook_the_variables_are_the_parameters() -> None:
    given_values = {"profile": "smoke", "tau": "0.5"}
    assert configure("03_train", given_values).parameters.tau == 0.5
    assert given_values == {"profile": "smoke", "tau": "0.5"}
    with pytest.raises(ParameterError, match="no parameter 'head'"):
        configure("03_train", {"head": 1})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"profile": "smok"}, "No profile is called 'smok'"),
        ({"device": "abacus"}, "Device 'abacus'"),
        ({"device": "cuda:99"}, "Device 'cuda:99'"),
        ({"device": ""}, "Device ''"),
        ({"overrides": "train.images"}, "section.key=value"),
        ({"overrides": "size=32 size=16"}, "'size' is given twice"),
        ({"overrides": "seize=32"}, "no setting 'seize'"),
        ({"overrides": "kl.widths=[8"}, "no value"),
        ({"overrides": "size=2024-13-45"}, "no value"),
        ({"overrides": "size=lots"}, "size"),
    ],
)
def test_wrong_places_and_settings_are_refused(values: dict[str, str], message: str) -> None:
    with pytest.raises(ParameterError, match=message) as caught:
        configure("01_data", {"profile": "smoke", **values})
    assert "\n" not in str(caught.value)


def test_settings_are_words_with_an_equals_sign() -> None:
    assert parse_overrides("") == {} and parse_overrides("a.b=1  c==2 d=") == {"a.b": "1", "c": "=2", "d": ""}
    assert configure("01_data", {"profile": "smoke", "overrides": "train.images=32"}).profile.train.images == 32


@given(text=st.text(alphabet="ab.=[]{}:,1 \t-é\x00", max_size=20))
def test_any_settings_are_read_or_refused(text: str) -> None:
    try:
        assert all(isinstance(value, str) for value in parse_overrides(text).values())
    except ParameterError as error:
        assert "\n" not in str(error)


def test_auto_is_the_cpu_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == pick_device("cpu") == "cpu"


def test_a_driver_too_old_is_told_in_torchs_words_on_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).\nPlease update it.")

    monkeypatch.setattr(torch, "empty", refuse)
    with pytest.raises(ParameterError) as told:
        pick_device("cuda")
    assert "Device 'cuda' cannot be used here: The NVIDIA driver on your system is too old" in str(told.value)
    assert "\n" not in str(told.value)


def test_offline_is_told_to_those_who_download(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    os.environ.pop("MEDSHIFT_OFFLINE", None)
    configure("01_data", {"profile": "smoke"})
    assert "MEDSHIFT_OFFLINE" not in os.environ
    configure("01_data", {"profile": "smoke", "offline": True})
    assert os.environ["MEDSHIFT_OFFLINE"] == os.environ["HF_HUB_OFFLINE"] == "1"


def test_folders_are_the_profiles_and_other_parameters_have_a_folder_of_their_own(tmp_path: Path) -> None:
    base = {"profile": "smoke", "out_dir": str(tmp_path)}
    plain = configure("03_train", base)
    assert plain.build == tmp_path / "build" / "smoke" and plain.runs == tmp_path / "runs" / "smoke"
    other = configure("03_train", {**base, "tau": 0.2})
    assert other.runs == plain.runs and other.build.parent == plain.build.parent
    assert other.build.name.startswith("smoke-") and len(other.build.name) == len("smoke-") + 6


def test_a_variant_is_decided_by_what_is_shown_and_by_nothing_else() -> None:
    def name(**values: Any) -> str:
        return variant(check(TrainParameters, values, "nb"), "smoke")

    same = [name(), name(tau=0.05), name(device="cpu"), name(out_dir="x"), name(offline=True), name(profile="cpu")]
    assert set(same) == {"smoke"}
    others = [name(tau=0.1), name(seed=1), name(overrides="size=16"), name(data="a"), name(data="b")]
    assert len(set(others)) == 5 and name(tau=0.1) == name(tau="0.1")
    assert name(data="x/a") != name(data="y/a") and name(data="x/a") == name(data="./x/../x/a")


# Figures and tables


def draw(run: Any, caption: str = "A line.") -> Path:
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots()
    axis.plot([0, 1])
    run.figure(figure, "line", caption)
    return run.build / "figures"


def test_figures_carry_their_provenance_and_no_place(tmp_path: Path) -> None:
    run = configure("01_data", {"profile": "smoke", "out_dir": str(tmp_path), "head": 1})
    contents = []
    for _ in range(2):
        folder = draw(run)
        contents.append([(folder / f"01_line{suffix}").read_bytes() for suffix in (".pdf", ".svg", ".png")])
    assert contents[0] == contents[1], "the same figure twice is the same bytes"
    inside = json.loads(Image.open(folder / "01_line.png").text["Description"])
    assert inside == run.stamp() and inside["notebook"] == "01_data" and inside["parameters"]["head"] == 1
    assert not {"out_dir", "data", "device", "offline"} & set(inside["parameters"])
    sidecar = json.loads((folder / "01_line.json").read_text())
    assert sidecar["caption"] == "A line." and sidecar["stamp"] == inside
    assert str(tmp_path) not in json.dumps(sidecar) and {"commit", "versions", "hardware", "minutes"} <= set(sidecar)


def test_the_machine_is_not_in_the_figure(tmp_path: Path) -> None:
    runs = [configure("01_data", {"profile": "smoke", "out_dir": str(tmp_path / n)}) for n in ("a", "b")]
    one, other = ((draw(run) / "01_line.svg").read_bytes() for run in runs)
    assert one == other


def test_tables_are_markdown_and_csv(tmp_path: Path) -> None:
    run = configure("01_data", {"profile": "smoke", "out_dir": str(tmp_path)})
    table = pd.DataFrame({"τ": [0.123456, 1.0], "n": [1, 2], "name": ["a", "b"]})
    assert run.table(table, "numbers") is table
    folder = run.build / "figures"
    assert (folder / "01_numbers.md").read_text(encoding="utf-8") == (
        "| τ | n | name |\n| --- | --- | --- |\n| 0.12 | 1 | a |\n| 1.00 | 2 | b |\n"
    )
    pd.testing.assert_frame_equal(pd.read_csv(folder / "01_numbers.csv"), table)
    assert json.loads((folder / "01_numbers.table.json").read_text())["stamp"] == run.stamp()


def test_a_table_may_bring_its_own_markdown(tmp_path: Path) -> None:
    run = configure("01_data", {"profile": "smoke", "out_dir": str(tmp_path)})
    table = pd.DataFrame({"a": [1.5]})
    run.table(table, "own", markdown="# mine\n")
    folder = run.build / "figures"
    assert (folder / "01_own.md").read_text() == "# mine\n" and (folder / "01_own.csv").read_text() == "a\n1.5\n"


def test_the_runner_is_told_what_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = configure("01_data", {"profile": "smoke", "out_dir": str(tmp_path)})
    draw(run)  # nobody listens
    events = tmp_path / "events"
    monkeypatch.setenv(EVENTS, str(events))
    draw(run, "é")
    run.table(pd.DataFrame({"a": [1]}), "t")
    run.record(psnr=1.5, method="x")
    told = [json.loads(line) for line in events.read_text().splitlines()]
    assert told[0] == {
        "figure": "01_line",
        "caption": "é",
        "files": [f"01_line{s}" for s in (".png", ".pdf", ".svg", ".json")],
    }
    assert told[1] == {"table": "01_t", "files": ["01_t.md", "01_t.csv", "01_t.table.json"]}
    assert told[2] == {"record": {"psnr": 1.5, "method": "x"}} and len(told) == 3


def test_a_stage_is_asked_for_once_and_told_and_stamped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def ensure(plan: Plan, root: Path, *, device: str, data: str, progress: Any) -> Stage:
        asked.append((plan.name, root, device, data))
        return Stage(plan.name, root / plan.folder_name, plan.key, True, 3.0, {"weights": "aa"})

    monkeypatch.setattr(Plan, "ensure", ensure)
    monkeypatch.setenv(EVENTS, str(tmp_path / "events"))
    run = configure("03_train", {"profile": "smoke", "out_dir": str(tmp_path), "device": "cpu"})
    assert run.stage("codec") is run.stage("codec") and asked == [("codec", tmp_path / "runs" / "smoke", "cpu", "")]
    told = json.loads((tmp_path / "events").read_text())
    assert told == {"stage": "codec", "folder": run.plans["codec"].folder_name, "built": True, "seconds": 3.0}
    assert run.stamp()["stages"] == {"codec": run.plans["codec"].key} and run.stamp()["facts"] == {"weights": "aa"}
    with pytest.raises(KeyError):
        run.stage("nothing")


@pytest.mark.slow
def test_a_stage_is_built_where_the_parameters_say_and_stamped(tmp_path: Path) -> None:
    run = configure("01_data", {"profile": "smoke", "out_dir": str(tmp_path), "device": "cpu"})
    views = run.stage("views")
    assert views.built and views.folder == tmp_path / "runs" / "smoke" / run.plans["views"].folder_name
    assert run.stage("views") is views and run.images.rendered
    assert run.stamp()["stages"] == {"views": views.key} and run.stamp()["facts"]["data set"] == "phantom"
    assert run.footer.startswith("procedural phantom")
    again = configure("01_data", {"profile": "smoke", "out_dir": str(tmp_path)})
    assert not again.stage("views").built and again.stamp() == run.stamp()


def test_every_notebook_can_be_configured(tmp_path: Path) -> None:
    for name in NOTEBOOKS:
        # With as many seeds as any profile has; those of the comparison are rows of their own.
        values = {"profile": "smoke", "out_dir": str(tmp_path), "overrides": "comparison.seeds=3"}
        run = configure(name, values)
        assert set(NOTEBOOKS[name].stages) <= set(run.plans)
