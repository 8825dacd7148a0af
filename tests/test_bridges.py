"""Couplings of batches, direct bridges and their reflow: optimal plans, closed forms, and what each may not know."""

import itertools
import json

import ot
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from medshift.baselines.direct_bridge import (
    DirectBridge,
    DirectBridgeConfig,
    DirectBridgeTraining,
    ReflowConfig,
    ReflowTraining,
    cross,
)
from medshift.checkpoint import weights_sha256
from medshift.codec import PatchCodec
from medshift.coupling import bridge_loss, bridge_path, coupling_features, minibatch_ot
from medshift.errors import ParameterError
from medshift.network import VelocityNetwork
from medshift.pairwise import Pair

PAIR = Pair("a", "b", ("a", "b"))
TINY = {"channels": (16,), "norm_groups": 1, "head_channels": 16}


def cost(f: Tensor, g: Tensor, partner: Tensor) -> Tensor:
    return (f - g[partner]).square().sum(1).mean()


def draws(n: int, mean: float, std: float, g: torch.Generator, side: int = 4) -> Tensor:
    return mean + std * torch.randn(n, 1, side, side, generator=g)


def trained(method: DirectBridgeTraining, sample, steps: int) -> DirectBridgeTraining:  # noqa: ANN001
    """Plain descent, the rate falling to zero, as the schedule of the training loop has it."""
    g = torch.Generator().manual_seed(1)
    peak = method.optimizer.param_groups[0]["lr"]
    for step in range(steps):
        method.optimizer.param_groups[0]["lr"] = peak * min(1.0, 2 * (1 - step / steps))
        losses = method.step([sample(g)], g)
        method.optimizer.zero_grad()
        losses["network"].backward()
        method.optimizer.step()
    return method


# Couplings


def test_the_plan_is_the_cheapest_of_all_permutations(generator: torch.Generator) -> None:
    for _ in range(20):
        f, g = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
        least = min(cost(f, g, torch.tensor(p)) for p in itertools.permutations(range(5)))
        torch.testing.assert_close(cost(f, g, minibatch_ot(f, g)), least)


def test_the_plan_is_a_permutation_of_the_cost_that_pot_finds(generator: torch.Generator) -> None:
    f, g = torch.randn(2, 64, 6, generator=generator, dtype=torch.float64)
    partner = minibatch_ot(f, g)
    assert partner.dtype == torch.int64 and partner.sort().values.tolist() == list(range(64))
    squared = ot.dist(f.numpy(), g.numpy())
    assert cost(f, g, partner).item() == pytest.approx(ot.emd2([], [], squared), rel=1e-9)
    # Translating one side changes the cost of every permutation alike.
    assert torch.equal(minibatch_ot(f, g + 7.0), partner)


def test_a_shuffled_copy_is_found_again_also_among_equal_points() -> None:
    g = torch.Generator().manual_seed(3)
    f = torch.randn(40, 5, generator=g)
    order = torch.randperm(40, generator=g)
    assert torch.equal(order[minibatch_ot(f, f[order])], torch.arange(40))
    same = torch.ones(12, 5)
    assert minibatch_ot(same, same).sort().values.tolist() == list(range(12))


@given(gain=st.floats(0.05, 20), offset=st.floats(-50, 50), seed=st.integers(0, 10))
def test_features_know_nothing_of_brightness_and_contrast(gain: float, offset: float, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    images = torch.randn(3, 1, 22, 18, generator=g, dtype=torch.float64)
    codec = PatchCodec(2, mean=[0.1, 0.2, 0.3, 0.4], std=[0.5, 0.6, 0.5, 0.6])
    f, changed = coupling_features(codec.encode(images)), coupling_features(codec.encode(gain * images + offset))
    torch.testing.assert_close(changed, f, atol=1e-5, rtol=0)
    torch.testing.assert_close(f.norm(dim=1), torch.ones(3))
    # Inverted contrast is another picture.
    torch.testing.assert_close(coupling_features(codec.encode(-images)), -f, atol=1e-6, rtol=0)


def test_features_find_the_anatomy_where_latents_find_brightness(generator: torch.Generator) -> None:
    """The same twelve blobs in both domains, each image of a brightness of its own, and noise."""
    shapes = torch.nn.functional.interpolate(torch.rand(12, 1, 4, 4, generator=generator), size=32, mode="bicubic")
    codec = PatchCodec(2)
    latents = []
    for order in (torch.arange(12), torch.randperm(12, generator=generator)):
        bright = 3 * torch.randn(12, 1, 1, 1, generator=generator)
        noise = 0.2 * torch.randn(12, 1, 32, 32, generator=generator)
        latents.append((codec.encode(shapes[order] + bright + noise), order))
    (a, _), (b, order) = latents
    found = order[minibatch_ot(coupling_features(a), coupling_features(b))]
    assert torch.equal(found, torch.arange(12))
    by_brightness = order[minibatch_ot(a.flatten(1), b.flatten(1))]
    assert (by_brightness == torch.arange(12)).sum() <= 4


def test_without_structure_the_features_are_zero_and_bad_ones_are_refused() -> None:
    assert coupling_features(torch.full((2, 4, 5, 5), 3.7)).abs().max() == 0
    f = torch.randn(4, 3)
    for g in (torch.randn(5, 3), torch.randn(4, 2)):
        with pytest.raises(ParameterError, match="one-to-one"):
            minibatch_ot(f, g)
    with pytest.raises(ParameterError, match="finite"):
        minibatch_ot(f, f / torch.zeros(()))


# Paths


@pytest.mark.parametrize("sigma", [0.0, 0.7])
def test_the_velocity_is_the_derivative_of_the_path(generator: torch.Generator, sigma: float) -> None:
    y, x1, noise = torch.randn(3, 6, 2, 3, 3, generator=generator, dtype=torch.float64)
    t = torch.linspace(0.1, 0.9, 6, dtype=torch.float64)
    h = 1e-6
    _, v = bridge_path(y, x1, noise, t, sigma)
    after, before = (bridge_path(y, x1, noise, t + d, sigma)[0] for d in (h, -h))
    torch.testing.assert_close(v, (after - before) / (2 * h), atol=1e-6, rtol=0)
    for end, time in ((y, 0.0), (x1, 1.0)):
        torch.testing.assert_close(bridge_path(y, x1, noise, torch.full((6,), time), 0.0)[0], end)
    middle = bridge_path(y, x1, noise, torch.full((6,), 0.5, dtype=torch.float64), sigma)[0]
    torch.testing.assert_close(middle, (y + x1) / 2 + sigma / 2 * noise)


def test_the_field_of_deterministic_couples_has_no_loss(generator: torch.Generator) -> None:
    """For x1 = y + c the velocity c is exact at every point, and for x1 = k y it is (k-1) x / (1 + (k-1) t)."""
    y = torch.randn(64, 2, 4, 4, generator=generator, dtype=torch.float64)
    c = torch.randn(2, 4, 4, generator=generator, dtype=torch.float64)
    assert bridge_loss(lambda x, t, k: c.expand_as(x), y, y + c, generator, times=3) < 1e-28
    scale = bridge_loss(lambda x, t, k: 1.5 * x / (1 + 1.5 * t.reshape(-1, 1, 1, 1)), y, 2.5 * y, generator)
    assert scale < 1e-28
    wrong = bridge_loss(lambda x, t, k: c.expand_as(x) + 0.1, y, y + c, generator)
    assert wrong.item() == pytest.approx(0.01)


# Bridges


def constant(c: float) -> VelocityNetwork:
    method = DirectBridgeTraining(PatchCodec(1), PAIR, DirectBridgeConfig(**TINY))
    torch.nn.init.constant_(method.network.unet.get_submodule("conv_out").bias, c)
    return method.network


def test_a_constant_field_is_an_exact_shift_with_any_steps(generator: torch.Generator) -> None:
    bridge = DirectBridge(constant(0.75), PatchCodec(1), PAIR, coupling="ot")
    x = torch.randn(2, 1, 7, 5, generator=generator)
    for steps, solver in ((1, "euler"), (3, "heun"), (4, "rk4")):
        torch.testing.assert_close(bridge.translate(x, "a", "b", steps=steps, solver=solver), x + 0.75)
    assert bridge.nfe(steps=1, solver="euler") == 1 and bridge.nfe(steps=3) == 6 and bridge.nfe() == 30
    for asked in (("b", "a"), ("a", "a"), (1, 0), ("a", "c")):
        with pytest.raises(ParameterError, match="trained from a to b"):
            bridge.translate(x, *asked)


@pytest.fixture(scope="module")
def bridges() -> tuple[DirectBridgeTraining, ReflowTraining]:
    """Independent coupling of N(-.5, .5²) and N(1, 1) in every pixel, and its reflow."""
    torch.manual_seed(0)

    def sample(g: torch.Generator) -> Tensor:
        return torch.cat([draws(32, -0.5, 0.5, g), draws(32, 1.0, 1.0, g)])

    config = {**TINY, "learning_rate": 6e-3}
    first = trained(DirectBridgeTraining(PatchCodec(1), PAIR, DirectBridgeConfig(**config)), sample, 150)
    config["learning_rate"] = 3e-3
    again = ReflowTraining(PatchCodec(1), PAIR, ReflowConfig(**config), teacher=first.network)
    return first, trained(again, sample, 60)


def test_independent_couples_teach_the_quantile_map(bridges: tuple[DirectBridgeTraining, ReflowTraining]) -> None:
    """The marginal field of two independent Gaussians carries x to 1 + (1 / .5)(x + .5), whatever the couples were."""
    y = draws(400, -0.5, 0.5, torch.Generator().manual_seed(5))
    for method in bridges:
        out = method.translator().translate(y, "a", "b", steps=10)
        assert out.mean().item() == pytest.approx(1.0, abs=0.12)
        assert out.std().item() == pytest.approx(1.0, abs=0.12)
        # The conditional target, x1 - y, is worthless as a map: its correlation with y is that of independence.
        assert torch.corrcoef(torch.stack([y.flatten(), out.flatten()]))[0, 1] > 0.95


def curvature(method: DirectBridgeTraining, y: Tensor) -> float:
    """The mean of ‖v(x_t, t) - (x_1 - x_0)‖ per component along trajectories of the method's own field."""
    label, n, x, velocities = torch.zeros(len(y), dtype=torch.int64), 16, y, []
    with torch.no_grad():
        for k in range(n):
            v = method.network(x, torch.tensor((k + 0.5) / n), label)
            velocities.append(v)
            x = x + v / n
    return float((torch.stack(velocities) - (x - y)).square().mean().sqrt())


def test_a_reflow_is_straighter_and_needs_fewer_steps(bridges: tuple[DirectBridgeTraining, ReflowTraining]) -> None:
    y = draws(200, -0.5, 0.5, torch.Generator().manual_seed(6))
    first, again = (curvature(method, y) for method in bridges)
    assert again < 0.5 * first
    # What one Euler step is off from many: of the marginal field it gives the target's mean for every image.
    off = []
    for method in bridges:
        bridge = method.translator()
        few, many = (bridge.translate(y, "a", "b", steps=n, solver="euler") for n in (1, 20))
        off.append(float((few - many).square().mean().sqrt()))
    assert off[1] < 0.5 * off[0]


def test_a_reflow_learns_its_teachers_couples_and_says_whose(
    bridges: tuple[DirectBridgeTraining, ReflowTraining],
) -> None:
    first, again = bridges
    batch = [draws(8, 0.0, 1.0, torch.Generator().manual_seed(7))]
    source, coupled = again.couples(batch)
    assert torch.equal(source, batch[0][:4])
    torch.testing.assert_close(coupled, cross(first.network, source, 4, "heun"))
    assert (coupled - first.translator().translate(source, "a", "b", steps=4)).abs().max() < 0.02  # bfloat16, perhaps
    # The target's half is not looked at.
    batch[0][4:] = torch.nan
    assert torch.equal(again.couples(batch)[1], coupled)
    assert again.state()["teacher"] == weights_sha256(first.network.state_dict())
    assert "teacher" in again.modules() and "teacher" not in again.kept
    assert all(not p.requires_grad for p in again.modules()["teacher"].parameters())


def test_without_a_teacher_a_reflow_translates_but_does_not_train(
    bridges: tuple[DirectBridgeTraining, ReflowTraining],
) -> None:
    _, again = bridges
    config = ReflowConfig(**json.loads(json.dumps(again.state()["config"])))
    made = ReflowTraining(PatchCodec(1), PAIR, config)
    made.network.load_state_dict(again.network.state_dict())
    x = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(8))
    expected = again.translator().translate(x, "a", "b", steps=2)
    assert torch.equal(made.translator().translate(x, "a", "b", steps=2), expected)
    with pytest.raises(ParameterError, match="give its network as teacher"):
        made.step([x], torch.Generator())
    with pytest.raises(ParameterError, match="of its teacher"):
        ReflowTraining(PatchCodec(1), PAIR, ReflowConfig(**{**TINY, "channels": (32,)}), teacher=again.network)


def test_optimal_couples_cost_what_is_known(generator: torch.Generator) -> None:
    """Each target is a source made brighter, in another order: the optimal cost is the brightness alone."""
    shapes = torch.nn.functional.interpolate(torch.rand(32, 1, 4, 4, generator=generator), size=16, mode="bicubic")
    order = torch.randperm(32, generator=generator)
    batch = [torch.cat([shapes, shapes[order] + 0.5])]
    costs = {}
    for coupling in ("independent", "ot"):
        method = DirectBridgeTraining(PatchCodec(2), PAIR, DirectBridgeConfig(coupling=coupling, **TINY))
        source, target = method.couples(batch)
        assert torch.equal(source, PatchCodec(2).encode(shapes))
        costs[coupling] = method.step(batch, generator)["cost"].item()
    assert costs["ot"] == pytest.approx(0.25, rel=1e-5)
    expected = (shapes[order] + 0.5 - shapes).square().mean().item()
    assert costs["independent"] == pytest.approx(expected, rel=1e-5) and expected > 0.29


def test_steps_are_random_by_their_generator_alone_and_move_the_network_alone() -> None:
    batch = [draws(8, 0.0, 1.0, torch.Generator().manual_seed(9), side=5)]
    for sigma in (0.0, 0.3):
        method = DirectBridgeTraining(PatchCodec(1), PAIR, DirectBridgeConfig(sigma=sigma, coupling="ot", **TINY))
        torch.nn.init.normal_(method.network.unet.get_submodule("conv_out").weight)
        losses = []
        for seed, state in ((1, 0), (1, 5), (2, 0)):
            torch.manual_seed(state)
            losses.append(method.step(batch, torch.Generator().manual_seed(seed))["network"].item())
        assert losses[0] == losses[1] != losses[2]
    assert {p for g in method.optimizers()["network"].param_groups for p in g["params"]} == {
        *method.network.parameters()
    }


def test_names_tell_all_four_apart_and_settings_are_checked() -> None:
    names = {
        made(PatchCodec(1), PAIR, config(coupling=coupling, **TINY)).name
        for made, config in ((DirectBridgeTraining, DirectBridgeConfig), (ReflowTraining, ReflowConfig))
        for coupling in ("independent", "ot")
    }
    assert names == {
        "direct bridge, independent coupling",
        "direct bridge, OT coupling",
        "direct bridge, independent coupling, reflow",
        "direct bridge, OT coupling, reflow",
    }
    for wrong in ({"coupling": "sinkhorn"}, {"sigma": -0.1}, {"times": 0}):
        with pytest.raises(ParameterError, match="expected one of"):
            DirectBridgeConfig(**wrong)


def test_the_network_is_of_the_size_that_all_methods_have() -> None:
    method = DirectBridgeTraining(PatchCodec(2), PAIR)
    assert 0.9e6 < sum(p.numel() for p in method.network.parameters()) < 1.1e6
    assert json.loads(json.dumps(method.state()))["config"]["coupling"] == "independent"
