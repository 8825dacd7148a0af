"""The training views of one domain projected from both volumes of each head: pairs, which only a ceiling may see."""

from __future__ import annotations

import pandas as pd

from medshift.data.domains import render
from medshift.data.heads import Heads
from medshift.errors import DataError
from medshift.stages.halves import PAIRED
from medshift.stages.job import Job
from medshift.stages.views import phantom_spacing


def build(job: Job, *, domain: str, source: str, sha256: str, size: int) -> None:
    """Write the views of role ``paired``: heads and poses of the training views of a domain.

    Args:
        job: its input ``views``.
        domain: whose training views.
        source: of the heads, as for the views.
        sha256: of the CT; empty for the phantom.
        size: of the square views [pixels].

    Raises:
        DataError: the CT is no longer the one that was asked for.
    """
    found = Heads("phantom" if source == "phantom" else "cranium", phantom_spacing_mm=phantom_spacing(size))
    if found.source != source:
        raise DataError(f"The heads come from {found.source!r} and no longer from {source!r}; run the command again.")
    table = pd.read_csv(job.inputs["views"] / "views.csv", keep_default_na=False)
    table = table[table["role"] == f"train:{domain}"].assign(role=PAIRED).reset_index(drop=True)
    render(table, found, size, job.folder, device=job.device, progress=job.progress)
