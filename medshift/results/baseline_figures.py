"""06: figures of the comparison."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import numpy as np
from matplotlib.figure import Figure

from medshift.data.domains import EvaluationSet
from medshift.results.baselines import one_a_training, same_as, set_metric
from medshift.results.convergence import LOSS, MOVING
from medshift.results.entry import FEATURES, Entry
from medshift.results.realism import scores_of, sets_of
from medshift.stages.compared import load_compared
from medshift.stages.sweep import MEDSHIFT
from medshift.viz.baselines import fig_losses, fig_methods, fig_samples, fig_watched
from medshift.viz.pareto import Dot, Plane, Span, fig_pareto

T = TypeVar("T")
Drawn = tuple[str, Figure]  # caption and figure
SAMPLES, ROWS_A_PAGE, TRAININGS_A_PAGE = 4, 20, 8
SCHEDULE = "rates fall to zero by schedule, which flattens every curve at its end"


def pareto_figure(entries: Sequence[Entry], judged: Path, pair: str, footer: str) -> Drawn:
    """Realism against structure and against truth, every method, and MedShift's curve over tau."""
    scores, sets = scores_of(judged), sets_of(judged)
    means = scores[scores["method"] == MEDSHIFT].groupby("tau")[["ssim_source", "psnr_clean"]].mean()
    fid = sets[(sets["method"] == MEDSHIFT) & (sets["metric"] == "FID") & (sets["features"] == FEATURES)]
    fid_of = dict(zip(fid["tau"], fid["value"], strict=True))
    planes, across = [], False
    for column, label in (("ssim_source", "SSIM to the source"), ("psnr_clean", "PSNR to the truth [dB]")):
        dots = []
        for e in entries:
            value, x = e.mean(column), set_metric(e, "FID")
            x_span = _span(x.low, x.high)
            across |= x_span is not None
            dots.append(Dot(e.name, e.group, x.value, value.mean, x_span, _span(value.low, value.high), not e.rankable))
        curve = [(tau, fid_of[tau], float(means[column][tau])) for tau in means.index if tau in fid_of]
        planes.append(Plane(dots, curve, f"FID ({FEATURES}), lower is more realistic", label, log_x=True))
    which = "lines are 95 % intervals, upright over heads" + (
        ", level by leaving out one head at a time" if across else ""
    )
    text = f"{_counted(entries[0])}; {which}; numbers with τ stand on the grey line"
    hollow = "not converged, or not watched"
    title = f"Realism, structure, truth: {pair}"
    figure = fig_pareto(planes, curve="MedShift, all τ", title=title, footer=f"{text}; {footer}", hollow=hollow)
    found = (
        f"Every method by FID, SSIM to the source and PSNR to the truth, {pair}; {text}; hollow: {hollow}; {footer}."
    )
    return found, figure


def _span(low: float, high: float) -> Span:
    return (low, high) if np.isfinite([low, high]).all() else None


def _counted(entry: Entry) -> str:
    own = entry.of()
    return f"{len(own)} views of {own['head'].nunique()} unseen heads"


def panel_figures(
    entries: Sequence[Entry],
    views: Path,
    source: str,
    target: str,
    footer: str,
    *,
    shown: int,
    pages: Sequence[Sequence[str]],
) -> Iterator[Drawn]:
    """What every method makes of one view, with its error to the truth below, a page for some groups each.

    Args:
        entries: all rows; those that repeat another are named and left out.
        views: folder of the views.
        source: domain translated from.
        target: domain translated to.
        footer: the data.
        shown: which view of the headline's tier.
        pages: groups of each page.
    """
    n = len(entries[0].of())
    some, tier = EvaluationSet(views, entries[0].headline, limit=n), entries[0].headline
    entered, truth = some.exposure(source, 0)[shown % n], some.clean(target)[shown % n]
    title = f"View {shown % n + 1} of unseen heads: {source} > {target}"
    for groups in pages:
        known, left = _without_repeats([e for e in entries if e.group in groups])
        made = {e.name: load_compared(e.compared)[tier][0][shown % n] for e in known}
        note = "; ".join([*left, footer])
        blocks = {e.name: e.group for e in known}
        figure = fig_methods(entered, truth, made, title=title, footer=note, groups=blocks)
        yield f"{title}, by {', '.join(groups)}; below each image its error to the noise-free truth; {note}.", figure


def _without_repeats(entries: Sequence[Entry]) -> tuple[list[Entry], list[str]]:
    """Rows, and a line on each that was left out because it makes the images of another."""
    equal = same_as(entries)
    return [e for e in entries if e.name not in equal], [f"{name} {text}" for name, text in equal.items()]


def watched_figure(entries: Sequence[Entry], footer: str) -> Drawn:
    """The error of every training on validation views, and the loss of the network that others stand on."""
    curves: dict[str, tuple[list[float], list[float], bool]] = {}
    further: dict[str, list[tuple[list[float], list[float]]]] = {}
    for e in entries:
        seeds = [_curve(facts["watched"], "mae") for facts in e.facts_by_seed if facts.get("watched")]
        name = e.trained.name if e.trained else e.name
        if e.trained and e.rest.measure == LOSS and e.trained.looks:
            seeds, name = [_curve(e.trained.looks, "loss")], f"{name} below MedShift (loss)"
        if seeds and name not in curves:  # several rows may share a training
            curves[name] = *seeds[0], e.rankable
            further[name] = seeds[1:]
    rule = f"red: moved by more than {100 * MOVING:g} % over its last fifth (grey), not converged and not ranked"
    rule += "; thin: further seeds" if any(further.values()) else ""
    text = f"{rule}; {SCHEDULE}; {footer}"
    ylabel = "mean absolute error to the truth, or loss where it says so"
    figure = fig_watched(
        curves, title="Trainings, watched on validation heads", footer=text, ylabel=ylabel, further=further
    )
    return f"Error on validation heads while each method learns, a panel a training; {text}.", figure


def _curve(looks: Sequence[Mapping[str, float]], error: str) -> tuple[list[float], list[float]]:
    return [look["images"] for look in looks], [look[error] for look in looks]


def losers_figures(entries: Sequence[Entry], views: Path, source: str, target: str, footer: str) -> Iterator[Drawn]:
    """Samples of the methods that a tone curve beats in realism, page by page."""
    n = min(SAMPLES, len(entries[0].of()))
    tier = entries[0].headline
    some = EvaluationSet(views, tier, limit=n)
    references = {"source": list(some.exposure(source, 0)), "target, same views": list(some.exposure(target, 0))}
    pages = _pages(entries, ROWS_A_PAGE)
    for k, page in enumerate(pages, start=1):
        samples = {e.name: list(load_compared(e.compared)[tier][0][:n]) for e in page}
        title = "KID no better than that of a tone curve" + (f", {k} of {len(pages)}" if len(pages) > 1 else "")
        text = f"the first {n} views of unseen heads; {footer}"
        yield f"Methods with a {title}; {text}.", fig_samples(references, samples, title=title, footer=text)


def losses_figures(entries: Sequence[Entry], footer: str) -> Iterator[Drawn]:
    """Every loss of the trainings behind some methods, page by page."""
    courses = [(name, e.facts["losses"]) for name, e in one_a_training(entries).items()]
    pages = _pages(courses, TRAININGS_A_PAGE)
    for k, page in enumerate(pages, start=1):
        title = "Losses behind the methods whose KID is no better than that of a tone curve"
        title += f", {k} of {len(pages)}" if len(pages) > 1 else ""
        text = f"means over hundredths of the training; {footer}"
        yield f"{title}; {text}.", fig_losses(dict(page), title=title, footer=text)


def _pages(items: Sequence[T], most: int) -> list[Sequence[T]]:
    """Items in their order on as few pages as hold them, evenly."""
    n = -(-len(items) // most)
    ends = [round(k * len(items) / n) for k in range(n + 1)] if n else [0]
    return [items[a:b] for a, b in pairwise(ends)]
