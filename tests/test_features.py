"""Feature extractors: rows of their own image, published preprocessing, and what is said where weights are missing."""

import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from medshift.errors import DataError, ParameterError
from medshift.metrics import features
from medshift.metrics.features import NAMES, WeightsMissing, extractor, why_not

DIMENSIONS = {"ST-AlexNet": 1152, "ST-VGG": 1472}
SMALL_CLIP = {"image_size": 28, "patch_size": 14, "hidden_size": 16, "num_hidden_layers": 2, "projection_dim": 8}


@pytest.fixture(autouse=True)
def no_weights_and_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty checkout, and a failure at any attempt to reach the network."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a feature extractor reached for the network")

    monkeypatch.setattr(features, "ROOT", tmp_path)
    for variable in features.VARIABLES.values():
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def images(n: int = 5, side: int = 32, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    smooth = F.interpolate(torch.randn(n, 1, 6, 6, generator=g), size=side, mode="bicubic", align_corners=False)
    return smooth.clamp(-2, 2) / 2 + 0.02 * torch.randn(n, 1, side, side, generator=g)


# --- the shift-tolerant networks ---


@pytest.mark.parametrize("name", list(DIMENSIONS))
def test_rows_belong_to_their_images(name: str) -> None:
    x = images()
    one, all_at_once = extractor(name, batch=1)(x), extractor(name, batch=64)(x)
    assert one.shape == (5, DIMENSIONS[name]) and one.dtype == np.float64
    assert extractor(name).dimensions == DIMENSIONS[name]
    tolerance = 1e-5 * np.abs(one).max()
    np.testing.assert_allclose(all_at_once, one, rtol=0, atol=tolerance)
    order = [3, 0, 4, 1, 2]
    np.testing.assert_allclose(extractor(name, batch=2)(x[order]), one[order], rtol=0, atol=tolerance)
    assert np.abs(one[0] - one[1]).max() > 100 * tolerance, "else the test could not fail"


def test_weights_are_those_of_the_package_and_not_drawn() -> None:
    torch.manual_seed(0)
    first = extractor("ST-AlexNet")(images(2))
    torch.manual_seed(1)
    np.testing.assert_array_equal(extractor("ST-AlexNet")(images(2)), first)


def test_st_features_are_mean_unit_vectors_of_each_layer() -> None:
    from stlpips_pytorch import stlpips

    x = images(3)
    network = stlpips.LPIPS(net="alex", variant="shift_tolerant", verbose=False)
    rows, start = extractor("ST-AlexNet")(x), 0
    with torch.no_grad():
        for layer in network.net(network.scaling_layer(x.clamp(-1, 1).repeat(1, 3, 1, 1))):
            vectors = layer.numpy() / np.linalg.norm(layer.numpy(), axis=1, keepdims=True).clip(min=1e-12)
            part = rows[:, start : start + vectors.shape[1]]
            np.testing.assert_allclose(part, vectors.mean(axis=(2, 3)), atol=2e-6)
            assert 0.2 < np.linalg.norm(part, axis=1).mean() <= 1, "no layer outweighs the others"
            start += vectors.shape[1]
    assert start == rows.shape[1]


def test_noise_blur_and_shape_move_the_features_more_than_a_second_exposure() -> None:
    get = extractor("ST-AlexNet")
    clean = images(12) * 0.9
    g = torch.Generator().manual_seed(3)
    exposures = [get(clean + 0.05 * torch.randn(clean.shape, generator=g)).mean(0) for _ in range(2)]
    twin = np.linalg.norm(exposures[0] - exposures[1])
    for other in (clean, F.avg_pool2d(clean, 3, 1, 1), images(12, seed=9) * 0.9):
        assert np.linalg.norm(get(other).mean(0) - exposures[0]) > 5 * twin


# --- images ---


def test_overshoot_is_clamped_and_divergence_refused() -> None:
    get, x = extractor("ST-AlexNet"), images(2)
    x[0, 0, :4] = 1.4
    np.testing.assert_array_equal(get(x), get(x.clamp(-1, 1)))
    x[1, 0, 3, 3] = -1.51
    with pytest.raises(ParameterError, match="1.51"):
        get(x)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.full((1, 1, 32, 32), float("nan")), "NaN"),
        (torch.full((1, 1, 32, 32), float("inf")), "NaN"),
        (torch.zeros(1, 3, 32, 32), "N,1,H,W"),
        (torch.zeros(1, 32, 32), "N,1,H,W"),
        (torch.zeros(0, 1, 32, 32), "N,1,H,W"),
        (torch.zeros(1, 1, 32, 32, dtype=torch.uint8), "of floats"),
        (torch.zeros(1, 1, 64, 23), "too small"),
    ],
)
def test_images_that_have_no_features_are_refused(bad: torch.Tensor, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        extractor("ST-AlexNet")(bad)


@pytest.mark.parametrize("name", list(DIMENSIONS))
def test_the_least_size_and_constant_images_have_finite_features(name: str) -> None:
    side = features.MIN_SIDE
    assert np.isfinite(extractor(name)(torch.ones(2, 1, side, side))).all()


def test_double_and_autocast_make_no_difference() -> None:
    get, x = extractor("ST-AlexNet"), images(2)
    expected = get(x)
    np.testing.assert_array_equal(get(x.double()), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        np.testing.assert_array_equal(get(x), expected)


# --- names, and weights that are not there ---


def test_names_and_batches_that_are_none_are_refused() -> None:
    for call in (extractor, why_not):
        with pytest.raises(ParameterError, match="ST-AlexNet, ST-VGG, Inception, CLIP"):
            call("AlexNet")
    with pytest.raises(ParameterError, match="at least 1"):
        extractor("ST-AlexNet", batch=0)


@pytest.mark.parametrize(
    ("name", "place"), [("Inception", "inception-2015-12-05.pt"), ("CLIP", "clip-vit-large-patch14-336")]
)
def test_missing_weights_are_said_as_a_table_says_it(
    name: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"not computed: weights of {name} missing, put them at weights/{place}"
    assert why_not(name) == text
    with pytest.raises(WeightsMissing) as caught:
        extractor(name)
    assert str(caught.value) == text and isinstance(caught.value, DataError)
    monkeypatch.setenv(features.VARIABLES[name], str(tmp_path / "nowhere"))
    assert why_not(name).endswith(f"missing, {features.VARIABLES[name]} names a place without them")
    assert str(tmp_path) not in why_not(name), "a table is no place for a path of this machine"


def test_what_comes_with_packages_is_there() -> None:
    assert [name for name in NAMES if not why_not(name)] == list(DIMENSIONS)


def test_without_transformers_clip_says_which_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features.util, "find_spec", lambda _: None)
    assert why_not("CLIP") == "not computed: the package transformers is missing, install medshift[clip]"


# --- Inception, by a small program in its file's place ---


class Layers(torch.nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, width, 23, stride=23)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).relu().mean(dim=[2, 3])


class Program(torch.nn.Module):
    """What clean-fid's loader asks of an Inception: a program with `layers` inside."""

    def __init__(self, width: int = 2048) -> None:
        super().__init__()
        self.layers = Layers(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def write_inception(path: Path, width: int = 2048) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(4)
    torch.jit.save(torch.jit.script(Program(width)), path)
    return path


def test_inception_features_are_clean_fids_of_8_bit_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way of clean-fid, from PNG files, with the same program for a network."""
    from cleanfid.fid import get_files_features
    from cleanfid.inception_torchscript import InceptionV3W

    path = write_inception(tmp_path / "weights" / features.INCEPTION_FILE)
    x, files = images(3), []
    for i, image in enumerate(((x.clamp(-1, 1) + 1) * 127.5).round().byte().numpy()):
        files.append(str(tmp_path / f"{i}.png"))
        Image.fromarray(image[0]).save(files[-1])
    network = InceptionV3W(str(path.parent), download=False)
    expected = get_files_features(
        files, model=network, num_workers=0, device=torch.device("cpu"), mode="clean", verbose=False
    )
    got = extractor("Inception", batch=2)(x)
    assert got.shape == (3, 2048) and np.ptp(got) > 0.1
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    for place in (path, path.parent):
        monkeypatch.setattr(features, "ROOT", tmp_path / "elsewhere")
        monkeypatch.setenv("MEDSHIFT_INCEPTION", str(place))
        np.testing.assert_array_equal(extractor("Inception", batch=2)(x), got)


@pytest.mark.parametrize("damage", ["text", "cut", "narrow", "renamed"])
def test_a_damaged_inception_is_named(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / ("other.pt" if damage == "renamed" else features.INCEPTION_FILE)
    write_inception(path, width=64 if damage == "narrow" else 2048)
    if damage == "text":
        path.write_text("not a program")
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:5000])
    monkeypatch.setenv("MEDSHIFT_INCEPTION", str(path))
    with pytest.raises(DataError, match=path.name) as caught:
        extractor("Inception")
    assert not isinstance(caught.value, WeightsMissing)


# --- CLIP, by a small one of random weights ---


@pytest.fixture
def clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    monkeypatch.setattr(features, "CLIP_SHAPE", SMALL_CLIP)
    torch.manual_seed(5)
    config = CLIPVisionConfig(**SMALL_CLIP, intermediate_size=32, num_attention_heads=2, initializer_range=0.3)
    folder = tmp_path / "weights" / "clip-vit-large-patch14-336"
    CLIPVisionModelWithProjection(config).save_pretrained(folder)
    return folder


def test_clip_embeddings_are_those_of_its_own_processor(clip: Path) -> None:
    from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

    x = images(3)
    rows = extractor("CLIP", batch=2)(x)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-6)
    bytes_ = ((x.clamp(-1, 1) + 1) * 127.5).round() / 255
    resized = F.interpolate(bytes_.repeat(1, 3, 1, 1), size=(28, 28), mode="bicubic")
    processor = CLIPImageProcessor(do_resize=False, do_center_crop=False, do_rescale=False)
    with torch.no_grad():
        model = CLIPVisionModelWithProjection.from_pretrained(clip).eval()
        expected = model(**processor(images=list(resized), return_tensors="pt")).image_embeds
    np.testing.assert_allclose(rows, (expected / expected.norm(dim=1, keepdim=True)).numpy(), atol=1e-5)
    assert np.abs(rows[0] - rows[1]).max() > 1e-3


@pytest.mark.parametrize("damage", ["config", "weights", "absent", "other", "mismatch"])
def test_a_damaged_clip_is_named(damage: str, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import load_file, save_file

    weights = clip / "model.safetensors"
    tensors = load_file(weights)
    if damage == "config":
        (clip / "config.json").write_text("{")
    elif damage == "weights":
        weights.write_bytes(weights.read_bytes()[:2000])
    elif damage == "absent":
        save_file({k: v for k, v in tensors.items() if k != "visual_projection.weight"}, weights, {"format": "pt"})
    elif damage == "mismatch":
        save_file({**tensors, "visual_projection.weight": torch.zeros(4, 16)}, weights, {"format": "pt"})
    else:
        monkeypatch.setattr(features, "CLIP_SHAPE", {**SMALL_CLIP, "image_size": 336})
    with pytest.raises(DataError, match=clip.name) as caught:
        extractor("CLIP")
    assert not isinstance(caught.value, WeightsMissing)


def test_features_that_are_not_finite_are_no_result(clip: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(clip / "model.safetensors")
    tensors["visual_projection.weight"][0, 0] = float("nan")
    save_file(tensors, clip / "model.safetensors", {"format": "pt"})
    with pytest.raises(DataError, match="damaged"):
        extractor("CLIP")(images(1))
