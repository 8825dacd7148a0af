"""Train a profile's network on several processes of this machine, under torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medshift.errors import ParameterError, TrainingError
from medshift.repro.adaptive_rows import PAIRED_TRAININGS
from medshift.repro.comparison import ALL
from medshift.repro.comparison_rows import TRAININGS
from medshift.repro.run import configure
from medshift.repro.stage import Stage, locked, write_json


def train_network(values: Mapping[str, Any], *, processes: int = 1) -> Stage:
    """The finished stage ``network``, trained by that many processes where it is not there yet.

    Args:
        values: parameters every notebook has: profile, seed, data, overrides, out_dir.
        processes: that share the effective batch; one for each GPU.

    Raises:
        ParameterError: fewer than one process, or more than there are GPUs.
        TrainingError: the processes did not end well.
    """
    run = configure("03_train", dict(values))
    plan = run.plans["network"]
    if processes < 1:
        raise ParameterError(f"processes is {processes}, expected at least 1.")
    if run.device.startswith("cuda"):
        import torch

        if processes > torch.cuda.device_count():
            raise ParameterError(
                f"There are {torch.cuda.device_count()} GPUs for {processes} processes; ask for fewer."
            )
    if processes > 1 and plan.find(run.runs) is None:
        inputs = {name: run.keep(name, inner).folder for name, inner in plan.inputs.items()}
        with locked(run.runs / f".{plan.folder_name}.lock", plan.folder_name):
            partial = run.runs / f"{plan.folder_name}.partial"
            partial.mkdir(parents=True, exist_ok=True)
            request = {
                "module": plan.module,
                "arguments": dict(plan.arguments),
                "inputs": {name: str(folder.resolve()) for name, folder in inputs.items()},
                "folder": str(partial.resolve()),
                "data": run.parameters.data and str(Path(run.parameters.data).resolve()),
                "device": run.device,
            }
            write_json(partial / "request.json", request)
            plan.tell()
            _torchrun(partial / "request.json", processes)
    return run.stage("network")


def train_methods(values: Mapping[str, Any], names: Sequence[str]) -> list[Stage]:
    """The finished trainings of these names of 06 or 07, whatever weights are shipped.

    Args:
        values: parameters every notebook has: profile, seed, overrides, out_dir.
        names: of the trainings of 06_baselines, which ``all`` stands for, or of 07_adaptive_shift.

    Raises:
        ParameterError: an unknown name.
    """
    found = []
    for name in TRAININGS if ALL in names else names:
        notebook = "07_adaptive_shift" if name in PAIRED_TRAININGS else "06_baselines"
        found.append(configure(notebook, {**values, "retrain": [name]}).stage(f"trained {name}"))
    return found


def _torchrun(request: Path, processes: int) -> None:
    threads = max(1, len(os.sched_getaffinity(0)) // processes) if hasattr(os, "sched_getaffinity") else 1
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command += ["-m", "medshift.train", "--config", str(request)]
    print(f"torchrun --nproc_per_node={processes} -m medshift.train --config {request}", file=sys.stderr, flush=True)
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": str(threads)})
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        raise
    if code:
        raise TrainingError(
            f"A process of the training ended with code {code}, see above; the same command goes on from the last "
            "checkpoint. If a GPU's memory ran out, set train.accumulation to twice what it is, with --set."
        )
