"""How often the plans of a profile evaluate and train what: the numbers behind `medshift.costs.extrapolation`.

Plans are made as for `medshift paper`, with every method trained here and with the procedural heads, so that no data is
looked for; sizes and counts are the same with any heads.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from medshift.codec import KLCodec, PatchCodec
from medshift.costs import flops
from medshift.costs.leg_counts import COUNTS, DOMAINS, decode_evaluations
from medshift.errors import ParameterError
from medshift.methods import free
from medshift.methods_index import BUILT_ON
from medshift.repro.adaptive import adaptive_plans
from medshift.repro.comparison import ALL, comparison_plans
from medshift.repro.evidence import evidence_plans
from medshift.repro.explorer import explorer_plans
from medshift.repro.grid import load_grid
from medshift.repro.pipeline import plans
from medshift.repro.profiles import Profile
from medshift.repro.stage import Plan
from medshift.stages.searching import rounds
from medshift.translate import MedShift

__all__ = ["AUTOENCODER", "DECODING", "ENCODING", "EVALUATION", "PARTS", "TRAINING", "Work", "pair_training", "work_of"]

GRIDS = ("guidance", "sizes", "solvers")  # that 08 runs
PATCH_OF_PAIRS = 2  # of the latents of 07

# Stage -> what is said of it.
PARTS: Mapping[str, str] = {
    "autoencoder": "the KL autoencoder (02)",
    "network": "the network (03)",
    "other": "other networks: half the size, coarser codec, confounded (04)",
    "sizes": "networks of other sizes (08)",
    "compared": "trainings of the comparison (06)",
    "paired": "paired trainings (07)",
    "translations": "translations (04 to 08, 99)",
}

# What is done, for those who know the speed of each.
TRAINING, AUTOENCODER = "training the network", "training the autoencoder"
EVALUATION, ENCODING, DECODING = "evaluating a network", "encoding", "decoding"


def pair_training(kind: str) -> str:
    """What training a method for a pair is called, of `medshift.methods_index.TRAINED`."""
    return f"training {kind}"


@dataclass(frozen=True)
class Work:
    """Something that is done `times` times at `each` floating-point operations.

    Args:
        name: of the stage.
        times: images trained on, or evaluations of a network, or images through a codec.
        each: operations.
        what: is done, one of the names above.
    """

    name: str
    times: float
    each: float
    what: str = EVALUATION

    @property
    def operations(self) -> float:
        """Floating-point operations of all."""
        return self.times * self.each


def work_of(profile: Profile) -> dict[str, list[Work]]:
    """Part -> everything that is counted of a profile, for one seed.

    Raises:
        ParameterError: the profile's codec is one from a folder, whose plans cannot be made without it.
    """
    if profile.codec.kind == "pretrained":
        raise ParameterError(f"Profile {profile.name} brings its own codec and images; its plans cannot be counted.")
    # Micro-batches change no count, and fitting them to a GPU asks for one.
    train = profile.train.model_copy(update={"accumulation": 1})
    return _Count(profile.model_copy(update={"source": "phantom", "train": train})).all()


class _Count:
    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self.widths, self.channels = tuple(profile.kl.widths), profile.kl.channels
        made = plans(profile)
        self.plans = made | evidence_plans(profile, made, seed=0)
        # One seed of everything is counted, and multiplied by their number elsewhere.
        once = profile.model_copy(update={"comparison": profile.comparison.model_copy(update={"seeds": 1})})
        self.plans |= comparison_plans(once, made, seed=0, retrain=(ALL,)) | explorer_plans(profile, made)
        self.plans |= adaptive_plans(profile, made, seed=0, retrain=(ALL,))
        for grid in GRIDS:
            runs = load_grid(grid, profile, seed=0).runs
            self.plans |= {f"{grid} {k}": run.work for k, run in enumerate(runs) if isinstance(run.work, Plan)}
        for name, plan in [*self.plans.items()]:  # stages that others read and that have no name of their own
            self.plans |= {f"{k} of {name}": p for k, p in plan.inputs.items() if p.name in ("proposed", "network")}

    def all(self) -> dict[str, list[Work]]:
        """Part of the profile -> its work, each stage once."""
        found: dict[str, list[Work]] = {part: [] for part in PARTS.values()}
        seen: set[str] = set()
        for name, plan in self.plans.items():
            identity = _identity(plan)
            if identity in seen:
                continue
            seen.add(identity)
            arguments = plan.arguments
            if plan.name == "autoencoder":
                each = flops.autoencoder_step(self.widths, self.channels, self.profile.size)
                found[PARTS["autoencoder"]].append(Work(name, arguments["images"], each, AUTOENCODER))
            elif plan.name == "network":
                part = "sizes" if name.startswith("network of sizes") else "network" if name == "network" else "other"
                step = self._network(plan, backward=True)
                found[PARTS[part]].append(Work(name, arguments["images"], step, TRAINING))
            elif plan.name == "trained":
                part = "paired" if "task" in arguments else "compared"
                what = pair_training(arguments["kind"])
                found[PARTS[part]].append(Work(name, arguments["images"], self._trained(plan)[1], what))
            else:
                found[PARTS["translations"]] += self._translations(name, plan)
        return {part: some for part, some in found.items() if some}

    def _place(self, plan: Plan) -> tuple[int, int, int, float, float]:
        """Of a stage with a codec: side of the image, channels, side of the latent, encoding, decoding."""
        views = plan.inputs["views"]
        size = int((views if "size" in views.arguments else views.inputs["views"]).arguments["size"])
        codec = plan.inputs["codec"].arguments
        if codec["kind"] == "patch":
            return size, codec["factor"] ** 2, size // codec["factor"], 0.0, 0.0
        both = (self.widths, self.channels, size)
        stride = 2 ** (len(self.widths) - 1)
        return size, self.channels, size // stride, flops.encoding(*both), flops.decoding(*both)

    def _network(self, plan: Plan, *, backward: bool = False) -> float:
        """Operations of an evaluation, or of a training step an image, its codec's included."""
        _, channels, side, encoding, _ = self._place(plan)
        own = plan.arguments
        each = flops.evaluation(own["network"], channels, side, width=own.get("width", 1.0), backward=backward)
        return each + (encoding / own.get("echo", 1) if backward else 0.0)

    @cached_property
    def _steps(self) -> dict[str, tuple[Any, float]]:
        return {}

    def _trained(self, plan: Plan) -> tuple[Any, float]:
        """A method that is trained for a pair, and operations an image of its training step."""
        own = plan.arguments
        size = int(plan.inputs["views"].arguments["size"])
        # Weights of losses, the floats of a configuration, change the count only where they are 0.
        config = {name: bool(v) if isinstance(v, float) else v for name, v in own["config"].items()}
        key = json.dumps([own["kind"], config, size, "task" in own])
        if key not in self._steps:
            kind = "patch" if "task" in own else plan.inputs["codec"].arguments["kind"]
            factor = PATCH_OF_PAIRS if "task" in own else self.profile.codec.factor
            codec = PatchCodec(factor) if kind == "patch" else KLCodec.build(self.widths, self.channels)
            nets = {}
            if "base" in plan.inputs:
                base = self._trained(plan.inputs["base"])[0].modules()["network"]
                nets[BUILT_ON[own["kind"]]] = base.requires_grad_(False).eval()

            def make() -> Any:
                return flops.method(own["kind"], own["config"], codec, **nets)

            self._steps[key] = (make(), flops.method_step(make, size))
        return self._steps[key]

    def _translations(self, name: str, plan: Plan) -> list[Work]:
        own = plan.arguments
        if plan.name == "compared":
            return self._compared(name, plan)
        if plan.name == "pairs" and "trained" in plan.inputs:
            made, step = self._trained(plan.inputs["trained"])
            images = own["views"] + (own["draws"] - 1) * own["spread_views"]
            evaluations = sum(made.translator().nfe(**knobs) for knobs in own["settings"].values())
            return [Work(name, images * evaluations, step / 3)]
        if "network" not in plan.inputs:
            return []
        if plan.name not in COUNTS:
            raise ParameterError(f"Nothing is known of how often stage {plan.name!r} evaluates its network.")
        evaluations, encoded, decoded = COUNTS[plan.name](own, self.profile.views.model_dump())
        network = plan.inputs["network"]
        *_, encoding, decoding = self._place(network)
        return [
            Work(name, evaluations, self._network(network)),
            Work(f"{name}, encoding", encoded, encoding, ENCODING),
            Work(f"{name}, decoding", decoded, decoding, DECODING),
        ]

    def _compared(self, name: str, plan: Plan) -> list[Work]:
        own = plan.arguments
        images = sum(own["roles"].values()) + (own["draws"] - 1) * own["roles"][own["headline"]]
        choices = [{**own["knobs"], **chosen} for chosen in own["candidates"]] or [dict(own["knobs"])]
        if own["family"] == "free":
            model = MedShift(lambda x, t, label: x, PatchCodec(1), DOMAINS)
            method, each = free(own["method"], model, **own["options"]), self._network(plan.inputs["network"])
            costs = [method.nfe(**knobs) for knobs in choices]
        elif own["family"] == "attention":  # four branches at most, of enlarged images
            knobs = own["knobs"]
            legs = decode_evaluations(knobs.get("tau", 0.0), **{k: v for k, v in knobs.items() if k != "tau"})
            costs, each = [4 * legs], self._network(plan.inputs["network"]) * own["options"].get("enlarge", 1) ** 2
        elif own["family"] == "trained":
            made, step = self._trained(plan.inputs["trained"])
            costs, each = [made.translator().nfe(**knobs) for knobs in choices], step / 3
        else:
            return []
        looks = _looks(own, costs)
        passed = images + sum(n for n, _ in looks)
        *_, encoding, decoding = self._place(plan)
        return [
            Work(name, images * max(costs) + sum(n * cost for n, cost in looks), each),
            Work(f"{name}, encoding", passed, encoding, ENCODING),
            Work(f"{name}, decoding", passed, decoding, DECODING),
        ]


def _looks(own: Mapping[str, Any], costs: Sequence[float]) -> list[tuple[int, float]]:
    """Views and evaluations a view of each look that a search takes at a candidate, the dearest being kept."""
    if not own["candidates"]:
        return []
    left, found = sorted(costs, reverse=True), list[tuple[int, float]]()
    for n, most in rounds(len(costs), own["searched"]):
        found += [(n, cost) for cost in left]
        left = left[:most]
    return found


def _identity(plan: Plan) -> str:
    """What decides a plan beside code."""
    inputs = {name: _identity(inner) for name, inner in plan.inputs.items()}
    return json.dumps([plan.module, dict(plan.arguments), inputs], sort_keys=True, default=str)
