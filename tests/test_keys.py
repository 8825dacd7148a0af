"""Keys: a result depends on what its code does, on all of the code it reaches, and on nothing else."""

import ast
import importlib.metadata
import io
import os
import random
import subprocess
import sys
import tokenize
from functools import lru_cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medshift.repro import keys
from medshift.repro.keys import PACKAGE, Code, code_of, differences, digest, significant

MODULES = sorted(PACKAGE.rglob("*.py"))
STAGES = sorted(f"medshift.stages.{path.stem}" for path in (PACKAGE / "stages").glob("*.py") if path.stem != "__init__")
F_STRINGS = {getattr(tokenize, name) for name in ("FSTRING_MIDDLE", "TSTRING_MIDDLE") if hasattr(tokenize, name)}

# What is hard: strings over several lines, comments between strings, two statements on a line, a long continuation.
TANGLE = '''"""Module."""; first = 1
class One(Exception): """Doc of one line."""  # comment
def two(a="#"):  # comment
    """Doc

    of several lines"""; third = "# no comment"
    return f"""a  

    {a!r:>4} # no comment
    """, ("b"  # comment

          "c")
async def four():
    "é"; five = "é"  # é
    return r\'\'\'

\'\'\'
six = 1 \\

-2
'''  # noqa: W291


@lru_cache(maxsize=512)
def tokens(source: str) -> list[tokenize.TokenInfo]:
    return list(tokenize.generate_tokens(io.StringIO(source).readline))


def tree(source: str) -> str:
    """The syntax without positions and docstrings: what Python makes of a source."""
    parsed = ast.parse(source)
    for node in ast.walk(parsed):
        body = getattr(node, "body", None)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and body:
            if isinstance(body[0], ast.Expr) and isinstance(getattr(body[0].value, "value", None), str):
                del body[0]
    return ast.dump(parsed)


def spliced(source: str, start: tuple[int, int], end: tuple[int, int], text: str) -> str:
    lines = source.split("\n")
    before = "\n".join([*lines[: start[0] - 1], lines[start[0] - 1][: start[1]]])
    return before + text + "\n".join([lines[end[0] - 1][end[1] :], *lines[end[0] :]])


sources = st.one_of(st.just(TANGLE), st.sampled_from(MODULES).map(lambda path: path.read_text(encoding="utf-8")))


@settings(max_examples=40)
@given(source=sources, data=st.data())
def test_comments_and_blank_lines_do_not_count(source: str, data: st.DataObject) -> None:
    ends = [t for t in tokens(source) if t.type in (tokenize.NEWLINE, tokenize.NL) and t.string]
    if not ends:
        return
    chosen = data.draw(st.sampled_from(ends))
    more = data.draw(st.sampled_from(["  # words", "   ", "\n", "\n\n  # words", '# \'quoted """\n   \n']))
    edited = spliced(source, chosen.start, chosen.start, more)
    assert tree(edited) == tree(source)  # the edit is what the test takes it for
    assert significant(edited) == significant(source)


@settings(max_examples=40)
@given(source=sources, data=st.data())
def test_the_text_of_comments_and_docstrings_does_not_count(source: str, data: st.DataObject) -> None:
    documented = {
        (node.body[0].lineno, node.body[0].value.value)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None
    }
    words = [
        t
        for t in tokens(source)
        if t.type == tokenize.COMMENT
        or (
            t.type == tokenize.STRING
            and any(t.start[0] == n and ast.literal_eval(t.string) == s for n, s in documented)
        )
    ]
    if not words:
        return
    chosen = data.draw(st.sampled_from(words))
    new = "# other" if chosen.type == tokenize.COMMENT else '"""Other\n\n   words."""'
    edited = spliced(source, chosen.start, chosen.end, new)
    assert tree(edited) == tree(source) and significant(edited) == significant(source)


@settings(max_examples=40)
@given(source=sources, data=st.data())
def test_every_other_token_counts(source: str, data: st.DataObject) -> None:
    kinds = (tokenize.NAME, tokenize.NUMBER, tokenize.STRING, tokenize.OP, *F_STRINGS)
    chosen = data.draw(st.sampled_from([t for t in tokens(source) if t.type in kinds] or [None]))
    if chosen is None:
        return
    if chosen.type in (tokenize.STRING, *F_STRINGS):  # anywhere inside, in the middle of its lines too
        at = data.draw(st.integers(0, len(chosen.string)))
        text = chosen.string[:at] + data.draw(st.sampled_from(["x", "\n", " ", "#", "\n\n"])) + chosen.string[at:]
    else:
        text = {"+": "-", "<": ">", "==": "!=", "True": "False"}.get(chosen.string, chosen.string + "0")
    edited = spliced(source, chosen.start, chosen.end, text)
    try:
        changed = tree(edited) != tree(source)
    except (SyntaxError, ValueError):
        return
    assert (significant(edited) != significant(source)) or not changed


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ('x = """a\n\nb"""', 'x = """a\nb"""'),
        ('x = """a  \nb"""', 'x = """a\nb"""'),
        ('x = f"""a\n\n{b}"""', 'x = f"""a\n{b}"""'),
        ('x = f"""a {b}  \n{b}"""', 'x = f"""a {b}\n{b}"""'),
        ('x = """a # b"""', 'x = """a # c"""'),
        ('class A(Error): "doc"', 'class B(Error): "doc"'),
        ('def f(a=1): "doc"', 'def f(a=2): "doc"'),
        ('"doc"; x = 1', '"doc"; x = 2'),
        ("x = 1 \\\n\n-2", "x = 1 \\\n-2"),
        ("if a:\n    b\nc", "if a:\n    b\n    c"),
        ('x = "\u2028"  # a\ny = 1', 'x = "\u2028"  # a\ny = 2'),
        ("x = '#a'", "x = '#b'"),
    ],
)
def test_sources_that_differ_in_meaning_differ(one: str, other: str) -> None:
    assert tree(one) != tree(other) and significant(one) != significant(other)


def test_line_ends_of_another_system_do_not_count() -> None:
    assert significant(TANGLE.replace("\n", "\r\n")) == significant(TANGLE)
    assert significant("x = 1\n\f\ny = 2  # a\n") == significant("x = 1\n\f\ny = 2\n")


def imports_of(path: Path, name: str) -> set[str]:
    """Names a file imports, functions' own imports included, read from its syntax alone."""
    found: set[str] = set()
    parsed = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {
        id(inner)
        for node in ast.walk(parsed)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(parsed):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name} imports by a relative name"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            # `from package import module` says nothing of the package itself.
            found |= inner if all(file_of(one) for one in inner) else inner | {node.module or ""}
    return found


def file_of(name: str) -> Path | None:
    path = PACKAGE.parent / Path(*name.split("."))
    return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()), None)


def walk(root: str) -> tuple[set[str], set[str]]:
    """The modules of medshift and the other packages that a root reaches."""
    own, others, waiting = set(), set(), [root]
    while waiting:
        name = waiting.pop()
        path = file_of(name)
        if name.partition(".")[0] != PACKAGE.name:
            others.add(name.partition(".")[0])
        elif path is not None and name not in own:
            own.add(name)
            waiting += imports_of(path, name)
    return own, others - set(sys.stdlib_module_names)


@pytest.mark.parametrize("root", [*STAGES, "medshift.results.tradeoff", "medshift.viz.physics", "medshift.flow"])
def test_the_code_of_a_root_is_what_a_walk_of_its_imports_finds(root: str) -> None:
    own, others = walk(root)
    code = code_of([root])
    assert {name for name in code.modules if not name.endswith(".csv")} == own
    assert set(code.packages) == {name for name in others if keys.package_version(name)}


def test_packages_run_nothing_on_import_that_a_key_would_miss() -> None:
    """Importing a.b runs a's __init__ as well, which is no edge of the import graph."""
    for module in code_of(STAGES).modules:
        parts = module.split(".")
        for n in range(2, len(parts)):
            name = ".".join(parts[:n])
            said = significant((PACKAGE.parent / Path(*parts[:n]) / "__init__.py").read_text(encoding="utf-8"))
            assert not said or name in code_of(STAGES).modules, f"{name}/__init__.py holds code"


def test_a_training_depends_on_flow_network_and_physics_and_not_on_what_looks_at_it() -> None:
    modules = code_of(["medshift.stages.network"]).modules
    assert {"medshift.flow", "medshift.network", "medshift.data.acquisition", "medshift.train"} <= set(modules)
    assert {f"medshift/data/spectra/{p.name}" for p in (PACKAGE / "data/spectra").glob("*.csv")} <= set(modules)
    watching = ("viz", "results", "repro", "metrics", "cli", "evaluate", "tradeoff", "baselines")
    assert not [name for name in modules if name.startswith(tuple(f"medshift.{part}" for part in watching))]


def test_a_root_is_part_of_its_own_code_and_roots_add_up() -> None:
    both = code_of(["medshift.flow", "medshift.codec"])
    one, other = code_of(["medshift.flow"]), code_of(["medshift.codec"])
    assert both == Code(one.modules | other.modules, one.packages | other.packages)
    assert "medshift.flow" in one.modules and code_of([]) == Code({}, {})


def forget() -> None:
    """Take a look at files and packages anew, as another process would; the graph stays."""
    for value in vars(keys).values():
        if hasattr(value, "cache_clear") and value is not keys._graph:
            value.cache_clear()


def test_the_versions_are_those_installed_without_a_local_suffix(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = importlib.metadata.packages_distributions()
    for name, version in code_of(STAGES).packages.items():
        assert version in {importlib.metadata.version(one).partition("+")[0] for one in installed[name]}, name
    monkeypatch.setattr(keys.metadata, "version", lambda name: "2.14.1+cu130")
    forget()
    assert keys.package_version("torch") == "2.14.1"
    monkeypatch.undo()
    forget()
    assert keys.package_version("no_such_package") == ""


def test_an_edit_of_a_module_changes_its_hash_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "medshift"
    for path in [*MODULES, *PACKAGE.rglob("*.csv")]:
        target = copy / path.relative_to(PACKAGE)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    monkeypatch.setattr(keys, "PACKAGE", copy)  # the graph stays that of the real package
    for edit in ("# a comment\n", "more = 1\n"):
        forget()
        before = code_of(["medshift.stages.network"])
        with (copy / "flow.py").open("a") as file:
            file.write(edit)
        with (copy / "viz" / "theme.py").open("a") as file:
            file.write(edit)
        forget()
        found = differences(vars(before), vars(code_of(["medshift.stages.network"])))
        assert found == ([] if edit.startswith("#") else ["medshift.flow changed"])
    spectrum = next((copy / "data/spectra").glob("*.csv"))
    before = code_of(["medshift.stages.network"])
    spectrum.write_text(spectrum.read_text() + "9,9\n")
    forget()
    assert differences(vars(before), vars(code_of(["medshift.stages.network"]))) == [
        f"medshift/data/spectra/{spectrum.name} changed"
    ]
    forget()


def test_a_key_is_the_same_in_another_process_with_other_hashes_and_locale() -> None:
    code = "from medshift.repro.keys import *; c = code_of(['medshift.stages.network']); print(digest(vars(c)))"
    here = digest(vars(code_of(["medshift.stages.network"])))
    changed = {"PYTHONHASHSEED": "7", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    found = subprocess.run([sys.executable, "-c", code], env=os.environ | changed, capture_output=True, text=True)
    assert found.stdout.strip() == here, found.stderr


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(value=st.dictionaries(st.text(max_size=4), json_values, max_size=5), seed=st.integers(0, 99))
def test_a_digest_does_not_depend_on_the_order_of_keys(value: dict[str, object], seed: int) -> None:
    items = list(value.items())
    random.Random(seed).shuffle(items)
    assert digest(value) == digest(dict(items)) and len(digest(value)) == 12
    assert digest(value) != digest({**value, "one more": 1})


def test_differences_name_what_changed() -> None:
    before = {
        "arguments": {"images": 64, "heads": {"train": 2}},
        "inputs": {"views": "views-1"},
        "modules": {"medshift.flow": "a", "medshift.old": "a"},
        "packages": {"torch": "2.11"},
    }
    after = {
        "arguments": {"images": 32, "heads": {"train": 3}, "width": 2.0},
        "inputs": {"views": "views-2"},
        "modules": {"medshift.flow": "b", "medshift.new": "a"},
        "packages": {"torch": "2.12", "scipy": "1.15"},
    }
    assert differences(before, after) == [
        "argument heads.train: 2 → 3",
        "argument images: 64 → 32",
        "argument width: absent → 2.0",
        "input views is another one",
        "medshift.flow changed",
        "medshift.new is new",
        "medshift.old is no longer used",
        "package scipy: absent → 1.15",
        "package torch: 2.11 → 2.12",
    ]
    assert differences(before, before) == [] and differences({}, {}) == []


@pytest.mark.parametrize("delay", [0.002, 0.01, 0.05, 0.1, 0.2, 0.4])
def test_an_interruption_waits_for_the_import_graph(delay: float) -> None:
    """grimp is compiled from Rust and panics, instead of raising, where it is interrupted."""
    script = f"""
import signal
from medshift.repro import keys
import grimp
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has its background jobs ignore it
signal.signal(signal.SIGALRM, lambda number, frame: signal.raise_signal(signal.SIGINT))
signal.setitimer(signal.ITIMER_REAL, {delay})
try:
    keys._graph()
    signal.pause()  # the graph was done sooner
except KeyboardInterrupt:
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    print("interrupted")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("interrupted\n", "")
