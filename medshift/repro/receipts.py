"""Receipts of notebooks: what an executed one was made from, so it runs again only when that changed.

A receipt lies beside the executed notebook as ``<name>.receipt.json``. It is written last, and it is what makes the
notebook count as done.
"""

from __future__ import annotations

import ast
import hashlib
import json
import tokenize
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medshift.errors import DataError
from medshift.repro.keys import PACKAGE, code_of, differences, digest, significant
from medshift.repro.parameters import Parameters
from medshift.repro.profiles import Profile
from medshift.repro.run import PLACES, plans_of, variant
from medshift.repro.stage import Plan, write_json

if TYPE_CHECKING:
    from medshift.repro.grid import Grid

# What runs a notebook does not decide what it shows.
MACHINERY = ("medshift.repro",)


@dataclass(frozen=True)
class Task:
    """One notebook with its parameters, done or not.

    Args:
        notebook: path of the source.
        parameters: checked.
        profile: theirs, resolved.
    """

    notebook: Path
    parameters: Parameters
    profile: Profile

    @property
    def out(self) -> Path:
        """The folder that holds runs/ and build/."""
        return Path(self.parameters.out_dir)

    @property
    def runs(self) -> Path:
        """Where stages live."""
        return self.out / "runs" / self.profile.name

    @property
    def folder(self) -> Path:
        """Where the executed notebook goes."""
        return self.out / "build" / variant(self.parameters, self.profile.name)

    @property
    def target(self) -> Path:
        """The executed notebook."""
        return self.folder / self.notebook.name

    @property
    def receipt_file(self) -> Path:
        """Beside it."""
        return self.target.with_suffix(".receipt.json")

    @cached_property
    def plans(self) -> dict[str, Plan]:
        """The stages this notebook calls, by name."""
        everything = plans_of(self.parameters, self.profile)
        # A user's own images have no truth, so nothing that needs it is planned for them.
        return {name: everything[name] for name in type(self.parameters).stages if name in everything}

    @cached_property
    def grids(self) -> list[Grid]:
        """The grids this notebook runs and draws, expanded."""
        names = getattr(self.parameters, "grids", [])
        if not names:
            return []
        from medshift.repro.grid import load_grid

        seed = self.parameters.seed or -1
        return [load_grid(n, self.profile, out_dir=str(self.out), build=self.folder, seed=seed) for n in names]

    @cached_property
    def parts(self) -> dict[str, Any]:
        """All that decides what the notebook shows."""
        import nbformat

        cells = nbformat.read(self.notebook, as_version=4).cells
        sources = [cell.source for cell in cells if cell.cell_type == "code"]
        code = code_of(_imports(sources))
        return {
            "arguments": {
                "parameters": self.parameters.model_dump(exclude={"profile", *PLACES}),
                "profile": self.profile.model_dump(),
                **self._runs_of_grids(),
            },
            "inputs": {name: plan.folder_name for name, plan in self.plans.items()} | self._reads(),
            "modules": {
                "the notebook's code": digest([_significant(source) for source in sources]),
                "the notebook's text": digest([cell.source for cell in cells if cell.cell_type != "code"]),
                **code.modules,
            },
            "packages": code.packages,
        }

    def _runs_of_grids(self) -> dict[str, Any]:
        runs = {grid.name: digest([run.name for run in grid.runs]) for grid in self.grids}
        return {"grids": runs} if runs else {}

    def _reads(self) -> dict[str, str]:
        """Name -> hash of the files that the notebook reads beside its stages: others' results, and its ledger."""
        own = type(self.parameters)
        places = [self.folder / "figures" / name for name in own.read_tables]
        places += [self.notebook.parent / name for name in own.read_files]
        return {path.name: file_hash(path) if path.is_file() else "absent" for path in places}

    @cached_property
    def receipt(self) -> dict[str, Any] | None:
        """The receipt of the last time, or None.

        Raises:
            DataError: it cannot be read.
        """
        if not self.receipt_file.is_file():
            return None
        try:
            held = json.loads(self.receipt_file.read_text(encoding="utf-8"))
            if not isinstance(held, dict) or not {"parts", "files", "seconds"} <= held.keys():
                raise ValueError("it is no receipt")
        except (OSError, ValueError) as error:
            raise DataError(f"{self.receipt_file} cannot be read ({error}); delete it and run again.") from None
        return held

    def stale(self) -> str:
        """Why the notebook has to run, or nothing."""
        held = self.receipt
        if held is None or not self.target.is_file():
            return "never run"
        if changes := differences(held["parts"], self.parts):
            return "; ".join(changes[:4]) + (f", and {len(changes) - 4} more" if len(changes) > 4 else "")
        for name, sha in held["files"].items():
            path = self.folder / "figures" / name
            if not path.is_file() or file_hash(path) != sha:
                return f"figures/{name} is {'missing' if not path.is_file() else 'another than was drawn'}"
        for plan in self.plans.values():
            if plan.find(self.runs) is None:
                return f"its input {plan.folder_name} is gone"
        return ""

    def write_receipt(self, events: list[dict[str, Any]], seconds: float) -> None:
        """Put down what the notebook was made from, what it made and how long it took."""
        names = [name for event in events for name in event.get("files", [])]
        files = {name: file_hash(self.folder / "figures" / name) for name in dict.fromkeys(names)}
        record: dict[str, Any] = {}
        for event in events:
            record |= event.get("record", {})
        shown = [event for event in events if "figure" in event or "table" in event]
        content = {"parts": self.parts, "files": files, "shown": shown, "record": record, "seconds": round(seconds, 1)}
        write_json(self.receipt_file, content)


def file_hash(path: Path) -> str:
    """SHA-256 of a file, shortened."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _significant(source: str) -> str:
    try:
        return significant(source)
    except (SyntaxError, ValueError, tokenize.TokenError):  # a magic; then every character counts
        return source


def _imports(sources: list[str]) -> list[str]:
    """medshift's modules that code cells import, the machinery left out."""
    found: set[str] = set()
    for source in sources:
        try:
            nodes = list(ast.walk(ast.parse(source)))
        except (SyntaxError, ValueError):
            continue
        for node in nodes:
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            elif isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
    own = {name for name in found if name.partition(".")[0] == PACKAGE.name and not name.startswith(MACHINERY)}
    return sorted(name for name in own if _is_module(name))


def _is_module(name: str) -> bool:
    path = PACKAGE.parent / Path(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()
