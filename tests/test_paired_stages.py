"""Batches of the paired tasks, what a field costs, and energies of paths: against other ways to the same numbers."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from medshift.codec import PatchCodec
from medshift.coupling import coupling_features
from medshift.data.domains import ViewCounts, plan_views, render
from medshift.data.heads import Heads, HeadSplit
from medshift.data.paired_tasks import TaskViews
from medshift.errors import ParameterError
from medshift.path_energy import pixel_energy, time_profiles
from medshift.stages import path_energies, shift_costs
from medshift.stages.halves import halves
from medshift.stages.job import Job
from medshift.stages.paired_batches import Draw, paired_batches

WORLDS = ["the SDE's own weight", "measured weights", "measured on other heads"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Views of two coarse heads: unpaired ones of both domains of the task modality, and paired ones."""
    plan = plan_views(ViewCounts(train=8, validation=1, T0=1, T1=1, T2=1, T3=1), HeadSplit(2, 1, 1), 0)
    own = [plan[plan["role"] == f"train:{domain}"] for domain in ("synthetic-high", "real-exposure")]
    made = tmp_path_factory.mktemp("views")
    table = pd.concat([*own, own[0].assign(role="paired")], ignore_index=True)
    render(table, Heads("phantom", phantom_spacing_mm=4.0), 32, made)
    return made


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batches(folder: Path, pairs: str, batch: int, *, task: str = "modality", proposed: Path | None = None) -> Draw:
    return paired_batches(task, pairs, batch, paired=folder, views=folder, proposed=proposed, device="cpu")


def test_ot_permutes_the_targets_by_the_plan_of_least_cost(folder: Path) -> None:
    n = 12
    draw = batches(folder, "ot", 2 * n)
    images = draw(0, seeded())[0]
    source, target = halves(folder, "synthetic-high", "real-exposure", 2 * n, device="cpu")(0, seeded())[0].chunk(2)
    assert torch.equal(images[:n], source)
    features = [coupling_features(part).double() for part in (source, target)]
    cost = (features[0][:, None] - features[1]).square().sum(-1).numpy()
    _, order = linear_sum_assignment(cost)  # the assignment, by another algorithm
    assert torch.equal(images[n:], target[torch.from_numpy(order)])
    assert sorted(order) == list(range(n)) and (order != np.arange(n)).any()
    assert cost[np.arange(n), order].sum() < 0.95 * cost.trace()
    assert torch.equal(images, draw(7, seeded())[0]) and not torch.equal(images, draw(0, seeded(4))[0])


def test_true_pairs_are_those_of_the_task(folder: Path) -> None:
    images, labels = batches(folder, "true", 8, task="mask")(0, seeded())
    assert labels.tolist() == [0] * 4 + [1] * 4 and images.shape == (8, 1, 32, 32)
    own = torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=seeded())))
    assert torch.equal(images, torch.cat(TaskViews("mask", folder, "paired").draw(4, own)))


def test_proposals_are_drawn_with_their_own_target_and_mirrored_with_it(folder: Path, tmp_path: Path) -> None:
    held: dict[str, Tensor] = {
        name: torch.rand(5, 1, 6, 6, generator=seeded(k)).half() for k, name in enumerate(("source", "target"))
    }
    save_file(held, tmp_path / "pairs.safetensors")
    images, labels = batches(folder, "medshift", 80, proposed=tmp_path)(0, seeded())
    assert images.dtype == torch.float32 and labels.tolist() == [0] * 40 + [1] * 40
    found = []
    for half, name in zip(images.chunk(2), ("source", "target"), strict=True):
        known = {(i, f): held[name][i].flip(-1) if f else held[name][i] for i in range(5) for f in (False, True)}
        found.append([next(key for key, x in known.items() if torch.equal(x.float(), image)) for image in half])
    assert found[0] == found[1] and len(set(found[0])) == 10  # every view, both ways round


def test_batches_that_cannot_be_are_refused(folder: Path, tmp_path: Path) -> None:
    for batch in (7, 0, -2):
        for pairs in ("true", "ot", "medshift"):
            with pytest.raises(ParameterError, match="even number"):
                batches(folder, pairs, batch, proposed=tmp_path)
    for task in ("mask", "dual-energy"):
        for pairs in ("ot", "medshift"):
            with pytest.raises(ParameterError, match="task modality"):
                batches(folder, pairs, 8, task=task, proposed=tmp_path)


def test_costs_are_of_all_sizes_and_parts(tmp_path: Path) -> None:
    told: list[float] = []
    job = Job(tmp_path, progress=lambda done, note="": told.append(done))
    shift_costs.build(job, sizes=[8, 64], repeats=3, seed=0)
    facts = json.loads((tmp_path / "costs.json").read_text())
    assert [row["size"] for row in facts["costs"]] == [8, 64] and told == [0.5, 1.0]
    small, large = facts["costs"]
    for row in (small, large):
        assert min(row[part] for part in ("network", "field", "arithmetic")) > 0
        assert row["network"] > row["arithmetic"]
    assert large["network"] > small["network"] and facts["threads"] == torch.get_num_threads()


@pytest.mark.parametrize("task", ["modality", "dual-energy"])
def test_energies_are_ordered_and_are_those_of_the_pairs(folder: Path, tmp_path: Path, task: str) -> None:
    path_energies.build(Job(tmp_path, {"paired": folder}), task=task, pairs=8, times=9)
    rows = pd.read_csv(tmp_path / "energies.csv").set_index("world")
    facts = json.loads((tmp_path / "profiles.json").read_text())
    assert rows.index.tolist() == WORLDS and facts["pairs"] == 8 and facts["t"] == np.linspace(0, 1, 9).tolist()
    fitted = rows.loc[WORLDS[:2]]
    order = ["pixel-wise", "global", "linear"]
    for small, large in (*zip(order, order[1:], strict=False), ("pixel-wise", "pixel-wise, one g"),
                         ("global", "global, one g"), ("pixel-wise, one g", "global, one g")):  # fmt: skip
        assert (fitted[small] <= fitted[large] * (1 + 1e-9)).all(), (small, large)
    sde, own, other = (rows.loc[world] for world in WORLDS)
    assert sde["pixel-wise"] == pytest.approx(sde["global"], rel=1e-9)  # one weight for all pixels
    assert facts["heterogeneity"] == pytest.approx(1 - own["pixel-wise"] / own["global"]) and facts["heterogeneity"] > 0
    assert (other[order] > 0).all() and np.isfinite(other[order].astype(float)).all()
    # The linear path's energy, from the variances of the mixtures themselves.
    source, target = TaskViews(task, folder, "paired").exposure(0)
    codec = PatchCodec(2).fit((source, target))
    y, x0 = (codec.encode(part).double() for part in (source, target))
    t = torch.linspace(0, 1, 9, dtype=torch.float64)
    variance = torch.stack([(s * y + (1 - s) * x0).var(0) for s in t])
    weight = 1 / (variance + 0.01 * (variance[0].mean() + variance[-1].mean()) / 2)
    by_hand = (torch.trapezoid(weight, t, dim=0) * (y - x0).square().mean(0)).sum()
    assert own["linear"] == pytest.approx(float(by_hand), rel=1e-4)
    groups = np.array(facts["groups"])
    assert groups.shape == (5, 9)
    np.testing.assert_allclose(groups.mean(1), 1)


def test_paths_of_some_heads_are_judged_on_the_others(folder: Path, tmp_path: Path) -> None:
    """Under the judging weights a path fitted on other heads costs more than their own optimum."""
    path_energies.build(Job(tmp_path, {"paired": folder}), task="modality", pairs=8, times=9)
    row = pd.read_csv(tmp_path / "energies.csv").set_index("world").loc[WORLDS[2]]
    known = TaskViews("modality", folder, "paired")
    images = known.exposure(0)
    codec = PatchCodec(2).fit(images)
    y, x0 = (codec.encode(part) for part in images)
    judging = torch.tensor((known.table["head"] % 2 == 1).to_numpy())
    assert 0 < int(judging.sum()) < len(judging)
    world = time_profiles(y[judging], x0[judging], t=np.linspace(0, 1, 9))
    least = pixel_energy(world.weights, world.contrast, world.t)
    assert row["pixel-wise"] > least * (1 + 1e-6) and row["linear"] > least
