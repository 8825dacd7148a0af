"""Re-simulation: acquire the target's image from the line integrals behind the source's, and translate nothing.

Why translate at all, if the simulator could be given the real detector's physics? This is that answer: the volume of
the source domain, be it the simulator's segmented one, seen in the same pose by the target domain's own acquisition
chain (beam, scatter, quanta, detector, display; `medshift.data.acquisition`).

It is no image translator and has what these lack: the line integrals of water and bone along every ray, free of noise
and of any display curve; the collimator's outline and the field of view; and the target's chain itself with all of its
constants, which nobody knows of a real machine this well. What it cannot have is what the simulator's volume has lost
(thin bone, the diploë, the texture of tissue): its distance to the truth is the volume's share of the gap between the
domains, and what remains between a translator and it is the translator's. Where the source's volume is the
target's own, its images are further exposures of the truth.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from medshift.data.acquisition import acquire
from medshift.data.domains import DOMAINS, EXPOSURES, EvaluationSet, domain_index, is_synthetic, poses_of
from medshift.data.projection import load_projections
from medshift.errors import ParameterError

__all__ = ["Resimulation"]

NUMBERS = 64  # that seeds of an `EvaluationSet` leave for each view and domain; it uses the first `EXPOSURES`


class Resimulation:
    """Images of a target domain from the line integrals of the source domain's volume.

    Args:
        folder: what `medshift.data.domains.render` wrote and the views to re-simulate were read from.
    """

    name = "re-simulation"
    needs_pairs = False

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def resimulated(self, views: EvaluationSet, source: str | int, target: str | int, seed: int) -> Tensor:
        """Exposures (N,1,H,W) of `target` from the volume of `source`.

        A view's noise depends on the view, the target and the seed, not on the views beside it, and is that of none of
        the exposures 0 to 7 of the set.

        Args:
            views: whose poses, in its order.
            source: domain that lends its volume: name or label.
            target: domain that lends its acquisition chain.
            seed: 0 to 55; another for each exposure wanted.

        Raises:
            ParameterError: an unknown domain, a seed out of its range, or views of another folder.
            DataError: the file of line integrals is missing or damaged.
        """
        if not 0 <= seed < NUMBERS - EXPOSURES:
            raise ParameterError(f"The seed is {seed}, expected 0 to {NUMBERS - EXPOSURES - 1}.")
        label = domain_index(target)
        lines, fov = self._rays(views, source)
        seeds = [(int(s) * NUMBERS + label) * NUMBERS + EXPOSURES + seed for s in views.table["seed"]]
        exposures = [
            acquire(
                lines[i : i + 1],
                views.open_field[i : i + 1],
                fov[i : i + 1],
                DOMAINS[label],
                generator=torch.Generator().manual_seed(own),
            )
            for i, own in enumerate(seeds)
        ]
        return torch.cat(exposures)

    def clean(self, views: EvaluationSet, source: str | int, target: str | int) -> Tensor:
        """The same images (N,1,H,W) free of noise; arguments and errors as in `resimulated`."""
        lines, fov = self._rays(views, source)
        return acquire(lines, views.open_field, fov, DOMAINS[domain_index(target)], generator=None, clean=True)

    def _rays(self, views: EvaluationSet, source: str | int) -> tuple[Tensor, Tensor]:
        """Line integrals (N,2,H,W) [mm] of the source's volume and the fields of view (N,) [mm]."""
        kind = "simulated" if is_synthetic(source) else "real"
        path = self.folder / f"{views.role}.{kind}.safetensors"
        held, n = load_projections(path), len(views)
        if len(held.poses) < n or not torch.allclose(held.poses[:n], poses_of(views.table)):
            raise ParameterError(f"The views are not those of {path}; give the folder that they were read from.")
        fov = torch.tensor(views.table["fov"].to_numpy(), dtype=torch.float32)
        return held.line_integrals[:n].float(), fov
