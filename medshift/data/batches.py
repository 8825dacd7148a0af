"""Random choices on the host, images on the device: how a batch is drawn without waiting for a GPU.

Which views a batch shows is chosen on the host, where a number costs nothing to read; projections stay there, since
those of a large profile would fill a small GPU, and the chosen ones are sent. Noise is drawn where the images are made.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ["host_generator", "sent"]

PHILOX = 4  # a GPU's generator counts in steps of four


def host_generator(generator: torch.Generator) -> torch.Generator:
    """`generator` itself if it is the host's; else one on the host, seeded by where a GPU's generator stands.

    That one moves on as if a number had been drawn, and nothing waits for the GPU.
    """
    if generator.device.type == "cpu":
        return generator
    offset = generator.get_offset()
    generator.set_offset(offset + PHILOX)
    words = np.random.SeedSequence((generator.initial_seed(), offset)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(words[0] >> 1))


def sent(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A tensor of the host on a device; on its way to a GPU nobody waits for it."""
    if torch.device(device).type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
