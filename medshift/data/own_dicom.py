"""One grey DICOM image read for translation, and its translation written anew without anything about the patient.

Only what places, scales and displays pixels is read, so tags that tell of a patient, a study, a device or a hospital
never enter memory and cannot leave it. The file that is written is a Secondary Capture with fresh random UIDs, made
from nothing but that: bits, photometric interpretation, rescaling, window and VOI LUT, spacings, and whether pixels
were once compressed with loss. Free text is never copied, not even beside a window. ``BurnedInAnnotation`` and
``PatientIdentityRemoved`` are left out, which says "unknown": nobody has looked for letters inside the picture.

Pixels are taken as `medshift.data.folders.read_image` takes them: stored bits over their full range, MONOCHROME1 and
falling rescale slopes inverted as a viewer does. The window is for the eye and does not change them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from medshift.errors import DataError

__all__ = ["DicomKind", "read_dicom_image"]

PIXELS = (
    "Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
    "PhotometricInterpretation", "NumberOfFrames", "PixelData",
)  # fmt: skip
# Copied as numbers.
NUMBERS = (
    "PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio",
    "EstimatedRadiographicMagnificationFactor", "WindowCenter", "WindowWidth", "RescaleIntercept", "RescaleSlope",
    "LossyImageCompressionRatio",
)  # fmt: skip
# Copied where they are one of these words.
TERMS: Mapping[str, tuple[str, ...]] = {
    "PresentationLUTShape": ("IDENTITY", "INVERSE"),
    "VOILUTFunction": ("LINEAR", "LINEAR_EXACT", "SIGMOID"),
    "RescaleType": ("OD", "HU", "US"),
    "PixelSpacingCalibrationType": ("GEOMETRY", "FIDUCIAL"),
    "LossyImageCompression": ("00", "01"),
}
LUT, LUT_PARTS = "VOILUTSequence", ("LUTDescriptor", "LUTData")
# What a Secondary Capture has to have, without a value.
EMPTY = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
    "AccessionNumber", "ReferringPhysicianName", "SeriesNumber", "InstanceNumber",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class DicomKind:
    """How a DICOM file holds and shows its pixels.

    Args:
        bits: stored of a pixel.
        allocated: bits that a pixel takes, 8 or 16.
        signed: whether stored values are.
        turned: whether a viewer shows high values dark.
        header: pydicom's data set of what else is kept: see the module.
    """

    bits: int
    allocated: int
    signed: bool
    turned: bool
    header: Any

    def write(self, file: BinaryIO, grey: np.ndarray) -> None:
        """Write grey values (H,W) from 0 to 1, as displayed, as a new DICOM file."""
        import pydicom
        from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

        levels = np.rint((1 - grey if self.turned else grey) * (2**self.bits - 1))
        stored = levels - (2 ** (self.bits - 1) if self.signed else 0)
        made = pydicom.Dataset()
        made.update(self.header)
        made.Rows, made.Columns = grey.shape
        made.SamplesPerPixel, made.PixelRepresentation = 1, int(self.signed)
        made.BitsAllocated, made.BitsStored, made.HighBit = self.allocated, self.bits, self.bits - 1
        pixels = stored.astype(f"<{'i' if self.signed else 'u'}{self.allocated // 8}").tobytes()
        made.PixelData = pixels + b"\0" * (len(pixels) % 2)
        made["PixelData"].VR = "OW" if self.allocated == 16 else "OB"
        for tag in EMPTY:
            setattr(made, tag, "")
        made.Modality, made.ConversionType, made.ImageType = "OT", "SYN", ["DERIVED", "SECONDARY"]
        made.DerivationDescription = "Translated to another acquisition domain by a model; not for diagnosis"
        # Random, not made from those of the file: nobody is to find the patient by hashing known UIDs.
        made.StudyInstanceUID, made.SeriesInstanceUID = generate_uid(prefix=None), generate_uid(prefix=None)
        made.SOPClassUID, made.SOPInstanceUID = SecondaryCaptureImageStorage, generate_uid(prefix=None)
        made.file_meta = pydicom.dataset.FileMetaDataset()
        made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        pydicom.dcmwrite(file, made, enforce_file_format=True)


def read_dicom_image(path: Path) -> tuple[np.ndarray, DicomKind]:
    """Grey values (H,W) from 0 to 1 as displayed, float64, and how the file holds them; needs pydicom.

    Raises:
        DataError: several frames, colour, or pixels that are no whole numbers of 2 to 16 bits.
        ValueError: no DICOM file. What else pydicom raises for damaged ones is let through.
    """
    try:
        import pydicom
    except ImportError as error:
        raise DataError(f"Reading '{path}' needs pydicom: pip install \"medshift[medical]\".") from error
    try:
        file = pydicom.dcmread(path, specific_tags=[*PIXELS, *NUMBERS, *TERMS, LUT])
    except pydicom.errors.InvalidDicomError as error:
        raise ValueError("no DICOM header") from error
    _check(path, file)
    bits, signed = int(file.BitsStored), bool(file.PixelRepresentation)
    stored = file.pixel_array.astype(np.float64)
    grey = (stored + (2 ** (bits - 1) if signed else 0)) / (2**bits - 1)
    # A falling rescale slope turns the values round before they are displayed; so does MONOCHROME1.
    turned = float(file.get("RescaleSlope", 1) or 1) < 0
    turned ^= file.PhotometricInterpretation == "MONOCHROME1" or file.get("PresentationLUTShape") == "INVERSE"
    kind = DicomKind(bits, int(file.BitsAllocated), signed, turned, _kept(file))
    return 1 - grey if turned else grey, kind


def _check(path: Path, file: Any) -> None:
    if "PixelData" not in file:
        raise DataError(f"'{path}' holds no whole-number pixels; export the image again.")
    if (frames := int(file.get("NumberOfFrames", 1) or 1)) > 1:
        raise DataError(f"'{path}' has {frames} frames; save one image per file.")
    shown = file.get("PhotometricInterpretation")
    if int(file.get("SamplesPerPixel", 1)) != 1 or shown not in ("MONOCHROME1", "MONOCHROME2"):
        raise DataError(
            f"'{path}' is a colour image ({shown}); expected MONOCHROME1 or MONOCHROME2: convert it or take it out."
        )
    allocated, stored = int(file.BitsAllocated), int(file.BitsStored)
    if allocated not in (8, 16) or not 2 <= stored <= allocated:
        raise DataError(f"'{path}' stores {stored} of {allocated} bits a pixel; expected 8 or 16 bits.")


def _kept(file: Any) -> Any:
    """What of a header goes into the translation."""
    import pydicom

    kept = pydicom.Dataset()
    kept.PhotometricInterpretation = str(file.PhotometricInterpretation)
    for tag in NUMBERS:
        if file.get(tag) is not None:
            setattr(kept, tag, file[tag].value)
    for tag, words in TERMS.items():
        if file.get(tag) in words:
            setattr(kept, tag, str(file.get(tag)))
    items = [_curve(item) for item in file.get(LUT) or () if all(part in item for part in LUT_PARTS)]
    if items:
        setattr(kept, LUT, items)
    return kept


def _curve(item: Any) -> Any:
    """A look-up table without its explanation, which is free text."""
    import pydicom

    curve = pydicom.Dataset()
    for part in LUT_PARTS:
        curve[part] = item[part]
    return curve
