"""Stages are built before the notebooks that read them, in their order, and a stage that fails stops its readers."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from medshift.repro.ahead import Ahead, StageError, stage_item
from medshift.repro.pool import cores
from medshift.repro.stage import Plan

STAGES = "ahead_stages"
SOURCE = """
def build(job, *, value, fail=False):
    if fail:
        raise ValueError("it cannot be done")
    total = value + sum(int((folder / "total").read_text()) for folder in job.inputs.values())
    job.progress(0.5, "half")
    (job.folder / "total").write_text(str(total))
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / f"{STAGES}.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return STAGES


def plan(module: str, name: str, value: int, *, fail: bool = False, **inputs: Plan) -> Plan:
    made = Plan(name, module, {"value": value, "fail": fail}, inputs)
    # The key of a module outside of the package: its arguments and inputs alone.
    vars(made)["parts"] = {
        "stage": name,
        "arguments": dict(made.arguments),
        "inputs": {key: one.folder_name for key, one in inputs.items()},
        "modules": {},
        "packages": [],
    }
    return made


def notebook(out: Path, name: str, **plans: Plan) -> Any:
    """As much of a `Task` as is asked of it."""
    return SimpleNamespace(
        notebook=Path(f"{name}.ipynb"), target=out / name, runs=out / "runs", plans=plans, grids=[],
        parameters=SimpleNamespace(data=""),
    )  # fmt: skip


def test_what_notebooks_read_is_there_when_they_run(module: str, tmp_path: Path) -> None:
    views = plan(module, "views", 1)
    network = plan(module, "network", 10, views=views)
    judged = [plan(module, "judged", 100 * k, views=views, network=network) for k in (1, 2, 3)]
    own = plan(module, "drawn", 5, views=views)
    first, second = (
        notebook(tmp_path, "01", own=own),
        notebook(tmp_path, "04", a=judged[0], b=judged[1], c=judged[2]),
    )
    before = os.environ.get("OMP_NUM_THREADS")
    with Ahead([first, second], 2) as ahead:
        ordered = [one.folder_name for one in (views, own, network, *judged)]
        assert list(ahead.items) == ordered, "in the order of notebooks, inputs first"
        assert before or os.environ["OMP_NUM_THREADS"] == str(max(1, cores() // 2)), "kernels get a share of the cores"
        ahead.wait(first)
        assert views.find(first.runs)
        ahead.wait(second)
    assert os.environ.get("OMP_NUM_THREADS") == before
    totals = [int((one.find(second.runs).folder / "total").read_text()) for one in judged]
    assert totals == [112, 212, 312]
    with Ahead([first, second], 2) as ahead:
        assert not ahead.items, "what is there is not built again"


def test_a_stage_that_fails_stops_its_readers_and_no_other(module: str, tmp_path: Path) -> None:
    views = plan(module, "views", 1)
    broken = plan(module, "network", 10, fail=True, views=views)
    judged = plan(module, "judged", 100, network=broken)
    tasks = [notebook(tmp_path, "03", network=broken), notebook(tmp_path, "04", judged=judged)]
    other = notebook(tmp_path, "01", views=views)
    with Ahead([*tasks, other], 2) as ahead:
        for one in tasks:
            with pytest.raises(StageError, match="it cannot be done") as raised:
                ahead.wait(one)
            assert raised.value.exit_code == 4
        ahead.wait(other)
    assert views.find(other.runs) and not broken.find(other.runs) and not judged.find(other.runs)


def test_one_worker_leaves_all_to_the_notebooks(module: str, tmp_path: Path) -> None:
    one = notebook(tmp_path, "01", views=plan(module, "views", 1))
    with Ahead([one], 1) as ahead:
        ahead.wait(one)
    assert not ahead.items and one.plans["views"].find(one.runs) is None


def test_a_stage_waits_for_its_own_inputs_alone(module: str, tmp_path: Path) -> None:
    views, codec = plan(module, "views", 1), plan(module, "codec", 2)
    item = stage_item(plan(module, "network", 3, views=views, codec=codec), tmp_path)
    assert item.after == {views.folder_name, codec.folder_name}
