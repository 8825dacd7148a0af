"""The notebooks, run as users run them: smoke on phantoms, your own folders, and the paper's recipe on made files."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from medshift.cli import main

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


def test_smoke_draws_every_figure_and_a_second_run_builds_nothing(tmp_path: Path) -> None:
    assert main(["paper", "--profile", "smoke", "--out", str(tmp_path)]) == 0
    figures = tmp_path / "build" / "smoke" / "figures"
    names = {path.stem for path in figures.glob("*.png")}
    assert {"01_domains", "01_physics", "02_octaves", "03_matrix", "04_panel_synthetic-high"} <= names
    assert {path.stem for path in figures.glob("*.pdf")} == names
    for sidecar in figures.glob("*.json"):
        held = json.loads(sidecar.read_text())
        assert held["source"] == "phantom" and str(tmp_path) not in json.dumps(held)
    headline = pd.read_csv(figures / "04_headline.csv")
    assert {"T0", "T1", "T2", "T3"} == set(headline["tier"])
    stages = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("config.json")}
    assert len(stages) == 5 and not list((tmp_path / "runs").rglob("*.partial"))
    assert main(["paper", "--profile", "smoke", "--out", str(tmp_path), "--only", "04"]) == 0
    assert stages == {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("config.json")}
    assert not list((tmp_path / "build").rglob("*.failed.ipynb"))


def test_your_own_folders(tmp_path: Path) -> None:
    root = made_skulls(tmp_path / "mine", 48, each=12)
    assert main(["paper", "--profile", "smoke", "--data", str(root), "--out", str(tmp_path)]) == 0
    names = {path.stem for path in (tmp_path / "build" / "smoke" / "figures").glob("*.png")}
    assert {"01_domains", "02_round_trip", "03_matrix", "04_tradeoff", "04_panel_synthetic-low"} <= names


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
    arguments = ["paper", "--profile", "paper", "--data", str(root), "--out", str(tmp_path), "--set", small]
    assert main(arguments) == 0
    assert (tmp_path / "build" / "paper" / "figures" / "04_tradeoff.png").is_file()


def test_a_failing_cell_leaves_no_finished_notebook(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = made_skulls(tmp_path / "mine", 48)
    (root / "real-low" / "2-001.png").write_bytes(b"not a picture")
    assert main(["paper", "--profile", "smoke", "--data", str(root), "--out", str(tmp_path)]) == 4
    assert "2-001.png" in capsys.readouterr().err
    build = tmp_path / "build" / "smoke"
    assert not (build / "01_data.ipynb").exists() and (build / "01_data.failed.ipynb").is_file()
