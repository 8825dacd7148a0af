"""One CT series from a folder of DICOM slices. Tags that tell of the patient are never read."""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from medshift.data.scan import Scan, check_size, place
from medshift.errors import DataError

PLACING = (
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "RescaleSlope",
    "RescaleIntercept",
)
HEADER_TAGS = ["Modality", "SeriesInstanceUID", "NumberOfFrames", "Rows", "Columns", *PLACING]
PIXEL_TAGS = [
    "Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
    "PhotometricInterpretation", "NumberOfFrames", "PixelData",
]  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Slice:
    """What a slice says of its place [mm, LPS] and its scale."""

    path: Path
    series: str
    size: tuple[int, int]
    position: np.ndarray  # (3,) centre of the first voxel
    directions: np.ndarray  # (2, 3) unit vectors along rising column index, then along rising row index
    spacing: tuple[float, float]  # between rows, between columns
    slope: float
    intercept: float


def read_dicom(folder: Path) -> Scan:
    """Read the one CT series in a folder and its subfolders; needs pydicom. Files that are not DICOM are passed by.

    Raises:
        DataError: There is no series or more than one, a slice is missing, damaged or no CT slice, or spacing,
            place or rescale is not given.
    """
    try:
        import pydicom
    except ImportError as error:
        raise DataError(f'{folder}: DICOM needs pydicom; run: pip install "medshift[medical]".') from error
    slices = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=HEADER_TAGS)
            if "Rows" in header:  # DICOMDIR and reports have none
                slices.append(_described(path, header))
        except pydicom.errors.InvalidDicomError:
            continue  # notes and viewers beside the slices; a slice so damaged is missed by its gap
        except DataError:
            raise
        except Exception as error:  # pydicom lets through whatever a damaged element raises
            raise DataError(f"{path}: cannot be read as DICOM ({error}); copy it again.") from error
    if not slices:
        raise DataError(f"{folder}: the folder holds no DICOM images; name a folder with one CT series.")
    return _stacked(folder, slices)


def _described(path: Path, header: Any) -> _Slice:
    if header.get("Modality") != "CT" or int(header.get("NumberOfFrames") or 1) != 1:
        raise DataError(f"{path}: not a single-frame CT slice; expected modality CT (convert others to NIfTI).")
    for tag in PLACING:
        if header.get(tag) is None:
            what = "Hounsfield units" if tag.startswith("Rescale") else "sizes and places in mm"
            raise DataError(f"{path}: no {tag}, so {what} are unknown; export the CT series again.")
    between_rows, between_columns = (float(s) for s in header.PixelSpacing)
    described = _Slice(
        path=path,
        series=str(header.get("SeriesInstanceUID", "")),
        size=(int(header.Rows), int(header.Columns)),
        position=np.asarray(header.ImagePositionPatient, dtype=float).reshape(3),
        directions=np.asarray(header.ImageOrientationPatient, dtype=float).reshape(2, 3),
        spacing=(between_rows, between_columns),
        slope=float(header.RescaleSlope),
        intercept=float(header.RescaleIntercept),
    )
    if not described.slope > 0 or not np.isfinite([described.slope, described.intercept]).all():
        raise DataError(f"{path}: RescaleSlope is {described.slope}; expected above 0, so export the CT again.")
    return described


def _stacked(folder: Path, slices: list[_Slice]) -> Scan:
    """Check that the slices make one volume, sort them by position, and read their pixels."""
    if (count := len({s.series for s in slices})) > 1:
        raise DataError(f"{folder}: the slices belong to {count} series; put one CT series in a folder of its own.")
    if len(slices) == 1:
        raise DataError(f"{folder}: one slice only; expected a series (convert multi-frame files to NIfTI).")
    first = slices[0]
    for other in slices:
        same = np.allclose(other.directions, first.directions, atol=1e-3)
        if not same or other.size != first.size or not np.allclose(other.spacing, first.spacing, rtol=1e-3):
            raise DataError(
                f"{other.path}: size, spacing or orientation differ from those of {first.path.name}; put one "
                "CT series in a folder of its own, without its localiser."
            )
    check_size((len(slices), *first.size), folder)
    normal = np.cross(*first.directions)
    slices = sorted(slices, key=lambda s: float(s.position @ normal))
    positions = np.stack([s.position for s in slices])
    step = _slice_distance(folder, [s.path for s in slices], positions @ normal)
    drift = (positions - positions[0]) @ first.directions.T
    if not np.abs(drift).max() < 0.02 * step * len(slices):
        raise DataError(f"{folder}: slices are shifted sideways (a tilted gantry?); resample, e.g. by dcm2niix.")
    values = np.stack([_hounsfield(s) for s in slices])
    across, down = first.directions
    return place(values, (step, *first.spacing), np.stack([normal, down, across]), folder)


def _slice_distance(folder: Path, paths: list[Path], along: np.ndarray) -> float:
    """The one distance between neighbours [mm], or an error that says where a slice is missing or double."""
    gaps = np.diff(along)
    step = float(np.median(gaps))
    tolerance = 0.02 * step + 0.01  # positions are often written with two decimals
    for (before, after), gap in zip(pairwise(paths), gaps, strict=True):
        if not gap > 0.01:
            raise DataError(f"{folder}: {before.name} and {after.name} lie at one place; keep one scan a folder.")
        if not abs(gap - step) <= tolerance:
            raise DataError(
                f"{folder}: {gap:.2f} mm from {before.name} to {after.name}, elsewhere {step:.2f} mm: slices "
                "are missing or unevenly spaced. Complete the series or resample it."
            )
    return float(gaps.mean())


def _hounsfield(piece: _Slice) -> np.ndarray:
    """(rows, columns) float32 [HU] of a slice."""
    import pydicom

    try:
        stored = pydicom.dcmread(piece.path, specific_tags=PIXEL_TAGS).pixel_array
        if stored.shape != piece.size:
            raise ValueError(f"pixels of shape {stored.shape}, not {piece.size}")
    except Exception as error:  # pydicom's decoders let through whatever their plug-ins raise
        raise DataError(
            f"{piece.path}: the pixels cannot be read ({error}); copy the file again, or decompress it, e.g. "
            "by `gdcmconv --raw`."
        ) from error
    return stored.astype(np.float32) * np.float32(piece.slope) + np.float32(piece.intercept)
