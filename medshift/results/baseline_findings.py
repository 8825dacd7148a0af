"""06: our rows beside the printed ones, and findings of the comparison for the ledger of claims."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from medshift.published import table1
from medshift.results.baselines import OURS_SMALL, PAPER, headroom_of, ranks_of, set_metric
from medshift.results.entry import FEATURES, Entry
from medshift.results.findings import measured, stated

FIGURE = "06_pareto"
GANS = ("CycleGAN", "CUT", "FastCUT", "CycleGAN-Turbo-style (own backbone)")
# Findings that are the PSNR of one method minus that of another.
LEADS = (
    ("physics_fit_over_medshift", "physics fit", "MedShift"),
    ("resimulation_over_medshift", "re-simulation", "MedShift"),
    ("ot_over_independent", "direct bridge, OT", "direct bridge, independent"),
    ("bridge_over_same_budget", "direct bridge, OT", OURS_SMALL),
    ("flow_edit_over_medshift", "FlowEdit", "MedShift"),
    ("two_networks_over_one", "DDIB, two networks", "DDIB, one network"),
)

# Rows of Table 1 and their like here. None can be compared as numbers: other data, other features, other training.
PUBLISHED: Mapping[str, str] = {
    "Synthetic Images": "doing nothing",
    "Hierarchy Flow st=0.1": "Hierarchy Flow st=0.1",
    "Hierarchy Flow st=0.25": "Hierarchy Flow st=0.25",
    "Hierarchy Flow st=0.4": "Hierarchy Flow st=0.4",
    "CycleGAN-Turbo ss=0.0": "CycleGAN-Turbo-style (own backbone)",
    "CycleGAN-Turbo ss=0.5": "",
    "CycleGAN-Turbo ss=1.0": "",
    "Z-STAR": "Z-STAR",
    "SDEdit st=0.1": "SDEdit st=0.1",
    "SDEdit st=0.2": "SDEdit st=0.2",
    "SDEdit st=0.3": "SDEdit st=0.3",
    "MedShift tau=0.6": "MedShift τ=0.6",
    "MedShift tau=0.45": "MedShift τ=0.45",
    "MedShift tau=0.3": "MedShift τ=0.3",
}


def published_table(entries: Sequence[Entry], ranked: Sequence[str]) -> pd.DataFrame:
    """The paper's rows as printed, and ours beside them in columns of their own."""
    known = {e.name: e for e in entries}
    ranks = ranks_of([e for e in entries if e.group in ranked and e.rankable])[PAPER].to_dict()
    rows = []
    for name, row in table1().iterrows():
        ours = known.get(PUBLISHED.get(str(name), ""))
        line: dict[str, Any] = {"paper: method": name}
        for column in ("cfid", "coverage", "cmmd", "lpips", "ssim", "average_rank"):
            line[f"paper: {column.replace('_', ' ')}"] = "" if pd.isna(row[column]) else f"{row[column]:g}"
        line["here: method"] = ours.name if ours else "not run: what ss sets is not stated"
        line[f"here: FID ({FEATURES})"] = set_metric(ours, "FID").text(4) if ours else ""
        line[f"here: coverage ({FEATURES})"] = set_metric(ours, "coverage").text() if ours else ""
        line["here: SSIM to source"] = ours.measured("ssim_source").text() if ours else ""
        line["here: paper's rank"] = f"{ranks[ours.name]:.1f}" if ours and ours.name in ranks else ""
        line["comparable"] = "no: other data, features and training"
        rows.append(line)
    return pd.DataFrame(rows)


def baseline_findings(entries: Sequence[Entry], floor: str, ranked: Sequence[str]) -> list[dict[str, Any]]:
    """Where MedShift stands among the others, in numbers that the ledger of claims decides with."""
    known = {e.name: e for e in entries}
    ours = known["MedShift"]
    head = headroom_of(ours, [e for e in entries if e.group == floor], known["noise twin"])
    rivals = [e for e in entries if e.group in ranked and not e.name.startswith("MedShift")]
    best = max(rivals, key=lambda e: e.mean("psnr_clean").mean)
    gan = min((known[name] for name in GANS if name in known), key=lambda e: set_metric(e, "KID").value)
    text = "headroom of MedShift above the best floor"
    found = [stated("compared_headroom", head.mean, text, low=head.low, high=head.high, n=head.n, heads=head.heads,
                    figure=FIGURE)]  # fmt: skip
    pairs = [*LEADS, ("medshift_over_rivals", "MedShift", best.name), ("same_budget_over_gan", OURS_SMALL, gan.name)]
    found += [_lead(name, known[a], known[b], "psnr_clean", "dB") for name, a, b in pairs]
    found.append(_lead("gan_structure", gan, ours, "ssim_source", ""))
    found.append(_realism(ours, gan))
    return [*found, *_margin([e for e in entries if e.group in ranked])]


def _lead(name: str, a: Entry, b: Entry, metric: str, unit: str) -> dict[str, Any]:
    """The paired difference of two methods over the same views."""
    x, y = a.of(), b.of()
    what = {"psnr_clean": "PSNR to the truth", "ssim_source": "SSIM to the source"}[metric]
    difference = x[metric].to_numpy() - y[metric].to_numpy()
    return measured(name, difference, x["head"], f"{what}: {a.name} minus {b.name}", unit=unit, figure=FIGURE)


def _realism(ours: Entry, gan: Entry) -> dict[str, Any]:
    """KID of MedShift minus that of a GAN, its interval as if the two were independent.

    Both are judged against the same images of the target, so the interval is too long rather than too short. Without
    an interval of both there is none.
    """
    a, b = set_metric(ours, "KID"), set_metric(gan, "KID")
    text = f"KID of MedShift minus that of the most realistic GAN, {gan.name}"
    value, half = a.value - b.value, math.hypot(a.half, b.half)
    n, heads = len(ours.of()), ours.of()["head"].nunique()
    low, high = value - half, value + half
    return stated("gan_realism", value, text, low=low, high=high, n=n, heads=heads, figure=FIGURE)


def _margin(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """The least lead of MedShift's best row over the best other in three aggregations of ranks.

    Of rows that may be ranked, if ours and others are among them; else of all rows, as a number without an interval,
    which decides nothing.
    """
    text = "least lead of MedShift's best row over the best other in three aggregations of ranks"
    margins = _margins(ranks_of([e for e in entries if e.rankable]))
    if margins:
        low, high = min(margins), max(margins)
        n = sum(e.rankable for e in entries)
        return [stated("our_rank_margin", low, text, low=low, high=high, n=n, unit="ranks", figure=FIGURE)]
    every = _margins(ranks_of(entries))
    text += "; of all rows, since too few have converged, and so not judged"
    return [stated("our_rank_margin", min(every), text, n=len(entries), unit="ranks", figure=FIGURE)] if every else []


def _margins(ranks: pd.DataFrame) -> list[float]:
    """By how much the best other row is behind ours, in each aggregation; empty unless both are ranked."""
    ahead = ranks.index.str.startswith("MedShift")
    if not ahead.any() or ahead.all():
        return []
    return [float(ranks.loc[~ahead, c].min() - ranks.loc[ahead, c].min()) for c in ranks.columns]
