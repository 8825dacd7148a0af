"""Tables of 08_ablations: paired differences, how few steps suffice, and who is undertrained."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medshift.results import ablation
from medshift.viz import ablation as viz


def run(root: Path, name: str, scores: np.ndarray) -> str:
    """A run whose views have these scores, two of each head."""
    (root / name).mkdir()
    views = np.arange(len(scores))
    pd.DataFrame({"view": views, "head": views // 2, "region": 0, "psnr_clean": scores}).sample(
        frac=1, random_state=len(name)
    ).to_csv(root / name / "scores.csv", index=False)
    return name


@pytest.fixture
def noise() -> np.ndarray:
    return 30 + np.random.default_rng(1).normal(0, 3, 16)


def row(key: str, **values: object) -> dict[str, object]:
    means = {"psnr_clean": 30.0, "psnr_clean_low": 29.0, "psnr_clean_high": 31.0}
    means |= {"ssim_clean": 0.9, "ssim_clean_low": 0.8, "ssim_clean_high": 0.95}
    return {"run": 0, "state": "done", "error": "", "key": key, "n": 16, "heads": 8, **means, **values}


def test_a_difference_is_paired_view_by_view_whatever_the_order(tmp_path, noise):
    a, b = run(tmp_path, "a", noise + 0.5), run(tmp_path, "longer-name", noise)
    gap = ablation.difference(tmp_path, a, b)
    # Unpaired, a spread of 3 dB over 16 views would give an interval wider than 1 dB.
    assert gap.mean == pytest.approx(0.5) and gap.high - gap.low < 1e-9 and (gap.n, gap.heads) == (16, 8)
    assert ablation.difference(tmp_path, b, a).mean == pytest.approx(-0.5)


def test_the_fewest_steps_that_suffice_lose_less_than_a_tenth_of_a_decibel(tmp_path, noise):
    losses = {2: 0.5, 4: 0.11, 8: 0.09, 16: 0.0}
    rows = [row(run(tmp_path, f"steps-{n}", noise - loss), tau=0.1, steps=n, nfe=4 * n, guidance=1.0)
            for n, loss in losses.items()]  # fmt: skip
    rows.append(row(run(tmp_path, "guided", noise - 1.0), tau=0.1, steps=16, nfe=128, guidance=2.0))
    table = ablation.guidance_table(pd.DataFrame(rows), tmp_path)
    assert table["steps that suffice at w = 1"].tolist() == [8]
    assert table["w = 2 minus w = 1 [dB]"].tolist() == ["-1.00 [-1.00, -1.00]"]


def test_a_width_whose_loss_still_falls_on_every_head_is_undertrained_whatever_its_psnr_does(tmp_path, noise):
    gains = {0.5: np.zeros(16), 1.0: np.full(16, 0.4), 1.5: np.full(16, -2.0)}
    losses = {0.5: (0.4, 0.41), 1.0: (0.2, 0.1), 1.5: (0.2, 0.1)}  # of the heads, after half the images 0.4 and 0.4
    rows = []
    for width, gain in gains.items():
        half, full = run(tmp_path, f"{width}-half", noise), run(tmp_path, f"{width}-full", noise + gain)
        for key, images, by_head in ((half, 80, (0.4, 0.4)), (full, 160, losses[width])):
            look = {"step": 1, "images": images, "by_head": {"2": by_head[0], "3": by_head[1]}}
            early = look | {"step": 0, "by_head": {"2": 9.0, "3": 9.0}}
            (tmp_path / key / "validation.jsonl").write_text(json.dumps(early) + "\n" + json.dumps(look) + "\n")
            rows.append(row(key, width=width, images=images, parameters=1e6 * width) | {"run": len(rows)})
    table = ablation.size_table(pd.DataFrame(rows), tmp_path, lambda number: tmp_path / rows[number]["key"])
    full = table[table["images seen"] == 160].set_index("width")
    assert full["verdict"].to_dict() == {"0.5": "no longer moves", "1": "undertrained", "1.5": "undertrained"}
    assert full.loc["1", "loss against half the images"] == "-62 % (-75 to -50)"
    assert full.loc["0.5", "minus width 1 [dB]"].startswith("-0.40")
    assert full.loc["1.5", "PSNR gain over half the images [dB]"].startswith("-2.00")
    assert set(table[table["images seen"] == 80]["verdict"]) == {""}


def test_a_solver_that_never_comes_near_has_no_number(tmp_path, noise):
    scores = {("euler", 8): -3.0, ("euler", 64): -0.5, ("heun", 8): -0.05, ("heun", 32): 0.0}
    rows = [
        row(run(tmp_path, f"{solver}{nfe}", noise + gap), tau=0.1, solver=solver, grid="refined", nfe=nfe,
            psnr_clean=30 + gap) for (solver, nfe), gap in scores.items()
    ]  # fmt: skip
    table = ablation.solver_table(pd.DataFrame(rows), tmp_path).set_index("solver")
    assert table["fewest within 0.1 dB of the best of all"].to_dict() == {"euler": "none", "heun": "8"}


def test_failed_and_missing_runs_are_listed_and_left_out_of_the_scores():
    table = pd.DataFrame(
        [row("a"), row("b") | {"run": 1, "state": "failed", "error": "E"}, row("c") | {"run": 2, "state": "missing"}]
    )
    assert ablation.done(table)["key"].tolist() == ["a"]
    assert ablation.failures(table).to_dict("records") == [
        {"run": 1, "state": "failed", "error": "E"}, {"run": 2, "state": "missing", "error": ""},
    ]  # fmt: skip


def test_every_setting_has_its_own_line_in_the_figures():
    source = {"ssim_source": 0.9, "ssim_source_low": 0.8, "ssim_source_high": 1.0}
    settings = [(w, t, s) for w in (1.0, 2.0) for t in (0.1, 0.5) for s in (4, 8)]
    table = pd.DataFrame([row(f"{w}{t}{s}", guidance=w, tau=t, steps=s, **source) for w, t, s in settings])
    figure = viz.fig_guidance(table, "n = 16")
    assert [len(axis.lines) for axis in figure.axes] == [2] * 4
    solvers = [("euler", "uniform"), ("euler", "refined"), ("heun", "refined"), ("dopri5", float("nan"))]
    table = pd.DataFrame([row(f"{s}{g}{n}", solver=s, grid=g, tau=0.1, nfe=n) for s, g in solvers for n in (8, 16)])
    figure = viz.fig_solvers(table, "n = 16")
    assert [len(axis.lines) for axis in figure.axes] == [4, 4]
    styles = {line.get_linestyle() for line in figure.axes[0].lines}
    assert styles == {"--", "-", "-."}
