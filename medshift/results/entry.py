"""One row of the comparison of 06: its scores and metrics of sets, over draws and seeds, and how its training went."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medshift.errors import DataError
from medshift.metrics.intervals import Interval, hierarchical_interval
from medshift.results.convergence import CONVERGED, LOSS, MAE, UNTRAINED, Rest, moved
from medshift.results.trainings import Trained

FEATURES = "ST-AlexNet"  # the extractor whose weights are always there
VIEW = ["view", "head", "region"]
EVERY_METRIC = "invented"  # a column that the stage fills for the headline's tier alone


@dataclass(frozen=True)
class Measured:
    """A number with its 95 % interval, NaN where it has none, and its values by seed of the training."""

    value: float
    low: float = float("nan")
    high: float = float("nan")
    by_seed: tuple[float, ...] = ()

    @property
    def half(self) -> float:
        """Half the width of the interval; NaN without one."""
        return (self.high - self.low) / 2

    def text(self, digits: int = 2, scale: float = 1.0) -> str:
        """``value [low, high]``, and ``; seeds a to b`` where there are several."""

        def number(value: float) -> str:
            return f"{scale * value:.{digits}f}"

        if not np.isfinite(self.value):
            return "not computed"
        interval = f" [{number(self.low)}, {number(self.high)}]" if np.isfinite([self.low, self.high]).all() else ""
        seeds = f"; seeds {number(min(self.by_seed))} to {number(max(self.by_seed))}" if len(self.by_seed) > 1 else ""
        return number(self.value) + interval + seeds


@dataclass(frozen=True)
class Entry:
    """One row of the table.

    Args:
        name: as it stands there.
        group: which block of the table.
        compared: folder of its translations and facts.
        assessed: folder of its scores.
        deviation: what differs from the method as published; empty where its facts say it.
        trained: the training whose network translates; none where there is no network.
        further: the same folders of further seeds of that training.
        searched: what differs beside that by a search.
    """

    name: str
    group: str
    compared: Path
    assessed: Path
    deviation: str = ""
    trained: Trained | None = None
    further: tuple[tuple[Path, Path], ...] = ()
    searched: str = ""

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What the method costs and with which knobs it ran, of the first seed."""
        return self.facts_by_seed[0]

    @cached_property
    def facts_by_seed(self) -> list[dict[str, Any]]:
        """The facts of every seed."""
        folders = [self.compared, *(compared for compared, _ in self.further)]
        return [json.loads((folder / "facts.json").read_text()) for folder in folders]

    @cached_property
    def scores(self) -> pd.DataFrame:
        """One row a seed, tier and view, the mean of its draws."""
        return self._by_seed("scores.csv", _means_of_draws, {"insert": str})

    @cached_property
    def sets(self) -> dict[tuple[str, str], Measured]:
        """Metric and features -> the mean over draws and seeds, with its interval where the stage gave one.

        The interval of a mean of draws and seeds is the mean of their intervals: right where they agree view by view,
        too long where they do not.
        """
        columns = ["value", "low", "high"]
        table = self._by_seed("sets.csv", lambda t: t.reindex(columns=["metric", "features", *columns]), {})
        by_seed = table.groupby(["seed", "metric", "features"])[columns].mean().reset_index()
        found = {}
        for (metric, features), rows in by_seed.groupby(["metric", "features"]):
            value, low, high = (float(x) for x in rows[columns].mean())
            found[str(metric), str(features)] = Measured(value, low, high, tuple(rows["value"].tolist()))
        return found

    def _by_seed(self, file: str, shorten: Callable[[pd.DataFrame], pd.DataFrame], dtype: Mapping[str, type]) -> Any:
        folders = [self.assessed, *(assessed for _, assessed in self.further)]
        parts = []
        for seed, folder in enumerate(folders):
            table = pd.read_csv(folder / file, keep_default_na=False, na_values=[""], dtype=dict(dtype))
            parts.append(shorten(table).assign(seed=seed))
        return pd.concat(parts, ignore_index=True)

    @cached_property
    def headline(self) -> str:
        """The tier whose images got every metric and whose sets are judged.

        Raises:
            DataError: it is not one.
        """
        whole = self.scores.get(EVERY_METRIC, pd.Series(np.nan, index=self.scores.index)).notna()
        found = self.scores.loc[whole, "role"].unique()
        if len(found) != 1:
            raise DataError(
                f"{self.assessed} has every metric of {len(found)} tiers instead of one; make the stage again."
            )
        return str(found[0])

    @cached_property
    def _views(self) -> dict[str, pd.DataFrame]:
        numbers = [c for c in self.scores.select_dtypes("number").columns if c not in (*VIEW, "seed")]
        means = self.scores.groupby(["role", *VIEW])[numbers].mean().reset_index()
        return {str(role): rows.sort_values("view") for role, rows in means.groupby("role")}

    def of(self, role: str = "") -> pd.DataFrame:
        """The views of one tier, the headline's by default, in order, each the mean of its draws and seeds."""
        return self._views[role or self.headline]

    def mean(self, metric: str, role: str = "") -> Interval:
        """A mean over views with its interval over heads, and over seeds where there are several.

        Views without a value are left out.
        """
        rows = self.scores[self.scores["role"] == (role or self.headline)].dropna(subset=[metric])
        return hierarchical_interval(rows[metric].to_numpy(), rows, levels=("seed", "head", "region"))

    def measured(self, metric: str, role: str = "") -> Measured:
        """`mean` with its values by seed; NaN where no view has a value."""
        role = role or self.headline
        if metric not in self.of(role) or self.of(role)[metric].isna().all():
            return Measured(float("nan"))
        found = self.mean(metric, role)
        seeds = self.scores[self.scores["role"] == role].groupby("seed")[metric].mean()
        return Measured(found.mean, found.low, found.high, tuple(seeds.tolist()))

    @cached_property
    def rest(self) -> Rest:
        """By how much the error on validation views still moved at the end of the training, the worst of the seeds.

        A method's own curve counts where it was watched. A row that stands on a network trained for something else has
        that network's loss.
        """
        curves = [moved(facts.get("watched")) for facts in self.facts_by_seed]
        known = [value for value in curves if value is not None]
        if known:
            return Rest(max(known) if len(known) == len(curves) else None, MAE)
        trained = self.trained is not None or bool(self.facts.get("images_seen"))
        return Rest(moved(self.trained.looks, "loss") if self.trained else None, LOSS, trained)

    @property
    def rankable(self) -> bool:
        """Whether it may be ranked: its training has converged, or there is none."""
        return self.rest.state in (CONVERGED, UNTRAINED)


def _means_of_draws(table: pd.DataFrame) -> pd.DataFrame:
    numbers = [c for c in table.select_dtypes("number").columns if c not in ("view", "head", "draw")]
    return table.groupby(["role", *VIEW], sort=False)[numbers].mean().reset_index()


def repeats(entries: Sequence[Entry]) -> dict[str, str]:
    """Name -> name of the earlier row that makes the very same images, as far as every score tells.

    Scores are compared to what half precision of the images leaves of them.
    """
    found: dict[str, str] = {}
    numbers = {e.name: e.scores.select_dtypes("number").to_numpy() for e in entries}
    for k, e in enumerate(entries):
        own = numbers[e.name]
        for earlier in (other.name for other in entries[:k] if other.name not in found):
            if own.shape == numbers[earlier].shape and np.allclose(own, numbers[earlier], 1e-4, 1e-6, equal_nan=True):
                found[e.name] = earlier
                break
    return found
