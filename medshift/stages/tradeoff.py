"""The study of tau on every tier, or on a user's own test images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from medshift.baselines.blur_tone import BlurTone
from medshift.baselines.histogram import HistogramMatch
from medshift.baselines.identity import Identity
from medshift.baselines.nearest import NearestTarget
from medshift.stages.images import STATISTICS_IMAGES, FolderImages, Images, open_images
from medshift.stages.job import Job
from medshift.stages.network import open_translator
from medshift.tradeoff import Settings, study, study_unpaired
from medshift.translate import Translator


def build(
    job: Job,
    *,
    taus: Sequence[float],
    views: Mapping[str, int],
    headline: int,
    batch: int,
    guidance: float = 1.0,
    seed: int = 0,
) -> None:
    """Write what `medshift.tradeoff.study` or `study_unpaired` writes.

    Args:
        job: its inputs ``views`` and ``network``.
        taus: rising values in [0, 1].
        views: of the sweep, by role.
        headline: views of a headline.
        batch: images translated at once.
        guidance: scale on both legs.
        seed: of the training images that floors are fitted to.
    """
    settings = Settings(taus=taus, views=views, headline=headline, batch=batch, device=job.device, guidance=guidance)
    model, images = open_translator(job.inputs["network"], job.device), open_images(job.inputs["views"], job.data)
    if isinstance(images, FolderImages):
        test = images.found.images(0, "test", limit=headline)
        study_unpaired(model, test, (images.domains[0], images.domains[-1]), job.folder, settings, job.progress)
    else:
        study(model, floors(images, seed), images.folder, job.folder, settings, job.progress)


def floors(images: Images, seed: int = 0) -> list[Translator]:
    """The baselines without a network, fitted to the unpaired training images."""
    training, domains = images.training(seed=seed), images.domains
    few = [some[:STATISTICS_IMAGES] for some in training]
    return [Identity(), HistogramMatch(few, domains), BlurTone(few, domains), NearestTarget(training, domains)]
