"""Readers: the same head from every kind of file, in one frame; whatever is no head CT is one clear error."""

import gzip
import sys

import numpy as np
import pytest
from ct_files import ball, package, project, write_dicom, write_nifti
from hypothesis import given, settings
from hypothesis import strategies as st

from medshift.data.readers import read_hounsfield, read_nifti, read_volume
from medshift.errors import DataError

nibabel = pytest.importorskip("nibabel", reason='NIfTI needs: pip install "medshift[medical]"')
SIDE = st.integers(2, 6)
LENGTH = st.integers(6, 60).map(lambda v: v / 10)


def _hu(shape, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1024, 3000, shape).astype(np.int16)


def _affine(spacing) -> np.ndarray:
    """Of an array (x, y, z) that runs to left, posterior, superior; NIfTI's world is RAS."""
    z, y, x = spacing
    return np.diag([-x, -y, z, 1.0])


@settings(max_examples=15, deadline=None)
@given(shape=st.tuples(SIDE, SIDE, SIDE), spacing=st.tuples(LENGTH, LENGTH, LENGTH), gz=st.booleans())
def test_nifti_round_trip(tmp_path_factory, shape, spacing, gz):
    hu = _hu(shape)
    path = tmp_path_factory.mktemp("nii") / f"ct.nii{'.gz' * gz}"
    scan = read_hounsfield(write_nifti(path, hu.transpose(2, 1, 0), _affine(spacing)))
    assert np.array_equal(scan.hu, hu)
    assert scan.spacing == pytest.approx(spacing, rel=1e-5)


@settings(max_examples=25, deadline=None)
@given(shape=st.tuples(SIDE, SIDE, SIDE), spacing=st.tuples(LENGTH, LENGTH, LENGTH), packed=st.booleans())
def test_inv3_and_deb_round_trip(tmp_path_factory, shape, spacing, packed):
    """InVesalius keeps rows running to anterior, hence the flip, and the spacing as (x, y, z)."""
    hu = _hu(shape)
    path = tmp_path_factory.mktemp("inv3") / ("ct.deb" if packed else "ct.inv3")
    blob = project(hu[:, ::-1], spacing[::-1])
    path.write_bytes(package({"ct.inv3": blob}) if packed else blob)
    scan = read_hounsfield(path)
    assert np.array_equal(scan.hu, hu)
    assert scan.spacing == spacing


def test_every_kind_gives_the_same_head(tmp_path):
    pytest.importorskip("pydicom")
    spacing = (5.0, 4.5, 4.0)
    hu = ball(centre_mm=(-60.0, 4.0, -8.0))
    hu[2:6, 14:18, 24:28] += 700.0
    (tmp_path / "a.inv3").write_bytes(project(hu[:, ::-1], spacing[::-1]))
    (tmp_path / "a.deb").write_bytes(package({"a.inv3": project(hu[:, ::-1], spacing[::-1])}))
    write_nifti(tmp_path / "a.nii.gz", hu.transpose(2, 1, 0), _affine(spacing))
    write_dicom(tmp_path / "dicom", hu, spacing)
    heads = [read_volume(tmp_path / name) for name in ("a.inv3", "a.deb", "a.nii.gz", "dicom")]
    for head in heads:
        assert head.source == "user" and head.landmarks == {} and head.cut == ("inferior",)
        assert head.spacing == pytest.approx(spacing)
        assert (head.density == heads[0].density).all()
    bone = heads[0].density[1].nonzero().float().mean(0)
    assert bone.tolist() == [3.5, 15.5, 25.5]


@pytest.mark.parametrize("codes", ["RAS", "LPS", "LAS", "PIR", "SLP", "ILA"])
def test_nifti_of_any_orientation(tmp_path, codes):
    hu = _hu((3, 4, 5))
    image = nibabel.Nifti1Image(hu.transpose(2, 1, 0), _affine((1.5, 0.9, 0.8)))
    turn = nibabel.orientations.ornt_transform(
        nibabel.orientations.axcodes2ornt("LPS"), nibabel.orientations.axcodes2ornt(codes)
    )
    image.as_reoriented(turn).to_filename(tmp_path / "a.nii")
    scan = read_hounsfield(tmp_path / "a.nii")
    assert np.array_equal(scan.hu, hu)
    assert scan.spacing == pytest.approx((1.5, 0.9, 0.8))


def test_nifti_scale_and_units_are_applied(tmp_path):
    image = nibabel.Nifti1Image(_hu((2, 3, 4)), np.diag([-8e-4, -9e-4, 15e-4, 1.0]))
    image.header.set_xyzt_units("meter")
    image.header.set_slope_inter(2.0, -10.0)
    image.to_filename(tmp_path / "a.nii")
    scan = read_hounsfield(tmp_path / "a.nii")
    stored = np.asanyarray(nibabel.load(tmp_path / "a.nii").dataobj).transpose(2, 1, 0)
    assert np.allclose(scan.hu, stored)
    assert scan.spacing == pytest.approx((1.5, 0.9, 0.8))


def test_nifti_with_a_fourth_axis_of_one(tmp_path):
    hu = _hu((3, 4, 5))
    path = write_nifti(tmp_path / "a.nii", hu.transpose(2, 1, 0)[..., None], _affine((1.5, 0.9, 0.8)))
    assert np.array_equal(read_hounsfield(path).hu, hu)


@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 7, 2), (5, 6, 7, 1, 3)])
def test_nifti_that_is_no_volume(tmp_path, shape):
    path = write_nifti(tmp_path / "a.nii", _hu(shape), np.eye(4))
    with pytest.raises(DataError, match=rf"a\.nii: the image is {len(shape)}-D.*one 3-D volume"):
        read_hounsfield(path)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nifti_with_values_that_are_not_finite(tmp_path, bad):
    values = _hu((3, 4, 5)).astype(np.float32)
    values[1, 2, 3] = bad
    with pytest.raises(DataError, match="not finite"):
        read_hounsfield(write_nifti(tmp_path / "a.nii", values, _affine((1, 1, 1))))


def _patched(path, changes: dict[int, bytes]):
    """A NIfTI-1 file with bytes of its header replaced."""
    blob = bytearray(path.read_bytes())
    for start, data in changes.items():
        blob[start : start + len(data)] = data
    path.write_bytes(blob)
    return path


PIXDIM, FORM_CODES, DIM = 80, 252, 40


def test_nifti_without_spacing(tmp_path):
    path = write_nifti(tmp_path / "a.nii", _hu((3, 4, 5)), np.eye(4))
    with pytest.raises(DataError, match="no voxel spacing"):
        read_hounsfield(_patched(path, {PIXDIM: np.zeros(3, "<f4").tobytes()}))


def test_nifti_without_orientation(tmp_path):
    path = write_nifti(tmp_path / "a.nii", _hu((3, 4, 5)), np.eye(4))
    with pytest.raises(DataError, match="neither qform nor sform"):
        read_hounsfield(_patched(path, {FORM_CODES: bytes(4)}))


def test_nifti_that_claims_a_huge_size_is_refused_before_allocation(tmp_path):
    path = write_nifti(tmp_path / "a.nii", _hu((3, 4, 5)), np.eye(4))
    sizes = np.array([3, 30000, 30000, 30000], "<i2").tobytes()
    with pytest.raises(DataError, match="crop it"):
        read_hounsfield(_patched(path, {DIM: sizes}))


def test_nifti_of_colours(tmp_path):
    colour = np.zeros((3, 4, 5), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    with pytest.raises(DataError, match="one number"):
        read_hounsfield(write_nifti(tmp_path / "a.nii", colour, np.eye(4)))


@pytest.mark.parametrize("kind", ["nii", "nii.gz"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.95])
def test_nifti_cut_short(tmp_path, kind, share):
    path = write_nifti(tmp_path / f"a.{kind}", _hu((9, 9, 9)), np.eye(4))
    blob = path.read_bytes()
    path.write_bytes(blob[: int(share * len(blob))])
    with pytest.raises(DataError, match="cannot be read as NIfTI"):
        read_hounsfield(path)


def test_gzip_that_is_no_nifti(tmp_path):
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(b"no image" * 100))
    with pytest.raises(DataError, match="cannot be read as NIfTI"):
        read_hounsfield(path)


def test_missing_nibabel_says_what_to_install(tmp_path, monkeypatch):
    path = write_nifti(tmp_path / "a.nii", _hu((3, 4, 5)), np.eye(4))
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(DataError, match=r"medshift\[medical\]"):
        read_nifti(path)


def test_values_that_are_no_hounsfield_units(tmp_path):
    path = write_nifti(tmp_path / "a.nii", (ball() + 1024).transpose(2, 1, 0), _affine((5.0, 4.5, 4.0)))
    with pytest.raises(DataError, match=r"a\.nii.*Hounsfield"):
        read_volume(path)


def test_a_ct_without_a_head(tmp_path):
    path = write_nifti(tmp_path / "a.nii", np.full((9, 9, 9), -1000, np.int16), np.eye(4))
    with pytest.raises(DataError, match=r"a\.nii.*expected a head"):
        read_volume(path)


@pytest.mark.parametrize("name", ["missing.nii", "missing", "note.txt"])
def test_missing_and_unknown_files(tmp_path, name):
    (tmp_path / "note.txt").write_text("x")
    with pytest.raises(DataError, match=rf"{name}: .*DICOM folder"):
        read_volume(tmp_path / name)
