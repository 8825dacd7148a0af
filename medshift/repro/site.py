"""A static site of a build: every executed notebook, figure and table, to be opened from a disk without a network.

Pages load nothing but the figures beside them, so that ``build/<profile>`` can be copied as a whole. Their only script
is our own, a few lines that turn the pictures of a player; whatever else a notebook's output would run is taken out.
Solutions of exercises are folded (`medshift.repro.folding`).
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medshift.errors import DataError
from medshift.repro.folding import with_stubs
from medshift.repro.pages import clean, tidy
from medshift.repro.profiles import load_profile, resolve
from medshift.repro.provenance import read_sidecar
from medshift.repro.publish import receipts, rewritten
from medshift.repro.reading import glossary, reading

TEMPLATES = Path(__file__).parent / "templates"
UNFINISHED = (".tmp.ipynb", ".failed.ipynb")


@dataclass
class Picture:
    """A figure of the gallery: its file's stem, its caption, the width it is shown at, and its other formats."""

    name: str
    caption: str
    width: int
    formats: list[str]


@dataclass
class Table:
    """A table: a heading, its files relative to the build, and its cells."""

    name: str
    files: list[str]
    head: list[str]
    rows: list[list[str]]


@dataclass
class Chapter:
    """An executed notebook, or what was drawn by one that is gone (``page`` is empty then)."""

    stem: str
    title: str
    page: str = ""
    minutes: str = ""
    pictures: list[Picture] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)


def build_site(profile: str, *, out_dir: str = ".") -> Path:
    """Write ``build/<profile>/site`` anew and return its index.html.

    Args:
        profile: its name, or ``auto``.
        out_dir: holds ``build/``.

    Raises:
        ParameterError: no profile is called so.
        DataError: there is no executed notebook, a notebook or a receipt cannot be read, a figure that a receipt names
            is missing, or the folder cannot be written. A former site is left as it is then.
    """
    import jinja2

    name = resolve(profile)
    load_profile(name)
    build = Path(out_dir) / "build" / name
    notebooks = [path for path in sorted(build.glob("*.ipynb")) if not path.name.endswith(UNFINISHED)]
    if not notebooks:
        raise DataError(f"{build} holds no executed notebook; run `medshift paper --profile {name}`.")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    pages = {path.stem: f"{path.stem}.html" if path.stem != "index" else "index-notebook.html" for path in notebooks}
    chapters, bodies = [], {}
    held = receipts(build)
    for path in notebooks:
        title, body = _render(path)
        bodies[path.stem] = clean(body, pages)
        chapters.append(_chapter(build, path.stem, title, pages[path.stem], held.get(path.stem)))
    chapters += _unclaimed(build, chapters, held)
    grids = [_table(build, path.stem, [path]) for path in sorted((build / "grids").glob("*.csv"))]
    with rewritten(build / "site", build / ".site.lock") as new:
        index = environment.get_template("index.html").render(
            profile=name, chapters=chapters, grids=grids, reading=reading(chapters)
        )
        (new / "index.html").write_text(index, encoding="utf-8")
        symbols = environment.get_template("glossary.html").render(body=glossary())
        (new / "glossary.html").write_text(symbols, encoding="utf-8")
        for chapter in (chapter for chapter in chapters if chapter.page):
            body = bodies[chapter.stem]
            page = environment.get_template("notebook.html").render(chapter=chapter, body=body, script=_script(body))
            (new / chapter.page).write_text(page, encoding="utf-8")
    return build / "site" / "index.html"


def _script(body: str) -> str:
    """What turns the players of a page; nothing where it has none."""
    from medshift.widgets.static import PLAYER, SCRIPT

    return SCRIPT if PLAYER in body else ""


def _render(path: Path) -> tuple[str, str]:
    """A notebook's title, its first heading, and its cells as HTML."""
    import nbformat
    from nbconvert import HTMLExporter

    try:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
    except (OSError, ValueError, AttributeError, nbformat.ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path} cannot be read as a notebook ({reason}); delete it and run again.") from None
    notebook.metadata.pop("widgets", None)
    lines = [line for cell in notebook.cells if cell.cell_type == "markdown" for line in cell.source.splitlines()]
    title = next((line.lstrip("# ") for line in lines if line.startswith("#")), path.stem)
    exporter = HTMLExporter(
        template_name="basic", exclude_input_prompt=True, exclude_output_prompt=True, exclude_anchor_links=True
    )
    body, _ = exporter.from_notebook_node(with_stubs(notebook, str(path)))
    return tidy(title), body


def _chapter(build: Path, stem: str, title: str, page: str, receipt: Mapping[str, Any] | None) -> Chapter:
    if receipt is None:
        return Chapter(stem, title, page)
    chapter = Chapter(stem, title, page, f"{float(receipt['seconds']) / 60:.1f} min")
    for event in receipt.get("shown", []):
        files = [build / "figures" / name for name in event.get("files", [])]
        for path in files:
            if not path.is_file():
                raise DataError(f"{path} is missing though the receipt of {stem} names it; run `medshift paper` again.")
        if "figure" in event:
            chapter.pictures.append(_picture(files, event["figure"], event.get("caption", "")))
        elif "table" in event:
            chapter.tables.append(_table(build, event["table"], files))
    return chapter


def _unclaimed(build: Path, chapters: list[Chapter], held: Mapping[str, Any]) -> list[Chapter]:
    """Hang what notebooks without a receipt drew on their chapters, by number; chapters of their own for the rest.

    Files of a notebook that has a receipt which does not name them are remains of former runs, and left out.
    """
    known = {chapter.stem[:2]: chapter for chapter in reversed(chapters)}
    more: dict[str, Chapter] = {}
    finished = tuple(f"{stem[:2]}_" for stem in held)
    for path in sorted((build / "figures").glob("*")):
        if path.suffix not in (".png", ".csv") or path.name.startswith(finished):
            continue
        number = path.name[:2]
        chapter = known.get(number) or more.setdefault(number, Chapter(number, f"Notebook {number}"))
        files = sorted(one for one in path.parent.glob(f"{path.stem}.*") if one.suffix in (".pdf", ".svg", ".md"))
        if path.suffix == ".csv":
            chapter.tables.append(_table(build, path.stem, [path, *files]))
        else:
            chapter.pictures.append(_picture([path, *files], path.stem, (_sidecar(path) or {}).get("caption", "")))
    return list(more.values())


def _sidecar(path: Path) -> dict[str, Any] | None:
    try:
        return read_sidecar(path)
    except DataError:
        return None


def _picture(files: list[Path], name: str, caption: str) -> Picture:
    """A figure at half its pixels, as in the notebook; without a caption its name stands for one."""
    png = next(path for path in files if path.suffix == ".png")
    width = int.from_bytes(png.read_bytes()[16:20], "big") // 2
    return Picture(name, tidy(caption) or name, width, [p.suffix[1:] for p in files if p.suffix in (".pdf", ".svg")])


def _table(build: Path, name: str, files: list[Path]) -> Table:
    """A CSV's cells, numbers with four digits."""
    source = next(path for path in files if path.suffix == ".csv")
    try:
        rows = list(csv.reader(source.read_text(encoding="utf-8").splitlines()))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{source} cannot be read as a table ({error}); delete it and run again.") from None
    shown = [path.relative_to(build).as_posix() for path in files if path.suffix in (".csv", ".md")]
    head, *body = [list(map(_cell, row)) for row in rows] or [[]]
    return Table(name, shown, head, body)


def _cell(text: str) -> str:
    try:
        return f"{float(text):.4g}" if any(sign in text for sign in ".e") else text
    except ValueError:
        return tidy(text)
