"""Head CTs of any of four kinds, in Hounsfield units and in the world frame of `medshift.data.volume`.

A Debian package with an InVesalius project (.deb), such a project (.inv3), NIfTI (.nii, .nii.gz) and a folder
with one DICOM series. Only what places and scales the voxels is read; nothing about the patient is kept.
"""

from pathlib import Path
from typing import Any

import numpy as np

from medshift.data.archives import project_bytes, read_project
from medshift.data.body import isolate_head
from medshift.data.dicom import read_dicom
from medshift.data.scan import Scan, check_hounsfield, check_size, place
from medshift.data.volume import HeadVolume, from_hounsfield
from medshift.errors import DataError

INV3_AXES = np.array([[0.0, 0.0, 1.0], [0.0, -1.0, 0.0], [1.0, 0.0, 0.0]])
"""InVesalius stores slices from inferior to superior and turns each DICOM slice upside down: rows run to
anterior, columns to the patient's left."""

KINDS = "a .deb, .inv3, .nii or .nii.gz file or a DICOM folder"


def read_volume(path: str | Path) -> HeadVolume:
    """Read a head CT as densities, with head holder and table removed and the faces that cut tissue named.

    Args:
        path: A .deb, .inv3, .nii or .nii.gz file or a folder with one DICOM series.

    Raises:
        DataError: The file is missing, damaged, hostile, not a CT in Hounsfield units, or shows no head.
    """
    path = Path(path)
    return head_of_scan(read_hounsfield(path), path)


def head_of_scan(scan: Scan, path: Path) -> HeadVolume:
    """The head in a CT as densities, source "user"; `path` names it.

    Raises:
        DataError: The values are no Hounsfield units, or no head is seen.
    """
    check_hounsfield(scan, path)
    hu, cut = isolate_head(scan.hu, scan.spacing, name=str(path))
    return from_hounsfield(hu, scan.spacing, cut=cut, source="user", name=path.name)


def read_hounsfield(path: str | Path) -> Scan:
    """Read a CT as it is; see `read_volume` for the kinds of file and the errors."""
    path = Path(path)
    if path.is_dir():
        return read_dicom(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file or folder; name {KINDS}.")
    if path.suffix in (".inv3", ".deb"):
        return scan_of_project(project_bytes(path), path)
    if path.name.endswith((".nii", ".nii.gz")):
        return read_nifti(path)
    raise DataError(f"{path}: unknown kind of CT; expected {KINDS}.")


def scan_of_project(blob: bytes, path: Path) -> Scan:
    """The CT in the bytes of an InVesalius project; `path` names it in errors."""
    matrix, spacing = read_project(blob, path)
    return place(matrix, spacing, INV3_AXES, path)


def read_nifti(path: Path) -> Scan:
    """Read a 3-D NIfTI file; needs nibabel.

    Raises:
        DataError: The file is damaged, not one 3-D volume, or has no spacing or orientation.
    """
    try:
        import nibabel
    except ImportError as error:
        raise DataError(f'{path}: NIfTI needs nibabel; run: pip install "medshift[medical]".') from error
    try:
        image: Any = nibabel.load(path)
        header = image.header
        shape = _volume_shape(image.shape, header.get_data_dtype(), path)
        unit_mm = {"meter": 1000.0, "micron": 0.001}.get(header.get_xyzt_units()[0], 1.0)
        with nibabel.openers.ImageOpener(str(path)) as file:  # `load` has put 1 mm where the file says 0
            stored = type(header)(file.read(header.template_dtype.itemsize), check=False)
        zooms = np.asarray(stored["pixdim"][1:4], dtype=float)
        oriented = int(header["sform_code"]) > 0 or int(header["qform_code"]) > 0
        affine = np.asarray(image.affine, dtype=float)[:3, :3] * unit_mm
        values = image.get_fdata(dtype=np.float32, caching="unchanged").reshape(shape)
    except DataError:
        raise
    except Exception as error:  # nibabel lets through whatever numpy, zlib or struct raise
        raise DataError(f"{path}: cannot be read as NIfTI ({error}); convert or copy it again.") from error
    spacing = np.linalg.norm(affine, axis=0)
    if not (zooms > 0).all() or not (spacing > 0).all():
        raise DataError(f"{path}: the header has no voxel spacing (pixdim {zooms.tolist()}); convert it again.")
    if not oriented:
        raise DataError(
            f"{path}: neither qform nor sform is set, so up and left are unknown; convert it again, e.g. by dcm2niix."
        )
    axes = (affine / spacing).T * np.array([-1.0, -1.0, 1.0])  # NIfTI's world is RAS
    return place(values, spacing.tolist(), axes, path)


def _volume_shape(shape: tuple[int, ...], dtype: np.dtype, path: Path) -> tuple[int, ...]:
    """The three sizes of a NIfTI image, whose further axes must be of length 1."""
    kept = shape
    while len(kept) > 3 and kept[-1] == 1:
        kept = kept[:-1]
    if len(kept) != 3 or min(kept) < 1:
        raise DataError(f"{path}: the image is {len(shape)}-D of shape {shape}; expected one 3-D volume.")
    if dtype.kind not in "iuf":
        raise DataError(f"{path}: voxels are {dtype}; expected one number of Hounsfield units each.")
    check_size(kept, path)
    return kept
