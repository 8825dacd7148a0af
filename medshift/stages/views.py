"""Render every view of a profile: heads projected once to line integrals, from which images are made on demand."""

from __future__ import annotations

from collections.abc import Mapping

from medshift.data.domains import ViewCounts, plan_views, render
from medshift.data.heads import Heads, HeadSplit
from medshift.errors import DataError
from medshift.stages.job import Job


def build(
    job: Job, *, source: str, sha256: str, size: int, heads: Mapping[str, int], views: Mapping[str, int], seed: int
) -> dict[str, str]:
    """Write what `medshift.data.domains.render` writes.

    Args:
        job: where and on what.
        source: ``cranium``, ``user`` or ``phantom``.
        sha256: of the CT; empty for the phantom.
        size: of the square views [pixels].
        heads: how many of each split, see `HeadSplit`.
        views: how many of each role, see `ViewCounts`.
        seed: of poses and noise.

    Raises:
        DataError: the CT is no longer the one that was asked for.
    """
    found = Heads("phantom" if source == "phantom" else "cranium", phantom_spacing_mm=phantom_spacing(size))
    if found.source != source:
        raise DataError(f"The heads come from {found.source!r} and no longer from {source!r}; run the command again.")
    table = plan_views(ViewCounts(**views), HeadSplit(**heads), seed)
    render(table, found, size, job.folder, device=job.device, progress=job.progress)
    return {"data set": source, "data set's SHA-256": sha256 or "made by code"}


def phantom_spacing(size: int) -> float:
    """The phantom's voxels [mm]: coarser for coarser pixels."""
    return 1.5 if size > 32 else 3.0
