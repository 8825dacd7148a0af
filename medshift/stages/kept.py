"""Evaluation views whose images are made once: the physics of an exposure takes longer than most metrics of it."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from medshift.data.domains import EvaluationSet


class KeptViews(EvaluationSet):
    """An `EvaluationSet` that keeps every image it has made; give its images to nobody who writes into them."""

    def __init__(self, folder: Path, role: str, *, limit: int | None = None):
        super().__init__(folder, role, limit=limit)
        self._kept: dict[tuple[str | int, int], Tensor] = {}

    def clean(self, domain: str | int) -> Tensor:
        """See `EvaluationSet`."""
        if (domain, -1) not in self._kept:
            self._kept[domain, -1] = super().clean(domain)
        return self._kept[domain, -1]

    def exposure(self, domain: str | int, number: int) -> Tensor:
        """See `EvaluationSet`."""
        if (domain, number) not in self._kept:
            self._kept[domain, number] = super().exposure(domain, number)
        return self._kept[domain, number]
