"""The KL codec in tiles: the same on small images, close to the whole on large ones, and without seams."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from medshift.codec import KLCodec
from medshift.errors import ParameterError
from medshift.tiled_codec import TiledCodec, _ramp, _starts
from medshift.translate import MedShift

TILE, OVERLAP = 128, 32


def view(height: int, width: int, seed: int = 0) -> Tensor:
    """A smooth image whose brightness changes from side to side, with noise."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, 1, 4, 5, generator=generator)
    smooth = F.interpolate(coarse, size=(height, width), mode="bicubic").tanh()
    slope = torch.linspace(-0.5, 0.5, width)
    return (0.6 * smooth + slope + 0.05 * torch.randn(1, 1, height, width, generator=generator)).clamp(-1, 1)


@pytest.fixture(scope="module")
def codec() -> KLCodec:
    """Untrained, with a stride of 2 and statistics of its latents."""
    torch.manual_seed(0)
    return KLCodec.build((8, 16), 4).requires_grad_(False).eval().fit(view(64, 64))


@pytest.fixture(scope="module")
def with_attention() -> KLCodec:
    torch.manual_seed(0)
    return KLCodec.build((8, 16), 4, attention=True).requires_grad_(False).eval().fit(view(64, 64))


def error(made: Tensor, whole: Tensor) -> float:
    """Root mean square of the difference, in the whole's standard deviations."""
    return float((made - whole).square().mean().sqrt() / whole.std())


@pytest.mark.parametrize("size", [(128, 128), (64, 127), (1, 5)])
def test_an_image_of_one_tile_is_coded_as_a_whole(codec: KLCodec, size: tuple[int, int]) -> None:
    tiled, image = TiledCodec(codec, tile=TILE, overlap=OVERLAP), view(*size)
    latent = codec.encode(image)
    assert torch.equal(tiled.encode(image), latent)
    assert torch.equal(tiled.decode(latent, size), codec.decode(latent, size))
    assert torch.equal(tiled.decode(latent), codec.decode(latent))


@pytest.mark.parametrize("size", [(129, 40), (131, 257), (3, 300)])
def test_odd_sizes_keep_their_shape(codec: KLCodec, size: tuple[int, int]) -> None:
    tiled, image = TiledCodec(codec, tile=TILE, overlap=OVERLAP), view(*size)
    latent, expected = tiled.encode(image), codec.encode(image)
    assert latent.shape == expected.shape and latent.isfinite().all()
    assert tiled.decode(latent, size).shape == image.shape == codec.decode(expected, size).shape
    assert tiled.decode(latent).shape == codec.decode(expected).shape
    assert tiled.decode(latent, 3).shape == (1, 1, 3, 3)
    with pytest.raises(ParameterError, match="larger than the decoded"):
        tiled.decode(latent, (size[0] + 2, size[1]))


@pytest.mark.parametrize("name", ["codec", "with_attention"])
def test_tiles_come_close_to_the_whole(name: str, request: pytest.FixtureRequest) -> None:
    codec = request.getfixturevalue(name)
    # Random weights pass on every change of a normalisation; those of a trained codec come ten times as close.
    tiled, image = TiledCodec(codec, tile=256, overlap=OVERLAP), view(320, 290)
    latent = codec.encode(image)
    encoded, decoded = error(tiled.encode(image), latent), error(tiled.decode(latent), codec.decode(latent))
    assert encoded < 0.45 and decoded < 0.5
    alone = error(tiles_that_know_nothing_of_each_other(codec, image), latent)
    assert encoded < alone / 2, "what one sample for all tiles is for"


def tiles_that_know_nothing_of_each_other(codec: KLCodec, image: Tensor) -> Tensor:
    """Latents by diffusers' own tiling."""
    vae = codec.vae
    held = vae.tile_sample_min_size, vae.tile_latent_min_size, vae.tile_overlap_factor
    vae.tile_sample_min_size, vae.tile_latent_min_size = TILE, TILE // codec.stride
    vae.enable_tiling()
    try:
        return codec.encode(image)
    finally:
        vae.disable_tiling()
        vae.tile_sample_min_size, vae.tile_latent_min_size, vae.tile_overlap_factor = held


def test_with_the_statistics_of_the_whole_tiles_equal_it_away_from_their_borders(codec: KLCodec) -> None:
    tiled, image = TiledCodec(codec, tile=TILE, overlap=64), view(128, 320)
    latent = codec.encode(image)
    for norm in tiled._norms:
        norm.measuring = True
    # Nothing is cut off a whole image, whose padding is part of it.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("medshift.tiled_codec.MARGIN", 10**9)
        assert torch.allclose(tiled._tiled.encode(image), latent, atol=1e-4)
    for norm in tiled._norms:
        norm.measuring = False
    tiled._measure = lambda *given: None  # type: ignore[method-assign]
    difference = (tiled.encode(image) - latent).abs().amax((0, 1, 2))
    starts = _starts(160, 64, 32)
    alone = [x for x in range(160) if sum(start <= x < start + 64 for start in starts) == 1]
    assert len(alone) > 20 and difference[alone[: len(alone) // 2]].max() < 1e-3
    assert difference.max() < 0.6 * latent.std()


def steepness_at_seams(codec: KLCodec) -> tuple[float, float]:
    """How much steeper than the whole's the steps of tiled latents are: at most at seams, and at most elsewhere."""
    tiled, image = TiledCodec(codec, tile=TILE, overlap=OVERLAP), view(128, 512)
    made, whole = (
        latent.diff(dim=-1).square().mean((0, 1, 2)).sqrt() for latent in (tiled.encode(image), codec.encode(image))
    )
    starts = _starts(256, TILE // 2, OVERLAP // 2)
    seams = {edge - 1 for start in starts for edge in (start, start + TILE // 2) if 0 < edge < 256}
    ratio = made / whole
    elsewhere = [x for x in range(len(ratio)) if x not in seams]
    assert len(seams) >= 6
    return float(ratio[sorted(seams)].max()), float(ratio[elsewhere].max())


def test_seams_are_no_steeper_than_elsewhere(codec: KLCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    seams, elsewhere = steepness_at_seams(codec)
    assert seams < 1.1 * elsewhere
    monkeypatch.setattr("medshift.tiled_codec._ramp", lambda length, overlap: torch.ones(length))
    unblended, _ = steepness_at_seams(codec)
    assert unblended > 1.1 * seams, "without ramps they are to be seen"


def test_each_image_of_a_batch_is_coded_for_itself(codec: KLCodec) -> None:
    tiled = TiledCodec(codec, tile=TILE, overlap=OVERLAP)
    images = torch.cat([view(150, 140, 1), -0.3 * view(150, 140, 2)])
    latents = tiled.encode(images)
    pictures = tiled.decode(latents)
    for i in (0, 1):
        assert torch.equal(tiled.encode(images[i : i + 1]), latents[i : i + 1])
        assert torch.equal(tiled.decode(latents[i : i + 1]), pictures[i : i + 1])


def test_the_codec_itself_stays_as_it_was_and_shares_its_weights(codec: KLCodec) -> None:
    image = view(150, 140)
    before, told = codec.encode(image), codec.fingerprint()
    tiled = TiledCodec(codec, tile=TILE, overlap=OVERLAP)
    tiled.encode(image)
    assert torch.equal(codec.encode(image), before) and codec.fingerprint() == told
    held = {tensor.data_ptr() for tensor in codec.parameters()}
    assert {tensor.data_ptr() for tensor in tiled._tiled.parameters()} == held
    others = {TiledCodec(codec, tile=t, overlap=o).fingerprint() for t, o in ((128, 32), (128, 64), (256, 32))}
    assert len(others | {told}) == 4 and tiled.fingerprint() in others


def test_a_medshift_translates_in_tiles(codec: KLCodec) -> None:
    tiled, image = TiledCodec(codec, tile=TILE, overlap=OVERLAP), view(141, 200)
    model = MedShift(lambda x, t, label: torch.zeros_like(x), tiled, 2, ("a", "b"))
    made = model.translate(image, "a", "b", tau=0.5, steps=2)
    assert torch.equal(made, tiled.decode(tiled.encode(image), (141, 200)))


@pytest.mark.parametrize(
    ("tile", "overlap", "said"),
    [
        (129, 32, "multiples of the stride"),
        (128, 33, "multiples of the stride"),
        (126, 32, "expected 128 to 1024"),
        (1026, 32, "expected 128 to 1024"),
        (128, 0, "above 0 and at most half of the tile, 64"),
        (128, 66, "above 0 and at most half of the tile, 64"),
    ],
)
def test_tiles_that_cannot_be_are_refused(codec: KLCodec, tile: int, overlap: int, said: str) -> None:
    with pytest.raises(ParameterError, match=said):
        TiledCodec(codec, tile=tile, overlap=overlap)


@given(st.integers(1, 500), st.integers(2, 80), st.integers(1, 40))
def test_tiles_cover_a_side_and_overlap(side: int, tile: int, overlap: int) -> None:
    overlap = min(overlap, tile // 2)
    starts = _starts(side, tile, overlap)
    assert starts[0] == 0 and starts[-1] == max(0, side - tile)
    assert all(0 < b - a <= tile - overlap for a, b in pairwise(starts))


@given(st.integers(2, 80), st.integers(1, 40))
def test_neighbours_weights_add_up_to_one_where_they_overlap(tile: int, overlap: int) -> None:
    overlap = min(overlap, tile // 2)
    ramp = _ramp(tile, overlap)
    assert torch.allclose(ramp[-overlap:] + ramp[:overlap], torch.ones(overlap))
    assert (ramp[overlap:-overlap] == 1).all() and (ramp > 0).all()
