"""Look at this machine: what is missing, what that costs, and the command that mends it. Mends and fetches nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from importlib import metadata, util
from pathlib import Path

from medshift.data import ct
from medshift.errors import DataError
from medshift.repro import machine
from medshift.repro.machine import SETUP, Check
from medshift.repro.provenance import ROOT, commit
from medshift.repro.status import offline

LOCK = "requirements.lock"
ALEXNET = "alexnet-owt-*.pth"
FETCH_ALEXNET = """.venv/bin/python -c "import torchvision.models as m; m.alexnet(weights='DEFAULT')\""""
AUTOENCODER = "weights/sd-vae-ft-mse"
AUTOENCODER_FILES = ("config.json", "diffusion_pytorch_model.safetensors")
SHOWN = 4  # packages of other versions that are named


def examine(out: Path) -> str:
    """A table of everything the companion needs or can use, one line each.

    Args:
        out: folder where runs/ and build/ would go; it need not exist, and is not made.
    """
    checks = [
        machine.python(),
        machine.torch_pair(),
        machine.gpu(),
        machine.bf16(),
        machine.memory(),
        machine.fonts(),
        machine.kernel(),
        machine.disk(out),
        machine.writable(out),
        packages(),
        checkout(),
        head_ct(),
        own_images(),
        autoencoder(),
        lpips_weights(),
        st_lpips(),
    ]
    states, names = max(len(c.state) for c in checks), max(len(c.name) for c in checks)
    lines = []
    for one in checks:
        parts = [one.found, one.costs and f"costs: {one.costs}", one.mend and f"mend: {one.mend}"]
        lines.append(f"{one.state:<{states}}  {one.name:<{names}}  {' | '.join(filter(None, parts))}")
    bad = sum(one.state != "OK" for one in checks)
    return "\n".join([*lines, f"{len(checks) - bad} of {len(checks)} OK." if bad else "Everything is here."])


def head_ct() -> Check:
    """The head CT in the cache, or the one that MEDSHIFT_CT names."""
    name, own = "head CT", os.environ.get("MEDSHIFT_CT")
    folder = Path(os.environ.get("MEDSHIFT_CACHE") or Path.home() / ".cache" / "medshift")
    there = own or (folder / ct.FILE).is_file()
    try:
        with offline():
            source = ct.head_source("cranium")
    except (DataError, OSError) as error:
        if own:
            return Check(
                "warning", name, str(error), "profiles cpu and gpu do not run", "unset MEDSHIFT_CT, or mend it"
            )
        if there:
            return Check("warning", name, str(error), "profiles cpu and gpu fall back on the phantom")
        costs = "the phantom takes its place"
        if shutil.which("apt-get"):
            return Check("missing", name, f"not in {folder}", costs, "medshift data (fetches it with apt-get)")
        return Check("missing", name, f"not in {folder}, and no apt-get", costs, ct.OWN_CT.removeprefix("Or "))
    return Check("OK", name, f"{'MEDSHIFT_CT' if own else folder / ct.FILE} ({source.name})")


def own_images() -> Check:
    """Images of the user's own, which no one but the user knows the place of."""
    return Check("OK", "own images", "needed by PROFILE=paper alone: X-DigiSkull or others, as DATA=folder")


def autoencoder() -> Check:
    """The pretrained autoencoder of the paper profile."""
    lacking = [file for file in AUTOENCODER_FILES if not (ROOT / AUTOENCODER / file).is_file()]
    if lacking:
        mend = f"hf download stabilityai/sd-vae-ft-mse {' '.join(AUTOENCODER_FILES)} --local-dir {AUTOENCODER}"
        found = f"no {' and '.join(lacking)} in {AUTOENCODER} of the checkout"
        return Check("missing", "sd-vae-ft-mse", found, "the paper profile", f".venv/bin/{mend}")
    return Check("OK", "sd-vae-ft-mse", f"in {AUTOENCODER}")


def lpips_weights() -> Check:
    """AlexNet's weights in torch hub's cache; LPIPS's own come with its package."""
    name, costs = "LPIPS", "the columns of LPIPS"
    if util.find_spec("lpips") is None or machine.problem("torch"):
        return Check("missing", name, "the package lpips, or torch, is missing", costs, SETUP)
    import torch

    folder = Path(torch.hub.get_dir()) / "checkpoints"
    if not list(folder.glob(ALEXNET)):
        return Check("missing", name, f"no AlexNet weights in {folder}", costs, FETCH_ALEXNET)
    return Check("OK", name, f"AlexNet weights in {folder}")


def st_lpips() -> Check:
    """The shift-tolerant LPIPS, whose weights come with its package."""
    if util.find_spec("stlpips_pytorch") is None:
        costs = "training the autoencoder, the columns of ST-LPIPS"
        return Check("missing", "ST-LPIPS", "the package stlpips-pytorch is missing", costs, SETUP)
    return Check("OK", "ST-LPIPS", f"stlpips-pytorch {metadata.version('stlpips-pytorch')}")


def checkout() -> Check:
    """Whether figures can name the commit they come from."""
    known = commit()
    if known["id"] == "unknown":
        costs = "figures cannot name their commit"
        return Check("missing", "git commit", f"{ROOT} is no git checkout, or git is missing", costs, "git clone")
    changed = known.get("changed files")
    n = len(changed) if isinstance(changed, list) else 0
    return Check("OK", "git commit", f"{known['id']}" + (f", {n} files changed" if n else ""))


def packages() -> Check:
    """Whether the installed packages are those of requirements.lock."""
    path = ROOT / LOCK
    costs = "results may differ"
    if not path.is_file():
        return Check("missing", "packages", f"no {LOCK} in {ROOT}", costs, "install from a checkout with `make setup`")
    wrong = other_versions(path.read_text(encoding="utf-8").splitlines())
    if wrong:
        more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        return Check("warning", "packages", f"not as in {LOCK}: {', '.join(wrong[:SHOWN])}{more}", costs, SETUP)
    return Check("OK", "packages", f"as in {LOCK}")


def other_versions(lines: Iterable[str]) -> list[str]:
    """``name 1.2 (locked 1.3)`` for every line of a lock that is for this machine and is not what is installed."""
    from packaging.requirements import Requirement

    found = []
    for requirement in (Requirement(line) for line in lines if line.strip()):
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        try:
            version = metadata.version(requirement.name).partition("+")[0]
        except metadata.PackageNotFoundError:
            version = "absent"
        if version == "absent" or not requirement.specifier.contains(version, prereleases=True):
            found.append(f"{requirement.name} {version} (locked {str(requirement.specifier).lstrip('=')})")
    return found
