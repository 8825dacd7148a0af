"""07: figures and findings of the paired methods."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from safetensors.torch import load_file
from torch import Tensor

from medshift.data.paired_tasks import TASKS, TaskViews
from medshift.domain_shift import ShiftSchedule
from medshift.path_energy import energies, global_optimum, linear_path, pixel_optimum, two_pixels
from medshift.results.adaptive import ABLATED, FEW, ROWS, Known, difference, energy_rows, primary
from medshift.results.convergence import MOVING
from medshift.viz.adaptive import (
    Curve,
    fig_costs,
    fig_differences,
    fig_field_film,
    fig_modulations,
    fig_profiles,
    fig_steps,
)
from medshift.viz.baselines import fig_methods, fig_watched
from medshift.viz.images import fig_grid
from medshift.viz.path_energy import fig_curved_path, fig_energies

TITLES = {
    "mask": "X-ray > dense bone",
    "modality": "synthetic-high > real-exposure",
    "dual-energy": "soft tissue > bone",
}
BOUND = 0.9
TOY_TIMES = 201
Drawn = tuple[str, Figure]


def tasks_figure(views: Path, role: str, footer: str, shown: int = 4) -> Drawn:
    """Caption and figure: source and target of some views of every task."""
    rows, names = [], []
    for task in TASKS:
        source, target = TaskViews(task, views, role, limit=shown).exposure(0)
        rows += [list(source), list(target)]
        names += [TASKS[task].source, TASKS[task].target]
    figure = fig_grid(rows, [f"view {k + 1}" for k in range(shown)], names, footer=footer)
    return f"The three paired tasks: given above, sought below; {footer}.", figure


def steps_figure(known: Known, footer: str) -> Drawn:
    """Caption and figure: quality and spread of the samples against the number of steps."""
    panels: dict[tuple[str, str], list[Curve]] = {}
    levels: dict[tuple[str, str], dict[str, float]] = {}
    labels: dict[tuple[str, str], str] = {}
    for task in TASKS:
        metric = primary(task)
        quality, spread_of = ("quality", TITLES[task]), ("spread", TITLES[task])
        labels[quality] = "Dice" if metric == "dice" else "PSNR to the truth [dB]"
        labels[spread_of] = "spread of the samples"
        for name in ("linear", "pixel", "bbdm", "dbim"):
            judged = known[task, name]
            steps = sorted(int(s[2:]) for s in judged.settings if s[2:].isdigit())
            if len(steps) < 3:
                continue
            means = [judged.mean(metric, f"K={k}") for k in steps]
            values = [m.mean for m in means], [m.low for m in means], [m.high for m in means]
            panels.setdefault(quality, []).append(Curve(judged.label, steps, *values))
            spreads = [float(np.sqrt((judged.spread(f"K={k}") ** 2).mean())) for k in steps]
            spread = Curve(judged.label, steps, spreads, spreads, spreads)
            panels.setdefault(spread_of, []).append(spread)
        twin = known[task, "twin"]
        regressor = known[task, "regressor"].mean(metric, "one step").mean
        levels[quality] = {"paired regressor": regressor}
        if task != "mask":
            levels[quality]["noise twin"] = twin.mean(metric, "").mean
            truth = twin.of("", "spread")["spread_truth"].to_numpy()
            levels[spread_of] = {"noise of the truth": float(np.sqrt((truth**2).mean()))}
    title = "Quality against steps, and how much the samples of one view differ"
    text = f"unseen heads, 95 % over heads; spread: standard deviation of three samples; {footer}"
    return f"{title}; {text}.", fig_steps(panels, levels, labels, title=title, footer=text)


def film_figure(known: Known, views: Path, footer: str) -> Drawn:
    """Caption and figure: Λ - λ over one skull in time, of the fields of the ablation but the constant ones."""
    films, times = {}, [0]
    schedule = ShiftSchedule()
    for (task, name), judged in known.items():
        path = judged.folder / "film.safetensors"
        if task != "mask" or name not in ABLATED or name in ("linear", "lowest") or not path.is_file():
            continue
        held = load_file(path)
        times = [int(t) for t in held["times"]]
        lam = held["lam"][:, 0].mean(1)  # the first view, the mean over channels
        films[ABLATED[name]] = lam - schedule.mixing(held["times"]).to(lam)[:, None, None]
    kept = list(range(1, len(times) - 1, 2))
    source, target = TaskViews("mask", views, "validation", limit=1).exposure(0)
    some = {name: film[kept] for name, film in films.items()}
    title = "The field over a skull: Λ less the linear λ, mean over channels"
    figure = fig_field_film(source[0], target[0], some, [times[k] for k in kept], title=title, footer=footer)
    return f"{title}, at rising times; {footer}.", figure


def modulations_figure(known: Known, footer: str) -> Drawn:
    """Caption and figure: histograms of the g that was learnt."""
    values = {}
    for (task, name), judged in known.items():
        path = judged.folder / "film.safetensors"
        wanted = name == "pixel" or (task == "mask" and name in ("content", "gauge", "energy", "averaged", "random"))
        if wanted and path.is_file():
            values[f"{task}: {ABLATED[name]}"] = load_file(path)["g"].flatten().numpy()
    title = "What the field learns: g at half time"
    return f"{title}, all pixels and channels; {footer}.", fig_modulations(
        values, bound=BOUND, title=title, footer=footer
    )


def ablation_figure(known: Known, footer: str, task: str = "mask") -> Drawn:
    """Caption and figure: every field against the linear one, with intervals."""
    units = {
        "dice": "Dice - linear's",
        "hausdorff_mm": "Hausdorff - linear's [mm]",
        "psnr_clean": "PSNR - linear's [dB]",
    }
    names = {**ABLATED, "linear-seed-1": "linear, another seed", "pixel-seed-1": "per pixel, another seed"}
    panels: dict[str, dict[str, tuple[float, float, float]]] = {metric: {} for metric in units}
    for name, label in names.items():
        if name == "linear" or (task, name) not in known:
            continue
        for metric in units:
            found = difference(known[task, name], FEW, known[task, "linear"], FEW, metric)[0]
            panels[metric][label] = found.mean, found.low, found.high
    title = f"Fields against the linear one, five steps: {TITLES[task]}"
    text = f"95 % over heads; grey where the interval holds 0; {footer}"
    return f"{title}; {text}.", fig_differences(panels, units, title=title, footer=text)


def panel_figure(known: Known, views: Path, role: str, task: str, footer: str, shown: int = 0) -> Drawn:
    """Caption and figure: what every method makes of one view."""
    own = TaskViews(task, views, role, limit=shown + 1)
    source, truth = own.exposure(0)[0][shown], own.clean()[1][shown]
    made: dict[str, Tensor] = {}
    for name, settings in ROWS:
        held = load_file(known[task, name].folder / "images.safetensors")
        for setting in settings:
            label = f"{known[task, name].label} {setting}".strip()
            made[label] = held[setting or name][shown].float()
    title = f"{TITLES[task]}, a view of an unseen head"
    figure = fig_methods(source, truth, made, title=title, footer=footer, columns=8)
    return f"{title}, by every method, errors to the noise-free truth below; {footer}.", figure


def watched_figure(known: Known, footer: str) -> Drawn:
    """Caption and figure: the error of every training on validation views."""
    curves: dict[str, tuple[list[float], list[float], bool]] = {}
    for (task, name), judged in known.items():
        watched, moved = judged.facts.get("watched"), judged.moved
        if watched and moved is not None:
            curves[f"{task}: {name}"] = [r["images"] for r in watched], [r["mae"] for r in watched], moved <= MOVING
    rule = f"red: moved by more than {100 * MOVING:g} % over its last fifth (grey)"
    figure = fig_watched(curves, title="Trainings, watched on validation heads", footer=f"{rule}; {footer}")
    return f"Mean absolute error to the truth on validation heads while each method learns; {rule}; {footer}.", figure


def toy_figure(footer: str) -> Drawn:
    """Caption and figure: the curved path of a world of two pixels."""
    t = np.linspace(0, 1, TOY_TIMES)
    target, source = (0.9, 0.2), (0.2, 0.9)
    world = two_pixels(t, target, source)
    paths = {
        "linear": linear_path(t),
        "global": global_optimum(world.weights, world.contrast, t),
        "pixel-wise": pixel_optimum(world.weights, t),
    }
    least = energies(world.weights, world.contrast, t)
    text = ", ".join(f"{name} {least[name]:.0f}" for name in paths)
    title = "Two pixels with weights of their own in time: only a pixel-wise schedule leaves the straight line"
    note = f"least energies: {text}; a toy, no image"
    figure = fig_curved_path(np.array(target), np.array(source), world.weights, t, paths, title=title, footer=note)
    return f"{title}; {note}; {footer}.", figure


def energies_figure(folders: Mapping[str, Path], footer: str) -> Drawn:
    """Caption and figure: least energies on the pairs, under measured weights and under the SDE's."""
    table = energy_rows(folders)
    same = "the SDE's own weight"
    kept = table[(table["world"] != same) | (table["task"] == next(iter(folders)))]
    names = [same if r["world"] == same else f"{r['task']},\n{r['world']}" for r in kept.to_dict("records")]
    kept = kept.drop(columns=["task", "world"]).set_axis(names, axis=0)
    title = "Least path energies on our pairs, as shares of the linear path's"
    return f"{title}; {footer}.", fig_energies(kept, title=title, footer=footer)


def profiles_figure(folders: Mapping[str, Path], footer: str) -> Drawn:
    """Caption and figure: time profiles of pixels by their contrast."""
    held = {task: json.loads((folder / "profiles.json").read_text()) for task, folder in folders.items()}
    groups = {
        f"{TITLES[task]}\nheterogeneity {p['heterogeneity']:.2f}": (p["t"], p["groups"]) for task, p in held.items()
    }
    title = "When does a pixel's step cost? Weights w(t) of five groups of pixels by contrast"
    text = f"proportional profiles would coincide and leave a pixel-wise path no gain; {footer}"
    return f"{title}; {text}.", fig_profiles(groups, title=title, footer=text)


def costs_figure(folder: Path, footer: str) -> Drawn:
    """Caption and figure: what the field costs of a step, by the size of the image."""
    held = json.loads((folder / "costs.json").read_text())
    text = f"{held['device']}, {held['threads']} threads, medians; {footer}"
    title = "A step of CDTSDE: network, field and arithmetic"
    return f"{title}; {text}.", fig_costs(held["costs"], title=title, footer=text)
