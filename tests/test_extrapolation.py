"""Counted operations against closed forms, and the page that shows what they imply."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from medshift.codec import PatchCodec
from medshift.costs import extrapolation, flops
from medshift.costs.assumed import DEVICES, Device, ring_seconds
from medshift.costs.leg_counts import COUNTS, decode_evaluations, encode_evaluations
from medshift.costs.workload import Work, work_of
from medshift.errors import ParameterError
from medshift.network import NetworkConfig, VelocityNetwork
from medshift.ode import time_grid
from medshift.repro.profiles import load_profile
from medshift.translate import MedShift

TINY = NetworkConfig(n_domains=3, in_channels=2, channels=(8, 16), norm_groups=4, head_channels=8)
PAGE = Path(__file__).parents[1] / "docs" / "scale.md"


def conv(k: int, inputs: int, outputs: int, pixels: int) -> int:
    return 2 * k**2 * inputs * outputs * pixels


def by_hand(side: int) -> int:
    """One evaluation of `TINY`, layer by layer."""
    fine, coarse = side**2, (side // 2) ** 2

    def block(inputs: int, outputs: int, pixels: int) -> int:
        shortcut = conv(1, inputs, outputs, pixels) if inputs != outputs else 0
        said = 2 * 32 * 2 * outputs  # time's and label's embedding of 4 x 8, to scale and shift
        return conv(3, inputs, outputs, pixels) + conv(3, outputs, outputs, pixels) + shortcut + said

    time = 2 * 8 * 32 + 2 * 32 * 32
    down = block(8, 8, fine) + conv(3, 8, 8, coarse) + block(8, 16, coarse)
    attention = 4 * conv(1, 16, 16, coarse) + 2 * 2 * coarse**2 * 16
    middle = 2 * block(16, 16, coarse) + attention
    # Two blocks a level on the way up, each with a state from the way down.
    up = block(16 + 16, 16, coarse) + block(16 + 8, 16, coarse) + conv(3, 16, 16, fine)
    up += block(16 + 8, 8, fine) + block(8 + 8, 8, fine)
    return conv(3, 2, 8, fine) + time + down + middle + up + conv(3, 8, 2, fine)


@pytest.mark.parametrize("side", [8, 16])
def test_a_network_by_hand(side: int) -> None:
    assert flops.of_network(TINY, side) == by_hand(side)


def test_linear_in_the_batch() -> None:
    one = flops.of_network(TINY, 16)
    assert flops.of_network(TINY, 16, batch=4) == 4 * one


def test_a_gradient_costs_twice_an_evaluation() -> None:
    assert flops.of_network(TINY, 16, backward=True) / flops.of_network(TINY, 16) == pytest.approx(3, rel=0.02)


def test_fake_tensors_count_what_real_ones_do() -> None:
    network = VelocityNetwork(TINY)
    real = flops.counted(lambda: network(torch.randn(1, 2, 16, 16), torch.tensor(0.5), torch.tensor([1])))
    assert real == flops.of_network(TINY, 16)


def test_counting_draws_no_random_numbers() -> None:
    state = torch.get_rng_state()
    flops.encoding((8, 16), 2, 16)
    flops.method_step(lambda: flops.method("paired-regressor", {}, PatchCodec(2)), 64, sides=(32, 48, 64))
    assert torch.equal(state, torch.get_rng_state())


def test_three_small_sizes_tell_the_count_of_a_larger() -> None:
    def make():
        return flops.method("direct-bridge", {"coupling": "independent"}, PatchCodec(2))

    small = flops.method_step(make, 128, sides=(32, 48, 64))
    assert small == pytest.approx(flops.method_step(make, 128, sides=(64, 96, 128)), rel=1e-6)


def test_a_wider_codec_costs_more_and_pixels_count_linearly() -> None:
    assert flops.encoding((8, 16), 2, 32) == pytest.approx(4 * flops.encoding((8, 16), 2, 16))
    assert flops.decoding((16, 16), 2, 32) > flops.decoding((8, 16), 2, 32)


@pytest.mark.parametrize("knobs", [{}, {"solver": "euler", "grid": "uniform", "steps": 50}, {"steps": 4}])
def test_legs_are_those_of_a_translation(knobs: dict) -> None:
    model = MedShift(lambda x, t, label: x, PatchCodec(1), 2)
    for tau in (0.0, 0.02, 0.3, 1.0):
        assert 2 * decode_evaluations(tau, **knobs) == model.nfe(tau, **knobs)


@pytest.mark.parametrize("taus", [(0.3,), (0.02, 0.1, 0.3), (0.5, time_grid()[7], 1.0)])
def test_an_encode_leg_of_several_tau(taus: tuple[float, ...]) -> None:
    calls = []

    def velocity(x, t, label):
        calls.append(float(t))
        return torch.zeros_like(x)

    MedShift(velocity, PatchCodec(1), 2).encode(torch.zeros(1, 1, 2, 2), 0, taus)
    assert encode_evaluations(taus) == len(calls)


def test_counts_of_a_sweep() -> None:
    own = {"views": 3, "taus": [0.3], "fresh": True, "cycled": 2}
    leg = decode_evaluations(0.3)
    assert COUNTS["sweep"](own, {}) == (3 * 3 * leg + 2 * 2 * leg, 3 * 2 + 2, 3 * 2 + 2)


def test_parts_add_up() -> None:
    parts = {"a": 1e18, "b": 3e18}
    lines = extrapolation.profile_table("made", parts, DEVICES[:1], seeds=2)
    minutes = [float(line.split("|")[3]) for line in lines[2:]]
    assert minutes[:2] == pytest.approx([2 * value / (0.4 * 989e12) / 60 for value in parts.values()], abs=0.06)
    assert minutes[2] == pytest.approx(sum(minutes[:2]), abs=0.11)
    assert minutes[3] == pytest.approx(minutes[2] / 60 * DEVICES[0].price, abs=0.01)
    assert Work("one", 3, 4.0).operations == 12


def test_the_verdict_says_whether_it_fits() -> None:
    assert "within the 60 minutes" in extrapolation.verdict("made", {"a": 1e15})
    assert "2.0 times the 60 minutes" in extrapolation.verdict("made", {"a": 2 * 3600 * 0.4 * 989e12}, seeds=1)


def test_a_ring() -> None:
    assert ring_seconds(10**6, 1, 1e9) == 0
    assert ring_seconds(10**6, 4, 1e9) == pytest.approx(4e6 * 1.5 / 1e9)


def test_published_translation_has_seventy_evaluations() -> None:
    nfe, one = extrapolation.translation_flops("smoke", 4, 16, 0.3, "euler", "uniform", 50, codec=7.0)
    assert nfe == 70 and one == 70 * flops.evaluation("smoke", 4, 16) + 7


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Device("none", 0.0, 1.0),
        lambda: Device("too good", 1e12, 1.0, share=1.1),
        lambda: Device("paid to run", 1e12, -1.0),
        lambda: DEVICES[0].seconds(-1.0),
        lambda: ring_seconds(1, 0, 1e9),
        lambda: ring_seconds(1, 2, 0.0),
        lambda: extrapolation.profile_table("made", {"a": 1.0}, seeds=0),
        lambda: flops.of_network(TINY, 0),
        lambda: flops.method_step(lambda: None, 64, sides=(32, 32, 64)),
        lambda: extrapolation.translation_flops("smoke", 4, 16, 2.0, "euler", "uniform", 50),
        lambda: work_of(load_profile("paper")),
    ],
)
def test_bad_input_is_refused(wrong) -> None:
    with pytest.raises(ParameterError):
        wrong()


def slug(heading: str) -> str:
    """The anchor that a heading of Markdown gets."""
    kept = "".join(c for c in heading.lower() if c.isalpha() or c.isdecimal() or c in " -_")
    return kept.replace(" ", "-")


def test_the_page_cites_measurements_and_repeats_none() -> None:
    text, bench = PAGE.read_text(encoding="utf-8"), PAGE.with_name("bench.md").read_text(encoding="utf-8")
    known = {slug(line.lstrip("# ")) for line in bench.splitlines() if line.startswith("#")}
    cited = set(re.findall(r"bench\.md#([^)]+)\)", text))
    assert len(cited) >= 5 and cited <= known, f"no such section of bench.md: {sorted(cited - known)}"
    outside = re.sub(r"<!-- from: (\w+) -->\n.*?\n<!-- end -->", "", text, flags=re.DOTALL)
    assert not re.search(r"^\|", outside, re.MULTILINE), "a table that neither the bench nor the count makes"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_page_shows_what_the_module_prints() -> None:
    found = dict(re.findall(r"<!-- from: (\w+) -->\n(.*?)\n<!-- end -->", PAGE.read_text(encoding="utf-8"), re.DOTALL))
    assert found == extrapolation.tables()
