"""Check a user's own folders of images: every file is read once, so that a damaged one is found before training."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from medshift.data.folders import FolderSet
from medshift.errors import DataError
from medshift.stages.images import folder_set
from medshift.stages.job import Job


def listing(found: FolderSet) -> dict[str, Any]:
    """What decides the images without opening them: names, sizes and times of change, as one hash, and counts."""
    files = {
        domain: {split: [_identity(path) for path in paths] for split, paths in splits.items()}
        for domain, splits in found.files.items()
    }
    return {"files": hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest(), "counts": found.counts()}


def _identity(path: Path) -> tuple[str, int, int]:
    status = path.stat()
    return path.name, status.st_size, status.st_mtime_ns


def build(job: Job, *, files: str, counts: dict[str, dict[str, int]], size: int, seed: int) -> dict[str, str]:
    """Read every file and write folders.json.

    Args:
        job: where; its ``data`` is the folder.
        files: hash of the listing, see `listing`.
        counts: images by domain and split.
        size: side of the images [pixels].
        seed: of every random number drawn from them.

    Raises:
        DataError: a file is damaged, or the folder has changed since it was listed.
    """
    found = folder_set(job.data, size)
    found.verify(progress=job.progress)
    if listing(found)["files"] != files:
        raise DataError(f"The images in {job.data} changed while they were read; run the command again.")
    content = hashlib.sha256()
    for splits in found.files.values():
        for path in (path for paths in splits.values() for path in paths):
            content.update(path.read_bytes())
    (job.folder / "folders.json").write_text(json.dumps({"size": size, "counts": counts}, indent=1))
    return {"data set": "your own folders", "data set's SHA-256": content.hexdigest()}
