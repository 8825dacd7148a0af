"""CDTSDE: its loss by hand, what the loss does to the field, and translations that use every draw and nothing else."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from medshift import checkpoint
from medshift.codec import PatchCodec
from medshift.domain_shift import ShiftSchedule, marginal_mean
from medshift.errors import ParameterError
from medshift.methods import open_training, training
from medshift.mixing_field import MixingField, RandomField
from medshift.paired.cdtsde import CDTSDE, CDTSDEConfig, CDTSDETraining, predicted
from medshift.pairwise import Pair
from medshift.train import TrainConfig, train

PAIR = Pair("a", "b", ("a", "b", "c"))
TINY = CDTSDEConfig(channels=(8, 16), norm_groups=4, head_channels=8)
SCHEDULE = ShiftSchedule()
FIELDS = ("linear", "lowest", "channel", "pixel", "content", "random")


def made(*, taught: bool = True, **changes: object) -> CDTSDETraining:
    """A method; `taught` gives weights to the network's last convolution, which starts at zero, and to the field."""
    torch.manual_seed(0)
    method = CDTSDETraining(PatchCodec(2, [0.2] * 4, [0.4] * 4), PAIR, dataclasses.replace(TINY, **changes))
    if taught:
        nn.init.normal_(method.network.body.unet.conv_out.weight, 0, 0.1)
        for parameter in method.field.parameters():
            nn.init.normal_(parameter, 0, 0.5)
    return method


def images(seed: int = 1, n: int = 3, size: tuple[int, int] = (16, 16)) -> Tensor:
    return torch.rand(n, 1, *size, generator=torch.Generator().manual_seed(seed)) * 1.6 - 0.8


def noise(draws: int, n: int = 3, size: tuple[int, int] = (8, 8), seed: int = 2) -> Tensor:
    return torch.randn(n, draws, 4, *size, generator=torch.Generator().manual_seed(seed))


def seeded(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Oracle(nn.Module):
    """The network that knows x_0, and how often and at what times it was asked."""

    def __init__(self, x0: Tensor) -> None:
        super().__init__()
        self.x0, self.times = x0, []

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        steps = (t * SCHEDULE.length).round().long()
        alpha, sigma = (f(steps).to(x).view(-1, 1, 1, 1) for f in (SCHEDULE.signal, SCHEDULE.noise))
        self.times.append(steps.tolist())
        return (x - alpha * self.x0) / sigma


# The data prediction


def test_the_true_output_gives_the_true_image() -> None:
    """F = ε + (a/σ) Λ (y - x_0) is the one for which x̂ = x_0."""
    generator = seeded()
    x0, y, epsilon = torch.randn(3, 6, 2, 5, 4, generator=generator)
    lam = torch.rand(6, 2, 5, 4, generator=generator)
    t = torch.tensor([0, 1, 50, 250, 499, 500])
    alpha, sigma = (f(t).float().view(-1, 1, 1, 1) for f in (SCHEDULE.signal, SCHEDULE.noise))
    asked = []

    def network(x: Tensor, time: Tensor, source: Tensor) -> Tensor:
        asked.append((time, source))
        return epsilon + alpha / sigma * lam * (y - x0)

    x_t = marginal_mean(x0, y, lam=lam, alpha=alpha) + sigma * epsilon
    torch.testing.assert_close(predicted(network, x_t, y, t, SCHEDULE), x0, atol=1e-5, rtol=0)
    torch.testing.assert_close(asked[0][0], t / 1000)  # the network's time is t/T
    assert torch.equal(asked[0][1], y)


def test_a_network_of_zeros_predicts_the_rescaled_input() -> None:
    method, x_t = made(taught=False), noise(1)[:, 0]
    t = torch.tensor([3, 200, 500])
    found = predicted(method.network, x_t, torch.ones_like(x_t), t, SCHEDULE)
    torch.testing.assert_close(found, x_t / SCHEDULE.signal(t).float().view(-1, 1, 1, 1))


# The loss


def by_hand(method: CDTSDETraining, batch: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """Losses from the module's formulas, Λ written out; the network and g are the method's."""
    y, x0 = ((nn.functional.pixel_unshuffle(part, 2) - 0.2) / 0.4 for part in batch.chunk(2))
    t = torch.randint(0, 501, (len(y),), generator=generator)
    epsilon = torch.randn(y.shape, generator=generator)
    beta = torch.linspace(math.sqrt(0.00085), math.sqrt(0.012), 1000, dtype=torch.float64) ** 2
    kept = (1 - beta).cumprod(0)

    def column(values: Tensor) -> Tensor:
        return values.float().view(-1, 1, 1, 1)

    def share(at: Tensor) -> Tensor:  # λ
        angle = math.pi * (0.001 + 0.998 * at.double() / 499)
        return torch.where(at >= 500, 1.0, 0.5 - 0.5 * angle.cos())

    def mixed(at: Tensor) -> Tensor:  # Λ
        lam = column(share(at))
        value = lam + method.field.modulation(share(at).float(), y) * lam * (1 - lam)
        return value.mean((1, 2, 3), keepdim=True) if method.config.averaged else value

    a, sigma, lam = column(kept[t].sqrt()), column((1 - kept[t]).sqrt()), mixed(t)
    x_t = a * (lam * y + (1 - lam) * x0) + sigma * epsilon
    x_hat = (x_t - sigma * method.network(x_t, t / 1000, y)) / a
    losses = {"data": ((x_hat - x0) ** 2).mean(), "g": method.field.modulation(share(t).float(), y).mean()}
    s = t.clamp(max=499)
    speed = (mixed(s + 1) - mixed(s)) * 1000 * (y - x0)
    losses["energy"] = (column(kept[s] / (1000 * beta[s])) * speed**2).mean()
    c = method.config
    losses["network"] = losses["data"] + c.gauge * losses["g"] ** 2 + c.energy * losses["energy"]
    return losses


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("changes", [{}, {"gauge": 3.0, "averaged": True, "energy": 1e-3}])
def test_losses_are_those_of_the_formulas(field: str, changes: dict[str, object]) -> None:
    method = made(field=field, **changes)
    batch = images(n=16)
    losses, expected = method.step((batch,), seeded()), by_hand(method, batch, seeded())
    for name in losses.keys() - {"saturated"}:
        torch.testing.assert_close(losses[name], expected[name], rtol=1e-3, atol=1e-5)
    assert ("energy" in losses) == bool(changes)
    again, other = method.step((batch,), seeded()), method.step((batch,), seeded(6))
    assert torch.equal(again["network"], losses["network"]) and not torch.equal(other["network"], losses["network"])


def test_constant_fields_are_those_of_their_names() -> None:
    y, lam = torch.zeros(1, 4, 3, 3), torch.tensor([0.3])
    for name, g in (("linear", 0.0), ("lowest", -0.9)):
        torch.testing.assert_close(made(field=name).field(lam, y), torch.full_like(y, 0.3 * (1 + g * 0.7)))
    method = made(field="lowest")
    losses = method.step((images(n=4),), seeded())
    assert float(losses["g"]) == pytest.approx(-0.9) and float(losses["saturated"]) == 1
    assert float(made(field="linear").step((images(n=4),), seeded())["saturated"]) == 0


@pytest.mark.parametrize("field", FIELDS)
def test_gradients_reach_network_and_field_and_not_the_codec(field: str) -> None:
    method = made(field=field)
    method.step((images(n=8),), seeded())["network"].backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in method.network.parameters())
    grads = [p.grad for p in method.field.parameters()]
    assert bool(grads) == (field in ("channel", "pixel", "content"))
    assert all(g is not None and (g != 0).any() for g in grads[-2:])
    assert not any(p.requires_grad for p in method.codec.parameters())
    rates = [group["lr"] for group in method.optimizer.param_groups]
    assert rates == [1e-3, 1e-2][: 1 + bool(grads)]
    held = {id(p) for group in method.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for module in (method.network, method.field) for p in module.parameters()}


def learnt(steps: int = 60, **changes: object) -> list[float]:
    """The mean of g over a training on random pairs, of one convolution as the network."""
    method = made(taught=False, field="pixel", learning_rate=3e-3, **changes)
    network = nn.Conv2d(8, 4, 3, padding=1)
    method.network = lambda x, t, y: network(torch.cat([x, y], 1))
    method.optimizer.add_param_group({"params": list(network.parameters()), "lr": 3e-3})
    found, generator = [], seeded()
    for k in range(steps):
        losses = method.step((images(100 + k, n=16),), generator)
        method.optimizer.zero_grad()
        losses["network"].backward()
        method.optimizer.step()
        found.append(float(losses["g"]))
    return found


def test_the_loss_alone_drives_the_field_down_and_the_gauge_holds_it() -> None:
    """It falls wherever Λ falls, as x_t then holds more of x_0."""
    free, held = learnt(), learnt(gauge=1000.0)
    assert abs(free[0]) < 0.2 and sum(free[-10:]) / 10 < -0.5
    assert abs(sum(held[-10:]) / 10) < 0.1


def test_the_loss_of_a_lower_field_is_lower_for_the_same_network() -> None:
    """Not by what a network learns of it: at x̂ = x_t / a the error is Λ² (y - x_0)² and the noise."""
    losses = {name: made(taught=False, field=name).step((images(n=64),), seeded())["data"] for name in FIELDS[:2]}
    assert losses["lowest"] < 0.9 * losses["linear"]


# Translation


@pytest.mark.parametrize(("steps", "order", "stochastic"), [(1, 1, True), (5, 1, False), (5, 2, True), (7, 2, False)])
def test_with_the_true_prediction_the_target_comes_back(steps: int, order: int, stochastic: bool) -> None:
    method, target = made(field="content"), images(9, size=(11, 14))
    oracle = Oracle(method.codec.encode(target))
    translator = CDTSDE(oracle, method.field, method.codec, PAIR, SCHEDULE, "oracle")
    knobs = {"steps": steps, "order": order, "stochastic": stochastic}
    z = noise(translator.draws(**knobs), size=(6, 7))
    out = translator.translate(images(size=(11, 14)), "a", "b", noise=z, **knobs)
    torch.testing.assert_close(out, target, atol=1e-4, rtol=0)
    assert oracle.times == [[round(500 * (1 - k / steps))] * 3 for k in range(steps)]
    assert len(oracle.times) == translator.nfe(**knobs)


@pytest.mark.parametrize("stochastic", [True, False])
@pytest.mark.parametrize("order", [1, 2])
def test_every_draw_is_used_and_no_more_are_taken(stochastic: bool, order: int) -> None:
    translator, knobs = made().translator(), {"steps": 4, "order": order, "stochastic": stochastic}
    draws = translator.draws(**knobs)
    assert draws == (4 if stochastic else 1) and translator.nfe(**knobs) == 4
    z = noise(draws)
    out = translator.translate(images(), "a", "b", noise=z, **knobs)
    torch.manual_seed(99)
    assert torch.equal(out, translator.translate(images(), 0, 1, noise=z, **knobs))
    for k in range(draws):
        changed = z.clone()
        changed[0, k] += 0.5
        other = translator.translate(images(), "a", "b", noise=changed, **knobs)
        assert float((other[0] - out[0]).abs().max()) > 1e-4
        torch.testing.assert_close(other[1:], out[1:], atol=1e-5, rtol=0)  # an image has its own noise
    for wrong in (noise(draws + 1), noise(draws)[:2], noise(draws, size=(8, 7)), noise(draws)[:, 0]):
        with pytest.raises(ParameterError, match=rf"\(3, {draws}, 4, 8, 8\)"):
            translator.translate(images(), "a", "b", noise=wrong, **knobs)


def test_an_order_or_steps_of_their_own() -> None:
    """The knobs do something: none is swallowed."""
    translator, z = made().translator(), noise(4)
    plain = translator.translate(images(), "a", "b", noise=z, steps=4)
    for other in (
        translator.translate(images(), "a", "b", noise=z, steps=4, order=2),
        translator.translate(images(), "a", "b", noise=z[:, :1], steps=4, stochastic=False),
        translator.translate(images(), "a", "b", noise=z[:, :3], steps=3),
    ):
        assert float((plain - other).abs().max()) > 1e-3


def test_averaging_changes_a_pixel_field_and_leaves_the_linear_one() -> None:
    for field in FIELDS:
        translator, z = made(field=field).translator(), noise(5)
        pixel, mean = (translator.translate(images(), "a", "b", noise=z, average=average) for average in (False, True))
        if field in ("linear", "lowest"):
            torch.testing.assert_close(pixel, mean, atol=1e-5, rtol=0)  # but for the rounding of a mean
        else:
            assert float((pixel - mean).abs().max()) > 1e-3


def test_the_field_translates_and_starts_from_the_source_alone() -> None:
    """At t_1 nothing of the field shows: one step is the same for all fields, more steps are not."""
    outs = {}
    for steps in (1, 5):
        for field in ("linear", "lowest"):
            outs[steps, field] = (
                made(field=field).translator().translate(images(), "a", "b", noise=noise(steps), steps=steps)
            )
    assert torch.equal(outs[1, "linear"], outs[1, "lowest"])
    assert float((outs[5, "linear"] - outs[5, "lowest"]).abs().max()) > 1e-3


def test_a_field_that_falls_in_time_is_counted() -> None:
    class Falling(MixingField):
        """λ, but of its last two channels 1 at early times."""

        def forward(self, lam: Tensor, y: Tensor) -> Tensor:
            value = lam.view(-1, 1, 1, 1).expand(-1, *y.shape[1:]).clone()
            value[:, 2:][lam < 0.5] = 1
            return value

    method = made()
    translator = CDTSDE(method.network, Falling(4), method.codec, PAIR, SCHEDULE, "falling")
    for turn in (1, 2):  # from 300 to 200, where λ is .65 and .35, once for each pixel of three images
        out = translator.translate(images(), "a", "b", noise=noise(5))
        assert torch.isfinite(out).all() and translator.clamped == turn * 3 * 2 * 8 * 8
    for field in ("linear", "lowest", "channel", "random"):
        rising = CDTSDE(Oracle(torch.zeros(1)), made(field=field).field, method.codec, PAIR, SCHEDULE, "rising")
        for steps in (5, 100):
            rising.translate(images(), "a", "b", noise=noise(steps), steps=steps)
        assert rising.clamped == 0


# What is refused


def test_bad_knobs_are_refused() -> None:
    translator = made().translator()
    for steps in (0, 501, -1, 2.5):
        with pytest.raises(ParameterError, match="from 1 to 500"):
            translator.translate(images(), "a", "b", noise=noise(5), steps=steps)
        with pytest.raises(ParameterError, match="from 1 to 500"):
            translator.draws(steps=steps)
    for order in (0, 3):
        with pytest.raises(ParameterError, match="order is"):
            translator.translate(images(), "a", "b", noise=noise(5), order=order)
    with pytest.raises(ParameterError, match=r"give noise \(B,7,C,h,w\)"):
        translator.translate(images(), "a", "b", steps=7)
    with pytest.raises(ParameterError, match=r"give noise \(B,1,C,h,w\)"):
        translator.translate(images(), "a", "b", stochastic=False)
    for source, target in (("b", "a"), ("a", "c"), ("a", "nowhere"), (1, 0)):
        with pytest.raises(ParameterError, match="trained from a to b"):
            translator.translate(images(), source, target, noise=noise(5))


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"field": "wavy"}, "linear, lowest"),
        ({"gauge": -1.0}, "at or above 0"),
        ({"energy": -1e-3}, "at or above 0"),
        ({"gauge": float("nan")}, "at or above 0"),
        ({"last": 1000}, "t1"),
        ({"length": 100}, "t1"),
        ({"last": 1}, "t1"),
        ({"speed": 3}, "settings of cdtsde"),
    ],
)
def test_bad_configurations_are_refused(config: dict[str, object], match: str) -> None:
    with pytest.raises(ParameterError, match=match):
        training("cdtsde", PatchCodec(2), PAIR, config)


# Keeping


@pytest.mark.parametrize("field", ["pixel", "channel", "random", "lowest"])
def test_a_checkpoint_translates_bit_for_bit(field: str, tmp_path: Path) -> None:
    method = made(field=field)
    if field == "random":
        method.field.load_state_dict(RandomField(4, seed=8).state_dict())  # it is kept, not drawn again
    held = {name: module.state_dict() for name, module in method.modules().items()}
    checkpoint.save(tmp_path, 1, held, {"method": method.state(), "images": 0})
    again = open_training(tmp_path)
    assert type(again.field) is type(method.field) and again.name == method.name
    for average in (False, True):
        first, second = (
            m.translator().translate(images(), "a", "b", noise=noise(5), average=average) for m in (method, again)
        )
        assert torch.equal(first, second)


def test_a_training_is_reopened_with_its_moving_averages(tmp_path: Path) -> None:
    method = made(field="pixel", last=400)
    plan = TrainConfig(steps=3, precision="fp32", schedule="constant", warmup=0.0)
    records = list(train(method, lambda step, generator: (images(step, n=8),), folder=tmp_path, config=plan))
    assert {"network", "data", "g", "saturated"} == records[-1].losses.keys()
    assert method.averaged == ("network", "field") and made(field="random").averaged == ("network",)
    averages = {name: records[-1].averages[name].module for name in method.averaged}
    expected = CDTSDE(averages["network"], averages["field"], method.codec, PAIR, ShiftSchedule(last=400), "")
    again = open_training(tmp_path).translator()
    made_of = [t.translate(images(), "a", "b", noise=noise(5)) for t in (expected, again, method.translator())]
    assert torch.equal(made_of[0], made_of[1]) and not torch.equal(made_of[1], made_of[2])
    assert again.schedule.last == 400 and again.name == "CDTSDE"
