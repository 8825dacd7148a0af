"""How the bench measures: everyone in turns, medians and spreads, and the machine's own ceiling.

With one thread (``OMP_NUM_THREADS=1 make bench``) seconds are those of the processor, which other work on the machine
hardly lengthens; with several they are those of the clock on the wall, for which the machine should be idle.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

PACKAGES = ("torch", "diffusers", "torchdiffeq", "torchcfm")


def now() -> float:
    """Seconds of the clock in use."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


class Timing(NamedTuple):
    """Seconds of every turn."""

    turns: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.turns)

    @property
    def best(self) -> float:
        return min(self.turns)


def in_turns(functions: Mapping[str, Callable[[], object]], turns: int = 5, unmeasured: int = 1) -> dict[str, Timing]:
    """Each function `unmeasured` times, then all of them in turns: what slows the machine slows them all."""
    for function in [*functions.values()] * unmeasured:
        function()
    taken: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(turns):
        for name, function in functions.items():
            start = now()
            function()
            taken[name].append(now() - start)
    return {name: Timing(seconds) for name, seconds in taken.items()}


def ratio(slow: Timing, quick: Timing) -> str:
    """How many times faster `quick` is: ratio of medians, then of the best turns."""
    return f"{slow.median / quick.median:.2f} ({slow.best / quick.best:.2f})"


def flops(function: Callable[[], object]) -> float:
    """Floating-point operations of one call, by torch's counter."""
    with FlopCounterMode(display=False) as counter:
        function()
    return float(counter.get_total_flops())


def ceiling(dtype: torch.dtype) -> float:
    """The best FLOP/s of a matrix product here and now, over three sizes."""
    best = 0.0
    for n in (512, 1024, 2048):
        a, b = torch.randn(2, n, n).to(dtype)
        for _ in range(5):
            start = now()
            a @ b
            best = max(best, 2 * n**3 / (now() - start))
    return best


def machine() -> list[str]:
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
    load = f"; load over the last minute {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    told = f"OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']} " if "OMP_NUM_THREADS" in os.environ else ""
    threads = f"{torch.get_num_threads()} thread(s), {clock}"
    return [
        f"Machine: {models[0] if models else platform.processor()}, {os.cpu_count()} cores, {platform.system()} "
        f"{platform.machine()}; {threads}; {', '.join(abilities) or 'no bfloat16'}{load}.",
        f"Versions: Python {platform.python_version()}, {', '.join(versions)}.",
        f"Command: `make bench`, that is `{told}{' '.join(['python', '-m', 'pytest', *sys.argv[1:]])}`.",
    ]
