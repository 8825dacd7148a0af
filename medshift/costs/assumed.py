"""What `medshift.costs.extrapolation` assumes of devices and of the links between them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from medshift.errors import ParameterError

__all__ = ["DEVICES", "LINKS", "SHARE", "Device", "assumptions", "markdown", "ring_seconds"]

SHARE = 0.4  # of the peak that is assumed to be reached
LINKS = {"NVLink, 450 GB/s": 450e9, "25 GbE, 3 GB/s": 3e9}  # bytes/s in one direction


@dataclass(frozen=True)
class Device:
    """A GPU as assumed.

    Args:
        name: of the device.
        peak: FLOP/s of dense matrix products in bfloat16, as the maker says.
        price: of an hour, in any currency.
        share: of the peak that is reached.
    """

    name: str
    peak: float
    price: float
    share: float = SHARE

    def __post_init__(self) -> None:
        if not (0 < self.peak < math.inf and 0 < self.share <= 1 and 0 <= self.price < math.inf):
            raise ParameterError(f"{self}: expected a peak above 0, a share in (0, 1] and a price of 0 or more.")

    def seconds(self, operations: float) -> float:
        """Seconds for that many floating-point operations.

        Raises:
            ParameterError: fewer than none.
        """
        if not 0 <= operations < math.inf:
            raise ParameterError(f"{operations} operations; expected a number of 0 or more.")
        return operations / (self.share * self.peak)


DEVICES = (
    Device("H100 SXM", 989e12, 3.0),
    Device("A100", 312e12, 1.5),
    Device("RTX 4090", 165e12, 0.5),
)


def ring_seconds(weights: int, n: int, bandwidth: float) -> float:
    """Seconds of averaging float32 gradients around a ring of `n`, its links passing `bandwidth` bytes/s.

    Raises:
        ParameterError: no process, or no bandwidth.
    """
    if n < 1 or not 0 < bandwidth < math.inf:
        raise ParameterError(f"n is {n} and the bandwidth {bandwidth}; expected 1 or more, and above 0.")
    return 4 * weights * 2 * (n - 1) / n / bandwidth


def assumptions(devices: Sequence[Device] = DEVICES) -> list[str]:
    """Lines of Markdown: what is assumed of each device."""
    header = ["device", "dense bfloat16 peak [TFLOP/s]", "assumed share", "assumed price of an hour"]
    rows = [[d.name, f"{d.peak / 1e12:.0f}", f"{d.share:.0%}", f"{d.price:.2f}"] for d in devices]
    return markdown(header, rows)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table."""
    return ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)]
