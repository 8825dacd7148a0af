"""What a figure can say of itself: how it was made, from what, and the command that makes it again.

The *stamp* stands inside every PNG, PDF and SVG: notebook, parameters, seed, keys of the stages, data set and weights
with their hashes. It holds no clock, no machine and no commit, so the same inputs give the same bytes. The sidecar
beside the figure adds what differs from run to run: commit, versions, hardware, minutes.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from medshift.errors import DataError
from medshift.repro.keys import package_version
from medshift.repro.values import parse_pairs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("medshift", "torch", "torchvision", "diffusers", "torchdiffeq", "numpy", "scipy", "matplotlib", "xraydb")
PICTURES = (".png", ".pdf", ".svg")
DUBLIN_CORE = "{http://purl.org/dc/elements/1.1/}description"


@lru_cache(maxsize=1)
def commit() -> dict[str, object]:
    """The commit of this checkout and the files that differ from it; ``{"id": "unknown"}`` outside of git."""
    try:
        head, changed = (
            subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout
            for arguments in (["rev-parse", "HEAD"], ["status", "--porcelain"])
        )
    except (OSError, subprocess.CalledProcessError):
        return {"id": "unknown"}
    return {"id": head.strip(), "changed files": [line[3:] for line in changed.splitlines()]}


def versions(names: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Installed versions of packages, and of Python."""
    found = {name: version for name in names if (version := package_version(name))}
    return {"python": platform.python_version()} | found


def hardware(device: str) -> dict[str, object]:
    """What this ran on, without names of machines or users."""
    found: dict[str, object] = {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "device": device,
    }
    if device.startswith("cuda"):
        import torch

        found["gpu"] = torch.cuda.get_device_name(device)
    return found


def save_figure(
    figure: Figure, folder: Path, name: str, stamp: Mapping[str, Any], sidecar: Mapping[str, Any]
) -> dict[str, Path]:
    """Write a figure as PNG, PDF and SVG with the stamp inside, and a JSON sidecar with more; by suffix.

    Same figure and stamp, same bytes for PDF and SVG.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(stamp, sort_keys=True)
    metadata: dict[str, dict[str, Any]] = {
        ".png": {"Description": text, "Software": "medshift"},
        ".pdf": {"Keywords": text, "Creator": "medshift", "Producer": "matplotlib", "CreationDate": None},
        ".svg": {"Description": text, "Creator": "medshift", "Date": None},
    }
    paths = {suffix: folder / f"{name}{suffix}" for suffix in PICTURES}
    for suffix, path in paths.items():
        figure.savefig(path, metadata=metadata[suffix])
    paths[".json"] = _write_sidecar(folder / f"{name}.json", stamp, sidecar)
    return paths


def save_table(
    markdown: str, csv: str, folder: Path, name: str, stamp: Mapping[str, Any], sidecar: Mapping[str, Any]
) -> dict[str, Path]:
    """Write a table as Markdown and CSV, and a sidecar ``<name>.table.json``; by suffix."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {".md": folder / f"{name}.md", ".csv": folder / f"{name}.csv"}
    paths[".md"].write_text(markdown, encoding="utf-8")
    paths[".csv"].write_text(csv, encoding="utf-8")
    return paths | {".json": _write_sidecar(folder / f"{name}.table.json", stamp, sidecar)}


def _write_sidecar(path: Path, stamp: Mapping[str, Any], more: Mapping[str, Any]) -> Path:
    made = {"stamp": dict(stamp), "commit": commit(), "versions": versions(), **more}
    path.write_text(json.dumps(made, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def read_stamp(path: Path) -> dict[str, Any]:
    """The stamp inside a PNG, PDF or SVG, or in the sidecar of a table.

    Raises:
        DataError: no such file, of another kind, damaged, or without a stamp.
    """
    readers = {".png": _png_text, ".pdf": _pdf_text, ".svg": _svg_text, ".csv": _table_text, ".md": _table_text}
    if not path.is_file():
        raise DataError(f"{path}: there is no such file; give a figure (PNG, PDF, SVG) or a table (CSV, MD).")
    if path.suffix not in readers:
        raise DataError(f"{path}: {path.suffix or 'no suffix'} is not a kind this reads; give {', '.join(readers)}.")
    try:
        stamp = json.loads(readers[path.suffix](path))
        if not isinstance(stamp, dict) or "notebook" not in stamp:
            raise ValueError("no stamp inside")
    except Exception as error:  # whatever a damaged file makes its reader raise
        raise DataError(
            f"{path} carries no stamp of this companion ({error}); only its own figures can say how they were made."
        ) from None
    return stamp


def _png_text(path: Path) -> str:
    from PIL import Image

    with Image.open(path) as image:
        return str(image.info["Description"])


def _pdf_text(path: Path) -> str:
    from pypdf import PdfReader

    return str(dict(PdfReader(path).metadata or {})["/Keywords"])


def _svg_text(path: Path) -> str:
    found = ElementTree.parse(path).find(f".//{DUBLIN_CORE}")
    return (found.text if found is not None else "") or ""


def _table_text(path: Path) -> str:
    return json.dumps(json.loads(path.with_suffix(".table.json").read_text(encoding="utf-8"))["stamp"])


def read_sidecar(path: Path) -> dict[str, Any] | None:
    """What stands beside a figure or table, or None where it was copied without it.

    Raises:
        DataError: it is there and damaged.
    """
    sidecar = path.with_suffix(".json" if path.suffix in PICTURES else ".table.json")
    try:
        return dict(json.loads(sidecar.read_text(encoding="utf-8"))) if sidecar.is_file() else None
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{sidecar} cannot be read ({error}); delete it, or run the notebook again.") from None


def command_of(stamp: Mapping[str, Any]) -> str:
    """The command that makes a figure again, to be run in a checkout of the companion."""
    words = ["medshift", "run", f"notebooks/{stamp['notebook']}.ipynb"]
    for name, value in stamp["parameters"].items():
        words += ["-p", name, _as_argument(value)]
    return shlex.join(words)


def _as_argument(value: Any) -> str:
    """A value as ``-p`` reads it, which is YAML: text stands bare where it is read as itself, else in quotes."""
    if isinstance(value, str):
        bare = not value.startswith("-") and parse_pairs([("value", value)])["value"] == value
        return value if bare else _yaml(value, default_style='"')
    text = _yaml(value, default_flow_style=True)
    return f'"{text}"' if text.startswith("-") else text  # which the command line would take for an option


def _yaml(value: Any, **style: Any) -> str:
    return yaml.safe_dump(value, width=float("inf"), **style).removesuffix("\n").removesuffix("\n...")
