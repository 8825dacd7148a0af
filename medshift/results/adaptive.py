"""07: paired methods against the truth, task by task."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medshift.metrics.intervals import Interval, hierarchical_interval
from medshift.results.convergence import MOVING, moved

__all__ = [
    "Judged",
    "ablation_table",
    "cost_table",
    "energy_rows",
    "field_table",
    "main_table",
    "mismatch_table",
    "unpaired_table",
]

FEATURES = "ST-AlexNet"
FEW, DOSSR, BRIDGE = "K=5", "K=10", "K=20"
# Rows of the main table: a training's name within its task, the settings shown.
ROWS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("nothing", ("",)),
    ("linear", (FEW, DOSSR)),
    ("pixel", (FEW, DOSSR)),
    ("bbdm", (FEW, BRIDGE)),
    ("abridge", (FEW, BRIDGE, f"{BRIDGE}, released step")),
    ("dbim", (FEW, BRIDGE)),
    ("pix2pix", ("one step",)),
    ("regressor", ("one step",)),
    ("twin", ("",)),
)
LABELS: Mapping[str, str] = {"nothing": "doing nothing", "twin": "noise twin", "regressor": "paired regressor"}
PROPOSED: Mapping[str, str] = {"-medshift": " on MedShift's pairs", "-ot": " on OT pairs"}
ABLATED: Mapping[str, str] = {
    "linear": "linear (DOSSR)",
    "channel": "per channel",
    "pixel": "per pixel (CDTSDE)",
    "content": "per pixel, sees the source",
    "random": "random, not learnt",
    "lowest": "g = -.9 everywhere",
    "gauge": "per pixel, mean g held at 0",
    "energy": "per pixel, with path energy",
    "averaged": "averaged in training",
}


@dataclass(frozen=True)
class Judged:
    """One method on one task: the folder of the stage that judged it in all its settings."""

    task: str
    name: str
    folder: Path

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What it costs, and what its field looks like."""
        return json.loads((self.folder / "facts.json").read_text(encoding="utf-8"))

    @cached_property
    def _tables(self) -> dict[str, pd.DataFrame]:
        names = ("scores", "sets", "spread")
        return {name: pd.read_csv(self.folder / f"{name}.csv", keep_default_na=False, na_values=[""]) for name in names}

    @property
    def label(self) -> str:
        """Its name in tables and figures."""
        pairs = next((text for end, text in PROPOSED.items() if self.name.endswith(end)), "")
        return LABELS.get(self.name) or str(self.facts["name"]) + pairs

    @property
    def settings(self) -> list[str]:
        """In the order in which they were judged; a floor has one without a name."""
        return list(self.facts["settings"])

    def of(self, setting: str, table: str = "scores") -> pd.DataFrame:
        """The rows of one setting: views in order, or metrics of sets."""
        rows = self._tables[table]
        same = rows["setting"].fillna("") == setting
        return rows[same].reset_index(drop=True)

    def mean(self, metric: str, setting: str) -> Interval:
        """A mean over views with its interval over heads."""
        rows = self.of(setting)
        return hierarchical_interval(rows[metric].to_numpy(), rows)

    def set_metric(self, metric: str, setting: str, features: str = FEATURES) -> float:
        """A metric of the set of outputs; NaN where weights are missing."""
        rows = self.of(setting, "sets")
        found = rows[(rows["metric"] == metric) & (rows["features"] == features)]["value"]
        return float(found.iloc[0]) if len(found) else float("nan")

    def spread(self, setting: str) -> np.ndarray:
        """Standard deviation of the samples of each view that was translated several times."""
        return self.of(setting, "spread")["spread"].to_numpy()

    @property
    def moved(self) -> float | None:
        """By how much of its mean the error on validation views moved over the last fifth of the training."""
        return moved(self.facts.get("watched"))


Known = Mapping[tuple[str, str], Judged]


def primary(task: str) -> str:
    """The metric that a task is decided by."""
    return "dice" if task == "mask" else "psnr_clean"


def main_table(known: Known, task: str) -> pd.DataFrame:
    """The paper's main table for one task: overlap or fidelity with intervals, realism, steps."""
    rows = []
    for name, settings in ROWS:
        judged = known[task, name]
        for setting in settings:
            own = judged.of(setting)
            row: dict[str, Any] = {"method": judged.label, "steps": setting}
            if task == "mask":
                row["Dice"] = str(judged.mean("dice", setting))
                row["Hausdorff [mm]"] = f"{own['hausdorff_mm'].mean():.1f}"
            row["PSNR [dB]"] = str(judged.mean("psnr_clean", setting))
            row["SSIM"] = f"{own['ssim_clean'].mean():.3f}"
            row["ST-LPIPS"] = f"{own['st_lpips'].mean():.3f}"
            row["LPIPS"] = f"{own['lpips'].mean():.3f}" if own["lpips"].notna().all() else "not computed"
            row[f"FID ({FEATURES})"] = f"{judged.set_metric('FID', setting):.4f}"
            inception = judged.set_metric("FID", setting, "Inception")
            row["FID (Inception)"] = f"{inception:.1f}" if np.isfinite(inception) else "not computed"
            row["fine noise / target's"] = f"{own['high_pass'].mean() / own['high_pass_target'].mean():.2f}"
            rows.append(row)
    return pd.DataFrame(rows)


def difference(a: Judged, setting_a: str, b: Judged, setting_b: str, metric: str) -> tuple[Interval, pd.DataFrame]:
    """Mean over views of a - b with its interval over heads, and the rows of a."""
    x, y = a.of(setting_a), b.of(setting_b)
    return hierarchical_interval(x[metric].to_numpy() - y[metric].to_numpy(), x), x


def ablation_table(known: Known, task: str, setting: str = FEW) -> pd.DataFrame:
    """What the field adds: every field against the linear one, on the same views."""
    base = known[task, "linear"]
    rows = []
    for name, label in ABLATED.items():
        if (task, name) not in known:
            continue
        judged = known[task, name]
        row: dict[str, Any] = {"field": label}
        for metric, title, digits in _metrics(task):
            row[title] = f"{judged.mean(metric, setting).mean:.{digits}f}"
            found = difference(judged, setting, base, setting, metric)[0]
            row[f"{title} - linear"] = "" if name == "linear" else _shown(found, digits)
        rows.append(row)
    for name in ("linear-seed-1", "pixel-seed-1"):
        if (task, name) in known:
            judged, row = known[task, name], {"field": f"{ABLATED[name.partition('-')[0]]}, another seed"}
            for metric, title, digits in _metrics(task):
                row[title] = f"{judged.mean(metric, setting).mean:.{digits}f}"
                row[f"{title} - linear"] = _shown(difference(judged, setting, base, setting, metric)[0], digits)
            rows.append(row)
    return pd.DataFrame(rows)


def _metrics(task: str) -> tuple[tuple[str, str, int], ...]:
    own = (("dice", "Dice", 3), ("hausdorff_mm", "Hausdorff [mm]", 1)) if task == "mask" else ()
    return (*own, ("psnr_clean", "PSNR [dB]", 2))


def _shown(interval: Interval, digits: int) -> str:
    return f"{interval.mean:+.{digits}f} [{interval.low:+.{digits}f}, {interval.high:+.{digits}f}]"


def field_table(known: Known) -> pd.DataFrame:
    """What every field became: its mean and spread of g, how much of it is at the bound, where it falls in time."""
    rows = []
    for (task, name), judged in known.items():
        if "g_mean" not in judged.facts:
            continue
        facts, settings = judged.facts, judged.facts["settings"]
        rows.append(
            {
                "task": task,
                "field": ABLATED.get(name, name),
                "mean g": f"{facts['g_mean']:+.2f}",
                "spread of g": f"{facts['g_std']:.3f}",
                "at its bound": "has none" if name == "channel" else f"{100 * facts['g_saturated']:.0f} %",
                "falls in time": f"{100 * facts['falls']:.2f} %",
                "clamped in sampling": sum(own["clamped"] for own in settings.values()),
            }
        )
    return pd.DataFrame(rows)


def mismatch_table(known: Known, tasks: Sequence[str]) -> pd.DataFrame:
    """Trained with the field or with its mean × sampled with the field or with its mean, at few and at many steps."""
    rows = []
    for task in tasks:
        for name in ("pixel", "gauge", "random", "averaged"):
            judged = known.get((task, name))
            if judged is None:
                continue
            averaged = [s for s in judged.settings if s.endswith(", averaged field")]
            for setting in averaged:
                plain = setting.removesuffix(", averaged field")
                found = difference(judged, setting, judged, plain, "psnr_clean")[0]
                row = {"task": task, "trained with": ABLATED[name], "steps": plain}
                row["PSNR, sampled per pixel"] = f"{judged.mean('psnr_clean', plain).mean:.2f}"
                row["PSNR, sampled with the mean"] = f"{judged.mean('psnr_clean', setting).mean:.2f}"
                row["difference [dB]"] = _shown(found, 2)
                rows.append(row)
    return pd.DataFrame(rows)


def unpaired_table(known: Known, setting: str = FEW) -> pd.DataFrame:
    """CDTSDE on true pairs and on pairs that unpaired methods propose, judged on the same true pairs."""
    rows = []
    for name, label in (("linear", "linear (DOSSR)"), ("pixel", "per pixel (CDTSDE)")):
        for suffix, pairs in (
            ("", "true"),
            ("-medshift", "MedShift's translations"),
            ("-ot", "optimal transport of a batch"),
        ):
            judged = known["modality", name + suffix]
            row: dict[str, Any] = {"field": label, "pairs": pairs, "PSNR [dB]": str(judged.mean("psnr_clean", setting))}
            row["SSIM"] = f"{judged.of(setting)['ssim_clean'].mean():.3f}"
            cost = difference(judged, setting, known["modality", name], setting, "psnr_clean")[0]
            row["against true pairs [dB]"] = _shown(cost, 2) if suffix else ""
            rows.append(row)
    nothing = known["modality", "nothing"]
    rows.append({"field": "doing nothing", "PSNR [dB]": str(nothing.mean("psnr_clean", ""))})
    return pd.DataFrame(rows).fillna("")


def cost_table(known: Known, task: str) -> pd.DataFrame:
    """Parameters, images seen, evaluations and seconds, whether it has converged, and how it deviates."""
    rows = []
    for name, settings in ROWS:
        judged = known[task, name]
        if "deviation" not in judged.facts:
            continue
        facts, rest = judged.facts, judged.moved
        for setting in settings:
            own = facts["settings"][setting]
            rows.append(
                {
                    "method": judged.label,
                    "steps": setting,
                    "evaluations": own["nfe"],
                    "s / image": f"{own['seconds_per_image']:.3f}",
                    "weights [M]": f"{facts['parameters'] / 1e6:.2f}",
                    "in training [M]": f"{facts['in_training'] / 1e6:.2f}",
                    "images seen": facts["images_seen"],
                    "moved at the end": "" if rest is None else f"{100 * rest:.1f} %",
                    "converged": "" if rest is None else ("yes" if rest <= MOVING else "no"),
                    "deviates": facts["deviation"],
                }
            )
    return pd.DataFrame(rows)


def energy_rows(folders: Mapping[str, Path]) -> pd.DataFrame:
    """Energies over that of the linear path, one row a task and world."""
    rows = []
    for task, folder in folders.items():
        table = pd.read_csv(folder / "energies.csv")
        for row in table.to_dict("records"):
            linear = float(row["linear"])
            shares = {str(k): float(v) / linear for k, v in row.items() if k != "world" and pd.notna(v)}
            rows.append({"task": task, "world": row["world"], **shares})
    return pd.DataFrame(rows)
