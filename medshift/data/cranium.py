"""The head CT of Debian's package `invesalius-examples`: cleaned, with landmarks.

The CT, an adult's head from the teeth to above the vertex with a defect of the right frontal bone, belongs to
InVesalius and is under GPL-2, and so is what is derived from it. `MEDSHIFT_CT` may name another CT in its place.
"""

import hashlib
import os
from pathlib import Path

from medshift.data import ct
from medshift.data.archives import project_bytes
from medshift.data.body import isolate_head
from medshift.data.readers import head_of_scan, read_volume, scan_of_project
from medshift.data.volume import HeadVolume, from_hounsfield

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
    path = Path(path or os.environ.get("MEDSHIFT_CT") or ct.fetch(cache))
    if path.suffix not in (".deb", ".inv3") or not path.is_file():
        return read_volume(path)
    blob = project_bytes(path)
    scan = scan_of_project(blob, path)
    if hashlib.sha256(blob).hexdigest() != ct.SHA256:
        return head_of_scan(scan, path)
    hu, cut = isolate_head(scan.hu, scan.spacing, name=str(path))
    return from_hounsfield(hu, scan.spacing, landmarks=LANDMARKS, cut=cut, source="cranium", name="cranium")
