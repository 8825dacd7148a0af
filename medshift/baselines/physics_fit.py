r"""Physics fit: six parameters of an acquisition, fitted to the target's unpaired images. No network.

What a medical physicist would do first. A displayed image x in (-1, 1) is taken for the sigmoid of a log signal (the
characteristic curve of Hurter and Driffield, and of our simulator), so that x = tanh(ln I / 2) and

    I    = (1 + x) / (1 - x)                                    signal, 1 at mid-grey
    I_s  = I + k K ∗ [I ln(I_0 / I)]                            scatter: of first order in the attenuation
    ln J = G_σ ∗ ln I_s + η n - η²/2,  η² = ln(1 + (a + b J') / J'²),  J' = exp(G_σ ∗ ln I_s)
    out  = tanh( γ (ln J + e) / 2 ).

Fitted are the contrast γ, the exposure e, the blur σ, the noise's a and b, and the scatter k; γ = 1 and the rest zero
leave x as it is. The noise n is white, added after the blur, and log-normal: the one law of mean J' and variance
a + b J' whose logarithm is normal, as a signal is positive. The kernel K is a Gaussian of 0.16 of the field (60 mm at
the detector), the open beam I_0 the 99th percentile of the source. Blur acts on the log signal, which no detector's
does: the signal's own bleeds the open beam, fifty times as bright, over the head's outline. That was chosen with truth
in hand: of four pairs it fits three better, and on validation views all are nearer to the truth, by 0.5 to 7 dB. So
were the form of the objective below and its weights, among a few, on the same validation views: a favour to this floor.

The fit minimises, over unpaired training images of both domains with one fixed draw of n,

    Σ_i (q_i(out) - q_i(B))² / (Q var B)  +  Σ_f ln²( S_f(out) / S_f(B) ) / N_f :

quantiles q of all grey values in units of the target's spread, and mean radial power spectra S, with equal weights,
by L-BFGS-B. Spectra hardly tell a from b, exposure trades with scatter, and blur with noise: no single number is to be
trusted. A blur cannot sharpen, and six numbers know nothing of anatomy.

References:
    Ohnesorge et al., Eur. Radiol. 9 (1999) 563: the scatter's source term.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.nn import functional as F

from medshift.data.domains import domain_index
from medshift.errors import ParameterError
from medshift.metrics.physics import radial_power_spectrum
from medshift.translate import Domain

__all__ = ["AcquisitionFit", "PhysicsFit"]

FIT_IMAGES, FIT_PIXELS = 200, 2**21  # of each domain, at most
DISPLAY_LIMIT = 0.998  # the display's inverse is taken no nearer to black and white than this
SCATTER_WIDTH = 0.16  # sigma of the scatter's kernel over the image's side
SCATTER_GRID = 16  # scatter has no detail finer than field/16
BLUR_RADIUS = 6  # pixels
QUANTILES = 128
QUANTILE_STRIDE = 5  # every fifth pixel's grey value is sorted

# ln contrast, exposure, exp(-1/2σ²), sqrt a, sqrt b, k: what the optimiser moves, where it starts and may go.
START = (0.0, 0.0, 0.05, 0.05, 0.05, 0.02)
BOUNDS = ((-2.0, 2.0), (-5.0, 5.0), (0.0, 0.8), (0.0, 1.0), (0.0, 1.0), (0.0, 1.0))


@dataclass(frozen=True, kw_only=True)
class AcquisitionFit:
    """An acquisition, as `PhysicsFit` finds it. Signals are in units of the one that is displayed mid-grey.

    Args:
        contrast: γ, slope of the target's display over the source's.
        exposure_nats: e, added to the log signal.
        blur_pixels: σ of the Gaussian, up to 1.5; one below 0.25 is none.
        noise_floor: a, variance of the noise that is added at any signal [signal²].
        noise_per_signal: b, added variance per signal [signal].
        scatter_per_nat: k, scattered over primary signal per nat of attenuation, before it is spread.
        open_beam: I_0 of the source, not fitted.
        quantile_misfit: the objective's first term.
        spectrum_misfit: its second term.
    """

    contrast: float
    exposure_nats: float
    blur_pixels: float
    noise_floor: float
    noise_per_signal: float
    scatter_per_nat: float
    open_beam: float
    quantile_misfit: float = 0.0
    spectrum_misfit: float = 0.0

    def acquire(self, images: Tensor, noise: Tensor) -> Tensor:
        """Images (B,1,H,W) of the source, about [-1, 1], as this acquisition shows them, with `noise` (B,1,H,W)."""
        signal = _signal(images)
        taps = math.exp(-0.5 / self.blur_pixels**2) if self.blur_pixels else 0.0
        roots = (math.sqrt(self.noise_floor), math.sqrt(self.noise_per_signal))
        vector = signal.new_tensor([math.log(self.contrast), self.exposure_nats, taps, *roots, self.scatter_per_nat])
        return _acquired(signal, _scattered(signal, self.open_beam), vector, noise.to(signal))


class PhysicsFit:
    """Translation by a fitted acquisition.

    Args:
        training: one tensor (N,1,H,W) a domain, in label order; the first 200 of each, or 2 million pixels.
        domains: their names.

    Attributes:
        noise_space: noise of `translate` is that of images; other methods draw theirs in latents.

    Raises:
        ParameterError: sets and names differ in number, or images in size.
    """

    name = "physics fit"
    needs_pairs = False
    noise_space = "image"

    def __init__(self, training: Sequence[Tensor], domains: Sequence[str]) -> None:
        if len(training) != len(domains):
            raise ParameterError(f"{len(training)} training sets do not fit {len(domains)} domains.")
        if len({images.shape[1:] for images in training}) > 1:
            raise ParameterError("Training images differ in size between the domains; their spectra do not compare.")
        n = max(1, min(FIT_IMAGES, FIT_PIXELS // training[0][0].numel()))
        self.training, self.domains = [images[:n].detach().cpu() for images in training], list(domains)
        self._fits: dict[tuple[int, int], AcquisitionFit] = {}

    def fit(self, a: Domain, b: Domain) -> AcquisitionFit:
        """The acquisition that makes the images of `a` most like those of `b`; found once, then kept."""
        pair = (self._label(a), self._label(b))
        if pair not in self._fits:
            source, target = (self.training[label] for label in pair)
            with torch.inference_mode(False), torch.enable_grad():  # the caller may have switched gradients off
                self._fits[pair] = _fitted(source, target)
        return self._fits[pair]

    @torch.no_grad()
    def translate(
        self, images: Tensor, source: Domain, target: Domain, *args: Any, noise: Tensor, **knobs: Any
    ) -> Tensor:
        """Images (B,1,H,W) of `source` as the fitted acquisition shows them, in (-1, 1).

        Args:
            images: (B,1,H,W), about [-1, 1].
            source, target: label or name.
            noise: (B,1,1,H,W), standard normal, in the space of images.

        Raises:
            ParameterError: an unknown domain, or noise of another shape.
        """
        wanted = (len(images), 1, *images.shape[1:])
        if noise.shape != wanted:
            raise ParameterError(f"The noise is {tuple(noise.shape)}, expected {wanted}: one draw an image, as images.")
        return self.fit(source, target).acquire(images, noise[:, 0])

    def draws(self, **knobs: Any) -> int:
        """Draws of noise for an image."""
        return 1

    def nfe(self, *args: Any, **knobs: Any) -> int:
        """No network is evaluated."""
        return 0

    def _label(self, domain: Domain) -> int:
        return domain_index(domain if isinstance(domain, str | int) else str(domain), self.domains)


def _fitted(source: Tensor, target: Tensor) -> AcquisitionFit:
    open_beam = float(_signal(torch.quantile(source.flatten()[::QUANTILE_STRIDE], 0.99)))
    objective = _Objective(source, target, open_beam)
    found = minimize(objective, START, jac=True, bounds=BOUNDS, method="L-BFGS-B", options={"maxiter": 80})
    with torch.no_grad():
        tone, detail = objective.terms(torch.tensor(found.x, dtype=torch.float32))
    contrast, exposure, taps, floor, quanta, scatter = (float(value) for value in found.x)
    return AcquisitionFit(
        contrast=math.exp(contrast),
        exposure_nats=exposure,
        blur_pixels=math.sqrt(-0.5 / math.log(taps)) if taps > 0 else 0.0,
        noise_floor=floor**2,
        noise_per_signal=quanta**2,
        scatter_per_nat=scatter,
        open_beam=open_beam,
        quantile_misfit=float(tone),
        spectrum_misfit=float(detail),
    )


class _Objective:
    """What is minimised, and its gradient, as a function of the optimiser's six variables."""

    def __init__(self, source: Tensor, target: Tensor, open_beam: float) -> None:
        self.signal = _signal(source)
        self.scatter = _scattered(self.signal, open_beam)
        self.noise = torch.randn(source.shape, generator=torch.Generator().manual_seed(0))
        self.quantiles, self.variance = _quantiles(target), target.var()
        self.spectrum = radial_power_spectrum(target)[1].mean(dim=0)

    def terms(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        """Both misfits, each ()."""
        out = _acquired(self.signal, self.scatter, vector, self.noise)
        tone = (_quantiles(out) - self.quantiles).square().mean() / self.variance
        detail = (radial_power_spectrum(out)[1].mean(dim=0) / self.spectrum).log().square().mean()
        return tone, detail

    def __call__(self, values: np.ndarray) -> tuple[float, np.ndarray]:
        vector = torch.tensor(values, dtype=torch.float32, requires_grad=True)
        tone, detail = self.terms(vector)
        (gradient,) = torch.autograd.grad(tone + detail, vector)
        return (tone + detail).item(), gradient.double().numpy()


def _signal(images: Tensor) -> Tensor:
    """I of display values."""
    shown = images.clamp(-DISPLAY_LIMIT, DISPLAY_LIMIT)
    return (1 + shown) / (1 - shown)


def _scattered(signal: Tensor, open_beam: float) -> Tensor:
    """K ∗ [I ln(I_0 / I)], (N,1,H,W); brighter than the open beam does not scatter."""
    source = signal * (math.log(open_beam) - signal.log()).clamp(min=0)
    coarse = min(SCATTER_GRID, *signal.shape[-2:])
    pooled = F.adaptive_avg_pool2d(source, coarse)
    taps = pooled.new_tensor(math.exp(-0.5 / (SCATTER_WIDTH * coarse) ** 2))
    return F.interpolate(_spread(pooled, taps, coarse), size=signal.shape[-2:], mode="bilinear", align_corners=False)


def _acquired(signal: Tensor, scatter: Tensor, vector: Tensor, noise: Tensor) -> Tensor:
    """Display values of signals and their scatter, all (N,1,H,W); `vector` as in `START`."""
    contrast, exposure, taps, floor, quanta, per_nat = vector
    level = _spread((signal + per_nat * scatter).log(), taps, BLUR_RADIUS)
    mean = level.exp()
    # The small number keeps the root's slope finite where there is no noise.
    eta2 = torch.log1p((floor**2 + quanta**2 * mean) / mean**2) + 1e-12
    return torch.tanh(0.5 * contrast.exp() * (level + eta2.sqrt() * noise - eta2 / 2 + exposure))


def _spread(image: Tensor, taps: Tensor, radius: int) -> Tensor:
    """Convolution with a Gaussian sampled at pixels, whose taps at distance j are `taps` ** j², edges repeated."""
    weights = [taps ** (j * j) for j in range(1, radius + 1)]
    total = 1 + 2 * torch.stack(weights).sum()
    for axis, pad in ((-1, (radius, radius, 0, 0)), (-2, (0, 0, radius, radius))):
        n, padded = image.shape[axis], F.pad(image, pad, mode="replicate")
        for j, weight in enumerate(weights, 1):
            pair = padded.narrow(axis, radius - j, n) + padded.narrow(axis, radius + j, n)
            image = image + weight * pair
        image = image / total
    return image


def _quantiles(images: Tensor) -> Tensor:
    values = images.flatten()[::QUANTILE_STRIDE].sort().values
    return values[torch.linspace(0, len(values) - 1, QUANTILES).round().long()]
