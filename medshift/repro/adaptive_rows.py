"""What 07_adaptive_shift trains on which task, and how each is asked to translate. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

TASKS = ("mask", "modality", "dual-energy")
MAIN = "mask"  # the task of the ablation, as of the paper's; its linear and pixel-wise fields train live on cpu
FEW, PUBLISHED_DOSSR, BRIDGE_STEPS = 5, 10, 20  # steps: of CDTSDE, of DoSSR, ours for bridges


@dataclass(frozen=True)
class PairedTraining:
    """One training on the pairs of a task.

    Args:
        task: which.
        kind: of `medshift.methods_index.TRAINED`.
        config: entries of its configuration that differ from the defaults.
        pairs: ``true``, or who proposes them: ``ot`` or ``medshift``.
        seed: added to the profile's.
    """

    task: str
    kind: str
    config: Mapping[str, Any] = field(default_factory=dict)
    pairs: str = "true"
    seed: int = 0

    @property
    def knobs(self) -> dict[str, Any]:
        """Of the translations that watch it."""
        return {} if self.kind in ONE_STEP else {"steps": FEW}


ONE_STEP = ("pix2pix", "paired-regressor")
RIVALS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "linear": ("cdtsde", {"field": "linear"}),
    "pixel": ("cdtsde", {"field": "pixel"}),
    "bbdm": ("brownian-bridge", {"variance": "bbdm"}),
    "abridge": ("brownian-bridge", {"variance": "abridge"}),
    "dbim": ("ddbm", {}),
    "pix2pix": ("pix2pix", {}),
    "regressor": ("paired-regressor", {}),
}
ABLATION: Mapping[str, Mapping[str, Any]] = {
    "channel": {"field": "channel"},
    "content": {"field": "content"},
    "random": {"field": "random"},
    "lowest": {"field": "lowest"},
    "averaged": {"field": "pixel", "averaged": True},
    "gauge": {"field": "pixel", "gauge": 1.0},
    "energy": {"field": "pixel", "energy": 0.1},
}
PARTIAL: Mapping[str, tuple[str, ...]] = {
    MAIN: tuple(ABLATION),
    "modality": ("averaged",),
    "dual-energy": ("channel",),
}  # what of the ablation each task has

PAIRED_TRAININGS: Mapping[str, PairedTraining] = {
    **{f"{task}-{name}": PairedTraining(task, *rival) for task in TASKS for name, rival in RIVALS.items()},
    **{
        f"{task}-{name}": PairedTraining(task, "cdtsde", ABLATION[name])
        for task, names in PARTIAL.items()
        for name in names
    },
    **{
        f"{MAIN}-{name}-seed-1": PairedTraining(MAIN, *RIVALS[name], seed=1) for name in ("linear", "pixel")
    },
    **{
        f"modality-{name}-{pairs}": PairedTraining("modality", *RIVALS[name], pairs=pairs)
        for name in ("linear", "pixel")
        for pairs in ("ot", "medshift")
    },
}  # fmt: skip
FLOORS: Mapping[str, str] = {"nothing": "doing nothing", "twin": "noise twin"}
CURVES = tuple(f"{task}-{name}" for task in TASKS for name in ("linear", "pixel")) + ("modality-bbdm", "modality-dbim")


def settings_of(name: str, curve: Sequence[int]) -> dict[str, dict[str, Any]]:
    """The ways in which a trained method translates: name -> knobs.

    Args:
        name: of `PAIRED_TRAININGS`.
        curve: numbers of steps, for those of `CURVES`.
    """
    training = PAIRED_TRAININGS[name]
    if training.kind in ONE_STEP:
        return {"one step": {}}
    fixed = (FEW, PUBLISHED_DOSSR) if training.kind == "cdtsde" else (FEW, BRIDGE_STEPS)
    steps = sorted({*fixed, *(curve if name in CURVES else ())})
    found: dict[str, dict[str, Any]] = {f"K={k}": {"steps": k} for k in steps}
    if training.kind == "cdtsde" and name.endswith(("-pixel", "-averaged", "-random", "-gauge")):
        for k in (FEW, max(curve)):
            found[f"K={k}"] = {"steps": k}
            found[f"K={k}, averaged field"] = {"steps": k, "average": True}
    if name in ("modality-linear", "modality-pixel"):
        for k in fixed:
            found[f"K={k}, order 2"] = {"steps": k, "order": 2}
            found[f"K={k}, no noise in the steps"] = {"steps": k, "stochastic": False}
    if training.kind == "ddbm":
        found |= {f"K={FEW}, order {order}": {"steps": FEW, "order": order} for order in (2, 3)}
    if training.kind == "brownian-bridge" and training.config["variance"] == "abridge":
        found[f"K={BRIDGE_STEPS}, released step"] = {"steps": BRIDGE_STEPS, "sampler": "euler-maruyama"}
    return found


ADAPTIVE_STAGES = (
    *(f"pairs {name}" for name in PAIRED_TRAININGS),
    *(f"pairs {floor} {task}" for task in TASKS for floor in FLOORS),
    *(f"path energies {task}" for task in TASKS),
    "shift costs",
)
