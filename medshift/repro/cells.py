"""Parameters cells: read from a notebook's file, and a model made from those of one's own notebooks."""

from __future__ import annotations

import ast
import io
import tokenize
from copy import copy
from pathlib import Path
from typing import Any

from pydantic import Field, create_model

from medshift.errors import DataError, ParameterError
from medshift.repro.parameters import NOTEBOOKS, Parameters, suggestion

ELEMENTS = {"int": int, "float": float, "str": str, "bool": bool, "list": list}


def notebook_folder() -> Path:
    """``notebooks`` of this checkout."""
    return Path(__file__).resolve().parents[2] / "notebooks"


def find_notebook(text: str) -> Path:
    """The path of a notebook given by path, name or number (``04``).

    Raises:
        ParameterError: there is none.
    """
    names = [name for name in NOTEBOOKS if text in (name, name[:2])]
    if names:
        return notebook_folder() / f"{names[0]}.ipynb"
    path = Path(text)
    if path.suffix == ".ipynb" and path.is_file():
        return path
    raise ParameterError(f"No notebook is called {text!r}{suggestion(path.stem, NOTEBOOKS)}")


def model_of(path: Path) -> type[Parameters]:
    """The parameters' model of a notebook of the companion, or one made from the notebook's own cell.

    Raises:
        ParameterError: a notebook of one's own has no usable parameters cell.
        DataError: the file is no notebook.
    """
    if path.stem in NOTEBOOKS and path.resolve().parent == notebook_folder():
        return NOTEBOOKS[path.stem]  # a test holds it and the cell equal
    fields: dict[str, Any] = {}
    for name, (annotation, default, text) in read_cell(path).items():
        if name in Parameters.model_fields:  # of which a notebook may choose the default, and nothing else
            inherited = copy(Parameters.model_fields[name])
            inherited.default = default
            fields[name] = (inherited.annotation, inherited)
        elif name.startswith("_") or hasattr(Parameters, name):
            raise ParameterError(f"{path}, parameters cell: {name!r} cannot be a parameter's name; choose another.")
        else:
            kind = ELEMENTS.get(annotation) or ELEMENTS.get(type(default).__name__, str)
            fields[name] = (kind, Field(default, description=text))
    return create_model(path.stem, __base__=Parameters, **fields)


def read_cell(path: Path) -> dict[str, tuple[str, Any, str]]:
    """Name -> (annotation, default, help) of a notebook's parameters cell, in order.

    Raises:
        ParameterError: there is no cell tagged ``parameters``, more than one, or it holds more than literals.
        DataError: the file is no notebook.
    """
    import nbformat

    try:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
    except Exception as error:  # whatever a damaged file makes its reader raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"{path} cannot be read as a notebook ({reason}); give an .ipynb file.") from None
    tagged = [cell.source for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    if len(tagged) != 1:
        raise ParameterError(
            f"{path} has {len(tagged)} cells tagged 'parameters'; expected one, with a line `name: type = value  # "
            "help` for each parameter (in JupyterLab: the gear at the right, Cell Tags)."
        )
    return parse_cell(tagged[0], str(path))


def parse_cell(source: str, name: str) -> dict[str, tuple[str, Any, str]]:
    """Name -> (annotation, default, help) of the lines ``name: type = value  # help``.

    Raises:
        ParameterError: it holds something else, or a name twice.
    """
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None) or 1
        raise ParameterError(f"{name}, parameters cell, line {line}: it is no Python ({error}).") from None
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    found: dict[str, tuple[str, Any, str]] = {}
    for node in body:
        target = node.target if isinstance(node, ast.AnnAssign) else None
        try:
            assert isinstance(node, ast.AnnAssign) and isinstance(target, ast.Name) and node.value is not None
            default = ast.literal_eval(node.value)
        except (AssertionError, ValueError):
            raise ParameterError(
                f"{name}, parameters cell, line {node.lineno}: expected `name: type = value  # help` with a literal "
                "value and nothing else."
            ) from None
        if target.id in found:
            raise ParameterError(f"{name}, parameters cell: {target.id!r} stands there twice; write it once.")
        found[target.id] = (ast.unparse(node.annotation), default, comments.get(node.end_lineno or node.lineno, ""))
    return found
