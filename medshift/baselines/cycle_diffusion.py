r"""Inversion of a stochastic sampler: noises that make an image under the source's label, replayed under the target's.

**The sampler.** The velocity gives the datum and the noise behind x_t = t x_1 + (1 - t) ε,

    x̂(x_t) = x_t + (1 - t) v,    ε̂(x_t) = x_t - t v.

Noise is added along the path by x_t = (t/s) x_s + sqrt((1-t)² - (t/s)² (1-s)²) ξ, t < s: this is the Markov process
with those marginals. Its posterior given x_t and x_1 is Gaussian, and with x̂ in place of x_1 it is the ancestral step

    x_s = μ(x_t) + σ z,    μ = s x̂ + ρ (1 - s) ε̂,    σ = (1 - s) sqrt(1 - ρ²),    ρ = t (1 - s) / (s (1 - t)),

from t to s; ρ is the ratio of the two signal-to-noise ratios. With ρ = 1 it is Euler's step; as steps shrink it
becomes the SDE dx = (2 v - x/t) dt + sqrt(2 (1 - t)/t) dw, which has the marginals of the flow.

**Inversion.** A path x_t of a source image x is drawn, x_t = t x + (1 - t) ε_t at every knot from tau to 1. The noises
that would have made it are z = (x_s - μ(x_t, A)) / σ. Started at the same x_tau, with the same noises and the target's
label, the sampler gives x'_s = μ(x'_t, B) + σ z, that is

    x'_s = x_s + μ(x'_t, B) - μ(x_t, A),

which is how it is computed. Nothing is divided by σ, so the last step, whose σ is 0, carries its remainder x - x̂ along
as every other, and A to A is the identity bit for bit, for any field. The two methods differ in the path:

* `CycleDiffusion` draws it from the Markov process, ε_s = ρ ε_t + sqrt(1 - ρ²) e. The noises of an exact field are
  uncorrelated in time, and standard normal in the limit of small steps at any time below 1. In the last few steps
  1 - t shrinks by a factor a step however small the steps, and their variance stays above 1.
* `EditFriendly` draws every x_t with a noise of its own. Its noises have a larger variance, and neighbours are
  correlated negatively: more of the image's structure is in them.

For Gaussians of equal spread s the shift is φ Δμ with φ = (1-τ)² / ((1-τ)² + τ² s²), at any number of steps; a
MedShift at the same tau moves less, 1 - sqrt(1 - φ).

What differs from the published methods: the linear path instead of a variance-preserving diffusion with 1000 steps,
labels instead of text, guidance 1, and no noise dropped at the last step. Published starts were, for the edit-friendly
version, 64 % of Stable Diffusion's steps, tau = .275 (`medshift.strengths.matched_tau`).

References:
    Wu and De la Torre, A Latent Space of Stochastic Diffusion Models for Zero-Shot Image Editing and Guidance, 2023,
    arXiv:2210.05559 (CycleDiffusion).
    Huberman-Spiegelglas et al., An Edit Friendly DDPM Noise Space: Inversion and Manipulations, 2024, arXiv:2304.06140.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from medshift.errors import ParameterError
from medshift.flow import Labels
from medshift.ode import at_time, leg_knots
from medshift.translate import Domain, MedShift, check_tau

__all__ = ["CycleDiffusion", "EditFriendly"]

STEPS = 50


class CycleDiffusion:
    """Replay of the noises of a Markov path, with the network of a `MedShift`.

    The knobs are `tau`, where the path starts; `steps`, intervals on the whole of [0, 1]; and `grid`, one of
    `medshift.ode.GRIDS`.
    """

    name = "CycleDiffusion"
    needs_pairs = False

    def __init__(self, model: MedShift) -> None:
        self.model = model

    @torch.no_grad()
    def translate(
        self,
        images: Tensor,
        source: Domain,
        target: Domain,
        *,
        tau: float,
        noise: Tensor | None = None,
        steps: int = STEPS,
        grid: str = "refined",
    ) -> Tensor:
        """Images (B,1,H,W) of `source` as `target` would show them, same shape, not clamped.

        Args:
            images: (B,1,H,W), about [-1, 1].
            source: their domain: label, name, or labels (B,).
            target: the domain wanted, likewise.
            tau: where the path starts, in [0, 1]; 1 returns decode(encode(images)).
            noise: standard normal (B,S,C,h,w), S of `draws`; None where S is 0. The other knobs: see the class.

        Raises:
            ParameterError: any argument out of its range, or a noise of another shape.
        """
        a, b = self.model.labels(source, images), self.model.labels(target, images)
        knots = leg_knots(check_tau(tau), grid, steps)
        path = self._path(self.model.codec.encode(images), noise, knots)
        changed = path[0]
        for (t, s), x, x_next in zip(pairwise(knots), path, path[1:], strict=False):
            changed = x_next + (self._mean(changed, t, s, b) - self._mean(x, t, s, a))
        return self.model.codec.decode(changed, size=(images.shape[-2], images.shape[-1]))

    @torch.no_grad()
    def noises(
        self,
        images: Tensor,
        source: Domain,
        *,
        tau: float,
        noise: Tensor | None = None,
        steps: int = STEPS,
        grid: str = "refined",
    ) -> Tensor:
        """The noises z (B,S-1,C,h,w) that make a path of images (B,1,H,W) under `source`, without the last step's.

        Raises:
            ParameterError: see `translate`, or fewer than two steps.
        """
        label, knots = self.model.labels(source, images), leg_knots(check_tau(tau), grid, steps)
        if len(knots) < 3:
            raise ParameterError(
                f"Between tau = {tau} and 1 there are {len(knots) - 1} steps, and the last has no noise; expected two."
            )
        path = self._path(self.model.codec.encode(images), noise, knots)
        found = []
        for (t, s), x, x_next in zip(pairwise(knots[:-1]), path, path[1:], strict=False):
            spread = (1 - s) * math.sqrt(1 - _snr_ratio(t, s) ** 2)
            found.append((x_next - self._mean(x, t, s, label)) / spread)
        return torch.stack(found, dim=1)

    def draws(self, tau: float, *, steps: int = STEPS, grid: str = "refined") -> int:
        """Noises S per image: one for each knot of the path but the image itself."""
        return len(leg_knots(check_tau(tau), grid, steps)) - 1

    def nfe(self, tau: float, *, steps: int = STEPS, grid: str = "refined") -> int:
        """Network evaluations per image: one for each label and step."""
        return 2 * self.draws(tau, steps=steps, grid=grid)

    def _mean(self, x: Tensor, t: float, s: float, label: Labels) -> Tensor:
        """The ancestral step's μ from time t to s."""
        v = self.model.velocity(x, at_time(t, x), label)
        return s * (x + (1 - t) * v) + _snr_ratio(t, s) * (1 - s) * (x - t * v)

    def _path(self, latent: Tensor, noise: Tensor | None, knots: Sequence[float]) -> list[Tensor]:
        """The x_t (B,C,h,w) at every knot; the last is the latent itself."""
        draws = len(knots) - 1
        expected = (len(latent), draws, *latent.shape[1:])
        if draws and (noise is None or tuple(noise.shape) != expected):
            raise ParameterError(
                f"The noise is {None if noise is None else tuple(noise.shape)}, expected standard normal of shape "
                f"{expected}: (images, draws of these knobs, latent)."
            )
        if noise is None or not draws:
            return [latent]
        points, at = [], noise[:, 0].to(latent)
        for k, t in enumerate(knots[:-1]):
            if k:
                at = self._next_noise(at, noise[:, k].to(latent), knots[k - 1], t)
            points.append(t * latent + (1 - t) * at)
        return [*points, latent]

    def _next_noise(self, before: Tensor, fresh: Tensor, t: float, s: float) -> Tensor:
        """The path's ε_s from its ε_t and a fresh draw."""
        ratio = _snr_ratio(t, s)
        return ratio * before + math.sqrt(1 - ratio**2) * fresh


class EditFriendly(CycleDiffusion):
    """Replay of the noises of a path whose points are drawn independently of each other."""

    name = "DDPM inversion, edit-friendly"

    def _next_noise(self, before: Tensor, fresh: Tensor, t: float, s: float) -> Tensor:
        return fresh


def _snr_ratio(t: float, s: float) -> float:
    """ρ, the signal-to-noise at time t over that at the later time s; 0 at t = 0 and at s = 1."""
    return 0.0 if s == 1 else t * (1 - s) / (s * (1 - t))
