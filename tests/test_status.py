"""What status says of stages and notebooks that are fresh, stale, begun, damaged, or from another machine."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from medshift.data import ct
from medshift.errors import ParameterError
from medshift.repro import status as module
from medshift.repro.cells import find_notebook
from medshift.repro.provenance import hardware, versions
from medshift.repro.receipts import Task
from medshift.repro.runner import task
from medshift.repro.stage import Plan, write_json
from medshift.repro.status import report


@pytest.fixture
def data(tmp_path: Path) -> Task:
    """The task of 01_data under the smoke profile, its stage and its notebook finished."""
    one = task(find_notebook("01"), {"profile": "smoke"}, out_dir=str(tmp_path))
    finish(one.plans["views"], one.runs, 810.0)
    one.folder.mkdir(parents=True)
    shutil.copy(one.notebook, one.target)
    one.write_receipt([], 60.0)
    return one


def finish(plan: Plan, runs: Path, seconds: float, **parts: Any) -> Path:
    """The folder that a finished stage leaves, without its content."""
    folder = runs / plan.folder_name
    folder.mkdir(parents=True)
    env = {"hardware": hardware("cpu"), "packages": versions(plan.parts["packages"])}
    write_json(folder / "env.json", env)
    write_json(folder / "config.json", plan.parts | {"key": plan.key, "facts": {}, "seconds": seconds} | parts)
    return folder


def line(text: str, name: str) -> str:
    """The line of a stage or a notebook."""
    found = [line for line in text.splitlines() if line.startswith(f"  {name}  ")]
    assert len(found) == 1, text
    return found[0]


def test_what_is_fresh_and_what_was_never_made(data: Task) -> None:
    text = report("smoke", out_dir=str(data.out))
    assert line(text, "views").endswith("fresh, made in 13.5 min") and data.plans["views"].folder_name in text
    assert line(text, "network").endswith("  never built") and line(text, "01_data").endswith("  fresh")
    assert line(text, "03_train").endswith("  never run") and "CT" not in text
    assert text.splitlines()[-1] == f"Next: medshift paper --profile smoke --out {data.out}"


def test_a_stage_is_stale_with_its_reason_and_so_is_what_reads_it(data: Task) -> None:
    text = report("smoke", out_dir=str(data.out), seed=3)
    assert line(text, "views").endswith("stale: argument seed: 0 → 3")
    assert "--seed 3" in text.splitlines()[-1] and line(text, "01_data").endswith("never run")  # another folder
    # A network made from these views, and one asked for from others.
    plans = task(find_notebook("03"), {"profile": "smoke"}, out_dir=str(data.out)).plans
    finish(plans["codec"], data.runs, 1.0)
    finish(plans["network"], data.runs, 1.0)
    assert "  fresh, " in line(report("smoke", out_dir=str(data.out)), "network")
    changed = line(report("smoke", out_dir=str(data.out), overrides="heads.train=3"), "network")
    assert "stale: input codec is another one; input views is another one" in changed


def test_a_stale_notebook_says_what_changed(data: Task) -> None:
    held = json.loads(data.receipt_file.read_text())
    held["parts"]["modules"]["medshift.data.beams"] = "0" * 16
    data.receipt_file.write_text(json.dumps(held))
    assert line(report("smoke", out_dir=str(data.out)), "01_data").endswith("stale: medshift.data.beams changed")
    data.receipt_file.write_text("{half")
    assert "damaged: " in line(report("smoke", out_dir=str(data.out)), "01_data")


def test_a_begun_and_a_damaged_stage_are_told_apart(data: Task) -> None:
    plan = data.plans["views"]
    (data.runs / plan.folder_name / "config.json").write_text("{half")
    text = line(report("smoke", out_dir=str(data.out)), "views")
    assert "damaged: " in text and "delete" in text
    (data.runs / plan.folder_name).rename(data.runs / f"{plan.folder_name}.partial")
    assert line(report("smoke", out_dir=str(data.out)), "views").endswith("  begun, will go on from where it stopped")


@pytest.mark.parametrize(
    ("part", "change", "expected"),
    [
        ("hardware", {"system": "Darwin arm64"}, "system Darwin arm64, here "),
        ("hardware", {"cores": 640}, "cores 640, here "),
        ("hardware", {"device": "cuda", "gpu": "A GPU"}, "gpu A GPU, here none"),
        ("packages", {"numpy": "0.1"}, "numpy 0.1, here "),
    ],
)
def test_a_result_from_elsewhere_is_fresh_and_says_from_where(
    data: Task, monkeypatch: pytest.MonkeyPatch, part: str, change: dict[str, object], expected: str
) -> None:
    monkeypatch.setattr(module, "_gpus", lambda: [])
    path = data.runs / data.plans["views"].folder_name / "env.json"
    held = json.loads(path.read_text())
    held[part] |= change
    path.write_text(json.dumps(held))
    text = line(report("smoke", out_dir=str(data.out)), "views")
    assert "fresh, made in 13.5 min, made elsewhere (" in text and expected in text and text.count(", here") == 1
    monkeypatch.setattr(module, "_gpus", lambda: ["A GPU"])
    assert ("elsewhere" in line(report("smoke", out_dir=str(data.out)), "views")) == ("gpu" not in change)


def test_when_nothing_is_stale_nothing_has_to_run(data: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "paper_tasks", lambda **values: [data])
    last = report("smoke", out_dir=str(data.out)).splitlines()[-1]
    assert last == f"Nothing has to run. Next: medshift publish --profile smoke --out {data.out}"


@pytest.mark.parametrize("before", [None, "1"])
def test_a_ct_that_is_not_cached_is_said_and_not_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str | None
) -> None:
    monkeypatch.setenv("MEDSHIFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MEDSHIFT_CT", raising=False)
    monkeypatch.setenv(module.OFFLINE, before) if before else monkeypatch.delenv(module.OFFLINE, raising=False)

    def download(private: Path) -> Path:
        raise AssertionError("status downloads")

    monkeypatch.setattr(ct, "_download", download)
    text = report("cpu", out_dir=str(tmp_path))
    assert ("head CT is not in the cache" in text) == (before is None)  # offline, a run takes the phantom anyway
    assert os.environ.get(module.OFFLINE) == before and not (tmp_path / "cache").exists()
    text = report("cpu", out_dir=str(tmp_path), overrides="source=cranium")
    assert "Cranium.inv3 is not there" in text and "Next: medshift data --profile cpu" in text
    assert os.environ.get(module.OFFLINE) == before and not ct.log.disabled


def test_mistakes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="trains on your own images"):
        report("paper", out_dir=str(tmp_path))
    with pytest.raises(ParameterError, match="No profile"):
        report("smok", out_dir=str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_it_answers_without_torch_and_writes_nothing(tmp_path: Path) -> None:
    code = (
        "import sys; from medshift.repro.status import report\n"
        f"report('smoke', out_dir={str(tmp_path)!r}); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert not list(tmp_path.iterdir())
