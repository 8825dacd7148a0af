"""A study as one YAML file: lists that are multiplied, lists that move together, seeds; expanded to runs.

A run is a stage, so it is skipped once it is finished and shared by every grid that holds it. What it trains on is a
stage too, and shared likewise. `medshift.repro.workers` runs them, `medshift.repro.grid_table` collects the table.

    title: Solvers at equal cost
    question: Does a solver of higher order pay?
    experiment: translation
    fixed: {tau: 0.02}
    blocks:
      - product: {solver: [midpoint, heun], steps: [4, 8, 16]}
      - zip: {solver: [rk4, euler], steps: [8, 32]}
    seeds: [0]
    profiles: {smoke: {blocks: [{product: {steps: [2, 4]}}]}}

What can be varied is a field of the experiment's model, see `medshift.repro.experiments`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from medshift.errors import ParameterError
from medshift.repro.cells import find_notebook, notebook_folder
from medshift.repro.experiments import EXPERIMENTS, StrictModel
from medshift.repro.parameters import suggestion
from medshift.repro.pipeline import plans
from medshift.repro.profiles import Profile
from medshift.repro.receipts import Task
from medshift.repro.runner import task
from medshift.repro.stage import Plan
from medshift.repro.values import read_mapping

if TYPE_CHECKING:
    import pandas as pd

LIMIT = 2000  # runs of a grid


class Block(StrictModel):
    """Runs: every combination of the lists in ``product``, times the positions of the lists in ``zip``."""

    product: dict[str, list[Any]] = {}
    zip: dict[str, list[Any]] = {}

    @model_validator(mode="after")
    def _check(self) -> Block:
        lengths = {name: len(values) for name, values in self.zip.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"the lists of `zip` differ in length: {lengths}")
        empty = [name for name, values in {**self.product, **self.zip}.items() if not values]
        if empty:
            raise ValueError(f"the list of {empty[0]!r} is empty")
        if both := sorted(self.product.keys() & self.zip.keys()):
            raise ValueError(f"{both[0]!r} stands in `product` and in `zip`")
        return self

    def count(self) -> int:
        """How many combinations."""
        return math.prod(map(len, self.product.values())) * max([1, *map(len, self.zip.values())])

    def combinations(self) -> Iterator[dict[str, Any]]:
        """Every combination, the last list moving fastest."""
        rows = [dict(zip(self.zip, row, strict=True)) for row in zip(*self.zip.values(), strict=True)] or [{}]
        for values in itertools.product(*self.product.values()):
            for row in rows:
                yield dict(zip(self.product, values, strict=True)) | row


class GridFile(StrictModel):
    """A grid file as written."""

    title: str
    question: str = ""
    experiment: Literal["translation", "comparison", ""] = ""
    notebook: str = ""
    fixed: dict[str, Any] = {}
    blocks: list[Block] = Field(min_length=1)
    seeds: list[Annotated[int, Field(ge=0)]] = Field([0], min_length=1)

    @model_validator(mode="after")
    def _check(self) -> GridFile:
        if bool(self.experiment) == bool(self.notebook):
            raise ValueError("give either `experiment` or `notebook`")
        return self

    def count(self) -> int:
        """How many runs."""
        return len(self.seeds) * sum(block.count() for block in self.blocks)


@dataclass(frozen=True)
class GridRun:
    """One run of a grid.

    Args:
        index: its number.
        values: what the grid file says of it, the seed included.
        work: the stage or the notebook that it is.
    """

    index: int
    values: dict[str, Any]
    work: Plan | Task

    @property
    def name(self) -> str:
        """What its files are called."""
        return (
            self.work.folder_name
            if isinstance(self.work, Plan)
            else f"{self.work.folder.name}-{self.work.notebook.stem}"
        )


@dataclass(frozen=True)
class Grid:
    """A grid file expanded under a profile."""

    name: str
    path: Path
    file: GridFile
    profile: Profile
    out: Path
    build: Path
    runs: list[GridRun]

    @property
    def root(self) -> Path:
        """Where the stages of its runs live."""
        return self.out / "runs" / self.profile.name

    @property
    def table(self) -> Path:
        """The collected table."""
        return self.build / "grids" / f"{self.name}.csv"

    def network(self, number: int) -> Path:
        """The folder of the network that a run of the experiment ``translation`` used."""
        work = self.runs[number].work
        assert isinstance(work, Plan)
        return self.root / work.inputs["network"].folder_name

    def load(self) -> pd.DataFrame:
        """The collected table as it stands."""
        import pandas as pd

        return pd.read_csv(self.table, converters={"error": str})

    def prerequisites(self) -> list[Plan]:
        """What several runs share and has to be built before them: data, codecs, networks; inputs first, each once."""
        shared: dict[str, Plan] = {}
        for run in self.runs:
            chain = list(run.work.chain())[:-1] if isinstance(run.work, Plan) else list(run.work.plans.values())
            shared |= {plan.folder_name: plan for plan in chain}
        return list(shared.values())


def grid_file(name: str) -> Path:
    """The path of a grid given by path, or by its name in ``notebooks/grids``.

    Raises:
        ParameterError: there is none.
    """
    folder = notebook_folder() / "grids"
    for path in (Path(name), folder / f"{name}.yaml"):
        if path.suffix in (".yaml", ".yml") and path.is_file():
            return path
    raise ParameterError(
        f"No grid is called {name!r}{suggestion(Path(name).stem, sorted(p.stem for p in folder.glob('*.yaml')))}"
    )


def load_grid(
    name: str, profile: Profile, *, out_dir: str = ".", build: Path | None = None, limit: int = LIMIT, seed: int = -1
) -> Grid:
    """Read a grid file and expand it; every run is checked before any starts.

    Args:
        name: path or name.
        profile: under which.
        out_dir: holds runs/ and build/.
        build: folder of the table, ``build/<profile>`` unless given.
        limit: refuse more runs than this.
        seed: in place of the file's seeds, unless negative.

    Raises:
        ParameterError: the file or a run in it is wrong, two runs are the same, or there are too many.
        DataError: the file cannot be read.
    """
    path = grid_file(name)
    values = read_mapping(path)
    own = values.pop("profiles", {})
    if not isinstance(own, dict) or not all(isinstance(part, dict) for part in own.values()):
        raise ParameterError(f"{path}: `profiles` should map a profile to what is different under it.")
    values |= own.get(profile.name, {})
    try:
        file = GridFile(**values)
    except ValidationError as error:
        raise ParameterError(f"{path}: {_first(error)}") from None
    except TypeError as error:
        raise ParameterError(f"{path}: {error}") from None
    if file.count() > limit:
        raise ParameterError(f"{path} holds {file.count()} runs, more than {limit}; make it smaller or raise --limit.")
    seeds = file.seeds if seed < 0 else [seed]
    runs: list[GridRun] = []
    base = {one: {} if file.notebook else plans(profile, seed=one) for one in seeds}
    for combination, one in itertools.product((c for block in file.blocks for c in block.combinations()), seeds):
        chosen = {**file.fixed, **combination}
        runs.append(
            GridRun(
                len(runs), {**combination, "seed": one}, _work(file, chosen, profile, base[one], one, out_dir, path)
            )
        )
    names: dict[str, int] = {}
    for run in runs:
        if run.name in names:
            raise ParameterError(f"{path}: runs {names[run.name]} and {run.index} are the same, {run.values}.")
        names[run.name] = run.index
    out = Path(out_dir)
    return Grid(path.stem, path, file, profile, out, build or out / "build" / profile.name, runs)


def _work(
    file: GridFile, values: Mapping[str, Any], profile: Profile, base: Any, seed: int, out: str, path: Path
) -> Plan | Task:
    if file.notebook:
        return task(find_notebook(file.notebook), {**values, "profile": profile.name, "seed": seed}, out_dir=out)
    experiment = EXPERIMENTS[file.experiment]
    for name in values:
        if name not in experiment.model_fields:
            known = suggestion(name, experiment.model_fields)
            raise ParameterError(f"{path}: a {file.experiment} has no {name!r}{known}")
    try:
        return experiment(**values).plan(profile, base, seed)
    except ValidationError as error:
        raise ParameterError(f"{path}: {_first(error)}") from None


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    given = "" if first["type"] in ("value_error", "missing") else f" (got {first['input']!r})"
    return f"{where + ': ' if where else ''}{first['msg'].removeprefix('Value error, ')}{given}."
