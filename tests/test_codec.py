"""Codecs: exactness, standardisation, any size, identity; and one training run that must learn."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from medshift.codec import Codec, KLCodec, PatchCodec, from_description
from medshift.codec_training import KLTraining, ShiftTolerantLPIPS, load_codec
from medshift.errors import CheckpointError, DataError, ParameterError
from medshift.metrics.physics import radial_power_spectrum
from medshift.metrics.structure import psnr
from medshift.schedules import TrainConfig
from medshift.train import train


def textured(n: int, size: int, generator: torch.Generator, noise: float = 0.1) -> torch.Tensor:
    """Soft blobs with an edge each and fine noise (n, 1, size, size)."""
    coarse = torch.randn(n, 1, 6, 6, generator=generator)
    smooth = F.interpolate(coarse, (size, size), mode="bicubic")
    edge = 0.4 * (F.interpolate(coarse.roll(2, -1), (size, size), mode="bilinear") > 0.3)
    return torch.tanh(0.5 * smooth + edge) + noise * torch.randn(n, 1, size, size, generator=generator)


def small() -> KLCodec:
    torch.manual_seed(0)
    return KLCodec.build((8, 8, 16), 4)


@given(st.integers(1, 6), st.integers(1, 40), st.integers(1, 40), st.integers(0, 99))
@settings(max_examples=60)
def test_patch_codec_is_exact_for_any_size(patch, height, width, seed):
    generator = torch.Generator().manual_seed(seed)
    images = textured(2, 40, generator)[:, :, :height, :width]
    codec = PatchCodec(patch, mean=torch.randn(patch**2, generator=generator), std=[0.3] * patch**2)
    latent = codec.encode(images)
    assert latent.shape == (2, patch**2, -(-height // patch), -(-width // patch))
    assert (codec.decode(latent, (height, width)) - images).abs().max() < 2e-6
    assert isinstance(codec, Codec)


def test_a_patch_codec_puts_a_block_into_the_channels():
    image = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert PatchCodec(2).encode(image)[0, :, 0, 1].tolist() == [2, 3, 6, 7]


@pytest.mark.parametrize("make", [lambda: PatchCodec(2), small])
def test_fitted_latents_are_standard_over_all_domains_together(make, generator):
    dark, bright = textured(12, 32, generator) - 1, 0.3 * textured(12, 32, generator) + 1
    images = torch.cat([dark, bright])
    codec = make().fit(images)
    latent = codec.encode(images).detach()
    assert latent.mean((0, 2, 3)).abs().max() < 1e-4
    assert (latent.std((0, 2, 3)) - 1).abs().max() < 1e-3
    batches = make().fit(iter([dark, bright]))
    assert torch.allclose(batches.mean, codec.mean, atol=1e-6)
    assert torch.allclose(batches.std, codec.std, rtol=1e-5)


@pytest.mark.parametrize("images", [torch.ones(3, 1, 8, 8), torch.full((3, 1, 8, 8), torch.nan)])
def test_statistics_need_images_that_vary(images):
    with pytest.raises(DataError, match="constant or hold NaN"):
        PatchCodec(2).fit(images)
    with pytest.raises(ParameterError, match="at least one"):
        PatchCodec(2).fit([])


def test_kl_codec_crops_to_any_size_and_uses_the_mode(generator):
    codec = small()
    images = textured(3, 40, generator)[:, :, :33, :30]
    latent = codec.encode(images)
    assert latent.shape == (3, 4, 9, 8) and codec.stride == 4
    assert codec.decode(latent, (33, 30)).shape == images.shape
    assert torch.equal(codec.encode(images), latent)
    padded = F.pad(images, (0, 2, 0, 3), mode="replicate")
    assert torch.allclose(latent, codec.vae.encode(padded).latent_dist.mean, atol=1e-5)


def test_chunks_do_not_change_the_latents(generator, monkeypatch):
    codec, images = small(), textured(5, 16, generator)
    whole = codec.encode(images)
    monkeypatch.setattr("medshift.codec.CHUNK_PIXELS", 2 * 16 * 16)
    assert torch.allclose(codec.encode(images), whole, atol=1e-5)
    alone = torch.cat([codec.decode(part) for part in whole.split(1)])
    assert torch.allclose(codec.decode(whole), alone, atol=1e-5)


@pytest.mark.parametrize("make", [lambda: PatchCodec(3), small])
def test_a_described_codec_is_rebuilt_alone(make, generator):
    images = textured(4, 24, generator)
    codec = make().fit(images)
    description = json.loads(json.dumps(codec.describe()))
    again = from_description(description, codec.tensors())
    assert again.fingerprint() == codec.fingerprint()
    assert torch.equal(again.encode(images), codec.encode(images))
    assert not any(p.requires_grad for p in again.parameters())


def test_the_fingerprint_sees_statistics_and_weights_but_not_the_device_or_place(generator):
    images = textured(4, 24, generator)
    prints = {PatchCodec(2).fingerprint(), PatchCodec(3).fingerprint(), PatchCodec(2).fit(images).fingerprint()}
    codec = small()
    prints.add(codec.fingerprint())
    with torch.no_grad():
        next(codec.vae.parameters()).view(-1)[0] += 1e-3
    prints.add(codec.fingerprint())
    assert len(prints) == 5
    assert small().fingerprint() == small().fingerprint()


def test_a_stored_codec_of_another_kind_or_shape_is_refused():
    stored = PatchCodec(2)
    with pytest.raises(CheckpointError, match="Unknown codec 'wavelet'"):
        from_description({"kind": "wavelet"}, stored.tensors())
    with pytest.raises(CheckpointError, match="not of this version"):
        from_description(PatchCodec(3).describe(), stored.tensors())
    with pytest.raises(CheckpointError, match="not of this version"):
        from_description(small().describe(), {k: v for k, v in small().tensors().items() if "conv_in" not in k})


def test_a_local_autoencoder_with_three_colours_is_read_offline(tmp_path, generator):
    from diffusers import AutoencoderKL

    torch.manual_seed(1)
    vae = AutoencoderKL(
        in_channels=3, out_channels=3, block_out_channels=(8, 8), latent_channels=4, norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    vae.save_pretrained(tmp_path)
    images = textured(2, 16, generator)
    codec = KLCodec.from_local(tmp_path)
    raw = vae.encode(images.expand(-1, 3, -1, -1)).latent_dist.mean
    assert torch.allclose(codec.encode(images), raw, atol=1e-5)
    assert torch.allclose(codec.decode(raw), vae.decode(raw).sample.mean(1, keepdim=True), atol=1e-5)
    assert from_description(codec.describe(), codec.tensors()).fingerprint() == codec.fingerprint()


def test_a_missing_pickled_or_damaged_autoencoder_says_what_to_do(tmp_path):
    with pytest.raises(DataError, match=r"config.json and .*safetensors missing. Put"):
        KLCodec.from_local(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text(json.dumps(small().describe()["config"]))
    (tmp_path / "diffusion_pytorch_model.bin").write_bytes(b"pickled")
    with pytest.raises(DataError, match="never read"):
        KLCodec.from_local(tmp_path)
    (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(b"\x20\0\0\0\0\0\0\0 cut short")
    with pytest.raises(DataError, match="damaged"):
        KLCodec.from_local(tmp_path)


def test_arguments_that_cannot_be():
    codec = PatchCodec(2)
    for call in (
        lambda: PatchCodec(0),
        lambda: PatchCodec(2, mean=[0.0]),
        lambda: PatchCodec(2, std=[1.0, 1.0, 0.0, 1.0]),
        lambda: codec.encode(torch.zeros(1, 3, 8, 8)),
        lambda: codec.encode(torch.zeros(8, 8)),
        lambda: codec.encode(torch.zeros(1, 1, 8, 8, dtype=torch.uint8)),
        lambda: codec.decode(torch.zeros(1, 3, 4, 4)),
        lambda: codec.decode(torch.zeros(1, 4, 4, 4), (9, 8)),
        lambda: KLTraining(small(), warmup=-1),
    ):
        with pytest.raises(ParameterError):
            call()


def test_the_perceptual_distance_is_the_packages_and_its_gradient_is_finite_on_flat_air(generator):
    mine = ShiftTolerantLPIPS()
    a, b = textured(3, 64, generator), textured(3, 64, generator)
    theirs = mine.metric(a.expand(-1, 3, -1, -1), b.expand(-1, 3, -1, -1)).flatten()
    assert torch.allclose(mine(a, b), theirs, rtol=1e-4)
    assert torch.equal(mine(a, a), torch.zeros(3))
    air = torch.ones(1, 1, 64, 64, requires_grad=True)
    mine(a[:1], air).sum().backward()
    assert air.grad is not None and air.grad.isfinite().all() and air.grad.abs().sum() > 0


@pytest.mark.parametrize("side", [16, 34])
def test_training_images_too_small_or_not_divisible_are_refused(side):
    with pytest.raises(ParameterError, match="at least 32 pixels that 4 divides"):
        KLTraining(small()).step((torch.zeros(1, 1, side, side),), torch.Generator())


def test_each_optimiser_descends_its_own_loss_and_warmup_is_counted(generator):
    method = KLTraining(small(), warmup=1)
    batch = (textured(2, 32, generator), torch.zeros(2, dtype=torch.int64))
    assert "discriminator" not in method.step(batch, torch.Generator().manual_seed(1))
    losses = method.step(batch, torch.Generator().manual_seed(1))
    for name, optimizer in method.optimizers().items():
        own = [p for group in optimizer.param_groups for p in group["params"]]
        losses[name].backward(inputs=own)
        assert all(p.grad is not None and p.grad.isfinite().all() for p in own)
    again = method.step(batch, torch.Generator().manual_seed(1))
    assert torch.equal(again["l1"], losses["l1"])
    assert not torch.equal(method.step(batch, torch.Generator().manual_seed(2))["l1"], losses["l1"])


def quick(steps: int) -> TrainConfig:
    return TrainConfig(steps=steps, seed=5, checkpoint_every=steps)


def test_a_trained_codec_is_loaded_from_its_run_alone(tmp_path, generator):
    method = KLTraining(small(), warmup=1)
    images = textured(2, 32, generator)
    records = list(train(method, lambda step, g: (images,), folder=tmp_path, config=quick(3)))
    assert "discriminator" not in records[0].losses and "discriminator" in records[1].losses
    average = records[-1].averages["codec"].module
    assert torch.equal(load_codec(tmp_path).encode(images), average.encode(images))
    assert torch.equal(load_codec(tmp_path, averaged=False).encode(images), method.codec.encode(images))
    # The warm-up's counter is in the checkpoint: a resumed run goes on with the discriminator awake.
    again = KLTraining(small(), warmup=1)
    list(train(again, lambda step, g: (images,), folder=tmp_path, config=quick(3)))
    assert int(again.discriminator.calls) == again.discriminator.called == 3


def test_a_checkpoint_of_another_method_is_no_codec(tmp_path):
    from medshift import checkpoint

    checkpoint.save(tmp_path, 1, {"codec-ema": small().tensors()}, {"method": {"kind": "flow-matching"}})
    with pytest.raises(CheckpointError, match="'flow-matching', not of 'kl-autoencoder'"):
        load_codec(tmp_path)


@pytest.mark.slow
def test_training_learns_the_round_trip(tmp_path):
    """200 small steps on fresh textures: the round trip gains at least 6 dB. How much noise it keeps is printed."""
    torch.manual_seed(3)
    method = KLTraining(KLCodec.build((16, 32), 4), warmup=120)
    test = textured(16, 32, torch.Generator().manual_seed(99))
    before = psnr(method.codec.decode(method.codec.encode(test)).detach(), test).mean()
    for record in train(method, lambda step, g: (textured(8, 32, g),), folder=tmp_path, config=quick(200)):
        assert all(loss.isfinite() for loss in record.losses.values())
    codec = load_codec(tmp_path).fit(test)
    decoded = codec.decode(codec.encode(test))
    frequency, power = radial_power_spectrum(test)
    kept = radial_power_spectrum(decoded)[1][:, frequency >= 0.25].sum() / power[:, frequency >= 0.25].sum()
    print(f"PSNR {before:.1f} -> {psnr(decoded, test).mean():.1f} dB, last octave kept {kept:.2f}")
    assert psnr(decoded, test).mean() > before + 6
