"""What one run of a grid can be: strict models of its settings, each of which lays out its stage. No torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from medshift.errors import ParameterError
from medshift.repro.comparison import PAIR, VALIDATION, searched_plan
from medshift.repro.comparison_rows import TRAININGS
from medshift.repro.parameters import suggestion
from medshift.repro.pipeline import TRAINING, train_plan
from medshift.repro.profiles import Profile
from medshift.repro.stage import Plan

Scale = Annotated[float, Field(ge=0, le=20)]


class StrictModel(BaseModel):
    """Unknown names are refused, and so is what is no number."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Experiment(StrictModel, ABC):
    """One run of a grid."""

    @abstractmethod
    def plan(self, profile: Profile, base: Mapping[str, Plan], seed: int) -> Plan:
        """The stage of this run, which writes summary.json; ``base`` are the plans of the profile under that seed."""


class Translation(Experiment):
    """One run of the experiment ``translation``: how the network is trained, how it is sampled, on what."""

    source: str = "synthetic-high"
    target: str = "real-normal"
    role: Literal["validation", "T0", "T1", "T2", "T3"] = "T2"
    views: int = Field(24, ge=2)
    batch: int = Field(24, ge=1)

    tau: float = Field(0.02, ge=0, le=1)
    guidance: Scale = 1.0
    guidance_encode: Scale | None = None  # of one leg alone; 0 is the null label
    guidance_decode: Scale | None = None
    steps: int = Field(15, ge=1, le=1000)
    solver: Literal["euler", "midpoint", "heun", "rk4", "dopri5"] = "heun"
    grid: Literal["refined", "uniform"] = "refined"

    width: float = Field(1.0, gt=0, le=4)
    images: int = Field(0, ge=0)  # 0: the profile's
    echo: int = Field(0, ge=0)  # 0: the profile's
    sigma_min: float = Field(0.0, ge=0, lt=1)
    label_dropout: float = Field(0.1, ge=0, lt=1)
    time_law: Literal["uniform", "logit-normal-mixed", "arcsine"] = "logit-normal-mixed"
    codec: Literal["", "patch", "kl"] = ""  # empty: the profile's
    codec_factor: int = Field(0, ge=0)

    def plan(self, profile: Profile, base: Mapping[str, Plan], seed: int) -> Plan:
        """The stage of this run; ``base`` are the plans of the profile under that seed."""
        changes = {name: getattr(self, name) for name in TRAINING}
        network = train_plan(profile, base, seed=seed, **changes)
        scales = [self.guidance if s is None else s for s in (self.guidance_encode, self.guidance_decode)]
        kept = ("source", "target", "role", "views", "batch", "tau", "steps", "solver", "grid")
        arguments = {name: getattr(self, name) for name in kept} | {"guidance": scales}
        inputs = {"views": base["views"], "network": network}
        return Plan("translation", "medshift.stages.translation", arguments, inputs, "translating")


class Comparison(Experiment):
    """One run of the experiment ``comparison``: a training of 06_baselines, judged on validation views alone."""

    training: str
    learning_rate: float = Field(ge=0, le=1)  # 0: the comparison's
    images: int = Field(0, ge=0)  # 0: the profile's
    knobs: dict[str, float | int | str] = {}  # of the translations, over those under which the training is watched
    views: int = Field(24, ge=2)

    @field_validator("training")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in TRAININGS:
            raise ValueError(f"no training is called {name!r}{suggestion(name, TRAININGS)}")
        return name

    def plan(self, profile: Profile, base: Mapping[str, Plan], seed: int) -> Plan:
        """The stage that scores the translations.

        Raises:
            ParameterError: the profile has the user's own images, which have no truth to judge by.
        """
        if profile.source == "folders":
            raise ParameterError(
                f"The experiment comparison judges by the truth of rendered heads, which profile {profile.name} lacks."
            )
        compared = searched_plan(
            profile,
            base,
            self.training,
            seed=seed,
            config={"learning_rate": self.learning_rate} if self.learning_rate else {},
            images=self.images,
            knobs=self.knobs,
            views=self.views,
        )
        arguments = {"source": PAIR[0], "target": PAIR[1], "role": VALIDATION}
        inputs = {"views": base["views"], "compared": compared}
        return Plan("searched", "medshift.stages.searched", arguments, inputs, f"judging {self.training}")


EXPERIMENTS: Mapping[str, type[Experiment]] = {"translation": Translation, "comparison": Comparison}
