"""What a figure says of itself, beside its sidecar and far from it."""

import json
import shlex
import shutil
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from medshift.errors import DataError
from medshift.repro import provenance
from medshift.repro.cells import model_of, notebook_folder
from medshift.repro.figinfo import describe
from medshift.repro.parameters import check
from medshift.repro.run import Run, configure
from medshift.repro.stage import Stage
from medshift.repro.values import parse_pairs

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FACTS = {"data set": "phantom", "data set's SHA-256": "made by code", "weights' SHA-256": "ab" * 32}


@pytest.fixture
def drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run that has drawn one figure and one table at a clean commit."""
    monkeypatch.setattr(provenance, "commit", lambda: {"id": COMMIT, "changed files": []})
    return draw(tmp_path, FACTS)


def draw(folder: Path, facts: dict[str, str]) -> Run:
    values = {"profile": "smoke", "out_dir": str(folder), "seed": 7, "head": 1, "overrides": "train.images=64 size=16"}
    run = configure("01_data", values)
    run.stages["views"] = Stage("views", folder / "views-abc", "abcdef123456", True, 90.0, facts)
    figure, axis = plt.subplots(figsize=(1, 1))
    axis.plot([0, 1])
    run.figure(figure, "line", "A rising line.")
    run.table(pd.DataFrame({"n": [1]}), "rows")
    return run


@pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg"])
def test_every_format_tells_the_same_story(drawn: Run, suffix: str) -> None:
    path = drawn.build / "figures" / f"01_line{suffix}"
    text = describe(path)
    for expected in (
        "notebooks/01_data.ipynb", "head = 1", "phantom", "ab" * 32, "views abcdef123456", "A rising line.", COMMIT,
        f"matplotlib {provenance.versions(['matplotlib'])['matplotlib']}", "device cpu", "views 1.5",
    ):  # fmt: skip
        assert expected in text, expected
    assert "with changes" not in text
    assert text.index(f"git checkout {COMMIT}") < text.index("medshift run")


def test_the_command_makes_the_same_parameters_again(drawn: Run) -> None:
    lines = describe(drawn.build / "figures" / "01_line.png").splitlines()
    words = shlex.split(next(line for line in lines if line.strip().startswith("medshift run")))
    pairs = [(words[i + 1], words[i + 2]) for i, word in enumerate(words) if word == "-p"]
    again = check(model_of(notebook_folder() / "01_data.ipynb"), parse_pairs(pairs), "again")
    here = drawn.parameters.model_dump(exclude={"out_dir"})
    assert words[2] == "notebooks/01_data.ipynb" and again.model_dump(exclude={"out_dir"}) == here


def test_a_figure_copied_without_its_sidecar_still_says_how_it_was_made(drawn: Run, tmp_path: Path) -> None:
    copy = shutil.copy(drawn.build / "figures" / "01_line.pdf", tmp_path / "renamed.pdf")
    text = describe(Path(copy))
    assert "No sidecar" in text and "head = 1" in text and "medshift run notebooks/01_data.ipynb" in text
    assert "git checkout" not in text and COMMIT not in text


def test_the_sidecar_of_another_figure_is_left_aside(drawn: Run) -> None:
    sidecar = drawn.build / "figures" / "01_line.json"
    held = json.loads(sidecar.read_text())
    held["stamp"]["seeds"] = [8]
    sidecar.write_text(json.dumps(held))
    text = describe(drawn.build / "figures" / "01_line.png")
    assert "belongs to another figure" in text and COMMIT not in text and "A rising line" not in text
    sidecar.write_text("{half")
    assert "sidecar beside it is damaged" in describe(drawn.build / "figures" / "01_line.png")


def test_a_table_needs_and_uses_its_sidecar(drawn: Run) -> None:
    path = drawn.build / "figures" / "01_rows.csv"
    assert "head = 1" in describe(path) and COMMIT in describe(path.with_suffix(".md"))
    path.with_suffix(".table.json").unlink()
    with pytest.raises(DataError, match="01_rows.csv carries no stamp"):
        describe(path)


def test_changes_and_own_images_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "commit", lambda: {"id": COMMIT, "changed files": ["a.py", "b.py"]})
    run = draw(tmp_path, {"data set": "your own folders", "data set's SHA-256": "cd" * 32})
    text = describe(run.build / "figures" / "01_line.png")
    assert "with changes in 2 files" in text and "-p data FOLDER" in text and "none were used" in text
    assert "-p data FOLDER" not in describe(draw(tmp_path / "other", FACTS).build / "figures" / "01_line.png")


def test_a_picture_of_others_or_of_an_older_version_is_refused(tmp_path: Path) -> None:
    figure, axis = plt.subplots(figsize=(1, 1))
    figure.savefig(tmp_path / "plain.png")
    figure.savefig(tmp_path / "old.png", metadata={"Description": '{"notebook": "01_data", "profile": "cpu"}'})
    plt.close(figure)
    with pytest.raises(DataError, match="no stamp"):
        describe(tmp_path / "plain.png")
    with pytest.raises(DataError, match="older version.*profile = cpu"):
        describe(tmp_path / "old.png")
    with pytest.raises(DataError, match="no such file"):
        describe(tmp_path / "none.png")
