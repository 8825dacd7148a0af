"""One measurement in a process of its own, which prints JSON; what `test_scale.py` starts.

python scale_process.py evaluate SIDE                 seconds and memory of one guided evaluation
python scale_process.py folder IN OUT                 seconds and memory of translating a folder
python -m torch.distributed.run --nproc_per_node 2 scale_process.py train PARTS STEPS
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peers.first_image import peak
from torch import Tensor, distributed

from medshift.codec import PatchCodec
from medshift.data.domains import DOMAINS
from medshift.fast import fast
from medshift.flow_training import FlowMatching, load_flow
from medshift.folder_translation import translate_folder
from medshift.guidance import guided
from medshift.network import build_network
from medshift.processes import World
from medshift.schedules import TrainConfig
from medshift.train import train
from medshift.translate import MedShift

WEIGHTS = Path(__file__).parents[2] / "medshift/weights/cpu/medshift"
SCALE, BATCH, SIZE = 2.0, 32, 64
KNOBS = {"tau": 0.3, "guidance": SCALE, "solver": "euler", "grid": "uniform", "steps": 4}


def evaluate(side: int) -> dict[str, Any]:
    """One evaluation at latents of `side`², both branches of one image; the first warms up."""
    network = load_flow(WEIGHTS).network
    held = peak()
    field = guided(fast(network), SCALE, network.null_label)
    x = torch.randn(1, network.config.in_channels, side, side, generator=torch.Generator().manual_seed(0))
    seconds: list[float] = []
    with torch.no_grad():
        while len(seconds) < 4 or (sum(seconds) < 3 and len(seconds) < 8):
            start = time.perf_counter()
            field(x, torch.tensor(0.5), torch.tensor([1]))
            seconds.append(time.perf_counter() - start)
    turns = seconds[1:]
    return {"seconds": statistics.median(turns), "turns": turns, "held": held, "peak": peak()}


def folder(source: str, target: str) -> dict[str, Any]:
    """All images of a folder, one at a time, with few steps."""
    flow = load_flow(WEIGHTS)
    model = MedShift(fast(flow.network), flow.codec, len(flow.domains), flow.domains)
    start = time.perf_counter()
    report = translate_folder(model, DOMAINS[1], DOMAINS[3], source, target, knobs=KNOBS, progress=False)
    seconds = time.perf_counter() - start
    return {"seconds": seconds / report.translated, "images": report.translated, "peak": peak()}


def training(parts: int, steps: int) -> dict[str, Any]:
    """Steps of the small network at an effective batch of `BATCH`, cut into `parts` over all processes."""
    several = "WORLD_SIZE" in os.environ
    if several:
        distributed.init_process_group("gloo")
    world = World()
    torch.manual_seed(0)
    network = build_network("small", n_domains=len(DOMAINS), in_channels=4)
    method = FlowMatching(network, PatchCodec(2), DOMAINS)
    n, mine = BATCH // parts, parts // world.size
    batch = torch.randn(n, 1, SIZE, SIZE), torch.arange(n) % len(DOMAINS)
    spent: list[float] = []
    with tempfile.TemporaryDirectory() as place, timed_averages(spent):
        config = TrainConfig(steps=steps + 2, accumulation=mine, checkpoint_every=10_000, check_every=10_000)
        taken, passed = [], []
        for record in train(method, lambda step, generator: batch, folder=place, config=config):
            taken.append(record.seconds)
            passed.append(sum(spent))
            spent.clear()
            if record.step == steps + 1:  # the last step writes a checkpoint, which is no part of this
                break
    found = {
        "seconds": statistics.median(taken[1:]),
        "turns": taken[1:],
        "averaging": statistics.median(p / t for p, t in zip(passed[1:], taken[1:], strict=True)),
        "bytes": 4 * sum(parameter.numel() for parameter in network.parameters()),
        "rank": world.rank,
    }
    if several:
        distributed.barrier()
        distributed.destroy_process_group()
    return found


@contextmanager
def timed_averages(spent: list[float]) -> Any:
    """Notes what `World.average` takes, waiting for the other process included."""
    plain = World.average

    def average(self: World, tensors: list[Tensor]) -> None:
        start = time.perf_counter()
        plain(self, tensors)
        spent.append(time.perf_counter() - start)

    World.average = average  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        World.average = plain  # type: ignore[method-assign]


def main() -> None:
    what, *arguments = sys.argv[1:]
    if what == "evaluate":
        found = evaluate(int(arguments[0]))
    elif what == "folder":
        found = folder(*arguments)
    else:
        found = training(*map(int, arguments))
    if not found.get("rank"):
        print(json.dumps(found))


if __name__ == "__main__":
    main()
