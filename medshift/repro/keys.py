"""What a result depends on: the code it reaches, the packages that code imports, and a key of both.

A module counts by what it does, not by how it reads: comments, docstrings and blank lines are left out of its hash.
The modules a stage reaches come from grimp's import graph, imports inside functions included; imports for type
checkers alone are not. A package's data files (`data/spectra/*.csv`) count as soon as any module of it is reached.
"""

from __future__ import annotations

import ast
import hashlib
import io
import json
import signal
import sys
import threading
import tokenize
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parents[1]
# Where a package is imported under another name than it is installed under.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "stlpips_pytorch": "stlpips-pytorch",
    "umap": "umap-learn",
    "yaml": "pyyaml",
}
# From Python 3.12 on an f-string is several tokens.
STRING_STARTS, STRING_ENDS = (
    {getattr(tokenize, f"{kind}STRING_{end}") for kind in "FT" if hasattr(tokenize, f"{kind}STRING_{end}")}
    for end in ("START", "END")
)


@dataclass(frozen=True)
class Code:
    """The code a result depends on: medshift's modules and files by hash, other packages by version."""

    modules: dict[str, str]
    packages: dict[str, str]


def digest(value: object, digits: int = 12) -> str:
    """The first digits of the SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:digits]


def significant(source: str) -> str:
    """Python source without comments, docstrings and blank lines; the same on every version of Python.

    Raises:
        SyntaxError: it is no Python.
    """
    tree = ast.parse(source)
    lines = source.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    open_ended: set[int] = set()  # lines whose end lies inside a string, where blanks and empty lines count
    strings: list[int] = []
    for token in tokenize.generate_tokens(io.StringIO("\n".join(lines)).readline):
        row = token.start[0] - 1
        if token.type == tokenize.COMMENT:
            lines[row] = lines[row][: token.start[1]]
        elif token.type == tokenize.STRING:
            open_ended |= set(range(row, token.end[0] - 1))
        elif token.type in STRING_STARTS:
            strings.append(row)
        elif token.type in STRING_ENDS:
            open_ended |= set(range(strings.pop(), token.end[0] - 1))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and (
            ast.get_docstring(node, clean=False) is not None
        ):
            open_ended -= _cut(lines, node.body[0])
    kept = [line if n in open_ended else line.rstrip() for n, line in enumerate(lines)]
    # An empty line also counts where it ends a statement that a backslash went on with.
    return "\n".join(
        line for n, line in enumerate(kept) if line or n in open_ended or (n and kept[n - 1].endswith("\\"))
    )


def _cut(lines: list[str], node: ast.stmt) -> set[int]:
    """Take a docstring out of its lines, leaving what else stands on them; returns the lines it went over."""
    first, last = node.lineno - 1, (node.end_lineno or node.lineno) - 1
    before = lines[first].encode()[: node.col_offset].decode()
    after = lines[last].encode()[node.end_col_offset :].decode()
    lines[first : last + 1] = [before + after, *[""] * (last - first)]
    return set(range(first, last))


@lru_cache(maxsize=1)
def _graph() -> Any:
    import grimp

    with _signals_held():  # grimp's compiled part panics where it is interrupted
        return grimp.build_graph(
            PACKAGE.name, include_external_packages=True, exclude_type_checking_imports=True, cache_dir=None
        )


@contextmanager
def _signals_held() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back until the end; outside the main thread, where none arrives, do nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda number, frame: received.append(number)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
    if received:
        signal.raise_signal(received[0])


def _file(module: str) -> Path:
    path = PACKAGE.parent / Path(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@lru_cache(maxsize=512)
def _module_hash(module: str) -> str:
    return hashlib.sha256(significant(_file(module).read_text(encoding="utf-8")).encode()).hexdigest()[:16]


def _data_files(modules: Iterable[str]) -> dict[str, str]:
    """Hashes of the files that are no Python, in the packages of these modules."""
    folders = {_file(module).parent for module in modules} - {PACKAGE}
    files = sorted(p for folder in folders for p in folder.rglob("*") if p.suffix in (".csv", ".json", ".yaml"))
    return {str(p.relative_to(PACKAGE.parent)): hashlib.sha256(p.read_bytes()).hexdigest()[:16] for p in files}


def code_of(roots: Iterable[str]) -> Code:
    """The code that ``roots`` (full names of medshift's modules) reach, themselves included."""
    return _code_of(tuple(sorted(roots)))


@lru_cache(maxsize=64)
def _code_of(roots: tuple[str, ...]) -> Code:
    graph = _graph()
    reached: set[str] = set()
    for root in roots:
        reached |= {root} | graph.find_upstream_modules(root)
    own = sorted(m for m in reached if m.partition(".")[0] == PACKAGE.name and _file(m).is_file())
    others = sorted({m.partition(".")[0] for m in reached} - {PACKAGE.name} - set(sys.stdlib_module_names))
    modules = {module: _module_hash(module) for module in own} | _data_files(own)
    return Code(modules, {name: version for name in others if (version := package_version(name))})


@lru_cache(maxsize=64)
def package_version(name: str) -> str:
    """The installed version of an imported package, without a local suffix such as ``+cu130``; empty if absent."""
    try:
        return metadata.version(DISTRIBUTIONS.get(name, name)).partition("+")[0]
    except metadata.PackageNotFoundError:
        return ""


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What changed from one description of a result to another, in words, the most telling first."""
    found: list[str] = []
    for part, word in (("arguments", "argument"), ("inputs", "input"), ("modules", "module"), ("packages", "package")):
        old, new = _flat(before.get(part, {})), _flat(after.get(part, {}))
        for name in sorted(old.keys() | new.keys()):
            if old.get(name) != new.get(name):
                found.append(_difference(word, name, old.get(name), new.get(name)))
    return found


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _difference(word: str, name: str, old: Any, new: Any) -> str:
    if word == "module":
        what = "is new" if old is None else "is no longer used" if new is None else "changed"
        return f"{name} {what}"
    if word == "input":
        return f"input {name} is another one"
    return f"{word} {name}: {old if old is not None else 'absent'} → {new if new is not None else 'absent'}"
