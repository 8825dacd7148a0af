"""The plans of the comparison: seeds, draws, taus and shipped weights."""

import dataclasses
from pathlib import Path

import pytest

from medshift.codec import PatchCodec
from medshift.knobs import draws_of
from medshift.methods import free
from medshift.repro import comparison
from medshift.repro.comparison import comparison_plans
from medshift.repro.comparison_rows import (
    COMPARISON_STAGES,
    DEAR,
    MATCHED,
    MOST_SEEDS,
    ROWS,
    STRENGTHS,
    TRAININGS,
    repeated,
    seeded,
    trainings_of,
)
from medshift.repro.pipeline import plans
from medshift.repro.profiles import ComparisonProfile, load_profile
from medshift.strengths import matched_tau
from medshift.translate import MedShift


@pytest.fixture(scope="module")
def smoke():
    profile = load_profile("smoke")
    return profile, plans(profile, seed=0)


def test_a_training_under_another_seed_is_another_training_on_a_base_of_that_seed():
    all_of_them = trainings_of(MOST_SEEDS)
    assert list(all_of_them)[: len(TRAININGS)] == list(TRAININGS)
    for name, training in TRAININGS.items():
        assert all_of_them[name] == training
        for k in range(1, MOST_SEEDS):
            other = all_of_them[seeded(name, k)]
            assert other == dataclasses.replace(training, base=other.base, seed=k)
            assert not training.base or other.base == f"{training.base}-seed-{k}"
    for k, (name, training) in enumerate(all_of_them.items()):
        assert not training.base or training.base in list(all_of_them)[:k], name
    limit = next(m.le for m in ComparisonProfile.model_fields["seeds"].metadata if hasattr(m, "le"))
    assert limit == MOST_SEEDS


def test_seeds_add_rows_and_change_nothing_of_the_first(smoke):
    profile, made = smoke
    several = profile.model_copy(update={"comparison": profile.comparison.model_copy(update={"seeds": 2})})
    one, two = (comparison_plans(p, made, seed=5) for p in (profile, several))
    assert {name: plan.key for name, plan in one.items()} == {name: two[name].key for name in one}
    assert {name.replace(", seed 1", "").replace("-seed-1", "") for name in two.keys() - one.keys()} == {
        name for name in one if name.startswith("trained") or "trained" in two[name].parts["inputs"]
        or (name.startswith("assessed") and "trained" in one[name].inputs["compared"].inputs)
    }  # fmt: skip
    assert [plan.arguments["seed"] for plan in (two["trained cut"], two["trained cut-seed-1"])] == [5, 6]
    turbo = two["compared CycleGAN-Turbo-style (own backbone), seed 1"]
    assert turbo.inputs["base"].key == two["trained same-budget-seed-1"].key
    names = {name for name in two if name.startswith(("compared", "assessed"))}
    assert names <= set(COMPARISON_STAGES)


def test_a_row_under_another_seed_deviates_as_the_row_does():
    for row in ROWS:
        first, *others = repeated(row, MOST_SEEDS)
        assert first is row and len(others) == (MOST_SEEDS - 1 if row.family == "trained" else 0)
        assert {other.deviation for other in others} <= {row.deviation}


def test_shipped_weights_of_the_comparison_are_still_those_of_their_recipe(monkeypatch):
    monkeypatch.setattr("medshift.data.ct.fetch", lambda cache=None: Path("here"))
    monkeypatch.delenv("MEDSHIFT_CT", raising=False)
    profile = load_profile("cpu")
    found = comparison_plans(profile, plans(profile, seed=0), seed=0)
    shipped_here = {path.parent.name for path in comparison.WEIGHTS.glob("cpu/*/card.json")} & set(TRAININGS)
    assert shipped_here >= {"same-budget", "cyclegan-turbo", "bridge-ot-reflow"}
    for name in shipped_here - set(profile.comparison.live):
        assert f"shipped {name}" in found


def test_rows_that_draw_noise_are_judged_over_several_draws(smoke):
    profile, made = smoke
    several = profile.model_copy(update={"comparison": profile.comparison.model_copy(update={"draws": 4})})
    found = comparison_plans(several, made, seed=0)
    draws = {row.name: found[f"compared {row.name}"].arguments["draws"] for row in ROWS}
    random = {"SDEdit", "CycleDiffusion", "FlowEdit", "forward-noised start", "UNSB, 5 steps", "physics fit"}
    assert {name: draws[name] for name in random} == {
        name: DEAR if name in ("CycleDiffusion", "FlowEdit") else 4 for name in random
    }
    for row in ROWS:
        if row.family == "free":
            translator = free(row.method, MedShift(lambda x, t, label: x, PatchCodec(2), 5), **row.options)
            knobs = dict(row.knobs) | ({"tau": 0.3} if row.chosen else {})
            assert row.random == bool(draws_of(translator, knobs)), row.name


def test_a_profile_may_shorten_every_solver_and_nothing_else(smoke):
    profile, made = smoke
    steps = profile.comparison.steps
    own = profile.model_copy(update={"comparison": profile.comparison.model_copy(update={"steps": 0})})
    short, full = (comparison_plans(p, made, seed=0) for p in (profile, own))
    assert steps > 0 and short.keys() == full.keys()
    for row in ROWS:
        before, after = (found[f"compared {row.name}"].arguments for found in (full, short))
        solved = row.family in ("free", "attention") or row.method.startswith(("same", "two", "bridge"))
        assert after == before | {"knobs": {**before["knobs"], **({"steps": steps} if solved else {})}}, row.name
        if row.family == "free":
            model = MedShift(lambda x, t, label: x, PatchCodec(2), 5)
            assert free(row.method, model, **row.options).nfe(**{"tau": 0.3, **after["knobs"]} if row.chosen
                                                              else after["knobs"]) <= 10 * steps  # fmt: skip
    assert load_profile("cpu").comparison.steps == load_profile("gpu").comparison.steps == 0


def test_sdedits_tau_is_that_of_the_published_strengths():
    assert MATCHED == {s: pytest.approx(matched_tau(s, "sd"), abs=5e-4) for s in STRENGTHS}
