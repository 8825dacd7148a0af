"""The shipped network: taken for its recipe alone, by the notebooks that ask for it, and as good as what it was."""

import json
from pathlib import Path

import pytest
import torch

from medshift.errors import CheckpointError, DataError, ParameterError
from medshift.flow_training import load_flow
from medshift.metrics.structure import psnr
from medshift.repro import comparison, shipping
from medshift.repro.explorer import NETWORK, explorer_folders, pretrained
from medshift.repro.parameters import NOTEBOOKS, Parameters
from medshift.repro.pipeline import plans
from medshift.repro.profiles import Profile, load_profile
from medshift.repro.run import configure, plans_of
from medshift.repro.runner import paper_tasks
from medshift.repro.stage import Plan, Stage
from medshift.stages import shipped
from medshift.stages.job import Job
from medshift.stages.network import open_translator
from medshift.stages.shipped import WEIGHTS, shipped_sha256

ASKED = {"03_train", "04_tau_tradeoff", "05_shared_manifold", "06_baselines", "07_adaptive_shift", "99_explorer"}


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Profile, dict[str, Plan], Stage]:
    """A profile whose network is trained and shipped, into a folder of this test."""
    for module in (comparison, shipping, shipped):
        monkeypatch.setattr(module, "WEIGHTS", tmp_path / "weights")
    profile = load_profile("smoke", {"train.images": "64"})
    made = plans(profile, seed=0)
    stage = made["network"].ensure(tmp_path / "runs" / "smoke")
    monkeypatch.setattr(shipping, "profile_of", lambda parameters: profile)
    shipping.ship("smoke", [NETWORK], out_dir=str(tmp_path))
    return profile, made, stage


def test_the_network_ships_with_its_card_and_translates_as_before(trained, tmp_path: Path) -> None:
    _, made, stage = trained
    folder = tmp_path / "weights" / "smoke" / NETWORK
    card = json.loads((folder / "card.json").read_text())
    assert card["command"] == "medshift train --profile smoke" and card["mebibytes"] < shipping.LARGEST_NETWORK_MIB
    assert card["recipe"]["arguments"] == made["network"].arguments and "metrics" not in card
    here, there = load_flow(folder), load_flow(stage.folder)
    assert here.domains == there.domains and here.codec.fingerprint() == there.codec.fingerprint()
    images = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    both = [open_translator(of).translate(images, 1, 3, tau=0.3) for of in (folder, stage.folder)]
    assert psnr(*both).min() > 45
    assert (folder / "history.jsonl").read_text() == (stage.folder / "history.jsonl").read_text()


def test_shipped_weights_are_taken_for_their_recipe_alone_and_decide_what_follows(trained) -> None:
    profile, made, _ = trained
    found = pretrained(profile, made)
    assert found.name == "shipped" and found.arguments["training"] == NETWORK
    after = plans(profile, seed=0, network=found)
    assert after["network"] is found and after["tradeoff"].key != made["tradeoff"].key
    assert after["views"].key == made["views"].key
    for other in (plans(profile, seed=1), plans(load_profile("smoke", {"train.images": "65"}), seed=0)):
        assert pretrained(profile, other).folder_name == other["network"].folder_name


def test_damaged_weights_are_refused(trained, tmp_path: Path) -> None:
    profile, made, _ = trained
    folder = tmp_path / "weights" / "smoke" / NETWORK
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps(card | {"sha256": "0" * 64}))
    with pytest.raises(CheckpointError, match="not those of their card"):
        shipped.build(Job(tmp_path / "taken"), **pretrained(profile, made).arguments)


def test_what_is_too_large_to_ship_leaves_nothing_behind(trained, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(shipping, "LARGEST_NETWORK_MIB", 0.1)
    with pytest.raises(DataError, match="over 0.1"):
        shipping.ship("smoke", [NETWORK], out_dir=str(tmp_path))
    assert not (tmp_path / "weights" / "smoke" / NETWORK).exists()


def test_notebooks_that_use_the_network_can_take_it_and_the_explorer_does(tmp_path: Path) -> None:
    assert {name for name, model in NOTEBOOKS.items() if "pretrained" in model.model_fields} == ASKED
    assert [n for n in sorted(ASKED) if NOTEBOOKS[n].model_fields["pretrained"].default] == ["99_explorer"]
    only = ["01", "04", "99"]
    for asked in (False, True):
        tasks = paper_tasks("smoke", only=only, out_dir=str(tmp_path), **({"pretrained": True} if asked else {}))
        given = [task.parameters.model_dump().get("pretrained") for task in tasks]
        assert given == [None, asked, True]
        assert {task.folder.name for task in tasks} == {"smoke"}, "one recipe, one folder"


def test_without_shipped_weights_the_explorer_trains_and_says_so_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(comparison, "WEIGHTS", tmp_path / "empty")
    for name, long in (("cpu", "about 18 min on two cores"), ("gpu", "hours, on a GPU")):
        profile = load_profile(name)
        made = plans_of(NOTEBOOKS["99_explorer"](profile=name, out_dir=str(tmp_path)), profile)
        assert made["lattice"].inputs["network"] is made["network"] and made["network"].name == "network"
        made["network"].tell()
        told = capsys.readouterr().err
        assert "ships no weights of this network" in told and f"the data of profile {name}" in told
        assert long in told and f"medshift train --profile {name}" in told


def test_on_images_of_ones_own_the_explorer_says_what_it_needs(tmp_path: Path) -> None:
    run = configure("99_explorer", {"profile": "smoke", "data": str(tmp_path), "out_dir": str(tmp_path)})
    with pytest.raises(ParameterError, match="needs the truth of rendered views.*leave `data` empty"):
        explorer_folders(run)


def test_the_explorer_is_planned_for_every_notebook() -> None:
    assert "lattice" in plans_of(Parameters(profile="smoke"), load_profile("smoke"))


def test_the_network_in_the_repository_is_that_of_its_card() -> None:
    from medshift import checkpoint

    folder = WEIGHTS / "cpu" / NETWORK
    card = json.loads((folder / "card.json").read_text())
    held = checkpoint.load(folder)
    assert shipped_sha256(held) == card["sha256"] and card["mebibytes"] < 16
    cpu = load_profile("cpu", {"source": "phantom"})  # the recipe is the same, and no CT is looked for
    assert card["recipe"]["arguments"] == plans(cpu)["network"].arguments
    assert {row["tier"] for row in card["metrics"]} == {"T0", "T1", "T2", "T3"} and load_flow(folder).step == held.step
