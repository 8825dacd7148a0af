"""Gathers what the benches print, and their tables, into one report: build/bench.md.

On a GPU that is build/bench-gpu.md, and of a quick run, which measures nothing, build/bench-quick.md.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

import pytest
from measuring import DEVICE, QUICK, load, machine

BUILD = Path(__file__).parents[2] / "build"
OUT = BUILD / ("bench-quick.md" if QUICK else "bench.md" if DEVICE.type == "cpu" else "bench-gpu.md")


class Report:
    """Sections of Markdown in the order in which they were written."""

    def __init__(self) -> None:
        self.load = load()
        self.sections: list[str] = []
        self.lines: dict[str, list[str]] = {}

    def table(self, title: str, header: Sequence[str], rows: Sequence[Sequence[object]], note: str = "") -> None:
        """A section with a table: printed now, written at the end."""
        body = [header, ["---"] * len(header), *rows]
        lines = ["| " + " | ".join(str(cell) for cell in row) + " |" for row in body]
        self.sections.append("\n".join([f"## {title}", "", *([note, ""] if note else []), *lines]))
        print("\n\n" + self.sections[-1])

    def write(self) -> None:
        """The file, with the machine first and the lines of other benches last."""
        parts = ["# Speeds of this machine", "\n".join(f"- {line}" for line in machine(self.load)), *self.sections]
        for module, lines in self.lines.items():
            parts.append("\n".join([f"## {module}", "", *(f"- {line}" for line in lines)]))
        OUT.parent.mkdir(exist_ok=True)
        OUT.write_text("\n\n".join(parts) + "\n")


class Tee(io.TextIOBase):
    """Writes to two streams."""

    def __init__(self, *streams: TextIO) -> None:
        self.streams = streams

    def write(self, text: str) -> int:
        return max(stream.write(text) for stream in self.streams)

    def flush(self) -> None:
        for stream in self.streams:
            stream.flush()


@pytest.fixture(scope="session")
def report() -> Iterator[Report]:
    """The report of this session, written when the last bench is done."""
    made = Report()
    yield made
    if made.sections or made.lines:
        made.write()
        print(f"\nAll of it: {OUT}")


@pytest.fixture(autouse=True)
def gathered(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The lines that a bench prints, kept for the report under the name of its file."""
    if request.node.get_closest_marker("bench") is None or "report" in request.fixturenames:
        yield
        return
    made, heard = request.getfixturevalue("report"), io.StringIO()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Tee(sys.stdout, heard))
        yield
    if lines := [line for line in heard.getvalue().splitlines() if line.strip()]:
        made.lines.setdefault(request.node.path.stem, []).extend(lines)
