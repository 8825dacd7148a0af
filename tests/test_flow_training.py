"""What the training of MedShift may round off, and what it may not."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from medshift.codec import KLCodec, PatchCodec
from medshift.data.domains import DOMAINS
from medshift.flow_training import FlowMatching, load_flow
from medshift.methods import training
from medshift.network import NetworkConfig, VelocityNetwork
from medshift.pairwise import Pair, encoded_halves
from medshift.schedules import TrainConfig
from medshift.train import train

SIDE = 32


def images(n: int, seed: int) -> Tensor:
    """Smooth shapes with noise (n,1,SIDE,SIDE), in about [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 1, 4, 4, generator=generator) * 2 - 1
    smooth = torch.nn.functional.interpolate(coarse, SIDE, mode="bicubic")
    return smooth + 0.02 * torch.randn(n, 1, SIDE, SIDE, generator=generator)


@pytest.fixture(scope="module")
def codec() -> KLCodec:
    """An autoencoder that has learnt something, since what rounding costs depends on it."""
    torch.manual_seed(0)
    made = KLCodec.build((16, 32), 4)
    optimizer = torch.optim.AdamW(made.parameters(), lr=2e-3)
    for step in range(80):
        x = images(16, step)
        loss = (made.decode(made.encode(x)) - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.02, "it has learnt"
    return made.requires_grad_(False).eval().fit(images(64, 1000))


def flow(codec: KLCodec | PatchCodec) -> FlowMatching:
    torch.manual_seed(0)
    config = NetworkConfig(
        n_domains=len(DOMAINS), in_channels=codec.channels, channels=(8, 16), norm_groups=4, head_channels=8
    )
    return FlowMatching(VelocityNetwork(config), codec, DOMAINS)


def psnr(a: Tensor, b: Tensor) -> float:
    return float(10 * torch.log10(4 / (a - b).double().square().mean()))


def test_encoding_in_half_precision_rounds_off_less_than_any_image_shows(codec: KLCodec) -> None:
    x = images(32, 2000)
    with torch.no_grad():
        exact = codec.encode(x)
        own = flow(codec).codec
        with torch.autocast("cpu", torch.bfloat16):
            rounded = own.encode(x)
        assert rounded.dtype == torch.float32 and not torch.equal(rounded, exact), "it is the quick path"
        assert psnr(codec.decode(exact), codec.decode(rounded)) > 45
        # No tone: domains are told apart by as little as 1 % of brightness.
        assert (codec.decode(exact) - codec.decode(rounded)).mean().abs() < 2e-3


def test_methods_for_a_pair_are_trained_on_latents_of_the_same_precision(codec: KLCodec) -> None:
    x, own = images(32, 3000), copy.deepcopy(codec)
    method = training("cut", own, Pair("a", "b", ("a", "b")), {})
    assert method.modules()["codec"] is own
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        halves, whole = encoded_halves(own, (x,)), flow(codec).codec.encode(x)
    assert all(half.dtype == torch.float32 and len(half) == 16 for half in halves)
    torch.testing.assert_close(torch.cat(halves), whole, rtol=0, atol=0)
    assert psnr(codec.decode(codec.encode(x)), codec.decode(torch.cat(halves))) > 45


def test_patches_are_rounded_by_nothing() -> None:
    x, patches = images(8, 0), PatchCodec(2).fit(images(64, 1))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(flow(patches).codec.encode(x), patches.encode(x))
        assert torch.equal(torch.cat(encoded_halves(patches, (x,))), patches.encode(x))


def test_a_codec_that_was_trained_with_is_read_back_as_it_was(codec: KLCodec, tmp_path: Path) -> None:
    label = torch.arange(8) % len(DOMAINS)
    before, method = codec.fingerprint(), flow(codec)
    list(train(method, lambda step, g: (images(8, step), label), folder=tmp_path,
               config=TrainConfig(steps=2, checkpoint_every=2)))  # fmt: skip
    [folder] = [path for path in tmp_path.iterdir() if path.is_dir()]
    held = load_flow(folder)
    assert held.codec.fingerprint() == before
    torch.testing.assert_close(held.codec.encode(images(4, 7)), codec.encode(images(4, 7)))
