"""Where each reader of the site begins, and the glossary that all of them need."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol, TypeVar

from medshift.repro.pages import clean

GLOSSARY = Path(__file__).resolve().parents[2] / "docs" / "glossary.md"
# Who should begin where, and what for: reader, stems of notebooks in order, what they give.
READING = (
    (
        "You know PyTorch, not flow matching",
        ("00_flow_matching", "99_explorer", "04_tau_tradeoff"),
        "what a velocity field is, what τ and the solver do, when anatomy is invented",
    ),
    (
        "You want to check or reproduce the papers",
        ("90_claims", "04_tau_tradeoff", "06_baselines", "07_adaptive_shift"),
        "claim by claim, then the evidence behind each verdict",
    ),
    (
        "You want to use or extend the code",
        ("01_data", "03_train", "08_ablations"),
        "data, training, parameters and grids; `medshift translate` for your own folders",
    ),
)


class Page(Protocol):
    """A chapter of the site, as far as reading goes."""

    stem: str
    page: str


P = TypeVar("P", bound=Page)


def reading(chapters: Iterable[P]) -> list[tuple[str, list[P], str]]:
    """Who begins where, and what for, among the notebooks that have a page."""
    found = {chapter.stem: chapter for chapter in chapters if chapter.page}
    return [(who, [found[stem] for stem in stems if stem in found], why) for who, stems, why in READING]


def glossary() -> str:
    """The glossary of this checkout as HTML."""
    from nbconvert.filters.markdown import markdown2html

    return clean(markdown2html(GLOSSARY.read_text(encoding="utf-8")), {})
