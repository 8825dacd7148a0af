"""Writes small CT files of every kind that the readers know, for their tests."""

import io
import lzma
import plistlib
import tarfile
from pathlib import Path

import numpy as np


def member(name: str, data: bytes = b"", **fields) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


def tar(members, compression: str = "gz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{compression}") as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def plist(shape, /, spacing_xyz=(0.9, 0.8, 1.5), **changes) -> bytes:
    project = {
        "modality": "CT",
        "spacing": list(spacing_xyz),
        "matrix": {"dtype": "int16", "filename": "matrix.dat", "shape": list(shape)},
    } | changes
    return plistlib.dumps({key: value for key, value in project.items() if value is not None})


def project(stored: np.ndarray, /, spacing_xyz=(0.9, 0.8, 1.5), compression: str = "gz", **changes) -> bytes:
    """An .inv3 file; `stored` (slices, rows, columns) as InVesalius stores it, rows running to anterior."""
    return tar(
        [
            member("tmp/main.plist", plist(stored.shape, spacing_xyz, **changes)),
            member("tmp/matrix.dat", stored.astype("<i2").tobytes()),
        ],
        compression,
    )


def package(files: dict[str, bytes], compression: str = "xz") -> bytes:
    """A .deb file with these files."""
    data = tar([member(f"./usr/share/{name}", blob) for name, blob in files.items()], compression)
    parts = {
        "debian-binary": b"2.0\n",
        "control.tar.xz": lzma.compress(b""),
        f"data.tar.{compression}".rstrip("."): data,
    }
    blob = b"!<arch>\n"
    for name, content in parts.items():
        blob += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode()
        blob += content + b"\n" * (len(content) % 2)
    return blob


def write_nifti(path: Path, values: np.ndarray, affine: np.ndarray) -> Path:
    import nibabel

    nibabel.Nifti1Image(values, affine).to_filename(path)
    return path


def write_dicom(folder: Path, hu: np.ndarray, spacing, *, slope=1.0, intercept=-1024.0, order=None, series="1.2.3"):
    """Write (z, y, x) HU of the world frame as axial slices in the order given; return their paths from below."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    folder.mkdir(exist_ok=True)
    paths = []
    for index in range(len(hu)) if order is None else order:
        slice_ = Dataset()
        slice_.file_meta = FileMetaDataset()
        slice_.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        slice_.file_meta.MediaStorageSOPClassUID = slice_.SOPClassUID = CTImageStorage
        slice_.file_meta.MediaStorageSOPInstanceUID = slice_.SOPInstanceUID = f"{series}.{index + 1}"
        slice_.SeriesInstanceUID, slice_.Modality = series, "CT"
        slice_.PatientName, slice_.PatientID = "Doe^Jane", "4711"
        slice_.Rows, slice_.Columns = hu.shape[1:]
        slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 1, "MONOCHROME2"
        slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit, slice_.PixelRepresentation = 16, 16, 15, 1
        slice_.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        slice_.ImagePositionPatient = [-100.0, -90.0, round(-50 + index * spacing[0], 4)]
        slice_.PixelSpacing = [spacing[1], spacing[2]]
        slice_.RescaleSlope, slice_.RescaleIntercept = slope, intercept
        slice_.PixelData = np.round((hu[index] - intercept) / slope).astype("<i2").tobytes()
        path = folder / f"slice{len(hu) - index:03d}.dcm"  # the names run against the positions
        slice_.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def edit_dicom(path: Path, **changes) -> None:
    """Set tags of a slice; None removes one."""
    import pydicom

    slice_ = pydicom.dcmread(path)
    for tag, value in changes.items():
        if value is None:
            delattr(slice_, tag)
        else:
            setattr(slice_, tag, value)
    slice_.save_as(path)


def ball(shape=(36, 40, 44), spacing=(5.0, 4.5, 4.0), radius_mm=55.0, centre_mm=(0.0, 0.0, 0.0)) -> np.ndarray:
    """(z, y, x) HU of a ball of water in air, as large as a head."""
    axes = [(np.arange(n) - (n - 1) / 2) * s - c for n, s, c in zip(shape, spacing, centre_mm, strict=True)]
    z, y, x = np.meshgrid(*axes, indexing="ij")
    return np.where(z**2 + y**2 + x**2 < radius_mm**2, 0.0, -1000.0).astype(np.float32)
