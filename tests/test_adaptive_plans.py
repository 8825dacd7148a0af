"""The plans of 07: every row shown is judged, every key says what decides it, weights ship and come back."""

import json

import pytest

from medshift import checkpoint
from medshift.errors import ParameterError
from medshift.methods_index import TRAINED
from medshift.repro import adaptive, comparison, shipping
from medshift.repro.adaptive import adaptive_plans, paired_training_plan
from medshift.repro.adaptive_rows import ADAPTIVE_STAGES, CURVES, PAIRED_TRAININGS, TASKS, settings_of
from medshift.repro.comparison import recipe_of
from medshift.repro.comparison_rows import TRAININGS
from medshift.repro.parameters import NOTEBOOKS, check
from medshift.repro.pipeline import plans
from medshift.repro.profiles import load_profile
from medshift.repro.runner import paper_tasks
from medshift.results.adaptive import ABLATED, FEW, ROWS
from medshift.stages import shipped
from medshift.stages.job import Job

CURVE = [1, 2, 5, 10, 25, 50]


@pytest.fixture(scope="module")
def smoke():
    profile = load_profile("smoke")
    return profile, plans(profile, seed=0)


def test_every_stage_of_the_notebook_has_a_plan(smoke):
    found = adaptive_plans(*smoke, seed=0)
    assert set(ADAPTIVE_STAGES) <= set(found)
    assert {training.kind for training in PAIRED_TRAININGS.values()} <= set(TRAINED)
    assert not set(PAIRED_TRAININGS) & set(TRAININGS), "shipped weights lie side by side"


@pytest.mark.parametrize("task", TASKS)
def test_every_row_of_the_tables_is_judged_in_the_settings_it_shows(task):
    for name, settings in ROWS:
        if name in ("nothing", "twin"):
            continue
        assert set(settings) <= set(settings_of(f"{task}-{name}", CURVE)), (task, name)
    for name in ABLATED:
        if f"{task}-{name}" in PAIRED_TRAININGS:
            assert FEW in settings_of(f"{task}-{name}", CURVE)
    for name in CURVES:
        assert {f"K={k}" for k in CURVE} <= set(settings_of(name, CURVE))


def test_a_trainings_key_has_its_method_and_no_other(smoke):
    found = adaptive_plans(*smoke, seed=0, retrain=["all"])
    pixel, bridge = found["trained mask-pixel"].parts, found["trained mask-bbdm"].parts
    assert "medshift.paired.cdtsde" in pixel["modules"] and "medshift.paired.cdtsde" not in bridge["modules"]
    assert "medshift.paired.brownian" in bridge["modules"]
    assert found["trained mask-pixel"].key != found["trained mask-pixel-seed-1"].key
    other = adaptive_plans(*smoke, seed=1, retrain=["all"])
    assert other["trained mask-pixel"].key != found["trained mask-pixel"].key


def test_proposed_pairs_say_by_which_network(smoke):
    profile, made = smoke
    plan = paired_training_plan(profile, made, "modality-pixel-medshift", seed=0)
    assert plan.inputs["proposed"].inputs["network"] is made["network"]
    assert recipe_of(plan)["proposed"]["network"] == json.loads(json.dumps(dict(made["network"].arguments)))
    assert "proposed" not in recipe_of(paired_training_plan(profile, made, "modality-pixel", seed=0))


def test_retraining_goes_to_the_notebook_that_has_the_training(tmp_path):
    tasks = paper_tasks("smoke", only=["06", "07"], out_dir=str(tmp_path), retrain=["mask-pixel", "cut"])
    asked = [task.parameters.model_dump()["retrain"] for task in tasks]
    assert asked == [["cut"], ["mask-pixel"]]
    with pytest.raises(ParameterError, match="No training is called 'mask-pixle'; did you mean 'mask-pixel'"):
        paper_tasks("smoke", only=["07"], out_dir=str(tmp_path), retrain=["mask-pixle"])
    with pytest.raises(ParameterError, match="no training is called 'cut'"):
        check(NOTEBOOKS["07_adaptive_shift"], {"retrain": ["cut"]}, "07")


@pytest.mark.parametrize("pretrained", [False, True])
def test_with_what_is_shipped_only_live_rows_train(tmp_path, pretrained):
    profile = load_profile("cpu")
    for task in paper_tasks("cpu", only=["06", "07"], out_dir=str(tmp_path), pretrained=pretrained):
        every = {plan.label for asked in task.plans.values() for plan in asked.chain() if plan.name == "trained"}
        live = {"06": profile.comparison.live, "07": profile.adaptive.live}[task.notebook.stem[:2]]
        assert every == {f"training {name}" for name in live}


def test_weights_ship_with_a_card_and_are_taken_for_their_recipe_alone(smoke, tmp_path, monkeypatch):
    profile, made = smoke
    out, weights = tmp_path / "out", tmp_path / "weights"
    plan = paired_training_plan(profile, made, "mask-random", seed=0)
    stage = plan.ensure(out / "runs" / "smoke")
    for module in (comparison, shipping, shipped):
        monkeypatch.setattr(module, "WEIGHTS", weights)
    shipping.ship("smoke", ["mask-random"], out_dir=str(out))
    card = json.loads((weights / "smoke" / "mask-random" / "card.json").read_text())
    assert card["mebibytes"] < shipping.LARGEST_MIB and card["recipe"]["arguments"]["task"] == "mask"
    found = adaptive.adaptive_plans(profile, made, seed=0)
    assert "shipped mask-random" in found and "trained mask-random" not in found
    assert found["pairs mask-random"].inputs["trained"].name == "shipped"
    assert "trained mask-random" in adaptive_plans(profile, made, seed=1)
    shipped.build(Job(tmp_path / "taken"), profile="smoke", training="mask-random", sha256=card["sha256"])
    here, there = checkpoint.load(tmp_path / "taken"), checkpoint.load(stage.folder)
    assert set(here.tensors) == {"network", "field", "codec"} and here.state["images"] == there.state["images"]
