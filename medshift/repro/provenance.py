"""What a figure can say of itself: where it came from, and on what it was made."""

from __future__ import annotations

import json
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PACKAGES = ("medshift", "torch", "diffusers", "torchdiffeq", "numpy", "scipy", "matplotlib", "xraydb")


def commit() -> str:
    """The commit of this checkout, with ``+changes`` where files differ from it; ``unknown`` outside of git."""
    root = Path(__file__).resolve().parents[2]
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True)
        dirty = subprocess.run(
            ["git", "status", "--porcelain", "-uno"], cwd=root, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("+changes" if dirty.stdout.strip() else "")


def environment() -> dict[str, object]:
    """Versions and hardware, without names of machines or users."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": {name: version(name) for name in PACKAGES},
    }


def save_figure(figure: Figure, folder: Path, name: str, provenance: dict[str, object]) -> Path:
    """Write ``name`` as PNG, PDF and a JSON sidecar; the short form of the provenance stands inside both pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    short = json.dumps({k: provenance[k] for k in ("notebook", "profile", "seed", "source", "stages")}, sort_keys=True)
    figure.savefig(folder / f"{name}.png", metadata={"Description": short, "Software": "medshift"})
    figure.savefig(folder / f"{name}.pdf", metadata={"Keywords": short, "CreationDate": None, "Creator": "medshift"})
    sidecar = provenance | {"environment": environment(), "commit": commit()}
    (folder / f"{name}.json").write_text(json.dumps(sidecar, indent=1, sort_keys=True))
    return folder / f"{name}.png"


def save_table(markdown: str, csv: str, folder: Path, name: str) -> None:
    """Write a table as Markdown and CSV."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.md").write_text(markdown)
    (folder / f"{name}.csv").write_text(csv)
