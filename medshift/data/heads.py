"""Heads by number, and their split into training, validation and test.

Head 0 is the volume itself, every other head a smooth warp of it (`medshift.data.volume.warp`); of the phantom each
number is an anatomy of its own. Heads are split once, by number, so that no head is ever both learned and tested.
"""

from __future__ import annotations

from dataclasses import dataclass

from medshift.data.cranium import cranium
from medshift.data.ct import head_source
from medshift.data.phantom import phantom
from medshift.data.volume import HeadVolume, warp
from medshift.errors import ParameterError

SOURCES = ("auto", "cranium", "phantom")


@dataclass(frozen=True)
class HeadSplit:
    """How many heads each split has; numbers run on from training to validation to test."""

    train: int = 16
    validation: int = 4
    test: int = 8

    def numbers(self, split: str) -> list[int]:
        """The heads of ``train``, ``validation`` or ``test``."""
        sizes = {"train": self.train, "validation": self.validation, "test": self.test}
        if split not in sizes:
            raise ParameterError(f"No split is called {split!r}; the splits are {', '.join(sizes)}.")
        start = sum(sizes[name] for name in list(sizes)[: list(sizes).index(split)])
        return list(range(start, start + sizes[split]))


class Heads:
    """Heads by number from one source.

    ``auto`` takes the CT where it can be had, else the phantom, and says which in the log; ``cranium`` is the CT or an
    error, never the phantom, and so is a CT that ``MEDSHIFT_CT`` names. `source` is what it is: ``cranium``, ``user``
    (another CT, named by ``MEDSHIFT_CT``) or ``phantom``.
    """

    def __init__(self, source: str = "auto", *, phantom_spacing_mm: float = 1.5):
        if source not in SOURCES:
            raise ParameterError(f"No source of heads is called {source!r}; the sources are {', '.join(SOURCES)}.")
        self.phantom_spacing_mm = phantom_spacing_mm
        self.source = head_source(source).name
        self.base: HeadVolume | None = None if self.source == "phantom" else cranium()

    def __getitem__(self, number: int) -> HeadVolume:
        if self.base is None:
            return phantom(number, spacing_mm=self.phantom_spacing_mm)
        return self.base if number == 0 else warp(self.base, number)
