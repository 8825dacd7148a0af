"""Parameters of notebooks: one strict model each, checked before a kernel starts and once more inside it.

A notebook's `parameters` cell, its model here, the defaults and the help text say the same; a test holds them equal.
A notebook of one's own has its model made from its cell.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from medshift.errors import ParameterError
from medshift.repro.adaptive_rows import ADAPTIVE_STAGES, PAIRED_TRAININGS
from medshift.repro.comparison import ALL
from medshift.repro.comparison_rows import COMPARISON_STAGES, TRAININGS
from medshift.repro.evidence import PAIRS, TRADEOFF_STAGES, pair_name
from medshift.repro.explorer import EXPLORER_STAGES


def _no_truth(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("Input should be a number, not true or false (YAML reads yes, no, on and off as these)")
    return value


Unit = Annotated[float, Field(ge=0, le=1), BeforeValidator(_no_truth)]


def _rising(values: list[Unit]) -> list[Unit]:
    if list(values) != sorted(set(values)):
        raise ValueError("the values must rise, each once")
    if len(values) == 1:
        raise ValueError("one value is no grid; give at least two, or none")
    return values


class Parameters(BaseModel):
    """The parameters every notebook has."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)

    # Stages a notebook calls, and minutes it takes by profile on two cores; the second only tells how long is left.
    stages: ClassVar[tuple[str, ...]] = ()
    minutes: ClassVar[Mapping[str, float]] = {}
    read_tables: ClassVar[tuple[str, ...]] = ()  # tables of other notebooks that it reads
    read_files: ClassVar[tuple[str, ...]] = ()  # and files beside it
    trainings: ClassVar[tuple[str, ...]] = ()  # whose weights may be shipped, and which `retrain` may name
    needs_truth: ClassVar[bool] = False  # of evaluation views, so it cannot run on a user's own images

    profile: str = Field("auto", description="smoke, cpu, gpu, paper, or auto: gpu where there is one, else cpu")
    seed: int = Field(0, ge=0, lt=2**31, description="of every random number")
    device: str = Field("auto", description="auto, cpu, cuda")
    out_dir: str = Field("..", description="where runs/ and build/ go")
    data: str = Field("", description="a folder of your own images, one sub-folder per domain; empty: rendered heads")
    overrides: str = Field("", description="settings of the profile to change, separated by spaces")
    offline: bool = Field(False, description="refuse to download anything")

    @field_validator("*", mode="before")
    @classmethod
    def _number(cls, value: Any, info: ValidationInfo) -> Any:
        return _no_truth(value) if cls.model_fields[str(info.field_name)].annotation in (int, float) else value


class _Pretrainable(Parameters):
    """Of a notebook that can take the network from the weights that the repository ships."""

    pretrained: bool = Field(
        False, description="take the network from shipped weights of the profile's recipe, where there are some"
    )


class DataParameters(Parameters):
    """Of 01_data."""

    stages = ("views",)
    minutes = {"smoke": 0.4, "cpu": 3.0}

    head: int = Field(0, ge=0, description="number of the head that is shown, 0 being the volume itself")


class CodecParameters(Parameters):
    """Of 02_codec."""

    stages = ("views", "autoencoder")
    minutes = {"smoke": 0.3, "cpu": 4.5}

    images: int = Field(32, ge=1, description="validation images of each domain that are judged")


class TrainParameters(_Pretrainable):
    """Of 03_train."""

    stages = ("views", "codec", "network")
    minutes = {"smoke": 0.4, "cpu": 18.0}

    tau: float = Field(0.05, ge=0, le=1, description="where the two legs meet, in the matrix of domains")


class FlowMatchingParameters(Parameters):
    """Of 00_flow_matching."""

    minutes = {"smoke": 1.0, "cpu": 1.0}

    world: str = Field("two moons", description='two moons, ring, spiral, checkerboard, or a drawing: "###/#  o/ooo"')
    steps: int = Field(1500, ge=1, le=100_000, description="training steps of each of the two networks")


class TradeoffParameters(_Pretrainable):
    """Of 04_tau_tradeoff."""

    stages = ("views", "codec", "network", "tradeoff", *TRADEOFF_STAGES)
    minutes = {"smoke": 1.5, "cpu": 45.0}

    tau_grid: Annotated[list[Unit], AfterValidator(_rising)] = Field(
        [], description="rising values of tau in [0, 1], at least two; empty for those of the profile"
    )
    guidance: float = Field(1.0, ge=0, le=20, description="scale of classifier-free guidance, 1 for none")


class ManifoldParameters(_Pretrainable):
    """Of 05_shared_manifold."""

    stages = ("views", "codec", "network", "latents", "manifold")
    minutes = {"smoke": 0.5, "cpu": 5.0}
    needs_truth = True


class _Retrainable(_Pretrainable):
    """Of a notebook that takes weights which the repository ships."""

    retrain: list[str] = Field(
        [], description="trainings to do here although their weights are shipped, or `all`; hours on two cores"
    )

    @field_validator("retrain")
    @classmethod
    def _known(cls, names: list[str]) -> list[str]:
        for name in names:
            if name not in (ALL, *cls.trainings):
                raise ValueError(f"no training is called {name!r}; there are {', '.join((ALL, *cls.trainings))}")
        return names


class BaselineParameters(_Retrainable):
    """Of 06_baselines."""

    trainings = tuple(TRAININGS)

    # The judged sweep is of 04, and is MedShift's curve here.
    stages = ("views", "codec", "network", *COMPARISON_STAGES, f"judged {pair_name(*PAIRS[0])}")
    minutes = {"smoke": 2.0, "cpu": 26.0}
    needs_truth = True


class AdaptiveParameters(_Retrainable):
    """Of 07_adaptive_shift."""

    trainings = tuple(PAIRED_TRAININGS)
    stages = ("views", "codec", "network", *ADAPTIVE_STAGES)
    minutes = {"smoke": 2.0, "cpu": 25.0}
    needs_truth = True


class AblationParameters(Parameters):
    """Of 08_ablations."""

    stages = ("views", "codec", "network")
    minutes = {"smoke": 1.0, "cpu": 27.0}
    needs_truth = True

    grids: list[str] = Field(
        ["guidance", "sizes", "solvers"], description="files of notebooks/grids to run and to draw, in this order"
    )


class ExplorerParameters(Parameters):
    """Of 99_explorer."""

    stages = ("network", *EXPLORER_STAGES)
    minutes = {"smoke": 0.5, "cpu": 3.0}
    needs_truth = True

    pretrained: bool = Field(
        True, description="take the network from shipped weights of the profile's recipe, where there are some"
    )


class ClaimsParameters(Parameters):
    """Of 90_claims."""

    read_tables = ("04_findings.csv", "05_findings.csv", "06_findings.csv", "07_findings.csv")
    read_files = ("claims.yaml",)
    minutes = {"smoke": 0.1, "cpu": 0.1}


NOTEBOOKS: dict[str, type[Parameters]] = {
    "00_flow_matching": FlowMatchingParameters,
    "01_data": DataParameters,
    "02_codec": CodecParameters,
    "03_train": TrainParameters,
    "04_tau_tradeoff": TradeoffParameters,
    "05_shared_manifold": ManifoldParameters,
    "06_baselines": BaselineParameters,
    "07_adaptive_shift": AdaptiveParameters,
    "08_ablations": AblationParameters,
    "90_claims": ClaimsParameters,
    "99_explorer": ExplorerParameters,
}


def suggestion(name: str, known: Iterable[str]) -> str:
    """``; did you mean 'tau'?`` or ``; there are … and …``, to end a sentence."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(names)}."


def check(model: type[Parameters], values: Mapping[str, Any], name: str) -> Parameters:
    """The parameters with these values, coerced to their types, others at their defaults.

    Raises:
        ParameterError: an unknown name, with the nearest known one; a value of the wrong type or out of its range.
    """
    for key in values:
        if key not in model.model_fields:
            raise ParameterError(f"{name} has no parameter {key!r}{suggestion(key, model.model_fields)}")
    try:
        return model(**values)
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"[{part}]" if isinstance(part, int) else str(part) for part in first["loc"])
        help_text = model.model_fields[str(first["loc"][0])].description
        message = first["msg"].removeprefix("Value error, ")
        raise ParameterError(
            f"{name}: parameter {where}: {message} (got {first['input']!r}). It is: {help_text}."
        ) from None


def table(model: type[Parameters]) -> list[tuple[str, str, str, str]]:
    """Name, type, default and help of every parameter, for people to read."""
    rows = []
    for name, info in model.model_fields.items():
        properties = model.model_json_schema()["properties"][name]
        bounds = {k: v for k, v in {**properties, **properties.get("items", {})}.items() if "imum" in k}
        words = {"minimum": "≥", "maximum": "≤", "exclusiveMinimum": ">", "exclusiveMaximum": "<"}
        extent = ", ".join(f"{words[key]} {value:g}" for key, value in bounds.items())
        kind = str(properties.get("type", "")) + (f" ({extent})" if extent else "")
        rows.append((name, kind, repr(info.default), info.description or ""))
    return rows
