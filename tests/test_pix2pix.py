"""Pix2Pix: its losses in closed form, what its discriminator sees, who learns from what, and its dropout."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from medshift.codec import PatchCodec
from medshift.discriminator_watch import DiscriminatorWatch
from medshift.errors import ParameterError
from medshift.paired.pix2pix import Pix2PixConfig, Pix2PixTraining, cross_entropy, dropping, generated
from medshift.pairwise import Pair
from medshift.train import TrainConfig, train

PAIR = Pair("a", "b", ("a", "b", "c"))
TINY = Pix2PixConfig(
    channels=(8, 16), norm_groups=4, head_channels=8, dropout_levels=1, discriminator_width=8, discriminator_layers=1
)


def made(config: Pix2PixConfig = TINY, *, taught: bool = True) -> Pix2PixTraining:
    """A method; `taught` gives the generator's last convolution weights, which starts at zero."""
    torch.manual_seed(0)
    method = Pix2PixTraining(PatchCodec(2, [0.2] * 4, [0.4] * 4), PAIR, config)
    if taught:
        nn.init.normal_(method.generator.unet.conv_out.weight, 0, 0.1)
    return method


def smooth(n: int, generator: torch.Generator) -> Tensor:
    low = torch.rand(n, 1, 5, 5, generator=generator) * 1.6 - 0.8
    return nn.functional.interpolate(low, size=16, mode="bicubic", align_corners=True)


def pairs(step: int, generator: torch.Generator) -> tuple[Tensor]:
    images = smooth(4, generator)
    return (torch.cat([images, 0.5 * images + 0.4]),)


def losses_of(method: Pix2PixTraining, batch: tuple[Tensor], seed: int = 3) -> dict[str, Tensor]:
    torch.manual_seed(seed)  # of the dropout
    return method.step(batch, torch.Generator())


def gradients(loss: Tensor, module: nn.Module) -> list[Tensor | None]:
    return list(torch.autograd.grad(loss, list(module.parameters()), retain_graph=True, allow_unused=True))


# Losses


@settings(max_examples=30)
@given(st.integers(-255, 255).map(lambda k: k / 4))  # exact in bfloat16
def test_cross_entropy_is_softplus_and_finite_far_out(c: float) -> None:
    logits = torch.full((2, 1, 3, 3), c).bfloat16()
    for label, sign in ((1.0, -1), (0.0, 1)):
        loss = cross_entropy(logits, label)
        assert loss.dtype == torch.float32
        assert float(loss) == pytest.approx(max(sign * c, 0) + math.log1p(math.exp(-abs(c))), rel=1e-5, abs=1e-6)


def test_a_discriminator_that_cannot_tell_leaves_log_2() -> None:
    method, batch = made(), pairs(0, torch.Generator().manual_seed(1))
    last = method.discriminator.net[-1]
    nn.init.zeros_(last.weight)
    for bias, real, fake in ((0.0, math.log(2), math.log(2)), (1.5, math.log1p(math.exp(-1.5)), None)):
        nn.init.constant_(last.bias, bias)
        losses = losses_of(method, batch)
        made_loss = real + bias if fake is None else fake  # softplus(b) = softplus(-b) + b
        assert float(losses["adversarial"]) == pytest.approx(real, rel=1e-5)
        assert float(losses["discriminator"].detach()) == pytest.approx((real + made_loss) / 2, rel=1e-5)


@pytest.mark.parametrize("weights", [(1.0, 100.0), (0.5, 7.0), (1.0, 0.0)])
def test_losses_are_those_of_the_networks_on_source_and_candidate(weights: tuple[float, float]) -> None:
    method = made(dataclasses.replace(TINY, lambda_gan=weights[0], lambda_l1=weights[1]))
    batch = pairs(0, torch.Generator().manual_seed(2))
    y, x0 = method.codec.encode(batch[0]).chunk(2)
    losses = losses_of(method, batch)
    torch.manual_seed(3)
    with torch.no_grad():
        fake = y + method.generator(y, torch.ones(()), torch.zeros(4, dtype=torch.int64))
        real, judged = (method.discriminator(torch.cat([y, z], 1)).double().sigmoid() for z in (x0, fake))
        l1 = (fake - x0).double().abs().mean()
    total = -weights[0] * judged.log().mean() + weights[1] * l1
    assert float(losses["generator"].detach()) == pytest.approx(float(total), rel=1e-5)
    assert float(losses["l1"]) == pytest.approx(float(l1), rel=1e-5)
    expected = -(real.log().mean() + (1 - judged).log().mean()) / 2
    assert float(losses["discriminator"].detach()) == pytest.approx(float(expected), rel=1e-5)
    misaligned = (torch.cat([batch[0][:4], batch[0][4:].roll(1, 0)]),)
    assert losses_of(method, misaligned)["l1"] > 1.1 * losses["l1"]


def test_published_weights() -> None:
    c = Pix2PixConfig()
    assert (c.lambda_gan, c.lambda_l1, c.dropout, c.learning_rate, c.beta1) == (1.0, 100.0, 0.5, 2e-4, 0.5)
    for optimizer in made().optimizers().values():
        assert optimizer.defaults["betas"] == (0.5, 0.999) and isinstance(optimizer, torch.optim.Adam)


# The discriminator


def test_the_discriminator_sees_the_source() -> None:
    """In training, not by its shape only: with the same candidates its loss depends on their sources."""
    method, batch = made(taught=False), pairs(0, torch.Generator().manual_seed(4))
    candidate = method.codec.encode(batch[0][4:])
    sources = [method.codec.encode(batch[0][:4]), torch.zeros_like(candidate)]
    with torch.no_grad():
        first, second = (method.discriminator(torch.cat([y, candidate], 1)) for y in sources)
    assert (first - second).abs().max() > 1e-3
    seen: list[Tensor] = []
    hook = method.discriminator.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].detach()))
    losses_of(method, batch)
    hook.remove()
    assert len(seen) == 3 and all(torch.equal(shown[:, :4], sources[0]) for shown in seen)
    fakes = [shown for shown in seen if torch.equal(shown[:, 4:], sources[0])]  # f = 0 at first: made are the sources
    assert len(fakes) == 2 and sum(torch.equal(shown[:, 4:], candidate) for shown in seen) == 1


def test_the_guard_finds_its_losses(tmp_path) -> None:
    method = made()
    watch = DiscriminatorWatch(tmp_path, every=1)
    for record in train(method, pairs, folder=tmp_path, config=TrainConfig(steps=2, checkpoint_every=1)):
        watch(record)
    assert set(method.optimizers()) == {"generator", "discriminator"} and (tmp_path / "last-good").is_dir()


# Who learns from what


def test_gradients_reach_their_own_network_only() -> None:
    method = made()
    losses = losses_of(method, pairs(0, torch.Generator().manual_seed(5)))
    networks = {name: method.modules()[name] for name in ("generator", "discriminator")}
    for own, other in (("generator", "discriminator"), ("discriminator", "generator")):
        assert all(g is None for g in gradients(losses[own], networks[other]))
        assert sum(float(g.abs().sum()) for g in gradients(losses[own], networks[own]) if g is not None) > 0
    assert not losses["adversarial"].requires_grad and not losses["l1"].requires_grad
    assert all(p.requires_grad for p in networks["discriminator"].parameters())


def test_without_its_adversarial_term_the_gradient_is_that_of_the_absolute_error_alone() -> None:
    method, batch = made(), pairs(0, torch.Generator().manual_seed(6))
    y, x0 = method.codec.encode(batch[0]).chunk(2)
    torch.manual_seed(3)
    alone = gradients(100 * nn.functional.l1_loss(generated(method.generator, y), x0), method.generator)
    whole = gradients(losses_of(method, batch)["generator"], method.generator)
    method.config = dataclasses.replace(TINY)
    object.__setattr__(method.config, "lambda_gan", 0.0)  # the configuration itself refuses that
    ours = gradients(losses_of(method, batch)["generator"], method.generator)
    differ = 0
    for one, two, three in zip(ours, alone, whole, strict=True):
        assert (one is None) == (two is None)
        if one is not None and two is not None and three is not None:
            torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-4)
            differ += not torch.allclose(two, three, atol=1e-5, rtol=1e-4)
    assert differ > 10


def test_a_regression_is_no_pix2pix() -> None:
    for wrong in ({"lambda_gan": 0.0}, {"lambda_l1": -1.0}, {"dropout_levels": -1}):
        with pytest.raises(ParameterError, match="expected above 0"):
            Pix2PixConfig(**wrong)
    with pytest.raises(ParameterError, match="dropout is 1"):
        made(dataclasses.replace(TINY, dropout=1.0))


# Dropout


def test_dropout_is_in_the_innermost_levels_of_the_decoder() -> None:
    method = Pix2PixTraining(PatchCodec(2, [0.0] * 4, [1.0] * 4), PAIR)
    assert 0.9e6 <= sum(p.numel() for p in method.generator.parameters()) <= 1.1e6
    dropping_ones = [n for n, m in method.generator.named_modules() if isinstance(m, nn.Dropout) and m.p > 0]
    assert sorted({name.split(".resnets")[0] for name in dropping_ones}) == [f"unet.up_blocks.{k}" for k in range(3)]
    batch = pairs(0, torch.Generator().manual_seed(7))
    taught = made()
    first, second, again = (float(losses_of(taught, batch, seed)["l1"]) for seed in (1, 2, 1))
    assert first == again != second  # in training too


def test_dropped_features_are_zero_and_kept_ones_scaled() -> None:
    dropout = nn.Sequential(nn.Dropout(0.25), nn.Dropout(0.0))
    with dropping(dropout, [torch.Generator().manual_seed(k) for k in range(2)]):
        out = dropout(torch.full((2, 50, 20, 20), 3.0))
    assert set(out.unique().tolist()) == {0.0, 4.0}
    assert abs(float((out > 0).double().mean()) - 0.75) < 5 * math.sqrt(0.75 * 0.25 / out.numel())
    assert abs(float((out[0] == out[1]).double().mean()) - (0.75**2 + 0.25**2)) < 0.02  # images independently
    with dropping(dropout, None):
        assert torch.equal(dropout(out), out)
    assert all(m.training and not m._forward_hooks for m in dropout.modules())


def test_seeds_differ_repeat_bit_for_bit_and_leave_the_global_state_alone() -> None:
    method = made()
    translator, images = method.translator(), smooth(3, torch.Generator().manual_seed(8))
    torch.manual_seed(11)
    state = torch.random.get_rng_state()
    first, again, other = (translator.translate(images, "a", "b", seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(12)
    assert torch.equal(first, again) and torch.equal(first, translator.translate(images, "a", "b"))
    spread = (first - other).abs().flatten(1).mean(1)
    assert (spread > 1e-3).all() and not first.requires_grad
    alone = torch.cat([translator.translate(image[None], "a", "b") for image in images.flip(0)]).flip(0)
    torch.testing.assert_close(alone, first, atol=1e-5, rtol=1e-4)  # what stands beside an image does not matter
    assert method.generator.training and not any(m._forward_hooks for m in method.generator.modules())


def test_seeds_give_the_law_of_torchs_own_dropout() -> None:
    method, image = made(), smooth(1, torch.Generator().manual_seed(9))
    n = 400
    many = method.codec.encode(image).expand(n, -1, -1, -1)
    torch.manual_seed(13)
    with torch.no_grad():
        theirs = generated(method.generator.train(), many)
        with dropping(method.generator, [torch.Generator().manual_seed(k) for k in range(n)]):
            ours = generated(method.generator, many)
    error = (theirs.var(0) + ours.var(0)).div(n).sqrt()
    assert ((ours.mean(0) - theirs.mean(0)) / error).square().mean() < 2  # 1 for equal means
    assert 0.9 < float(ours.var(0).mean() / theirs.var(0).mean()) < 1.1


def test_without_dropout_translation_is_the_generator_in_evaluation_mode() -> None:
    method = made()
    translator, images = method.translator(), smooth(2, torch.Generator().manual_seed(10))
    out = translator.translate(images, "a", "b", dropout=False)
    assert torch.equal(out, translator.translate(images, 0, 1, dropout=False, seed=5))
    with torch.no_grad():
        latents = generated(method.generator.eval(), method.codec.encode(images))
    torch.testing.assert_close(out, method.codec.decode(latents, size=(16, 16)))
    method.generator.train()
    assert (out - translator.translate(images, "a", "b")).abs().mean() > 1e-3
    still = made(dataclasses.replace(TINY, dropout=0.0)).translator()
    first, second = (still.translate(images, "a", "b", seed=seed) for seed in (0, 1))
    assert torch.equal(first, second)


# Translation and training


def test_wrong_pairs_and_seeds_are_refused() -> None:
    translator = made().translator()
    for source, target in (("b", "a"), ("a", "c"), ("a", "nowhere"), (1, 0)):
        with pytest.raises(ParameterError, match="trained from a to b"):
            translator.translate(torch.zeros(1, 1, 8, 8), source, target)
    for seed in (0.5, "0", None, True):
        with pytest.raises(ParameterError, match="whole number"):
            translator.translate(torch.zeros(1, 1, 8, 8), "a", "b", seed=seed)


@pytest.mark.parametrize("size", [(15, 18), (1, 3), (21, 9)])
def test_any_size_is_translated_and_trained_on(size: tuple[int, int]) -> None:
    method = made(taught=False)
    images = torch.rand(4, 1, *size)
    translator = method.translator()
    torch.testing.assert_close(translator.translate(images, "a", "b"), images)  # f = 0 at first
    assert all(torch.isfinite(loss) for loss in losses_of(method, (images,)).values())
    assert translator.nfe(seed=3, dropout=False) == translator.nfe() == 1


def test_a_shift_is_learnt_from_pairs(tmp_path) -> None:
    config = dataclasses.replace(TINY, learning_rate=4e-3)
    method = made(config, taught=False)
    images = smooth(32, torch.Generator().manual_seed(77))
    truth = 0.5 * images + 0.4
    plan = TrainConfig(steps=60, precision="fp32", schedule="cosine", warmup=0.0, clip_norm=math.inf)
    judged = [float(r.losses["discriminator"]) for r in train(method, pairs, folder=tmp_path, config=plan)]
    for dropout in (True, False):
        out = method.translator().translate(images, "a", "b", dropout=dropout)
        assert (out - truth).abs().mean() < 0.35 * (images - truth).abs().mean()
    assert 0 < min(judged) and max(judged) < 5 and len({round(j, 6) for j in judged}) > 30  # it plays


def test_the_state_rebuilds_the_method() -> None:
    method = made()
    again = Pix2PixTraining(method.codec, PAIR, Pix2PixConfig(**method.state()["config"]))
    again.generator.load_state_dict(method.generator.state_dict())
    images = smooth(2, torch.Generator().manual_seed(14))
    first, second = (m.translator().translate(images, "a", "b", seed=2) for m in (method, again))
    assert torch.equal(first, second) and method.state()["kind"] == "pix2pix"
