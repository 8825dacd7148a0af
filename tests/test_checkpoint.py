import errno
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from medshift import checkpoint
from medshift.codec import PatchCodec
from medshift.errors import CheckpointError, ParameterError
from medshift.flow_training import FlowMatching, load_flow
from medshift.network import build_network
from medshift.train import TrainConfig, train

DOMAINS = ("a", "b")


def _tensors(seed: int) -> dict[str, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return {"network": {"w": torch.randn(40, 40, generator=generator), "n": torch.tensor(seed)}}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    method = FlowMatching(build_network("smoke", n_domains=2, in_channels=4), PatchCodec(2), DOMAINS)
    folder = tmp_path_factory.mktemp("run")

    def batches(step, generator):
        return torch.randn(4, 1, 8, 8, generator=generator), torch.randint(2, (4,), generator=generator)

    for _ in train(method, batches, folder=folder, config=TrainConfig(steps=3, precision="fp32")):
        pass
    return folder


def _copy(trained: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(trained, tmp_path / "run")) / "step-00000003"


def test_round_trip_is_exact(tmp_path):
    tensors = _tensors(1)
    path = checkpoint.save(tmp_path, 7, tensors, {"lr": 0.1 + 0.2, "who": "méthode"})
    held = checkpoint.load(path)
    assert (held.step, held.state) == (7, {"lr": 0.1 + 0.2, "who": "méthode"})
    assert all(torch.equal(held.tensors["network"][k], v) for k, v in tensors["network"].items())
    assert checkpoint.weights_sha256(held.tensors["network"]) == checkpoint.weights_sha256(tensors["network"])
    assert checkpoint.weights_sha256(held.tensors["network"]) != checkpoint.weights_sha256(_tensors(2)["network"])


def test_newest_is_found_and_the_last_two_are_kept(tmp_path):
    assert checkpoint.latest(tmp_path / "nothing") is None
    for step in (5, 9, 100, 123456789):
        checkpoint.save(tmp_path, step, _tensors(step), {})
        assert checkpoint.load(tmp_path).step == step
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000100", "step-123456789"]


def test_tensors_that_share_memory_are_kept_apart(tmp_path):
    base = torch.arange(12.0)
    checkpoint.save(tmp_path, 1, {"m": {"a": base[:6], "b": base[3:].reshape(3, 3).T}}, {})
    held = checkpoint.load(tmp_path).tensors["m"]
    assert torch.equal(held["a"], base[:6]) and torch.equal(held["b"], base[3:].reshape(3, 3).T)


def test_optimiser_state_survives_packing():
    parameters = [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2, 2))]
    optimizer = torch.optim.AdamW(parameters, lr=1 / 3, betas=(0.9, 0.95))
    sum((p.square() * (i + 1)).sum() for i, p in enumerate(parameters)).backward()
    optimizer.step()
    tensors: dict[str, torch.Tensor] = {}
    text = json.dumps(checkpoint.pack(optimizer.state_dict(), tensors))
    back = checkpoint.unpack(json.loads(text), tensors)
    assert back["param_groups"] == optimizer.state_dict()["param_groups"]
    assert back["state"].keys() == {0, 1}
    assert all(torch.equal(back["state"][0][k], v) for k, v in optimizer.state_dict()["state"][0].items())


def test_packing_refuses_what_json_cannot_hold():
    with pytest.raises(CheckpointError, match="object"):
        checkpoint.pack({"a": [object()]}, {})


@pytest.mark.parametrize("name", ["network.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["half", "missing", "flipped", "empty"])
def test_damage_names_the_file_and_the_way_back(tmp_path, name, damage):
    checkpoint.save(tmp_path, 1, _tensors(1), {})
    newest = checkpoint.save(tmp_path, 2, _tensors(2), {})
    file = newest / name
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    elif damage == "flipped":
        file.write_bytes(content[:20] + bytes([content[20] ^ 255]) + content[21:])
    else:
        file.write_bytes(content[: len(content) // 2] if damage == "half" else b"")
    with pytest.raises(CheckpointError, match=name) as caught:
        checkpoint.load(tmp_path)
    assert "step-00000001" in str(caught.value) and "Delete" in str(caught.value)
    for path in newest.iterdir():
        path.unlink()
    newest.rmdir()
    assert checkpoint.load(tmp_path).step == 1


def test_another_format_version_is_refused(tmp_path):
    state = checkpoint.save(tmp_path, 1, _tensors(1), {}) / "state.json"
    document = json.loads(state.read_text())
    state.write_text(json.dumps({**document, "format": 99}))
    with pytest.raises(CheckpointError, match="format 99"):
        checkpoint.load(tmp_path)


def test_absent_checkpoint_says_so(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint"):
        checkpoint.load(tmp_path)
    checkpoint.save(tmp_path, 1, _tensors(1), {})
    with pytest.raises(CheckpointError, match=r"no optimizer\.safetensors"):
        checkpoint.load(tmp_path, only=("optimizer",))


class _Bomb:
    def __reduce__(self):
        return os.mkdir, (os.environ["BOMB"],)


def test_pickles_are_refused_and_not_opened(tmp_path, monkeypatch):
    monkeypatch.setenv("BOMB", str(tmp_path / "exploded"))
    bomb = pickle.dumps(_Bomb())
    (tmp_path / "model.pt").write_bytes(bomb)
    with pytest.raises(CheckpointError, match="never read"):
        checkpoint.load(tmp_path / "model.pt")
    path = checkpoint.save(tmp_path, 1, _tensors(1), {})
    (path / "network.safetensors").write_bytes(bomb)
    document = json.loads((path / "state.json").read_text())
    document["sha256"]["network.safetensors"] = checkpoint._file_sha256(path / "network.safetensors")
    (path / "state.json").write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match="no safetensors file"):
        checkpoint.load(path)
    assert not (tmp_path / "exploded").exists()
    pickle.loads(bomb)
    assert (tmp_path / "exploded").exists()  # the bomb was live


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_full_disk_leaves_the_previous_checkpoint(tmp_path, monkeypatch, call):
    checkpoint.save(tmp_path, 1, _tensors(1), {})

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(CheckpointError, match="No space left") as caught:
            checkpoint.save(tmp_path, 2, _tensors(2), {})
    assert "step-00000001 is intact" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert torch.equal(checkpoint.load(tmp_path).tensors["network"]["w"], _tensors(1)["network"]["w"])
    checkpoint.save(tmp_path, 2, _tensors(2), {})


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource limits")
def test_a_write_the_system_cuts_short_leaves_the_previous_checkpoint(tmp_path):
    code = f"""
import resource, signal, torch
from medshift import checkpoint
from medshift.errors import CheckpointError
checkpoint.save({str(tmp_path)!r}, 1, {{"w": {{"w": torch.ones(10)}}}}, {{}})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    checkpoint.save({str(tmp_path)!r}, 2, {{"w": {{"w": torch.ones(10000)}}}}, {{}})
except CheckpointError as error:
    print("refused", error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "refused" in done.stdout and "intact" in done.stdout, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert checkpoint.load(tmp_path).step == 1


def test_same_step_again_must_be_the_same_weights(tmp_path):
    first = checkpoint.save(tmp_path, 1, _tensors(1), {})
    assert checkpoint.save(tmp_path, 1, _tensors(1), {}) == first
    with pytest.raises(CheckpointError, match="other weights"):
        checkpoint.save(tmp_path, 1, _tensors(2), {})
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert torch.equal(checkpoint.load(tmp_path).tensors["network"]["w"], _tensors(1)["network"]["w"])


def test_keep_must_leave_one(tmp_path):
    with pytest.raises(ParameterError, match="keep"):
        checkpoint.save(tmp_path, 1, _tensors(1), {}, keep=0)


@torch.no_grad()
def test_a_checkpoint_rebuilds_its_model_alone(trained):
    before = torch.random.get_rng_state()
    flow = load_flow(trained)
    assert torch.equal(before, torch.random.get_rng_state())
    assert flow.domains == DOMAINS and flow.step == 3 and flow.codec.fingerprint() == PatchCodec(2).fingerprint()
    stored = checkpoint.load(trained).tensors
    for name, value in flow.network.state_dict().items():
        assert torch.equal(value, stored["network-ema"][f"module.{name}"])
    for name, value in load_flow(trained, weights="last").network.state_dict().items():
        assert torch.equal(value, stored["network"][name])
    assert flow.sha256 == checkpoint.weights_sha256(flow.network.state_dict())
    assert not flow.network.training and not any(p.requires_grad for p in flow.network.parameters())


def test_another_codec_is_refused(trained):
    load_flow(trained, codec=PatchCodec(2))
    with pytest.raises(CheckpointError, match="another codec"):
        load_flow(trained, codec=PatchCodec(2, mean=[0.1] * 4))


def _edit(path: Path, edit) -> None:
    document = json.loads((path / "state.json").read_text())
    edit(document["state"]["method"])
    (path / "state.json").write_text(json.dumps(document))


def test_another_architecture_is_refused(trained, tmp_path):
    path = _copy(trained, tmp_path)
    _edit(path, lambda method: method["network"].update(channels=[16, 48]))
    with pytest.raises(CheckpointError, match="another architecture"):
        load_flow(path)
    _edit(path, lambda method: method["network"].update(kind="transformer"))
    with pytest.raises(CheckpointError, match="transformer"):
        load_flow(path)
    _edit(path, lambda method: method.update(kind="cut"))
    with pytest.raises(CheckpointError, match="'cut'"):
        load_flow(path)


def test_unknown_weights_are_refused(trained):
    with pytest.raises(ParameterError, match="'best'"):
        load_flow(trained, weights="best")
