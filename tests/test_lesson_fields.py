"""What notebook 00 says of its learned fields holds after its own training: panel by panel, by the bounds it states.

The bounds are read from the notebook's own table, so that what a reader is told is what is tested.
"""

from __future__ import annotations

import re

import pandas as pd
import pytest
import torch

from medshift.flow import flow_matching_loss, sample_time
from medshift.repro.cells import notebook_folder
from medshift.repro.editions import read_notebook
from medshift.worlds import couplings, gallery, learned, measures, panels, translation
from medshift.worlds.learned import LearnedVelocity
from medshift.worlds.mixture import exact_velocity

pytestmark = pytest.mark.timeout(1800)  # of whoever trains first, on a busy machine
LESSON = read_notebook(notebook_folder() / "00_flow_matching.ipynb")
CELLS = {cell.id: cell.source for cell in LESSON.cells}
STEPS = next(int(n) for n in re.findall(r"(?m)^steps: int = (\d+)", CELLS["cell-01"]))
NULL = 2


def bounds() -> dict[str, list[float]]:
    """The rows of the notebook's table: what is compared -> its bounds."""
    rows = [line.strip("| ").split(" | ") for line in CELLS["text-bounds"].splitlines() if line.startswith("| ")]
    return {row[0]: [float(value) for value in re.findall(r"\d+\.\d+", row[-1])] for row in rows[2:]}


def trained(domains: gallery.World) -> LearnedVelocity:
    """As the notebook's cells train, seed 0."""
    *_, last = learned.train(LearnedVelocity(NULL, seed=0), domains, steps=STEPS, seed=0)
    return last.velocity


@pytest.fixture(scope="module")
def moons() -> tuple[gallery.World, LearnedVelocity]:
    domains = gallery.world("two moons")
    return domains, trained(domains)


@pytest.fixture(scope="module")
def coloured() -> tuple[gallery.Coloured, LearnedVelocity]:
    pair = gallery.coloured()
    return pair, trained(pair.domains)


@pytest.fixture(scope="module")
def sweep(coloured: tuple[gallery.Coloured, LearnedVelocity]) -> pd.DataFrame:
    """Exact and learned beside each other, by τ."""
    pair, network = coloured
    fields = {"exact": exact_velocity(pair.domains), "learned": network}
    table = translation.tau_sweep(pair, fields, [0.0, 0.15, 0.3, 0.45, 0.6, 0.7, 0.8, 0.9, 1.0])
    return table.pivot(index="tau", columns="method", values=["shift", "changed", "error"])


def test_the_loss_that_the_notebook_writes_out_is_the_one_it_trains_on() -> None:
    domains, (ours, theirs) = gallery.world("two moons"), (torch.Generator().manual_seed(5) for _ in range(2))
    held = {"torch": torch, "learned": learned, "sample_time": sample_time, "seed": 3}
    exec(CELLS["cell-loss"], held | (own := {"domains": domains, "generator": ours}), own)
    x1, label = learned.sample_domains(domains, 512, theirs)
    network = LearnedVelocity(NULL, seed=3)
    loss = flow_matching_loss(network, x1, label, theirs, null_label=NULL, label_dropout=0.0)
    torch.testing.assert_close(own["loss"], loss)
    assert len([line for line in CELLS["cell-loss"].splitlines() if line.strip()]) == 6


def test_every_bound_of_the_notebook_is_tested_here() -> None:
    assert {name: len(values) for name, values in bounds().items()} == {
        "velocity at the star": 1,
        "velocity, label 0, label 1, null label": 3,
        "spread under guidance": 1,
        "velocity, A, B, null label": 3,
        "colour shift": 1,
        "changed anatomy": 1,
        "sliced W2 to B": 1,
        "A → A at equal scales": 1,
        "cost of the coupling": 1,
    }


@pytest.mark.slow
def test_the_velocity_at_the_star(moons: tuple[gallery.World, LearnedVelocity]) -> None:
    domains, network = moons
    place, label = torch.tensor([[0.9, 0.9]]), torch.tensor([NULL])
    assert "point = 0.4, torch.tensor([[0.9, 0.9]])" in CELLS["cell-05"]
    apart = network(place, torch.tensor(0.4), label) - exact_velocity(domains)(place, torch.tensor(0.4), label)
    assert float(apart.norm()) < bounds()["velocity at the star"][0]


@pytest.mark.slow
def test_the_errors_of_both_networks(
    moons: tuple[gallery.World, LearnedVelocity], coloured: tuple[gallery.Coloured, LearnedVelocity]
) -> None:
    for domains, network, name in (
        (*moons, "velocity, label 0, label 1, null label"),
        (coloured[0].domains, coloured[1], "velocity, A, B, null label"),
    ):
        found = [learned.field_error(network, domains, label) for label in range(3)]
        assert all(error < bound for error, bound in zip(found, bounds()[name], strict=True)), found


@pytest.mark.slow
def test_the_spread_under_guidance(moons: tuple[gallery.World, LearnedVelocity]) -> None:
    domains, network = moons
    noise = torch.randn(600, 2, generator=torch.Generator().manual_seed(0))
    made = panels.guided_to(0, {"exact": exact_velocity(domains), "learned": network}, noise, domains)
    apart = (made.spreads["guided, exact"] - made.spreads["guided, learned"]).abs().max()
    assert apart < bounds()["spread under guidance"][0]
    known = made.known.set_index("w")["tilted law"]
    assert known[1.0] == pytest.approx(made.spreads.set_index("w").loc[1.0, "guided, exact"], abs=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "column"), [("colour shift", "shift"), ("changed anatomy", "changed"), ("sliced W2 to B", "error")]
)
def test_the_sweep_over_tau(sweep: pd.DataFrame, name: str, column: str) -> None:
    apart = (sweep[column]["exact"] - sweep[column]["learned"]).abs().max()
    assert apart < bounds()[name][0]
    if column == "shift":
        known = translation.known_answers(gallery.coloured(), list(sweep.index)).set_index("tau")
        assert (sweep["shift"]["exact"] - known["shift"]).abs().max() < 0.02


@pytest.mark.slow
def test_a_to_a(coloured: tuple[gallery.Coloured, LearnedVelocity]) -> None:
    pair, network = coloured
    x = pair.domains[0].sample(300, torch.Generator().manual_seed(0))
    outs = panels.identities({"exact": exact_velocity(pair.domains), "learned": network}, x, 0.3)
    far = {name: measures.rms(x, out) for name, out in outs.items()}
    bound = bounds()["A → A at equal scales"][0]
    for field in ("exact", "learned"):
        assert far[f"{field}, w = 1, 1"] < bound and far[f"{field}, w = 2, 2"] < bound
        assert far[f"{field}, w = 1, 2"] > bound and far[f"{field}, w = 2, 1"] > bound


@pytest.mark.slow
def test_the_cost_of_the_learned_coupling(coloured: tuple[gallery.Coloured, LearnedVelocity]) -> None:
    pair, network = coloured
    fields = {"exact": exact_velocity(pair.domains), "learned": network}
    cost = {one.name: one.cost for one in couplings.compared(pair, fields)}
    for tau in ("0", "0.3"):
        apart = abs(cost[f"MedShift exact, τ = {tau}"] - cost[f"MedShift learned, τ = {tau}"])
        assert apart < bounds()["cost of the coupling"][0]
