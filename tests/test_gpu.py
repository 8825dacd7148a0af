"""Devices: batches are drawn where their generator is, and nothing of a step or a leg waits for a GPU.

The first half needs none: a generator that says it is one of a GPU, images that are tensors of a fake one, networks on
torch's device without memory. Such a tensor has no value to read, and meets one of the CPU by an error. The second half
needs a GPU.
"""

import warnings
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from medshift import fast as fast_module
from medshift.codec import KLCodec, PatchCodec
from medshift.codec_training import KLTraining
from medshift.data import chains, domains
from medshift.data.batches import host_generator
from medshift.data.domains import DOMAINS, TrainingSet
from medshift.fast import compiled, fast
from medshift.flow_training import FlowMatching
from medshift.network import build_network
from medshift.ode import at_time, integrate, leg_knots
from medshift.stages import halves as halves_module
from medshift.stages.halves import halves
from medshift.train import TrainConfig, train

GPU = torch.device("cuda", 0)
PAIR = ("synthetic-high", "real-exposure")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


class FarGenerator(torch.Generator):
    """A generator that says it is one of a GPU."""

    device = GPU

    def __init__(self) -> None:
        super().__init__()
        self.offset = 0

    def get_offset(self) -> int:
        return self.offset

    def set_offset(self, offset: int) -> None:
        self.offset = offset


class Draws(TorchFunctionMode):
    """Sees that whatever draws random numbers makes them where its generator is."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if (generator := kwargs.get("generator")) is not None:
            tensors = [arg for arg in args if isinstance(arg, torch.Tensor)]
            place = tensors[0].device if tensors else torch.device(kwargs.get("device", "cpu"))
            assert place == generator.device, f"{func} draws on {place} with a generator of {generator.device}"
            self.places.append(place.type)
            if isinstance(generator, FarGenerator):
                kwargs["generator"] = None
        return func(*args, **kwargs)


@pytest.fixture
def fake_gpu(monkeypatch):
    """What is sent to a GPU becomes a tensor of a fake one; constants that others keep are not touched."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)

    def sent(tensor, device):
        if torch.device(device).type == "cpu":
            return tensor
        with mode:
            return torch.empty(tensor.shape, dtype=tensor.dtype, device=GPU)

    def acquire(*args, **kwargs):
        with mode:
            return acquired(*args, **kwargs)

    acquired = domains.acquire
    for module in (domains, halves_module):
        monkeypatch.setattr(module, "sent", sent)
        monkeypatch.setattr(module, "acquire", acquire)
    kept = (chains._response, chains._monoenergetic, chains._taps)
    for function in kept:
        function.cache_clear()
    yield
    for function in kept:
        function.cache_clear()


@pytest.mark.parametrize("kind", ["training", "halves"])
def test_a_batch_is_drawn_where_its_generator_is_and_waits_for_nothing(fake_gpu, stage_inputs, kind):
    views = stage_inputs["views"]
    draw = TrainingSet(views, 40) if kind == "training" else halves(views, *PAIR, 8, device="cpu")
    made = []
    concatenate = torch.cat
    with pytest.MonkeyPatch.context() as patch, Draws() as draws:
        patch.setattr(torch, "cat", lambda parts: made.extend(parts) or concatenate(parts))
        draw(0, FarGenerator())
    assert {image.device for image in made} == {GPU}
    assert draws.places.count("cuda") >= 2 * len(made) and "cpu" in draws.places  # quanta and dither, and the choice


def test_a_draw_on_another_device_than_its_generators_is_seen():
    with Draws(), pytest.raises(AssertionError, match="draws on cpu with a generator of cuda"):
        torch.rand(3, generator=FarGenerator())


def test_the_hosts_generator_follows_the_gpus_and_moves_on_with_it():
    one, again = FarGenerator().manual_seed(3), FarGenerator().manual_seed(3)
    seeds = [host_generator(one).initial_seed() for _ in range(4)]
    assert len(set(seeds)) == 4 and host_generator(again).initial_seed() == seeds[0]
    assert host_generator(FarGenerator().manual_seed(4)).initial_seed() not in seeds
    own = torch.Generator()
    assert host_generator(own) is own


@pytest.mark.parametrize("solver", ["euler", "midpoint", "heun"])
def test_a_leg_hands_its_times_over_on_the_host_and_networks_take_them(solver):
    """On torch's device without memory: reading a value there raises, and so does meeting a tensor of the CPU."""
    network = build_network("smoke", n_domains=2, in_channels=4).requires_grad_(False).to("meta").eval()
    x, label = torch.randn(2, 4, 8, 8, device="meta"), torch.zeros(2, dtype=torch.int64, device="meta")
    seen = []

    def velocity(x, t, label):
        seen.append(t.device.type)
        return network(x, t, label)

    *_, end = integrate(velocity, x, label, leg_knots(0.5, steps=4), solver=solver)
    assert end.x.is_meta and end.x.shape == x.shape and set(seen) == {"cpu"}


def test_what_is_said_at_a_time_is_kept_on_other_devices_as_well():
    quick = fast(build_network("smoke", n_domains=2, in_channels=4), dtype=torch.float32)
    t, label = at_time(0.3, torch.zeros(1)), torch.tensor([0, 2])
    here = quick.rows(t, label)
    quick.tables.clear()
    quick.conditioning.to("meta")
    there = [quick.rows(t, label.to("meta")) for _ in range(2)]
    assert len(quick.tables) == 1 and all(rows.is_meta and rows.shape == here.shape for rows in there)
    quick.rows(t.to("meta"), label.to("meta"))  # a time that only the device knows is never asked for
    assert len(quick.tables) == 1


class Counted:
    """Batches of smoke latents' images on the generator's device."""

    def __call__(self, step, generator):
        images = torch.randn(8, 1, 32, 32, generator=generator, device=generator.device)
        return images, torch.arange(8, device=generator.device) % len(DOMAINS)


@needs_gpu
@pytest.mark.parametrize("kind", ["network", "autoencoder"])
def test_a_training_step_on_a_gpu(stage_inputs, tmp_path, kind):
    if kind == "network":
        network = build_network("smoke", n_domains=len(DOMAINS), in_channels=4).to(GPU)
        method, draw = FlowMatching(network, PatchCodec(2), DOMAINS), TrainingSet(stage_inputs["views"], 8, device=GPU)
    else:
        method, draw = KLTraining(KLCodec.build((16, 32), 4).to(GPU), warmup=1), Counted()
    records = list(train(method, draw, folder=tmp_path, config=TrainConfig(steps=3)))
    assert len(records) == 3 and all(loss.isfinite() for loss in records[-1].losses.values())


@needs_gpu
def test_batches_and_steps_on_a_gpu_wait_for_nothing(stage_inputs):
    network = build_network("smoke", n_domains=len(DOMAINS), in_channels=4).to(GPU)
    method = FlowMatching(network, PatchCodec(2), DOMAINS)
    draws = [
        TrainingSet(stage_inputs["views"], 8, device=GPU),
        halves(stage_inputs["views"], *PAIR, 8, device=str(GPU)),
    ]
    for draw in draws:
        draw(0, torch.Generator(GPU).manual_seed(0))  # tables of the acquisition are sent once
    first = method.prepare(draws[0](0, torch.Generator(GPU).manual_seed(0)))
    method.step(first, torch.Generator(GPU).manual_seed(0))
    torch.cuda.set_sync_debug_mode("error")
    try:
        generator = torch.Generator(GPU).manual_seed(1)
        for draw in draws:
            batch = draw(1, generator)
        method.step(method.prepare((batch[0], batch[1] % len(DOMAINS))), generator)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_gpu
@pytest.mark.parametrize("plain", [True, False])
def test_a_leg_on_a_gpu_waits_for_nothing(plain):
    network = build_network("smoke", n_domains=2, in_channels=4).requires_grad_(False).to(GPU).eval()
    velocity = network if plain else fast(network)
    x, label, knots = (
        torch.randn(2, 4, 16, 16, device=GPU),
        torch.zeros(2, dtype=torch.int64, device=GPU),
        leg_knots(0.3),
    )
    with torch.no_grad():
        *_, first = integrate(velocity, x, label, knots)
        torch.cuda.set_sync_debug_mode("error")
        try:
            *_, again = integrate(velocity, x, label, knots)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(first.x, again.x)


@needs_gpu
@pytest.mark.slow
def test_graphs_of_several_sizes_stay_right_while_they_take_turns(monkeypatch):
    network = build_network("smoke", n_domains=2, in_channels=4).requires_grad_(False).to(GPU).eval()
    for parameter in network.parameters():
        parameter.add_(0.02 * torch.randn_like(parameter))  # else it is the zero field
    plain = fast(network, dtype=torch.float32)
    quick = compiled(plain)
    held = []
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*without a compiler")
        for turn in range(4):
            for n, side in ((1, 8), (2, 8), (2, 16), (4, 15)):
                x = torch.randn(n, 4, side, side, device=GPU)
                t, label = at_time(0.1 + 0.2 * turn, x), torch.arange(n, device=GPU) % 3
                held.append((quick(x, t, label), plain(x, t, label)))
    for found, wanted in held:  # results of earlier calls are no memory of later ones
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-3)


@needs_gpu
def test_a_checkpoint_on_a_gpu_is_the_one_of_the_cpu():
    folder = Path("medshift/weights/cpu/medshift")
    there, here = (fast_module.load_fast(folder, device=device, dtype=torch.float32) for device in (GPU, "cpu"))
    images = torch.rand(2, 1, 64, 64) * 2 - 1
    found = there.translate(images.to(GPU), 1, 3, tau=0.6).cpu()
    torch.testing.assert_close(found, here.translate(images, 1, 3, tau=0.6), atol=0.02, rtol=0)
