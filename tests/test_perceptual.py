"""MS-SSIM, LPIPS and ST-LPIPS against independent computations; their refusals."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torchmetrics.functional.image.lpips import _LPIPS
from torchvision.models import alexnet

from medshift.codec_training import ShiftTolerantLPIPS
from medshift.errors import DataError, ParameterError
from medshift.metrics import perceptual
from medshift.metrics.perceptual import MS_SSIM_WEIGHTS, StLpipsTo, lpips, mae, ms_ssim, st_lpips, why_no_lpips

WEIGHTS = "alexnet-owt-7be5be79.pth"


def images(n: int = 3, side: int = 64, noise: float = 0.1) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    a = torch.nn.functional.interpolate(torch.randn(n, 1, 8, 8, generator=g), size=side, mode="bicubic").clamp(-2, 2)
    return a / 2, a / 2 + noise * torch.randn(n, 1, side, side, generator=g)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The place of AlexNet's weights in an empty cache of torch hub, for which nothing can be downloaded."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_, **__: pytest.fail("a download was tried"))
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints" / WEIGHTS


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """A cache of torch hub with the layers of a random AlexNet that LPIPS uses, and these weights."""
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in alexnet().state_dict().items() if name.startswith("features")}
    g = torch.Generator().manual_seed(3)
    state = {name: torch.randn(s, generator=g) * (2 / s[1:].numel()) ** 0.5 for name, s in shapes.items()}
    folder = tmp_path_factory.mktemp("hub")
    (folder / "checkpoints").mkdir()
    torch.save(state, folder / "checkpoints" / WEIGHTS)
    return folder, state


@pytest.fixture
def trunk(weights: tuple[Path, dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """The random AlexNet's weights, which lie in the cache."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(weights[0]))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_, **__: pytest.fail("a download was tried"))
    return weights[1]


def maps(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """SSIM, reflected at the border, and its contrast term where the 11×11 window fits, by Wang et al.'s formulas."""

    def blur(z: np.ndarray) -> np.ndarray:
        return gaussian_filter(z, 1.5, truncate=3.5, mode="mirror")

    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    mx, my = blur(x), blur(y)
    vx, vy, cov = blur(x * x) - mx * mx, blur(y * y) - my * my, blur(x * y) - mx * my
    contrast = (2 * cov + c2) / (vx + vy + c2)
    return contrast * (2 * mx * my + c1) / (mx * mx + my * my + c1), contrast[5:-5, 5:-5]


@pytest.mark.parametrize(("scales", "side"), [(1, 40), (3, 64), (3, 45), (5, 176)])
def test_ms_ssim_equals_its_formula(scales: int, side: int) -> None:
    a, b = images(side=side)
    got = ms_ssim(a, b, scales=scales)
    for i in range(len(a)):
        x, y = a[i, 0].double().numpy(), b[i, 0].double().numpy()
        weights = np.array(MS_SSIM_WEIGHTS[:scales]) / sum(MS_SSIM_WEIGHTS[:scales])
        expected = 1.0
        for scale, weight in enumerate(weights):
            full, contrast = maps(x, y)
            expected *= (full if scale == scales - 1 else contrast).mean() ** weight
            h = x.shape[0] // 2 * 2
            x, y = (z[:h, :h].reshape(h // 2, 2, h // 2, 2).mean((1, 3)) for z in (x, y))
        assert got[i] == pytest.approx(expected, abs=2e-5)


def test_anticorrelated_images_score_zero() -> None:
    a, _ = images(noise=0.0)
    torch.testing.assert_close(ms_ssim(a, -a), torch.zeros(len(a)))


@pytest.mark.parametrize(("scales", "side"), [(3, 43), (5, 64), (0, 64), (6, 512)])
def test_ms_ssim_refuses_scales_that_do_not_fit(scales: int, side: int) -> None:
    flat = torch.zeros(1, 1, side, side)
    with pytest.raises(ParameterError, match="scales"):
        ms_ssim(flat, flat, scales=scales)


def test_the_smallest_image_of_each_number_of_scales_is_accepted() -> None:
    for scales, side in ((1, 11), (2, 22), (3, 44), (4, 99), (5, 176)):
        flat = torch.zeros(1, 1, side, side)
        assert ms_ssim(flat, flat, scales=scales) == pytest.approx(1.0)
        with pytest.raises(ParameterError, match=f"need {side} a side"):
            ms_ssim(flat[..., 1:], flat[..., 1:], scales=scales)


def test_lpips_equals_torchmetrics(trunk: dict[str, Tensor]) -> None:
    a, b = images(5)
    a, b = a.clamp(min=-1), b.clamp(min=-1)  # the other implementation refuses smaller values
    perceptual._lpips_network.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = lpips(a, b)
    other = _LPIPS(net="alex", pnet_rand=True)
    for name, value in other.net.state_dict().items():
        value.copy_(trunk[f"features.{name.partition('.')[2]}"])
    with torch.no_grad():
        expected = other(a.expand(-1, 3, -1, -1), b.expand(-1, 3, -1, -1)).flatten()
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-7)
    assert (got > 1e-4).all()


def test_lpips_leaves_the_random_state_alone(trunk: dict[str, Tensor]) -> None:
    a, b = images(1)
    perceptual._lpips_network.cache_clear()
    perceptual._st_lpips_network.cache_clear()
    before = torch.random.get_rng_state()
    lpips(a, b), st_lpips(a, b)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_without_weights_lpips_says_where_they_belong(hub: Path) -> None:
    a, b = images(1)
    expected = f"not computed: weights of AlexNet (LPIPS) missing, put them at {hub}"
    assert why_no_lpips() == expected
    with pytest.raises(DataError) as refusal:
        lpips(a, b)
    assert str(refusal.value) == expected


def test_with_weights_there_is_no_reason(trunk: dict[str, Tensor]) -> None:
    assert why_no_lpips() == ""


@pytest.mark.parametrize("content", ["", "no weights", "truncated", {"features.0.weight": torch.zeros(1)}])
def test_damaged_weights_are_named(hub: Path, content: str | dict[str, Tensor]) -> None:
    if isinstance(content, dict):
        torch.save(content, hub)
    elif content == "truncated":
        torch.save({"features.0.weight": torch.zeros(64, 3, 11, 11)}, hub)
        hub.write_bytes(hub.read_bytes()[:5000])
    else:
        hub.write_text(content)
    with pytest.raises(DataError, match="damaged"):
        lpips(*images(1))


def test_st_lpips_equals_the_distance_that_codecs_are_trained_on() -> None:
    a, b = images(4)
    with torch.no_grad():
        expected = ShiftTolerantLPIPS().eval()(b, a)
    torch.testing.assert_close(st_lpips(a, b), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("masked", [False, True])
def test_references_that_are_kept_give_the_packages_distance_for_half_the_work(masked, monkeypatch) -> None:
    a, b = images(5)
    mask = torch.ones(a.shape, dtype=torch.bool)
    mask[..., :20] = not masked
    monkeypatch.setattr(perceptual, "BATCH", 2)
    kept = StLpipsTo(b, mask if masked else None)
    torch.testing.assert_close(kept(a), st_lpips(a, b, mask), rtol=1e-5, atol=1e-7)
    assert (kept(b) == 0).all() and (kept(-a) > kept(a)).all()
    seen = []
    hook = kept.network.net.register_forward_pre_hook(lambda net, x: seen.append(len(x[0])))
    try:
        kept(a)
    finally:
        hook.remove()
    assert sum(seen) == len(a)
    for wrong in (a[:3], a[..., :48], a.isnan().where(a > 9, torch.nan)):
        with pytest.raises(ParameterError):
            kept(wrong)


def test_st_lpips_forgives_a_shift_of_one_pixel() -> None:
    a, _ = images(2, noise=0.0)
    noisy = a + 0.1 * torch.randn(a.shape, generator=torch.Generator().manual_seed(5))
    assert (st_lpips(a.roll(1, -1), a) < 0.5 * st_lpips(noisy, a)).all()


@pytest.mark.parametrize("metric", [ms_ssim, lpips, st_lpips, mae])
def test_a_number_does_not_depend_on_its_batch(metric, trunk: dict[str, Tensor], monkeypatch) -> None:
    a, b = images(5)
    whole = metric(a, b)
    assert whole.shape == (5,)
    torch.testing.assert_close(torch.cat([metric(a[i : i + 1], b[i : i + 1]) for i in range(5)]), whole)
    torch.testing.assert_close(metric(a.flip(0), b.flip(0)).flip(0), whole)
    monkeypatch.setattr(perceptual, "BATCH", 2)
    torch.testing.assert_close(metric(a, b), whole)


@pytest.mark.parametrize(("metric", "best"), [(ms_ssim, 1.0), (lpips, 0.0), (st_lpips, 0.0), (mae, 0.0)])
def test_images_with_themselves(metric, best: float, trunk: dict[str, Tensor]) -> None:
    a, b = images(2)
    for same in (a, torch.full_like(a, 0.5), 3 * b):
        torch.testing.assert_close(metric(same, same), torch.full((2,), best))
    assert (metric(a, b) != best).all()


@pytest.mark.parametrize("metric", [ms_ssim, lpips, st_lpips, mae])
def test_what_lies_behind_the_collimator_does_not_count(metric, trunk: dict[str, Tensor]) -> None:
    a, b = images()
    mask = torch.ones_like(a, dtype=torch.bool)
    mask[..., 40:, :] = False
    worse = a.clone()
    worse[..., 40:, :] += 3.0
    torch.testing.assert_close(metric(worse, b, mask), metric(a, b, mask))
    assert (metric(worse, b) != metric(a, b, mask)).all()


@pytest.mark.parametrize("metric", [ms_ssim, lpips, st_lpips, mae])
def test_images_that_cannot_be_compared_are_refused(metric, trunk: dict[str, Tensor]) -> None:
    fine = torch.zeros(1, 1, 64, 64)
    for a, b in ((fine, fine[..., 1:]), (fine, fine * float("nan")), (fine.repeat(2, 1, 1, 1), fine)):
        with pytest.raises(ParameterError):
            metric(a, b)
    with pytest.raises(ParameterError, match="open"):
        metric(fine, fine, torch.zeros_like(fine, dtype=torch.bool))


@pytest.mark.parametrize("metric", [lpips, st_lpips])
def test_deep_distances_refuse_small_images_and_colour(metric, trunk: dict[str, Tensor]) -> None:
    for shape in ((1, 1, 31, 64), (1, 3, 64, 64)):
        with pytest.raises(ParameterError, match="at least 32"):
            metric(torch.zeros(shape), torch.zeros(shape))
    assert torch.isfinite(metric(torch.zeros(1, 1, 32, 32), torch.ones(1, 1, 32, 32))).all()


def test_mae_is_the_mean_absolute_difference_in_the_field() -> None:
    a = torch.zeros(2, 1, 4, 4)
    b = torch.tensor([0.5, -1.0])[:, None, None, None].expand_as(a).clone()
    b[:, :, :2] = 0
    mask = torch.zeros_like(a, dtype=torch.bool)
    mask[:, :, 1:3] = True
    torch.testing.assert_close(mae(b, a, mask), torch.tensor([0.25, 0.5]))
    torch.testing.assert_close(mae(a, b), torch.tensor([0.25, 0.5]))
