"""The plans behind 99_explorer: a few views, and their translations at every setting of its dials. No torch.

And `pretrained`: the profile's network from the weights that the repository ships, where these were trained by the
profile's very recipe on its very data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medshift.repro.comparison import shipped_plan
from medshift.repro.evidence import PAIRS
from medshift.repro.profiles import Profile
from medshift.repro.stage import Plan

NETWORK = "medshift"  # what the shipped weights of the profile's network are called
SHOWN_PAIRS = PAIRS[:4]
EXPLORER_STAGES = ("explorer views", "lattice")

# View 0 is an unseen head, the last one has an object that no training head has.
FAILURES: Mapping[str, Mapping[str, Any]] = {
    "τ too low: anatomy is invented": {"pair": 0, "view": 0, "clean": False, "knobs": {"tau": 0.0}},
    "τ too high: nothing changes": {"pair": 0, "view": 0, "clean": False, "knobs": {"tau": 0.85}},
    "guidance too high": {"pair": 0, "view": 0, "clean": False, "knobs": {"tau": 0.3, "guidance": 6.0}},
    "guidance on the decode leg alone": {
        "pair": 0, "view": 0, "clean": False, "knobs": {"tau": 0.1, "guidance": [1.0, 4.0]},
    },
    "too few steps of Euler": {
        "pair": 0, "view": 0, "clean": False, "knobs": {"tau": 0.05, "solver": "euler", "grid": "uniform", "steps": 10},
    },
    "clean source: the latent collapses": {"pair": 0, "view": 0, "clean": True, "knobs": {"tau": 0.02}},
    "an object that no training head has": {"pair": 0, "view": -1, "clean": False, "knobs": {"tau": 0.02}},
}  # fmt: skip


def explorer_plans(profile: Profile, made: Mapping[str, Plan]) -> dict[str, Plan]:
    """The plans of ``explorer views`` and of the ``lattice``.

    Args:
        profile: how large everything is.
        made: plans of ``views``, whose views these are, and of ``network``.
    """
    if profile.source == "folders":
        return {}
    own = profile.explorer
    arguments = {**made["views"].arguments, "shown": own.shown}
    views = Plan("shown", "medshift.stages.shown_views", arguments, {}, "projecting the views to explore")
    dials = {
        "pairs": [list(pair) for pair in SHOWN_PAIRS],
        "shown": own.shown,
        "taus": own.taus,
        "scales": own.scales,
        "failures": FAILURES,
    }
    inputs = {"views": views, "network": made["network"]}
    lattice = Plan("lattice", "medshift.stages.lattice", dials, inputs, "translating at every setting of the dials")
    return {"explorer views": views, "lattice": lattice}


def pretrained(profile: Profile, made: Mapping[str, Plan]) -> Plan:
    """The plan of the profile's network: shipped where there are weights of its recipe, else trained here."""
    return shipped_plan(profile, NETWORK, made["network"]) or made["network"]
