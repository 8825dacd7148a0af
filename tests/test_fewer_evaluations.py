"""How few evaluations are enough: the stage translates as `MedShift` does, and the table picks by what it says."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import t as student

from medshift.data.domains import EvaluationSet, ViewCounts, plan_views, render
from medshift.data.heads import Heads, HeadSplit
from medshift.fast import load_fast
from medshift.metrics.realism import fid
from medshift.repro.fewer_evaluations import PUBLISHED, TAUS, candidates
from medshift.results.evaluations import compared, evaluations_figure, evaluations_findings, fewest, fewest_table
from medshift.stages import evaluations
from medshift.stages.job import Job
from medshift.translate import AS_PUBLISHED

SHIPPED = Path("medshift/weights/cpu/medshift")
PAIR = {"source": "synthetic-high", "target": "real-normal"}


@pytest.fixture(scope="module")
def views(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("views")
    counts = ViewCounts(train=12, validation=2, T0=2, T1=2, T2=16, T3=8)
    render(plan_views(counts, HeadSplit(2, 2, 2), 0), Heads("phantom", phantom_spacing_mm=4.0), 32, folder)
    return folder


def test_the_stage_translates_and_counts_as_medshift_does(views: Path, tmp_path: Path) -> None:
    knobs = {"Euler, uniform, 7": {"solver": "euler", "grid": "uniform", "steps": 7}}
    knobs |= {"Heun, refined, 3": {"solver": "heun", "grid": "refined", "steps": 3}}
    arguments = PAIR | {"role": "T2", "views": 8, "taus": [0.1, 0.3], "candidates": knobs, "batch": 3}
    evaluations.build(Job(tmp_path, {"views": views, "network": SHIPPED}), **arguments, features="ST-AlexNet")
    scores = pd.read_csv(tmp_path / "scores.csv")
    model, some = load_fast(SHIPPED), EvaluationSet(views, "T2", limit=8)
    for (name, tau), group in scores.groupby(["candidate", "tau"]):
        output = torch.cat(
            [model.translate(p, **PAIR, tau=tau, **knobs[name]) for p in some.exposure(PAIR["source"], 0).split(3)]
        )
        found = evaluations.score(output, some, **PAIR)
        np.testing.assert_allclose(group["psnr_clean"], found["psnr_clean"], atol=1e-4)
        assert set(group["nfe"]) == {model.nfe(tau, **knobs[name])}
    distances = pd.read_csv(tmp_path / "distances.csv", keep_default_na=False)
    assert len(distances) == 2 * 2 * (1 + scores["head"].nunique()) and (distances["fid"] > 0).all()


def test_the_adaptive_solver_tends_to_the_limit_of_fine_steps(views: Path) -> None:
    model, images = (
        load_fast(SHIPPED, dtype=torch.float32),
        EvaluationSet(views, "T2", limit=2).exposure(PAIR["source"], 0),
    )
    limit = model.translate(images, **PAIR, tau=0.6, solver="rk4", steps=20)
    errors, evaluated = [], []
    for tolerance in (1e-1, 1e-2, 1e-4):
        knobs = {"solver": "dopri5", "tolerance": tolerance}
        output, nfe = evaluations._translated(model, images, *PAIR.values(), 0.6, 2, knobs)
        errors.append(float((output - limit).square().mean().sqrt()))
        evaluated.append(nfe)
    assert errors[2] < min(errors[:2]) and errors[2] < 2e-3
    assert evaluated[0] < evaluated[1] < evaluated[2]


def test_distances_leave_out_one_head_of_both_sets(generator: torch.Generator) -> None:
    ours, theirs = torch.randn(2, 30, 3, generator=generator).numpy()
    heads = np.repeat(["a", "b", "c"], 10)
    found = dict(evaluations._distances(ours, theirs, heads, heads[::-1]))
    assert list(found) == ["", "a", "b", "c"] and found[""] == fid(ours, theirs)
    assert found["a"] == fid(ours[10:], theirs[:20])


def study(folder: Path, rows: dict[str, tuple[float, float, float]]) -> Path:
    """A study of one tau: candidate -> evaluations, gain over the published recipe, share of its FID."""
    rng = np.random.default_rng(0)
    heads = np.repeat(np.arange(6), 4)
    view = 25 + 3 * rng.normal(size=6)[heads] + 0.1 * rng.normal(size=24)
    scores, distances = [], []
    for name, (nfe, gain, share) in rows.items():
        scores.append(
            pd.DataFrame(
                {"view": np.arange(24), "head": heads, "region": 0, "psnr_clean": view + gain, "ssim_clean": 0.9}
            ).assign(tau=0.3, candidate=name, nfe=nfe)
        )
        for k, left_out in enumerate(["", *"012345"]):
            wobble = 0.0 if not left_out else 0.01 * (k - 3.5)
            distances.append(
                {"tau": 0.3, "candidate": name, "nfe": nfe, "left_out": left_out, "fid": share * (1 + wobble)}
            )
    pd.concat(scores).to_csv(folder / "scores.csv", index=False)
    pd.DataFrame(distances).to_csv(folder / "distances.csv", index=False)
    return folder


def test_intervals_are_those_of_the_jackknife(tmp_path: Path) -> None:
    rows = {PUBLISHED: (70, 0.0, 1.0), "twice, 1": (4, 0.5, 2.0)}
    table = compared(study(tmp_path, rows)).set_index("candidate")
    # Pseudo-values of a mean-like statistic: (g-1)/g times the squared spread of what leaving out one gives.
    spread = 0.01 * np.array([k - 3.5 for k in range(1, 7)])
    reach = student.ppf(0.975, 5) * np.sqrt(5 / 6 * (spread**2).sum())
    assert table.loc[PUBLISHED, "fid_high"] == pytest.approx(1 + reach)
    assert table.loc["twice, 1", "more_high"] == pytest.approx(1 + reach), "a difference, so of 2 - 1 times as much"
    assert table.loc["twice, 1", ["gain_low", "gain", "gain_high"]].tolist() == pytest.approx([0.5] * 3)
    assert table.loc[PUBLISHED, ["gain_low", "gain_high", "more_low", "more_high"]].tolist() == [0.0] * 4


def test_the_fewest_by_each_standard(tmp_path: Path) -> None:
    rows = {
        PUBLISHED: (70, 0.0, 1.0),
        "good, 9": (40, 0.3, 0.9),
        "good, 5": (20, -0.05, 0.95),
        "good, 4": (16, -0.4, 0.95),  # within wide intervals over heads, yet worse on every single view
        "blurred, 2": (8, 0.5, 3.0),  # a better PSNR and a far worse FID
        "broken, 1": (4, -9.0, 0.9),
    }
    table = fewest(compared(study(tmp_path, rows))).set_index("standard")
    assert table["candidate"].to_dict() == {"as published": PUBLISHED, "within": "good, 4", "no worse": "good, 5"}
    assert table["factor"].tolist() == pytest.approx([1.0, 70 / 16, 3.5])
    text = fewest_table(tmp_path)
    assert text["fewer by"].tolist() == ["1.0", "4.4", "3.5"] and text["difference [dB]"][2].startswith("-0.05")
    [found] = evaluations_findings(tmp_path)
    assert found["finding"] == "evaluations_saved_0_3" and found["value"] == 3.5
    caption, figure = evaluations_figure(tmp_path, "smoke")
    assert "24 views of 6 unseen heads" in str(figure.get_suptitle()).replace("\n", " ") and "smoke" in caption
    plt.close(figure)


def test_where_none_is_as_good_the_recipe_itself_is_named(tmp_path: Path) -> None:
    rows = {PUBLISHED: (70, 0.0, 1.0), "worse, 5": (20, -9.0, 2.0)}
    table = fewest(compared(study(tmp_path, rows)))
    assert set(table["candidate"]) == {PUBLISHED} and table["factor"].tolist() == [1.0, 1.0, 1.0]


def test_the_published_recipe_comes_first_and_is_the_published_one() -> None:
    made = candidates()
    assert next(iter(made)) == PUBLISHED and made[PUBLISHED] == dict(AS_PUBLISHED)
    assert len(made) == len({str(knobs) for knobs in made.values()}) and all(0 < tau < 1 for tau in TAUS)
