"""Images on their way from file to file, in batches: read, translated in as many parts as memory asks for, written.

Three stages for a chain (`medshift.folder_translation`), the first and the last of which run in threads of their own.
On a GPU, images come from and results go to pinned memory, so that neither copy waits for the network.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from medshift.data.own_dicom import DicomKind
from medshift.data.own_images import OwnImage, PictureKind, read_own, write_own
from medshift.errors import DataError, ParameterError

__all__ = ["Batch", "Fate", "InParts", "Reader", "Writer"]

CPU_IS_FULL = "DefaultCPUAllocator: can't allocate memory"  # torch's words, in a RuntimeError


@dataclass(frozen=True)
class Fate:
    """What became of a file.

    Args:
        name: below the folder.
        what: has become of it.
        reason: of a failure; its first line is for the user.
    """

    name: str
    what: Literal["translated", "kept", "failed"]
    reason: str = ""


@dataclass(frozen=True, eq=False)
class Batch:
    """Images of one size, or their translations.

    Args:
        names: of their files.
        kinds: what writes each.
        images: (B,1,H,W) float32.
        arrived: after which the images are there, if they are still being copied from a GPU.
    """

    names: list[str]
    kinds: list[PictureKind | DicomKind]
    images: Tensor
    arrived: torch.cuda.Event | None = None

    def parts(self, most: int) -> list[Batch]:
        """The batch cut into parts of at most so many images."""
        cuts = [slice(start, start + most) for start in range(0, len(self.names), most)]
        return [Batch(self.names[cut], self.kinds[cut], self.images[cut]) for cut in cuts]

    def __str__(self) -> str:
        height, width = self.images.shape[-2:]
        many = f"{len(self.names)} images" if len(self.names) > 1 else "One image"
        return f"{many} of {width} × {height} pixels"


Item: TypeAlias = Batch | Fate  # a file whose fate is decided before the network passes by it


@dataclass(frozen=True)
class Reader:
    """Reads files.

    Args:
        in_dir: their folder.
        out_dir: where translations lie.
        batch: images to put together at most, of equal size and one after the other.
        overwrite: whether files that have a translation are read.
        device: to which the images go.
    """

    in_dir: Path
    out_dir: Path
    batch: int
    overwrite: bool
    device: torch.device | str

    def batches(self, names: Iterable[str]) -> Iterator[Item]:
        """Files as batches; those that are kept or cannot be read pass by the batch that is being put together."""
        held: list[tuple[str, OwnImage]] = []
        for name in names:
            own = self._read(name)
            if isinstance(own, Fate):
                yield own
                continue
            if held and held[0][1].image.shape != own.image.shape:
                yield self._together(held)
                held = []
            held.append((name, own))
            if len(held) == self.batch:
                yield self._together(held)
                held = []
        if held:
            yield self._together(held)

    def _read(self, name: str) -> OwnImage | Fate:
        path = self.in_dir / name
        if not self.overwrite and (self.out_dir / name).exists():
            return Fate(name, "kept")
        try:
            return read_own(path)
        except DataError as error:
            return Fate(name, "failed", str(error).replace(str(path), name))

    def _together(self, held: list[tuple[str, OwnImage]]) -> Batch:
        images = torch.cat([own.image for _, own in held])
        if torch.device(self.device).type == "cuda":
            images = images.pin_memory()
        return Batch([name for name, _ in held], [own.kind for _, own in held], images)


@dataclass
class InParts:
    """Translates batches, in as many parts as memory asks for.

    Args:
        translate: images (B,1,H,W) on the device, and their names, to translations.
        in_dir: folder of the images, for messages.
        method: its name, for messages.
        device: where it works.
        most: images that are tried at once. It is halved whenever they are too many, after one warning.
    """

    translate: Callable[[Tensor, list[str]], Tensor]
    in_dir: Path
    method: str
    device: torch.device | str
    most: int
    warned: bool = False

    def __call__(self, items: Iterable[Item]) -> Iterator[Item]:
        """Every batch as its translations, in order; images that cannot be translated as their fate."""
        for item in items:
            if isinstance(item, Fate):
                yield item
            else:
                yield from self._in_parts(item)

    def _in_parts(self, batch: Batch) -> Iterator[Item]:
        parts = deque(batch.parts(self.most))
        while parts:
            part = parts.popleft()
            made = self._attempt(part)
            if isinstance(made, Batch):
                yield made
            elif made.memory and len(part.names) > 1:
                self._halve(part)
                parts = deque(smaller for larger in (part, *parts) for smaller in larger.parts(self.most))
            else:
                yield from (Fate(name, "failed", f"'{name}': {made.reason}") for name in part.names)

    def _halve(self, part: Batch) -> None:
        if not self.warned:
            warnings.warn(f"{part} at once are too large for the memory; from here on they are fewer.", stacklevel=1)
        self.most, self.warned = (len(part.names) + 1) // 2, True

    def _attempt(self, part: Batch) -> Batch | _Failure:
        # An error is not handed on as it is: its traceback would hold all that filled the memory.
        try:
            return self._run(part)
        except DataError as error:
            return _Failure(str(error))
        except Exception as error:
            if not _is_too_large(error):
                error.add_note(f"while translating {', '.join(part.names)} of {self.in_dir}")
                raise
            return _Failure(f"{str(error).splitlines()[0]}. {self._too_large(part)}", memory=True)

    def _run(self, part: Batch) -> Batch:
        images = part.images.to(self.device, non_blocking=True)
        result = self.translate(images, part.names)
        if result.shape != images.shape:
            raise DataError(f"{self.method} made {tuple(result.shape)} of {tuple(images.shape)}, another size.")
        if not result.is_cuda:
            return replace(part, images=result)
        there = torch.empty(result.shape, dtype=result.dtype, pin_memory=True).copy_(result, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record(torch.cuda.current_stream(result.device))
        return replace(part, images=there, arrived=arrived)

    def _too_large(self, part: Batch) -> str:
        elsewhere = "" if torch.device(self.device).type == "cpu" else ", or translate it by --device cpu"
        return f"{part} is too large for the memory: encode it in tiles (--tile 256), make it smaller{elsewhere}."


@dataclass(frozen=True)
class _Failure:
    """Why images were not translated, and whether for want of memory."""

    reason: str
    memory: bool = False


def _is_too_large(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or (isinstance(error, RuntimeError) and CPU_IS_FULL in str(error))


@dataclass(frozen=True)
class Writer:
    """Writes translations.

    Args:
        out_dir: their folder, with links resolved.
    """

    out_dir: Path

    def __call__(self, item: Item) -> list[Fate]:
        """What became of an item's files.

        Raises:
            ParameterError: a link would lead out of the folder.
            DataError: a file cannot be written.
        """
        if isinstance(item, Fate):
            return [item]
        if item.arrived is not None:
            item.arrived.synchronize()
        each = zip(item.names, item.kinds, item.images.split(1), strict=True)
        return [self._write(name, kind, image) for name, kind, image in each]

    def _write(self, name: str, kind: PictureKind | DicomKind, image: Tensor) -> Fate:
        path = self.out_dir / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.parent.resolve().is_relative_to(self.out_dir):
                raise ParameterError(f"'{path.parent}' is a link to another place; take it out of the output folder.")
            write_own(path, image, kind)
        except DataError as error:
            return Fate(name, "failed", str(error))
        except OSError as error:
            raise DataError(f"'{path}' cannot be written ({error}); the same command goes on from here.") from error
        return Fate(name, "translated")
