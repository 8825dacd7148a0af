"""Findings, tables and figures of a shared manifold, on constructed results whose answers are known."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_1samp

from medshift.errors import DataError
from medshift.results.manifold import (
    embedding_figure,
    manifold_findings,
    mixing_table,
    sharing_figure,
    sharing_table,
    spectrum_figure,
    swap_table,
)
from medshift.stages.latents import INVERTED, NOISED
from medshift.viz.theme import DOMAIN_COLOURS, use_theme

TAUS, HEADS, VIEWS = (0.05, 0.3, 1.0), 4, 20
GAPS = np.array([1.0, 2.0, 3.0, 4.0])  # dB that a head's own latents gain at tau = .3


def cells(name: str, value: float, spread: float = 0.05) -> dict[str, float]:
    return {name: value, f"{name}_low": value - spread, f"{name}_high": value + spread}


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Two pairs; inverted latents are told apart and found again, noised ones are not; own latents gain `GAPS`."""
    pairs, domains, spectra, dots, swap = [], [], [], [], []
    rng = np.random.default_rng(0)
    for kind, auc, found in ((INVERTED, 0.9, 0.95), (NOISED, 0.6, 0.05)):
        for tau in TAUS:
            size = {"kind": kind, "tau": tau, "views": VIEWS, "heads": HEADS}
            for first, second, more in (("synthetic-high", "real-normal", 0.0), ("real-low", "real-exposure", -0.1)):
                row = size | {"first": first, "second": second, "n": VIEWS} | cells("auc", auc + more + tau / 100)
                row |= cells("sliced_w2", 0.3) | {"sliced_w2_floor": 0.2} | cells("mmd", 0.01) | {"mmd_floor": 0.0}
                row |= cells("retrieval", found + more / 10) | {"retrieval_floor": 0.05}
                pairs.append(row | cells("median_rank", 2.0) | {"median_rank_floor": 10.5})
            domains.append(size | cells("mixing", 0.7) | {"mixing_floor": 0.99})
            for domain in DOMAIN_COLOURS:
                power = 0.5 if kind == INVERTED else 1.0
                spectra += [
                    {"frequency": f, "power": power, "kind": kind, "domain": domain, "tau": tau} for f in (0, 0.1, 0.2)
                ]
            for view in range(VIEWS):
                dot = {
                    "kind": kind,
                    "tau": tau,
                    "view": view,
                    "head": view % HEADS,
                    "domain": list(DOMAIN_COLOURS)[view % 5],
                }
                dots += [dot | {"method": m, "x": rng.normal(), "y": rng.normal()} for m in ("umap", "pca")]
    for tau, gaps in ((0.05, np.zeros(HEADS)), (0.3, GAPS)):
        for view in range(8):
            other = 20.0 + view
            for whose, psnr in (("own", other + gaps[view % HEADS]), ("other", other)):
                swap.append({"method": whose, "tau": tau, "view": view, "head": view % HEADS, "psnr_clean": psnr})
    frames = {"pairs": pairs, "domains": domains, "spectra": spectra, "embedding": dots}
    for name, rows in frames.items():
        pd.DataFrame(rows).to_csv(tmp_path / f"{name}.csv", index=False)
    # In another order for each of the two, as nothing promises one.
    pd.DataFrame(swap).sample(frac=1, random_state=0).to_csv(tmp_path / "swap.csv", index=False)
    return tmp_path


def test_findings_have_their_names_signs_and_sources(study: Path) -> None:
    found = {row["finding"]: row for row in manifold_findings(study)}
    assert list(found) == ["shared_auc_z", "shared_auc_noised", "retrieval_inverted", "retrieval_fresh", "swap_gain"]
    # Of the first pair, at the tau of the paper and at .05, inverted and noised not exchanged.
    assert found["shared_auc_z"]["value"] == pytest.approx(0.903) and found["shared_auc_noised"][
        "value"
    ] == pytest.approx(0.603)
    assert found["retrieval_inverted"]["value"] == 0.95 and found["retrieval_fresh"]["value"] == 0.05
    for name in ("shared_auc_z", "shared_auc_noised", "retrieval_inverted", "retrieval_fresh"):
        row = found[name]
        assert row["low"] < row["value"] < row["high"] and (row["n"], row["heads"]) == (VIEWS, HEADS)
    assert "τ = 0.3" in found["shared_auc_z"]["text"] and "τ = 0.05" in found["retrieval_fresh"]["text"]
    gain, expected = found["swap_gain"], ttest_1samp(GAPS, 0)
    assert gain["value"] == pytest.approx(2.5) and gain["p"] == pytest.approx(expected.pvalue)
    assert (gain["low"], gain["high"]) == pytest.approx(tuple(expected.confidence_interval(0.95)))


def test_the_swap_is_dearer_where_own_latents_decode_better(study: Path) -> None:
    table = swap_table(study).set_index("τ")
    assert list(table.index) == ["0.05", "0.3"]
    assert table.loc["0.05", "own minus source's [dB]"].startswith("0.00 ")
    assert table.loc["0.3", "own minus source's [dB]"].startswith("2.50 [")
    own, other = (float(table.loc["0.3", f"PSNR from {w} z_τ [dB]"].split()[0]) for w in ("own", "the source's"))
    assert own - other == pytest.approx(2.5) and (table["n"] == 8).all() and (table["heads"] == HEADS).all()
    swap = pd.read_csv(study / "swap.csv")
    swap["method"] = swap["method"].map({"own": "other", "other": "own"})
    swap.to_csv(study / "swap.csv", index=False)
    assert swap_table(study).set_index("τ").loc["0.3", "own minus source's [dB]"].startswith("-2.50 [")
    assert manifold_findings(study)[-1]["value"] == pytest.approx(-2.5)


def test_decodings_of_different_views_are_not_compared(study: Path) -> None:
    swap = pd.read_csv(study / "swap.csv")
    swap[~((swap["method"] == "own") & (swap["view"] == 3))].to_csv(study / "swap.csv", index=False)
    for made in (swap_table, manifold_findings):
        with pytest.raises(DataError, match="same views"):
            made(study)


def test_tables_put_inverted_and_noised_in_their_columns(study: Path) -> None:
    row = sharing_table(study).set_index(["domains", "τ"]).loc[("synthetic-high, real-normal", "0.3")]
    assert row["AUC, z_τ"] == "0.90 [0.85, 0.95]" and row["AUC, noised"] == "0.60 [0.55, 0.65]"
    assert row["sliced W2, z_τ"] == "0.300 [0.250, 0.350]" and row["sliced W2, z_τ, floor"] == "0.200"
    assert row["retrieval, noised"] == "0.05 [0.00, 0.10]" and row["chance"] == "0.050"
    assert len(sharing_table(study)) == 2 * len(TAUS) and len(mixing_table(study)) == len(TAUS)
    assert mixing_table(study)["mixing, z_τ, floor"].tolist() == ["0.99"] * len(TAUS)


def test_too_few_heads_are_named_and_no_number_is_made_up(study: Path) -> None:
    for name in ("pairs", "domains"):
        table = pd.read_csv(study / f"{name}.csv")
        ends = [c for c in table if c.endswith(("_low", "_high")) and not c.startswith("auc")]
        table.assign(**{c: np.nan for c in ends}).to_csv(study / f"{name}.csv", index=False)
    assert sharing_table(study)["retrieval, z_τ"].iloc[0] == "0.95 [too few heads]"
    found = {row["finding"]: row for row in manifold_findings(study)}
    assert not np.isfinite(np.array([found["retrieval_fresh"]["low"]], dtype=float)).any()
    caption, figure = sharing_figure(study, "data")
    assert len(figure.axes) == 6


def test_figures_say_n_and_name_each_line_once(study: Path) -> None:
    use_theme()
    for made in (embedding_figure, sharing_figure, spectrum_figure):
        caption, figure = made(study, "the data")
        figure.draw_without_rendering()
        assert f"n = {VIEWS} views" in caption and f"{HEADS} unseen heads" in caption and "the data" in caption
        labels = [text.get_text() for text in figure.legends[0].get_texts()]
        assert len(set(labels)) == len(labels)
        lines = [line for axis in figure.axes for line in axis.get_lines() if line.get_linestyle() == ":"]
        assert len({line.get_label() for line in lines}) <= 1, "one meaning, one entry"
        assert figure.get_figwidth() <= 7.01
        texts = [text for text in figure.findobj(lambda a: hasattr(a, "get_fontsize")) if text.get_text()]
        assert min(text.get_fontsize() for text in texts) >= 7
    assert "95 %" in sharing_figure(study, "")[0]


def test_the_picture_shows_every_dot_of_every_kind_in_no_order_of_domains(study: Path) -> None:
    _, figure = embedding_figure(study, "")
    assert len(figure.axes) == 2 * 2 * len(TAUS)
    titles = [axis.get_title() for axis in figure.axes]
    assert titles[1] == "τ = 0.3, AUC 0.90" and titles[len(TAUS) + 1] == "τ = 0.3, AUC 0.60"
    for axis in figure.axes:
        (dots,) = axis.collections
        colours = [tuple(c) for c in dots.get_facecolors()]
        assert len(colours) == VIEWS and len(set(colours)) == 5 and colours != sorted(colours)
        runs = 1 + sum(a != b for a, b in zip(colours, colours[1:], strict=False))
        assert runs > 8, "domains are drawn in turns, none over all others"
