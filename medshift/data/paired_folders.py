"""A user's own paired images, in the layouts of the public data sets that paired translation is measured on.

Layouts, source first::

    ixi        IXI-T2/IXI012-HH-1211-T2.nii.gz             IXI-T1/IXI012-HH-1211-T1.nii.gz
    sentinel   <class>/s1/ROIs1868_summer_s1_59_p10.png    <class>/s2/ROIs1868_summer_s2_59_p10.png
    pscde      images/<stem>.png                           masks/<stem>.png
    folders    source/<stem>.png                           target/<stem>.png

IXI is T2 to T1, the direction of CDTSDE; T1 is brought onto the T2 grid, and axial slices are the images
(`medshift.data.paired_volumes`). Sentinel-1 radar is grey; Sentinel-2 is in colour, and since methods here have one
channel, it becomes luminance (0.299 R + 0.587 G + 0.114 B, ITU-R BT.601), so scores compare with no published ones in
colour. Masks of PSCDE must be binary, 0 and 1 or 0 and 255. Files of the last two layouts may also be PNG, TIFF, JPEG
or, as sources or in `folders`, DICOM, and lie in train, val and test below either folder or above it.

Such a given split is kept. Any other is 80/10/10 by a hash: of the subject (IXI), of the scene, whatever the class
(Sentinel), or of the stem. Slices of one subject and patches of one scene never part, and nothing moves when others
are added.

Grey values are those of `medshift.data.own_images.read_own`. Images are resized with antialiasing, masks to the
nearest pixel, until the shorter side is `size`; the longer one is cropped about its middle.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from medshift.data.folders import DAMAGED, MIN_SIDE, SPLITS
from medshift.data.own_images import read_own
from medshift.data.paired_layouts import EXPECTED, find_files, recognise, what_to_place
from medshift.data.paired_volumes import axial_pairs, read_mr
from medshift.errors import DataError, ParameterError

__all__ = ["PairedFolder", "read_paired", "split_of"]

MIDDLE_SHARE = 0.5
DOMAINS = {"ixi": ("T2", "T1"), "sentinel": ("SAR", "optical"), "pscde": ("EL", "defects")}
LUMINANCE = np.array([0.299, 0.587, 0.114])


@dataclass
class PairedFolder:
    """Pairs of files, read when asked for.

    Attributes:
        root: The folder.
        layout: "ixi", "sentinel", "pscde" or "folders".
        source: Name of the source domain.
        target: Name of the target domain.
        files: (name, source, target) by split, in order of their names; of IXI one per subject.
        size: Side of the images [pixels].
        share: Middle share of a volume's axial slices that is taken (IXI).
        unpaired: Files left out because they have no partner.
    """

    root: Path
    layout: str
    source: str
    target: str
    files: dict[str, list[tuple[str, Path, Path]]]
    size: int
    share: float = MIDDLE_SHARE
    unpaired: tuple[Path, ...] = ()

    def counts(self) -> dict[str, int]:
        """Number of pairs of files by split."""
        return {split: len(self.files[split]) for split in SPLITS}

    def pairs(self, split: str) -> list[tuple[str, Path, Path]]:
        """(name, source, target) of one split; an unknown split is a `ParameterError`, an empty one a `DataError`."""
        if split not in SPLITS:
            raise ParameterError(f"No split is called {split!r}; the splits are {', '.join(SPLITS)}.")
        if not self.files[split]:
            there = ", ".join(f"{name} {n}" for name, n in self.counts().items())
            raise DataError(f"'{self.root}' has no pair in its split '{split}' (pairs: {there}); add some.")
        return list(self.files[split])

    def load(
        self, split: str = "train", limit: int | None = None, size: int | None = None
    ) -> tuple[list[str], Tensor, Tensor]:
        """Names, source images (N, 1, size, size) and target images alike, float32 in [-1, 1].

        Args:
            split: "train", "val" or "test".
            limit: At most so many images, the first ones; IXI's slices count one by one. None takes all.
            size: Side [pixels] in place of the folder's own.

        Raises:
            DataError: A file cannot be read, two partners differ in size, a mask is not binary, the split is empty.
        """
        size = _checked_size(self.size if size is None else size)
        if limit is not None and limit < 1:
            raise ParameterError(f"`limit` is {limit}; expected at least 1, or None for all images.")
        names: list[str] = []
        images: list[tuple[Tensor, Tensor]] = []
        for pair in self.pairs(split):
            for name, source, target, spacing in self._read(*pair):
                names.append(name)
                nearest = self.layout == "pscde"
                images.append((_fit(source, size, spacing), _fit(target, size, spacing, nearest)))
                if len(names) == limit:
                    break
            if len(names) == limit:
                break
        sources, targets = (torch.stack(side) for side in zip(*images, strict=True))
        return names, sources, targets

    def _read(self, name: str, source: Path, target: Path) -> Iterator[tuple[str, Tensor, Tensor, tuple[float, float]]]:
        """Names, both images (1, H, W) and the pixel size (down, across), of a pair of files."""
        if self.layout == "ixi":
            for k, first, second, spacing in axial_pairs(read_mr(source), read_mr(target), self.share):
                yield f"{name}/{k:03d}", torch.from_numpy(first)[None], torch.from_numpy(second)[None], spacing
            return
        reader: Callable[[Path], Tensor] = {"sentinel": _luminance, "pscde": _mask}.get(self.layout, _grey)
        images = _grey(source), reader(target)
        (h, w), (height, width) = (image.shape[1:] for image in images)
        if (h, w) != (height, width):
            raise DataError(
                f"'{source}' has {w} × {h} pixels and '{target}' {width} × {height}; partners must have one size."
            )
        yield name, *images, (1.0, 1.0)


def split_of(group: str) -> str:
    """The split, 80/10/10, in which a subject, scene or stem falls: a hash of its name and of nothing else."""
    u = int(hashlib.sha256(group.encode()).hexdigest()[:12], 16) / 16**12
    return "test" if u < 0.1 else "val" if u < 0.2 else "train"


def read_paired(
    folder: str | Path,
    size: int,
    layout: str = "auto",
    *,
    skip_unpaired: bool = False,
    share: float = MIDDLE_SHARE,
) -> PairedFolder:
    """Find the pairs below a folder; they are read later, when asked for.

    Args:
        folder: Holds one of the layouts above.
        size: Side of the images [pixels].
        layout: "ixi", "sentinel", "pscde", "folders", or "auto" to see which is there.
        skip_unpaired: Leave out files without a partner, as IXI has some, and list them in `unpaired`.
        share: Middle share of a volume's axial slices to take (IXI), in (0, 1].

    Raises:
        DataError: The folder is missing, shows no layout or several, a file has no partner, or a name is not as above.
        ParameterError: An argument is out of its range.
    """
    root = Path(folder)
    _checked_size(size)
    if not 0 < share <= 1:
        raise ParameterError(f"`share` is {share}; expected a share of the slices above 0 and up to 1.")
    if layout not in ("auto", *EXPECTED):
        raise ParameterError(f"No layout is called {layout!r}; expected auto, {', '.join(EXPECTED)}.")
    if not root.is_dir():
        raise DataError(f"There is no folder '{root}'. {what_to_place()}")
    layout = recognise(root) if layout == "auto" else layout
    sides = find_files(root, layout)
    source, target = DOMAINS.get(layout, ("source", "target"))
    alone = [[path for key, path in sides[k].items() if key not in sides[1 - k]] for k in (0, 1)]
    if any(alone) and not skip_unpaired:
        raise DataError(f"'{root}': {_named(alone, (source, target), root)}.")
    files: dict[str, list[tuple[str, Path, Path]]] = {split: [] for split in SPLITS}
    for key in sorted(sides[0].keys() & sides[1].keys()):
        files[key.split or split_of(key.group)].append((key.name, sides[0][key], sides[1][key]))
    if not any(files.values()):
        raise DataError(f"'{root}' holds no pair. {what_to_place(layout)}")
    return PairedFolder(root, layout, source, target, files, size, share, tuple(alone[0] + alone[1]))


def _named(alone: list[list[Path]], domains: tuple[str, str], root: Path) -> str:
    parts = []
    for files, own, other in zip(alone, domains, domains[::-1], strict=True):
        names = ", ".join(p.relative_to(root).as_posix() for p in files[:5]) + (", ..." if len(files) > 5 else "")
        parts.append(f"{len(files)} {own} files have no partner in {other}" + (f" ({names})" if files else ""))
    return "; ".join(parts) + "; complete or remove them, or leave them out by skip_unpaired=True"


def _checked_size(size: int) -> int:
    if size < MIN_SIDE:
        raise ParameterError(f"The size of an image must be at least {MIN_SIDE} pixels, not {size}.")
    return size


def _grey(path: Path) -> Tensor:
    return read_own(path).image[0]


def _luminance(path: Path) -> Tensor:
    return torch.from_numpy((2 * (_colours(path) @ LUMINANCE) / 255 - 1).astype(np.float32))[None]


def _mask(path: Path) -> Tensor:
    """-1 where there is no defect and 1 where there is one, (1, H, W)."""
    colours = _colours(path)
    values = np.unique(colours)
    if (colours != colours[..., :1]).any() or not (set(values) <= {0, 1} or set(values) <= {0, 255}):
        shown = ", ".join(str(v) for v in values[:5]) + (", ..." if len(values) > 5 else "")
        raise DataError(
            f"'{path}' is no binary mask: it holds the {len(values)} values {shown}; expected 0 and 1, or 0 and 255 "
            "(JPEG blurs a mask: save it as PNG)."
        )
    return torch.from_numpy(np.where(colours[..., 0] > 0, 1.0, -1.0).astype(np.float32))[None]


def _colours(path: Path) -> np.ndarray:
    """Red, green and blue (H, W, 3) from 0 to 255, as a viewer displays a file of 8 bits."""
    try:
        with Image.open(path) as picture:
            if picture.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA") or getattr(picture, "n_frames", 1) > 1:
                raise DataError(f"'{path}' is not one image of 8 bits, grey or RGB ({picture.mode}); save it as one.")
            values = np.asarray(ImageOps.exif_transpose(picture).convert("RGBA"))
    except DAMAGED as error:
        raise DataError(f"'{path}' cannot be read ({error}); save it again or take it out.") from error
    if values[..., 3].min() < 255:
        raise DataError(f"'{path}' is transparent in places; save it without an alpha channel.")
    return values[..., :3]


def _fit(image: Tensor, size: int, spacing: tuple[float, float], nearest: bool = False) -> Tensor:
    """Resize (1, H, W) to square pixels with the shorter side `size`, and crop the longer one about its middle."""
    sides = image.shape[1] * spacing[0], image.shape[2] * spacing[1]
    height, width = (max(size, round(side * size / min(sides))) for side in sides)
    resized = (
        F.interpolate(image[None], (height, width), mode="nearest-exact")
        if nearest
        else F.interpolate(image[None], (height, width), mode="bilinear", antialias=True)
    )[0]
    top, left = (height - size) // 2, (width - size) // 2
    return resized[:, top : top + size, left : left + size].clamp(-1, 1)
