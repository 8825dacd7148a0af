"""Verdicts over the claims of a ledger, with the error of a whole family of claims kept below 5 %.

Every claim with a ``family`` brings p values into it, and Holm's correction runs over all of them. A claim that uses
``.p`` brings that of its findings. A claim that uses ends of intervals brings one: the error 1 - confidence at which
its intervals, widened or narrowed about their values, would only just decide it as they do at 95 %. For one end against
a threshold that is twice the one-sided p of that threshold; where several intervals must all clear theirs it is the
largest, which needs no correction (Berger 1982); where one of several suffices it is the least, uncorrected. Intervals
scale as Student's with one degree of freedom less than the finding has ``heads``, as normal ones where it names none;
an end that was cut, as an AUC's at 1, scales from where it was cut. What is not measured yet counts as 1.

A claim whose adjusted p is not below 5 % is undecided, whatever its interval of 95 % says. Outside of families are
claims over printed or exact numbers, and those that name no family; the ledger says how many.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path

import pandas as pd
from scipy.stats import norm
from scipy.stats import t as student
from simpleeval import SimpleEval

from medshift.errors import ParameterError
from medshift.metrics.verdicts import holm
from medshift.repro.claims import FUNCTIONS, NUMBERS, PAPERS, VERDICTS, Claim, Finding

LEVEL, LEAST, HALVINGS = 0.05, 1e-12, 16  # of errors; the least that is told apart, and how finely


@lru_cache(maxsize=4096)
def _stretch(error: float, heads: int | None) -> float:
    """By how much an interval of 95 % is longer at another ``error``."""
    if heads is None:
        return float(norm.isf(error / 2) / norm.isf(LEVEL / 2))
    return float(student.isf(error / 2, heads - 1) / student.isf(LEVEL / 2, heads - 1))


def _at(finding: Finding, error: float) -> Finding:
    """The finding with its interval at that error."""
    if finding.low is None or finding.high is None:
        return finding
    by = _stretch(error, finding.heads)
    ends = {"low": finding.value - by * (finding.value - finding.low)}
    return finding.model_copy(update=ends | {"high": finding.value + by * (finding.high - finding.value)})


def said(claim: Claim, findings: Mapping[str, Finding]) -> str:
    """What the two expressions say of these findings: holds, fails or undecided."""
    evaluator = SimpleEval(names=dict(findings), functions=FUNCTIONS, allowed_attrs={Finding: set(NUMBERS)})
    try:
        holds, fails = (evaluator.eval(expression.strip()) for expression in claim.expressions)
    except (ArithmeticError, TypeError, ValueError) as error:
        raise ParameterError(f"Claim {claim.id}: an expression cannot be computed ({error}); mend it.") from None
    if holds and fails:
        told = "; ".join(map(str, findings.values()))
        raise ParameterError(
            f"Claim {claim.id} both holds and fails ({told}); its expressions must exclude each other."
        )
    return "holds" if holds else "fails" if fails else "undecided"


def _lacking(claim: Claim, findings: Mapping[str, Finding]) -> list[str]:
    """Findings, or their numbers, that the expressions use and that are not there."""
    absent = [name for name in claim.needs if name not in findings]
    if absent:
        return absent
    return sorted(f"{name}.{number}" for name, number in claim.used if getattr(findings[name], number) is None)


def error_of(claim: Claim, findings: Mapping[str, Finding]) -> float:
    """The least error of its intervals at which a claim is still decided as at 5 %; 1 where it is not decided then."""
    if _lacking(claim, findings):
        return 1.0
    here = {name: findings[name] for name in claim.needs}
    verdict = said(claim, here)
    if verdict == "undecided":
        return 1.0
    low, high = LEAST, LEVEL
    for _ in range(HALVINGS):  # in logarithms: what counts is by which factor an error is below 5 %
        middle = (low * high) ** 0.5
        decided = said(claim, {name: _at(finding, middle) for name, finding in here.items()}) == verdict
        low, high = (low, middle) if decided else (middle, high)
    return high


def _adjusted(claims: Iterable[Claim], findings: Mapping[str, Finding]) -> dict[str, dict[str, float]]:
    """Family -> member -> Holm-adjusted p; members are findings whose p is used, and claims that rest on intervals."""
    families: dict[str, dict[str, float]] = {}
    for claim in claims:
        if claim.family:
            family = families.setdefault(claim.family, {})
            for name in claim.tested:
                p = findings[name].p if name in findings else None
                family[name] = 1.0 if p is None else p
            if not claim.tested:
                family[f"claim {claim.id}"] = error_of(claim, findings)
    return {
        family: dict(zip(members, holm(list(members.values())).tolist(), strict=True))
        for family, members in families.items()
    }


def _decide(claim: Claim, findings: Mapping[str, Finding], adjusted: Mapping[str, float]) -> tuple[str, str]:
    """Verdict and the text of what was measured."""
    if claim.not_comparable:
        return "not comparable", claim.not_comparable
    if claim.not_yet:
        return "not yet run", claim.not_yet
    if absent := [name for name in claim.needs if name not in findings]:
        return "not yet run", f"no finding {', '.join(absent)} yet"
    told = {name: str(findings[name]) for name in claim.needs}
    if lacking := _lacking(claim, findings):
        return "undecided", "; ".join([*told.values(), f"no {', '.join(lacking)}"])
    for name in claim.tested:
        told[name] += f", p = {adjusted[name]:.2g} (Holm over {len(adjusted)})"
    names = {n: findings[n].model_copy(update={"p": adjusted[n]} if n in claim.tested else {}) for n in claim.needs}
    verdict, measured = said(claim, names), "; ".join(told.values())
    if claim.family and not claim.tested:
        p = adjusted[f"claim {claim.id}"]
        measured += f"; of the claim p = {p:.2g} (Holm over {len(adjusted)})"
        verdict = verdict if p < LEVEL else "undecided"
    return verdict, measured


def judge(claims: list[Claim], findings: Mapping[str, Finding]) -> pd.DataFrame:
    """One row a claim: id, paper, claim, source, measured, verdict (one of `VERDICTS`), rule and figure.

    ``attrs["unused"]`` names the findings that no claim needs, among them those misspelt; ``attrs["families"]`` has the
    number of tests of every family, and ``attrs["outside"]`` how many claims rest on intervals of 95 % outside of one.

    Raises:
        ParameterError: a claim both holds and fails, or its expression cannot be computed.
    """
    adjusted, rows = _adjusted(claims, findings), []
    for claim in claims:
        verdict, measured = _decide(claim, findings, adjusted.get(claim.family or "", {}))
        figures = [findings[name].figure for name in claim.needs if name in findings]
        figure = claim.figure or ", ".join(dict.fromkeys(filter(None, figures)))
        rows.append((claim.id, claim.paper, claim.text, claim.source, measured, verdict, claim.holds or "", figure))
    table = pd.DataFrame(rows, columns=["id", "paper", "claim", "source", "measured", "verdict", "rule", "figure"])
    table.attrs["unused"] = sorted(findings.keys() - {name for claim in claims for name in claim.needs})
    table.attrs["families"] = {family: len(members) for family, members in adjusted.items()}
    table.attrs["outside"] = sum(claim.rests_on_intervals and not claim.family for claim in claims)
    return table


def claims_markdown(table: pd.DataFrame, figures: Path | None = None) -> str:
    """The table of `judge` as Markdown: counts of verdicts, then a section a paper.

    Args:
        table: of `judge`.
        figures: folder in which the text will lie; what a row names and is there becomes a link.
    """
    counts = pd.crosstab(table["paper"], table["verdict"]).reindex(index=PAPERS, columns=VERDICTS, fill_value=0)
    families = ", ".join(f"{family} ({n} tests)" for family, n in table.attrs.get("families", {}).items())
    lines = [
        f"{len(table)} claims. A rule says when a claim holds, over value, ends of the 95 % interval (low, high) and p "
        f"of its findings. p values are Holm-adjusted within families: {families or 'none'}. A claim that rests on an "
        "interval enters with the error at which the interval would only just decide it. Outside of families are "
        f"printed and exact numbers, and {table.attrs.get('outside', 0)} claims whose intervals are of 95 % each.",
        "",
    ]
    lines += _markdown(
        ["", *VERDICTS], [[paper, *map(str, row)] for paper, row in zip(PAPERS, counts.to_numpy(), strict=True)]
    )
    columns = ["claim", "verdict", "measured", "rule", "source", "figure"]
    for paper in PAPERS:
        kept = table.loc[table["paper"] == paper, columns].copy()
        kept["figure"] = [linked(names, figures) for names in kept["figure"]]
        kept["rule"] = [f"`{' '.join(rule.split())}`" if rule else "" for rule in kept["rule"]]
        if len(kept):
            lines += ["", f"## {paper}", "", *_markdown(columns, kept.to_numpy().tolist())]
    if unused := table.attrs.get("unused"):
        lines += ["", f"Findings that no claim uses: {', '.join(unused)}."]
    return "\n".join(lines) + "\n"


def linked(names: str, figures: Path | None) -> str:
    """Names of figures and tables, each a Markdown link to its picture or, of a table, its text, where it is there."""
    found = []
    for name in filter(None, names.split(", ")):
        files = [f"{name}{suffix}" for suffix in (".png", ".md") if figures and (figures / f"{name}{suffix}").is_file()]
        found.append(f"[{name}]({files[0]})" if files else name)
    return ", ".join(found)


def _markdown(header: list[str], rows: list[list[str]]) -> list[str]:
    clean = [[" ".join(cell.split()).replace("|", "\\|") for cell in row] for row in [header, *rows]]
    text = [f"| {' | '.join(row)} |" for row in clean]
    return [text[0], "|" + " --- |" * len(header), *text[1:]]
