"""Z-STAR: what its attention computes, that the network is left alone, and where a style can come from."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from medshift.attention import SharedAttention, later_attention, shared_attention
from medshift.baselines.z_star import NearestStyles, ZStar, enlarging
from medshift.codec import PatchCodec
from medshift.errors import ParameterError
from medshift.network import NetworkConfig, VelocityNetwork
from medshift.ode import integrate, leg_knots
from medshift.tone import ToneCurves

DOMAINS = ("a", "b")
TINY = NetworkConfig(n_domains=2, in_channels=4, channels=(8, 16), norm_groups=4, head_channels=8)
# The finest level attends too, so the way up has modules behind the middle's.
DEEP = NetworkConfig(
    n_domains=2, in_channels=4, channels=(8, 16), norm_groups=4, head_channels=8, attention_levels=(1,)
)
PLAIN = {"keep": 0.0, "style_to_content": None}
# Knots at 0, .52, .90, .98 and 1 or so: one interval without shared attention and three with it.
KNOBS = {"tau": 0.0, "steps": 4}
SHARED = 3


def network(config: NetworkConfig = TINY, seed: int = 0) -> VelocityNetwork:
    """A field that is not zero, smooth enough for few steps, in which attention counts."""
    torch.manual_seed(seed)
    net = VelocityNetwork(config).eval().requires_grad_(False)
    torch.nn.init.normal_(net.unet.get_submodule("conv_out").weight, std=0.1)
    for module in later_attention(net.unet).values():
        for layer in (module.to_q, module.to_k, module.to_v, module.to_out[0]):
            layer.weight.mul_(3)
    return net


def smooth(n: int, seed: int, size: int = 16) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.nn.functional.interpolate(torch.rand(n, 1, 6, 6, generator=g), size=size, mode="bilinear") * 1.6 - 0.8


def method(net: VelocityNetwork, training: list[Tensor] | None = None, **config: object) -> ZStar:
    training = [smooth(8, 1), smooth(8, 2)] if training is None else training
    return ZStar(net, PatchCodec(2), training, DOMAINS, **config)


def inputs_of(net: VelocityNetwork) -> list[tuple[Tensor, float, Tensor]]:
    """What the network is asked from now on: (x, t, labels)."""
    asked: list[tuple[Tensor, float, Tensor]] = []
    net.register_forward_pre_hook(lambda _, args: asked.append((args[0].clone(), float(args[1]), args[2].clone())))
    return asked


# The attention itself


@pytest.mark.parametrize("config", [TINY, DEEP])
def test_without_the_other_half_it_is_the_network_bit_for_bit(config: NetworkConfig) -> None:
    net = network(config)
    x, t, label = torch.randn(4, 4, 8, 8), torch.tensor(0.4), torch.tensor([0, 1, 2, 0])
    plain = net(x, t, label)
    with shared_attention(net.unet, None, None):
        assert all(isinstance(m.processor, SharedAttention) for m in later_attention(net.unet).values())
        assert torch.equal(net(x, t, label), plain)
    with shared_attention(net.unet, 1.2, None):
        shared = net(x, t, label)
    assert torch.equal(shared[:2], plain[:2]) and (shared[2:] - plain[2:]).abs().max() > 1e-3


def reference(attn: torch.nn.Module, own: np.ndarray, other: np.ndarray, weight: float) -> np.ndarray:
    """softmax([weight Q K_otherᵀ, Q K_ownᵀ] / sqrt(d)) [V_other; V_own] of one sample (C, tokens), in loops."""

    def linear(layer: torch.nn.Module, x: np.ndarray) -> np.ndarray:
        return x @ layer.weight.double().numpy().T + layer.bias.double().numpy()

    def normed(x: np.ndarray) -> np.ndarray:
        groups = x.reshape(attn.group_norm.num_groups, -1)
        groups = groups - groups.mean(1, keepdims=True)
        groups = groups / np.sqrt((groups**2).mean(1, keepdims=True) + attn.group_norm.eps)
        scale, shift = (p.double().numpy()[:, None] for p in (attn.group_norm.weight, attn.group_norm.bias))
        return (groups.reshape(x.shape) * scale + shift).T

    mine, theirs = normed(own), normed(other)
    q, k, v = (linear(layer, mine) for layer in (attn.to_q, attn.to_k, attn.to_v))
    k_other, v_other = (linear(layer, theirs) for layer in (attn.to_k, attn.to_v))
    d = q.shape[1] // attn.heads
    out = np.zeros_like(q)
    for head in range(attn.heads):
        part = slice(head * d, (head + 1) * d)
        for i, query in enumerate(q[:, part]):
            logits = [weight * query @ key for key in k_other[:, part]] + [query @ key for key in k[:, part]]
            p = np.exp(np.array(logits) / math.sqrt(d))
            out[i, part] = (p / p.sum()) @ np.concatenate([v_other[:, part], v[:, part]])
    return linear(attn.to_out[0], out).T + own


def test_concatenated_attention_is_the_one_written_out_in_loops() -> None:
    attn = network().unet.mid_block.attentions[0]
    assert attn.heads == 2 and attn.residual_connection
    torch.nn.init.normal_(attn.group_norm.weight)
    torch.nn.init.normal_(attn.group_norm.bias)
    hidden = torch.randn(4, 16, 3, 5)
    out = SharedAttention(1.2, 1.5)(attn, hidden)
    samples = hidden.flatten(2).double().numpy()
    for pair in (0, 1):
        style, content = samples[pair], samples[2 + pair]
        for row, own, other, weight in ((2 + pair, content, style, 1.2), (pair, style, content, 1.5)):
            expected = torch.from_numpy(reference(attn, own, other, weight)).float().reshape(16, 3, 5)
            torch.testing.assert_close(out[row], expected, atol=1e-5, rtol=1e-5)


def test_what_a_style_takes_from_its_content_comes_back_through_later_modules_alone() -> None:
    x, t, label = torch.randn(4, 4, 8, 8), torch.tensor(0.4), torch.full((4,), 2)
    for config, reaches in ((TINY, False), (DEEP, True)):
        net, outs = network(config), []
        for weight in (None, 1.5):
            with shared_attention(net.unet, 1.2, weight):
                outs.append(net(x, t, label))
        assert (outs[0] - outs[1])[:2].abs().max() > 1e-3
        assert torch.equal(outs[0][2:], outs[1][2:]) != reaches


def test_where_in_the_style_a_token_lies_does_not_matter_to_the_content(generator: torch.Generator) -> None:
    attn = network().unet.mid_block.attentions[0]
    hidden = torch.randn(2, 16, 4, 4, generator=generator)
    order = torch.randperm(16, generator=generator)
    moved = torch.cat([hidden[:1].flatten(2)[..., order].reshape(1, 16, 4, 4), hidden[1:]])
    shared = SharedAttention(1.2, 1.5)
    torch.testing.assert_close(shared(attn, moved)[1:], shared(attn, hidden)[1:])
    # The style's own place is kept: its output moves along.
    torch.testing.assert_close(
        shared(attn, moved)[0].flatten(1), shared(attn, hidden)[0].flatten(1)[:, order], atol=1e-5, rtol=1e-5
    )


def test_a_large_weight_picks_the_style_token_that_answers_best(generator: torch.Generator) -> None:
    attn = network().unet.mid_block.attentions[0]
    hidden = torch.randn(2, 16, 4, 4, generator=generator)
    tokens = attn.group_norm(hidden.flatten(2)).transpose(1, 2)
    q, k, v = (layer(tokens).unflatten(-1, (2, 8)).transpose(1, 2) for layer in (attn.to_q, attn.to_k, attn.to_v))
    logits = q[1] @ k[0].transpose(1, 2)
    assert (logits.amax(-1) > 0).all(), "a style token answers every query"
    best = v[0].gather(1, logits.argmax(-1)[..., None].expand(-1, -1, 8))
    expected = attn.to_out[0](best.transpose(0, 1).flatten(1)).T.reshape(16, 4, 4)
    out = SharedAttention(1e6, None)(attn, hidden)[1] - hidden[1]
    torch.testing.assert_close(out, expected, atol=1e-4, rtol=1e-4)


def test_only_even_batches_and_self_attention_are_shared() -> None:
    attn = network().unet.mid_block.attentions[0]
    with pytest.raises(ParameterError, match="two halves"):
        SharedAttention(1.2, None)(attn, torch.zeros(3, 16, 2, 2))
    with pytest.raises(ParameterError, match="keys or a mask"):
        SharedAttention(1.2, None)(attn, torch.zeros(2, 16, 2, 2), encoder_hidden_states=torch.zeros(2, 4, 16))
    with pytest.raises(ParameterError, match="no self-attention"):
        later_attention(torch.nn.Conv2d(1, 1, 1))


def test_the_way_down_keeps_its_attention() -> None:
    net = network(DEEP)
    names = list(later_attention(net.unet))
    every = [name for name, module in net.unet.named_modules() if hasattr(module, "to_q")]
    assert len(names) == 3 and set(every) - set(names) == {n for n in every if n.startswith("down_blocks")} != set()


# The network is left as it was


def test_processors_come_back_also_after_an_exception() -> None:
    net = network(DEEP)
    z_star = method(net)
    before = {name: module.processor for name, module in later_attention(net.unet).items()}

    def alone() -> bool:
        return all(module.processor is before[name] for name, module in later_attention(net.unet).items())

    x, seen = smooth(2, 5), []
    plain = net(PatchCodec(2).encode(x), torch.tensor(0.5), torch.tensor([0, 1]))
    z_star.translate(x, "a", "b", **KNOBS)
    assert alone() and torch.equal(plain, net(PatchCodec(2).encode(x), torch.tensor(0.5), torch.tensor([0, 1])))

    def fails(module: torch.nn.Module, args: object) -> None:
        if isinstance(net.unet.mid_block.attentions[0].processor, SharedAttention):
            seen.append(module)
            raise RuntimeError("out of memory")

    net.unet.get_submodule("conv_out").register_forward_pre_hook(fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        z_star.translate(x, "a", "b", **KNOBS)
    assert seen and alone()


# The method


def reconstruction(net: VelocityNetwork, x: Tensor, label: int, **knobs: float) -> Tensor:
    """Down and up with one label, by the plain network."""
    codec, knots = PatchCodec(2), leg_knots(knobs["tau"], "refined", int(knobs["steps"]))
    labels = torch.full((len(x),), label)
    *_, down = integrate(net, codec.encode(x), labels, knots[::-1])
    *_, up = integrate(net, down.x, labels, knots)
    return codec.decode(up.x)


@pytest.mark.parametrize("config", [TINY, DEEP])
def test_a_style_that_is_the_content_changes_nothing_at_weight_one(config: NetworkConfig) -> None:
    """Keys and values twice over leave a softmax's mean where it was."""
    net, images = network(config), smooth(8, 1)
    x = images[[3, 6]]

    def held(**changes: float) -> Tensor:
        """At keep = 1 each interval starts from the inversion, so the content is its own style where Euler asks."""
        z_star = method(net, [images, images], keep=1.0, style_to_content=None, **changes)
        torch.testing.assert_close(z_star.styles(x, "a", "b", 0), x)
        return z_star.translate(x, "a", "b", tau=0.4, steps=5, solver="euler", grid="uniform")

    plain = held(since=1.0)
    torch.testing.assert_close(held(content_to_style=1.0), plain, atol=1e-5, rtol=1e-5)
    assert (held(content_to_style=1.2) - plain).abs().max() > 1e-4


def test_left_to_itself_a_content_in_its_own_style_is_off_by_the_solver_alone() -> None:
    net, images = network(), smooth(8, 1)
    x = images[[3, 6]]

    def free(steps: int, style: int = 0, **changes: float) -> Tensor:
        z_star = method(net, [images, images], content_to_style=1.0, **PLAIN, **changes)
        return z_star.translate(x, "a", "b", tau=0.5, steps=steps, style=style)

    plain = free(16, since=1.0)
    coarse, fine = (free(8) - free(8, since=1.0)).abs().mean(), (free(16) - plain).abs().mean()
    assert fine < 0.25 * coarse and fine < 0.05 * (free(16, style=4) - plain).abs().mean()


def test_without_shared_intervals_it_is_the_plain_reconstruction_of_either_label() -> None:
    net, x = network(), smooth(2, 5)
    for choice, label in (("null", 2), ("source", 0)):
        alone = method(net, since=1.0, content_label=choice, **PLAIN)
        expected = reconstruction(net, x, label, **KNOBS)
        torch.testing.assert_close(alone.translate(x, "a", "b", **KNOBS), expected, atol=1e-5, rtol=1e-5)
    assert (reconstruction(net, x, 0, **KNOBS) - reconstruction(net, x, 2, **KNOBS)).abs().max() > 1e-4


def test_an_image_at_one_is_itself_and_odd_sizes_keep_theirs() -> None:
    net, x = network(), smooth(2, 5, size=13)
    z_star = method(net, [smooth(6, 1, size=13), smooth(6, 2, size=13)])
    torch.testing.assert_close(z_star.translate(x, "a", "b", tau=1.0), x)
    assert z_star.nfe(tau=1.0) == 0 and z_star.translate(x, "a", "b", **KNOBS).shape == x.shape


def adain(content: Tensor, style: Tensor) -> Tensor:
    """Latents (B, C, h, w) of the content with the style's mean and standard deviation of each channel."""
    (cm, cs), (sm, ss) = ((z.mean((2, 3), True), z.std((2, 3), keepdim=True)) for z in (content, style))
    return (content - cm) / cs * ss + sm


def test_more_of_the_style_is_used_than_its_statistics(generator: torch.Generator) -> None:
    """Two styles with the same pixels in another order: the same to AdaIN and to histograms, not to attention."""
    net, x, style = network(), smooth(1, 5), smooth(1, 6)
    codec = PatchCodec(2)
    z = codec.encode(style)
    order = torch.randperm(z[0, 0].numel(), generator=generator)
    shuffled = codec.decode(z.flatten(2)[..., order].reshape(z.shape))
    torch.testing.assert_close(adain(codec.encode(x), z), adain(codec.encode(x), codec.encode(shuffled)))
    outs = [
        method(net, [smooth(8, 1), s.repeat(5, 1, 1, 1)]).translate(x, "a", "b", **KNOBS) for s in (style, shuffled)
    ]
    assert (outs[0] - outs[1]).abs().max() > 1e-3
    assert (outs[0] - codec.decode(adain(codec.encode(x), z))).abs().max() > 0.05


def test_each_style_gives_another_image_and_each_content_sees_its_own() -> None:
    net, x = network(), smooth(3, 5)
    z_star = method(net)
    outs = [z_star.translate(x, "a", "b", style=k, **KNOBS) for k in range(5)]
    assert all((outs[i] - outs[j]).abs().amax((1, 2, 3)).min() > 1e-4 for i in range(5) for j in range(i))
    torch.testing.assert_close(z_star.translate(x[1:2], "a", "b", **KNOBS), outs[0][1:2], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("choice", "labels"), [("null", [2, 2, 2, 2]), ("source", [1, 1, 0, 0])])
def test_the_style_follows_its_inversion_and_no_content_is_told_the_target(choice: str, labels: list[int]) -> None:
    net, x, half = network(), smooth(2, 5), 2
    z_star = method(net, content_label=choice)
    asked = inputs_of(net)
    z_star.translate(x, "a", "b", **KNOBS)
    knots = leg_knots(0.0, "refined", 4)
    down, up = asked[:8], asked[8:]
    torch.testing.assert_close(down[0][0], PatchCodec(2).encode(torch.cat([z_star.styles(x, "a", "b", 0), x])))
    inverted = {t: z for z, t, _ in down[::2]}
    shared = [(z, t, label) for z, t, label in up if len(z) == 2 * half]
    # Heun asks at both ends of an interval; at tau, where the inversion ends, it was never asked.
    since = sum(t >= 5 / 30 for t in knots[:-1])
    assert len(shared) == 2 * since == 2 * SHARED and [t for _, t, _ in shared] == pytest.approx(
        [t for pair in zip(knots[-since - 1 : -1], knots[-since:], strict=True) for t in pair]
    )
    for z, t, label in shared:
        assert torch.equal(z[:half], inverted[min(inverted, key=lambda knot: abs(knot - t))][:half])
        assert label.tolist() == labels
    assert all(label.tolist() == labels for *_, label in down)
    assert all(label.tolist() == labels[half:] for z, _, label in up if len(z) == half)


def test_evaluations_are_those_counted() -> None:
    net, x = network(), smooth(2, 5)
    z_star, asked = method(net), inputs_of(net)
    for knobs in (
        {"steps": 3},
        {"tau": 0.3, "steps": 5},
        {"solver": "euler", "grid": "uniform", "steps": 10, "style": 1},
    ):
        asked.clear()
        z_star.translate(x, "a", "b", **knobs)
        assert sum(len(z) for z, *_ in asked) == len(x) * z_star.nfe(**knobs)
    # Published: 30 steps, of which the first 5 do not share. Both branches down, one or both up.
    assert z_star.nfe(solver="euler", grid="uniform") == 2 * 30 + 5 + 2 * 25


def test_content_is_held_to_its_inversion_by_the_share_that_is_kept() -> None:
    net, x = network(), smooth(2, 5)
    far = [method(net, keep=keep).translate(x, "a", "b", **KNOBS) - x for keep in (0.0, 0.01, 0.5)]
    size = [float(d.abs().mean()) for d in far]
    assert size[0] > size[1] > size[2] and size[1] > 0.5 * size[0]


def test_tokens_are_those_the_middle_sees() -> None:
    config = NetworkConfig(n_domains=2, in_channels=4, channels=(8, 8, 8, 8), norm_groups=4, head_channels=8)
    net = VelocityNetwork(config)
    z_star = method(net)
    assert (z_star.tokens(64, 64), z_star.tokens(128, 128)) == (16, 64)
    seen: list[int] = []
    net.unet.mid_block.attentions[0].to_q.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    for height, width in ((64, 64), (128, 128), (100, 66)):
        net(PatchCodec(2).encode(torch.zeros(1, 1, height, width)), torch.tensor(0.5), torch.tensor([0]))
        assert z_star.tokens(height, width) == seen[-1]


@pytest.mark.parametrize(("n", "factor"), [(16, 2), (13, 3), (8, 1)])
def test_enlarging_interpolates_at_the_pixels_places_and_loses_nothing(n: int, factor: int) -> None:
    matrix = enlarging(n, factor, torch.zeros((), dtype=torch.float64))
    torch.testing.assert_close(matrix.T @ matrix, factor * torch.eye(n, dtype=torch.float64))
    fine, coarse = ((torch.arange(m, dtype=torch.float64) + 0.5) / m for m in (factor * n, n))
    for k in range(n):
        torch.testing.assert_close(matrix @ torch.cos(math.pi * k * coarse), torch.cos(math.pi * k * fine))


def test_an_enlarged_image_shows_attention_more_tokens_and_comes_back_as_it_was() -> None:
    net, x = network(), smooth(2, 5)
    large, seen = method(net, enlarge=2), []
    torch.testing.assert_close(large.translate(x, "a", "b", tau=1.0), x, atol=1e-5, rtol=1e-5)
    net.unet.mid_block.attentions[0].to_q.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    out = large.translate(x, "a", "b", tau=0.8, steps=4)
    assert {*seen} == {large.tokens(16, 16)} == {4 * method(net).tokens(16, 16)}
    assert out.shape == x.shape and (out - method(net).translate(x, "a", "b", tau=0.8, steps=4)).abs().max() > 1e-3


# Styles


def test_the_nearest_anatomy_is_found_under_another_tone_and_the_order_is_by_distance() -> None:
    b = smooth(32, 2)
    styles = NearestStyles([b * 0.5, b], DOMAINS, 5)
    query = b[[7, 3]] * 0.5
    index = styles.indices(query, "a", "b")
    assert index[:, 0].tolist() == [7, 3] and all(len(set(row)) == 5 for row in index.tolist())
    assert torch.equal(styles(query, "a", "b", 0), b[[7, 3]])
    toned = ToneCurves([b * 0.5, b], DOMAINS).apply(query, "a", "b")
    near, far = ((styles(query, "a", "b", k) - toned).square().mean((1, 2, 3)) for k in (0, 4))
    assert (near < 1e-3).all() and (far > 10 * near).all()


def test_a_style_is_always_a_training_image_of_the_target() -> None:
    a, b = smooth(8, 1), smooth(8, 2)
    styles = NearestStyles([a, b], DOMAINS, 5)
    for k in range(5):
        assert all(any(torch.equal(s, t) for t in b) for s in styles(smooth(4, 9), 0, 1, k))


def test_bad_input_is_refused() -> None:
    net = network()
    with pytest.raises(ParameterError, match="4 training images"):
        method(net, [smooth(8, 1), smooth(4, 2)])
    with pytest.raises(ParameterError, match="too few"):
        method(net, styles=4)
    for changes in ({"since": 1.5}, {"keep": -0.1}, {"content_label": "target"}, {"enlarge": 0}, {"enlarge": 1.5}):
        with pytest.raises(ParameterError, match="expected"):
            method(net, **changes)
    with pytest.raises(ParameterError, match="do not fit a network"):
        ZStar(net, PatchCodec(2), [smooth(8, 1)] * 3, ("a", "b", "c"))
    z_star, x = method(net), smooth(1, 5)
    for knobs in ({"style": 5}, {"style": -1}, {"solver": "rk4"}, {"tau": 1.5}, {"steps": 0}):
        with pytest.raises(ParameterError):
            z_star.translate(x, "a", "b", **knobs)
    with pytest.raises(ParameterError, match="No domain"):
        z_star.translate(x, "a", "c")
    with pytest.raises(ParameterError, match="differ in size"):
        z_star.translate(smooth(1, 5, size=32), "a", "b")
