"""Publishing copies what receipts name, whole or not at all."""

import json
import os
from pathlib import Path

import pytest

from medshift.errors import DataError, ParameterError
from medshift.repro import publish as module
from medshift.repro.publish import publish, rewritten
from medshift.repro.receipts import file_hash

LINE = ["01_line.png", "01_line.pdf", "01_line.svg", "01_line.json"]
ROWS = ["01_rows.md", "01_rows.csv", "01_rows.table.json"]


def build(out: Path, stem: str, names: list[str]) -> Path:
    """A build with one notebook that drew these files."""
    folder = out / "build" / "smoke"
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / "figures" / name).write_text(f"{name} of {stem}, {len(names)}")
    files = {name: file_hash(folder / "figures" / name) for name in names}
    (folder / f"{stem}.receipt.json").write_text(json.dumps({"files": files, "seconds": 1.0, "parts": {}, "shown": []}))
    return folder


def state(folder: Path) -> dict[str, bytes]:
    """Everything in a folder, hidden files included."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_folder_holds_what_the_receipts_name_and_nothing_older(tmp_path: Path) -> None:
    source = build(tmp_path, "01_data", LINE + ROWS) / "figures"
    (source / "01_unnamed.png").write_text("of a run before")
    published = tmp_path / "figures" / "smoke"
    published.mkdir(parents=True)
    for name in ("01_gone.png", "04_kept.png", "README.md"):
        (published / name).write_text("old")
    folder, names = publish("smoke", out_dir=str(tmp_path))
    wanted = sorted(name for name in LINE + ROWS if not name.endswith(".svg"))
    assert folder == published and names == wanted
    assert sorted(state(folder)) == sorted([*wanted, "04_kept.png", "README.md"])
    assert (folder / "01_line.png").read_bytes() == (source / "01_line.png").read_bytes()
    assert (folder / "04_kept.png").read_text() == "old"
    assert [path.name for path in folder.parent.iterdir()] == ["smoke"]


def test_publishing_twice_changes_nothing_and_a_figure_no_longer_drawn_goes(tmp_path: Path) -> None:
    build(tmp_path, "01_data", LINE + ROWS)
    build(tmp_path, "04_tau_tradeoff", ["04_curve.png"])
    folder, _ = publish("smoke", out_dir=str(tmp_path))
    first = state(folder)
    publish("smoke", out_dir=str(tmp_path))
    assert state(folder) == first
    build(tmp_path, "01_data", LINE)
    publish("smoke", out_dir=str(tmp_path))
    assert set(first) - set(state(folder)) == set(ROWS) and "04_curve.png" in state(folder)


def test_the_ledger_of_claims_also_lies_beside_the_profiles(tmp_path: Path) -> None:
    build(tmp_path, "01_data", LINE)
    publish("smoke", out_dir=str(tmp_path))
    claims = tmp_path / "figures" / "claims.md"
    assert not claims.exists(), "no ledger, no claims"
    build(tmp_path, "90_claims", ["90_claims.md", "90_claims.csv"])
    publish("smoke", out_dir=str(tmp_path))
    assert claims.read_text().endswith("90_claims.md of 90_claims, 2") and "Profile `smoke`" in claims.read_text()


@pytest.mark.parametrize("harm", ["missing", "another"])
def test_a_figure_that_is_not_what_was_drawn_is_refused_and_nothing_changes(tmp_path: Path, harm: str) -> None:
    source = build(tmp_path, "01_data", LINE) / "figures"
    folder, _ = publish("smoke", out_dir=str(tmp_path))
    build(tmp_path, "01_data", LINE + ROWS)
    before = state(folder.parent)
    path = source / "01_rows.csv"
    path.unlink() if harm == "missing" else path.write_text("edited")
    with pytest.raises(DataError, match=f"01_rows.csv is {harm}.*medshift paper --profile smoke"):
        publish("smoke", out_dir=str(tmp_path))
    assert state(folder.parent) == before


def test_without_a_receipt_the_command_that_makes_one_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="medshift paper --profile smoke"):
        publish("smoke", out_dir=str(tmp_path))
    assert not (tmp_path / "figures").exists()
    with pytest.raises(ParameterError, match="No profile"):
        publish("smok", out_dir=str(tmp_path))
    (build(tmp_path, "01_data", LINE) / "01_data.receipt.json").write_text("{half")
    with pytest.raises(DataError, match="01_data.receipt.json cannot be read"):
        publish("smoke", out_dir=str(tmp_path))


@pytest.mark.parametrize("at", range(1, 14))
def test_an_interruption_leaves_the_old_folder_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Interrupt at every step that touches the disk: copies, removals, renames."""
    build(tmp_path, "01_data", LINE)
    folder, _ = publish("smoke", out_dir=str(tmp_path))
    old = state(folder)
    build(tmp_path, "01_data", LINE + ROWS)
    new_names = {*old, *ROWS}
    steps = 0

    def counted(function):
        def step(*arguments, **named):
            nonlocal steps
            steps += 1
            if steps == at:
                raise KeyboardInterrupt
            return function(*arguments, **named)

        return step

    with monkeypatch.context() as patch:
        patch.setattr(module.shutil, "copyfile", counted(module.shutil.copyfile))
        patch.setattr(module.os, "replace", counted(os.replace))
        try:
            publish("smoke", out_dir=str(tmp_path))
            interrupted = False
        except KeyboardInterrupt:
            interrupted = True
    assert interrupted == (steps >= at)
    assert state(folder) == old or set(state(folder)) == new_names
    assert interrupted or set(state(folder)) == new_names
    publish("smoke", out_dir=str(tmp_path))
    assert set(state(folder)) == new_names and [path.name for path in folder.parent.iterdir()] == ["smoke"]


def test_a_folder_set_aside_by_a_killed_process_comes_back(tmp_path: Path) -> None:
    (tmp_path / ".site.old").mkdir()
    (tmp_path / ".site.old" / "index.html").write_text("old")
    (tmp_path / ".site.new").mkdir()
    with pytest.raises(RuntimeError), rewritten(tmp_path / "site", tmp_path / "lock") as new:
        assert not list(new.iterdir())
        raise RuntimeError
    assert (tmp_path / "site" / "index.html").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) in (["lock", "site"], ["site"])


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    build(tmp_path, "01_data", LINE)
    (tmp_path / "figures").write_text("a file in the way")
    with pytest.raises(DataError, match="figures.*cannot be made"):
        publish("smoke", out_dir=str(tmp_path))
