"""`medshift ship`: put the trained weights of a profile's comparisons among those that the repository ships.

What is shipped is a checkpoint of the modules that translate, moving averages in half precision, with a card that says
what was trained, on what, for how long and how its error to the truth went on validation views. A profile takes shipped
weights only where the card's recipe is its own.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from medshift.errors import DataError
from medshift.repro.adaptive import paired_training_plan
from medshift.repro.adaptive_rows import PAIRED_TRAININGS
from medshift.repro.comparison import WEIGHTS, recipe_of, training_plan
from medshift.repro.comparison_rows import TRAININGS
from medshift.repro.parameters import Parameters, check
from medshift.repro.pipeline import plans
from medshift.repro.profiles import Profile
from medshift.repro.run import profile_of
from medshift.repro.stage import Plan, Stage, read_config, write_json

LARGEST_MIB = 4.0


def ship(profile: str, names: list[str], *, out_dir: str = ".", seed: int = 0) -> list[Path]:
    """Ship what is trained of a profile; see the module.

    Args:
        profile: its name, or ``auto``.
        names: of trainings; none for all that are done.
        out_dir: holds runs/.
        seed: of every random number.

    Returns:
        The folders written.

    Raises:
        DataError: a training that was named is not done, or none is.
        ParameterError: an unknown name.
    """
    parameters = check(Parameters, {"profile": profile, "seed": seed, "out_dir": out_dir}, "ship")
    own = profile_of(parameters)
    made = plans(own, seed=seed)
    written = []
    known = (*TRAININGS, *PAIRED_TRAININGS)
    for name in names or known:
        if name not in known:
            raise DataError(f"No training is called {name!r}; there are {', '.join(known)}.")
        plan = (training_plan if name in TRAININGS else paired_training_plan)(own, made, name, seed=seed)
        stage = plan.find(Path(out_dir) / "runs" / own.name)
        if stage is None and names:
            raise DataError(f"{name} is not trained yet; run `medshift train --method {name} --profile {own.name}`.")
        if stage is not None:
            written.append(_ship(own, name, plan, stage))
    if not written:
        raise DataError(f"Nothing of profile {own.name} is trained yet; run `medshift train --method all`.")
    return written


def _ship(profile: Profile, name: str, plan: Plan, stage: Stage) -> Path:
    import torch

    from medshift import checkpoint
    from medshift.methods import kept_weights
    from medshift.stages.shipped import shipped_sha256

    held = checkpoint.load(stage.folder)
    tensors: dict[str, dict[str, Any]] = {"codec": dict(held.tensors["codec"])}
    for module in _kept(held.state["method"]["kind"]):
        weights = kept_weights(held, module)
        tensors[module] = {k: v.half() if v.dtype == torch.float32 else v for k, v in weights.items()}
    folder = WEIGHTS / profile.name / name
    shutil.rmtree(folder, ignore_errors=True)
    total = sum(v.numel() for stem, part in held.tensors.items() if _is_weights(stem) for v in part.values())
    state = {"method": held.state["method"], "images": held.state["images"], "parameters_in_training": total}
    checkpoint.save(folder, held.step, tensors, state, keep=1)
    for file in ("watched.jsonl", "history.jsonl"):
        shutil.copy(stage.folder / file, folder / file)
    size = sum(path.stat().st_size for path in folder.rglob("*.safetensors")) / 2**20
    if size > LARGEST_MIB:
        raise DataError(f"The weights of {name} are {size:.1f} MiB, over {LARGEST_MIB:g}; train a smaller network.")
    phantom = plan.inputs["views"].arguments["source"] == "phantom"
    environment = json.loads((stage.folder / "env.json").read_text(encoding="utf-8"))
    card = {
        "training": name,
        "recipe": recipe_of(plan),
        "sha256": shipped_sha256(checkpoint.load(folder)),
        "made": {
            "stage": stage.folder.name,
            "minutes": round(stage.seconds / 60, 1),
            "images": held.state["images"],
            "steps": held.step,
            "facts": read_config(stage.folder)["facts"],
            **environment,
        },
        "data": "projections of a head CT, or of procedural phantoms; see NOTICE. No patient X-ray.",
        "licence": "MIT" if phantom else "GPL-2, as the head CT; see NOTICE",
        "mebibytes": round(size, 2),
    }
    write_json(folder / "card.json", card)
    return folder


def _kept(kind: str) -> tuple[str, ...]:
    import importlib

    from medshift.methods_index import TRAINED

    module, method, _ = TRAINED[kind]
    return tuple(getattr(importlib.import_module(module), method).kept)


def _is_weights(stem: str) -> bool:
    return not stem.endswith(("-ema", "-optimizer")) and stem != "codec"
