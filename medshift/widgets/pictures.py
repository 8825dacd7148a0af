"""Pictures that dials choose between, all drawn before anything moves.

A move is answered from memory: the kernel only hands over bytes. The static forms, a filmstrip and an HTML player, are
made of the same bytes, so that a page without a kernel shows what the sliders do.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from PIL import Image

from medshift.errors import ParameterError

DOTS = 100  # per inch of a frame
STRIP = 5  # frames of a filmstrip at most
Place = tuple[int, ...]  # one index a dial


@dataclass(frozen=True)
class Dial:
    """One thing that is turned.

    Args:
        name: what it sets, with its unit.
        values: as they are written beside the slider, in order.
        start: index of the one that is shown first.

    Raises:
        ParameterError: no values, or a start beyond them.
    """

    name: str
    values: tuple[str, ...]
    start: int = 0

    def __post_init__(self) -> None:
        """Check that there is something to turn."""
        object.__setattr__(self, "values", tuple(map(str, self.values)))
        if not 0 <= self.start < len(self.values):
            raise ParameterError(
                f"The dial {self.name!r} has {len(self.values)} values and starts at number {self.start}; "
                "give at least one value, and the index of one of them."
            )


@dataclass(frozen=True)
class Pictures:
    """A picture for every setting of some dials.

    Args:
        title: above them.
        dials: in the order of the indices.
        frames: PNG bytes by place, one index a dial.
        texts: what each picture shows, in words, by place.

    Raises:
        ParameterError: a setting without its picture or without its words.
    """

    title: str
    dials: tuple[Dial, ...]
    frames: Mapping[Place, bytes]
    texts: Mapping[Place, str]

    def __post_init__(self) -> None:
        """Check that no setting is without a picture."""
        for place in places(self.dials):
            if place not in self.frames or place not in self.texts:
                missing = "picture" if place not in self.frames else "description"
                raise ParameterError(f"{self.title}: there is no {missing} at {self.setting(place)}; draw all of them.")

    @classmethod
    def drawn(
        cls,
        title: str,
        dials: Sequence[Dial],
        draw: Callable[..., Figure],
        describe: Callable[..., str],
    ) -> Pictures:
        """Draw every setting once.

        Args:
            title: above the pictures.
            dials: what is turned.
            draw: indices -> a figure, which is closed here; all of one size.
            describe: indices -> what that figure shows, for those who cannot see it.
        """
        frames = {place: png_of(draw(*place)) for place in places(dials)}
        return cls(title, tuple(dials), frames, {place: describe(*place) for place in frames})

    @property
    def start(self) -> Place:
        """Where the dials stand first."""
        return tuple(dial.start for dial in self.dials)

    def setting(self, place: Place) -> str:
        """The dials' values in words: ``τ = 0.3, guidance = 1``."""
        return ", ".join(f"{dial.name} = {dial.values[i]}" for dial, i in zip(self.dials, place, strict=True))

    def strip(self) -> list[Place]:
        """The places of the filmstrip: the first dial turned from end to end, the others where they start."""
        first, n = self.dials[0], len(self.dials[0].values)
        shown = sorted({round(k * (n - 1) / max(1, min(n, STRIP) - 1)) for k in range(min(n, STRIP))} | {first.start})
        return [(i, *self.start[1:]) for i in shown]


def places(dials: Sequence[Dial]) -> list[Place]:
    """All settings of some dials, the last one turning fastest."""
    return list(product(*(range(len(dial.values)) for dial in dials)))


def png_of(figure: Figure, *, dots: int = DOTS) -> bytes:
    """A figure as PNG bytes of its whole canvas, so that frames of one figure size are of one size; closes it.

    At most 256 colours, which a plot seldom has and which make its file a third as large: pages carry every frame.
    """
    buffer = io.BytesIO()
    with plt.rc_context({"savefig.bbox": "standard"}):  # a tight box would follow the labels, and the picture jump
        figure.savefig(buffer, format="png", dpi=dots, metadata={"Software": None})
    plt.close(figure)
    small = io.BytesIO()
    Image.open(buffer).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(small, format="png", optimize=True)
    return small.getvalue()
