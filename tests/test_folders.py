"""Reading a user's folders: the values that come out, the split, and one clear error per kind of bad file."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

from medshift.data.domains import DOMAINS
from medshift.data.folders import read_folders, read_image
from medshift.errors import DataError, ParameterError


def save_dicom(path: Path, stored: np.ndarray, bits: int, photometric: str = "MONOCHROME2", **tags) -> None:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[path.name])
    file = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    file.SOPClassUID, file.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    file.Rows, file.Columns, file.SamplesPerPixel = *stored.shape, 1
    file.PhotometricInterpretation = photometric
    file.BitsAllocated, file.BitsStored, file.HighBit = 8 * stored.itemsize, bits, bits - 1
    file.PixelRepresentation = int(stored.dtype.kind == "i")
    for tag, value in tags.items():
        setattr(file, tag, value)
    file.PixelData = stored.tobytes()
    file.save_as(path)


def write(path: Path, unit: np.ndarray, kind: str) -> float:
    """Write an image with values in [0, 1]; returns the width of one grey step on the scale of [-1, 1]."""
    eight, sixteen = np.round(unit * 255).astype(np.uint8), np.round(unit * 65535).astype(np.uint16)
    if kind == "dicom12":
        save_dicom(path, np.round(unit * 4095).astype(np.uint16), 12)
    elif kind == "dicom-signed":
        save_dicom(path, (np.round(unit * 4095) - 2048).astype(np.int16), 12)
    elif kind == "dicom-monochrome1":
        save_dicom(path, 4095 - np.round(unit * 4095).astype(np.uint16), 12, "MONOCHROME1")
    elif kind == "dicom-falling":
        falling = 4095 - np.round(unit * 4095).astype(np.uint16)
        save_dicom(path, falling, 12, RescaleSlope=-1, RescaleIntercept=0)
    elif kind in ("tiff-white-is-zero-8", "tiff-white-is-zero-16"):
        stored = 255 - eight if kind.endswith("8") else 65535 - sixteen
        tifffile.imwrite(path, stored, photometric="miniswhite")
    elif kind == "tiff-float":
        tifffile.imwrite(path, unit.astype(np.float32))
    elif kind == "tiff-lzw":
        Image.fromarray(sixteen).save(path, compression="tiff_lzw")
    elif kind == "rgb":
        Image.fromarray(np.repeat(eight[..., None], 3, axis=2)).save(path)
    elif kind == "palette":
        Image.fromarray(eight).convert("P").save(path)
    else:
        Image.fromarray(sixteen if kind.endswith("16") else eight).save(path)
    return 2 / (255 if kind in ("png8", "tiff8", "rgb", "palette", "tiff-white-is-zero-8") else 4095)


KINDS = {
    "png8": "png", "png16": "png", "tiff8": "tif", "tiff16": "tiff", "tiff-lzw": "tif", "tiff-float": "tif",
    "tiff-white-is-zero-8": "tif", "tiff-white-is-zero-16": "tif", "rgb": "png", "palette": "png",
    "dicom12": "dcm", "dicom-signed": "dcm", "dicom-monochrome1": "dcm", "dicom-falling": "DCM",
}  # fmt: skip


@given(st.sampled_from(sorted(KINDS)), st.integers(8, 70), st.integers(8, 70), st.integers(0, 2**16))
@settings(max_examples=80)
def test_every_format_and_size_gives_the_same_grey_values(tmp_path, kind, height, width, seed):
    unit = np.random.default_rng(seed).random((height, width))
    path = tmp_path / f"{kind}.{KINDS[kind]}"
    step = write(path, unit, kind)
    image = read_image(path)
    assert image.dtype == torch.float32 and image.shape == (1, height, width)
    assert (image[0].numpy() - (2 * unit - 1)).__abs__().max() <= step / 2 + 1e-6


def domain_files(root: Path, domain: str, names: list[str], size: tuple[int, int] = (16, 16)) -> None:
    (root / domain).mkdir(parents=True)
    for i, name in enumerate(names):
        pixels = np.random.default_rng(i).integers(0, 256, size, dtype=np.uint8)
        Image.fromarray(pixels).save(root / domain / name)


@given(st.integers(8, 90), st.integers(8, 90), st.sampled_from([8, 16, 24]))
@settings(max_examples=40)
def test_resizing_keeps_the_aspect_and_crops_the_middle(height, width, size):
    """A picture whose value is its own position: the middle stays in the middle and both axes share one scale."""
    import tempfile

    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        for domain in ("a", "b"):
            (Path(folder) / domain).mkdir()
            field = rows / height if domain == "a" else columns / width
            tifffile.imwrite(Path(folder) / domain / "x.tif", field)
        data = read_folders(folder, size=size)
        split = next(s for s, n in data.counts()["a"].items() if n)
        down = (data.image("a", split, 0)[0] + 1) / 2 * height
        across = (data.image("b", split, 0)[0] + 1) / 2 * width
    assert down.shape == (size, size)
    middle = slice(size // 4, size - size // 4)
    scale = min(height, width) / size
    if scale <= 2 and min(height, width) >= 16:
        slope_down = down[middle, size // 2].diff().mean()
        slope_across = across[size // 2, middle].diff().mean()
        assert slope_down == pytest.approx(scale, rel=0.12) and slope_across == pytest.approx(scale, rel=0.12)
    assert down.mean() == pytest.approx((height - 1) / 2, abs=scale + 0.5)
    assert across.mean() == pytest.approx((width - 1) / 2, abs=scale + 0.5)


def test_shrinking_is_antialiased(tmp_path):
    """A one-pixel chequerboard shrunk four times is flat grey; without antialiasing it would be black and white."""
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    for domain in ("a", "b"):
        (tmp_path / domain).mkdir()
        Image.fromarray(board).save(tmp_path / domain / "x.png")
    data = read_folders(tmp_path, size=16)
    split = next(s for s, n in data.counts()["a"].items() if n)
    assert data.images("a", split)[..., 2:-2, 2:-2].abs().max() < 0.02


def test_the_hash_split_is_stable_and_keeps_a_view_together(tmp_path):
    names = [f"view-{i:03d}.png" for i in range(200)]
    domain_files(tmp_path, "a", names, (8, 8))
    domain_files(tmp_path, "b", names[::2], (8, 8))
    before = read_folders(tmp_path)
    where = {path.name: split for split, paths in before.files["a"].items() for path in paths}
    assert all(where[p.name] == split for split, paths in before.files["b"].items() for p in paths)
    share = before.counts()["a"]
    assert 140 <= share["train"] <= 180 and 8 <= share["val"] <= 35 and 8 <= share["test"] <= 35
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a" / "another.png")
    after = read_folders(tmp_path)
    moved = [p.name for split, paths in after.files["a"].items() for p in paths if where.get(p.name, split) != split]
    assert moved == []


def test_a_small_domain_has_every_split(tmp_path):
    for domain in ("a", "b"):
        domain_files(tmp_path, domain, [f"{domain}{i}.png" for i in range(4)])
    for row in read_folders(tmp_path).counts().values():
        assert min(row.values()) >= 1 and sum(row.values()) == 4


def test_given_splits_are_kept(tmp_path):
    for split, n in {"train": 3, "val": 1, "test": 2}.items():
        for domain in ("a", "b"):
            domain_files(tmp_path / domain, split, [f"{split}{i}.png" for i in range(n)])
    assert read_folders(tmp_path).counts() == {d: {"train": 3, "val": 1, "test": 2} for d in ("a", "b")}


def test_the_official_layout_in_other_spellings(tmp_path):
    spelled = ["Synthetic_Low", "SYNTHETIC HIGH", "real-low", "Real Normal", "real_exposure"]
    for name in spelled:
        domain_files(tmp_path, name, ["x.png", "y.png", "z.png"])
    assert read_folders(tmp_path).domains == DOMAINS
    assert read_folders(tmp_path, domains=DOMAINS).counts().keys() == set(DOMAINS)


def test_an_incomplete_official_layout_says_what_to_place_where(tmp_path):
    domain_files(tmp_path, "Synthetic_Low", ["x.png", "y.png"])
    with pytest.raises(DataError) as caught:
        read_folders(tmp_path, domains=DOMAINS)
    message = str(caught.value)
    assert "16535437" in message
    assert "synthetic-low: expected 1 or more images, found 2" in message
    assert all(f"{tmp_path / d}: expected 1 or more images, found 0" in message for d in DOMAINS[1:])


def test_a_batch_is_balanced_unpaired_and_repeatable(tmp_path):
    domain_files(tmp_path, "a", [f"{i}.png" for i in range(40)])
    domain_files(tmp_path, "b", [f"{i}.png" for i in range(5)])
    data = read_folders(tmp_path, size=8)
    images, labels = data.batch(400, torch.Generator().manual_seed(1))
    again, _ = data.batch(400, torch.Generator().manual_seed(1))
    assert torch.equal(images, again) and images.shape == (400, 1, 8, 8)
    assert 160 < int((labels == 0).sum()) < 240
    trained = {d: data.images(d, "train").flatten(1) for d in data.domains}
    for image, label in zip(images[:40].flatten(1), labels[:40].tolist(), strict=True):
        assert (trained[data.domains[label]] == image).all(dim=1).any()


def test_air_dark_domains_are_turned(tmp_path):
    for domain in ("a", "b"):
        domain_files(tmp_path, domain, ["x.png", "y.png", "z.png"])
    plain, turned = read_folders(tmp_path), read_folders(tmp_path, air_dark=["b"])
    assert torch.equal(plain.images("a"), turned.images("a"))
    assert torch.equal(plain.images("b"), -turned.images("b"))


def corrupt(path: Path) -> None:
    write(path, np.random.default_rng(0).random((32, 32)), "png16")
    path.write_bytes(path.read_bytes()[:300])


def colour(path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)


def not_a_number(path: Path) -> None:
    pixels = np.full((32, 32), 0.5, np.float32)
    pixels[3, 4] = np.nan
    tifffile.imwrite(path, pixels)


def beyond_range(path: Path) -> None:
    tifffile.imwrite(path, np.full((32, 32), 900, np.float32))


def several_frames(path: Path) -> None:
    tifffile.imwrite(path, np.zeros((3, 32, 32), np.uint16), photometric="minisblack")


def see_through(path: Path) -> None:
    Image.fromarray(np.full((32, 32, 4), 100, np.uint8)).save(path)


def cut_dicom(path: Path) -> None:
    save_dicom(path, np.zeros((32, 32), np.uint16), 12)
    path.write_bytes(path.read_bytes()[:-700])


BAD = {
    "corrupt.png": (corrupt, "cannot be read"),
    "empty.png": (Path.touch, "cannot be read"),
    "empty.tif": (Path.touch, "cannot be read"),
    "empty.dcm": (Path.touch, "cannot be read"),
    "cut.dcm": (cut_dicom, "cannot be read"),
    "colour.png": (colour, "colour"),
    "one-pixel.png": (lambda path: Image.fromarray(np.zeros((1, 1), np.uint8)).save(path), "1 × 1 pixels"),
    "nan.tif": (not_a_number, "NaN"),
    "hounsfield.tif": (beyond_range, "exceeds its range"),
    "frames.tif": (several_frames, "3 frames"),
    "alpha.png": (see_through, "transparent"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.filterwarnings("ignore")
def test_a_bad_file_is_named_with_its_remedy(tmp_path, name):
    make, said = BAD[name]
    for domain in ("a", "b"):
        domain_files(tmp_path, domain, ["x.png", "y.png", "z.png"])
    make(tmp_path / "b" / name)
    with pytest.raises(DataError, match=said) as caught:
        read_folders(tmp_path).verify()
    assert str(tmp_path / "b" / name) in str(caught.value)


def test_good_folders_pass_and_progress_reaches_one(tmp_path):
    for domain in ("a", "b"):
        domain_files(tmp_path, domain, ["x.png", "y.png", "z.png"])
    seen: list[float] = []
    read_folders(tmp_path).verify(seen.append)
    assert seen == pytest.approx([(i + 1) / 6 for i in range(6)])


def test_twelve_bits_in_sixteen_are_noticed(tmp_path):
    domain_files(tmp_path, "a", ["x.png", "y.png"])
    (tmp_path / "b").mkdir()
    Image.fromarray(np.full((16, 16), 4095, np.uint16)).save(tmp_path / "b" / "x.png")
    with pytest.raises(DataError, match="domain 'b'.*12-bit"):
        read_folders(tmp_path).verify()


def test_folders_that_are_missing_or_empty(tmp_path):
    with pytest.raises(DataError, match="no folder"):
        read_folders(tmp_path / "nowhere")
    with pytest.raises(DataError, match="fewer than two"):
        read_folders(tmp_path)
    domain_files(tmp_path, "a", ["x.png"])
    with pytest.raises(DataError, match="fewer than two"):
        read_folders(tmp_path)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "scan.jpg").touch()
    with pytest.raises(DataError, match=r"'b' has no images.*\.jpg"):
        read_folders(tmp_path)
    with pytest.raises(DataError, match="not every domain"):
        read_folders(tmp_path, domains=["a", "c"])


def test_two_spellings_of_one_domain_and_misplaced_images(tmp_path):
    domain_files(tmp_path, "real-low", ["x.png"])
    domain_files(tmp_path, "Real_Low", ["x.png"])
    with pytest.raises(DataError, match="both domain 'real-low'"):
        read_folders(tmp_path)
    domain_files(tmp_path / "other", "a", ["x.png"])
    domain_files(tmp_path / "other", "b", ["x.png"])
    domain_files(tmp_path / "other" / "a", "train", ["y.png"])
    with pytest.raises(DataError, match="beside train"):
        read_folders(tmp_path / "other")


def test_arguments_that_cannot_be(tmp_path):
    for domain in ("a", "b"):
        domain_files(tmp_path, domain, ["x.png"], (16, 12 if domain == "a" else 16))
    data = read_folders(tmp_path)
    for call in (
        lambda: read_folders(tmp_path, size=4),
        lambda: read_folders(tmp_path, air_dark=["c"]),
        lambda: data.batch(2, torch.Generator()),
        lambda: data.images("c"),
        lambda: data.images("a", "training"),
    ):
        with pytest.raises(ParameterError):
            call()


def test_pydicom_is_loaded_only_for_dicom():
    import subprocess
    import sys

    code = "import sys, medshift.data.folders; sys.exit('pydicom' in sys.modules)"
    assert pydicom.__version__ and subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
