"""Training on several processes: the effective batch stays, and so do the numbers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from medshift.cli import main
from medshift.errors import DataError, ParameterError
from medshift.repro.stage import write_json
from medshift.stages import network
from medshift.stages.job import Job
from medshift.stages.training import micro_batch
from medshift.train.__main__ import read_request

ARGUMENTS = {
    "network": "smoke", "images": 192, "batch": 16, "learning_rate": 1e-3, "checkpoint_every": 4, "seed": 3,
}  # fmt: skip


def request(folder: Path, inputs: dict[str, Path], **changes: object) -> Path:
    folder.mkdir(exist_ok=True)
    content = {
        "module": "medshift.stages.network", "arguments": {**ARGUMENTS, **changes}, "data": "", "device": "cpu",
        "inputs": {name: str(path) for name, path in inputs.items()}, "folder": str(folder),
    }  # fmt: skip
    write_json(folder / "request.json", content)
    return folder / "request.json"


def torchrun(path: Path, processes: int) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m"]
    return subprocess.run(
        [*words, "medshift.train", "--config", str(path)], capture_output=True, text=True, check=False, timeout=280
    )


def losses(folder: Path) -> torch.Tensor:
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return torch.tensor([row["network"] for row in rows])


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [2, 1])
def test_two_processes_train_as_one_does_at_the_same_effective_batch(tmp_path, stage_inputs, accumulation):
    """With two micro-batches the draws are the very same; with one, the two processes draw others."""
    done = torchrun(request(tmp_path / "two", stage_inputs, accumulation=accumulation), 2)
    assert done.returncode == 0, done.stderr[-2000:]
    (tmp_path / "one").mkdir()
    network.build(Job(tmp_path / "one", stage_inputs), **ARGUMENTS, accumulation=accumulation)
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) == len(two) == 12
    if accumulation == 2:
        torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-5)
        weights = [load_file(next((tmp_path / n).glob("step-00000012/network.safetensors"))) for n in ("one", "two")]
        for name, tensor in weights[0].items():
            torch.testing.assert_close(weights[1][name], tensor, rtol=1e-2, atol=1e-3)
    else:
        assert abs(two.mean() / one.mean() - 1) < 0.1
    # Whoever asks next finds the training finished, and leaves it as it is.
    before = sorted((tmp_path / "two").glob("step-*"))
    facts = network.build(Job(tmp_path / "two", stage_inputs), **ARGUMENTS, accumulation=accumulation)
    assert facts["weights' SHA-256"] and sorted((tmp_path / "two").glob("step-*")) == before


@pytest.mark.parametrize(("batch", "parts", "size", "expected"), [
    (16, 1, 1, (16, 1)), (16, 4, 1, (4, 4)), (16, 4, 2, (4, 2)), (16, 1, 2, (8, 1)), (16, 2, 4, (2, 2)),
])  # fmt: skip
def test_the_effective_batch_is_held(monkeypatch, batch, parts, size, expected):
    monkeypatch.setattr("medshift.stages.training.World", lambda: type("W", (), {"size": size, "rank": 0})())
    n, accumulation = micro_batch(batch, parts)
    assert (n, accumulation) == expected and n * accumulation * size == batch


def test_a_batch_that_cannot_be_shared_is_refused(monkeypatch):
    monkeypatch.setattr("medshift.stages.training.World", lambda: type("W", (), {"size": 3, "rank": 0})())
    with pytest.raises(ParameterError, match="multiple of 3"):
        micro_batch(16, 1)


def test_a_request_that_is_none(tmp_path, stage_inputs):
    with pytest.raises(DataError, match="cannot be read"):
        read_request(tmp_path / "none.json")
    write_json(tmp_path / "list.json", [1])
    with pytest.raises(DataError, match="no request"):
        read_request(tmp_path / "list.json")
    with pytest.raises(DataError, match="is gone"):
        read_request(request(tmp_path / "r", {**stage_inputs, "views": tmp_path / "nowhere"}))


def test_fewer_than_one_process_is_refused(tmp_path, capsys):
    assert main(["train", "--profile", "smoke", "--out", str(tmp_path), "--processes", "0"]) == 2
    assert "at least 1" in capsys.readouterr().err
