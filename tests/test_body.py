"""The outline of the head: what lies outside goes, what lies inside stays as it was, cut faces are found."""

import numpy as np
import pytest
from ct_files import ball

from medshift.data.body import cut_faces, head_outline, isolate_head
from medshift.errors import DataError

SPACING = (5.0, 4.5, 4.0)
FOAM, HOLDER = -900.0, 200.0


def test_a_head_alone_stays_as_it_is():
    hu = ball()
    cleaned, cut = isolate_head(hu, SPACING)
    assert np.array_equal(cleaned, hu) and cut == ()


def test_holder_and_cushion_go_and_the_head_stays():
    hu = ball()
    dirty = hu.copy()
    dirty[:, 34:37] = FOAM
    dirty[:, 38:] = HOLDER
    cleaned, cut = isolate_head(dirty, SPACING)
    assert np.array_equal(cleaned[hu == 0], hu[hu == 0])
    assert (cleaned[:, 37:] == -1000).all()
    assert "posterior" not in cut


def test_a_thin_bridge_to_the_holder_does_not_keep_it():
    dirty = ball()
    dirty[:, 38:] = HOLDER
    dirty[18, 20:38, 22] = HOLDER
    cleaned, _ = isolate_head(dirty, SPACING)
    assert (cleaned[:, 38:] == -1000).all()


def test_cavities_keep_their_values():
    hu = ball()
    hu[16:20, 18:22, 20:24] = -950.0  # a sinus
    hu[18, :20, 22] = -970.0  # a nostril, open to the front
    cleaned, _ = isolate_head(hu, SPACING)
    inside = ball() == 0
    assert np.array_equal(cleaned[inside], hu[inside])


@pytest.mark.parametrize(
    ("face", "centre_mm"),
    [
        ("inferior", (-70.0, 0.0, 0.0)),
        ("superior", (70.0, 0.0, 0.0)),
        ("anterior", (0.0, -70.0, 0.0)),
        ("posterior", (0.0, 70.0, 0.0)),
        ("right", (0.0, 0.0, -70.0)),
        ("left", (0.0, 0.0, 70.0)),
    ],
)
def test_the_face_that_cuts_is_named_and_not_eroded(face, centre_mm):
    hu = ball(centre_mm=centre_mm)
    cleaned, cut = isolate_head(hu, SPACING)
    assert cut == (face,)
    assert np.array_equal(cleaned, hu)


def test_a_touch_is_no_cut():
    touched = np.zeros((8, 8, 8), bool)
    touched[0, 4, 4] = True
    assert cut_faces(touched, (5.0, 9.0, 9.0)) == ()
    assert cut_faces(touched, (5.0, 11.0, 11.0)) == ("inferior",)


def test_thick_slices_do_not_smear_the_outline_along_z():
    hu = ball(shape=(13, 110, 110), spacing=(10.0, 1.2, 1.2))
    outline = head_outline(hu, (10.0, 1.2, 1.2))
    filled = (hu == 0).any(axis=(1, 2)).nonzero()[0]
    reached = outline.any(axis=(1, 2)).nonzero()[0]
    assert reached[0] >= filled[0] - 1 and reached[-1] <= filled[-1] + 1


@pytest.mark.parametrize("hu", [np.full((9, 9, 9), -1000.0), ball(radius_mm=25.0)])
def test_no_head_is_an_error_that_names_the_ct(hu):
    with pytest.raises(DataError, match=r"my\.ct.*cm3"):
        isolate_head(hu, SPACING, name="my.ct")
