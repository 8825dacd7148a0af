"""`configure`: the first call of every notebook, from its parameters to a `Run` that knows where everything goes."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from medshift.errors import ParameterError
from medshift.repro.profiles import Profile, load_profile, resolve
from medshift.repro.provenance import save_figure, save_table
from medshift.repro.stages import Stage

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


class Parameters(BaseModel):
    """The parameters every notebook has."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    profile: str = "auto"
    seed: int = Field(default=0, ge=0)
    device: str = "auto"
    out_dir: str = "."
    data: str = ""
    overrides: str = ""


@dataclass
class Run:
    """One execution of a notebook: its profile, its folders, and what it has drawn."""

    notebook: str
    parameters: Parameters
    profile: Profile
    device: str
    stages: dict[str, Stage] = field(default_factory=dict)
    source: str = ""

    @property
    def runs(self) -> Path:
        """Where stages live."""
        return Path(self.parameters.out_dir) / "runs" / self.profile.name

    @property
    def figures(self) -> Path:
        """Where figures and tables go."""
        return Path(self.parameters.out_dir) / "build" / self.profile.name / "figures"

    def provenance(self) -> dict[str, object]:
        """What is known of this run, for the sidecar of a figure."""
        stages = {name: stage.key for name, stage in self.stages.items()}
        return {
            "notebook": self.notebook,
            "profile": self.profile.name,
            "seed": self.parameters.seed,
            "parameters": self.parameters.model_dump(exclude={"out_dir", "data"}),
            "source": self.source,
            "stages": stages,
            "device": self.device,
        }

    def figure(self, figure: Figure, name: str, caption: str) -> Figure:
        """Save a figure as ``<notebook number>_<name>`` with caption and provenance, and return it to be shown."""
        save_figure(figure, self.figures, f"{self.notebook[:2]}_{name}", self.provenance() | {"caption": caption})
        return figure

    def table(self, table: pd.DataFrame, name: str, *, digits: int = 2) -> pd.DataFrame:
        """Save a table as Markdown and CSV and return it to be shown."""
        header = "| " + " | ".join(map(str, table.columns)) + " |\n|" + " --- |" * table.shape[1] + "\n"
        rows = [
            [f"{v:.{digits}f}" if isinstance(v, float) else str(v) for v in row]
            for row in table.itertuples(index=False)
        ]
        body = "\n".join("| " + " | ".join(row) + " |" for row in rows)
        save_table(header + body + "\n", table.to_csv(index=False), self.figures, f"{self.notebook[:2]}_{name}")
        return table


def parse_overrides(text: str) -> dict[str, str]:
    """``"train.images=640 size=32"`` as a dictionary."""
    pairs = [item.partition("=") for item in text.split()]
    wrong = [key for key, sign, _ in pairs if not sign]
    if wrong:
        raise ParameterError(f"{wrong[0]!r} is not a setting; write section.key=value, separated by spaces.")
    return {key: value for key, _, value in pairs}


def pick_device(name: str) -> str:
    """The device for ``auto``, or the named one; ParameterError where it is not there."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ParameterError(f"Device {name!r} cannot be used here: {str(error).splitlines()[0]}") from None
    return name


def configure(notebook: str, variables: dict[str, Any]) -> Run:
    """Check a notebook's parameters and make its `Run`.

    Args:
        notebook: its name without ``.ipynb``.
        variables: the notebook's ``globals()``.

    Raises:
        ParameterError: a parameter is missing, of the wrong type or out of its range.
    """
    from medshift.viz.theme import use_theme

    values = {name: variables[name] for name in Parameters.model_fields if name in variables}
    try:
        parameters = Parameters(**values)
    except ValidationError as error:
        first = error.errors()[0]
        raise ParameterError(
            f"{notebook}: parameter {first['loc'][0]}: {first['msg']} (got {first['input']!r})."
        ) from None
    logging.basicConfig(level=os.environ.get("MEDSHIFT_LOG", "WARNING"), format="%(message)s")
    use_theme()
    overrides = parse_overrides(parameters.overrides)
    if parameters.data:
        overrides["source"] = "folders"
    profile = load_profile(resolve(parameters.profile), overrides)
    return Run(notebook, parameters, profile, pick_device(parameters.device))
