"""Translations off the lattice: step by step, in the background, cancellable, and only the newest one counts.

A callback of a widget holds the kernel, and a Stop button is not heard while it computes. So the work runs in a thread,
one step of the solver at a time, and before each step asks whether anybody still wants its result.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from medshift.guidance import guided
from medshift.ode import integrate, leg_knots, stages
from medshift.translate import MedShift


@dataclass(frozen=True)
class Knobs:
    """How an image is translated; the solver is Heun on the refined grid.

    Args:
        tau: where the legs meet.
        guidance: scale on both legs.
        steps: intervals of a whole leg.
    """

    tau: float
    guidance: float
    steps: int


@dataclass(frozen=True)
class Step:
    """One state of a translation under way.

    Args:
        done: share of all evaluations, 0 to 1.
        title: ``t = 1`` at both ends, ``↓ 0.42`` on the way down, ``z_τ, 0.3`` where the legs meet, ``↑ 0.42`` on the
            way up.
        image: the state decoded, (1,1,H,W); the translation itself where `done` is 1.
    """

    done: float
    title: str
    image: Tensor


def translation(model: MedShift, image: Tensor, source: str, target: str, knobs: Knobs) -> Iterator[Step]:
    """The states of a translation of one image (1,1,H,W), each once, the last what `MedShift.translate` gives.

    Raises:
        ParameterError: knobs out of their range or an unknown domain, at the first step.
    """
    size = (image.shape[-2], image.shape[-1])
    knots = leg_knots(knobs.tau, "refined", knobs.steps)
    velocity = guided(model.velocity, knobs.guidance, model.n_domains)
    labels = model.labels(source, image), model.labels(target, image)
    with torch.no_grad():
        x = model.codec.encode(image)
    total = max(1, 2 * (len(knots) - 1) * stages("heun"))
    done = 0
    for label, leg, arrow in ((labels[0], knots[::-1], "↓"), (labels[1], knots, "↑")):
        walk = integrate(velocity, x, label, leg, solver="heun")
        while True:
            with torch.no_grad():  # not around a yield: it would hold for whoever asks for the next step too
                state = next(walk, None)
                if state is None:
                    break
                x = state.x
                shown = model.codec.decode(x, size=size)
            up, last = arrow == "↑", state.t == leg[-1]
            if up and not last and state.t == leg[0]:
                continue  # z_τ, which the way down ended with
            title = "t = 1" if state.t == 1 else f"z_τ, {state.t:g}" if last else f"{arrow} {state.t:.2g}"
            share = min((done + state.evaluations) / total, 0.999)
            yield Step(1.0 if up and last else share, title, shown)
        done += (len(leg) - 1) * stages("heun")


class Newest:
    """Runs one job at a time in the background; asking for another drops the one before.

    Attributes:
        thread: of the newest job, to be joined by who wants to wait; None before the first.
    """

    def __init__(self) -> None:
        """Nothing asked for yet."""
        self.thread: threading.Thread | None = None
        self._number = 0
        self._lock = threading.RLock()

    def ask(
        self,
        job: Callable[[], Iterator[Step]],
        *,
        step: Callable[[Step], None],
        failed: Callable[[Exception], None],
    ) -> None:
        """Start a job; the one before it stops at its next step and tells nothing more.

        Args:
            job: gives the steps.
            step: told each of them, from the thread.
            failed: told what went wrong, from the thread.
        """

        def work(number: int, before: threading.Thread | None) -> None:
            if before is not None:
                before.join()  # one at a time: two would share the cores, and the newest be last
            try:
                for state in job() if number == self._number else ():
                    if not self._tell(number, step, state):
                        return
            except Exception as error:  # noqa: BLE001  a thread has nobody else to tell
                self._tell(number, failed, error)

        with self._lock:  # until it has started: a kernel's callbacks come from more than one thread
            self._number += 1
            self.thread = threading.Thread(target=work, args=(self._number, self.thread), daemon=True)
            self.thread.start()

    def stop(self) -> None:
        """Drop the job under way, if there is one."""
        with self._lock:
            self._number += 1

    def _tell(self, number: int, whom: Callable[[Any], None], what: Any) -> bool:
        """Tell, unless something newer was asked for; no older job can tell after a newer one was asked."""
        with self._lock:
            if number != self._number:
                return False
            whom(what)
            return True
