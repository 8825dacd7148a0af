"""Many translations of the same images for the price of few.

An encode leg depends on the image, its domain and the guidance of that leg, and not on the target; and the states at
several tau branch off one leg (`medshift.ode.states_at`). So a sweep over tau and targets costs one encode leg, down
to the lowest tau, and one decode leg for each pair of target and tau.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from medshift.errors import ParameterError
from medshift.ode import DEFAULT_STEPS
from medshift.translate import Domain, Images, MedShift

__all__ = ["sweep"]


@torch.no_grad()
def sweep(
    model: MedShift,
    images: Images,
    source: Domain,
    targets: Sequence[int | str],
    taus: Sequence[float],
    *,
    guidance: float | tuple[float, float] = 1.0,
    steps: int = DEFAULT_STEPS,
    solver: str = "heun",
    grid: str = "refined",
) -> dict[tuple[int | str, float], Images]:
    """`images` translated to every target at every tau, bit for bit as by separate calls of `model.translate`.

    Args:
        model: the MedShift; one around `medshift.fast.fast` is fastest.
        images: (B, 1, H, W), about [-1, 1].
        source: their domain: label, name, or labels (B,).
        targets: domains wanted, by label or name.
        taus: where legs meet, each in [0, 1].
        guidance: one scale for both legs, or (encode, decode).
        steps: of the time grid; this and the other knobs as for `MedShift.translate`.
        solver: see `steps`.
        grid: see `steps`.

    Returns:
        (target, tau) -> images (B, 1, H, W), not clamped. All stay in memory.

    Raises:
        ParameterError: no target or no tau, or any argument out of its range.
    """
    if not targets or not taus:
        raise ParameterError("A sweep needs at least one target and one tau.")
    for target in targets:
        model.labels(target, images)  # a wrong target is told before the encode leg, not after it
    scales = guidance if isinstance(guidance, tuple) else (guidance, guidance)
    latents = model.encode(images, source, taus, guidance=scales[0], steps=steps, solver=solver, grid=grid)
    leg = partial(model.decode, guidance=scales[1], steps=steps, solver=solver, grid=grid)
    size = (images.shape[-2], images.shape[-1])
    return {
        (target, tau): leg(z_tau, target, tau, size=size)
        for tau, z_tau in zip(taus, latents, strict=True)
        for target in targets
    }
