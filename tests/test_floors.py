"""Floors and ceilings: what each keeps, what each can recover, and what none of them may know."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medshift.baselines.codec_round_trip import CodecRoundTrip
from medshift.baselines.fourier import FourierAmplitude
from medshift.baselines.paired_regressor import PairedRegressor, PairedRegressorConfig, PairedRegressorTraining
from medshift.baselines.physics_fit import AcquisitionFit, PhysicsFit
from medshift.baselines.resimulation import Resimulation
from medshift.codec import PatchCodec
from medshift.data.acquisition import acquire
from medshift.data.domains import EXPOSURES, EvaluationSet, domain_index
from medshift.data.projection import load_projections
from medshift.errors import ParameterError
from medshift.metrics.structure import psnr
from medshift.pairwise import Pair
from medshift.schedules import TrainConfig
from medshift.tone import blurred
from medshift.train import train

DOMAINS = ("a", "b")


def smooth(n: int, seed: int, height: int = 48, width: int = 48) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 1, 12, 12, generator=g)
    return torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear") * 1.6 - 0.8


# Fourier amplitude swap


def published(x: np.ndarray, reference: np.ndarray, beta: float) -> np.ndarray:
    """The definition, written with a shifted spectrum and slices: another way than the module's."""
    spectrum, lent = (np.fft.fftshift(np.fft.fft2(image + 1)) for image in (x, reference))
    amplitude, (height, width) = np.abs(spectrum), x.shape
    b = int(beta * min(height, width))
    window = (slice(height // 2 - b, height // 2 + b + 1), slice(width // 2 - b, width // 2 + b + 1))
    amplitude[window] = np.abs(lent)[window]
    return np.fft.ifft2(np.fft.ifftshift(amplitude * np.exp(1j * np.angle(spectrum)))).real - 1


@settings(max_examples=25)
@given(st.integers(8, 21), st.integers(8, 21), st.floats(0, 0.4))
def test_the_swap_is_that_of_a_centred_square_of_the_spectrum(height: int, width: int, beta: float) -> None:
    x, r = smooth(3, 1, height, width).double(), smooth(5, 2, height, width).double()
    choice = torch.tensor([4, 0, 2])
    swapped = FourierAmplitude([x, r], DOMAINS, beta=beta).translate(x, "a", "b", choice=choice)
    for k in range(3):
        expected = published(x[k, 0].numpy(), r[choice[k], 0].numpy(), beta)
        np.testing.assert_allclose(swapped[k, 0].numpy(), expected, atol=1e-10)


def test_phases_are_the_sources_and_low_amplitudes_the_targets() -> None:
    x, r = smooth(4, 1).double(), smooth(4, 2).double()
    floor = FourierAmplitude([x, r], DOMAINS)  # at 48 pixels the default takes the mean alone
    wide = FourierAmplitude([x, r], DOMAINS, beta=1 / 48)
    choice = torch.arange(4)
    assert int(floor.window(x).sum()) == 1
    assert int(FourierAmplitude([x, r], DOMAINS).window(torch.zeros(1, 1, 64, 64)).sum()) == 6  # half of nine bins
    own, lent = torch.fft.rfft2(x + 1), torch.fft.rfft2(r + 1)
    out = torch.fft.rfft2(wide.translate(x, "a", "b", choice=choice) + 1)
    inside = wide.window(x)
    torch.testing.assert_close(out.abs()[..., inside], lent.abs()[..., inside])
    torch.testing.assert_close(out[..., ~inside], own[..., ~inside])
    torch.testing.assert_close(out[..., inside] / out[..., inside].abs(), own[..., inside] / own[..., inside].abs())


def test_a_window_of_the_mean_alone_shifts_grey_values_and_own_amplitudes_change_nothing() -> None:
    x, r = smooth(4, 1).double(), smooth(4, 2).double() * 0.3 + 0.4
    floor = FourierAmplitude([x, r], DOMAINS, beta=0.0)
    choice = torch.tensor([3, 2, 1, 0])
    moved = floor.translate(x, "a", "b", choice=choice) - x
    shift = (r[choice].mean((1, 2, 3)) - x.mean((1, 2, 3)))[:, None, None, None]
    torch.testing.assert_close(moved, shift.expand_as(moved))
    for beta in (0.0, 0.1, 0.5):
        own = FourierAmplitude([x, r], DOMAINS, beta=beta).translate(x, "b", "a", choice=torch.arange(4))
        torch.testing.assert_close(own, x)


def test_a_draw_depends_on_the_image_and_the_seed_not_on_the_batch() -> None:
    x, r = smooth(64, 1), smooth(64, 2)
    floor = FourierAmplitude([x, r], DOMAINS, beta=0.1)
    together, order = floor.translate(x, "a", "b"), torch.randperm(64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(floor.choose(x[order], "b"), floor.choose(x, 1)[order])
    torch.testing.assert_close(torch.cat([floor.translate(one[None], "a", "b") for one in x[:5]]), together[:5])
    # 64 draws from 64 leave 1 - 1/e of them drawn at least once.
    drawn = floor.choose(x, "b")
    assert 32 <= len(drawn.unique()) <= 50
    assert (FourierAmplitude([x, r], DOMAINS, seed=1).choose(x, "b") == drawn).sum() < 8
    assert (floor.choose(x, "a") == drawn).sum() < 8


def test_the_swap_refuses_what_it_cannot_do() -> None:
    x = smooth(2, 1)
    with pytest.raises(ParameterError, match="beta"):
        FourierAmplitude([x, x], DOMAINS, beta=0.6)
    with pytest.raises(ParameterError, match="1 training sets"):
        FourierAmplitude([x], DOMAINS)
    floor = FourierAmplitude([x, x], DOMAINS)
    with pytest.raises(ParameterError, match="'c'"):
        floor.translate(x, "a", "c")
    with pytest.raises(ParameterError, match="give one size"):
        floor.translate(smooth(2, 1, 32, 32), "a", "b")
    for choice in (torch.tensor([0, 2]), torch.tensor([0]), torch.tensor([0.0, 1.0])):
        with pytest.raises(ParameterError, match="choice"):
            floor.translate(x, "a", "b", choice=choice)


# Codec round trip


class Halving:
    """A codec that loses every other pixel."""

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        return image[..., ::2, ::2]

    def decode(self, latent: torch.Tensor, size: tuple[int, int] | None = None) -> torch.Tensor:
        image = latent.repeat_interleave(2, -1).repeat_interleave(2, -2)
        return image if size is None else image[..., : size[0], : size[1]]


def test_the_round_trip_is_what_the_codec_loses_and_nothing_else() -> None:
    x = smooth(3, 1, 33, 31)
    codec = PatchCodec(2).fit(x)
    torch.testing.assert_close(CodecRoundTrip(codec).translate(x, "a", "b"), x)
    lossy = CodecRoundTrip(Halving()).translate(x, "a", "b")
    assert lossy.shape == x.shape and torch.equal(lossy[..., ::2, ::2], x[..., ::2, ::2])
    assert torch.equal(lossy[..., 1::2, :], lossy[..., :-1:2, :]) and not torch.equal(lossy, x)


# Physics fit

NOTHING = {
    "contrast": 1.0,
    "exposure_nats": 0.0,
    "blur_pixels": 0.0,
    "noise_floor": 0.0,
    "noise_per_signal": 0.0,
    "scatter_per_nat": 0.0,
    "open_beam": 20.0,
}


def log_signal(image: torch.Tensor) -> torch.Tensor:
    return ((1 + image) / (1 - image)).log()


def test_no_acquisition_leaves_the_image_and_noise_has_its_mean_and_variance() -> None:
    x, noise = smooth(3, 1).double(), torch.randn(3, 1, 48, 48, dtype=torch.float64)
    torch.testing.assert_close(AcquisitionFit(**NOTHING).acquire(x, noise), x, atol=1e-5, rtol=0)
    grey = torch.linspace(-0.6, 0.6, 4, dtype=torch.float64)[:, None, None, None].expand(4, 1, 300, 300)
    noise = torch.randn(grey.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    out = AcquisitionFit(**{**NOTHING, "noise_floor": 0.002, "noise_per_signal": 0.01}).acquire(grey, noise)
    signal, entered = log_signal(out).exp().flatten(1), log_signal(grey).exp().flatten(1)[:, 0]
    torch.testing.assert_close(signal.mean(1), entered, rtol=5e-3, atol=0)
    torch.testing.assert_close(signal.var(1), 0.002 + 0.01 * entered, rtol=0.03, atol=0)


def test_tone_blur_and_scatter_are_what_their_units_say() -> None:
    x, none = smooth(3, 1).double(), torch.zeros(3, 1, 48, 48, dtype=torch.float64)
    toned = AcquisitionFit(**{**NOTHING, "contrast": 1.3, "exposure_nats": 0.2}).acquire(x, none)
    torch.testing.assert_close(log_signal(toned), 1.3 * (log_signal(x) + 0.2), atol=1e-4, rtol=0)
    soft = AcquisitionFit(**{**NOTHING, "blur_pixels": 0.9}).acquire(x, none)
    inner = (..., slice(8, -8), slice(8, -8))
    torch.testing.assert_close(log_signal(soft)[inner], blurred(log_signal(x), 0.9)[inner], atol=1e-4, rtol=0)
    # Behind a wide flat object of two nats everything scatters alike, and the open beam not at all.
    flat = torch.full_like(none, math.tanh(0.5))  # ln I = 1
    behind = AcquisitionFit(**{**NOTHING, "scatter_per_nat": 0.1, "open_beam": math.exp(3)}).acquire(flat, none)
    torch.testing.assert_close(log_signal(behind), torch.full_like(none, 1 + math.log(1.2)), atol=1e-4, rtol=0)
    beam = AcquisitionFit(**{**NOTHING, "scatter_per_nat": 0.1, "open_beam": math.e}).acquire(flat, none)
    torch.testing.assert_close(beam, flat, atol=1e-5, rtol=0)


def test_the_fit_recovers_a_planted_acquisition() -> None:
    """Contrast to 5 %, exposure to 0.05 nats, blur to 0.1 pixels, noise to 15 %, all from other images than its own."""
    g = torch.Generator().manual_seed(3)
    a, b = (smooth(64, seed) + 0.08 * torch.randn(64, 1, 48, 48, generator=g) for seed in (1, 2))
    level = blurred(log_signal(b.clamp(-0.95, 0.95)), 0.8)
    level = level + 0.15 * torch.randn(b.shape, generator=g) * (level / -2).exp()  # relative variance b / signal
    fitted = PhysicsFit([a, torch.tanh(0.7 * (level + 0.3))], DOMAINS).fit("a", "b")
    assert fitted.contrast == pytest.approx(1.4, rel=0.05)
    assert fitted.exposure_nats == pytest.approx(0.3, abs=0.05)
    assert fitted.blur_pixels == pytest.approx(0.8, abs=0.1)
    assert (fitted.noise_floor + fitted.noise_per_signal) ** 0.5 == pytest.approx(0.15, rel=0.15)  # at mid-grey
    assert fitted.scatter_per_nat < 0.04
    # Scatter and exposure may trade a little; what they do to grey values may not.
    grey = torch.linspace(-0.6, 0.6, 5)[:, None, None, None].expand(5, 1, 8, 8)
    planted = torch.tanh(0.7 * (log_signal(grey) + 0.3))
    torch.testing.assert_close(fitted.acquire(grey, torch.zeros_like(grey)), planted, atol=0.03, rtol=0)
    assert fitted.quantile_misfit + fitted.spectrum_misfit < 0.01


def test_an_unchanged_acquisition_is_found_to_be_none(generator: torch.Generator) -> None:
    a, b = (smooth(48, 1) + 0.05 * torch.randn(48, 1, 48, 48, generator=generator) for _ in range(2))
    floor = PhysicsFit([a, b], DOMAINS)
    fitted, noise = floor.fit(0, 1), torch.randn(8, 1, 1, 48, 48, generator=generator)
    assert fitted.contrast == pytest.approx(1, abs=0.02) and fitted.exposure_nats == pytest.approx(0, abs=0.02)
    assert fitted.noise_floor + fitted.noise_per_signal < 0.03**2 and fitted.scatter_per_nat < 0.01
    assert (floor.translate(a[:8], "a", "b", noise=noise) - a[:8]).square().mean().sqrt() < 0.02
    assert floor.fit("a", "b") is fitted and floor.draws() == 1 and floor.noise_space == "image"


def test_noise_is_the_callers_and_in_the_space_of_images() -> None:
    g = torch.Generator().manual_seed(5)
    a = smooth(32, 1)
    floor = PhysicsFit([a, smooth(32, 2) + 0.1 * torch.randn(a.shape, generator=g)], DOMAINS)
    noise = torch.randn(4, 1, 1, 48, 48, generator=g)
    with torch.inference_mode():  # the fit needs gradients, whatever the caller has switched off
        out = floor.translate(a[:4], "a", "b", noise=noise)
    assert torch.equal(out, floor.translate(a[:4], "a", "b", noise=noise))
    torch.testing.assert_close(out[2:3], floor.translate(a[2:3], "a", "b", noise=noise[2:3]))
    added = out - floor.translate(a[:4], "a", "b", noise=0 * noise)
    assert torch.corrcoef(torch.stack([added.flatten(), noise.flatten()]))[0, 1] > 0.9
    assert added.std() == pytest.approx(0.1, rel=0.3)
    with pytest.raises(ParameterError, match="noise"):
        floor.translate(a[:4], "a", "b", noise=noise[:, 0])
    with pytest.raises(ParameterError, match="'c'"):
        floor.fit("a", "c")
    with pytest.raises(ParameterError, match="differ in size"):
        PhysicsFit([a, smooth(2, 1, 32, 32)], DOMAINS)


# Re-simulation


def test_another_chain_sees_the_sources_volume(stage_inputs: dict[str, Path]) -> None:
    folder, (source, target) = stage_inputs["views"], ("synthetic-high", "real-normal")
    views, method = EvaluationSet(folder, "T2"), Resimulation(folder)
    held = load_projections(folder / "T2.simulated.safetensors")
    fov = torch.tensor(views.table["fov"].to_numpy(), dtype=torch.float32)
    rays = (held.line_integrals.float(), held.open_field, fov)
    clean = method.clean(views, source, target)
    assert torch.equal(clean, acquire(*rays, target, generator=None, clean=True))
    own = (int(views.table["seed"][1]) * 64 + domain_index(target)) * 64 + EXPOSURES + 5
    by_hand = acquire(*(part[1:2] for part in rays), target, generator=torch.Generator().manual_seed(own))
    assert torch.equal(method.resimulated(views, source, target, 5)[1:2], by_hand)
    # The simulator's volume lacks something, but not as much as its display differs.
    truth = views.clean(target)
    assert not torch.allclose(clean, truth, atol=0.02)
    nearer = psnr(clean, truth, views.open_field) > psnr(views.clean(source), truth, views.open_field)
    assert nearer.all()


def test_from_its_own_volume_it_is_a_further_exposure_of_the_truth(stage_inputs: dict[str, Path]) -> None:
    views = EvaluationSet(stage_inputs["views"], "T2")
    method = Resimulation(stage_inputs["views"])
    clean = views.clean("real-low")
    assert torch.equal(method.clean(views, "real-exposure", "real-low"), clean)
    exposures = [views.exposure("real-low", k) for k in range(EXPOSURES)]
    exposures += [method.resimulated(views, "real-low", "real-low", seed) for seed in range(4)]
    noise = torch.stack([(one - clean)[views.open_field] for one in exposures])
    noise = noise - noise.mean(0)
    correlation, n = torch.corrcoef(noise), len(exposures)
    expected = torch.full((n, n), -1 / (n - 1)).fill_diagonal_(1.0)
    torch.testing.assert_close(correlation, expected, atol=0.2, rtol=0)
    some = EvaluationSet(stage_inputs["views"], "T2", limit=2)
    assert torch.equal(method.resimulated(some, "real-low", "real-low", 3), exposures[-1][:2])


def test_views_of_another_folder_and_wrong_seeds_are_refused(stage_inputs: dict[str, Path], tmp_path: Path) -> None:
    views = EvaluationSet(stage_inputs["views"], "T2")
    (tmp_path / "T2.real.safetensors").write_bytes((stage_inputs["views"] / "T1.real.safetensors").read_bytes())
    with pytest.raises(ParameterError, match="not those of"):
        Resimulation(tmp_path).clean(views, "real-low", "real-low")
    for seed in (-1, 56):
        with pytest.raises(ParameterError, match="seed"):
            Resimulation(stage_inputs["views"]).resimulated(views, "real-low", "real-low", seed)


# Paired regression

PAIR = Pair("a", "b", DOMAINS)
TINY = {"channels": (16,), "norm_groups": 4, "head_channels": 16, "learning_rate": 1e-2}


def skewed(step: int, generator: torch.Generator) -> list[torch.Tensor]:
    """y = x/2 + e with e = 1 in three of ten pixels and else 0: its mean given x is x/2 + 0.3, its median x/2."""
    x = torch.randn(16, 1, 6, 6, generator=generator)
    y = x / 2 + (torch.rand(x.shape, generator=generator) < 0.3)
    return [torch.cat([x, y])]


@pytest.mark.parametrize(("loss", "offset"), [("l2", 0.3), ("l1", 0.0)])
def test_it_learns_the_posterior_mean_and_with_the_other_loss_the_median(
    loss: str, offset: float, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    method = PairedRegressorTraining(PatchCodec(1), PAIR, PairedRegressorConfig(**TINY, loss=loss))
    for _ in train(method, skewed, folder=tmp_path, config=TrainConfig(steps=60, precision="fp32")):
        pass
    x = torch.randn(64, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    out = method.translator().translate(x, "a", "b")
    expected = x / 2 + offset
    assert (out - expected).square().mean() < 0.015  # the other answer is at 0.09, the inverse map beyond 2
    assert method.translator().nfe() == 1 and method.needs_pairs and PairedRegressor.needs_pairs


def test_an_untrained_regressor_does_nothing_and_its_loss_is_of_source_against_target() -> None:
    x, y = smooth(3, 1, 9, 7), smooth(3, 2, 9, 7)
    codec = PatchCodec(2).fit(torch.cat([x, y]))
    for loss, distance in (("l1", torch.nn.L1Loss()), ("l2", torch.nn.MSELoss())):
        method = PairedRegressorTraining(codec, PAIR, PairedRegressorConfig(**TINY, loss=loss))
        found = method.step([torch.cat([x, y])], torch.Generator())["network"]
        torch.testing.assert_close(found, distance(codec.encode(x), codec.encode(y)))
        assert found.requires_grad and not any(p.requires_grad for p in codec.parameters())
        torch.testing.assert_close(method.translator().translate(x, "a", "b"), x)
        state = method.state()
        assert state["config"]["loss"] == loss and state["pair"] == ["a", "b"]


def test_another_pair_and_another_loss_are_refused() -> None:
    translator = PairedRegressorTraining(PatchCodec(1), PAIR, PairedRegressorConfig(**TINY)).translator()
    for source, target in (("b", "a"), ("a", "a"), (1, 0)):
        with pytest.raises(ParameterError, match="trained from a to b"):
            translator.translate(smooth(1, 1), source, target)
    with pytest.raises(ParameterError, match="'huber'"):
        PairedRegressorConfig(loss="huber")


def test_the_default_network_is_as_large_as_the_other_methods() -> None:
    method = PairedRegressorTraining(PatchCodec(2), PAIR)
    assert sum(p.numel() for p in method.network.parameters()) == pytest.approx(1e6, rel=0.1)
