"""How the bench measures: everyone in turns, medians and spreads, and the machine's own ceiling.

On a CPU with one thread (``OMP_NUM_THREADS=1``) seconds are those of the processor, which other work on the machine
hardly lengthens; with several they are those of the clock on the wall, for which the machine should be idle. On a GPU
they are those between two events on the device, after turns that are not measured.

Three variables of the environment: MEDSHIFT_BENCH_DEVICE, where `test_device.py` runs (``cpu`` if unset);
MEDSHIFT_BENCH_QUICK, sizes that only show that a bench runs; MEDSHIFT_BENCH_PEERS, names of the peers that take part.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from medshift.costs.flops import counted

PACKAGES = ("torch", "diffusers", "torchdiffeq", "torchcfm")
QUICK = bool(os.environ.get("MEDSHIFT_BENCH_QUICK"))
DEVICE = torch.device(os.environ.get("MEDSHIFT_BENCH_DEVICE", "cpu"))
# What pytest is told by `make bench` on a CPU, and on a GPU.
TOLD = {"cpu": ("-s", "tests/bench", "-m", "bench"), "cuda": ("-s", "tests/bench/test_device.py", "-m", "bench")}
SAID = ("OMP_NUM_THREADS", "MEDSHIFT_BENCH_QUICK", "MEDSHIFT_BENCH_PEERS", "MEDSHIFT_BENCH_DEVICE")
CPU = torch.device("cpu")


class Timing(NamedTuple):
    """Seconds of every turn."""

    turns: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.turns)

    @property
    def best(self) -> float:
        return min(self.turns)

    @property
    def worst(self) -> float:
        return max(self.turns)

    def spread(self, of: Callable[[float], float] = float) -> str:
        """The least and the largest turn, in whatever unit `of` makes of seconds."""
        low, high = sorted((of(self.best), of(self.worst)))
        return f"{low:.3g} to {high:.3g}"


def now() -> float:
    """Seconds of the processor where torch has one thread, else of the clock on the wall."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def taken(function: Callable[[], object], device: torch.device = CPU) -> float:
    """Seconds of one call; on a GPU until the device has done all that the call asked of it."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        start.record()
        function()
        end.record()
        torch.cuda.synchronize(device)
        return start.elapsed_time(end) / 1e3
    begin = now()
    function()
    return now() - begin


def in_turns(
    functions: Mapping[str, Callable[[], object]], turns: int = 5, unmeasured: int = 1, device: torch.device = CPU
) -> dict[str, Timing]:
    """Each function `unmeasured` times, then all of them in turns: what slows the machine slows them all."""
    for function in [*functions.values()] * unmeasured:
        function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(turns):
        for name, function in functions.items():
            seconds[name].append(taken(function, device))
    return {name: Timing(found) for name, found in seconds.items()}


def ratio(slow: Timing, quick: Timing) -> str:
    """How many times faster `quick` is: ratio of medians, then of the best turns."""
    return f"{slow.median / quick.median:.2f} ({slow.best / quick.best:.2f})"


def flops(function: Callable[[], object]) -> float:
    """Floating-point operations of one call, by torch's counter and its formulas, fused attention included."""
    return float(counted(function))


class Ceilings:
    """The best matrix product in float32 and bfloat16, measured at every `look` and the best of all kept."""

    def __init__(self, device: torch.device = CPU) -> None:
        self.device = device
        self.best = {torch.float32: 0.0, torch.bfloat16: 0.0}
        self.look()

    def look(self) -> None:
        for dtype in self.best:
            self.best[dtype] = max(self.best[dtype], ceiling(dtype, self.device))

    def share(self, operations: float, seconds: float, dtype: torch.dtype) -> str:
        """What part of the ceiling so many operations in so many seconds are."""
        return f"{operations / seconds / self.best[dtype]:.0%}"

    def __str__(self) -> str:
        said = [f"{value / 1e9:.3g} in {name(dtype)}" for dtype, value in self.best.items()]
        return f"Best matrix product [GFLOP/s], before and after: {', '.join(said)}."


def ceiling(dtype: torch.dtype, device: torch.device = CPU) -> float:
    """The best FLOP/s of a matrix product here and now, over some sizes."""
    best, sizes = 0.0, (2048, 4096, 8192) if device.type == "cuda" else (512, 1024, 2048)
    for n in sizes[:1] if QUICK else sizes:
        a, b = torch.randn(2, n, n, device=device).to(dtype)
        for _ in range(5):
            best = max(best, 2 * n**3 / taken(lambda a=a, b=b: a @ b, device))
    return best


def best_copy(device: torch.device = CPU) -> float:
    """The best bytes/s of a copy here and now, reading and writing, of more than any cache holds."""
    source = torch.randn(2**28 if device.type == "cuda" else 2**24, device=device)
    target = torch.empty_like(source)
    return max(2 * 4 * len(source) / taken(lambda: target.copy_(source), device) for _ in range(7))


def name(dtype: torch.dtype) -> str:
    """A dtype without its package."""
    return str(dtype).removeprefix("torch.")


def load() -> str:
    """How busy the machine is."""
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"


def command(told: Sequence[str], device: torch.device = CPU) -> str:
    """What was run: `make bench` where pytest was told what that tells it, and the whole command in any case."""
    said = " ".join([f"{key}={os.environ[key]}" for key in SAID if key in os.environ])
    whole = " ".join(part for part in (said, "python -m pytest", *told) if part)
    if tuple(told) != TOLD.get(device.type) or QUICK or "MEDSHIFT_BENCH_PEERS" in os.environ:
        return f"`{whole}`"
    return f"`make bench{'' if device.type == 'cpu' else f' DEVICE={device}'}`, that is `{whole}`"


def machine(load_before: str, device: torch.device = DEVICE) -> list[str]:
    """Lines that name machine, versions and command."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    clock = "seconds of the processor" if torch.get_num_threads() == 1 else "seconds on the wall"
    abilities = [name for name, able in torch.cpu.get_capabilities().items() if able is True and "bf16" in name]
    versions = []
    for package in PACKAGES:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{package} not installed")
    threads = f"{torch.get_num_threads()} thread(s), {clock}"
    said = [
        f"Machine: {models[0] if models else platform.processor()}, {os.cpu_count()} cores, {platform.system()} "
        f"{platform.machine()}; {threads}; {', '.join(abilities) or 'no bfloat16'}; load over a minute {load_before} "
        f"before the first bench and {load()} after the last, their own included.",
        f"Versions: Python {platform.python_version()}, {', '.join(versions)}.",
        f"Command: {command(sys.argv[1:], device)}.",
    ]
    return [*said, *([gpu(device)] if device.type == "cuda" else [])]


def gpu(device: torch.device) -> str:
    """A line that names the GPU."""
    own = torch.cuda.get_device_properties(device)
    return (
        f"Device: {own.name}, {own.total_memory / 2**30:.0f} GiB, compute capability {own.major}.{own.minor}, CUDA "
        f"{torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}; TF32 allowed for float32; seconds between "
        "events on the device."
    )


def allow_tf32() -> None:
    """Single precision by TensorFloat-32 for everybody on a GPU, the float32 ceiling included."""
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
