"""The ledger of claims: what the papers and this companion state, and what the findings of the notebooks say of it.

``notebooks/claims.yaml`` lists the claims. A claim is decided by two expressions over findings, ``holds`` and
``fails``, written before the numbers are known; where neither is true the interval does not settle it. Findings are
rows of the files ``*_findings.csv`` that notebooks write, with the columns of `COLUMNS`. In an expression a finding
has ``.value``, ``.low`` and ``.high`` (its 95 % interval), ``.n`` and ``.p``; p is Holm-adjusted within the claim's
family, over all findings whose p a claim of that family uses, those not yet measured counted as 1.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from simpleeval import SimpleEval

from medshift.errors import DataError, ParameterError
from medshift.metrics.verdicts import holm
from medshift.published import published_findings as published_findings  # the findings that no notebook has to write
from medshift.repro.values import read_mapping

COLUMNS = ("finding", "value", "low", "high", "n", "p", "unit", "figure", "text")
VERDICTS = ("holds", "fails", "undecided", "not comparable", "not yet run")
PAPERS = ("MedShift", "CDTSDE", "companion")

_NUMBERS = ("value", "low", "high", "n", "p")
_FUNCTIONS = {"abs": abs, "min": min, "max": max}
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
        if bool(self.tested) != bool(self.family):
            raise ValueError("a claim names a `family` exactly where its expressions use a p")
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
            if not isinstance(node.func, ast.Name) or node.func.id not in _FUNCTIONS or node.keywords or not node.args:
                raise ValueError(f"{ast.unparse(node)!r} in {expression!r}: only {', '.join(_FUNCTIONS)} can be called")
            names += 1
        if isinstance(node, ast.Attribute):
            if not isinstance(node.value, ast.Name) or node.attr not in _NUMBERS:
                raise ValueError(f"{ast.unparse(node)!r} in {expression!r}: a finding has {', '.join(_NUMBERS)}")
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
        if sorted(table.columns) != sorted(COLUMNS):
            raise DataError(f"{path} has the columns {', '.join(table.columns)}; expected {', '.join(COLUMNS)}.")
        here = findings_of(table.to_dict("records"), str(path))
        if both := sorted(here.keys() & found.keys()):
            raise DataError(f"{path} and {origin[both[0]]} both have the finding {both[0]!r}; only one may write it.")
        found |= here
        origin |= dict.fromkeys(here, path)
    return found


def _adjusted(claims: Iterable[Claim], findings: Mapping[str, Finding]) -> dict[str, dict[str, float]]:
    """Family -> finding -> Holm-adjusted p, of the families as declared: what is not measured yet counts as 1."""
    families: dict[str, set[str]] = {}
    for claim in claims:
        if claim.family:
            families.setdefault(claim.family, set()).update(claim.tested)
    result = {}
    for family, members in families.items():
        names = sorted(members)
        given = [findings[name].p if name in findings else None for name in names]
        result[family] = dict(zip(names, holm([1.0 if p is None else p for p in given]).tolist(), strict=True))
    return result


def _decide(claim: Claim, findings: Mapping[str, Finding], adjusted: Mapping[str, float]) -> tuple[str, str]:
    """Verdict and the text of what was measured."""
    if claim.not_comparable:
        return "not comparable", claim.not_comparable
    if claim.not_yet:
        return "not yet run", claim.not_yet
    if absent := [name for name in claim.needs if name not in findings]:
        return "not yet run", f"no finding {', '.join(absent)} yet"
    told = {name: str(findings[name]) for name in claim.needs}
    for name in claim.tested:
        told[name] += f", p = {adjusted[name]:.2g} (Holm over {len(adjusted)})"
    lacking = sorted(f"{name}.{number}" for name, number in claim.used if getattr(findings[name], number) is None)
    if lacking:
        return "undecided", "; ".join([*(str(findings[name]) for name in claim.needs), f"no {', '.join(lacking)}"])
    names = {n: findings[n].model_copy(update={"p": adjusted[n]} if n in claim.tested else {}) for n in claim.needs}
    evaluator = SimpleEval(names=names, functions=_FUNCTIONS, allowed_attrs={Finding: set(_NUMBERS)})
    try:
        holds, fails = (evaluator.eval(expression.strip()) for expression in claim.expressions)
    except (ArithmeticError, TypeError, ValueError) as error:
        raise ParameterError(f"Claim {claim.id}: an expression cannot be computed ({error}); mend it.") from None
    measured = "; ".join(told.values())
    if holds and fails:
        raise ParameterError(
            f"Claim {claim.id} both holds and fails ({measured}); its expressions must exclude each other."
        )
    return ("holds" if holds else "fails" if fails else "undecided"), measured


def judge(claims: list[Claim], findings: Mapping[str, Finding]) -> pd.DataFrame:
    """One row a claim: id, paper, claim, source, measured, verdict (one of `VERDICTS`) and figure.

    ``attrs["unused"]`` names the findings that no claim needs, among them those misspelt.

    Raises:
        ParameterError: a claim both holds and fails, or its expression cannot be computed.
    """
    adjusted, rows = _adjusted(claims, findings), []
    for claim in claims:
        verdict, measured = _decide(claim, findings, adjusted.get(claim.family or "", {}))
        figures = [findings[name].figure for name in claim.needs if name in findings]
        figure = claim.figure or ", ".join(dict.fromkeys(filter(None, figures)))
        rows.append((claim.id, claim.paper, claim.text, claim.source, measured, verdict, figure))
    table = pd.DataFrame(rows, columns=["id", "paper", "claim", "source", "measured", "verdict", "figure"])
    table.attrs["unused"] = sorted(findings.keys() - {name for claim in claims for name in claim.needs})
    return table


def claims_markdown(table: pd.DataFrame) -> str:
    """The table of `judge` as Markdown: counts of verdicts, then a section a paper."""
    counts = pd.crosstab(table["paper"], table["verdict"]).reindex(index=PAPERS, columns=VERDICTS, fill_value=0)
    lines = [f"{len(table)} claims. p values are Holm-adjusted within families; intervals are of 95 % each.", ""]
    lines += _markdown(
        ["", *VERDICTS], [[paper, *map(str, row)] for paper, row in zip(PAPERS, counts.to_numpy(), strict=True)]
    )
    for paper in PAPERS:
        kept = table.loc[table["paper"] == paper, ["claim", "verdict", "measured", "source", "figure"]]
        if len(kept):
            lines += ["", f"## {paper}", "", *_markdown(list(kept.columns), kept.to_numpy().tolist())]
    if unused := table.attrs.get("unused"):
        lines += ["", f"Findings that no claim uses: {', '.join(unused)}."]
    return "\n".join(lines) + "\n"


def _markdown(header: list[str], rows: list[list[str]]) -> list[str]:
    clean = [[" ".join(cell.split()).replace("|", "\\|") for cell in row] for row in [header, *rows]]
    text = [f"| {' | '.join(row)} |" for row in clean]
    return [text[0], "|" + " --- |" * len(header), *text[1:]]
