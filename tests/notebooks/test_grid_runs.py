"""Grids, run: killed and resumed, by workers, by submitit, by shell lines; always the same table."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest
from smoke import SmokeRun, command

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000), pytest.mark.xdist_group("smoke")]
GRID = """
title: A small one
experiment: translation
fixed: {views: 4, batch: 4, steps: 3, target: real-low}
blocks: [{product: {width: [1.0, 0.5], tau: [0.2, 0.4, 0.9]}}]
"""
FAILING = """
title: One run cannot succeed
experiment: translation
fixed: {views: 4, batch: 4, steps: 3}
blocks: [{product: {target: [real-low, nowhere]}}]
"""
NOTEBOOK = """
title: A notebook as a run
notebook: 03_train
blocks: [{product: {tau: [0.1, 0.9]}}]
"""


@pytest.fixture
def out(smoke_run: SmokeRun, tmp_path: Path) -> Path:
    """A folder with data and the profile's network, and nothing else."""
    for kind in ("views", "codec", "network"):
        for folder in (smoke_run.out / "runs" / "smoke").glob(f"{kind}-*"):
            if folder.is_dir():
                shutil.copytree(folder, tmp_path / "out" / "runs" / "smoke" / folder.name)
    (tmp_path / "small.yaml").write_text(GRID)
    return tmp_path / "out"


def grid(out: Path, *words: str, name: str = "small") -> list[str]:
    return command("grid", str(out.parent / f"{name}.yaml"), "--profile", "smoke", "--out", str(out), *words)


def table(out: Path, name: str = "small") -> pd.DataFrame:
    return pd.read_csv(out / "build" / "smoke" / "grids" / f"{name}.csv", converters={"error": str})


def finished(out: Path) -> dict[str, int]:
    return {p.parent.name: p.stat().st_mtime_ns for p in (out / "runs" / "smoke").glob("translation-*/config.json")}


def test_a_grid_killed_half_way_runs_exactly_what_was_missing(out: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(grid(out), start_new_session=True, stderr=subprocess.DEVNULL)
    while len(finished(out)) < 2 and process.poll() is None:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = finished(out)
    assert 2 <= len(before) < 6
    done = subprocess.run(grid(out, "--workers", "2"), capture_output=True, text=True, check=True)
    assert f"{len(before)} finished, {6 - len(before)} to do" in done.stderr
    after = finished(out)
    assert len(after) == 6 and before.items() <= after.items()
    assert table(out)["state"].tolist() == ["done"] * 6
    subprocess.run(grid(out), capture_output=True, check=True)
    assert finished(out) == after


def test_submitit_and_shell_lines_give_the_table_of_workers(out: Path, tmp_path: Path) -> None:
    subprocess.run(grid(out), capture_output=True, check=True)
    wanted = table(out)
    assert wanted["psnr_clean"].nunique() == 6
    ways = {
        "submitit": lambda: subprocess.run(
            grid(out, "--slurm", "--executor", "local"), capture_output=True, text=True, check=True
        ),
        "shell": lambda: subprocess.run(
            f"{' '.join(grid(out, '--print-commands'))} | sed 's|^medshift|{' '.join(command())}|' "
            "| xargs -P 2 -I {} sh -c '{}'",
            shell=True, capture_output=True, text=True, check=True,
        ),
    }  # fmt: skip
    for way in ways.values():
        for folder in (out / "runs" / "smoke").glob("translation-*"):
            shutil.rmtree(folder, ignore_errors=True)
        (out / "build" / "smoke" / "grids" / "small.csv").unlink()
        way()
        # A job sums with as many threads as it is given, and so in another order than a worker.
        pd.testing.assert_frame_equal(table(out), wanted, rtol=1e-4)


def test_a_failed_run_is_a_row_with_its_error_and_is_tried_again(out: Path) -> None:
    (out.parent / "failing.yaml").write_text(FAILING)
    for _ in range(2):
        done = subprocess.run(grid(out, name="failing"), capture_output=True, text=True, check=False)
        assert done.returncode == 4 and "1 of 2 runs failed" in done.stderr and "Traceback" not in done.stderr
        rows = table(out, "failing")
        assert rows["state"].tolist() == ["done", "failed"] and "nowhere" in rows["error"].iloc[1]


def test_a_worker_that_dies_is_a_failed_run_and_the_others_go_on(out: Path) -> None:
    process = subprocess.Popen(grid(out), stderr=subprocess.PIPE, text=True)
    while not finished(out):
        time.sleep(0.02)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    workers = [int(c) for c in children if b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes()]
    os.kill(workers[0], signal.SIGKILL)
    error = process.communicate(timeout=600)[1]
    states = table(out)["state"].tolist()
    assert process.returncode == 4 and "SIGKILL" in error
    assert states.count("failed") == 1 and states.count("done") == 5


def test_a_grid_of_notebooks(out: Path) -> None:
    (out.parent / "notebooks.yaml").write_text(NOTEBOOK)
    for attempt in range(2):
        done = subprocess.run(grid(out, "--workers", "2", name="notebooks"), capture_output=True, text=True, check=True)
        assert ("2 finished, 0 to do" in done.stderr) == (attempt == 1)
    assert table(out, "notebooks")["state"].tolist() == ["done", "done"]
    assert len(list((out / "build").glob("smoke-*/03_train.ipynb"))) == 2


def test_a_wrong_setting_of_slurm_is_one_line(out: Path) -> None:
    done = subprocess.run(grid(out, "--slurm", "tmie=3"), capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
