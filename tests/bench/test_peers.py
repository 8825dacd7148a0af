"""Ours beside its peers: seconds per image, training, memory, the first image. Tables go to build/bench.md."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from measuring import ceiling, flops, in_turns, ratio
from peers.predecessor import Predecessor
from peers.roster import BASE, COMPILED, FAST, NAMES, absent, make
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from medshift.codec import KLCodec
from medshift.data.acquisition import acquire
from medshift.data.domains import DOMAINS
from medshift.data.phantom import phantom
from medshift.data.projection import level_for, project
from medshift.data.views import draw_trained
from medshift.fast import fast
from medshift.flow_training import FlowMatching, load_flow
from medshift.guidance import CountingVelocity
from medshift.latents_once import latents_once
from medshift.lean_network import LeanUNet
from medshift.many import sweep
from medshift.network import VelocityNetwork
from medshift.ode import leg_knots
from medshift.schedules import autocast_dtype
from medshift.translate import AS_PUBLISHED, MedShift

pytestmark = [pytest.mark.bench, pytest.mark.slow, pytest.mark.timeout(3600)]
WEIGHTS = Path(__file__).parents[2] / "medshift/weights/cpu/medshift"
TAU, SCALE, STEPS = 0.3, 2.0, 50
KNOTS = leg_knots(TAU, "uniform", STEPS)
INTERVALS = 2 * (len(KNOTS) - 1)  # of both legs
SWEPT = (0.02, 0.05, 0.1, 0.2, 0.3, 0.45, 0.6)
SETTING = f"τ = {TAU}, guidance {SCALE:g} on both legs, {STEPS} Euler steps: {INTERVALS} steps, {2 * INTERVALS} NFE"


@pytest.fixture(scope="module")
def network() -> VelocityNetwork:
    """The shipped network: 6.8 M parameters, latents of four channels."""
    return load_flow(WEIGHTS).network


@pytest.fixture(scope="module")
def peers(network: VelocityNetwork) -> dict[str, Any]:
    return {name: make(name, network) for name in NAMES if absent(name) is None}


def latents(batch: int, side: int) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, 4, side, side, generator=torch.Generator().manual_seed(0)), torch.arange(batch) % 5


def rendered(size: int) -> Tensor:
    """A view (1, 1, size, size) of the procedural head in domain 1."""
    generator, level = torch.Generator().manual_seed(0), level_for(phantom(0), 220 / size)
    poses = draw_trained(1, generator)
    views = project(level, poses, size)
    return acquire(views.line_integrals, views.open_field, poses[:, 5], DOMAINS[1], generator=generator)


@pytest.mark.parametrize("side", [32, 64, 96])
def test_seconds_per_image(report: Any, peers: dict[str, Any], side: int) -> None:
    work = {}
    rows: dict[str, list[str]] = {name: [peer.name] for name, peer in peers.items()}
    for batch in (1, 8, 32):
        x, label = latents(batch, side)
        for name, peer in peers.items():
            work[name] = partial(peer.leg, x, label, KNOTS[:2], SCALE)
        pixels = batch * side**2
        timings = in_turns(work, turns=1 if pixels > 200_000 else 3 if pixels > 40_000 else 7)
        for name, timing in timings.items():
            rows[name] += [f"{timing.median * INTERVALS / batch:.3g}", ratio(timings[BASE], timing)]
    for name in NAMES:
        if why := absent(name):
            rows[name] = [name, *[why] * 6]
    header = ["seconds per image"] + [f"{cell}{b}" for b in (1, 8, 32) for cell in ("batch ", "× at batch ")]
    note = (
        f"{SETTING}. Medians of one measured step, times {INTERVALS}; in brackets ratios of the best turns. Steps cost "
        "the same at every time. ×: times faster than the predecessor's way. The same weights (6.8 M) everywhere."
    )
    report.table(f"Seconds per image, latents of {side}²", header, [rows[name] for name in NAMES], note)


def test_share_of_the_ceiling(report: Any, network: VelocityNetwork, peers: dict[str, Any]) -> None:
    x, label = latents(1, 96)
    useful = flops(partial(peers["plain"].leg, x, label, KNOTS[:2], SCALE))
    best = {dtype: ceiling(dtype) for dtype in (torch.float32, torch.bfloat16)}
    timings = in_turns({name: partial(peer.leg, x, label, KNOTS[:2], SCALE) for name, peer in peers.items()}, turns=9)
    best = {dtype: max(value, ceiling(dtype)) for dtype, value in best.items()}
    rows = []
    for name, peer in peers.items():
        done = flops(partial(peer.leg, x, label, KNOTS[:2], SCALE))
        half = name in ("autocast", *(n for n in NAMES if n.endswith("bf16")))
        dtype = peer.velocity.dtype if name == FAST else torch.bfloat16 if half else torch.float32
        speed, top = done / timings[name].median, best[dtype]
        cells = [f"{value / 1e9:.3g}" for value in (done, speed, top)]
        rows.append([peer.name, str(dtype).removeprefix("torch."), *cells, f"{speed / top:.0%}"])
    header = ["one guided step, 96², batch 1", "dtype", "GFLOP", "GFLOP/s", "best matrix product, GFLOP/s", "share"]
    note = f"The network as it is written takes {useful / 1e9:.3g} GFLOP; ceilings were measured before and after."
    report.table("Share of the machine's own ceiling", header, rows, note)


def test_translation_at_equal_output(report: Any, peers: dict[str, Any]) -> None:
    codec, images = load_flow(WEIGHTS).codec, rendered(192)
    x, source, target = codec.encode(images), torch.tensor([1]), torch.tensor([3])
    results: dict[str, Tensor] = {}

    def run(name: str) -> None:
        z = peers[name].leg(x, source, KNOTS[::-1], SCALE)
        results[name] = codec.decode(peers[name].leg(z, target, KNOTS, SCALE))

    chosen = [BASE, "plain", FAST]
    timings = in_turns({name: partial(run, name) for name in chosen}, turns=3)
    rows = []
    for name in chosen:
        error = float((results[name] - results["plain"]).square().mean())
        quality = f"{10 * math.log10(2**2 / error):.1f}" if error else "the same bits"
        both = ratio(timings[BASE], timings[name])
        rows.append([peers[name].name, f"{timings[name].median:.2f}", f"{timings[name].best:.2f}", both, quality])
    header = ["one image", "seconds", "best turn", "× predecessor (best turns)", "PSNR to the plain path [dB]"]
    moved = 10 * math.log10(2**2 / float((results["plain"] - images).square().mean()))
    note = f"{SETTING}. A rendered view of 192²; the translation itself is {moved:.1f} dB away from it. Measured whole."
    report.table("A whole translation, latents of 96², batch 1", header, rows, note)


def test_sweep(report: Any, network: VelocityNetwork, peers: dict[str, Any]) -> None:
    codec = load_flow(WEIGHTS).codec
    images = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0)).mul(0.3)
    predecessor, targets = peers[BASE], range(5)
    counts = {"separate": CountingVelocity(fast(network)), "sweep": CountingVelocity(fast(network))}
    models = {name: MedShift(count, codec, 5) for name, count in counts.items()}
    knobs: dict[str, Any] = {"guidance": SCALE, **AS_PUBLISHED}

    def theirs() -> None:
        for tau in SWEPT:
            knots = leg_knots(tau, "uniform", STEPS)
            for target in targets:
                z = predecessor.leg(codec.encode(images), torch.tensor([1]), knots[::-1], SCALE)
                codec.decode(predecessor.leg(z, torch.tensor([target]), knots, SCALE))

    def separate() -> None:
        for tau in SWEPT:
            for target in targets:
                models["separate"].translate(images, 1, target, tau=tau, **knobs)

    def swept() -> None:
        sweep(models["sweep"], images, 1, tuple(targets), SWEPT, **knobs)

    work: dict[str, Callable[[], None]] = {"predecessor": theirs, "separate": separate, "sweep": swept}
    timings = in_turns(work, turns=2, unmeasured=0)
    nfe = {name: count.rows // 2 for name, count in counts.items()}
    nfe["predecessor"] = nfe["separate"]
    names = {"predecessor": "predecessor's way", "separate": "fast, separate calls", "sweep": "fast, one encode leg"}
    rows = [
        [names[n], nfe[n], f"{t.median:.1f}", ratio(timings["predecessor"], t), f"{nfe['predecessor'] / nfe[n]:.2f}"]
        for n, t in timings.items()
    ]
    header = ["7 τ × 5 targets", "NFE", "seconds", "× predecessor (best turns)", "factor of fewer evaluations"]
    note = f"One image, latents of 32², τ = {', '.join(map(str, SWEPT))}, guidance {SCALE:g}, {STEPS} Euler steps."
    report.table("A sweep over τ and targets", header, rows, note)


def stepping(module: torch.nn.Module, loss: Callable[[], Tensor], *, fused: bool) -> Callable[[], None]:
    """An optimiser step: loss, gradient, clipping, AdamW, moving average."""
    module.requires_grad_(True).train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-5, weight_decay=1e-5, fused=fused)
    average = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(0.999))

    def step() -> None:
        loss().backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(module)

    return step


def test_training(report: Any, network: VelocityNetwork, peers: dict[str, Any]) -> None:
    batch, pixels = 32, 128
    with torch.random.fork_rng():
        torch.manual_seed(0)
        codec = KLCodec.build(channels=4).requires_grad_(False).eval()
    images, label = torch.randn(batch, 1, pixels, pixels), torch.arange(batch) % 5
    with torch.no_grad():
        encoded = codec.encode(images)
    generator = torch.Generator().manual_seed(0)
    own = FlowMatching(copy.deepcopy(network).requires_grad_(True), latents_once(codec), tuple("abcde"))
    dtype = autocast_dtype("cpu")

    def loss() -> Tensor:
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            return own.step((encoded, label), generator)["network"]

    def theirs(peer: Any, encode: bool) -> Tensor:
        with torch.no_grad():
            data = codec.encode(images) if encode else encoded
        return peer.loss(data, label, generator)

    former, bare = Predecessor(network), Predecessor(network)
    work = {
        "predecessor's way, encoding every batch": stepping(former.module, partial(theirs, former, True), fused=False),
        "predecessor's way, latents encoded once": stepping(bare.module, partial(theirs, bare, False), fused=False),
        f"ours, latents encoded once, {dtype or 'float32'} autocast": stepping(own.network, loss, fused=True),
    }
    for name in ("torchcfm", "diffusers"):
        if absent(name) is None:
            peer = make(name, network)
            work[f"{peer.name}, latents encoded once"] = stepping(
                peer.module, partial(theirs, peer, False), fused=False
            )
    timings = in_turns(work, turns=3)
    first = next(iter(timings.values()))
    rows = [[name, f"{batch / t.median:.3g}", f"{batch / t.best:.3g}", ratio(first, t)] for name, t in timings.items()]
    rows += [[name, why, "", ""] for name in ("torchcfm",) if (why := absent(name))]
    header = ["batch 32, latents of 32²", "images/s", "best turn", "× predecessor (best turns)"]
    note = f"Images of {pixels}², a KL autoencoder of stride 4 (untrained: the work is the same), 6.8 M parameters."
    report.table("Training", header, rows, note)


def test_each_idea_alone(report: Any, network: VelocityNetwork) -> None:
    (x, label), t = latents(2, 96), torch.tensor(0.5)
    laid = copy.deepcopy(network).to(memory_format=torch.channels_last)
    half = copy.deepcopy(network).to(torch.bfloat16)
    quick = {dtype: fast(network, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)}
    kept = quick[torch.bfloat16]
    work: dict[str, Callable[[], object]] = {
        "plain, float32, one call of two": lambda: network(x, t, label),
        "plain, two calls of one": lambda: [network(x[k : k + 1], t, label[k : k + 1]) for k in (0, 1)],
        "channels-last": lambda: laid(x, t, label),
        "bfloat16 autocast": lambda: autocast(network, x, t, label),
        "bfloat16 autocast, channels-last": lambda: autocast(laid, x, t, label),
        "bfloat16 weights": lambda: half(x.bfloat16(), t, label),
        "the lean arrangement, float32": lambda: quick[torch.float32](x, t, label),
        "the lean arrangement, bfloat16: fast": lambda: kept(x, t, label),
        "the same, conditioning computed at each call": lambda: kept(x, t.expand(2), label),
        "the same under inference mode": lambda: inferred(kept, x, t, label),
        "the same without doubling by transposed convolutions": without_doubling(network, x, t, label),
    }

    def measured() -> dict[str, Any]:
        with torch.no_grad():
            return in_turns(work, turns=15)

    timings = measured()
    first = timings["plain, float32, one call of two"]
    rows = [[name, f"{1e3 * t.median:.0f}", f"{1e3 * t.best:.0f}", ratio(first, t)] for name, t in timings.items()]
    header = ["two branches of one image, 96²", "ms", "best turn", "× plain (best turns)"]
    report.table("Each idea alone", header, rows)


def autocast(network: VelocityNetwork, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return network(x, t, label)


def inferred(velocity: Any, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
    with torch.inference_mode():
        return velocity(x, t, label)


def without_doubling(network: VelocityNetwork, x: Tensor, t: Tensor, label: Tensor) -> Callable[[], Tensor]:
    velocity = fast(network, dtype=torch.bfloat16)
    lean: LeanUNet = velocity.lean
    for level, block in zip(lean.up, network.unet.get_submodule("up_blocks").children(), strict=True):
        if level.resample is not None:
            upsampling = copy.deepcopy(block.get_submodule("upsamplers.0"))
            level.resample = upsampling.to(torch.bfloat16, memory_format=torch.channels_last)
    return lambda: velocity(x, t, label)


def test_first_image(report: Any) -> None:
    script, rows = Path(__file__).parent / "peers" / "first_image.py", []
    for name in (*NAMES, *COMPILED):
        if why := absent(name):
            rows.append([name, why, *[""] * 6])
            continue
        done = subprocess.run([sys.executable, str(script), name, "32"], capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        seconds = [found[part] for part in ("import", "load", "first", "second")]
        cells = [f"{value:.2f}" for value in (*seconds, sum(seconds[:3]))]
        rows.append([name, *cells, f"{found['peak']:.0f}", f"{found['eight']:.0f}"])
    header = ["a fresh process", "import", "load", "first image", "second image", "to first image [s]", "peak [MiB]"]
    report.table(
        "Time to the first image, and memory",
        [*header, "more for 8 of 96² [MiB]"],
        rows,
        f"Seconds; latents of 32², batch 1, {SETTING}. A compiler's time is in the first image.",
    )
