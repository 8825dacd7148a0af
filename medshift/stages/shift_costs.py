"""What the field costs of a step of CDTSDE, by the side of the image: measured on this machine."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch

from medshift.conditional import ConditionalNetwork
from medshift.domain_shift import ShiftSchedule, reverse_step
from medshift.mixing_field import PixelField
from medshift.stages.job import Job

CHANNELS, PATCH = 4, 2  # of the latents


@torch.no_grad()
def build(job: Job, *, sizes: Sequence[int], repeats: int, seed: int) -> None:
    """Write costs.json: for each side [pixels] the median seconds of network, field and step arithmetic, batch 1.

    Args:
        job: where, and on which device.
        sizes: sides of square images; latents have half of that.
        repeats: how often each is timed, in turns, after one that is not.
        seed: of weights and inputs.
    """
    torch.manual_seed(seed)
    network = ConditionalNetwork(CHANNELS).to(job.device).eval()
    field, schedule = PixelField(CHANNELS).to(job.device).eval(), ShiftSchedule()
    found = []
    for k, size in enumerate(sizes):
        x, y, z = torch.randn(3, 1, CHANNELS, size // PATCH, size // PATCH, device=job.device)
        times = torch.tensor([400, 300])
        lam = schedule.mixing(times).to(x)
        alpha, sigma = schedule.signal(times).to(x), schedule.noise(times).to(x)
        lam_t, lam_s = field(lam[:1], y), field(lam[1:], y)
        ends = {"lam_t": lam_t, "lam_s": lam_s, "alpha_t": alpha[0], "alpha_s": alpha[1]}
        parts: dict[str, Callable[[], object]] = {
            "network": partial(network, x, torch.tensor(0.4, device=x.device), y),
            "field": partial(field, lam[:1], y),
            "arithmetic": partial(reverse_step, x, x, y, **ends, sigma_t=sigma[0], sigma_s=sigma[1], noise=z),
        }
        seconds: dict[str, list[float]] = {name: [] for name in parts}
        for turn in range(repeats + 1):
            for name, run in parts.items():
                lasted = _seconds(run, job.device)
                if turn:
                    seconds[name].append(lasted)
        found.append({"size": size, **{name: statistics.median(values) for name, values in seconds.items()}})
        job.progress((k + 1) / len(sizes), f"{size} pixels")
    facts = {"threads": torch.get_num_threads(), "device": job.device, "costs": found}
    (job.folder / "costs.json").write_text(json.dumps(facts, indent=1))


def _seconds(run: Callable[[], object], device: str) -> float:
    start = time.perf_counter()
    run()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - start
