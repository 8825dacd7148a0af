"""Paired folders: partners found by name, splits that keep subjects and scenes whole, volumes brought onto one grid."""

import random
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.spatial.transform import Rotation

from medshift.data.paired_folders import SPLITS, read_paired, split_of
from medshift.data.paired_volumes import MrVolume, axial_pairs, middle_slices, read_mr, resampled_slice
from medshift.errors import DataError, ParameterError

nibabel = pytest.importorskip("nibabel", reason='NIfTI needs: pip install "medshift[medical]"')

SUBJECT = "IXI012-HH-1211"
BLOBS = [((18.0, 25.0, 10.0), 16.0, 1.0), ((-25.0, -12.0, -6.0), 20.0, 0.6)]  # centre, width [mm], height


def anatomy(world: np.ndarray) -> np.ndarray:
    """Two Gaussians (..., 3) [mm] -> (...): no flip or turn about the middle leaves them as they are."""
    return sum(h * np.exp(-((world - np.array(c)) ** 2).sum(-1) / (2 * s**2)) for c, s, h in BLOBS)


def plateau(world: np.ndarray) -> np.ndarray:
    """From exact zero to a wide exact one, so that any grid has the same lowest value and 99.5th percentile."""
    return np.clip(3 * anatomy(world) - 0.3, 0, 1)


def centred(shape, linear: np.ndarray, shift=(0.0, 0.0, 0.0)) -> np.ndarray:
    """An affine that puts the middle of a grid at `shift` [mm]."""
    affine = np.eye(4)
    affine[:3, :3] = linear
    affine[:3, 3] = np.array(shift) - linear @ ((np.array(shape) - 1) / 2)
    return affine


def world_of(shape, affine: np.ndarray) -> np.ndarray:
    return np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]


def nifti(shape, affine, field=plateau, scale=700.0):
    return nibabel.Nifti1Image((scale * field(world_of(shape, affine))).astype(np.float32), affine)


T2_SHAPE, T2_AFFINE = (48, 48, 12), centred((48, 48, 12), np.diag([3.0, 3.0, 5.0]))


def save_ixi(root: Path, t1, t2=None, subject=SUBJECT) -> Path:
    for name, image in (("T1", t1), ("T2", t2 or nifti(T2_SHAPE, T2_AFFINE))):
        (root / f"IXI-{name}").mkdir(parents=True, exist_ok=True)
        image.to_filename(root / f"IXI-{name}" / f"{subject}-{name}.nii.gz")
    return root


def load_all(root: Path, size: int = 48, **options):
    return read_paired(root, size, **options).load(split_of(SUBJECT))


def reoriented(image, codes: str):
    codes_to = nibabel.orientations.axcodes2ornt(codes)
    return image.as_reoriented(nibabel.orientations.ornt_transform(nibabel.io_orientation(image.affine), codes_to))


angles = st.floats(-180, 180)
mm = st.floats(-6, 6)


@settings(max_examples=20)
@given(turn=st.tuples(angles, angles, angles), shift=st.tuples(mm, mm, mm), flip=st.sampled_from([-1, 1]))
def test_a_volume_on_any_grid_is_seen_alike_on_the_other(turn, shift, flip):
    """Its values at the other's voxels are the anatomy's own, whatever the turn, shift and handedness."""
    shape = (64, 60, 62)
    linear = Rotation.from_euler("xyz", turn, degrees=True).as_matrix() @ np.diag([flip * 2.2, 2.5, 2.3])
    affine = centred(shape, linear, shift)
    moving = MrVolume((2 * anatomy(world_of(shape, affine)) - 1).astype(np.float32), affine, Path("t1"))
    grid = MrVolume(np.zeros((21, 19, 9), np.float32), centred((21, 19, 9), np.diag([3.1, 3.3, 4.0])), Path("t2"))
    expected = 2 * anatomy(world_of((21, 19, 9), grid.affine)) - 1
    for k in (0, 4, 8):
        assert np.abs(resampled_slice(moving, grid, k) - expected[:, :, k]).max() < 0.02


def test_the_pictures_of_a_subject_are_the_anatomy_seen_radiologically(tmp_path):
    """Rows run to posterior and columns to the patient's left; T1 is sagittal, oblique, flipped, in metres."""
    shape = (70, 80, 75)
    linear = Rotation.from_euler("xyz", (8, -5, 12), degrees=True).as_matrix() @ np.diag([-2.0, 2.0, 2.0])
    affine = centred(shape, linear, (4.0, -3.0, 2.0))
    in_metres = nibabel.Nifti1Image(nifti(shape, affine, scale=40.0).get_fdata(dtype=np.float32), affine)
    in_metres.affine[:3] /= 1000
    in_metres = nibabel.Nifti1Image(in_metres.get_fdata(dtype=np.float32), in_metres.affine)
    in_metres.header.set_xyzt_units("meter")
    root = save_ixi(tmp_path, reoriented(in_metres, "PSR"), reoriented(nifti(T2_SHAPE, T2_AFFINE), "LPS"))
    data = read_paired(root, 48)
    assert (data.layout, data.source, data.target) == ("ixi", "T2", "T1")
    names, t2, t1 = data.load(split_of(SUBJECT))
    expected = 2 * plateau(world_of(T2_SHAPE, T2_AFFINE)) - 1
    assert names == [f"{SUBJECT}/{k:03d}" for k in range(3, 9)]
    assert t1.shape == t2.shape == (6, 1, 48, 48) and t1.dtype == t2.dtype == torch.float32
    for i, k in enumerate(range(3, 9)):
        picture = np.array([[expected[47 - column, 47 - row, k] for column in range(48)] for row in range(48)])
        assert np.abs(t2[i, 0].numpy() - picture).max() < 1e-5
        assert np.abs(t1[i, 0].numpy() - picture).max() < 0.12 and np.abs(t1[i, 0].numpy() - picture).mean() < 0.01


@pytest.mark.parametrize("codes", ["LPS", "PSR", "ILA", "SAL"])
def test_how_a_file_stores_its_axes_changes_nothing(tmp_path, codes):
    t1 = nifti((40, 44, 36), centred((40, 44, 36), np.diag([3.0, 3.0, 3.0]), (2.0, 1.0, 0.0)))
    t2 = nifti(T2_SHAPE, T2_AFFINE)
    plain = load_all(save_ixi(tmp_path / "plain", t1, t2))
    for name, pair in {"t1": (reoriented(t1, codes), t2), "t2": (t1, reoriented(t2, codes))}.items():
        names, source, target = load_all(save_ixi(tmp_path / name, *pair))
        assert names == plain[0]
        assert torch.allclose(source, plain[1], atol=1e-5) and torch.allclose(target, plain[2], atol=1e-4)


def test_the_same_grid_gives_the_same_values_up_to_the_border(tmp_path):
    """Rounding in the affines must not blank the outermost voxels."""
    noise = np.random.default_rng(0).random(T2_SHAPE).astype(np.float32)
    affine = centred(
        T2_SHAPE, Rotation.from_euler("xyz", (3, 7, 11), degrees=True).as_matrix() * 0.9375, (1.1, 2.3, 0.7)
    )
    volume = MrVolume(noise, affine, Path("a"))
    assert np.abs(resampled_slice(volume, volume, 0) - noise[:, :, 0]).max() < 1e-5


def test_beyond_the_other_volume_is_air_and_volumes_apart_are_refused(tmp_path):
    shape = (20, 40, 40)
    narrow = MrVolume(np.ones(shape, np.float32), centred(shape, np.diag([3.0, 3.0, 3.0])), Path("t1.nii"))
    grid = MrVolume(np.zeros(T2_SHAPE, np.float32), T2_AFFINE, Path("t2.nii"))
    seen = resampled_slice(narrow, grid, 6)
    assert (seen[:13] == -1).all() and (seen[-13:] == -1).all() and (seen[15:33, 10:38] == 1).all()
    apart = MrVolume(narrow.values, centred(shape, np.diag([3.0, 3.0, 3.0]), (500.0, 0.0, 0.0)), Path("t1.nii"))
    with pytest.raises(DataError, match=r"'t2.nii' and 't1.nii' lie apart"):
        next(axial_pairs(grid, apart, 0.5))


def test_pixels_of_unequal_sides_become_square(tmp_path):
    """A ball stays round, and its size in pixels is that in mm over the field of view."""
    shape, spacing = (60, 30, 8), np.diag([2.0, 4.0, 4.0])

    def ball(world):
        return (np.linalg.norm(world[..., :2], axis=-1) < 36).astype(float)

    image = nifti(shape, centred(shape, spacing), ball)
    _, source, _ = load_all(save_ixi(tmp_path, image, image), size=60)
    weight = (source[0, 0] + 1) / 2
    rows, columns = torch.meshgrid(torch.arange(60.0), torch.arange(60.0), indexing="ij")
    spreads = [((weight * (axis - 29.5) ** 2).sum() / weight.sum()).sqrt().item() for axis in (rows, columns)]
    assert spreads == pytest.approx([36 / 2 / 2, 36 / 2 / 2], rel=0.05)  # mm / (2 mm a pixel); a disc spreads by r / 2


@given(st.integers(1, 400), st.floats(0.01, 1))
def test_the_middle_slices_are_the_share_and_in_the_middle(count, share):
    kept = middle_slices(count, share)
    assert 0 <= kept.start < kept.stop <= count and abs(len(kept) - share * count) <= max(0.5, 1 - share * count)
    assert abs(kept.start - (count - kept.stop)) <= 1


def test_the_99_5th_percentile_is_white_and_the_lowest_value_black(tmp_path):
    values = np.random.default_rng(1).permutation(np.arange(20.0**3, dtype=np.float32) + 50).reshape(20, 20, 20)
    nibabel.Nifti1Image(values, np.eye(4)).to_filename(tmp_path / "a.nii")
    read = read_mr(tmp_path / "a.nii").values
    assert read.min() == -1 and read.max() == 1 and (read == 1).mean() == pytest.approx(0.005, abs=2e-4)
    assert np.median(read) == pytest.approx(2 * 0.5 / 0.995 - 1, abs=1e-3)


def bad_volume(kind: str):
    image = nifti(T2_SHAPE, T2_AFFINE)
    values = image.get_fdata(dtype=np.float32).copy()
    if kind == "orientation":
        image.set_sform(None, 0)
        image.set_qform(None, 0)
        return image
    if kind == "constant":
        values[:] = 3.0
    if kind == "nan":
        values[0, 0, 0] = np.nan
    if kind == "series":
        values = np.stack([values, values], axis=-1)
    if kind == "complex":
        values = values.astype(np.complex64)
    return nibabel.Nifti1Image(values, T2_AFFINE)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("orientation", "unknown orientation"),
        ("constant", "hold one value"),
        ("nan", "NaN"),
        ("series", "expected one 3-D volume"),
        ("complex", "expected one number each"),
        ("truncated", "cannot be read as NIfTI"),
    ],
)
def test_a_bad_volume_is_refused_by_name(tmp_path, kind, says):
    root = save_ixi(tmp_path, bad_volume(kind))
    path = root / "IXI-T1" / f"{SUBJECT}-T1.nii.gz"
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(DataError, match=says) as caught:
        load_all(root)
    assert str(path) in str(caught.value)


def test_missing_nibabel_says_what_to_install(tmp_path, monkeypatch):
    root = save_ixi(tmp_path, nifti(T2_SHAPE, T2_AFFINE))
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(DataError, match=r'pip install "medshift\[medical\]"'):
        load_all(root)


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def where(data) -> dict[str, str]:
    return {name: split for split in SPLITS for name, *_ in data.files[split]}


subjects = st.builds("IXI{:03d}-{}-{:04d}".format, st.integers(0, 999), st.sampled_from(["HH", "Guys", "IOP"]),
                     st.integers(0, 9999))  # fmt: skip


@settings(max_examples=25)
@given(st.sets(subjects, min_size=1, max_size=12), st.sets(subjects, max_size=12), st.randoms())
def test_subjects_fall_into_one_split_each_and_stay_there(first, more, shuffler):
    def files(ids):
        names = [f"IXI-{w}/{i}-{w}.nii{'.gz' * (w == 'T1')}" for i in ids for w in ("T1", "T2")]
        shuffler.shuffle(names)
        return names

    with tempfile.TemporaryDirectory() as folder:
        before = read_paired(touch(Path(folder), *files(first)), 16)
        after = read_paired(touch(Path(folder), *files(first | more)), 16)
    assert sum(before.counts().values()) == len(first) and where(before).keys() == first
    assert where(after).keys() == first | more and where(before).items() <= where(after).items()
    for group in after.files.values():
        assert [name for name, *_ in group] == sorted(name for name, *_ in group)
        assert all(s.name.startswith(f"{n}-T2") and t.name.startswith(f"{n}-T1") for n, s, t in group)


def test_the_split_is_80_10_10():
    splits = [split_of(f"IXI{i:03d}-HH-{j}") for i in range(500) for j in range(8)]
    assert [splits.count(s) / 4000 for s in SPLITS] == pytest.approx([0.8, 0.1, 0.1], abs=0.02)


patches = st.tuples(
    st.sampled_from(["agri", "barrenland", "grassland", "urban"]), st.integers(1, 30), st.integers(1, 400)
)


@settings(max_examples=20)
@given(st.sets(patches, min_size=2, max_size=30))
def test_patches_of_one_scene_never_part_even_across_classes(drawn):
    with tempfile.TemporaryDirectory() as folder:
        names = [f"{c}/{s}/ROIs1868_summer_{s}_{n}_p{p}.png" for c, n, p in sorted(drawn) for s in ("s1", "s2")]
        data = read_paired(touch(Path(folder), *names), 16)
    assert data.layout == "sentinel"
    splits = where(data)
    assert splits.keys() == {f"{c}/ROIs1868_summer_{n}_p{p}" for c, n, p in drawn}
    by_scene: dict[int, set[str]] = {}
    for c, n, p in drawn:
        by_scene.setdefault(n, set()).add(splits[f"{c}/ROIs1868_summer_{n}_p{p}"])
    assert all(len(seen) == 1 for seen in by_scene.values())
    for group in data.files.values():
        assert all(t == Path(str(s).replace("/s1/", "/s2/").replace("_s1_", "_s2_")) for _, s, t in group)


def test_the_order_in_which_files_are_listed_does_not_matter(tmp_path, monkeypatch):
    touch(tmp_path, *(f"{side}/{i:02d}.png" for side in ("source", "target") for i in range(40)))
    files = read_paired(tmp_path, 16).files
    listed = Path.iterdir
    monkeypatch.setattr(
        Path, "iterdir", lambda self: iter(random.Random(3).sample(found := list(listed(self)), len(found)))
    )
    assert read_paired(tmp_path, 16).files == files and sum(map(len, files.values())) == 40


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def grey(seed: int, shape=(16, 16)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def train_stem(n: int = 1) -> list[str]:
    return [s for s in (f"cell{i:03d}" for i in range(200)) if split_of(s) == "train"][:n]


def test_optical_images_become_luminance_and_radar_stays_grey(tmp_path):
    scene = next(n for n in range(99) if split_of(f"ROIs1868_summer_{n}") == "train")
    colour, radar = grey(1, (16, 16, 3)), grey(2)
    save(tmp_path / f"urban/s1/ROIs1868_summer_s1_{scene}_p7.png", radar)
    save(tmp_path / f"urban/s2/ROIs1868_summer_s2_{scene}_p7.png", colour)
    names, sar, optical = read_paired(tmp_path, 16).load()
    r, g, b = (colour[..., k].astype(float) for k in range(3))
    assert names == [f"urban/ROIs1868_summer_{scene}_p7"]
    assert np.abs(sar[0, 0].numpy() - (2 * (radar / 255.0) - 1)).max() < 1e-6
    assert np.abs(optical[0, 0].numpy() - (2 * (0.299 * r + 0.587 * g + 0.114 * b) / 255 - 1)).max() < 1e-6


@pytest.mark.parametrize("one", [1, 255])
@pytest.mark.parametrize("size", [16, 11, 40])
def test_masks_stay_binary_at_any_size_and_lie_on_their_image(tmp_path, one, size):
    rows, columns = np.mgrid[:64, :80]
    disc = (rows - 25) ** 2 + (columns - 45) ** 2 < 400
    (stem,) = train_stem()
    save(tmp_path / f"images/{stem}.jpg", np.where(disc, 255, 0).astype(np.uint8))
    save(tmp_path / f"masks/{stem}.png", np.where(disc, one, 0).astype(np.uint8))
    _, image, mask = read_paired(tmp_path, size).load()
    assert mask.shape == image.shape == (1, 1, size, size) and set(mask.unique().tolist()) == {-1.0, 1.0}
    steps = torch.arange(size) + 0.5
    for axis, middle in ((1, 25.5), (0, 37.5)):  # the columns lose 8 on either side
        weights = [(picture[0, 0] + 1).sum(axis) / (picture[0, 0] + 1).sum() for picture in (image, mask)]
        on_image, on_mask = ((weight * steps).sum().item() for weight in weights)
        assert on_image == pytest.approx(middle * size / 64, abs=0.6)  # a crop of odd width is half a pixel off
        assert on_mask == pytest.approx(on_image, abs=0.25)


def test_shrinking_is_antialiased(tmp_path):
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    (stem,) = train_stem()
    save(tmp_path / f"source/{stem}.png", board)
    save(tmp_path / f"target/{stem}.png", board)
    _, source, target = read_paired(tmp_path, 16).load()
    assert source[..., 2:-2, 2:-2].abs().max() < 0.02 and torch.equal(source, target)


@pytest.mark.parametrize("form", ["images/{split}/{stem}.png", "{split}/images/{stem}.png"])
def test_a_given_split_is_kept(tmp_path, form):
    given_split = {"a": "train", "b": "val", "c": "test", "d": "test"}
    for i, (stem, split) in enumerate(given_split.items()):
        path = form.format(split=split, stem=stem)
        save(tmp_path / path, grey(i))
        save(tmp_path / path.replace("images", "masks"), (grey(i) > 127).astype(np.uint8))
    data = read_paired(tmp_path, 16)
    assert (data.layout, where(data)) == ("pscde", given_split)
    names, _, masks = data.load("test")
    assert names == ["c", "d"] and torch.equal(masks[1, 0] > 0, torch.from_numpy(grey(3) > 127))
    save(tmp_path / "images/loose.png", grey(9))
    with pytest.raises(DataError, match="within and beside train"):
        read_paired(tmp_path, 16)


def test_limit_counts_images_and_takes_the_first(tmp_path):
    for i, stem in enumerate(train_stem(4)):
        for side in ("source", "target"):
            save(tmp_path / side / f"{stem}.png", grey(i))
    data = read_paired(tmp_path, 16)
    whole, three = data.load(size=8), data.load(limit=3, size=8)
    assert three[0] == whole[0][:3] == train_stem(3) and torch.equal(three[1], whole[1][:3])
    slices = read_paired(save_ixi(tmp_path / "ixi", nifti(T2_SHAPE, T2_AFFINE)), 16, share=1.0)
    assert len(slices.load(split_of(SUBJECT))[0]) == 12
    assert slices.load(split_of(SUBJECT), limit=2)[0] == [f"{SUBJECT}/000", f"{SUBJECT}/001"]


def test_files_without_partner_are_counted_and_named_or_left_out(tmp_path):
    touch(tmp_path, *(f"source/a{i}.png" for i in range(7)), *(f"target/b{i}.png" for i in range(2)))
    touch(tmp_path, "source/both.png", "target/both.tif")
    with pytest.raises(DataError) as caught:
        read_paired(tmp_path, 16)
    said = str(caught.value)
    assert "7 source files" in said and "2 target files" in said and "both" not in said
    assert all(f"source/a{i}.png" in said for i in range(5)) and "a5" not in said
    assert "target/b0.png" in said and "target/b1.png" in said
    data = read_paired(tmp_path, 16, skip_unpaired=True)
    assert where(data).keys() == {"both"} and len(data.unpaired) == 9


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([0, 128], "the 2 values 0, 128;"),
        ([0, 1, 255], "the 3 values 0, 1, 255;"),
        (range(9), "9 values 0, 1, 2, 3, 4, "),
    ],
)
def test_a_mask_that_is_not_binary_is_refused_with_its_values(tmp_path, values, says):
    (stem,) = train_stem()
    save(tmp_path / f"images/{stem}.png", grey(0))
    save(tmp_path / f"masks/{stem}.png", np.resize(np.array(values, np.uint8), (16, 16)))
    with pytest.raises(DataError, match=says) as caught:
        read_paired(tmp_path, 16).load()
    assert f"masks/{stem}.png" in str(caught.value)


def test_an_empty_mask_is_a_mask(tmp_path):
    (stem,) = train_stem()
    save(tmp_path / f"images/{stem}.png", grey(0))
    save(tmp_path / f"masks/{stem}.png", np.zeros((16, 16), np.uint8))
    assert (read_paired(tmp_path, 16).load()[2] == -1).all()


def test_partners_of_different_size_are_named_with_their_sizes(tmp_path):
    (stem,) = train_stem()
    save(tmp_path / f"source/{stem}.png", grey(0, (16, 20)))
    save(tmp_path / f"target/{stem}.png", grey(0, (24, 20)))
    with pytest.raises(DataError, match=rf"source/{stem}.png' has 20 × 16 .*target/{stem}.png' 20 × 24"):
        read_paired(tmp_path, 16).load()


@pytest.mark.parametrize("side", ["images", "masks"])
def test_a_damaged_image_is_named(tmp_path, side):
    (stem,) = train_stem()
    save(tmp_path / f"images/{stem}.png", grey(0))
    save(tmp_path / f"masks/{stem}.png", (grey(0) > 99).astype(np.uint8))
    (tmp_path / side / f"{stem}.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=f"{side}/{stem}.png' cannot be read"):
        read_paired(tmp_path, 16).load()


def test_an_empty_split_is_named(tmp_path):
    touch(tmp_path, *(f"{side}/{train_stem()[0]}.png" for side in ("source", "target")))
    with pytest.raises(DataError, match=r"no pair in its split 'val' \(pairs: train 1, val 0, test 0\)"):
        read_paired(tmp_path, 16).load("val")
    with pytest.raises(ParameterError, match="'validation'"):
        read_paired(tmp_path, 16).pairs("validation")


def test_an_unknown_or_ambiguous_layout_shows_what_is_expected(tmp_path):
    with pytest.raises(DataError, match="no folder") as missing:
        read_paired(tmp_path / "nowhere", 16)
    touch(tmp_path, "T1/a.nii")
    with pytest.raises(DataError, match=r"no known layout \(found: T1\)") as unknown:
        read_paired(tmp_path, 16)
    touch(tmp_path, *(f"{side}/a.png" for side in ("source", "target", "images", "masks")))
    with pytest.raises(DataError, match="pscde .*and folders ") as ambiguous:
        read_paired(tmp_path, 16)
    for caught in (missing, unknown, ambiguous):
        assert all(f"  {layout}: " in str(caught.value) for layout in ("ixi", "sentinel", "pscde", "folders"))
    assert read_paired(tmp_path, 16, "folders").layout == "folders"
    with pytest.raises(DataError, match="holds no pair"):
        read_paired(tmp_path, 16, "ixi")


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["IXI-T1/IXI012-T1.nii.gz", "IXI-T2/IXI012-HH-1211-T2.nii.gz"], r"1 unexpected names \(IXI012-T1.nii.gz\)"),
        (["IXI-T1/IXI012-HH-1211-T2.nii.gz"], "unexpected names"),
        (["agri/s1/ROIs1868_summer_s2_59_p10.png"], "unexpected names"),
        (["source/a.png", "source/a.tif", "target/a.png"], "a.png' and '.*a.tif' are both 'a'"),
        (["IXI-T1/IXI012-HH-1211-T1.nii", "IXI-T1/IXI012-HH-1211-T1.nii.gz"], "are both 'IXI012-HH-1211'"),
        (["images/valid/a.png", "masks/valid/a.png"], r"2 unexpected names \(images/valid, masks/valid\)"),
        (["source/notes.txt"], "holds no images"),
        (["IXI-T1/IXI012-HH-1211-T1.nii"], "0 T2 files have no partner in T1; 1 T1 files have no partner in T2"),
    ],
)
def test_names_out_of_the_layout_are_refused(tmp_path, names, says):
    with pytest.raises(DataError, match=says):
        read_paired(touch(tmp_path, *names), 16)


@pytest.mark.parametrize(
    "arguments", [{"size": 4}, {"layout": "pairs"}, {"share": 0.0}, {"share": 1.5}, {"limit": 0}, {"load_size": 3}]
)
def test_arguments_out_of_range(tmp_path, arguments):
    touch(tmp_path, *(f"{side}/{train_stem()[0]}.png" for side in ("source", "target")))
    options = {"size": 16} | arguments
    load = {"limit": options.pop("limit", None), "size": options.pop("load_size", None)}
    with pytest.raises(ParameterError):
        read_paired(tmp_path, **options).load(**load)
