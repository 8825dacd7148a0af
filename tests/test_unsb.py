"""UNSB: its times, its chain in closed form, each term of its losses, and what its randomness hangs on."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medshift.adversarial import lsgan_discriminator, lsgan_generator
from medshift.baselines.unsb import UNSB, UNSBConfig, UNSBTraining
from medshift.bridge_chain import StepGenerator, at_step, bridge_step, code_of, harmonic_times, walk
from medshift.codec import PatchCodec
from medshift.errors import ParameterError
from medshift.pairwise import Pair

PAIR = Pair("a", "b", ("a", "b"))
TINY: dict[str, Any] = {
    "width": 8,
    "blocks": 1,
    "downs": 0,
    "code": 16,
    "discriminator_width": 8,
    "discriminator_layers": 1,
}


def method(seed: int = 0, **changes: Any) -> UNSBTraining:
    torch.manual_seed(seed)
    return UNSBTraining(PatchCodec(1), PAIR, UNSBConfig(**{**TINY, **changes}))


def blobs(n: int, g: torch.Generator) -> Tensor:
    return 1.5 * F.interpolate(torch.randn(n, 1, 4, 4, generator=g), size=12, mode="bicubic")


def gradient(loss: Tensor, net: nn.Module) -> Tensor:
    parameters = [*net.parameters()]
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return torch.cat(
        [(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, found, strict=True)]
    )


class Oracle(nn.Module):
    """A generator that knows the end, or computes it; and notes how it was called."""

    def __init__(self, end: Tensor | Callable[[Tensor, int, Tensor], Tensor], steps: int = 5, code: int = 4) -> None:
        super().__init__()
        self.end, self.steps, self.code, self.calls = end, steps, code, list[int]()

    def forward(self, x: Tensor, step: int, code: Tensor) -> Tensor:
        assert code.shape == (len(x), self.code)
        self.calls.append(step)
        return self.end.expand_as(x) if isinstance(self.end, Tensor) else self.end(x, step, code)


# The chain


def test_times_are_harmonic_and_compressed_to_the_second_half() -> None:
    sums = [0, 1, 1 + 1 / 2, 1 + 1 / 2 + 1 / 3, 1 + 1 / 2 + 1 / 3 + 1 / 4]
    assert harmonic_times(5) == pytest.approx([0.0, *(0.5 + 0.5 * s / sums[-1] for s in sums)])
    assert harmonic_times(5) == pytest.approx([0, 0.5, 0.74, 0.86, 0.94, 1])
    assert harmonic_times(2) == (0, 0.5, 1) and harmonic_times(1) == (0, 1)


def test_the_chain_to_a_known_end_is_a_brownian_bridge(generator: torch.Generator) -> None:
    """X_t is N((1-t) x_0 + t x_1, τ t (1-t)), correlated between times as a bridge is, and ends in x_1."""
    n, tau, times = 80_000, 0.3, harmonic_times(5)
    x0, x1 = torch.full((n, 1, 1, 1), 2.0), torch.tensor(-1.0)
    noise = torch.randn(n, 9, 1, 1, 4, generator=generator)[..., :1]
    noise = torch.cat([noise] * 4, dim=-1)  # codes are of four components, the state of one
    states = [walk(Oracle(x1), x0.expand(-1, 1, 1, 4), k, noise, tau)[..., 0].flatten() for k in range(5)]
    for k, (x, t) in enumerate(zip(states, times, strict=False)):
        assert x.mean().item() == pytest.approx((1 - t) * 2 - t, abs=5e-3)
        assert x.var().item() == pytest.approx(tau * t * (1 - t), rel=0.02, abs=1e-9)
        if k > 1:
            covariance = torch.cov(torch.stack([states[1], x]))[0, 1].item()
            assert covariance == pytest.approx(tau * times[1] * (1 - t), rel=0.05)
    last = bridge_step(states[4], x1, 4, torch.randn(n, generator=generator), tau, 5)
    torch.testing.assert_close(last, x1.expand(n), atol=1e-6, rtol=0)


def test_an_oracles_translation_has_the_targets_law_at_every_number_of_steps(generator: torch.Generator) -> None:
    """If every prediction has the target's law, so has the output, however many steps; the state tends to it."""
    target = Oracle(lambda x, step, code: 3 + 0.5 * code[:, :1, None, None].expand_as(x), code=1)
    bridge = UNSB(target, PatchCodec(1), PAIR, tau=0.01)
    x = torch.zeros(20_000, 1, 1, 1)
    for steps in (1, 3, 5):
        noise = torch.randn(len(x), bridge.draws(steps=steps), 1, 1, 1, generator=generator)
        out = bridge.translate(x, "a", "b", noise=noise, steps=steps)
        assert out.mean().item() == pytest.approx(3, abs=0.02) and out.std().item() == pytest.approx(0.5, abs=0.02)
    means = [walk(target, x, k, noise, 0.01).mean().item() for k in range(5)]
    assert means == pytest.approx([3 * t for t in harmonic_times(5)[:5]], abs=0.02)


def test_codes_are_standard_normal_because_they_are_an_isometry_of_the_noise() -> None:
    basis = torch.eye(2 * 3 * 5).reshape(30, 2, 3, 5)
    for length in (1, 7, 15, 30):
        rows = code_of(basis, length).T
        torch.testing.assert_close(rows @ rows.T, torch.eye(length))
    with pytest.raises(ParameterError, match="shorter code"):
        code_of(basis, 31)


# Translation


def test_the_number_of_steps_is_the_number_of_evaluations() -> None:
    oracle = Oracle(torch.tensor(0.0))
    bridge = UNSB(oracle, PatchCodec(1), PAIR, tau=0.01)
    x = torch.zeros(2, 1, 3, 3)
    for steps in range(1, 6):
        oracle.calls.clear()
        bridge.translate(x, "a", "b", noise=torch.zeros(2, 2 * steps - 1, 1, 3, 3), steps=steps)
        assert oracle.calls == [*range(steps)] and bridge.nfe(steps=steps) == steps
        assert bridge.draws(steps=steps) == 2 * steps - 1
    for steps in (0, 6, 2.5):
        with pytest.raises(ParameterError, match="from 1 to 5"):
            bridge.nfe(steps=steps)


def test_noise_is_all_that_is_random_and_all_of_it_counts(generator: torch.Generator) -> None:
    bridge = method().translator()
    torch.nn.init.normal_(bridge.generator.blocks[0].modulation.weight, std=0.5)
    x, noise = blobs(2, generator), torch.randn(2, 5, 1, 12, 12, generator=generator)
    bridge.tau = 1.0

    def out(noise: Tensor, seed: int = 0) -> Tensor:
        torch.manual_seed(seed)
        return bridge.translate(x, "a", "b", noise=noise, steps=3)

    plain = out(noise)
    assert torch.equal(plain, out(noise, seed=1)) and plain.shape == x.shape
    for k in range(5):
        changed = noise.clone()
        changed[0, k] *= -1
        moved = (out(changed) - plain).abs().amax((1, 2, 3))
        assert moved[0] > 1e-4 and moved[1] == 0
    for wrong in (noise[:, :4], noise[:1], noise[..., :11]):
        with pytest.raises(ParameterError, match="The noise is"):
            out(wrong)


def test_another_pair_is_refused() -> None:
    bridge = method().translator()
    for asked in (("b", "a"), (0, 0), ("a", "c")):
        with pytest.raises(ParameterError, match="trained from a to b"):
            bridge.translate(torch.zeros(1, 1, 12, 12), *asked, noise=torch.zeros(1, 9, 1, 12, 12))


@pytest.mark.parametrize("size", [(12, 12), (7, 5), (1, 9)])
def test_the_generator_takes_any_size_and_heeds_step_and_code(size: tuple[int, int]) -> None:
    torch.manual_seed(1)
    net = StepGenerator(2, steps=3, width=8, blocks=3, downs=1, code=4)
    x, code = torch.randn(2, 2, *size), torch.randn(2, 4)
    out = net(x, 0, code)
    assert out.shape == x.shape
    assert (net(x, 1, code) - out).abs().max() > 1e-4 and (net(x, 0, -code) - out).abs().max() > 1e-4
    # The length of a code says nothing: it is a direction.
    torch.testing.assert_close(net(x, 0, 2 * code), out, atol=1e-4, rtol=1e-3)
    features = net.features(x, 0, code)
    assert tuple(f.shape[1] for f in features) == net.feature_channels == (2, 8, 16, 16, 16)
    assert torch.equal(features[0][..., : size[0], : size[1]], x)


def test_judges_are_told_the_step() -> None:
    x = torch.randn(2, 3, 4, 5)
    planes = at_step(x, 2, 5)
    assert torch.equal(planes[:, :3], x)
    assert torch.equal(planes[:, 3:], torch.eye(5)[2].reshape(1, 5, 1, 1).expand(2, 5, 4, 5))
    trained = method()
    for judge, channels in ((trained.discriminator, 1), (trained.critic, 4)):
        x = torch.randn(2, channels, 12, 12)
        with torch.no_grad():
            assert not torch.equal(judge(at_step(x, 0, 5)), judge(at_step(x, 4, 5)))


# Losses


def test_energy_and_entropy_weigh_as_written() -> None:
    energy, entropy = torch.tensor(0.7), torch.tensor(1.3)
    for k, t in enumerate((0, 0.5, 0.74, 0.86, 0.94)):
        released, paper = (method(energy=form).bridge(energy, entropy, k) for form in ("released", "paper"))
        assert released.item() == pytest.approx(0.01 * (0.7 - (1 - k / 5) * 1.3), abs=1e-6)
        assert paper.item() == pytest.approx(0.7 - 2 * 0.01 * (1 - t) * 1.3, abs=1e-6)


def test_the_entropy_is_the_bound_of_donsker_and_varadhan() -> None:
    """With the critic -‖u - u'‖² per place it is minus the log of the mean kernel between different images."""
    trained = method()

    class Distance(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            first, second = x[:, :2], x[:, 2:4]
            return -(first - second).square().sum(1, keepdim=True)

    trained.critic = Distance()
    couple = torch.randn(4, 2, 3, 3)
    for shift in (1, 2, 3):
        joint, apart = trained._critic(couple, shift, 0)
        others = couple[[(i - shift) % 4 for i in range(4)]]
        kernel = torch.exp(-(couple - others).square().sum(1)).mean()
        assert joint.item() == 0 and apart.item() == pytest.approx(kernel.log().item(), rel=1e-5)
    # Couples that are all the same have no entropy.
    joint, apart = trained._critic(couple[:1].expand(4, -1, -1, -1), 1, 0)
    assert (joint - apart).item() == pytest.approx(0, abs=1e-6)


def test_each_loss_moves_its_own_networks_alone() -> None:
    trained = method()
    losses = trained.step([blobs(6, torch.Generator().manual_seed(2))], torch.Generator().manual_seed(3))
    reached = {
        name: {
            net for net in trained.modules() if net != "codec" and gradient(losses[name], getattr(trained, net)).any()
        }
        for name in trained.optimizers()
    }
    assert reached["critic"] == {"critic"} and reached["discriminator"] == {"discriminator"}
    assert reached["generator"] >= {"generator", "contrast"}
    owned = {name: {*optimizer.param_groups[0]["params"]} for name, optimizer in trained.optimizers().items()}
    assert owned["generator"] == {*trained.generator.parameters(), *trained.contrast.parameters()}
    assert owned["discriminator"] == {*trained.discriminator.parameters()}
    assert owned["critic"] == {*trained.critic.parameters()}
    assert all(not losses[name].requires_grad for name in losses if name not in owned)


def test_the_bridge_term_changes_the_gradient_in_proportion_and_through_the_critic() -> None:
    """With λ_SB = 0 the critic does not matter to the generator; with λ_SB it adds λ times one and the same."""
    batch = [blobs(6, torch.Generator().manual_seed(4))]

    def found(weight: float, critic: float) -> Tensor:
        trained = method(lambda_sb=weight, tau=0.5)
        with torch.no_grad():
            trained.critic.net[-1].weight.mul_(critic)
        return gradient(trained.step(batch, torch.Generator().manual_seed(5))["generator"], trained.generator)

    without = found(0.0, 1.0)
    assert torch.equal(without, found(0.0, 100.0))
    once, twice = (found(weight, 100.0) - without for weight in (1.0, 2.0))
    assert once.norm() > 1e-3 * without.norm()
    torch.testing.assert_close(twice, 2 * once, atol=1e-4 * float(once.norm()), rtol=1e-2)
    assert (found(1.0, 1.0) - without - once).norm() > 1e-2 * once.norm()


def test_a_step_is_the_sum_of_its_parts_and_random_by_its_generator_alone() -> None:
    trained = method(lambda_gan=0.7, lambda_nce=1.9, lambda_sb=3.0)
    batch = [blobs(8, torch.Generator().manual_seed(6))]
    drawn = []
    for seed, state in ((1, 0), (1, 9), (2, 0)):
        torch.manual_seed(state)
        losses = trained.step(batch, torch.Generator().manual_seed(seed))
        total = 0.7 * losses["adversarial"] + 1.9 * losses["contrast"] + 3.0 * losses["bridge"]
        assert losses["generator"].item() == pytest.approx(total.item(), rel=1e-5)
        drawn.append(losses["generator"].item())
    assert drawn[0] == drawn[1] != drawn[2]


def test_the_adversary_judges_translations_of_the_source_against_the_target() -> None:
    """With one step and a generator that copies its input, all terms are known from the batch."""
    trained = method(steps=1, lambda_nce=0.0)
    forward: Callable[..., Tensor] = lambda x, step, code: 1.0 * x  # noqa: E731
    trained.generator.forward = forward  # type: ignore[method-assign]
    batch = [blobs(6, torch.Generator().manual_seed(7))]
    losses = trained.step(batch, torch.Generator().manual_seed(8))
    source, target = (at_step(half, 0, 1) for half in batch[0].chunk(2))
    assert losses["adversarial"].item() == pytest.approx(lsgan_generator(trained.discriminator, source).item())
    judged = lsgan_discriminator(trained.discriminator, target, source)
    assert losses["discriminator"].item() == pytest.approx(judged.item())
    assert losses["energy"].item() == 0


def test_gradients_survive_reduced_precision_after_walks_without_gradient() -> None:
    trained = method()
    batch = [blobs(6, torch.Generator().manual_seed(2))]
    gradients = []
    for reduced in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=reduced):
            losses = trained.step(batch, torch.Generator().manual_seed(3))
        gradients.append(gradient(losses["generator"], trained.generator))
        assert losses["generator"].dtype == losses["critic"].dtype == torch.float32
    assert F.cosine_similarity(*gradients, dim=0) > 0.95


def test_single_images_and_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ParameterError, match="two or more images"):
        method().step([torch.zeros(2, 1, 12, 12)], torch.Generator())
    for wrong in ({"energy": "none"}, {"tau": -1.0}, {"steps": 0}, {"lambda_sb": -1.0}):
        with pytest.raises(ParameterError, match="Expected energy"):
            UNSBConfig(**wrong)


def test_the_generator_is_of_the_size_that_all_methods_have_and_the_state_rebuilds_it() -> None:
    trained = UNSBTraining(PatchCodec(2), PAIR)
    assert 0.9e6 < sum(p.numel() for p in trained.generator.parameters()) < 1.1e6
    state = json.loads(json.dumps(trained.state()))
    assert state["kind"] == "unsb" and UNSBConfig(**state["config"]) == trained.config


# Training


def descend(
    trained: UNSBTraining, sample: Callable[[torch.Generator], Tensor], steps: int
) -> Sequence[dict[str, Tensor]]:
    g = torch.Generator().manual_seed(0)
    history = []
    peak = trained.config.learning_rate
    for step in range(steps):
        losses = trained.step([sample(g)], g)
        for name, optimizer in trained.optimizers().items():
            optimizer.param_groups[0]["lr"] = peak * min(1.0, 2 * (1 - step / steps))
            torch.autograd.backward(losses[name], inputs=optimizer.param_groups[0]["params"])
        for optimizer in trained.optimizers().values():
            optimizer.step()
            optimizer.zero_grad()
        history.append(losses)
    return history


def test_it_learns_a_shift_and_keeps_the_content() -> None:
    """Blobs, and other blobs two brighter: nothing pairs them."""
    trained = method(learning_rate=5e-3)
    history = descend(trained, lambda g: torch.cat([blobs(8, g), blobs(8, g) + 2]), 110)
    x = blobs(48, torch.Generator().manual_seed(9))
    for steps in (1, 5):
        noise = torch.randn(48, 2 * steps - 1, 1, 12, 12, generator=torch.Generator().manual_seed(1))
        out = trained.translator().translate(x, "a", "b", noise=noise, steps=steps)
        assert out.mean().item() == pytest.approx(2 + x.mean().item(), abs=0.5)
        assert torch.corrcoef(torch.stack([x.flatten(), out.flatten()]))[0, 1] > 0.8
    # The critic learned to tell a couple from another one, which the untrained could not.
    assert history[-1]["entropy"] > 3 > history[0]["entropy"]
