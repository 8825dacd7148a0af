"""What a profile would take on a GPU that nobody has timed it on: counted operations over an assumed speed.

Everything here is extrapolation. Operations are counted (`medshift.costs.flops`), how often each is done follows from
the plans of the profile (`medshift.costs.workload`), and the speed is an assumption: a share of what the maker says the
device can do in dense bfloat16. Small networks reach less than that share; what is in `NOT_COUNTED` comes on top.

    python -m medshift.costs.extrapolation                        # the tables of docs/scale.md
    python -m medshift.costs.extrapolation --teraflops 200 --price 2.5
    python -m medshift.costs.extrapolation --steps build/steps.json --profile gpu     # from measured steps instead
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

from medshift.costs import flops
from medshift.costs.assumed import DEVICES, LINKS, Device, assumptions, markdown, ring_seconds
from medshift.costs.measured import measured_table, measured_verdict, read_steps
from medshift.costs.workload import work_of
from medshift.errors import ParameterError
from medshift.ode import leg_knots, stages
from medshift.repro.accumulation import memory_table
from medshift.repro.profiles import Profile, load_profile

SEEDS, LIMIT = 3, 60.0  # trainings of everything, and minutes that are asked about
SD_VAE = ((128, 256, 512, 512), 4)  # widths and channels of Stable Diffusion's autoencoder

NOT_COUNTED = (
    "projecting views and drawing noise (01), metrics and their feature networks, classifiers, intervals, figures",
    "validation losses and pictures during training",
    "normalisation, activations, the optimiser and the moving average: few operations, much memory traffic",
    "baselines without a network, the adaptive solver dopri5, failures shown in 99, optimal-transport assignments",
    "start-up, compilation, loading, writing checkpoints",
)


def profile_flops(profile: Profile) -> dict[str, float]:
    """Part of the profile -> floating-point operations, for one seed."""
    return {name: sum(one.operations for one in some) for name, some in work_of(profile).items()}


def training_flops(preset: str, channels: int, side: int, images: int, encoding: float = 0.0) -> float:
    """Operations of a training: each image encoded, evaluated, and its gradient taken."""
    return images * (flops.evaluation(preset, channels, side, backward=True) + encoding)


def translation_flops(
    preset: str, channels: int, side: int, tau: float, solver: str, grid: str, steps: int, codec: float = 0.0
) -> tuple[int, float]:
    """Evaluations of one translation without guidance, and its operations; `codec` are those of encoding and decoding.

    Raises:
        ParameterError: tau, solver, grid or steps out of range.
    """
    nfe = 2 * stages(solver) * (len(leg_knots(tau, grid, steps)) - 1)
    return nfe, nfe * flops.evaluation(preset, channels, side) + codec


def profile_table(
    name: str, flops_of: Mapping[str, float], devices: Sequence[Device] = DEVICES, seeds: int = SEEDS
) -> list[str]:
    """Lines of Markdown: minutes of each part of a profile on each device, all seeds together.

    Args:
        name: of the profile.
        flops_of: its parts, see `profile_flops`.
        devices: one column each.
        seeds: trainings of everything.

    Raises:
        ParameterError: fewer than one seed.
    """
    if seeds < 1:
        raise ParameterError(f"seeds is {seeds}, expected 1 or more.")
    parts = {part: seeds * value for part, value in flops_of.items()}
    header = [f"{seeds} {'seeds' if seeds > 1 else 'seed'} of `{name}`", "PFLOP", *(f"{d.name} [min]" for d in devices)]
    rows = [_row(part, value, devices) for part, value in parts.items()]
    total = _row("**together**", sum(parts.values()), devices)
    prices = ["cost at the assumed price", "", *(f"{_hours(sum(parts.values()), d) * d.price:.2f}" for d in devices)]
    return markdown(header, [*rows, total, prices])


def verdict(
    name: str, flops_of: Mapping[str, float], device: Device = DEVICES[0], seeds: int = SEEDS, limit: float = LIMIT
) -> str:
    """In words, whether a profile fits into `limit` minutes by this count, and what each part is of it."""
    parts = {part: device.seconds(seeds * value) / 60 for part, value in flops_of.items()}
    total = sum(parts.values())
    told = "; ".join(f"{part} {parts[part]:.0f} min" for part in sorted(parts, key=lambda part: -parts[part]))
    fits = total <= limit
    over = f"that is {'within' if fits else f'{total / limit:.1f} times'} the {limit:g} minutes asked about"
    took = "one seed" if seeds == 1 else f"{seeds} seeds"
    return (
        f"Counted so, {took} of `{name}`: {total:.0f} minutes on one {device.name} at {device.share:.0%} of its peak; "
        f"{over}. It would fit at {device.share * total / limit:.0%} of the peak. Its parts: {told}."
    )


def large_table(devices: Sequence[Device] = DEVICES) -> list[str]:
    """Lines of Markdown: hours and cost of translating a million images, and of training at 1024²."""
    gpu = load_profile("gpu")
    widths, channels = tuple(gpu.kl.widths), gpu.kl.channels
    side = gpu.size // gpu.codec.factor
    both = flops.encoding(widths, channels, gpu.size) + flops.decoding(widths, channels, gpu.size)
    work = {}
    ways: Mapping[str, tuple[str, str, int]] = {
        "50 uniform Euler steps": ("euler", "uniform", 50),
        "15 refined Heun intervals": ("heun", "refined", 15),
        "15 refined Euler intervals": ("euler", "refined", 15),
    }
    for name, (solver, grid, steps) in ways.items():
        nfe, one = translation_flops(gpu.train.network, channels, side, 0.3, solver, grid, steps, both)
        work[f"10⁶ translations at 256², `gpu`, τ = 0.3, {name}: {nfe} evaluations each"] = 1e6 * one
    encoding = flops.encoding(widths, channels, 1024)
    one = training_flops(gpu.train.network, channels, 1024 // gpu.codec.factor, gpu.train.images, encoding)
    work[f"{SEEDS} trainings at 1024², network `gpu`, latents of 256², {gpu.train.images:,} images each"] = SEEDS * one
    paper = load_profile("paper")
    encoding = flops.encoding(*SD_VAE, 1024, layers=2, attention=True)
    one = training_flops(paper.train.network, SD_VAE[1], 1024 // paper.codec.factor, paper.train.images, encoding)
    work[f"{SEEDS} trainings at 1024², network `paper`, latents of 128², {paper.train.images:,} images each"] = (
        SEEDS * one
    )
    header = ["work", "PFLOP", *(f"{d.name} [h], cost" for d in devices)]
    rows = [
        [name, _peta(value), *(f"{_hours(value, d):.1f}, {_hours(value, d) * d.price:.0f}" for d in devices)]
        for name, value in work.items()
    ]
    return markdown(header, rows)


def unit_table() -> list[str]:
    """Lines of Markdown: operations of an evaluation and of a training step, an image, for each profile's network."""
    rows = []
    for name in ("cpu", "gpu", "paper"):
        profile = load_profile(name)
        channels, encoding = _latents(profile)
        side = profile.size // profile.codec.factor
        once = flops.evaluation(profile.train.network, channels, side)
        step = flops.evaluation(profile.train.network, channels, side, backward=True)
        weights = flops.parameters(profile.train.network, channels)
        cells = [f"{weights / 1e6:.1f}", f"{once / 1e9:.3g}", f"{step / 1e9:.3g}", f"{step / once:.2f}"]
        rows.append([f"`{name}`, {profile.size}², latents {side}²", *cells, f"{encoding / 1e9:.3g}"])
    header = ["network", "weights [10⁶]", "evaluation [GFLOP]", "with gradient [GFLOP]", "ratio", "encoding [GFLOP]"]
    return markdown(header, rows)


def _latents(profile: Profile) -> tuple[int, float]:
    """Channels of a profile's latents, and operations of encoding an image of its size."""
    if profile.codec.kind == "patch":
        return profile.codec.factor**2, 0.0
    if profile.codec.kind == "kl":
        return profile.kl.channels, flops.encoding(tuple(profile.kl.widths), profile.kl.channels, profile.size)
    return SD_VAE[1], flops.encoding(*SD_VAE, profile.size, layers=2, attention=True)


def parallel_table(device: Device = DEVICES[0], counts: Sequence[int] = (1, 2, 4, 8, 64)) -> list[str]:
    """Lines of Markdown: step time and speed-up of N GPUs on paper, the network's gradients averaged after each step.

    A ring passes 2 (N - 1) / N of the gradients, four bytes a weight, through every link. Nothing of it overlaps with
    the computation, see `medshift.processes.World`. The effective batch is that of the profile, shared by N.
    """
    profile = load_profile("gpu")
    own, side = profile.train, profile.size // profile.codec.factor
    _, encoding = _latents(profile)
    weights = flops.parameters(own.network, profile.kl.channels)
    whole = device.seconds(training_flops(own.network, profile.kl.channels, side, own.batch, encoding))
    rows = []
    for n in counts:
        cells = [str(n), f"{own.batch / n:g}", f"{1e3 * whole / n:.2f}"]
        for bandwidth in LINKS.values():
            passing = ring_seconds(weights, n, bandwidth)
            cells += [f"{1e3 * passing:.2f}", f"{whole / (whole / n + passing):.2f}"]
        rows.append(cells)
    header = ["N", "images each", "computing [ms]"]
    header += [cell for link in LINKS for cell in (f"averaging over {link} [ms]", "speed-up")]
    return markdown(header, rows)


def tables() -> dict[str, str]:
    """Name -> Markdown of everything that docs/scale.md takes from here."""
    parts = profile_flops(load_profile("gpu"))
    made = {
        "assumptions": assumptions(),
        "units": unit_table(),
        "profile": profile_table("gpu", parts),
        "verdict": [verdict("gpu", parts), "", verdict("gpu", parts, seeds=1)],
        "missing": [f"- {line};" for line in NOT_COUNTED],
        "memory": memory_table().splitlines(),
        "large": large_table(),
        "parallel": parallel_table(),
    }
    return {name: "\n".join(lines) for name, lines in made.items()}


def _row(name: str, operations: float, devices: Sequence[Device]) -> list[str]:
    return [name, _peta(operations), *(f"{device.seconds(operations) / 60:.1f}" for device in devices)]


def _peta(operations: float) -> str:
    return f"{operations / 1e15:,.0f}" if operations >= 1e16 else f"{operations / 1e15:.2g}"


def _hours(operations: float, device: Device) -> float:
    return device.seconds(operations) / 3600


def main() -> None:
    """Print the tables of docs/scale.md, or those of a profile at another speed and price."""
    parser = argparse.ArgumentParser(prog="python -m medshift.costs.extrapolation", description=main.__doc__)
    parser.add_argument("--teraflops", type=float, help="achieved TFLOP/s of one device")
    parser.add_argument("--steps", help="the file of measured steps that `make bench` writes, in place of a speed")
    parser.add_argument("--price", type=float, default=0.0, help="of an hour")
    parser.add_argument("--profile", default="gpu", help="cpu or gpu")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    own = parser.parse_args()
    if own.steps is not None:
        steps, work = read_steps(own.steps), work_of(load_profile(own.profile))
        verdicts = [measured_verdict(own.profile, work, steps, seeds, LIMIT) for seeds in sorted({1, own.seeds})]
        print("\n\n".join(["\n".join(measured_table(own.profile, work, steps, own.seeds)), *verdicts]))
        return
    if own.teraflops is None:
        print("\n\n".join(f"<!-- {name} -->\n{text}" for name, text in tables().items()))
        return
    device = Device("given device", 1e12 * own.teraflops, own.price, share=1.0)
    parts = profile_flops(load_profile(own.profile))
    print("\n".join([*profile_table(own.profile, parts, [device], own.seeds), "", *large_table([device])]))


if __name__ == "__main__":
    main()
