"""The study: tau from validation alone, every tier evaluated, files that hold what the figures need."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from medshift.baselines.identity import Identity
from medshift.codec import PatchCodec
from medshift.data.domains import DOMAINS, TIERS, ViewCounts, plan_views, render
from medshift.data.heads import Heads, HeadSplit
from medshift.evaluate import choose_tau
from medshift.tradeoff import HEUN, PAIRS, PUBLISHED, Settings, panel_taus, spread_over_views, study, study_unpaired
from medshift.translate import MedShift


def velocity(x: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    return (0.2 * label.view(-1, 1, 1, 1) - x) * (0.5 + t)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("study")
    counts = ViewCounts(train=1, validation=2, T0=2, T1=3, T2=4, T3=4)
    render(plan_views(counts, HeadSplit(2, 2, 2), 0), Heads("phantom", phantom_spacing_mm=4.0), 24, root / "views")
    (root / "study").mkdir()
    model = MedShift(velocity, PatchCodec(2), len(DOMAINS), DOMAINS)
    settings = Settings([0.1, 0.5, 1.0], dict.fromkeys(("validation", *TIERS), 2), headline=4, batch=4)
    study(model, [Identity()], root / "views", root / "study", settings)
    return root / "study"


def test_tau_is_what_validation_says_and_every_headline_uses_it(folder: Path) -> None:
    sweep, headline = pd.read_csv(folder / "sweep.csv"), pd.read_csv(folder / "headline.csv")
    chosen = json.loads((folder / "chosen.json").read_text())
    for (source, target), solver in [(pair, solver) for pair in PAIRS for solver in (HEUN, PUBLISHED)]:
        validation = sweep[(sweep["role"] == "validation") & (sweep["source"] == source)]
        tau = choose_tau(validation, solver)
        assert chosen[f"{source} > {target} | {solver}"] == tau
        used = headline[(headline["source"] == source) & (headline["solver"] == solver)]["tau"]
        assert len(used) and set(used) == {tau}


def test_every_tier_is_swept_and_scored_beside_floors_and_twin(folder: Path) -> None:
    sweep, floors = pd.read_csv(folder / "sweep.csv"), pd.read_csv(folder / "floors.csv")
    for pair in PAIRS:
        here = sweep[(sweep["source"] == pair[0]) & (sweep["solver"] == HEUN)]
        assert set(here["role"]) == {"validation", *TIERS} and set(here["tau"]) == {0.1, 0.5, 1.0}
        assert set(floors[floors["source"] == pair[0]]["method"]) == {"doing nothing", "noise twin"}
        assert (folder / f"panels-{pair[0]}.safetensors").is_file()
    assert set(pd.read_csv(folder / "headline.csv")["role"]) == set(TIERS)
    assert not list(folder.glob("*.part"))
    spectra = pd.read_csv(folder / "spectra.csv")
    assert not spectra.duplicated(["source", "image", "frequency"]).any() and (spectra["power"] > 0).all()


def test_at_tau_one_nothing_has_changed(folder: Path) -> None:
    sweep = pd.read_csv(folder / "sweep.csv")
    assert (sweep[sweep["tau"] == 1.0]["psnr_source"] > 90).all()
    assert (sweep[sweep["tau"] == 0.1]["psnr_source"] < 60).all()


def test_panels_show_the_ends_of_the_dial() -> None:
    assert panel_taus([0.1, 1.0]) == [0.1, 1.0]
    taus = [k / 20 for k in range(1, 21)]
    shown = panel_taus(taus)
    assert len(shown) == 6 and shown[0] == taus[0] and shown[-1] == taus[-1] and shown == sorted(set(shown))


def test_without_truth_the_study_compares_with_the_source_alone(tmp_path: Path) -> None:
    model = MedShift(velocity, PatchCodec(2), 2, ("a", "b"))
    images = torch.rand(5, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    study_unpaired(model, images, ("a", "b"), tmp_path, Settings([0.2, 1.0], {}, headline=5, batch=2))
    table = spread_over_views(pd.read_csv(tmp_path / "sweep.csv"))
    assert set(table["n"]) == {5} and len(table) == 4
    by = table.set_index(["solver", "tau"])["ssim_source"]
    assert by[HEUN, 1.0] > 0.999 > by[HEUN, 0.2]
