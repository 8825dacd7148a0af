"""Read an X-ray that somebody drops into a notebook, and say what is wrong where it is none."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F

from medshift.data.folders import DAMAGED, DICOM, PICTURE, read_image
from medshift.errors import DataError

LARGEST_SIDE = 8000  # pixels; beyond it a file costs gigabytes to read and shows no more
LARGEST_ASPECT = 4  # longer side over shorter one; the longer side grows with it, and with that side the memory
UPLOAD_MB = 10  # a larger message cuts the connection of JupyterLab to the kernel, and nobody is told


def read_upload(name: str, content: bytes, size: int) -> Tensor:
    """An uploaded file as an image (1,1,h,w) on [-1, 1] whose shorter side is `size` pixels.

    Args:
        name: of the file, whose ending says what it is.
        content: its bytes.
        size: of the shorter side, as the network saw it in training.

    Raises:
        DataError: no image, a colour image, one that is too large, too long or too small, or a damaged one.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / (Path(name).name or "image")
        path.write_bytes(content)
        return read_file(path, size)


def read_file(path: Path, size: int) -> Tensor:
    """An image file as `read_upload` gives it.

    Raises:
        DataError: see `read_upload`; or there is no such file.
    """
    if not path.is_file():
        raise DataError(f"There is no file {path.name!r} there; give the path of a PNG, TIFF or DICOM file.")
    if path.suffix.lower() not in (*DICOM, *PICTURE):
        raise DataError(f"{path.name!r} is no PNG, TIFF or DICOM file; save the X-ray as one of these.")
    if (size_of := (_picture_size if path.suffix.lower() in PICTURE else _dicom_size)(path)) is not None:
        _check_size(path.name, *size_of)
    try:
        image = read_image(path)
    except DataError as error:
        raise DataError(str(error).replace(f"'{path}'", f"'{path.name}'")) from None
    return fitted(image, size)[None]


def fitted(image: Tensor, size: int) -> Tensor:
    """An image (1,H,W) scaled with antialiasing so that its shorter side is `size`; nothing is cropped.

    Raises:
        DataError: the longer side is more than `LARGEST_ASPECT` times the shorter one.
    """
    height, width = image.shape[1:]
    _check_size("The image", width, height)
    scale = size / min(height, width)
    shape = (max(size, round(height * scale)), max(size, round(width * scale)))
    return F.interpolate(image[None], shape, mode="bilinear", antialias=True)[0].clamp(-1, 1)


def _check_size(name: str, width: int, height: int) -> None:
    """Refuse what would take gigabytes, or would once its shorter side is the network's.

    Raises:
        DataError: see above.
    """
    long, short = max(width, height), max(1, min(width, height))
    if long > LARGEST_SIDE:
        raise DataError(
            f"'{name}' has {width} × {height} pixels; scale it down to {LARGEST_SIDE} a side or less, "
            "the network works on far fewer."
        )
    if long > LARGEST_ASPECT * short:
        raise DataError(
            f"'{name}' has {width} × {height} pixels; crop it until its longer side is at most {LARGEST_ASPECT} times "
            "its shorter one, as of a radiograph."
        )


def _picture_size(path: Path) -> tuple[int, int] | None:
    """Width and height by the header, before any pixel is decoded; None where `read_image` has to say what is wrong."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the message above says it better
            with Image.open(path) as picture:
                return picture.size
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError):
        return None


def _dicom_size(path: Path) -> tuple[int, int] | None:
    """Columns and rows by the header; None where `read_image` has to say what is wrong."""
    try:
        import pydicom
    except ImportError:
        return None
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True)
        return int(header.Columns), int(header.Rows)
    except (*DAMAGED, pydicom.errors.InvalidDicomError):
        return None
