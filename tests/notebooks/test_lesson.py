"""Notebook 00's real editions, the pages of 00 and 99, and 99 on the shipped network of the cpu profile."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from bs4 import BeautifulSoup
from nbclient import NotebookClient
from smoke import SmokeRun

from medshift.repro.cells import notebook_folder
from medshift.repro.editions import edition, read_notebook
from medshift.repro.site import build_site
from medshift.widgets.explore import STATIC_PAIRS
from medshift.widgets.show import STATIC
from medshift.widgets.static import PLAYER

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]
LESSON = notebook_folder() / "00_flow_matching.ipynb"
EXPLORER = notebook_folder() / "99_explorer.ipynb"
EXERCISES = [f"exercise-{k}" for k in range(1, 10)]


def with_values(notebook: Any, **values: Any) -> Any:
    """The notebook with other values in its parameters cell."""
    cell = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    for name, value in values.items():
        cell.source, n = re.subn(rf"(?m)^({name}: \w+ = )\S+", lambda m, v=value: m[1] + repr(v), cell.source)
        assert n == 1, name
    return notebook


def executed(notebook: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The notebook, run in a kernel of its own as a batch run is; errors that are not allowed for are raised."""
    monkeypatch.setenv(STATIC, "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    resources = {"metadata": {"path": str(folder)}}
    return NotebookClient(notebook, timeout=1200, kernel_name="python3", resources=resources).execute()


def errors(notebook: Any) -> dict[str, Any]:
    """Cell id -> its error."""
    return {cell.id: o for cell in notebook.cells for o in cell.get("outputs", []) if o.output_type == "error"}


@pytest.mark.parametrize("name", ["student", "solution"])
def test_students_fail_at_the_nine_checks_and_nowhere_else_and_the_solution_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = edition(read_notebook(LESSON), name, LESSON.name)
    # The pictures are drawn all the same; few steps only make them bad.
    with_values(made, profile="smoke", out_dir=str(tmp_path), steps=20)
    executed(made, tmp_path, monkeypatch)
    found = errors(made)
    assert list(found) == ([f"{one}-check" for one in EXERCISES] if name == "student" else [])
    for where, error in found.items():
        assert error.ename == "NotYet", where
        assert len(error.traceback) == 1 and len(error.traceback[0].splitlines()) == 1, f"{where}: one line"
        assert error.traceback[0].startswith("Not yet: ") and "..." in error.traceback[0], "it says what to replace"
    checks = [cell for cell in made.cells if "check" in cell.metadata.get("tags", ())]
    assert [cell.id for cell in checks] == [f"{one}-check" for one in EXERCISES]
    if name == "solution":
        assert all(cell.outputs[0].text.startswith("Right: ") for cell in checks)
    assert all(cell.execution_count for cell in made.cells if cell.cell_type == "code")


def calls_of_show(notebook: Any) -> int:
    """How often a notebook calls ``show``."""
    trees = [ast.parse(cell.source) for cell in notebook.cells if cell.cell_type == "code"]
    calls = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return sum(isinstance(call.func, ast.Name) and call.func.id == "show" for call in calls)


@pytest.mark.xdist_group("smoke")
def test_the_pages_of_both_have_every_player_and_every_word_and_ask_nobody(smoke_run: SmokeRun) -> None:
    site = build_site("smoke", out_dir=str(smoke_run.out)).parent
    players = {"00_flow_matching": calls_of_show(read_notebook(LESSON)), "99_explorer": STATIC_PAIRS + 1 + 1}
    assert players["00_flow_matching"] >= 5
    for stem, number in players.items():
        soup = BeautifulSoup((site / f"{stem}.html").read_text(encoding="utf-8"), "html.parser")
        figures = soup.find_all("figure", class_=PLAYER)
        assert len(figures) == number, stem
        for figure in figures:
            assert figure.find("input", type="range") is not None and figure.find("figcaption") is not None
            assert all(image["src"].startswith("data:image/png;base64,") for image in figure.find_all("img"))
        for tag in soup.find_all(src=True):
            assert tag["src"].startswith(("data:", "../figures/")), tag["src"][:80]
        assert not soup.find_all(["link", "iframe", "object", "embed"]) and not soup.find_all("script", src=True)
        words = " ".join(soup.get_text().split())
        for cell in read_notebook(notebook_folder() / f"{stem}.ipynb").cells:
            if cell.cell_type == "markdown":
                for heading in re.findall(r"(?m)^#+ (.*)$", cell.source):
                    assert heading in words, heading
    lesson = BeautifulSoup((site / "00_flow_matching.html").read_text(encoding="utf-8"), "html.parser")
    assert len(lesson.find_all("details")) == len(EXERCISES), "each solution is folded"
    for details in lesson.find_all("details"):
        assert "Right: " in details.get_text() and "Why." in details.get_text()
        details.extract()
    rest = " ".join(lesson.get_text().split())
    for k in range(1, 10):
        assert f"Exercise {k} ·" in rest
    assert rest.count("Predict") >= len(EXERCISES)
    assert "Right: " not in rest and "Why." not in rest


def test_the_explorer_opens_on_the_shipped_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reduced = "explorer.taus=[0.05,0.5] explorer.scales=[1.0]"
    made = with_values(
        read_notebook(EXPLORER), profile="cpu", out_dir=str(tmp_path), device="cpu", overrides=reduced, offline=True
    )
    executed(made, tmp_path, monkeypatch)
    assert not errors(made)
    stages = sorted(path.parent.name.split("-")[0] for path in (tmp_path / "runs" / "cpu").glob("*/config.json"))
    assert "shipped" in stages and "network" not in stages, "nothing is trained"
    pages = [o.data.get("text/html", "") for cell in made.cells for o in cell.get("outputs", []) if "data" in o]
    assert sum(PLAYER in page for page in pages) == STATIC_PAIRS + 2
    (table,) = (tmp_path / "build").rglob("99_gallery.csv")
    gallery = pd.read_csv(table).set_index("failure")
    low = gallery.loc["τ too low: anatomy is invented"]
    assert low["edge pixels invented"] >= 5 and low["PSNR [dB]"] < low["PSNR at the best τ [dB]"] - 2
    assert 0.3 < gallery.loc["an object that no training head has", "object's contrast / truth's"] < 4
    assert (table.parent / "99_filmstrip.png").is_file()
