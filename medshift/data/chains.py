"""Acquisition chains: from line integrals of water and bone to a detector's linear signal and its display.

Real chain, per displayed pixel, in this order:

    expectation   P(E) = phi(E) exp(-mu_w L_w - mu_b L_b), energy-integrated with eta(E) E of the CsI layer;
                  scatter S = K * [a T (-ln T)^alpha], so S/P grows behind thick parts; grid; automatic
                  exposure fixes the detector's air kerma per frame, mean over the measuring field
    quanta        compound Poisson: variance proportional to sum eta E^2 N, primary and scatter alike, drawn
                  as a scaled Poisson variable of the same mean and variance
    spread        scintillator MTF 1/(1 + H f^2) on signal and quantum noise; pixel aperture
    electronics   white noise, then gain: the linear signal, where noise laws are stated
    display       log, automatic window about the measuring field, sharpening, soft shoulders

Simulator chain: one photon energy, no scatter, aperture, Poisson noise without spread, a sigmoid tone curve.

Noise is kept per displayed pixel: whatever its size, a displayed pixel collects the quanta of `noise_pixels`
native detector pixels. (A pixel of a 64x64 picture is 5.8 mm wide at the detector: a physical dose would show
no noise there, and the noise would change with the resolution.) Blur, scatter and sharpening keep their size
in mm, so at 64x64 the scintillator's MTF is all but one.
Absent: focal spot, veiling glare, lag, temporal filter, heel effect, defects, hardening by grid and scatter.
The constants stand for systems as published; beams, doses and scatter were set before any training. `noise_pixels`
and the shutter's level were set once more after a first, short training had been seen.

References:
    Siewerdsen et al., Med. Phys. 24 (1997) 71: cascaded systems, additive noise of flat panels.
    Siewerdsen & Jaffray, Med. Phys. 27 (2000) 1903: MTF of CsI:Tl. Swank, J. Appl. Phys. 44 (1973) 4199.
    Ohnesorge et al., Eur. Radiol. 9 (1999) 563: forward scatter source T (-ln T).
    Sun & Star-Lack, Phys. Med. Biol. 55 (2010) 6695: its convolution kernels.
    Siewerdsen et al., Med. Phys. 31 (2004) 3506: scatter with and without grids in flat-panel imaging.
    Singh et al., Proc. SPIE 9033 (2014) 903362: a 13:1 grid before a flat panel and a head phantom.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from medshift.data.beams import absorbed_share, kerma_per_photon, linear_attenuation, load_beam
from medshift.data.projection import SOURCE_DETECTOR, SOURCE_ISOCENTRE

MAGNIFICATION = SOURCE_DETECTOR / SOURCE_ISOCENTRE
HEAD_MM = 20.0  # a ray through more material than this counts as "in the head" for the measuring field
MEASURING_RADIUS = 0.25  # of the image's side: the central field of automatic exposure, half the image across
SCATTER_GRID = 32  # scatter has no detail finer than field/32


@dataclass(frozen=True, kw_only=True)
class RealChain:
    """An interventional C-arm's mode: beam, dose, detector, display."""

    beam: str  # table in spectra/
    kerma_ngy: float  # nGy a frame at the detector, behind patient and grid, mean over the measuring field
    sharpening: float = 0.0  # gain of the unsharp mask
    sharpening_mm: float = 6.0  # its Gaussian's sigma at the detector
    sharpening_limit: float = 0.3  # detail is limited to about this much of the display's range
    csi_g_cm2: float = 0.198  # 0.55 mm CsI:Tl at 80 % packing, interventional flat panels
    swank: float = 0.85  # light-yield statistics, structured CsI:Tl with K escape: published 0.8 to 0.9
    spread_mm2: float = 0.5  # H of MTF = 1/(1 + H f^2): .67 at 1, .33 at 2 lp/mm, thick CsI:Tl
    native_pixel_mm: float = 0.308  # 154 um pixels binned 2 x 2
    noise_pixels: float = 1.0  # declared: native pixels whose quanta one displayed pixel collects
    electronic_kev: float = 80.0  # rms per native pixel: about 2000 e at 1350 e per 55 keV photon
    gain: float = 0.1  # digital numbers per absorbed keV
    grid_primary: float = 0.70  # transmission of a 13:1 fibre grid
    grid_scatter: float = 0.15
    scatter_per_nat: float = 0.45  # a: S/P 1.6 before the grid, behind 160 mm of water in a 250 mm field
    scatter_power: float = 1.0  # alpha: single forward scatter
    scatter_sigma_mm: float = 60.0  # K, a Gaussian at the detector
    half_width: float = 1.4  # display (chosen): nats of log signal per unit of display value
    centre: float = -0.2  # display value of the measuring field's mean log signal
    knee: float = 0.6  # the display is linear up to here

    def linear_signal(
        self,
        line_integrals: Tensor,
        open_field: Tensor,
        fov_mm: Tensor,
        *,
        generator: torch.Generator | None = None,
        clean: bool = False,
        oversample: int = 1,
    ) -> Tensor:
        """Digital numbers (N,1,H,W) before the logarithm; see `Acquirer.linear_signal`."""
        pitch = MAGNIFICATION * fov_mm / line_integrals.shape[-1]
        mean, quantum = self.expected(line_integrals, open_field, fov_mm)
        area = self.native_pixel_mm**2 * self.noise_pixels / oversample**2
        mean = mean * area
        if oversample == 1:
            mean = _aperture(mean)
        if not clean:
            mean = torch.poisson(mean / quantum, generator=generator) * quantum
        signal = _filter(mean, pitch, self.spread, pad=8)
        if oversample > 1:
            signal = F.avg_pool2d(signal, oversample) * oversample**2
        if not clean:
            sigma = self.electronic_kev * self.noise_pixels**0.5
            signal = signal + sigma * torch.randn(signal.shape, generator=generator, device=signal.device)
        return self.gain * signal

    def expected(self, line_integrals: Tensor, open_field: Tensor, fov_mm: Tensor) -> tuple[Tensor, Tensor]:
        """Mean absorbed energy [keV/mm2] and its quantum, variance over mean [keV]; both (N,1,H,W).

        Scatter raises both mean and variance by 1 + S/P: its quanta are taken as hard as the local primary's.
        """
        energy, squares, kerma = self.primary(line_integrals)
        ratio = 1 + self._scatter_to_primary(energy, open_field, fov_mm)
        field = measuring_field(line_integrals, open_field)
        # For a given kerma behind the grid the grid's transmission of the primary cancels.
        tube = 1e-3 * self.kerma_ngy / (field * kerma * ratio).sum((-2, -1), keepdim=True)
        return tube * energy * ratio * open_field, squares / energy

    def scatter_to_primary(self, line_integrals: Tensor, open_field: Tensor, fov_mm: Tensor) -> Tensor:
        """Scatter over primary signal behind the grid, (N,1,H,W)."""
        return self._scatter_to_primary(self.primary(line_integrals)[0], open_field, fov_mm)

    def _scatter_to_primary(self, energy: Tensor, open_field: Tensor, fov_mm: Tensor) -> Tensor:
        size = energy.shape[-1]
        transmission = energy / _response(self.beam, self.csi_g_cm2, self.swank, energy.device)[1][0].sum()
        nats = -transmission.log().clamp(max=0)
        source = self.scatter_per_nat * transmission * nats**self.scatter_power * open_field
        coarse = min(size, SCATTER_GRID)
        pitch = MAGNIFICATION * fov_mm / coarse

        def kernel(f2: Tensor) -> Tensor:
            return torch.exp(-2 * (np.pi * self.scatter_sigma_mm) ** 2 * f2)

        spread = _filter(F.adaptive_avg_pool2d(source, coarse), pitch, kernel, pad=coarse // 2, mode="constant")
        scatter = F.interpolate(spread, size=(size, size), mode="bilinear", align_corners=False).clamp(min=0)
        return self.grid_scatter / self.grid_primary * scatter / transmission

    def spread(self, f2: Tensor) -> Tensor:
        """Scintillator MTF at squared spatial frequency ``f2`` [1/mm2]."""
        return 1 / (1 + self.spread_mm2 * f2)

    def display(self, signal: Tensor, field: Tensor, open_field: Tensor, fov_mm: Tensor) -> Tensor:
        """Display values (N,1,H,W) in [-1,1], without shutter and dither, of a linear signal."""
        floor = self.gain * self.electronic_kev * self.noise_pixels**0.5
        level = _soft_log(signal, floor)
        centre = (field * level).sum((-2, -1), keepdim=True)
        value = ((level - centre) / self.half_width).where(open_field, 0.0) + self.centre
        if self.sharpening:
            sigma, pitch = self.sharpening_mm, MAGNIFICATION * fov_mm / signal.shape[-1]
            detail = _filter(value, pitch, lambda f2: -torch.expm1(-2 * (np.pi * sigma) ** 2 * f2), pad=8)
            limit = self.sharpening_limit
            value = value + self.sharpening * limit * torch.tanh(detail / limit)
        return shoulder(value, self.knee)

    def primary(self, line_integrals: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sums over the spectrum for 1 uGy of the open beam, each (N,1,H,W), per mm2.

        Absorbed energy [keV], its variance [keV^2] and the transmitted share of air kerma.
        """
        mu, weights = _response(self.beam, self.csi_g_cm2, self.swank, line_integrals.device)
        transmitted = (mu @ line_integrals.flatten(2)).neg_().exp_()
        sums = (weights @ transmitted).unflatten(2, line_integrals.shape[2:]).clamp_(min=1e-20)
        return sums[:, :1], sums[:, 1:2], sums[:, 2:]


@dataclass(frozen=True, kw_only=True)
class SimulatorChain:
    """A training simulator's renderer: one energy, no scatter, an ideal detector, its own tone curve."""

    quanta: float  # mean photons per displayed pixel in the measuring field
    energy_kev: float = 65.0  # about the mean energy of a filtered 100 kV beam
    half_width: float = 2.0  # nats of log signal per unit of the sigmoid's argument
    centre: float = -0.3  # the sigmoid's argument at the measuring field's mean log signal

    def linear_signal(
        self,
        line_integrals: Tensor,
        open_field: Tensor,
        fov_mm: Tensor,
        *,
        generator: torch.Generator | None = None,
        clean: bool = False,
        oversample: int = 1,
    ) -> Tensor:
        """Photons (N,1,H,W) before the logarithm; see `Acquirer.linear_signal`."""
        mu = _monoenergetic(self.energy_kev, line_integrals.device)
        transmission = torch.exp(-(line_integrals * mu).sum(1, keepdim=True))
        field = measuring_field(line_integrals, open_field)
        tube = self.quanta / (field * transmission).sum((-2, -1), keepdim=True)
        mean = tube * transmission * open_field / oversample**2
        if oversample == 1:
            mean = _aperture(mean)
        signal = mean if clean else torch.poisson(mean, generator=generator)
        return F.avg_pool2d(signal, oversample) * oversample**2

    def display(self, signal: Tensor, field: Tensor, open_field: Tensor, fov_mm: Tensor) -> Tensor:
        """Display values (N,1,H,W) in [-1,1], without shutter and dither, of a linear signal."""
        level = _soft_log(signal, 0.5)
        centre = (field * level).sum((-2, -1), keepdim=True)
        return torch.tanh((level - centre) / self.half_width + self.centre)


Chain = RealChain | SimulatorChain


def measuring_field(line_integrals: Tensor, open_field: Tensor) -> Tensor:
    """Weights (N,1,H,W), one in sum, of the automatic exposure and window: the head within the central open
    disc.

    A view without a head there measures the open part of the disc, one with a closed centre the open field.
    """
    size = line_integrals.shape[-1]
    offset = torch.arange(size, device=line_integrals.device, dtype=line_integrals.dtype) - (size - 1) / 2
    disc = offset[:, None] ** 2 + offset**2 <= (MEASURING_RADIUS * size) ** 2
    head = line_integrals.sum(1, keepdim=True) > HEAD_MM
    field = torch.ones_like(open_field)
    for candidate in (open_field, open_field & disc, open_field & disc & head):
        field = torch.where(candidate.any(-1, True).any(-2, True), candidate, field)
    weights = field.to(line_integrals.dtype)
    return weights / weights.sum((-2, -1), keepdim=True)


def shoulder(value: Tensor, knee: float) -> Tensor:
    """The identity up to ``knee`` in size, then a curve of continuous slope that never reaches 1."""
    excess = (value.abs() - knee).clamp(min=0) / (1 - knee)
    return value.clamp(-knee, knee) + value.sign() * (1 - knee) * excess / (1 + excess)


def _soft_log(signal: Tensor, floor: float) -> Tensor:
    """log of a smooth positive part: about ``signal`` above ``floor``, positive for any signal."""
    # (s + sqrt(s^2 + 4 e^2)) / 2 cancels for s << 0; the other branch is the same number.
    root = torch.sqrt(signal**2 + 4 * floor**2)
    return torch.where(signal >= 0, 0.5 * (signal + root), 2 * floor**2 / (root - signal)).log()


def _aperture(image: Tensor) -> Tensor:
    """Mean over each pixel's square, the image interpolated linearly between pixel centres."""
    taps = _taps(image.dtype, image.device)
    padded = F.pad(image, (1, 1, 1, 1), mode="replicate")
    return F.conv2d(F.conv2d(padded, taps.view(1, 1, 1, 3)), taps.view(1, 1, 3, 1))


@lru_cache(maxsize=8)
def _taps(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Kept, since sending them to a GPU waits for it."""
    return torch.tensor([0.125, 0.75, 0.125], dtype=dtype, device=device)


def _filter(
    image: Tensor, pitch: Tensor, transfer: Callable[[Tensor], Tensor], *, pad: int, mode: str = "replicate"
) -> Tensor:
    """Multiply (N,1,H,W) by ``transfer(f^2)`` in the Fourier domain; ``pitch`` (N,) mm, f in 1/mm."""
    padded = F.pad(image, (pad, pad, pad, pad), mode=mode)
    height, width = padded.shape[-2:]
    vertical = torch.fft.fftfreq(height, device=image.device)[:, None]
    horizontal = torch.fft.rfftfreq(width, device=image.device)
    f2 = (vertical**2 + horizontal**2) / pitch.view(-1, 1, 1, 1) ** 2
    filtered = torch.fft.irfft2(torch.fft.rfft2(padded) * transfer(f2), s=(height, width))
    return filtered[..., pad : height - pad, pad : width - pad]


@lru_cache(maxsize=64)
def _response(beam: str, csi: float, swank: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Attenuation (E,2) [1/mm]; weights (3,E) of absorbed energy, its variance, kerma; 2 keV bins."""
    table = load_beam(beam)
    fine = np.pad(np.stack([table.fluence, table.fluence * table.energy]), ((0, 0), (0, len(table.energy) % 2)))
    fluence, energies = fine.reshape(2, -1, 2).sum(-1)
    energy = energies / fluence
    mu = np.stack([linear_attenuation("water", energy), linear_attenuation("bone", energy)], axis=-1)
    absorbed = fluence * absorbed_share(energy, csi)
    kerma = fluence * kerma_per_photon(energy)
    weights = np.stack([absorbed * energy, absorbed * energy**2 / swank, kerma / kerma.sum()])
    return (
        torch.as_tensor(mu, dtype=torch.float32, device=device),
        torch.as_tensor(weights, dtype=torch.float32, device=device),
    )


@lru_cache(maxsize=16)
def _monoenergetic(energy: float, device: torch.device) -> Tensor:
    """Attenuation (1,2,1,1) [1/mm] of water and bone at one energy [keV]."""
    mu = [float(linear_attenuation(material, np.array(energy))) for material in ("water", "bone")]
    return torch.tensor(mu, dtype=torch.float32, device=device).view(1, 2, 1, 1)
