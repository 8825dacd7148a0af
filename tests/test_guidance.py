"""Guided velocities: an affine rule, its two ends, and what it costs."""

import pytest
import torch

from medshift.errors import ParameterError
from medshift.guidance import CountingVelocity, branches, guided, in_precision

NULL = 3


def velocity(x, t, label):
    """Depends on all three arguments, sample by sample."""
    t = t.expand(len(x)) if t.ndim == 0 else t
    shape = (-1, *(1,) * (x.ndim - 1))
    return torch.sin(x) * (1 + label.reshape(shape)) + t.reshape(shape) * label.reshape(shape) ** 2


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 2, 3, 3, generator=generator, dtype=torch.float64)
    return x, torch.tensor([0, 1, 2, 1, 0])


@pytest.mark.parametrize("times", [torch.tensor(0.3).double(), torch.linspace(0, 1, 5).double()])
@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 2.0, 7.5])
def test_guidance_is_affine_in_the_scale(batch, times, scale):
    x, label = batch
    conditional = velocity(x, times, label)
    unconditional = velocity(x, times, torch.full_like(label, NULL))
    before = label.clone()
    out = guided(velocity, scale, NULL)(x, times, label)
    torch.testing.assert_close(out, unconditional + scale * (conditional - unconditional))
    assert torch.equal(label, before)


@pytest.mark.parametrize(("scale", "cost", "labels"), [(1, 1, {0, 1, 2}), (0, 1, {NULL}), (2, 2, {0, 1, 2, NULL})])
def test_only_the_branches_needed_are_evaluated_in_one_call(batch, scale, cost, labels):
    x, label = batch
    seen = []

    def spy(x, t, label):
        seen.extend(label.tolist())
        return velocity(x, t, label)

    counted = CountingVelocity(spy)
    guided(counted, scale, NULL)(x, torch.tensor(0.5), label)
    assert set(seen) == labels
    assert (counted.calls, counted.rows) == (1, cost * len(x))
    assert counted.nfe(len(x)) == cost == branches(scale)


@pytest.mark.parametrize("scale", [-0.1, float("nan"), float("inf"), "2"])
def test_a_scale_that_is_no_scale_is_refused(scale):
    with pytest.raises(ParameterError, match="guidance scale"):
        guided(velocity, scale, NULL)


def test_half_precision_changes_the_result_by_its_own_rounding_only(generator: torch.Generator) -> None:
    weight = torch.randn(16, 16, generator=generator) / 4

    def velocity(x: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return x @ weight

    x, t, label = torch.randn(64, 16, generator=generator), torch.tensor(0.5), torch.zeros(64, dtype=torch.int64)
    exact, rounded = velocity(x, t, label), in_precision(velocity, torch.bfloat16)(x, t, label)
    assert rounded.dtype == x.dtype and not torch.equal(exact, rounded)
    assert (exact - rounded).norm() / exact.norm() < 2**-7
    assert in_precision(velocity, None) is velocity
