"""Train a stage on several processes: ``torchrun --nproc_per_node N -m medshift.train --config FILE``.

The file is the ``request.json`` that `medshift train` writes into the stage's unfinished folder: the stage's module,
its arguments, the folders it reads and the one it writes. The effective batch stays that of the arguments, however
many processes share it, and an interrupted run goes on from its last checkpoint by the same command. When it is done,
any command that needs the stage (`medshift train`, `medshift paper`) takes it over as finished.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from medshift.errors import DataError, MedShiftError
from medshift.stages.job import Job, silent

EVERY = 10.0  # seconds between lines
FIELDS = {"module", "arguments", "inputs", "folder", "data", "device"}


def read_request(path: Path) -> dict[str, Any]:
    """The request of a stage.

    Raises:
        DataError: no such file, or it is not a request.
    """
    try:
        request = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); `medshift train --processes N` writes it.") from None
    if not isinstance(request, dict) or set(request) != FIELDS:
        raise DataError(f"{path} is no request; expected the entries {', '.join(sorted(FIELDS))}.")
    gone = [folder for folder in request["inputs"].values() if not Path(folder).is_dir()]
    if gone:
        raise DataError(f"The input {gone[0]} is gone; `medshift train` makes it again.")
    return request


def _device(wanted: str) -> str:
    if wanted.startswith("cuda") or (wanted == "auto" and torch.cuda.is_available()):
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    return "cpu" if wanted == "auto" else wanted


class _Lines:
    def __init__(self) -> None:
        self.last = 0.0

    def __call__(self, done: float, note: str = "") -> None:
        if time.monotonic() - self.last > EVERY or done >= 1:
            self.last = time.monotonic()
            print(f"{100 * done:.0f} % ({note})", file=sys.stderr, flush=True)


def main() -> int:
    """Train the stage of ``--config`` with all processes that torchrun started."""
    parser = argparse.ArgumentParser(prog="python -m medshift.train", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="the stage's request.json")
    path = parser.parse_args().config
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    try:
        request = read_request(path)
        device = _device(request["device"])
        if device.startswith("cuda"):
            torch.cuda.set_device(device)
        if several:
            distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")
        first = not several or distributed.get_rank() == 0
        inputs = {name: Path(folder) for name, folder in request["inputs"].items()}
        job = Job(Path(request["folder"]), inputs, device, request["data"], _Lines() if first else silent)
        importlib.import_module(request["module"]).build(job, **request["arguments"])
        if several:
            distributed.barrier()
    except MedShiftError as error:
        print(f"medshift: {error}", file=sys.stderr)
        return error.exit_code
    finally:
        if several and distributed.is_initialized():
            distributed.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
