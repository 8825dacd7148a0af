import dataclasses
import math
import os
import signal
import threading
from pathlib import Path

import pytest
import torch
from torch import distributed, nn

from medshift import checkpoint
from medshift.codec import PatchCodec
from medshift.errors import CheckpointError, ParameterError, TrainingError
from medshift.flow_training import FlowMatching
from medshift.network import build_network
from medshift.schedules import autocast_dtype, average_decay, schedule, step_seed, training_dtype
from medshift.stages.job import Job
from medshift.stages.training import within_memory
from medshift.train import TrainConfig, train


class Regression:
    """The smallest trainable method: a linear map fitted to another one, with noise and dropout."""

    averaged = ("map",)

    def __init__(self, lr: float = 0.05, poison: int | None = None) -> None:
        torch.manual_seed(3)
        self.map = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Linear(8, 1))
        self.optimizer = torch.optim.AdamW(self.map.parameters(), lr=lr)
        self.poison, self.calls = poison, 0

    def modules(self):
        return {"map": self.map}

    def optimizers(self):
        return {"map": self.optimizer}

    def step(self, batch, generator):
        x, y = batch
        self.calls += 1
        noise = 0.01 * torch.randn(y.shape, generator=generator)
        loss = (self.map(x) - y - noise).square().mean()
        return {"map": loss * (math.nan if self.calls == self.poison else 1), "error": loss.detach().sqrt()}

    def state(self):
        return {"kind": "regression"}


def _batches(step, generator):
    x = torch.randn(8, 4, generator=generator)
    return x, x.sum(1, keepdim=True)


def _config(**changes) -> TrainConfig:
    return TrainConfig(**{"steps": 12, "precision": "fp32", "checkpoint_every": 4, **changes})


def _weights(folder: Path) -> dict[str, str]:
    return {stem: checkpoint.weights_sha256(tensors) for stem, tensors in checkpoint.load(folder).tensors.items()}


def test_training_learns_and_reports(tmp_path):
    records = list(train(Regression(), _batches, folder=tmp_path, config=_config(steps=150)))
    assert [record.step for record in records] == list(range(1, 151))
    assert records[-1].images == 150 * 8
    early, late = (sum(float(r.losses["error"]) for r in part) for part in (records[:20], records[-20:]))
    assert late < 0.5 * early
    assert all(not loss.requires_grad for loss in records[0].losses.values())
    assert all(record.seconds > 0 for record in records)


def test_moving_average_is_its_formula(tmp_path):
    method = Regression()
    expected: torch.Tensor | None = None
    for record in train(method, _batches, folder=tmp_path, config=_config(steps=30, ema_decay=0.6)):
        weight = method.map[0].weight.detach().double()
        decay = min(0.6, (1 + record.step) / (10 + record.step))
        expected = weight if expected is None else decay * expected + (1 - decay) * weight
        torch.testing.assert_close(record.averages["map"].module[0].weight.double(), expected, atol=1e-6, rtol=1e-5)
    assert average_decay(1, 0.999) == 2 / 11 and average_decay(10**6, 0.999) == 0.999
    held = checkpoint.load(tmp_path).tensors
    torch.testing.assert_close(held["map-ema"]["module.0.weight"].double(), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", ["one-cycle", "cosine", "constant"])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5])
def test_schedules_rise_to_the_peak_then_never_rise(kind, warmup):
    config = _config(steps=100, schedule=kind, warmup=warmup)
    rates = [schedule(step, config) for step in range(100)]
    top = rates.index(max(rates))
    assert max(rates) == pytest.approx(1.0) and top == round(100 * warmup)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert all(0 <= rate <= 1 for rate in rates)
    assert rates[-1] == pytest.approx({"one-cycle": 1e-3, "cosine": 0.0, "constant": 1.0}[kind])


def test_one_cycle_is_torchs():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    # torch counts the peak as the last step of the rise.
    oracle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 1.0, total_steps=50, pct_start=11 / 50, div_factor=1e3, final_div_factor=1.0, cycle_momentum=False
    )
    config = _config(steps=50, warmup=0.2)
    for step in range(50):
        assert schedule(step, config) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        optimizer.step()
        if step < 49:
            oracle.step()


def test_rate_of_the_optimiser_follows_the_schedule(tmp_path):
    method, config = Regression(lr=0.2), _config(steps=10)
    for record in train(method, _batches, folder=tmp_path, config=config):
        assert method.optimizer.param_groups[0]["lr"] == 0.2 * schedule(record.step - 1, config)
        assert record.learning_rate == 0.2 * schedule(record.step - 1, config)


def test_seeds_differ_between_seed_step_and_index():
    seeds = {step_seed(seed, step, index) for seed in range(8) for step in range(8) for index in range(8)}
    assert len(seeds) == 512 and all(0 <= seed < 2**63 for seed in seeds)


def test_same_call_twice_gives_the_same_weights_and_another_seed_others(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(len(name) + seed)  # the global state must not matter
        list(train(Regression(), _batches, folder=tmp_path / name, config=_config(seed=seed)))
    assert _weights(tmp_path / "a") == _weights(tmp_path / "b")
    assert _weights(tmp_path / "a")["map"] != _weights(tmp_path / "c")["map"]


def test_global_random_state_is_left_alone(tmp_path):
    method = Regression()
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    list(train(method, _batches, folder=tmp_path, config=_config()))
    assert torch.equal(before, torch.random.get_rng_state())


def test_accumulation_is_one_large_batch(tmp_path):
    """Without dropout, the mean gradient of the parts is the gradient of the whole."""
    data = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    parts = iter([part for _ in range(3) for part in data.split(4)])
    losses, weights = [], []
    for accumulation, batches in (
        (1, lambda step, generator: (data, data.sum(1, keepdim=True))),
        (3, lambda step, generator: (lambda x: (x, x.sum(1, keepdim=True)))(next(parts))),
    ):
        method = Regression()
        method.map[1].p = 0.0
        method.step = lambda batch, _, m=method: {"map": (m.map(batch[0]) - batch[1]).square().mean()}
        folder = tmp_path / str(accumulation)
        config = _config(steps=3, accumulation=accumulation)
        records = list(train(method, batches, folder=folder, config=config))
        losses.append([float(record.losses["map"]) for record in records])
        weights.append(method.map[0].weight.detach().clone())
        assert records[-1].images == 36
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    torch.testing.assert_close(*weights, atol=1e-5, rtol=1e-4)


class Watched(Regression):
    """Keeps what it is given; its examples come with the number of the draw and are prepared."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[torch.Tensor] = []
        self.prepared: list[int] = []
        self.noises: list[float] = []

    def prepare(self, batch):
        assert not torch.is_grad_enabled()
        self.prepared.append(int(batch[2][0]))
        return [batch[0] + 100, batch[1], batch[2]]

    def step(self, batch, generator):
        x, y, number = batch
        self.given.append(number.clone())
        assert (x > 50).all(), "what is given is prepared"
        self.noises.append(float(torch.randn((), generator=generator)))
        return super().step((x - 100, y), generator)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("echo", [1, 2, 4])
def test_an_example_is_prepared_once_and_serves_as_many_steps_in_a_row(tmp_path, echo, accumulation):
    drawn = []

    def batches(step, generator):
        x, y = (part[: 8 // echo] for part in _batches(step, generator))
        drawn.append(float(x.sum()))
        return x, y, torch.full((8 // echo,), step)

    method, steps = Watched(), 6
    records = list(train(method, batches, folder=tmp_path, config=_config(
        steps=steps, echo=echo, accumulation=accumulation)))  # fmt: skip
    assert records[-1].images == steps * accumulation * 8, "examples are counted as often as they serve"
    assert sorted(method.prepared) == sorted(list(range(steps + echo - 1)) * accumulation)
    assert len(set(drawn)) == len(drawn) == len(method.prepared), "no two draws are the same"
    for k, number in enumerate(method.given):
        step = k // accumulation
        assert number.tolist() == [d for d in range(step, step + echo) for _ in range(8 // echo)]
    assert len(set(method.noises)) == len(method.noises), "what a step draws itself is new each time"


def test_draws_share_no_random_number_with_steps():
    seeds = [step_seed(3, step, index, stream) for step in range(8) for index in range(8) for stream in (0, 1)]
    assert len(set(seeds)) == len(seeds)


def test_runs_without_echo_are_told_as_before_there_was_one(tmp_path):
    for name, echo in (("without", 1), ("with", 2)):
        list(train(Regression(), _batches, folder=tmp_path / name, config=_config(steps=4, echo=echo)))
    assert "echo" not in checkpoint.load(tmp_path / "without").state["train"]
    assert checkpoint.load(tmp_path / "with").state["train"]["echo"] == 2
    with pytest.raises(CheckpointError, match="echo"):
        list(train(Regression(), _batches, folder=tmp_path / "with", config=_config(steps=4)))


def test_gradients_are_clipped(tmp_path):
    method = Regression()
    method.optimizer = torch.optim.SGD(method.map.parameters(), lr=1.0)
    before = torch.cat([p.detach().reshape(-1).clone() for p in method.map.parameters()])
    config = _config(steps=1, schedule="constant", warmup=0.0, clip_norm=0.01)
    (record,) = train(method, _batches, folder=tmp_path, config=config)
    after = torch.cat([p.detach().reshape(-1) for p in method.map.parameters()])
    assert float(record.grad_norm["map"]) > 0.01
    assert float((after - before).norm()) == pytest.approx(0.01, rel=1e-3)


class Adversaries:
    """Two optimisers with opposed losses over one product."""

    averaged = ()

    def __init__(self) -> None:
        self.a, self.b = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
        for module in (self.a, self.b):
            nn.init.ones_(module.weight)
        self.sgd = {name: torch.optim.SGD(getattr(self, name).parameters(), lr=0.1) for name in ("a", "b")}

    def modules(self):
        return {"a": self.a, "b": self.b}

    def optimizers(self):
        return self.sgd

    def step(self, batch, generator):
        product = (self.a.weight * self.b.weight).sum()
        again = (self.a.weight * self.b.weight).sum()
        return {"a": product, "b": -again, "logged": product + 1}

    def state(self):
        return {"kind": "adversaries"}


def test_each_optimiser_descends_its_own_loss(tmp_path):
    method = Adversaries()
    config = _config(steps=1, schedule="constant", warmup=0.0, clip_norm=math.inf)
    (record,) = train(method, _batches, folder=tmp_path, config=config)
    assert method.a.weight.item() == pytest.approx(0.9) and method.b.weight.item() == pytest.approx(1.1)
    assert set(record.losses) == {"a", "b", "logged"}


def test_nan_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path):
    list(train(Regression(), _batches, folder=tmp_path / "good", config=_config()))
    run = train(Regression(poison=7), _batches, folder=tmp_path / "bad", config=_config())
    with pytest.raises(TrainingError, match="step 7") as caught:
        list(run)
    assert "step-00000004" in str(caught.value)
    assert [path.name for path in (tmp_path / "bad").iterdir()] == ["step-00000004"]
    resumed = list(train(Regression(), _batches, folder=tmp_path / "bad", config=_config()))
    assert resumed[0].step == 5
    assert _weights(tmp_path / "bad") == _weights(tmp_path / "good")


def test_nan_before_any_checkpoint_says_so(tmp_path):
    with pytest.raises(TrainingError, match=r"step 2.*no checkpoint"):
        list(train(Regression(poison=2), _batches, folder=tmp_path, config=_config()))
    assert checkpoint.latest(tmp_path) is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_checkpoints_then_acts(tmp_path, number):
    arrived = []
    before = signal.signal(number, lambda *_: arrived.append(number))
    try:
        steps = []
        for record in train(Regression(), _batches, folder=tmp_path / "a", config=_config()):
            steps.append(record.step)
            if record.step == 6:
                os.kill(os.getpid(), number)
        assert steps == [1, 2, 3, 4, 5, 6] and arrived == [number]
        assert checkpoint.load(tmp_path / "a").step == 6
        os.kill(os.getpid(), number)
        assert arrived == [number, number]  # the handler from before is back
    finally:
        signal.signal(number, before)
    list(train(Regression(), _batches, folder=tmp_path / "a", config=_config()))
    list(train(Regression(), _batches, folder=tmp_path / "b", config=_config()))
    assert _weights(tmp_path / "a") == _weights(tmp_path / "b")


def test_leaving_the_loop_gives_the_handlers_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    for _ in train(Regression(), _batches, folder=tmp_path, config=_config()):
        assert signal.getsignal(signal.SIGTERM) != before
        break
    assert signal.getsignal(signal.SIGTERM) == before


def test_training_works_outside_the_main_thread(tmp_path):
    thread = threading.Thread(target=lambda: list(train(Regression(), _batches, folder=tmp_path, config=_config())))
    thread.start()
    thread.join(60)
    assert checkpoint.load(tmp_path).step == 12


def test_another_run_in_the_folder_is_refused_by_what_differs(tmp_path, monkeypatch):
    list(train(Regression(), _batches, folder=tmp_path, config=_config(), data={"views": "abc"}))
    before = _weights(tmp_path)
    for method, config, data, message in (
        (Regression(lr=0.1), _config(), {"views": "abc"}, r"learning_rate.map is \[0.05\] there and \[0.1\] here"),
        (Regression(), _config(seed=4), {"views": "abc"}, "train.seed is 0 there and 4 here"),
        (Regression(), _config(), {"views": "xyz"}, "data.views is 'abc' there and 'xyz' here"),
        (Regression(), _config(precision="bf16"), {"views": "abc"}, "float32.*bfloat16"),
    ):
        monkeypatch.setattr("medshift.schedules.autocast_dtype", lambda device: torch.bfloat16)
        with pytest.raises(CheckpointError, match=message):
            list(train(method, _batches, folder=tmp_path, config=config, data=data))
    assert _weights(tmp_path) == before
    for changes in ({"checkpoint_every": 3}, {"keep": 5}, {"check_every": 1}):
        assert not list(
            train(Regression(), _batches, folder=tmp_path, config=_config(**changes), data={"views": "abc"})
        )


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 0},
        {"schedule": "linear"},
        {"warmup": 1.0},
        {"clip_norm": 0},
        {"precision": "fp16"},
        {"ema_decay": 1.0},
    ],
)
def test_settings_out_of_range_are_refused(changes):
    with pytest.raises(ParameterError):
        dataclasses.replace(_config(), **changes)


def test_bfloat16_is_refused_where_it_would_be_emulated(tmp_path, monkeypatch):
    monkeypatch.setattr("medshift.schedules.autocast_dtype", lambda device: None)
    with pytest.raises(ParameterError, match='cpu has no bfloat16 in hardware; choose "auto"'):
        next(train(Regression(), _batches, folder=tmp_path, config=_config(precision="bf16")))
    assert [training_dtype(precision, "cpu") for precision in ("auto", "fp32")] == [None, None]
    monkeypatch.setattr("medshift.schedules.autocast_dtype", lambda device: torch.bfloat16)
    wanted = [torch.bfloat16, torch.bfloat16, None]
    assert [training_dtype(precision, "cpu") for precision in ("auto", "bf16", "fp32")] == wanted


def test_autocast_is_for_hardware_that_has_it():
    abilities = torch.cpu.get_capabilities()
    has = any(abilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    assert autocast_dtype("cpu") is (torch.bfloat16 if has else None)
    assert autocast_dtype("meta") is None


def _rank(rank: int, folder: str, echo: int) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.manual_seed(rank)
    method = Regression()
    with torch.no_grad():
        method.map[0].weight.add_(rank)  # rank 0's weights must win
    records = list(train(method, _batches, folder=f"{folder}/two", config=_config(echo=echo)))
    assert records[-1].images == 12 * 8 * echo * 2
    distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(not distributed.is_available(), reason="torch without torch.distributed")
@pytest.mark.parametrize("echo", [1, 3])
def test_two_processes_are_one_with_twice_the_micro_batches(tmp_path, echo):
    torch.multiprocessing.spawn(_rank, (str(tmp_path), echo), nprocs=2)
    list(train(Regression(), _batches, folder=tmp_path / "one", config=_config(accumulation=2, echo=echo)))
    one, two = (checkpoint.load(tmp_path / name) for name in ("one", "two"))
    assert one.state["train"] == two.state["train"] and one.state["images"] == two.state["images"]
    for name, value in one.tensors["map"].items():
        torch.testing.assert_close(two.tensors["map"][name], value, atol=1e-6, rtol=1e-5)


# --- MedShift's own method ---


def _method(n_domains: int = 2, **options) -> FlowMatching:
    torch.manual_seed(0)
    network = build_network("smoke", n_domains=n_domains, in_channels=1, channels=(16, 16), norm_groups=4)
    return FlowMatching(network, PatchCodec(1), [f"d{k}" for k in range(n_domains)], **options)


def _two_points(step: int, generator: torch.Generator, n: int = 16):
    """Domain 0 holds one image, +0.8 everywhere, and domain 1 another, -0.8."""
    label = torch.randint(2, (n,), generator=generator)
    return (0.8 - 1.6 * label.float())[:, None, None, None].expand(n, 1, 4, 4), label


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    method = _method(learning_rate=3e-3, label_dropout=0.4)
    config = _config(steps=350, checkpoint_every=350, ema_decay=0.98, precision="fp32")
    for record in train(method, _two_points, folder=tmp_path_factory.mktemp("two"), config=config):
        velocity = record.averages["network"]
    return velocity


@torch.no_grad()
@pytest.mark.parametrize("t", [0.2, 0.5, 0.8])
def test_overfit_velocity_is_the_analytic_one(fitted, t):
    """One image a domain: v = (x1 - x) / (1 - t), and for the null class the mean over p(k | x)."""
    generator = torch.Generator().manual_seed(9)
    x1, label = _two_points(0, generator, 256)
    x = (1 - t) * torch.randn(x1.shape, generator=generator) + t * x1
    exact = (x1 - x) / (1 - t)
    conditional = fitted(x, torch.tensor(t), label)
    assert (conditional - exact).square().mean() < 0.15 * exact.square().mean()
    # log p(k | x) up to a constant is the sum over pixels of ±0.8 t x / (1 - t)².
    mean = 0.8 * torch.tanh((0.8 * t * x / (1 - t) ** 2).sum((1, 2, 3), keepdim=True))
    exact_null = (mean - x) / (1 - t)
    null = fitted(x, torch.tensor(t), torch.full_like(label, 2))
    assert (null - exact_null).square().mean() < 0.15 * exact_null.square().mean()


@torch.no_grad()
def test_labels_decide_where_the_image_does_not(fitted):
    """From pure noise the labels lead to their images, ±0.8, and the null label in between."""
    x = torch.randn(128, 1, 4, 4, generator=torch.Generator().manual_seed(4))
    label = torch.zeros(128, dtype=torch.long)
    up, down, null = (fitted(x, torch.tensor(0.05), label + k).mean().item() for k in range(3))
    assert up - null > 0.4 and null - down > 0.4


def test_null_class_trains_at_batch_size_one(tmp_path):
    """A fixed share of the batch, rounded down, would drop no label here, and the null row would stay as it was."""
    method = _method(label_dropout=0.2)
    embedding = method.network.unet.get_submodule("class_embedding").weight
    before = embedding.detach().clone()
    dropped = []
    hook = method.network.register_forward_pre_hook(lambda _, args: dropped.append(int(args[2])))
    config = _config(steps=40, checkpoint_every=40)
    list(train(method, lambda s, g: _two_points(s, g, 1), folder=tmp_path, config=config))
    hook.remove()
    assert 0 < dropped.count(2) < 20 and {0, 1} < set(dropped)
    assert (embedding[2] - before[2]).abs().max() > 1e-4


def test_codec_is_frozen_and_travels_with_the_checkpoint(tmp_path):
    method = _method()
    method.codec.mean.fill_(0.25)
    list(train(method, _two_points, folder=tmp_path, config=_config(steps=2)))
    assert float(checkpoint.load(tmp_path).tensors["codec"]["mean"]) == 0.25
    with pytest.raises(CheckpointError, match="codec"):
        list(train(_method_with_mean(0.5), _two_points, folder=tmp_path, config=_config(steps=2)))


def _method_with_mean(mean: float) -> FlowMatching:
    torch.manual_seed(0)
    network = build_network("smoke", n_domains=2, in_channels=1, channels=(16, 16), norm_groups=4)
    return FlowMatching(network, PatchCodec(1, mean=[mean]), ["d0", "d1"])


def test_network_codec_and_domains_must_fit():
    network = build_network("smoke", n_domains=2, in_channels=1)
    with pytest.raises(ParameterError, match="3 domains"):
        FlowMatching(network, PatchCodec(1), ["a", "b", "c"])
    with pytest.raises(ParameterError, match="4 channels"):
        FlowMatching(network, PatchCodec(2), ["a", "b"])


class _Filled:
    """A stage's attempt for which memory suffices up to so many images."""

    def __init__(self, holds: int) -> None:
        self.holds, self.tried = holds, []

    def __call__(self, n: int, parts: int) -> int:
        self.tried.append((n, parts))
        if n > self.holds:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return n * parts


def test_a_batch_that_does_not_fit_is_trained_in_the_fewest_parts_that_do(tmp_path):
    attempt = _Filled(holds=5)
    with pytest.warns(UserWarning, match="a batch of 16 is now trained as") as said:
        assert within_memory(Job(tmp_path, {}), 16, attempt) == 16
    assert attempt.tried == [(16, 1), (8, 2), (4, 4)] and len(said) == 2


@pytest.mark.parametrize(("multiple", "last"), [(1, 3), (2, 6)])
def test_memory_that_no_smaller_part_would_mend_is_the_error(tmp_path, multiple, last):
    attempt = _Filled(holds=0)
    with pytest.warns(UserWarning), pytest.raises(torch.OutOfMemoryError):
        within_memory(Job(tmp_path, {}), 12, attempt, multiple=multiple)
    assert attempt.tried[-1][0] == last


def test_a_training_begun_in_parts_goes_on_in_as_many_and_is_never_begun_anew(tmp_path):
    next(train(Regression(), _batches, folder=tmp_path, config=_config(accumulation=4, checkpoint_every=1)))
    attempt = _Filled(holds=1)
    with pytest.raises(torch.OutOfMemoryError):
        within_memory(Job(tmp_path, {}), 16, attempt)
    assert attempt.tried == [(4, 4)]
