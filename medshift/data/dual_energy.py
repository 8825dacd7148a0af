"""Dual-energy radiography: a soft-tissue and a bone image of one view, from exposures at two beam qualities.

With the log signals S_k = ln I_k of a low (70 kV, 0.1 mm Cu) and a high (80 kV, 0.9 mm Cu) exposure, both detector
signals of `medshift.data.chains` with scatter, blur and noise, weighted log subtraction cancels one material:

    soft tissue   L_w ∝ -(S_high - w_b S_low),   w_b = μ_bone,high / μ_bone,low,
    bone          L_b ∝ -(w_w S_low - S_high),   w_w = μ_water,high / μ_water,low,

with the beams' effective attenuation behind a reference head. The two exposures' noise is anticorrelated in the two
images, as in practice. Each is displayed about its mean over the measuring field, air bright.

No scatter is subtracted before the logarithm, and scatter flattens thick parts: behind the reference head a millimetre
of bone more counts as .6 mm of soft tissue and as .5 mm of bone (without scatter .04 and 1.0), while water does
cancel, 5 mm of it being 4.6 mm in one image and -.3 mm in the other. So the soft-tissue image shows bone too, and the
bone image pales where much is in the way. The beams are two modes of the C-arm, apart mostly by their copper, and
nearer to each other than the 60 and 120 kV of a dual-energy unit: that costs noise, which a higher dose pays for.

References:
    Brody et al., A method for selective tissue and bone visualization using dual energy scanned projection
    radiography, Med. Phys. 8 (1981) 353.
"""

from __future__ import annotations

import torch
from torch import Tensor

from medshift.data.chains import RealChain, measuring_field, shoulder

REFERENCE_MM = (150.0, 15.0)  # water and bone behind which the beams' attenuation is taken
KERMA_NGY = 4000.0  # per exposure: four times that of the domain real-exposure
CHAINS = {
    "low": RealChain(beam="exposure", kerma_ngy=KERMA_NGY, noise_pixels=4.0),
    "high": RealChain(beam="fluoroscopy-low", kerma_ngy=KERMA_NGY, noise_pixels=4.0),
}
SOFT_HALF_MM, BONE_HALF_MM = 90.0, 30.0  # mm of the material per unit of display value
CENTRE = 0.0  # display value of the measuring field's mean
KNEE = 0.6
SMALLEST = 1e-3  # of the mean signal: below this a pixel counts as this, so that its logarithm exists
STEP_MM = 0.1  # of the slope of the log signal


def effective_attenuation(chain: RealChain) -> tuple[float, float]:
    """Effective μ [1/mm] of water and of bone in a chain's beam, behind the reference head: -d ln I / dL."""
    lines = torch.tensor([REFERENCE_MM]).repeat(3, 1)
    lines[1, 0] += STEP_MM
    lines[2, 1] += STEP_MM
    energy = chain.primary(lines[:, :, None, None])[0].double().flatten().log()
    return float((energy[0] - energy[1]) / STEP_MM), float((energy[0] - energy[2]) / STEP_MM)


def material_paths(
    line_integrals: Tensor, open_field: Tensor, fov_mm: Tensor, *, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Estimated paths (N,1,H,W) [mm] through soft tissue and through bone, less their means in the measuring field.

    Args:
        line_integrals: (N,2,H,H) mm of water and of bone.
        open_field: (N,1,H,H) bool.
        fov_mm: (N,).
        generator: of the noise of both exposures; None for none.
    """
    field = measuring_field(line_integrals, open_field)
    logs = {}
    for name, chain in CHAINS.items():
        signal = chain.linear_signal(line_integrals, open_field, fov_mm, generator=generator, clean=generator is None)
        mean = (field * signal).sum((-2, -1), keepdim=True)
        logs[name] = (signal / mean).clamp(min=SMALLEST).log()
    (water_low, bone_low), (water_high, bone_high) = (effective_attenuation(CHAINS[n]) for n in ("low", "high"))
    of_bone, of_water = bone_high / bone_low, water_high / water_low
    soft = -(logs["high"] - of_bone * logs["low"]) / (water_high - of_bone * water_low)
    bone = -(of_water * logs["low"] - logs["high"]) / (of_water * bone_low - bone_high)
    centred = [path - (field * path).sum((-2, -1), keepdim=True) for path in (soft, bone)]
    return centred[0], centred[1]


def dual_energy(
    line_integrals: Tensor, open_field: Tensor, fov_mm: Tensor, *, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Soft-tissue image and bone image (N,1,H,W), about [-1,1], air bright; arguments as of `material_paths`."""
    soft, bone = material_paths(line_integrals, open_field, fov_mm, generator=generator)
    return shoulder(CENTRE - soft / SOFT_HALF_MM, KNEE), shoulder(CENTRE - bone / BONE_HALF_MM, KNEE)
