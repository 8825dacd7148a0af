"""The comparison: who may be ranked, whose weights are taken, and that no batch decides a translation."""

import dataclasses
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from medshift import checkpoint
from medshift.cli import main
from medshift.codec import PatchCodec
from medshift.data.domains import DOMAINS
from medshift.errors import CheckpointError, ParameterError
from medshift.knobs import draws_of
from medshift.methods import FREE, free, kept_weights, open_training, training
from medshift.methods_index import FLOORS, FREE_MODULES, TRAINED
from medshift.pairwise import Pair, encoded_halves
from medshift.repro import comparison, shipping
from medshift.repro.comparison import comparison_plans, recipe_of, training_plan
from medshift.repro.comparison_rows import ROWS, TRAININGS
from medshift.repro.parameters import NOTEBOOKS, check
from medshift.repro.pipeline import plans
from medshift.repro.profiles import load_profile
from medshift.repro.runner import paper_tasks
from medshift.repro.stage import Plan
from medshift.results.baselines import HIGHER, headroom_of, ranks_of
from medshift.results.entry import Entry
from medshift.stages import paired_views, shipped, trained
from medshift.stages.calling import translated
from medshift.stages.compared import _losses
from medshift.stages.halves import halves
from medshift.stages.job import Job
from medshift.viz.baselines import fig_losses, fig_methods, fig_watched
from medshift.viz.pareto import Dot, Plane, fig_pareto
from medshift.viz.theme import PALETTE

SOURCE, TARGET = "synthetic-high", "real-normal"


# Batches of a pair


def test_halves_are_the_source_then_the_target_and_never_a_view_of_both(stage_inputs):
    draw = halves(stage_inputs["views"], SOURCE, TARGET, 8, device="cpu")
    images, labels = draw(0, torch.Generator().manual_seed(1))
    assert labels.tolist() == [DOMAINS.index(SOURCE)] * 4 + [DOMAINS.index(TARGET)] * 4
    again, _ = draw(5, torch.Generator().manual_seed(1))
    torch.testing.assert_close(images, again, rtol=0, atol=0)  # the generator alone decides
    views = pd.read_csv(stage_inputs["views"] / "views.csv")
    poses = {
        d: set(map(tuple, views[views["role"] == f"train:{d}"].iloc[:, -6:].round(6).to_numpy()))
        for d in (SOURCE, TARGET)
    }
    assert not poses[SOURCE] & poses[TARGET]
    with pytest.raises(ParameterError, match="no two halves"):
        halves(stage_inputs["views"], SOURCE, TARGET, 7, device="cpu")


def test_pairs_show_one_view_twice(stage_inputs, tmp_path):
    paired_views.build(Job(tmp_path, stage_inputs), domain=SOURCE, source="phantom", sha256="", size=16)
    draw = halves(stage_inputs["views"], SOURCE, TARGET, 8, device="cpu", paired=str(tmp_path))
    images, _ = draw(0, torch.Generator().manual_seed(2))
    source, target = images.flatten(1).chunk(2)
    together = torch.corrcoef(torch.cat([source, target]))[:4, 4:]
    assert together.diagonal().min() > together[~torch.eye(4, dtype=torch.bool)].max()


def test_an_odd_batch_has_no_halves():
    with pytest.raises(ParameterError, match="even number"):
        encoded_halves(PatchCodec(2), [torch.zeros(3, 1, 8, 8)])


# Calling


class Noisy:
    """Adds its noise to the image; two draws, of which the second counts."""

    name, needs_pairs = "noisy", False

    def draws(self, **knobs):
        return 2

    def translate(self, images, source, target, *, noise, **knobs):
        return images + noise[:, 1].mean(dim=(1, 2, 3))[:, None, None, None]

    def nfe(self, **knobs):
        return 0


class Once(Noisy):
    """Asks for one noise without saying so by `draws`, in image space."""

    draws = property()  # type: ignore[assignment]
    noise_space = "image"

    def translate(self, images, source, target, *, noise, **knobs):
        assert noise.shape == images.shape
        return images + noise


def test_the_noise_of_an_image_does_not_depend_on_its_batch():
    images, codec = torch.rand(5, 1, 8, 8), PatchCodec(2)
    for method, draws in ((Noisy(), 2), (Once(), 1)):
        assert draws_of(method, {}) == draws
        runs = [translated(method, codec, images, "a", "b", {}, batch=n, seed=(3, 1)) for n in (1, 2, 5)]
        for other in runs[1:]:
            torch.testing.assert_close(other, runs[0], rtol=0, atol=0)
        other_seed = translated(method, codec, images, "a", "b", {}, batch=5, seed=(3, 2))
        assert not torch.allclose(other_seed, runs[0])


# The registry


def test_every_row_names_a_method_that_is_there():
    for row in ROWS:
        known = {"floor": FLOORS, "free": FREE_MODULES, "trained": TRAININGS}.get(row.family)
        assert known is None or row.method in known, row.name
    assert len({row.name for row in ROWS}) == len(ROWS)
    assert {t.kind for t in TRAININGS.values()} <= set(TRAINED)
    assert set(FREE) == set(FREE_MODULES)


def test_an_unknown_method_is_told_with_those_there_are():
    with pytest.raises(ParameterError, match="there are medshift-same-budget"):
        training("cycle", PatchCodec(2), Pair("a", "b", ("a", "b")), {})
    with pytest.raises(ParameterError, match="nothing of the kind|not what it knows"):
        training("cut", PatchCodec(2), Pair("a", "b", ("a", "b")), {"lambda": 3})
    with pytest.raises(ParameterError, match="there are medshift, sdedit"):
        free("ddim", None)  # type: ignore[arg-type]


# Plans, and shipped weights


@pytest.fixture(scope="module")
def smoke():
    profile = load_profile("smoke", {"comparison.images": "32"})
    return profile, plans(profile, seed=0)


def test_a_baselines_own_module_is_part_of_its_key_and_of_no_others(smoke):
    profile, made = smoke
    found = comparison_plans(profile, made, seed=0)
    assert "medshift.baselines.cut" in found["trained cut"].parts["modules"]
    assert "medshift.baselines.cut" not in found["trained unsb"].parts["modules"]
    assert "medshift.baselines.cut" in found["compared CUT"].parts["modules"]
    assert "medshift.baselines.cut" not in found["compared MedShift"].parts["modules"]
    plain = Plan("x", "medshift.stages.job", {})
    assert dataclasses.replace(plain, also=("medshift.flow",)).key != plain.key


def test_retraining_is_a_parameter_with_known_names():
    model = NOTEBOOKS["06_baselines"]
    assert check(model, {"retrain": ["cut", "all"]}, "06").retrain == ["cut", "all"]
    with pytest.raises(ParameterError, match="no training is called 'cot'"):
        check(model, {"retrain": ["cot"]}, "06")


@pytest.fixture(scope="module")
def trained_here(smoke, tmp_path_factory):
    """A training of the smallest kind in a runs folder, and the folder of weights it is shipped to."""
    profile, made = smoke
    out, weights = tmp_path_factory.mktemp("out"), tmp_path_factory.mktemp("weights")
    plan = training_plan(profile, made, "bridge-independent", seed=0)
    stage = plan.ensure(out / "runs" / "smoke")
    with pytest.MonkeyPatch.context() as patch:
        for module in (comparison, shipping, shipped):
            patch.setattr(module, "WEIGHTS", weights)
        patch.setattr(shipping, "profile_of", lambda parameters: profile)
        shipping.ship("smoke", ["bridge-independent"], out_dir=str(out))
        yield profile, made, stage, weights


def test_shipped_weights_are_the_trained_averages_in_half_precision(trained_here, tmp_path):
    profile, made, stage, weights = trained_here
    folder = weights / "smoke" / "bridge-independent"
    card = json.loads((folder / "card.json").read_text())
    assert card["mebibytes"] < shipping.LARGEST_MIB and card["made"]["images"] == 32
    shipped.build(Job(tmp_path), profile="smoke", training="bridge-independent", sha256=card["sha256"])
    here, there = open_training(tmp_path), open_training(stage.folder)
    for name in here.kept:
        for key, value in there.modules()[name].state_dict().items():
            torch.testing.assert_close(here.modules()[name].state_dict()[key], value.half().float(), rtol=0, atol=0)
    held = checkpoint.load(stage.folder)
    average = {k[7:]: v for k, v in held.tensors["network-ema"].items() if k.startswith("module.")}
    assert all(torch.equal(average[k], v) for k, v in kept_weights(held, "network").items())


def test_shipped_weights_are_taken_for_their_very_recipe_alone(trained_here):
    profile, made, stage, weights = trained_here
    found = comparison_plans(profile, made, seed=0)
    assert "shipped bridge-independent" in found and "trained bridge-independent" not in found
    # What is built on them says so in its key; what is retrained is not taken.
    assert found["trained bridge-independent-reflow"].inputs["base"].name == "shipped"
    assert "trained bridge-independent" in comparison_plans(profile, made, seed=0, retrain=["bridge-independent"])
    assert "trained bridge-independent" in comparison_plans(profile, made, seed=1)
    longer = profile.model_copy(update={"comparison": profile.comparison.model_copy(update={"images": 48})})
    assert "trained bridge-independent" in comparison_plans(longer, made, seed=0)
    other = load_profile("smoke", {"size": "16"})
    assert "trained bridge-independent" in comparison_plans(other, plans(other, seed=0), seed=0)
    live = training_plan(profile, made, "bridge-independent", seed=0)
    card = json.loads((weights / "smoke" / "bridge-independent" / "card.json").read_text())
    assert card["recipe"] == recipe_of(live)


def test_weights_that_are_not_those_of_their_card_are_refused(trained_here, tmp_path):
    with pytest.raises(CheckpointError, match="not those of their card"):
        shipped.build(Job(tmp_path), profile="smoke", training="bridge-independent", sha256="0" * 64)


def test_a_training_is_watched_with_its_averages_and_resumes_to_the_same_end(smoke, tmp_path):
    profile, made = smoke
    plan = training_plan(profile, made, "bridge-independent", seed=0)
    inputs = {name: p.ensure(tmp_path / "runs").folder for name, p in plan.inputs.items()}
    facts = []
    for k in range(2):
        folder = tmp_path / str(k)
        folder.mkdir()
        facts.append(trained.build(Job(folder, inputs), **plan.arguments))
        rows = [json.loads(line) for line in (folder / "watched.jsonl").read_text().splitlines()]
        assert rows[-1]["images"] == 32 and all(np.isfinite(row["mae"]) for row in rows)
    assert facts[0] == facts[1]


# Who may be ranked


def entry(
    name: str, group: str, tmp_path: Path, *, psnr: float, kid: float = 0.1, watched: list | None = None
) -> Entry:
    folder = tmp_path / name
    folder.mkdir()
    rng = np.random.default_rng(len(name))
    n = 12
    table = pd.DataFrame(
        {
            "role": "T2",
            "view": range(n),
            "head": [k % 3 for k in range(n)],
            "region": "frontal",
            "insert": "",
            "draw": 0,
        }
    )
    columns = (
        "psnr_clean",
        "ssim_clean",
        "ssim_source",
        "st_lpips_source",
        "high_pass",
        "high_pass_target",
        "invented",
    )
    for column in columns:
        table[column] = psnr + rng.normal(0, 0.01, n)
    table.to_csv(folder / "scores.csv", index=False)
    rows = [
        {"draw": 0, "metric": m, "features": "ST-AlexNet", "value": kid}
        for m in ("FID", "KID", "coverage", "conditional FID")
    ]
    pd.DataFrame(rows).to_csv(folder / "sets.csv", index=False)
    (folder / "facts.json").write_text(
        json.dumps({"nfe": 1, "knobs": {}, "watched": watched} if watched else {"nfe": 1, "knobs": {}})
    )
    return Entry(name, group, folder, folder)


def curve(last: float) -> list[dict[str, float]]:
    """A curve of 25 looks that falls to 1 and moves by ``last`` of it over its last fifth."""
    flat = [{"images": 100 * k, "mae": 3.0 - 0.1 * k} for k in range(1, 20)]
    return flat + [{"images": 100 * k, "mae": 1.0 + last * (25 - k) / 5} for k in range(20, 26)]


def test_a_curve_that_still_moves_by_more_than_two_percent_is_not_converged(tmp_path):
    still = entry("still", "g", tmp_path, psnr=30, watched=curve(0.03))
    done = entry("done", "g", tmp_path, psnr=30, watched=curve(0.015))
    noisy = entry(
        "noisy", "g", tmp_path, psnr=30, watched=[r | {"mae": 1 + 0.004 * (-1) ** k} for k, r in enumerate(curve(0))]
    )
    assert still.rest.moved == pytest.approx(0.03, rel=0.05) and still.rest.state == "not converged"
    assert done.rest.moved == pytest.approx(0.015, rel=0.05) and str(done.rest) == "1.5 % (MAE)"
    assert noisy.rankable and done.rankable and not still.rankable  # noise around a level is no trend
    untrained = entry("free", "g", tmp_path, psnr=30)
    assert untrained.rankable and untrained.rest.state == "no training"


def test_headroom_is_the_share_of_the_way_from_the_best_floor_to_the_twin(tmp_path):
    floors = [entry("low", "f", tmp_path, psnr=20), entry("high", "f", tmp_path, psnr=24)]
    twin = entry("twin!", "c", tmp_path, psnr=34)
    found = headroom_of(entry("method", "m", tmp_path, psnr=29), floors, twin)
    assert found.mean == pytest.approx(0.5, abs=0.01) and found.low <= found.mean <= found.high


def test_ranks_are_those_of_the_library_of_ranks_and_leave_out_what_ranks_nothing(tmp_path):
    entries = [
        entry(n, "m", tmp_path, psnr=p, kid=k) for n, p, k in (("a", 30, 0.3), ("bb", 20, 0.1), ("ccc", 25, 0.2))
    ]
    ranks = ranks_of(entries)
    # Structure (ST-LPIPS and SSIM hold the same numbers here, one of them the better for being low) and FID decide.
    assert list(ranks.index) == ["a", "bb", "ccc"] and ranks["paper's rank"].tolist() == [2.0, 2.0, 2.0]
    assert set(HIGHER) == {"cfid", "coverage", "kid", "st_lpips", "ssim"}
    assert ranks_of(entries[:1]).empty


# The command line


def test_retraining_reaches_the_comparison_alone_and_keeps_its_folder(tmp_path):
    tasks = paper_tasks("smoke", only=["03", "06"], out_dir=str(tmp_path), retrain=["cut"])
    assert [getattr(t.parameters, "retrain", None) for t in tasks] == [None, ["cut"]]
    assert [t.folder.name for t in tasks] == ["smoke", "smoke"]


def test_an_unknown_training_is_one_clear_message(tmp_path, capsys):
    assert main(["train", "--method", "cutt", "--profile", "smoke", "--out", str(tmp_path)]) == 2
    assert "no training is called 'cutt'" in capsys.readouterr().err
    assert main(["ship", "cut", "--profile", "smoke", "--out", str(tmp_path)]) == 3
    assert "medshift train --method cut --profile smoke" in capsys.readouterr().err


# Figures


def test_the_plane_numbers_every_method_and_hollows_those_that_are_not_ranked():
    dots = [
        Dot(f"method {k}", f"group {k % 2}", 0.1 * k, 20.0 + k, (0.1 * k - 0.02, 0.1 * k + 0.02), (19.0, 25.0), k == 2)
        for k in range(4)
    ]
    dots.append(Dot("repeats method 1", "group 0", 0.1, 21.0))
    figure = fig_pareto(
        [Plane(dots, [(0.1, 0.0, 20.0), (0.5, 0.3, 24.0)], "x", "y")], curve="line", title="t", footer="f"
    )
    axis, key = figure.axes
    assert [text.get_text() for text in axis.texts] == ["1", "2, 5", "3", "4", "τ 0.1"]
    names = [text.get_text() for text in key.texts]
    assert names == ["1  method 0", "2  method 1", "3  method 2", "4  method 3", "5  repeats method 1"]
    markers = [line for line in axis.lines if line.get_marker() not in ("None", None)]
    assert [line.get_markerfacecolor() == "white" for line in markers] == [False, False, True, False, False]
    level = [line for line in axis.lines if len(set(line.get_ydata())) == 1 and len(line.get_ydata()) == 2]
    assert len(level) == 4  # an interval in x of each that has one
    # The legend's markers are filled, whatever the first dot of a group is; hollow has an entry of its own.
    handles = figure.legends[0].legend_handles
    assert [h.get_markerfacecolor() for h in handles[:2]] == [h.get_color() for h in handles[:2]]
    assert [text.get_text() for text in figure.legends[0].get_texts()][2:] == ["hollow: not ranked", "line"]
    plt.close(figure)


def test_a_curve_that_still_moves_is_drawn_in_red_below_the_frame_with_its_further_seeds():
    curves = {"a": ([1, 2], [1.0, 0.5], True), "b": ([1, 2], [1.0, 0.2], False)}
    figure = fig_watched(curves, title="t", footer="f", further={"b": [([1, 2], [3.0, 0.1])]})
    a, b = figure.axes
    assert [axis.lines[0].get_color() for axis in (a, b)] == [PALETTE["blue"], PALETTE["vermilion"]]
    assert len(a.lines) == 1 and [line.get_color() for line in b.lines] == [PALETTE["vermilion"]] * 2
    assert a.get_ylim()[1] > 1.0 and b.get_ylim()[1] > 3.0 and a.get_ylim()[0] == 0
    plt.close(figure)


def test_errors_stand_below_their_image_and_each_group_begins_a_row():
    image, truth = torch.full((1, 4, 4), 0.5), torch.full((1, 4, 4), 0.25)
    figure = fig_methods(image, truth, {"m": truth}, title="t", footer="f", columns=3)
    above, below = figure.axes[:3], figure.axes[3:6]
    assert [axis.get_title() for axis in above] == ["source", "truth", "m"]
    assert np.allclose(below[0].images[0].get_array(), 0.25) and not below[1].images
    assert np.allclose(below[2].images[0].get_array(), 0.0)
    plt.close(figure)
    made, groups = {"m": truth, "n": truth, "o": image}, {"m": "first", "n": "second", "o": "second"}
    figure = fig_methods(image, truth, made, title="t", footer="f", columns=3, groups=groups)
    titles = [[a.get_title() for a in part.axes if a.get_title()] for part in figure.subfigs]
    assert titles[:2] == [["source", "truth", "m"], ["n", "o"]]
    assert [part.get_suptitle() for part in figure.subfigs[:2]] == ["first", "second"]
    assert any("image minus truth [display units" in axis.get_xlabel() for axis in figure.axes)
    plt.close(figure)


def test_a_course_of_losses_has_a_point_for_each_hundredth_and_forgets_what_a_resumed_run_repeats(tmp_path):
    rows = [{"step": k, "images": 8 * k, "learning_rate": 1, "seconds": 1, "loss": float(k)} for k in range(1, 401)]
    repeated = [row | {"loss": -1.0} for row in rows[:50]] + rows
    (tmp_path / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in repeated))
    course = _losses(tmp_path / "history.jsonl")
    assert list(course) == ["loss"] and len(course["loss"]) == 100
    assert course["loss"][0] == [8 * 2.5, 2.5] and course["loss"][-1] == [8 * 398.5, 398.5]
    figure = fig_losses({"a": course, "b": course}, title="t", footer="f")
    assert [len(axis.lines) for axis in figure.axes] == [1, 1]
    plt.close(figure)
