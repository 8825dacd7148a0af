"""What finished trainings say of themselves: steps, images, minutes, and the network below them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from medshift import checkpoint
from medshift.errors import DataError
from medshift.results.training import validation_history


@dataclass(frozen=True)
class Trained:
    """One finished training.

    Args:
        name: what was trained.
        steps: of its optimisers.
        images: seen by them.
        minutes: of wall time on the machine that trained it.
        looks: at the loss on validation heads: ``images`` and ``loss``, the mean over heads; empty where nobody looked.
        base: the training whose network it is built on.
    """

    name: str
    steps: int
    images: int
    minutes: float
    looks: tuple[Mapping[str, float], ...] = ()
    base: Trained | None = None

    @property
    def images_in_all(self) -> int:
        """Images seen, those of what it is built on included."""
        return self.images + (self.base.images_in_all if self.base else 0)

    @property
    def minutes_in_all(self) -> float:
        """Minutes of training, those of what it is built on included."""
        return self.minutes + (self.base.minutes_in_all if self.base else 0.0)


def trainings(folders: Mapping[str, Path], bases: Mapping[str, str]) -> dict[str, Trained]:
    """Name -> what the training says of itself.

    Args:
        folders: name -> folder of the finished training, or of the weights taken in its place.
        bases: name -> name of the training whose network it is built on.

    Raises:
        DataError: a folder does not say how long its training took.
    """
    found: dict[str, Trained] = {}

    def told(name: str) -> Trained:
        if name not in found:
            base = told(bases[name]) if bases.get(name) else None
            held = checkpoint.load(folders[name], only=())
            looks = _looks(folders[name])
            found[name] = Trained(
                name, held.step, int(held.state["images"]), _minutes(folders[name]), looks=looks, base=base
            )
        return found[name]

    return {name: told(name) for name in folders}


def _minutes(folder: Path) -> float:
    """Of the card where weights were taken, else of the stage that trained them."""
    card, config = folder / "card.json", folder / "config.json"
    if card.is_file():
        return float(json.loads(card.read_text(encoding="utf-8"))["made"]["minutes"])
    if config.is_file():
        return float(json.loads(config.read_text(encoding="utf-8"))["seconds"]) / 60
    raise DataError(f"{folder} has neither card.json nor config.json, so it is no finished training; make it again.")


def _looks(folder: Path) -> tuple[Mapping[str, float], ...]:
    means = validation_history(folder).groupby("images", sort=True)["loss"].mean()
    return tuple({"images": float(n), "loss": float(loss)} for n, loss in zip(means.index, means, strict=True))
