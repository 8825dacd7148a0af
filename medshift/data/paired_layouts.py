"""The layouts of paired folders: which one is there, and its files by what two partners share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from medshift.data.folders import DICOM, SPLITS
from medshift.data.own_images import PICTURES
from medshift.errors import DataError

__all__ = ["EXPECTED", "Key", "Side", "find_files", "recognise", "what_to_place"]

EXPECTED = {
    "ixi": "IXI-T1/IXI012-HH-1211-T1.nii.gz and IXI-T2/IXI012-HH-1211-T2.nii.gz",
    "sentinel": "<class>/s1/ROIs1868_summer_s1_59_p10.png and <class>/s2/ROIs1868_summer_s2_59_p10.png",
    "pscde": "images/<stem>.png or .jpg and masks/<stem>.png, as they are or in train, val and test",
    "folders": "source/<stem>.png and target/<stem>.png, as they are or in train, val and test",
}
TWO_FOLDERS = {"pscde": ("images", "masks"), "folders": ("source", "target")}
PATCH = re.compile(r"(ROIs\d+_[A-Za-z]+)_(s[12])_(\d+)_(p\d+)")
VOLUME = re.compile(r"(IXI\d+-[A-Za-z]+-\d+)-(T[12])\.nii(\.gz)?")


class Key(NamedTuple):
    """What two partners share: a given split or "", the pair's name, and what must not be split apart."""

    split: str
    name: str
    group: str


Side = dict[Key, Path]


def recognise(root: Path) -> str:
    """The one layout of which a folder is there; half of it is enough, so that the other half is missed by name."""
    tops = {
        "ixi": ["IXI-T1", "IXI-T2"],
        "sentinel": ["[!.]*/s1", "[!.]*/s2"],
        **{k: [f"{above}{side}" for side in two for above in ("", *(f"{s}/" for s in SPLITS))]
           for k, two in TWO_FOLDERS.items()},
    }  # fmt: skip
    seen = {k: sorted(p for top in patterns for p in root.glob(top) if p.is_dir()) for k, patterns in tops.items()}
    found = [layout for layout, places in seen.items() if places]
    if len(found) == 1:
        return found[0]
    if found:
        what = " and ".join(f"{layout} ({seen[layout][0].relative_to(root).as_posix()})" for layout in found)
        raise DataError(f"'{root}' could be of the layouts {what}; name one as `layout`. {what_to_place()}")
    there = sorted(p.name for p in root.iterdir())[:5]
    raise DataError(f"'{root}' shows no known layout (found: {', '.join(there) or 'nothing'}). {what_to_place()}")


def find_files(root: Path, layout: str) -> tuple[Side, Side]:
    """The sources and the targets of a layout, partners under one key.

    Raises:
        DataError: A name is not of the layout, two files have one key, or the splits are unclear.
    """
    if layout == "ixi":
        return _find_ixi(root)
    if layout == "sentinel":
        return _find_sentinel(root)
    return _find_two(root, layout)


def _find_ixi(root: Path) -> tuple[Side, Side]:
    def side(weighting: str) -> Side:
        folder = root / f"IXI-{weighting}"
        files = _files(folder, (".nii", ".nii.gz"))
        keys = {path: VOLUME.fullmatch(path.name) for path in files}
        _refuse([p for p, found in keys.items() if not found or found[2] != weighting], folder, "ixi")
        return _unique([(Key("", found[1], found[1]), path) for path, found in keys.items() if found])

    return side("T2"), side("T1")


def _find_sentinel(root: Path) -> tuple[Side, Side]:
    def side(sensor: str) -> Side:
        files = [p for f in sorted(root.glob(f"[!.]*/{sensor}")) for p in _files(f, PICTURES)]
        keys = {path: PATCH.fullmatch(path.stem) for path in files}
        _refuse([p for p, found in keys.items() if not found or found[2] != sensor], root, "sentinel")
        found = [(path, f"{key[1]}_{key[3]}", key[4]) for path, key in keys.items() if key]
        return _unique([(Key("", f"{p.parts[-3]}/{scene}_{patch}", scene), p) for p, scene, patch in found])

    return side("s1"), side("s2")


def _find_two(root: Path, layout: str) -> tuple[Side, Side]:
    """Two folders of equal stems, with train, val and test below each of them, above them, or not at all."""
    names = TWO_FOLDERS[layout]
    around = [p for name in names for p in (*root.glob(f"{name}/[!.]*"), *root.glob(f"[!.]*/{name}")) if p.is_dir()]
    strays = [p for p in around if not {p.name, p.parent.name} & set(SPLITS)]
    _refuse(strays, root, layout)
    kinds = [[("", [root / n for n in names])],
             [(s, [root / n / s for n in names]) for s in SPLITS],
             [(s, [root / s / n for n in names]) for s in SPLITS]]  # fmt: skip
    held = [k for k in kinds if any(_files(folder, PICTURES + DICOM) for _, folders in k for folder in folders)]
    if len(held) != 1:
        what = "images both within and beside train, val and test" if held else "no images"
        raise DataError(f"'{root}' holds {what}. {what_to_place(layout)}")
    first, second = (
        [(Key(s, p.stem, p.stem), p) for s, folders in held[0] for p in _files(folders[k], PICTURES + DICOM)]
        for k in (0, 1)
    )
    return _unique(first), _unique(second)


def _files(folder: Path, endings: tuple[str, ...]) -> list[Path]:
    files = sorted(p for p in folder.iterdir() if p.is_file()) if folder.is_dir() else []
    return [p for p in files if p.name.lower().endswith(endings) and not p.name.startswith(".")]


def _unique(files: list[tuple[Key, Path]]) -> Side:
    side: Side = {}
    for key, path in files:
        if key in side:
            raise DataError(f"'{side[key]}' and '{path}' are both '{key.name}'; keep one of them.")
        side[key] = path
    return side


def _refuse(paths: list[Path], folder: Path, layout: str) -> None:
    if paths:
        first = ", ".join(p.relative_to(folder).as_posix() for p in sorted(paths)[:5])
        raise DataError(f"'{folder}': {len(paths)} unexpected names ({first}). {what_to_place(layout)}")


def what_to_place(layout: str | None = None) -> str:
    """The files that a layout expects, or every one."""
    wanted = {layout: EXPECTED[layout]} if layout else EXPECTED
    return "Expected:\n" + "\n".join(f"  {name}: {what}" for name, what in wanted.items())
