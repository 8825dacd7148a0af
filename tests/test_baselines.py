"""Floors: what each can do exactly, and what it cannot."""

import torch

from medshift.baselines.blur_tone import BlurTone
from medshift.baselines.histogram import HistogramMatch
from medshift.baselines.identity import Identity
from medshift.baselines.nearest import NearestTarget
from medshift.tone import blurred

DOMAINS = ("a", "b")


def smooth(n: int, seed: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.nn.functional.interpolate(torch.rand(n, 1, 16, 16, generator=g), size=64, mode="bilinear") * 1.6 - 0.8


def test_identity_returns_the_very_images() -> None:
    x = smooth(2, 0)
    assert Identity().translate(x, "a", "b") is x


def test_histogram_match_recovers_a_monotone_tone_curve() -> None:
    a, b = smooth(64, 1), smooth(64, 2)
    match = HistogramMatch([a, torch.sin(b * 1.4)], DOMAINS)
    x = smooth(8, 3)
    error = (match.translate(x, "a", "b") - torch.sin(x * 1.4)).abs()
    assert error.mean() < 0.015
    back = match.translate(match.translate(x, 0, 1), 1, 0)
    assert (back - x).abs().mean() < 0.01


def test_blur_tone_finds_blur_and_tone() -> None:
    g = torch.Generator().manual_seed(4)
    a = smooth(96, 1) + 0.15 * torch.randn(96, 1, 64, 64, generator=g)
    b = smooth(96, 2) + 0.15 * torch.randn(96, 1, 64, 64, generator=g)
    floor = BlurTone([a, 0.5 * blurred(b, 0.8) + 0.1], DOMAINS)
    assert floor.fit(0, 1)[0] == 0.8
    # Blur cannot sharpen: backwards the best blur is none.
    assert floor.fit(1, 0)[0] == 0.0


def test_nearest_returns_a_training_image_and_finds_a_copy() -> None:
    a, b = smooth(32, 1), smooth(32, 2)
    query = b[[7, 3]] * 0.5  # the same anatomy in domain a's tone
    found = NearestTarget([b * 0.5, b], DOMAINS).translate(query, "a", "b")
    torch.testing.assert_close(found, b[[7, 3]])
    other = NearestTarget([a, b], DOMAINS).translate(smooth(4, 9), 0, 1)
    assert all(any(torch.equal(o, t) for t in b) for o in other)
