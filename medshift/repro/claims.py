"""The ledger of claims: what the papers and this companion state, and what the findings of the notebooks say of it.

``notebooks/claims.yaml`` lists the claims. A claim is decided by two expressions over findings, ``holds`` and
``fails``, written before the numbers are known; where neither is true the interval does not settle it. Findings are
rows of the files ``*_findings.csv`` that notebooks write, with the columns of `COLUMNS`. In an expression a finding
has ``.value``, ``.low`` and ``.high`` (its 95 % interval), ``.n`` and ``.p``. What the expressions say is judged in
`medshift.repro.ledger`, which keeps the error of a whole family of claims below 5 %.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from medshift.errors import DataError, ParameterError
from medshift.published import published_findings as published_findings  # the findings that no notebook has to write
from medshift.repro.values import read_mapping

COLUMNS = ("finding", "value", "low", "high", "n", "p", "unit", "figure", "text")
OPTIONAL = ("heads",)  # columns that a file may lack
VERDICTS = ("holds", "fails", "undecided", "not comparable", "not yet run")
PAPERS = ("MedShift", "CDTSDE", "companion")

NUMBERS = ("value", "low", "high", "n", "p")
FUNCTIONS = {"abs": abs, "min": min, "max": max}
_GRAMMAR = (
    *(ast.Expression, ast.BoolOp, ast.And, ast.Or, ast.UnaryOp, ast.USub, ast.BinOp, ast.Add, ast.Sub),
    *(ast.Mult, ast.Div, ast.Compare, ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Eq, ast.NotEq, ast.Call, ast.Attribute),
    *(ast.Name, ast.Load, ast.Constant),
)
_Empty = BeforeValidator(lambda value: None if value == "" else value)
_Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]


class Finding(BaseModel):
    """One measured number: a row of a file of findings. An empty low, high, n or p was not determined."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    finding: _Name
    value: Annotated[float, Field(allow_inf_nan=False)]
    low: Annotated[float | None, _Empty] = None
    high: Annotated[float | None, _Empty] = None
    n: Annotated[int | None, Field(ge=1), _Empty] = None
    heads: Annotated[int | None, Field(ge=2), _Empty] = None  # independent units of a t interval
    p: Annotated[float | None, Field(ge=0, le=1), _Empty] = None
    unit: str = ""
    figure: str = ""
    text: str = ""

    @model_validator(mode="after")
    def _ordered(self) -> Finding:
        if (self.low is None) != (self.high is None):
            raise ValueError("low and high must both be given, or neither")
        if self.low is not None and self.high is not None and not self.low <= self.high:
            raise ValueError(f"low {self.low} must not lie above high {self.high}, nor be NaN")
        return self

    def __str__(self) -> str:
        interval = "" if self.low is None or self.low == self.high else f" [{self.low:.3g}, {self.high:.3g}]"
        unit, n = self.unit and f" {self.unit}", "" if self.n is None else f", n = {self.n}"
        return f"{self.text or self.finding}: {self.value:.4g}{interval}{unit}{n}"


class Claim(BaseModel):
    """One claim of the ledger, with either the two expressions that decide it or the reason why none does."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_min_length=1)

    id: _Name
    paper: Literal["MedShift", "CDTSDE", "companion"]
    text: str
    source: str
    needs: tuple[_Name, ...] = ()
    holds: str | None = None
    fails: str | None = None
    not_comparable: str | None = None
    not_yet: str | None = None
    figure: str | None = None
    family: _Name | None = None

    @model_validator(mode="after")
    def _decidable(self) -> Claim:
        if sum([bool(self.holds or self.fails), bool(self.not_comparable), bool(self.not_yet)]) != 1:
            raise ValueError("give either both of `holds` and `fails`, or `not_comparable`, or `not_yet`")
        if bool(self.holds) != bool(self.fails):
            raise ValueError("`holds` and `fails` must both be given: a claim that cannot fail says nothing")
        if len(set(self.needs)) != len(self.needs):
            raise ValueError("`needs` lists a finding twice")
        used = {name for name, _ in self.used}
        if unlisted := sorted(used - set(self.needs)):
            raise ValueError(f"an expression uses {unlisted[0]!r}, which `needs` does not list")
        if unused := sorted(set(self.needs) - used):
            raise ValueError(f"`needs` lists {unused[0]!r}, which no expression uses")
        if self.tested and not self.family:
            raise ValueError("a claim whose expressions use a p names its `family`")
        if self.family and not self.tested and not self.rests_on_intervals:
            raise ValueError("a `family` is of claims that use a p or an interval; this one uses neither")
        return self

    @property
    def expressions(self) -> tuple[str, ...]:
        """``holds`` and ``fails``, or nothing."""
        return (self.holds, self.fails) if self.holds and self.fails else ()

    @property
    def used(self) -> set[tuple[str, str]]:
        """(finding, number) of every number the expressions use; ValueError where they are no comparison of these."""
        return set().union(*(_numbers(expression) for expression in self.expressions))

    @property
    def tested(self) -> set[str]:
        """The findings whose p the expressions use."""
        return {name for name, number in self.used if number == "p"}

    @property
    def rests_on_intervals(self) -> bool:
        """Whether the expressions use an end of an interval."""
        return any(number in ("low", "high") for _, number in self.used)


def _numbers(expression: str) -> set[tuple[str, str]]:
    try:
        tree = ast.parse(expression.strip(), mode="eval")
    except (SyntaxError, ValueError):
        raise ValueError(f"{expression!r} is no expression") from None
    used, names = set(), 0
    for node in ast.walk(tree):
        if not isinstance(node, _GRAMMAR) or (isinstance(node, ast.Constant) and type(node.value) not in (int, float)):
            raise ValueError(f"{ast.unparse(node)!r} in {expression!r} is more than numbers and comparisons")
        if isinstance(node, ast.Call):
            if not isinstance(node.func, ast.Name) or node.func.id not in FUNCTIONS or node.keywords or not node.args:
                raise ValueError(f"{ast.unparse(node)!r} in {expression!r}: only {', '.join(FUNCTIONS)} can be called")
            names += 1
        if isinstance(node, ast.Attribute):
            if not isinstance(node.value, ast.Name) or node.attr not in NUMBERS:
                raise ValueError(f"{ast.unparse(node)!r} in {expression!r}: a finding has {', '.join(NUMBERS)}")
            used.add((node.value.id, node.attr))
            names += 1
    if sum(isinstance(node, ast.Name) for node in ast.walk(tree)) != names:
        raise ValueError(f"{expression!r} uses a finding without saying which number of it, such as `.value`")
    joined = [value for node in ast.walk(tree) if isinstance(node, ast.BoolOp) for value in node.values]
    if not used or not all(isinstance(part, ast.Compare | ast.BoolOp) for part in (tree.body, *joined)):
        raise ValueError(f"{expression!r} compares no number of a finding")
    return used


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg']}" if where else first["msg"].removeprefix("Value error, ")


def load_claims(path: Path) -> list[Claim]:
    """The claims of a ledger, in the order of the file.

    Raises:
        DataError: the file cannot be read.
        ParameterError: it is no ledger, or one of its claims is not as `Claim` expects; the message names both.
    """
    values = read_mapping(path)
    if list(values) != ["claims"] or not isinstance(values["claims"], list) or not values["claims"]:
        raise ParameterError(f"{path} holds {', '.join(values)}; expected `claims:` alone, with a list of claims.")
    claims: list[Claim] = []
    for number, entry in enumerate(values["claims"], 1):
        name = entry.get("id", f"number {number}") if isinstance(entry, dict) else f"number {number}"
        try:
            claim = Claim.model_validate(entry)
        except ValidationError as error:
            raise ParameterError(f"{path}, claim {name}: {_first(error).rstrip('.')}.") from None
        if any(claim.id == other.id for other in claims):
            raise ParameterError(f"{path}, claim {name}: another claim has this id; give each its own.")
        claims.append(claim)
    return claims


def findings_of(rows: Iterable[Mapping[Any, Any]], name: str) -> dict[str, Finding]:
    """Findings by their name, of rows with the keys `COLUMNS`; ``name`` says in errors where the rows come from.

    Raises:
        DataError: a row is not as `Finding` expects, or a finding stands there twice.
    """
    found: dict[str, Finding] = {}
    for row in rows:
        try:
            finding = Finding.model_validate(dict(row))
        except ValidationError as error:
            raise DataError(f"{name}, finding {row.get('finding', '')!r}: {_first(error)}.") from None
        if finding.finding in found:
            raise DataError(f"{name}: finding {finding.finding!r} stands there twice; write it once.")
        found[finding.finding] = finding
    return found


def read_findings(folder: Path) -> dict[str, Finding]:
    """All findings of the files ``*_findings.csv`` in a folder, by their name; none where there is no such file.

    Raises:
        DataError: there is no such folder, a file is damaged or has other columns, two files have the same finding.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder; give the one that holds the notebooks' tables.")
    found: dict[str, Finding] = {}
    origin: dict[str, Path] = {}
    for path in sorted(folder.glob("*_findings.csv")):
        try:
            table = pd.read_csv(path, dtype=str, keep_default_na=False)
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read as a table ({error}); make it again.") from None
        if sorted(set(table.columns) - set(OPTIONAL)) != sorted(COLUMNS):
            raise DataError(f"{path} has the columns {', '.join(table.columns)}; expected {', '.join(COLUMNS)}.")
        here = findings_of(table.to_dict("records"), str(path))
        if both := sorted(here.keys() & found.keys()):
            raise DataError(f"{path} and {origin[both[0]]} both have the finding {both[0]!r}; only one may write it.")
        found |= here
        origin |= dict.fromkeys(here, path)
    return found
