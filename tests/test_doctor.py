"""The doctor finds what is missing, says what it costs and what mends it, and changes nothing."""

import importlib
import os
import shutil
from collections import namedtuple
from importlib import metadata
from pathlib import Path

import pytest
import torch
import torchvision

from medshift.data import ct
from medshift.repro import doctor, machine
from medshift.repro.machine import Check

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def nothing_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(private: Path) -> Path:
        raise AssertionError("the doctor downloads")

    monkeypatch.setattr(ct, "_download", fail)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fail)


def row(text: str, name: str) -> str:
    """The line of one check."""
    found = [line for line in text.splitlines() if line[9:].startswith(f"{name} ")]
    assert len(found) == 1, text
    return found[0]


def test_on_a_bare_machine_every_line_that_is_not_ok_says_what_it_costs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDSHIFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MEDSHIFT_CT", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(doctor, "ROOT", tmp_path)
    monkeypatch.setattr(doctor, "commit", lambda: {"id": "unknown"})
    text = doctor.examine(tmp_path / "new" / "out")
    lines = text.splitlines()[:-1]
    assert all(line.startswith(("OK ", "missing ", "warning ")) for line in lines)
    assert all("costs: " in line for line in lines if not line.startswith("OK "))
    expected = {
        "GPU": "auto means the cpu profile", "head CT": "no apt-get", "sd-vae-ft-mse": "the paper profile",
        "LPIPS": "alexnet(weights='DEFAULT')", "git commit": "cannot name", "packages": "requirements.lock",
    }  # fmt: skip
    for name, words in expected.items():
        assert row(text, name).startswith("missing ") and words in row(text, name), row(text, name)
    for name in ("Python", "torch, torchvision", "output", "Jupyter kernel"):
        assert row(text, name).startswith("OK "), row(text, name)
    assert not list(tmp_path.iterdir())  # nothing was made


def test_what_is_there_is_ok(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(doctor, "ROOT", tmp_path)
    for name in (
        "hub/checkpoints/alexnet-owt-7be5be79.pth",
        *(f"{doctor.AUTOENCODER}/{f}" for f in doctor.AUTOENCODER_FILES),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert doctor.lpips_weights().state == doctor.autoencoder().state == doctor.st_lpips().state == "OK"
    (tmp_path / doctor.AUTOENCODER / "config.json").unlink()
    lacking = doctor.autoencoder()
    assert lacking.state == "missing" and "no config.json in" in lacking.found and "hf download" in lacking.mend


def test_the_head_ct_in_every_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDSHIFT_CACHE", str(tmp_path))
    monkeypatch.delenv("MEDSHIFT_CT", raising=False)
    monkeypatch.delenv("MEDSHIFT_OFFLINE", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    absent = doctor.head_ct()
    assert absent.state == "missing" and "phantom" in absent.costs and absent.mend.startswith("medshift data")
    (tmp_path / ct.FILE).write_bytes(b"half a file")
    assert doctor.head_ct().state == "warning"
    monkeypatch.setattr(ct, "project_bytes", lambda path: b"")
    monkeypatch.setattr(ct, "_verify", lambda *arguments: None)
    assert doctor.head_ct().state == "OK"
    monkeypatch.setenv("MEDSHIFT_CT", str(tmp_path / "nowhere.nii"))
    own = doctor.head_ct()
    assert own.state == "warning" and "nowhere.nii" in own.found and "MEDSHIFT_CT" in own.mend
    (tmp_path / "nowhere.nii").touch()
    assert doctor.head_ct().state == "OK" and "user" in doctor.head_ct().found
    assert "MEDSHIFT_OFFLINE" not in os.environ


@pytest.mark.parametrize(
    ("free", "state", "short"),
    [
        (20e9, "OK", []),
        (5e9, "warning", ["gpu"]),
        (0.5e9, "warning", ["cpu", "gpu"]),
        (1e7, "missing", ["smoke", "gpu"]),
    ],
)
def test_the_disk_is_measured_against_the_profiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: float, state: str, short: list[str]
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1e12, 0, free))
    found = machine.disk(tmp_path / "not" / "there")
    assert found.state == state and all(f"{name} needs" in found.costs for name in short)
    assert len(short) == 0 or ("gpu" in short) == ("gpu needs" in found.costs)


def test_an_output_that_is_no_folder_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch(0o777)
    assert machine.writable(tmp_path / "file").state == machine.writable(tmp_path / "file" / "in").state == "missing"
    assert machine.writable(tmp_path / "new" / "in").state == "OK"


def test_a_torchvision_for_another_torch_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.torch_pair().state == "OK"

    def absent(*arguments: object) -> None:
        raise RuntimeError("operator torchvision::nms does not exist\nand more")

    monkeypatch.setattr(torchvision.ops, "nms", absent)
    found = machine.torch_pair()
    assert found.state == "warning" and "nms does not exist" in found.found and "and more" not in found.found
    assert found.mend == "make setup"


def test_without_torch_the_rest_is_still_examined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def without(name: str) -> object:
        if name in ("torch", "torchvision"):
            raise OSError("libcudart.so.13: cannot open shared object file")
        return real(name)

    monkeypatch.setattr(machine, "import_module", without)
    text = doctor.examine(tmp_path)
    assert "libcudart.so.13" in row(text, "torch, torchvision") and row(text, "GPU").startswith("missing ")
    assert row(text, "fonts").startswith("OK ") and row(text, "LPIPS").startswith("missing ")


def test_a_gpu_is_named_and_one_that_torch_cannot_use_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    card = namedtuple("Card", "name total_memory")("A GPU", 80 * 2**30)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: card)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert machine.gpu() == Check("OK", "GPU", "A GPU, 80 GiB, A GPU, 80 GiB")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    assert machine.gpu().state == "warning"


def test_versions_other_than_the_lock_are_named() -> None:
    numpy = metadata.version("numpy")
    lines = [
        f"numpy=={numpy}", "scipy==0.0.1", "no-such-package==1.0", "", "appnope==1.0 ; sys_platform == 'nowhere'",
    ]  # fmt: skip
    scipy = metadata.version("scipy")
    expected = [f"scipy {scipy} (locked 0.0.1)", "no-such-package absent (locked 1.0)"]
    assert doctor.other_versions(lines) == expected


def test_a_lock_with_many_differences_is_summed_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "ROOT", tmp_path)
    (tmp_path / doctor.LOCK).write_text("".join(f"absent-{i}==1.0\n" for i in range(7)))
    found = doctor.packages()
    assert found.state == "warning" and "absent-3" in found.found and "absent-4" not in found.found
    assert "and 3 more" in found.found


def test_a_kernel_of_another_python_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from jupyter_client.kernelspec import KernelSpecManager

    for argv, state in ((["python"], "OK"), ([str(tmp_path / "bin" / "python")], "warning")):
        specs = {"python3": {"spec": {"argv": argv}}}
        monkeypatch.setattr(KernelSpecManager, "get_all_specs", lambda self, specs=specs: specs)
        assert machine.kernel().state == state
    monkeypatch.setattr(KernelSpecManager, "get_all_specs", lambda self: {})
    assert machine.kernel().state == "missing"


def test_a_font_without_greek_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.fonts().state == "OK"
    monkeypatch.setattr(machine, "GLYPHS", "τ\ue123")
    found = machine.fonts()
    assert found.state == "warning" and "\ue123" in found.found and "τ" not in found.found


def test_little_memory_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2**19}
    monkeypatch.setattr(os, "sysconf", sizes.__getitem__)
    assert machine.memory().state == "warning" and "2 GiB" in machine.memory().found
