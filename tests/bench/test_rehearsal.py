"""Every bench of the peers and of a device runs: at its quick size, here, whatever it prints. So none of them can rot.

The modules are imported anew with MEDSHIFT_BENCH_QUICK set, and put back as they were.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import measuring
import pytest
import torch

from medshift.costs.measured import read_steps

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
OWN = {path.stem for path in HERE.glob("*.py")} - {"conftest", Path(__file__).stem}
PEERS = ("fast", "plain", "predecessor", "diffusers", "diffusers-bf16")


class Heard:
    """Takes tables as the report does."""

    def __init__(self) -> None:
        self.tables: dict[str, list[dict[str, str]]] = {}

    def table(self, title: str, header: list[str], rows: list[list[object]], note: str = "") -> None:
        assert rows and all(len(row) == len(header) for row in rows), f"{title}: a row is not as long as its header"
        self.tables[title] = [dict(zip(header, map(str, row), strict=True)) for row in rows]


def own_modules() -> list[str]:
    return [name for name in sys.modules if name in OWN or name.partition(".")[0] == "peers"]


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], ModuleType]]:
    """Imports a bench's module at its quick size."""
    chosen = PEERS if importlib.util.find_spec("torchcfm") is None else (*PEERS, "torchcfm")
    before = {name: sys.modules.pop(name) for name in own_modules()}
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDSHIFT_BENCH_QUICK", "1")
        patch.setenv("MEDSHIFT_BENCH_PEERS", ",".join(chosen))
        patch.setenv("MEDSHIFT_BENCH_DEVICE", "cpu")
        patch.setenv("MEDSHIFT_BENCH_OUT", str(tmp_path_factory.mktemp("build")))
        yield importlib.import_module
    torch.set_num_threads(threads)
    for name in own_modules():
        del sys.modules[name]
    sys.modules.update(before)


@pytest.fixture(scope="module")
def held() -> dict[str, Any]:
    """What several benches of one module share, by the name of its fixture."""
    return {}


def run(module: ModuleType, bench: str, place: Path, held: dict[str, Any], **more: Any) -> Heard:
    """Call a bench with what its parameters ask for."""
    heard, function = Heard(), getattr(module, bench)
    if "network" not in held and hasattr(module, "WEIGHTS"):
        held["network"] = module.load_flow(module.WEIGHTS).network
    if "peers" not in held and hasattr(module, "make") and "network" in held:
        held["peers"] = {name: module.make(name, held["network"]) for name in module.NAMES}
    given = {**held, **more, "report": heard, "tmp_path": place}
    function(**{name: given[name] for name in inspect.signature(function).parameters})
    return heard


BENCHES = [
    ("test_seconds_per_image", {"side": 16}),
    ("test_share_of_the_ceiling", {}),
    ("test_translation_at_equal_output", {}),
    ("test_sweep", {}),
    ("test_training", {"case": "patch"}),
    ("test_training", {"case": "kl"}),
    ("test_each_idea_alone", {}),
]


@pytest.mark.parametrize(("bench", "more"), BENCHES, ids=lambda value: str(value))
def test_a_bench_of_the_peers_runs(quick, held, tmp_path: Path, bench: str, more: dict[str, Any]) -> None:
    heard = run(quick("test_peers"), bench, tmp_path, held, **more)
    for rows in heard.tables.values():
        shares = [row[column] for row in rows for column in row if "product" in column and "%" in row[column]]
        assert shares, "no ceiling beside what was measured"
        assert all(re.fullmatch(r"\S+ to \S+", row["turns"]) for row in rows), "no spread beside the median"
        for row in rows:
            if row.get("who", row.get("one image")) == "predecessor's way":
                assert row["× predecessor (best turns)"] == "1.00 (1.00)"


@pytest.mark.parametrize("bench", ["test_domains", "test_parts_of_a_step", "test_kernel_classes"])
def test_a_bench_of_scale_runs(quick, held, tmp_path: Path, bench: str) -> None:
    assert run(quick("test_scale"), bench, tmp_path, held).tables


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("bench", ["test_pixels", "test_images", "test_two_processes"])
def test_a_bench_of_scale_in_processes_runs(quick, held, tmp_path: Path, bench: str) -> None:
    assert run(quick("test_scale"), bench, tmp_path, held).tables


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_first_image_of_a_process(quick, held, tmp_path: Path) -> None:
    run(quick("test_peers"), "test_first_image", tmp_path, held)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_device_is_measured_from_end_to_end(quick, tmp_path: Path) -> None:
    module = quick("test_device")
    work, steps = module.Work.of(torch.device("cpu"), True), {}
    shared = {"work": work, "steps": steps}
    for bench in [name for name in vars(module) if name.startswith("test_")]:
        place = tmp_path / bench
        place.mkdir()
        run(module, bench, place, shared)
    path = tmp_path / "steps.json"
    module.write_steps(path, module.Steps("a CPU", "smoke", "make bench", tuple(steps.values())))
    assert {step.what for step in read_steps(path).steps} == set(steps)
    assert {module.TRAINING, module.EVALUATION, module.AUTOENCODER} <= set(steps)
    assert json.loads(path.read_text())["profile"] == "smoke"


def test_a_missing_peer_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    roster = importlib.import_module("peers.roster")
    monkeypatch.setattr(roster.importlib.util, "find_spec", lambda name: None)
    assert roster.absent(roster.ALL).startswith("torchcfm is not installed: `make bench` installs it")
    assert roster.absent(PEERS) is None
    assert "No peer is called x" in roster.absent((*PEERS, "x"))
    assert "lacks plain" in roster.absent(("fast", "predecessor"))


def test_the_recorded_command_is_that_of_the_makefile(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in measuring.SAID:
        monkeypatch.delenv(name, raising=False)
    recipe = (ROOT / "Makefile").read_text().partition("\nbench:")[2].partition("\n\n")[0]
    for device, told in measuring.TOLD.items():
        path = told[1]
        assert path in recipe and all(part in recipe for part in told), device
    assert "--extra bench" in recipe
    cpu, cuda = measuring.TOLD["cpu"], measuring.TOLD["cuda"]
    if not measuring.QUICK:
        assert measuring.command(cpu).startswith("`make bench`, that is ")
        assert measuring.command(cuda, torch.device("cuda")).startswith("`make bench DEVICE=cuda`, that is ")
    assert "make bench" not in measuring.command((*cpu, "-k", "peers")), "a part is not the whole"


def test_operations_reach_their_bound_or_not() -> None:
    rooflines = importlib.import_module("rooflines")
    a = torch.randn(64, 64)
    found = {own.kind: own for own in rooflines.operations(lambda: (a @ a).add_(1.0), repeats=2)}
    product, adding = found["matrix product"], found[rooflines.ELEMENTWISE]
    assert product.flops == 2 * 64**3 and product.bytes == 3 * 4 * 64**2 and product.calls == 1
    assert adding.bytes == 2 * 4 * 64**2 and adding.flops == 0, "what is changed in place is read and written"
    tops = {torch.float32: 1e9, torch.bfloat16: 1e9}
    assert product.bound(tops, 1e12) == pytest.approx(2 * 64**3 / 1e9)
    product.seconds, adding.seconds = product.bound(tops, 1e12), 100 * adding.bound(tops, 1e12)
    sums = rooflines.classes([product, adding], tops, 1e12)
    assert sums["matrix product"].good == product.seconds and sums[rooflines.ELEMENTWISE].good == 0.0


def test_operations_of_gradients_are_seen() -> None:
    rooflines = importlib.import_module("rooflines")
    layer, x = torch.nn.Conv2d(2, 2, 3), torch.randn(1, 2, 8, 8)

    def step() -> None:
        layer(x).square().sum().backward()
        layer.zero_grad()

    found = [own for own in rooflines.operations(step, repeats=1) if own.kind == "convolution"]
    # Forward, and gradients of the weights alone: the input asks for none.
    assert sum(own.flops * own.calls for own in found) == 2 * (2 * 2 * 2 * 9 * 6**2)
