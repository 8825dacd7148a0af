r"""Strengths of SDEdit on a diffusion model, as the tau of equal signal-to-noise.

SDEdit with strength st starts a model of T = 1000 steps at t0 = st T, where an image is a y + σ ε with
a² = ᾱ(t0) = Π_{s ≤ t0} (1 - β_s) and σ² = 1 - ᾱ(t0). On the path of this package it is τ y + (1 - τ) ε. Scaled alike
the two are the same where a/σ = τ/(1-τ), so

    τ = r / (1 + r),    r = sqrt(ᾱ / (1 - ᾱ)).

Strengths .1, .2 and .3 are τ = .745, .637 and .546 of Stable Diffusion's schedule and .747, .582 and .448 of DDPM's;
1 - st is not τ. Between two steps ln ᾱ is interpolated linearly, that is β is constant within a step; ᾱ(0) = 1.

References:
    Meng et al., SDEdit: Guided Image Synthesis and Editing with Stochastic Differential Equations, 2022,
    arXiv:2108.01073.
    Ho et al., Denoising Diffusion Probabilistic Models, 2020, arXiv:2006.11239 (schedule "ddpm").
    Rombach et al., High-Resolution Image Synthesis with Latent Diffusion Models, 2022, arXiv:2112.10752
    (schedule "sd").
"""

from __future__ import annotations

import math
from functools import cache
from numbers import Real

import numpy as np

from medshift.errors import ParameterError

__all__ = ["SCHEDULES", "matched_tau", "snr_of"]

STEPS = 1000
SCHEDULES = ("sd", "ddpm")


def snr_of(strength: float, schedule: str) -> float:
    """Signal over noise a/σ, as amplitudes, of a diffusion model at t0 = strength T.

    Args:
        strength: share of the steps that are run back, in (0, 1).
        schedule: "sd", β from .00085 to .012, linear in their square roots; or "ddpm", β linear from 1e-4 to .02.

    Raises:
        ParameterError: `strength` outside (0, 1), or an unknown schedule.
    """
    if isinstance(strength, bool) or not isinstance(strength, Real) or not 0 < strength < 1:
        raise ParameterError(
            f"The strength is {strength!r}, expected a number inside (0, 1): 0 leaves the image, 1 noise."
        )
    log_kept = float(np.interp(strength * STEPS, np.arange(STEPS + 1), _log_kept(schedule)))
    return math.sqrt(math.exp(log_kept) / -math.expm1(log_kept))


def matched_tau(strength: float, schedule: str) -> float:
    """The tau of the same signal-to-noise as SDEdit's `strength`; see `snr_of`, also for what is refused."""
    ratio = snr_of(strength, schedule)
    return ratio / (1 + ratio)


@cache
def _log_kept(schedule: str) -> np.ndarray:
    """The ln ᾱ (T+1,) after 0 to T steps."""
    if schedule not in SCHEDULES:
        raise ParameterError(f"Unknown noise schedule {schedule!r}: choose one of {', '.join(SCHEDULES)}.")
    ends = {"sd": (math.sqrt(0.00085), math.sqrt(0.012)), "ddpm": (1e-4, 0.02)}[schedule]
    beta = np.linspace(*ends, STEPS) ** (2 if schedule == "sd" else 1)
    return np.concatenate([[0.0], np.log1p(-beta).cumsum()])
