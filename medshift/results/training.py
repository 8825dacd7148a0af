"""What 03_train draws: losses, the size of the network, and every domain into every other."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from medshift.flow_training import load_flow
from medshift.stages.images import Images
from medshift.stages.network import open_translator


def history(training: Path) -> pd.DataFrame:
    """Losses by step; where a resumed run repeated steps, the last row of each counts."""
    return pd.read_json(training / "history.jsonl", lines=True).drop_duplicates("step", keep="last").sort_values("step")


def validation_history(network: Path) -> pd.DataFrame:
    """Flow-matching loss on validation heads, one row a look and head; empty for a user's own images."""
    file = network / "validation.jsonl"
    if not file.is_file():
        return pd.DataFrame(columns=["step", "images", "head", "loss"])
    looks = {look["step"]: look for look in map(json.loads, file.read_text().splitlines())}
    rows = [
        {"step": step, "images": look["images"], "head": int(head), "loss": loss}
        for step, look in sorted(looks.items())
        for head, loss in look["by_head"].items()
    ]
    return pd.DataFrame(rows)


def network_summary(network: Path) -> pd.DataFrame:
    """Size, steps and time of a training."""
    flow, rows = load_flow(network), history(network)
    unseen = validation_history(network)
    last = unseen[unseen["step"] == unseen["step"].max()]["loss"].mean() if len(unseen) else float("nan")
    values = {
        "parameters": f"{sum(p.numel() for p in flow.network.parameters()) / 1e6:.2f} M",
        "steps": flow.step,
        "images seen": int(rows["images"].iloc[-1]),
        "median seconds a step": f"{rows['seconds'].median():.3f}",
        "loss, mean of the last twentieth": f"{rows['network'].iloc[-max(1, len(rows) // 20) :].mean():.4f}",
        "loss on unseen heads, uniform times": f"{last:.4f}",
        "weights' SHA-256": flow.sha256[:16],
    }
    return pd.DataFrame({"": list(values), "value": [str(v) for v in values.values()]})


def translation_matrix(
    images: Images, network: Path, tau: float, device: str = "cpu"
) -> tuple[list[list[Tensor]], list[str]]:
    """One validation view: rows are source domains, columns the source and its translation to every domain."""
    model, names = open_translator(network, device), images.domains
    first = images.validation(1)
    rows = []
    for source in names:
        copies = first[source].expand(len(names), -1, -1, -1).to(device)
        targets = torch.arange(len(names), device=device)
        outputs = model.translate(copies, source, targets, tau=tau).cpu()
        rows.append([first[source][0], *outputs])
    return rows, list(names)
