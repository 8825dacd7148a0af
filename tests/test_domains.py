"""The data set: plan, rendering, unpaired training, truth of every evaluation view."""

from pathlib import Path

import pytest
import torch

from medshift.data.domains import (
    DOMAINS,
    EXPOSURES,
    INSERTS,
    TIERS,
    EvaluationSet,
    TrainingSet,
    ViewCounts,
    domain_index,
    plan_views,
    poses_of,
    render,
)
from medshift.data.heads import Heads, HeadSplit
from medshift.data.projection import load_projections
from medshift.data.views import neighbours
from medshift.errors import ParameterError
from medshift.metrics.structure import psnr

SPLIT = HeadSplit(train=2, validation=2, test=2)
COUNTS = ViewCounts(train=6, validation=4, T0=2, T1=3, T2=4, T3=8)
SIZE = 24


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("views")
    render(plan_views(COUNTS, SPLIT, seed=0), Heads("phantom", phantom_spacing_mm=4.0), SIZE, folder)
    return folder


def test_the_plan_keeps_heads_regions_and_inserts_apart() -> None:
    table = plan_views(ViewCounts(train=60, validation=20, T0=20, T1=30, T2=20, T3=20), SPLIT, seed=1)
    train = table[table["role"].str.startswith("train:")]
    heads = {role: set(table[table["role"] == role]["head"]) for role in (*TIERS, "validation")}
    trained = set(train["head"])
    assert heads["T0"] == heads["T1"] == trained == {0, 1}
    assert heads["validation"] == {2, 3} and heads["T2"] == heads["T3"] == {4, 5}
    regions = set(table[table["role"] != "T1"]["region"])
    assert not regions & set(table[table["role"] == "T1"]["region"])
    assert set(table[table["role"] == "T3"]["insert"]) == set(INSERTS)
    assert set(table[table["role"] != "T3"]["insert"]) == {""}
    assert len(neighbours(poses_of(table), table["role"].tolist())) == 0
    assert table["seed"].is_unique


def test_plans_follow_their_seed() -> None:
    assert plan_views(COUNTS, SPLIT, 3).equals(plan_views(COUNTS, SPLIT, 3))
    assert not plan_views(COUNTS, SPLIT, 3).equals(plan_views(COUNTS, SPLIT, 4))


def test_no_training_view_is_shared_between_domains(rendered: Path) -> None:
    poses = []
    for domain in DOMAINS:
        kind = "simulated" if domain.startswith("synthetic") else "real"
        poses.append(load_projections(rendered / f"train-{domain}.{kind}.safetensors").poses)
        other = "real" if kind == "simulated" else "simulated"
        assert not (rendered / f"train-{domain}.{other}.safetensors").exists()
    together = torch.cat(poses)
    assert len(together.unique(dim=0)) == len(together) == len(DOMAINS) * COUNTS.train


def test_projections_stand_in_the_order_of_their_rows(rendered: Path) -> None:
    views = EvaluationSet(rendered, "T3")
    held = load_projections(rendered / "T3.real.safetensors")
    torch.testing.assert_close(held.poses, poses_of(views.table))


def test_training_batches_follow_the_generator_and_draw_fresh_noise(rendered: Path) -> None:
    data = TrainingSet(rendered, 40)
    one, labels = data(0, torch.Generator().manual_seed(5))
    again, _ = data(0, torch.Generator().manual_seed(5))
    other, _ = data(0, torch.Generator().manual_seed(6))
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert one.shape == (40, 1, SIZE, SIZE) and set(labels.tolist()) == set(range(len(DOMAINS)))
    seeds = range(40)
    share = torch.cat([data(0, torch.Generator().manual_seed(s))[1] for s in seeds]).bincount() / (40 * len(seeds))
    torch.testing.assert_close(share, torch.full((5,), 0.2), atol=0.03, rtol=0)


def test_every_view_has_independent_exposures_about_one_clean_image(rendered: Path) -> None:
    views = EvaluationSet(rendered, "T2")
    for domain in DOMAINS:
        clean = views.clean(domain)
        exposures = torch.stack([views.exposure(domain, k) for k in range(EXPOSURES)])
        noise = exposures - exposures.mean(0)
        flat = noise.flatten(1)
        correlation = torch.corrcoef(flat)[0, 1:]
        # Residuals about the mean of eight correlate by -1/7 if the noises are independent.
        torch.testing.assert_close(correlation, torch.full_like(correlation, -1 / 7), atol=0.08, rtol=0)
        single = psnr(exposures[0], clean, views.open_field).mean()
        assert psnr(exposures.mean(0), clean, views.open_field).mean() > single + 2


def test_an_exposure_does_not_depend_on_the_views_beside_it(rendered: Path) -> None:
    assert torch.equal(
        EvaluationSet(rendered, "T2").exposure("real-low", 3)[:2],
        EvaluationSet(rendered, "T2", limit=2).exposure("real-low", 3),
    )


def test_the_simulators_image_lacks_information_but_shares_geometry(rendered: Path) -> None:
    views = EvaluationSet(rendered, "T2")
    a, b = views.clean("synthetic-high"), views.clean("real-normal")
    same = torch.corrcoef(torch.stack([a[0].flatten(), b[0].flatten()]))[0, 1]
    other = torch.corrcoef(torch.stack([a[0].flatten(), b[1].flatten()]))[0, 1]
    assert same > other and not torch.allclose(a, b, atol=0.05)


def test_unknown_names_are_refused(rendered: Path) -> None:
    with pytest.raises(ParameterError, match="real-high"):
        domain_index("real-high")
    with pytest.raises(ParameterError, match="T9"):
        EvaluationSet(rendered, "T9")
    with pytest.raises(ParameterError, match="Exposure 8"):
        EvaluationSet(rendered, "T2").exposure("real-low", EXPOSURES)
    with pytest.raises(ParameterError, match="sources"):
        Heads("ct")
