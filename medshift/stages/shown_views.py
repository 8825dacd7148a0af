"""A few of a profile's evaluation views, projected alone: the very views of the stage ``views``, in seconds."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from medshift.data.domains import ViewCounts, plan_views, render
from medshift.data.heads import Heads, HeadSplit
from medshift.errors import DataError, ParameterError
from medshift.stages.job import Job
from medshift.stages.views import phantom_spacing


def build(
    job: Job,
    *,
    source: str,
    sha256: str,
    size: int,
    heads: Mapping[str, int],
    views: Mapping[str, int],
    seed: int,
    shown: Mapping[str, int],
) -> dict[str, str]:
    """Write what `medshift.data.domains.render` writes, for the first views of some roles.

    A view's pose and noise do not depend on which others are rendered, so these equal those of ``views`` bit for bit.

    Args:
        job: where and on what.
        source: ``cranium``, ``user`` or ``phantom``.
        sha256: of the CT; empty for the phantom.
        size: of the square views [pixels].
        heads: how many of each split, see `HeadSplit`.
        views: how many of each role there are in all, see `ViewCounts`.
        seed: of poses and noise.
        shown: how many of each role are rendered.

    Raises:
        DataError: the CT is no longer the one that was asked for.
        ParameterError: more views of a role than there are.
    """
    found = Heads("phantom" if source == "phantom" else "cranium", phantom_spacing_mm=phantom_spacing(size))
    if found.source != source:
        raise DataError(f"The heads come from {found.source!r} and no longer from {source!r}; run the command again.")
    table = plan_views(ViewCounts(**views), HeadSplit(**heads), seed)
    kept = []
    for role, number in shown.items():
        of_role = table[table["role"] == role]
        if len(of_role) < number:
            raise ParameterError(f"There are {len(of_role)} views of {role!r}, {number} were asked for; ask for fewer.")
        kept.append(of_role.iloc[:number])
    chosen = pd.concat(kept).reset_index(drop=True)
    render(chosen, found, size, job.folder, device=job.device, progress=job.progress)
    return {"data set": source, "data set's SHA-256": sha256 or "made by code"}
