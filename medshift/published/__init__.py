"""What the papers' authors printed, and what follows from these numbers alone: no image is read, nothing is trained.

Table 1 (image translation on X-DigiSkull) and the sizes of the models are as on the paper's project page
(caetas.github.io, medshift.html; arXiv 2508.21435). `published_findings` decides with them the claims that need no
experiment. Nothing here can be compared with a number measured on other data, or under another definition of CFID.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medshift.metrics.ranking import GROUPS, HIGHER, aggregations, paper_rank, win_shares

TABLE1 = Path(__file__).with_name("medshift-table1.csv")
SOURCE = "MedShift (arXiv 2508.21435), Table 1, as printed on the project page caetas.github.io/medshift.html"
SIZE_MB, DIFFUSION_SIZE_MB = 1539.5, 7157.7
PIXELS, VAE_FACTOR = 780, 8  # the factor of Stable Diffusion's VAE, which the authors' earlier code uses
REAL_DOSE_LEVELS = 3  # of the project page's text; its figure has 2 synthetic and 3 real classes
HEADLINE = "MedShift tau=0.3"
# CDTSDE (arXiv 2601.18623), results on PSCDE: the linear schedule and the learnt one; and the last line of the released
# field network, a sigmoid of 6 f - 3.
CDTSDE_DICE, CDTSDE_HAUSDORFF = (0.46, 0.488), (59.53, 39.87)
RELEASED_FIELD = (6.0, -3.0)


def table1() -> pd.DataFrame:
    """Table 1, 14 rows: columns type, method, setting, five metrics and the three printed ranks.

    The index is the method with its setting. "Synthetic Images", the untranslated source, has no ranks (NaN).
    ``attrs["source"]`` says where the numbers stand.
    """
    numbers = ["cfid", "coverage", "cmmd", "realism_rank", "lpips", "ssim", "structure_rank", "average_rank"]
    table = pd.read_csv(TABLE1, comment="#", keep_default_na=False, na_values={name: [""] for name in numbers})
    table.index = pd.Index((table["method"] + " " + table["setting"]).str.strip(), name="run")
    table.attrs["source"] = SOURCE
    return table


def ranked_methods() -> pd.DataFrame:
    """The 13 rows of `table1` that carry ranks."""
    table = table1()
    return table[table["average_rank"].notna()]


def published_findings() -> list[dict[str, Any]]:
    """Findings that follow from the printed numbers, as rows of a file of findings.

    Keys: finding, value, low, high, n, p (empty), unit, figure (empty), text.
    """
    return [*_of_ranks(), *_of_the_headline(), *_of_all_rows(), *_of_the_setting(), *_of_cdtsde()]


def _row(
    finding: str, value: float, text: str, unit: str = "", n: int | str = "", spread: float = 0.0
) -> dict[str, Any]:
    low, high = float(value - spread), float(value + spread)
    row = {"finding": finding, "value": float(value), "low": low, "high": high, "n": n, "p": ""}
    return row | {"unit": unit, "figure": "", "text": text}


def _of_ranks() -> list[dict[str, Any]]:
    table = ranked_methods()
    printed = table[["realism_rank", "structure_rank", "average_rank"]]
    same = (paper_rank(table) == printed).all(axis=1).sum()
    scores, ours = aggregations(table), table["method"] == "MedShift"
    margins = scores[~ours].min() - scores[ours].min()
    draws = 20_000
    share = win_shares(table, draws, seed=0)[ours].sum()
    error = 1.96 * np.sqrt(share * (1 - share) / draws)  # of the drawing; the table itself has no spread
    ahead, n = "lead of the best MedShift row over the best baseline in", len(table)
    return [
        _row("ranks_reproduced", same, "rows whose three printed ranks follow from CFID and SSIM alone", f"of {n}"),
        _row("rank_margin_paper", margins["paper"], f"{ahead} the mean rank of CFID and SSIM", "ranks"),
        _row("rank_margin_mean", margins["mean"], f"{ahead} the mean rank of five metrics", "ranks"),
        _row(
            "rank_margin_group", margins["group_mean"], f"{ahead} the mean of realism's and structure's ranks", "ranks"
        ),
        _row("win_share", share, "share of weightings with a MedShift row first", n=draws, spread=error),
    ]


def _signed(table: pd.DataFrame) -> pd.DataFrame:
    """The five metrics, turned so that higher is better."""
    return table[list(HIGHER)] * pd.Series({metric: 1.0 if higher else -1.0 for metric, higher in HIGHER.items()})


def _of_the_headline() -> list[dict[str, Any]]:
    table = ranked_methods()
    three, score = ["cfid", "ssim", "lpips"], _signed(table)
    best = score.groupby(table["type"]).max()[three]
    wins = {kind: int(np.count_nonzero(score.loc[HEADLINE, three] > row)) for kind, row in best.iterrows()}
    average, others = table["average_rank"], table.index[table["method"] != "MedShift"]
    equals = (average[others] <= average[HEADLINE]).sum()
    beats = "of CFID, SSIM and LPIPS, those in which τ=0.3 beats every row of"
    as_good = "baseline rows whose printed average rank is that of τ=0.3 or better"
    return [
        _row("headline_wins_diffusion", wins["DDPM"], f"{beats} diffusion", "of 3"),
        _row("headline_wins_gan", wins["GAN"], f"{beats} CycleGAN-Turbo", "of 3"),
        _row("headline_wins_nf", wins["NF"], f"{beats} Hierarchy Flow", "of 3"),
        _row("headline_equals", equals, as_good, f"of {len(others)}"),
    ]


def _of_all_rows() -> list[dict[str, Any]]:
    table = ranked_methods()
    score, realism, structure = _signed(table), list(GROUPS["realism"]), list(GROUPS["structure"])
    ours = score[table["method"] == "MedShift"].loc[[f"MedShift tau={tau}" for tau in ("0.6", "0.45", "0.3")]]
    others, gans = score[table["method"] != "MedShift"], score[table["type"] == "GAN"]
    ahead = (gans[realism].min() > ours[realism].max()).sum()
    pair = ["cfid", "ssim"]
    beaten = sum(bool((others[pair] >= row).all(axis=1).any()) for _, row in ours[pair].iterrows())
    steps = ours.diff().iloc[1:]
    better = "those that improve at each step from τ=0.6 to 0.45 to 0.3"
    worse = "those that worsen at each step from τ=0.6 to 0.45 to 0.3"
    all_beat = "realism metrics in which every CycleGAN-Turbo row beats every MedShift row"
    return [
        _row("gan_realism_wins", ahead, all_beat, "of 3"),
        _row(
            "medshift_dominated", beaten, "MedShift rows that a baseline equals or beats in both CFID and SSIM", "of 3"
        ),
        _row("tau_realism_metrics", (steps[realism] > 0).all().sum(), f"of CFID, coverage and CMMD, {better}", "of 3"),
        _row("tau_structure_metrics", (steps[structure] < 0).all().sum(), f"of LPIPS and SSIM, {worse}", "of 2"),
    ]


def _sdedit_gap(beta: np.ndarray) -> float:
    """Least distance in τ of an SDEdit row to a MedShift row, a strength being the τ of equal signal to noise."""
    signal = np.cumprod(1 - beta)
    strengths = np.array([0.1, 0.2, 0.3])
    kept = signal[np.rint(strengths * len(beta)).astype(int) - 1]
    tau = np.sqrt(kept) / (np.sqrt(kept) + np.sqrt(1 - kept))
    return float(np.abs(tau[:, None] - [0.3, 0.45, 0.6]).min())


def _of_the_setting() -> list[dict[str, Any]]:
    stable = _sdedit_gap(np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    linear = _sdedit_gap(np.linspace(1e-4, 0.02, 1000))
    gap = "least distance in τ of an SDEdit row to a MedShift row, the range being that of two noise schedules"
    return [
        _row("size_ratio", DIFFUSION_SIZE_MB / SIZE_MB, "size of the diffusion models over MedShift's"),
        _row("dose_levels", REAL_DOSE_LEVELS, "radiation dose levels in the project page's text"),
        _row("latent_remainder", PIXELS % VAE_FACTOR, "pixels left over as 780 are divided by 8"),
        _row("sdedit_tau_gap", (stable + linear) / 2, gap, spread=abs(stable - linear) / 2),
    ]


def _of_cdtsde() -> list[dict[str, Any]]:
    dice, hausdorff = (100 * (after / before - 1) for before, after in (CDTSDE_DICE, CDTSDE_HAUSDORFF))
    slope, offset = RELEASED_FIELD
    ends = [1 / (1 + np.exp(-(slope * f + offset))) for f in (0.0, 1.0)]
    last = "what the released field's last sigmoid, of 6f-3, makes of"
    return [
        _row("cdtsde_dice_gain", dice, "gain in Dice of the learnt over the linear schedule, as printed", "%"),
        _row("cdtsde_hausdorff_gain", hausdorff, "change of the Hausdorff distance, as printed", "%"),
        _row("released_field_low", ends[0], f"{last} 0"),
        _row("released_field_high", ends[1], f"{last} 1"),
    ]
