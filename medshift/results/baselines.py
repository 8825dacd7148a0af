"""06: every method between its floors and its ceiling, in the paper's table and against the truth."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from medshift.evaluate import FAILURE_DB, TWIN, headroom
from medshift.metrics.intervals import Interval
from medshift.metrics.ranking import group_mean_rank, mean_rank, paper_rank
from medshift.results.entry import FEATURES, Entry, Measured, repeats

CANDIDATES = ("FID", "conditional FID")  # for the paper's undefined CFID
HIGHER: Mapping[str, bool] = {"cfid": False, "coverage": True, "kid": False, "st_lpips": False, "ssim": True}
GROUPS: Mapping[str, tuple[str, ...]] = {"realism": ("cfid", "coverage", "kid"), "structure": ("st_lpips", "ssim")}
PAPER, SECOND = "paper's rank", "paper's rank by conditional FID"
RANKS = (PAPER, "mean of ranks", "mean of groups")
WITHIN = 0.1  # of the budget of parameters, above or below
OURS_SMALL = "MedShift, same budget"  # whose parameters are the budget
# Why a row makes the images of another, where the scores say that it does.
REASONS: Mapping[tuple[str, str], str] = {
    ("codec round trip", "doing nothing"): "patches lose nothing",
    ("blur + tone curve", "histogram match"): "the blur that fits best is none",
}


def headroom_of(entry: Entry, floors: Sequence[Entry], twin: Entry, role: str = "") -> Interval:
    """(method - best floor) / (noise twin - best floor) in PSNR to the truth on one tier, the headline's by default."""
    parts = [e.of(role).assign(method=e.name) for e in floors]
    table = pd.concat([*parts, twin.of(role).assign(method=TWIN)])
    return headroom(entry.of(role), table)[0]


def same_as(entries: Sequence[Entry]) -> dict[str, str]:
    """Name -> which earlier row makes the same images, and why where that is known; of such rows alone."""
    found = {}
    for name, earlier in repeats(entries).items():
        why = REASONS.get((name, earlier))
        found[name] = f"equals {earlier}" + (f": {why}" if why else "")
    return found


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
    judged = [e for e in entries if e.group in ranked and e.rankable]
    ranks = ranks_of(judged).assign(**{SECOND: ranks_of(judged, CANDIDATES[1])[PAPER]}).to_dict("index")
    equal = same_as(entries)
    rows = []
    for e in entries:
        row: dict[str, Any] = {"": e.group, "method": e.name}
        row["headroom"] = "1 by definition" if e is twin else str(headroom_of(e, floors, twin))
        row[f"FID ({FEATURES})"] = set_metric(e, "FID").text(4)
        row[f"conditional FID ({FEATURES})"] = set_metric(e, "conditional FID").text(4)
        row[f"coverage ({FEATURES})"] = set_metric(e, "coverage").text()
        row[f"KID × 10⁵ ({FEATURES})"] = set_metric(e, "KID").text(scale=1e5)
        row["FID (Inception)"] = set_metric(e, "FID", "Inception").text()
        row["CMMD (CLIP)"] = set_metric(e, "CMMD", "CLIP").text()
        row["ST-LPIPS to source"] = e.measured("st_lpips_source").text(3)
        row["SSIM to source"] = e.measured("ssim_source").text()
        for name in (PAPER, SECOND, *RANKS[1:]):
            row[name] = Measured(ranks[e.name][name]).text(1) if e.name in ranks else _unranked(e, ranked)
        row["trained on"] = _trained_on(e)
        row["note"] = equal.get(e.name, "")
        rows.append(row)
    return pd.DataFrame(rows)


def set_metric(entry: Entry, metric: str, features: str = FEATURES) -> Measured:
    """A metric of a set of images; NaN where the stage has none."""
    return entry.sets.get((metric, features), Measured(float("nan")))


def _unranked(entry: Entry, ranked: Sequence[str]) -> str:
    return entry.rest.state if entry.group in ranked else ""


def _trained_on(entry: Entry) -> str:
    """Images and parameters of the network, since rows of one table differ in both."""
    if entry.trained is None:
        return ""
    base = f" (+ {entry.trained.base.images_in_all:,} of its base)" if entry.trained.base else ""
    images = f"{entry.trained.images:,} images{base}".replace(",", " ")
    return f"{images}, {entry.facts['parameters'] / 1e6:.1f} M weights"


def metrics_of(entries: Sequence[Entry], candidate: str = CANDIDATES[0]) -> pd.DataFrame:
    """Methods × the metrics of `HIGHER`, ``candidate`` standing for CFID."""
    rows = {}
    for e in entries:
        own = e.of()
        rows[e.name] = {
            "cfid": set_metric(e, candidate).value,
            "coverage": set_metric(e, "coverage").value,
            "kid": set_metric(e, "KID").value,
            "st_lpips": own["st_lpips_source"].mean(),
            "ssim": own["ssim_source"].mean(),
        }
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(HIGHER))


def ranks_of(entries: Sequence[Entry], candidate: str = CANDIDATES[0]) -> pd.DataFrame:
    """Three aggregations of the ranks of some methods; metrics that rank nothing are left out."""
    table = metrics_of(entries, candidate)
    used = {m: up for m, up in HIGHER.items() if table[m].notna().all() and table[m].nunique() > 1}
    groups = {g: [m for m in names if m in used] for g, names in GROUPS.items()}
    groups = {g: names for g, names in groups.items() if names}
    if len(table) < 2 or not {"cfid", "ssim"} <= set(used):
        return pd.DataFrame(columns=list(RANKS), index=pd.Index([], dtype=str))
    of_groups = group_mean_rank(table, used, groups=groups)
    parts = (paper_rank(table, used)["average_rank"], mean_rank(table, used), of_groups)
    return pd.DataFrame(dict(zip(RANKS, parts, strict=True)))


def truth_table(entries: Sequence[Entry], roles: Sequence[str]) -> pd.DataFrame:
    """Every method against the truth, unseen heads first, known heads beside them."""
    equal = same_as(entries)
    rows = []
    for e in entries:
        row: dict[str, Any] = {"": e.group, "method": e.name}
        row[f"PSNR [dB], {e.headline}"] = e.measured("psnr_clean").text()
        row[f"SSIM, {e.headline}"] = e.measured("ssim_clean").text()
        for role in (r for r in roles if r != e.headline):
            row[f"PSNR, {role}"] = f"{e.of(role)['psnr_clean'].mean():.2f}"
        own = e.of()
        row[f"below {FAILURE_DB:g} dB"] = f"{100 * (own['psnr_clean'] < FAILURE_DB).mean():.0f} %"
        row["landmark drift [mm]"] = _drift(own)
        row["edges invented"], row["edges lost"] = f"{own['invented'].mean():.2f}", f"{own['lost'].mean():.2f}"
        row["fine noise / target's"] = f"{own['high_pass'].mean() / own['high_pass_target'].mean():.2f}"
        row["way gone"] = f"{own['shift'].mean():.2f}"
        row["note"] = equal.get(e.name, "")
        rows.append(row)
    return pd.DataFrame(rows)


def _drift(own: pd.DataFrame) -> str:
    """Mean drift with the landmarks that could be measured; an image that lost them has none."""
    there = own["drift_mm"].dropna()
    return f"{there.mean():.2f} ({int(own['landmarks'].sum())})" if len(there) else "none found"


def cost_table(entries: Sequence[Entry]) -> pd.DataFrame:
    """What each method costs, which knobs it ran with, and what differs from the method as published.

    The budget of parameters is that of the row `OURS_SMALL`; what a method's base network saw and took is counted in.
    """
    small = [e.facts["parameters"] for e in entries if e.name == OURS_SMALL]
    rows = []
    for e in entries:
        facts, trained = e.facts, e.trained
        knobs = ", ".join(f"{k} = {v:g}" if isinstance(v, float) else f"{k} = {v}" for k, v in facts["knobs"].items())
        row = {"method": e.name, "evaluations": facts["nfe"], "draws": facts["draws"]}
        row["parameters [M]"] = f"{facts['parameters'] / 1e6:.2f}"
        row["of the budget"] = against_budget(facts["parameters"], small[0]) if small and facts["parameters"] else ""
        row["in training [M]"] = f"{facts['in_training'] / 1e6:.2f}"
        row["learning rate"] = f"{facts['learning_rate']:g}" if "learning_rate" in facts else ""
        row["optimiser steps"] = trained.steps if trained else ""
        row["images seen"] = facts["images_seen"]
        row["images, its base's included"] = trained.images_in_all if trained else facts["images_seen"]
        row["training [min]"] = f"{trained.minutes:.1f}" if trained else ""
        row["training, its base's included [min]"] = f"{trained.minutes_in_all:.1f}" if trained else ""
        row["ms an image"] = (
            "" if not np.isfinite(facts["seconds_per_image"]) else f"{1000 * facts['seconds_per_image']:.1f}"
        )
        row["knobs"] = knobs
        row["last fifth moved by"] = "" if not e.rest.trained else str(e.rest)
        row["deviation from the original"] = f"{e.deviation or facts['deviation']} {e.searched}".rstrip()
        rows.append(row)
    return pd.DataFrame(rows)


def against_budget(parameters: int, budget: int) -> str:
    """Parameters against a budget, and whether they leave it by more than `WITHIN`."""
    share = parameters / budget
    outside = f", outside ± {100 * WITHIN:.0f} %" if abs(share - 1) > WITHIN else ""
    return f"{share:.2f} ×{outside}"


def search_table(entries: Sequence[Entry]) -> pd.DataFrame:
    """What was tried on validation heads before any test view was seen: PSNR to the truth [dB] by tau.

    A value in brackets is that of the first look, at fewer views, after which a candidate was left aside.
    """
    rows = []
    for e in entries:
        path = e.compared / "search.csv"
        if path.is_file():
            tried = pd.read_csv(path)
            taus = [f"τ = {json.loads(knobs)['tau']:g}" for knobs in tried["knobs"]]
            full = tried["views"] == tried["views"].max()
            shown = [f"{v:.2f}" if whole else f"({v:.2f})" for v, whole in zip(tried["psnr"], full, strict=True)]
            best = int(tried["psnr"].where(full).to_numpy(float, na_value=-float("inf")).argmax())
            rows.append({"method": e.name, **dict(zip(taus, shown, strict=True)), "chosen": taus[best]})
    return pd.DataFrame(rows).fillna("")


def not_beating(entries: Sequence[Entry], floor: str) -> list[Entry]:
    """Rows whose KID is no better than that of the floor of this name, but it and rows that repeat another."""
    limit = set_metric(next(e for e in entries if e.name == floor), "KID").value
    known = {floor, *repeats(entries)}
    return [e for e in entries if e.name not in known and not set_metric(e, "KID").value < limit]


def one_a_training(entries: Sequence[Entry]) -> dict[str, Entry]:
    """Name of a training -> the first row that stands on it and tells its losses, since rows may share one."""
    found: dict[str, Entry] = {}
    for e in entries:
        if e.trained is not None and e.facts.get("losses"):
            found.setdefault(e.trained.name, e)
    return found
