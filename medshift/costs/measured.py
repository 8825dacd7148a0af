"""What a profile takes on a device whose steps were timed: counted operations over the speeds that the steps reached.

`make bench` writes the file of steps, one for each kind of work that a profile does: how many operations it took and
how many seconds. Work of the same kind at another size (a network of half the width, a coarser codec) is assumed to
reach the same speed. Nothing of this is the time of a whole profile: what is in `NOT_TIMED` comes on top.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medshift.costs.assumed import markdown
from medshift.costs.workload import Work
from medshift.errors import DataError, ParameterError

__all__ = ["NOT_TIMED", "Step", "Steps", "measured_table", "measured_verdict", "read_steps", "write_steps"]

NOT_TIMED = (
    "projecting views (01), metrics and their feature networks, classifiers, intervals, figures",
    "validation losses and pictures during training",
    "baselines without a network, the adaptive solver dopri5, failures shown in 99, optimal-transport assignments",
    "start-up, compilation, loading, writing checkpoints",
)


@dataclass(frozen=True)
class Step:
    """One timed step.

    Args:
        what: is done, see `medshift.costs.workload.Work`.
        images: of it.
        operations: counted, of all images.
        seconds: the median over turns.
        low: the shortest turn [s].
        high: the longest turn [s].
    """

    what: str
    images: int
    operations: float
    seconds: float
    low: float
    high: float

    def __post_init__(self) -> None:
        if not (self.images >= 1 and 0 < self.operations < math.inf and 0 < self.low <= self.seconds <= self.high):
            raise ParameterError(f"{self} is no timed step: expected images, operations and seconds above 0.")


@dataclass(frozen=True)
class Steps:
    """The steps of one device.

    Args:
        device: its name.
        profile: whose sizes the steps have.
        command: that timed them.
        steps: one of each kind.
    """

    device: str
    profile: str
    command: str
    steps: tuple[Step, ...]

    def seconds(self, work: Sequence[Work]) -> float:
        """Seconds of all that work, each at the speed of the step of its kind.

        Raises:
            ParameterError: a kind of work was not timed.
        """
        speeds = {step.what: step.operations / step.seconds for step in self.steps}
        done = [one for one in work if one.operations]
        if missing := sorted({one.what for one in done} - set(speeds)):
            raise ParameterError(
                f"The steps timed on {self.device} lack {', '.join(missing)}; time them again by `make bench`."
            )
        return sum(one.operations / speeds[one.what] for one in done)


def write_steps(path: Path, steps: Steps) -> None:
    """Write steps as JSON; `read_steps` reads them."""
    rows = [vars(step) for step in steps.steps]
    body = {"device": steps.device, "profile": steps.profile, "command": steps.command, "steps": rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(body, indent=1) + "\n")


def read_steps(path: Path | str) -> Steps:
    """Steps that `make bench` has written.

    Raises:
        DataError: no such file, or it holds something else.
    """
    try:
        body = json.loads(Path(path).read_text())
        steps = tuple(Step(**row) for row in body.pop("steps"))
        return Steps(steps=steps, **body)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, ParameterError) as error:
        raise DataError(
            f"{path} holds no steps of a device ({error}); `make bench` writes build/steps.json."
        ) from error


def measured_table(name: str, work: Mapping[str, Sequence[Work]], steps: Steps, seeds: int) -> list[str]:
    """Lines of Markdown: minutes of each part of a profile, from measured steps, all seeds together.

    Args:
        name: of the profile.
        work: its parts, see `medshift.costs.workload.work_of`.
        steps: timed.
        seeds: trainings of everything.

    Raises:
        ParameterError: fewer than one seed, or a kind of work that was not timed.
    """
    if seeds < 1:
        raise ParameterError(f"seeds is {seeds}, expected 1 or more.")
    parts = {part: (sum(one.operations for one in some), steps.seconds(some)) for part, some in work.items()}
    parts["**together**"] = (sum(p for p, _ in parts.values()), sum(s for _, s in parts.values()))
    header = [f"{seeds} {'seeds' if seeds > 1 else 'seed'} of `{name}`", "PFLOP", "minutes", "TFLOP/s reached"]
    rows = [
        [part, f"{seeds * count / 1e15:,.2f}", f"{seeds * took / 60:.1f}", f"{count / took / 1e12 if took else 0:.2f}"]
        for part, (count, took) in parts.items()
    ]
    return markdown(header, rows)


def measured_verdict(name: str, work: Mapping[str, Sequence[Work]], steps: Steps, seeds: int, limit: float) -> str:
    """In words, whether a profile fits into `limit` minutes when every step takes what it was timed to take."""
    minutes = seeds * sum(steps.seconds(some) for some in work.values()) / 60
    fits = "within" if minutes <= limit else f"{minutes / limit:.1f} times"
    took = "one seed" if seeds == 1 else f"{seeds} seeds"
    sizes = "" if steps.profile == name else f" of the sizes of `{steps.profile}`"
    return (
        f"Extrapolated from steps{sizes} measured on {steps.device}: {took} of `{name}`: {minutes:.0f} minutes; that "
        f"is {fits} the {limit:g} minutes asked about. Not measured, and on top: {'; '.join(NOT_TIMED)}."
    )
