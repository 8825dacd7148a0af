"""What a figure or table says of how it was made, for people to read, and the command that makes it again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from medshift.errors import DataError
from medshift.repro.provenance import command_of, read_sidecar, read_stamp

DATA, DATA_HASH = "data set", "data set's SHA-256"
WEIGHTS_HASH = "weights' SHA-256"
OWN_DATA = "your own folders"


def describe(path: Path) -> str:
    """How a figure was made: from the stamp inside it, and from its sidecar where that lies beside it.

    Args:
        path: a PNG, PDF, SVG, CSV or MD file, of this checkout or copied anywhere; a CSV or MD needs its sidecar.

    Raises:
        DataError: no such file, one without a stamp, or a stamp of an older version that names no parameters.
    """
    stamp = read_stamp(path)
    if not isinstance(stamp.get("parameters"), dict):
        raise DataError(
            f"{path} was made by an older version of this companion, whose stamp names no parameters: "
            f"{_pairs(stamp)}. Make it again with `medshift paper`."
        )
    sidecar, complaint = _sidecar(path, stamp)
    facts = dict(stamp.get("facts", {}))
    data = [facts.pop(DATA, ""), _hash(facts.pop(DATA_HASH, ""))]
    rows = [
        ("notebook", f"notebooks/{stamp['notebook']}.ipynb"),
        ("parameters", _pairs({n: v for n, v in stamp["parameters"].items() if n != "seed"})),
        ("seed", ", ".join(map(str, stamp.get("seeds", [stamp["parameters"].get("seed")])))),
        ("data set", ", ".join(filter(None, data)) or "none was read"),
        ("weights", _hash(facts.pop(WEIGHTS_HASH, "")) or "none were used"),
        *facts.items(),
        ("stages", _pairs(stamp.get("stages", {}), " ") or "none"),
        *_beside(sidecar),
    ]
    lines = [str(path)]
    if "caption" in sidecar:
        lines.append(f"  {sidecar['caption']}")
    width = max(len(name) for name, _ in rows)
    lines += [f"  {name:<{width}}  {value}" for name, value in rows]
    lines += [f"  {complaint}"] if complaint else []
    return "\n".join([*lines, *_again(stamp, data[0], sidecar)])


def _sidecar(path: Path, stamp: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """What lies beside the figure, or nothing and why."""
    try:
        sidecar = read_sidecar(path)
    except DataError:
        return {}, "The sidecar beside it is damaged, so nothing is known of its commit and machine."
    if sidecar is None:
        return {}, "No sidecar lies beside it, so nothing is known of its commit and machine."
    if not isinstance(sidecar, dict) or sidecar.get("stamp") != stamp:
        return {}, "The sidecar beside it belongs to another figure and is left aside."
    return sidecar, ""


def _beside(sidecar: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    commit = sidecar.get("commit", {})
    if commit:
        yield "commit", str(commit.get("id", "unknown")) + _with_changes(commit)
    for name in ("versions", "hardware"):
        if name in sidecar:
            yield name, _pairs(sidecar[name], " ")
    minutes = dict(sidecar.get("minutes", {}))
    if minutes:
        stages = minutes.pop("stages", {})
        parts = [_pairs(stages, " ") and f"stages: {_pairs(stages, ' ')}", _pairs(minutes, " ")]
        yield "minutes", "; ".join(filter(None, parts))


def _with_changes(commit: Mapping[str, Any]) -> str:
    """`` with changes in N files``, or nothing."""
    n = len(commit.get("changed files", []))
    return f" with changes in {n} file{'s' if n > 1 else ''}" if n else ""


def _again(stamp: Mapping[str, Any], data: str, sidecar: Mapping[str, Any]) -> Iterator[str]:
    yield "To make it again, in a checkout of the companion:"
    commit = sidecar.get("commit", {})
    if commit.get("id", "unknown") != "unknown":
        yield f"  git checkout {commit['id']}"
    yield f"  {command_of(stamp)}"
    if data == OWN_DATA:
        yield "It was made from images of the user's own: add `-p data FOLDER` with the folder that holds them."
    if _with_changes(commit):
        yield f"It was made{_with_changes(commit)} that the commit does not hold, so it may come out different."


def _hash(value: str) -> str:
    return f"SHA-256 {value}" if len(value) == 64 else value


def _pairs(values: Mapping[str, Any], sign: str = " = ") -> str:
    return ", ".join(f"{name}{sign}{value if value != '' else repr(value)}" for name, value in values.items())
