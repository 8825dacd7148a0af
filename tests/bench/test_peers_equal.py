"""The peers of the bench compute what we compute, from the same weights."""

import pytest
import torch
from peers.diffusers_peer import Diffusers
from peers.predecessor import Predecessor
from peers.roster import BASE, FAST, absent
from peers.torchcfm_peer import TorchCFM

from medshift.guidance import guided
from medshift.network import VelocityNetwork, build_network
from medshift.ode import integrate, leg_knots

K = 3
SHAPES = {
    "small": {},
    "attention": {"channels": (32, 64), "layers_per_block": 2, "attention_levels": (0, 1), "head_channels": 16},
    "no multiples": {"channels": (32, 96, 160)},
}


def awake(**changes: object) -> VelocityNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = build_network("small", n_domains=K, in_channels=4, **changes).requires_grad_(False).eval()
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.2 if parameter.ndim == 1 else 0.02))
    return network


# torchcfm is what `make bench` installs, and so is its test.
PEERS = ["predecessor", "diffusers", pytest.param("torchcfm", marks=[pytest.mark.bench, pytest.mark.slow])]


def make(name: str, network: VelocityNetwork):
    if name == "torchcfm" and (why := absent((FAST, "plain", BASE, name))):
        pytest.fail(why, pytrace=False)
    return {"predecessor": Predecessor, "diffusers": Diffusers, "torchcfm": TorchCFM}[name](network)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("peer", PEERS)
def test_outputs_equal_ours(peer: str, shape: str) -> None:
    network = awake(**SHAPES[shape])
    theirs = make(peer, network)
    theirs.module.eval()
    count = sum(parameter.numel() for parameter in network.parameters())
    assert sum(parameter.numel() for parameter in theirs.module.parameters()) == count
    generator = torch.Generator().manual_seed(0)
    x, label = torch.randn(2, 4, 16, 16, generator=generator), torch.tensor([0, 2])
    down = leg_knots(0.3, "uniform", 5)[::-1]
    for knots in (down, down[::-1]):
        *_, ours = integrate(guided(network, 2.0, K), x, label, knots, solver="euler")
        found = theirs.leg(x, label, tuple(knots), 2.0)
        assert float((found - ours.x).abs().max()) < 1e-4 * float(ours.x.abs().max())
        assert float((ours.x - x).norm() / x.norm()) > 0.05  # or the legs would do nothing
        x = ours.x


@pytest.mark.parametrize("peer", PEERS)
def test_losses_train_every_weight(peer: str) -> None:
    theirs = make(peer, awake())
    theirs.module.requires_grad_(True)
    latents = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    theirs.loss(latents, torch.tensor([0, 1]), torch.Generator().manual_seed(1)).backward()
    assert all(parameter.grad is not None for parameter in theirs.module.parameters())
