"""Translating and assessing a row of the comparison: against the same done by hand, and against other stages."""

import itertools
import json
import types
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from medshift.data.domains import EvaluationSet, ViewCounts, plan_views, render
from medshift.data.heads import Heads, HeadSplit
from medshift.evaluate import score
from medshift.metrics.structure import psnr
from medshift.results.baselines import Entry, first_table, search_table, truth_table
from medshift.stages import assessed, codec, compared, judged, network, searching, sweep
from medshift.stages.compared import load_compared
from medshift.stages.job import Job
from medshift.stages.network import open_translator

PAIR = {"source": "synthetic-high", "target": "real-normal"}
TRAINING = {"network": "smoke", "images": 160, "batch": 16, "learning_rate": 1e-3, "checkpoint_every": 10, "seed": 3}
ROLES = {"T2": 8, "T0": 2}
ASSESSING = {**PAIR, "roles": ROLES, "headline": "T2", "deep": ["ST-AlexNet", "CLIP"], "components": 2, "neighbours": 2}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("comparison")
    counts = ViewCounts(train=12, validation=4, T0=2, T1=2, T2=16, T3=2)
    render(plan_views(counts, HeadSplit(2, 2, 2), 0), Heads("phantom", phantom_spacing_mm=4.0), 32, root / "views")
    found = {"views": root / "views"}
    for name, stage, arguments in (("codec", codec, {"kind": "patch", "factor": 2}), ("network", network, TRAINING)):
        (root / name).mkdir()
        stage.build(Job(root / name, found), **arguments)
        found[name] = root / name
    return found


def row(inputs: dict[str, Path], folder: Path, **changes) -> tuple[dict, dict]:
    arguments = {"family": "free", "method": "medshift", "options": {}, "knobs": {}, "candidates": [], "draws": 1,
                 **PAIR,
                 "roles": ROLES, "headline": "T2", "searched": 4, "batch": 5, "seed": 1}  # fmt: skip
    folder.mkdir(exist_ok=True)
    compared.build(Job(folder, inputs), **(arguments | changes))
    return load_compared(folder), json.loads((folder / "facts.json").read_text())


def test_a_row_holds_the_translations_of_exactly_its_views(inputs, tmp_path):
    images, facts = row(inputs, tmp_path / "a", knobs={"tau": 0.3, "steps": 6})
    model = open_translator(inputs["network"])
    for role, n in ROLES.items():
        views = EvaluationSet(inputs["views"], role, limit=n)
        wanted = model.translate(views.exposure(PAIR["source"], 0), *PAIR.values(), tau=0.3, steps=6)
        torch.testing.assert_close(images[role][0], wanted, atol=2e-2, rtol=0)  # half precision, bfloat16
        assert psnr(images[role][0], wanted, views.open_field).min() > 45
    assert facts["nfe"] == model.nfe(0.3, steps=6) and facts["images_seen"] == 160
    assert facts["parameters"] == sum(p.numel() for p in network.load_flow(inputs["network"]).network.parameters())


@pytest.mark.parametrize("method", ["medshift", "rf-solver"])  # one encode leg for all candidates, and one for each
def test_the_knob_is_the_best_on_validation_views_and_no_others_are_looked_at(inputs, tmp_path, monkeypatch, method):
    asked = []
    original = EvaluationSet.__init__

    def watched(self, folder, role, **options):
        asked.append(role)
        original(self, folder, role, **options)

    monkeypatch.setattr(EvaluationSet, "__init__", watched)
    made = compared._open(Job(tmp_path, inputs), "free", method, {}, *PAIR.values())
    candidates = [{"tau": tau, "steps": 4} for tau in (0.1, 0.5, 0.95)]
    how = {**PAIR, "searched": 4, "batch": 3, "seed": 1}
    chosen = searching.search(Job(tmp_path, inputs), made.translator, made.codec, candidates, **how)
    assert set(asked) == {"validation"}
    views = EvaluationSet(inputs["views"], "validation", limit=4)
    by_hand = [
        float(psnr(made.translator.translate(views.exposure(PAIR["source"], 0), *PAIR.values(), **knobs),
                   views.clean(PAIR["target"]), views.open_field).mean())
        for knobs in candidates
    ]  # fmt: skip
    best = int(np.argmax(by_hand))
    assert chosen == candidates[best]
    table = pd.read_csv(tmp_path / "search.csv")
    assert table["psnr"].to_numpy() == pytest.approx(by_hand, abs=0.05)
    assert table["edge"].to_numpy()[best] == ("lowest", "none", "highest")[best]
    assert set(table["edge"].drop(best)) == {"none"}


@pytest.mark.parametrize("method", ["medshift", "sdedit"])
def test_a_search_looks_at_all_candidates_first_and_at_the_best_of_them_on_all_views(
    inputs, tmp_path, monkeypatch, method
):
    monkeypatch.setattr(searching, "FIRST_LOOK", 2)
    monkeypatch.setattr(searching, "KEPT", 2)
    made = compared._open(Job(tmp_path, inputs), "free", method, {}, *PAIR.values())
    candidates = [{"tau": tau, "steps": 4} for tau in (0.1, 0.3, 0.5, 0.7, 0.95)]

    def look(some: list[dict], views: int) -> tuple[dict, pd.DataFrame]:
        job, how = Job(tmp_path, inputs), {**PAIR, "searched": views, "batch": 3, "seed": 1}
        return searching.search(job, made.translator, made.codec, some, **how), pd.read_csv(tmp_path / "search.csv")

    _, few = look(candidates, 2)
    best = sorted(few.nlargest(2, "psnr").index)
    last, whole = look([candidates[k] for k in best], 4)
    chosen, halved = look(candidates, 4)
    assert set(few["views"]) == {2} and list(halved.index[halved["views"] == 4]) == best
    assert halved.loc[best, "psnr"].to_numpy() == pytest.approx(whole["psnr"].to_numpy())
    assert halved["psnr"].drop(best).to_numpy() == pytest.approx(few["psnr"].drop(best).to_numpy(), abs=0.02)
    assert chosen == last == candidates[int(halved.loc[best, "psnr"].idxmax())]


def test_a_search_takes_as_many_looks_as_it_says():
    assert searching.rounds(13, 16) == [(4, 4), (16, 1)]
    assert searching.rounds(4, 16) == [(16, 1)] and searching.rounds(13, 4) == [(4, 1)]


def test_a_table_of_a_search_brackets_first_looks_and_chooses_none_of_them(tmp_path):
    rows = [(0.1, 29.0, 4), (0.2, 27.0, 16), (0.3, 28.0, 16)]
    table = pd.DataFrame([{"knobs": json.dumps({"tau": t}), "psnr": p, "views": v} for t, p, v in rows])
    table.to_csv(tmp_path / "search.csv", index=False)
    entry = types.SimpleNamespace(name="a method", compared=tmp_path)
    shown = search_table([entry]).iloc[0]
    assert list(shown[["τ = 0.1", "τ = 0.2", "τ = 0.3"]]) == ["(29.00)", "27.00", "28.00"]
    assert shown["chosen"] == "τ = 0.3"


def test_an_end_of_the_values_tried_is_told_where_there_is_more_beyond_it():
    assert [searching.edge_of(tau, [0.1, 0.5, 0.9]) for tau in (0.1, 0.5, 0.9)] == ["lowest", "none", "highest"]
    assert searching.edge_of(0.0, [0.0, 0.5]) == searching.edge_of(1.0, [0.5, 1.0]) == "none"
    assert searching.edge_of(0.3, [0.3]) == "none"


@pytest.mark.parametrize(
    "took, timed",
    [
        ([0.9, 0.4, 0.2, 0.3], 0.2),  # the fastest of three, and the first does not count though it might be
        ([2.0, 1.0, 1.5], 1.0),  # enough by the third
        ([9.0, 5.0], 5.0),  # one repeat there always is
    ],
)
def test_what_is_timed_is_one_batch_by_itself_and_the_fastest_of_its_repeats(took, timed, monkeypatch):
    seen, clock = [], itertools.chain.from_iterable((10.0 * k, 10.0 * k + t) for k, t in enumerate(took))
    monkeypatch.setattr(compared.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(compared, "translated", lambda made, codec, images, *rest, **how: seen.append(len(images)))
    found = compared._timed(compared.Opened(None, None), torch.zeros(4, 1, 8, 8), *PAIR.values(), {}, "cpu")
    assert seen == [4] * len(took) and next(clock, None) is None
    assert found == {"seconds_per_image": pytest.approx(timed / 4), "timed_batch": 4}


def test_draws_differ_in_their_noise_and_repeat_with_their_seed(inputs, tmp_path):
    knobs = {"tau": 0.5, "steps": 4}
    first, _ = row(inputs, tmp_path / "a", method="sdedit", knobs=knobs, draws=2, roles={"T2": 3})
    again, _ = row(inputs, tmp_path / "b", method="sdedit", knobs=knobs, draws=2, roles={"T2": 3}, batch=1)
    assert not torch.allclose(first["T2"][0], first["T2"][1], atol=0.01)
    torch.testing.assert_close(first["T2"][1], again["T2"][1], atol=2e-2, rtol=0)


def test_the_twin_and_resimulation_are_no_translations(inputs, tmp_path):
    twin, facts = row(inputs, tmp_path / "t", family="twin", method="")
    views = EvaluationSet(inputs["views"], "T2", limit=8)
    torch.testing.assert_close(twin["T2"][0], views.exposure(PAIR["target"], 1).half().float(), rtol=0, atol=0)
    assert facts["nfe"] == 0 and facts["parameters"] == 0
    again, _ = row(inputs, tmp_path / "r", family="resimulation", method="", draws=2)
    assert not torch.allclose(again["T2"][0], again["T2"][1])


def test_assessing_agrees_with_scores_and_sets_of_the_other_stages(inputs, tmp_path):
    row(inputs, tmp_path / "c", family="codec", method="nothing")
    (tmp_path / "a").mkdir()
    assessed.build(Job(tmp_path / "a", inputs | {"compared": tmp_path / "c"}), **ASSESSING)
    views = EvaluationSet(inputs["views"], "T2", limit=8)
    by_hand = score(views.exposure(PAIR["source"], 0).half().float(), views, *PAIR.values())
    mine = pd.read_csv(tmp_path / "a" / "scores.csv")
    for column in ("psnr_clean", "ssim_clean", "high_pass"):
        np.testing.assert_allclose(mine[mine["role"] == "T2"][column], by_hand[column], rtol=1e-5)
    of_sweep = {"taus": [0.9], "batch": 8, "fresh": False, "cycled": 0, "seed": 0}
    of_judge = {"images": True, "sets": True, "deep": ["ST-AlexNet", "CLIP"], "components": 2, "neighbours": 2}
    for name, stage, own in (("sweep", sweep, of_sweep), ("judged", judged, of_judge)):
        arguments = {**PAIR, "role": "T2", "views": 8, **own}
        (tmp_path / name).mkdir()
        stage.build(Job(tmp_path / name, inputs | {"sweep": tmp_path / "sweep"}), **arguments)
    theirs = pd.read_csv(tmp_path / "judged" / "sets.csv")
    theirs = theirs[theirs["method"] == judged.NOTHING].set_index(["metric", "features"])["value"]
    ours = pd.read_csv(tmp_path / "a" / "sets.csv").set_index(["metric", "features"])["value"]
    # The other stage judges the exposure itself, this one its half-precision copy.
    pd.testing.assert_series_equal(ours.sort_index(), theirs[ours.index].sort_index(), check_names=False, rtol=0.02)
    assert ours[("CMMD", "CLIP")] != ours[("CMMD", "CLIP")]  # no weights, no number


def test_tables_are_of_the_rows_and_the_best_floor_has_no_headroom(inputs, tmp_path):
    entries = []
    for name, group, changes in (
        ("doing nothing", "floors", {"family": "codec", "method": "nothing"}),
        ("histogram match", "floors", {"family": "floor", "method": "histogram"}),
        ("noise twin", "ceilings", {"family": "twin", "method": ""}),
        ("MedShift", "MedShift", {"knobs": {"tau": 0.5, "steps": 4}}),
        ("MedShift τ=0.3", "MedShift", {"knobs": {"tau": 0.3, "steps": 4}}),
    ):
        folders = [tmp_path / f"{name} {part}" for part in ("c", "a")]
        row(inputs, folders[0], **changes)
        folders[1].mkdir()
        assessed.build(Job(folders[1], inputs | {"compared": folders[0]}), **ASSESSING)
        entries.append(Entry(name, group, *folders))
    table = first_table(entries, "floors", "ceilings", ("MedShift",)).set_index("method")
    best = max(entries[:2], key=lambda e: e.mean("psnr_clean").mean).name
    assert table.loc[best, "headroom"].startswith(("0.00 ", "-0.00 "))
    assert table.loc["noise twin", "headroom"] == "1 by definition"
    assert set(table["CMMD (CLIP)"]) == {"not computed"}
    assert table.loc["doing nothing", "SSIM to source"].startswith("1.00 [")
    truth = truth_table(entries, list(ROLES)).set_index("method")
    assert float(truth.loc["MedShift", "PSNR, T0"]) == pytest.approx(
        entries[3].of("T0")["psnr_clean"].mean(), abs=0.006
    )
