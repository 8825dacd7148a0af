"""Stages of the evidence on the smallest views: what each keeps fixed, and what it must not depend on."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from medshift.data.domains import DOMAINS, EvaluationSet, ViewCounts, plan_views, render
from medshift.data.heads import Heads, HeadSplit
from medshift.evaluate import TWIN
from medshift.metrics.structure import psnr
from medshift.stages import (
    codec,
    collapse,
    confounded,
    cube,
    judged,
    latents,
    network,
    objects,
    prediction,
    solvers,
    sweep,
    untouched,
)
from medshift.stages.job import Job
from medshift.stages.kept import KeptViews
from medshift.stages.network import open_translator

PAIR = {"source": "synthetic-high", "target": "real-normal"}
TRAINING = {"network": "smoke", "images": 160, "batch": 16, "learning_rate": 1e-3, "checkpoint_every": 10, "seed": 3}
TAUS = [0.1, 0.6]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Views of 32 pixels, large enough for every metric, and a network that has hardly learnt."""
    root = tmp_path_factory.mktemp("evidence")
    counts = ViewCounts(train=12, validation=2, T0=2, T1=2, T2=16, T3=8)
    render(plan_views(counts, HeadSplit(2, 2, 2), 0), Heads("phantom", phantom_spacing_mm=4.0), 32, root / "views")
    found = {"views": root / "views"}
    for name, stage, arguments in (
        ("codec", codec, {"kind": "patch", "factor": 2}),
        ("network", network, TRAINING),
        ("untouched", untouched, {"source": "phantom", "sha256": "", "size": 32}),
    ):
        (root / name).mkdir()
        stage.build(Job(root / name, dict(found)), **arguments)
        found[name] = root / name
    return found


def job(inputs: dict[str, Path], folder: Path, **more: Path) -> Job:
    folder.mkdir(exist_ok=True)
    return Job(folder, inputs | more)


def swept(inputs: dict[str, Path], folder: Path, **changes: object) -> dict[str, dict[float, torch.Tensor]]:
    arguments = PAIR | {"role": "T2", "views": 8, "taus": TAUS, "batch": 3, "fresh": True, "cycled": 2, "seed": 0}
    sweep.build(job(inputs, folder), **(arguments | changes))
    return sweep.load_sweep(folder)


@pytest.fixture(scope="module")
def sweep_folder(inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    swept(inputs, folder)
    return folder


def test_a_sweep_is_what_translate_returns_at_every_tau(inputs, sweep_folder) -> None:
    found = sweep.load_sweep(sweep_folder)
    assert set(found) == {"MedShift", "fresh noise", "cycle"} and list(found["MedShift"]) == TAUS
    model = open_translator(inputs["network"])
    images = EvaluationSet(inputs["views"], "T2", limit=8).exposure("synthetic-high", 0)
    for tau in TAUS:
        direct = model.translate(images, **PAIR, tau=tau)
        assert (found["MedShift"][tau] - direct).abs().max() < 0.02, "half precision, and bfloat16 where there is any"
    back = model.translate(found["MedShift"][0.6][:2], "real-normal", "synthetic-high", tau=0.6)
    assert (found["cycle"][0.6] - back).abs().max() < 0.02
    nfe = json.loads((sweep_folder / "nfe.json").read_text())
    assert nfe["MedShift"]["0.6"] == 2 * nfe["fresh noise"]["0.6"] == model.nfe(0.6)


def test_the_batch_decides_no_noise(inputs, sweep_folder, tmp_path) -> None:
    first, other = sweep.load_sweep(sweep_folder), swept(inputs, tmp_path / "other", batch=8)
    for tau in TAUS:
        assert (first["fresh noise"][tau] - other["fresh noise"][tau]).abs().mean() < 2e-3
    another = swept(inputs, tmp_path / "seed", seed=1, cycled=0)
    assert "cycle" not in another
    assert (first["fresh noise"][0.1] - another["fresh noise"][0.1]).abs().mean() > 0.05


def test_noise_is_named_by_its_numbers_alone() -> None:
    assert torch.equal(sweep.noise_of((2, 3), 1, 2), sweep.noise_of((2, 3), 1, 2))
    assert not torch.equal(sweep.noise_of((2, 3), 1, 2), sweep.noise_of((2, 3), 2, 1))
    assert sweep.noise_of((2,), 7, 2**31 - 1, 11, 99).shape == (2,), "any numbers make a seed"


def judge(inputs, sweep_folder, folder, **changes) -> tuple[pd.DataFrame, pd.DataFrame]:
    arguments = PAIR | {"role": "T2", "views": 8, "images": True, "sets": True, "deep": ["ST-AlexNet", "CLIP"]}
    arguments |= {"components": 2, "neighbours": 2} | changes
    judged.build(job(inputs, folder, sweep=sweep_folder), **arguments)
    sets = folder / "sets.csv"
    return pd.read_csv(folder / "scores.csv"), pd.read_csv(sets) if sets.is_file() else pd.DataFrame()


@pytest.fixture(scope="module")
def verdicts(inputs, sweep_folder, tmp_path_factory) -> tuple[pd.DataFrame, pd.DataFrame]:
    return judge(inputs, sweep_folder, tmp_path_factory.mktemp("judged"))


def test_doing_nothing_the_twin_and_the_truth_score_what_they_must(verdicts, inputs) -> None:
    scores, sets = verdicts
    nothing, twin = (scores[scores["method"] == name] for name in (judged.NOTHING, TWIN))
    assert (nothing["psnr_source"] == 100).all() and nothing["st_lpips_source"].abs().max() < 1e-6
    assert nothing["shift"].abs().max() < 1e-6 and (twin["shift"] - 1).abs().max() < 0.5
    assert (nothing["edge_precision_source"].dropna() == 1).all() and (nothing["invented_source"] == 0).all()
    assert set(scores.groupby(["method", "tau"], dropna=False).size()) == {8}
    own = sets[(sets["method"] == judged.TARGET) & (sets["metric"] == "KID")]
    away = sets[(sets["method"] == judged.NOTHING) & (sets["metric"] == "KID")]
    assert own["value"].item() < away["value"].item(), "the target's own images are nearer to it than the source's"


def test_missing_weights_are_told_in_place_of_a_number(verdicts) -> None:
    _, sets = verdicts
    clip = sets[sets["features"] == "CLIP"]
    assert set(clip["metric"]) == {"CMMD"} and clip["value"].isna().all()
    assert clip["note"].str.startswith("not computed").all()
    assert sets[~sets["features"].isin(["CLIP", "AlexNet"])]["value"].notna().all()


def test_every_metric_of_sets_that_is_computed_has_an_interval(verdicts) -> None:
    _, sets = verdicts
    made = sets[sets["value"].notna()]
    assert set(made["metric"]) >= {*judged.DEEP, "AUC", "histogram W1", "spectrum distance", "pixels outside"}
    assert made[["low", "high"]].notna().all(axis=None)
    assert (made["low"] <= made["value"]).all() and (made["value"] <= made["high"]).all()


def test_what_overshoots_the_display_is_judged_and_its_share_reported(inputs) -> None:
    every, some = (EvaluationSet(inputs["views"], "T2", limit=n) for n in (16, 8))
    judge_ = judged.SetJudge(every, some, **PAIR, deep=["ST-AlexNet"], components=2, neighbours=2, device="cpu")
    images = some.exposure("real-normal", 1)
    wild, where = images.clone(), some.open_field.flatten(1).double().cumsum(1).reshape(images.shape)
    wild[(where <= 10) & some.open_field] = 2.0  # ten open pixels of each image
    rows = {row["metric"]: row for row in judge_.rows(wild)}
    share = (10 / some.open_field.flatten(1).sum(1)).mean()
    assert rows["pixels outside"]["value"] == pytest.approx(float(share)) and "2.00" in rows["pixels outside"]["note"]
    clamped = {row["metric"]: row for row in judge_.rows(wild.clamp(max=1.0))}
    assert clamped["pixels outside"]["value"] == 0 and clamped["FID"]["value"] == rows["FID"]["value"]
    assert clamped["histogram W1"]["value"] < rows["histogram W1"]["value"], "other metrics see the translation itself"


def test_the_reference_shares_no_view_with_what_is_judged(inputs) -> None:
    every = EvaluationSet(inputs["views"], "T2", limit=16)
    some = EvaluationSet(inputs["views"], "T2", limit=8)
    judge_ = judged.SetJudge(every, some, **PAIR, deep=[], components=2, neighbours=2, device="cpu")
    assert len(judge_.reference) == 8
    distances = torch.cdist(judge_.reference.flatten(1), some.exposure("real-normal", 0).flatten(1))
    assert distances.min() > 1, "another view, not another exposure"


def test_a_light_verdict_has_scores_alone(inputs, sweep_folder, tmp_path) -> None:
    scores, sets = judge(inputs, sweep_folder, tmp_path / "light", images=False, sets=False)
    assert sets.empty and "st_lpips_clean" not in scores and set(scores["method"]) >= {"MedShift", judged.NOTHING}


def test_kept_views_are_the_views_and_are_made_once(inputs) -> None:
    plain, kept = EvaluationSet(inputs["views"], "T2", limit=3), KeptViews(inputs["views"], "T2", limit=3)
    for number in (0, 1):
        assert torch.equal(kept.exposure("real-low", number), plain.exposure("real-low", number))
        assert kept.exposure("real-low", number) is kept.exposure("real-low", number)
    assert torch.equal(kept.clean("real-low"), plain.clean("real-low"))
    assert not torch.equal(kept.clean("real-low"), kept.exposure("real-low", 0))


def test_shift_done_is_the_share_of_the_way(generator) -> None:
    entered, truth = torch.zeros(2, 1, 4, 4), torch.randn(2, 1, 4, 4, generator=generator)
    mask = torch.ones(2, 1, 4, 4, dtype=torch.bool)
    for share in (-0.5, 0.0, 0.3, 1.0):
        found = judged.shift_done(share * truth, entered, truth, mask)
        torch.testing.assert_close(found, torch.full((2,), share))


def test_latents_and_their_swap(inputs, tmp_path) -> None:
    arguments = {"role": "T2", "views": 4, "taus": [0.3, 1.0], "batch": 3, "swap": tuple(PAIR.values()), "swapped": 2}
    latents.build(job(inputs, tmp_path / "z"), **arguments, seed=0)
    inverted, noised = (latents.load_latents(tmp_path / "z", kind) for kind in (latents.INVERTED, latents.NOISED))
    model, views = open_translator(inputs["network"]), EvaluationSet(inputs["views"], "T2", limit=4)
    for domain in DOMAINS:
        latent = model.codec.encode(views.exposure(domain, 0))
        for found in (inverted, noised):
            torch.testing.assert_close(found[domain][1.0], latent, atol=2e-3, rtol=2e-3)
    swapped = latents.load_latents(tmp_path / "z", latents.SWAPPED)
    for whose, domain in (("own", "real-normal"), ("other", "synthetic-high")):
        entered = views.exposure(domain, 0)[:2]
        assert (swapped[whose][1.0] - entered).abs().max() < 2e-3, "at tau = 1 nothing is decoded"


def test_equal_scales_of_one_are_the_plain_translation(inputs, sweep_folder, tmp_path) -> None:
    arguments = PAIR | {"role": "T2", "views": 4, "taus": [0.6], "scales": [1.0, 2.0], "batch": 4}
    cube.build(job(inputs, tmp_path / "cube"), **arguments)
    images = load_file(tmp_path / "cube" / "images.safetensors")
    plain = sweep.load_sweep(sweep_folder)["MedShift"][0.6][:4]
    assert (images["real-normal/0.6/1/1"].float() - plain).abs().max() < 0.02
    scores = pd.read_csv(tmp_path / "cube" / "scores.csv")
    assert len(scores) == 4 * 4 * 2 and set(scores["target"]) == {"real-normal", "synthetic-high"}
    same = scores[scores["target"] == "synthetic-high"].groupby(["encode", "decode"])["psnr_source"].mean()
    assert min(same.loc[1.0, 1.0], same.loc[2.0, 2.0]) > max(same.loc[1.0, 2.0], same.loc[2.0, 1.0])


def test_what_solvers_keep_of_noise(inputs, tmp_path) -> None:
    fine = {"solver": "heun", "grid": "refined", "steps": 60}
    rough = {"solver": "euler", "grid": "uniform", "steps": 4}  # a field that has hardly learnt is nearly straight
    arguments = PAIR | {"role": "T2", "views": 2, "noise_views": 2, "taus": [0.3], "batch": 4}
    solvers.build(job(inputs, tmp_path / "s"), **arguments, solvers={"fine": fine, "rough": rough})
    kept = pd.read_csv(tmp_path / "s" / "retention.csv").groupby("solver")["retention"].mean()
    assert kept["fine"] == pytest.approx(1.0, abs=1e-3)
    assert abs(kept["rough"] - 1) > abs(kept["fine"] - 1)
    assert pd.read_csv(tmp_path / "s" / "scores.csv").groupby("solver")["nfe"].first()["rough"] == 6


def test_the_noises_spread_is_read_from_two_exposures(generator) -> None:
    view = torch.randn(3, 1, 32, 32, generator=generator)
    pair = torch.cat([view, view]) + 0.2 * torch.randn(6, 1, 32, 32, generator=generator)
    found = solvers.noise_spread(pair, torch.ones(3, 1, 32, 32, dtype=torch.bool))
    assert (found - 0.2).abs().max() < 0.02


def test_sources_without_noise_and_clamped_ones(inputs, tmp_path) -> None:
    views = EvaluationSet(inputs["views"], "T2", limit=3)
    versions = collapse.source_versions(views, "synthetic-high", 0.2)
    clamped = versions["clamped"].flatten(1)
    atoms = (clamped == clamped.amax(dim=1, keepdim=True)).float().mean(dim=1)
    torch.testing.assert_close(atoms, torch.full((3,), 0.2), atol=0.01, rtol=0)
    assert torch.equal(versions["noise-free"], views.clean("synthetic-high"))
    arguments = PAIR | {"role": "T2", "views": 3, "taus": [0.1], "starts": [1.0, 0.9], "clamped": 0.2, "batch": 2}
    collapse.build(job(inputs, tmp_path / "c"), **arguments, seed=0)
    spectra = pd.read_csv(tmp_path / "c" / "spectra.csv")
    assert set(spectra["kind"]) == {"inverted", "noised"} and (spectra["power"] > 0).all()
    assert len(pd.read_csv(tmp_path / "c" / "scores.csv")) == 3 * 3 * 2


def test_views_without_inserts_differ_by_the_insert_alone(inputs) -> None:
    present, absent = (EvaluationSet(inputs[name], "T3") for name in ("views", "untouched"))
    pose = ["azimuth", "elevation", "head", "seed", "region"]
    pd.testing.assert_frame_equal(present.table[pose], absent.table[pose])
    difference = (present.clean("real-normal") - absent.clean("real-normal")).abs().flatten(1)
    changed = (difference > 0.02).float().mean(dim=1)
    assert (difference.amax(dim=1) > 0.02).sum() >= len(present) // 2 and changed.max() < 0.6
    assert (absent.table["insert"] == "").all()


def test_objects_at_tau_one_are_the_source_itself(inputs, tmp_path) -> None:
    objects.build(job(inputs, tmp_path / "o"), **PAIR, tau=1.0, exposures=2, batch=5)
    found = load_file(tmp_path / "o" / "images.safetensors")
    for name, stage in ((objects.PRESENT, "views"), (objects.ABSENT, "untouched")):
        views = EvaluationSet(inputs[stage], "T3")
        for k in range(2):
            assert (found[name][k].float() - views.exposure("synthetic-high", k)).abs().max() < 2e-3


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_mix_of_poses_has_the_total_variation_asked_for(inputs, tmp_path, share: float) -> None:
    facts = confounded.build(job(inputs, tmp_path / "mixed"), total_variation=share, seed=0)
    n = int(facts["training views of a domain"])
    table = pd.read_csv(tmp_path / "mixed" / "views.csv", keep_default_na=False)
    lateral = np.abs(np.sin(np.deg2rad(table["azimuth"]))) > confounded.LATERAL
    mixes = {d: lateral[table["role"] == f"train:{d}"].mean() for d in DOMAINS}
    assert all((table["role"] == f"train:{d}").sum() == n for d in DOMAINS)
    gap = abs(mixes["real-normal"] - mixes["synthetic-high"])
    assert gap == pytest.approx(share, abs=1.0 / n)
    from medshift.stages.images import RenderedImages

    before, after = RenderedImages(inputs["views"]), RenderedImages(tmp_path / "mixed")
    assert [len(images) for images in after.training()] == [n] * 5
    for domain in DOMAINS:
        torch.testing.assert_close(before.validation(2)[domain], after.validation(2)[domain], rtol=0, atol=0)


def test_confounded_views_keep_line_integrals_with_their_poses(inputs, tmp_path) -> None:
    from medshift.data.projection import load_projections

    confounded.build(job(inputs, tmp_path / "mixed"), total_variation=1.0, seed=0)
    table = pd.read_csv(tmp_path / "mixed" / "views.csv", keep_default_na=False)
    rows = table[table["role"] == "train:real-normal"]
    views = load_projections(tmp_path / "mixed" / "train-real-normal.real.safetensors")
    np.testing.assert_allclose(views.poses[:, 0].numpy(), rows["azimuth"], rtol=1e-5)


def test_noise_and_classify_sees_less_the_more_noise_there_is(inputs, tmp_path) -> None:
    arguments = PAIR | {"taus": [0.005, 0.9], "views": 8, "training": 12, "seed": 0}
    prediction.build(job(inputs, tmp_path / "p"), **arguments)
    table = pd.read_csv(tmp_path / "p" / "auc.csv").set_index(["images", "tau"])["auc"]
    for images in (prediction.TRAINING, prediction.UNSEEN):
        assert table[images, 0.9] > 0.7 and table[images, 0.005] < table[images, 0.9]
    facts = json.loads((tmp_path / "p" / "spread.json").read_text())
    assert 0 < facts["half_shift_tau"] < 1 and facts["spread"] > 0


def test_a_psnr_of_a_cycle_is_to_the_source(inputs, sweep_folder, tmp_path) -> None:
    judge(inputs, sweep_folder, tmp_path / "cycles", images=False, sets=False)
    cycles = pd.read_csv(tmp_path / "cycles" / "cycle.csv")
    views = EvaluationSet(inputs["views"], "T2", limit=2)
    back = sweep.load_sweep(sweep_folder)["cycle"][0.1]
    direct = psnr(back, views.exposure("synthetic-high", 0), views.open_field)
    np.testing.assert_allclose(cycles[cycles["tau"] == 0.1]["psnr_source"], direct.numpy(), rtol=1e-4)
