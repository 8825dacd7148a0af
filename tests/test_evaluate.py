"""Scores, headroom and the choice of tau, on translations whose quality is known."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from medshift.baselines.identity import Identity
from medshift.codec import PatchCodec
from medshift.data.domains import EvaluationSet, ViewCounts, plan_views, render
from medshift.data.heads import Heads, HeadSplit
from medshift.errors import ParameterError
from medshift.evaluate import TWIN, choose_tau, headroom, score, score_floors, summary, tau_sweep, translate_taus
from medshift.translate import MedShift

PAIR = ("synthetic-high", "real-normal")


@pytest.fixture(scope="module")
def views(tmp_path_factory: pytest.TempPathFactory) -> EvaluationSet:
    folder: Path = tmp_path_factory.mktemp("views")
    counts = ViewCounts(train=2, validation=2, T0=2, T1=2, T2=8, T3=4)
    render(plan_views(counts, HeadSplit(2, 2, 4), 0), Heads("phantom", phantom_spacing_mm=4.0), 24, folder)
    return EvaluationSet(folder, "T2")


def test_the_truth_has_full_headroom_and_the_best_floor_none(views: EvaluationSet) -> None:
    floors = score_floors([Identity()], views, *PAIR)
    twin = floors[floors["method"] == TWIN]
    interval, best = headroom(twin, floors)
    assert best == "doing nothing" and interval.mean == pytest.approx(1.0) and interval.low == pytest.approx(1.0)
    interval, _ = headroom(floors[floors["method"] == "doing nothing"], floors)
    assert interval.mean == pytest.approx(0.0, abs=1e-9)


def test_headroom_of_a_half_way_method_is_between(views: EvaluationSet) -> None:
    floors = score_floors([Identity()], views, *PAIR)
    by = {name: g.reset_index(drop=True) for name, g in floors.groupby("method")}
    method = by[TWIN].copy()
    method["psnr_clean"] = 0.5 * (by[TWIN]["psnr_clean"] + by["doing nothing"]["psnr_clean"])
    interval, _ = headroom(method, floors)
    assert interval.mean == pytest.approx(0.5) and interval.low <= 0.5 <= interval.high


def test_scores_know_source_truth_and_noise(views: EvaluationSet) -> None:
    source = score(views.exposure(PAIR[0], 0), views, *PAIR)
    assert (source["psnr_source"] == 100).all()
    clean = score(views.clean(PAIR[1]), views, *PAIR)
    assert (clean["psnr_clean"] == 100).all() and (clean["ssim_clean"] > 0.9999).all()
    assert (clean["high_pass"] < clean["high_pass_target"]).all()
    noisy = score(views.exposure(PAIR[1], 0), views, *PAIR)
    np.testing.assert_allclose(noisy["high_pass"], noisy["high_pass_target"])


def test_shared_encode_leg_equals_separate_translations(views: EvaluationSet) -> None:
    codec = PatchCodec(2)

    def velocity(x: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return (0.3 * label.view(-1, 1, 1, 1) - x) * (0.5 + t)

    model = MedShift(velocity, codec, 5)
    images = views.exposure(PAIR[0], 0)
    together = translate_taus(model, images, 1, 3, [0.1, 0.5, 1.0], batch=3)
    for tau, output in zip([0.1, 0.5, 1.0], together, strict=True):
        torch.testing.assert_close(output, model.translate(images, 1, 3, tau=tau))
    named = MedShift(
        velocity, codec, 5, ["synthetic-low", "synthetic-high", "real-low", "real-normal", "real-exposure"]
    )
    sweep = tau_sweep(named, views, *PAIR, [0.1, 0.5, 1.0], {"Heun": {}}, batch=8)
    assert len(sweep) == 3 * len(views)
    assert (sweep[sweep["tau"] == 1.0]["psnr_source"] > 90).all()


def test_tau_is_the_best_mean_and_summary_has_intervals(views: EvaluationSet) -> None:
    base = score(views.exposure(PAIR[0], 0), views, *PAIR, solver="Heun", method="m")
    sweep = pd.concat([base.assign(tau=0.1, psnr_clean=20.0), base.assign(tau=0.2, psnr_clean=22.0)])
    assert choose_tau(sweep, "Heun") == 0.2
    table = summary(sweep, ["solver", "tau"])
    assert list(table["tau"]) == [0.1, 0.2] and (table["psnr_clean_low"] <= table["psnr_clean_high"]).all()
    assert set(table["heads"]) == {4}


def rows(values: np.ndarray, **labels: object) -> pd.DataFrame:
    n = len(values)
    return pd.DataFrame({"view": range(n), "head": np.arange(n) % 4, "region": "a", "psnr_clean": values}).assign(
        **labels
    )


def scored() -> tuple[pd.DataFrame, pd.DataFrame]:
    rng = np.random.default_rng(0)
    base = 25 + rng.normal(size=24)
    floors = [rows(base, method="low"), rows(base + 3 + rng.normal(size=24), method="high")]
    twin = rows(base + 8, method=TWIN)
    return rows(base + 5 + rng.normal(size=24)), pd.concat([*floors, twin], ignore_index=True)


def test_headroom_compares_views_by_their_number_in_whatever_order() -> None:
    method, floors = scored()
    interval, best = headroom(method, floors)
    means = floors.groupby("method")["psnr_clean"].mean()
    expected = (method["psnr_clean"].mean() - means["high"]) / (means[TWIN] - means["high"])
    assert best == "high" and interval.mean == pytest.approx(expected) and interval.heads == 4
    mixed, _ = headroom(method.sample(frac=1, random_state=1), floors.sample(frac=1, random_state=2))
    assert (mixed.low, mixed.high) == pytest.approx((interval.low, interval.high))


def test_headroom_of_rows_that_do_not_fit_is_refused() -> None:
    method, floors = scored()
    twice = pd.concat([method, method.iloc[:1]])
    no_room = floors.assign(psnr_clean=floors["psnr_clean"].where(floors["method"] != TWIN, 0.0))
    for ours, theirs, message in (
        (method, floors[floors["method"] != TWIN], "needs a floor and the rows of 'noise twin'"),
        (method, floors[floors["method"] == TWIN], "needs a floor"),
        (method.iloc[1:], floors, "score both on the same"),
        (method, floors.drop(index=floors.index[-1]), "score both on the same"),
        (twice, floors, "several rows"),
        (method, pd.concat([floors, floors]), "several rows"),
        (method, no_room, "no headroom"),
    ):
        with pytest.raises(ParameterError, match=message):
            headroom(ours, theirs)
