"""A guard for adversarial training: it notices that a discriminator has won, and keeps the weights from before.

A least-squares discriminator that tells every made image from every real one has loss 0, and the generator's
adversarial loss is then 1 whatever the generator does: there is no gradient left to learn from. Such a run still ends,
with weights that look like any others; this guard ends it with an error instead.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from medshift import checkpoint
from medshift.errors import CheckpointError, ParameterError, TrainingError
from medshift.processes import World
from medshift.train import StepRecord

__all__ = ["LAST_GOOD", "DiscriminatorWatch"]

LAST_GOOD = "last-good"
STATE = checkpoint.STATE
DISCRIMINATOR, ADVERSARIAL = "discriminator", "adversarial"


class DiscriminatorWatch:
    """Called with every record of `medshift.train.train`; stops a run whose discriminator wins.

    It looks every `every` steps at the means of the losses since its last look; between looks it reads nothing from
    the device. A discriminator is winning where its mean loss is below `threshold` and the generator's adversarial
    loss is at least (1 - `tolerance`) of `maximum`. Where that was so at all looks of `patience` steps it has won.

    At each look at which none is winning, the newest checkpoint of the run goes to ``last-good/`` in its folder, in
    place of the one before, so that it stays when the run has removed it. It is linked, not copied, where the file
    system can: it takes no room as long as the run has it too. ``last-good/`` opens as any run's folder does.

    A discriminator that wins before the run's first checkpoint leaves nothing to go back to, and the error says so: the
    guard keeps checkpoints and makes none.

    Args:
        folder: of the run's checkpoints.
        threshold: of the discriminator's loss, ½ where it knows nothing and ¼ where it cannot tell.
        maximum: the generator's adversarial loss where the discriminator is never deceived, 1 for least squares.
        tolerance: see above.
        patience: steps.
        every: steps from look to look.

    Losses are found by their names: ``discriminator`` and ``adversarial``, and with several discriminators
    ``discriminator-X`` and ``adversarial-X`` for each X.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        threshold: float = 0.01,
        maximum: float = 1.0,
        tolerance: float = 0.05,
        patience: int = 300,
        every: int = 50,
    ) -> None:
        if min(patience, every) < 1 or threshold <= 0 or maximum <= 0 or not 0 <= tolerance < 1:
            raise ParameterError(
                f"patience {patience} and every {every} have to be at least 1, threshold {threshold} and maximum "
                f"{maximum} above 0, tolerance {tolerance} in [0, 1)."
            )
        self.folder = Path(folder)
        self.threshold, self.least = threshold, (1 - tolerance) * maximum
        self.patience, self.every = patience, every
        self._sum: Tensor | float = 0.0
        self._count = 0
        self._winning_for = 0

    def __call__(self, record: StepRecord) -> None:
        """Take a record in.

        Raises:
            TrainingError: a discriminator has won.
            ParameterError: the record has no discriminator's loss beside an adversarial one.
            CheckpointError: a checkpoint cannot be kept.
        """
        pairs = _pairs(record.losses)
        self._sum = self._sum + torch.stack([record.losses[name].float() for pair in pairs for name in pair])
        self._count += 1
        if record.step % self.every:
            return
        means, count = (self._sum / self._count).tolist(), self._count
        self._sum, self._count = 0.0, 0
        winning = [
            (pair[0], made, deceived)
            for pair, made, deceived in zip(pairs, means[::2], means[1::2], strict=True)
            if made < self.threshold and deceived >= self.least
        ]
        if not winning:
            self._winning_for = 0
            self._keep()
            return
        self._winning_for += count
        if self._winning_for >= self.patience:
            raise TrainingError(self._message(record.step, *winning[0]))

    def _keep(self) -> None:
        newest, kept = checkpoint.latest(self.folder), self.folder / LAST_GOOD
        if newest is None or World().rank:
            return
        target, partial = kept / newest.name, kept / f"{newest.name}.partial"
        try:
            # One of the same step may stand there from another run in this folder: its hashes differ.
            if target.exists() and (target / STATE).read_bytes() == (newest / STATE).read_bytes():
                return
            for old in (target, partial):
                shutil.rmtree(old, ignore_errors=True)
            shutil.copytree(newest, partial, copy_function=_link)
            partial.rename(target)
            for old in kept.iterdir():
                if old != target:
                    shutil.rmtree(old)
        except OSError as error:
            raise CheckpointError(
                f"{newest} could not be kept in {kept}: {error}. Free some disk space and run again; it goes on from "
                f"{newest}."
            ) from error

    def _message(self, step: int, name: str, loss: float, adversarial: float) -> str:
        kept = checkpoint.latest(self.folder / LAST_GOOD)
        held = f"The last weights from before that are in {kept}" if kept else "There is no checkpoint from before that"
        return (
            f"The discriminator has won: for {self._winning_for} steps up to step {step} the loss {name!r} was below "
            f"{self.threshold:g} (now {loss:.2g}) and the generator's adversarial loss at its maximum (now "
            f"{adversarial:.3g}), so the generator no longer learns. {held}. Start in a new folder with a weaker "
            "discriminator (fewer layers or channels, a smaller learning rate of its own) or with more training images."
        )


def _pairs(losses: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    """(discriminator's, generator's) names of losses."""
    ends = [name.removeprefix(ADVERSARIAL) for name in losses if name.startswith(ADVERSARIAL)]
    pairs = [(DISCRIMINATOR + end, ADVERSARIAL + end) for end in ends if DISCRIMINATOR + end in losses]
    if not pairs:
        raise ParameterError(
            f"Of the losses {', '.join(losses)} none is {DISCRIMINATOR!r} beside {ADVERSARIAL!r}; name them so, or "
            "train without a DiscriminatorWatch."
        )
    return pairs


def _link(source: str, destination: str) -> None:
    try:
        os.link(source, destination)
    except OSError:  # no links on this file system
        shutil.copy2(source, destination)
