"""One translation in a process of its own: ``python first_image.py NAME SIDE STEPS``, from a process started just now.

Prints JSON: seconds of import, of loading the weights, of the first image and of the second, and the peak memory in
MiB after import and load, after both images, and how much a step of eight images of 96x96 latents adds to the former.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

START = time.perf_counter()
sys.path.insert(0, str(Path(__file__).parents[1]))
WEIGHTS = Path(__file__).parents[3] / "medshift/weights/cpu/medshift"


def main() -> None:
    name, side, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    import torch

    from medshift.ode import leg_knots

    if name.startswith("fast"):
        from medshift.fast import compiled, load_fast
        from peers.ours import Ours

        imported = time.perf_counter()
        velocity = load_fast(WEIGHTS).velocity
        peer: Any = Ours(name, compiled(velocity) if "compiled" in name else velocity, velocity.null_label)
    else:
        from medshift.flow_training import load_flow
        from peers.roster import make

        imported = time.perf_counter()
        peer = make(name, load_flow(WEIGHTS).network)
    loaded, held = time.perf_counter(), peak()
    x = torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(0))
    knots = leg_knots(0.3, "uniform", steps)
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        z = peer.leg(x, torch.tensor([1]), knots[::-1], 2.0)
        peer.leg(z, torch.tensor([3]), knots, 2.0)
        seconds.append(time.perf_counter() - start)
    times = {"import": imported - START, "load": loaded - imported, "first": seconds[0], "second": seconds[1]}
    one = peak()
    if "compiled" not in name:  # which would compile another size
        peer.leg(torch.randn(8, 4, 96, 96), torch.arange(8) % 5, knots[:2], 2.0)
    print(json.dumps({**times, "held": held, "peak": one, "eight": peak() - held}))


def peak() -> float:
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss of a new process starts at that of the one that started it
        return (
            float(next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1]) / 1024
        )
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


if __name__ == "__main__":
    main()
