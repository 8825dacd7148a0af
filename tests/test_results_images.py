"""Findings that are taken of images: unseen objects, and noise between exposures."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from medshift.results import noise_power, objects
from medshift.stages.objects import ABSENT, PRESENT

SIDE, VIEWS, HEADS, EXPOSURES = 32, 24, 6, 4
NOISE = 0.02


def disc(row: int) -> Tensor:
    """A bright disc (1,SIDE,SIDE)."""
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    return ((y - row) ** 2 + (x - 16) ** 2 < 16).float()[None] * 0.3


class Views:
    """Stands for `EvaluationSet`: empty images, in the folder ``with`` a disc that depends on the view."""

    noise = NOISE

    def __init__(self, folder: Path, role: str):
        assert role == "T3"
        self.folder, kinds = folder.name, ["burr-hole", "clip"]
        self.table = pd.DataFrame(
            {"head": np.arange(VIEWS) % HEADS, "region": "r", "insert": np.repeat(kinds, VIEWS // 2)}
        )
        self.open_field = torch.ones(VIEWS, 1, SIDE, SIDE, dtype=torch.bool)

    def __len__(self) -> int:
        return VIEWS

    def clean(self, domain: str) -> Tensor:
        ramp = torch.linspace(-0.5, 0.5, SIDE).expand(VIEWS, 1, SIDE, SIDE).clone()
        return ramp + torch.stack([disc(10 + v % 4) for v in range(VIEWS)]) * (self.folder == "with")

    def exposure(self, domain: str, number: int) -> Tensor:
        generator = torch.Generator().manual_seed(100 * (domain == "b") + number)
        return self.clean(domain) + self.noise * torch.randn(VIEWS, 1, SIDE, SIDE, generator=generator)


def translated(contrast: float, wrong: float, noise: float = NOISE) -> dict[str, Tensor]:
    """Translations whose object has this contrast over the truth's, but ``wrong`` on every fourth view."""
    there, gone = Views(Path("with"), "T3").clean("b"), Views(Path("without"), "T3").clean("b")
    share = torch.where(torch.arange(VIEWS) % 4 == 0, wrong, contrast)[:, None, None, None]
    generator = torch.Generator().manual_seed(7)
    noises = noise * torch.randn(2, EXPOSURES, VIEWS, 1, SIDE, SIDE, generator=generator)
    return {PRESENT: gone + share * (there - gone) + noises[0], ABSENT: gone + noises[1]}


@pytest.fixture
def folders(monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path, Path, str]:
    for module in (objects, noise_power):
        monkeypatch.setattr(module, "EvaluationSet", Views)
    return Path("with"), Path("without"), Path("objects"), "b"


@pytest.mark.parametrize(
    ("contrast", "wrong", "share"), [(1.0, 1.0, 0.0), (1.0, 1.6, 0.25), (1.0, 0.4, 0.25), (0.5, 1, 0.75)]
)
def test_a_mean_that_is_right_does_not_hide_views_that_are_wrong(
    monkeypatch: pytest.MonkeyPatch, folders: tuple[Path, Path, Path, str], contrast: float, wrong: float, share: float
) -> None:
    monkeypatch.setattr(objects, "_translated", lambda folder: translated(contrast, wrong))
    found = {row["finding"]: row for row in objects.object_findings(*folders)}
    assert found["insert_contrast"]["value"] == pytest.approx(0.75 * contrast + 0.25 * wrong, abs=0.03)
    assert found["insert_wrong"]["value"] == pytest.approx(share)
    assert found["insert_wrong_excess"]["value"] == pytest.approx(share), "noise this small makes no contrast wrong"
    assert found["insert_wrong"]["heads"] == HEADS
    table = objects.object_table(*folders).set_index("object")
    assert table.loc["all", "off by more than 20%, translation"] == pytest.approx(share)
    assert table.loc["all", "n"] == VIEWS and set(table.index) == {"burr-hole", "clip", "all"}


def test_what_noise_alone_makes_wrong_is_no_excess(
    monkeypatch: pytest.MonkeyPatch, folders: tuple[Path, Path, Path, str]
) -> None:
    monkeypatch.setattr(Views, "noise", 1.0)
    monkeypatch.setattr(objects, "_translated", lambda folder: translated(1.0, 1.0, noise=1.0))
    found = {row["finding"]: row for row in objects.object_findings(*folders)}
    assert found["insert_wrong"]["value"] > 0.3
    assert found["insert_wrong_excess"]["low"] < 0 < found["insert_wrong_excess"]["high"]


def test_half_the_contrast_is_half_as_detectable(
    monkeypatch: pytest.MonkeyPatch, folders: tuple[Path, Path, Path, str]
) -> None:
    monkeypatch.setattr(Views, "noise", 0.5)
    monkeypatch.setattr(objects, "_translated", lambda folder: translated(0.5, 0.5, noise=0.5))
    table = objects.dprime_table(*folders).set_index("object")
    for kind in ("burr-hole", "clip"):
        assert float(table.loc[kind, "ratio"]) == pytest.approx(0.5, abs=0.35), "not 2, and no equality"
        value, low, high = (float(x.strip(" [],")) for x in table.loc[kind, "d' in truth"].replace("[", "").split())
        assert low < value < high and table.loc[kind, "heads"] == HEADS
    assert table.loc["wire", "views"] == 0 and pd.isna(table.loc["wire", "ratio"])


def test_a_cut_is_about_the_object_and_inside_the_image() -> None:
    template = torch.zeros(1, 20, 30)
    template[0, 1, 28] = -1.0
    rows, columns = objects.crop_of(template, 8)
    assert (rows.start, rows.stop, columns.start, columns.stop) == (0, 8, 22, 30)
    template[0, 10, 15] = 2.0
    rows, columns = objects.crop_of(template, 8)
    assert (rows.start, columns.start) == (6, 11)


# ---- noise -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
def test_noise_between_exposures_is_followed_up_and_down(
    monkeypatch: pytest.MonkeyPatch, folders: tuple[Path, Path, Path, str], factor: float
) -> None:
    monkeypatch.setattr(noise_power, "load_file", lambda path: translated(1.0, 1.0, noise=factor * NOISE))
    (found,) = noise_power.noise_findings(*folders[1:3], ("a", "b"))
    assert found["value"] == pytest.approx(factor, rel=0.03) and found["heads"] == HEADS
    table = noise_power.noise_table(*folders[1:3], ("a", "b")).set_index("images")
    apart = abs(20 * np.log10(factor))
    for column, slack in (("noise spectrum distance [dB]", 1.2), ("variance at a mean [dB]", 0.5)):
        ours, floor = (float(table.loc[name, column].split()[0]) for name in (noise_power.MEDSHIFT, noise_power.FLOOR))
        assert ours == pytest.approx(apart, abs=slack) and floor < slack


def test_variance_is_compared_at_equal_means_only() -> None:
    generator = torch.Generator().manual_seed(0)
    ramp = torch.linspace(0, 1, 32).expand(4, 8, 1, 32, 32)
    signal = ramp + 0.1 * ramp * torch.randn(ramp.shape, generator=generator)
    mask = torch.ones(8, 1, 32, 32, dtype=torch.bool)
    again = ramp + 0.1 * ramp * torch.randn(ramp.shape, generator=generator)
    assert noise_power.variance_distance(again, signal, mask) < 0.5
    assert np.isnan(noise_power.variance_distance(again + 5, signal, mask)), "no mean in common"
