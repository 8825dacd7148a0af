"""A user's own image files: what is read, and that a translation is written in kind, without a word of the patient."""

import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from medshift.data.folders import read_image
from medshift.data.own_images import is_image, read_own, write_own
from medshift.errors import DataError

NAME = "DOE^JANE"


def save_dicom(path: Path, stored: np.ndarray, bits: int, photometric: str = "MONOCHROME2", **tags: Any) -> None:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = tags.pop("syntax", ExplicitVRLittleEndian)
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    file = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    file.SOPClassUID, file.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    file.Rows, file.Columns, file.SamplesPerPixel = *stored.shape[-2:], 1
    file.PhotometricInterpretation = photometric
    file.BitsAllocated, file.BitsStored, file.HighBit = 8 * stored.itemsize, bits, bits - 1
    file.PixelRepresentation = int(stored.dtype.kind == "i")
    data = stored.tobytes()
    file.PixelData = data + b"\0" * (len(data) % 2)
    file["PixelData"].VR = "OW" if stored.itemsize == 2 else "OB"
    for tag, value in tags.items():
        setattr(file, tag, value)
    pydicom.dcmwrite(path, file, enforce_file_format=True)


def dicom(bits: int, signed: bool = False, photometric: str = "MONOCHROME2", **tags: Any) -> Callable[..., None]:
    def save(path: Path, levels: np.ndarray) -> None:
        dtype = f"{'i' if signed else 'u'}{1 if bits <= 8 else 2}"
        save_dicom(path, (levels - (2 ** (bits - 1) if signed else 0)).astype(dtype), bits, photometric, **tags)

    return save


def picture(dtype: str, **options: Any) -> Callable[..., None]:
    return lambda path, levels: Image.fromarray(levels.astype(dtype)).save(path, **options)


def tiff(dtype: str, **options: Any) -> Callable[..., None]:
    return lambda path, levels: tifffile.imwrite(path, levels.astype(dtype), **options)


# name of the file -> bits of a pixel, what saves stored levels from 0 to 2**bits - 1, whether a viewer turns them
KINDS: dict[str, tuple[int, Callable[..., None], bool]] = {
    "a8.png": (8, picture("u1"), False),
    "b16.png": (16, picture("u2"), False),
    "c8.tif": (8, tiff("u1"), False),
    "d16.tiff": (16, tiff("u2"), False),
    "e16.TIF": (16, tiff("u2", byteorder=">"), False),
    "f16.tif": (16, tiff("u2", compression="zlib"), False),
    "g8.tif": (8, tiff("u1", photometric="miniswhite"), True),
    "h16.tif": (16, tiff("u2", photometric="miniswhite"), True),
    "i8.dcm": (8, dicom(8), False),
    "j12.dcm": (12, dicom(12), False),
    "k16.DCM": (16, dicom(16, photometric="MONOCHROME1"), True),
    "l12.dcm": (12, dicom(12, signed=True), False),
    "m14.dcm": (14, dicom(14, RescaleSlope=-1, RescaleIntercept=0), True),
    "n10.dicom": (10, dicom(10, PresentationLUTShape="INVERSE", syntax=ImplicitVRLittleEndian), True),
    "o12": (12, dicom(12, signed=True, photometric="MONOCHROME1"), True),
}


def stored_in(path: Path) -> np.ndarray:
    """Levels as they stand in a file, by other means than the package's."""
    if path.suffix.lower() in (".tif", ".tiff"):
        return tifffile.imread(path)
    if path.suffix.lower() == ".png":
        return np.asarray(Image.open(path))
    return pydicom.dcmread(path).pixel_array


@given(st.sampled_from(sorted(KINDS)), st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**16))
@settings(max_examples=100)
def test_reading_and_writing_keeps_every_pixel(tmp_path: Path, name: str, height: int, width: int, seed: int) -> None:
    bits, save, turned = KINDS[name]
    levels = np.random.default_rng(seed).integers(0, 2**bits, (height, width))
    path, made, negative = tmp_path / name, tmp_path / f"made-{name}", tmp_path / f"negative-{name}"
    save(path, levels)
    assert is_image(path)
    own = read_own(path)
    assert own.image.dtype == torch.float32 and own.image.shape == (1, 1, height, width)
    shown = 2 * levels / (2**bits - 1) - 1
    assert np.abs(own.image[0, 0].numpy() - (-shown if turned else shown)).max() < 1e-6
    if min(height, width) >= 8 and path.suffix:
        assert torch.equal(own.image[0], read_image(path)), "on which methods are trained"
    write_own(made, own.image, own.kind)
    before, after = stored_in(path), stored_in(made)
    assert after.dtype.newbyteorder("=") == before.dtype.newbyteorder("=") and np.array_equal(before, after)
    assert torch.equal(read_own(made).image, own.image)
    # No copy of the file: of the negative image, every level is mirrored in the range of its bits.
    write_own(negative, -own.image, own.kind)
    lowest = -(2 ** (bits - 1)) if before.dtype.kind == "i" else 0
    assert np.array_equal(stored_in(negative).astype(int) - lowest, 2**bits - 1 - levels)


def test_every_level_of_sixteen_bits_survives(tmp_path: Path) -> None:
    levels = np.arange(65536).reshape(256, 256)
    for name in ("b16.png", "h16.tif", "k16.DCM"):
        KINDS[name][1](tmp_path / name, levels)
        own = read_own(tmp_path / name)
        write_own(tmp_path / f"made-{name}", own.image, own.kind)
        assert np.array_equal(stored_in(tmp_path / f"made-{name}"), levels)


def test_floats_of_a_tiff_survive_up_to_rounding(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((9, 12)).astype(np.float32)
    tifffile.imwrite(tmp_path / "a.tif", values)
    own = read_own(tmp_path / "a.tif")
    write_own(tmp_path / "b.tif", own.image, own.kind)
    after = tifffile.imread(tmp_path / "b.tif")
    assert after.dtype == np.float32 and np.abs(after - values).max() < 1e-7


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([30, 75, 100]), st.integers(0, 2**16))
@settings(max_examples=25)
def test_jpeg_loses_two_levels_at_most(tmp_path: Path, height: int, width: int, quality: int, seed: int) -> None:
    levels = np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)
    Image.fromarray(levels).save(tmp_path / "a.jpg", quality=quality)
    own = read_own(tmp_path / "a.jpg")
    write_own(tmp_path / "b.jpg", own.image, own.kind)
    before, after = (np.asarray(Image.open(tmp_path / name)).astype(int) for name in ("a.jpg", "b.jpg"))
    assert Image.open(tmp_path / "b.jpg").format == "JPEG" and np.abs(before - after).max() <= 2


def test_values_beyond_the_range_are_clamped_and_middle_ones_rounded(tmp_path: Path) -> None:
    picture("u1")(tmp_path / "a.png", np.zeros((2, 2)))
    kind = read_own(tmp_path / "a.png").kind
    write_own(tmp_path / "b.png", torch.tensor([[[[-1.7, 3.0], [0.0, 0.003]]]]), kind)
    assert np.asarray(Image.open(tmp_path / "b.png")).tolist() == [[0, 255], [128, 128]]


def jpeg_segments(data: bytes) -> list[int]:
    """Markers before the scan."""
    at, found = 2, []
    while data[at + 1] != 0xDA:
        found.append(data[at + 1])
        at += 2 + struct.unpack(">H", data[at + 2 : at + 4])[0]
    return found


def png_chunks(data: bytes) -> dict[str, bytes]:
    at, found = 8, {}
    while at < len(data):
        length = struct.unpack(">I", data[at : at + 4])[0]
        found[data[at + 4 : at + 8].decode()] = data[at + 8 : at + 8 + length]
        at += 12 + length
    return found


def with_text() -> Image.Exif:
    exif = Image.Exif()
    exif[0x010E], exif[0x013B] = NAME, NAME
    return exif


def test_png_keeps_its_spacing_and_no_text(tmp_path: Path) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", NAME)
    text.add_itxt("XML:com.adobe.xmp", f"<x>{NAME}</x>")
    levels = np.random.default_rng(0).integers(0, 2**16, (5, 6)).astype(np.uint16)
    for dots in (7000, 7143, 1, 2**31 - 1):  # a metre
        options = {"dpi": (dots * 0.0254, 2 * 0.0254), "pnginfo": text, "exif": with_text()}
        Image.fromarray(levels).save(tmp_path / "a.png", **options)
        assert NAME.encode() in (tmp_path / "a.png").read_bytes()
        own = read_own(tmp_path / "a.png")
        write_own(tmp_path / "b.png", own.image, own.kind)
        before, after = (png_chunks((tmp_path / name).read_bytes()) for name in ("a.png", "b.png"))
        assert set(after) == {"IHDR", "pHYs", "IDAT", "IEND"}
        assert after["pHYs"] == before["pHYs"] == struct.pack(">IIB", dots, 2, 1) and after["IHDR"] == before["IHDR"]


def test_tiff_keeps_its_resolution_and_no_text(tmp_path: Path) -> None:
    levels = np.random.default_rng(0).integers(0, 2**16, (5, 6)).astype(np.uint16)
    for unit, shown in ((2, "miniswhite"), (3, "minisblack"), (1, "minisblack")):
        extra = [(270, "s", 0, NAME, True), (315, "s", 0, NAME, True), (700, "B", 8, NAME.encode(), True)]
        given = {"resolution": ((7143, 10), (2, 3)), "resolutionunit": unit, "photometric": shown, "extratags": extra}
        tifffile.imwrite(tmp_path / "a.tif", levels, datetime=True, metadata=None, **given)
        assert NAME.encode() in (tmp_path / "a.tif").read_bytes()
        own = read_own(tmp_path / "a.tif")
        write_own(tmp_path / "b.tif", own.image, own.kind)
        with tifffile.TiffFile(tmp_path / "b.tif") as file:
            tags = {tag.code: tag.value for tag in file.pages.first.tags}
        assert set(tags) == {256, 257, 258, 259, 262, 273, 277, 278, 279, 282, 283, 296}
        assert (tags[282], tags[283], int(tags[296])) == ((7143, 10), (2, 3), unit)
        assert int(tags[262]) == (0 if shown == "miniswhite" else 1)


def test_jpeg_keeps_its_density_and_no_text(tmp_path: Path) -> None:
    for unit, x, y in ((0, 1, 2), (1, 96, 300), (2, 39, 41)):
        held = io.BytesIO()
        Image.fromarray(np.zeros((8, 9), np.uint8)).save(held, "JPEG", comment=NAME, exif=with_text(), dpi=(1, 1))
        data = bytearray(held.getvalue())
        at = data.index(b"JFIF\0")
        data[at + 7 : at + 12] = struct.pack(">BHH", unit, x, y)
        (tmp_path / "a.jpg").write_bytes(data)
        assert NAME.encode() in data
        own = read_own(tmp_path / "a.jpg")
        write_own(tmp_path / "b.jpg", own.image, own.kind)
        after = (tmp_path / "b.jpg").read_bytes()
        assert after[13:18] == struct.pack(">BHH", unit, x, y)
        assert set(jpeg_segments(after)) <= {0xE0, 0xDB, 0xC0, 0xC4}, "no APP1 and no comment"


# EXIF's orientation -> how a viewer turns the stored rows and columns
TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda x: x, 2: np.fliplr, 3: lambda x: np.rot90(x, 2), 4: np.flipud,
    5: np.transpose, 6: lambda x: np.rot90(x, -1), 7: lambda x: np.rot90(x, 2).T, 8: np.rot90,
}  # fmt: skip


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("name", ["a.png", "raw.tif", "zlib.tif", "a.jpg"])
def test_a_turned_image_is_read_and_written_upright(tmp_path: Path, name: str, orientation: int) -> None:
    levels = np.add.outer(np.arange(12) * 16, np.arange(8)).astype("u1" if name == "a.jpg" else "u2")
    if name.endswith("tif"):
        extra = [(274, "H", 1, orientation, True)]
        given: dict[str, Any] = {"compression": "zlib" if name == "zlib.tif" else None, "metadata": None}
        tifffile.imwrite(tmp_path / name, levels, resolution=(100, 50), resolutionunit=2, extratags=extra, **given)
    else:
        exif = Image.Exif()
        exif[274] = orientation
        options = {"quality": 100} if name == "a.jpg" else {}
        Image.fromarray(levels).save(tmp_path / name, exif=exif, dpi=(100, 50), **options)
    own = read_own(tmp_path / name)
    made = tmp_path / f"b{name}"
    write_own(made, own.image, own.kind)
    with Image.open(made) as after:
        assert after.getexif().get(274, 1) == 1
        assert [round(one) for one in after.info["dpi"]] == ([50, 100] if orientation > 4 else [100, 50])
        shown, upright = np.asarray(after).astype(int), TURNS[orientation](levels)
    assert shown.shape == upright.shape and np.abs(shown - upright).max() <= (2 if name == "a.jpg" else 0)


# All that may stand in a translation; written out, not taken from the package.
ALLOWED = {
    *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality", "ConversionType"),
    *("ImageType", "DerivationDescription", "SamplesPerPixel", "PhotometricInterpretation", "Rows", "Columns"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelData", "PixelSpacing"),
    *("ImagerPixelSpacing", "PixelSpacingCalibrationType", "WindowCenter", "WindowWidth", "VOILUTFunction"),
    *("RescaleSlope", "RescaleIntercept", "RescaleType", "PresentationLUTShape", "LossyImageCompression"),
    *("LossyImageCompressionRatio", "VOILUTSequence", "LUTDescriptor", "LUTData"),
}
ALLOWED_EMPTY = {
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID"),
    *("AccessionNumber", "ReferringPhysicianName", "SeriesNumber", "InstanceNumber"),
}
ALLOWED_META = {
    *("FileMetaInformationGroupLength", "FileMetaInformationVersion", "MediaStorageSOPClassUID"),
    *("MediaStorageSOPInstanceUID", "TransferSyntaxUID", "ImplementationClassUID", "ImplementationVersionName"),
}


def identified(path: Path, **tags: Any) -> None:
    """A file full of the patient, in known, unknown, nested, private and free-text places."""
    curve = Dataset()
    curve.LUTDescriptor, curve.LUTExplanation, curve.LUTData = [4, 0, 8], NAME, struct.pack("<4H", 0, 80, 160, 255)
    procedure = Dataset()
    procedure.CodeMeaning, procedure.PatientName = NAME, NAME
    given: dict[str, Any] = {
        **dict.fromkeys(("PatientName", "PatientID", "InstitutionName", "OperatorsName", "StudyDescription"), NAME),
        **dict.fromkeys(("ImageComments", "PatientComments", "WindowCenterWidthExplanation", "StationName"), NAME),
        **dict.fromkeys(("DeviceSerialNumber", "PixelSpacingCalibrationDescription", "ProtocolName"), NAME),
        "PatientBirthDate": "19520101", "StudyDate": "20200101", "BurnedInAnnotation": "YES", "PatientAge": "068Y",
        "StudyInstanceUID": "1.2.3.4.5", "SeriesInstanceUID": "1.2.3.4.6", "RequestAttributesSequence": [procedure],
        "PixelSpacing": ["0.139", "0.140"], "ImagerPixelSpacing": [0.15, 0.16], "WindowCenter": ["2047", "100.5"],
        "WindowWidth": ["4095", "33"], "VOILUTFunction": "SIGMOID", "VOILUTSequence": [curve], "RescaleSlope": 2,
        "RescaleIntercept": "-1024", "RescaleType": NAME, "PixelSpacingCalibrationType": "GEOMETRY",
        "LossyImageCompression": "01", "LossyImageCompressionRatio": 4, "PresentationLUTShape": "IDENTITY",
    }  # fmt: skip
    save_dicom(path, np.arange(35, dtype=np.uint16).reshape(5, 7) * 100, 12, **{**given, **tags})
    file = pydicom.dcmread(path)
    file.preamble = (NAME * 16).encode()
    file.file_meta.SourceApplicationEntityTitle = NAME
    block = file.private_block(0x0011, NAME, create=True)
    block.add_new(0x01, "LO", NAME)
    file.add_new(0x60003000, "OW", NAME.encode())  # an overlay
    pydicom.dcmwrite(path, file, enforce_file_format=True)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_no_tag_of_the_patient_survives(tmp_path: Path, syntax: str) -> None:
    identified(tmp_path / "a.dcm", syntax=syntax)
    before = pydicom.dcmread(tmp_path / "a.dcm")
    assert (tmp_path / "a.dcm").read_bytes().count(NAME.encode()) > 20
    own = read_own(tmp_path / "a.dcm")
    made = [tmp_path / "b.dcm", tmp_path / "c.dcm"]
    for path in made:
        write_own(path, own.image, own.kind)
        data = path.read_bytes()
        assert NAME.encode() not in data and b"1952" not in data and b"1.2.3.4" not in data and data[:128] == bytes(128)
    after, again = (pydicom.dcmread(path) for path in made)
    for element in after.iterall():
        assert element.keyword in ALLOWED or (element.keyword in ALLOWED_EMPTY and element.is_empty), element
    assert {element.keyword for element in after.file_meta} <= ALLOWED_META
    for tag in ("PixelSpacing", "ImagerPixelSpacing", "WindowCenter", "WindowWidth", "VOILUTFunction", "RescaleSlope"):
        assert after[tag].value == before[tag].value, tag
    assert after.RescaleIntercept == -1024 and str(after.PixelSpacing[1]) == "0.140" and "RescaleType" not in after
    assert (
        bytes(after.VOILUTSequence[0].LUTData) == struct.pack("<4H", 0, 80, 160, 255)
        and "LUTExplanation" not in after.VOILUTSequence[0]
    )
    assert list(after.ImageType)[:2] == ["DERIVED", "SECONDARY"] and after.LossyImageCompression == "01"
    assert after.SOPClassUID == after.file_meta.MediaStorageSOPClassUID == SecondaryCaptureImageStorage
    assert after.SOPInstanceUID == after.file_meta.MediaStorageSOPInstanceUID
    uids = {(f.SOPInstanceUID, f.StudyInstanceUID, f.SeriesInstanceUID) for f in (before, after, again)}
    assert len({uid for three in uids for uid in three}) == 9, "all fresh, and none made from another"
    assert np.array_equal(after.pixel_array, before.pixel_array)


def test_monochrome1_is_bright_where_its_values_are_low(tmp_path: Path) -> None:
    save_dicom(tmp_path / "a.dcm", np.array([[0, 4095], [100, 0]], np.uint16), 12, "MONOCHROME1")
    own = read_own(tmp_path / "a.dcm")
    assert own.image[0, 0, 0].tolist() == [1, -1]
    write_own(tmp_path / "b.dcm", torch.ones(1, 1, 2, 2), own.kind)
    after = pydicom.dcmread(tmp_path / "b.dcm")
    assert after.PhotometricInterpretation == "MONOCHROME1" and (after.pixel_array == 0).all()


def test_a_compressed_file_is_written_plain(tmp_path: Path) -> None:
    levels = np.random.default_rng(0).integers(0, 4096, (9, 7)).astype(np.uint16)
    save_dicom(tmp_path / "a.dcm", levels, 12)
    file = pydicom.dcmread(tmp_path / "a.dcm")
    file.compress(RLELossless)
    file.save_as(tmp_path / "a.dcm")
    own = read_own(tmp_path / "a.dcm")
    write_own(tmp_path / "b.dcm", own.image, own.kind)
    after = pydicom.dcmread(tmp_path / "b.dcm")
    assert after.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian and np.array_equal(after.pixel_array, levels)


def test_a_look_up_table_of_words_is_kept_too(tmp_path: Path) -> None:
    curve = Dataset()
    curve.LUTDescriptor = [4, 0, 8]
    curve.add_new("LUTData", "US", [0, 80, 160, 255])
    save_dicom(tmp_path / "a.dcm", np.zeros((4, 4), np.uint16), 12, VOILUTSequence=[curve])
    own = read_own(tmp_path / "a.dcm")
    write_own(tmp_path / "b.dcm", own.image, own.kind)
    after = pydicom.dcmread(tmp_path / "b.dcm").VOILUTSequence[0]
    assert after.LUTData == [0, 80, 160, 255] and after.LUTDescriptor == [4, 0, 8]


@pytest.mark.filterwarnings("ignore:Invalid value")
def test_a_window_that_is_no_number_names_the_file(tmp_path: Path) -> None:
    save_dicom(tmp_path / "a.dcm", np.zeros((4, 4), np.uint16), 12, WindowCenter="12", WindowWidth="12")
    data = (tmp_path / "a.dcm").read_bytes()
    (tmp_path / "a.dcm").write_bytes(data.replace(b"DS\x02\x0012", b"DS\x02\x00xy"))
    with pytest.raises(DataError, match="a.dcm"):
        read_own(tmp_path / "a.dcm")


def cut(save: Callable[..., None], size: int) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        save(path, np.random.default_rng(0).integers(0, 256, (32, 32)))
        path.write_bytes(path.read_bytes()[:size])

    return make


def pixels(dtype: str, *shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 100, shape).astype(dtype)


def sixteen_bit_colour(path: Path) -> None:
    """A grey image as 16-bit RGB, of which Pillow gives 8 bits alone."""
    tifffile.imwrite(path, np.repeat(pixels("u2", 9, 9, 1), 3, axis=2), photometric="rgb")


def sixteen_bit_colour_png(path: Path) -> None:
    import zlib

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = b"".join(b"\0" + bytes(6 * 9) for _ in range(9))
    head = struct.pack(">IIBBBBB", 9, 9, 16, 2, 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)


def colour_dicom(path: Path) -> None:
    save_dicom(path, pixels("u1", 3, 8, 8), 8, "RGB", SamplesPerPixel=3, PlanarConfiguration=1)


def nan(path: Path) -> None:
    tifffile.imwrite(path, np.full((4, 4), np.nan, np.float32))


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing.png": (lambda path: None, "cannot be read"),
    "empty.png": (Path.touch, "cannot be read"),
    "cut.png": (cut(picture("u2"), 300), "cannot be read"),
    "cut.tif": (cut(tiff("u2"), 900), "cannot be read"),
    "cut.jpg": (cut(picture("u1"), 400), "cannot be read"),
    "cut.dcm": (cut(dicom(12), 900), "cannot be read"),
    "notes.dcm": (lambda path: path.write_text("no image"), "no DICOM header"),
    "other.png": (lambda path: Image.fromarray(pixels("u1", 9, 9)).save(path, "BMP"), "cannot be read"),
    "colour.png": (lambda path: Image.fromarray(pixels("u1", 9, 9, 3)).save(path), "colour image"),
    "colour.jpg": (lambda path: Image.fromarray(pixels("u1", 9, 9, 3)).save(path), "colour image"),
    "ink.jpg": (lambda path: Image.new("CMYK", (9, 9)).save(path), "colour image"),
    "colour.dcm": (colour_dicom, "colour image"),
    "palette.dcm": (lambda path: save_dicom(path, pixels("u1", 8, 8), 8, "PALETTE COLOR"), "colour image"),
    "deep.tif": (sixteen_bit_colour, "16 bits a pixel and channel"),
    "deep.png": (sixteen_bit_colour_png, "16 bits a pixel and channel"),
    "shallow.png": (lambda path: Image.new("1", (9, 9)).save(path), "1 bits a pixel"),
    "signed.tif": (lambda path: tifffile.imwrite(path, pixels("i2", 9, 9)), "signed or 32-bit"),
    "alpha.png": (lambda path: Image.new("LA", (9, 9), (3, 4)).save(path), "transparent"),
    "frames.tif": (lambda path: tifffile.imwrite(path, pixels("u1", 3, 9, 9), photometric="minisblack"), "3 frames"),
    "frames.dcm": (lambda path: save_dicom(path, pixels("u2", 2, 8, 8), 12, NumberOfFrames=2), "2 frames"),
    "wide.dcm": (lambda path: save_dicom(path, pixels("u4", 8, 8), 32), "expected 8 or 16 bits"),
    "nan.tif": (nan, "NaN"),
    "hounsfield.tif": (lambda path: tifffile.imwrite(path, pixels("f4", 9, 9)), "exceeds its range"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.filterwarnings("ignore")
def test_a_bad_file_is_named_with_what_was_expected(tmp_path: Path, name: str) -> None:
    make, said = BAD[name]
    make(tmp_path / name)
    with pytest.raises(DataError, match=said) as caught:
        read_own(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def test_grey_images_stored_in_colour_become_grey(tmp_path: Path) -> None:
    levels = np.random.default_rng(0).integers(0, 256, (9, 7), dtype=np.uint8)
    Image.fromarray(np.repeat(levels[..., None], 3, axis=2)).save(tmp_path / "rgb.png")
    Image.fromarray(levels).convert("P").save(tmp_path / "palette.png")
    for name in ("rgb.png", "palette.png"):
        own = read_own(tmp_path / name)
        write_own(tmp_path / "made.png", own.image, own.kind)
        after = Image.open(tmp_path / "made.png")
        assert after.mode == "L" and np.array_equal(np.asarray(after), levels), name


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError("disk full")])
@pytest.mark.parametrize("name", ["a8.png", "d16.tiff", "j12.dcm"])
def test_a_write_that_stops_half_way_leaves_what_was_there(
    tmp_path: Path, name: str, stop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bits, save, _ = KINDS[name]
    save(tmp_path / name, np.zeros((6, 6)))
    own, before = read_own(tmp_path / name), (tmp_path / name).read_bytes()
    whole = type(own.kind).write

    def half(kind: Any, file: Any, grey: np.ndarray) -> None:
        whole(kind, file, grey)
        file.truncate(40)
        raise stop

    monkeypatch.setattr(type(own.kind), "write", half)
    with pytest.raises((KeyboardInterrupt, OSError)):
        write_own(tmp_path / name, -own.image, own.kind)
    assert (tmp_path / name).read_bytes() == before and [p.name for p in tmp_path.iterdir()] == [name]


def test_a_translation_that_is_not_finite_is_not_written(tmp_path: Path) -> None:
    picture("u1")(tmp_path / "a.png", np.zeros((2, 2)))
    own = read_own(tmp_path / "a.png")
    for value in (float("nan"), float("inf")):
        with pytest.raises(DataError, match=r"b\.png"):
            write_own(tmp_path / "b.png", torch.full((1, 1, 2, 2), value), own.kind)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_which_files_are_images(tmp_path: Path) -> None:
    for name in ("notes.txt", "scan.nii", "DICOMDIR", "IM0001", "IM0002", "a.JPEG"):
        (tmp_path / name).write_text("words")
    dicom(12)(tmp_path / "IM0002", np.zeros((4, 4)))
    dicom(12)(tmp_path / "DICOMDIR", np.zeros((4, 4)))
    assert [p.name for p in sorted(tmp_path.iterdir()) if is_image(p)] == ["IM0002", "a.JPEG"]
