"""Seconds of the metrics of sets on this machine, printed and never asserted: `make bench`."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from measuring import in_turns

from medshift.metrics.features import extractor
from medshift.metrics.realism import conditional_fid, density_coverage, fid, kid

pytestmark = [pytest.mark.bench, pytest.mark.slow, pytest.mark.timeout(900)]
IMAGES, ROWS, SIDE = 400, 2000, 64


def say(what: str, function: Callable[[], object], unmeasured: int) -> None:
    timing = in_turns({what: function}, turns=3, unmeasured=unmeasured)[what]
    print(f"\n{what}: {timing.median:.2g} s, turns {timing.spread()} ({torch.get_num_threads()} threads)")


@pytest.mark.parametrize("name", ["ST-AlexNet", "ST-VGG"])
def test_features_of_images(name: str) -> None:
    images = torch.randn(IMAGES, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0)).mul(0.2)
    get = extractor(name)
    get(images[:64])
    say(f"{name} features of {IMAGES} images of {SIDE} pixels", lambda: get(images), 0)


def conditional(a: np.ndarray, b: np.ndarray) -> float:
    return conditional_fid(a, a, b)


@pytest.mark.parametrize("metric", [fid, kid, density_coverage, conditional])
def test_metrics_of_features(metric) -> None:
    a, b = np.random.default_rng(0).normal(size=(2, ROWS, 1152))
    say(f"{metric.__name__} of 2 x {ROWS} x 1152 features", lambda: metric(a, b), 1)
