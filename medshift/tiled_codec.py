"""A KL codec in tiles, for images too large to be encoded or decoded whole.

Tiles overlap and are blended linearly; all have one size, so none is a sliver at the border. What a tile alone cannot
know is what an autoencoder takes from the whole image:

- *Group normalisation.* With its own mean and spread, each tile would get another brightness and other latents, and
  the flow would start elsewhere. (So it is with diffusers' `enable_tiling`, which is why it is not used.) Here all
  tiles share those of one sample: crops spread over the whole image, which together are as large as a tile, pass
  through the network at once and are normalised together.
- *Attention* in the middle block, if there is any, sees its tile alone.

A `PatchCodec` needs no tiles: it rearranges pixels and needs no memory beyond its result.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medshift.codec import CHUNK_PIXELS, KLCodec
from medshift.errors import ParameterError

__all__ = ["TiledCodec"]

CROP = 16  # latent pixels along the side of a crop of the sample
FEWEST_CROPS = 4  # along a side; less would miss too much of an image
MARGIN = 8  # the share of a crop's side, at each end, that zero padding reaches and that is not measured


class TiledCodec:
    """A codec that works as `codec` does on images up to one tile, bit for bit, and in tiles on larger ones.

    It shares the weights of `codec`, records no gradients and is for translating: it cannot be trained or saved.

    Args:
        codec: the codec, on its device.
        tile: side of a tile [image pixels], a multiple of the stride; peak memory grows with its square.
        overlap: of neighbouring tiles [image pixels], at least; a multiple of the stride.

    Raises:
        ParameterError: `tile` or `overlap` is no multiple of the stride, or out of its range.
    """

    def __init__(self, codec: KLCodec, *, tile: int = 512, overlap: int = 64) -> None:
        self.codec, self.channels, self.stride = codec, codec.channels, codec.stride
        smallest, largest = CROP * FEWEST_CROPS * self.stride, int(CHUNK_PIXELS**0.5)
        if tile % self.stride or overlap % self.stride:
            raise ParameterError(f"tile {tile} and overlap {overlap} must be multiples of the stride, {self.stride}.")
        if not smallest <= tile <= largest:
            raise ParameterError(f"tile is {tile}, expected {smallest} to {largest} pixels for this codec.")
        if not 0 < overlap <= tile // 2:
            raise ParameterError(f"overlap is {overlap}, expected above 0 and at most half of the tile, {tile // 2}.")
        self.tile, self.overlap = tile // self.stride, overlap // self.stride  # in latent pixels, as all below
        self._tiled, self._norms = _with_shared_norms(codec)

    @torch.no_grad()
    def encode(self, image: Tensor) -> Tensor:
        """Standardised latents (B, C, ⌈H/stride⌉, ⌈W/stride⌉) of images (B, 1, H, W), see `KLCodec.encode`."""
        if max(image.shape[-2:]) <= self.tile * self.stride:
            return self.codec.encode(image)
        bottom, right = (-side % self.stride for side in image.shape[-2:])
        padded = F.pad(image, (0, right, 0, bottom), mode="replicate")
        each = [self._in_tiles(self._tiled.encode, one, self.stride, 1) for one in padded.split(1)]
        return torch.cat(each)

    @torch.no_grad()
    def decode(self, latent: Tensor, size: tuple[int, int] | int | None = None) -> Tensor:
        """Images (B, 1, H, W), not clamped, of latents (B, C, h, w), see `KLCodec.decode`."""
        if max(latent.shape[-2:]) <= self.tile:
            return self.codec.decode(latent, size)
        height, width = (size, size) if isinstance(size, int) else size or (None, None)
        whole = [side * self.stride for side in latent.shape[-2:]]
        if (height or 0) > whole[0] or (width or 0) > whole[1]:
            raise ParameterError(f"The size {size} is larger than the decoded {tuple(whole)}.")
        each = [self._in_tiles(self._tiled.decode, one, 1, self.stride) for one in latent.split(1)]
        return torch.cat(each)[:, :, :height, :width]

    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits of the codec and of how it is tiled."""
        told = f"{self.codec.fingerprint()} in tiles of {self.tile}, overlapping by {self.overlap}"
        return hashlib.sha256(told.encode()).hexdigest()[:16]

    def _in_tiles(self, of: Callable[[Tensor], Tensor], whole: Tensor, zoom: int, out_zoom: int) -> Tensor:
        """`of` one image or latent, whose pixels are `zoom` to a latent pixel and become `out_zoom`."""
        sides = [side // zoom for side in whole.shape[-2:]]
        self._measure(of, whole, sides, zoom)
        ramps = [_ramp(min(side, self.tile) * out_zoom, self.overlap * out_zoom).to(whole) for side in sides]
        window = ramps[0][:, None] * ramps[1]
        made = weight = whole.new_zeros(())
        for i, (y, x) in enumerate(product(*(_starts(side, self.tile, self.overlap) for side in sides))):
            tile = of(_cut(whole, y, x, self.tile, zoom))
            if not i:
                made = tile.new_zeros(1, tile.shape[1], *(side * out_zoom for side in sides))
                weight = torch.zeros_like(made[:, :1])
            _cut(made, y, x, self.tile, out_zoom).addcmul_(tile, window)
            _cut(weight, y, x, self.tile, out_zoom).add_(window)
        return made.div_(weight)

    def _measure(self, of: Callable[[Tensor], Tensor], whole: Tensor, sides: list[int], zoom: int) -> None:
        """Fix what all tiles are normalised by."""
        many = self.tile // CROP
        places = product(*(_spread(side, min(CROP, side), many) for side in sides))
        for norm in self._norms:
            norm.measuring = True
        of(torch.cat([_cut(whole, y, x, CROP, zoom) for y, x in places]))
        for norm in self._norms:
            norm.measuring = False


class _SharedNorm(nn.Module):
    """A group normalisation that takes mean and spread of a whole batch, and then keeps them for what follows."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.norm, self.measuring = norm, False
        self.scale = self.shift = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, C, h, w), or (B, C, n) in attention, normalised."""
        if self.measuring:
            self._measure(x)
        shape = (-1, *(1,) * (x.ndim - 2))
        return torch.addcmul(self.shift.to(x.dtype).view(shape), x, self.scale.to(x.dtype).view(shape))

    def _measure(self, x: Tensor) -> None:
        if x.ndim == 4:
            top, left = x.shape[2] // MARGIN, x.shape[3] // MARGIN
            x = x[:, :, top : x.shape[2] - top, left : x.shape[3] - left]
        groups, norm = self.norm.num_groups, self.norm
        values = x.float().reshape(len(x), groups, -1)
        var, mean = torch.var_mean(values, dim=(0, 2), correction=0)
        each = x.shape[1] // groups
        self.scale = norm.weight * (var + norm.eps).rsqrt().repeat_interleave(each)
        self.shift = norm.bias - mean.repeat_interleave(each) * self.scale


def _with_shared_norms(codec: KLCodec) -> tuple[KLCodec, list[_SharedNorm]]:
    """A copy with the same weights, and its normalisations."""
    same = {id(tensor): tensor for tensor in (*codec.parameters(), *codec.buffers())}
    made, norms = copy.deepcopy(codec, same), []
    for name, module in list(made.named_modules()):
        if isinstance(module, nn.GroupNorm):
            norms.append(_SharedNorm(module))
            made.set_submodule(name, norms[-1])
    return made, norms


def _cut(whole: Tensor, y: int, x: int, side: int, zoom: int) -> Tensor:
    """A view of a square, given in latent pixels, as far as there is one."""
    return whole[..., y * zoom : (y + side) * zoom, x * zoom : (x + side) * zoom]


def _starts(side: int, tile: int, overlap: int) -> list[int]:
    """Where tiles start that cover a side and overlap by so much at least."""
    return _spread(side, min(tile, side), max(1, -(-(side - overlap) // (tile - overlap))))


def _spread(side: int, part: int, many: int) -> list[int]:
    """Where parts start that lie evenly along a side, the first and the last at its ends."""
    return [0] if part == side else [i * (side - part) // (many - 1) for i in range(many)]


def _ramp(length: int, overlap: int) -> Tensor:
    """Weights (length) of a tile: rising over the overlap, 1, and falling."""
    up = torch.arange(1, length + 1)
    return torch.minimum(up, up.flip(0)).clamp(max=overlap + 1) / (overlap + 1)
