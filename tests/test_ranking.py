"""Ranks and their aggregations: Table 1 as printed, closed forms of the weightings, invariances, bad tables."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata

from medshift.errors import ParameterError
from medshift.metrics.ranking import (
    HIGHER,
    aggregations,
    complete,
    group_mean_rank,
    mean_rank,
    missing_runs,
    orders,
    paper_rank,
    ranks,
    win_shares,
)
from medshift.published import published_findings, ranked_methods, table1

UP = {"a": True, "b": True}


def by_rank(**rows: tuple[float, ...]) -> pd.DataFrame:
    """A table whose metrics a, b, ... are such that the ranks are those given."""
    table = -pd.DataFrame(rows).T.astype(float)
    table.columns = list("abcde")[: table.shape[1]]
    return table


def test_table_1_has_the_source_and_13_ranked_methods() -> None:
    table = table1()
    assert len(table) == 14 and table.index.is_unique and "2508.21435" in table.attrs["source"]
    source = table.loc["Synthetic Images"]
    assert source["type"] == "None" and source["cfid"] == 262.56 and np.isnan(source["average_rank"])
    assert list(table.index.difference(ranked_methods().index)) == ["Synthetic Images"]
    assert table.loc["MedShift tau=0.3", list(HIGHER)].tolist() == [171.59, 0.71, 8.14, 0.24, 0.75]


def test_all_printed_ranks_follow_from_cfid_and_ssim() -> None:
    table = ranked_methods()
    pd.testing.assert_frame_equal(paper_rank(table), table[["realism_rank", "structure_rank", "average_rank"]])


def test_the_print_gives_ties_the_better_rank_and_no_other_rule() -> None:
    table = ranked_methods()
    printed = table["structure_rank"]
    for rule in ("average", "max", "dense"):
        assert (table["ssim"].rank(ascending=False, method=rule) != printed).any()


def test_the_order_changes_with_the_aggregation() -> None:
    scores = aggregations(ranked_methods())
    mean, group = scores["mean"].sort_values(), scores["group_mean"].sort_values()
    assert list(mean.index[:3]) == ["CycleGAN-Turbo ss=1.0", "CycleGAN-Turbo ss=0.0", "MedShift tau=0.6"]
    np.testing.assert_allclose(mean[:3], [5.6, 5.8, 5.9])
    assert list(group.index[:3]) == ["MedShift tau=0.6", "SDEdit st=0.1", "MedShift tau=0.45"]
    np.testing.assert_allclose(group[:3], [65 / 12, 70 / 12, 74 / 12])
    first = {name: order[0] for name, order in orders(scores).items()}
    assert first == {
        "paper": ("MedShift tau=0.6",),
        "mean": ("CycleGAN-Turbo ss=1.0",),
        "group_mean": ("MedShift tau=0.6",),
    }


def test_an_order_shows_ties_and_holds_every_method_once() -> None:
    scores = aggregations(ranked_methods())
    for name, order in orders(scores).items():
        assert sorted(m for tied in order for m in tied) == sorted(scores.index)
        assert [round(scores[name][tied[0]], 9) for tied in order] == sorted(set(scores[name].round(9)))
    assert set(orders(scores)["paper"][2]) == {
        "Hierarchy Flow st=0.25",
        "CycleGAN-Turbo ss=0.0",
        "CycleGAN-Turbo ss=1.0",
        "SDEdit st=0.3",
        "MedShift tau=0.3",
    }


values = st.lists(st.integers(-3, 3).map(float), min_size=4, max_size=9).filter(lambda v: len(set(v)) > 1)


@given(values, st.booleans(), st.sampled_from(["average", "min"]))
def test_ranks_equal_scipy_and_know_only_the_order(column: list[float], higher: bool, ties: str) -> None:
    table = pd.DataFrame({"m": column}, index=[f"run {i}" for i in range(len(column))])
    got = ranks(table, {"m": higher}, ties=ties)["m"]
    np.testing.assert_array_equal(got, rankdata([-v if higher else v for v in column], method=ties))
    np.testing.assert_array_equal(got, ranks(np.exp(table), {"m": higher}, ties=ties)["m"])
    np.testing.assert_array_equal(got, ranks(-table, {"m": not higher}, ties=ties)["m"])
    if ties == "average":
        assert got.sum() == len(column) * (len(column) + 1) / 2


def test_the_order_of_rows_does_not_matter() -> None:
    table = ranked_methods()
    shuffled = table.sample(frac=1, random_state=3)
    pd.testing.assert_frame_equal(aggregations(shuffled).loc[table.index], aggregations(table))
    pd.testing.assert_series_equal(win_shares(shuffled, 500).loc[table.index], win_shares(table, 500))
    assert list(aggregations(table, methods=list(shuffled.index)).index) == list(shuffled.index)


def test_group_means_weigh_groups_and_not_metrics() -> None:
    table = by_rank(x=(1, 1, 1, 2), y=(2, 2, 2, 1))
    higher = dict.fromkeys("abcd", True)
    assert mean_rank(table, higher).tolist() == [1.25, 1.75]
    assert group_mean_rank(table, higher, groups={"one": "abc", "two": "d"}).tolist() == [1.5, 1.5]


def test_infinity_is_the_best_or_the_worst_and_not_missing() -> None:
    table = pd.DataFrame({"psnr": [20.0, np.inf, 30.0]}, index=list("xyz"))
    assert ranks(table, {"psnr": True})["psnr"].tolist() == [3, 1, 2]


def test_win_shares_of_two_metrics_are_lengths_of_an_interval() -> None:
    # With weight w on the first metric the scores are 4-3w, 2, 1+3w and 3: each of the first three wins on a third.
    shares = win_shares(by_rank(x=(1, 4), y=(2, 2), z=(4, 1), never=(3, 3)), 20_000, 0, UP)
    np.testing.assert_allclose(shares, [1 / 3, 1 / 3, 1 / 3, 0], atol=4 * np.sqrt(2 / 9 / 20_000))
    assert shares["never"] == 0 and shares.sum() == pytest.approx(1)


def test_weights_are_uniform_on_the_simplex() -> None:
    # x is first where its one metric outweighs the others together: (1/2)^(m-1), not 1/6 as for scaled uniforms.
    shares = win_shares(by_rank(x=(1, 2, 2), y=(2, 1, 1)), 20_000, 1, dict.fromkeys("abc", True))
    assert shares["x"] == pytest.approx(0.25, abs=4 * np.sqrt(3 / 16 / 20_000))


def test_equal_methods_share_and_a_seed_repeats() -> None:
    table = by_rank(x=(1, 3, 2), y=(1, 3, 2), z=(3, 1, 1))
    higher = dict.fromkeys("abc", True)
    shares = win_shares(table, 3000, 5, higher)
    assert shares["x"] == shares["y"] > 0 and shares.sum() == pytest.approx(1)
    pd.testing.assert_series_equal(shares, win_shares(table, 3000, 5, higher))
    assert not shares.equals(win_shares(table, 3000, 6, higher))
    # Ranks of x are (1.5, 2.5, 2.5), of z (3, 1, 1): x wins where w_a > 1/2.
    assert shares["z"] == pytest.approx(0.75, abs=0.03)


def test_a_dominant_method_always_wins() -> None:
    assert win_shares(by_rank(x=(1, 1), y=(2, 3), z=(3, 2)), 100, 0, UP)["x"] == 1


def test_what_is_missing_is_listed_in_full() -> None:
    table = ranked_methods().copy()
    table.loc["Z-STAR", ["cmmd", "ssim"]] = np.nan
    named = [*table.index, "CUT"]
    assert missing_runs(table, methods=named) == ["Z-STAR: no cmmd, ssim", "CUT: no row"]
    assert missing_runs(ranked_methods()) == []
    for rank in (ranks, aggregations, win_shares, complete):
        with pytest.raises(ParameterError, match="Z-STAR: no cmmd, ssim; CUT: no row"):
            rank(table, methods=named)
    pd.testing.assert_frame_equal(complete(ranked_methods()), ranked_methods()[list(HIGHER)])


GOOD = by_rank(x=(1, 2), y=(2, 1), z=(3, 3))


@pytest.mark.parametrize(
    "table, higher, message",
    [
        (GOOD.mask(GOOD == -3), UP, "missing: z: no a, b"),
        (pd.concat([GOOD, GOOD.loc[["x"]]]), UP, "'x' has more than one row"),
        (GOOD.assign(b=0.5), UP, "'b' is the same for all 3"),
        (GOOD.iloc[:1], UP, "the same for all 1"),
        (GOOD, {"a": True, "fid": False}, "no metric 'fid'"),
        (GOOD.assign(b="good"), UP, "'b' holds values that are not numbers"),
        (GOOD, {}, "No metric is named"),
    ],
)
def test_a_table_that_cannot_be_ranked_is_refused(table: pd.DataFrame, higher: dict, message: str) -> None:
    for rank in (ranks, mean_rank, lambda t, h: win_shares(t, 10, 0, h)):
        with pytest.raises(ParameterError, match=message):
            rank(table, higher)


def test_other_arguments_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ParameterError, match="'z' has a row but"):
        ranks(GOOD, UP, methods=["x", "y"])
    with pytest.raises(ParameterError, match="'dense'"):
        ranks(GOOD, UP, ties="dense")  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match="draws is 0"):
        win_shares(GOOD, 0, 0, UP)
    with pytest.raises(ParameterError, match="'cfid' has no direction"):
        paper_rank(GOOD, UP)
    for groups in ({"one": ["a"]}, {"one": ["a", "b"], "two": ["b"]}, {"one": ["a", "b"], "two": []}):
        with pytest.raises(ParameterError, match="expected each of a, b once"):
            group_mean_rank(GOOD, UP, groups=groups)


def test_published_findings_are_what_the_table_says() -> None:
    found = {row["finding"]: row for row in published_findings()}
    assert {name: row["value"] for name, row in found.items() if name not in ("win_share", "sdedit_tau_gap")} == {
        "ranks_reproduced": 13,
        "rank_margin_paper": 1.0,  # 6.5 against 5.5
        "rank_margin_mean": pytest.approx(-0.3),  # 5.6 against 5.9
        "rank_margin_group": pytest.approx(5 / 12),
        "headline_wins_diffusion": 1,  # CFID 171.59 < 190.12; SSIM .75 < .90; LPIPS .24 > .12
        "headline_wins_gan": 2,  # all but CFID, 147.39
        "headline_wins_nf": 1,
        "headline_equals": 4,  # Hierarchy Flow .25, CycleGAN-Turbo 0 and 1, SDEdit .3
        "gan_realism_wins": 3,
        "medshift_dominated": 0,
        "tau_realism_metrics": 1,  # CFID; coverage .72 > .71, CMMD 8.17 > 8.10
        "tau_structure_metrics": 2,
        "size_ratio": pytest.approx(4.649, abs=5e-4),
        "dose_levels": 3,
        "latent_remainder": 4,
        "cdtsde_dice_gain": pytest.approx(6.09, abs=5e-3),  # .46 to .488
        "cdtsde_hausdorff_gain": pytest.approx(-33.03, abs=5e-3),  # 59.53 to 39.87
        "released_field_low": pytest.approx(0.0474, abs=5e-5),
        "released_field_high": pytest.approx(0.9526, abs=5e-5),
    }
    # SDEdit's strengths .1, .2, .3 are τ = .745, .637, .546 (Stable Diffusion) and .747, .582, .448 (linear).
    gap = found["sdedit_tau_gap"]
    assert gap["low"] == pytest.approx(0.45 - 0.448, abs=6e-4) and gap["high"] == pytest.approx(0.637 - 0.6, abs=6e-4)


def test_published_win_share_agrees_with_weights_drawn_otherwise() -> None:
    table = ranked_methods()
    matrix = ranks(table).to_numpy()
    weights = np.random.default_rng(9).exponential(size=(20_000, 5))  # scaled to sum 1 these are Dirichlet
    best = np.argmin(weights / weights.sum(axis=1, keepdims=True) @ matrix.T, axis=1)
    share = (table["method"] == "MedShift").to_numpy()[best].mean()
    row = next(row for row in published_findings() if row["finding"] == "win_share")
    assert row["value"] == pytest.approx(share, abs=0.02) and row["low"] < row["value"] < row["high"]
