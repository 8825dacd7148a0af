"""The head CT of Debian's package `invesalius-examples`: fetched with apt, verified, cleaned, with landmarks.

The CT, an adult's head from the teeth to above the vertex with a defect of the right frontal bone, belongs to
InVesalius and is under GPL-2, and so is what is derived from it. `MEDSHIFT_CT` may name another CT in its place.
"""

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from medshift.data.archives import project_bytes
from medshift.data.body import isolate_head
from medshift.data.readers import head_of_scan, read_volume, scan_of_project
from medshift.data.volume import HeadVolume, from_hounsfield
from medshift.errors import DataError

PACKAGE = "invesalius-examples"
FILE = "Cranium.inv3"
SHA256 = "3b34f11f7c4f557f4c65cd6543c412a2f6ceb0cfecfd9c41184420e02d9b7e2a"
APT_SECONDS = 300
OWN_CT = "Or set MEDSHIFT_CT to a head CT of your own: a .deb, .inv3, .nii or .nii.gz file or a DICOM folder."

# World positions (x, y, z) [mm], read on axial, coronal and sagittal slices drawn through each point and moved
# until it sat on its structure in all three, to about 2 mm. On bone they lie on the outer surface, near 350 HU.
LANDMARKS: dict[str, tuple[float, float, float]] = {
    "nasion": (1.5, -78.0, -9.0),  # deepest point of the midline profile between frontal and nasal bones
    "glabella": (
        1.1,
        -82.0,
        2.0,
    ),  # most anterior point of the frontal bone in the midline, between the brows
    "anterior_nasal_spine": (3.8, -83.0, -58.5),  # tip of the spine; the nasal floor deviates to the left
    "orbit_right": (-26.0, -58.0, -18.5),  # centre of the eyeball, seen in a soft-tissue window
    "orbit_left": (
        31.0,
        -58.5,
        -16.0,
    ),  # the same; the right eye stands lower, below the defect of the frontal bone
    "orbitale_right": (-28.0, -62.5, -38.0),  # lowest point of the infraorbital rim
    "orbitale_left": (30.5, -67.0, -35.0),  # the same
    "porion_right": (-53.0, 9.0, -44.5),  # roof of the bony external auditory meatus at its outer end
    "porion_left": (59.0, 10.0, -44.5),  # the same
    "zygion_right": (-60.8, -30.0, -39.5),  # most lateral point of the zygomatic arch
    "zygion_left": (65.8, -23.0, -38.5),  # the same
    "mastoid_right": (-52.0, 16.5, -69.0),  # tip of the mastoid process
    "mastoid_left": (57.5, 18.0, -66.5),  # the same
    "sella": (1.5, -5.5, -27.0),  # centre of the pituitary fossa, before the dorsum sellae
    "basion": (1.5, 11.0, -64.5),  # lower end of the clivus, the anterior rim of the foramen magnum
    "bregma": (1.2, 6.5, 73.5),  # where coronal and sagittal sutures meet
    "vertex": (3.4, 17.0, 74.6),  # highest point of bone; flat there, so x and y are good to 5 mm only
    "lambda": (1.5, 104.5, -5.0),  # apex of the lambdoid suture
    "opisthocranion": (2.0, 105.5, -16.0),  # most posterior bone in the midline; flat, z is good to 5 mm only
    "inion": (2.5, 86.5, -68.5),  # tip of the external occipital protuberance, here a hook
}


def cranium(*, cache: Path | None = None) -> HeadVolume:
    """The head CT as densities: Debian's, or the one that the environment variable `MEDSHIFT_CT` names.

    Args:
        cache: Folder that keeps the CT; default `MEDSHIFT_CACHE` or `~/.cache/medshift`.

    Returns:
        Source "cranium" with `LANDMARKS` for Debian's CT, else source "user" without landmarks.

    Raises:
        DataError: The CT cannot be had, or is damaged.
    """
    return load(cache=cache)


def load(path: str | Path | None = None, *, cache: Path | None = None) -> HeadVolume:
    """The head CT at `path`, else at `MEDSHIFT_CT`, else Debian's; see `cranium`.

    A .deb or .inv3 whose project is Debian's CT, bit for bit, is known as such wherever it lies.
    """
    path = Path(path or os.environ.get("MEDSHIFT_CT") or fetch(cache))
    if path.suffix not in (".deb", ".inv3") or not path.is_file():
        return read_volume(path)
    blob = project_bytes(path)
    scan = scan_of_project(blob, path)
    if hashlib.sha256(blob).hexdigest() != SHA256:
        return head_of_scan(scan, path)
    hu, cut = isolate_head(scan.hu, scan.spacing, name=str(path))
    return from_hounsfield(hu, scan.spacing, landmarks=LANDMARKS, cut=cut, source="cranium", name="cranium")


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
