"""Hierarchy Flow: a true inverse, style statistics, losses as published, and a training that obeys its weight."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from medshift import checkpoint
from medshift.baselines import hierarchy_flow
from medshift.baselines.hierarchy_flow import (
    FeatureNetwork,
    HierarchyFlowConfig,
    HierarchyFlowTraining,
    aligned_style_loss,
    content_loss,
)
from medshift.codec import PatchCodec
from medshift.errors import ParameterError
from medshift.invertible import (
    HierarchicalCoupling,
    HierarchicalFlow,
    StyleEncoder,
    adaptive_normalisation,
    channel_statistics,
)
from medshift.pairwise import Pair
from medshift.train import TrainConfig, train

PAIR = Pair("a", "b", ("a", "b"))
TINY = {"chunks": (3, 2), "style_width": 8, "learning_rate": 3e-3}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def network() -> FeatureNetwork:
    return hierarchy_flow._feature_network()


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def views(n: int, seed: int, *, gain: float = 1.0, noise: float = 0.0) -> Tensor:
    """Smooth random images (n,1,16,16), of lower contrast and noisier if asked."""
    smooth = F.interpolate(draw(n, 1, 5, 5, seed=seed), size=16, mode="bicubic").clamp(-2, 2)
    return 0.4 * gain * smooth + noise * draw(n, 1, 16, 16, seed=seed + 1)


def method(seed: int = 0, **changes: float) -> HierarchyFlowTraining:
    torch.manual_seed(seed)
    codec = PatchCodec(2).fit(torch.cat([views(64, 90), views(64, 92, gain=0.5, noise=0.1)]))
    return HierarchyFlowTraining(codec, PAIR, HierarchyFlowConfig(**TINY, **changes))


def batches(step: int, generator: torch.Generator) -> tuple[Tensor]:
    seed = int(torch.randint(2**31, (), generator=generator))
    return (torch.cat([views(4, seed), views(4, seed + 7, gain=0.5, noise=0.1)]),)


# The flow


@settings(max_examples=15)
@given(
    channels=st.integers(1, 4),
    chunks=st.lists(st.integers(2, 4), min_size=1, max_size=3),
    averaging=st.floats(0.0, 0.9),
    height=st.integers(1, 7),
    width=st.integers(1, 7),
    seed=st.integers(0, 99),
)
def test_the_inverse_returns_what_went_in(
    channels: int, chunks: list[int], averaging: float, height: int, width: int, seed: int
) -> None:
    torch.manual_seed(seed)
    flow = HierarchicalFlow(channels, chunks, 8, averaging)
    x = draw(2, channels, height, width, seed=seed)
    widened = flow(x)
    flow(draw(2, channels, height, width, seed=seed + 1))  # an inverse that remembers features would take these
    assert widened.shape == (2, channels * int(np.prod(chunks)), height, width)
    assert (flow.inverse(widened) - x).abs().max() < 1e-5


def test_the_published_sizes_invert_in_bfloat16_too() -> None:
    torch.manual_seed(1)
    flow = HierarchicalFlow(4, (10, 3), 8)
    x = draw(2, 4, 15, 17)
    assert (flow.inverse(flow(x)) - x).abs().max() < 1e-5
    with torch.autocast("cpu", torch.bfloat16):
        assert (flow.inverse(flow(x)) - x).abs().max() < 1e-5
    for parameter in flow.parameters():
        parameter.data.mul_(3.0)  # features far larger than the latents
    flow, x = flow.double(), x.double()
    assert (flow(x)[:, 4:] - x.repeat(1, 29, 1, 1)).abs().max() > 10
    assert (flow.inverse(flow(x)) - x).abs().max() < 1e-9


def test_a_coupling_is_the_published_recursion_and_its_reversal_for_any_tensor() -> None:
    torch.manual_seed(2)
    block = HierarchicalCoupling(2, 4, averaging=0.3).double()
    x = draw(1, 2, 6, 5, dtype=torch.float64)
    chunks = [x]
    for feature in block.net(x).split(2, dim=1):
        chunks.append(chunks[-1] - feature)
    torch.testing.assert_close(block(x), torch.cat(chunks, dim=1))
    assert all((a - b).abs().max() > 0.01 for a, b in zip(chunks, chunks[1:], strict=False))

    y = draw(1, 8, 6, 5, seed=3, dtype=torch.float64)  # of no x
    first, *others = y.split(2, dim=1)
    features = block.net(first).split(2, dim=1)
    level = others[2] + features[2]
    for k in (1, 0):
        level = 0.3 * level + 0.7 * others[k] + features[k]
    torch.testing.assert_close(block.inverse(y), 0.3 * level + 0.7 * first)


def test_a_coupling_needs_two_chunks_and_a_flow_a_coupling() -> None:
    for chunks, averaging in ((1, 0.5), (3, 1.0), (3, -0.1)):
        with pytest.raises(ParameterError, match="expected 2 chunks"):
            HierarchicalCoupling(4, chunks, averaging)
    with pytest.raises(ParameterError, match="without couplings"):
        HierarchicalFlow(4, (), 8)


def test_adaptive_normalisation_sets_statistics_and_with_its_own_is_the_identity() -> None:
    x = draw(3, 5, 7, 9, dtype=torch.float64) * 2 + 1
    x[0, 0] = 0.7  # a flat channel
    torch.testing.assert_close(adaptive_normalisation(x, *channel_statistics(x)), x)
    mean, std = draw(3, 5, seed=1, dtype=torch.float64), draw(3, 5, seed=2, dtype=torch.float64).abs() + 0.1
    found = adaptive_normalisation(x, mean, std)
    torch.testing.assert_close(found.mean(dim=(2, 3)), mean)
    own = x.var(dim=(2, 3), correction=0)
    torch.testing.assert_close(found.std(dim=(2, 3), correction=0), std * (own / (own + 1e-5)).sqrt())


def test_a_style_of_the_tensors_own_statistics_changes_nothing_and_another_does() -> None:
    torch.manual_seed(4)
    flow = HierarchicalFlow(4, (3,), 8).double()
    x = draw(1, 4, 6, 6, dtype=torch.float64)
    last = flow.styles[0][-1]
    own = torch.cat([value[0] for value in channel_statistics(flow(x))])
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(own)
    torch.testing.assert_close(flow.restyled(x, draw(1, 8, dtype=torch.float64)), x)
    with torch.no_grad():
        last.bias[:12] += 0.5
    assert (flow.restyled(x, draw(1, 8, dtype=torch.float64)) - x).abs().min() > 0.1


def test_it_is_no_affine_match_of_intensities() -> None:
    """Two pixels of one value in one image, one in a flat patch and one beside a bright block, part ways."""
    made = method()
    image = torch.zeros(1, 1, 16, 16)
    image[..., 8:, 8:] = 0.8
    output = made.translator().translate(image, "a", "b")
    value = output[image == 0.0]
    assert value.max() - value.min() > 0.01
    # Nor is it any function of a pixel's own value and place within its patch.
    inner, edge = output[0, 0, 2:4, 2:4], output[0, 0, 6:8, 10:12]
    assert (inner - edge).abs().max() > 0.005


def test_codes_are_of_any_size_and_the_running_mean_starts_as_a_plain_one() -> None:
    torch.manual_seed(5)
    encoder = StyleEncoder(4, 8, 8)
    for side in (1, 5, 8):
        assert encoder(draw(2, 4, side, side + 2)).shape == (2, 8)
    codes = draw(5, 3, 8)
    for batch in codes:
        encoder.remember(batch)
    torch.testing.assert_close(encoder.code, codes.mean(dim=(0, 1)))
    for _ in range(2000):
        encoder.remember(torch.ones(3, 8))
    torch.testing.assert_close(encoder.code, torch.ones(8))


# The losses


@pytest.mark.parametrize("kept", [0.8, 0.5, 1.0])
def test_the_aligned_style_keeps_the_share_of_channels_with_the_smallest_errors(kept: float) -> None:
    a, b = (draw(3, 10, 4, 5, seed=s, dtype=torch.float64) * (1 + s) for s in (0, 1))
    total = 0.0
    for x, y in zip(a.numpy(), b.numpy(), strict=True):
        x, y = x.reshape(10, -1), y.reshape(10, -1)
        error = (x.mean(1) - y.mean(1)) ** 2
        spread = (np.sqrt(x.var(1) + 1e-5) - np.sqrt(y.var(1) + 1e-5)) ** 2
        stay = np.sort(np.argsort(error)[: int(10 * kept)])
        assert len(stay) == round(10 * kept)
        total += error[stay].sum() + spread[stay].sum()
    assert float(aligned_style_loss(a, b, kept)) == pytest.approx(total / 30, rel=1e-12)


def test_an_outlying_channel_has_no_gradient_in_the_aligned_style() -> None:
    style = draw(1, 5, 6, 6)
    output = style.clone() + 0.1
    output[:, 3] += 4.0
    output.requires_grad_()
    aligned_style_loss(output, style, 0.8).backward()
    reached = output.grad.abs().amax(dim=(0, 2, 3)) > 0
    assert reached.tolist() == [True, True, True, False, True]


def test_content_does_not_see_gain_and_offset_of_a_channel_but_sees_where_things_are() -> None:
    x = draw(2, 6, 8, 8)
    assert content_loss(x * 3.0 + 1.0, x) < 1e-6
    assert content_loss(x.flip(-1), x) == pytest.approx(2.0, abs=0.3)  # unrelated maps of unit variance


def test_the_feature_network_is_the_packages_and_is_frozen(network: FeatureNetwork) -> None:
    from stlpips_pytorch import stlpips

    with torch.random.fork_rng(devices=[]):
        metric = stlpips.LPIPS(net="vgg", variant="shift_tolerant", verbose=False)
    image = views(1, 0).requires_grad_()
    features = network(image)
    assert [f.shape[1] for f in features] == [64, 128, 256, 512]
    with torch.no_grad():
        x = metric.scaling_layer(image.expand(-1, 3, -1, -1))
        # What follows ReLU 1_1 .. 4_1 in the package leads on from them to its own outputs.
        for feature, part, after in zip(features, ("slice1", "slice2", "slice3", "slice4"), (2, 4, 4, 4), strict=True):
            whole = getattr(metric.net, part)
            x = whole(x)
            found = torch.nn.Sequential(*list(whole.children())[after:])(feature.clone())
            torch.testing.assert_close(found, x, rtol=1e-4, atol=1e-4)
    features[-1].sum().backward()
    assert image.grad is not None and image.grad.abs().max() > 0
    assert not any(p.requires_grad or p.grad is not None for p in network.parameters())
    with pytest.raises(ParameterError, match="too small"):
        network(torch.zeros(1, 1, 9, 32))
    network(torch.zeros(1, 1, 10, 10))


# The method


def run(folder: Path, steps: int, **changes: float) -> HierarchyFlowTraining:
    made = method(**changes)
    config = TrainConfig(steps=steps, schedule="cosine", warmup=0.0, precision="fp32", ema_decay=0.9)
    for _ in train(made, batches, folder=folder, config=config):
        pass
    return made


def judged(made: HierarchyFlowTraining, network: FeatureNetwork) -> tuple[float, float]:
    """Content loss to the sources and style loss to target images, of translations of unseen sources."""
    source, target = views(16, 500), views(16, 600, gain=0.5, noise=0.1)
    with torch.no_grad():
        x, y = network(source), network(target)
        out = network(made.translator().translate(source, "a", "b"))
        scales = [f.mean() for f in y]
        style = [aligned_style_loss(a / s, b / s, 0.8) for a, b, s in zip(out, y, scales, strict=True)]
        return float(content_loss(out[-1], x[-1])), float(torch.stack(style).sum())


def test_the_weight_trades_content_for_style(tmp_path: Path, network: FeatureNetwork) -> None:
    start = judged(method(), network)
    none = judged(run(tmp_path / "0", 24, style_weight=0.0), network)
    heavy = judged(run(tmp_path / "1", 24, style_weight=5.0), network)
    assert none[0] < 0.7 * start[0]  # towards the source
    assert heavy[1] < 0.7 * min(none[1], start[1])  # towards the style
    assert heavy[0] > 2 * none[0]


def test_a_step_moves_flow_and_encoder_and_nothing_frozen(network: FeatureNetwork) -> None:
    made = method()
    assert set(made.kept) | {"codec"} == set(made.modules())
    assert set(made.optimizers()) == {"flow"}
    held = {n: {k: v.clone() for k, v in m.state_dict().items()} for n, m in made.modules().items()}
    frozen = {k: v.clone() for k, v in network.state_dict().items()}
    losses = made.step(batches(0, torch.Generator().manual_seed(0)), torch.Generator())
    assert losses["flow"].item() == pytest.approx(float(losses["content"]) + 0.1 * float(losses["style"]), rel=1e-5)
    losses["flow"].backward()
    parameters = [*made.flow.parameters(), *made.encoder.parameters()]
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in parameters)
    made.optimizer.step()
    for name in ("flow", "encoder"):
        assert any(not torch.equal(held[name][k], v) for k, v in made.modules()[name].state_dict().items())
    assert all(torch.equal(held["codec"][k], v) for k, v in made.codec.state_dict().items())
    assert all(torch.equal(frozen[k], v) and v.grad is None for k, v in network.state_dict().items())


def test_kept_modules_of_a_checkpoint_translate_as_the_moving_average_does(tmp_path: Path) -> None:
    made = method(style_weight=0.4)
    config = TrainConfig(steps=3, schedule="cosine", warmup=0.0, precision="fp32")
    *_, record = train(made, batches, folder=tmp_path, config=config)
    images = F.pad(views(3, 700), (0, 1, 0, 3), mode="replicate")  # 19 x 17
    for name in made.averaged:
        made.modules()[name].load_state_dict(record.averages[name].module.state_dict())
    wanted = made.translator().translate(images, "a", "b")

    held = checkpoint.load(tmp_path)
    state = held.state["method"]
    assert state["kind"] == "hierarchy-flow" and state["pair"] == ["a", "b"]
    codec = PatchCodec(2)
    codec.load_state_dict(held.tensors["codec"])
    again = HierarchyFlowTraining(
        codec, Pair(*state["pair"], tuple(state["domains"])), HierarchyFlowConfig(**state["config"])
    )
    for name in again.kept:
        tensors = held.tensors[f"{name}-ema"]
        own = {k.removeprefix("module."): v for k, v in tensors.items() if k.startswith("module.")}
        again.modules()[name].load_state_dict(own)
    found = again.translator().translate(images, 0, 1)
    assert found.shape == images.shape and not found.requires_grad
    assert torch.equal(found, wanted)
    assert int(again.encoder.batches) == 3 and again.encoder.code.abs().max() > 0
    assert again.state() == state | {"config": {**state["config"], "chunks": again.config.chunks}}


def test_a_given_style_image_is_taken_instead_of_the_mean_code() -> None:
    made = method()
    translator = made.translator()
    images, style = views(3, 1), views(1, 2)
    made.encoder.code.copy_(made.encoder(made.codec.encode(style))[0].detach())
    mean = translator.translate(images, "a", "b")
    torch.testing.assert_close(translator.translate(images, "a", "b", style=style), mean)
    torch.testing.assert_close(translator.translate(images[1:2], "a", "b"), mean[1:2])  # no batch decides
    assert (translator.translate(images, "a", "b", style=-3 * style) - mean).abs().max() > 1e-4
    with pytest.raises(ParameterError, match="2 style images"):
        translator.translate(images, "a", "b", style=views(2, 3))


def test_it_knows_one_pair_and_checks_its_settings() -> None:
    translator = method().translator()
    assert translator.nfe() == 1 and not translator.needs_pairs
    for source, target in (("b", "a"), ("a", "a"), (0, 2)):
        with pytest.raises(ParameterError, match="trained from a to b"):
            translator.translate(views(1, 0), source, target)
    for entry in ({"style_weight": -0.1}, {"kept_channels": 0.0}, {"kept_channels": 1.1}, {"learning_rate": 0.0}):
        with pytest.raises(ParameterError, match="expected 0 or more"):
            HierarchyFlowConfig(**entry)


def test_the_defaults_have_the_budget_of_the_comparison() -> None:
    made = HierarchyFlowTraining(PatchCodec(2), PAIR)
    count = sum(p.numel() for name in made.kept for p in made.modules()[name].parameters())
    assert 0.9e6 < count < 1.1e6
