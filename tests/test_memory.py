"""Memory of the velocity network: what is estimated is what is taken, and the batch that is chosen fits."""

import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

from medshift import memory
from medshift.errors import ParameterError
from medshift.memory import GIB, accumulation_that_fits, evaluation_memory, training_memory, usable_bytes
from medshift.network import build_network, scaled
from medshift.repro.accumulation import SHOWN, latent_shape, memory_table
from medshift.repro.pipeline import plans, train_plan
from medshift.repro.profiles import Profile, load_profile
from medshift.repro.stage import DeviceMemoryError, Plan
from medshift.stages.training import micro_batch

MIB = 2**20
# A step of a given batch on this machine's CPU, and how far it raises the most memory the process ever had [KiB].
MEASURE = """
import re, sys, torch
from pathlib import Path
from medshift import memory
from medshift.network import build_network
n, dtype, run = int(sys.argv[1]), {"bf16": torch.bfloat16, "fp32": None}[sys.argv[2]], getattr(memory, sys.argv[3])
torch.set_num_threads(1)
network = build_network("small", n_domains=5, in_channels=4)
for parameter in network.parameters():
    parameter.grad = torch.zeros_like(parameter)
run(network, 2, 32, dtype)
most = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = most()
run(network, n, 32, dtype)
print(most() - before)
"""


def smoke(training: bool = True, side: int = 16, channels: int = 4, **changes: Any) -> memory.Memory:
    of = training_memory if training else evaluation_memory
    return of("smoke", side=side, channels=channels, **changes)


def small_gpu(monkeypatch: pytest.MonkeyPatch, *gib: float) -> None:
    """Let torch see GPUs of these sizes, that multiply bfloat16."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gib))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda i: SimpleNamespace(total_memory=int(gib[i] * GIB), name="small")
    )


@pytest.fixture
def profile() -> Profile:
    """The smoke profile, its micro-batches left to the machine."""
    return load_profile("smoke", {"train.accumulation": "auto"})


def parts_of(profile: Profile) -> int:
    return plans(profile)["network"].arguments["accumulation"]


@pytest.mark.parametrize(("preset", "width"), [("smoke", 1.0), ("smoke", 2.0)])
def test_the_state_is_weights_gradients_moments_and_average_in_single_precision(preset: str, width: float) -> None:
    network = build_network(preset, n_domains=5, in_channels=4, **scaled(preset, width))
    weights = sum(p.numel() for p in network.parameters())
    assert training_memory(preset, side=16, channels=4, width=width).state == 4 * weights * (1 + 1 + 2 + 1)
    assert evaluation_memory(preset, side=16, channels=4, width=width).state == 4 * weights


@pytest.mark.parametrize("run", [memory.train_step, memory.evaluate])
def test_memory_is_affine_in_the_batch(run: Any) -> None:
    estimate = smoke(run is memory.train_step)
    with memory._Counting() as count:
        network = _with_gradients()
        for n in (1, 3, 100):
            counted = count.peak_of(partial(run, network, n, 16, torch.bfloat16))
            assert estimate.at(n) - estimate.state == pytest.approx(counted, rel=0.01), n


def test_torchs_own_tracker_counts_the_same() -> None:
    """`MemTracker` knows nothing of our counter; on the CPU's operations both see the same tensors come and go."""
    with memory._Counting() as count:
        network = _with_gradients()
        ours = count.peak_of(partial(memory.train_step, network, 8, 16, torch.bfloat16))
    with FakeTensorMode():
        network = _with_gradients()
        with MemTracker() as tracker:
            tracker.track_external(network)
            cpu = torch.device("cpu")
            before = tracker.get_tracker_snapshot()[cpu]["Total"]
            memory.train_step(network, 8, 16, torch.bfloat16)
        theirs = tracker.get_tracker_snapshot("peak")[cpu]["Total"] - before
    assert ours == pytest.approx(theirs, rel=0.005)


def _with_gradients() -> Any:
    network = build_network("smoke", n_domains=5, in_channels=4)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return network


def test_more_takes_more() -> None:
    base = smoke()
    for larger in (smoke(side=32), smoke(width=2.0), smoke(channels=16)):
        assert larger.per_image > base.per_image and larger.at(8) > base.at(8)
    assert 3.5 < smoke(side=32).per_image / base.per_image < 4.5, "the levels without attention go with the pixels"
    assert base.at(9) - base.at(8) == base.per_image
    assert smoke(training=False).at(8) < base.at(8)
    assert smoke(dtype=None).fixed < base.fixed, "float32 needs no copy of the weights in half precision"


def test_norms_are_taken_in_single_precision_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's autocast keeps group norms in float32: half as much again as a CPU's, measured on the small network."""
    with memory._Counting() as count:
        network = _with_gradients()
        gpu = count.peak_of(partial(memory.train_step, network, 32, 16, torch.bfloat16))
        monkeypatch.setattr(memory._CudaRules, "__torch_function__", lambda s, f, t, a=(), k=None: f(*a, **(k or {})))
        cpu = count.peak_of(partial(memory.train_step, network, 32, 16, torch.bfloat16))
    assert 1.3 < gpu / cpu < 2.0


def test_an_estimate_allocates_nothing_and_draws_no_random_number() -> None:
    before = torch.get_rng_state()
    estimate = training_memory("smoke", side=4096, channels=4)
    assert estimate.at(64) > 2**40, "a terabyte, which no test machine has"
    assert torch.equal(before, torch.get_rng_state())


def test_latents_that_are_none_are_refused() -> None:
    for wrong in ({"side": 0}, {"channels": 0}, {"width": 0.0}):
        with pytest.raises(ParameterError):
            smoke(**wrong)
    with pytest.raises(ParameterError, match="No network size"):
        training_memory("huge", side=8, channels=4)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs Linux's account of memory")
@pytest.mark.parametrize(
    ("run", "dtype", "tolerance"),
    # Evaluation keeps little, so the buffers that the CPU's convolutions reorder their inputs into weigh more.
    [("train_step", "bf16", 0.05), ("train_step", "fp32", 0.05), ("evaluate", "bf16", 0.15)],
)
def test_a_real_step_takes_what_was_estimated(run: str, dtype: str, tolerance: float) -> None:
    """Between two batches, so that what Python and torch take for themselves cancels."""
    # Freed tensors are to go back to the system at once, else the heap's holes are counted.
    environment = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "OMP_NUM_THREADS": "1"}
    taken = []
    for n in (32, 96):
        words = [sys.executable, "-c", MEASURE, str(n), dtype, run]
        done = subprocess.run(words, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        taken.append(1024 * int(done.stdout))
    of = training_memory if run == "train_step" else evaluation_memory
    estimate = of("small", side=32, channels=4, dtype={"bf16": torch.bfloat16, "fp32": None}[dtype])
    assert taken[1] - taken[0] == pytest.approx(64 * estimate.per_image, rel=tolerance)


@given(
    batch=st.integers(1, 256), free=st.integers(0, 10**6), fixed=st.integers(0, 10**4), per_image=st.integers(1, 10**4)
)
def test_the_chosen_micro_batch_is_the_largest_that_fits(batch: int, free: int, fixed: int, per_image: int) -> None:
    if fixed + per_image > free:
        with pytest.raises(ParameterError, match="smaller profile"):
            accumulation_that_fits(batch, free, fixed, per_image)
        return
    parts = accumulation_that_fits(batch, free, fixed, per_image)
    assert batch % parts == 0 and fixed + batch // parts * per_image <= free
    larger = [batch // fewer for fewer in range(1, parts) if batch % fewer == 0]
    assert all(fixed + n * per_image > free for n in larger)


def test_an_impossible_choice_names_what_is_needed_and_what_is_there() -> None:
    with pytest.raises(ParameterError, match=r"takes 3\.0 GiB .* and 2\.5 GiB can .* smaller profile"):
        accumulation_that_fits(16, int(2.5 * GIB), GIB, 2 * GIB)
    for wrong in ((0, 1, 1, 1), (1, -1, 1, 1), (1, 9, -1, 1), (1, 9, 1, 0)):
        with pytest.raises(ParameterError, match="No batch"):
            accumulation_that_fits(*wrong)


def test_some_memory_is_never_planned_with() -> None:
    assert usable_bytes(0) == usable_bytes(GIB // 2) == 0
    assert usable_bytes(11 * GIB) == int(0.85 * 10.5 * GIB)


def test_without_a_gpu_auto_is_one(profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    made, plain = plans(profile)["network"], plans(load_profile("smoke"))["network"]
    assert made.arguments == plain.arguments and made.key == plain.key and made.note == ""


def test_a_large_gpu_takes_the_whole_batch(profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    small_gpu(monkeypatch, 80)
    made = plans(profile)["network"]
    assert made.key == plans(load_profile("smoke"))["network"].key and made.note == ""


def gib_for(n: float) -> float:
    """Size of a GPU on which n images of the smoke profile fit."""
    estimate = smoke()
    return ((estimate.state + estimate.fixed + n * estimate.per_image) / memory.HEADROOM + memory.CONTEXT) / GIB


def test_a_small_gpu_takes_smaller_micro_batches_and_says_so(
    profile: Profile, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small_gpu(monkeypatch, 80, gib_for(5))  # the smaller of two decides
    made = plans(profile)["network"]
    assert made.arguments["accumulation"] == 4 and made.arguments["batch"] == 16
    assert "a batch of 16 takes about" in made.note and "4 micro-batches of 4, the same batch in effect." in made.note
    fixed = load_profile("smoke", {"train.accumulation": "4"})
    assert made.key == plans(fixed)["network"].key != plans(load_profile("smoke"))["network"].key
    made.tell()
    assert capsys.readouterr().err == made.note + "\n"
    plans(fixed)["network"].tell()
    assert capsys.readouterr().err == "", "who asked for it knows"


def test_a_gpu_that_holds_not_one_image_is_told_before_anything_runs(
    profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_gpu(monkeypatch, gib_for(0.9))
    with pytest.raises(ParameterError, match="one image at a time"):
        plans(profile)
    small_gpu(monkeypatch, gib_for(1.1))
    assert parts_of(profile) == 16


def test_an_ablation_is_fitted_by_its_own_size(profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    small_gpu(monkeypatch, gib_for(16.5))
    base = plans(profile)
    parts = [
        train_plan(profile, base, seed=0, **changes).arguments["accumulation"]
        for changes in ({}, {"width": 2.0}, {"codec_factor": 4}, {"codec": "kl"})
    ]
    assert parts[0] == 1 and parts[1] > 1 and parts[2:] == [1, 1]


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_share_micro_batches_that_fit(monkeypatch: pytest.MonkeyPatch, processes: int) -> None:
    monkeypatch.setattr("medshift.stages.training.World", lambda: SimpleNamespace(size=processes, rank=0))
    parts = accumulation_that_fits(64, 30, 10, 1)
    n, own = micro_batch(64, parts)
    assert parts == 4 and 10 + n <= 30 and n * own * processes == 64


def test_the_latents_of_every_profile() -> None:
    shapes = {"cpu": (32, 4), "smoke": (16, 4), "gpu": (64, 8), "paper": (96, 4)}
    for name, shape in shapes.items():
        profile = load_profile(name)
        assert latent_shape(profile, profile.codec.kind, profile.codec.factor) == shape


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "true", "often", "[2]"])
def test_other_accumulations_are_refused(value: str) -> None:
    with pytest.raises(ParameterError, match=r"train\.accumulation: .*whole number of at least 1, or auto") as caught:
        load_profile("smoke", {"train.accumulation": value})
    assert "\n" not in str(caught.value)


def test_the_large_profiles_leave_it_to_the_machine() -> None:
    kept = {name: load_profile(name).train.accumulation for name in ("smoke", "cpu", "gpu", "paper")}
    assert kept == {"smoke": 1, "cpu": 1, "gpu": "auto", "paper": "auto"}


@pytest.mark.parametrize(("arguments", "mend"), [({"accumulation": 2}, "train.accumulation=4 (it is 2)"), ({}, "")])
def test_memory_that_runs_out_in_a_stage_names_what_to_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, int], mend: str
) -> None:
    (tmp_path / "full_stage.py").write_text(
        "import torch\ndef build(job, **arguments):\n    raise torch.OutOfMemoryError('CUDA out of memory.\\nMore.')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("medshift.repro.stage.code_of", lambda roots: SimpleNamespace(modules={}, packages={}))
    plan = Plan("full", "full_stage", arguments, label="training", note="Said before.")
    with pytest.raises(DeviceMemoryError) as caught:
        plan.ensure(tmp_path / "runs", device="cuda:1")
    text = str(caught.value)
    assert text.startswith("training: memory ran out on cuda:1 (CUDA out of memory.)") and mend in text
    assert ("train.accumulation" in text) == bool(arguments) and "smaller profile" in text and "\n" not in text
    assert caught.value.exit_code == 5 and isinstance(caught.value.__cause__, torch.OutOfMemoryError)


def test_the_table_is_made_of_the_estimates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "GIB", MIB)  # of which a smoke network takes some
    lines = memory_table(("smoke",)).splitlines()
    assert [line.count("|") for line in lines] == [len(SHOWN) + 5] * 4
    for line, training in zip(lines[2:], (True, False), strict=True):
        numbers = [float(cell) for cell in line.split("|")[5:-1]]
        assert numbers == [pytest.approx(smoke(training).at(n) / MIB, abs=0.006) for n in SHOWN]
