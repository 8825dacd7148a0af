"""Translate the test views of a paired task with one method and judge every image against its truth."""

from __future__ import annotations

import inspect
import json
import time
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file
from torch import Tensor

from medshift import checkpoint
from medshift.codec import PatchCodec
from medshift.data.domains import EXPOSURES
from medshift.data.paired_tasks import TASKS, TaskViews
from medshift.errors import ParameterError
from medshift.methods import open_training
from medshift.metrics.features import extractor, why_not
from medshift.metrics.overlap import dice, hausdorff
from medshift.metrics.perceptual import lpips, mae, st_lpips, why_no_lpips
from medshift.metrics.physics import high_pass_std
from medshift.metrics.realism import fid, fid_bias_note, kid
from medshift.metrics.structure import psnr, ssim
from medshift.mixing_field import MixingField, falls
from medshift.paired.cdtsde import CDTSDE
from medshift.pairwise import PairMethod
from medshift.stages.calling import translated
from medshift.stages.job import Job
from medshift.stages.judged import PERCEPTUAL_SIDE
from medshift.translate import Translator

__all__ = ["build"]

FILM_TIMES, FILM_VIEWS = 11, 4
SETS = ("ST-AlexNet", "Inception")


def build(
    job: Job,
    *,
    task: str,
    method: str,
    settings: Mapping[str, Mapping[str, Any]],
    role: str,
    views: int,
    spread_views: int,
    draws: int,
    batch: int,
    seed: int,
) -> None:
    """Write scores.csv (one row a setting and view), sets.csv, spread.csv, facts.json, images and a field's film.

    Args:
        job: its input ``views``; ``trained`` for method ``trained``.
        task: one of `medshift.data.paired_tasks.TASKS`.
        method: ``trained``, ``nothing`` (the source as it is) or ``twin`` (another exposure of the truth).
        settings: name -> knobs of its translations.
        role: of the test views.
        views: how many of them.
        spread_views: the first so many are translated ``draws`` times, for the spread of the samples.
        draws: see there.
        batch: images translated at once.
        seed: of the noise.

    Raises:
        ParameterError: there are not as many other views, whose targets the outputs are compared with as a set.
    """
    known = _views(task, job.inputs["views"], role, views)
    if len(_views(task, job.inputs["views"], role, 2 * views)) < len(known) + 2:
        raise ParameterError(
            f"adaptive.views is {views}, but metrics of sets need other views to compare with, and there are "
            f"{len(known)} of {role} in all; choose half of that or fewer."
        )
    made = open_training(job.inputs["trained"], device=job.device) if method == "trained" else None
    kept: dict[str, Tensor] = {}
    tables: dict[str, list[pd.DataFrame]] = {"scores": [], "sets": [], "spread": []}
    facts: dict[str, Any] = {"settings": {}}
    for k, (name, knobs) in enumerate(settings.items()):
        translator = made.translator() if made else None
        outputs, seconds = [], 0.0
        for draw in range(draws):
            n = views if draw == 0 else spread_views
            start = time.perf_counter()
            outputs.append(_made(method, made, translator, known, n, draw, knobs, batch, job.device, seed))
            seconds = seconds or (time.perf_counter() - start) / n
        kept[name or method] = outputs[0].half().contiguous()
        tables["scores"].append(_scores(outputs[0], known).assign(setting=name))
        rows = _sets(outputs[0], task, job.inputs["views"], role, views, job.device)
        tables["sets"].append(pd.DataFrame(rows).assign(setting=name))
        tables["spread"].append(_spread(outputs, known, spread_views).assign(setting=name))
        own = {"knobs": dict(knobs), "seconds_per_image": seconds, "nfe": translator.nfe(**knobs) if translator else 0}
        facts["settings"][name] = own | ({"clamped": translator.clamped} if isinstance(translator, CDTSDE) else {})
        job.progress((k + 1) / len(settings), name)
    save_file(kept, job.folder / "images.safetensors")
    for name, parts in tables.items():
        pd.concat(parts).to_csv(job.folder / f"{name}.csv", index=False)
    if made is not None:
        facts |= _facts(job, made)
    (job.folder / "facts.json").write_text(json.dumps(facts, indent=1))


@lru_cache(maxsize=8)
def _views(task: str, folder: Path, role: str, n: int) -> TaskViews:
    return TaskViews(task, folder, role, limit=n)


@lru_cache(maxsize=32)
def _exposure(task: str, folder: Path, role: str, n: int, number: int) -> tuple[Tensor, Tensor]:
    return TaskViews(task, folder, role, limit=n).exposure(number)


def _made(
    method: str,
    made: PairMethod | None,
    translator: Translator | None,
    known: TaskViews,
    n: int,
    draw: int,
    knobs: Mapping[str, Any],
    batch: int,
    device: str,
    seed: int,
) -> Tensor:
    """Outputs (n,1,H,W) of draw ``draw`` for the first n views."""
    if method == "twin":
        return known.exposure(1 + draw % (EXPOSURES - 1))[1][:n]
    images = known.exposure(0)[0][:n]
    if method == "nothing":
        return images
    assert made is not None and translator is not None
    given = dict(knobs)
    if "seed" in inspect.signature(translator.translate).parameters:  # a method whose noise is no latent
        given["seed"] = seed * EXPOSURES + draw
    codec = made.modules()["codec"]
    assert isinstance(codec, PatchCodec)
    names = (known.task.source, known.task.target)
    return translated(translator, codec, images, *names, given, batch=batch, device=device, seed=(seed, draw))


def _scores(output: Tensor, known: TaskViews) -> pd.DataFrame:
    """One row a view: error to the truth, noise, and for masks their overlap."""
    mask, (entered, noisy), clean = known.open_field, known.exposure(0), known.clean()[1]
    table = known.table[["head", "region"]].assign(view=np.arange(len(known)))
    for name, reference in (("source", entered), ("noisy", noisy), ("clean", clean)):
        table[f"psnr_{name}"] = psnr(output, reference, mask).clamp(max=100.0).numpy()
        table[f"ssim_{name}"] = ssim(output, reference, mask).numpy()
    table["mae_clean"] = mae(output, clean, mask).numpy()
    large = min(output.shape[-2:]) >= PERCEPTUAL_SIDE
    table["st_lpips"] = st_lpips(output, clean, mask).numpy() if large else np.nan
    table["lpips"] = lpips(output, clean, mask).numpy() if large and not why_no_lpips() else np.nan
    table["high_pass"] = high_pass_std(output, mask).numpy()
    table["high_pass_target"] = high_pass_std(noisy, mask).numpy()
    if known.task.binary:
        found, truth = (output > 0) & mask, clean > 0
        pixel_mm = torch.tensor(known.table["fov"].to_numpy()) / output.shape[-1]
        table["dice"], table["hausdorff_mm"] = dice(found, truth).numpy(), hausdorff(found, truth, pixel_mm).numpy()
    return table


def _sets(output: Tensor, task: str, folder: Path, role: str, n: int, device: str) -> list[dict[str, Any]]:
    """FID and KID against the targets of as many other views."""
    rows: list[dict[str, Any]] = []
    reference = _exposure(task, folder, role, 2 * n, 0)[1][n:]
    n = min(n, len(reference))
    for name in SETS:
        if why := why_not(name):
            rows += [{"metric": metric, "features": name, "value": np.nan, "note": why} for metric in ("FID", "KID")]
            continue
        features = _features(name, device, task, folder, role, 2 * n)[-len(reference) :][:n]
        ours = extractor(name, device=device)(output[:n].clamp(-1, 1))
        note = fid_bias_note(n, features.shape[1])
        rows.append({"metric": "FID", "features": name, "value": fid(ours, features), "note": note})
        rows.append({"metric": "KID", "features": name, "value": kid(ours, features), "note": ""})
    return rows


@lru_cache(maxsize=4)
def _features(name: str, device: str, task: str, folder: Path, role: str, n: int) -> np.ndarray:
    return extractor(name, device=device)(_exposure(task, folder, role, n, 0)[1].clamp(-1, 1))


def _spread(outputs: list[Tensor], known: TaskViews, n: int) -> pd.DataFrame:
    """Standard deviation over draws, root mean square over the open field, beside that of the truth's exposures."""
    mask = known.open_field[:n]
    stacks = {"spread": torch.stack([part[:n] for part in outputs])}
    stacks["spread_truth"] = torch.stack([known.exposure(k)[1][:n] for k in range(max(2, len(outputs)))])
    table = known.table[["head", "region"]].iloc[:n].copy()
    for name, stack in stacks.items():
        variance = stack.var(0) if len(stack) > 1 else torch.zeros_like(stack[0])
        table[name] = ((variance * mask).flatten(1).sum(1) / mask.flatten(1).sum(1)).sqrt().numpy()
    return table


def _facts(job: Job, made: PairMethod) -> dict[str, Any]:
    translator, state = made.translator(), checkpoint.load(job.inputs["trained"], only=()).state
    modules = {name: module for name, module in made.modules().items() if name != "codec"}
    size = sum(p.numel() for name in made.kept for p in modules[name].parameters())
    total = int(state.get("parameters_in_training", 0))
    total = total or sum(p.numel() for m in modules.values() for p in m.parameters())
    facts: dict[str, Any] = {"name": made.name, "parameters": size, "in_training": total}
    facts |= {"images_seen": int(state["images"]), "deviation": made.deviation}
    watched = job.inputs["trained"] / "watched.jsonl"
    if watched.is_file():
        looks = (json.loads(line) for line in watched.read_text().splitlines())
        facts["watched"] = list({look["step"]: look for look in looks}.values())  # a resumed run repeats some
    if isinstance(translator, CDTSDE):
        facts |= _film(job, translator)
    return facts


def _film(job: Job, translator: CDTSDE) -> dict[str, Any]:
    """Writes Λ (times, views, C, h, w) and g at half time; how far g saturates, and where Λ falls in time."""
    field, schedule = translator.field, translator.schedule
    assert isinstance(field, MixingField)
    names = (translator.pair.source, translator.pair.target)
    task = next(task for task in TASKS.values() if (task.source, task.target) == names)
    images = _exposure(task.name, job.inputs["views"], "validation", FILM_VIEWS, 0)[0].to(job.device)
    y = translator.codec.encode(images)
    times = [round(schedule.last * k / (FILM_TIMES - 1)) for k in range(FILM_TIMES)]
    with torch.no_grad():
        lam = torch.stack([translator.mixed(t, y).expand_as(y) for t in times])
        half = schedule.mixing(torch.tensor([schedule.last // 2])).to(y).expand(len(y))
        g = field.modulation(half, y).expand_as(y)
    film = {"lam": lam.cpu(), "g": g.cpu().contiguous(), "times": torch.tensor(times)}
    save_file({name: part.contiguous() for name, part in film.items()}, job.folder / "film.safetensors")
    return {
        "falls": falls(field, y[:1], schedule),
        "g_mean": float(g.mean()),
        "g_std": float(g.std()),
        "g_saturated": float((g.abs() > 0.81).float().mean()),
    }
