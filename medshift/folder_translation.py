"""Translate a folder of a user's own images, whatever their number and size.

While one batch of files is translated, the next is read and the one before written (`medshift.file_batches`), and no
more are held: ten thousand files need no more memory than ten. A batch that does not fit into memory is translated in
parts, and so are those after it. Each image is translated at its own size, also where that is larger than what the
method was trained on: networks and codecs here are convolutional. But what they know is at the scale of their training
images, in pixels; images in which a head is several times as many pixels wide come out better when they are resized
before.

A translation lies under the name of its source, sub-folders included, in the format of its source and without its text
or patient tags (`medshift.data.own_images`). Names of files and folders are kept: whether they tell of a patient is
for their owner to know. Hidden files and files that are no images are passed by, linked folders are not entered.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from medshift.data.own_images import is_image
from medshift.errors import DataError, ParameterError
from medshift.file_batches import Fate, InParts, Reader, Writer
from medshift.knobs import FileNoise, check_domains, check_knobs
from medshift.read_ahead import read_ahead, write_behind

__all__ = ["IncompleteError", "Report", "check_folders", "translate_folder"]

NAMED = 10  # failures that are named in full


@dataclass
class Report:
    """What became of the files of a folder.

    Args:
        out_dir: where translations lie.
        translated: images translated and written.
        kept: images whose translation was there before, left as it was.
        passed_by: files that are no images.
        failed: images that could not be read or translated.
        failures: name and reason of the first ten of these.
    """

    out_dir: Path
    translated: int = 0
    kept: int = 0
    passed_by: int = 0
    failed: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)

    def add(self, fate: Fate) -> None:
        """Count an image."""
        setattr(self, fate.what, getattr(self, fate.what) + 1)
        if fate.what == "failed" and len(self.failures) < NAMED:
            self.failures.append((fate.name, fate.reason.splitlines()[0]))

    def __str__(self) -> str:
        parts = [f"images translated into '{self.out_dir}': {self.translated}"]
        if self.kept:
            parts.append(f"there before and kept (--overwrite replaces them): {self.kept}")
        if self.passed_by:
            parts.append(f"files that are no images, passed by: {self.passed_by}")
        return "; ".join(parts)


class IncompleteError(DataError):
    """Some images of a folder could not be translated; the others were.

    Attributes:
        report: what became of all.
    """

    def __init__(self, report: Report) -> None:
        self.report = report
        listed = " ".join(reason for _, reason in report.failures)
        more = f" And {report.failed - NAMED} more." if report.failed > NAMED else ""
        super().__init__(f"Images that could not be translated: {report.failed}. {listed}{more} The rest: {report}.")


def translate_folder(
    translator: Any,
    source: str,
    target: str,
    in_dir: str | Path,
    out_dir: str | Path,
    *,
    knobs: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    batch: int = 1,
    seed: int = 0,
    device: torch.device | str = "cpu",
    latent_shape: Callable[[Tensor], tuple[int, ...]] | None = None,
    progress: bool = True,
) -> Report:
    """Translate every image below a folder; an interrupted run goes on when it is called again.

    Args:
        translator: the method, a `medshift.translate.Translator`.
        source: domain of the images.
        target: domain wanted.
        in_dir: folder of images.
        out_dir: folder of translations; made if it is not there.
        knobs: of `translator.translate`; the noise of methods that need some is drawn here.
        overwrite: whether translations that are there already are made again; else they are kept.
        batch: images of equal size, one after the other, that are translated at once, if they fit into memory.
        seed: of the noise. Each file's depends on this and on its name below `in_dir` alone, so translating one
            file again gives the same, whatever lies beside it.
        device: where the translator is.
        latent_shape: from images (B,1,H,W) to the shape (C,h,w) of one noise; by default what the translator's own
            codec says.
        progress: whether a terminal shows a bar.

    Returns:
        What became of the files, if no image failed.

    Raises:
        ParameterError: one folder holds the other, or a domain or knob that the method does not know; raised before
            an image is written.
        DataError: no such folder, no image in it, or a translation that cannot be written.
        IncompleteError: images that could not be read or translated; all others are.
    """
    report = Report(Path(out_dir))
    in_dir, out_dir = check_folders(in_dir, out_dir)
    if batch < 1:
        raise ParameterError(f"batch is {batch}, expected 1 or more.")
    knobs = dict(knobs or {})
    check_domains(translator, source, target)
    check_knobs(translator, knobs)
    total = _count(in_dir, report)
    noise = FileNoise(translator, knobs, seed, latent_shape)

    def translate(images: Tensor, names: list[str]) -> Tensor:
        return translator.translate(images, source, target, **knobs, **noise(images, names))

    files = Reader(in_dir, out_dir, batch, overwrite, device).batches(_images(in_dir))
    in_parts, writer = InParts(translate, in_dir, translator.name, device, batch), Writer(out_dir)
    with (
        torch.no_grad(),
        tqdm(total=total, unit="image", disable=None if progress else True) as bar,
        closing(read_ahead(files)) as read,
        closing(write_behind(in_parts(read), writer)) as written,
    ):
        for fates in written:
            for fate in fates:
                report.add(fate)
            bar.update(len(fates))
    if report.failed:
        raise IncompleteError(report)
    return report


def check_folders(in_dir: str | Path, out_dir: str | Path) -> tuple[Path, Path]:
    """Both folders with links resolved, once it is sure that no translation can end among the images.

    Raises:
        ParameterError: they are one folder, or one holds the other.
        DataError: there is no folder to read from, or `out_dir` is a file.
    """
    if not Path(in_dir).is_dir():
        raise DataError(f"'{in_dir}' is not a folder; name one that holds the images to translate.")
    if Path(out_dir).exists() and not Path(out_dir).is_dir():
        raise DataError(f"'{out_dir}' is a file; name a folder for the translations.")
    read, written = Path(in_dir).resolve(), Path(out_dir).resolve()
    if read == written:
        raise ParameterError(f"'{in_dir}' would be read and written; name another folder for the translations.")
    if written.is_relative_to(read):
        raise ParameterError(f"'{in_dir}' is an input folder that contains the output folder '{out_dir}'; part them.")
    if read.is_relative_to(written):
        raise ParameterError(f"'{out_dir}' is an output folder that contains the input folder '{in_dir}'; part them.")
    return read, written


def _files(folder: Path) -> Iterator[str]:
    """Names below a folder, in order, without hidden ones; one folder's list is held at a time."""
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        below = Path(place).relative_to(folder)
        yield from ((below / name).as_posix() for name in sorted(files) if not name.startswith("."))


def _images(folder: Path) -> Iterator[str]:
    return (name for name in _files(folder) if is_image(folder / name))


def _count(folder: Path, report: Report) -> int:
    """How many images there are, at least one."""
    total, suffixes = 0, set[str]()
    for name in _files(folder):
        if is_image(folder / name):
            total += 1
        else:
            report.passed_by += 1
            if len(suffixes) < NAMED:
                suffixes.add(Path(name).suffix or name)
    if not total:
        found = f"found {', '.join(sorted(suffixes))}" if suffixes else "it is empty"
        raise DataError(f"'{folder}' holds no images: expected PNG, TIFF, JPEG or DICOM files, {found}.")
    return total
