"""The explorer: its views are the profile's, its lattice is what `translate` gives, its dials show what they say."""

import math
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from medshift.codec import PatchCodec
from medshift.data.domains import EvaluationSet
from medshift.errors import ParameterError
from medshift.metrics.edges import INVENTED, edge_map
from medshift.metrics.objects import contrast_recovery
from medshift.metrics.structure import psnr, ssim
from medshift.repro.explorer import FAILURES
from medshift.results.explorer import (
    LESSONS,
    curves_of,
    failures_of,
    filmstrip,
    gallery_table,
    largest,
    leg_at,
    shown_at,
)
from medshift.stages import codec, network, shown_views, untouched, views
from medshift.stages import lattice as stage
from medshift.stages.job import Job
from medshift.stages.lattice import Lattice, invented, load_lattice
from medshift.stages.network import open_translator
from medshift.translate import MedShift
from medshift.viz.explorer import SIDE, STEP, TOP, ExplorerCanvas
from medshift.widgets import explorer
from medshift.widgets.explore import explorer_pictures, gallery_pictures, left_out, leg_pictures
from medshift.widgets.explorer import Explorer

PLACE = {
    "source": "phantom",
    "sha256": "",
    "size": 32,
    "heads": {"train": 2, "validation": 2, "test": 2},
    "views": {"train": 8, "validation": 2, "T0": 2, "T1": 2, "T2": 4, "T3": 4},
    "seed": 0,
}
PAIRS = [["synthetic-high", "real-normal"], ["real-normal", "synthetic-high"]]
TAUS, SCALES = [0.1, 0.5], [1.0, 2.0]
ON_TWO_PAIRS = {name: {**wrong, "pair": wrong["pair"] % len(PAIRS)} for name, wrong in FAILURES.items()}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("explorer")
    found: dict[str, Path] = {}
    training = {"network": "smoke", "images": 32, "batch": 8, "learning_rate": 1e-3, "checkpoint_every": 10, "seed": 3}
    for name, module, arguments in (
        ("views", views, PLACE),
        ("shown", shown_views, PLACE | {"shown": {"T2": 2, "T3": 1}}),
        ("untouched", untouched, {name: PLACE[name] for name in ("source", "sha256", "size")}),
        ("codec", codec, {"kind": "patch", "factor": 2}),
        ("network", network, training),
    ):
        (root / name).mkdir()
        module.build(Job(root / name, dict(found)), **arguments)
        found[name] = root / name
    return found


@pytest.fixture(scope="module")
def lattice(inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Lattice:
    folder = tmp_path_factory.mktemp("lattice")
    job = Job(folder, {"views": inputs["shown"], **{name: inputs[name] for name in ("untouched", "network")}})
    stage.build(job, pairs=PAIRS, shown={"T2": 2, "T3": 1}, taus=TAUS, scales=SCALES, failures=ON_TWO_PAIRS)
    return load_lattice(folder)


def test_shown_views_are_the_views_of_the_profile(inputs: dict[str, Path]) -> None:
    for role, number in (("T2", 2), ("T3", 1)):
        here, there = (EvaluationSet(inputs[name], role, limit=number) for name in ("shown", "views"))
        assert torch.equal(here.exposure("real-normal", 3), there.exposure("real-normal", 3))
        assert torch.equal(here.clean("synthetic-low"), there.clean("synthetic-low"))
        assert torch.equal(here.open_field, there.open_field)


def test_more_views_than_there_are_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="4 views of 'T2', 5 were asked"):
        shown_views.build(Job(tmp_path), **(PLACE | {"shown": {"T2": 5}}))


@pytest.mark.parametrize("place", [(0, 0, 0, 0), (1, 1, 1, 0), (0, 2, 0, 1), (1, 2, 1, 1)])
def test_the_lattice_holds_translations_and_their_measures(
    inputs: dict[str, Path], lattice: Lattice, place: tuple[int, int, int, int]
) -> None:
    pair, view, tau, scale = place
    source, target = PAIRS[pair]
    sets = [EvaluationSet(inputs["views"], role, limit=n) for role, n in (("T2", 2), ("T3", 1))]
    images = torch.cat([one.exposure(source, 0) for one in sets])[view][None]
    truth = torch.cat([one.clean(target) for one in sets])[view][None]
    field = torch.cat([one.open_field for one in sets])[view][None]
    model = open_translator(inputs["network"])
    result = model.translate(images, source, target, tau=TAUS[tau], guidance=SCALES[scale])
    shown = shown_at(lattice, pair, view, tau, scale)
    assert (shown.result - result[0]).abs().max() < 0.02, "half precision, and bfloat16 where there is any"
    assert shown.truth is not None and (shown.truth - truth[0]).abs().max() < 2e-3
    assert shown.here == pytest.approx(
        (float(ssim(result, images, field)), float(psnr(result, truth, field))), rel=0.02
    )
    assert f"τ = {TAUS[tau]:g}" in shown.words and f"guidance {SCALES[scale]:g}" in shown.words


def test_the_way_of_the_latent_starts_at_the_source_turns_at_tau_and_ends_at_the_translation(lattice: Lattice) -> None:
    frames, titles = leg_at(lattice, 0, 1, 0, 1)
    assert titles == ["t = 1", "↓ 0.5", "z_τ, 0.1", "↑ 0.5", "t = 1"] and len(frames) == 5
    shown = shown_at(lattice, 0, 1, 0, 1)
    assert torch.equal(frames[0], shown.source) and torch.equal(frames[-1], shown.result)
    high, _ = leg_at(lattice, 0, 1, 1, 1)
    assert len(high) == 3 and torch.equal(high[1], frames[1]), "all z_τ lie on one trajectory"


def test_curves_are_the_measures_of_one_view(lattice: Lattice) -> None:
    first, second = curves_of(lattice, 1, 2)
    assert (first.name, second.name, first.taus) == ("guidance 1", "guidance 2", tuple(TAUS))
    row = lattice.measures.query("pair == 1 and view == 2 and scale == 1 and tau == 0").iloc[0]
    assert second.structure[0] == pytest.approx(row["ssim_source"]) and second.agreement[0] == pytest.approx(
        row["psnr_truth"]
    )


def test_every_failure_is_made_by_its_knobs_and_explained(inputs: dict[str, Path], lattice: Lattice) -> None:
    found = failures_of(lattice)
    assert list(found) == list(FAILURES) == list(LESSONS)
    model = open_translator(inputs["network"])
    source = EvaluationSet(inputs["views"], "T2", limit=1).exposure(PAIRS[0][0], 0)
    result = model.translate(source, *PAIRS[0], tau=0.1, guidance=(1.0, 4.0))
    assert (found["guidance on one leg"].shown.result - result[0]).abs().max() < 0.02
    clean = found["clean source"].shown.source
    assert (clean - EvaluationSet(inputs["views"], "T2", limit=1).clean(PAIRS[0][0])[0]).abs().max() < 2e-3
    table = gallery_table(lattice)
    assert list(table["failure"]) == [lesson.title for lesson in LESSONS.values()]
    for row, one in zip(table.to_dict("records"), found.values(), strict=True):
        assert f"{one.invented} invented, {one.lost} lost" in one.shown.words
        assert row["PSNR at the best τ [dB]"] >= max(one.shown.curves[0].agreement) - 1e-3


def test_the_view_of_invented_anatomy_has_the_most_of_it_and_its_spot_is_ringed(
    inputs: dict[str, Path], lattice: Lattice
) -> None:
    wrong = lattice.failures["tau too low"]
    source, target = PAIRS[wrong["pair"]]
    sets = [EvaluationSet(inputs["views"], role, limit=n) for role, n in (("T2", 2), ("T3", 1))]
    images, truth = torch.cat([e.exposure(source, 0) for e in sets]), torch.cat([e.clean(target) for e in sets])
    field = torch.cat([one.open_field for one in sets])
    result = open_translator(inputs["network"]).translate(images, source, target, tau=0.0)
    much = invented(result, truth, field)
    assert wrong["view"] == int(much.sum((1, 2)).argmax())
    edges = edge_map(result, truth, field, head=torch.ones_like(field))
    assert torch.equal(much > 0, (edges.labels == INVENTED) & ((result - truth).abs()[:, 0] > 0))
    failure = failures_of(lattice)["tau too low"]
    assert failure.invented == pytest.approx(int(edges.invented[wrong["view"]]), abs=2), "half precision"
    spot = failure.shown.spot
    assert spot is not None and much[wrong["view"], round(spot.row) - 4 : round(spot.row) + 5].sum() > 0
    bare = ExplorerCanvas().frame(replace(failure.shown, spot=None))
    ringed = ExplorerCanvas().frame(failure.shown)
    changed = [bool((pixels(bare, k) != pixels(ringed, k)).any()) for k in range(4)]
    assert changed == [False, True, True, False], "ringed on the translation and on the truth"


def test_a_ring_is_about_the_part_that_weighs_most() -> None:
    weight = torch.zeros(32, 32)
    weight[4:6, 4:20] = 0.05  # many, together 1.6
    weight[20, 10], weight[21, 12] = 1.5, 0.5  # few, a pixel apart, together 2
    weight[30, 30] = 0.01  # too faint
    spot = largest(weight)
    assert spot is not None and (spot.row, spot.column) == (20.5, 11.0) and spot.radius > 3
    assert largest(torch.full((8, 8), 0.01)) is None


def test_the_contrast_of_an_unseen_object_is_told_as_a_number(inputs: dict[str, Path], lattice: Lattice) -> None:
    source, target = PAIRS[0]
    with_, without = EvaluationSet(inputs["views"], "T3", limit=1), EvaluationSet(inputs["untouched"], "T3")
    model = open_translator(inputs["network"])
    out = [model.translate(one.exposure(source, 0)[:1], source, target, tau=0.02) for one in (with_, without)]
    truth = [one.clean(target)[:1] for one in (with_, without)]
    expected = float(contrast_recovery(*out, *truth, with_.open_field[:1]))
    failure = failures_of(lattice)["unseen object"]
    assert failure.contrast == pytest.approx(expected, rel=0.05, abs=0.02)
    assert f"contrast is {failure.contrast:.2f}" in failure.shown.words
    others = [one.contrast for name, one in failures_of(lattice).items() if name != "unseen object"]
    assert all(math.isnan(value) for value in others)


def test_pages_have_a_frame_for_every_setting(lattice: Lattice) -> None:
    made = explorer_pictures(lattice, 1, 2)
    assert len(made.frames) == 4 and len(set(made.frames.values())) == 4 and made.title.endswith("burr-hole")
    assert [dial.values for dial in made.dials] == [("0.1", "0.5"), ("1", "2")]
    assert made.frames[0, 1] == ExplorerCanvas().frame(shown_at(lattice, 1, 2, 0, 1))
    assert len(leg_pictures(lattice, 0, 0).frames) == 2 and len(gallery_pictures(lattice).frames) == len(FAILURES)


def test_a_page_says_what_it_leaves_out_and_the_filmstrip_has_all_views(lattice: Lattice) -> None:
    assert "2 of 2 pairs of domains, the first of 3 views" in left_out(lattice)
    caption, figure = filmstrip(lattice, 1, "made here")
    images = [axis.get_images()[0].get_array() for axis in figure.axes]
    assert len(images) == 3 * (len(TAUS) + 2) and "real-normal → synthetic-high" in caption
    for view in range(3):
        row = images[view * 4 : view * 4 + 4]
        shown = [shown_at(lattice, 1, view, tau, 0) for tau in range(2)]
        for image, expected in zip(row, (shown[0].source, *(one.result for one in shown), shown[0].truth), strict=True):
            assert expected is not None and (torch.tensor(image.data) - expected[0]).abs().max() < 1e-6
    assert [axis.get_title() for axis in figure.axes[:4]] == ["source", "τ = 0.1", "τ = 0.5", "truth"]


def pixels(frame: bytes, column: int) -> torch.Tensor:
    """The block of one image of a frame."""
    import io

    import numpy as np
    from PIL import Image

    left = 4 + column * STEP
    sheet = np.asarray(Image.open(io.BytesIO(frame)))
    return torch.from_numpy(sheet[TOP : TOP + SIDE, left : left + SIDE].astype(np.float32))


def test_a_frame_shows_each_image_in_one_grey_window_and_the_error_as_it_is(lattice: Lattice) -> None:
    shown = shown_at(lattice, 0, 0, 1, 0)
    frame = ExplorerCanvas().frame(shown)
    middle = SIDE // 2
    for column, image in enumerate((shown.source, shown.result, shown.truth)):
        assert image is not None
        value = float(image[0, 16, 16].clamp(-1, 1))
        grey = pixels(frame, column)[middle + 1, middle + 1]
        assert (grey - 127.5 * (value + 1)).abs().max() <= 1.5
    unknown = ExplorerCanvas().frame(type(shown)(shown.source, shown.result, None))
    assert (pixels(unknown, 2)[40:] == 255).all() and not torch.equal(pixels(unknown, 2), pixels(frame, 2))


class Opened:
    """A model that counts how often it is opened, whose velocity can be held."""

    def __init__(self) -> None:
        self.times = 0
        self.go = threading.Event()
        self.go.set()

    def __call__(self) -> MedShift:
        self.times += 1

        def velocity(x: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
            self.go.wait(10)
            return 0.1 * label.view(-1, 1, 1, 1) - 0.2 * x

        names = ("synthetic-low", "synthetic-high", "real-low", "real-normal", "real-exposure")
        return MedShift(velocity, PatchCodec(2), 5, names)


def index(box: Explorer, dial: str, value: str) -> int:
    return [label for label, _ in getattr(box, dial).options].index(value)


def wait(box: Explorer) -> None:
    assert box.newest.thread is not None
    box.newest.thread.join(20)
    assert not box.newest.thread.is_alive()


def test_settings_of_the_lattice_are_answered_without_the_network(lattice: Lattice) -> None:
    opened = Opened()
    box = Explorer(lattice, opened)
    box.tau.index, box.guidance.index = index(box, "tau", "0.1"), index(box, "guidance", "2")
    box.view.value, box.pair.value = 2, 1
    assert box.picture.value == ExplorerCanvas().frame(shown_at(lattice, 1, 2, 0, 1))
    assert opened.times == 0 and box.newest.thread is None and box.message.widget.value == ""


def test_settings_off_the_lattice_are_translated_in_the_background_and_remembered(lattice: Lattice) -> None:
    opened = Opened()
    box = Explorer(lattice, opened)
    before = box.picture.value
    opened.go.clear()
    box.tau.index = index(box, "tau", "0.4")
    assert box.picture.value == before and box.halt.layout.visibility == "visible"
    opened.go.set()
    wait(box)
    after = box.picture.value
    assert after != before and box.bar.layout.visibility == "hidden" and opened.times == 1
    image = lattice.tensors["source/0"][0].float()[None]
    expected = opened().translate(image, *PAIRS[0], tau=0.4)
    known = next(iter(box._known.values())).shown
    assert torch.equal(known.result, expected[0]) and known.here is not None
    thread = box.newest.thread
    box.tau.index = index(box, "tau", "0.1")
    box.tau.index = index(box, "tau", "0.4")
    assert box.picture.value == after and box.newest.thread is thread


def test_a_move_back_to_the_lattice_drops_what_is_under_way_and_so_does_stop(lattice: Lattice) -> None:
    opened = Opened()
    box = Explorer(lattice, opened)
    opened.go.clear()
    box.steps.index = index(box, "steps", "60")
    box.steps.index = index(box, "steps", "15")
    shown = box.picture.value
    opened.go.set()
    wait(box)
    assert box.picture.value == shown and not box._known
    opened.go.clear()
    box.guidance.index = index(box, "guidance", "3")
    box.halt.click()
    opened.go.set()
    wait(box)
    assert box.picture.value == shown and "Stopped" in box.message.widget.value and not box._known


def test_an_own_image_is_translated_without_truth_and_a_wrong_one_is_told(lattice: Lattice, tmp_path: Path) -> None:
    from PIL import Image

    box = Explorer(lattice, Opened())
    (tmp_path / "skull.png").write_bytes(b"")
    Image.new("L", (40, 60), 90).save(tmp_path / "skull.png")
    (tmp_path / "paper.pdf").write_bytes(b"%PDF")
    box.path.value = str(tmp_path / "paper.pdf")
    assert "no PNG, TIFF or DICOM" in box.message.widget.value and len(box.view.options) == 3
    box.path.value = str(tmp_path / "skull.png")
    wait(box)
    assert box.view.value == 3 and "skull.png" in box.view.options[3][0] and box.message.widget.value == ""
    shown = next(iter(box._known.values())).shown
    assert shown.truth is None and shown.result.shape == (1, 48, 32)
    box.view.value = 0
    assert box.picture.value == ExplorerCanvas().frame(
        shown_at(lattice, 0, 0, lattice.taus.index(box._knobs().tau), 0)
    )


def test_what_is_remembered_does_not_grow_without_bound(
    lattice: Lattice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    monkeypatch.setattr(explorer, "REMEMBERED", 3)
    monkeypatch.setattr(explorer, "OWN_KEPT", 2)
    box = Explorer(lattice, Opened())
    for tau in ("0.4", "0.15", "0.01", "0.4", "0.9"):
        box.tau.index = index(box, "tau", tau)
        wait(box)
    assert [key[2].tau for key in box._known] == [0.01, 0.4, 0.9], "the latest ones, however often asked for"
    for k in range(4):
        Image.new("L", (40, 40), 90 + k).save(tmp_path / f"{k}.png")
        box.path.value = str(tmp_path / f"{k}.png")
        wait(box)
    names = [name for name, _ in box.view.options]
    assert names[3:] == ["your own image: 2.png", "your own image: 3.png"] and len(box._own) == 2
    assert box.view.label == names[-1] and box.message.widget.value == ""
    assert {key[1] for key in box._known} <= {0, *box._own}


def test_without_weights_the_box_says_so_and_the_lattice_still_answers(lattice: Lattice) -> None:
    def missing() -> MedShift:
        raise ParameterError("There are no weights; train the network.")

    box = Explorer(lattice, missing)
    shown = box.picture.value
    box.guidance.index = index(box, "guidance", "6")
    wait(box)
    assert "There are no weights" in box.message.widget.value and box.picture.value == shown
    box.guidance.index = index(box, "guidance", "2")
    assert box.message.widget.value == "" and box.picture.value != shown
