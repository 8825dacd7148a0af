"""One device at the sizes of the profile it would run: training, translation, rooflines, memory, and steps to count on.

On a GPU these are the profile gpu's (256², a KL autoencoder), `make bench DEVICE=cuda`, some minutes; on a CPU the
profile cpu's. build/steps.json is what `python -m medshift.costs.extrapolation --steps` takes in place of an assumed
speed. Every way is the same code on both.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from device_sizes import Work, build_folder
from measuring import DEVICE, QUICK, Ceilings, Timing, allow_tf32, best_copy, command, flops, in_turns, name, ratio
from peers.ours import Ours
from peers.roster import BASE, FAST, NAMES, absent, half, make
from rooflines import GOOD, HEADER, classes, operations, rows
from torch import Tensor
from trainings import BEST, OURS, RELEASED, Trainings, endless, rendered

from medshift.codec_training import KLTraining
from medshift.costs.measured import Step, Steps, write_steps
from medshift.costs.workload import AUTOENCODER, DECODING, ENCODING, EVALUATION, TRAINING, pair_training
from medshift.data.domains import DOMAINS
from medshift.fast import compiled, fast
from medshift.guidance import guided
from medshift.memory import GIB, evaluation_memory, training_memory
from medshift.methods_index import TRAINED
from medshift.ode import at_time, leg_knots
from medshift.train import train
from medshift.translate import AS_PUBLISHED

pytestmark = [pytest.mark.bench, pytest.mark.slow, pytest.mark.timeout(3600)]
TAU, SCALE = 0.3, 2.0
KNOTS = leg_knots(TAU, "uniform", 50)
INTERVALS = 2 * (len(KNOTS) - 1)
TURNS = 1 if QUICK else 10 if DEVICE.type == "cuda" else 5
SLOW = 1 if QUICK else 3
BATCHES = (1, 2) if QUICK else (1, 8, 32)
KINDS = ("direct-bridge", "direct-bridge-reflow") if QUICK else tuple(TRAINED)
ON_GPU = DEVICE.type == "cuda"


@pytest.fixture(scope="module", autouse=True)
def complete() -> None:
    """The device is there, nobody is missing, and everybody may use TF32."""
    if ON_GPU and not torch.cuda.is_available():
        pytest.fail(f"MEDSHIFT_BENCH_DEVICE is {DEVICE}, but torch sees no GPU; leave it unset.", pytrace=False)
    if why := absent():
        pytest.fail(why, pytrace=False)
    allow_tf32()


@pytest.fixture(scope="module")
def work() -> Work:
    return Work.of(DEVICE, QUICK)


@pytest.fixture(scope="module")
def steps(work: Work) -> Iterator[dict[str, Step]]:
    """Every step that was timed, written when the last is."""
    found: dict[str, Step] = {}
    yield found
    if found:
        said = torch.cuda.get_device_name(DEVICE) if ON_GPU else "the CPU of this machine"
        path = build_folder() / ("steps-quick.json" if QUICK else "steps.json")
        told = command(sys.argv[1:], DEVICE).replace("`", "")
        write_steps(path, Steps(said, work.profile.name, told, tuple(found.values())))
        print(f"\nSteps: {path}")


@pytest.fixture(autouse=True)
def emptied() -> Iterator[None]:
    """What one bench leaves behind is no memory of the next."""
    yield
    gc.collect()
    if ON_GPU:
        torch.cuda.empty_cache()


def measured(functions: dict[str, Callable[[], object]], turns: int = TURNS) -> dict[str, Timing]:
    """In turns, on this device, after turns in which a GPU's kernels are chosen and its graphs recorded."""
    return in_turns(functions, turns=turns, unmeasured=3 if ON_GPU else 1, device=DEVICE)


def able(work: Work) -> tuple[str, ...]:
    """The peers that take part: torchcfm makes its normalisations in 32 groups, which narrow networks have not."""
    wide = all(width % 32 == 0 for width in work.network.config.channels)
    return tuple(key for key in NAMES if wide or not key.startswith("torchcfm"))


def noted(steps: dict[str, Step], what: str, images: int, done: float, timing: Timing) -> None:
    steps[what] = Step(what, images, done, timing.median, timing.best, timing.worst)


def test_training(report: Any, work: Work, steps: dict[str, Step], tmp_path: Path) -> None:
    profile, batch = work.profile, work.profile.train.batch
    views = rendered(tmp_path / "views", profile.size, spacing=4.0 if QUICK else 2.0)
    trainings = Trainings(work.network, work.codec, views, batch, able(work), tmp_path / "run")
    ways, lines = trainings.ways(), []
    functions = {key: way.start() for key, way in ways.items()}
    tops = Ceilings(DEVICE)
    timings = measured(functions)
    tops.look()
    base = {b: next(timings[key] for key, way in ways.items() if way.basis == b) for b in (RELEASED, BEST)}
    for key, way in ways.items():
        timing, done = timings[key], flops(functions[key])
        cells = [f"{batch / timing.median:.3g}", timing.spread(lambda seconds: batch / seconds)]
        cells += [ratio(base[basis], timing) for basis in (RELEASED, BEST)]
        lines.append([key, name(way.dtype), *cells, tops.share(done, timing.median, way.dtype)])
        if way.basis == OURS:
            noted(steps, TRAINING, batch, done, timing)
    header = [f"batch {batch}, images of {profile.size}²", "products in", "images/s", "turns"]
    header += ["× predecessor as released", "× predecessor at its best", "of the best product"]
    note = f"Network and codec of the profile `{profile.name}`, untrained: the work is the same. {tops}"
    report.table(f"Training at {profile.size}²", header, lines, note)


def test_translation(report: Any, work: Work, steps: dict[str, Step]) -> None:
    peers = {key: make(key, work.network) for key in able(work)}
    if ON_GPU:
        peers["fast-compiled"] = Ours("fast (ours), compiled", compiled(fast(work.network)), work.network.null_label)
    lines, tops = [], Ceilings(DEVICE)
    for batch in BATCHES:
        x, label = work.latents(batch)
        functions = {key: partial(peer.leg, x, label, KNOTS[:2], SCALE) for key, peer in peers.items()}
        if ON_GPU and batch > 1:  # compiling takes as long as measuring, so for the first batch alone
            del functions["fast-compiled"]
        timings = measured(functions)
        tops.look()
        for key, timing in timings.items():
            dtype = work.dtype if key == FAST else torch.bfloat16 if half(key) else torch.float32
            # Compiled or not, it is the same work, which the counter sees only where it is not.
            done = flops(functions[FAST if key == "fast-compiled" else key])
            cells = [f"{timing.median * INTERVALS / batch:.3g}"]
            cells += [timing.spread(lambda seconds, batch=batch: seconds * INTERVALS / batch)]
            lines.append([batch, peers[key].name, *cells, ratio(timings[BASE], timing)])
            lines[-1] += [tops.share(done, timing.median, dtype)]
    header = ["batch", "who", "seconds per image", "turns", "× predecessor (best turns)", "of the best product"]
    note = f"τ = {TAU}, guidance {SCALE:g}: one guided step, times {INTERVALS}, without the codec. {tops}"
    report.table(f"Translation at {work.profile.size}², latents of {work.side}²", header, lines, note)


def test_one_image(report: Any, work: Work) -> None:
    image, lines = work.images(1), []
    functions: dict[str, Callable[[], object]] = {}
    for scale in (1.0, SCALE):
        for said, velocity in {"as the stages translate": work.velocity, "plain path": work.network}.items():
            model = work.model(velocity)
            go = partial(model.translate, image, 0, 3, tau=TAU, guidance=scale, **AS_PUBLISHED)
            functions[f"{said}, w = {scale:g}"] = go
    if QUICK:
        functions = dict([*functions.items()][:1])
    for key, timing in measured(functions, turns=SLOW).items():
        lines.append([key, f"{timing.median:.3g}", timing.spread()])
    note = f"τ = {TAU}, 50 Euler steps, codec included, image and result on the device; compiled beforehand on a GPU."
    report.table(f"One image of {work.profile.size}²", ["one image", "seconds", "turns"], lines, note)


def test_roofline(report: Any, work: Work, tmp_path: Path) -> None:
    n = work.profile.train.batch if ON_GPU else min(8, work.profile.train.batch)
    images, label = work.images(n), (torch.arange(n) % len(DOMAINS)).to(DEVICE)
    run = train(work.trainable(), lambda step, generator: (images, label), folder=tmp_path, config=endless())
    x, labels = work.latents(1)
    field, t = guided(fast(work.network), SCALE, work.network.null_label), at_time(0.5, x)

    def evaluation() -> Tensor:
        with torch.no_grad():
            return field(x, t, labels)

    for said, function in {
        f"a training step, batch {n}": partial(next, run),
        "a guided evaluation": evaluation,
    }.items():
        tops, copied = Ceilings(DEVICE), best_copy(DEVICE)
        whole = measured({said: function}, turns=SLOW)[said]
        sums = classes(operations(function, repeats=1 if QUICK else 3, device=DEVICE), tops.best, copied)
        spent, good = (sum(getattr(own, part) for own in sums.values()) for part in ("seconds", "good"))
        note = (
            f"The step takes {1e3 * whole.median:.3g} ms ({whole.spread(lambda s: 1e3 * s)}), its kernels, one after "
            f"the other, {1e3 * spent:.3g} ms. Operations that reach {GOOD:.0%} of their own bound take "
            f"{good / spent:.0%} of the kernels' time and {good / whole.median:.0%} of the step's. {tops} Best copy "
            f"{copied / 1e9:.3g} GB/s."
        )
        report.table(f"Roofline of {said}, images of {work.profile.size}²", HEADER, rows(sums), note)


def peak_of(function: Callable[[], object]) -> float | None:
    """GiB of the GPU's memory while a function runs, or None where it does not fit."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(DEVICE)
    try:
        function()
    except torch.OutOfMemoryError:
        return None
    return torch.cuda.max_memory_allocated(DEVICE) / GIB


def test_memory(report: Any, work: Work, tmp_path: Path) -> None:
    """Estimated everywhere, and measured where memory is the device's own: on a CPU it is the process's."""
    profile, lines = work.profile, []
    shape = {"side": work.side, "channels": work.codec.channels}
    estimates = [estimate(profile.train.network, **shape) for estimate in (training_memory, evaluation_memory)]
    for n in (1, 2) if QUICK else (1, 8, 16, 32, 64, 128):
        training, evaluating = (estimate.at(n) / GIB for estimate in estimates)
        found: list[float | None] = [None, None]
        if ON_GPU:
            images, (x, labels) = work.images(n), work.latents(n)
            draw = (images, labels)
            run = train(work.trainable(), lambda step, g, draw=draw: draw, folder=tmp_path, config=endless())
            field = guided(fast(work.network), SCALE, work.network.null_label)
            found = [peak_of(partial(next, run)), peak_of(lambda x=x, y=labels, f=field: f(x, at_time(0.5, x), y))]
            run.close()
        said = [("does not fit" if value is None else f"{value:.2f}") if ON_GPU else "not measured" for value in found]
        lines.append([n, f"{training:.2f}", said[0], f"{evaluating:.2f}", said[1]])
    header = ["images", "training, estimated [GiB]", "measured", "guided evaluation, estimated [GiB]", "measured"]
    note = (
        f"Profile `{profile.name}`, bfloat16. Measured is what torch allocates at most, with all that earlier benches "
        "hold, in training the codec's part included, which the estimate leaves to its headroom."
    )
    report.table("Memory by batch", header, lines, note)


def test_steps_of_every_kind(report: Any, work: Work, steps: dict[str, Step], tmp_path: Path) -> None:
    profile, tops = work.profile, Ceilings(DEVICE)
    n = profile.tradeoff.batch
    x, label = work.latents(n)
    images, t = work.images(n), at_time(0.5, x)
    plain = fast(work.network)
    held: dict[str, tuple[int, Callable[[], object], Callable[[], object]]] = {
        EVALUATION: (n, lambda: work.velocity(x, t, label), lambda: plain(x, t, label))
    }
    if profile.codec.kind == "kl":
        encode, decode = partial(work.codec.encode, images), partial(work.codec.decode, x)
        held |= {ENCODING: (n, encode, encode), DECODING: (n, decode, decode)}
    for what, (count, function, countable) in held.items():
        with torch.no_grad():
            noted(steps, what, count, flops(countable), measured({what: function})[what])
    codec = KLTraining(work.autoencoder(), warmup=0)
    batch = work.images(profile.kl.batch)
    runs: dict[str, tuple[int, Any, Any]] = {AUTOENCODER: (profile.kl.batch, codec, lambda step, generator: (batch,))}
    for kind in KINDS:
        made = work.pair_method(kind)
        runs[pair_training(kind)] = (made.recipe.batch, made, work.halves(made.recipe.batch))
    for k, (what, (count, method, draw)) in enumerate(runs.items()):
        run = train(method, draw, folder=tmp_path / str(k), config=endless())
        step = partial(next, run)
        timing = measured({what: step}, turns=SLOW)[what]
        noted(steps, what, count, flops(step), timing)
        run.close()
    tops.look()
    lines = []
    for own in steps.values():
        turns = Timing([own.low, own.seconds, own.high])
        speed = own.operations / own.seconds
        cells = [f"{1e3 * own.seconds:.3g}", turns.spread(lambda seconds: 1e3 * seconds)]
        cells += [f"{own.operations / own.images / 1e9:.3g}", f"{speed / 1e12:.3g}"]
        lines.append([own.what, own.images, *cells, f"{speed / tops.best[work.dtype]:.0%}"])
    header = [
        "a step of",
        "images",
        "ms",
        "turns",
        "GFLOP an image",
        "TFLOP/s",
        f"of the best product in {name(work.dtype)}",
    ]
    note = f"Sizes of the profile `{profile.name}`; in build/steps.json for `medshift.costs.extrapolation`. {tops}"
    report.table("Steps of every kind", header, lines, note)
