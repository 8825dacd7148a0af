"""The glossary names what is there: every place in the code exists, and every symbol is said once."""

import importlib
import re
from pathlib import Path
from typing import Any

import pytest

GLOSSARY = Path(__file__).resolve().parents[1] / "docs" / "glossary.md"
ROWS = [
    [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
    for line in GLOSSARY.read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and not line.startswith(("| ---", "| symbol"))
]
PLACES = sorted({place for row in ROWS for place in re.findall(r"`(medshift[\w.]*)`", row[-1])})


def found(name: str) -> Any:
    """The object of a dotted name: a module, something in one, or an attribute of that."""
    parts = name.split(".")
    for n in range(len(parts), 0, -1):
        try:
            held: Any = importlib.import_module(".".join(parts[:n]))
        except ModuleNotFoundError:
            continue
        for part in parts[n:]:
            held = getattr(held, part)
        return held
    raise ModuleNotFoundError(name)


@pytest.mark.parametrize("place", PLACES)
def test_every_place_in_the_code_exists(place: str) -> None:
    assert found(place).__doc__


def test_a_place_that_is_not_there_would_be_found_out() -> None:
    with pytest.raises(AttributeError):
        found("medshift.flow.no_such_equation")


def test_every_row_is_whole_and_every_symbol_said_once() -> None:
    assert len(ROWS) > 30
    assert all(len(row) == 4 and row[0] and row[1] and "`medshift" in row[3] for row in ROWS)
    symbols = [row[0] for row in ROWS]
    assert len(set(symbols)) == len(symbols)
