"""Translate the views of a comparison with one method; its free knob, if it has one, is chosen on validation heads."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from medshift import checkpoint
from medshift.baselines.codec_round_trip import CodecRoundTrip
from medshift.baselines.identity import Identity
from medshift.codec import KLCodec, PatchCodec
from medshift.data.domains import EXPOSURES, EvaluationSet
from medshift.fast import AVERAGE, load_fast
from medshift.flow_training import load_flow
from medshift.methods import floor, free, open_training, other
from medshift.network import VelocityNetwork
from medshift.schedules import autocast_dtype
from medshift.stages.calling import translated
from medshift.stages.codec import open_codec
from medshift.stages.images import STATISTICS_IMAGES, RenderedImages
from medshift.stages.job import Job
from medshift.stages.searching import search
from medshift.translate import Codec, Translator

COURSE = 100  # points of a loss curve
STYLES = 5  # images of the target, the nearest in anatomy, that a style transfer takes in turn
TIMED, REPEATS = 8, 3  # images of the batch that is timed, and how often at most after once for warmth
ENOUGH = 4.0  # seconds of timed batches after which none is added: what takes long varies by less


NOT_TIMED: Mapping[str, Any] = {"seconds_per_image": float("nan"), "timed_batch": 0}


@dataclass
class Opened:
    """A method ready to translate, and what it costs."""

    translator: Translator
    codec: Codec
    parameters: int = 0
    in_training: int = 0
    images_seen: int = 0
    deviation: str = ""
    styles: int = 0
    extra: dict[str, Any] = field(default_factory=dict)


def build(
    job: Job,
    *,
    family: str,
    method: str,
    options: Mapping[str, Any],
    knobs: Mapping[str, Any],
    candidates: Sequence[Mapping[str, Any]],
    draws: int,
    source: str,
    target: str,
    roles: Mapping[str, int],
    headline: str,
    searched: int,
    batch: int,
    seed: int,
) -> None:
    """Write images.safetensors (half precision, ``<role>/<draw>``), facts.json and, after a search, search.csv.

    The seconds an image are those of one batch of a few views, translated by itself: the fastest of up to three
    repeats after one that is not counted, the drawing of noise included.

    Args:
        job: its inputs ``views`` and ``codec``; ``network``, or ``trained`` and the ``base`` it is built on,
            where the method needs them.
        family: ``floor``, ``codec``, ``free``, ``attention``, ``trained``, ``resimulation`` or ``twin``.
        method: which of the family.
        options: of its constructor.
        knobs: of its translations.
        candidates: knobs to choose from by PSNR to the truth on validation views; none: ``knobs`` as they are.
        draws: of the noise.
        source: domain translated from.
        target: domain translated to.
        roles: tier -> its first so many views.
        headline: the tier of which every draw is kept; of the others the first.
        searched: validation views of the search.
        batch: images translated at once.
        seed: of the noise.
    """
    folder, device = job.inputs["views"], job.device
    kept: dict[str, Tensor] = {}
    if family in ("resimulation", "twin"):
        for role, n in roles.items():
            views = EvaluationSet(folder, role, limit=n)
            for draw in range(draws if role == headline else 1):
                kept[f"{role}/{draw}"] = _without_translator(family, folder, views, source, target, draw)
        _write(job, kept, {"nfe": 0, "knobs": {}, "draws": draws, **NOT_TIMED} | _costs(None))
        return
    made = _open(job, family, method, options, source, target)
    chosen = dict(knobs)
    if candidates:
        tried = [dict(knobs) | dict(c) for c in candidates]
        one = {"source": source, "target": target, "searched": searched, "batch": batch, "seed": seed}  # type: dict[str, Any]
        chosen |= search(job, made.translator, made.codec, tried, **one)
    for k, (role, n) in enumerate(roles.items()):
        images = EvaluationSet(folder, role, limit=n).exposure(source, 0)
        for draw in range(draws if role == headline else 1):
            kept[f"{role}/{draw}"] = _all(made, images, source, target, chosen, batch, device, (seed, draw))
            job.progress((k + (draw + 1) / draws) / len(roles), method)
    some = EvaluationSet(folder, headline, limit=min(TIMED, roles[headline])).exposure(source, 0)
    facts = {"nfe": made.translator.nfe(**chosen), "knobs": chosen, "draws": draws}
    _write(job, kept, facts | _timed(made, some, source, target, chosen, device) | _costs(made))


def _timed(
    made: Opened, images: Tensor, source: str, target: str, knobs: Mapping[str, Any], device: str
) -> dict[str, Any]:
    """Seconds an image of one batch, see `build`, and how many images that is."""
    given = dict(knobs) | ({"style": 0} if made.styles else {})
    took: list[float] = []
    while len(took) < 2 or (len(took) <= REPEATS and sum(took) < ENOUGH):
        start = time.perf_counter()
        translated(made.translator, made.codec, images, source, target, given, batch=len(images), device=device)
        took.append(time.perf_counter() - start)
    return {"seconds_per_image": min(took[1:]) / len(images), "timed_batch": len(images)}


def _all(
    made: Opened,
    images: Tensor,
    source: str,
    target: str,
    knobs: Mapping[str, Any],
    batch: int,
    device: str,
    seed: tuple[int, ...],
) -> Tensor:
    """Translations (N,1,H,W); where a method has styles, image i takes the (i mod styles)-th nearest of its own."""

    def some(part: Tensor, given: Mapping[str, Any]) -> Tensor:
        return translated(
            made.translator, made.codec, part, source, target, given, batch=batch, device=device, seed=seed
        )

    if not made.styles:
        return some(images, knobs)
    output = torch.empty_like(images)
    for style in range(min(made.styles, len(images))):
        output[style :: made.styles] = some(images[style :: made.styles], dict(knobs) | {"style": style})
    return output


def _write(job: Job, images: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    save_file({name: part.half().contiguous() for name, part in images.items()}, job.folder / "images.safetensors")
    (job.folder / "facts.json").write_text(json.dumps(facts, indent=1))


def _costs(made: Opened | None) -> dict[str, Any]:
    if made is None:
        return {"parameters": 0, "in_training": 0, "images_seen": 0, "deviation": ""}
    names = ("parameters", "in_training", "images_seen", "deviation")
    return {name: getattr(made, name) for name in names} | made.extra


def _without_translator(family: str, folder: Path, views: EvaluationSet, source: str, target: str, draw: int) -> Tensor:
    if family == "twin":
        return views.exposure(target, 1 + draw % (EXPOSURES - 1))
    return other(family)(folder).resimulated(views, source, target, draw)


def _open(job: Job, family: str, method: str, options: Mapping[str, Any], source: str, target: str) -> Opened:
    codec = open_codec(job.inputs["codec"], job.device)
    if family == "codec":
        return Opened(CodecRoundTrip(codec) if method == "round trip" else Identity(), codec)
    if family == "floor":
        images = RenderedImages(job.inputs["views"])
        return Opened(floor(method, images.training(STATISTICS_IMAGES), images.domains), codec)
    if family == "trained":
        return _trained(job)
    held = checkpoint.load(job.inputs["network"], only=())
    size, seen = _size_of_average(held.path), int(held.state["images"])
    if family == "free":
        model = load_fast(held.path, device=job.device)
        return Opened(free(method, model, **options), model.codec, size, size, seen)
    flow = load_flow(held.path, device=job.device)  # the network itself, whose attention is reached into
    images = RenderedImages(job.inputs["views"])
    training = images.training(STATISTICS_IMAGES)
    made = other(method)(
        flow.network, flow.codec, training, images.domains, precision=autocast_dtype(job.device), **options
    )
    return Opened(made, flow.codec, size, size, seen, styles=STYLES)


def _size_of_average(path: Path) -> int:
    """Weights of a checkpoint's moving average, told by the head of its file alone."""
    with safe_open(path / "network-ema.safetensors", framework="pt") as file:
        names = [name for name in file.keys() if name.startswith(AVERAGE)]
        return sum(math.prod(file.get_slice(name).get_shape()) for name in names)


def _trained(job: Job) -> Opened:
    nets: dict[str, VelocityNetwork] = {}
    if "base" in job.inputs:
        network = open_training(job.inputs["base"], device=job.device).modules()["network"]
        assert isinstance(network, VelocityNetwork)
        nets["base"] = network
    folder = job.inputs["trained"]
    made = open_training(folder, device=job.device, nets=nets)
    modules = {name: module for name, module in made.modules().items() if name != "codec"}
    codec = made.modules()["codec"]
    assert isinstance(codec, PatchCodec | KLCodec)
    state = checkpoint.load(folder, only=()).state
    under = _size(nets.values())
    kept = _size([modules[name] for name in made.kept]) + under
    total = (int(state.get("parameters_in_training", 0)) or _size(modules.values())) + under
    found = Opened(made.translator(), codec, kept, total, int(state["images"]), made.deviation)
    found.extra["learning_rate"] = state["method"]["config"]["learning_rate"]
    watched = folder / "watched.jsonl"
    if watched.is_file():
        looks = (json.loads(line) for line in watched.read_text().splitlines())
        found.extra["watched"] = list({look["step"]: look for look in looks}.values())  # a resumed run repeats some
        found.extra["losses"] = _losses(folder / "history.jsonl")
    return found


def _losses(history: Path) -> dict[str, list[list[float]]]:
    """Name of a loss -> its course: images seen, and the mean over a hundredth of the training."""
    rows = [json.loads(line) for line in history.read_text().splitlines()]
    table = pd.DataFrame(list({row["step"]: row for row in rows}.values()))
    names = [name for name in table.columns if name not in ("step", "images", "learning_rate", "seconds")]
    means = table.groupby(np.arange(len(table)) * COURSE // len(table))[["images", *names]].mean()
    return {name: means[["images", name]].to_numpy().tolist() for name in names}


def _size(modules: Any) -> int:
    return sum(p.numel() for module in modules if isinstance(module, nn.Module) for p in module.parameters())


def load_compared(folder: Path) -> dict[str, list[Tensor]]:
    """Role -> images (N,1,H,W), float32, one entry a draw."""
    found: dict[str, list[Tensor]] = {}
    for name, images in sorted(load_file(folder / "images.safetensors").items()):
        found.setdefault(name.rpartition("/")[0], []).append(images.float())
    return found
