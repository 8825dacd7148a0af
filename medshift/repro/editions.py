"""Two editions of a lesson: one source notebook, written once for students and once with its solutions.

The source is the solution and runs as it is. A cell tagged ``exercise`` holds regions between nbgrader's markers,
and each region begins with the lines that take its place for students, as comments:

    def spread(points):
        ### BEGIN SOLUTION
        ### STUB return ...  # the standard deviation of each coordinate, (2,)
        return points.std(0)
        ### END SOLUTION

The *student* edition has the stubs' text, indented like their comments, instead of each region, and no cell tagged
``solution``; its cells tagged ``check`` are tagged ``raises-exception`` too, so that *Run All Cells* goes on past what
is not answered yet. The *solution* edition has neither markers nor stubs, and every cell.

Both have the source's cell ids (cells without one are numbered), no outputs, and no metadata but the kernel and the
cells' tags. They lie two folders below the output folder, so where the parameters cell says ``out_dir: str = ".."``,
they say ``"../.."``.

References:
    nbgrader, ClearSolutions: https://nbgrader.readthedocs.io (the markers; its own stubs work as well).
"""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path
from typing import Any

from medshift.errors import DataError, ParameterError

FOLDER = Path("build", "lesson")
EDITIONS = ("student", "solution")
BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
STUB = re.compile(r"### STUB( |$)")
# What means to be a marker, written rightly or not: one that was overlooked would hand out a solution.
MARKER = re.compile(r"\s*#+\s*(begin|end)[\s_-]*solution\b", re.IGNORECASE)


def lesson(notebook: Path, *, out_dir: str = ".") -> list[Path]:
    """Write both editions of a notebook to ``build/lesson``; each file whole or not at all, and none if one is wrong.

    Args:
        notebook: the source, an .ipynb file.
        out_dir: holds ``build/``.

    Returns:
        ``<stem>-student.ipynb`` and ``<stem>-solution.ipynb``.

    Raises:
        ParameterError: no cell is tagged ``exercise``, or a cell's markers are wrong; the message names the cell.
        DataError: the file is no notebook of format 4, or the folder cannot be written.
    """
    source = read_notebook(notebook)
    texts = {name: _written(edition(source, name, str(notebook))) for name in EDITIONS}
    folder = Path(out_dir) / FOLDER
    targets = {name: folder / f"{notebook.stem}-{name}.ipynb" for name in EDITIONS}
    temporary = {name: path.with_name(f".{path.name}.{os.getpid()}") for name, path in targets.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, path in temporary.items():
            path.write_text(texts[name], encoding="utf-8")
        for name, path in temporary.items():
            os.replace(path, targets[name])
    except OSError as error:
        raise DataError(f"{folder} cannot be written ({error}); make it writable or give another --out.") from None
    finally:
        if folder.is_dir():
            for path in temporary.values():
                path.unlink(missing_ok=True)
    return list(targets.values())


def read_notebook(path: Path) -> Any:
    """The notebook at `path`, every cell with an id; ids that are missing are ``cell-00``, ``cell-01``, ….

    Raises:
        DataError: it cannot be read, or is no notebook of format 4.
    """
    import nbformat

    try:
        made = nbformat.v4.reads(path.read_text(encoding="utf-8"))
        made["nbformat_minor"] = max(5, made["nbformat_minor"])
        for index, cell in enumerate(made["cells"]):
            cell.setdefault("id", f"cell-{index:02d}")
        nbformat.validate(made)
    except Exception as error:  # whatever a damaged file makes its reader raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(
            f"{path} cannot be read as a notebook of format 4 ({reason}); give an .ipynb file, saved by JupyterLab."
        ) from None
    return made


def edition(source: Any, name: str, label: str) -> Any:
    """The ``student`` or ``solution`` edition of a notebook, which is left as it is.

    Args:
        source: the notebook, as `read_notebook` gives it.
        name: one of `EDITIONS`.
        label: what messages call the notebook.

    Raises:
        ParameterError: see `lesson`.
    """
    from nbformat import v4

    if not any(is_tagged(cell, "exercise") for cell in source.cells):
        raise ParameterError(
            f"{label} has no exercise: tag a code cell 'exercise' and put its answer between the lines "
            f"{BEGIN!r} and {END!r}."
        )
    cells = []
    for cell in source.cells:
        where = f"{label}, cell {cell['id']!r}"
        text = answered(cell, name, where)
        if name == "student" and is_tagged(cell, "solution"):
            continue
        if is_tagged(cell, "parameters"):
            text = re.sub(r'^(out_dir\s*:\s*str\s*=\s*)"\.\."', r'\1"../.."', text, flags=re.MULTILINE)
        make = {"code": v4.new_code_cell, "markdown": v4.new_markdown_cell, "raw": v4.new_raw_cell}[cell.cell_type]
        tags = [*cell.metadata.get("tags", [])]
        if name == "student" and is_tagged(cell, "check"):
            tags.append("raises-exception")
        cells.append(make(text, id=cell["id"], metadata={"tags": tags} if tags else {}))
    kept = {key: source.metadata[key] for key in ("kernelspec",) if key in source.metadata}
    return v4.new_notebook(cells=cells, metadata={**kept, "language_info": {"name": "python"}})


def is_tagged(cell: Any, tag: str) -> bool:
    """Whether a cell of a notebook has a tag."""
    return tag in cell.metadata.get("tags", [])


def answered(cell: Any, name: str, where: str) -> str:
    """A cell's source in one of the editions.

    Raises:
        ParameterError: its markers are wrong; the message begins with `where`.
    """
    marked = any(MARKER.match(line) for line in cell.source.splitlines())
    if not is_tagged(cell, "exercise"):
        if marked:
            raise ParameterError(f"{where} holds a marker of a solution but no tag 'exercise'; tag it, or its solution "
                                 "would be handed to students.")  # fmt: skip
        return str(cell.source)
    if cell.cell_type != "code" or not marked or is_tagged(cell, "solution"):
        raise ParameterError(
            f"{where} is tagged 'exercise'; expected a code cell with {BEGIN!r} and {END!r}, not tagged 'solution'."
        )
    text = _resolved(cell.source.splitlines(), name == "student", where)
    try:
        ast.parse(text)
    except SyntaxError as error:
        raise ParameterError(
            f"{where} is no Python in the {name} edition (line {error.lineno}: {error.msg}); every region needs stubs "
            "that stand where its code does."
        ) from None
    return text


def _resolved(lines: list[str], student: bool, where: str) -> str:
    """Lines of an exercise with stubs (for students) or answers (else) in place of the regions."""
    kept: list[str] = []
    stubs: list[str] = []
    inside = False
    for number, line in enumerate(lines, 1):
        word, here = line.strip(), f"{where}, line {number}: {line.strip()!r}"
        if MARKER.match(line) and word not in (BEGIN, END):
            raise ParameterError(f"{here} is not {BEGIN!r} or {END!r}; write it exactly so.")
        if word == BEGIN and inside:
            raise ParameterError(f"{here} stands inside a region; regions cannot be nested, so end the first.")
        if word == END and not inside:
            raise ParameterError(f"{here} ends no region; write {BEGIN!r} before the answer.")
        if STUB.match(word) and not inside:
            raise ParameterError(f"{here} stands outside of a region; put it below {BEGIN!r}.")
        if word == END and not stubs:
            raise ParameterError(f"{here} ends a region without a stub; put '### STUB' and its text below {BEGIN!r}.")
        if word in (BEGIN, END):
            inside, stubs = word == BEGIN, []
        elif STUB.match(word):
            stubs.append(STUB.sub("", line, count=1).rstrip())
            kept += stubs[-1:] if student else []
        elif not (inside and student):
            kept.append(line)
    if inside:
        raise ParameterError(f"{where}: the last region is never ended; write {END!r} below the answer.")
    return "\n".join(kept)


def _written(notebook: Any) -> str:
    import nbformat

    nbformat.validate(notebook)
    return str(nbformat.writes(notebook)) + "\n"
