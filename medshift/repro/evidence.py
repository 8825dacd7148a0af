"""The plans behind the evidence of 04_tau_tradeoff and 05_shared_manifold. One page, no torch.

Translations are kept as images by one kind of stage and judged by another, so a change of a metric translates nothing
anew. The first two of `PAIRS` are where a rule for tau may learn; the others, and other heads, are where it is tested.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medshift.repro.fewer_evaluations import evaluations_plan
from medshift.repro.pipeline import codec_plan, train_plan, views_plan
from medshift.repro.profiles import Profile
from medshift.repro.stage import Plan

PAIRS = (
    ("synthetic-high", "real-normal"),
    ("real-normal", "synthetic-high"),
    ("synthetic-low", "real-low"),
    ("synthetic-high", "real-exposure"),
    ("real-low", "real-exposure"),
    ("real-normal", "real-low"),
    ("real-exposure", "synthetic-low"),
    ("synthetic-low", "synthetic-high"),
)
MANIFOLD_PAIRS = (PAIRS[0], ("synthetic-low", "synthetic-high"), ("real-low", "real-exposure"))
LEARNING = 2  # the first so many pairs
CONFOUNDED = (0.0, 1.0)  # total variation between the poses of synthetic and of real domains
DEEP = ("ST-AlexNet", "ST-VGG", "Inception", "CLIP")  # features of set metrics
COSTLY = "ST-VGG"  # for the first pair alone
CONTROL_DRAWS = 3  # of both sets where the field is exact
CLAMPED = 0.2  # share of pixels at one value, as a display clips air
STARTS = (1.0, 0.99, 0.95)  # times from which the ODE inverts
SCALES = (1.0, 2.0, 3.0)  # of guidance, on each leg
CUBE_TAUS, COLLAPSE_TAUS = (0.02, 0.1, 0.3), (0.02, 0.1)

# At equal evaluations, about 30 and 50 to 60 for a whole leg; the fifth is the recipe as published.
SOLVERS: Mapping[str, Mapping[str, Any]] = {
    "Euler, uniform, 30": {"solver": "euler", "grid": "uniform", "steps": 30},
    "Euler, refined, 30": {"solver": "euler", "grid": "refined", "steps": 30},
    "Heun, uniform, 15": {"solver": "heun", "grid": "uniform", "steps": 15},
    "Heun, refined, 15": {"solver": "heun", "grid": "refined", "steps": 15},
    "Euler, uniform, 50, as published": {"solver": "euler", "grid": "uniform", "steps": 50},
    "Heun, refined, 30": {"solver": "heun", "grid": "refined", "steps": 30},
}
SOLVER_TAUS = (0.005, 0.02, 0.07, 0.3)


def pair_name(source: str, target: str) -> str:
    """What a pair is called in names of plans."""
    return f"{source} > {target}"


def evidence_plans(profile: Profile, made: Mapping[str, Plan], *, seed: int) -> dict[str, Plan]:
    """All plans of the evidence by name.

    Args:
        profile: how large everything is.
        made: plans of ``views``, ``codec``, ``autoencoder`` and ``network``.
        seed: of every random number.
    """
    if profile.source == "folders":
        return {}
    found = other_networks(profile, made, seed=seed)
    found |= sweeps(profile, made, found, seed=seed)
    found |= predictions(profile, made, found, seed=seed)
    found |= verdicts(profile, found)
    found |= manifold(profile, made, seed=seed)
    return found | mechanisms(profile, made, seed=seed)


def manifold(profile: Profile, made: Mapping[str, Plan], *, seed: int) -> dict[str, Plan]:
    """Inverted latents of all domains, and how shared they are."""
    own, swap = profile.evidence, list(PAIRS[0])
    latents = {
        "role": "T2",
        "views": own.views,
        "taus": own.manifold_taus,
        "batch": profile.tradeoff.batch,
        "swap": swap,
        "swapped": own.few,
        "seed": seed,
    }
    inputs = {"views": made["views"], "network": made["network"]}
    inverted = Plan("latents", "medshift.stages.latents", latents, inputs, "inverting all domains")
    compared = {
        "role": "T2",
        "pairs": [list(pair) for pair in MANIFOLD_PAIRS],
        "swap": swap,
        "neighbours": own.neighbours,
        "embedded": own.embedded_taus,
        "methods": ["umap", "pca"],
        "seed": seed,
    }
    inputs = {"views": made["views"], "latents": inverted}
    return {
        "latents": inverted,
        "manifold": Plan("manifold", "medshift.stages.manifold", compared, inputs, "comparing latents"),
    }


def mechanisms(profile: Profile, made: Mapping[str, Plan], *, seed: int) -> dict[str, Plan]:
    """What the solver does, what guidance of each leg does, clean sources, and objects that were never seen."""
    own, views = profile.evidence, made["views"]
    inputs = {"views": views, "network": made["network"]}
    direction = {"source": PAIRS[0][0], "target": PAIRS[0][1], "batch": profile.tradeoff.batch}
    pair = {**direction, "role": "T2"}
    solvers = {
        **pair,
        "views": own.solvers,
        "noise_views": max(2, own.solvers // 2),
        "taus": list(SOLVER_TAUS),
        "solvers": {name: dict(solver) for name, solver in SOLVERS.items()},
    }
    cube = {**pair, "views": own.cube, "taus": list(CUBE_TAUS), "scales": list(SCALES)}
    taus, starts = list(COLLAPSE_TAUS), list(STARTS)
    collapse = {**pair, "views": own.cube, "taus": taus, "starts": starts, "clamped": CLAMPED, "seed": seed}
    of_heads = {name: views.arguments[name] for name in ("source", "sha256", "size")}
    without = {"views": views}
    untouched = Plan("untouched", "medshift.stages.untouched", of_heads, without, "projecting without inserts")
    objects = {**direction, "tau": CUBE_TAUS[0], "exposures": own.exposures}
    with_and_without = {**inputs, "untouched": untouched}
    return {
        "solvers": Plan("solvers", "medshift.stages.solvers", solvers, inputs, "comparing solvers"),
        "evaluations": evaluations_plan(profile, inputs, PAIRS[0]),
        "cube": Plan("cube", "medshift.stages.cube", cube, inputs, "guiding each leg"),
        "collapse": Plan("collapse", "medshift.stages.collapse", collapse, inputs, "inverting clean sources"),
        "untouched": untouched,
        "objects": Plan("objects", "medshift.stages.objects", objects, with_and_without, "translating unseen objects"),
    }


def other_networks(profile: Profile, made: Mapping[str, Plan], *, seed: int) -> dict[str, Plan]:
    """Half the pixels, a coarser codec, and domains that do not share their mix of poses."""
    half = profile.model_copy(update={"size": profile.size // 2})
    views = views_plan(half, seed=seed)
    codec = codec_plan(half, views, made["autoencoder"])
    base = {**made, "views": views, "codec": codec}
    found = {
        "views half": views,
        "network half": train_plan(half, base, seed=seed),
        "network coarse": train_plan(profile, made, seed=seed, codec="patch", codec_factor=2 * profile.codec.factor),
    }
    for share in CONFOUNDED:
        arguments = {"total_variation": share, "seed": seed}
        mixed = Plan("confounded", "medshift.stages.confounded", arguments, {"views": views}, "mixing poses")
        inputs = {**made, "views": mixed, "codec": codec_plan(half, mixed, made["autoencoder"])}
        found[f"network confounded {share:g}"] = train_plan(half, inputs, seed=seed, images=profile.train.images // 2)
    return found


def sweeps(profile: Profile, made: Mapping[str, Plan], others: Mapping[str, Plan], *, seed: int) -> dict[str, Plan]:
    """Translations at every tau: of all pairs, of phantom heads, and of the other networks."""
    own, found = profile.evidence, {}
    few = profile.model_copy(update={"views": profile.views.model_copy(update={"train": 1, "T2": 2 * own.few})})
    heads = views_plan(few, seed=seed, source="phantom")

    def sweep(network: Plan, views: Plan, pair: tuple[str, str], n: int, *, fresh: bool, cycled: int) -> Plan:
        arguments = {
            "source": pair[0],
            "target": pair[1],
            "role": "T2",
            "views": n,
            "taus": own.taus,
            "batch": profile.tradeoff.batch,
            "fresh": fresh,
            "cycled": cycled,
            "seed": seed,
        }
        inputs = {"views": views, "network": network}
        return Plan("sweep", "medshift.stages.sweep", arguments, inputs, f"translating {pair[0]} to {pair[1]}")

    for k, pair in enumerate(PAIRS):
        n, name = own.views if k < LEARNING else own.few, pair_name(*pair)
        found[f"sweep {name}"] = sweep(made["network"], made["views"], pair, n, fresh=k < LEARNING, cycled=own.cycled)
        if k < LEARNING:
            found[f"sweep phantom {name}"] = sweep(
                made["network"], heads, pair, own.few, fresh=False, cycled=own.cycled
            )
    half, coarse = others["network half"], others["network coarse"]
    found["sweep half"] = sweep(half, others["views half"], PAIRS[0], own.views, fresh=False, cycled=0)
    found["sweep coarse"] = sweep(coarse, made["views"], PAIRS[0], own.views, fresh=False, cycled=0)
    for share in CONFOUNDED:
        network = others[f"network confounded {share:g}"]
        found[f"sweep confounded {share:g}"] = sweep(
            network, others["views half"], PAIRS[0], own.views, fresh=False, cycled=0
        )
    return found


def predictions(
    profile: Profile, made: Mapping[str, Plan], others: Mapping[str, Plan], *, seed: int
) -> dict[str, Plan]:
    """Noise and classify, without a network: every pair, and the first at half the pixels and with a coarser codec.

    With the control of the first pairs, in which the field is exact.
    """
    own = profile.evidence
    places = {f"prediction {pair_name(*pair)}": (pair, made["views"], made["codec"]) for pair in PAIRS}
    half, coarse = others["network half"], others["network coarse"]
    places["prediction half"] = (PAIRS[0], half.inputs["views"], half.inputs["codec"])
    places["prediction coarse"] = (PAIRS[0], coarse.inputs["views"], coarse.inputs["codec"])
    found = {}
    for name, (pair, views, codec) in places.items():
        arguments = {
            "source": pair[0],
            "target": pair[1],
            "taus": own.taus,
            "views": own.views,
            "training": own.training,
            "seed": seed,
        }
        inputs = {"views": views, "codec": codec}
        found[name] = Plan("prediction", "medshift.stages.prediction", arguments, inputs, "noising and classifying")
    for pair in PAIRS[:LEARNING]:
        name = pair_name(*pair)
        same = {
            key: found[f"prediction {name}"].arguments[key] for key in ("source", "target", "taus", "views", "seed")
        }
        found[f"control {name}"] = Plan(
            "control",
            "medshift.stages.exact_field",
            {**same, "draws": CONTROL_DRAWS, "batch": profile.tradeoff.batch},
            found[f"prediction {name}"].inputs,
            "classifying where the field is exact",
        )
    return found


def verdicts(profile: Profile, swept: Mapping[str, Plan]) -> dict[str, Plan]:
    """Every sweep judged: the first pairs by all metrics, others by what rules for tau need, the rest by truth."""
    own, found = profile.evidence, {}
    full = {f"sweep {pair_name(*pair)}" for pair in PAIRS[:LEARNING]}
    some = {f"sweep {pair_name(*pair)}" for pair in PAIRS} | {name for name in swept if "phantom" in name}
    for name, plan in swept.items():
        if plan.name != "sweep":
            continue
        first = name == f"sweep {pair_name(*PAIRS[0])}"
        arguments = {
            **{key: plan.arguments[key] for key in ("source", "target", "role", "views")},
            "images": name in full,
            "sets": name in some,
            "deep": [d for d in DEEP if d != COSTLY or first] if name in full else list(DEEP[:1]),
            "components": own.components,
            "neighbours": own.neighbours,
        }
        inputs = {"views": plan.inputs["views"], "sweep": plan}
        found[name.replace("sweep", "judged")] = Plan("judged", "medshift.stages.judged", arguments, inputs, "judging")
    return found


def _stages() -> tuple[str, ...]:
    """Plans that 04_tau_tradeoff draws from, translations being judged first."""
    names = [pair_name(*pair) for pair in PAIRS]
    phantoms = [f"phantom {name}" for name in names[:LEARNING]]
    others = ["half", "coarse", *(f"confounded {share:g}" for share in CONFOUNDED)]
    judged = [f"judged {name}" for name in (*names, *phantoms, *others)]
    drawn = [f"sweep {name}" for name in (*names[:LEARNING], *others[2:])]
    predicted = [f"prediction {name}" for name in (*names, "half", "coarse")]
    predicted += [f"control {name}" for name in names[:LEARNING]]
    studies = ("solvers", "evaluations", "cube", "collapse", "untouched", "objects", "views half")
    return (*judged, *drawn, *predicted, *studies)


TRADEOFF_STAGES = _stages()
