"""The fast velocity: equal to the network it copies, whatever batch, size, label and compiler."""

import os
import subprocess
import sys
import textwrap
import warnings

import pytest
import torch
from torch.nn import functional as F

from medshift import checkpoint, flow_training
from medshift import fast as fast_module
from medshift.adapters import AdaptedVelocity
from medshift.codec import PatchCodec
from medshift.errors import CheckpointError, ParameterError
from medshift.fast import KEPT_TIMES, KIND, NETWORK, FastVelocity, compiled, fast, load_fast
from medshift.flow_training import load_flow
from medshift.guidance import CountingVelocity, guided
from medshift.lean_network import Conditioning, arranged, doubling_kernel
from medshift.many import sweep
from medshift.network import TIME_SCALE, VelocityNetwork, build_network
from medshift.ode import time_grid
from medshift.translate import AS_PUBLISHED, MedShift

K = 5
HAS_BF16 = fast_module.autocast_dtype("cpu") is not None
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
DTYPES = [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.skipif(not HAS_BF16, reason="no bfloat16"))]


def awake(preset="smoke", **changes):
    """An untrained network none of whose weights is a one or a zero, as training would leave it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        network = build_network(preset, n_domains=K, in_channels=4, **changes).requires_grad_(False).eval()
        for parameter in network.parameters():
            spread = 0.3 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
            parameter.mul_(0.5).add_(spread * torch.randn_like(parameter))
    return network


@pytest.fixture(scope="module")
def trained():
    return load_flow("medshift/weights/cpu/medshift")


def distance(a, b):
    return float((a - b).norm() / b.norm())


def batch(n, side=(16, 16), seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, *side, generator=generator)
    return x, torch.randint(0, K + 1, (n,), generator=generator)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "changes",
    [{}, {"attention_levels": (0, 1)}, {"layers_per_block": 2, "channels": (16, 32, 48)}],
    ids=["plain", "attention everywhere", "deeper"],
)
def test_equal_to_random_networks(changes, dtype):
    network = awake(**changes)
    velocity = fast(network, dtype=dtype)
    for seed, t in enumerate([torch.tensor(0.0), torch.tensor(0.37), torch.tensor(1.0), torch.rand(3)]):
        x, label = batch(3, seed=seed)
        assert distance(velocity(x, t, label), network(x, t, label)) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_to_the_trained_network(trained, dtype):
    velocity = fast(trained.network, dtype=dtype)
    for t in (0.05, 0.5, 0.98):
        x, label = batch(2, (32, 32))
        expected = trained.network(x, torch.tensor(t), label)
        assert distance(velocity(x, torch.tensor(t), label), expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
def test_changing_batches_and_sizes(dtype):
    network = awake(channels=(16, 32, 32))
    velocity = fast(network, dtype=dtype)
    for n, side in ((1, (16, 16)), (5, (13, 22)), (2, (7, 9)), (1, (1, 3)), (5, (13, 22))):
        x, label = batch(n, side)
        out = velocity(x, torch.tensor(0.6), label)
        assert out.shape == x.shape and out.dtype == x.dtype
        assert distance(out, network(x, torch.tensor(0.6), label)) < TOLERANCE[dtype]


def test_a_translation_keeps_45_decibels(trained):
    generator = torch.Generator().manual_seed(0)
    images = F.interpolate(torch.randn(1, 1, 6, 6, generator=generator), size=(64, 64), mode="bicubic").mul(0.3)
    knobs = {"tau": 0.3, "guidance": 2.0, **AS_PUBLISHED, "steps": 10}
    plain = MedShift(trained.network, trained.codec, K).translate(images, 1, 3, **knobs)
    for dtype, decibels in ((torch.float32, 90), (None, 45)):
        quick = MedShift(fast(trained.network, dtype=dtype), trained.codec, K).translate(images, 1, 3, **knobs)
        assert float(10 * torch.log10(4 / (quick - plain).square().mean())) > decibels


def test_guidance_is_one_call_of_both_branches_and_one_branch_at_scale_one():
    network = awake()
    count = CountingVelocity(fast(network, dtype=torch.float32))
    x, label = batch(3)
    label = label % K
    for scale, rows in ((2.0, 6), (1.0, 3), (0.0, 3)):
        count.calls = count.rows = 0
        out = guided(count, scale, K)(x, torch.tensor(0.4), label)
        assert (count.calls, count.rows) == (1, rows)
        assert distance(out, guided(network, scale, K)(x, torch.tensor(0.4), label)) < 1e-4


def test_conditioning_is_the_network_s_own():
    network = awake(attention_levels=(1,))
    unet, (conditioning, _) = network.unet, arranged(network.config.to_dict(), network.state_dict(), torch.float32)
    t, label = torch.rand(4), torch.arange(4)
    embedded = F.silu(unet.time_embedding(unet.time_proj(TIME_SCALE * t)) + unet.class_embedding(label))
    blocks = [m for name, m in unet.named_modules() if name.endswith("time_emb_proj")]
    rows = conditioning(t, label)
    # Blocks in order of evaluation: down, middle, up; named_modules has the middle last.
    middle = [unet.mid_block.resnets[0].time_emb_proj, unet.mid_block.resnets[1].time_emb_proj]
    downs = [b for level in unet.down_blocks for b in (r.time_emb_proj for r in level.resnets)]
    ups = [b for level in unet.up_blocks for b in (r.time_emb_proj for r in level.resnets)]
    assert len(blocks) == len(downs + middle + ups)
    torch.testing.assert_close(rows, torch.cat([b(embedded) for b in (*downs, *middle, *ups)], dim=1))


def test_each_time_is_embedded_once_for_all_labels_legs_and_targets(monkeypatch):
    velocity = fast(awake(), dtype=torch.float32)
    asked = []
    forward = Conditioning.forward

    def count(self, t, label):
        asked.append(float(t))
        return forward(self, t, label)

    monkeypatch.setattr(Conditioning, "forward", count)
    model = MedShift(velocity, PatchCodec(2), K)
    images = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    for target in (0, 2):
        model.translate(images, 1, target, tau=0.0, guidance=2.0, steps=6)
    assert len(asked) == len(set(asked)) == len(time_grid("refined", 6))
    for t in torch.linspace(0, 1, 2 * KEPT_TIMES):
        velocity.rows(t, torch.tensor([0]))
    assert len(velocity.tables) <= KEPT_TIMES


def test_what_is_kept_equals_what_is_computed_for_single_times():
    velocity = fast(awake(), dtype=torch.float32)
    x, label = batch(4)
    one = velocity(x, torch.tensor(0.3), label)
    torch.testing.assert_close(velocity(x, torch.full((4,), 0.3), label), one, rtol=1e-5, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):  # what is kept must not be of half precision
        fresh = fast(awake(), dtype=torch.float32)
        assert torch.equal(fresh(x, torch.tensor(0.3), label), one)


def test_doubling_is_upsampling_and_convolution():
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(2, 3, 5, 6, generator=generator), torch.randn(4, 3, 3, 3, generator=generator)
    expected = F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), weight, padding=1)
    found = F.conv_transpose2d(x, doubling_kernel(weight), stride=2, padding=1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_network_is_left_as_it_was_and_may_change_afterwards():
    network = awake()
    x, label = batch(2)
    before = network(x, torch.tensor(0.5), label)
    velocity = fast(network, dtype=torch.float32)
    kept = velocity(x, torch.tensor(0.5), label)
    assert torch.equal(network(x, torch.tensor(0.5), label), before)
    for parameter in network.parameters():
        parameter.zero_()
    assert torch.equal(velocity(x, torch.tensor(0.5), label), kept)


@pytest.mark.parametrize(
    ("x", "t", "label"),
    [
        (torch.zeros(2, 3, 8, 8), torch.tensor(0.5), torch.tensor([0, 1])),
        (torch.zeros(2, 4, 8), torch.tensor(0.5), torch.tensor([0, 1])),
        (torch.zeros(2, 4, 8, 8), torch.tensor(1), torch.tensor([0, 1])),
        (torch.zeros(2, 4, 8, 8), torch.rand(3), torch.tensor([0, 1])),
        (torch.zeros(2, 4, 8, 8), torch.tensor(0.5), torch.tensor([0.0, 1.0])),
        (torch.zeros(2, 4, 8, 8), torch.tensor(0.5), torch.tensor([0])),
    ],
)
def test_refuses_what_the_network_refuses_by_the_same_words(x, t, label):
    network = awake()
    with pytest.raises(ParameterError) as plain:
        network(x, t, label)
    with pytest.raises(ParameterError) as quick:
        fast(network, dtype=torch.float32)(x, t, label)
    assert str(plain.value) == str(quick.value)


def test_refuses_adapters_other_types_and_no_sizes():
    network = awake()
    with pytest.raises(ParameterError, match="float32"):
        fast(network, dtype=torch.float16)
    with pytest.raises(ParameterError, match="sizes is 0"):
        compiled(fast(network), sizes=0)
    adapted = AdaptedVelocity(network, rank=2).network
    with pytest.raises(ParameterError, match="adapters"):
        fast(adapted)


def test_a_checkpoint_opens_as_the_same_model_without_the_network_s_library(trained):
    folder = "medshift/weights/cpu/medshift"
    plain, quick = MedShift(fast(trained.network), trained.codec, K), load_fast(folder)
    images = torch.randn(2, 1, 24, 20, generator=torch.Generator().manual_seed(0)).mul(0.3)
    knobs = {"tau": 0.4, "guidance": 2.0, "steps": 3}
    assert torch.equal(quick.translate(images, 1, "real-low", **knobs), plain.translate(images, 1, 2, **knobs))
    assert quick.domain_names == trained.domains and (KIND, NETWORK) == (flow_training.KIND, VelocityNetwork.kind)
    script = "import sys; from medshift import fast; fast.load_fast(sys.argv[1]); print('diffusers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script, folder], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda method: method.update(kind="cut"), "'cut', not of 'flow-matching'"),
        (lambda method: method["network"].update(kind="dit"), "network 'dit'"),
        (lambda method: method["network"].update(channels=[32, 64]), "another architecture"),
        (lambda method: method["network"].update(layers_per_block=2), "another architecture"),
        (lambda method: method["network"].pop("norm_groups"), "another architecture"),
        (lambda method: method["network"].update(layers_per_block=0), "another architecture"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(monkeypatch, change, words):
    held = checkpoint.load("medshift/weights/cpu/medshift", only=("network-ema", "codec"))
    change(held.state["method"])
    monkeypatch.setattr(checkpoint, "load", lambda *args, **kwargs: held)
    with pytest.raises(CheckpointError, match=words):
        load_fast("anywhere")


def test_without_bfloat16_in_hardware_it_is_single_precision_and_said_once(monkeypatch):
    monkeypatch.setattr(fast_module, "autocast_dtype", lambda device: None)
    network = awake()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fast(network).dtype == torch.float32
    with pytest.warns(UserWarning, match="no bfloat16") as said:
        velocity = fast(network, dtype=torch.bfloat16)
    x, label = batch(2)
    assert len(said) == 1 and velocity.dtype == torch.float32
    assert distance(velocity(x, torch.tensor(0.5), label), network(x, torch.tensor(0.5), label)) < 1e-4


def test_a_compiler_that_fails_is_said_once_and_the_result_is_the_plain_one(monkeypatch):
    def fail(*args):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(fast_module, "_compile", lambda lean, device: fail)
    velocity = fast(awake(), dtype=torch.float32)
    x, label = batch(2)
    with pytest.warns(UserWarning, match="torch.compile failed") as said:
        tried = compiled(velocity)
        found = [tried(x[:n], torch.tensor(0.5), label[:n]) for n in (2, 2, 1)]
    assert len(said) == 1
    assert torch.equal(found[0], velocity(x, torch.tensor(0.5), label)) and torch.equal(found[0], found[1])
    assert torch.equal(found[2], velocity(x[:1], torch.tensor(0.5), label[:1]))


@pytest.mark.slow
def test_a_missing_compiler_is_met_by_torch_itself(tmp_path):
    """Torch's own way of failing, with a C++ compiler that is not there; torch remembers it, so elsewhere."""
    lines = """
        import torch, warnings
        from medshift.fast import compiled, fast
        from medshift.network import TIME_SCALE, VelocityNetwork, build_network
        velocity = fast(build_network("smoke", n_domains=2, in_channels=4), dtype=torch.float32)
        x, t, label = torch.randn(1, 4, 8, 8), torch.tensor(0.5), torch.tensor([0])
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            quick = compiled(velocity)
            same = all(torch.equal(quick(x, t, label), velocity(x, t, label)) for _ in range(2))
        print(same, sum("torch.compile failed" in str(one.message) for one in said))
    """
    absent = {"CXX": str(tmp_path / "no-such-compiler"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", textwrap.dedent(lines)]
    done = subprocess.run(command, env={**os.environ, **absent}, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "1"]


def test_each_size_is_compiled_once_and_too_many_are_said(monkeypatch):
    made = []

    def graph(lean, device):
        made.append(device)
        return lambda x, rows: lean(x, rows)

    monkeypatch.setattr(fast_module, "_compile", graph)
    velocity = compiled(fast(awake(), dtype=torch.float32), sizes=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for side in ((8, 8), (16, 8), (8, 8), (15, 7)):  # the last is padded to the second
            velocity(batch(1, side)[0], torch.tensor(0.5), torch.tensor([0]))
    assert len(made) == 2
    x, label = batch(1, (24, 24))
    with pytest.warns(UserWarning, match="more than 2 shapes") as said:
        found = [velocity(x, torch.tensor(0.5), label) for _ in range(2)]
    assert len(made) == 2 and len(said) == 1
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], fast(awake(), dtype=torch.float32)(x, torch.tensor(0.5), label))


def test_a_shape_that_comes_seldom_is_not_compiled(monkeypatch):
    made = []

    def graph(lean, device):
        made.append(device)
        return lambda x, rows: lean(x, rows)

    monkeypatch.setattr(fast_module, "_compile", graph)
    velocity = compiled(fast(awake(), dtype=torch.float32), sizes=1, after=3)
    for n in (1, 2, 1, 2, 1, 2):  # three of each
        velocity(*_asked(n))
    assert not made
    velocity(*_asked(1))
    assert len(made) == 1
    with pytest.raises(ParameterError, match="after -1"):
        compiled(velocity, after=-1)


def _asked(n):
    x, label = batch(n)
    return x, torch.tensor(0.5), label


class Small:
    """A network that holds so many rows at once, and a compiler that needs memory beside."""

    def __init__(self, lean, holds):
        self.lean, self.holds, self.sizes = lean, holds, []

    def __call__(self, x, rows):
        self.sizes.append(len(x))
        if len(x) > self.holds:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return self.lean(x, rows)


def test_rows_that_do_not_fit_are_evaluated_in_parts_from_then_on():
    plain = fast(awake(), dtype=torch.float32)
    small = FastVelocity(plain.conditioning, plain.lean, Small(plain.lean, holds=2))
    with pytest.warns(UserWarning, match="Memory ran out") as said:
        found = small(*_asked(5))
    assert distance(found, plain(*_asked(5))) < 1e-6 and small.evaluate.sizes == [5, 2, 2, 1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(small(*_asked(5)), found)
    assert len(said) == 1 and small.evaluate.sizes[4:] == [2, 2, 1]
    none = FastVelocity(plain.conditioning, plain.lean, Small(plain.lean, holds=0))
    with pytest.warns(UserWarning), pytest.raises(torch.OutOfMemoryError):
        none(*_asked(2))


def test_memory_that_runs_out_in_the_compiler_is_called_that(monkeypatch):
    def fail(*args):
        try:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        except torch.OutOfMemoryError as error:
            raise RuntimeError("backend failed") from error

    monkeypatch.setattr(fast_module, "_compile", lambda lean, device: fail)
    plain = fast(awake(), dtype=torch.float32)
    quick = compiled(plain)
    with pytest.warns(UserWarning, match="memory ran out while the network was compiled"):
        assert torch.equal(quick(*_asked(2)), plain(*_asked(2)))
    tried = fast_module._Compiled(Small(plain.lean, holds=0), sizes=4, after=0)
    with warnings.catch_warnings(), pytest.raises(torch.OutOfMemoryError):  # the network's own memory: no word of it
        warnings.simplefilter("error")
        tried(batch(1)[0], plain.rows(torch.tensor(0.5), torch.tensor([0])))
    assert not tried.given_up


@pytest.mark.slow
def test_compiled_equals_plain():
    velocity = fast(awake(), dtype=torch.float32)
    quick = compiled(velocity)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*without a compiler")
        x, label = batch(2)
        for t in (torch.tensor(0.5), torch.tensor(0.7)):
            assert distance(quick(x, t, label), velocity(x, t, label)) < 1e-4


@pytest.mark.parametrize("knobs", [{"guidance": (2.0, 1.0)}, {"solver": "euler", "grid": "uniform", "guidance": 2.0}])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_sweep_equals_separate_calls_bit_for_bit_at_one_encode_leg(knobs, dtype):
    count = CountingVelocity(fast(awake(), dtype=dtype))
    model = MedShift(count, PatchCodec(2), K, tuple("abcde"))
    images = torch.randn(2, 1, 17, 14, generator=torch.Generator().manual_seed(0))
    targets, taus = (0, "c", 1), (0.6, 0.0, 0.31, 1.0)
    found = sweep(model, images, "b", targets, taus, steps=4, **knobs)
    swept, count.rows = count.rows, 0
    assert set(found) == {(target, tau) for target in targets for tau in taus}
    for (target, tau), image in found.items():
        assert torch.equal(image, model.translate(images, "b", target, tau=tau, steps=4, **knobs))
    encodes = [model.nfe(t, steps=4, **{**knobs, "guidance": _encode(knobs)}) // 2 for t in taus]
    branches_of_leg = len(images) * (len(targets) * sum(encodes) - max(encodes))
    # What is saved is all encode legs but the longest, less one interval for each tau between knots.
    between = len(images) * 2 * len(taus) * (1 if knobs.get("solver") == "euler" else 2)
    assert branches_of_leg - between <= count.rows - swept <= branches_of_leg


def _encode(knobs):
    guidance = knobs["guidance"]
    return guidance[0] if isinstance(guidance, tuple) else guidance


def test_a_sweep_tells_bad_input_before_it_evaluates():
    count = CountingVelocity(fast(awake(), dtype=torch.float32))
    model, images = MedShift(count, PatchCodec(2), K), torch.zeros(1, 1, 8, 8)
    for targets, taus, words in (((), (0.5,), "at least one"), ((0,), (), "at least one"), ((0, 9), (0.5,), "9")):
        with pytest.raises(ParameterError, match=words):
            sweep(model, images, 1, targets, taus)
    with pytest.raises(ParameterError, match="tau is 2"):
        sweep(model, images, 1, (0,), (0.5, 2))
    assert count.calls == 0


def test_lean_network_takes_fewer_products():
    from torch.utils.flop_counter import FlopCounterMode

    network = awake(channels=(16, 32, 48))
    x, label = batch(2, (32, 32))
    flops = []
    conditioning, lean = arranged(network.config.to_dict(), network.state_dict(), torch.float32)
    rows = conditioning(torch.tensor(0.5), label)
    for run in (lambda: network(x, torch.tensor(0.5), label), lambda: lean(x, rows)):
        with FlopCounterMode(display=False) as counter:
            run()
        flops.append(counter.get_total_flops())
    convolutions = [level.upsamplers[0].conv for level in network.unet.up_blocks if level.upsamplers]
    pixels = [(32 // 2**k) ** 2 for k in (1, 0)]
    saved = sum(2 * 2 * c.weight.numel() * p * 5 / 9 for c, p in zip(convolutions, pixels, strict=True))
    assert flops[0] - flops[1] == pytest.approx(saved, rel=0.05)
