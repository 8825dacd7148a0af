"""Stages as library functions: what they read and write, and that nothing but their arguments decides it."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from medshift.codec import PatchCodec
from medshift.data.domains import DOMAINS, EvaluationSet
from medshift.errors import DataError, ParameterError
from medshift.evaluate import score
from medshift.fast import fast
from medshift.flow_training import load_flow
from medshift.stages import codec, network, translation, views
from medshift.stages.images import RenderedImages, open_images
from medshift.stages.job import Job
from medshift.stages.watching import ValidationLoss
from medshift.translate import MedShift

TRAINING = {"network": "smoke", "images": 160, "batch": 16, "learning_rate": 1e-3, "checkpoint_every": 4, "seed": 3}
SAMPLING = {"source": "synthetic-high", "target": "real-normal", "role": "T2", "views": 4, "tau": 0.3, "steps": 3,
            "solver": "heun", "grid": "uniform", "batch": 3}  # fmt: skip


@pytest.fixture(scope="module")
def trained(stage_inputs, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("network")
    facts = network.build(Job(folder, stage_inputs), **TRAINING)
    assert facts == {"weights' SHA-256": load_flow(folder).sha256}
    return stage_inputs | {"network": folder}


def test_the_codecs_statistics_are_those_of_the_training_images(stage_inputs):
    opened = codec.open_codec(stage_inputs["codec"])
    own = PatchCodec(2)
    own.fit(part for images in RenderedImages(stage_inputs["views"]).training() for part in images.split(32))
    assert opened.fingerprint() == own.fingerprint()
    latents = torch.cat([opened.encode(i) for i in RenderedImages(stage_inputs["views"]).training()])
    torch.testing.assert_close(latents.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)


def test_an_unknown_codec_and_another_ct_than_was_asked_for_are_refused(stage_inputs, tmp_path, monkeypatch):
    with pytest.raises(ParameterError, match="patch, kl and pretrained"):
        codec.build(Job(tmp_path, stage_inputs), kind="vq", factor=2)
    monkeypatch.setattr(views, "Heads", lambda *a, **k: type("H", (), {"source": "user"})())
    with pytest.raises(DataError, match="no longer from 'cranium'"):
        views.build(Job(tmp_path), source="cranium", sha256="", size=16, heads={}, views={}, seed=0)


def test_rendered_images_are_those_of_the_plan(stage_inputs):
    images = open_images(stage_inputs["views"])
    assert images.rendered and images.domains == DOMAINS
    assert [len(i) for i in images.training()] == [8] * 5 and [len(i) for i in images.training(3)] == [3] * 5
    torch.testing.assert_close(images.training(3)[0], images.training(3)[0], rtol=0, atol=0)
    assert set(images.validation(2)) == set(DOMAINS) and len(images.validation(2)["real-low"]) == 2


def test_watching_does_not_change_the_training(stage_inputs, trained, tmp_path, monkeypatch):
    monkeypatch.setattr(network, "_watcher", lambda *a: lambda record: None)
    network.build(Job(tmp_path, stage_inputs), **TRAINING)
    assert load_flow(tmp_path).sha256 == load_flow(trained["network"]).sha256
    looks = [json.loads(line) for line in (trained["network"] / "validation.jsonl").read_text().splitlines()]
    assert [look["step"] for look in looks] == list(range(1, 11))
    assert looks[-1]["images"] == 160 and set(looks[0]["by_head"]) == {"2", "3"}


def test_exposures_that_serve_two_steps_train_on_as_many_images(stage_inputs, trained, tmp_path, monkeypatch):
    drawn, own = [], RenderedImages.batches

    def watched(self, batch, device):
        drawn.append(batch)
        return own(self, batch, device)

    monkeypatch.setattr(RenderedImages, "batches", watched)
    network.build(Job(tmp_path, stage_inputs), **TRAINING, echo=2)
    echoed, plain = load_flow(tmp_path), load_flow(trained["network"])
    assert drawn == [TRAINING["batch"] // 2] and echoed.state["images"] == plain.state["images"]
    assert echoed.state["train"]["echo"] == 2 and echoed.sha256 != plain.sha256


def test_a_batch_that_cannot_be_shared_among_steps_is_refused(stage_inputs, tmp_path):
    with pytest.raises(ParameterError, match=r"16 images cannot be cut into 3 equal parts.*train\.echo"):
        network.build(Job(tmp_path, stage_inputs), **TRAINING, echo=3)
    assert not list(tmp_path.iterdir())


def test_the_validation_loss_is_the_velocitys_mean_square_for_the_zero_field_and_zero_for_the_truth(stage_inputs):
    own = codec.open_codec(stage_inputs["codec"])
    loss = ValidationLoss(stage_inputs["views"], own)
    target = loss.latents - loss.noise
    heads = torch.tensor(loss.heads)
    found = loss(lambda x, t, label: torch.zeros_like(x))
    for head, value in found.items():
        assert value == pytest.approx(float(target[heads == int(head)].square().mean()), rel=1e-4)
    position = iter(range(10**6))

    def truth(x, t, label):
        start = next(position) * len(x) % len(target)
        return target[start : start + len(x)]

    assert max(loss(truth).values()) < 1e-4
    before = torch.random.get_rng_state()
    assert loss(lambda x, t, label: x) == loss(lambda x, t, label: x)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("guidance", [(1.0, 1.0), (0.0, 2.0)])
def test_a_translation_scores_what_the_model_translates(trained, tmp_path, guidance):
    translation.build(Job(tmp_path, trained), **SAMPLING, guidance=guidance)
    flow = load_flow(trained["network"])
    velocity = fast(flow.network)
    model = MedShift(velocity, flow.codec, 5, DOMAINS)
    some = EvaluationSet(trained["views"], "T2", limit=4)
    knobs = {"tau": 0.3, "steps": 3, "solver": "heun", "grid": "uniform", "guidance": guidance}
    parts = [
        model.translate(p, "synthetic-high", "real-normal", **knobs)
        for p in some.exposure("synthetic-high", 0).split(3)
    ]
    wanted = score(torch.cat(parts), some, "synthetic-high", "real-normal")
    rows = pd.read_csv(tmp_path / "scores.csv")
    assert rows["psnr_clean"].to_numpy() == pytest.approx(wanted["psnr_clean"].to_numpy(), abs=1e-4)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["nfe"] == model.nfe(0.3, guidance=guidance, steps=3, solver="heun", grid="uniform")
    assert summary["psnr_clean_low"] <= summary["psnr_clean"] <= summary["psnr_clean_high"]
    assert summary["psnr_clean"] == pytest.approx(wanted["psnr_clean"].mean(), abs=1e-4)
    assert summary["images_seen"] == 160


def test_an_unknown_domain_is_refused(trained, tmp_path):
    with pytest.raises(ParameterError, match="nowhere"):
        translation.build(Job(tmp_path, trained), **{**SAMPLING, "target": "nowhere"}, guidance=(1.0, 1.0))
