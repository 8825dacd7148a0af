"""Score the translations of one role by a method under some settings: one run of a search."""

from __future__ import annotations

import json

from medshift.data.domains import EvaluationSet
from medshift.evaluate import score
from medshift.stages.compared import load_compared
from medshift.stages.job import Job
from medshift.stages.translation import summarise

COSTS = ("nfe", "parameters", "images_seen")


def build(job: Job, *, source: str, target: str, role: str) -> None:
    """Write scores.csv, one row a view, and summary.json, means with intervals over heads and what the method costs.

    Args:
        job: its inputs ``views`` and ``compared``.
        source: domain translated from.
        target: domain translated to.
        role: ``validation`` or a tier, of which the first draw is scored.
    """
    images = load_compared(job.inputs["compared"])[role][0]
    facts = json.loads((job.inputs["compared"] / "facts.json").read_text())
    rows = score(images, EvaluationSet(job.inputs["views"], role, limit=len(images)), source, target)
    rows.to_csv(job.folder / "scores.csv", index=False)
    summary = summarise(rows) | {name: facts[name] for name in COSTS}
    (job.folder / "summary.json").write_text(json.dumps(summary, indent=1))
