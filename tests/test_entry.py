"""Rows of the comparison: draws and seeds, intervals of sets, how a training ended, and rows that repeat another."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from medshift import checkpoint
from medshift.errors import DataError
from medshift.metrics.intervals import hierarchical_interval
from medshift.repro.claims import Finding
from medshift.results.baseline_findings import baseline_findings
from medshift.results.baselines import (
    OURS_SMALL,
    PAPER,
    SECOND,
    against_budget,
    cost_table,
    first_table,
    not_beating,
    one_a_training,
    ranks_of,
)
from medshift.results.entry import Entry, Measured, repeats
from medshift.results.trainings import Trained, trainings

HEADS, VIEWS = 4, 16


def folder(
    place: Path, *, psnr: float, draws: int = 1, kid: float = 1e-5, half: float = 1e-6, ssim: float = 0.8,
    conditional: float | None = None, seed: int = 0, **facts: Any,
) -> Path:  # fmt: skip
    place.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    parts = []
    for draw in range(draws):
        table = pd.DataFrame({"role": "T2", "view": range(VIEWS), "head": [k % HEADS for k in range(VIEWS)]})
        table = table.assign(region="frontal", insert="", draw=draw, high_pass_target=1.0, landmarks=5)
        levels = {"psnr_clean": psnr + draw, "ssim_clean": 0.9, "ssim_source": ssim, "st_lpips_source": 0.02}
        levels |= {"high_pass": 1.0, "invented": 2.0, "lost": 1.0, "shift": 0.5, "drift_mm": 1.0}
        for name, level in levels.items():
            table[name] = level + 0.01 * rng.normal(size=VIEWS)
        parts += [table, table.iloc[:4].assign(role="T0", invented=np.nan, st_lpips_source=np.nan)]
    pd.concat(parts).to_csv(place / "scores.csv", index=False)
    values = {"KID": kid, "FID": 100 * kid, "coverage": 0.9 - kid, "conditional FID": conditional or 100 * kid}
    rows = [
        {"draw": d, "metric": m, "features": "ST-AlexNet", "value": v * (1 + d), "low": v - half, "high": v + half}
        for m, v in values.items()
        for d in range(draws)
    ]
    pd.DataFrame(rows).to_csv(place / "sets.csv", index=False)
    own = {"nfe": 1, "knobs": {}, "draws": draws, "parameters": 0, "in_training": 0, "images_seen": 0}
    (place / "facts.json").write_text(json.dumps(own | {"seconds_per_image": 0.1, "deviation": ""} | facts))
    return place


def entry(place: Path, name: str, group: str = "MedShift", trained: Trained | None = None, **own: Any) -> Entry:
    made = folder(place / name, **own)
    return Entry(name, group, made, made, trained=trained)


def looks(*losses: float) -> tuple[dict[str, float], ...]:
    return tuple({"images": 100.0 * (k + 1), "loss": loss} for k, loss in enumerate(losses))


# Numbers


def test_draws_are_averaged_view_by_view_and_one_seed_changes_nothing(tmp_path: Path) -> None:
    one = entry(tmp_path, "a", psnr=20, draws=2)
    raw = pd.read_csv(tmp_path / "a" / "scores.csv")
    head = raw[raw["role"] == "T2"]
    by_hand = head.groupby("view")["psnr_clean"].mean().to_numpy()
    np.testing.assert_allclose(one.of()["psnr_clean"], by_hand)
    wanted = hierarchical_interval(by_hand, one.of())
    found = one.mean("psnr_clean")
    assert (found.mean, found.low, found.high) == pytest.approx((wanted.mean, wanted.low, wanted.high))
    assert one.sets["KID", "ST-AlexNet"].value == pytest.approx(1.5e-5) and one.headline == "T2"
    assert "seeds" not in one.measured("psnr_clean").text() and "seeds" not in one.sets["KID", "ST-AlexNet"].text()


def test_seeds_are_averaged_widen_the_interval_and_are_shown_as_a_range(tmp_path: Path) -> None:
    folders = [folder(tmp_path / str(k), psnr=p, kid=q, seed=k) for k, p, q in ((0, 20, 1e-5), (1, 22, 3e-5))]
    several = Entry("a", "g", folders[0], folders[0], further=((folders[1], folders[1]),))
    alone = Entry("a", "g", folders[0], folders[0])
    assert several.scores.groupby("seed").size().tolist() == [20, 20]
    assert several.of()["psnr_clean"].mean() == pytest.approx(21, abs=0.05) and len(several.of()) == VIEWS
    assert several.mean("psnr_clean").unit == "seed and head"
    wide, narrow = several.mean("psnr_clean"), alone.mean("psnr_clean")
    assert wide.high - wide.low > 10 * (narrow.high - narrow.low)
    text = several.measured("psnr_clean").text(1)
    assert text.startswith("21.0 [") and text.endswith("; seeds 20.0 to 22.0")
    kid = several.sets["KID", "ST-AlexNet"]
    assert kid.value == pytest.approx(2e-5) and kid.by_seed == pytest.approx((1e-5, 3e-5))
    assert kid.text(1, 1e5) == "2.0 [1.9, 2.1]; seeds 1.0 to 3.0"


def test_a_number_without_an_interval_shows_none_and_no_number_says_so() -> None:
    assert Measured(0.5).text() == "0.50" and Measured(math.nan, 0, 1).text() == "not computed"
    assert Measured(2e-5, 1e-5, 3e-5).text(0, 1e5) == "2 [1, 3]"


def test_two_tiers_with_every_metric_are_no_headline(tmp_path: Path) -> None:
    one = entry(tmp_path, "a", psnr=20)
    table = pd.read_csv(tmp_path / "a" / "scores.csv").assign(invented=1.0)
    table.to_csv(tmp_path / "a" / "scores.csv", index=False)
    with pytest.raises(DataError, match="2 tiers instead of one"):
        _ = one.headline


# Trainings


def test_a_training_is_told_with_its_base_by_its_card_or_by_its_stage(tmp_path: Path) -> None:
    for name, step, images in (("base", 10, 160), ("top", 20, 320), ("network", 40, 640)):
        checkpoint.save(tmp_path / name, step, {"network": {"w": torch.zeros(1)}}, {"images": images})
    (tmp_path / "base" / "card.json").write_text(json.dumps({"made": {"minutes": 4.5}}))
    (tmp_path / "base" / "config.json").write_text(json.dumps({"seconds": 1.0}))  # of taking the weights
    (tmp_path / "top" / "config.json").write_text(json.dumps({"seconds": 90.0}))
    (tmp_path / "network" / "config.json").write_text(json.dumps({"seconds": 60.0}))
    rows = [{"step": s, "images": 16 * s, "by_head": {"1": a, "2": b}} for s, a, b in ((10, 3, 1), (5, 5, 3))]
    (tmp_path / "network" / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = trainings({name: tmp_path / name for name in ("top", "base", "network")}, {"top": "base", "base": ""})
    top = found["top"]
    assert (top.steps, top.images, top.minutes) == (20, 320, 1.5) and top.base == found["base"]
    assert (top.images_in_all, top.minutes_in_all) == (480, 6.0) and found["base"].images_in_all == 160
    assert found["network"].looks == ({"images": 80, "loss": 4}, {"images": 160, "loss": 2}) and not top.looks
    (tmp_path / "top" / "config.json").unlink()
    with pytest.raises(DataError, match="no finished training"):
        trainings({"top": tmp_path / "top"}, {})


def test_rows_on_a_network_are_judged_by_its_loss_and_what_nobody_watched_is_not_converged(tmp_path: Path) -> None:
    flat, falling = looks(*[5.0] * 8, 1.0, 1.0, 1.0), looks(*[5.0] * 8, 1.1, 1.05, 1.0)
    on = {name: Trained("network", 1, 1, 1.0, curve) for name, curve in (("flat", flat), ("falling", falling))}
    good = entry(tmp_path, "good", psnr=20, trained=on["flat"], images_seen=1)
    bad = entry(tmp_path, "bad", psnr=20, trained=on["falling"], images_seen=1)
    unseen = entry(tmp_path, "unseen", psnr=20, images_seen=1, trained=Trained("network", 1, 1, 1.0))
    assert (good.rest.state, good.rest.measure, str(good.rest)) == ("converged", "loss", "0.0 % (loss)")
    assert bad.rest.state == "not converged" and bad.rest.moved == pytest.approx(0.1 / 1.05)
    assert unseen.rest.state == "not watched" == str(unseen.rest)
    assert [e.rankable for e in (good, bad, unseen)] == [True, False, False]
    own = [{"images": r["images"], "mae": r["loss"]} for r in falling]
    both = entry(tmp_path, "both", psnr=20, trained=on["flat"], watched=own)
    assert both.rest.measure == "MAE" and not both.rankable  # a method's own curve counts before its network's


def test_the_worst_seed_decides_and_one_that_nobody_watched_leaves_it_open(tmp_path: Path) -> None:
    flat = [{"images": 100.0 * k, "mae": 1.0} for k in range(1, 12)]
    falling = [row | {"mae": 2.0 - 0.1 * k} for k, row in enumerate(flat)]
    made = [folder(tmp_path / str(k), psnr=20, watched=w) for k, w in enumerate((flat, falling, None))]
    for further, state in (((), "converged"), ((1,), "not converged"), ((2,), "not watched")):
        row = Entry("a", "g", made[0], made[0], further=tuple((made[k], made[k]) for k in further))
        assert row.rest.state == state


# Tables


def comparison(tmp_path: Path) -> list[Entry]:
    network = Trained("network", 2500, 80_000, 36.0, looks(*[1.0] * 10))
    small = Trained("same-budget", 750, 12_000, 4.4)
    turbo = Trained("cyclegan-turbo", 750, 12_000, 20.8, base=small)
    flat = [{"images": 100.0 * k, "mae": 1.0} for k in range(1, 12)]
    of_network = {"parameters": 6_800_000, "images_seen": 80_000}
    learnt = {"images_seen": 12_000, "watched": flat, "losses": {"generator": [[1, 2.0]]}}
    return [
        entry(tmp_path, "doing nothing", "floors", psnr=25, kid=7e-5),
        entry(tmp_path, "codec round trip", "floors", psnr=25, kid=7e-5),
        entry(tmp_path, "histogram match", "floors", psnr=33, kid=2e-5, seed=1),
        entry(tmp_path, "physics fit", "floors", psnr=31, kid=3e-5, seed=2),
        entry(tmp_path, "noise twin", "ceilings", psnr=37, kid=0.1e-5, seed=3),
        entry(tmp_path, "re-simulation", "ceilings", psnr=32, kid=8e-5, seed=4),
        entry(tmp_path, "MedShift", psnr=30, kid=1e-5, seed=5, trained=network, conditional=9e-3, **of_network),
        entry(tmp_path, OURS_SMALL, psnr=26, kid=4e-5, seed=6, trained=small, parameters=1_000_000, **learnt),
        entry(tmp_path, "FlowEdit", "free", psnr=32, kid=1.5e-5, seed=7, ssim=0.7, trained=network, **of_network),
        entry(tmp_path, "DDIB, one network", "free", psnr=28, kid=6e-5, seed=8, ssim=0.6, trained=network,
              **of_network),
        entry(tmp_path, "DDIB, two networks", "trained", psnr=21, kid=9e-5, seed=9, ssim=0.5, images_seen=1),
        entry(tmp_path, "CycleGAN-Turbo-style (own backbone)", "trained", psnr=29, kid=5e-5, seed=10, ssim=0.4,
              trained=turbo, parameters=1_330_000, **learnt),
        entry(tmp_path, "direct bridge, OT", "trained", psnr=29, kid=5.5e-5, seed=11, ssim=0.3, trained=small,
              parameters=1_000_000, **learnt),
        entry(tmp_path, "direct bridge, independent", "trained", psnr=29, kid=5.6e-5, seed=12, images_seen=1),
    ]  # fmt: skip


RANKED = ("MedShift", "free", "trained")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Entry]:
    return comparison(tmp_path_factory.mktemp("rows"))


def test_the_first_table_ranks_by_both_candidates_and_says_what_a_row_stands_on_and_repeats(rows: list[Entry]) -> None:
    entries = rows
    table = first_table(entries, "floors", "ceilings", RANKED).set_index("method")
    judged = [e for e in entries if e.group in RANKED and e.rankable]
    for column, candidate in ((PAPER, "FID"), (SECOND, "conditional FID")):
        wanted = ranks_of(judged, candidate)[PAPER]
        assert {name: float(table.loc[name, column]) for name in wanted.index} == pytest.approx(wanted.to_dict())
    assert table.loc["MedShift", PAPER] != table.loc["MedShift", SECOND]
    assert table.loc["DDIB, two networks", PAPER] == "not watched" and table.loc["physics fit", PAPER] == ""
    assert table.loc["MedShift", "trained on"] == "80 000 images, 6.8 M weights"
    turbo = "CycleGAN-Turbo-style (own backbone)"
    assert table.loc[turbo, "trained on"] == "12 000 images (+ 12 000 of its base), 1.3 M weights"
    assert table.loc["codec round trip", "note"] == "equals doing nothing: patches lose nothing"
    assert (table["note"] != "").sum() == 1 and repeats(entries) == {"codec round trip": "doing nothing"}
    assert table.loc["MedShift", "KID × 10⁵ (ST-AlexNet)"] == "1.00 [0.90, 1.10]"
    assert "[" in table.loc["MedShift", "ST-LPIPS to source"] and "[" in table.loc["MedShift", "SSIM to source"]


def test_costs_count_the_base_and_mark_what_leaves_the_budget(rows: list[Entry]) -> None:
    table = cost_table(rows).set_index("method")
    turbo = table.loc["CycleGAN-Turbo-style (own backbone)"]
    assert turbo["of the budget"] == "1.33 ×, outside ± 10 %" and turbo["optimiser steps"] == 750
    assert turbo["images, its base's included"] == 24_000 and turbo["images seen"] == 12_000
    assert turbo["training, its base's included [min]"] == "25.2" and turbo["training [min]"] == "20.8"
    assert table.loc[OURS_SMALL, "of the budget"] == "1.00 ×" and table.loc["doing nothing", "of the budget"] == ""
    assert table.loc["MedShift", "last fifth moved by"] == "0.0 % (loss)"
    assert table.loc["doing nothing", "last fifth moved by"] == ""
    assert against_budget(109, 100) == "1.09 ×" and against_budget(89, 100) == "0.89 ×, outside ± 10 %"


def test_every_row_that_a_tone_curve_beats_is_shown_once_and_every_training_behind_them(rows: list[Entry]) -> None:
    entries = rows
    shown = [e.name for e in not_beating(entries, "histogram match")]
    limit = 2e-5
    assert shown == [
        e.name
        for e in entries
        if e.sets["KID", "ST-AlexNet"].value >= limit and e.name not in ("histogram match", "codec round trip")
    ]
    assert "DDIB, one network" in shown and "FlowEdit" not in shown  # rows without a training of their own count
    behind = one_a_training(not_beating(entries, "histogram match"))
    assert {name: e.name for name, e in behind.items()} == {
        "same-budget": OURS_SMALL,
        "cyclegan-turbo": "CycleGAN-Turbo-style (own backbone)",
    }


# Findings


def test_realism_against_a_gan_has_the_interval_of_a_difference_or_none(tmp_path: Path) -> None:
    entries = comparison(tmp_path)
    found = {row["finding"]: row for row in baseline_findings(entries, "floors", RANKED)}
    row = found["gan_realism"]
    assert row["value"] == pytest.approx(-4e-5) and row["high"] - row["value"] == pytest.approx(math.sqrt(2) * 1e-6)
    assert row["heads"] == HEADS and found["compared_headroom"]["heads"] == HEADS
    gan = tmp_path / "CycleGAN-Turbo-style (own backbone)" / "sets.csv"
    pd.read_csv(gan).assign(low=np.nan, high=np.nan).to_csv(gan, index=False)
    again = [Entry(e.name, e.group, e.compared, e.assessed, trained=e.trained) for e in entries]
    row = next(r for r in baseline_findings(again, "floors", RANKED) if r["finding"] == "gan_realism")
    assert row["low"] is None and row["high"] is None
    for one in found.values():
        Finding(**one)


def test_where_too_few_have_converged_the_margin_of_ranks_decides_nothing(tmp_path: Path) -> None:
    entries = comparison(tmp_path)
    judged = next(r for r in baseline_findings(entries, "floors", RANKED) if r["finding"] == "our_rank_margin")
    assert judged["low"] is not None and judged["n"] == sum(e.rankable for e in entries if e.group in RANKED)
    moving = Trained("network", 1, 1, 1.0, looks(*[1.0 - 0.05 * k for k in range(10)]))
    for e in entries:  # nobody watched any method: the network's loss, which moves, is all there is
        facts = json.loads((e.compared / "facts.json").read_text())
        (e.compared / "facts.json").write_text(json.dumps(facts | {"watched": None}))
    again = [Entry(e.name, e.group, e.compared, e.assessed, trained=moving) for e in entries]
    row = next(r for r in baseline_findings(again, "floors", RANKED) if r["finding"] == "our_rank_margin")
    assert row["low"] is None and "not judged" in row["text"]
