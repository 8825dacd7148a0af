"""BBDM and ABridge: their laws against Wiener's, the translator's states in closed form, and the training."""

import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles.gaussian import IdentityCodec
from torch import Tensor

from medshift.codec import PatchCodec
from medshift.errors import ParameterError
from medshift.paired.brownian import (
    BrownianBridge,
    BrownianConfig,
    BrownianTraining,
    euler_maruyama_step,
    mixture,
    posterior_step,
    posterior_variance,
    step_times,
    variance,
)
from medshift.pairwise import Pair

PAIR = Pair("a", "b", ("a", "b"))
TINY: dict[str, Any] = {"channels": (16,), "norm_groups": 4, "head_channels": 16}
KINDS = ("bbdm", "abridge")
T = 1000


class Oracle:
    """F of a known target; keeps what it was given."""

    def __init__(self, target: Tensor) -> None:
        self.target, self.states, self.times = target, list[Tensor](), list[float]()

    def __call__(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        self.states.append(x)
        self.times.append(float(t))
        return x - self.target


def law(t: int, kind: str) -> tuple[float, float]:
    at = torch.tensor(float(t), dtype=torch.float64)
    return mixture(at, kind, T).item(), variance(at, kind, T).item()


def affine(step: Any) -> list[float]:
    """Coefficients of step(x_t, x_hat, y, noise), which is linear."""
    return [step(*(torch.tensor(float(k == j), dtype=torch.float64) for j in range(4))).item() for k in range(4)]


def coefficients(t: int, s: int, kind: str, eta: float) -> list[float]:
    (m_t, d_t), (m_s, d_s) = law(t, kind), law(s, kind)
    known = {"m_t": m_t, "m_s": m_s, "delta_t": d_t, "delta_s": d_s}
    return affine(lambda x, x_hat, y, z: posterior_step(x, x_hat, y, **known, eta=eta, noise=z))


def propagated(
    kind: str, steps: int, times: int, **knobs: Any
) -> tuple[list[tuple[float, float]], tuple[int, ...], BrownianBridge]:
    """(mean, variance) of every state of the translator for x_0 = 2 and y = -1: one image for each draw of noise."""
    oracle = Oracle(torch.tensor(2.0, dtype=torch.float64))
    bridge = BrownianBridge(oracle, IdentityCodec(), PAIR, BrownianConfig(variance=kind, times=times))
    draws = bridge.draws(steps=steps, **knobs)
    y = torch.full((draws + 1, 1, 1, 1), -1.0, dtype=torch.float64)
    noise = torch.cat([torch.zeros(1, draws), torch.eye(draws)]).double()[..., None, None, None]
    out = bridge.translate(y, "a", "b", noise=noise, steps=steps, **knobs)
    torch.testing.assert_close(out, torch.full_like(out, 2.0))
    nodes = step_times(steps, times)
    assert oracle.times == pytest.approx([t / times for t in nodes[:-1]]) and bridge.nfe(steps=steps) == steps
    moments = [(x[0].item(), (x[1:] - x[0]).square().sum().item()) for x in oracle.states]
    return moments, nodes, bridge


# The laws


def test_ends_are_exact_and_the_two_differ() -> None:
    t = torch.arange(T + 1, dtype=torch.float64)
    for kind, first, last in (("bbdm", 0.001, 0.999), ("abridge", 1 / T, 1.0)):
        m, delta = mixture(t, kind, T), variance(t, kind, T)
        assert m[0] == 0 and delta[0] == 0 and m[1].item() == pytest.approx(first, abs=1e-15)
        assert m[-1].item() == pytest.approx(last, abs=1e-15) and (m.diff() > 0).all()
        torch.testing.assert_close(delta, (2 if kind == "bbdm" else 1) * m * (1 - m), rtol=1e-12, atol=0)
    assert variance(t[-1:], "abridge", T) == 0 and mixture(t[-1:], "abridge", T) == 1
    assert law(T, "bbdm")[1] == pytest.approx(2 * 0.999 * 0.001)
    middle = torch.tensor(500.5, dtype=torch.float64)  # m = ½ of BBDM
    assert variance(middle, "bbdm", T).item() == pytest.approx(0.5)
    assert variance(torch.tensor(500.0), "abridge", T).item() == pytest.approx(0.25)
    assert variance(middle, "bbdm", T, 0.3).item() == pytest.approx(0.15)


@pytest.mark.parametrize("kind", KINDS)
@given(times=st.lists(st.integers(1, T), min_size=2, max_size=2, unique=True))
def test_a_step_with_eta_one_is_wieners_path_between_its_ends(kind: str, times: list[int]) -> None:
    """W at clocks s, t and 1 has covariance min; the path is tied to y at clock 1 and conditioned on x_t."""
    s, t = sorted(times)
    (m_s, _), (m_t, d_t) = law(s, kind), law(t, kind)
    clock = torch.tensor([m_s, m_t, 1.0], dtype=torch.float64)
    wiener = (2 if kind == "bbdm" else 1) * torch.minimum(clock[:, None], clock)
    known = wiener[1:, 1:] if m_t < 1 else wiener[2:, 2:]
    gain = torch.linalg.solve(known, wiener[0, -len(known) :])
    spread = (wiener[0, 0] - gain @ wiener[0, -len(known) :]).item()
    # x = x_0 + W, with W(1) = y - x_0 and W(m_t) = x_t - x_0
    of_x, of_y = (gain[0].item(), gain[1].item()) if m_t < 1 else (0.0, gain[0].item())
    found = coefficients(t, s, kind, 1.0)
    assert found[0] == pytest.approx(of_x, abs=1e-9) and found[2] == pytest.approx(of_y, abs=1e-9)
    assert found[1] == pytest.approx(1 - of_x - of_y, abs=1e-9)
    assert found[3] ** 2 == pytest.approx(spread, rel=1e-9, abs=1e-12)
    known_law = {"m_t": m_t, "m_s": m_s, "delta_t": d_t, "delta_s": law(s, kind)[1]}
    assert posterior_variance(**known_law) == pytest.approx(spread, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@given(
    times=st.lists(st.integers(1, T), min_size=2, max_size=2, unique=True), eta=st.sampled_from([0.0, 0.3, 0.5, 1.0])
)
def test_a_step_keeps_the_law_for_every_eta(kind: str, times: list[int], eta: float) -> None:
    s, t = sorted(times)
    (m_s, d_s), (m_t, d_t) = law(s, kind), law(t, kind)
    of_x, of_target, of_y, of_noise = coefficients(t, s, kind, eta)
    assert of_x * (1 - m_t) + of_target == pytest.approx(1 - m_s, abs=1e-12)
    assert of_x * m_t + of_y == pytest.approx(m_s, abs=1e-12)
    assert of_x**2 * d_t + of_noise**2 == pytest.approx(d_s, rel=1e-9)
    assert eta or of_noise == 0 or d_t == 0


@pytest.mark.parametrize("kind", KINDS)
def test_eta_in_one_of_its_places_alone_loses_the_law(kind: str) -> None:
    t, s, eta = 700, 300, 0.5
    (m_s, d_s), (m_t, d_t) = law(s, kind), law(t, kind)
    of_x, _, _, of_noise = coefficients(t, s, kind, eta)
    full = posterior_variance(m_t=m_t, m_s=m_s, delta_t=d_t, delta_s=d_s)
    released = of_noise**2 + coefficients(t, s, kind, 1.0)[0] ** 2 * d_t  # the noise scaled, the other term not
    assert released == pytest.approx(d_s - (1 - eta**2) * full) and released < 0.7 * d_s
    other = full + of_x**2 * d_t
    assert other == pytest.approx(d_s + (1 - eta**2) * full) and other > 1.3 * d_s


@pytest.mark.parametrize("t", [2, 3, 50, 1000])
def test_the_released_step_of_abridge_has_the_posteriors_mean_and_another_variance(t: int) -> None:
    m_t, m_s = t / T, (t - 1) / T
    released = affine(lambda x, x_hat, y, z: euler_maruyama_step(x, x_hat, m_t=m_t, m_s=m_s, noise=z))
    assert released[:3] == pytest.approx([1 - 1 / t, 1 / t, 0], abs=1e-12)
    exact = coefficients(t, t - 1, "abridge", 1.0)
    # At t = T the state is y itself, so its share may stand with either.
    assert [released[0] + released[2], released[1]] == pytest.approx([exact[0] + exact[2], exact[1]], abs=1e-9)
    assert released[3] ** 2 == pytest.approx(1 / T) and exact[3] ** 2 == pytest.approx((t - 1) / t / T)


# The translator's states


def test_steps_go_through_different_times_in_equal_parts() -> None:
    for steps in range(1, 38):
        nodes = step_times(steps, 37)
        assert nodes[0] == 37 and nodes[-1] == 0 and len(nodes) == steps + 1
        gaps = [a - b for a, b in zip(nodes, nodes[1:], strict=False)]
        assert min(gaps) >= 1 and max(gaps) - min(gaps) <= 1
    assert step_times(5) == (1000, 800, 600, 400, 200, 0)
    for steps in (0, 38, -1, 2.5):
        with pytest.raises(ParameterError, match="from 1 to 37"):
            step_times(steps, 37)  # type: ignore[arg-type]


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 7, 40])
def test_abridges_states_have_the_bridges_law(steps: int, eta: float) -> None:
    moments, nodes, bridge = propagated("abridge", steps, 40, eta=eta)
    for (mean, spread), t in zip(moments, nodes, strict=False):
        m = t / 40
        assert mean == pytest.approx((1 - m) * 2 - m, abs=1e-9) and spread == pytest.approx(m * (1 - m), abs=1e-9)
    assert bridge.draws(steps=steps, eta=eta) == (min(1, steps - 1) if eta == 0 else steps - 1)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 7, 40])
def test_bbdms_states_have_the_law_but_for_their_start(steps: int, eta: float) -> None:
    """x_T = y lacks (1 - m_T)(x_0 - y) and δ_T; each step keeps its share of what is lacking."""
    moments, nodes, bridge = propagated("bbdm", steps, 40, eta=eta)
    kept, m_T = 1.0, 0.999
    d_T = 2 * m_T * (1 - m_T)
    for k, ((mean, spread), t) in enumerate(zip(moments, nodes, strict=False)):
        m = 0.001 + 0.998 * (t - 1) / 39
        if k:
            before = 0.001 + 0.998 * (nodes[k - 1] - 1) / 39
            full = 2 * m * (before - m) / before
            kept *= ((2 * m * (1 - m) - eta**2 * full) / (2 * before * (1 - before))) ** 0.5
        assert mean == pytest.approx((1 - m) * 2 - m - kept * (1 - m_T) * 3, abs=1e-9)
        assert spread == pytest.approx(2 * m * (1 - m) - kept**2 * d_T, abs=1e-9)
        assert eta < 1 or abs(mean - (2 - 3 * m)) <= 0.003 + 1e-9
    assert bridge.draws(steps=steps, eta=eta) == (0 if eta == 0 else steps - 1)


def test_the_released_sampler_of_abridge_is_too_noisy_by_a_known_amount() -> None:
    moments, nodes, _ = propagated("abridge", 8, 40, sampler="euler-maruyama")
    spread = 0.0
    for k, (mean, found) in enumerate(moments):
        m = nodes[k] / 40
        if k:
            before = nodes[k - 1] / 40
            spread = (m / before) ** 2 * spread + before - m
        assert mean == pytest.approx(2 - 3 * m, abs=1e-9) and found == pytest.approx(spread, abs=1e-9)
    assert spread > 1.1 * m * (1 - m)


def test_what_is_asked_wrongly_is_refused() -> None:
    bridges = {
        kind: BrownianBridge(Oracle(torch.zeros(())), PatchCodec(1), PAIR, BrownianConfig(variance=kind))
        for kind in KINDS
    }
    assert [bridges[kind].name for kind in KINDS] == ["BBDM", "ABridge"]
    x = torch.zeros(2, 1, 3, 5)
    for kind, bridge in bridges.items():
        for noise in (None, torch.zeros(2, 4, 1, 3, 5), torch.zeros(2, 1, 3, 5)):
            with pytest.raises(ParameterError, match=r"expected \(2, 3, 1, 3, 5\)"):
                bridge.translate(x, "a", "b", noise=noise, steps=4)
        for knobs, match in (({"steps": 0}, "from 1 to 1000"), ({"steps": 1001}, "1000"), ({"eta": 1.5}, "eta is 1.5")):
            for ask in (bridge.nfe, bridge.draws):
                with pytest.raises(ParameterError, match=match):
                    ask(**knobs)
        with pytest.raises(ParameterError, match="from a to b"):
            bridge.translate(x, "b", "a", steps=1)
        with pytest.raises(ParameterError, match="released step"):
            bridge.nfe(sampler="euler-maruyama", eta=1.0 if kind == "bbdm" else 0.5)
        assert bridge.translate(x, "a", "b", steps=1).shape == x.shape
    for wrong in ({"variance": "brownian"}, {"times": 1}, {"scale": 0.0}):
        with pytest.raises(ParameterError, match="variance, times and scale"):
            BrownianConfig(**wrong)


# Training


def method(seed: int = 0, **changes: Any) -> BrownianTraining:
    torch.manual_seed(seed)
    return BrownianTraining(PatchCodec(1), PAIR, BrownianConfig(**{**TINY, **changes}))


def views(generator: torch.Generator, n: int = 8) -> list[Tensor]:
    """A target that is a function of the source: its negative, brighter."""
    y = torch.randn(n, 1, 4, 4, generator=generator).repeat_interleave(2, -1).repeat_interleave(2, -2)
    return [torch.cat([y, 0.5 - y])]


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_the_absolute_error_of_what_stands_between_state_and_target(
    generator: torch.Generator, kind: str
) -> None:
    trained, seen = method(variance=kind), []

    def network(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        seen.append((x, t, y))
        return 0.1 * x

    trained.network = network  # type: ignore[assignment]
    batch = views(generator, 512)
    y, x0 = batch[0].chunk(2)
    loss = trained.step(batch, generator)["network"]
    ((x, t, given_y),) = seen
    assert torch.equal(given_y, y)
    torch.testing.assert_close(loss, (0.1 * x - (x - x0)).abs().mean())
    steps = (t.double() * T).round()
    torch.testing.assert_close(steps / T, t.double(), atol=1e-7, rtol=0)
    assert 1 <= steps.min() and steps.max() <= T and abs(steps.mean() / T - 0.5) < 0.05
    m, delta = (f(steps, kind, T)[:, None, None, None] for f in (mixture, variance))
    inner = steps < T
    noise = ((x - (1 - m) * x0 - m * y) / delta.sqrt())[inner]
    assert noise.mean().abs() < 0.02 and abs(noise.std() - 1) < 0.02
    assert abs(torch.corrcoef(torch.stack([noise.flatten(), y[inner].flatten().double()]))[0, 1]) < 0.02


@pytest.mark.parametrize("kind", KINDS)
def test_training_learns_the_target(generator: torch.Generator, kind: str) -> None:
    trained = method(variance=kind, learning_rate=3e-3)
    test = views(torch.Generator().manual_seed(7), 16)
    y, x0 = test[0].chunk(2)

    def loss() -> float:
        return trained.step(test, torch.Generator().manual_seed(3))["network"].item()

    before, trainable = loss(), [p for p in trained.network.parameters() if p.requires_grad]
    for _ in range(60):
        trained.optimizer.zero_grad()
        trained.step(views(generator), generator)["network"].backward()
        trained.optimizer.step()
    assert all(p.grad is not None for p in trainable)
    assert loss() < 0.5 * before
    bridge = trained.translator()
    noise = torch.randn(16, bridge.draws(steps=5), 1, 8, 8, generator=generator)
    error = (bridge.translate(y, "a", "b", noise=noise, steps=5) - x0).abs().mean()
    assert error < 0.3 * (y - x0).abs().mean()
    changed = bridge.translate(y, "a", "b", noise=-noise, steps=5)
    assert not torch.equal(changed, bridge.translate(y, "a", "b", noise=noise, steps=5))


def test_randomness_is_the_generators_and_the_state_is_plain(generator: torch.Generator) -> None:
    batch, losses = views(generator), []
    trained = method(variance="abridge")
    for seed in (1, 1, 2):
        torch.manual_seed(100 + len(losses))
        losses.append(trained.step(batch, torch.Generator().manual_seed(seed))["network"].item())
    assert losses[0] == losses[1] != losses[2]
    state = json.loads(json.dumps(trained.state()))
    assert state["kind"] == "brownian-bridge" and BrownianConfig(**state["config"]) == trained.config
    assert set(trained.modules()) == {"network", "codec"} and set(trained.optimizers()) <= set(trained.modules())
    assert not any(p.requires_grad for p in trained.codec.parameters())
    assert trained.name == trained.translator().name == "ABridge" != method().name
    assert trained.deviation != method().deviation
    assert sum(p.numel() for p in BrownianTraining(PatchCodec(2), PAIR).network.parameters()) in range(
        900_000, 1_100_000
    )
