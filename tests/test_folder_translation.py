"""Folders of a user's own images: every file for itself, in little memory, and nothing lost when something fails."""

import contextlib
import gc
import os
import threading
import tracemalloc
import warnings
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from medshift import file_batches, folder_translation
from medshift.baselines.dual_bridge import DualBridge
from medshift.baselines.forward_noised import ForwardNoised
from medshift.baselines.fresh_noise import FreshNoise
from medshift.baselines.histogram import HistogramMatch
from medshift.baselines.identity import Identity
from medshift.codec import PatchCodec
from medshift.data.own_images import OwnImage, PictureKind
from medshift.errors import DataError, ParameterError
from medshift.folder_translation import IncompleteError, translate_folder
from medshift.knobs import check_knobs, knobs_of
from medshift.pairwise import Pair
from medshift.translate import MedShift


class Brighter:
    """Adds a grey level of 8 bit, and remembers what it was given."""

    name, needs_pairs = "brighter", False

    def __init__(self, stop_at: int = 10**9, error: BaseException | None = None) -> None:
        self.pair, self.calls, self.stop_at, self.error = Pair("a", "b", ("a", "b", "c")), [], stop_at, error

    def translate(self, images: Tensor, source: str, target: str, *, by: float = 2 / 255) -> Tensor:
        self.calls.append((tuple(images.shape), source, target, by))
        if self.error is not None and len(self.calls) >= self.stop_at:
            raise self.error
        return images + by

    def nfe(self, *, by: float = 0.0) -> int:
        return 1


class Drawn:
    """Its translations are its noise."""

    name, needs_pairs = "drawn", False

    def __init__(self, draws: int) -> None:
        self.codec, self.count, self.pair = PatchCodec(2), draws, Pair("a", "b", ("a", "b"))

    def translate(self, images: Tensor, source: str, target: str, *, noise: Tensor | None = None) -> Tensor:
        latents = self.codec.encode(images)
        assert noise is not None and noise.shape == (len(images), self.count, *latents.shape[1:])
        size = (images.shape[-2], images.shape[-1])
        return self.codec.decode(0.3 * noise.mean(1) * self.count**0.5, size=size)

    def draws(self) -> int:
        return self.count

    def nfe(self) -> int:
        return 1


def save(path: Path, seed: int = 0, size: tuple[int, int] = (8, 8), dtype: Any = np.uint8) -> np.ndarray:
    levels = np.random.default_rng(seed).integers(0, 200, size).astype(dtype)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(levels).save(path)
    return levels


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def test_sub_folders_names_and_sizes_are_kept_and_other_files_passed_by(tmp_path: Path) -> None:
    sizes = {"z.png": (8, 8), "a/b/c.tif": (3, 5), "a/d.png": (31, 64)}
    before = {name: save(tmp_path / "in" / name, i, size) for i, (name, size) in enumerate(sizes.items())}
    for name in ("a/notes.txt", ".hidden.png", ".cache/e.png", "a/._d.png"):
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_text("no image")
    method = Brighter()
    report = translate_folder(method, "a", "b", tmp_path / "in", tmp_path / "out")
    assert names(tmp_path / "out") == sorted(sizes)
    assert (report.translated, report.kept, report.passed_by, report.failed) == (3, 0, 1, 0)
    assert sorted(call[0] for call in method.calls) == sorted((1, 1, *size) for size in sizes.values())
    for name, levels in before.items():
        assert np.array_equal(pixels(tmp_path / "out" / name), levels + 1)


def test_what_is_there_is_kept_unless_it_is_to_be_replaced(tmp_path: Path) -> None:
    levels = {name: save(tmp_path / "in" / name, i) for i, name in enumerate(("a.png", "b.png"))}
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.png").write_text("mine")
    method = Brighter()
    report = translate_folder(method, "a", "b", tmp_path / "in", tmp_path / "out")
    assert (report.translated, report.kept, len(method.calls)) == (1, 1, 1)
    assert (tmp_path / "out" / "a.png").read_text() == "mine" and "kept (--overwrite replaces them): 1" in str(report)
    report = translate_folder(method, "a", "b", tmp_path / "in", tmp_path / "out", overwrite=True)
    assert (report.translated, report.kept) == (2, 0) and "(--overwrite" not in str(report)
    assert all(np.array_equal(pixels(tmp_path / "out" / name), held + 1) for name, held in levels.items())


def test_bad_files_among_good_ones_are_named_and_the_rest_is_done(tmp_path: Path) -> None:
    for i in range(30):
        save(tmp_path / "in" / f"{i:02d}.png", i)
    for i in range(3, 27, 2):
        (tmp_path / "in" / f"{i:02d}.png").write_bytes((tmp_path / "in" / f"{i:02d}.png").read_bytes()[:60])
    with pytest.raises(IncompleteError) as caught:
        translate_folder(Brighter(), "a", "b", tmp_path / "in", tmp_path / "out", batch=4)
    report, said = caught.value.report, str(caught.value)
    assert isinstance(caught.value, DataError) and caught.value.exit_code == 3
    assert (report.translated, report.failed, len(report.failures)) == (18, 12, 10)
    bad = [f"{i:02d}.png" for i in range(3, 27, 2)]
    assert names(tmp_path / "out") == sorted({f"{i:02d}.png" for i in range(30)} - set(bad))
    assert [name for name, _ in report.failures] == bad[:10] and "And 2 more." in said and "\n" not in said
    assert all(f"'{name}' cannot be read" in said for name in bad[:10]) and bad[10] not in said


@pytest.mark.parametrize(
    ("read", "written", "said"),
    [
        ("in", "in", "would be read and written"),
        ("in", "in/out", "input folder that contains the output folder"),
        ("in/sub", "in", "output folder that contains the input folder"),
        ("in", "link", "would be read and written"),
        ("in", "link/out", "input folder that contains the output folder"),
        ("link/sub", "in", "output folder that contains the input folder"),
        ("in", "in/../in/sub/../out", "input folder that contains the output folder"),
    ],
)
def test_folders_that_hold_each_other_are_refused_before_a_file_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: str, written: str, said: str
) -> None:
    save(tmp_path / "in" / "sub" / "a.png")
    (tmp_path / "link").symlink_to(tmp_path / "in")
    monkeypatch.setattr(file_batches, "read_own", lambda path: pytest.fail("read a file"))
    monkeypatch.setattr(folder_translation, "_files", lambda path: pytest.fail("read a folder"))
    with pytest.raises(ParameterError, match=said):
        translate_folder(Brighter(), "a", "b", tmp_path / read, tmp_path / written)
    assert names(tmp_path / "in") == ["sub/a.png"] and not (tmp_path / "in" / "out").exists()


def test_a_linked_sub_folder_of_the_output_does_not_lead_back_to_the_images(tmp_path: Path) -> None:
    levels = save(tmp_path / "in" / "sub" / "a.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sub").symlink_to(tmp_path / "in" / "sub")
    with pytest.raises(ParameterError, match="link to another place"):
        translate_folder(Brighter(), "a", "b", tmp_path / "in", tmp_path / "out", overwrite=True)
    assert np.array_equal(pixels(tmp_path / "in" / "sub" / "a.png"), levels)


def test_a_linked_translation_is_replaced_and_not_what_it_links_to(tmp_path: Path) -> None:
    levels = save(tmp_path / "in" / "a.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.png").symlink_to(tmp_path / "in" / "a.png")
    translate_folder(Brighter(), "a", "b", tmp_path / "in", tmp_path / "out", overwrite=True)
    assert np.array_equal(pixels(tmp_path / "in" / "a.png"), levels)
    assert np.array_equal(pixels(tmp_path / "out" / "a.png"), levels + 1)


def test_folders_without_images(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for content, said in ((None, "it is empty"), ("notes.txt", r"found \.txt")):
        if content:
            (tmp_path / "in" / content).touch()
        with pytest.raises(DataError, match=said):
            translate_folder(Brighter(), "a", "b", tmp_path / "in", tmp_path / "out")
    save(tmp_path / "file.png")
    for read, written in (("nowhere", "out"), ("file.png", "out"), ("in", "file.png")):
        with pytest.raises(DataError, match=r"nowhere|file\.png"):
            translate_folder(Brighter(), "a", "b", tmp_path / read, tmp_path / written)
    assert not (tmp_path / "out").exists()


def test_an_interruption_leaves_whole_files_and_the_next_run_goes_on(tmp_path: Path) -> None:
    for i in range(5):
        save(tmp_path / "in" / f"{i}.png", i)
    with pytest.raises(KeyboardInterrupt):
        translate_folder(Brighter(3, KeyboardInterrupt()), "a", "b", tmp_path / "in", tmp_path / "out")
    assert names(tmp_path / "out") == ["0.png", "1.png"] and all(
        p.suffix == ".png" for p in (tmp_path / "out").iterdir()
    )
    report = translate_folder(Brighter(), "a", "b", tmp_path / "in", tmp_path / "out")
    assert (report.kept, report.translated) == (2, 3) and len(names(tmp_path / "out")) == 5


def test_a_kill_while_a_file_is_written_leaves_no_image_and_the_next_run_cleans_up(tmp_path: Path) -> None:
    save(tmp_path / "in" / "a.png")
    child = os.fork()
    if not child:  # pragma: no cover
        os.replace = lambda *paths: os._exit(9)  # as SIGKILL would, before the file has its name
        translate_folder(Brighter(), "a", "b", tmp_path / "in", tmp_path / "out", progress=False)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert names(tmp_path / "out") == [".a.png.partial"]
    translate_folder(Brighter(), "a", "b", tmp_path / "in", tmp_path / "out")
    assert names(tmp_path / "out") == ["a.png"]


def peak(tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int, int]:
    """Largest traced memory [bytes], files read alive at once, and files read ahead of those written, of a run."""
    folder = tmp_path / str(count)
    for i in range(count):
        save(folder / f"{i:04d}.png", i, (48, 48))
    alive: weakref.WeakSet[OwnImage] = weakref.WeakSet()
    most, ahead, done, read, write = 0, 0, [0, 0], file_batches.read_own, file_batches.write_own

    def counted(path: Path) -> OwnImage:
        nonlocal most, ahead
        own = read(path)
        alive.add(own)
        done[0] += 1
        most, ahead = max(most, len(alive)), max(ahead, done[0] - done[1])
        return own

    def written(*given: Any) -> None:
        write(*given)
        done[1] += 1

    with monkeypatch.context() as patch:
        patch.setattr(file_batches, "read_own", counted)
        patch.setattr(file_batches, "write_own", written)
        gc.collect()
        tracemalloc.start()
        translate_folder(Drawn(2), "a", "b", folder, tmp_path / f"out{count}", batch=3, progress=False)
        _, largest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return largest, most, ahead


def test_many_images_need_no_more_memory_than_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peak(tmp_path, 2, monkeypatch)  # imports and caches
    few, *_ = peak(tmp_path, 30, monkeypatch)
    many, most, ahead = peak(tmp_path, 300, monkeypatch)
    held = 48 * 48 * 4
    assert most <= 4, "of the batch that is put together, and one of another size"
    assert ahead <= 9, "a batch read, one in the network and one written"
    assert many - few < 40 * held, "270 images more would be 270 times that"


def test_a_batch_holds_images_of_one_size(tmp_path: Path) -> None:
    for i, size in enumerate([(8, 8), (8, 8), (8, 8), (9, 8), (8, 9), (8, 9)]):
        save(tmp_path / "in" / f"{i}.png", i, size)
    method = Brighter()
    translate_folder(method, "a", "b", tmp_path / "in", tmp_path / "out", batch=2)
    assert [call[0][0] for call in method.calls] == [2, 1, 1, 2]
    assert all(
        np.array_equal(pixels(tmp_path / "out" / n), pixels(tmp_path / "in" / n) + 1) for n in names(tmp_path / "in")
    )
    with pytest.raises(ParameterError, match="batch"):
        translate_folder(method, "a", "b", tmp_path / "in", tmp_path / "out", batch=0)


@pytest.mark.parametrize("draws", [1, 3])
def test_noise_belongs_to_the_name_and_the_seed_alone(tmp_path: Path, draws: int) -> None:
    for i in range(5):
        save(tmp_path / "in" / "sub" / f"{i}.png", i, (9, 14))
    save(tmp_path / "one" / "sub" / "3.png", 99, (9, 14))

    def run(folder: str, out: str, **options: Any) -> dict[str, np.ndarray]:
        translate_folder(Drawn(draws), "a", "b", tmp_path / folder, tmp_path / out, **options)
        return {name: pixels(tmp_path / out / name) for name in names(tmp_path / out)}

    torch.manual_seed(0)
    first = run("in", "o1")
    torch.manual_seed(1)
    in_batches, alone, other = run("in", "o2", batch=4), run("one", "o3"), run("in", "o4", seed=1)
    assert all(np.array_equal(first[name], in_batches[name]) for name in first)
    assert np.array_equal(alone["sub/3.png"], first["sub/3.png"])
    assert not any(np.array_equal(first[name], other[name]) for name in first)
    assert len({value.tobytes() for value in first.values()}) == 5
    values = np.stack(list(first.values())) / 127.5 - 1
    assert abs(values.mean()) < 0.05 and values.std() == pytest.approx(0.3, rel=0.1)


def test_methods_with_one_noise_of_the_image_or_of_their_own_shape(tmp_path: Path) -> None:
    save(tmp_path / "in" / "a.png", 0, (6, 10))
    shapes = []

    class OfImage(Drawn):
        noise_space = "image"

        def translate(self, images: Tensor, source: str, target: str, *, noise: Tensor) -> Tensor:
            shapes.append(tuple(noise.shape))
            return images

    translate_folder(OfImage(2), "a", "b", tmp_path / "in", tmp_path / "o1")
    method = OfImage(2)
    method.noise_space = "latent"
    translate_folder(method, "a", "b", tmp_path / "in", tmp_path / "o2", latent_shape=lambda images: (7, 2, 2))
    method.count = 0  # nothing to draw, so it is not given
    with pytest.raises(TypeError, match="noise"):
        translate_folder(method, "a", "b", tmp_path / "in", tmp_path / "o3")
    assert shapes == [(1, 2, 1, 6, 10), (1, 2, 7, 2, 2)]


def zero_field(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
    return torch.zeros_like(x)


def test_a_method_on_top_of_a_medshift_gets_one_noise_of_its_codecs_shape(tmp_path: Path) -> None:
    save(tmp_path / "in" / "a.png", 0, (7, 10))
    model = MedShift(zero_field, PatchCodec(2), 2, ("a", "b"))
    for i, method in enumerate((FreshNoise(model), ForwardNoised(model, 0.9))):
        translate_folder(method, "a", "b", tmp_path / "in", tmp_path / f"o{i}", knobs={"tau": 0.5, "steps": 2})
        # Without a field the result is the noised latent: half the image, half the noise of this name.
        assert pixels(tmp_path / f"o{i}" / "a.png").shape == (7, 10)
    with pytest.raises(ParameterError, match="tau"):
        translate_folder(FreshNoise(model), "a", "b", tmp_path / "in", tmp_path / "o9")
    translate_folder(model, "a", "b", tmp_path / "in", tmp_path / "o3", knobs={"tau": 1.0})
    assert np.array_equal(pixels(tmp_path / "o3" / "a.png"), pixels(tmp_path / "in" / "a.png"))


def test_knobs_are_those_of_the_method() -> None:
    model = MedShift(zero_field, PatchCodec(2), 2, ("a", "b"))
    floor = HistogramMatch([torch.rand(2, 1, 4, 4)] * 2, ("a", "b"))
    assert knobs_of(Brighter()) == ("by",) and knobs_of(floor) == () == knobs_of(Identity())
    assert set(knobs_of(FreshNoise(model))) == {"tau", "guidance", "steps", "solver", "grid"} == set(knobs_of(model))
    good = [
        (model, {"tau": 0.3, "steps": 3, "guidance": [1, 2]}),
        (model, {"tau": 0.3, "solver": "dopri5"}),  # which cannot tell its evaluations beforehand
        (FreshNoise(model), {"tau": 0.3, "guidance": 2}),
        (DualBridge(model), {"steps": 3}),
        (floor, {}),
    ]
    for method, knobs in good:
        check_knobs(method, knobs)
    bad = [
        (Brighter(), {"tau": 0.3}, "no knob 'tau': its knobs are by"),
        (floor, {"tau": 0.3}, "no knob 'tau': it has none"),
        (model, {"tau": 0.3, "guidence": 2}, "did you mean 'guidance'"),
        (model, {}, "needs tau"),
        (model, {"tau": 0.3, "noise": 1}, "no knob 'noise'"),
        (DualBridge(model), {"tau": 0.3}, "cannot take tau=0.3"),
        (ForwardNoised(model, 0.9), {"tau": 0.3, "guidance": 2}, "cannot take"),
    ]
    for method, knobs, said in bad:
        with pytest.raises(ParameterError, match=said):
            check_knobs(method, knobs)


def test_a_wrong_pair_or_domain_is_told_before_anything_is_written(tmp_path: Path) -> None:
    save(tmp_path / "in" / "a.png")
    model = MedShift(zero_field, PatchCodec(2), 2, ("a", "b"))
    floor = HistogramMatch([torch.rand(2, 1, 4, 4)] * 2, ("a", "b"))
    cases = [
        (Brighter(), "b", "a", {}, "trained from a to b"),
        (Brighter(), "a", "x", {}, "trained from a to b"),
        (model, "x", "b", {"tau": 1.0}, "Unknown domain 'x'"),
        (FreshNoise(model), "x", "b", {"tau": 1.0}, "Unknown domain 'x'"),
        (floor, "a", "x", {}, "No domain is called 'x'"),
        (model, "a", "b", {"tau": 3}, "tau is 3"),
    ]
    for method, source, target, knobs, said in cases:
        with pytest.raises(ParameterError, match=said):
            translate_folder(method, source, target, tmp_path / "in", tmp_path / "out", knobs=knobs)
    assert not (tmp_path / "out").exists()


def test_translations_that_fail_are_named_and_own_mistakes_keep_their_traceback(tmp_path: Path) -> None:
    for i in range(3):
        save(tmp_path / "in" / f"{i}.png", i)

    class Sometimes(Brighter):
        def translate(self, images: Tensor, source: str, target: str, *, by: float = 0.0) -> Tensor:
            result = super().translate(images, source, target, by=by)
            if len(self.calls) == 2:
                return result[..., 1:]
            return result / 0 if len(self.calls) == 3 else result

    with pytest.raises(IncompleteError) as caught:
        translate_folder(Sometimes(), "a", "b", tmp_path / "in", tmp_path / "out")
    assert names(tmp_path / "out") == ["0.png"]
    assert "'1.png': brighter made (1, 1, 8, 7)" in str(caught.value) and "'2.png' holds NaN" in str(caught.value)
    with pytest.raises(IncompleteError, match="'0.png': too large"):
        full = Brighter(1, torch.OutOfMemoryError("too large\nfor this device"))
        translate_folder(full, "a", "b", tmp_path / "in", tmp_path / "o2")
    with pytest.raises(RuntimeError) as mistake:
        translate_folder(Brighter(2, RuntimeError("shapes")), "a", "b", tmp_path / "in", tmp_path / "o3")
    assert mistake.value.__notes__ == [f"while translating 1.png of {tmp_path / 'in'}"]


def test_an_output_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    save(tmp_path / "in" / "sub" / "a.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sub").write_text("a file where a folder should be")
    with pytest.raises(DataError, match=r"a\.png' cannot be written"):
        translate_folder(Brighter(), "a", "b", tmp_path / "in", tmp_path / "out")


def test_reading_and_writing_go_on_beside_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(3):
        save(tmp_path / "in" / f"{i}.png", i)
    read, write = file_batches.read_own, file_batches.write_own
    third_is_read, first_is_written = threading.Event(), threading.Event()

    def reading(path: Path) -> OwnImage:
        own = read(path)
        if path.name == "2.png":
            third_is_read.set()
        return own

    def writing(path: Path, *given: Any) -> None:
        if path.name == "0.png":
            assert second_translates.wait(60)
            write(path, *given)
            first_is_written.set()
        else:
            write(path, *given)

    second_translates = threading.Event()

    class Waits(Brighter):
        def translate(self, images: Tensor, source: str, target: str, *, by: float = 2 / 255) -> Tensor:
            if len(self.calls) == 1:
                second_translates.set()
                assert third_is_read.wait(60) and first_is_written.wait(60)
            return super().translate(images, source, target, by=by)

    monkeypatch.setattr(file_batches, "read_own", reading)
    monkeypatch.setattr(file_batches, "write_own", writing)
    assert translate_folder(Waits(), "a", "b", tmp_path / "in", tmp_path / "out").translated == 3


def test_no_thread_outlives_a_run_however_it_ends(tmp_path: Path) -> None:
    for i in range(6):
        save(tmp_path / "in" / f"{i}.png", i)
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked" / "1.png").mkdir()
    before = threading.active_count()
    for error in (KeyboardInterrupt(), RuntimeError("shapes"), None):
        out = tmp_path / f"out-{type(error).__name__}"
        with pytest.raises(type(error)) if error else contextlib.nullcontext():
            translate_folder(Brighter(3, error), "a", "b", tmp_path / "in", out)
        assert threading.active_count() == before
        assert names(out) == [f"{i}.png" for i in range(2 if error else 6)], "what was translated is written, and whole"
    with pytest.raises(DataError, match=r"1\.png' cannot be written"):
        translate_folder(Brighter(), "a", "b", tmp_path / "in", tmp_path / "blocked", overwrite=True)
    assert threading.active_count() == before
    assert names(tmp_path / "blocked") == ["0.png"]


def test_ctrl_c_while_a_file_is_written_leaves_it_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(4):
        save(tmp_path / "in" / f"{i}.png", i)
    write, begun = PictureKind.write, threading.Event()
    resumed = threading.Event()

    def slow(kind: PictureKind, file: Any, grey: np.ndarray) -> None:
        begun.set()
        assert resumed.wait(60)
        write(kind, file, grey)

    class Interrupted(Brighter):
        def translate(self, images: Tensor, source: str, target: str, *, by: float = 2 / 255) -> Tensor:
            if len(self.calls) == 1:
                assert begun.wait(60)
                threading.Timer(0.1, resumed.set).start()
                raise KeyboardInterrupt
            return super().translate(images, source, target, by=by)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(PictureKind, "write", slow)
        translate_folder(Interrupted(), "a", "b", tmp_path / "in", tmp_path / "out")
    assert names(tmp_path / "out") == ["0.png"]
    assert np.array_equal(pixels(tmp_path / "out" / "0.png"), pixels(tmp_path / "in" / "0.png") + 1)
    report = translate_folder(Brighter(), "a", "b", tmp_path / "in", tmp_path / "out")
    assert (report.kept, report.translated) == (1, 3)


class Small(Drawn):
    """Has memory for so many images; more raise torch's own error."""

    def __init__(self, most: int, error: Exception | None = None) -> None:
        super().__init__(1)
        self.most, self.error, self.calls = most, error, []

    def translate(self, images: Tensor, source: str, target: str, *, noise: Tensor | None = None) -> Tensor:
        self.calls.append(len(images))
        if len(images) > self.most:
            if self.error is not None:
                raise self.error
            torch.empty(2**60, dtype=torch.uint8)
        return super().translate(images, source, target, noise=noise)


@pytest.mark.parametrize("error", [None, torch.OutOfMemoryError("CUDA out of memory.")])
def test_batches_too_large_for_the_memory_are_halved_and_give_the_same(tmp_path: Path, error: Exception | None) -> None:
    for i in range(11):
        save(tmp_path / "in" / f"{i:02d}.png", i, (8, 8) if i < 9 else (6, 8))
    translate_folder(Drawn(1), "a", "b", tmp_path / "in", tmp_path / "one", batch=1)
    for most, calls in ((2, [4, 2, 2, 2, 2, 1, 2]), (1, [4, 2] + 11 * [1])):
        method, out = Small(most, error), tmp_path / f"small{most}"
        with pytest.warns(UserWarning, match="4 images of 8 × 8 pixels at once are too large") as warned:
            report = translate_folder(method, "a", "b", tmp_path / "in", out, batch=4)
        assert len(warned) == 1 and method.calls == calls and report.translated == 11
        for name in names(tmp_path / "in"):
            assert (out / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def test_an_image_too_large_for_the_memory_is_named_with_what_to_do_and_the_rest_is_done(tmp_path: Path) -> None:
    for i in range(4):
        save(tmp_path / "in" / f"{i}.png", i, (40, 30) if i == 2 else (8, 8))

    class Area(Drawn):
        def translate(self, images: Tensor, source: str, target: str, *, noise: Tensor | None = None) -> Tensor:
            if images.shape[-2] > 8:
                torch.empty(2**60, dtype=torch.uint8)
            return super().translate(images, source, target, noise=noise)

    with warnings.catch_warnings(), pytest.raises(IncompleteError) as caught:
        warnings.simplefilter("error")  # there is nothing to halve
        translate_folder(Area(1), "a", "b", tmp_path / "in", tmp_path / "out", batch=2)
    assert names(tmp_path / "out") == ["0.png", "1.png", "3.png"]
    advice = "is too large for the memory: encode it in tiles (--tile 256), make it smaller."
    assert f"One image of 30 × 40 pixels {advice}" in str(caught.value)
    assert "'2.png': " in str(caught.value) and "--device" not in str(caught.value)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_reads_from_and_writes_to_pinned_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(20):
        save(tmp_path / "in" / f"{i:02d}.png", i, (64, 48))
    written, write = [], file_batches.Writer.__call__

    def noted(writer: Any, batch: Any) -> Any:
        written.append(batch)
        return write(writer, batch)

    monkeypatch.setattr(file_batches.Writer, "__call__", noted)
    translate_folder(Brighter(), "a", "b", tmp_path / "in", tmp_path / "out", batch=3, device="cuda")
    assert all(batch.images.is_pinned() and batch.arrived.query() for batch in written) and len(written) == 7
    reader = file_batches.Reader(tmp_path / "in", tmp_path / "none", 3, True, "cuda")
    assert all(batch.images.is_pinned() for batch in reader.batches(names(tmp_path / "in")))
    for name in names(tmp_path / "in"):
        assert np.array_equal(pixels(tmp_path / "out" / name), pixels(tmp_path / "in" / name) + 1)


def test_failures_hold_nothing_of_what_filled_the_memory() -> None:
    seen: list[weakref.ref[Tensor]] = []

    def full(images: Tensor, names: list[str]) -> Tensor:
        assert all(ref() is None for ref in seen), "the first attempt's tensors are gone at the second"
        workspace = torch.zeros(3)
        seen.append(weakref.ref(workspace))
        raise torch.OutOfMemoryError("full")

    batch = file_batches.Batch(["a", "b"], [PictureKind("PNG", "u1")] * 2, torch.zeros(2, 1, 4, 4))
    with pytest.warns(UserWarning):
        fates = list(file_batches.InParts(full, Path("in"), "it", "meta", 2)([batch]))
    assert len(seen) == 3 and [fate.what for fate in fates] == ["failed", "failed"]
    assert "or translate it by --device cpu" in fates[0].reason
