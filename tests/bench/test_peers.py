"""Ours beside its peers: seconds per image, training, memory, the first image. Tables go to build/bench.md."""

from __future__ import annotations

import copy
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from measuring import Ceilings, Timing, flops, in_turns, name, ratio
from peers.roster import BASE, COMPILED, FAST, NAMES, absent, half, make
from sizes import SIZES, SLOW, WEIGHTS, training_case
from torch import Tensor
from trainings import BEST, OURS, RELEASED

from medshift.data.acquisition import acquire
from medshift.data.domains import DOMAINS
from medshift.data.phantom import phantom
from medshift.data.projection import level_for, project
from medshift.data.views import draw_trained
from medshift.fast import fast
from medshift.flow_training import load_flow
from medshift.guidance import CountingVelocity
from medshift.lean_network import LeanUNet
from medshift.many import sweep
from medshift.network import VelocityNetwork
from medshift.ode import leg_knots
from medshift.translate import MedShift

pytestmark = [pytest.mark.bench, pytest.mark.slow, pytest.mark.timeout(3600)]
TAU, SCALE, STEPS = 0.3, 2.0, SIZES.steps
KNOTS = leg_knots(TAU, "uniform", STEPS)
INTERVALS = 2 * (len(KNOTS) - 1)  # of both legs
SETTING = f"τ = {TAU}, guidance {SCALE:g} on both legs, {STEPS} Euler steps: {INTERVALS} steps, {2 * INTERVALS} NFE"
SPREAD = "Medians, with the least and the largest turn; in brackets ratios of the best turns."


@pytest.fixture(scope="module", autouse=True)
def complete() -> None:
    """Nobody who should take part is missing."""
    if why := absent():
        pytest.fail(why, pytrace=False)


@pytest.fixture(scope="module")
def network() -> VelocityNetwork:
    """The shipped network: 6.8 M parameters, latents of four channels."""
    return load_flow(WEIGHTS).network


@pytest.fixture(scope="module")
def peers(network: VelocityNetwork) -> dict[str, Any]:
    return {name: make(name, network) for name in NAMES}


def latents(batch: int, side: int) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, 4, side, side, generator=torch.Generator().manual_seed(0)), torch.arange(batch) % 5


def rendered(size: int) -> Tensor:
    """A view (1, 1, size, size) of the procedural head in domain 1."""
    generator, level = torch.Generator().manual_seed(0), level_for(phantom(0, spacing_mm=SIZES.spacing), 220 / size)
    poses = draw_trained(1, generator)
    views = project(level, poses, size)
    return acquire(views.line_integrals, views.open_field, poses[:, 5], DOMAINS[1], generator=generator)


def precision(peer: str, peers: dict[str, Any]) -> torch.dtype:
    """That of a peer's products."""
    if peer == FAST:
        return peers[FAST].velocity.dtype
    return torch.bfloat16 if half(peer) else torch.float32


@pytest.mark.parametrize("side", SIZES.sides)
def test_seconds_per_image(report: Any, peers: dict[str, Any], side: int) -> None:
    rows: list[list[object]] = []
    tops = Ceilings()
    for batch in SIZES.batches:
        x, label = latents(batch, side)
        work = {name: partial(peer.leg, x, label, KNOTS[:2], SCALE) for name, peer in peers.items()}
        timings = in_turns(work, turns=SLOW if batch * side**2 > 40_000 else SIZES.turns)
        tops.look()
        for key, timing in timings.items():
            dtype = precision(key, peers)
            cells = [batch, peers[key].name, f"{timing.median * INTERVALS / batch:.3g}"]
            cells += [timing.spread(lambda seconds, batch=batch: seconds * INTERVALS / batch)]
            cells += [ratio(timings[BASE], timing), name(dtype)]
            rows.append([*cells, tops.share(flops(work[key]), timing.median, dtype)])
    header = ["batch", "who", "seconds per image", "turns", "× predecessor (best turns)", "products in"]
    note = (
        f"{SETTING}. One guided step is measured, times {INTERVALS}: steps cost the same at every time. {SPREAD} The "
        f"same weights (6.8 M) everywhere. {tops}"
    )
    report.table(f"Seconds per image, latents of {side}²", [*header, "of the best product"], rows, note)


def test_share_of_the_ceiling(report: Any, network: VelocityNetwork, peers: dict[str, Any]) -> None:
    x, label = latents(1, SIZES.large)
    work = {name: partial(peer.leg, x, label, KNOTS[:2], SCALE) for name, peer in peers.items()}
    useful, tops = flops(work["plain"]), Ceilings()
    timings = in_turns(work, turns=SIZES.turns)
    tops.look()
    rows = []
    for key, peer in peers.items():
        done, dtype, timing = flops(work[key]), precision(key, peers), timings[key]
        speed = timing.spread(lambda seconds, done=done: done / seconds / 1e9)
        cells = [f"{value / 1e9:.3g}" for value in (done, done / timing.median)]
        cells += [speed, f"{tops.best[dtype] / 1e9:.3g}"]
        rows.append([peer.name, name(dtype), *cells, tops.share(done, timing.median, dtype)])
    header = [f"one guided step, {SIZES.large}², batch 1", "products in", "GFLOP", "GFLOP/s", "turns"]
    note = f"The network as it is written takes {useful / 1e9:.3g} GFLOP. {SPREAD} {tops}"
    header += ["best product, GFLOP/s", "of the best product"]
    report.table("Share of the machine's own ceiling", header, rows, note)


def test_translation_at_equal_output(report: Any, peers: dict[str, Any]) -> None:
    codec, images = load_flow(WEIGHTS).codec, rendered(2 * SIZES.large)
    x, source, target = codec.encode(images), torch.tensor([1]), torch.tensor([3])
    results: dict[str, Tensor] = {}

    def run(name: str) -> None:
        z = peers[name].leg(x, source, KNOTS[::-1], SCALE)
        results[name] = codec.decode(peers[name].leg(z, target, KNOTS, SCALE))

    chosen, tops = [BASE, "plain", FAST], Ceilings()
    timings = in_turns({name: partial(run, name) for name in chosen}, turns=SLOW)
    tops.look()
    rows = []
    for key in chosen:
        error = float((results[key] - results["plain"]).square().mean())
        quality = f"{10 * math.log10(2**2 / error):.1f}" if error else "the same bits"
        timing, dtype = timings[key], precision(key, peers)
        done = INTERVALS * flops(partial(peers[key].leg, x, source, KNOTS[:2], SCALE))
        cells = [f"{timing.median:.2f}", timing.spread(), ratio(timings[BASE], timing)]
        rows.append([peers[key].name, *cells, tops.share(done, timing.median, dtype), quality])
    header = ["one image", "seconds", "turns", "× predecessor (best turns)", "of the best product"]
    moved = 10 * math.log10(2**2 / float((results["plain"] - images).square().mean()))
    note = (
        f"{SETTING}. A rendered view of {2 * SIZES.large}²; the translation itself is {moved:.1f} dB away from it. "
        f"Measured whole. {SPREAD} {tops}"
    )
    title = f"A whole translation, latents of {SIZES.large}², batch 1"
    report.table(title, [*header, "PSNR to the plain path [dB]"], rows, note)


def test_sweep(report: Any, network: VelocityNetwork, peers: dict[str, Any]) -> None:
    codec, (taus, targets), side = load_flow(WEIGHTS).codec, SIZES.swept, 2 * SIZES.sides[0]
    images = torch.randn(1, 1, side, side, generator=torch.Generator().manual_seed(0)).mul(0.3)
    predecessor = peers[BASE]
    counts = {"separate": CountingVelocity(fast(network)), "sweep": CountingVelocity(fast(network))}
    models = {name: MedShift(count, codec, 5) for name, count in counts.items()}
    knobs: dict[str, Any] = {"guidance": SCALE, "solver": "euler", "grid": "uniform", "steps": STEPS}

    def theirs() -> None:
        for tau in taus:
            knots = leg_knots(tau, "uniform", STEPS)
            for target in targets:
                z = predecessor.leg(codec.encode(images), torch.tensor([1]), knots[::-1], SCALE)
                codec.decode(predecessor.leg(z, torch.tensor([target]), knots, SCALE))

    def separate() -> None:
        for tau in taus:
            for target in targets:
                models["separate"].translate(images, 1, target, tau=tau, **knobs)

    def swept() -> None:
        sweep(models["sweep"], images, 1, targets, taus, **knobs)

    work: dict[str, Callable[[], None]] = {BASE: theirs, "separate": separate, "sweep": swept}
    for way in (separate, swept):  # which warms up, and counts the evaluations of one turn
        way()
    nfe = {key: count.rows // 2 for key, count in counts.items()}
    nfe[BASE] = nfe["separate"]
    x, label = codec.encode(images), torch.tensor([1])
    steps = {key: partial(peers[key].leg, x, label, KNOTS[:2], SCALE) for key in (BASE, FAST)}
    steps[BASE]()
    each = {key: flops(step) for key, step in steps.items()}
    tops = Ceilings()
    timings = in_turns(work, turns=SLOW, unmeasured=0)
    tops.look()
    names = {BASE: "predecessor's way", "separate": "fast, separate calls", "sweep": "fast, one encode leg"}
    rows = []
    for key, timing in timings.items():
        who = BASE if key == BASE else FAST
        cells = [nfe[key], f"{timing.median:.1f}", timing.spread(), ratio(timings[BASE], timing)]
        share = tops.share(nfe[key] * each[who], timing.median, precision(who, peers))
        rows.append([names[key], *cells, f"{nfe[BASE] / nfe[key]:.2f}", share])
    header = [f"{len(taus)} τ × {len(targets)} targets", "NFE a branch", "seconds", "turns"]
    header += ["× predecessor (best turns)", "factor of fewer evaluations", "of the best product"]
    note = (
        f"One image, latents of {side // 2}², τ = {', '.join(map(str, taus))}, guidance {SCALE:g}, so two branches an "
        f"evaluation, {STEPS} Euler steps. {SPREAD} {tops}"
    )
    report.table("A sweep over τ and targets", header, rows, note)


def memory(case: str, way: str, place: Path) -> list[str]:
    """Peak of a fresh process that trains [MiB], and what that is above its imports and weights."""
    script = Path(__file__).parent / "peers" / "training_memory.py"
    called = [sys.executable, str(script), case, way, str(place / "memory")]
    found = json.loads(subprocess.run(called, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    return [f"{found['peak']:.0f}", f"{found['peak'] - found['held']:.0f}"]


@pytest.mark.parametrize("case", [name for name, *_ in SIZES.training])
def test_training(report: Any, case: str, tmp_path: Path) -> None:
    trainings = training_case(case, tmp_path)
    ways, batch = trainings.ways(), trainings.batch
    steps = {name: way.start() for name, way in ways.items()}
    tops = Ceilings()
    timings = in_turns(steps, turns=SLOW)
    tops.look()
    bases: dict[str, Timing] = {}
    for basis in (RELEASED, BEST):
        bases[basis] = next(timings[name] for name, way in ways.items() if way.basis == basis)
    rows = []
    for key, way in ways.items():
        timing, done = timings[key], flops(steps[key])
        cells = [f"{batch / timing.median:.3g}", timing.spread(lambda seconds: batch / seconds)]
        cells += [ratio(bases[basis], timing) for basis in (RELEASED, BEST)]
        cells += [f"{done / batch / 1e9:.3g}", tops.share(done, timing.median, way.dtype)]
        rows.append([key, name(way.dtype), *cells, *(memory(case, key, tmp_path) if SIZES.memory else ("", ""))])
    side, stride = trainings.images.shape[-1], trainings.codec.stride
    whose = {
        "patch": "patches of two, as in the profile cpu",
        "kl": "a KL autoencoder, untrained: the work is the same",
    }
    header = [f"batch {batch}, latents of {side // stride}²", "products in", "images/s", "turns"]
    header += ["× predecessor as released", "× predecessor at its best", "GFLOP an image", "of the best product"]
    note = (
        f"Images of {side}², codec: {whose[case]}; 6.8 M parameters. *As released*: float32, AdamW as torch makes it, "
        "every batch encoded. *At its best*: bfloat16 autocast where the machine has it, channels-last, fused AdamW, "
        f"latents encoded once. Ours is `medshift.train.train` over the batches of the stage ({OURS}: noise of the "
        f"acquisition drawn and images encoded at every step), which peers do only where their row says so; where an "
        f"exposure serves two steps, half of a batch is new and half that of the step before. {SPREAD} "
        f"Memory is that of a fresh process. {tops}"
    )
    title = f"Training, {whose[case].partition(',')[0]}"
    report.table(title, [*header, "peak [MiB]", "above import and weights [MiB]"], rows, note)


def test_each_idea_alone(report: Any, network: VelocityNetwork) -> None:
    (x, label), t, side = latents(2, SIZES.large), torch.tensor(0.5), SIZES.large
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

    tops, rows = Ceilings(), []
    with torch.no_grad():
        timings = in_turns(work, turns=2 * SIZES.turns)
        tops.look()
        first = timings["plain, float32, one call of two"]
        for key, timing in timings.items():
            dtype = torch.bfloat16 if "bfloat16" in key or "same" in key else torch.float32
            cells = [f"{1e3 * timing.median:.0f}", timing.spread(lambda seconds: 1e3 * seconds), ratio(first, timing)]
            rows.append([key, *cells, tops.share(flops(work[key]), timing.median, dtype)])
    header = [f"two branches of one image, {side}²", "ms", "turns", "× plain (best turns)", "of the best product"]
    report.table("Each idea alone", header, rows, f"{SPREAD} {tops}")


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
    chosen = SIZES.first or (*NAMES, *COMPILED)
    found: dict[str, list[dict[str, float]]] = {key: [] for key in chosen}
    for _ in range(SLOW):
        for key in chosen:
            called = [sys.executable, str(script), key, str(SIZES.sides[0]), str(STEPS)]
            done = subprocess.run(called, capture_output=True, text=True, check=True)
            found[key].append(json.loads(done.stdout.splitlines()[-1]))
    for key, turns in found.items():
        parts = {part: statistics.median(turn[part] for turn in turns) for part in turns[0]}
        whole = Timing([turn["import"] + turn["load"] + turn["first"] for turn in turns])
        cells = [f"{parts[part]:.2f}" for part in ("import", "load", "first", "second")]
        cells += [f"{whole.median:.2f}", whole.spread(), f"{parts['peak']:.0f}", f"{parts['eight']:.0f}"]
        rows.append([key, *cells])
    header = ["a fresh process", "import", "load", "first image", "second image", "to first image [s]", "turns"]
    report.table(
        "Time to the first image, and memory",
        [*header, "peak [MiB]", "more for 8 of 96² [MiB]"],
        rows,
        f"Seconds, medians over {SLOW} processes; latents of {SIZES.sides[0]}², batch 1, {SETTING}. A compiler's time "
        "is in the first image; files were in the system's cache.",
    )
