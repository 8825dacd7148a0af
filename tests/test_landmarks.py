"""Drift of landmarks in phantoms and random fields that were moved by a known distance."""

import numpy as np
import pytest
import torch
from scipy.ndimage import fourier_shift
from torch import Tensor

from medshift.data.acquisition import acquire
from medshift.data.phantom import phantom
from medshift.data.projection import Projection, level_for, project
from medshift.data.views import named_view
from medshift.errors import ParameterError
from medshift.metrics.landmarks import landmark_drift, mean_drift, measured_landmarks, register_landmarks

SIDE, FOV = 64, 270.0
PIXEL = FOV / SIDE
SHIFTS = [(0.0, 0.0), (0.5, 0.0), (0.0, 0.5), (1.3, 0.0), (0.0, -1.3), (3.0, 0.0), (0.0, 3.0), (-2.2, 1.7)]


@pytest.fixture(scope="module")
def head() -> dict[tuple[float, float], Projection]:
    """Two views of a phantom, as they are and moved by `SHIFTS` pixels (columns, rows)."""
    volume = level_for(phantom(0, spacing_mm=4.0), PIXEL)
    pose = torch.cat([named_view("lateral", FOV), named_view("AP", FOV)])
    views = {}
    for dx, dy in SHIFTS:
        moved = pose.clone()
        moved[:, 3] += dx * PIXEL
        moved[:, 4] += dy * PIXEL
        views[dx, dy] = project(volume, moved, SIDE)
    return views


def image(view: Projection, seed: int | None = None, noise: float = 0.0) -> Tensor:
    clean = acquire(
        view.line_integrals.float(), view.open_field, view.poses[:, 5], "real-normal", generator=None, clean=True
    )
    return (
        clean
        if seed is None
        else clean + noise * torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))
    )


def field(n: int, side: int, grain: float, shift: tuple[float, float] = (0, 0), seed: int = 0) -> Tensor:
    """Periodic smooth random images (n,1,side,side) of unit range, moved exactly by ``shift`` (column, row) pixels."""
    rng = np.random.default_rng(seed)
    f = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)[None, :])
    spectrum = np.fft.fft2(rng.normal(size=(n, side, side))) * np.exp(-((f * grain * np.pi) ** 2) / 2)
    images = np.fft.ifft2([fourier_shift(one, (shift[1], shift[0])) for one in spectrum]).real
    return torch.from_numpy(0.3 * images / images.std()).float()[:, None]


def marks(n: int, side: int, step: int = 8) -> Tensor:
    """A lattice of points (n,L,2) that keeps away from the border."""
    line = torch.arange(side // 4, side - side // 4, step).float() + 0.3
    return torch.cartesian_prod(line, line).expand(n, -1, -1)


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_a_moved_head_drifts_by_as_much(head, shift: tuple[float, float], noise: float) -> None:
    still, moved = head[0.0, 0.0], head[shift]
    truth, output = image(still, 1, noise), image(moved, 2, noise)
    found = register_landmarks(output, truth, still.landmarks, still.open_field & moved.open_field, pixel_mm=PIXEL)
    assert found.measured.sum() > 0.4 * found.measured.numel()
    # Parts of the head nearer to the source move further: the magnification differs by up to an eighth.
    expected = torch.tensor(shift).double()
    length = float(expected.norm())
    error = (found.shift - expected).norm(dim=2)[found.measured]
    assert error.median() < 0.02 + 0.03 * length + 1.5 * noise
    assert error.quantile(0.95) < 0.25
    drift = landmark_drift(output, truth, still.landmarks, still.open_field & moved.open_field, pixel_mm=PIXEL)
    assert mean_drift(drift).tolist() == pytest.approx([PIXEL * length] * 2, abs=PIXEL * (0.03 + 0.03 * length + noise))


@pytest.mark.parametrize(("side", "mm"), [(64, 4.5), (128, 2.2), (256, 1.1)])
@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.5, 0.0), (0.0, 1.3), (3.0, 0.0), (-2.4, 3.7)])
def test_an_exact_shift_is_found_to_a_fiftieth_of_a_pixel(side: int, mm: float, shift: tuple[float, float]) -> None:
    grain = 22.0 / mm
    truth, output = field(1, side, grain), field(1, side, grain, shift)
    found = register_landmarks(output, truth, marks(1, side, side // 8), pixel_mm=mm)
    assert found.measured.float().mean() > 0.8
    error = (found.shift - torch.tensor(shift)).norm(dim=2)[found.measured]
    assert error.max() < 0.02
    drift = landmark_drift(output, truth, marks(1, side, side // 8), pixel_mm=mm)
    expected = mm * float(np.hypot(*shift))
    assert drift[found.measured].tolist() == pytest.approx([expected] * int(found.measured.sum()), abs=0.02 * mm)
    assert torch.equal(drift.isnan(), ~found.measured)


def test_the_stated_error_is_the_error() -> None:
    n, noise = 12, 0.05
    g = torch.Generator().manual_seed(3)
    truth, output = (
        one + noise * torch.randn(one.shape, generator=g) for one in (field(n, 64, 6.0), field(n, 64, 6.0, (1.3, -0.4)))
    )
    found = register_landmarks(output, truth, marks(n, 64), pixel_mm=4.5)
    error = (found.shift - torch.tensor([1.3, -0.4])).norm(dim=2)[found.measured]
    stated = found.error[found.measured]
    assert len(error) > 100
    # The error has two components, of which the stated one is the larger.
    assert 0.7 < float(error.square().mean().sqrt() / stated.square().mean().sqrt()) < 2.0


def test_drift_is_blind_to_gain_and_offset_and_scales_with_the_pixel() -> None:
    truth, output = field(2, 64, 6.0), field(2, 64, 6.0, (1.3, 0.4))
    plain = landmark_drift(output, truth, marks(2, 64), pixel_mm=4.5)
    torch.testing.assert_close(landmark_drift(0.6 * output - 0.3, truth, marks(2, 64), pixel_mm=4.5), plain)
    sizes = torch.tensor([4.4, 4.6])
    scaled = landmark_drift(output, truth, marks(2, 64), pixel_mm=sizes)
    torch.testing.assert_close(scaled, plain / 4.5 * sizes[:, None].double())


def test_patches_that_tell_nothing_are_not_measured() -> None:
    truth = field(1, 64, 6.0)
    grain = torch.Generator().manual_seed(5)
    noise = [0.05 * torch.randn(1, 1, 64, 64, generator=grain) for _ in range(4)]
    edge = torch.where(torch.arange(64) < 32, 0.5, -0.5).expand(1, 1, 64, 64)
    flat = torch.zeros(1, 1, 64, 64)
    for output, reference in (
        (flat, flat),
        (truth, flat),
        (flat, truth),
        (flat + noise[0], flat + noise[1]),
        (edge, edge),
        (edge + noise[2], edge + noise[3]),
        (-truth, truth),
    ):
        drift = landmark_drift(output, reference, marks(1, 64), pixel_mm=4.5)
        assert measured_landmarks(drift) == 0 and mean_drift(drift).isnan().all()


def test_the_border_the_blade_and_what_lies_beyond_are_not_measured() -> None:
    truth = field(1, 64, 6.0)
    half = 8  # of a patch of 15 pixels, and one
    points = torch.tensor(
        [
            [
                [half - 1, 32],
                [half, 32],
                [32, 63 - half],
                [32, 64 - half],
                [-5, 32],
                [32, 70],
                [1e30, 0],
                [float("nan"), 3],
            ]
        ]
    )
    drift = landmark_drift(truth, truth, points.float(), pixel_mm=4.5)
    assert drift.isnan()[0].tolist() == [True, False, False, True, True, True, True, True]

    mask = torch.ones(1, 1, 64, 64, dtype=torch.bool)
    mask[..., 40:, :] = False
    points = torch.tensor([[[32.0, 39 - half], [32.0, 40 - half], [32.0, 50.0]]])
    hidden = truth.where(mask, torch.tensor(0.9))
    assert landmark_drift(hidden, truth, points, mask, pixel_mm=4.5).isnan()[0].tolist() == [False, True, True]


def test_a_shift_beyond_the_search_is_not_measured() -> None:
    truth = field(2, 64, 6.0)
    near = landmark_drift(field(2, 64, 6.0, (4.0, 0)), truth, marks(2, 64), pixel_mm=4.5)
    far = landmark_drift(field(2, 64, 6.0, (8.0, 0)), truth, marks(2, 64), pixel_mm=4.5)
    assert measured_landmarks(near).sum() > 0.8 * near.numel()
    assert measured_landmarks(far).sum() < 0.2 * far.numel()
    wide = register_landmarks(field(2, 64, 6.0, (8.0, 0)), truth, marks(2, 64), pixel_mm=4.5, search_mm=45.0)
    assert (wide.shift[wide.measured] - torch.tensor([8.0, 0.0])).abs().max() < 0.05


def test_an_image_is_judged_by_itself() -> None:
    truth, output = field(3, 64, 6.0), field(3, 64, 6.0, (0.7, 0.7))
    whole = landmark_drift(output, truth, marks(3, 64), pixel_mm=4.5)
    alone = [landmark_drift(output[i : i + 1], truth[i : i + 1], marks(1, 64), pixel_mm=4.5) for i in range(3)]
    torch.testing.assert_close(torch.cat(alone), whole, equal_nan=True)


def test_means_and_counts_are_over_what_was_measured() -> None:
    drift = torch.tensor([[1.0, float("nan"), 3.0], [float("nan")] * 3])
    assert mean_drift(drift)[0] == 2 and mean_drift(drift)[1].isnan()
    assert measured_landmarks(drift).tolist() == [2, 0]


def test_what_does_not_fit_together_is_refused() -> None:
    truth, points = field(2, 64, 6.0), marks(2, 64)
    for size in (0.0, -1.0, float("nan"), torch.tensor([4.5]), torch.tensor([4.5, 4.5, 4.5]), torch.tensor([4.5, 0.0])):
        with pytest.raises(ParameterError, match="pixel_mm"):
            landmark_drift(truth, truth, points, pixel_mm=size)
    for wrong in (points[:1], points[..., :1], points[0]):
        with pytest.raises(ParameterError, match="Landmarks"):
            landmark_drift(truth, truth, wrong, pixel_mm=4.5)
    for options in ({"patch_mm": 0.0}, {"search_mm": -1.0}):
        with pytest.raises(ParameterError, match="positive"):
            register_landmarks(truth, truth, points, pixel_mm=4.5, **options)
    with pytest.raises(ParameterError, match="NaN"):
        landmark_drift(truth * float("nan"), truth, points, pixel_mm=4.5)
