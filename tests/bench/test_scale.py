"""What cost grows with: pixels, domains, images, processes; and where the time of a step goes. For docs/scale.md."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from measuring import QUICK, Ceilings, Timing, best_copy, flops, in_turns, name
from PIL import Image
from rooflines import HEADER, classes, operations, rows
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from medshift.codec import PatchCodec
from medshift.costs.flops import evaluation
from medshift.data.acquisition import acquire
from medshift.data.domains import DOMAINS
from medshift.data.phantom import phantom
from medshift.data.projection import level_for, project
from medshift.data.views import draw_trained
from medshift.fast import fast
from medshift.flow_training import FlowMatching, load_flow
from medshift.guidance import guided
from medshift.network import VelocityNetwork, build_network
from medshift.schedules import autocast_dtype

pytestmark = [pytest.mark.bench, pytest.mark.slow, pytest.mark.timeout(3600)]
HERE = Path(__file__).parent
SCRIPT, WEIGHTS = HERE / "scale_process.py", HERE.parents[1] / "medshift/weights/cpu/medshift"
SIDES, COUNTS = (32, 64, 128, 256, 512), (2, 5, 20, 100, 1000)
FEW, MANY = 10, 200
SECONDS, MEBIBYTES = 60.0, 8192.0  # what one evaluation may take
STEPS = 8


@pytest.fixture(scope="module")
def network() -> VelocityNetwork:
    """The shipped network."""
    return load_flow(WEIGHTS).network


def process(*arguments: object, processes: int = 1, threads: int | None = None) -> dict[str, Any]:
    """What the script prints, in a fresh process, or of several that torchrun starts."""
    start = [sys.executable]
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    count = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    command = [*start, str(SCRIPT), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | count)
    return json.loads(done.stdout.splitlines()[-1])


def exponent(pixels: list[int], seconds: list[float]) -> float:
    """The slope of log time against log pixels, by least squares."""
    return float(np.polyfit(np.log(pixels), np.log(seconds), 1)[0])


def test_pixels(report: Any, network: VelocityNetwork) -> None:
    velocity, cells_of, pixels, seconds, tops = fast(network), [], [], [], Ceilings()
    peaks: list[float] = []
    for side in SIDES[:2] if QUICK else SIDES:
        images = f"{side}² ({2 * side}²)"
        # The next size has four times the pixels; attention's part grows by sixteen.
        if seconds and (16 * seconds[-1] > SECONDS or 4 * peaks[-1] > MEBIBYTES):
            cells_of.append([images, "left out: may take over 60 s or 8 GiB", *[""] * 8])
            continue
        found = process("evaluate", side)
        x, label = torch.randn(2, 4, side, side), torch.tensor([1, 5])
        total = flops(lambda x=x, label=label: velocity(x, torch.tensor(0.5), label))
        attending = 2 * attention_flops(network, side)
        pixels.append(side**2)
        seconds.append(found["seconds"])
        peaks.append(found["peak"] - found["held"])
        local = f"{exponent(pixels[-2:], seconds[-2:]):.2f}" if len(pixels) > 1 else ""
        turns = Timing(found["turns"]).spread(lambda seconds: 1e3 * seconds)
        cells = [f"{1e3 * found['seconds']:.1f}", turns, f"{1e9 * found['seconds'] / side**2:.0f}", local]
        cells += [f"{total / 1e9:.3g}", tops.share(total, found["seconds"], velocity.dtype)]
        cells += [f"{attending / total:.1%}", f"{found['peak']:.0f}", f"{peaks[-1]:.0f}"]
        cells_of.append([images, *cells])
    header = ["latents (images)", "ms", "turns", "ns a pixel of the latent", "exponent from the size before", "GFLOP"]
    header += [
        "of the best product",
        "of which products of attention",
        "peak [MiB]",
        "above what import and weights take [MiB]",
    ]
    note = (
        f"`fast`, guidance 2, one image: two rows; seconds on the wall, each size in a fresh process. Time grows as "
        f"pixels to the power {exponent(pixels, seconds):.2f}, by least squares on logarithms over the sizes measured. "
        f"Medians of what a minute allows, eight turns at most. {tops}"
    )
    report.table("One evaluation against pixels", header, cells_of, note)


def attention_flops(network: VelocityNetwork, side: int) -> float:
    """Operations of the two products that are quadratic in pixels, of one row; projections are linear."""
    config = network.config
    last = len(config.channels) - 1
    total = 0.0
    for level in {*config.attention_levels, last}:
        tokens = (side / 2**level) ** 2
        own = (2 * config.layers_per_block + 1) * (level in config.attention_levels) + (level == last)
        total += own * 4 * tokens**2 * config.channels[level]
    return total


def test_domains(report: Any) -> None:
    x, work, weights = torch.randn(2, 4, 32, 32), {}, {}
    for k in COUNTS[:2] if QUICK else COUNTS:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            made = build_network("small", n_domains=k, in_channels=4).requires_grad_(False).eval()
        weights[k] = sum(parameter.numel() for parameter in made.parameters())
        work[str(k)] = partial(fast(made), x, torch.tensor(0.5), torch.tensor([1, k]))
    timings = in_turns(work, turns=3 if QUICK else 15)
    first = timings["2"].median
    lines, tops, dtype = [], Ceilings(), fast(made).dtype
    for k, count in weights.items():
        taken = timings[str(k)].median
        pairs = k * (k - 1)
        cells = [f"{1e3 * taken:.1f}", timings[str(k)].spread(lambda seconds: 1e3 * seconds), f"{taken / first:.2f}"]
        cells += [tops.share(flops(work[str(k)]), taken, dtype), f"{count / 1e6:.3f}"]
        cells.append(f"{(count - weights[2]) / 1e6:.3f}")
        each = f"{(count - weights[2]) / (k - 2):.0f}" if k > 2 else ""
        lines.append([k, *cells, each, pairs, f"{pairs * weights[2] / 1e6:,.0f}"])
    header = [
        "domains K",
        "ms an evaluation",
        "turns",
        "× two domains",
        "of the best product",
        "10⁶ weights",
        "more than for two",
        "more a domain",
    ]
    header += ["networks, one a direction: K(K−1)", "their weights [10⁶], counted"]
    report.table(
        "One evaluation against domains, latents of 32²", header, lines, f"`fast`, two rows; untrained weights. {tops}"
    )


def test_images(report: Any, tmp_path: Path) -> None:
    lines = []
    for count in (2, 4) if QUICK else (FEW, MANY):
        place = tmp_path / str(count)
        place.mkdir()
        rng = np.random.default_rng(0)
        for k in range(count):
            smooth = Image.fromarray(rng.integers(0, 2**8, (8, 8), dtype=np.uint8)).resize((64, 64))
            smooth.save(place / f"{k:04d}.png")
        made = [process("folder", place, tmp_path / f"{count}-out-{k}") for k in range(1 if QUICK else 3)]
        timing = Timing([found["seconds"] for found in made])
        cells = [f"{1e3 * timing.median:.0f}", timing.spread(lambda seconds: 1e3 * seconds)]
        lines.append([made[0]["images"], *cells, f"{max(found['peak'] for found in made):.0f}"])
    note = "`translate_folder`, PNG of 64², one at a time, τ = 0.3, guidance 2, 4 Euler steps; a fresh process each."
    report.table("A folder against its length", ["images", "ms an image", "turns", "peak [MiB]"], lines, note)


def test_two_processes(report: Any) -> None:
    steps, cores = (1 if QUICK else STEPS), os.cpu_count() or 1
    ways = {
        "one process, one thread": (1, 1, 1),
        "one process, two threads": (1, 1, 2),
        "two processes of one thread": (2, 2, 1),
    }
    lines, base, tops, done = [], 0.0, Ceilings(), 32 * evaluation("small", 4, 32, backward=True)
    for way, (processes, parts, threads) in ways.items():
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
        found = process("train", parts, steps, processes=processes, threads=threads)
        base = base or found["seconds"]
        cells = [f"{1e3 * found['seconds']:.0f}", Timing(found["turns"]).spread(lambda seconds: 1e3 * seconds)]
        cells += [f"{32 / found['seconds']:.3g}", f"{base / found['seconds']:.2f}"]
        passed = [f"{found['averaging']:.1%}", f"{found['bytes'] / 1e6:.1f}"] if processes > 1 else ["", ""]
        share = tops.share(done, found["seconds"], autocast_dtype("cpu") or torch.float32)
        lines.append([way, *cells, share, *passed, f"{load:.1f}"])
    header = [
        "effective batch 32",
        "ms a step",
        "turns",
        "images/s",
        "× one thread",
        "of the best product",
        "of it averaging",
        "averaged [MB]",
    ]
    note = (
        f"The small network at latents of 32², {cores} cores, seconds on the wall, medians over {steps} steps. "
        "Averaging is `World.average` over gloo, waiting for the slower process included; its bytes are four a weight. "
        f"The best product is that of this process's threads. {tops}"
    )
    report.table("Training on two processes", [*header, "load before"], lines, note)


def test_parts_of_a_step(report: Any) -> None:
    generator, batch = torch.Generator().manual_seed(0), 8 if QUICK else 32
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        method = FlowMatching(build_network("small", n_domains=5, in_channels=4), PatchCodec(2), DOMAINS)
    average = AveragedModel(method.network, multi_avg_fn=get_ema_multi_avg_fn(0.999))
    level, dtype, held = level_for(phantom(0), 220 / 64), autocast_dtype("cpu"), {}
    poses = draw_trained(batch, generator)
    views = project(level, poses, 64)

    def data() -> None:  # as training does: noise anew, from line integrals that are kept
        arguments = (views.line_integrals, views.open_field, poses[:, 5], "real-normal")
        held["batch"] = acquire(*arguments, generator=generator), torch.arange(batch) % 5

    def forward() -> None:
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            held["loss"] = method.step(method.prepare(held["batch"]), generator)["network"]

    def optimiser() -> None:
        clip_grad_norm_(method.network.parameters(), 1.0)
        method.optimizer.step()
        method.optimizer.zero_grad()

    parts: dict[str, Callable[[], object]] = {
        "data: noise of a batch": data,
        "forward, encoding included": forward,
        "backward": lambda: held["loss"].backward(),
        "clipping and AdamW": optimiser,
        "moving average": lambda: average.update_parameters(method.network),
    }
    timings = in_turns(parts, turns=2 if QUICK else 9)
    whole = sum(timing.median for timing in timings.values())
    tops, product = Ceilings(), dtype or torch.float32
    data()
    operations_of = {part: flops(function) for part, function in parts.items()}
    lines = []
    for part, timing in timings.items():
        cells = [f"{1e3 * timing.median:.1f}", timing.spread(lambda seconds: 1e3 * seconds)]
        share = tops.share(operations_of[part], timing.median, product) if operations_of[part] else ""
        lines.append([part, *cells, f"{timing.median / whole:.0%}", share])
    together = tops.share(sum(operations_of.values()), whole, product)
    lines.append(["together", f"{1e3 * whole:.1f}", "", "", together])
    note = f"The small network, batch {batch}, images of 64², latents of 32², {dtype or 'float32'} autocast. {tops}"
    report.table("Parts of a training step", ["part", "ms", "turns", "share", "of the best product"], lines, note)


def test_kernel_classes(report: Any, network: VelocityNetwork) -> None:
    velocity = copy.deepcopy(fast(network))
    side, x = 32 if QUICK else 96, torch.randn(1, 4, 32 if QUICK else 96, 32 if QUICK else 96)
    field = guided(velocity, 2.0, network.null_label)

    def once() -> Tensor:
        return field(x, torch.tensor(0.5), torch.tensor([1]))

    tops, copied = Ceilings(), best_copy()
    with torch.no_grad():
        once()
        found = operations(once, repeats=2 if QUICK else 9)
    tops.look()
    copied = max(copied, best_copy())
    sums = classes(found, tops.best, copied)
    note = (
        f"One evaluation of `fast` at latents of {side}², two rows, {name(velocity.dtype)}. {tops} Best copy "
        f"{copied / 1e9:.3g} GB/s (read and written), before and after. Time is that of each operation alone, as "
        "torch's profiler sees it, which slows small ones; bytes are those of tensors read and written once. The "
        "roofline is what the slower of product and copy would take."
    )
    report.table("Kernel classes of one evaluation", HEADER, rows(sums), note)
