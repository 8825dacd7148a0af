"""Parameters of notebooks: one strict model each, checked before a kernel starts and once more inside it.

A notebook's `parameters` cell, its model here, the defaults and the help text say the same; a test holds them equal.
A notebook of one's own has its model made from its cell.
"""

from __future__ import annotations

import ast
import difflib
import io
import tokenize
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Annotated, Any, ClassVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    create_model,
    field_validator,
)

from medshift.errors import DataError, ParameterError


def _no_truth(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("Input should be a number, not true or false (YAML reads yes, no, on and off as these)")
    return value


Unit = Annotated[float, Field(ge=0, le=1), BeforeValidator(_no_truth)]
ELEMENTS = {"int": int, "float": float, "str": str, "bool": bool, "list": list}


def _rising(values: list[Unit]) -> list[Unit]:
    if list(values) != sorted(set(values)):
        raise ValueError("the values must rise, each once")
    if len(values) == 1:
        raise ValueError("one value is no grid; give at least two, or none")
    return values


class Parameters(BaseModel):
    """The parameters every notebook has."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)

    # Stages a notebook calls, and minutes it takes by profile on two cores; the second only tells how long is left.
    stages: ClassVar[tuple[str, ...]] = ()
    minutes: ClassVar[Mapping[str, float]] = {}
    needs_truth: ClassVar[bool] = False  # of evaluation views, so it cannot run on a user's own images

    profile: str = Field("auto", description="smoke, cpu, gpu, paper, or auto: gpu where there is one, else cpu")
    seed: int = Field(0, ge=0, lt=2**31, description="of every random number")
    device: str = Field("auto", description="auto, cpu, cuda")
    out_dir: str = Field("..", description="where runs/ and build/ go")
    data: str = Field("", description="a folder of your own images, one sub-folder per domain; empty: rendered heads")
    overrides: str = Field("", description="settings of the profile to change, separated by spaces")
    offline: bool = Field(False, description="refuse to download anything")

    @field_validator("*", mode="before")
    @classmethod
    def _number(cls, value: Any, info: ValidationInfo) -> Any:
        return _no_truth(value) if cls.model_fields[str(info.field_name)].annotation in (int, float) else value


class DataParameters(Parameters):
    """Of 01_data."""

    stages = ("views",)
    minutes = {"smoke": 0.4, "cpu": 3.0}

    head: int = Field(0, ge=0, description="number of the head that is shown, 0 being the volume itself")


class CodecParameters(Parameters):
    """Of 02_codec."""

    stages = ("views", "autoencoder")
    minutes = {"smoke": 0.3, "cpu": 4.5}

    images: int = Field(32, ge=1, description="validation images of each domain that are judged")


class TrainParameters(Parameters):
    """Of 03_train."""

    stages = ("views", "codec", "network")
    minutes = {"smoke": 0.4, "cpu": 18.0}

    tau: float = Field(0.05, ge=0, le=1, description="where the two legs meet, in the matrix of domains")


class TradeoffParameters(Parameters):
    """Of 04_tau_tradeoff."""

    stages = ("views", "codec", "network", "tradeoff")
    minutes = {"smoke": 0.4, "cpu": 14.0}

    tau_grid: Annotated[list[Unit], AfterValidator(_rising)] = Field(
        [], description="rising values of tau in [0, 1], at least two; empty for those of the profile"
    )
    guidance: float = Field(1.0, ge=0, le=20, description="scale of classifier-free guidance, 1 for none")


class AblationParameters(Parameters):
    """Of 08_ablations."""

    stages = ("views", "codec", "network")
    minutes = {"smoke": 1.0, "cpu": 25.0}
    needs_truth = True

    grids: list[str] = Field(
        ["guidance", "sizes", "solvers"], description="files of notebooks/grids to run and to draw, in this order"
    )


NOTEBOOKS: dict[str, type[Parameters]] = {
    "01_data": DataParameters,
    "02_codec": CodecParameters,
    "03_train": TrainParameters,
    "04_tau_tradeoff": TradeoffParameters,
    "08_ablations": AblationParameters,
}


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


def suggestion(name: str, known: Iterable[str]) -> str:
    """``; did you mean 'tau'?`` or ``; there are … and …``, to end a sentence."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(names)}."


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


def check(model: type[Parameters], values: Mapping[str, Any], name: str) -> Parameters:
    """The parameters with these values, coerced to their types, others at their defaults.

    Raises:
        ParameterError: an unknown name, with the nearest known one; a value of the wrong type or out of its range.
    """
    for key in values:
        if key not in model.model_fields:
            raise ParameterError(f"{name} has no parameter {key!r}{suggestion(key, model.model_fields)}")
    try:
        return model(**values)
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"[{part}]" if isinstance(part, int) else str(part) for part in first["loc"])
        help_text = model.model_fields[str(first["loc"][0])].description
        message = first["msg"].removeprefix("Value error, ")
        raise ParameterError(
            f"{name}: parameter {where}: {message} (got {first['input']!r}). It is: {help_text}."
        ) from None


def parse_pairs(pairs: Sequence[Sequence[str]]) -> dict[str, Any]:
    """``-p name value`` pairs, values read as YAML; ParameterError for a name given twice."""
    values: dict[str, Any] = {}
    for name, text in pairs:
        if name in values:
            raise ParameterError(f"Parameter {name!r} is given twice; give it once.")
        try:
            values[name] = yaml.load(text, Loader=_OnceLoader) if text else ""  # noqa: S506, a safe loader
        except (yaml.YAMLError, ValueError):
            values[name] = text
        if values[name] is None:
            values[name] = text
    return values


class _OnceLoader(yaml.SafeLoader):
    """YAML that refuses a key given twice, where plain YAML silently takes the last; a date is text."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in known if not tag.endswith(":timestamp")]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = [key for key in keys if keys.count(key) > 1]
        if twice:
            raise ParameterError(f"{twice[0]!r} stands there twice, again in line {node.start_mark.line + 1} or after.")
        return super().construct_mapping(node, deep)


def read_mapping(path: Path) -> dict[str, Any]:
    """A YAML file that is a mapping.

    Raises:
        DataError: no such file, or it cannot be read as text.
        ParameterError: it is no YAML (tabs, say), empty, a list, or names a key twice.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_OnceLoader)  # noqa: S506, a safe loader
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}); give a YAML file.") from None
    except ParameterError as error:
        raise ParameterError(f"{path}: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        tabs = " It holds a tab; YAML indents with spaces." if "\t" in path.read_text(encoding="utf-8") else ""
        problem = getattr(error, "problem", None) or "it is not YAML"
        raise ParameterError(f"{path}{where}: {problem}.{tabs}") from None
    except ValueError as error:
        raise ParameterError(f"{path}: {error}.") from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        kind = "empty" if values is None else f"a {type(values).__name__}"
        raise ParameterError(f"{path} is {kind}; expected lines `name: value`.")
    return values


def table(model: type[Parameters]) -> list[tuple[str, str, str, str]]:
    """Name, type, default and help of every parameter, for people to read."""
    rows = []
    for name, info in model.model_fields.items():
        properties = model.model_json_schema()["properties"][name]
        bounds = {k: v for k, v in {**properties, **properties.get("items", {})}.items() if "imum" in k}
        words = {"minimum": "≥", "maximum": "≤", "exclusiveMinimum": ">", "exclusiveMaximum": "<"}
        extent = ", ".join(f"{words[key]} {value:g}" for key, value in bounds.items())
        kind = str(properties.get("type", "")) + (f" ({extent})" if extent else "")
        rows.append((name, kind, repr(info.default), info.description or ""))
    return rows
