"""The plans behind the rows of 06_baselines. No torch.

Methods are trained for the first pair on equal numbers of images, or come from weights that the repository ships, if
those were trained by the very recipe and on the very data of the profile. Every method translates in a stage of its
own and is assessed in another, so that a change of one leaves the others as they are.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from medshift.methods_index import FLOORS, FREE_MODULES, OTHERS, TRAINED
from medshift.repro.comparison_rows import ROWS, Row, Training, repeated, trainings_of
from medshift.repro.evidence import PAIRS
from medshift.repro.profiles import Profile
from medshift.repro.stage import Plan

PAIR = PAIRS[0]
WEIGHTS = Path(__file__).resolve().parents[1] / "weights"
# Methods that run a solver on a grid of times, whose `steps` are its intervals.
SOLVED = (*FREE_MODULES, "z-star", "medshift-same-budget", "two-networks", "direct-bridge", "direct-bridge-reflow")
ALL, HEADLINE, VALIDATION = "all", "T2", "validation"


def comparison_plans(
    profile: Profile, made: Mapping[str, Plan], *, seed: int, retrain: Collection[str] = ()
) -> dict[str, Plan]:
    """All plans of the comparison by name: ``trained NAME`` or ``shipped NAME``, ``compared ROW``, ``assessed ROW``.

    Args:
        profile: how large everything is.
        made: plans of ``views``, ``codec`` and ``network``.
        seed: of every random number.
        retrain: trainings that are done here, under every seed, even where weights are shipped; ``all`` for all.
    """
    if profile.source == "folders":
        return {}
    found: dict[str, Plan] = {}
    weights: dict[str, Plan] = {}
    own = profile.comparison
    trainings = trainings_of(own.seeds)
    for name, training in trainings.items():
        live = _training(profile, made, training, weights, seed=seed)
        asked = {name, name.partition("-seed-")[0], ALL} & {*retrain, *own.live}
        weights[name] = (None if asked else shipped_plan(profile, name, live)) or live
        found[f"{weights[name].name} {name}"] = weights[name]
    for row in itertools.chain.from_iterable(repeated(row, own.seeds) for row in ROWS):
        found[f"compared {row.name}"] = compared = _compared(profile, made, weights, row, trainings, seed=seed)
        arguments = {
            "source": PAIR[0],
            "target": PAIR[1],
            "roles": own.views,
            "headline": HEADLINE,
            "deep": ["ST-AlexNet", "Inception", "CLIP"],
            "components": profile.evidence.components,
            "neighbours": profile.evidence.neighbours,
        }
        inputs = {"views": made["views"], "compared": compared}
        found[f"assessed {row.name}"] = Plan(
            "assessed", "medshift.stages.assessed", arguments, inputs, f"assessing {row.name}"
        )
    return found


def training_plan(profile: Profile, made: Mapping[str, Plan], name: str, *, seed: int) -> Plan:
    """The plan of one training, as if nothing were shipped but what it is built on."""
    weights: dict[str, Plan] = {}
    for other, training in trainings_of(profile.comparison.seeds).items():
        live = _training(profile, made, training, weights, seed=seed)
        if other == name:
            return live
        weights[other] = shipped_plan(profile, other, live) or live
    raise KeyError(name)


def searched_plan(
    profile: Profile,
    made: Mapping[str, Plan],
    name: str,
    *,
    seed: int,
    config: Mapping[str, Any],
    images: int,
    knobs: Mapping[str, Any],
    views: int,
) -> Plan:
    """Translations of validation views, and of no others, after a training that differs in some of its settings.

    One that differs in none comes from shipped weights, where there are some.

    Args:
        profile: how large everything is.
        made: plans of ``views``, ``codec`` and ``network``.
        name: of the training; what it is built on is as the comparison has it.
        seed: of every random number.
        config: entries of its configuration that differ.
        images: seen in training; 0 for the profile's.
        knobs: of the translations; those under which the training is watched come first.
        views: the first so many of validation.

    Raises:
        KeyError: no such training.
    """
    weights: dict[str, Plan] = {}
    trainings = trainings_of(profile.comparison.seeds)
    base = trainings[name].base
    if base:
        weights[base] = shipped_plan(profile, base, new := training_plan(profile, made, base, seed=seed)) or new
    changed = replace(trainings[name], config={**trainings[name].config, **config})
    live = _training(profile, made, changed, weights, seed=seed, images=images)
    weights[name] = shipped_plan(profile, name, live) or live
    row = Row(name, "", "trained", name, knobs=changed.knobs)
    plan = _compared(profile, made, weights, row, trainings, seed=seed)
    own = {"roles": {VALIDATION: views}, "headline": VALIDATION, "knobs": {**plan.arguments["knobs"], **knobs}}
    return replace(plan, arguments={**plan.arguments, **own})


def _training(
    profile: Profile,
    made: Mapping[str, Plan],
    training: Training,
    weights: Mapping[str, Plan],
    *,
    seed: int,
    images: int = 0,
) -> Plan:
    own = profile.comparison
    arguments = {
        "kind": training.kind,
        "config": dict(training.config),
        "source": PAIR[0],
        "target": PAIR[1],
        "images": images or own.images,
        "checkpoint_every": own.checkpoint_every,
        "knobs": _with_steps(profile, training.kind, training.knobs),
        "seed": seed + training.seed,
    }
    inputs = {"views": made["views"], "codec": made["codec"]}
    if training.paired:
        inputs["paired"] = pairs_plan(made)
    if training.base:
        inputs["base"] = weights[training.base]
    module = TRAINED[training.kind][0]
    label = f"training {training.kind}"
    return Plan("trained", "medshift.stages.trained", arguments, inputs, label, also=(module,))


def _with_steps(profile: Profile, method: str, knobs: Mapping[str, Any]) -> dict[str, Any]:
    """Knobs, with the profile's number of steps if it has one and the method runs a solver."""
    steps = profile.comparison.steps
    return {**knobs, "steps": steps} if steps and method in SOLVED else dict(knobs)


def pairs_plan(made: Mapping[str, Plan]) -> Plan:
    """The training views of the pair's source projected from both volumes of each head."""
    of_heads = {key: made["views"].arguments[key] for key in ("source", "sha256", "size")}
    arguments = {"domain": PAIR[0], **of_heads}
    return Plan("paired", "medshift.stages.paired_views", arguments, {"views": made["views"]}, "projecting pairs")


def recipe_of(plan: Plan) -> dict[str, Any]:
    """What decides a training but its code: its arguments, its data, and what it is built on."""
    kept: dict[str, Any] = {"arguments": dict(plan.arguments), "views": dict(plan.inputs["views"].arguments)}
    if "codec" in plan.inputs:
        kept["codec"] = dict(plan.inputs["codec"].arguments)
    if "proposed" in plan.inputs:
        proposed = plan.inputs["proposed"]
        kept["proposed"] = {**proposed.arguments, "network": _network_arguments(proposed.inputs["network"])}
    if "base" in plan.inputs:
        base = plan.inputs["base"]
        kept["base"] = base.arguments.get("sha256", "trained here")
    return json.loads(json.dumps(kept))


def _network_arguments(network: Plan) -> dict[str, Any]:
    """Of the training of a network, which for a shipped one stand on its card."""
    if network.name != "shipped":
        return dict(network.arguments)
    card = read_card(network.arguments["profile"], network.arguments["training"])
    assert card is not None, "it was found when it was planned"
    return dict(card["recipe"]["arguments"])


def shipped_plan(profile: Profile, name: str, live: Plan) -> Plan | None:
    """The stage that takes the shipped weights of a training, where there are some of that very recipe."""
    card = read_card(profile.name, name)
    if card is None or card["recipe"] != recipe_of(live):
        return None
    arguments = {"profile": profile.name, "training": name, "sha256": card["sha256"]}
    return Plan("shipped", "medshift.stages.shipped", arguments, {}, f"taking the weights of {name}")


def read_card(profile: str, name: str) -> dict[str, Any] | None:
    """What stands beside shipped weights, or None where there are none."""
    path = WEIGHTS / profile / name / "card.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _compared(
    profile: Profile,
    made: Mapping[str, Plan],
    weights: Mapping[str, Plan],
    row: Row,
    trainings: Mapping[str, Training],
    *,
    seed: int,
) -> Plan:
    own = profile.comparison
    method = trainings[row.method].kind if row.family == "trained" else row.method
    arguments = {
        "family": row.family,
        "method": method,
        "options": dict(row.options),
        "knobs": _with_steps(profile, method, row.knobs),
        "candidates": [{"tau": tau} for tau in own.taus] if row.chosen else [],
        "draws": min(own.draws, row.most_draws or own.draws) if row.random else 1,
        "source": PAIR[0],
        "target": PAIR[1],
        "roles": own.views,
        "headline": HEADLINE,
        "searched": own.searched,
        "batch": profile.tradeoff.batch,
        "seed": seed,
    }
    inputs = {"views": made["views"], "codec": made["codec"]}
    if row.family in ("free", "attention"):
        inputs["network"] = made["network"]
    if row.family == "trained":
        inputs["trained"] = weights[row.method]
        if trainings[row.method].kind == "cyclegan-turbo-style":
            inputs["base"] = weights[trainings[row.method].base]
    also = {**FREE_MODULES, **FLOORS, **TRAINED, **OTHERS}.get(str(arguments["method"]))
    modules = also[:1] if also else ()
    return Plan("compared", "medshift.stages.compared", arguments, inputs, f"translating: {row.name}", also=modules)
