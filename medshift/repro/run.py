"""`configure`: the first call of every notebook, from its parameters to a `Run` that knows where everything goes."""

from __future__ import annotations

import ast
import io
import json
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from medshift.errors import ParameterError
from medshift.repro.adaptive import adaptive_plans
from medshift.repro.cells import model_of, notebook_folder, parse_cell
from medshift.repro.comparison import comparison_plans
from medshift.repro.evidence import evidence_plans
from medshift.repro.explorer import explorer_plans, pretrained
from medshift.repro.keys import digest
from medshift.repro.parameters import Parameters, check
from medshift.repro.pipeline import plans
from medshift.repro.profiles import Profile, load_profile, resolve
from medshift.repro.progress import EVENTS, Progress
from medshift.repro.provenance import hardware, save_figure, save_table
from medshift.repro.stage import Plan, Stage

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from PIL.Image import Image as PilImage

    from medshift.repro.grid import Grid

PLACES = ("out_dir", "data", "device", "offline")  # parameters that say where and on what, not what
SAME_FOLDER = ("retrain", "pretrained")  # and those that say who made the weights of one recipe, as every figure does


@dataclass
class Run:
    """One execution of a notebook: its profile, its stages, its folders, and what it has drawn."""

    notebook: str
    parameters: Parameters
    profile: Profile
    device: str
    stages: dict[str, Stage] = field(default_factory=dict)
    inherited: dict[str, str] = field(default_factory=dict)  # facts of the stages that these were made from
    grids: dict[str, str] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    @property
    def out(self) -> Path:
        """The folder that holds runs/ and build/."""
        return Path(self.parameters.out_dir)

    @property
    def runs(self) -> Path:
        """Where stages live."""
        return self.out / "runs" / self.profile.name

    @property
    def build(self) -> Path:
        """Where the executed notebook goes: ``build/<profile>``, with a number where parameters differ."""
        return self.out / "build" / variant(self.parameters, self.profile.name)

    @cached_property
    def plans(self) -> dict[str, Plan]:
        """All stages of the profile, built or not."""
        return plans_of(self.parameters, self.profile)

    def stage(self, name: str) -> Stage:
        """The finished stage of that name, built first where there is none."""
        if name not in self.stages:
            self.keep(name, self.plans[name])
        return self.stages[name]

    def folder(self, name: str) -> Path:
        """Where the finished stage of that name lies."""
        return self.stage(name).folder

    def keep(self, name: str, plan: Plan) -> Stage:
        """The finished stage of a plan, built where there is none and remembered under ``name``."""
        self.stages[name] = plan.ensure(
            self.runs, device=self.device, data=self.parameters.data, progress=lambda label: Progress(label)
        )
        made = self.stages[name]
        for used in (inner.find(self.runs) for inner in plan.chain()):
            self.inherited |= used.facts if used else {}
        self.tell({"stage": name, "folder": made.folder.name, "built": made.built, "seconds": made.seconds})
        return made

    def grid(self, name: str) -> Grid:
        """A grid of ``notebooks/grids``, its missing runs done here and now and its table written."""
        from medshift.repro.grid import load_grid
        from medshift.repro.workers import run_here

        seed = self.parameters.seed or -1
        grid = load_grid(name, self.profile, out_dir=self.parameters.out_dir, build=self.build, seed=seed)
        run_here(grid, device=self.device, progress=lambda label: Progress(label))
        self.grids[name] = digest([run.name for run in grid.runs])
        return grid

    @property
    def images(self) -> Any:
        """The images of the stage ``views``, see `medshift.stages.images.Images`."""
        from medshift.stages.images import open_images

        return open_images(self.stage("views").folder, self.parameters.data)

    @property
    def footer(self) -> str:
        """The line under every figure that says what the data is."""
        from medshift.data.domains import STAND_IN

        if self.profile.source == "folders":
            return "your own images"
        kinds = {"cranium": "head CT of invesalius-examples", "phantom": "procedural phantom", "user": "your own CT"}
        return f"{kinds[self.plans['views'].arguments['source']]}: {STAND_IN}"

    def stamp(self) -> dict[str, Any]:
        """What stands inside every figure: all that decides it, and no clock, machine or path."""
        facts = dict(self.inherited)
        for stage in self.stages.values():
            facts |= stage.facts
        kept = self.parameters.model_dump(exclude=set(PLACES)) | {"profile": self.profile.name}
        return {
            "notebook": self.notebook,
            "parameters": kept,
            "seeds": [self.parameters.seed],
            "stages": {name: stage.key for name, stage in sorted(self.stages.items())},
            **({"grids": dict(self.grids)} if self.grids else {}),
            "facts": facts,
        }

    def _sidecar(self) -> dict[str, Any]:
        seconds = {name: stage.seconds for name, stage in self.stages.items()}
        minutes = {name: round(value / 60, 2) for name, value in seconds.items()}
        so_far = round((time.monotonic() - self.started) / 60, 2)
        return {"hardware": hardware(self.device), "minutes": {"stages": minutes, "this notebook so far": so_far}}

    def figure(self, figure: Figure, name: str, caption: str) -> None:
        """Save a figure as ``<notebook number>_<name>`` in three formats with its provenance, and show it."""
        import matplotlib.pyplot as plt
        from IPython.display import Image, display
        from PIL import Image as Picture

        stem = f"{self.notebook[:2]}_{name}"
        paths = save_figure(figure, self.build / "figures", stem, self.stamp(), {"caption": caption} | self._sidecar())
        self.tell({"figure": stem, "caption": caption, "files": [path.name for path in paths.values()]})
        plt.close(figure)
        # The saved picture at half its 200 dpi, with its caption for those who cannot see it.
        with Picture.open(paths[".png"]) as saved:
            display(Image(data=_opaque(saved), width=saved.width // 2, alt=caption))

    def draw(self, name: str, made: tuple[str, Figure]) -> None:
        """`figure` of a caption and a figure, as functions of `medshift.results` give them."""
        caption, figure = made
        self.figure(figure, name, caption)

    def table(self, table: pd.DataFrame, name: str, *, digits: int = 2, markdown: str = "") -> pd.DataFrame:
        """Save a table as Markdown, or as that of ``markdown``, and CSV with its provenance; return it to be shown."""
        header = "| " + " | ".join(map(str, table.columns)) + " |\n|" + " --- |" * table.shape[1] + "\n"
        rows = [
            [f"{v:.{digits}f}" if isinstance(v, float) else str(v) for v in row]
            for row in table.itertuples(index=False)
        ]
        body = "\n".join("| " + " | ".join(row) + " |" for row in rows)
        stem, folder = f"{self.notebook[:2]}_{name}", self.build / "figures"
        text, csv = markdown or header + body + "\n", table.to_csv(index=False)
        paths = save_table(text, csv, folder, stem, self.stamp(), self._sidecar())
        self.tell({"table": stem, "files": [path.name for path in paths.values()]})
        return table

    def record(self, **values: float | str) -> None:
        """Numbers a grid of runs of this notebook collects, one column each."""
        self.tell({"record": values})

    def tell(self, event: Mapping[str, Any]) -> None:
        """Tell the runner, if there is one."""
        if path := os.environ.get(EVENTS):
            with Path(path).open("a", encoding="utf-8") as file:
                file.write(json.dumps(event) + "\n")


def _opaque(picture: PilImage) -> bytes:
    """PNG of a picture without its transparency, which a figure has none of and which pages would carry."""
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def plans_of(parameters: Parameters, profile: Profile) -> dict[str, Plan]:
    """The stages of a notebook's parameters."""
    own = parameters.model_dump(exclude=set(Parameters.model_fields))
    made = plans(profile, seed=parameters.seed, data=parameters.data, **own)
    if own.get("pretrained"):
        made = plans(profile, seed=parameters.seed, data=parameters.data, network=pretrained(profile, made), **own)
    shared: dict[str, Any] = {"seed": parameters.seed, "retrain": own.get("retrain", ())}
    found = made | evidence_plans(profile, made, seed=parameters.seed) | comparison_plans(profile, made, **shared)
    return found | adaptive_plans(profile, made, **shared) | explorer_plans(profile, made)


def profile_of(parameters: Parameters) -> Profile:
    """The profile that parameters ask for, changed by their overrides."""
    overrides = parse_overrides(parameters.overrides)
    if parameters.data:
        overrides["source"] = "folders"
    return load_profile(resolve(parameters.profile), overrides)


def variant(parameters: Parameters, profile: str) -> str:
    """``<profile>`` for default parameters, else ``<profile>-<number>``: no run overwrites another's figures."""
    changed = {
        name: value
        for name, value in parameters.model_dump(exclude={"profile", *PLACES, *SAME_FOLDER}).items()
        if value != type(parameters).model_fields[name].default
    }
    if parameters.data and profile != "paper":
        changed["data"] = str(Path(parameters.data).resolve())
    return f"{profile}-{digest(changed, 6)}" if changed else profile


def parse_overrides(text: str) -> dict[str, str]:
    """``"train.images=640 size=32"`` as a dictionary; ParameterError for a word without ``=`` or a key given twice."""
    pairs = [item.partition("=") for item in text.split()]
    wrong = [key for key, sign, _ in pairs if not sign]
    if wrong:
        raise ParameterError(f"{wrong[0]!r} is not a setting; write section.key=value, separated by spaces.")
    keys = [key for key, _, _ in pairs]
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise ParameterError(f"Setting {twice[0]!r} is given twice; give it once.")
    for key, _, value in pairs:
        try:
            yaml.safe_load(value)
        except (yaml.YAMLError, ValueError):
            raise ParameterError(f"Setting {key!r}: {value!r} is no value; write numbers, words or [lists].") from None
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
    """Check a notebook's parameters, put them back coerced to their types, and make its `Run`.

    As strict as the command line, however the notebook is run: names that papermill injected, or that were written
    into the parameters cell, have to be known.

    Args:
        notebook: its name without ``.ipynb``, or the path of a notebook of your own.
        variables: the notebook's ``globals()``; or, outside of a notebook, the parameters alone.

    Raises:
        ParameterError: a parameter is unknown, given twice, of the wrong type or out of its range.
    """
    from medshift.viz.theme import use_theme

    own = Path(notebook)
    path = own if own.suffix == ".ipynb" else notebook_folder() / f"{notebook}.ipynb"
    model = model_of(path)
    values = _given(variables, model, path.stem)
    parameters = check(model, values, path.stem)
    if "In" in variables:
        variables.update(parameters.model_dump())
    logging.basicConfig(level=os.environ.get("MEDSHIFT_LOG", "WARNING"), format="%(message)s")
    if parameters.offline:
        os.environ["MEDSHIFT_OFFLINE"] = os.environ["HF_HUB_OFFLINE"] = "1"
    use_theme()
    return Run(path.stem, parameters, profile_of(parameters), pick_device(parameters.device))


def _given(variables: dict[str, Any], model: type[Parameters], name: str) -> dict[str, Any]:
    """The parameters among a notebook's variables, unknown ones of its parameters cells included."""
    if "In" not in variables:
        return variables
    names = [key for key in model.model_fields if key in variables]
    latest = {_kind(source): source for source in variables["In"]}  # a cell that was mended and run again counts once
    for kind in ("injected", "parameters"):
        if kind not in latest:
            continue
        if kind == "injected":
            assigned = [target.id for node in ast.parse(latest[kind]).body if isinstance(node, ast.Assign)
                        for target in node.targets if isinstance(target, ast.Name)]  # fmt: skip
        else:
            assigned = list(parse_cell(latest[kind], name))
        if twice := [key for key in assigned if assigned.count(key) > 1]:
            raise ParameterError(f"{name}: parameter {twice[0]!r} is given twice; give it once.")
        names += [key for key in assigned if key not in names]
    return {key: variables[key] for key in names}


def _kind(source: str) -> str:
    """Whether a cell is ``injected`` by papermill, the ``parameters`` cell or, the empty string, any other."""
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError):
        return ""
    if source.lstrip().startswith("# Parameters\n"):
        return "injected"
    targets = [node.target for node in body if isinstance(node, ast.AnnAssign)]
    return "parameters" if any(isinstance(t, ast.Name) and t.id == "profile" for t in targets) else ""
