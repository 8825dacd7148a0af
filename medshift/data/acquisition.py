"""X-ray acquisition: line integrals of water and bone [mm] -> the image a domain would show, air bright.

One chain per domain (`medshift.data.chains` has the physics), then what all domains share: the electronic
shutter behind the collimator and a fixed dither, so that no pixel value has an atom of probability. The five
domains stand in for those of X-DigiSkull: two renderings of a training simulator and three modes of an
interventional C-arm.

Doses: fluoroscopy with flat panels runs at 5 to 35 nGy (0.6 to 4 uR) a frame at the detector, single frames
of subtraction angiography at about 1 uGy. Filters: 0.1, 0.4 and 0.9 mm Cu with 1 mm Al (Philips C-arms).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from medshift.data.chains import Chain, RealChain, SimulatorChain, measuring_field
from medshift.errors import ParameterError

# Display level behind the collimator. Shutters are drawn black or white; this one is as bright as air, so that the
# blade is no edge across open air, the most violent in the picture and of no interest.
SHUTTER = 0.9
DITHER = 0.01  # standard deviation on [-1,1]: 1.3 grey levels of 256

# Declared: a displayed pixel has the noise of 2 x 2 native ones, as on a display of half the detector's matrix.
NOISE_PIXELS = 4.0

DEFAULT_CHAINS: dict[str, Chain] = {
    "synthetic-low": SimulatorChain(quanta=100.0),
    "synthetic-high": SimulatorChain(quanta=1000.0),
    "real-low": RealChain(beam="fluoroscopy-low", kerma_ngy=10.0, noise_pixels=NOISE_PIXELS),
    "real-normal": RealChain(beam="fluoroscopy-normal", kerma_ngy=40.0, noise_pixels=NOISE_PIXELS),
    "real-exposure": RealChain(beam="exposure", kerma_ngy=1000.0, sharpening=0.8, noise_pixels=NOISE_PIXELS),
}


class Acquirer:
    """Images of any domain from line integrals, on the device they lie on.

    Args:
        chains: one per domain, in label order.
    """

    def __init__(self, chains: Mapping[str, Chain] = DEFAULT_CHAINS) -> None:
        self.chains = dict(chains)

    def chain(self, domain: int | str) -> Chain:
        """The chain of a domain given by name or label; ParameterError for any other."""
        names = list(self.chains)
        if isinstance(domain, str) and domain in self.chains:
            return self.chains[domain]
        if isinstance(domain, int) and not isinstance(domain, bool) and 0 <= domain < len(names):
            return self.chains[names[domain]]
        raise ParameterError(f"No domain is called {domain!r}; the domains are {', '.join(names)}, or their numbers.")

    def linear_signal(
        self,
        line_integrals: Tensor,
        open_field: Tensor,
        fov_mm: Tensor,
        domain: int | str,
        *,
        generator: torch.Generator | None = None,
        clean: bool = False,
        oversample: int = 1,
    ) -> Tensor:
        """The signal before the logarithm, (N,1,H/oversample,W/oversample), in the chain's own units.

        With ``oversample`` s the rays sample s x s points of each pixel: quanta are drawn and spread on that
        fine grid and then summed over the pixel, so that aliasing is the detector's own. At 1 the expectation
        is averaged over the pixel instead, the rays interpolated linearly. Other arguments as in `acquire`.
        """
        chain = self.chain(domain)
        fov_mm = _check(line_integrals, open_field, fov_mm, generator, clean, oversample)
        return chain.linear_signal(
            line_integrals, open_field, fov_mm, generator=generator, clean=clean, oversample=oversample
        )

    def acquire(
        self,
        line_integrals: Tensor,
        open_field: Tensor,
        fov_mm: Tensor,
        domain: int | str,
        *,
        generator: torch.Generator | None,
        clean: bool = False,
    ) -> Tensor:
        """Make images (N,1,H,W) float32, about [-1,1], air bright.

        Args:
            line_integrals: (N,2,H,H) float32, mm of water and of cortical bone.
            open_field: (N,1,H,H) bool, False behind the collimator.
            fov_mm: (N,) side of the field at the isocentre [mm].
            domain: name or label.
            generator: on the same device; one stream for the whole batch, so an image's noise depends on its
                place in it. Exposure, window and the noise-free image depend on no neighbour.
            clean: leave out quantum and electronic noise and dither: the expectation of the linear signal,
                displayed. The mean of many displayed exposures differs from it by the logarithm's bias, about
                -1/2 of the relative variance in nats, less what the automatic window takes back.
        """
        chain = self.chain(domain)
        fov_mm = _check(line_integrals, open_field, fov_mm, generator, clean, 1)
        signal = chain.linear_signal(line_integrals, open_field, fov_mm, generator=generator, clean=clean)
        image = chain.display(signal, measuring_field(line_integrals, open_field), open_field, fov_mm)
        image = image.where(open_field, SHUTTER)
        if not clean:
            image = image + DITHER * torch.randn(image.shape, generator=generator, device=image.device)
        return image


def acquire(
    line_integrals: Tensor,
    open_field: Tensor,
    fov_mm: Tensor,
    domain: int | str,
    *,
    generator: torch.Generator | None,
    clean: bool = False,
) -> Tensor:
    """`Acquirer.acquire` with the default chains."""
    return Acquirer().acquire(line_integrals, open_field, fov_mm, domain, generator=generator, clean=clean)


def _check(
    lines: Tensor,
    open_field: Tensor,
    fov_mm: Tensor,
    generator: torch.Generator | None,
    clean: bool,
    oversample: int,
) -> Tensor:
    """The field of view on the rays' device; ParameterError where arguments do not fit together."""
    if lines.ndim != 4 or lines.shape[1] != 2 or lines.shape[2] != lines.shape[3]:
        raise ParameterError(f"Line integrals must be (N,2,H,H), water and bone on a square; got {tuple(lines.shape)}.")
    n, _, size, _ = lines.shape
    if open_field.shape != (n, 1, size, size) or open_field.dtype != torch.bool:
        raise ParameterError(
            f"The open field must be bool ({n},1,{size},{size}); got {open_field.dtype} {tuple(open_field.shape)}."
        )
    # The values are looked at on a CPU alone: training draws every batch through here, and a GPU would be waited for.
    if fov_mm.shape != (n,) or (fov_mm.device.type == "cpu" and not bool((fov_mm > 0).all())):
        raise ParameterError(f"The field of view must be ({n},) positive mm; got {tuple(fov_mm.shape)}.")
    if generator is None and not clean:
        raise ParameterError("Noise needs a torch.Generator; give one, or clean=True for no noise.")
    if oversample < 1 or size % oversample:
        raise ParameterError(f"Oversampling must divide the {size} rays a side; got {oversample}.")
    return fov_mm.to(lines)
