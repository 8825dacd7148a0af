"""Seconds of the metrics of sets on this machine, printed and never asserted: `make bench`."""

import time

import numpy as np
import pytest
import torch

from medshift.metrics.features import extractor
from medshift.metrics.realism import conditional_fid, density_coverage, fid, kid

pytestmark = [pytest.mark.bench, pytest.mark.slow, pytest.mark.timeout(900)]
N, SIDE = 2000, 64


def say(what: str, start: float) -> None:
    print(f"\n{what}: {time.perf_counter() - start:.1f} s ({torch.get_num_threads()} threads)")


@pytest.mark.parametrize("name", ["ST-AlexNet", "ST-VGG"])
def test_fid_of_images(name: str) -> None:
    images = torch.randn(2, N, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0)).mul(0.2)
    get = extractor(name)
    get(images[0, :64])
    start = time.perf_counter()
    a, b = get(images[0]), get(images[1])
    say(f"{name} features of 2 x {N} images of {SIDE} pixels", start)
    fid(a, b)
    say(f"the same and FID of {get.dimensions} features", start)


def conditional(a: np.ndarray, b: np.ndarray) -> float:
    return conditional_fid(a, a, b)


@pytest.mark.parametrize("metric", [fid, kid, density_coverage, conditional])
def test_metrics_of_features(metric) -> None:
    a, b = np.random.default_rng(0).normal(size=(2, N, 1152))
    start = time.perf_counter()
    metric(a, b)
    say(f"{metric.__name__} of 2 x {N} x 1152 features", start)
