"""Things done by processes: each once, after what it needs; a failure or a death costs what needs it, and no more."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from medshift.errors import DataError
from medshift.repro.pool import Item, Pool


@dataclass(frozen=True)
class Write:
    """Notes its start and its end, in one file a thing."""

    folder: Path
    name: str
    reads: tuple[str, ...] = ()

    def __call__(self, device: str, progress: Callable[[str], Callable[..., None]]) -> None:
        for name in self.reads:
            assert (self.folder / name).read_text().endswith("done"), f"{self.name} was begun before {name} was done"
        progress(self.name)(0.5, "half")
        with (self.folder / self.name).open("a") as file:
            file.write(f"{os.getpid()} {os.environ['OMP_NUM_THREADS']} done")


@dataclass(frozen=True)
class Fail:
    """Fails in one of three ways."""

    how: str

    def __call__(self, device: str, progress: Callable[[str], Callable[..., None]]) -> None:
        if self.how == "input":
            raise DataError("The file is damaged; bring another.")
        if self.how == "mistake":
            raise ZeroDivisionError("a mistake\nof two lines")
        os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Sleep:
    """Says who it is and sleeps."""

    note: Path

    def __call__(self, device: str, progress: Callable[[str], Callable[..., None]]) -> None:
        self.note.write_text(str(os.getpid()))
        time.sleep(600)


@pytest.fixture
def pool() -> Pool:
    made = Pool(2)
    yield made
    made.close()


def test_each_is_done_once_after_what_it_needs(pool: Pool, tmp_path: Path) -> None:
    reads = {"a": (), "b": ("a",), "c": ("a",), "d": ("b", "c"), "e": ()}
    items = [Item(n, n, Write(tmp_path, n, r), frozenset(r)) for n, r in reversed(reads.items())]
    assert pool.work(items) == {} and pool.done == set(reads)
    said = [(tmp_path / name).read_text().split() for name in reads]
    assert all(words[2] == "done" and len(words) == 3 for words in said), "nothing is done twice"
    assert {words[1] for words in said} == {str(pool.threads)} and len({words[0] for words in said}) <= 2
    assert pool.at_work == {}


@pytest.mark.parametrize(
    ("how", "code", "said"),
    [("input", 3, "The file is damaged"), ("mistake", 4, "ZeroDivisionError: a mistake"), ("death", 5, "SIGKILL")],
)
def test_a_failure_costs_what_needs_it_and_no_more(pool: Pool, tmp_path: Path, how: str, code: int, said: str) -> None:
    after = frozenset({"bad"})
    items = [
        Item("bad", "bad", Fail(how)),
        Item("child", "child", Write(tmp_path, "child"), after),
        Item("grandchild", "grandchild", Write(tmp_path, "grandchild"), frozenset({"child"})),
        *(Item(name, name, Write(tmp_path, name)) for name in ("x", "y", "z")),
    ]
    failures = pool.work(items)
    assert failures.keys() == {"bad", "child", "grandchild"} and pool.done == {"x", "y", "z"}
    assert {f.exit_code for f in failures.values()} == {code} and said in failures["grandchild"].message
    assert bool(failures["bad"].lines) == (how == "mistake"), "a traceback of our own mistakes alone"
    assert "\n" not in failures["bad"].message
    assert {path.name for path in tmp_path.iterdir()} == {"x", "y", "z"}


def test_its_processes_end_with_their_parent_however_that_ends(tmp_path: Path) -> None:
    note = tmp_path / "note"
    lines = f"""
import pathlib
from medshift.repro.pool import Item, Pool
from test_pool import Sleep
if __name__ == "__main__":
    Pool(2).work([Item("s", "s", Sleep(pathlib.Path({str(note)!r})))])
"""
    (tmp_path / "parent.py").write_text(lines)
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    parent = subprocess.Popen([sys.executable, str(tmp_path / "parent.py")], env=os.environ | {"PYTHONPATH": path})
    until = time.monotonic() + 120
    while not (note.is_file() and note.read_text()) and time.monotonic() < until:
        time.sleep(0.05)
    child = int(note.read_text())
    parent.kill()
    parent.wait()
    while _lives(child) and time.monotonic() < until:
        time.sleep(0.05)
    assert not _lives(child)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{process}/stat")
    return not (stat.is_file() and stat.read_text().rpartition(")")[2].split()[0] == "Z")
