"""06: every method between its floors and its ceiling, in the paper's table and against the truth."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medshift.evaluate import FAILURE_DB, TWIN, headroom
from medshift.metrics.bootstrap import Interval, hierarchical_interval
from medshift.metrics.ranking import group_mean_rank, mean_rank, paper_rank
from medshift.results.convergence import MOVING, moved

HEADLINE = "T2"
FEATURES = "ST-AlexNet"  # the extractor whose weights are always there
CANDIDATES = ("FID", "conditional FID")  # for the paper's undefined CFID
HIGHER: Mapping[str, bool] = {"cfid": False, "coverage": True, "kid": False, "st_lpips": False, "ssim": True}
GROUPS: Mapping[str, tuple[str, ...]] = {"realism": ("cfid", "coverage", "kid"), "structure": ("st_lpips", "ssim")}
VIEW = ["view", "head", "region"]


@dataclass(frozen=True)
class Entry:
    """One row of the table: its name, its group, the folders of its translations and scores, and how it deviates."""

    name: str
    group: str
    compared: Path
    assessed: Path
    deviation: str = ""

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What the method costs and with which knobs it ran."""
        return json.loads((self.compared / "facts.json").read_text())

    @cached_property
    def scores(self) -> pd.DataFrame:
        """One row a tier and view, the mean of its draws."""
        table = pd.read_csv(self.assessed / "scores.csv", keep_default_na=False, na_values=[""], dtype={"insert": str})
        numbers = [c for c in table.select_dtypes("number").columns if c not in ("view", "head", "draw")]
        return table.groupby(["role", *VIEW], sort=False)[numbers].mean().reset_index()

    @cached_property
    def sets(self) -> dict[tuple[str, str], float]:
        """Metric and features -> value, the mean of the draws."""
        table = pd.read_csv(self.assessed / "sets.csv", keep_default_na=False, na_values=[""])
        means = table.groupby(["metric", "features"])["value"].mean()
        return {(str(m), str(f)): float(v) for (m, f), v in zip(means.index, means, strict=True)}

    def of(self, role: str) -> pd.DataFrame:
        """The views of one tier, in order."""
        return self.scores[self.scores["role"] == role].sort_values("view")

    def mean(self, metric: str, role: str = HEADLINE) -> Interval:
        """A mean over views with its interval over heads; views without a value are left out."""
        rows = self.of(role).dropna(subset=[metric])
        return hierarchical_interval(rows[metric].to_numpy(), rows)

    @property
    def moved(self) -> float | None:
        """By how much the error on validation views still moved over the last fifth of the training, if there was one.

        None without a curve of its own, which methods without a training of their own do not have.
        """
        return moved(self.facts.get("watched"))

    @property
    def converged(self) -> bool:
        """Whether it may be ranked."""
        return self.moved is None or self.moved <= MOVING


def headroom_of(entry: Entry, floors: Sequence[Entry], twin: Entry, role: str = HEADLINE) -> Interval:
    """(method - best floor) / (noise twin - best floor) in PSNR to the truth on one tier."""
    parts = [e.of(role).assign(method=e.name) for e in floors]
    table = pd.concat([*parts, twin.of(role).assign(method=TWIN)])
    return headroom(entry.of(role), table)[0]


def first_table(entries: Sequence[Entry], floor: str, ceiling: str, ranked: Sequence[str]) -> pd.DataFrame:
    """The paper's Table 1 on these data, headroom first; ranks of methods that have converged.

    Args:
        entries: all rows.
        floor: the group of floors.
        ceiling: the group of ceilings, the noise twin among them.
        ranked: groups whose methods are ranked.
    """
    floors = [e for e in entries if e.group == floor]
    twin = next(e for e in entries if e.group == ceiling and e.name == TWIN)
    ranks = ranks_of([e for e in entries if e.group in ranked and e.converged]).to_dict("index")
    rows = []
    for e in entries:
        row: dict[str, Any] = {"": e.group, "method": e.name}
        row["headroom"] = "1 by definition" if e is twin else str(headroom_of(e, floors, twin))
        row[f"FID ({FEATURES})"] = _shown(e, "FID", 4)
        row[f"conditional FID ({FEATURES})"] = _shown(e, "conditional FID", 4)
        row[f"coverage ({FEATURES})"] = _shown(e, "coverage")
        row[f"KID × 10⁵ ({FEATURES})"] = f"{1e5 * e.sets['KID', FEATURES]:.2f}"
        row["FID (Inception)"], row["CMMD (CLIP)"] = _shown(e, "FID", of="Inception"), _shown(e, "CMMD", of="CLIP")
        row["ST-LPIPS to source"] = f"{e.of(HEADLINE)['st_lpips_source'].mean():.3f}"
        row["SSIM to source"] = f"{e.of(HEADLINE)['ssim_source'].mean():.2f}"
        for name in ("paper's rank", "mean of ranks", "mean of groups"):
            row[name] = f"{ranks[e.name][name]:.1f}" if e.name in ranks else _unranked(e, ranked)
        rows.append(row)
    return pd.DataFrame(rows)


def _shown(entry: Entry, metric: str, digits: int = 2, of: str = FEATURES) -> str:
    value = entry.sets.get((metric, of), float("nan"))
    return f"{value:.{digits}f}" if np.isfinite(value) else "not computed"


def _unranked(entry: Entry, ranked: Sequence[str]) -> str:
    if entry.group not in ranked:
        return ""
    return "not converged"


def metrics_of(entries: Sequence[Entry], candidate: str = CANDIDATES[0]) -> pd.DataFrame:
    """Methods × the metrics of `HIGHER`, ``candidate`` standing for CFID."""
    rows = {}
    for e in entries:
        own = e.of(HEADLINE)
        rows[e.name] = {
            "cfid": e.sets[candidate, FEATURES],
            "coverage": e.sets["coverage", FEATURES],
            "kid": e.sets["KID", FEATURES],
            "st_lpips": own["st_lpips_source"].mean(),
            "ssim": own["ssim_source"].mean(),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def ranks_of(entries: Sequence[Entry], candidate: str = CANDIDATES[0]) -> pd.DataFrame:
    """Three aggregations of the ranks of some methods; metrics that rank nothing are left out."""
    table = metrics_of(entries, candidate)
    used = {m: up for m, up in HIGHER.items() if table[m].notna().all() and table[m].nunique() > 1}
    groups = {g: [m for m in names if m in used] for g, names in GROUPS.items()}
    groups = {g: names for g, names in groups.items() if names}
    if len(table) < 2 or not {"cfid", "ssim"} <= set(used):
        return pd.DataFrame(columns=["paper's rank", "mean of ranks", "mean of groups"])
    return pd.DataFrame(
        {
            "paper's rank": paper_rank(table, used)["average_rank"],
            "mean of ranks": mean_rank(table, used),
            "mean of groups": group_mean_rank(table, used, groups=groups),
        }
    )


def truth_table(entries: Sequence[Entry], roles: Sequence[str]) -> pd.DataFrame:
    """Every method against the truth, unseen heads first, known heads beside them."""
    rows = []
    for e in entries:
        row: dict[str, Any] = {"": e.group, "method": e.name, "PSNR [dB], T2": str(e.mean("psnr_clean"))}
        row["SSIM, T2"] = str(e.mean("ssim_clean"))
        for role in (r for r in roles if r != HEADLINE):
            row[f"PSNR, {role}"] = f"{e.of(role)['psnr_clean'].mean():.2f}"
        own = e.of(HEADLINE)
        row[f"below {FAILURE_DB:g} dB"] = f"{100 * (own['psnr_clean'] < FAILURE_DB).mean():.0f} %"
        row["landmark drift [mm]"] = _drift(own)
        row["edges invented"], row["edges lost"] = f"{own['invented'].mean():.2f}", f"{own['lost'].mean():.2f}"
        row["fine noise / target's"] = f"{own['high_pass'].mean() / own['high_pass_target'].mean():.2f}"
        row["way gone"] = f"{own['shift'].mean():.2f}"
        rows.append(row)
    return pd.DataFrame(rows)


def _drift(own: pd.DataFrame) -> str:
    """Mean drift with the landmarks that could be measured; an image that lost them has none."""
    there = own["drift_mm"].dropna()
    return f"{there.mean():.2f} ({int(own['landmarks'].sum())})" if len(there) else "none found"


def cost_table(entries: Sequence[Entry]) -> pd.DataFrame:
    """What each method costs, which knobs it ran with, and what differs from the method as published."""
    rows = []
    for e in entries:
        facts = e.facts
        knobs = ", ".join(f"{k} = {v:g}" if isinstance(v, float) else f"{k} = {v}" for k, v in facts["knobs"].items())
        row = {"method": e.name, "evaluations": facts["nfe"], "parameters [M]": f"{facts['parameters'] / 1e6:.2f}"}
        row["in training [M]"] = f"{facts['in_training'] / 1e6:.2f}"
        row["images seen"] = facts["images_seen"]
        row["ms an image"] = (
            "" if not np.isfinite(facts["seconds_per_image"]) else f"{1000 * facts['seconds_per_image']:.1f}"
        )
        row["knobs"] = knobs
        row["last fifth moved by"] = "" if e.moved is None else f"{100 * e.moved:.1f} %"
        row["deviation from the original"] = e.deviation or facts["deviation"]
        rows.append(row)
    return pd.DataFrame(rows)


def search_table(entries: Sequence[Entry]) -> pd.DataFrame:
    """What was tried on validation heads before any test view was seen: PSNR to the truth [dB] by tau."""
    rows = []
    for e in entries:
        path = e.compared / "search.csv"
        if path.is_file():
            tried = pd.read_csv(path)
            taus = [f"τ = {json.loads(knobs)['tau']:g}" for knobs in tried["knobs"]]
            found = {tau: f"{psnr:.2f}" for tau, psnr in zip(taus, tried["psnr"], strict=True)}
            rows.append({"method": e.name, **found, "chosen": taus[int(tried["psnr"].to_numpy().argmax())]})
    return pd.DataFrame(rows).fillna("")


def not_beating(entries: Sequence[Entry], floor: str) -> list[Entry]:
    """Trained methods whose KID is no better than that of the floor of this name, one row a training."""
    limit = next(e for e in entries if e.name == floor).sets["KID", FEATURES]
    found: list[Entry] = []
    for e in entries:
        watched = e.facts.get("watched")
        known = any(watched == other.facts["watched"] for other in found)
        if watched and not known and not e.sets["KID", FEATURES] < limit:
            found.append(e)
    return found
