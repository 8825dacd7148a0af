"""CycleGAN and CUT: their parts in closed form, their steps, their runs, and what they can and cannot translate."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from medshift import checkpoint
from medshift.adversarial import (
    DiscriminatorWatch,
    ImagePool,
    PatchDiscriminator,
    PatchNCE,
    ResNetGenerator,
    lsgan_discriminator,
    lsgan_generator,
)
from medshift.baselines.cut import FAST_CUT, CUTConfig, CUTTraining
from medshift.baselines.cyclegan import CycleGANConfig, CycleGANTraining
from medshift.codec import PatchCodec
from medshift.errors import ParameterError, TrainingError
from medshift.pairwise import Pair
from medshift.train import StepRecord, TrainConfig, train

PAIR = Pair("a", "b", ("a", "b", "c"))
SMALL = {"width": 8, "blocks": 2, "discriminator_width": 8, "discriminator_layers": 1}
TINY = CycleGANConfig(**SMALL, pool=4)
TINY_CUT = CUTConfig(**SMALL, patches=16, head_width=16)
METHODS = [(CycleGANTraining, TINY), (CUTTraining, TINY_CUT)]


def made(method, config):
    torch.manual_seed(0)
    codec = PatchCodec(2, [0.2] * 4, [0.4] * 4)
    return method(codec, PAIR, config)


def smooth(n: int, generator: torch.Generator) -> torch.Tensor:
    low = torch.rand(n, 1, 5, 5, generator=generator) * 1.6 - 0.8
    return nn.functional.interpolate(low, size=16, mode="bicubic", align_corners=True)


def brighter(images: torch.Tensor) -> torch.Tensor:
    """The target's look: less contrast, brighter."""
    return 0.5 * images + 0.4


def unpaired(step: int, generator: torch.Generator) -> tuple[torch.Tensor]:
    a, b = smooth(8, generator).chunk(2)
    return (torch.cat([a, brighter(b)]),)


def run(method, folder: Path, *, steps: int, stop: int | None = None, **changes):
    plan = {"precision": "fp32", "schedule": "constant", "warmup": 0.0, "clip_norm": float("inf"), "ema_decay": 0.9}
    records = []
    for record in train(method, unpaired, folder=folder, config=TrainConfig(steps=steps, **(plan | changes))):
        records.append(record)
        if record.step == stop:
            break
    return records


def hashes(folder: Path) -> dict[str, str]:
    return {stem: checkpoint.weights_sha256(tensors) for stem, tensors in checkpoint.load(folder).tensors.items()}


# Networks


@settings(max_examples=10)
@given(st.integers(1, 13), st.integers(1, 13), st.integers(0, 2))
def test_generator_keeps_any_size_and_equals_itself_on_the_padded_latent(height: int, width: int, downs: int) -> None:
    torch.manual_seed(1)
    network = ResNetGenerator(3, width=4, blocks=1, downs=downs)
    x = torch.randn(2, 3, height, width)
    with torch.no_grad():
        out = network(x)
        least = max(4, 2 * network.stride)
        down, right = (max(least, -(-side // network.stride) * network.stride) - side for side in (height, width))
        padded = torch.cat([x, x[:, :, -1:].expand(-1, -1, down, -1)], 2)
        padded = torch.cat([padded, padded[..., -1:].expand(-1, -1, -1, right)], 3)
        torch.testing.assert_close(out, network(padded)[..., :height, :width])
        torch.testing.assert_close(out[:1], network(x[:1]), atol=1e-5, rtol=1e-4)  # images do not see each other


def test_generator_has_a_million_weights_and_its_features_are_its_encoder() -> None:
    network = ResNetGenerator(4)
    assert 0.9e6 <= sum(p.numel() for p in network.parameters()) <= 1.1e6
    assert network.feature_layers == (0, 1, 2, 3, 6) and network.feature_channels == (4, 48, 96, 96, 96)
    x = torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        features = network.features(x, (8, 0, 3))
        torch.testing.assert_close(network.decoder(features[0]), network(x))
        assert torch.equal(features[1], x)
        out, again = network.forward_features(x, network.feature_layers)
        torch.testing.assert_close(out, network(x))
        torch.testing.assert_close(again[3], features[2])
        assert tuple(f.shape[1] for f in again) == network.feature_channels
    with pytest.raises(ParameterError, match="expected 0 to 8"):
        network.features(x, (9,))


def test_generator_forgets_gain_and_offset_of_its_input() -> None:
    """The price of instance normalisation without a residual, as published."""
    torch.manual_seed(2)
    network, x = ResNetGenerator(4, width=8, blocks=2), torch.randn(2, 4, 12, 12)
    offset = torch.tensor([1.0, -2.0, 0.5, 3.0])[None, :, None, None]
    with torch.no_grad():
        torch.testing.assert_close(network(30 * x + offset), network(10 * x), atol=1e-3, rtol=1e-3)
        assert (network(-x) - network(x)).abs().max() > 0.1


@pytest.mark.parametrize(("layers", "field"), [(1, 16), (2, 34), (3, 70)])
def test_receptive_field_is_where_a_logits_gradient_reaches(layers: int, field: int) -> None:
    network = PatchDiscriminator(1, width=2, layers=layers)
    assert network.receptive_field == field
    for name, module in list(network.net.named_children()):
        if isinstance(module, nn.InstanceNorm2d):  # the norm's mean and spread see everything
            network.net[int(name)] = nn.Identity()
        elif isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 1.0)
    x = torch.zeros(1, 1, 160, 160, requires_grad=True)
    logits = network(x)
    logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2].backward()
    seen = x.grad[0, 0].abs() > 0
    assert seen.any(0).sum() == seen.any(1).sum() == field


# Losses


class Constant(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.value + 0 * x).bfloat16()


@settings(max_examples=25)
@given(st.floats(-2, 2).map(lambda c: round(c * 64) / 64))  # exact in bfloat16
def test_least_squares_losses_are_their_formulas(c: float) -> None:
    d, x = Constant(c), torch.randn(3, 1, 4, 4)
    judged, deceived = lsgan_discriminator(d, x, x), lsgan_generator(d, x)
    assert judged.dtype == deceived.dtype == torch.float32
    assert float(judged) == pytest.approx(0.5 * ((c - 1) ** 2 + c**2)) and float(deceived) == pytest.approx(
        (c - 1) ** 2
    )


def test_a_discriminators_loss_tells_real_from_made_and_leaves_the_generator_alone() -> None:
    class Itself(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    real, fake = torch.full((2, 1, 3, 3), 0.75), torch.full((2, 1, 3, 3), 0.25, requires_grad=True)
    loss = lsgan_discriminator(Itself(), real, fake)
    assert float(loss) == pytest.approx(0.5 * (0.25**2 + 0.25**2)) and not loss.requires_grad
    lsgan_generator(Itself(), fake).backward()
    torch.testing.assert_close(fake.grad, torch.full_like(fake, 2 * (0.25 - 1) / fake.numel()))


def test_patch_contrast_equals_numpy() -> None:
    torch.manual_seed(3)
    contrast = PatchNCE((3, 5), patches=100, temperature=0.2, width=6)
    for parameter in contrast.parameters():
        nn.init.normal_(parameter, 0, 0.7)
    query, key = ([torch.randn(2, c, h, 4) for c, h in ((3, 5), (5, 2))] for _ in range(2))
    losses = []
    for head, q, k in zip(contrast.heads, query, key, strict=True):
        w = [p.detach().double().numpy() for p in head.parameters()]
        for image in range(2):
            vectors = []
            for features in (q, k):
                points = features[image].double().numpy().reshape(features.shape[1], -1).T
                hidden = np.maximum(points @ w[0].T + w[1], 0) @ w[2].T + w[3]
                vectors.append(hidden / np.linalg.norm(hidden, axis=1, keepdims=True))
            logits = vectors[0] @ vectors[1].T / 0.2
            losses.append(np.mean(np.log(np.exp(logits).sum(1)) - np.diag(logits)))
    loss = contrast(query, key, torch.Generator().manual_seed(0))
    assert float(loss.detach()) == pytest.approx(np.mean(losses), rel=1e-5)


def test_patch_contrast_is_least_where_places_match_and_are_orthogonal(generator: torch.Generator) -> None:
    contrast = PatchNCE((9,), patches=9, temperature=0.5, width=4)
    contrast.heads[0] = nn.Identity()
    places = torch.eye(9).reshape(1, 9, 3, 3)
    floor = np.log(1 + 8 * np.exp(-1 / 0.5))
    assert float(contrast([places], [5 * places], generator)) == pytest.approx(floor, rel=1e-6)
    assert float(contrast([places], [places.flip(2)], generator)) > floor + 1
    assert float(contrast([torch.ones_like(places)], [places], generator)) == pytest.approx(np.log(9), rel=1e-6)


def test_negatives_come_from_the_same_image_only() -> None:
    torch.manual_seed(4)
    contrast = PatchNCE((3,), patches=7, width=8)
    query, key = torch.randn(2, 3, 5, 5, requires_grad=True), torch.randn(2, 3, 5, 5, requires_grad=True)

    def gradient(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        loss = contrast([q], [k], torch.Generator().manual_seed(9))
        return torch.autograd.grad(loss, q)[0]

    plain = gradient(query, key)
    other_query = torch.cat([query[:1], torch.randn(1, 3, 5, 5)])
    other_key = torch.cat([key[:1], torch.randn(1, 3, 5, 5)])
    assert torch.equal(gradient(other_query, other_key)[0], plain[0])
    assert not torch.equal(gradient(query, key.flip(2))[0], plain[0])
    assert (plain[0].abs().sum(0) > 0).sum() == 7  # so many places, each of them a query
    loss = contrast([query.detach()], [key], torch.Generator())
    assert torch.autograd.grad(loss, key, allow_unused=True) == (None,)


# The pool


def test_pool_follows_the_published_rule_and_returns_old_images() -> None:
    pool, g, twin = ImagePool(5, (1,)), torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    held: list[float] = []
    old = 0
    for batch in range(60):
        fakes = torch.arange(3.0)[:, None] + 3 * batch
        answers = pool.query(fakes, g)[:, 0].tolist()
        slots = torch.randint(5, (3,), generator=twin).tolist()
        swaps = (torch.rand(3, generator=twin) < 0.5).tolist()
        for fake, answer, slot, swap in zip(fakes[:, 0].tolist(), answers, slots, swaps, strict=True):
            expected = fake
            if len(held) < 5:
                held.append(fake)
            elif swap:
                expected, held[slot] = held[slot], fake
                old += 1
            assert answer == expected
        assert pool.images[: len(held), 0].tolist() == held
    assert 60 < old < 115  # half of 175
    x = torch.randn(2, 1, requires_grad=True)
    assert torch.equal(ImagePool(0).query(x, g), x) and not ImagePool(0).query(x, g).requires_grad


def test_pool_takes_the_shape_of_what_it_sees_and_of_what_it_loads(generator: torch.Generator) -> None:
    pool, again = ImagePool(3), ImagePool(3)
    pool.query(torch.randn(4, 2, 5, 7), generator)
    again.load_state_dict(pool.state_dict())
    assert torch.equal(again.images, pool.images) and int(again.count) == 3
    with pytest.raises(ParameterError, match="images of one size"):
        again.query(torch.randn(4, 2, 7, 5), generator)


# Steps


@pytest.mark.parametrize(("method", "config"), METHODS)
def test_each_optimiser_moves_its_own_weights_by_its_own_loss(method, config, tmp_path) -> None:
    """Generator and discriminator step at once: what one becomes does not depend on whether the other moves."""
    free, groups = {}, {}
    for still in ("neither", "generator", "discriminator"):
        trained = made(method, config)
        before = {n: checkpoint.weights_sha256(m.state_dict()) for n, m in trained.modules().items()}
        if still != "neither":
            trained.optimizers()[still].param_groups[0]["lr"] = 0.0
        run(trained, tmp_path / still, steps=1)
        free[still] = {n: checkpoint.weights_sha256(m.state_dict()) for n, m in trained.modules().items()}
        for name, module in trained.modules().items():
            mine = {id(p) for p in module.parameters()}
            groups[name] = [o for o, opt in trained.optimizers().items() if mine & {id(p) for p in _weights(opt)}]
    for name, owners in groups.items():
        if owners:
            (owner,) = owners
            other = {"generator": "discriminator", "discriminator": "generator"}[owner]
            assert free["neither"][name] == free[other][name] != before[name] == free[owner][name]
        else:
            assert name == "codec" or name.endswith("pool")


def _weights(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def test_cyclegans_losses_are_those_of_its_networks() -> None:
    method = made(CycleGANTraining, dataclasses.replace(TINY, pool=0))
    batch = unpaired(0, torch.Generator().manual_seed(5))
    x, y = method.codec.encode(batch[0]).chunk(2)
    g, f = method.forward, method.backward
    with torch.no_grad():
        losses = method.step(batch, torch.Generator())
        gan = (method.of_target(g(x)) - 1).square().mean() + (method.of_source(f(y)) - 1).square().mean()
        cycle = (f(g(x)) - x).abs().mean() + (g(f(y)) - y).abs().mean()
        identity = (g(y) - y).abs().mean() + (f(x) - x).abs().mean()
        torch.testing.assert_close(losses["generator"], gan + 10 * cycle + 5 * identity)
        halves = [(method.of_target, y, g(x)), (method.of_source, x, f(y))]
        judged = sum((d(real) - 1).square().mean() + d(fake).square().mean() for d, real, fake in halves) / 2
        torch.testing.assert_close(losses["discriminator"], judged)


def test_without_its_cycle_or_its_identity_cyclegan_is_another_method(tmp_path) -> None:
    ends = set()
    for name, changes in (("whole", {}), ("acyclic", {"lambda_cycle": 0.0}), ("alien", {"lambda_identity": 0.0})):
        method = made(CycleGANTraining, dataclasses.replace(TINY, **changes))
        records = run(method, tmp_path / name, steps=2)
        ends.add(checkpoint.weights_sha256(method.forward.state_dict()))
        assert ("identity" in records[0].losses) == (name == "whole")
    assert len(ends) == 3


@pytest.mark.parametrize("config", [TINY_CUT, dataclasses.replace(FAST_CUT, **SMALL)])
def test_cuts_losses_are_those_of_its_networks(config: CUTConfig) -> None:
    method = made(CUTTraining, config)
    batch = unpaired(0, torch.Generator().manual_seed(5))
    x, y = method.codec.encode(batch[0]).chunk(2)
    g, d, layers = method.generator, method.discriminator, method.generator.feature_layers
    with torch.no_grad():
        losses = method.step(batch, torch.Generator().manual_seed(6))
        draws = torch.Generator().manual_seed(6)
        total = (d(g(x)) - 1).square().mean()
        terms = [
            method.contrast(g.features(g(z), layers), g.features(z, layers), draws)
            for z in ((x, y) if config.identity else (x,))
        ]
        total = total + config.lambda_nce * sum(terms) / len(terms)
        torch.testing.assert_close(losses["generator"], total)
        torch.testing.assert_close(losses["discriminator"], ((d(y) - 1).square().mean() + d(g(x)).square().mean()) / 2)
    assert FAST_CUT.lambda_nce == 10 and not FAST_CUT.identity


def test_wrong_weights_are_refused() -> None:
    with pytest.raises(ParameterError, match="at least 0"):
        CycleGANConfig(lambda_cycle=-1.0)
    with pytest.raises(ParameterError, match="at least 0"):
        CUTConfig(lambda_nce=-1.0)


# Runs


class Poolless(CycleGANTraining):
    """Its pools are left out of the checkpoint."""

    def modules(self):
        return {name: module for name, module in super().modules().items() if not name.endswith("pool")}


@pytest.mark.parametrize(("method", "config"), METHODS)
def test_a_stopped_run_ends_as_the_unbroken_one(method, config, tmp_path) -> None:
    run(made(method, config), tmp_path / "unbroken", steps=8, checkpoint_every=3)
    run(made(method, config), tmp_path / "broken", steps=8, checkpoint_every=3, stop=5)
    assert checkpoint.load(tmp_path / "broken").step == 3
    run(made(method, config), tmp_path / "broken", steps=8, checkpoint_every=3)
    assert hashes(tmp_path / "broken") == hashes(tmp_path / "unbroken")


def test_the_pools_are_part_of_what_a_run_goes_on_from(tmp_path) -> None:
    run(made(Poolless, TINY), tmp_path / "unbroken", steps=8, checkpoint_every=3)
    run(made(Poolless, TINY), tmp_path / "broken", steps=8, checkpoint_every=3, stop=3)
    run(made(Poolless, TINY), tmp_path / "broken", steps=8, checkpoint_every=3)
    ends = [hashes(tmp_path / name) for name in ("broken", "unbroken")]
    assert ends[0]["target-discriminator"] != ends[1]["target-discriminator"]


EASY = [
    (CycleGANTraining, dataclasses.replace(TINY, blocks=1, learning_rate=4e-3), 75),
    (CUTTraining, dataclasses.replace(TINY_CUT, blocks=1, patches=64, lambda_nce=4.0, learning_rate=2e-3), 150),
]


@pytest.mark.parametrize(("method", "config", "steps"), EASY)
def test_a_brighter_domain_is_reached_and_the_image_kept(method, config, steps, tmp_path) -> None:
    trained = made(method, config)
    images = smooth(64, torch.Generator().manual_seed(77))
    truth, untrained = brighter(images), trained.translator().translate(images, "a", "b")
    run(trained, tmp_path, steps=steps, schedule="cosine")
    held = checkpoint.load(tmp_path).tensors[f"{trained.kept[0]}-ema"]
    average = {name.removeprefix("module."): w for name, w in held.items() if name.startswith("module.")}
    trained.modules()[trained.kept[0]].load_state_dict(average)
    out = trained.translator().translate(images, "a", "b")
    for statistic in (torch.mean, torch.std):
        before, after = ((statistic(z) - statistic(truth)).abs() for z in (images, out))
        assert after < 0.35 * before
    assert torch.corrcoef(torch.stack([out.flatten(), truth.flatten()]))[0, 1] > 0.65
    assert all((out - truth).abs().mean() < 0.5 * (z - truth).abs().mean() for z in (images, untrained))


# Translation


@pytest.mark.parametrize(("method", "config"), METHODS)
def test_translation_is_codec_and_generator_as_it_is_now(method, config) -> None:
    trained = made(method, config)
    translator, codec = trained.translator(), trained.codec
    images = torch.rand(2, 1, 15, 18)
    generator = trained.modules()[trained.kept[0]]
    with torch.no_grad():
        expected = codec.decode(generator(codec.encode(images)), size=(15, 18))
    first = translator.translate(images, "a", "b")
    torch.testing.assert_close(first, expected)
    assert not first.requires_grad and translator.nfe() == 1
    with torch.no_grad():
        generator.decoder[-1].bias += 0.5
    torch.testing.assert_close(
        trained.translator().translate(images, 0, 1), expected + 0.5 * 0.4
    )  # in units of the latents


@pytest.mark.parametrize(("method", "config"), METHODS)
def test_another_pair_is_refused(method, config) -> None:
    translator = made(method, config).translator()
    for source, target in (("b", "a"), ("a", "c"), ("a", "nowhere"), (1, 0)):
        with pytest.raises(ParameterError, match="trained from a to b"):
            translator.translate(torch.zeros(1, 1, 8, 8), source, target)


# The guard


def record(step: int, **losses: float) -> StepRecord:
    named = {name.replace("_", "-"): torch.tensor(value) for name, value in losses.items()}
    return StepRecord(step, step, named, {}, 1.0, 0.1, {})


def first_stop(watch: DiscriminatorWatch, steps: int, judged, deceived) -> int | None:
    for step in range(1, steps + 1):
        try:
            watch(record(step, discriminator=judged(step), adversarial=deceived(step)))
        except TrainingError:
            return step
    return None


def test_the_guard_needs_both_losses_all_the_time(tmp_path) -> None:
    def guard() -> DiscriminatorWatch:
        return DiscriminatorWatch(tmp_path, patience=30, every=10)

    assert first_stop(guard(), 100, lambda s: 0.001, lambda s: 1.0) == 30
    assert first_stop(guard(), 100, lambda s: 0.001, lambda s: 0.9) is None  # still deceived
    assert first_stop(guard(), 100, lambda s: 0.25, lambda s: 1.0) is None  # as at the start
    assert first_stop(guard(), 100, lambda s: 0.5 if 21 <= s <= 24 else 0.001, lambda s: 1.0) == 60  # a new start
    assert first_stop(guard(), 100, lambda s: 0.001 if s > 25 else 0.5, lambda s: 1.0) == 60


def test_the_guard_looks_at_each_of_several_discriminators(tmp_path) -> None:
    watch = DiscriminatorWatch(tmp_path, patience=4, every=2)
    fine = {"discriminator": 0.25, "discriminator_x": 0.25, "adversarial_x": 0.3}
    with pytest.raises(TrainingError, match="'discriminator-y'"):
        for step in range(1, 5):
            watch(record(step, **fine, discriminator_y=0.0, adversarial_y=1.01))
    with pytest.raises(ParameterError, match="name them so"):
        watch(record(1, discriminator=0.2, generator=1.0))
    with pytest.raises(ParameterError, match="patience"):
        DiscriminatorWatch(tmp_path, patience=0)


def test_the_guard_keeps_the_newest_checkpoint_of_this_run_and_no_other(tmp_path) -> None:
    watch = DiscriminatorWatch(tmp_path, every=1)
    for step, value in ((1, 1.0), (2, 2.0), (2, 3.0)):  # the last: as if the folder were used anew
        for old in tmp_path.glob("step-*"):
            shutil.rmtree(old)
        checkpoint.save(tmp_path, step, {"net": {"w": torch.tensor([value])}}, {})
        for _ in range(2):
            watch(record(step, discriminator=0.25, adversarial=0.25))
            assert checkpoint.load(tmp_path / "last-good").tensors["net"]["w"].tolist() == [value]
        assert len(list((tmp_path / "last-good").iterdir())) == 1


@pytest.mark.parametrize(("method", "config"), METHODS)
def test_a_discriminator_that_wins_stops_the_run_and_the_last_good_weights_stay(method, config, tmp_path) -> None:
    trained = made(method, dataclasses.replace(config, learning_rate=5e-4))
    trained.optimizers()["generator"].param_groups[0]["lr"] = 0.0  # it cannot answer
    watch = DiscriminatorWatch(tmp_path, patience=40, every=5, threshold=0.03, tolerance=0.2)
    plan = TrainConfig(steps=1000, precision="fp32", schedule="constant", warmup=0.0, checkpoint_every=5, keep=2)
    weights, judged = {}, {}
    with pytest.raises(TrainingError, match="The discriminator has won") as stop:
        for r in train(trained, unpaired, folder=tmp_path, config=plan):
            names = [name for name in r.losses if "adversarial" in name]
            judged[r.step] = min(float(r.losses[name.replace("adversarial", "discriminator")]) for name in names)
            if r.step % 5 == 0:
                weights[r.step] = {name: checkpoint.weights_sha256(m.state_dict()) for name, m in _networks(trained)}
            watch(r)
    held = checkpoint.load(tmp_path / "last-good")
    assert str(held.path) in str(stop.value)
    # Good up to there, and from then on lost at every step of the patience.
    assert held.step == r.step - 40 > 5
    assert np.mean([judged[step] for step in range(held.step - 4, held.step + 1)]) > 0.8 * 0.03
    assert max(np.mean([judged[s + k] for k in range(5)]) for s in range(held.step + 1, r.step, 5)) < 0.03
    assert not (tmp_path / held.path.name).exists()  # the run itself kept its newest two only
    assert [path.name for path in (tmp_path / "last-good").iterdir()] == [held.path.name]
    torch.manual_seed(1)
    fresh = method(PatchCodec(2), PAIR, config)
    for name, module in _networks(fresh):
        module.load_state_dict(held.tensors[name])
        assert checkpoint.weights_sha256(module.state_dict()) == weights[held.step][name]


def _networks(method) -> list[tuple[str, nn.Module]]:
    return [(name, module) for name, module in method.modules().items() if not name.endswith("pool")]
