"""Solutions of a lesson on a static page: folded, so that whoever reads it meets the question first.

An exercise is a cell tagged ``exercise``, a ``check`` of it and what is tagged ``solution``. On a page its stub stands
open, as students get it; its answer, what the check said and why are one ``<details>`` below.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from medshift.repro.editions import answered, is_tagged

if TYPE_CHECKING:
    from bs4 import BeautifulSoup, Tag

HIDDEN = ("exercise", "check", "solution")
STUB = "stub"  # the tag of a cell that is shown in an exercise's place
SUMMARY = "Show the solution"


def with_stubs(notebook: Any, label: str) -> Any:
    """The notebook with a stub, without outputs, before every exercise; itself where it has none.

    Args:
        notebook: of nbformat; left as it is.
        label: what messages call it.

    Raises:
        ParameterError: an exercise's markers are wrong; the message names the cell.
    """
    from nbformat import v4

    if not any(is_tagged(cell, "exercise") for cell in notebook.cells):
        return notebook
    made = copy.deepcopy(notebook)
    made.cells = []
    for number, cell in enumerate(notebook.cells):
        if is_tagged(cell, "exercise"):
            source = answered(cell, "student", f"{label}, cell {cell.get('id', number)!r}")
            stub = v4.new_code_cell(source, id=f"stub-{number}", metadata={"tags": [STUB]})
            made.cells.append(stub)
            cell = copy.deepcopy(cell)
            cell.source = answered(cell, "solution", label)
        made.cells.append(cell)
    return made


def fold(soup: BeautifulSoup) -> None:
    """Put every run of cells that give an answer away into a ``<details>``, in place."""
    classes = {f"celltag_{tag}" for tag in HIDDEN}
    for cell in soup.find_all(lambda tag: bool(classes & set(tag.get("class", ())))):
        before = _sibling(cell)
        if before is not None and before.name == "details":
            before.append(cell.extract())
            continue
        details, summary = soup.new_tag("details"), soup.new_tag("summary")
        summary.string = SUMMARY
        cell.wrap(details)
        details.insert(0, summary)


def _sibling(cell: Tag) -> Tag | None:
    """The element before a cell, if nothing but white space stands between."""
    from bs4 import Tag

    before = cell.previous_sibling
    while before is not None and not isinstance(before, Tag) and not str(before).strip():
        before = before.previous_sibling
    return before if isinstance(before, Tag) else None
