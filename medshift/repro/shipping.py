"""`medshift ship`: put the trained weights of a profile among those that the repository ships.

What is shipped is a checkpoint of the modules that translate, moving averages in half precision, with a card that says
what was trained, on what, for how long and how its error went on validation views. A profile takes shipped weights only
where the card's recipe is its own. ``medshift`` is the profile's network itself, the others are the comparisons'.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medshift.errors import DataError
from medshift.repro.adaptive import paired_training_plan
from medshift.repro.adaptive_rows import PAIRED_TRAININGS
from medshift.repro.comparison import WEIGHTS, recipe_of, training_plan
from medshift.repro.comparison_rows import trainings_of
from medshift.repro.explorer import NETWORK
from medshift.repro.parameters import Parameters, check
from medshift.repro.pipeline import plans
from medshift.repro.profiles import Profile
from medshift.repro.run import profile_of
from medshift.repro.stage import Plan, Stage, read_config, write_json

FLOW = "flow-matching"  # the kind of the profile's network, whose moving average is what is read back
LARGEST_MIB = 4.0
LARGEST_NETWORK_MIB = 16.0


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
    root, written = Path(out_dir) / "runs" / own.name, []
    compared = trainings_of(own.comparison.seeds)
    known = (NETWORK, *compared, *PAIRED_TRAININGS)
    for name in names or known:
        if name not in known:
            raise DataError(f"No training is called {name!r}; there are {', '.join(known)}.")
        if name == NETWORK:
            plan = made["network"]
        else:
            plan = (training_plan if name in compared else paired_training_plan)(own, made, name, seed=seed)
        stage = plan.find(root)
        if stage is None and names:
            raise DataError(f"{name} is not trained yet; run `medshift train --method {name} --profile {own.name}`.")
        if stage is not None:
            written.append(_ship(own, name, plan, stage, _metrics(made, root) if name == NETWORK else []))
    if not written:
        raise DataError(f"Nothing of profile {own.name} is trained yet; run `medshift train --method all`.")
    return written


def _metrics(made: Mapping[str, Plan], root: Path) -> list[dict[str, Any]]:
    """The headline of 04 on the weights in single precision, where it was taken; none else."""
    from medshift.results.tradeoff import headline_table

    study = made["tradeoff"].find(root)
    return json.loads(headline_table(study.folder).to_json(orient="records")) if study else []


def _ship(profile: Profile, name: str, plan: Plan, stage: Stage, metrics: list[dict[str, Any]]) -> Path:
    from medshift import checkpoint
    from medshift.stages.shipped import shipped_sha256

    held = checkpoint.load(stage.folder)
    tensors = _halved(held)
    folder = WEIGHTS / profile.name / name
    shutil.rmtree(folder, ignore_errors=True)
    total = sum(v.numel() for stem, part in held.tensors.items() if _is_weights(stem) for v in part.values())
    state = {"method": held.state["method"], "images": held.state["images"], "parameters_in_training": total}
    checkpoint.save(folder, held.step, tensors, state, keep=1)
    for file in ("watched.jsonl", "validation.jsonl", "history.jsonl"):
        if (stage.folder / file).is_file():
            shutil.copy(stage.folder / file, folder / file)
    size = sum(path.stat().st_size for path in folder.rglob("*.safetensors")) / 2**20
    largest = LARGEST_NETWORK_MIB if name == NETWORK else LARGEST_MIB
    if size > largest:
        shutil.rmtree(folder)
        raise DataError(f"The weights of {name} are {size:.1f} MiB, over {largest:g}; train a smaller network.")
    phantom = plan.inputs["views"].arguments["source"] == "phantom"
    environment = json.loads((stage.folder / "env.json").read_text(encoding="utf-8"))
    card = {
        "training": name,
        "command": f"medshift train --profile {profile.name}" + ("" if name == NETWORK else f" --method {name}"),
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
        **({"metrics": metrics} if metrics else {}),
        "data": "projections of a head CT, or of procedural phantoms; see NOTICE. No patient X-ray.",
        "licence": "MIT" if phantom else "GPL-2, as the head CT; see NOTICE",
        "mebibytes": round(size, 2),
    }
    write_json(folder / "card.json", card)
    return folder


def _halved(held: Any) -> dict[str, dict[str, Any]]:
    """The modules that translate: the codec as it is, networks in half precision."""
    import torch

    from medshift.methods import kept_weights

    def half(tensors: Mapping[str, Any]) -> dict[str, Any]:
        return {k: v.half() if v.dtype == torch.float32 else v for k, v in tensors.items()}

    codec: dict[str, dict[str, Any]] = {"codec": dict(held.tensors["codec"])}
    kind = held.state["method"]["kind"]
    if kind == FLOW:
        return codec | {"network-ema": half(held.tensors["network-ema"])}
    return codec | {module: half(kept_weights(held, module)) for module in _kept(kind)}


def _kept(kind: str) -> tuple[str, ...]:
    import importlib

    from medshift.methods_index import TRAINED

    module, method, _ = TRAINED[kind]
    return tuple(getattr(importlib.import_module(module), method).kept)


def _is_weights(stem: str) -> bool:
    return not stem.endswith(("-ema", "-optimizer")) and stem != "codec"
