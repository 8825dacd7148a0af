"""Metrics against independent implementations and closed forms."""

import numpy as np
import pandas as pd
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from medshift.errors import ParameterError
from medshift.metrics.bootstrap import hierarchical_interval
from medshift.metrics.physics import eroded, high_pass_std, radial_power_spectrum
from medshift.metrics.structure import psnr, ssim


def images(n: int = 3, side: int = 48) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    a = (
        torch.nn.functional.interpolate(torch.randn(n, 1, 8, 8, generator=g), size=side, mode="bicubic").clamp(-2, 2)
        / 2
    )
    return a, a + 0.1 * torch.randn(n, 1, side, side, generator=g)


def test_psnr_and_ssim_equal_scikit_image() -> None:
    a, b = images()
    for i in range(len(a)):
        x, y = a[i, 0].double().numpy(), b[i, 0].double().numpy()
        assert psnr(a, b)[i] == pytest.approx(peak_signal_noise_ratio(x, y, data_range=2), abs=1e-3)
        _, full = structural_similarity(
            x, y, data_range=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
        )
        # Away from the border, where paddings differ, the two maps are the same.
        inner = torch.zeros_like(a[i : i + 1], dtype=torch.bool)
        inner[..., 8:-8, 8:-8] = True
        assert ssim(a[i : i + 1], b[i : i + 1], inner)[0] == pytest.approx(full[8:-8, 8:-8].mean(), abs=2e-4)


def test_masked_pixels_do_not_count() -> None:
    a, b = images()
    mask = torch.ones_like(a, dtype=torch.bool)
    mask[..., 24:, :] = False
    worse = b.clone()
    worse[..., 24:, :] += 5.0
    torch.testing.assert_close(psnr(a, b, mask), psnr(a, worse, mask))
    assert (psnr(a, b) != psnr(a, b, mask)).all()


def test_an_image_with_itself() -> None:
    a, _ = images()
    assert torch.isinf(psnr(a, a)).all()
    torch.testing.assert_close(ssim(a, a), torch.ones(len(a)))


def test_constant_images_are_no_error() -> None:
    flat = torch.full((2, 1, 32, 32), 0.5)
    assert torch.isfinite(ssim(flat, flat)).all()


@pytest.mark.parametrize("bad", [torch.full((1, 1, 32, 32), float("nan")), torch.zeros(2, 1, 32, 32)])
def test_images_that_cannot_be_compared_are_refused(bad: torch.Tensor) -> None:
    with pytest.raises(ParameterError):
        psnr(bad, torch.zeros(1, 1, 32, 32))


def test_high_pass_std_of_white_noise_is_what_the_filter_keeps() -> None:
    g = torch.Generator().manual_seed(1)
    noise = 0.3 * torch.randn(4, 1, 128, 128, generator=g)
    k = torch.arange(-4, 5, dtype=torch.float64)
    kernel = torch.exp(-(k**2) / 2)
    kernel = (kernel / kernel.sum())[:, None] * (kernel / kernel.sum())[None, :]
    residual = -kernel
    residual[4, 4] += 1
    expected = 0.3 * residual.square().sum().sqrt()
    got = high_pass_std(noise, torch.ones_like(noise, dtype=torch.bool))
    torch.testing.assert_close(got.mean().double(), expected, rtol=0.02, atol=0)


def test_erosion_keeps_away_from_every_border() -> None:
    mask = torch.ones(1, 1, 20, 20, dtype=torch.bool)
    mask[..., 12:, :] = False
    inner = eroded(mask, 3)[0, 0]
    assert inner[3:9, 3:17].all() and inner.sum() == 6 * 14


def test_power_spectrum_of_white_noise_is_flat_and_has_its_variance() -> None:
    g = torch.Generator().manual_seed(2)
    frequency, power = radial_power_spectrum(0.5 * torch.randn(200, 1, 64, 64, generator=g))
    assert frequency[0] > 0 and frequency[-1] < 0.5
    # Removing the mean under the window takes a little of the lowest frequency.
    np.testing.assert_allclose(power.mean(0)[1:].numpy(), 0.25, rtol=0.08)


def clustered(rng: np.random.Generator, heads: int = 6, views: int = 20) -> tuple[np.ndarray, pd.DataFrame]:
    head = np.repeat(np.arange(heads), views)
    values = rng.normal(size=heads)[head] + 0.3 * rng.normal(size=heads * views)
    return values, pd.DataFrame({"head": head, "region": np.tile(np.arange(4), heads * views // 4)})


def test_intervals_over_heads_are_wider_than_intervals_over_views() -> None:
    values, table = clustered(np.random.default_rng(0))
    over_heads = hierarchical_interval(values, table)
    single = hierarchical_interval(values, table.assign(head=np.arange(len(table))), levels=("head",))
    assert over_heads.high - over_heads.low > 3 * (single.high - single.low)
    assert over_heads.low < over_heads.mean < over_heads.high


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for seed in range(120):
        values, table = clustered(rng, heads=20, views=8)
        interval = hierarchical_interval(values, table, draws=400, seed=seed)
        covered += interval.low <= 0 <= interval.high
    assert 0.85 <= covered / 120 <= 0.99


def test_interval_refuses_one_head_and_missing_values() -> None:
    table = pd.DataFrame({"head": [1, 1], "region": ["a", "b"]})
    with pytest.raises(ParameterError, match="at least two"):
        hierarchical_interval(np.array([1.0, 2.0]), table)
    with pytest.raises(ParameterError, match="finite"):
        hierarchical_interval(np.array([1.0, np.nan]), table.assign(head=[1, 2]))
