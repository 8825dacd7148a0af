"""06: figures and findings of the comparison."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from medshift.data.domains import EvaluationSet
from medshift.published import table1
from medshift.results.baselines import FEATURES, HEADLINE, Entry, headroom_of, ranks_of
from medshift.results.convergence import MOVING
from medshift.results.findings import measured, stated
from medshift.results.realism import scores_of, sets_of
from medshift.stages.compared import load_compared
from medshift.stages.sweep import MEDSHIFT
from medshift.viz.baselines import Dot, Plane, fig_losses, fig_methods, fig_pareto, fig_watched
from medshift.viz.images import fig_grid

PAPER, FIGURE = "paper's rank", "06_pareto"
OURS_SMALL = "MedShift, same budget"
GANS = ("CycleGAN", "CUT", "CycleGAN-Turbo-style (own backbone)")
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


def pareto_figure(entries: Sequence[Entry], judged: Path, pair: str, footer: str) -> tuple[str, Figure]:
    """Caption and figure: realism against structure and against truth, every method, and MedShift's curve over tau."""
    scores, sets = scores_of(judged), sets_of(judged)
    means = scores[scores["method"] == MEDSHIFT].groupby("tau")[["ssim_source", "psnr_clean"]].mean()
    fid = sets[(sets["method"] == MEDSHIFT) & (sets["metric"] == "FID") & (sets["features"] == FEATURES)]
    fid_of = dict(zip(fid["tau"], fid["value"], strict=True))
    planes = []
    for column, label in (("ssim_source", "SSIM to the source"), ("psnr_clean", "PSNR to the truth [dB]")):
        dots = []
        for e in entries:
            value = e.mean(column)
            x = e.sets["FID", FEATURES]
            dots.append(Dot(e.name, e.group, x, value.mean, value.low, value.high, hollow=not e.converged))
        curve = [(tau, fid_of[tau], float(means[column][tau])) for tau in means.index if tau in fid_of]
        planes.append(Plane(dots, curve, f"FID ({FEATURES}), lower is more realistic", label, log_x=True))
    n = len(entries[0].of(HEADLINE))
    text = f"{n} views of unseen heads, 95 % over heads; numbers on the grey line are τ"
    figure = fig_pareto(
        planes, curve="MedShift, all τ", title=f"Realism, structure, truth: {pair}", footer=f"{text}; {footer}"
    )
    return f"Every method by FID, SSIM to the source and PSNR to the truth, {pair}; {text}; {footer}.", figure


def panel_figure(
    entries: Sequence[Entry], views: Path, source: str, target: str, footer: str, shown: int = 0
) -> tuple[str, Figure]:
    """Caption and figure: what every method makes of one view, with its error to the truth below."""
    n = len(entries[0].of(HEADLINE))
    some = EvaluationSet(views, HEADLINE, limit=n)
    made = {e.name: load_compared(e.compared)[HEADLINE][0][shown % n] for e in entries}
    entered, truth = some.exposure(source, 0)[shown % n], some.clean(target)[shown % n]
    title = f"View {shown % n + 1} of unseen heads: {source} > {target}"
    figure = fig_methods(entered, truth, made, title=title, footer=footer)
    return f"{title}, by every method, errors to the noise-free truth below; {footer}.", figure


def watched_figure(entries: Sequence[Entry], footer: str) -> tuple[str, Figure]:
    """Caption and figure: the error of every training on validation views."""
    curves: dict[str, tuple[list[float], list[float], bool]] = {}
    seen: list[Any] = []
    for e in entries:
        watched = e.facts.get("watched")
        if watched and watched not in seen:  # several rows may share a training
            seen.append(watched)
            curves[e.name] = [row["images"] for row in watched], [row["mae"] for row in watched], e.converged
    rule = f"red: moved by more than {100 * MOVING:g} % over its last fifth (grey), not converged and not ranked"
    figure = fig_watched(curves, title="Trainings, watched on validation heads", footer=f"{rule}; {footer}")
    return f"Mean absolute error to the truth on validation heads while each method learns; {rule}; {footer}.", figure


def losers_figure(
    entries: Sequence[Entry], views: Path, source: str, target: str, footer: str, shown: int = 6
) -> tuple[str, Figure]:
    """Caption and figure: samples of the trained methods that a tone curve beats in realism."""
    n = min(shown, len(entries[0].of(HEADLINE)))
    some = EvaluationSet(views, HEADLINE, limit=n)
    rows = [list(some.exposure(source, 0)), list(some.exposure(target, 0))]
    rows += [list(load_compared(e.compared)[HEADLINE][0][:n]) for e in entries]
    names = ["source", "target", *(textwrap.fill(e.name, 14) for e in entries)]
    figure = fig_grid(rows, [f"view {k + 1}" for k in range(n)], names, footer=footer)
    return f"Trained methods whose KID is no better than that of a tone curve: {n} samples each; {footer}.", figure


def losses_figure(entries: Sequence[Entry], footer: str) -> tuple[str, Figure]:
    """Caption and figure: every loss of the trainings behind some methods."""
    courses = {e.name: e.facts["losses"] for e in entries}
    text = "Losses of the methods whose KID is no better than that of a tone curve"
    return f"{text}, means over hundredths of the training; {footer}.", fig_losses(courses, title=text, footer=footer)


def published_table(entries: Sequence[Entry], ranked: Sequence[str]) -> pd.DataFrame:
    """The paper's rows as printed, and ours beside them in columns of their own."""
    known = {e.name: e for e in entries}
    ranks = ranks_of([e for e in entries if e.group in ranked and e.converged])[PAPER].to_dict()
    rows = []
    for name, row in table1().iterrows():
        ours = known.get(PUBLISHED.get(str(name), ""))
        line: dict[str, Any] = {"paper: method": name}
        for column in ("cfid", "coverage", "cmmd", "lpips", "ssim", "average_rank"):
            line[f"paper: {column.replace('_', ' ')}"] = "" if pd.isna(row[column]) else f"{row[column]:g}"
        line["here: method"] = ours.name if ours else "not run: what ss sets is not stated"
        line[f"here: FID ({FEATURES})"] = f"{ours.sets['FID', FEATURES]:.4f}" if ours else ""
        line[f"here: coverage ({FEATURES})"] = f"{ours.sets['coverage', FEATURES]:.2f}" if ours else ""
        line["here: SSIM to source"] = f"{ours.of(HEADLINE)['ssim_source'].mean():.2f}" if ours else ""
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
    gan = min((known[name] for name in GANS), key=lambda e: e.sets["KID", FEATURES])
    text = "headroom of MedShift above the best floor"
    found = [stated("compared_headroom", head.mean, text, low=head.low, high=head.high, n=head.n, figure=FIGURE)]
    pairs = [*LEADS, ("medshift_over_rivals", "MedShift", best.name), ("same_budget_over_gan", OURS_SMALL, gan.name)]
    found += [_lead(name, known[a], known[b], "psnr_clean", "dB") for name, a, b in pairs]
    found.append(_lead("gan_structure", gan, ours, "ssim_source", ""))
    kid = ours.sets["KID", FEATURES] - gan.sets["KID", FEATURES]
    text = f"KID of MedShift minus that of the most realistic GAN, {gan.name}"
    found.append(stated("gan_realism", kid, text, n=len(ours.of(HEADLINE)), figure=FIGURE))
    return [*found, *_margin([e for e in entries if e.group in ranked and e.converged])]


def _lead(name: str, a: Entry, b: Entry, metric: str, unit: str) -> dict[str, Any]:
    """The paired difference of two methods over the same views."""
    x, y = a.of(HEADLINE), b.of(HEADLINE)
    what = {"psnr_clean": "PSNR to the truth", "ssim_source": "SSIM to the source"}[metric]
    difference = x[metric].to_numpy() - y[metric].to_numpy()
    return measured(name, difference, x["head"], f"{what}: {a.name} minus {b.name}", unit=unit, figure=FIGURE)


def _margin(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """The least lead of MedShift's best row over the best other in three aggregations of ranks, if both are ranked."""
    ranks = ranks_of(entries)
    ahead = ranks.index.str.startswith("MedShift")
    if not ahead.any() or ahead.all():
        return []
    margins = [float(ranks.loc[~ahead, c].min() - ranks.loc[ahead, c].min()) for c in ranks.columns]
    text = "least lead of MedShift's best row over the best other in three aggregations of ranks"
    low, high = min(margins), max(margins)
    return [stated("our_rank_margin", low, text, low=low, high=high, n=len(ranks), unit="ranks", figure=FIGURE)]
