"""Profiles: one YAML file says how large everything is.

``smoke`` is for tests, ``cpu`` for a laptop, ``gpu`` for one datacentre GPU, ``paper`` the paper's own recipe on
X-DigiSkull. Unknown keys and wrong types are refused before anything runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from medshift.errors import ParameterError

PROFILES = ("smoke", "cpu", "gpu", "paper")
OPTIONAL = ("codec.folder", "train.accumulation", "train.echo")  # settings that a file may leave out


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class HeadsProfile(_Strict):
    """How many heads each split has."""

    train: int = Field(ge=2)
    validation: int = Field(ge=2)
    test: int = Field(ge=2)


class ViewsProfile(_Strict):
    """How many views: per domain for training, in all for the others."""

    train: int = Field(ge=1)
    validation: int = Field(ge=2)
    T0: int = Field(ge=2)
    T1: int = Field(ge=2)
    T2: int = Field(ge=2)
    T3: int = Field(ge=2)


class CodecProfile(_Strict):
    """The codec of the translations: exact patches, a KL autoencoder trained here, or one from a local folder."""

    kind: Literal["patch", "kl", "pretrained"]
    factor: int = Field(ge=1)
    folder: str = ""


class KLProfile(_Strict):
    """The KL autoencoder that notebook 02 trains."""

    widths: list[int] = Field(min_length=2)
    channels: int = Field(ge=1)
    images: int = Field(ge=1)
    batch: int = Field(ge=1)


def _accumulation(value: Any) -> Any:
    if value != "auto" and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ValueError("expected a whole number of at least 1, or auto")
    return value


class TrainProfile(_Strict):
    """Training of the velocity network; ``auto`` takes as many micro-batches as the GPU's memory asks for.

    An exposure serves ``echo`` steps: with an autoencoder, encoding is a large part of a step.
    """

    network: str
    images: int = Field(ge=1)
    batch: int = Field(ge=1)
    accumulation: Annotated[int | Literal["auto"], BeforeValidator(_accumulation)] = 1
    echo: int = Field(1, ge=1)
    learning_rate: float = Field(gt=0)
    checkpoint_every: int = Field(ge=1)


class TradeoffProfile(_Strict):
    """The sweep of notebook 04: values of tau, views per tier, views of a headline, and images translated at once."""

    taus: list[float] = Field(min_length=2)
    views: dict[str, int]
    headline: int = Field(ge=2)
    batch: int = Field(ge=1)


class EvidenceProfile(_Strict):
    """The evidence of notebooks 04 and 05.

    Values of tau, of inverted latents, and of those drawn in the plane; views translated for metrics of sets, which are
    compared to as many other views; views of secondary pairs and of other heads; training images that are noised and
    classified; views that go there and back, of the guidance cube, and of the comparison of solvers; exposures of an
    object; principal components of the conditional FID, and neighbours of density and coverage.
    """

    taus: list[float] = Field(min_length=2)
    manifold_taus: list[float] = Field(min_length=2)
    embedded_taus: list[float] = Field(min_length=1)
    views: int = Field(ge=2)
    few: int = Field(ge=2)
    training: int = Field(ge=2)
    cycled: int = Field(ge=2)
    cube: int = Field(ge=2)
    solvers: int = Field(ge=2)
    exposures: int = Field(ge=2)
    components: int = Field(ge=1)
    neighbours: int = Field(ge=1)


class ComparisonProfile(_Strict):
    """The comparison of notebook 06.

    Images that every trained method sees, and between its checkpoints; views of each tier; validation views on which
    tau is chosen, and the values it is chosen from; draws of noise for SDEdit and others that are random; seeds under
    which every training is done; trainings that are done live although their weights are shipped; intervals of every
    solver in place of each method's own, for tests (0: each its own).
    """

    images: int = Field(ge=1)
    checkpoint_every: int = Field(ge=1)
    views: dict[str, int]
    searched: int = Field(ge=2)
    taus: list[float] = Field(min_length=1)
    draws: int = Field(ge=1)
    seeds: int = Field(1, ge=1, le=3)
    live: list[str] = []
    steps: int = Field(0, ge=0)


class AdaptiveProfile(_Strict):
    """The paired methods of notebook 07.

    Images that every method sees, sources and targets together, and between its checkpoints; test views; the first of
    them that are translated several times, and how often; numbers of steps of the curves; images that MedShift proposes
    pairs of; pairs and times of the path energies; sides of images at which a step and its field are timed, and how
    often; trainings that are done live although their weights are shipped.
    """

    images: int = Field(ge=1)
    checkpoint_every: int = Field(ge=1)
    views: int = Field(ge=2)
    spread_views: int = Field(ge=1)
    draws: int = Field(ge=2)
    curve: list[int] = Field(min_length=1)
    proposed: int = Field(ge=1)
    energy_pairs: int = Field(ge=4)
    energy_times: int = Field(ge=3)
    cost_sizes: list[int] = Field(min_length=1)
    cost_repeats: int = Field(ge=1)
    live: list[str] = []


class ExplorerProfile(_Strict):
    """The dials of notebook 99: views of each role, values of tau, and scales of guidance on both legs."""

    shown: dict[str, int]
    taus: list[float] = Field(min_length=2)
    scales: list[float] = Field(min_length=1)


class Profile(_Strict):
    """Everything that a profile decides."""

    name: str
    source: Literal["auto", "cranium", "phantom", "folders"]
    size: int = Field(ge=8)
    heads: HeadsProfile
    views: ViewsProfile
    codec: CodecProfile
    kl: KLProfile
    train: TrainProfile
    tradeoff: TradeoffProfile
    evidence: EvidenceProfile
    comparison: ComparisonProfile
    adaptive: AdaptiveProfile
    explorer: ExplorerProfile


def profile_folder() -> Path:
    """``notebooks/profiles`` of this checkout."""
    folder = Path(__file__).resolve().parents[2] / "notebooks" / "profiles"
    if not folder.is_dir():
        raise ParameterError(f"{folder} is missing; run from a checkout of the companion installed with `make setup`.")
    return folder


def resolve(name: str) -> str:
    """The profile that ``auto`` stands for: ``gpu`` where torch sees one, else ``cpu``; any other name as it is."""
    if name != "auto":
        return name
    import torch

    return "gpu" if torch.cuda.is_available() else "cpu"


def require_data(profile: Profile, data: str) -> None:
    """Raise ParameterError where a profile trains on the user's images and no folder of them is given."""
    if profile.source == "folders" and not data:
        raise ParameterError(
            f"Profile {profile.name} trains on your own images: give their folder with DATA=folder, or --data; it "
            "holds one sub-folder of PNG, TIFF or DICOM files per domain."
        )


def load_profile(name: str, overrides: dict[str, str] | None = None) -> Profile:
    """The profile of that name, with ``section.key`` overrides applied.

    Raises:
        ParameterError: no such profile, no such key, or a value of the wrong type or out of its range.
    """
    if name not in PROFILES:
        raise ParameterError(f"No profile is called {name!r}; the profiles are auto, {', '.join(PROFILES)}.")
    path = profile_folder() / f"{name}.yaml"
    values = yaml.safe_load(path.read_text())
    for key, text in (overrides or {}).items():
        *sections, last = key.split(".")
        place = values
        for section in sections:
            place = place.get(section) if isinstance(place, dict) else None
        if not isinstance(place, dict) or (last not in place and key not in OPTIONAL):
            raise ParameterError(f"The profile has no setting {key!r}; see {path.name}.")
        place[last] = yaml.safe_load(text)
    try:
        return Profile(**values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ParameterError(f"Profile {name}: {where}: {first['msg']} (got {first['input']!r}).") from None
