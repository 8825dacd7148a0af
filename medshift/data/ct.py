"""Which head CT is in use: the user's own, or Debian's, fetched with apt and verified.

Torch-free, so a command line can ask for it at once. The CT is an adult's head from the package `invesalius-examples`;
it belongs to InVesalius and is under GPL-2. `MEDSHIFT_CT` names another one in its place; `MEDSHIFT_OFFLINE` forbids
the download.
"""

import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from medshift.data.archives import project_bytes
from medshift.errors import DataError

log = logging.getLogger(__name__)

PACKAGE = "invesalius-examples"
FILE = "Cranium.inv3"
SHA256 = "3b34f11f7c4f557f4c65cd6543c412a2f6ceb0cfecfd9c41184420e02d9b7e2a"
APT_SECONDS = 300
OWN_CT = "Or set MEDSHIFT_CT to a head CT of your own: a .deb, .inv3, .nii or .nii.gz file or a DICOM folder."


@dataclass(frozen=True)
class HeadSource:
    """Where heads come from.

    Args:
        name: ``cranium`` (Debian's CT), ``user`` (the one `MEDSHIFT_CT` names) or ``phantom``.
        sha256: of the CT's files; empty for the phantom, which is made by code.
    """

    name: str
    sha256: str


def head_source(wanted: str) -> HeadSource:
    """What ``auto``, ``cranium`` or ``phantom`` stands for here and now; fetches the CT where it has to.

    ``auto`` takes the CT where it can be had, else the phantom, and says so in the log. ``cranium`` is a CT or an
    error, and so is one that `MEDSHIFT_CT` names.

    Raises:
        DataError: the CT cannot be had.
    """
    if wanted == "phantom":
        return HeadSource("phantom", "")
    own = os.environ.get("MEDSHIFT_CT")
    if own:
        return _own_source(Path(own))
    try:
        fetch()
    except DataError as error:
        if wanted == "cranium":
            raise
        log.warning("The head CT cannot be had (%s) Using the procedural phantom instead.", error)
        return HeadSource("phantom", "")
    return HeadSource("cranium", SHA256)


def _own_source(path: Path) -> HeadSource:
    """A .deb or .inv3 whose project is Debian's CT, bit for bit, is known as such wherever it lies."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise DataError(f"MEDSHIFT_CT names {path}, which is not there or empty. {OWN_CT}")
    if path.suffix in (".deb", ".inv3"):
        found = hashlib.sha256(project_bytes(path)).hexdigest()
        return HeadSource("cranium" if found == SHA256 else "user", found)
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return HeadSource("user", digest.hexdigest())


def fetch(cache: Path | None = None) -> Path:
    """Obtain the CT's file once and keep it; needs apt and a Debian archive, but no root.

    The file appears under its name only whole and verified, so that processes may fetch at the same time.

    Args:
        cache: Folder that keeps it; default `MEDSHIFT_CACHE` or `~/.cache/medshift`.

    Returns:
        The path of `Cranium.inv3`, whose SHA-256 has been checked.

    Raises:
        DataError: apt is missing or fails, the disk cannot be written, or the file is not the one expected.
    """
    folder = Path(cache or os.environ.get("MEDSHIFT_CACHE") or Path.home() / ".cache" / "medshift")
    target = folder / FILE
    if target.is_file():
        _verify(project_bytes(target), target, f"Delete {target} and run again to fetch it anew.")
        return target
    if os.environ.get("MEDSHIFT_OFFLINE"):
        raise DataError(f"{target} is not there and nothing may be downloaded; run once without `offline`. {OWN_CT}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as private:
            blob = project_bytes(_download(Path(private)))
            _verify(blob, Path(PACKAGE), f"The archive holds another version of the package. {OWN_CT}")
            fresh = Path(private) / FILE
            fresh.write_bytes(blob)
            os.replace(fresh, target)
    except OSError as error:
        raise DataError(
            f"{folder}: cannot keep the head CT there ({error.strerror}); free 100 MB or set MEDSHIFT_CACHE "
            "to another folder."
        ) from error
    return target


def _verify(blob: bytes, path: Path, remedy: str) -> None:
    found = hashlib.sha256(blob).hexdigest()
    if found != SHA256:
        raise DataError(f"{path}: {FILE} has SHA-256 {found}; expected {SHA256}. {remedy}")


def _download(private: Path) -> Path:
    """Download the package into `private` with the system's package lists, else with lists of our own."""
    if shutil.which("apt-get") is None:
        raise DataError(f"{FILE} comes with Debian's package {PACKAGE}, but this machine has no apt-get. {OWN_CT}")
    options = {
        "Dir::Cache": str(private / "cache"),
        "Acquire::Languages": "none",
        "Acquire::PDiffs": "false",
        "Acquire::Retries": "2",
        "Acquire::http::Timeout": "30",
        "Acquire::https::Timeout": "30",
    }
    if os.geteuid() == 0:
        options["APT::Sandbox::User"] = "root"  # apt's own user could not write into a private folder
    for folder in ("cache/archives/partial", "lists/partial"):
        (private / folder).mkdir(parents=True)
    _apt(["download", PACKAGE], options, private)
    if not list(private.glob("*.deb")):
        options["Dir::State::Lists"] = str(private / "lists")
        _apt(["update"], options, private)  # may fail for a source that is of no concern here
        _apt(["download", PACKAGE], options, private)
    packages = list(private.glob("*.deb"))
    if not packages:
        log = (private / "log").read_text(errors="replace").strip().splitlines()
        why = next((line for line in reversed(log) if line.startswith("E:")), log[-1] if log else "no message")
        raise DataError(
            f"apt-get cannot download {PACKAGE}, which holds {FILE} ({why}). Check the network and that apt "
            f"knows a Debian archive. {OWN_CT}"
        )
    return packages[0]


def _apt(arguments: list[str], options: dict[str, str], private: Path) -> None:
    """Run apt-get in `private`; its messages go to a file, as its children may outlive it and hold a pipe."""
    command = ["apt-get", "-q", "-y", *(f"-o{key}={value}" for key, value in options.items()), *arguments]
    with (private / "log").open("ab") as log:
        try:
            subprocess.run(
                command,
                cwd=private,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                timeout=APT_SECONDS,
                check=False,
                env=os.environ | {"LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"},
            )
        except subprocess.TimeoutExpired:
            log.write(f"\nE: no answer within {APT_SECONDS} s\n".encode())
