"""Metrics against independent implementations and closed forms."""

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from medshift.errors import ParameterError
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


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_an_images_metric_knows_neither_its_batch_nor_its_place(metric) -> None:
    a, b = images(5)
    mask = torch.ones_like(a, dtype=torch.bool)
    mask[2:, :, 30:] = False
    together, order = metric(a, b, mask), torch.tensor([3, 0, 4, 2, 1])
    torch.testing.assert_close(metric(a[order], b[order], mask[order]), together[order], rtol=1e-5, atol=1e-6)
    for size in (1, 2, 4):
        parts = [metric(*part) for part in zip(*(x.split(size) for x in (a, b, mask)), strict=True)]
        torch.testing.assert_close(torch.cat(parts), together, rtol=1e-5, atol=1e-6)


def test_ssim_of_images_smaller_than_its_window_is_refused() -> None:
    a, b = images()
    with pytest.raises(ParameterError, match="smaller than SSIM's window of 11"):
        ssim(a[..., :10], b[..., :10])
    assert torch.isfinite(ssim(a[..., :11, :11], b[..., :11, :11])).all()


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_images_on_another_scale_are_refused_and_an_overshoot_is_judged(metric) -> None:
    a, b = images()
    with pytest.raises(ParameterError, match="reference reaches"):
        metric(a, a * 2)
    with pytest.raises(ParameterError, match="image reaches"):
        metric((a + 1) * 127.5, a)
    assert torch.isfinite(metric(3 * b, a)).all()


def test_a_pixel_behind_the_collimator_is_on_no_scale() -> None:
    a, b = images()
    mask = torch.ones_like(a, dtype=torch.bool)
    mask[..., :12, :] = False
    wild = b.clone()
    wild[..., :4, :] = 255.0
    torch.testing.assert_close(psnr(wild, a, mask), psnr(b, a, mask))
