"""Translations of a few views at every setting of three dials, computed before anybody turns them.

For each pair of domains, view, guidance scale and τ the lattice holds the translation and the whole trajectory behind
it: the states of the encode leg at every τ of the lattice down to this one, and those of the decode leg up from it,
decoded to images. One encode leg serves all τ, since all z_τ lie on one trajectory.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from medshift.data.domains import EvaluationSet
from medshift.guidance import guided
from medshift.metrics.edges import INVENTED, EdgeMap, edge_map
from medshift.metrics.structure import psnr, ssim
from medshift.ode import leg_knots, states_at
from medshift.stages.job import Job
from medshift.stages.network import open_translator
from medshift.translate import MedShift

WRONG = "failures"
MOST_INVENTED = "most invented"  # of a failure's view: the one with the most `invented`


def build(
    job: Job,
    *,
    pairs: Sequence[Sequence[str]],
    shown: Mapping[str, int],
    taus: Sequence[float],
    scales: Sequence[float],
    failures: Mapping[str, Mapping[str, Any]],
) -> None:
    """Write lattice.safetensors (half precision), measures.csv and lattice.json.

    Args:
        job: its inputs ``views``, a stage ``shown``, ``network``, and ``untouched``, the views of T3 without inserts.
        pairs: (source, target) domains.
        shown: views of each role, T3 the last.
        taus: rising, below 1.
        scales: of guidance, on both legs.
        failures: name -> ``pair`` (index), ``view`` (index, or `MOST_INVENTED`), ``clean`` (whether the source is free
            of noise), the ``knobs`` of `MedShift.translate` that make the failure, and ``untouched`` (whether the view
            is translated without its insert too). lattice.json has the index of the view that was chosen.
    """
    model = open_translator(job.inputs["network"], job.device)
    sets = [EvaluationSet(job.inputs["views"], role, limit=number) for role, number in shown.items()]
    field = torch.cat([views.open_field for views in sets])
    tensors: dict[str, Tensor] = {"open_field": field}
    rows = []
    for p, (source, target) in enumerate(pairs):
        images = torch.cat([views.exposure(source, 0) for views in sets])
        truth = torch.cat([views.clean(target) for views in sets])
        tensors |= {f"source/{p}": images.half(), f"truth/{p}": truth.half()}
        for s, scale in enumerate(scales):
            down, up = _legs(model, images.to(job.device), source, target, taus, scale)
            tensors |= {f"down/{p}/{s}": down.half(), f"up/{p}/{s}": up.half()}
            for t, tau in enumerate(taus):
                rows += _measured(up[t, -1], images, truth, field, {"pair": p, "scale": s, "tau": t, "τ": tau})
            job.progress((p * len(scales) + s + 1) / (len(pairs) * len(scales) + 1))
    bare = EvaluationSet(job.inputs["untouched"], "T3", limit=shown["T3"])
    failing, images_of = _failing(model, sets, bare, pairs, failures, job.device)
    tensors |= images_of
    save_file({name: value.cpu().contiguous() for name, value in tensors.items()}, job.folder / "lattice.safetensors")
    pd.DataFrame(rows).to_csv(job.folder / "measures.csv", index=False)
    table = pd.concat([views.table for views in sets])
    rows_of = table.to_dict("records")
    named = [f"{row['role']}, head {row['head']}, {row['insert'] or row['region']}" for row in rows_of]
    kept = {"pairs": list(map(list, pairs)), "views": named, "taus": list(taus), "scales": list(scales)}
    (job.folder / "lattice.json").write_text(
        json.dumps(kept | {WRONG: failing}, indent=1, ensure_ascii=False), encoding="utf-8"
    )


def _legs(
    model: MedShift, images: Tensor, source: str, target: str, taus: Sequence[float], scale: float
) -> tuple[Tensor, Tensor]:
    """Decoded states: down (T,N,1,H,W), those of the encode leg at every τ; up (T,T+1,N,1,H,W), those of the decode
    leg from τ number i at each τ that is not below it, and at t = 1 last; zeros where there is none."""
    size = (images.shape[-2], images.shape[-1])
    z = model.encode(images, source, taus, guidance=scale)
    velocity, label = guided(model.velocity, scale, model.n_domains), model.labels(target, images)
    down = torch.stack([model.codec.decode(state, size=size).cpu() for state in z])
    up = torch.zeros(len(taus), len(taus) + 1, *images.shape)
    for i, tau in enumerate(taus):
        with torch.no_grad():
            states = states_at(velocity, z[i], label, leg_knots(tau), [*taus[i:], 1.0])
        for j, state in enumerate(states):
            up[i, i + j] = model.codec.decode(state, size=size).cpu()
    return down, up


def _measured(
    result: Tensor, source: Tensor, truth: Tensor, field: Tensor, place: Mapping[str, Any]
) -> list[dict[str, Any]]:
    structure, agreement = ssim(result, source, field), psnr(result, truth, field)
    return [
        {**place, "view": v, "ssim_source": float(structure[v]), "psnr_truth": float(agreement[v])}
        for v in range(len(result))
    ]


def _failing(
    model: MedShift,
    sets: Sequence[EvaluationSet],
    bare: EvaluationSet,
    pairs: Sequence[Sequence[str]],
    failures: Mapping[str, Mapping[str, Any]],
    device: str,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The failures with the views chosen; and what each starts from and makes, (1,1,H,W), by
    ``failures/<number>/source`` and ``result``, without its insert by ``bare-result`` and ``bare-truth`` too."""
    chosen: dict[str, Any] = {}
    made: dict[str, Tensor] = {}
    for number, (name, wrong) in enumerate(failures.items()):
        (source, target), here = pairs[wrong["pair"]], f"{WRONG}/{number}"
        images = torch.cat([views.clean(source) if wrong["clean"] else views.exposure(source, 0) for views in sets])
        knobs: dict[str, Any] = {knob: tuple(v) if isinstance(v, list) else v for knob, v in wrong["knobs"].items()}
        if wrong["view"] == MOST_INVENTED:
            truth, field = (torch.cat(part) for part in ([v.clean(target) for v in sets], [v.open_field for v in sets]))
            outputs = model.translate(images.to(device), source, target, **knobs).cpu()
            view = int(invented(outputs, truth, field).sum((1, 2)).argmax())
            result = outputs[view][None]
        else:
            view = wrong["view"] % len(images)
            result = model.translate(images[view][None].to(device), source, target, **knobs).cpu()
        made |= {f"{here}/source": images[view][None].half(), f"{here}/result": result.half()}
        if wrong["untouched"]:
            same = view - (len(images) - len(bare))  # the views with inserts are the last
            untouched = bare.exposure(source, 0)[same][None]
            without = model.translate(untouched.to(device), source, target, **knobs).cpu()
            made |= {f"{here}/bare-result": without.half(), f"{here}/bare-truth": bare.clean(target)[same][None].half()}
        chosen[name] = {**wrong, "view": view}
    return chosen, made


def edges_of(result: Tensor, truth: Tensor, field: Tensor) -> EdgeMap:
    """Edges of results against the truth, all (N,1,H,W), those of the head's outline counting too."""
    return edge_map(result, truth, field, head=torch.ones_like(field))


def invented(result: Tensor, truth: Tensor, field: Tensor) -> Tensor:
    """How much is drawn that is not there, pixel by pixel (N,H,W): |result - truth| on edges that the truth has not.

    Weighed by the error, a false contour counts and a speck of noise hardly does.

    Args:
        result: (N,1,H,W) in display values.
        truth: (N,1,H,W).
        field: the open field (N,1,H,W), bool.
    """
    return (result - truth).abs()[:, 0] * (edges_of(result, truth, field).labels == INVENTED)


@dataclass(frozen=True)
class Lattice:
    """A finished lattice.

    Args:
        pairs: (source, target) domains.
        views: names of the views.
        taus: rising.
        scales: of guidance.
        failures: see `build`.
        tensors: images by name, half precision, see `build`.
        measures: one row a pair, scale, τ and view: SSIM to the source, PSNR to the truth [dB].
    """

    pairs: tuple[tuple[str, str], ...]
    views: tuple[str, ...]
    taus: tuple[float, ...]
    scales: tuple[float, ...]
    failures: Mapping[str, Mapping[str, Any]]
    tensors: Mapping[str, Tensor]
    measures: pd.DataFrame

    @cached_property
    def places(self) -> dict[tuple[int, int, int, int], tuple[float, float]]:
        """(pair, view, scale, τ), each an index -> SSIM to the source and PSNR to the truth [dB]."""
        keys = self.measures[["pair", "view", "scale", "tau"]].to_numpy().tolist()
        values = self.measures[["ssim_source", "psnr_truth"]].to_numpy().tolist()
        return {(p, v, s, t): (a, b) for (p, v, s, t), (a, b) in zip(keys, values, strict=True)}


def load_lattice(folder: Path) -> Lattice:
    """The lattice of a finished stage."""
    kept = json.loads((folder / "lattice.json").read_text(encoding="utf-8"))
    return Lattice(
        tuple((source, target) for source, target in kept["pairs"]),
        tuple(kept["views"]),
        tuple(kept["taus"]),
        tuple(kept["scales"]),
        kept[WRONG],
        load_file(folder / "lattice.safetensors"),
        pd.read_csv(folder / "measures.csv"),
    )
