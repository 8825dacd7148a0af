"""The stage that compares latents, on latents whose answers are known: floors, intervals over heads, disjoint views."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from scipy.stats import ttest_1samp
from torch import Tensor

from medshift.data.domains import DOMAINS, EvaluationSet, ViewCounts, plan_views, render
from medshift.data.heads import Heads, HeadSplit
from medshift.metrics.manifold import dealt
from medshift.stages import manifold
from medshift.stages.job import Job
from medshift.stages.latents import INVERTED, NOISED, SWAPPED

FIRST, SECOND = "synthetic-high", "real-normal"
TAUS = (0.3, 1.0)
KEY = ["kind", "method", "tau"]


def rendered(folder: Path, views: int, heads: int) -> Path:
    counts = ViewCounts(train=2, validation=2, T0=2, T1=2, T2=views, T3=2)
    render(plan_views(counts, HeadSplit(2, 2, heads), 0), Heads("phantom", phantom_spacing_mm=4.0), 32, folder)
    return folder


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rendered(tmp_path_factory.mktemp("smoke") / "views", 8, 2)


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rendered(tmp_path_factory.mktemp("several") / "views", 24, 4)


def compared(
    views: Path, folder: Path, latents: Callable[[str, str], Tensor], methods: tuple[str, ...] = ("pca",)
) -> Path:
    """The stage on ``latents`` of a kind and a domain; own is swapped for the truth, other for the source."""
    (folder / "latents").mkdir(parents=True)
    found = {f"{k}/{d}/{t:g}": latents(k, d).half() for k in (INVERTED, NOISED) for d in DOMAINS for t in TAUS}
    truth = EvaluationSet(views, "T2", limit=8)
    for whose, domain in (("own", SECOND), ("other", FIRST)):
        found |= {f"{SWAPPED}/{whose}/{t:g}": truth.clean(domain).half() for t in TAUS}
    save_file(found, folder / "latents" / "latents.safetensors")
    (folder / "study").mkdir()
    job = Job(folder / "study", {"views": views, "latents": folder / "latents"})
    pairs = [(FIRST, SECOND), ("real-low", "real-exposure")]
    manifold.build(job, role="T2", pairs=pairs, swap=pairs[0], neighbours=2, embedded=[0.3], methods=methods, seed=0)
    return folder / "study"


def at_random(n: int, side: int = 8) -> Callable[[str, str], Tensor]:
    generator = torch.Generator().manual_seed(0)
    return lambda kind, domain: torch.randn(n, 2, side, side, generator=generator)


def disjoint(table: pd.DataFrame, views: int) -> None:
    """Every picture shows every view once and every domain."""
    for _, picture in table.groupby(KEY):
        assert sorted(picture["view"]) == list(range(views)) and set(picture["domain"]) == set(DOMAINS)
    assert table.groupby("view")["domain"].nunique().max() == 1, "a view is of one domain in all pictures"


def test_two_heads_and_eight_views_give_numbers_and_floors_but_no_interval(smoke: Path, tmp_path: Path) -> None:
    study = compared(smoke, tmp_path, at_random(8))
    pairs, domains = pd.read_csv(study / "pairs.csv"), pd.read_csv(study / "domains.csv")
    for table, names in ((pairs, ("sliced_w2", "mmd", "retrieval")), (domains, ("mixing",))):
        for name in names:
            assert np.isfinite(table[[name, f"{name}_floor"]]).all(axis=None), name
            assert table[[f"{name}_low", f"{name}_high"]].isna().all(axis=None), name
        assert set(table["kind"]) == {INVERTED, NOISED} and set(table["heads"]) == {2} and set(table["views"]) == {8}
    disjoint(pd.read_csv(study / "embedding.csv"), 8)


@pytest.mark.slow
def test_a_umap_of_eight_views_is_the_same_twice(smoke: Path, tmp_path: Path) -> None:
    first, again = (compared(smoke, tmp_path / name, at_random(8), ("umap", "pca")) for name in "ab")
    table = pd.read_csv(first / "embedding.csv")
    disjoint(table, 8)
    assert set(table["method"]) == {"umap", "pca"} and np.isfinite(table[["x", "y"]]).all(axis=None)
    pd.testing.assert_frame_equal(table, pd.read_csv(again / "embedding.csv"))


def test_domains_that_do_not_differ_are_at_the_floor(several: Path, tmp_path: Path) -> None:
    one = torch.randn(24, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    study = compared(several, tmp_path, lambda kind, domain: one)
    pairs, domains = pd.read_csv(study / "pairs.csv"), pd.read_csv(study / "domains.csv")
    for name in ("sliced_w2", "mmd"):
        np.testing.assert_allclose(pairs[name], pairs[f"{name}_floor"], rtol=1e-12)
    np.testing.assert_allclose(domains["mixing"], domains["mixing_floor"], rtol=1e-12)
    assert (pairs["retrieval"] == 1).all() and (pairs["median_rank"] == 1).all()
    assert np.allclose(pairs["retrieval_floor"], 1 / 24) and (pairs["median_rank_floor"] == 12.5).all()


def test_a_difference_between_domains_stands_out_of_the_floor_and_one_between_heads_does_not(
    several: Path, tmp_path: Path
) -> None:
    heads = EvaluationSet(several, "T2").table["head"].to_numpy()
    generator = torch.Generator().manual_seed(2)
    of_head = (
        3 * torch.randn(4, 2, 8, 8, generator=generator)[torch.from_numpy(np.unique(heads, return_inverse=True)[1])]
    )

    def latents(kind: str, domain: str) -> Tensor:
        shift = 1.5 if (kind, domain) == (INVERTED, SECOND) else 0.0
        return of_head + torch.randn(24, 2, 8, 8, generator=generator) + shift

    study = compared(several, tmp_path, latents)
    pairs, domains = pd.read_csv(study / "pairs.csv"), pd.read_csv(study / "domains.csv")
    first = pairs[pairs["second"] == SECOND].set_index("kind")
    for name in ("sliced_w2", "mmd"):
        low, high, floor = (first[f"{name}{end}"] for end in ("_low", "_high", "_floor"))
        assert (low.loc[INVERTED] > floor.loc[INVERTED]).all(), name
        assert ((low.loc[NOISED] < floor.loc[NOISED]) & (floor.loc[NOISED] < high.loc[NOISED])).all(), name
    mixing = domains.set_index("kind")
    assert mixing["mixing"].loc[INVERTED].max() < mixing["mixing"].loc[NOISED].min()
    swap = pd.read_csv(study / "swap.csv", keep_default_na=False).groupby("method")["psnr_clean"].mean()
    assert swap["own"] > swap["other"] + 5, "own is the truth itself, other the source"


def test_the_interval_of_retrieval_is_students_over_heads(several: Path, tmp_path: Path) -> None:
    """Half of the views of one head and all others are found; views as units would give a shorter interval."""
    heads = EvaluationSet(several, "T2").table["head"].to_numpy()
    lost = torch.from_numpy((heads == heads[0]) & (dealt(heads, 2) == 0))
    place = 10 * torch.eye(24, 64).reshape(24, 1, 8, 8)

    def latents(kind: str, domain: str) -> Tensor:
        swapped = place.clone()
        swapped[lost] = place[lost].roll(1, dims=0)
        return swapped if domain == SECOND else place

    pairs = pd.read_csv(compared(several, tmp_path, latents) / "pairs.csv")
    row = pairs[pairs["second"] == SECOND].iloc[0]
    means = [0.5, 1.0, 1.0, 1.0]
    expected = ttest_1samp(means, 0).confidence_interval(0.95)
    assert row["retrieval"] == pytest.approx(np.mean(means)) and row["heads"] == 4
    assert row["retrieval_low"] == pytest.approx(expected.low) and row["retrieval_high"] == 1.0 < expected.high
    assert np.isnan(row["median_rank_low"]), "of four heads no order statistics cover a median with 95 %"
