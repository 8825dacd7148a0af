"""The README says what the published ledger says."""

from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parents[1]


def test_the_table_of_claims_is_that_of_the_published_ledger() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = text.partition("<!-- claims -->")[2].partition("<!-- /claims -->")[0]
    rows = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in shown.strip().splitlines()[2:]]
    ledger = pd.read_csv(ROOT / "figures" / "cpu" / "90_claims.csv", keep_default_na=False)
    decided = ledger[ledger["verdict"].isin(["holds", "fails", "undecided"])]
    assert rows == [(" ".join(c.split()), v) for c, v in zip(decided["claim"], decided["verdict"], strict=True)]


def test_every_notebook_stands_in_the_readme() -> None:
    from medshift.repro.parameters import NOTEBOOKS

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [name for name in NOTEBOOKS if f"`{name}`" not in text] == []
