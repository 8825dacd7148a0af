"""The rows of 06_baselines: what is trained, what translates with which knobs, and what differs from the originals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

# SDEdit's strengths in Table 1, and their tau of equal signal to noise under Stable Diffusion's schedule.
STRENGTHS = (0.1, 0.2, 0.3)
MATCHED = {0.1: 0.745, 0.2: 0.637, 0.3: 0.546}
ENLARGED_STEPS = {"solver": "euler", "grid": "uniform", "steps": 15, "tau": 0.3}
DEAR = 2  # draws of a method that takes a hundred evaluations for each
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
        random: whether it is judged over several draws of its noise: as many as the profile says,
        most_draws: or fewer, where a draw is dear.
    """

    name: str
    group: str
    family: str
    method: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    knobs: Mapping[str, Any] = field(default_factory=dict)
    chosen: bool = False
    random: bool = False
    most_draws: int | None = None

    @property
    def deviation(self) -> str:
        """What differs from the method as published; of a trained method, its own class says it."""
        name = self.name.partition(", seed")[0]
        return DEVIATIONS.get(name) or DEVIATIONS.get(name.partition("=")[0].removesuffix(" τ"), "")

    @property
    def searched(self) -> str:
        """What differs beside that by a search of ours, and so is not for its class to say."""
        return SEARCHED.get(self.name.partition(",")[0], "")


@dataclass(frozen=True)
class Training:
    """One training: what is trained, on which other result, and the knobs of the translations that watch it.

    ``seed`` is added to the profile's.
    """

    kind: str
    config: Mapping[str, Any] = field(default_factory=dict)
    base: str = ""  # the training whose network it is built on
    paired: bool = False
    knobs: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0


# Learning rates that stand here are those that the grids comparison_search and comparison_search_full found better on
# validation heads than the methods' own, which the others keep.
TRAININGS: Mapping[str, Training] = {
    "same-budget": Training("medshift-same-budget", {"learning_rate": 3e-3}, knobs={"tau": 0.02}),
    "two-networks": Training("two-networks", {"learning_rate": 3e-3}),
    "hierarchy-flow-0.1": Training("hierarchy-flow", {"style_weight": 0.1}),
    "hierarchy-flow-0.25": Training("hierarchy-flow", {"style_weight": 0.25}),
    "hierarchy-flow-0.4": Training("hierarchy-flow", {"style_weight": 0.4}),
    "cyclegan": Training("cyclegan", {"learning_rate": 6e-4}),
    "cut": Training("cut"),
    "fast-cut": Training("cut", {"lambda_nce": 10.0, "identity": False}),
    "cyclegan-turbo": Training("cyclegan-turbo-style", base="same-budget"),
    "unsb": Training("unsb", {"learning_rate": 6e-4}),
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
    Row("CycleDiffusion", FREE, "free", "cycle-diffusion", chosen=True, random=True, most_draws=DEAR),
    Row("DDPM inversion, edit-friendly", FREE, "free", "edit-friendly", chosen=True, random=True, most_draws=DEAR),
    Row("FlowEdit", FREE, "free", "flow-edit", chosen=True, random=True, most_draws=DEAR),
    Row("RF-Solver", FREE, "free", "rf-solver", chosen=True),
    Row("exact inverse of Euler", FREE, "free", "exact-inverse", knobs={"steps": 25}, chosen=True),
    Row("forward-noised start", FREE, "free", "forward-noised", {"start": 0.95}, chosen=True, random=True),
    Row("Z-STAR", FREE, "attention", "z-star", knobs=PUBLISHED_STEPS),
    # Enlarged, a network trained at one size does not come back from its own inversion at τ = 0.
    Row("Z-STAR, twice the size, τ=0.3", FREE, "attention", "z-star", {"enlarge": 2}, ENLARGED_STEPS),
    *(
        Row(f"Hierarchy Flow st={s:g}", TRAIN, "trained", f"hierarchy-flow-{s:g}")
        for s in (0.1, 0.25, 0.4)
    ),
    Row("CycleGAN", TRAIN, "trained", "cyclegan"),
    Row("CUT", TRAIN, "trained", "cut"),
    Row("FastCUT", TRAIN, "trained", "fast-cut"),
    Row("CycleGAN-Turbo-style (own backbone)", TRAIN, "trained", "cyclegan-turbo"),
    Row("UNSB, 1 step", TRAIN, "trained", "unsb", knobs={"steps": 1}, random=True),
    *(Row(f"UNSB, {n} steps", TRAIN, "trained", "unsb", knobs={"steps": n}, random=True) for n in (2, 3, 4, 5)),
    Row("direct bridge, independent", TRAIN, "trained", "bridge-independent"),
    Row("direct bridge, OT", TRAIN, "trained", "bridge-ot"),
    Row("direct bridge, independent, reflow", TRAIN, "trained", "bridge-independent-reflow"),
    Row("direct bridge, OT, reflow", TRAIN, "trained", "bridge-ot-reflow"),
)  # fmt: skip

_BRIDGE = (
    "A network of 1 M parameters on latents, AdamW at a rate of 1e-3; where couples come by optimal transport, 16 at a "
    "time and by low-pass features free of brightness and contrast instead of pixels."
)
_REFLOW = (
    "AdamW at a rate of 5e-4; the teacher makes each couple within the step, by few Heun steps, so none is seen twice; "
    "only the source's half of a batch is used; what the teacher has seen comes on top."
)
DEVIATIONS: Mapping[str, str] = {
    "Fourier amplitudes (FDA)": "The nine lowest frequencies, an unpaired reference for each image, no training.",
    "physics fit": "No published original.",
    "re-simulation": "No published original; it needs line integrals, which images do not have.",
    "MedShift": "Exact patches of 64 pixels, not a VAE of 780; 6.8 M weights, not 385 M; Heun on a refined grid.",
    "SDEdit st": "Our flow network at the τ of equal signal to noise (Stable Diffusion's schedule); one pass of three.",
    "SDEdit": "Our flow network instead of a diffusion model, one pass instead of three; τ chosen on validation heads.",
    "MedShift, same budget": "Two domains instead of five, 1.0 M weights; watched at τ = .02, ranked at the chosen τ.",
    "DDIB, one network": "One network with labels instead of two networks; MedShift at τ = 0.",
    "DDIB, two networks": (
        "Flow matching on the linear path and an ODE solver of few steps instead of 1000-step diffusion models with "
        "DDIM; two networks of one million weights, AdamW at a rate of 3e-3."
    ),
    "direct bridge, independent": _BRIDGE,
    "direct bridge, OT": _BRIDGE,
    "direct bridge, independent, reflow": _REFLOW,
    "direct bridge, OT, reflow": _REFLOW,
    "CycleDiffusion": "Posterior steps of the flow's path, 50, refined grid; labels for prompts; two draws at most.",
    "DDPM inversion, edit-friendly": "As CycleDiffusion; the start is given as τ, guidance 1; two draws at most.",
    "FlowEdit": "Labels instead of prompts, guidance 1, no last steps without averaging; two draws at most.",
    "RF-Solver": "Without the sharing of attention features; its step is the midpoint rule.",
    "exact inverse of Euler": "25 steps on the whole of [0, 1], four fixed-point iterations each.",
    "forward-noised start": "Forward noise down to t = .95 instead of a share of DDIM's steps.",
    "FastCUT": (
        "As CUT, with λ_NCE = 10 and no identity term; without the published flips, which are no augmentation of views "
        "whose side is known."
    ),
    "CycleGAN-Turbo-style (own backbone)": (
        "The backbone is our own undistilled velocity network, asked once at t = .5 and not at all noise; adapters of "
        "rank 16 instead of 128, learnt at a rate of 1e-3 instead of 1e-5; the skips join its U-Net's halves instead "
        "of an autoencoder's; Shift-Tolerant LPIPS stands for LPIPS-VGG and a least-squares multilevel PatchGAN for "
        "the CLIP discriminator."
    ),
    "Z-STAR": "Null label and plain inversion, not null-text inversion; one attention module, 16 tokens.",
    "Z-STAR, twice the size, τ=0.3": "As Z-STAR, enlarged without loss, 64 tokens; 15 steps; from τ = 0 it fails.",
}
_RATE = "Three times the published learning rate, as searched on validation heads."
SEARCHED: Mapping[str, str] = {"CycleGAN": _RATE, "UNSB": _RATE}
STAGES = ("compared", "assessed")  # of every row
MOST_SEEDS = 3  # of a profile


def seeded(name: str, seed: int) -> str:
    """What a training is called that differs from the one of this name in its seed."""
    return f"{name}-seed-{seed}" if seed else name


def trainings_of(seeds: int) -> dict[str, Training]:
    """Every training under each of so many seeds, by name; what one is built on has its seed and comes before it."""
    return {
        seeded(name, k): replace(training, base=training.base and seeded(training.base, k), seed=k)
        for k in range(seeds)
        for name, training in TRAININGS.items()
    }


def repeated(row: Row, seeds: int) -> tuple[Row, ...]:
    """A row of the table, and where its method is trained the same under so many seeds in all: the row itself first."""
    if row.family != "trained":
        return (row,)
    others = (replace(row, name=f"{row.name}, seed {k}", method=seeded(row.method, k)) for k in range(1, seeds))
    return (row, *others)


COMPARISON_STAGES = tuple(
    f"{stage} {one.name}" for row in ROWS for one in repeated(row, MOST_SEEDS) for stage in STAGES
)
