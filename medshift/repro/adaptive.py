"""The plans behind 07_adaptive_shift. No torch.

Every training is a stage of its own, or comes from weights that the repository ships if those were made by the very
recipe and on the very data of the profile; every trained method is judged, in all its settings, in another.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from medshift.methods_index import TRAINED
from medshift.repro.adaptive_rows import FLOORS, PAIRED_TRAININGS, TASKS, PairedTraining, settings_of
from medshift.repro.comparison import ALL, HEADLINE, pairs_plan, shipped_plan
from medshift.repro.profiles import Profile
from medshift.repro.stage import Plan

PROPOSAL = {"tau": 0.02}  # of MedShift's translations that serve as pairs: what 04 chose on validation heads


def adaptive_plans(
    profile: Profile, made: Mapping[str, Plan], *, seed: int, retrain: Collection[str] = ()
) -> dict[str, Plan]:
    """All plans of the paired comparison by name: ``trained NAME`` or ``shipped NAME``, ``pairs NAME``, and others.

    Args:
        profile: how large everything is.
        made: plans of ``views`` and ``network``.
        seed: of every random number.
        retrain: trainings that are done here even where their weights are shipped; ``all`` for all.
    """
    if profile.source == "folders":
        return {}
    own, found = profile.adaptive, {}
    for name, training in PAIRED_TRAININGS.items():
        live = paired_training_plan(profile, made, name, seed=seed)
        shipped = None if {name, ALL} & {*retrain, *own.live} else shipped_plan(profile, name, live)
        weights = shipped or live
        found[f"{weights.name} {name}"] = weights
        found[f"pairs {name}"] = _judged(profile, made, training.task, "trained", name, {"trained": weights}, seed=seed)
    for task in TASKS:
        for floor in FLOORS:
            found[f"pairs {floor} {task}"] = _judged(profile, made, task, floor, "", {}, seed=seed)
        inputs = {"paired": pairs_plan(made)}
        arguments = {"task": task, "pairs": own.energy_pairs, "times": own.energy_times}
        found[f"path energies {task}"] = Plan(
            "energies", "medshift.stages.path_energies", arguments, inputs, f"path energies of {task}"
        )
    costs = {"sizes": own.cost_sizes, "repeats": own.cost_repeats, "seed": seed}
    found["shift costs"] = Plan("costs", "medshift.stages.shift_costs", costs, {}, "timing the field")
    return found


def paired_training_plan(profile: Profile, made: Mapping[str, Plan], name: str, *, seed: int) -> Plan:
    """The plan of one training, as if nothing were shipped."""
    training: PairedTraining = PAIRED_TRAININGS[name]
    own = profile.adaptive
    arguments = {
        "task": training.task,
        "kind": training.kind,
        "config": dict(training.config),
        "pairs": training.pairs,
        "images": own.images,
        "checkpoint_every": own.checkpoint_every,
        "knobs": training.knobs,
        "seed": seed + training.seed,
    }
    inputs = {"views": made["views"], "paired": pairs_plan(made)}
    if training.pairs == "medshift":
        proposal = {"task": training.task, "images": own.proposed, "knobs": PROPOSAL, "seed": seed}
        proposal["batch"] = profile.tradeoff.batch
        of = {"views": made["views"], "network": made["network"]}
        inputs["proposed"] = Plan("proposed", "medshift.stages.proposed", proposal, of, "proposing pairs")
    module = TRAINED[training.kind][0]
    return Plan("trained", "medshift.stages.paired_trained", arguments, inputs, f"training {name}", also=(module,))


def _judged(
    profile: Profile,
    made: Mapping[str, Plan],
    task: str,
    method: str,
    name: str,
    inputs: Mapping[str, Plan],
    *,
    seed: int,
) -> Plan:
    own = profile.adaptive
    arguments = {
        "task": task,
        "method": method,
        "settings": settings_of(name, own.curve) if name else {"": {}},
        "role": HEADLINE,
        "views": own.views,
        "spread_views": own.spread_views,
        "draws": own.draws,
        "batch": profile.tradeoff.batch,
        "seed": seed,
    }
    also = (TRAINED[PAIRED_TRAININGS[name].kind][0],) if name else ()
    plans = {"views": made["views"], **inputs}
    return Plan(
        "pairs", "medshift.stages.paired_judged", arguments, plans, f"judging {name or f'{method}, {task}'}", also=also
    )
