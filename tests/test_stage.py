"""Stages: built once, known by all that decides them, resumed after an interruption, shared by processes."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medshift.errors import DataError
from medshift.repro import stage as stages
from medshift.repro.keys import Code
from medshift.repro.stage import Plan, locked, read_config, write_json

# A stage that counts its builds beside its folder, and can be told to fail, to wait or to sleep.
TINY = """
import os, time
from pathlib import Path

def build(job, *, n=0, label=""):
    with (job.folder.parent.parent / "builds").open("a") as file:
        file.write(f"{os.getpid()}\\n")
    half = job.folder / "half"
    found = half.is_file()
    half.write_text("half")
    time.sleep(float(os.environ.get("TINY_SLEEP", 0)))
    if os.environ.get("TINY_FAIL"):
        raise {"interrupt": KeyboardInterrupt, "error": ValueError}[os.environ["TINY_FAIL"]]
    read = {name: (folder / "result").read_text() for name, folder in job.inputs.items()}
    (job.folder / "result").write_text(f"{n}{read}")
    job.progress(1.0)
    return {"went on": str(found)}
"""
CODE = Code({"medshift.flow": "aa"}, {"torch": "2.11"})
# What another process runs: the same plan, with code_of replaced as in this one.
CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from medshift.repro import stage
from medshift.repro.keys import Code
stage.code_of = lambda roots: Code({"medshift.flow": "aa"}, {"torch": "2.11"})
made = stage.Plan("tiny", "tiny_stage", {"n": 1}).ensure(Path(sys.argv[1]) / "runs")
print(made.built, made.folder.name)
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``runs/<profile>``, with the tiny stage importable."""
    (tmp_path / "tiny_stage.py").write_text(TINY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(stages, "code_of", lambda roots: CODE)
    yield tmp_path / "runs"
    sys.modules.pop("tiny_stage", None)


def tiny(n: int = 1, inputs: dict[str, Plan] | None = None, **more: Any) -> Plan:
    return Plan("tiny", "tiny_stage", {"n": n, **more}, inputs or {})


def builds(root: Path) -> int:
    path = root.parent / "builds"
    return len(path.read_text().splitlines()) if path.is_file() else 0


def folders(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.is_dir())


def child(root: Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(root.parent)],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(path: Path) -> None:
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.02)


def test_a_stage_is_built_once_and_found_again(root: Path) -> None:
    assert tiny().find(root) is None and tiny().reason(root) == "never built"
    first, again = tiny().ensure(root), tiny().ensure(root)
    assert (first.built, again.built, builds(root)) == (True, False, 1)
    assert replace(first, built=False) == again == tiny().find(root)
    assert first.facts == {"went on": "False"} and first.folder == root / f"tiny-{first.key}"
    assert (first.folder / "result").read_text() == "1{}"


def test_a_plan_is_a_key_without_a_build(root: Path) -> None:
    assert tiny().key == tiny().key and not root.exists() and builds(root) == 0


def test_arguments_inputs_code_and_versions_each_make_another_stage(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = [tiny(), tiny(2), tiny(1, {"views": tiny(3)}), tiny(1, {"views": tiny(4)}), tiny(1, {"other": tiny(3)})]
    plans += [tiny(1, label="x"), replace(tiny(), name="small")]
    keys = [plan.ensure(root).key for plan in plans]
    for code in (Code({"medshift.flow": "bb"}, CODE.packages), Code(CODE.modules, {"torch": "2.12"})):
        monkeypatch.setattr(stages, "code_of", lambda roots, code=code: code)
        assert tiny().find(root) is None
        keys.append(tiny().ensure(root).key)
    assert len(set(keys)) == len(keys) == 9


def test_the_label_of_a_progress_line_decides_nothing(root: Path) -> None:
    said: list[Any] = []
    made = replace(tiny(), label="working").ensure(root, progress=lambda label: lambda done: said.append((label, done)))
    assert made.key == tiny().key and said == [("working", 1.0)]


def test_inputs_are_built_first_and_read_by_name(root: Path) -> None:
    views = tiny(3)
    made = tiny(1, {"views": views}).ensure(root)
    assert (made.folder / "result").read_text() == "1{'views': '3{}'}"
    assert builds(root) == 2 and not views.ensure(root).built
    diamond = tiny(5, {"a": tiny(1, {"views": views}), "b": tiny(2, {"views": views})})
    chain = [plan.folder_name for plan in diamond.chain()]
    assert len(chain) == 4 and chain[0] == views.folder_name and chain[-1] == diamond.folder_name


def test_a_finished_stage_needs_neither_its_inputs_nor_its_code(root: Path) -> None:
    plan = tiny(1, {"views": tiny(3)})
    plan.ensure(root)
    views = root / tiny(3).folder_name
    views.rename(root / "elsewhere")
    (root.parent / "tiny_stage.py").unlink()
    assert not plan.ensure(root).built


def test_a_reason_names_what_changed_since_the_newest(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tiny(7).ensure(root).folder / "config.json"
    os.utime(old, (1, 1))
    tiny().ensure(root)
    assert tiny(2).reason(root) == "argument n: 1 → 2"
    monkeypatch.setattr(stages, "code_of", lambda roots: Code({"medshift.flow": "bb"}, {"torch": "2.12"}))
    assert tiny().reason(root) == "medshift.flow changed; package torch: 2.11 → 2.12"
    many = tiny(2, **{f"a{i}": i for i in range(9)}).reason(root)
    assert many.endswith(", and 8 more") and many.count(";") == 3
    (root / f"{tiny(9).folder_name}.partial").mkdir()
    assert tiny(9).reason(root) == "begun, will go on from where it stopped"


@pytest.mark.parametrize(("how", "error"), [("interrupt", KeyboardInterrupt), ("error", ValueError)])
def test_a_failed_stage_is_never_finished_and_goes_on_in_its_folder(
    root: Path, monkeypatch: pytest.MonkeyPatch, how: str, error: type[BaseException]
) -> None:
    monkeypatch.setenv("TINY_FAIL", how)
    monkeypatch.setenv("TINY_SLEEP", "0.3")
    with pytest.raises(error):
        tiny().ensure(root)
    assert folders(root) == [f"{tiny().folder_name}.partial"] and tiny().find(root) is None
    monkeypatch.delenv("TINY_FAIL")
    monkeypatch.setenv("TINY_SLEEP", "0")
    made = tiny().ensure(root)
    assert made.built and made.facts == {"went on": "True"} and folders(root) == [made.folder.name]
    assert 0.25 < made.seconds < 10, "the time of both calls counts"
    assert sorted(p.name for p in made.folder.iterdir()) == ["config.json", "env.json", "half", "result"]


def test_a_clock_that_was_not_written_to_its_end_does_no_harm(root: Path) -> None:
    partial = root / f"{tiny().folder_name}.partial"
    partial.mkdir(parents=True)
    (partial / "seconds").write_text("")
    assert tiny().ensure(root).built


def test_the_remains_of_a_deleted_stage_are_replaced(root: Path) -> None:
    made = tiny().ensure(root)
    (made.folder / "config.json").unlink()
    (made.folder / "stale").write_text("stale")
    again = tiny().ensure(root)
    assert again.built and again.folder == made.folder and not (made.folder / "stale").exists()


def test_a_finished_stage_says_what_made_it(root: Path) -> None:
    made = tiny(2, {"views": tiny(3)}).ensure(root)
    config = read_config(made.folder)
    assert config["arguments"] == {"n": 2} and config["modules"] == CODE.modules and config["key"] == made.key
    assert config["inputs"] == {"views": tiny(3).folder_name} and config["packages"] == CODE.packages
    environment = json.loads((made.folder / "env.json").read_text())
    assert set(environment) == {"packages", "hardware"} and str(root) not in json.dumps([config, environment])


DAMAGES = ["", "{", "[1]", "null", '"x"', '{"seconds": "soon"}', '{"facts": 3}', b"\xff\xfe\x00"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_config_says_what_to_do(root: Path, damage: str | bytes) -> None:
    made = tiny().ensure(root)
    path = made.folder / "config.json"
    path.write_bytes(damage if isinstance(damage, bytes) else damage.encode())
    for call in (tiny().find, tiny().ensure):
        with pytest.raises(
            DataError, match="config.json cannot be read.*delete .* run the same command again"
        ) as caught:
            call(root)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_that_cannot_be_written_is_a_data_error(root: Path) -> None:
    root.parent.joinpath("file").write_text("")
    for below in (root.parent / "file", root.parent / "file" / "runs" / "smoke"):
        with pytest.raises(DataError, match="cannot be written .*--out"):
            tiny().ensure(below)
    assert builds(root) == 0


def test_two_processes_build_it_exactly_once(root: Path) -> None:
    both = [child(root, TINY_SLEEP="1.5") for _ in range(2)]
    outputs = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert sorted(out.split()[0] for out, _ in outputs) == ["False", "True"] and builds(root) == 1
    waited = next(error for out, error in outputs if out.startswith("False"))
    assert "waiting for another process" in waited and folders(root) == [tiny().folder_name]


def test_a_killed_process_lets_go_and_the_next_goes_on(root: Path) -> None:
    process = child(root, TINY_SLEEP="60")
    wait_for(root / f"{tiny().folder_name}.partial" / "half")
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert tiny().find(root) is None and tiny().reason(root).startswith("begun")
    start = time.monotonic()
    made = tiny().ensure(root)
    assert time.monotonic() - start < 10, "the lock was still held"
    assert made.built and made.facts == {"went on": "True"} and builds(root) == 2


def test_a_lock_is_one_per_path_and_let_go_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), locked(tmp_path / "a.lock", "a"):
        raise RuntimeError
    with locked(tmp_path / "a.lock", "a"), locked(tmp_path / "b.lock", "b"):
        pass


def test_json_is_whole_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"τ": "é"})
    with pytest.raises(TypeError):
        write_json(path, {"b": object()})
    assert json.loads(path.read_text(encoding="utf-8")) == {"τ": "é"} and [p.name for p in tmp_path.iterdir()] == [
        "x.json"
    ]


@given(
    value=st.dictionaries(
        st.text(max_size=5), st.integers() | st.floats(allow_nan=False) | st.text(max_size=5), max_size=4
    )
)
def test_a_key_hashes_the_values_and_not_their_order(value: dict[str, Any]) -> None:
    before = stages.code_of
    stages.code_of = lambda roots: CODE
    try:
        reversed_value = dict(reversed(value.items()))
        assert Plan("a", "b", value).key == Plan("a", "b", reversed_value).key
        assert Plan("a", "b", value).key != Plan("a", "b", {**value, "one more": 1}).key
    finally:
        stages.code_of = before
