"""07: the numbers that the ledger of claims decides with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medshift.data.paired_tasks import TASKS
from medshift.results.adaptive import BRIDGE, DOSSR, FEW, Judged, Known, energy_rows
from medshift.results.findings import measured, stated

BRIDGES = ("bbdm", "abridge", "dbim")
RIVALS = (*BRIDGES, "pix2pix")
AVERAGED = ", averaged field"


def adaptive_findings(known: Known, energies_of: Mapping[str, Path], costs: Path) -> list[dict[str, Any]]:
    """What the ledger of claims decides with."""
    found = []
    for task in TASKS:
        own = task.replace("-", "_")
        pixel, linear = known[task, "pixel"], known[task, "linear"]
        found.append(_lead(f"five_against_ten_{own}", pixel, FEW, linear, DOSSR, "psnr_clean", "07_steps"))
        rivals = [(known[task, n], BRIDGE if n in BRIDGES else "one step") for n in RIVALS]
        rival, setting = max(rivals, key=lambda pair: pair[0].mean("psnr_clean", pair[1]).mean)
        found.append(_lead(f"lead_{own}", pixel, FEW, rival, setting, "psnr_clean", "07_steps"))
        found.append(_lead(f"dynamic_psnr_{own}", pixel, FEW, linear, FEW, "psnr_clean", "07_ablation"))
        text = f"share of pixels whose g is at its bound, {task}"
        found.append(stated(f"saturated_{own}", pixel.facts["g_saturated"], text, figure="07_modulations"))
        table = energy_rows({task: energies_of[task]})
        gain = _gain(table, "measured on other heads")
        text = f"energy that a pixel-wise path saves over a global one on other heads, {task}"
        found.append(stated(f"energy_gain_{own}", gain, text, figure="07_energies"))
        if task == "mask":
            gain = _gain(table, "the SDE's own weight")
            text = "energy that a pixel-wise path saves over a global one under the SDE's own weight"
            found.append(stated("energy_gain_sde", gain, text, figure="07_energies"))
    mask, modality = ({name: j for (task, name), j in known.items() if task == t} for t in ("mask", "modality"))
    found += [
        _lead("dynamic_dice", mask["pixel"], FEW, mask["linear"], FEW, "dice", "07_ablation"),
        _lead("dynamic_hausdorff", mask["pixel"], FEW, mask["linear"], FEW, "hausdorff_mm", "07_ablation"),
        _lead("channel_hausdorff", mask["channel"], FEW, mask["linear"], FEW, "hausdorff_mm", "07_ablation"),
        _lead("spatial_dice", mask["pixel"], FEW, mask["channel"], FEW, "dice", "07_ablation"),
        _lead("learnt_over_random", mask["pixel"], FEW, mask["random"], FEW, "dice", "07_ablation"),
        _lead(
            "medshift_pairs_cost", modality["pixel"], FEW, modality["pixel-medshift"], FEW, "psnr_clean", "07_unpaired"
        ),
        _lead("ot_pairs_cost", modality["pixel"], FEW, modality["pixel-ot"], FEW, "psnr_clean", "07_unpaired"),
        *_averaging(mask["random"]),
    ]
    bridge = max((mask[name] for name in BRIDGES), key=lambda j: j.mean("dice", BRIDGE).mean)
    views = bridge.of(BRIDGE)
    found.append(
        measured("best_bridge_dice", views["dice"], views["head"], f"Dice of {bridge.label}", figure="07_main_mask")
    )
    most = _most(modality["pixel"])
    few, many = modality["pixel"].spread(FEW), modality["pixel"].spread(most)
    heads = modality["pixel"].of(FEW, "spread")["head"]
    text = f"spread of CDTSDE's samples with five steps over that with {most[2:]}"
    found.append(
        measured("spread_few_over_many", few / np.maximum(many, 1e-9), heads, text, figure="07_steps", null=1.0)
    )
    largest = json.loads((costs / "costs.json").read_text())["costs"]
    share = max(r["field"] / (r["network"] + r["field"] + r["arithmetic"]) for r in largest)
    found.append(stated("field_share", share, "largest share of a step that the field takes", figure="07_costs"))
    return found


def _gain(table: pd.DataFrame, world: str) -> float:
    """Share of the global optimum's energy that the pixel-wise one saves."""
    row = table[table["world"] == world]
    return 1 - float(row["pixel-wise"].iloc[0]) / float(row["global"].iloc[0])


def _lead(name: str, a: Judged, at: str, b: Judged, against: str, metric: str, figure: str) -> dict[str, Any]:
    """The paired difference of two methods over the same views."""
    x, y = a.of(at), b.of(against)
    what, unit = {"psnr_clean": ("PSNR to the truth", "dB"), "dice": ("Dice", "")}.get(
        metric, ("Hausdorff distance", "mm")
    )
    values = x[metric].to_numpy() - y[metric].to_numpy()
    text = f"{what}, {a.task}: {a.label} {at} minus {b.label} {against}"
    return measured(name, values, x["head"], text, unit=unit, figure=figure)


def _averaging(judged: Judged) -> Sequence[dict[str, Any]]:
    """What sampling with the mean of the field costs a network that was trained with the field itself."""
    found = []
    averaged = [s.removesuffix(AVERAGED) for s in judged.settings if s.endswith(AVERAGED)]
    for name, setting in (("few", FEW), ("many", max(averaged, key=lambda s: int(s[2:])))):
        x, y = judged.of(setting), judged.of(setting + AVERAGED)
        values = x["psnr_clean"].to_numpy() - y["psnr_clean"].to_numpy()
        text = f"PSNR of {judged.label} sampled per pixel minus with the mean of its field, {setting}"
        row = measured(f"averaging_cost_{name}", values, x["head"], text, unit="dB", figure="07_mismatch")
        found.append(row)
    return found


def _most(judged: Judged) -> str:
    """The setting of the most steps."""
    return f"K={max(int(s[2:]) for s in judged.settings if s[2:].isdigit())}"
