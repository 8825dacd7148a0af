"""CycleGAN-Turbo's recipe on our own backbone: what is trained, what stays, and what it starts from."""

from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from medshift.adapters import AdaptedVelocity, LevelSkips, check_base
from medshift.baselines import cyclegan_turbo
from medshift.baselines.cyclegan_turbo import CycleGANTurbo, CycleGANTurboConfig, CycleGANTurboTraining
from medshift.baselines.sd_turbo import FILE, OriginalCycleGANTurbo
from medshift.checkpoint import latest, load, weights_sha256
from medshift.codec import PatchCodec
from medshift.codec_training import ShiftTolerantLPIPS
from medshift.errors import CheckpointError, DataError, ParameterError
from medshift.network import NetworkConfig, VelocityNetwork
from medshift.pairwise import Pair
from medshift.schedules import TrainConfig
from medshift.train import train

PAIR = Pair("a", "b", ("x", "b", "a"))
SHAPE = NetworkConfig(n_domains=3, in_channels=4, channels=(8, 16, 24), norm_groups=8, head_channels=8)
SMALL = CycleGANTurboConfig(rank=3, discriminator_width=8, discriminator_layers=1, levels=2, time=0.4)

perceptual = cache(ShiftTolerantLPIPS)  # reading its weights takes longer than a test


@pytest.fixture(autouse=True)
def _one_perceptual_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cyclegan_turbo, "ShiftTolerantLPIPS", perceptual)


def trained_base(seed: int = 0) -> VelocityNetwork:
    """A network whose every parameter is away from its start, as training leaves it."""
    torch.manual_seed(seed)
    base = VelocityNetwork(SHAPE)
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return base.eval()


def method(base: VelocityNetwork | None = None, config: CycleGANTurboConfig = SMALL) -> CycleGANTurboTraining:
    torch.manual_seed(1)
    return CycleGANTurboTraining(PatchCodec(2), PAIR, config, trained_base() if base is None else base)


def batches(step: int, generator: torch.Generator) -> tuple[Tensor]:
    images = torch.rand(4, 1, 32, 36, generator=generator)
    return (torch.cat([images[:2] - 0.8, 0.3 - images[2:]]),)


def descend(training: CycleGANTurboTraining, folder: Path, steps: int = 2, **options: object) -> None:
    config = TrainConfig(steps=steps, schedule="constant", warmup=0.0, precision="fp32", **options)
    list(train(training, batches, folder=folder, config=config))


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def stirred(training: CycleGANTurboTraining, seed: int = 5) -> CycleGANTurboTraining:
    """Adapters and skips at random values, as if trained."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name in training.kept:
            for parameter in training.modules()[name].parameters():
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=g))
    return training


# Before training


def test_an_untrained_generator_is_the_networks_own_one_step_estimate() -> None:
    """Bit for bit, on sizes that are no multiple of codec and network, and in both directions."""
    base, images = trained_base(), torch.rand(3, 1, 33, 46) * 2 - 1
    training = method(base)
    z = training.codec.encode(images)
    for label, direction in ((1, 0), (2, 1)):
        labels, ways = torch.full((3,), label), torch.full((3,), direction)
        with torch.no_grad():
            wanted = z + (1 - SMALL.time) * base(z, torch.tensor(SMALL.time), labels)
            assert torch.equal(training.velocity.one_step(z, SMALL.time, labels, ways), wanted)
        if direction == 0:
            made = training.translator().translate(images, "a", "b")
            assert torch.equal(made, training.codec.decode(wanted, size=(33, 46)))
            assert (made - images).abs().mean() > 0.01


def test_every_convolution_and_attention_projection_has_an_adapter_of_the_rank() -> None:
    base = trained_base()
    adapted = AdaptedVelocity(base, 3)
    names = {name.rpartition("/")[0].replace("/", ".") for name, _ in adapted.adapters.named_parameters()}
    convolutions = {n for n, m in base.unet.named_modules() if isinstance(m, nn.Conv2d)}
    assert names == convolutions | {f"mid_block.attentions.0.{p}" for p in ("to_q", "to_k", "to_v", "to_out.0")}
    assert {"conv_in", "conv_out"} < names
    assert all(3 in p.shape[:2] for p in adapted.adapters.parameters())


def test_an_adapter_adds_its_product_to_the_weight_of_its_layer() -> None:
    """W + B A written into a plain copy's weights gives the same field: scale one, right layers."""
    base, training = trained_base(), stirred(method())
    for weight in training.velocity.skips.weights:
        nn.init.zeros_(weight)
    factors = dict(training.velocity.adapters.named_parameters())
    with torch.no_grad():
        for name in {key.rpartition("/")[0] for key in factors}:
            a, b = factors[f"{name}/lora_A"], factors[f"{name}/lora_B"]
            weight = base.unet.get_submodule(name.replace("/", ".")).weight
            weight += (b.flatten(1) @ a.flatten(1)).reshape(weight.shape)
        x, t, label = torch.randn(2, 4, 9, 10), torch.tensor(0.3), torch.tensor([0, 2])
        made = training.velocity(x, t, label, torch.zeros(2, dtype=torch.int64))
        torch.testing.assert_close(made, base(x, t, label), atol=2e-4, rtol=1e-3)


# The skips


def test_a_skip_is_the_1x1_convolution_of_its_direction() -> None:
    skips = LevelSkips((8, 16, 24))
    assert [tuple(w.shape) for w in skips.weights] == [(2, 24, 16), (2, 24, 8), (2, 16, 8)]
    with torch.no_grad():
        for w in skips.weights:
            w.normal_()
    x = torch.randn(2, 16, 5, 7)
    made = skips(0, x, torch.tensor([1, 0]))
    for i, way in enumerate((1, 0)):
        wanted = nn.functional.conv2d(x[i : i + 1], skips.weights[0][way][:, :, None, None])
        torch.testing.assert_close(made[i : i + 1], wanted, atol=1e-5, rtol=1e-5)


def test_every_skip_joins_mirrored_blocks_and_serves_its_own_direction() -> None:
    v = method().velocity
    x, t, label, ways = torch.randn(2, 4, 8, 8), torch.tensor(0.4), torch.tensor([1, 1]), torch.tensor([0, 1])
    entered: list[Tensor] = []
    for block in v.network.unet.get_submodule("down_blocks").children():
        block.register_forward_pre_hook(lambda m, a, k: entered.append(k["hidden_states"]), with_kwargs=True)
    met: dict[int, Tensor] = {}
    for level, block in enumerate(v.network.unet.get_submodule("up_blocks").children()):
        block.register_forward_pre_hook(lambda m, a, level=level: met.update({level: a[0]}))
    with torch.no_grad():
        plain = v(x, t, label, ways)
        activations, before = entered[::-1], dict(met)
        for level, weight in enumerate(v.skips.weights):
            weight[0].normal_()
            skipped = v(x, t, label, ways)
            wanted = nn.functional.conv2d(activations[level][:1], weight[0][:, :, None, None])
            torch.testing.assert_close((met[level] - before[level])[:1], wanted, atol=1e-4, rtol=1e-4)
            assert not torch.allclose(skipped[0], plain[0], atol=1e-4)
            torch.testing.assert_close(skipped[1], plain[1])
            assert torch.equal(v(x, t, label, ways, 0.0), plain)
            weight.zero_()


# Training


def test_training_leaves_the_base_bit_equal_and_moves_everything_else(tmp_path: Path) -> None:
    base = trained_base()
    given, grads = weights(base), [p.requires_grad for p in base.parameters()]
    training = method(base)
    inside = {k: v.clone() for k, v in training.velocity.network.state_dict().items() if "lora" not in k}
    before = {name: weights(module) for name, module in training.modules().items()}
    descend(training, tmp_path, steps=2)
    assert weights_sha256(base.state_dict()) == weights_sha256(given)
    assert [p.requires_grad for p in base.parameters()] == grads == [True] * len(grads)
    after = training.velocity.network.state_dict()
    assert len(inside) == len(given) and all(torch.equal(after[k], v) for k, v in inside.items())
    for name, module in training.modules().items():
        still = [k for k, v in module.state_dict().items() if torch.equal(v, before[name][k])]
        assert still == (list(before["codec"]) if name == "codec" else []), name


def test_each_part_of_the_loss_is_the_published_sum_over_both_directions() -> None:
    """Against the loss written out per direction, with one network of the plain kind for each evaluation."""
    training = stirred(method())
    (images,) = batches(0, torch.Generator().manual_seed(3))
    losses = training.step((images,), torch.Generator())
    a, b = images[:2], images[2:]
    codec, v, d = training.codec, training.velocity, training.perceptual

    def go(x: Tensor, label: int, way: int) -> Tensor:
        labels, ways = torch.full((2,), label), torch.full((2,), way)
        return codec.decode(v.one_step(codec.encode(x), SMALL.time, labels, ways))

    def to_b(x: Tensor) -> Tensor:
        return go(x, 1, 0)

    def to_a(x: Tensor) -> Tensor:
        return go(x, 2, 1)

    def far(made: Tensor, truth: Tensor, l1: float, deep: float) -> Tensor:
        return l1 * (made - truth).abs().mean() + deep * d(truth, made).mean()

    with torch.no_grad():
        fake_b, fake_a = to_b(a), to_a(b)
        cycle = (far(to_a(fake_b), a, 1, 10) + far(to_b(fake_a), b, 1, 10)) / 2
        identity = (far(to_b(b), b, 1, 1) + far(to_a(a), a, 1, 1)) / 2
        fooled, judged = [], []
        for side, real, fake in (("target", b, fake_b), ("source", a, fake_a)):
            for level, judge in enumerate(training.modules()[f"discriminator-{side}"]):
                shrink = nn.AvgPool2d(2**level)
                fooled.append((judge(shrink(fake)) - 1).square().mean())
                judged.append(((judge(shrink(real)) - 1).square().mean() + judge(shrink(fake)).square().mean()) / 2)
        adversarial = sum(fooled) / 4
        wanted = {"cycle": cycle, "identity": identity, "adversarial": adversarial, "discriminator": sum(judged) / 4}
        wanted["generator"] = cycle + identity + 0.5 * adversarial
    assert losses.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(
            losses[name].detach(), value, atol=1e-4, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("only", ["cycle", "cycle_perceptual", "identity", "identity_perceptual", "adversarial"])
def test_the_gradient_of_every_part_reaches_adapters_and_skips(only: str) -> None:
    none = dict.fromkeys(["cycle", "cycle_perceptual", "identity", "identity_perceptual", "adversarial"], 0.0)
    config = CycleGANTurboConfig(rank=2, discriminator_width=8, discriminator_layers=1, **{**none, only: 1.0})
    training = stirred(method(config=config))
    loss = training.step(batches(0, torch.Generator().manual_seed(3)), torch.Generator())["generator"]
    parameters = [*training.velocity.adapters.parameters(), *training.velocity.skips.parameters()]
    gradients = torch.autograd.grad(loss, parameters)
    assert all(torch.isfinite(g).all() and g.abs().max() > 0 for g in gradients)
    if only != "adversarial":  # both sets of skips are trained, each by its own direction
        assert all(g[way].abs().max() > 0 for g in gradients[-3:] for way in (0, 1))


def test_flat_images_give_finite_gradients() -> None:
    """Air without noise: a perceptual distance that normalises by a norm of zero would answer NaN."""
    training = method()
    loss = training.step((torch.ones(2, 1, 32, 32),), torch.Generator())["generator"]
    gradients = torch.autograd.grad(loss, list(training.velocity.adapters.parameters()))
    assert all(torch.isfinite(g).all() for g in gradients)


def test_both_directions_use_the_same_adapters_and_follow_the_label() -> None:
    training = method()
    x, t = torch.randn(1, 4, 8, 8), torch.tensor(0.4)
    ways = {way: torch.tensor([way]) for way in (0, 1)}

    def both() -> list[Tensor]:
        with torch.no_grad():
            return [training.velocity(x, t, torch.tensor([label]), ways[way]) for label, way in ((1, 0), (2, 1))]

    before = both()
    assert not torch.allclose(before[0], before[1], atol=1e-3)
    with torch.no_grad():
        training.velocity.adapters.get_parameter("conv_in/lora_B").normal_()
    for old, new in zip(before, both(), strict=True):
        assert not torch.allclose(old, new, atol=1e-3)
    with torch.no_grad():  # and with skips at zero, the direction is nothing but the label
        assert torch.equal(*(training.velocity(x, t, torch.tensor([1]), way) for way in ways.values()))


def test_one_network_evaluation_makes_a_translation() -> None:
    translator = stirred(method()).translator()
    calls: list[int] = []
    translator.velocity.network.unet.register_forward_hook(lambda m, i, o: calls.append(len(i[0])))
    made = translator.translate(torch.rand(3, 1, 32, 32), "a", "b")
    assert calls == [3] and translator.nfe() == 1 and translator.nfe(skip=0.5) == 1
    assert not made.requires_grad


def test_the_gain_of_the_skips_is_a_knob() -> None:
    translator = stirred(method()).translator()
    images = torch.rand(2, 1, 32, 32)
    whole, half, none = (translator.translate(images, "a", "b", skip=s) for s in (1.0, 0.5, 0.0))
    with torch.no_grad():
        for weight in translator.velocity.skips.weights:
            weight.mul_(0.5)
    torch.testing.assert_close(translator.translate(images, "a", "b"), half)
    with torch.no_grad():
        for weight in translator.velocity.skips.weights:
            weight.zero_()
    torch.testing.assert_close(translator.translate(images, "a", "b"), none)
    assert (whole - none).abs().mean() > 1e-3


# Checkpoints


def test_a_checkpoint_holds_no_base_and_restores_the_translator(tmp_path: Path) -> None:
    base = trained_base()
    training = method(base)
    descend(training, tmp_path)
    held = load(latest(tmp_path))
    values = sum(t.numel() for stem in training.kept for t in held.tensors[stem].values())
    assert training.kept == ("adapters", "skips") and values < 0.7 * sum(p.numel() for p in base.parameters())
    assert not {"network", "base", "velocity"} & set(held.tensors)
    check_base(held.state["method"], base)
    config = CycleGANTurboConfig(**held.state["method"]["config"])
    torch.manual_seed(9)
    again = CycleGANTurboTraining(PatchCodec(2), PAIR, config, base)
    images = torch.rand(2, 1, 32, 32)
    fresh = again.translator().translate(images, "a", "b")
    for name in again.kept:
        again.modules()[name].load_state_dict(held.tensors[name])
    restored = again.translator().translate(images, "a", "b")
    assert torch.equal(restored, training.translator().translate(images, "a", "b"))
    assert not torch.equal(restored, fresh)


def test_a_resumed_training_ends_with_the_same_weights(tmp_path: Path) -> None:
    straight, halted = method(), method()
    descend(straight, tmp_path / "straight", steps=2, checkpoint_every=1)
    config = TrainConfig(steps=2, schedule="constant", warmup=0.0, precision="fp32", checkpoint_every=1)
    for record in train(halted, batches, folder=tmp_path / "halted", config=config):
        if record.step == 1:
            break
    resumed = method()
    stirred(resumed)
    descend(resumed, tmp_path / "halted", steps=2, checkpoint_every=1)
    for name, module in straight.modules().items():
        assert weights_sha256(module.state_dict()) == weights_sha256(resumed.modules()[name].state_dict()), name
    other = method(trained_base(seed=7))
    with pytest.raises(CheckpointError, match="another run"):
        descend(other, tmp_path / "halted", steps=2, checkpoint_every=1)


def test_another_base_or_pair_is_refused() -> None:
    training = method()
    state = training.state()
    check_base(state, trained_base())
    nudged = trained_base()
    with torch.no_grad():
        next(nudged.parameters()).view(-1)[0] += 1e-6
    with pytest.raises(CheckpointError, match="with other weights"):
        check_base(state, nudged)
    wider = NetworkConfig(n_domains=3, in_channels=4, channels=(8, 16, 32), norm_groups=8, head_channels=8)
    with pytest.raises(CheckpointError, match="of another shape"):
        check_base(state, VelocityNetwork(wider))
    with pytest.raises(CheckpointError, match="names no base"):
        check_base({"kind": "other"}, nudged)
    with pytest.raises(ParameterError, match="trained from a to b"):
        training.translator().translate(torch.rand(1, 1, 32, 32), "b", "a")
    with pytest.raises(ParameterError, match="made for 3 domains"):
        CycleGANTurboTraining(PatchCodec(2), Pair("a", "b", ("a", "b")), SMALL, nudged)
    with pytest.raises(ParameterError, match="4 latent channels"):
        CycleGANTurboTraining(PatchCodec(4), PAIR, SMALL, nudged)


def test_wrong_hyper_parameters_and_small_images_are_refused() -> None:
    for wrong in ({"time": 1.0}, {"time": -0.1}, {"cycle": -1.0}, {"learning_rate": 0.0}, {"levels": 0}):
        with pytest.raises(ParameterError, match=next(iter(wrong)).split("_")[0]):
            CycleGANTurboConfig(**wrong)
    with pytest.raises(ParameterError, match="rank"):
        AdaptedVelocity(trained_base(), 0)
    with pytest.raises(ParameterError, match="too small"):
        method().step((torch.rand(2, 1, 32, 30),), torch.Generator())
    assert CycleGANTurbo.name == CycleGANTurboTraining.name == "CycleGAN-Turbo-style (own backbone)"


# The hook for the original


class Export(nn.Module):
    """Stands for an exported model: treats each channel in another way; their mean is x - 0.1."""

    def forward(self, x: Tensor) -> Tensor:
        red, green, blue = x.unbind(dim=1)
        return torch.stack([2 * red, green, 0 * blue - 0.3], dim=1)


def export(folder: Path, module: nn.Module, side: int = 24) -> Path:
    with pytest.warns(FutureWarning):
        torch.jit.trace(module, torch.zeros(1, 3, side, side)).save(str(folder / FILE))
    return folder


def test_an_exported_model_is_run_at_its_side_on_three_channels(tmp_path: Path) -> None:
    original = OriginalCycleGANTurbo(export(tmp_path, Export()), PAIR, side=24)
    images = torch.rand(3, 1, 24, 24) * 3 - 1.5
    torch.testing.assert_close(original.translate(images, "a", 1), images.clamp(-1, 1) - 0.1)
    smooth = torch.linspace(-0.8, 0.8, 40)[:, None].expand(1, 1, 40, 50)
    made = original.translate(smooth, "a", "b")
    assert made.shape == smooth.shape and (made - (smooth - 0.1)).abs().max() < 0.03
    assert original.nfe() == 1
    with pytest.raises(ParameterError, match="knows nothing else"):
        original.translate(images, "b", "a")
    with pytest.raises(ParameterError, match="Expected images"):
        original.translate(images[:, 0], "a", "b")


class Fixed(nn.Module):
    """Runs at one size only, as a traced attention does."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.zeros(3, 24, 24)


class Halves(nn.Module):
    """Gives another shape."""

    def forward(self, x: Tensor) -> Tensor:
        return x[..., ::2]


def test_a_missing_damaged_or_unfit_export_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"{FILE} is missing.*Export"):
        OriginalCycleGANTurbo(tmp_path, PAIR)
    with pytest.raises(ParameterError, match="side is 0"):
        OriginalCycleGANTurbo(tmp_path, PAIR, side=0)
    with pytest.raises(DataError, match="was it traced with another side"):
        OriginalCycleGANTurbo(export(tmp_path, Fixed()), PAIR, side=16).translate(torch.rand(1, 1, 8, 8), "a", "b")
    with pytest.raises(DataError, match="expected the same shape"):
        OriginalCycleGANTurbo(export(tmp_path, Halves()), PAIR, side=24).translate(torch.rand(1, 1, 8, 8), "a", "b")
    (tmp_path / FILE).write_bytes(b"neither archive nor pickle")
    with pytest.raises(DataError, match="no TorchScript archive"):
        OriginalCycleGANTurbo(tmp_path, PAIR)


class Trap:
    """A pickle that leaves a mark when it is opened."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return Path.touch, (self.mark,)


def test_a_pickled_checkpoint_is_refused_unopened(tmp_path: Path) -> None:
    mark = tmp_path / "opened"
    torch.save({"unet": Trap(mark)}, tmp_path / FILE)
    with pytest.raises(DataError, match="never read"):
        OriginalCycleGANTurbo(tmp_path, PAIR)
    assert not mark.exists()
    torch.load(tmp_path / FILE, weights_only=False)  # the trap works
    assert mark.exists()
