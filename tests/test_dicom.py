"""DICOM series: sorted by position, scaled, placed; mixed, gapped or unscaled series are refused by name."""

import numpy as np
import pytest
from ct_files import edit_dicom, write_dicom
from hypothesis import given, settings
from hypothesis import strategies as st

from medshift.data import dicom
from medshift.data.dicom import read_dicom
from medshift.errors import DataError

pytest.importorskip("pydicom", reason='DICOM needs: pip install "medshift[medical]"')
SPACING = (1.5, 0.9, 0.8)


def _hu(shape=(5, 6, 7), seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1024, 2000, shape).astype(np.float32)


@pytest.fixture
def series(tmp_path):
    return tmp_path / "ct", write_dicom(tmp_path / "ct", _hu(), SPACING)


@settings(max_examples=15, deadline=None)
@given(
    shape=st.tuples(*[st.integers(2, 5)] * 3),
    spacing=st.tuples(*[st.integers(6, 50).map(lambda v: v / 10)] * 3),
    slope=st.sampled_from([1.0, 0.5, 2.0]),
    data=st.data(),
)
def test_round_trip_whatever_the_order_of_the_files(tmp_path_factory, shape, spacing, slope, data):
    folder = tmp_path_factory.mktemp("series")
    hu = _hu(shape, seed=sum(shape)) // slope * slope
    order = data.draw(st.permutations(range(shape[0])))
    write_dicom(folder, hu, spacing, slope=slope, intercept=-1000.0, order=order)
    scan = read_dicom(folder)
    assert np.array_equal(scan.hu, hu)
    assert scan.spacing == pytest.approx(spacing, abs=1e-3)


def test_slope_and_intercept_are_each_slice_s_own(series):
    folder, paths = series
    edit_dicom(paths[2], RescaleIntercept=-1000.0)
    edit_dicom(paths[3], RescaleSlope=2.0)
    change = read_dicom(folder).hu - _hu()
    assert (change[2] == 24).all() and np.array_equal(change[3], _hu()[3] + 1024)
    assert not change[[0, 1, 4]].any()


@pytest.mark.parametrize(
    ("orientation", "normal", "view"),
    [
        ([1, 0, 0, 0, 0, -1], [0, 1, 0], lambda v: v.transpose(1, 0, 2)[::-1]),  # coronal
        ([0, 1, 0, 0, 0, -1], [-1, 0, 0], lambda v: v.transpose(1, 2, 0)[::-1, :, ::-1]),  # sagittal
        ([-1, 0, 0, 0, 1, 0], [0, 0, -1], lambda v: v[::-1, :, ::-1]),  # rows run to the patient's right
    ],
)
def test_other_orientations_are_brought_to_the_world_frame(series, orientation, normal, view):
    folder, paths = series
    for index, path in enumerate(paths):
        position = [float(p) for p in np.array(normal) * index * 1.5]
        edit_dicom(path, ImageOrientationPatient=orientation, ImagePositionPatient=position)
    assert np.array_equal(read_dicom(folder).hu, view(_hu()))


def test_patient_tags_are_not_read(series, monkeypatch):
    import pydicom

    folder, seen, read = series[0], set(), pydicom.dcmread

    def spy(*args, **kwargs):
        header = read(*args, **kwargs)
        seen.update(element.keyword for element in header)
        return header

    monkeypatch.setattr(pydicom, "dcmread", spy)
    read_dicom(folder)
    assert "PixelData" in seen and not {key for key in seen if key.startswith(("Patient", "Study"))}


def test_notes_and_indices_beside_the_slices_are_passed_by(series):
    folder, _ = series
    (folder / "README.txt").write_text("exported by a viewer")
    (folder / "empty").touch()
    assert np.array_equal(read_dicom(folder).hu, _hu())


def test_mixed_series_are_counted(series):
    folder, _ = series
    write_dicom(folder / "other", _hu(seed=1), SPACING, series="4.5.6")
    with pytest.raises(DataError, match="2 series"):
        read_dicom(folder)


@pytest.mark.parametrize("index", [1, 2, 3])
def test_a_missing_slice_is_located(series, index):
    folder, paths = series
    paths[index].unlink()
    with pytest.raises(DataError, match=r"3\.00 mm.*slices are missing") as caught:
        read_dicom(folder)
    assert paths[index - 1].name in str(caught.value) and paths[index + 1].name in str(caught.value)


POSITION = [-100.0, -90.0, -47.0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ImagePositionPatient": [-100.0, -90.0, -46.7]}, "unevenly spaced"),
        ({"ImagePositionPatient": [-100.0, -90.0, -48.5]}, "at one place"),
        ({"ImagePositionPatient": [-99.0, -90.0, -47.0]}, "shifted sideways"),
        ({"ImagePositionPatient": None}, "no ImagePositionPatient"),
        ({"ImagePositionPatient": [1.0, 2.0]}, "cannot be read as DICOM"),
        ({"ImageOrientationPatient": None}, "no ImageOrientationPatient"),
        ({"ImageOrientationPatient": [0, 1, 0, 1, 0, 0]}, "differ"),
        ({"PixelSpacing": None}, "no PixelSpacing"),
        ({"PixelSpacing": [0.9, 0.9]}, "differ"),
        ({"RescaleSlope": None}, "no RescaleSlope.*Hounsfield"),
        ({"RescaleSlope": 0.0}, "RescaleSlope is 0"),
        ({"RescaleIntercept": None}, "no RescaleIntercept"),
        ({"Modality": "MR"}, "expected modality CT"),
        ({"NumberOfFrames": 4}, "single-frame"),
        ({"Rows": 9}, "differ"),
        ({"PixelData": b"12"}, "pixels cannot be read"),
        ({"PixelData": None}, "pixels cannot be read"),
    ],
)
def test_a_bad_slice_is_one_error(series, changes, message):
    folder, paths = series
    edit_dicom(paths[2], **changes)
    with pytest.raises(DataError, match=message) as caught:
        read_dicom(folder)
    assert str(folder) in str(caught.value)


def test_a_slice_cut_in_half_is_an_error_that_names_it(series):
    folder, paths = series
    blob = paths[1].read_bytes()
    paths[1].write_bytes(blob[: len(blob) - 50])
    with pytest.raises(DataError, match=paths[1].name):
        read_dicom(folder)


def test_a_series_without_any_spacing_or_of_one_slice(series):
    folder, paths = series
    for path in paths[1:]:
        path.unlink()
    with pytest.raises(DataError, match="one slice only"):
        read_dicom(folder)


def test_an_empty_folder(tmp_path):
    with pytest.raises(DataError, match="no DICOM images"):
        read_dicom(tmp_path)


def test_a_missing_pydicom_says_what_to_install(series, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pydicom", None)
    with pytest.raises(DataError, match=r"medshift\[medical\]"):
        read_dicom(series[0])


def test_too_many_voxels_are_refused_before_pixels_are_read(series, monkeypatch):
    monkeypatch.setattr("medshift.data.scan.MAX_VOXELS", 100)
    monkeypatch.setattr(dicom, "_hounsfield", lambda piece: pytest.fail("pixels were read"))
    with pytest.raises(DataError, match="crop it"):
        read_dicom(series[0])
