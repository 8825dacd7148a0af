"""DDIB on one network: the map through noise in closed form, and what MedShift does as tau goes to 0."""

import pytest
import torch
from oracles.gaussian import IdentityCodec, IsotropicGaussians

from medshift.baselines.dual_bridge import DualBridge
from medshift.translate import MedShift


@pytest.fixture
def gaussians() -> IsotropicGaussians:
    means = torch.tensor([[-1.0, 0.0, 0.5, 0.0], [1.0, 0.5, 0.0, 0.0]], dtype=torch.float64)
    return IsotropicGaussians(means, [0.4, 0.6])


@pytest.fixture
def model(gaussians: IsotropicGaussians) -> MedShift:
    return MedShift(gaussians, IdentityCodec(), 2)


def test_it_is_the_map_through_noise_to_solver_error(
    gaussians: IsotropicGaussians, model: MedShift, generator: torch.Generator
) -> None:
    x = gaussians.sample(0, 200, generator)[:, :, None, None]
    a, b = torch.zeros(200, dtype=torch.int64), torch.ones(200, dtype=torch.int64)
    exact = gaussians.transport(x, a, b, 0.0)
    noise = gaussians.flow(x, a, 1.0, 0.0)  # both legs by themselves, of the exact flow
    torch.testing.assert_close(gaussians.flow(noise, b, 0.0, 1.0), exact)
    bridge = DualBridge(model)
    errors = [(bridge.translate(x, 0, 1, steps=n).reshape(x.shape) - exact).abs().max() for n in (20, 40, 80)]
    assert errors[0] < 0.05
    assert all(fine < coarse / 3 for coarse, fine in zip(errors, errors[1:], strict=False))  # Heun: order two


def test_medshift_goes_to_it_as_tau_goes_to_zero(
    gaussians: IsotropicGaussians, model: MedShift, generator: torch.Generator
) -> None:
    x = gaussians.sample(0, 50, generator)[:, :, None, None]
    bridge = DualBridge(model).translate(x, 0, 1, steps=40)
    gaps = [(model.translate(x, 0, 1, tau=tau, steps=40) - bridge).abs().max() for tau in (0.1, 0.01, 0.001, 0.0)]
    assert gaps[0] > 3 * gaps[1] > 9 * gaps[2] and gaps[3] == 0
    assert DualBridge(model).nfe(steps=40) == model.nfe(0.0, steps=40)
