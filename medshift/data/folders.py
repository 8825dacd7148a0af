"""A user's own X-rays: one folder per domain, read as the package's images.

Layout::

    <root>/<domain>/*.png|tif|tiff|dcm                    split by a hash of the file name, or
    <root>/<domain>/{train,val,test}/*.png|tif|tiff|dcm   split as given

The official X-DigiSkull data set (Zenodo record 16535437) is read from the same layout, its five folders
named as `medshift.data.domains.DOMAINS`; case, spaces and underscores do not matter.

Grey values are taken as a viewer displays them and mapped linearly from the file's full range (8 or 16 bit,
DICOM's stored bits, floats from 0 to 1) to [-1, 1]; no image is stretched on its own. Air must be bright:
MONOCHROME1 and "white is zero" files are inverted as a viewer does, and `air_dark` names domains that
display air dark. Images are resized with antialiasing until the *shorter* side is `size`, and the longer
side is cropped about its middle: the aspect is kept and no pixel is made up.
"""

from __future__ import annotations

import hashlib
import re
import struct
import zlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from medshift.data.domains import DOMAINS, domain_index
from medshift.errors import DataError, ParameterError

__all__ = ["FolderSet", "read_folders", "read_image"]

SPLITS = ("train", "val", "test")
MIN_SIDE = 8  # pixels
CACHE_BYTES = 2**29
DICOM, PICTURE = (".dcm", ".dicom"), (".png", ".tif", ".tiff")
WHITE_IS_ZERO, PHOTOMETRIC_TAG = 0, 262
DAMAGED = (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, SyntaxError, EOFError,
           struct.error, zlib.error, Image.DecompressionBombError)  # fmt: skip


def read_image(path: str | Path) -> Tensor:
    """One image file as float32 (1, H, W) in [-1, 1], as a viewer displays it.

    A file that is damaged, in colour, transparent, a sequence, smaller than 8 × 8 or holds NaN raises `DataError`.
    """
    path = Path(path)
    try:
        grey = _read_dicom(path) if path.suffix.lower() in DICOM else _read_picture(path)
    except DAMAGED as error:
        raise DataError(f"'{path}' cannot be read ({error}); save it again or take it out.") from error
    if min(grey.shape) < MIN_SIDE:
        raise DataError(f"'{path}' has {grey.shape[1]} × {grey.shape[0]} pixels; at least 8 × 8 are needed.")
    if not np.isfinite(grey).all():
        raise DataError(f"'{path}' holds NaN or infinite values; mend or remove it.")
    if grey.min() < 0 or grey.max() > 1:
        raise DataError(f"'{path}' exceeds its range; save it as 8 or 16 bit, or as floats from 0 to 1.")
    return torch.from_numpy(2 * grey.astype(np.float32) - 1)[None]


def _read_picture(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        if (frames := getattr(picture, "n_frames", 1)) > 1:
            raise DataError(f"'{path}' has {frames} frames; save one image per file.")
        # Pillow inverts "white is zero" at 8 bit, but hands out 16-bit values as they are stored.
        inverted = getattr(picture, "tag_v2", {}).get(PHOTOMETRIC_TAG) == WHITE_IS_ZERO
        mode = picture.mode
        values = np.asarray(picture.convert("RGBA") if mode in ("1", "P", "PA", "LA") else picture)
    full = {"u1": 255.0, "f4": 1.0}.get(values.dtype.str[1:], 65535.0)
    grey = _one_channel(values, path) / full
    return 1 - grey if inverted and mode.startswith("I") else grey


def _read_dicom(path: Path) -> np.ndarray:
    try:
        import pydicom

        file = pydicom.dcmread(path)
    except ImportError as error:
        raise DataError(f"Reading '{path}' needs pydicom: pip install \"medshift[medical]\".") from error
    except pydicom.errors.InvalidDicomError as error:
        raise ValueError("no DICOM header") from error
    if int(file.get("NumberOfFrames", 1) or 1) > 1:
        raise DataError(f"'{path}' has {file.NumberOfFrames} frames; save one image per file.")
    grey = _one_channel(file.pixel_array, path).astype(np.float64)
    if "BitsStored" in file:
        offset = 2 ** (file.BitsStored - 1) if file.PixelRepresentation else 0
        grey = (grey + offset) / (2**file.BitsStored - 1)
    # A falling rescale slope turns the values round before they are displayed; so does MONOCHROME1.
    turns = float(file.get("RescaleSlope", 1) or 1) < 0
    turns ^= file.PhotometricInterpretation == "MONOCHROME1" or file.get("PresentationLUTShape") == "INVERSE"
    return 1 - grey if turns else grey


def _one_channel(values: np.ndarray, path: Path) -> np.ndarray:
    if values.ndim == 2:
        return values
    if values.ndim != 3 or values.shape[2] not in (3, 4):
        raise DataError(f"'{path}' has the shape {values.shape}; one grey image (H, W) is expected.")
    if values.shape[2] == 4 and values[..., 3].min() < np.iinfo(values.dtype).max:
        raise DataError(f"'{path}' is transparent in places; save it without an alpha channel.")
    if (values[..., :3] != values[..., :1]).any():
        raise DataError(f"'{path}' is a colour image; X-rays are grey: convert it or take it out.")
    return values[..., 0]


def _fit(image: Tensor, size: int) -> Tensor:
    """Resize (1, H, W) so that the shorter side is `size` and crop the longer one about its middle."""
    height, width = image.shape[1:]
    scale = size / min(height, width)
    shape = (max(size, round(height * scale)), max(size, round(width * scale)))
    image = F.interpolate(image[None], shape, mode="bilinear", antialias=True)[0]
    top, left = (shape[0] - size) // 2, (shape[1] - size) // 2
    return image[:, top : top + size, left : left + size]


@dataclass
class FolderSet:
    """Images of several domains, read when asked for and kept while they fit into `CACHE_BYTES`.

    Attributes:
        domains: Names in label order.
        files: Paths by domain and split.
        size: Side of the images [pixels], or None for each file's own size.
        air_dark: Domains whose files display air dark; they are inverted.
    """

    domains: tuple[str, ...]
    files: dict[str, dict[str, list[Path]]]
    size: int | None = None
    air_dark: Collection[str] = ()
    _cache: dict[Path, Tensor] = field(default_factory=dict, repr=False)
    _cached_bytes: int = field(default=0, repr=False)

    def counts(self) -> dict[str, dict[str, int]]:
        """Number of images by domain and split."""
        return {name: {split: len(self.files[name][split]) for split in SPLITS} for name in self.domains}

    def image(self, domain: str | int, split: str, index: int) -> Tensor:
        """One image (1, H, W) in [-1, 1]; (1, size, size) where a size was given."""
        name = self.domains[domain_index(domain, self.domains)]
        path = self._paths(name, split)[index]
        if path in self._cache:
            return self._cache[path]
        image = read_image(path) if self.size is None else _fit(read_image(path), self.size)
        image = -image if name in self.air_dark else image
        if self._cached_bytes + image.nbytes <= CACHE_BYTES:
            self._cache[path] = image
            self._cached_bytes += image.nbytes
        return image

    def images(self, domain: str | int, split: str = "train", limit: int | None = None) -> Tensor:
        """The first `limit` images (N, 1, H, W) of one domain and split, in order of their names."""
        name = self.domains[domain_index(domain, self.domains)]
        images = [self.image(name, split, i) for i in range(len(self._paths(name, split)[:limit]))]
        if len({image.shape for image in images}) > 1:
            raise ParameterError(f"The images of '{name}' differ in size; give `read_folders` a size.")
        return torch.stack(images)

    def batch(self, n: int, generator: torch.Generator, split: str = "train") -> tuple[Tensor, Tensor]:
        """Unpaired images (n, 1, size, size) and labels (n,): a domain drawn evenly, then one of its images."""
        if self.size is None:
            raise ParameterError("A batch needs images of one size; give `read_folders` a size.")
        labels = torch.randint(len(self.domains), (n,), generator=generator)
        draws = torch.rand(n, generator=generator).tolist()
        chosen = zip(labels.tolist(), draws, strict=True)
        images = [self.image(k, split, int(u * len(self._paths(self.domains[k], split)))) for k, u in chosen]
        return torch.stack(images), labels

    def verify(self, progress: Callable[[float], None] = lambda done: None) -> None:
        """Read every file once, so that a damaged one raises `DataError` before training and not during it.

        A whole domain in the darkest eighth of its files' range is an error too.
        """
        places = [(d, split, i) for d, n in self.counts().items() for split in SPLITS for i in range(n[split])]
        brightest = dict.fromkeys(self.domains, -1.0)
        for done, (domain, split, i) in enumerate(places, start=1):
            image = self.image(domain, split, i)
            stored = -image if domain in self.air_dark else image
            brightest[domain] = max(brightest[domain], float(stored.max()))
            progress(done / len(places))
        for domain, value in brightest.items():
            if value < -0.75:
                raise DataError(
                    f"No pixel of domain '{domain}' is brighter than an eighth of its files' range, as when "
                    "12-bit values are stored in 16 bits; save them over the full range."
                )

    def _paths(self, domain: str, split: str) -> list[Path]:
        if split not in SPLITS:
            raise ParameterError(f"No split is called {split!r}; the splits are {', '.join(SPLITS)}.")
        paths = self.files[domain][split]
        if not paths:
            raise DataError(f"Domain '{domain}' has no image in its split '{split}'; add some.")
        return paths


def read_folders(
    root: str | Path,
    *,
    domains: Sequence[str] | None = None,
    size: int | None = None,
    air_dark: Collection[str] = (),
) -> FolderSet:
    """Find the images of every domain below `root`; they are read later, when asked for.

    Arguments:
        root: Holds one folder per domain.
        domains: The domains wanted, in label order. By default every folder: those of X-DigiSkull in their own
            order, then the others by name.
        size: Side [pixels] to which images are resized and cropped; None keeps each as it is.
        air_dark: Domains whose files display air dark.

    A missing root, domain or image, or fewer than two domains, raises `DataError`.
    """
    root = Path(root)
    if size is not None and size < MIN_SIDE:
        raise ParameterError(f"The size of an image must be at least {MIN_SIDE} pixels, not {size}.")
    if not root.is_dir():
        raise DataError(f"There is no folder '{root}'.\n{_what_to_place(root, domains or DOMAINS, {})}")
    folders = _domain_folders(root, (*(domains or ()), *DOMAINS))
    official = [name for name in DOMAINS if name in folders]
    names = tuple(domains or [*official, *(name for name in folders if name not in official)])
    if len(names) < 2 or not set(names) <= set(folders):
        what = "fewer than two domains" if len(names) < 2 else "not every domain"
        raise DataError(f"'{root}' holds {what}.\n{_what_to_place(root, domains or DOMAINS, folders)}")
    if not set(air_dark) <= set(names):
        raise ParameterError(f"`air_dark` names {', '.join(air_dark)}; the domains are {', '.join(names)}.")
    files = {name: _given_splits(name, folders[name]) for name in names}
    return FolderSet(names, _hashed_splits(files), size, tuple(air_dark))


def _domain_folders(root: Path, known: Sequence[str]) -> dict[str, Path]:
    folders: dict[str, Path] = {}
    for folder in sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")):
        name = next((d for d in known if _key(d) == _key(folder.name)), folder.name)
        if name in folders:
            raise DataError(f"'{folders[name]}' and '{folder}' are both domain '{name}'; rename one.")
        folders[name] = folder
    return folders


def _key(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.lower())


def _image_files(folder: Path) -> list[Path]:
    files = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    return [path for path in files if path.suffix.lower() in DICOM + PICTURE]


def _given_splits(name: str, folder: Path) -> dict[str, list[Path]]:
    """Files by split where there are such sub-folders, else all under "" to be split by hash."""
    loose = _image_files(folder)
    given = {split: _image_files(folder / split) for split in SPLITS if (folder / split).is_dir()}
    if loose and given:
        raise DataError(f"'{folder}' holds images beside {', '.join(given)}; move them into one of these.")
    if not loose and not any(given.values()):
        there = sorted({p.suffix or p.name for p in folder.rglob("*") if p.is_file()})
        raise DataError(
            f"Domain '{name}' has no images: put PNG, TIFF or DICOM files into '{folder}', or into train, "
            f"val and test in it (found below it: {', '.join(there) or 'nothing'})."
        )
    return {"": loose} if loose else {split: given.get(split, []) for split in SPLITS}


def _hashed_splits(files: dict[str, dict[str, list[Path]]]) -> dict[str, dict[str, list[Path]]]:
    """Split by a hash of the name without its suffix, so that one view's files fall alike in every domain.

    A domain of three files or more that a split would miss gives it its training file next in line.
    """
    stems = {path.stem for group in files.values() for path in group.get("", [])}
    rank = {stem: int(hashlib.sha256(stem.encode()).hexdigest()[:12], 16) / 16**12 for stem in stems}
    part = {stem: "test" if u < 0.1 else "val" if u < 0.2 else "train" for stem, u in rank.items()}
    for group in files.values():
        own = sorted({path.stem for path in group.get("", [])}, key=rank.__getitem__)
        for split in ("test", "val"):
            train = [stem for stem in own if part[stem] == "train"]
            if len(train) > 1 and len(own) >= 3 and all(part[stem] != split for stem in own):
                part[train[0]] = split
    return {
        domain: {s: [p for p in group[""] if part[p.stem] == s] for s in SPLITS} if "" in group else group
        for domain, group in files.items()
    }


def _what_to_place(root: Path, domains: Sequence[str], folders: dict[str, Path]) -> str:
    """What is expected where, and how many files lie there."""
    images = DICOM + PICTURE
    found = {name: sum(p.suffix.lower() in images for p in f.rglob("*")) for name, f in folders.items()}
    rows = [f"  {root / name}: expected 1 or more images, found {found.get(name, 0)}" for name in domains]
    rows += [f"  {folders[k]}: not asked for, {n} images" for k, n in found.items() if k not in domains]
    official = " X-DigiSkull (Zenodo record 16535437) has these five:" if set(domains) == set(DOMAINS) else ""
    return f"One folder of PNG, TIFF or DICOM files per domain, at least two.{official}\n" + "\n".join(rows)
