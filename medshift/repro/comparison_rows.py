"""The rows of 06_baselines: what is trained, what translates with which knobs, and what differs from the originals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# SDEdit's strengths in Table 1, and their tau of equal signal to noise under Stable Diffusion's schedule.
STRENGTHS = (0.1, 0.2, 0.3)
MATCHED = {0.1: 0.745, 0.2: 0.637, 0.3: 0.546}
ENLARGED_STEPS = {"solver": "euler", "grid": "uniform", "steps": 15, "tau": 0.3}
PUBLISHED_STEPS = {"solver": "euler", "grid": "uniform", "steps": 30}  # DDIM's, of Z-STAR


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Args:
        name: as it stands there.
        group: which of the five blocks: floors, ceilings, MedShift, on its network, trained.
        family: see `medshift.stages.compared`.
        method: of the family; of ``trained`` the name of a `Training`.
        options: of its constructor.
        knobs: of its translations.
        chosen: whether its tau is chosen on validation heads.
        random: whether it is judged over several draws of its noise.
    """

    name: str
    group: str
    family: str
    method: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    knobs: Mapping[str, Any] = field(default_factory=dict)
    chosen: bool = False
    random: bool = False

    @property
    def deviation(self) -> str:
        """What differs from the method as published; of a trained method, its own class says it."""
        return DEVIATIONS.get(self.name) or DEVIATIONS.get(self.name.partition("=")[0].removesuffix(" τ"), "")


@dataclass(frozen=True)
class Training:
    """One training: what is trained, on which other result, and the knobs of the translations that watch it."""

    kind: str
    config: Mapping[str, Any] = field(default_factory=dict)
    base: str = ""  # the training whose network it is built on
    paired: bool = False
    knobs: Mapping[str, Any] = field(default_factory=dict)


TRAININGS: Mapping[str, Training] = {
    "same-budget": Training("medshift-same-budget", knobs={"tau": 0.02}),
    "two-networks": Training("two-networks"),
    "hierarchy-flow-0.1": Training("hierarchy-flow", {"style_weight": 0.1}),
    "hierarchy-flow-0.25": Training("hierarchy-flow", {"style_weight": 0.25}),
    "hierarchy-flow-0.4": Training("hierarchy-flow", {"style_weight": 0.4}),
    "cyclegan": Training("cyclegan"),
    "cut": Training("cut"),
    "cyclegan-turbo": Training("cyclegan-turbo-style", base="same-budget"),
    "unsb": Training("unsb"),
    "bridge-independent": Training("direct-bridge", {"coupling": "independent"}),
    "bridge-ot": Training("direct-bridge", {"coupling": "ot"}),
    "bridge-independent-reflow": Training("direct-bridge-reflow", base="bridge-independent"),
    "bridge-ot-reflow": Training("direct-bridge-reflow", base="bridge-ot"),
    "paired-regressor": Training("paired-regressor", paired=True),
}

FLOOR, CEILING, OURS, FREE, TRAIN = "floors", "ceilings", "MedShift", "on MedShift's network", "trained for the pair"
ROWS: tuple[Row, ...] = (
    Row("doing nothing", FLOOR, "codec", "nothing"),
    Row("codec round trip", FLOOR, "codec", "round trip"),
    Row("histogram match", FLOOR, "floor", "histogram"),
    Row("blur + tone curve", FLOOR, "floor", "blur-tone"),
    Row("Fourier amplitudes (FDA)", FLOOR, "floor", "fourier"),
    Row("nearest target training image", FLOOR, "floor", "nearest"),
    Row("physics fit", FLOOR, "floor", "physics-fit", random=True),
    Row("re-simulation", CEILING, "resimulation", "resimulation", random=True),
    Row("paired regressor", CEILING, "trained", "paired-regressor"),
    Row("noise twin", CEILING, "twin"),
    Row("MedShift", OURS, "free", "medshift", chosen=True),
    *(Row(f"MedShift τ={tau:g}", OURS, "free", "medshift", knobs={"tau": tau}) for tau in (0.6, 0.45, 0.3)),
    Row("MedShift, same budget", OURS, "trained", "same-budget", chosen=True),
    *(
        Row(f"SDEdit st={s:g}", FREE, "free", "sdedit", knobs={"tau": MATCHED[s]}, random=True)
        for s in STRENGTHS
    ),
    Row("SDEdit", FREE, "free", "sdedit", chosen=True, random=True),
    Row("DDIB, one network", FREE, "free", "ddib"),
    Row("DDIB, two networks", TRAIN, "trained", "two-networks"),
    Row("CycleDiffusion", FREE, "free", "cycle-diffusion", chosen=True),
    Row("DDPM inversion, edit-friendly", FREE, "free", "edit-friendly", chosen=True),
    Row("FlowEdit", FREE, "free", "flow-edit", chosen=True),
    Row("RF-Solver", FREE, "free", "rf-solver", chosen=True),
    Row("exact inverse of Euler", FREE, "free", "exact-inverse", knobs={"steps": 25}, chosen=True),
    Row("forward-noised start", FREE, "free", "forward-noised", {"start": 0.95}, chosen=True),
    Row("Z-STAR", FREE, "attention", "z-star", knobs=PUBLISHED_STEPS),
    # Enlarged, a network trained at one size does not come back from its own inversion at τ = 0.
    Row("Z-STAR, twice the size, τ=0.3", FREE, "attention", "z-star", {"enlarge": 2}, ENLARGED_STEPS),
    *(
        Row(f"Hierarchy Flow st={s:g}", TRAIN, "trained", f"hierarchy-flow-{s:g}")
        for s in (0.1, 0.25, 0.4)
    ),
    Row("CycleGAN", TRAIN, "trained", "cyclegan"),
    Row("CUT", TRAIN, "trained", "cut"),
    Row("CycleGAN-Turbo-style (own backbone)", TRAIN, "trained", "cyclegan-turbo"),
    Row("UNSB, 1 step", TRAIN, "trained", "unsb", knobs={"steps": 1}),
    *(Row(f"UNSB, {n} steps", TRAIN, "trained", "unsb", knobs={"steps": n}) for n in (2, 3, 4, 5)),
    Row("direct bridge, independent", TRAIN, "trained", "bridge-independent"),
    Row("direct bridge, OT", TRAIN, "trained", "bridge-ot"),
    Row("direct bridge, independent, reflow", TRAIN, "trained", "bridge-independent-reflow"),
    Row("direct bridge, OT, reflow", TRAIN, "trained", "bridge-ot-reflow"),
)  # fmt: skip

DEVIATIONS: Mapping[str, str] = {
    "Fourier amplitudes (FDA)": "The nine lowest frequencies, an unpaired reference for each image, no training.",
    "physics fit": "No published original.",
    "re-simulation": "No published original; it needs line integrals, which images do not have.",
    "MedShift": "Exact patches of 64 pixels, not a VAE of 780; 6.8 M weights, not 385 M; Heun on a refined grid.",
    "SDEdit st": "Our flow network at the τ of equal signal to noise (Stable Diffusion's schedule); one pass of three.",
    "SDEdit": "Our flow network instead of a diffusion model, one pass instead of three; τ chosen on validation heads.",
    "DDIB, one network": "One network with labels instead of two networks; MedShift at τ = 0.",
    "CycleDiffusion": "Posterior steps of the flow's path, 50 on the refined grid, under labels instead of prompts.",
    "DDPM inversion, edit-friendly": "As CycleDiffusion; the start is given as τ, and guidance is 1.",
    "FlowEdit": "Labels instead of prompts, guidance 1, no last steps without averaging.",
    "RF-Solver": "Without the sharing of attention features; its step is the midpoint rule.",
    "exact inverse of Euler": "25 steps on the whole of [0, 1], four fixed-point iterations each.",
    "forward-noised start": "Forward noise down to t = .95 instead of a share of DDIM's steps.",
    "Z-STAR": "Null label and plain inversion, not null-text inversion; one attention module, 16 tokens.",
    "Z-STAR, twice the size, τ=0.3": "As Z-STAR, enlarged without loss, 64 tokens; 15 steps; from τ = 0 it fails.",
}
STAGES = ("compared", "assessed")  # of every row
COMPARISON_STAGES = tuple(f"{stage} {row.name}" for row in ROWS for stage in STAGES)
