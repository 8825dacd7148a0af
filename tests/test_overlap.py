"""Dice against scikit-learn's F1, the Hausdorff distance against SciPy's directed ones, and empty masks."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.distance import directed_hausdorff
from sklearn.metrics import f1_score
from torch import Tensor

from medshift.errors import ParameterError
from medshift.metrics.overlap import dice, hausdorff

masks = arrays(np.bool_, (2, 1, 5, 7)).map(torch.from_numpy)


def of(*rows: str) -> Tensor:
    """One mask (1,1,H,W) drawn with # and dots."""
    return torch.tensor([[c == "#" for c in row] for row in rows])[None, None]


@settings(max_examples=20)
@given(masks, masks)
def test_dice_is_the_f1_score_of_each_mask_by_itself(a: Tensor, b: Tensor) -> None:
    expected = [f1_score(y.flatten(), x.flatten(), zero_division=1.0) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(dice(a, b), expected, atol=1e-6)
    torch.testing.assert_close(dice(a, b), dice(b, a))


@settings(max_examples=60)
@given(masks, masks, st.tuples(st.floats(0.1, 5), st.floats(0.1, 5)))
def test_hausdorff_is_the_larger_directed_distance_in_millimetres(a: Tensor, b: Tensor, mm: tuple) -> None:
    assume(all(mask.any() for part in (a, b) for mask in part))
    found = hausdorff(a, b, torch.tensor(mm))
    for i, size in enumerate(mm):
        points = [np.argwhere(part[i, 0].numpy()) for part in (a, b)]
        larger = max(directed_hausdorff(*points)[0], directed_hausdorff(*points[::-1])[0])
        assert float(found[i]) == pytest.approx(size * larger, rel=1e-5, abs=1e-6)


def test_one_far_pixel_makes_the_distance_from_either_side() -> None:
    wide, narrow = of("#...#", "#...."), of("#....", "#....")
    one = torch.ones(1)
    assert float(hausdorff(wide, narrow, one)) == float(hausdorff(narrow, wide, one)) == 4  # to (0, 0)
    assert float(hausdorff(wide, narrow, one / 2)) == 2
    assert float(dice(wide, narrow)) == pytest.approx(2 * 2 / (3 + 2))


def test_empty_masks() -> None:
    full, empty = torch.ones(1, 1, 6, 8, dtype=torch.bool), torch.zeros(1, 1, 6, 8, dtype=torch.bool)
    mm = torch.tensor([0.5])
    assert float(dice(empty, empty)) == 1 and float(hausdorff(empty, empty, mm)) == 0
    assert float(dice(full, full)) == 1 and float(hausdorff(full, full, mm)) == 0
    for a, b in ((full, empty), (empty, full)):
        assert float(dice(a, b)) == 0 and float(hausdorff(a, b, mm)) == pytest.approx(0.5 * 10)
    # An empty mask never comes off better than the worst one that is not empty.
    corners = torch.zeros(2, 1, 6, 8, dtype=torch.bool)
    corners[0, 0, 0, 0] = corners[1, 0, -1, -1] = True
    assert float(hausdorff(corners[:1], corners[1:], mm)) < 0.5 * 10


@pytest.mark.parametrize(
    ("mask", "truth"),
    [
        (torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4, dtype=torch.bool)),
        (torch.zeros(1, 1, 4, 4, dtype=torch.bool), torch.zeros(1, 1, 4, 4, dtype=torch.uint8)),
        (torch.zeros(1, 1, 4, 4, dtype=torch.bool), torch.zeros(1, 1, 4, 5, dtype=torch.bool)),
        (torch.zeros(2, 1, 4, 4, dtype=torch.bool), torch.zeros(1, 1, 4, 4, dtype=torch.bool)),
        (torch.zeros(4, 4, dtype=torch.bool), torch.zeros(4, 4, dtype=torch.bool)),
    ],
)
def test_images_and_masks_of_another_shape_are_refused(mask: Tensor, truth: Tensor) -> None:
    with pytest.raises(ParameterError, match="Threshold"):
        dice(mask, truth)
    with pytest.raises(ParameterError, match="Threshold"):
        hausdorff(mask, truth, torch.ones(len(mask)))


def test_every_mask_has_a_pixel_size() -> None:
    mask = torch.ones(2, 1, 4, 4, dtype=torch.bool)
    for mm in (torch.ones(1), torch.ones(2, 1), torch.tensor(1.0)):
        with pytest.raises(ParameterError, match="one for each of 2"):
            hausdorff(mask, mask, mm)
