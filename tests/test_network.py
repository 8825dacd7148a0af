import json

import pytest
import torch
from diffusers import UNet2DModel

from medshift.errors import ParameterError
from medshift.network import PRESETS, NetworkConfig, VelocityNetwork, build_network


@pytest.fixture
def network() -> VelocityNetwork:
    """A tiny network whose last layer is not zero, so that its output depends on its inputs."""
    torch.manual_seed(0)
    network = build_network("smoke", n_domains=3, in_channels=2)
    for parameter in network.unet.get_submodule("conv_out").parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return network.eval()


def _inputs(batch: int = 3, size: tuple[int, int] = (8, 8)) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(batch, 2, *size, generator=torch.Generator().manual_seed(1))
    return x, torch.arange(batch) % 4


def test_untrained_network_is_the_zero_field():
    x, label = _inputs()
    network = build_network("smoke", n_domains=3, in_channels=2)
    assert torch.equal(network(x, torch.rand(3), label), torch.zeros_like(x))


@torch.no_grad()
def test_scalar_time_is_the_same_as_a_vector_of_it(network):
    x, label = _inputs()
    for t in (0.0, 0.3, 1.0):
        torch.testing.assert_close(network(x, torch.tensor(t), label), network(x, torch.full((3,), t), label))


@torch.no_grad()
def test_batch_elements_do_not_mix(network):
    x, label = _inputs()
    t = torch.tensor([0.1, 0.5, 0.9])
    alone = torch.cat([network(x[i : i + 1], t[i : i + 1], label[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(network(x, t, label), alone, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_time_reaches_the_network_in_thousandths(network):
    x, label = _inputs()
    seen = []
    network.unet.get_submodule("time_proj").register_forward_hook(lambda _, args, out: seen.append((args[0], out)))
    near = [network(x, torch.tensor(t), label) for t in (0.001, 0.002, 0.0024)]
    times = torch.stack([time[0] for time, _ in seen])
    torch.testing.assert_close(times, torch.tensor([1.0, 2.0, 2.4]))
    # Fractions of a thousandth are told apart too: t goes in as a float tensor, not rounded.
    assert (seen[0][1] - seen[1][1]).abs().max() > 0.5
    assert (seen[1][1] - seen[2][1]).abs().max() > 0.2
    assert (near[0] - near[1]).abs().max() > 1e-3 * near[0].abs().max()


@torch.no_grad()
def test_every_label_and_the_null_class_differ(network):
    x, _ = _inputs(1)
    outputs = [network(x, torch.tensor(0.5), torch.tensor([label])) for label in range(network.null_label + 1)]
    for i, a in enumerate(outputs):
        assert all((a - b).abs().max() > 1e-4 for b in outputs[:i])


@torch.no_grad()
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 8), (9, 6), (13, 11)])
def test_any_size_is_padded_by_its_edge_and_cropped_back(network, size):
    deep = VelocityNetwork(
        NetworkConfig(n_domains=3, in_channels=2, channels=(16, 16, 16), norm_groups=8, head_channels=16)
    )
    torch.nn.init.normal_(deep.unet.get_submodule("conv_out").weight)
    x, label = _inputs(2, size)
    out = deep.eval()(x, torch.tensor(0.4), label)
    assert out.shape == x.shape and torch.isfinite(out).all()
    tall, wide = -size[0] % deep.stride, -size[1] % deep.stride
    rows = (torch.arange(size[0] + tall) - tall // 2).clamp(0, size[0] - 1)
    columns = (torch.arange(size[1] + wide) - wide // 2).clamp(0, size[1] - 1)
    padded = deep(x[:, :, rows][:, :, :, columns], torch.tensor(0.4), label)
    inside = padded[:, :, tall // 2 : tall // 2 + size[0], wide // 2 : wide // 2 + size[1]]
    torch.testing.assert_close(out, inside)


@torch.no_grad()
def test_output_keeps_the_dtype_under_autocast(network):
    x, label = _inputs()
    exact = network(x, torch.tensor(0.5), label)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = network(x, torch.tensor(0.5), label)
    assert rough.dtype == torch.float32
    assert 0 < (rough - exact).abs().max() < 0.1 * exact.abs().max()


def test_middle_attention_is_normalised(network):
    attention = network.unet.get_submodule("mid_block").attentions[0]
    assert isinstance(attention.group_norm, torch.nn.GroupNorm)
    assert isinstance(network.unet, UNet2DModel)


@pytest.mark.parametrize("preset", PRESETS)
def test_config_survives_json(preset):
    config = NetworkConfig.from_dict({**PRESETS[preset], "n_domains": 5, "in_channels": 4})
    assert NetworkConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(("preset", "low", "high"), [("small", 6, 10), ("gpu", 55, 70), ("paper", 375, 395)])
def test_sizes_are_what_they_are_called(preset, low, high):
    with torch.device("meta"):
        network = build_network(preset, n_domains=5, in_channels=4)
    assert low < sum(parameter.numel() for parameter in network.parameters()) / 1e6 < high


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": (10, 20)}, "multiples"),
        ({"attention_levels": (2,)}, "attention_levels"),
        ({"dropout": 1.0}, "dropout"),
        ({"n_domains": 0}, "at least one domain"),
        ({"depth": 3}, "Unknown entries"),
    ],
)
def test_wrong_configurations_are_refused(changes, message):
    with pytest.raises(ParameterError, match=message):
        build_network("smoke", **{"n_domains": 3, "in_channels": 2, **changes})


def test_unknown_preset_is_refused():
    with pytest.raises(ParameterError, match="small"):
        build_network("smal", n_domains=3, in_channels=2)


@pytest.mark.parametrize(
    ("x", "t", "label", "message"),
    [
        (torch.zeros(2, 3, 8, 8), torch.tensor(0.5), torch.zeros(2, dtype=torch.long), "latents"),
        (torch.zeros(2, 2, 8, 8), torch.tensor(1), torch.zeros(2, dtype=torch.long), "t must be float"),
        (torch.zeros(2, 2, 8, 8), torch.zeros(3), torch.zeros(2, dtype=torch.long), "t must be float"),
        (torch.zeros(2, 2, 8, 8), torch.tensor(0.5), torch.zeros(2), "label must be int64"),
        (torch.zeros(2, 2, 8, 8), torch.tensor(0.5), torch.zeros(1, dtype=torch.long), "label must be int64"),
    ],
)
def test_wrong_inputs_are_refused(network, x, t, label, message):
    with pytest.raises(ParameterError, match=message):
        network(x, t, label)
