"""The codec's round trip: what every method that works on latents loses before it has done anything.

out = decode(encode(x)). With an exact codec, such as the patch codec, it is doing nothing; with a learned one it is the
ceiling that its latents set for each of these methods, and the floor that they share.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from medshift.pairwise import through_codec
from medshift.translate import Codec, Domain


class CodecRoundTrip:
    """Returns decode(encode(image)).

    Args:
        codec: images to latents and back.
    """

    name = "codec round trip"
    needs_pairs = False

    def __init__(self, codec: Codec) -> None:
        self.codec = codec

    def translate(self, images: Tensor, source: Domain, target: Domain, *args: Any, **knobs: Any) -> Tensor:
        """The images (N,1,H,W) as the codec gives them back, cropped to their size and not clamped."""
        return through_codec(self.codec, images, lambda latents: latents)

    def nfe(self, *args: Any, **knobs: Any) -> int:
        """No network of a method is evaluated: the codec belongs to all."""
        return 0
