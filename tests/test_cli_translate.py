"""`medshift translate`: any method on a folder of one's own images, and one line for every mistake."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from medshift import checkpoint, methods, opening
from medshift.adapters import base_identity
from medshift.baselines.fresh_noise import FreshNoise
from medshift.baselines.z_star import ZStar
from medshift.cli import main
from medshift.codec import KLCodec, PatchCodec
from medshift.errors import CheckpointError, DataError, ParameterError
from medshift.flow_training import FlowMatching, load_flow
from medshift.network import VelocityNetwork, build_network
from medshift.opening import in_tiles, open_fitted, open_method, trained_pair
from medshift.pairwise import Pair
from medshift.tiled_codec import TiledCodec
from medshift.translate import MedShift

DOMAINS = ("bright", "dark", "third")


class Shifted:
    """What the checkpoint of the toy kind opens as."""

    name, needs_pairs = "shifted", False

    def __init__(self, base: VelocityNetwork | None = None) -> None:
        self.pair, self.base = Pair("bright", "dark", DOMAINS), base

    def translate(self, images: Tensor, source: str, target: str, *, levels: int = 1) -> Tensor:
        self.pair.check(source, target)
        return images - 2 / 255 * levels

    def nfe(self, *, levels: int = 1) -> int:
        return 1


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of MedShift whose field is not zero."""
    folder = tmp_path_factory.mktemp("flow")
    torch.manual_seed(0)
    net = build_network("smoke", n_domains=3, in_channels=4)
    torch.nn.init.normal_(net.unet.conv_out.weight, std=0.1)
    codec = PatchCodec(2, mean=[0.1] * 4, std=[0.5] * 4)
    state = {"method": FlowMatching(net, codec, DOMAINS).state()}
    averaged = {f"module.{name}": value for name, value in net.state_dict().items()}
    checkpoint.save(folder, 7, {"network-ema": averaged, "codec": codec.tensors()}, state)
    return folder


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint of a method for one pair; `medshift.methods` opens it as `Shifted`."""
    state = {"method": {"kind": "toy", "pair": ["bright", "dark"], "domains": list(DOMAINS)}}
    checkpoint.save(tmp_path / "toy", 1, {}, state)
    monkeypatch.setattr(methods, "open_trained", lambda folder, *, device, base: Shifted(base))
    return tmp_path / "toy"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "in" / "sub").mkdir(parents=True)
    for i, name in enumerate(("a.png", "sub/b.png", "sub/c.png")):
        levels = np.random.default_rng(i).integers(5, 250, (9 + i, 12)).astype(np.uint8)
        Image.fromarray(levels).save(tmp_path / "in" / name)
    return tmp_path / "in"


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr, without the progress bar."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("medshift: ")]
    assert len(lines) == 1, lines
    return lines[0]


def translate(*words: object) -> int:
    return main(["translate", *map(str, words)])


def test_a_method_for_one_pair_knows_its_domains(
    toy: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert translate("--checkpoint", toy, "--set", "levels=3", images, out) == 0
    for name in ("a.png", "sub/b.png", "sub/c.png"):
        assert np.array_equal(pixels(out / name), pixels(images / name) - 3)
    assert capsys.readouterr().out == f"images translated into '{out}': 3.\n"
    words = ("--method", "toy", "--checkpoint", toy, "--source", "bright", "--target", "dark", images, out)
    assert translate(*words) == 0
    assert "there before and kept (--overwrite replaces them): 3." in capsys.readouterr().out
    assert np.array_equal(pixels(out / "a.png"), pixels(images / "a.png") - 3)
    assert translate("--overwrite", *words) == 0
    assert np.array_equal(pixels(out / "a.png"), pixels(images / "a.png") - 1)


def test_medshift_itself_and_methods_on_top_of_it(flow: Path, images: Path, tmp_path: Path) -> None:
    pair = ("--source", "bright", "--target", "dark", "--checkpoint", flow, "--set", "steps=2", "--device", "cpu")
    assert translate(*pair, "--tau", 1, images, tmp_path / "same") == 0
    assert translate(*pair, "--tau", "0.2", images, tmp_path / "plain") == 0
    assert translate(*pair, "--method", "medshift", "--tau", "0.2", images, tmp_path / "named") == 0
    assert translate(*pair, "--method", "sdedit", "--tau", "0.2", images, tmp_path / "fresh") == 0
    assert translate(*pair, "--method", "sdedit", "--tau", "0.2", "--seed", 1, images, tmp_path / "other") == 0
    words = ("--method", "forward-noised", "--option", "start=0.5", "--tau", "0.2")
    assert translate(*pair, *words, images, tmp_path / "forward") == 0
    source = pixels(images / "sub/b.png")
    made = {p.name: pixels(p / "sub/b.png") for p in tmp_path.iterdir() if p != images}
    assert np.array_equal(made.pop("same"), source), "tau = 1 is the codec's round trip"
    assert np.array_equal(made.pop("plain"), made["named"])
    model = open_method(flow)
    image = torch.from_numpy(source / 127.5 - 1).float()[None, None]
    expected = model.translate(image, "bright", "dark", tau=0.2, steps=2)[0, 0].clamp(-1, 1)
    assert np.abs(made["named"] - ((expected + 1) * 127.5).numpy()).max() < 0.51
    assert len({value.tobytes() for value in (source, *made.values())}) == 5, "all differ"


def test_z_star_takes_a_network_and_styles(flow: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    sets = {domain: rng.integers(5, 250, (5, 16, 16)).astype(np.uint8) for domain in reversed(DOMAINS)}
    for domain, levels in sets.items():
        (tmp_path / "data" / domain / "train").mkdir(parents=True)
        for i, image in enumerate(levels):
            Image.fromarray(image).save(tmp_path / "data" / domain / "train" / f"{i}.png")
    (tmp_path / "in").mkdir()
    source = rng.integers(5, 250, (16, 16)).astype(np.uint8)
    Image.fromarray(source).save(tmp_path / "in" / "a.png")
    words = ("--method", "z-star", "--checkpoint", flow, "--source", "bright", "--target", "dark")
    styled = (*words, "--training", tmp_path / "data")
    assert translate(*styled, "--set", "steps=4", "--set", "tau=0.5", tmp_path / "in", tmp_path / "out") == 0
    held = load_flow(flow)
    training = [torch.from_numpy(sets[domain] / 127.5 - 1).float()[:, None] for domain in DOMAINS]
    by_hand = ZStar(held.network, held.codec, training, DOMAINS)
    image = torch.from_numpy(source / 127.5 - 1).float()[None, None]
    wanted = by_hand.translate(image, "bright", "dark", tau=0.5, steps=4)[0, 0].clamp(-1, 1)
    assert np.abs(pixels(tmp_path / "out" / "a.png") - ((wanted + 1) * 127.5).numpy()).max() < 4  # bfloat16 or not
    for given, message in (
        ((*words, "--set", "steps=4"), "give --checkpoint FOLDER and --training FOLDER, both"),
        ((*styled, "--option", "strength=2"), "z-star cannot be made"),
    ):
        assert translate(*given, tmp_path / "in", tmp_path / "other") == 2 and message in said(capsys)
    shutil.rmtree(tmp_path / "data" / "third")
    assert translate(*styled, tmp_path / "in", tmp_path / "other") == 2
    assert "has no images of third" in said(capsys)


def test_a_method_fitted_to_training_images(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    for k, domain in enumerate(("bright", "dark")):
        (tmp_path / "data" / domain).mkdir(parents=True)
        for i in range(5):
            levels = rng.integers(10, 20, (12, 16)) + 100 * (1 - k)
            Image.fromarray(levels.astype(np.uint8)).save(tmp_path / "data" / domain / f"{i}.png")
    pair = ("--training", tmp_path / "data", "--source", "bright", "--target", "dark")
    assert translate("--method", "histogram", *pair, images, tmp_path / "out") == 0
    assert max(pixels(tmp_path / "out" / "sub" / name).max() for name in ("b.png", "c.png")) < 20, "the target's tones"
    for words, message in (
        (("--method", "histogram", *pair, "--tau", 1), "histogram match has no knob 'tau': it has none"),
        (("--method", "histogram", *pair[:-1], "nowhere"), "No domain is called 'nowhere'"),
        (("--method", "sdedit", *pair), "none of those fitted to training images, which are histogram"),
        (("--method", "histogram", *pair, "--base", "x"), "--base and --option go with --checkpoint"),
    ):
        assert translate(*words, images, tmp_path / "x") == 2 and message in said(capsys)
    assert translate("--method", "nearest", *pair, images, tmp_path / "x") == 3
    assert "The image has 12 × 9 pixels, training images 16 × 12; resize" in said(capsys)
    assert not (tmp_path / "x").exists()
    assert translate("--method", "nearest", *pair, "--size", 9, tmp_path / "data", tmp_path / "x") == 3
    assert "training images 9 × 9" in said(capsys)


def test_tiles_are_for_autoencoders_alone(
    toy: Path, flow: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = MedShift(lambda x, t, label: x, KLCodec.build(channels=4).requires_grad_(False).eval(), 3, DOMAINS)
    for method in (model, FreshNoise(model)):
        assert in_tiles(method, 256) is method and isinstance(model.codec, TiledCodec)
        assert model.codec.tile * model.codec.stride == 256 == 4 * model.codec.overlap * model.codec.stride
        model.codec = model.codec.codec
    pair = ("--source", "bright", "--target", "dark", "--tau", "0.5")
    for words, message in (
        (("--checkpoint", flow, *pair, "--tile", 256), "a codec of patches needs no more memory"),
        (("--checkpoint", toy, "--tile", 256), "is for MedShift and methods on top of one"),
    ):
        assert translate(*words, images, tmp_path / "x") == 2 and message in said(capsys)
    with pytest.raises(ParameterError, match="tile is 16, expected"):
        in_tiles(model, 16)
    assert not (tmp_path / "x").exists()


def test_mistakes_are_one_line_and_write_nothing(
    toy: Path, flow: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = ("--source", "bright", "--target", "dark")
    ours, theirs = ("--checkpoint", flow, *pair), ("--checkpoint", toy)
    cases: list[tuple[tuple[object, ...], str]] = [
        ((), "Give --checkpoint FOLDER, or --training FOLDER"),
        ((*ours, "--training", images), "one alone"),
        ((*ours, "--size", 64), "--size is of the images of --training"),
        (("--checkpoint", flow), "Give --source and --target"),
        ((*ours, "--method", "no-such", "--tau", 1), "of MedShift, which does not give 'no-such'"),
        ((*ours, "--method", "toy", "--tau", 1), "From a MedShift's checkpoint come medshift, sdedit"),
        ((*theirs, "--method", "cyclegan"), "is of 'toy', not of 'cyclegan'"),
        ((*theirs, "--method", "medshift"), "is of 'toy', not of 'medshift'"),
        ((*theirs, "--method", "histogram"), "by --training"),
        ((*theirs, "--option", "start=1"), "takes no options"),
        ((*theirs, "--tau", "0.3"), "shifted has no knob 'tau': its knobs are levels"),
        ((*theirs, "--set", "level=1"), "did you mean 'levels'"),
        ((*theirs, "--set", "levels"), "'levels' has no value"),
        ((*theirs, "--set", "levels=1", "--set", "levels=2"), "'levels' is given twice"),
        ((*theirs, "--source", "dark", "--target", "bright"), "trained from bright to dark"),
        ((*theirs, "--target", "nowhere"), "trained from bright to dark"),
        ((*ours[:-1], "nowhere", "--tau", 1), "Unknown domain 'nowhere': expected a label in 0..2 or one of bright"),
        (ours, "MedShift needs tau; give it, by --tau"),
        ((*ours, "--tau", 3), "tau is 3, expected a number in [0, 1]"),
        ((*ours, "--tau", "x"), "tau is 'x', expected a number"),
        ((*ours, "--tau", 1, "--set", "tau=1"), "'tau' is given twice"),
        ((*ours, "--tau", 1, "--set", "solver=runge"), "runge"),
        ((*ours, "--tau", 1, "--batch", 0), "batch is 0"),
        ((*ours, "--tau", 1, "--device", "abacus"), "Device 'abacus' cannot be used here"),
        ((*ours, "--method", "forward-noised", "--tau", 1), "give --option NAME=VALUE"),
        ((*ours, "--method", "sdedit", "--option", "start=1", "--tau", 1), "sdedit cannot be made"),
    ]
    for words, message in cases:
        assert translate(*words, images, tmp_path / "out") == 2, words
        assert message in said(capsys), words
    assert translate(*theirs, images, images / "out") == 2 and "contains the output folder" in said(capsys)
    assert not (tmp_path / "out").exists() and not (images / "out").exists()


def test_inputs_that_are_missing_or_damaged_leave_with_3(
    toy: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint.save(tmp_path / "codec", 0, {}, {"codec": {"kind": "patch"}})
    for words, message in (
        (("--checkpoint", tmp_path / "nowhere", images), "There is no checkpoint in"),
        (("--checkpoint", tmp_path / "codec", images), "is a checkpoint of no method"),
        (("--checkpoint", toy, tmp_path / "nowhere"), "is not a folder"),
    ):
        assert translate(*words, tmp_path / "out") == 3 and message in said(capsys)
    (images / "sub" / "bad.png").write_text("no image")
    assert translate("--checkpoint", toy, images, tmp_path / "out") == 3
    message = said(capsys)
    assert "could not be translated: 1. 'sub/bad.png' cannot be read" in message and "into" in message
    assert len([p for p in (tmp_path / "out").rglob("*") if p.is_file()]) == 3, "the others are done"


def test_a_checkpoints_kind_decides_what_opens(
    flow: Path, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(methods, "open_trained", lambda folder, **options: asked.append((folder, options)) or Shifted())
    assert isinstance(open_method(toy), Shifted) and asked.pop() == (toy, {"device": "cpu", "base": None})
    with pytest.raises(CheckpointError, match="names no base network"):
        open_method(toy, base=flow)
    network = load_flow(flow).network
    adapted = {"kind": "toy", "pair": ["bright", "dark"], "domains": list(DOMAINS), "base": base_identity(network)}
    checkpoint.save(tmp_path / "adapted", 1, {}, {"method": adapted})
    open_method(tmp_path / "adapted", base=flow)
    base = asked.pop()[1]["base"]
    assert isinstance(base, VelocityNetwork) and base.config.n_domains == 3, "the network under an adapter"
    assert trained_pair(toy) == ("bright", "dark") and trained_pair(flow) is None
    model = open_method(flow, name="medshift")
    assert isinstance(model, MedShift) and model.domain_names == DOMAINS
    assert isinstance(open_method(flow, name="sdedit"), FreshNoise)
    made: list[Any] = []
    monkeypatch.setattr(methods, "FREE", {"ddib": lambda model, **options: made.append((model, options)) or Shifted()})
    assert isinstance(open_method(flow, name="ddib", options={"a": 1}), Shifted)
    assert isinstance(made[0][0], MedShift) and made[0][1] == {"a": 1}
    with pytest.raises(ParameterError, match="come medshift, sdedit, ddib"):
        open_method(flow, name="mine")
    with pytest.raises(CheckpointError):
        open_method(tmp_path / "nowhere")


def test_methods_fitted_to_images_see_all_domains_and_at_most_the_first_400(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for domain in DOMAINS:
        (tmp_path / domain / "train").mkdir(parents=True)
        for i in range(6):
            Image.fromarray(np.full((8 + i % 2, 8), i, np.uint8)).save(tmp_path / domain / "train" / f"{i}.png")
    seen: list[Any] = []
    monkeypatch.setattr(methods, "floor", lambda *given: seen.append(given) or Shifted())
    monkeypatch.setattr(opening, "TRAINING_IMAGES", 4)
    with pytest.raises(ParameterError, match="differ in size"):
        open_fitted("histogram", tmp_path)
    open_fitted("histogram", tmp_path, size=8)
    name, training, domains = seen.pop()
    assert name == "histogram" and domains == DOMAINS and [t.shape for t in training] == [(4, 1, 8, 8)] * 3
    with pytest.raises(DataError):
        open_fitted("histogram", tmp_path / "nowhere")
