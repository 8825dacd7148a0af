"""SDEdit's strengths as tau: an independent schedule, the same noised image, and what is refused."""

import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given
from hypothesis import strategies as st

from medshift.errors import ParameterError
from medshift.strengths import SCHEDULES, matched_tau, snr_of

SCHEDULERS = {
    "sd": DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
    "ddpm": DDPMScheduler(),
}


@pytest.mark.parametrize(("schedule", "taus"), [("sd", (0.745, 0.637, 0.546)), ("ddpm", (0.747, 0.582, 0.448))])
def test_the_papers_strengths(schedule: str, taus: tuple[float, ...]) -> None:
    for strength, tau in zip((0.1, 0.2, 0.3), taus, strict=True):
        assert matched_tau(strength, schedule) == pytest.approx(tau, abs=6e-4)
        assert abs(matched_tau(strength, schedule) - (1 - strength)) > 0.1


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_noised_image_is_that_of_an_independent_scheduler_up_to_its_scale(schedule: str) -> None:
    """a y + σ ε, scaled by τ/a, is the point τ y + (1 - τ) ε of the linear path."""
    scheduler, generator = SCHEDULERS[schedule], torch.Generator().manual_seed(0)
    y, noise = torch.randn(2, 1, 1, 4, 4, generator=generator, dtype=torch.float64)
    for done in (1, 2, 100, 200, 300, 500, 777, 999):
        noised = scheduler.add_noise(y, noise, torch.tensor([done - 1]))
        tau = matched_tau(done / 1000, schedule)
        scale = tau / scheduler.alphas_cumprod[done - 1].double().sqrt()
        torch.testing.assert_close(scale * noised, tau * y + (1 - tau) * noise, atol=1e-3, rtol=0)


@pytest.mark.parametrize("schedule", SCHEDULES)
@given(strength=st.floats(1e-4, 0.9999), more=st.floats(1e-6, 0.5))
def test_more_strength_is_less_signal_and_tau_is_that_ratio(schedule: str, strength: float, more: float) -> None:
    tau = matched_tau(strength, schedule)
    assert 0 < tau < 1 and tau / (1 - tau) == pytest.approx(snr_of(strength, schedule), rel=1e-9)
    if strength + more < 1:
        assert matched_tau(strength + more, schedule) < tau


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_between_two_steps_beta_is_constant(schedule: str) -> None:
    """Half a step keeps the square root of what a step keeps."""
    kept = [1 / (1 + snr_of(done / 1000, schedule) ** -2) for done in (400, 400.5, 401)]
    assert kept[1] ** 2 == pytest.approx(kept[0] * kept[2], rel=1e-9)
    assert kept[2] < kept[1] < kept[0]


def test_what_is_refused() -> None:
    for strength in (0.0, 1.0, -0.1, 1.5, float("nan"), "0.3", True):
        with pytest.raises(ParameterError, match="inside"):
            matched_tau(strength, "sd")
    with pytest.raises(ParameterError, match="sd, ddpm"):
        snr_of(0.3, "cosine")
