"""Images that people drop in: X-rays are read and fitted, everything else is refused in words that help."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from medshift.errors import DataError
from medshift.widgets.own_image import LARGEST_SIDE, fitted, read_file, read_upload


def png(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, format="png")
    return buffer.getvalue()


GREY = np.linspace(0, 255, 100 * 80).reshape(100, 80).astype(np.uint8)


def test_a_grey_image_is_read_as_it_is_displayed_and_nothing_is_cropped() -> None:
    image = read_upload("skull.png", png(GREY), 40)
    assert image.shape == (1, 1, 50, 40)
    assert image[0, 0, 0, 0] < -0.95 and image[0, 0, -1, -1] > 0.95
    assert torch.equal(read_upload("../../skull.png", png(GREY), 40), image)  # only the name's last part is used


def test_sixteen_bits_keep_their_range() -> None:
    deep = (GREY.astype(np.uint16) * 257).astype(np.uint16)
    assert torch.allclose(read_upload("a.png", png(deep), 40), read_upload("b.png", png(GREY), 40), atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(8, 60), st.floats(0.25, 4), st.integers(8, 48))
def test_the_shorter_side_is_as_asked_and_the_aspect_kept(height: int, aspect: float, size: int) -> None:
    width = min(max(round(height * aspect), -(-height // 4)), 4 * height)
    made = fitted(torch.rand(1, height, width) * 2 - 1, size)
    assert min(made.shape[1:]) == size and made.abs().max() <= 1
    assert abs(made.shape[1] / made.shape[2] - height / width) < 1.5 * max(height, width) / min(height, width) / size


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("paper.pdf", b"%PDF-1.7 ...", "no PNG, TIFF or DICOM"),
        ("paper.png", b"%PDF-1.7 ...", "cannot be read"),
        ("photo.png", png(np.random.default_rng(0).integers(0, 255, (20, 20, 3), dtype=np.uint8)), "colour"),
        ("tiny.png", png(GREY[:4, :4]), "at least 8"),
        ("cut.png", png(GREY)[:60], "cannot be read"),
        ("empty.png", b"", "cannot be read"),
        ("scan.dcm", b"not DICOM at all", "cannot be read"),
    ],
)
def test_what_is_no_grey_image_is_refused_by_its_name(name: str, content: bytes, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        read_upload(name, content, 32)
    assert name in str(caught.value) and "/tmp" not in str(caught.value)


def test_a_huge_image_is_refused_before_its_pixels_are_read(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    path = tmp_path / "huge.png"
    Image.new("1", (10_000, 10_000)).save(path)
    with pytest.raises(DataError, match=f"10000 × 10000 pixels; scale it down to {LARGEST_SIDE}"):
        read_file(path, 64)
    assert not [warning for warning in recwarn if "Decompression" in str(warning.category)]


def test_a_long_image_is_refused_whatever_its_size(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at most 4 times"):
        fitted(torch.zeros(1, 8, 33), 64)
    assert fitted(torch.zeros(1, 8, 32), 64).shape == (1, 64, 256), "and what is let through has at most 4 size²"
    for name, shape in (("strip.png", (8000, 8)), ("strip.tif", (8, 8000))):
        Image.new("L", shape, 90).save(tmp_path / name)
        with pytest.raises(DataError, match=rf"'{name}' has {shape[0]} × {shape[1]} pixels; crop it"):
            read_file(tmp_path / name, 64)


@pytest.mark.parametrize(
    ("rows", "columns", "words"), [(8, 8000, "8000 × 8 pixels; crop it"), (9000, 9000, "scale it down to 8000")]
)
def test_a_dicom_file_is_refused_by_its_header(tmp_path: Path, rows: int, columns: int, words: str) -> None:
    """The pixels are not there at all: whoever decoded them first would fail otherwise."""
    pydicom = pytest.importorskip("pydicom")
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    file = pydicom.Dataset()
    file.file_meta, file.Rows, file.Columns = meta, rows, columns
    file.save_as(tmp_path / "scan.dcm", enforce_file_format=False, implicit_vr=False, little_endian=True)
    data = (tmp_path / "scan.dcm").read_bytes()
    if data[128:132] != b"DICM":
        (tmp_path / "scan.dcm").write_bytes(bytes(128) + b"DICM" + data)
    with pytest.raises(DataError, match=words):
        read_file(tmp_path / "scan.dcm", 64)


def test_a_path_that_leads_nowhere_is_told(tmp_path: Path) -> None:
    for path in (tmp_path / "none.png", tmp_path):
        with pytest.raises(DataError, match="no file"):
            read_file(path, 64)
