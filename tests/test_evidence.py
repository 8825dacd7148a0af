"""The plans of the evidence: what each reads, what is shared, and that a metric's edit translates nothing."""

import ast
from pathlib import Path

import nbformat
import pytest
from test_pipeline import build_of

from medshift.repro.adaptive import adaptive_plans
from medshift.repro.cells import notebook_folder
from medshift.repro.comparison import comparison_plans
from medshift.repro.evidence import LEARNING, PAIRS, TRADEOFF_STAGES, evidence_plans, pair_name
from medshift.repro.explorer import explorer_plans
from medshift.repro.keys import PACKAGE
from medshift.repro.parameters import NOTEBOOKS
from medshift.repro.pipeline import plans
from medshift.repro.profiles import load_profile
from medshift.repro.stage import Plan

SMOKE = load_profile("smoke", {"comparison.seeds": "3"})  # as many as any profile has: rows of their own


@pytest.fixture(scope="module")
def made() -> dict[str, Plan]:
    base = plans(SMOKE)
    return _all(base, seed=0)


def _all(base: dict[str, Plan], *, seed: int) -> dict[str, Plan]:
    return {
        **base,
        **evidence_plans(SMOKE, base, seed=seed),
        **comparison_plans(SMOKE, base, seed=seed),
        **adaptive_plans(SMOKE, base, seed=seed),
        **explorer_plans(SMOKE, base),
    }


# Inputs that some kinds of a stage do without.
SOMETIMES = {
    "codec": {"autoencoder"},
    "trained": {"paired", "base"},
    "compared": {"network", "trained", "base"},
    "pairs": {"trained"},
}


def test_every_plan_fits_the_build_it_names_and_reads_what_it_says(made: dict[str, Plan]) -> None:
    for name, plan in made.items():
        needed, optional = build_of(plan.module)
        assert needed <= set(plan.arguments) <= needed | set(optional), name
        path = PACKAGE.parent / Path(*plan.module.split(".")).with_suffix(".py")
        read = {
            node.slice.value
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Subscript)
            and ast.unparse(node.value) == "job.inputs"
            and isinstance(node.slice, ast.Constant)
        }
        read -= SOMETIMES.get(plan.name, set())
        assert read <= set(plan.inputs), name


def test_notebooks_call_plans_that_are_there(made: dict[str, Plan]) -> None:
    for notebook, model in NOTEBOOKS.items():
        assert set(model.stages) <= set(made), notebook
    assert set(TRADEOFF_STAGES) <= set(made)
    cells = nbformat.read(notebook_folder() / "04_tau_tradeoff.ipynb", as_version=4).cells
    source = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    literal = {part.partition('"')[0] for part in source.split('run.folder("')[1:]}
    assert literal <= set(TRADEOFF_STAGES) | {"views", "codec"}, literal


def test_translating_and_judging_are_two_stages(made: dict[str, Plan]) -> None:
    """A metric that changes leaves every sweep as it is: no module of metrics decides one."""
    for name, plan in made.items():
        reached = {module for module in plan.parts["modules"] if module.startswith("medshift.metrics.")}
        if plan.name in ("sweep", "latents", "objects"):
            assert not reached, name
        if plan.name == "judged":
            assert "medshift.metrics.realism" in reached
            assert plan.inputs["sweep"].name == "sweep"


def test_rules_learn_on_other_pairs_than_they_are_tested_on() -> None:
    assert len(set(PAIRS)) == len(PAIRS) and LEARNING < len(PAIRS)
    assert all(source != target for source, target in PAIRS)


def test_phantom_heads_are_no_heads_of_the_training(made: dict[str, Plan]) -> None:
    views = made[f"sweep phantom {pair_name(*PAIRS[0])}"].inputs["views"]
    assert views.arguments["source"] == "phantom"
    assert views.arguments["views"]["T2"] == 2 * SMOKE.evidence.few


def test_own_images_have_no_evidence_of_truth() -> None:
    folders = SMOKE.model_copy(update={"source": "folders"})
    assert evidence_plans(folders, {}, seed=0) == {}


def test_another_seed_changes_every_plan(made: dict[str, Plan]) -> None:
    base = plans(SMOKE, seed=1)
    other = _all(base, seed=1)
    assert {name for name in made if made[name].key == other[name].key} == set()
