"""One image file of a user's own, read for translation, and its translation written in kind.

PNG and TIFF of 8 or 16 bit, TIFF of floats from 0 to 1, JPEG of 8 bit, and DICOM (`medshift.data.own_dicom`). Grey
values are those of `medshift.data.folders.read_image`, on which methods are trained: as a viewer displays them, mapped
linearly from the file's full range to [-1, 1], no image stretched on its own. Nothing is resized.

A translation has the format, bit depth, size, photometric interpretation and pixel spacing of its source (PNG's pHYs,
TIFF's resolution, JPEG's density, DICOM's spacings) and none of its text, EXIF, XMP, colour profile or patient tags.
Where EXIF turns or mirrors an image, it is read upright and written so. Reading what was written gives the same
pixels: exactly at 8 and 16 bit, up to float32 rounding for floats. JPEG loses by nature; it is written at quality 100,
which puts a pixel off by two grey levels at most. Grey images stored as RGB or as a palette become plain grey ones.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import tifffile
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from medshift.data.folders import DAMAGED, DICOM, PHOTOMETRIC_TAG, PICTURE, WHITE_IS_ZERO
from medshift.data.own_dicom import DicomKind, read_dicom_image
from medshift.errors import DataError

__all__ = ["OwnImage", "PictureKind", "is_image", "read_own", "write_own"]

PICTURES = (*PICTURE, ".jpg", ".jpeg")
FORMATS = ("PNG", "TIFF", "JPEG")
PARTIAL = ".partial"
FULL = {"u1": 255.0, "u2": 65535.0, "f4": 1.0}
BITS_TAG, COMPRESSION_TAG, X_TAG, Y_TAG, UNIT_TAG = 258, 259, 282, 283, 296
RAW = 1  # TIFF's word for no compression
JFIF_DENSITY = slice(13, 18)  # of a JPEG file: unit, then two numbers


@dataclass(frozen=True, eq=False)
class PictureKind:
    """How a PNG, TIFF or JPEG file holds its pixels.

    Args:
        format: "PNG", "TIFF" or "JPEG".
        dtype: numpy's word for a pixel: "u1", "u2" or "f4".
        spacing: as the format states it: PNG's dots per inch; TIFF's two fractions and unit; JPEG's two densities and
            unit. None where the file says nothing.
        turned: whether a TIFF stores white as zero.
        compressed: whether a TIFF is.
    """

    format: str
    dtype: str
    spacing: tuple[Any, ...] | None = None
    turned: bool = False
    compressed: bool = False

    def write(self, file: BinaryIO, grey: np.ndarray) -> None:
        """Write grey values (H,W) from 0 to 1, as displayed."""
        stored = 1 - grey if self.turned else grey
        if self.dtype != "f4":
            stored = np.rint(stored * FULL[self.dtype])
        {"PNG": self._png, "TIFF": self._tiff, "JPEG": self._jpeg}[self.format](file, stored.astype(self.dtype))

    def _png(self, file: BinaryIO, stored: np.ndarray) -> None:
        Image.fromarray(stored).save(file, "PNG", **({"dpi": self.spacing} if self.spacing else {}))

    def _tiff(self, file: BinaryIO, stored: np.ndarray) -> None:
        x, y, unit = self.spacing or (None, None, None)
        tifffile.imwrite(
            file,
            stored,
            photometric="miniswhite" if self.turned else "minisblack",
            compression="zlib" if self.compressed else None,
            resolution=(x, y) if x and y else None,
            resolutionunit=unit,
            metadata=None,
            software="",
        )

    def _jpeg(self, file: BinaryIO, stored: np.ndarray) -> None:
        held = io.BytesIO()
        Image.fromarray(stored).save(held, "JPEG", quality=100)
        data = bytearray(held.getvalue())
        if self.spacing:
            # Pillow takes whole dots per inch alone.
            *density, unit = self.spacing
            data[JFIF_DENSITY] = bytes([unit, *(byte for one in density for byte in one.to_bytes(2, "big"))])
        file.write(data)


@dataclass(frozen=True, eq=False)
class OwnImage:
    """An image and how its file held it.

    Args:
        image: (1,1,H,W) float32 in [-1, 1], as displayed.
        kind: what writes a translation of it.
    """

    image: Tensor
    kind: PictureKind | DicomKind


def is_image(path: Path) -> bool:
    """Whether a file is one to read: by its name, or because DICOM's mark stands in it."""
    if path.suffix.lower() in PICTURES + DICOM:
        return True
    if path.name.upper() == "DICOMDIR":
        return False
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def read_own(path: str | Path) -> OwnImage:
    """Read an image of any size.

    Raises:
        DataError: the file is missing, damaged, in colour, transparent, a sequence, or of another depth than 8 or 16
            bit (or floats from 0 to 1 in TIFF); the message names it.
    """
    path = Path(path)
    try:
        kind: PictureKind | DicomKind
        grey, kind = _read_picture(path) if path.suffix.lower() in PICTURES else read_dicom_image(path)
    except DAMAGED as error:
        raise DataError(f"'{path}' cannot be read ({error}); save it again or take it out.") from error
    if not np.isfinite(grey).all():
        raise DataError(f"'{path}' holds NaN or infinite values; mend or remove it.")
    if grey.min() < 0 or grey.max() > 1:
        raise DataError(f"'{path}' exceeds its range; save it as 8 or 16 bit, or as floats from 0 to 1.")
    return OwnImage(torch.from_numpy(2 * grey.astype(np.float32) - 1)[None, None], kind)


def write_own(path: str | Path, image: Tensor, kind: PictureKind | DicomKind) -> None:
    """Write a translation (1,1,H,W), clamped to [-1, 1]; a file under that name is whole or not there.

    Raises:
        DataError: the translation holds NaN or infinite values; nothing is written.
        OSError: the file cannot be written; what was there before stays.
    """
    path = Path(path)
    values = image.detach().to("cpu", torch.float64)[0, 0]
    if not values.isfinite().all():
        raise DataError(f"The translation of '{path.name}' holds NaN or infinite values; nothing was written.")
    grey = ((values.clamp(-1, 1) + 1) / 2).numpy()
    partial = path.with_name(f".{path.name}{PARTIAL}")
    try:
        with partial.open("wb") as file:
            kind.write(file, grey)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _read_picture(path: Path) -> tuple[np.ndarray, PictureKind]:
    """Grey values (H,W) from 0 to 1 as displayed, float64, and how the file holds them."""
    # By a path, Pillow maps an uncompressed TIFF into memory and scrambles one that its orientation tag lays down.
    with path.open("rb") as file, Image.open(file, formats=FORMATS) as picture:
        if (frames := getattr(picture, "n_frames", 1)) > 1:
            raise DataError(f"'{path}' has {frames} frames; save one image per file.")
        tags = dict(getattr(picture, "tag_v2", {}))
        bits = _bits(path, picture, tags)
        lies = picture.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
        spacing = _spacing(picture, tags)
        picture.load()  # Pillow turns a TIFF upright here, and others not at all
        if picture.format != "TIFF":
            ImageOps.exif_transpose(picture, in_place=True)
        values = _one_channel(picture, path)
    if values.itemsize * 8 != bits:
        raise DataError(f"'{path}' has {bits} bits a pixel and channel; save it as grey of 8 or 16 bit.")
    if spacing and lies:
        spacing = (spacing[1], spacing[0], *spacing[2:])
    dtype = values.dtype.str[1:]
    turned = tags.get(PHOTOMETRIC_TAG) == WHITE_IS_ZERO
    grey = values.astype(np.float64) / FULL[dtype]
    kind = PictureKind(picture.format or "", dtype, spacing, turned, tags.get(COMPRESSION_TAG, RAW) != RAW)
    # Pillow inverts "white is zero" at 8 bit, but hands out 16-bit values as they are stored.
    return 1 - grey if turned and dtype == "u2" else grey, kind


def _one_channel(picture: Image.Image, path: Path) -> np.ndarray:
    if picture.mode in ("L", "F") or picture.mode.startswith("I;16"):
        return np.asarray(picture)
    if picture.mode == "I":
        raise DataError(f"'{path}' holds signed or 32-bit numbers; save it as grey of 8 or 16 bit.")
    if picture.mode not in ("1", "P", "PA", "LA", "RGB", "RGBA"):
        raise DataError(f"'{path}' is a colour image ({picture.mode}); X-rays are grey: convert it or take it out.")
    values = np.asarray(picture.convert("RGBA"))
    if values[..., 3].min() < 255:
        raise DataError(f"'{path}' is transparent in places; save it without an alpha channel.")
    if (values[..., :3] != values[..., :1]).any():
        raise DataError(f"'{path}' is a colour image; X-rays are grey: convert it or take it out.")
    return values[..., 0]


def _bits(path: Path, picture: Image.Image, tags: dict[int, Any]) -> int:
    """Of a channel in the file, which Pillow may have rounded to fewer or filled up to more."""
    if picture.format == "TIFF":
        return max(tags.get(BITS_TAG, (1,)))
    if picture.format == "PNG":
        with path.open("rb") as file:
            return file.read(25)[24]
    return 8


def _spacing(picture: Image.Image, tags: dict[int, Any]) -> tuple[Any, ...] | None:
    if picture.format == "PNG":
        return picture.info.get("dpi")
    if picture.format == "JPEG":
        if "jfif_unit" in picture.info:
            return *picture.info["jfif_density"], picture.info["jfif_unit"]
        dpi = picture.info.get("dpi")
        return (*(min(max(1, round(one)), 65535) for one in dpi), 1) if dpi else None
    parts = [(tags[tag].numerator, tags[tag].denominator) for tag in (X_TAG, Y_TAG) if tag in tags]
    return (*parts, int(tags.get(UNIT_TAG, 2))) if len(parts) == 2 and all(n > 0 and d > 0 for n, d in parts) else None
