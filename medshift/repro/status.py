"""Say what of a profile is fresh, what is stale and why, and what to run next. Builds, fetches and draws nothing."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medshift.errors import DataError
from medshift.repro.parameters import Parameters, check
from medshift.repro.profiles import Profile
from medshift.repro.provenance import hardware, versions
from medshift.repro.receipts import Task
from medshift.repro.run import plans_of, profile_of
from medshift.repro.runner import paper_tasks
from medshift.repro.stage import Plan, Stage

OFFLINE = "MEDSHIFT_OFFLINE"
NO_CT = """The head CT is not in the cache, so all below is for the phantom. A run fetches the CT where it can; then
everything is made from it anew."""
UNEXPLAINED = ("never built", "begun")  # reasons of a `Plan` that are no change


def report(profile: str, *, out_dir: str = ".", data: str = "", seed: int = 0, overrides: str = "") -> str:
    """Stages and notebooks of a profile with their states, and the next command.

    Args:
        profile: its name, or ``auto``.
        out_dir: holds runs/ and build/; neither need exist.
        data: folder of the user's own images, or empty.
        seed: of every random number.
        overrides: settings of the profile to change, separated by spaces.

    Raises:
        ParameterError: a name or a value is wrong, or the profile needs a folder of images and none is given.
    """
    values: dict[str, Any] = {"profile": profile, "data": data, "seed": seed, "overrides": overrides}
    parameters = check(Parameters, values | {"out_dir": out_dir}, "status")
    made = profile_of(parameters)
    values["profile"] = made.name
    forbidden = bool(os.environ.get(OFFLINE))
    with offline():
        try:
            tasks = paper_tasks(out_dir=out_dir, **values)
            plans = plans_of(parameters, made)
        except DataError as error:
            following = _command("data", values, out_dir) if made.source == "cranium" else "medshift doctor"
            return f"Profile {made.name}: not all it is made from is here. {error}\nNext: {following}"
        stages = [(name, plan.folder_name, _stage(plan, tasks[0].runs)) for name, plan in _all(plans)]
        notebooks = [(one.notebook.stem, _notebook(one)) for one in tasks]
    lines = [f"Profile {made.name}, seed {seed}"]
    if not forbidden and _without_ct(made, plans):
        lines.append(NO_CT)
    lines += [f"Stages in {tasks[0].runs}:", *_table(stages)]
    lines += [f"Notebooks in {tasks[0].folder}:", *_table(notebooks)]
    if any(state != "fresh" for _, state in notebooks):
        lines.append(f"Next: {_command('paper', values, out_dir)}")
    elif tasks[0].folder.name == made.name:
        lines.append(f"Nothing has to run. Next: {_command('publish', {'profile': made.name}, out_dir)}")
    else:
        lines.append("Nothing has to run.")
    return "\n".join(lines)


@contextmanager
def offline() -> Iterator[None]:
    """Forbid every download inside the block and leave the environment as it was."""
    from medshift.data.ct import log

    before, disabled = os.environ.get(OFFLINE), log.disabled
    os.environ[OFFLINE], log.disabled = "1", True  # its warning would tell of a download nobody asked for
    try:
        yield
    finally:
        log.disabled = disabled
        if before is None:
            del os.environ[OFFLINE]
        else:
            os.environ[OFFLINE] = before


def _without_ct(profile: Profile, plans: Mapping[str, Plan]) -> bool:
    """Whether a profile that would take the CT stands here on the phantom."""
    return profile.source == "auto" and plans["views"].arguments["source"] == "phantom"


def _all(plans: Mapping[str, Plan]) -> Iterator[tuple[str, Plan]]:
    """Name and plan of every stage once, inputs before what reads them; an input without a name is its reader's."""
    names = {plan.folder_name: name for name, plan in reversed(list(plans.items()))}
    seen: dict[str, tuple[str, Plan]] = {}
    for reader, plan in plans.items():
        for one in plan.chain():
            name = names.get(one.folder_name, f"{one.name} of {reader}")
            seen.setdefault(one.folder_name, (name, one))
    yield from seen.values()


def _stage(plan: Plan, runs: Path) -> str:
    try:
        found = plan.find(runs)
        if found is None:
            reason = plan.reason(runs)
            return reason if reason.startswith(UNEXPLAINED) else f"stale: {reason}"
    except DataError as error:
        return f"damaged: {error}"
    return "fresh, " + ", ".join([f"made in {found.seconds / 60:.1f} min", *_elsewhere(found)])


def _notebook(one: Task) -> str:
    try:
        reason = one.stale()
    except DataError as error:
        return f"damaged: {error}"
    return f"stale: {reason}" if reason and reason != "never run" else reason or "fresh"


def _elsewhere(stage: Stage) -> Iterator[str]:
    """``made elsewhere (…)`` with all that is otherwise here, where something is."""
    try:
        held = json.loads((stage.folder / "env.json").read_text())
        packages, machine = dict(held["packages"]), dict(held["hardware"])
    except (OSError, ValueError, KeyError, TypeError):
        yield "made nobody knows where"
        return
    here = versions(name for name in packages if name != "python")
    gpus = _gpus() if "gpu" in machine else []
    here |= {name: str(value) for name, value in hardware("cpu").items() if name != "device"}
    here |= {"gpu": machine["gpu"] if machine.get("gpu") in gpus else ", ".join(gpus)}
    there = {name: str(value) for name, value in (packages | machine).items() if name != "device"}
    other = [f"{n} {value}, here {here.get(n) or 'none'}" for n, value in there.items() if value != here.get(n)]
    if other:
        yield f"made elsewhere ({'; '.join(other)})"


def _gpus() -> list[str]:
    """Names of this machine's NVIDIA GPUs, asked of the driver: torch takes seconds to load."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.split("\n")[:-1]
    except (OSError, subprocess.SubprocessError):
        return []


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    for row in rows:
        yield "  " + "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]])


def _command(name: str, values: Mapping[str, Any], out_dir: str) -> str:
    """The command line of a `medshift` command with these values, those at their defaults left out."""
    words = ["medshift", name, "--profile", str(values["profile"])]
    for option, key in (("--data", "data"), ("--seed", "seed"), ("--set", "overrides")):
        if values.get(key):
            words += [option, str(values[key])]
    return shlex.join(words + (["--out", out_dir] if out_dir != "." else []))
