"""What ``train.accumulation: auto`` stands for: the fewest micro-batches of a step that this machine's GPU holds.

Without a GPU it is 1. With several it is what the smallest holds, and a run's ``device`` plays no part, so that a plan
is the same for every process of a machine. Micro-batches are part of a result's identity: a network trained on another
kind of GPU is found again under that number, as ``--set train.accumulation=2``.
"""

from __future__ import annotations

from medshift.repro.profiles import Profile, load_profile

SD_CHANNELS = 4  # latents of Stable Diffusion's autoencoders; memory hardly depends on them
SHOWN = (1, 8, 16, 32, 64, 128)  # images of a micro-batch


def latent_shape(profile: Profile, kind: str, factor: int) -> tuple[int, int]:
    """Side and channels of a profile's latents under a codec of this kind and factor."""
    if kind == "kl":
        factor = 2 ** (len(profile.kl.widths) - 1)
    channels = {"patch": factor**2, "kl": profile.kl.channels, "pretrained": SD_CHANNELS}[kind]
    return -(-profile.size // factor), channels


def fitted(profile: Profile, *, kind: str, factor: int, width: float) -> tuple[int, str]:
    """The micro-batches of a step on this machine, and a line for the user where they are several.

    Args:
        profile: whose network and batch it is.
        kind: of the codec.
        factor: of the codec.
        width: of the network's channels, as a factor.

    Raises:
        ParameterError: not even one image fits.
    """
    import torch

    if not torch.cuda.is_available():
        return 1, ""
    from medshift.memory import GIB, accumulation_that_fits, training_memory, usable_bytes
    from medshift.schedules import autocast_dtype

    side, channels = latent_shape(profile, kind, factor)
    name, batch, dtype = profile.train.network, profile.train.batch, autocast_dtype("cuda")
    memory = training_memory(name, side=side, channels=channels, width=width, dtype=dtype)
    total = min(torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count()))
    usable = usable_bytes(total)
    parts = accumulation_that_fits(batch, usable, memory.state + memory.fixed, memory.per_image)
    if parts == 1:
        return 1, ""
    return parts, (
        f"This GPU has {total / GIB:.1f} GiB, of which {usable / GIB:.1f} are planned with; a batch of {batch} takes "
        f"about {memory.at(batch) / GIB:.1f}: trained as {parts} micro-batches of {batch // parts}, the same batch in "
        "effect."
    )


def memory_table(names: tuple[str, ...] = ("cpu", "gpu", "paper")) -> str:
    """Estimated GiB of a GPU's memory for the networks of these profiles, by images of a micro-batch, as Markdown."""
    from medshift.memory import GIB, evaluation_memory, training_memory

    lines = ["| profile | network | latents | | " + " | ".join(map(str, SHOWN)) + " |"]
    lines.append("| --- | --- | --- | --- |" + " ---: |" * len(SHOWN))
    for name in names:
        profile = load_profile(name)
        side, channels = latent_shape(profile, profile.codec.kind, profile.codec.factor)
        for what, of in (("training", training_memory), ("evaluation, guided", evaluation_memory)):
            memory = of(profile.train.network, side=side, channels=channels)
            cells = " | ".join(f"{memory.at(n) / GIB:.2f}" for n in SHOWN)
            lines.append(f"| {name} | {profile.train.network} | {channels} × {side} × {side} | {what} | {cells} |")
    return "\n".join(lines) + "\n"
