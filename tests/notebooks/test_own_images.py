"""Notebooks 01 to 04 on images of one's own, and the paper's recipe on made files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from medshift.cli import main
from medshift.repro.provenance import read_stamp

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
DOMAINS = ("synthetic-low", "synthetic-high", "real-low", "real-normal", "real-exposure")


def made_skulls(root: Path, side: int, each: int = 6) -> Path:
    """Folders of made images in the layout of X-DigiSkull: bright discs with noise of another strength a domain."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    for k, domain in enumerate(DOMAINS):
        (root / domain).mkdir(parents=True)
        for i in range(each):
            radius = rng.uniform(0.4, 0.7)
            image = 200.0 - 90.0 * (np.hypot(x, y) < radius) + rng.normal(0, 3 + 4 * k, (side, side))
            Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(root / domain / f"{k}-{i:03d}.png")
    return root


def test_your_own_folders(tmp_path: Path) -> None:
    root = made_skulls(tmp_path / "mine", 48, each=12)
    words = ["paper", "--profile", "smoke", "--data", str(root), "--out", str(tmp_path)]
    assert main(words) == 0
    [figures] = (tmp_path / "build").glob("smoke-*/figures")
    names = {path.stem for path in figures.glob("*.png")}
    assert {"01_domains", "02_round_trip", "03_matrix", "04_tradeoff", "04_panel_synthetic-low"} <= names
    assert not names & {"08_sizes"} and main([*words, "--only", "08"]) == 2  # no truth, no such scores
    assert read_stamp(figures / "03_matrix.png")["facts"]["data set"] == "your own folders"


def test_the_papers_recipe_on_made_files_with_an_untrained_autoencoder(tmp_path: Path) -> None:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    # The architecture of stabilityai/sd-vae-ft-mse, its weights drawn at random.
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=4,
    )
    vae.save_pretrained(tmp_path / "vae")
    root = made_skulls(tmp_path / "X-DigiSkull", 160)
    small = (
        f"codec.folder={tmp_path / 'vae'} size=96 train.network=smoke train.images=8 train.batch=4 tradeoff.headline=2"
    )
    small += " tradeoff.taus=[0.3,1.0] kl.images=4 kl.batch=2"
    arguments = ["paper", "--profile", "paper", "--data", str(root), "--out", str(tmp_path)]
    assert main([*arguments, "--set", small]) == 0
    assert [path.name for path in (tmp_path / "build").glob("paper-*/figures/04_tradeoff.png")]


def test_a_damaged_image_stops_with_its_name_and_nothing_finished(tmp_path: Path, capsys) -> None:
    root = made_skulls(tmp_path / "mine", 48)
    (root / "real-low" / "2-001.png").write_bytes(b"not a picture")
    assert main(["paper", "--profile", "smoke", "--only", "01", "--data", str(root), "--out", str(tmp_path)]) == 3
    error = capsys.readouterr().err
    assert "2-001.png" in error and "Traceback" not in error
    assert not list((tmp_path / "build").rglob("01_data.ipynb")) and not list((tmp_path / "runs").rglob("*.json"))
