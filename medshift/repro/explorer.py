"""The plans behind 99_explorer: a few views, and their translations at every setting of its dials. No torch.

And `pretrained`: the profile's network from the weights that the repository ships, where these were trained by the
profile's very recipe on its very data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medshift.errors import ParameterError
from medshift.repro.comparison import shipped_plan
from medshift.repro.evidence import PAIRS
from medshift.repro.profiles import Profile
from medshift.repro.stage import Plan

if TYPE_CHECKING:
    from medshift.repro.run import Run

NETWORK = "medshift"  # what the shipped weights of the profile's network are called
SHOWN_PAIRS = PAIRS[:4]
EXPLORER_STAGES = ("explorer views", "lattice")

# By names that `medshift.results.explorer` has titles and lessons for. View 0 is an unseen head, the last one has an
# object that no training head has.
_OWN: Mapping[str, Mapping[str, Any]] = {
    "tau too low": {"pair": 3, "view": "most invented", "knobs": {"tau": 0.0}},
    "tau too high": {"knobs": {"tau": 0.85}},
    "guidance too high": {"knobs": {"tau": 0.3, "guidance": 6.0}},
    "guidance on one leg": {"knobs": {"tau": 0.1, "guidance": [1.0, 4.0]}},
    "too few steps": {"knobs": {"tau": 0.05, "solver": "euler", "grid": "uniform", "steps": 10}},
    "clean source": {"clean": True, "knobs": {"tau": 0.02}},
    "unseen object": {"view": -1, "untouched": True, "knobs": {"tau": 0.02}},
}
FAILURES = {name: {"pair": 0, "view": 0, "clean": False, "untouched": False, **own} for name, own in _OWN.items()}


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
    of_heads = {name: arguments[name] for name in ("source", "sha256", "size")}
    bare = Plan("untouched", "medshift.stages.untouched", of_heads, {"views": views}, "projecting without inserts")
    inputs = {"views": views, "untouched": bare, "network": made["network"]}
    lattice = Plan("lattice", "medshift.stages.lattice", dials, inputs, "translating at every setting of the dials")
    return {"explorer views": views, "lattice": lattice}


def explorer_folders(run: Run) -> tuple[Path, Path]:
    """Where the finished network and the finished lattice of 99_explorer lie, built first where there are none.

    Raises:
        ParameterError: the run is on images of one's own, whose truth nobody knows.
    """
    if run.profile.source == "folders":
        raise ParameterError(
            f"{run.notebook} needs the truth of rendered views, which your own images do not have; leave `data` empty, "
            "and drop an image of your own into the explorer's box."
        )
    return run.folder("network"), run.folder("lattice")


def pretrained(profile: Profile, made: Mapping[str, Plan]) -> Plan:
    """The plan of the profile's network: shipped where there are weights of its recipe, else trained here.

    Before it trains, it says why and for how long.
    """
    network = made["network"]
    return shipped_plan(profile, NETWORK, network) or replace(network, note=f"{network.note}\n{_why(profile)}".strip())


def _why(profile: Profile) -> str:
    """Why the network is trained though shipped weights were asked for, and how long it takes as far as is known."""
    from medshift.repro.parameters import NOTEBOOKS  # which imports this module

    minutes = NOTEBOOKS["03_train"].minutes.get(profile.name)
    long = f"about {minutes:g} min on two cores with the profile's own settings" if minutes else "hours, on a GPU"
    return (
        f"The repository ships no weights of this network that were trained by the recipe and on the data of profile "
        f"{profile.name}, so it is trained now: {long}. An interrupted training goes on from where it stopped; "
        f"`medshift train --profile {profile.name}` does the same in a terminal."
    )
