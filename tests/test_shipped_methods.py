"""Every folder of weights that the repository ships, opened and asked for an image as a user would."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medshift.cli import main
from medshift.opening import trained_pair
from medshift.repro.comparison import WEIGHTS

CPU = WEIGHTS / "cpu"
SHIPPED = sorted(path.parent.name for path in CPU.glob("*/card.json"))
ON_A_NETWORK = {"cyclegan-turbo": "same-budget"}
SIDE = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One grey image that is no constant."""
    found = tmp_path_factory.mktemp("in")
    rows, columns = np.mgrid[:SIDE, :SIDE]
    Image.fromarray((120 + 60 * np.sin(rows / 5) + 40 * np.cos(columns / 7)).astype(np.uint8)).save(found / "a.png")
    return found


def knobs_of(name: str) -> list[str]:
    """Few steps for methods that take steps, and tau for those that need it."""
    recipe = json.loads((CPU / name / "card.json").read_text())["recipe"]["arguments"]
    kind = recipe.get("kind", "medshift")
    if kind in ("medshift", "medshift-same-budget"):
        return ["--tau", "0.5", "--set", "steps=2"]
    stepped = ("two-networks", "unsb", "direct-bridge", "direct-bridge-reflow", "cdtsde", "brownian-bridge", "ddbm")
    return ["--set", "steps=2"] if kind in stepped else []


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_weights_open_and_translate(name: str, folder: Path, tmp_path: Path) -> None:
    words = ["translate", "--checkpoint", str(CPU / name), "--device", "cpu", *knobs_of(name)]
    if name in ON_A_NETWORK:
        words += ["--base", str(CPU / ON_A_NETWORK[name])]
    if trained_pair(CPU / name) is None:
        words += ["--source", "synthetic-high", "--target", "real-normal"]
    assert main([*words, str(folder), str(tmp_path / "out")]) == 0
    made, given = (np.asarray(Image.open(place / "a.png")).astype(int) for place in (tmp_path / "out", folder))
    assert made.shape == given.shape and np.abs(made - given).max() > 0


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("", "without the network they were trained on: give the checkpoint of that network by --base"),
        ("bridge-ot", "trained on a base network of another shape"),
        ("cut", "is a training of 'cut', which has no velocity network of its own"),
        ("cyclegan-turbo", "which has no velocity network of its own"),
    ],
)
def test_adapters_without_their_network_are_one_clear_sentence(
    base: str, message: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["translate", "--checkpoint", str(CPU / "cyclegan-turbo"), *(["--base", str(CPU / base)] if base else [])]
    assert main([*words, str(folder), str(tmp_path / "out")]) == 3
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("medshift: ")]
    assert len(lines) == 1 and message in lines[0], lines
    assert not (tmp_path / "out").exists()


def test_a_base_for_a_method_that_has_none_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["translate", "--checkpoint", str(CPU / "cut"), "--base", str(CPU / "same-budget")]
    assert main([*words, str(folder), str(tmp_path / "out")]) == 3
    assert "'cut' names no base network: it has no adapters" in capsys.readouterr().err
