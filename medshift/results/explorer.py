"""99: what the explorer shows at each setting of its dials, read from a lattice."""

from __future__ import annotations

import pandas as pd
from torch import Tensor

from medshift.metrics.structure import psnr, ssim
from medshift.stages.lattice import WRONG, Lattice
from medshift.viz.explorer import Curve, Shown

# What to look at, one line a failure, by its name.
LESSONS = {
    "τ too low: anatomy is invented": "At τ = 0 only noise is left of the source's fine structure; look at the rim.",
    "τ too high: nothing changes": "The legs are too short for the target's tone: the error is the gap itself.",
    "guidance too high": "Pushed away from the mean of all domains: contrast overshoots, edges sharpen.",
    "guidance on the decode leg alone": "What one leg adds the other does not take back.",
    "too few steps of Euler": "The legs no longer undo each other: noise is lost, and another head comes back.",
    "clean source: the latent collapses": "No noise to be blown up: z_τ has less contrast than noised data.",
    "an object that no training head has": "It is carried over, not erased; compare its contrast with the truth's.",
}


def pair_name(pair: tuple[str, str]) -> str:
    """``source → target``."""
    return f"{pair[0]} → {pair[1]}"


def shown_at(lattice: Lattice, pair: int, view: int, tau: int, scale: int) -> Shown:
    """What stands at one place of the lattice, each dial given by its index."""
    row = lattice.places[pair, view, scale, tau]
    words = f"τ = {lattice.taus[tau]:g}, guidance {lattice.scales[scale]:g}: {measures_in_words(*row)}"
    result = lattice.tensors[f"up/{pair}/{scale}"][tau, -1, view].float()
    return Shown(
        lattice.tensors[f"source/{pair}"][view].float(),
        result,
        lattice.tensors[f"truth/{pair}"][view].float(),
        words,
        curves_of(lattice, pair, view),
        row,
    )


def measures_in_words(structure: float, agreement: float) -> str:
    """``SSIM to the source 0.912, 30.1 dB to the truth``."""
    return f"SSIM to the source {structure:.3f}, {agreement:.1f} dB to the truth"


def measured_of(shown: Shown, field: Tensor) -> tuple[float, float]:
    """SSIM to the source and PSNR to the truth [dB] inside the open field (1,H,W), of a result with a truth."""
    assert shown.truth is not None
    result, mask = shown.result[None], field[None]
    return float(ssim(result, shown.source[None], mask)), float(psnr(result, shown.truth[None], mask))


def curves_of(lattice: Lattice, pair: int, view: int) -> tuple[Curve, ...]:
    """The trade-off of one view, a curve a guidance scale."""
    places = lattice.places
    curves = []
    for s, scale in enumerate(lattice.scales):
        points = [places[pair, view, s, t] for t in range(len(lattice.taus))]
        structure, agreement = zip(*points, strict=True)
        curves.append(Curve(f"guidance {scale:g}", lattice.taus, structure, agreement))
    return tuple(curves)


def leg_at(lattice: Lattice, pair: int, view: int, tau: int, scale: int) -> tuple[list[Tensor], list[str]]:
    """The trajectory of the latent, decoded: down under the source's label, z_τ, up under the target's; with titles."""
    taus, n = lattice.taus, len(lattice.taus)
    down, up = lattice.tensors[f"down/{pair}/{scale}"], lattice.tensors[f"up/{pair}/{scale}"]
    frames = [lattice.tensors[f"source/{pair}"][view], *(down[t, view] for t in range(n - 1, tau - 1, -1))]
    titles = ["t = 1", *(f"↓ {taus[t]:g}" for t in range(n - 1, tau, -1)), f"z_τ, {taus[tau]:g}"]
    frames += [up[tau, t, view] for t in range(tau + 1, n + 1)]
    titles += [*(f"↑ {taus[t]:g}" for t in range(tau + 1, n)), "t = 1"]
    return [frame.float() for frame in frames], titles


def failures_of(lattice: Lattice) -> dict[str, Shown]:
    """Every failure of the gallery by its name; what to look at is in `LESSONS`."""
    found = {}
    field = lattice.tensors["open_field"]
    for number, (name, wrong) in enumerate(lattice.failures.items()):
        pair, view = int(wrong["pair"]), int(wrong["view"])
        source, result = (lattice.tensors[f"{WRONG}/{number}/{part}"][0].float() for part in ("source", "result"))
        bare = Shown(source, result, lattice.tensors[f"truth/{pair}"][view].float())
        here = measured_of(bare, field[view])
        knobs = ", ".join(f"{knob} = {value}" for knob, value in wrong["knobs"].items()).replace("tau", "τ")
        words = f"{knobs}: {measures_in_words(*here)}"
        place = view % len(lattice.views)
        found[name] = Shown(bare.source, bare.result, bare.truth, words, curves_of(lattice, pair, place), here)
    return found


def gallery_table(lattice: Lattice) -> pd.DataFrame:
    """One row a failure: knobs, SSIM to the source, PSNR to the truth [dB], to three decimals."""
    rows = []
    for name, shown in failures_of(lattice).items():
        assert shown.here is not None
        knobs = ", ".join(f"{k} = {v}" for k, v in lattice.failures[name]["knobs"].items())
        structure, agreement = (round(value, 3) for value in shown.here)
        rows.append({"failure": name, "knobs": knobs, "SSIM to source": structure, "PSNR [dB]": agreement})
    return pd.DataFrame(rows)
