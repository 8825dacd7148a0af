"""The world frame: any order and direction of axes gives the same volume, and what cannot be placed is refused."""

from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest

from medshift.data.scan import Scan, check_hounsfield, place
from medshift.errors import DataError

PATH = Path("some.ct")
HU = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)
AXES = np.eye(3)[::-1]  # of an array already in (z, y, x)


@pytest.mark.parametrize("order", permutations(range(3)))
@pytest.mark.parametrize("signs", product((1, -1), repeat=3))
def test_every_storage_order_gives_the_same_volume(order, signs):
    stored, axes = HU, np.array([s * a for s, a in zip(signs, AXES, strict=True)])
    stored = np.flip(stored, [a for a in range(3) if signs[a] < 0]).transpose(order)
    spacing = np.array([3.0, 2.0, 1.0])[list(order)]
    scan = place(stored, spacing.tolist(), axes[list(order)], PATH)
    assert np.array_equal(scan.hu, HU) and scan.hu.flags.c_contiguous and scan.hu.dtype == np.float32
    assert scan.spacing == (3.0, 2.0, 1.0)


def _turned(degrees: float) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return AXES @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def test_a_tilted_head_is_taken_along_the_nearest_axes_and_an_ambiguous_one_refused():
    assert np.array_equal(place(HU, (1, 1, 1), _turned(20), PATH).hu, HU)
    with pytest.raises(DataError, match="40 degrees"):
        place(HU, (1, 1, 1), _turned(45), PATH)


def test_sheared_axes_are_refused():
    axes = AXES.copy()
    axes[0] = [0.0, 0.2, 0.98]
    with pytest.raises(DataError, match="right angles"):
        place(HU, (1, 1, 1), axes, PATH)
    with pytest.raises(DataError, match="right angles"):
        place(HU, (1, 1, 1), np.full((3, 3), np.nan), PATH)


@pytest.mark.parametrize("bad", [0.0, -1.0, 0.001, 1e3, float("nan"), float("inf")])
def test_implausible_spacing_is_refused(bad):
    with pytest.raises(DataError, match="spacing"):
        place(HU, (1.0, bad, 1.0), AXES, PATH)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(bad):
    hu = HU.copy()
    hu[1, 1, 1] = bad
    with pytest.raises(DataError, match=r"some\.ct.*not finite"):
        place(hu, (1, 1, 1), AXES, PATH)


def test_only_what_holds_air_can_be_in_hounsfield_units():
    check_hounsfield(Scan(HU - 1000, (1, 1, 1)), PATH)
    with pytest.raises(DataError, match="rescale"):
        check_hounsfield(Scan(HU, (1, 1, 1)), PATH)
