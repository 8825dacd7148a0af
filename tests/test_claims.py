"""The ledger: the shipped one can go either way on every claim, and what is wrong in one is said by claim and file."""

import ast
import gc
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from medshift.errors import DataError, ParameterError
from medshift.repro.claims import (
    COLUMNS,
    VERDICTS,
    Claim,
    Finding,
    findings_of,
    load_claims,
    published_findings,
    read_findings,
)
from medshift.repro.ledger import claims_markdown, error_of, judge, linked, said
from medshift.repro.publish import publish
from medshift.repro.receipts import file_hash

LEDGER = Path(__file__).resolve().parents[1] / "notebooks" / "claims.yaml"


@pytest.fixture(autouse=True)
def no_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    """statsmodels collects garbage at every correction, a tenth of a second each in a process that holds torch."""
    monkeypatch.setattr(gc, "collect", lambda: 0)


def claim(**changes: Any) -> Claim:
    """A claim that x lies above 0, or other than that."""
    values = {"id": "one", "paper": "MedShift", "text": "x is positive", "source": "here", "needs": ["x"]}
    return Claim(**{**values, "holds": "x.low > 0", "fails": "x.high < 0", **changes})


def by_p(name: str, finding: str, family: str = "f") -> Claim:
    expression = f"{finding}.p < 0.05 and {finding}.value"
    return claim(id=name, needs=[finding], holds=f"{expression} > 0", fails=f"{expression} < 0", family=family)


def finding(name: str = "x", value: float = 1.0, **changes: Any) -> dict[str, Finding]:
    return {name: Finding(finding=name, value=value, **changes)}


def verdict(claims: Claim | list[Claim], findings: dict[str, Finding]) -> str:
    return judge(claims if isinstance(claims, list) else [claims], findings)["verdict"].iloc[0]


# ---- the shipped ledger ------------------------------------------------------------------------------------------


def test_published_numbers_decide_their_claims() -> None:
    table = judge(load_claims(LEDGER), findings_of(published_findings(), "published")).set_index("id")["verdict"]
    decided = table[table.isin(["holds", "fails", "undecided"])]
    assert decided.to_dict() == {
        "outperforms_others": "fails",
        "best_tradeoff": "holds",
        "headline_is_best": "fails",
        "six_times_smaller": "fails",
        "published_tau_realism": "fails",
        "published_tau_structure": "holds",
        "five_dosage_levels": "fails",
        "cdtsde_gains_follow": "holds",
        "cdtsde_released_ends": "fails",
        "ranks_of_two_metrics": "holds",
        "order_depends_on_aggregation": "holds",
        "first_under_most_weightings": "holds",
        "gans_more_realistic": "holds",
        "medshift_not_dominated": "holds",
        "pixels_do_not_fit": "holds",
        "sdedit_other_noise": "undecided",
    }


def test_every_published_finding_has_a_claim() -> None:
    used = {name for one in load_claims(LEDGER) for name in one.needs}
    assert {row["finding"] for row in published_findings()} <= used


def drawn(one: Claim, rng: np.random.Generator) -> dict[str, Finding]:
    """Findings near the numbers of a claim's rules; every second time those compared with each other share a value."""
    trees = [ast.parse(e.strip()) for e in one.expressions]
    numbers = [n.value for tree in trees for n in ast.walk(tree) if isinstance(n, ast.Constant)]
    centres = sorted({0.0, *numbers, *(-n for n in numbers), float(np.mean(numbers or [0.0]))})
    shared = {name: name for name in one.needs}
    for node in (n for tree in trees for n in ast.walk(tree) if isinstance(n, ast.Compare)):
        together = {shared[n.id] for n in ast.walk(node) if isinstance(n, ast.Name) and n.id in shared}
        shared = {name: min(together) if kept in together else kept for name, kept in shared.items()}
    alone, values = rng.random() < 0.5, {}
    found: dict[str, Finding] = {}
    for name in one.needs:
        key = name if alone else shared[name]
        if key not in values:
            values[key] = float(rng.choice(centres) + rng.choice([-1, 0, 1]) * rng.choice([0.02, 1.0]))
        reach, p = float(rng.choice([0.0, 0.01, 0.5])), float(rng.choice([1e-4, 0.6]))
        n = max(1, round(abs(values[key])))
        found |= finding(name, values[key], low=values[key] - reach, high=values[key] + reach, n=n, p=p)
    return found


@pytest.mark.parametrize("one", [pytest.param(c, id=c.id) for c in load_claims(LEDGER) if c.expressions])
def test_every_claim_can_hold_and_can_fail_and_never_does_both(one: Claim) -> None:
    rng, seen = np.random.default_rng(0), set()
    for _ in range(6000):
        seen.add(said(one, drawn(one, rng)))  # refuses a claim that both holds and fails
        if {"holds", "fails"} <= seen:
            break
    assert {"holds", "fails"} <= seen


# ---- verdicts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "low, high, expected",
    [(0.1, 0.3, "holds"), (-0.3, -0.1, "fails"), (-0.1, 0.1, "undecided"), (0.0, 0.1, "undecided")],
)
def test_the_interval_decides(low: float, high: float, expected: str) -> None:
    assert verdict(claim(), finding(value=(low + high) / 2, low=low, high=high)) == expected


def test_what_was_not_measured_is_not_run_and_what_cannot_be_judged_says_why() -> None:
    bare = {"needs": [], "holds": None, "fails": None}
    claims = [
        claim(needs=["x", "y"], holds="x.low > y.high", fails="x.high < y.low"),
        claim(id="two", not_yet="needs a mask", **bare),
        claim(id="three", not_comparable="other data", **bare),
    ]
    table = judge(claims, finding(low=0.0, high=2.0))
    assert table["verdict"].tolist() == ["not yet run", "not yet run", "not comparable"]
    assert table["measured"].tolist() == ["no finding y yet", "needs a mask", "other data"]


@pytest.mark.parametrize("one, lacking", [(claim(), "no x.high, x.low"), (by_p("one", "x"), "no x.p")])
def test_a_number_that_was_not_determined_leaves_the_claim_undecided(one: Claim, lacking: str) -> None:
    row = judge([one], finding(n=4)).iloc[0]
    assert row["verdict"] == "undecided" and lacking in row["measured"]


def test_p_is_adjusted_within_the_family_as_declared() -> None:
    both = [by_p("one", "x"), by_p("two", "y")]
    x, y = finding("x", p=0.03), finding("y", p=0.04)
    assert verdict(both[:1], x) == "holds"
    assert judge(both, x | y)["verdict"].tolist() == ["undecided", "undecided"]  # 0.06 both
    assert judge(both, x)["verdict"].tolist() == ["undecided", "not yet run"]  # y counts though it is not there yet
    assert judge(both, finding("x", p=0.02) | y)["verdict"].tolist() == ["holds", "holds"]  # 0.04 both
    assert judge([both[0], by_p("two", "y", "g")], x | y)["verdict"].tolist() == ["holds", "holds"]
    # One finding tested by two claims is one test.
    assert judge([both[0], by_p("two", "x")], x)["verdict"].tolist() == ["holds", "holds"]
    # A finding whose p no expression uses is no member, though it has one.
    mixed = claim(needs=["x", "y"], holds="x.p < 0.05 and y.value > 0", fails="x.p < 0.05 and y.value < 0", family="f")
    assert verdict(mixed, x | y) == "holds"
    assert "p = 0.06 (Holm over 2)" in judge(both, x | y)["measured"][0]
    # Adjustment is for the expressions; the findings stay as they were.
    assert x["x"].p == 0.03


@pytest.mark.parametrize("heads", [4, 8, None])
def test_an_interval_enters_its_family_with_the_p_of_its_threshold(heads: int | None) -> None:
    """Against Student's test itself: twice the one-sided p of the threshold that the interval has to clear."""
    value, error, threshold = 1.0, 0.3, 0.2
    spread = stats.t(heads - 1) if heads else stats.norm
    reach = error * spread.ppf(0.975)
    x = finding(value=value, low=value - reach, high=value + reach, heads=heads)
    above = claim(holds="x.low > 0.2", fails="x.high < 0.2")
    expected = 2 * spread.sf((value - threshold) / error)
    found = error_of(above, x)
    if expected < 0.05:
        assert found == pytest.approx(expected, rel=2e-3)
    else:
        assert found == 1.0
    below = claim(holds="x.low > 1.8", fails="x.high < 1.8")
    assert error_of(below, x) == pytest.approx(found), "a claim that fails is as certain as one that holds"


def test_where_all_intervals_must_clear_their_thresholds_the_worst_counts() -> None:
    x, y = finding("x", 1.0, low=0.4, high=1.6, heads=8), finding("y", 1.0, low=0.1, high=1.9, heads=8)
    both = claim(needs=["x", "y"], holds="min(x.low, y.low) > 0", fails="max(x.high, y.high) < 0")
    assert error_of(both, x | y) == pytest.approx(
        error_of(claim(needs=["y"], holds="y.low > 0", fails="y.high < 0"), y)
    )


def test_an_interval_that_decides_alone_may_not_decide_in_its_family() -> None:
    clear, close = {"low": 0.5, "high": 1.5, "heads": 8}, {"low": 0.05, "high": 1.95, "heads": 8}
    rules = {"holds": "y.low > 0", "fails": "y.high < 0", "needs": ["y"]}
    claims = [claim(family="f"), claim(id="two", family="f", **rules)]
    x, y = finding("x", **clear), finding("y", **close)
    assert judge([claims[1]], y)["verdict"].tolist() == ["holds"]
    table = judge(claims, x | y)
    assert table["verdict"].tolist() == ["holds", "holds"], "Holm steps down: the last is tested at 5 % itself"
    third = claim(id="three", family="f", needs=["z"], holds="z.low > 0", fails="z.high < 0")
    table = judge([*claims, third], x | y | finding("z", **close))
    assert table["verdict"].tolist() == ["holds", "undecided", "undecided"]
    assert "Holm over 3" in table["measured"][1] and table.attrs["families"] == {"f": 3}
    assert judge([claim(), *claims[1:]], x | y).attrs["outside"] == 1
    # One that uses a p and one that rests on an interval share a family.
    mixed = [by_p("one", "w"), claims[1]]
    assert judge(mixed, y | finding("w", p=0.04))["verdict"].tolist() == ["undecided", "undecided"]
    assert judge(mixed, y)["verdict"].tolist() == ["not yet run", "undecided"], "what is missing counts as 1"


def test_figures_that_are_there_become_links(tmp_path: Path) -> None:
    for name in ("04_a.png", "04_a.md", "04_b.md"):
        (tmp_path / name).touch()
    assert linked("04_a, 04_b, 04_c", tmp_path) == "[04_a](04_a.png), [04_b](04_b.md), 04_c"
    assert linked("04_a", None) == "04_a" and linked("", tmp_path) == ""


def test_links_lead_to_figures_from_beside_them_and_from_above(tmp_path: Path) -> None:
    build = tmp_path / "build" / "smoke"
    (build / "figures").mkdir(parents=True)
    (build / "figures" / "04_a.png").write_text("a figure")
    table = judge([claim(figure="04_a")], finding(low=0.5, high=2.0))
    (build / "figures" / "90_claims.md").write_text(claims_markdown(table, build / "figures"))
    files = {name: file_hash(build / "figures" / name) for name in ("04_a.png", "90_claims.md")}
    (build / "90_claims.receipt.json").write_text(
        json.dumps({"files": files, "seconds": 1.0, "parts": {}, "shown": []})
    )
    folder, _ = publish("smoke", out_dir=str(tmp_path))
    for page in (folder / "90_claims.md", tmp_path / "figures" / "claims.md"):
        links = re.findall(r"\]\(([^)]+)\)", page.read_text())
        assert links and all((page.parent / link).exists() for link in links)
        assert any(link.endswith("04_a.png") for link in links)


def test_a_ledger_that_says_yes_and_no_is_refused() -> None:
    with pytest.raises(ParameterError, match="one both holds and fails"):
        judge([claim(fails="x.value > 0")], finding(low=0.5, high=2.0))


@pytest.mark.parametrize("expression", ["x.value / (x.value - 1) > 0", "min(x.value) > 0", "abs(x.value, 1) > 0"])
def test_an_expression_that_cannot_be_computed_is_refused(expression: str) -> None:
    with pytest.raises(ParameterError, match="one: an expression cannot be computed"):
        judge([claim(holds=expression)], finding(low=0.5, high=2.0))


def test_the_measured_text_has_value_interval_unit_and_n() -> None:
    full = finding(value=1.23456, low=1.0, high=1.5, n=24, unit="dB", text="gain", figure="04_gain")
    row = judge([claim()], full).iloc[0]
    assert row["measured"] == "gain: 1.235 [1, 1.5] dB, n = 24" and row["figure"] == "04_gain"
    assert judge([claim(figure="05_other")], full).iloc[0]["figure"] == "05_other"
    assert str(finding(value=2.0)["x"]) == "x: 2"


def test_findings_that_no_claim_uses_are_named() -> None:
    table = judge([claim()], finding(low=0.0, high=2.0) | finding("mispelt"))
    assert table.attrs["unused"] == ["mispelt"]
    assert "no claim uses: mispelt" in claims_markdown(table)


# ---- ledgers that are wrong --------------------------------------------------------------------------------------

GOOD = "id: one\n    paper: MedShift\n    text: x is positive\n    source: here\n"
RULES = "    needs: [x]\n    holds: x.low > 0\n    fails: x.high < 0\n"


def ledger(folder: Path, *entries: str) -> Path:
    path = folder / "ledger.yaml"
    path.write_text("claims:\n" + "".join(f"  - {entry}" for entry in entries))
    return path


def test_a_good_ledger_loads(tmp_path: Path) -> None:
    assert load_claims(ledger(tmp_path, GOOD + RULES)) == [claim()]


@pytest.mark.parametrize(
    "entry, message",
    [
        (GOOD + RULES + "    hold: x.low > 0\n", "hold: Extra inputs"),
        (GOOD + RULES.replace("x.low > 0", "y.low > 0"), "uses 'y', which `needs` does not list"),
        (GOOD + RULES.replace("[x]", "[x, y]"), "`needs` lists 'y', which no expression uses"),
        (GOOD + RULES.replace("[x]", "[x, x]"), "lists a finding twice"),
        (GOOD + RULES.replace("[x]", "x"), "needs: "),
        (GOOD, "give either both of `holds` and `fails`"),
        (GOOD + RULES + "    not_yet: later\n", "give either both of `holds` and `fails`"),
        (GOOD + "    not_yet: later\n    not_comparable: other\n", "give either both of `holds` and `fails`"),
        (GOOD + "    needs: [x]\n    not_yet: later\n", "`needs` lists 'x'"),
        (GOOD + "    needs: [x]\n    holds: x.low > 0\n", "a claim that cannot fail"),
        (GOOD + RULES.replace("low", "value").replace("high", "value") + "    family: f\n", "this one uses neither"),
        (GOOD + RULES.replace("x.low > 0", "x.low > 0 and x.p < 0.05"), "names its `family`"),
        (GOOD.replace("MedShift", "MedShft") + RULES, "paper: Input should be"),
        (GOOD.replace("x is positive", "''") + RULES, "text: "),
        (GOOD.replace("id: one", "id: One claim") + RULES, "id: "),
        (GOOD.replace("id: one\n    ", "") + RULES, "claim number 1: id: Field required"),
        (GOOD + RULES.replace("x.low > 0", "x > 0"), "which number of it"),
        (GOOD + RULES.replace("x.low > 0", "x.low > 0 or x"), "which number of it"),
        (GOOD + RULES.replace("x.low > 0", "x.mean > 0"), "a finding has value, low"),
        (GOOD + RULES.replace("x.low > 0", "x.low"), "compares no number"),
        (GOOD + RULES.replace("x.low > 0", "x.low > 0 and x.value"), "compares no number"),
        (GOOD + RULES.replace("x.low > 0", "1 > 0"), "compares no number"),
        (GOOD + RULES.replace("x.low > 0", "x.low >"), "is no expression"),
        (GOOD + RULES.replace("x.low > 0", "x.low > '0'"), "more than numbers and comparisons"),
        (GOOD + RULES.replace("x.low > 0", "not x.low > 0"), "more than numbers and comparisons"),
        (GOOD + RULES.replace("x.low > 0", '"[x.low] > [0]"'), "more than numbers and comparisons"),
        (GOOD + RULES.replace("x.low > 0", "round(x.low) > 0"), "only abs, min, max can be called"),
        (GOOD + RULES.replace("x.low > 0", "x.low.real > 0"), "a finding has value, low"),
        (GOOD + RULES.replace("x.low > 0", "x.__class__ > 0"), "a finding has value, low"),
        (GOOD + RULES.replace("x.low > 0", "yes"), "holds: "),
    ],
)
def test_a_wrong_claim_is_named_with_its_file(tmp_path: Path, entry: str, message: str) -> None:
    path = ledger(tmp_path, entry)
    with pytest.raises(ParameterError) as caught:
        load_claims(path)
    text = str(caught.value)
    assert message in text and str(path) in text and ("claim one" in text or "number 1" in text or "One claim" in text)
    assert "\n" not in text


def test_an_id_given_twice_is_refused(tmp_path: Path) -> None:
    path = ledger(tmp_path, GOOD + RULES, GOOD + RULES)
    with pytest.raises(ParameterError, match="claim one: another claim has this id"):
        load_claims(path)


@pytest.mark.parametrize("text", ["claims: []\n", "claims: {id: one}\n", "claim: [1]\n", "claims: [1]\nmore: 2\n", ""])
def test_a_file_that_is_no_ledger_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "ledger.yaml"
    path.write_text(text)
    with pytest.raises(ParameterError, match="ledger.yaml"):
        load_claims(path)
    with pytest.raises(DataError):
        load_claims(tmp_path / "none.yaml")


# ---- files of findings -------------------------------------------------------------------------------------------


def write(folder: Path, name: str, *rows: dict[str, Any]) -> Path:
    path = folder / name
    pd.DataFrame([{"finding": "x", "value": 1.0, **row} for row in rows], columns=list(COLUMNS)).to_csv(
        path, index=False
    )
    return path


def test_published_findings_survive_the_file(tmp_path: Path) -> None:
    write(tmp_path, "90_findings.csv", *published_findings())
    assert read_findings(tmp_path) == findings_of(published_findings(), "published")


def test_findings_of_several_files_are_joined_and_others_left_aside(tmp_path: Path) -> None:
    write(tmp_path, "04_findings.csv", {"low": 0.5, "high": 2.0, "n": 24, "p": 0.01, "unit": "dB", "text": 'a, "b"'})
    write(
        tmp_path, "05_findings.csv", {"finding": "y"}, {"finding": "z", "n": 3}
    )  # n is written 3.0 beside an empty one
    write(tmp_path, "06_other.csv", {"finding": "w"})
    found = read_findings(tmp_path)
    assert list(found) == ["x", "y", "z"] and found["z"].n == 3
    assert found["x"] == Finding(finding="x", value=1.0, low=0.5, high=2.0, n=24, p=0.01, unit="dB", text='a, "b"')
    assert found["y"].low is found["y"].p is found["y"].n is None


def test_no_file_is_no_finding_and_no_folder_an_error(tmp_path: Path) -> None:
    assert read_findings(tmp_path) == {}
    with pytest.raises(DataError, match="no folder"):
        read_findings(tmp_path / "none")


@pytest.mark.parametrize(
    "row, message",
    [
        ({"value": np.nan}, "value: "),
        ({"value": np.inf}, "value: "),
        ({"value": "good"}, "value: "),
        ({"low": 2.0, "high": 1.0}, "low 2.0 must not lie above high 1.0"),
        ({"low": "nan", "high": 1.0}, "must not lie above"),
        ({"low": 0.5}, "must both be given"),
        ({"p": 1.5}, "p: "),
        ({"p": "nan"}, "p: "),
        ({"n": 0}, "n: "),
        ({"n": 1.5}, "n: "),
        ({"finding": "a b"}, "'a b'"),
    ],
)
def test_a_wrong_finding_is_named_with_its_file(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    path = write(tmp_path, "04_findings.csv", row)
    with pytest.raises(DataError) as caught:
        read_findings(tmp_path)
    assert message in str(caught.value) and str(path) in str(caught.value)


def test_a_finding_given_twice_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "04_findings.csv", {}, {})
    with pytest.raises(DataError, match="'x' stands there twice"):
        read_findings(tmp_path)
    write(tmp_path, "04_findings.csv", {})
    write(tmp_path, "05_findings.csv", {})
    with pytest.raises(DataError, match=r"05_findings.csv and .*04_findings.csv both have the finding 'x'"):
        read_findings(tmp_path)


@pytest.mark.parametrize("content", [b"", b"finding,value\nx,1\n", b"\xff\xfe\x00", b'a,"b\n'])
def test_a_file_that_is_no_table_of_findings_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "04_findings.csv").write_bytes(content)
    with pytest.raises(DataError, match="04_findings.csv"):
        read_findings(tmp_path)


# ---- Markdown ----------------------------------------------------------------------------------------------------


def test_markdown_counts_and_groups_and_escapes() -> None:
    claims = [
        claim(),
        claim(id="two", paper="companion", text="a|b\nc", holds="x.high < 0", fails="x.low > 0"),
        claim(id="three", paper="companion"),
    ]
    text = claims_markdown(judge(claims, finding(low=0.5, high=2.0)))
    lines = text.splitlines()
    assert "| MedShift | 1 | 0 | 0 | 0 | 0 |" in lines and "| companion | 1 | 1 | 0 | 0 | 0 |" in lines
    assert [line for line in lines if line.startswith("## ")] == ["## MedShift", "## companion"]
    assert text.index("## MedShift") < text.index("x is positive") < text.index("## companion") < text.index(r"a\|b c")
    for line in lines:
        if line.startswith("|"):
            assert line.replace(r"\|", "").count("|") in (len(VERDICTS) + 2, 7)


def test_nothing_here_imports_torch() -> None:
    modules = "medshift.repro.ledger, medshift.published, medshift.metrics.ranking, medshift.metrics.verdicts"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=250).returncode == 0
