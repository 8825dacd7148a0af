"""The plan of a profile: which stages there are, what decides each, and what each reads. One page, no torch.

Notebooks call ``run.stage("network")``; the command line asks the same plans whether they are fresh.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medshift.repro.profiles import Profile, require_data
from medshift.repro.stage import Plan

# What a training ablation may change, with the values that change nothing.
TRAINING: Mapping[str, Any] = {
    "width": 1.0,
    "images": 0,
    "echo": 0,
    "sigma_min": 0.0,
    "label_dropout": 0.1,
    "time_law": "logit-normal-mixed",
    "codec": "",
    "codec_factor": 0,
}


def plans(
    profile: Profile, *, seed: int = 0, data: str = "", network: Plan | None = None, **notebook: Any
) -> dict[str, Plan]:
    """All stages of a profile by name.

    Args:
        profile: how large everything is.
        seed: of every random number.
        data: folder of the user's own images, or empty.
        network: the plan that gives the network, where that is not its training here.
        notebook: parameters of a notebook that decide a stage: ``tau_grid`` and ``guidance`` of the trade-off.

    Raises:
        ParameterError: the profile needs a folder of images and none is given.
        DataError: the CT or the folder cannot be had.
    """
    views = _folders(profile, seed, data) if profile.source == "folders" else views_plan(profile, seed=seed)
    autoencoder = Plan(
        "autoencoder",
        "medshift.stages.autoencoder",
        {**profile.kl.model_dump(), "seed": seed},
        {"views": views},
        "training the autoencoder",
    )
    codec = codec_plan(profile, views, autoencoder)
    base = {"views": views, "autoencoder": autoencoder, "codec": codec}
    network = network or train_plan(profile, base, seed=seed)
    tradeoff = {**profile.tradeoff.model_dump(), "seed": seed, "guidance": notebook.get("guidance", 1.0)}
    if notebook.get("tau_grid"):
        tradeoff["taus"] = list(notebook["tau_grid"])
    study = Plan("tradeoff", "medshift.stages.tradeoff", tradeoff, {"views": views, "network": network}, "evaluating")
    return base | {"network": network, "tradeoff": study}


def train_plan(profile: Profile, base: Mapping[str, Plan], *, seed: int, **changes: Any) -> Plan:
    """The training of the profile's network, or of one that differs from it in some of `TRAINING`.

    Args:
        profile: how large it is.
        base: plans of ``views``, ``codec`` and ``autoencoder``.
        seed: of every random number.
        changes: values of `TRAINING`.

    Raises:
        ParameterError: the profile leaves the micro-batches to this machine, and its GPU does not hold one image.
    """
    codec = base["codec"]
    changes = {name: value for name, value in changes.items() if value != TRAINING[name]}
    kind, factor = changes.pop("codec", ""), changes.pop("codec_factor", 0)
    if kind or factor:
        codec = codec_plan(profile, base["views"], base["autoencoder"], kind=kind, factor=factor)
    arguments, note = {**profile.train.model_dump(), **changes, "seed": seed}, ""
    if arguments["echo"] == 1:  # the weights are those of a recipe that knows of none
        del arguments["echo"]
    if arguments["accumulation"] == "auto":
        from medshift.repro.accumulation import fitted

        latents = {name: codec.arguments[name] for name in ("kind", "factor")}
        arguments["accumulation"], note = fitted(profile, width=changes.get("width", 1.0), **latents)
    inputs = {"views": base["views"], "codec": codec}
    return Plan("network", "medshift.stages.network", arguments, inputs, "training the network", note=note)


def views_plan(profile: Profile, *, seed: int, source: str = "") -> Plan:
    """The views of a profile, of its own heads or of those from another ``source``."""
    from medshift.data.ct import head_source

    found = head_source(source or profile.source)
    arguments = {
        "source": found.name,
        "sha256": found.sha256,
        "size": profile.size,
        "heads": profile.heads.model_dump(),
        "views": profile.views.model_dump(),
        "seed": seed,
    }
    return Plan("views", "medshift.stages.views", arguments, {}, "projecting views")


def _folders(profile: Profile, seed: int, data: str) -> Plan:
    require_data(profile, data)
    from medshift.stages.folders import listing
    from medshift.stages.images import folder_set

    arguments = {**listing(folder_set(data, profile.size)), "size": profile.size, "seed": seed}
    return Plan("folders", "medshift.stages.folders", arguments, {}, "reading images")


def codec_plan(profile: Profile, views: Plan, autoencoder: Plan, *, kind: str = "", factor: int = 0) -> Plan:
    """The codec of a profile, or one of another kind or factor."""
    arguments = profile.codec.model_dump()
    arguments |= {"kind": kind or arguments["kind"], "factor": factor or arguments["factor"]}
    inputs = {"views": views}
    if arguments["kind"] == "kl":
        inputs["autoencoder"] = autoencoder
    if arguments["kind"] == "pretrained":
        from medshift.stages.codec import weights_of

        arguments["weights"] = weights_of(arguments["folder"])
    return Plan("codec", "medshift.stages.codec", arguments, inputs, "measuring latents")
