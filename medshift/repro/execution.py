"""Execute one notebook with papermill so that what it leaves behind is never mistaken for a result.

papermill alone leaves a notebook that says "completed" when its kernel was killed, keeps every byte a cell prints, and
has no limit for a whole notebook. Here the notebook runs into ``*.tmp.ipynb``; it gets its name only when every code
cell has run without error and the kernel lived to the end, else it is kept as ``*.failed.ipynb``.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medshift.errors import MedShiftError
from medshift.repro.keys import PACKAGE

PRINTED_BYTES = 1_000_000  # of one cell that are kept
LAST_LINES = 20  # of a failure that are shown
EXIT_CODES = {"ParameterError": 2, "DataError": 3, "CheckpointError": 3}
# MemoryError, numpy's _ArrayMemoryError, torch's OutOfMemoryError; and what torch says on a CPU.
NO_MEMORY = re.compile(r"MemoryError$|^RuntimeError: .*(can't allocate memory|out of memory)")
ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


class NotebookError(MedShiftError):
    """A notebook did not run to its end; the executed part is kept as ``*.failed.ipynb``.

    Its exit code is 4 for a failing cell, 5 for a dead kernel, memory that ran out or a limit that was passed, and
    where the cell refused its input, that error's own: 2 for parameters, 3 for missing data.
    """

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


def execute(source: Path, parameters: Mapping[str, Any], target: Path, *, events: Path, limit: float = 0.0) -> None:
    """Run a notebook to ``target``.

    Args:
        source: the notebook.
        parameters: injected behind its parameters cell.
        target: where the executed copy goes; its folder exists.
        events: file the notebook's `Run` tells of what it made in.
        limit: seconds after which it is stopped; 0 for none.

    Raises:
        NotebookError: a cell failed, the kernel died or hung.
    """
    import nbformat
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.engines import papermill_engines
    from papermill.exceptions import PapermillExecutionError

    temporary, failed = target.with_suffix(".tmp.ipynb"), target.with_suffix(".failed.ipynb")
    papermill_engines.register("medshift", _engine())
    error: NotebookError | None = None
    try:
        papermill.execute_notebook(
            str(source),
            str(temporary),
            dict(parameters),
            engine_name="medshift",
            kernel_name="python3",
            language="python",
            progress_bar=False,
            environment=os.environ | {"MEDSHIFT_EVENTS": str(events.resolve()), "MEDSHIFT_STATIC": "1"},
            until=time.monotonic() + limit if limit else None,
            folder=str(target.parents[2]),
        )
        notebook = nbformat.read(temporary, as_version=4)
        error = _unfinished(notebook, source.stem)
    except PapermillExecutionError as raised:
        error = _cell_error(raised, source.stem)
    except CellTimeoutError:
        error = NotebookError(f"{source.stem} ran longer than its limit of {limit / 60:g} minutes and was stopped.", 5)
    except DeadKernelError:
        error = NotebookError(f"{source.stem}: its kernel died, most likely for lack of memory.", 5)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if error:
        if temporary.is_file():
            os.replace(temporary, failed)
            hint = f"The notebook up to there: {failed}\nOpen it with: jupyter lab {failed}"
            error = NotebookError(f"{error}\n{hint}", error.exit_code)
        raise error
    _strip(notebook, source)
    nbformat.write(notebook, temporary)
    failed.unlink(missing_ok=True)
    os.replace(temporary, target)


def read_events(path: Path) -> list[dict[str, Any]]:
    """What a notebook told; a line that a killed kernel left half-written is no event."""
    events = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            events.append(dict(json.loads(line)))
        except ValueError:
            continue
    return events


def _cell_error(raised: Any, name: str) -> NotebookError:
    memory_ran_out = NO_MEMORY.search(raised.ename) or NO_MEMORY.search(f"{raised.ename}: {raised.evalue}")
    code = 5 if memory_ran_out else EXIT_CODES.get(raised.ename, 4)
    # The message says all, a traceback would bury it.
    if code in (2, 3) or raised.ename in ("TrainingError", "DeviceMemoryError"):
        return NotebookError(f"{name}: {raised.evalue}", code)
    lines = ESCAPES.sub("", "\n".join(raised.traceback)).splitlines()[-LAST_LINES:]
    shown = "\n".join(f"    {line}" for line in (*raised.source.splitlines(), "", *lines))
    memory = " (memory ran out)" if code == 5 else ""
    return NotebookError(f"{name}: cell [{raised.exec_count}] failed with {raised.ename}{memory}:\n{shown}", code)


def _unfinished(notebook: Any, name: str) -> NotebookError | None:
    """The error of a notebook that ended early without raising one, as after sys.exit() in a cell."""
    for number, cell in enumerate(notebook.cells, start=1):
        if cell.cell_type != "code" or not cell.source.strip():
            continue
        if cell.execution_count is None or any(output.output_type == "error" for output in cell.outputs):
            return NotebookError(f"{name}: cell {number} did not run to its end; the notebook stopped early.", 4)
    return None


def _strip(notebook: Any, source: Path) -> None:
    """Take out widget state and the machine's paths, also those that warnings name."""
    notebook.metadata.pop("widgets", None)
    notebook.metadata.get("papermill", {}).update(input_path=source.name, output_path=source.name)
    notebook.metadata.get("papermill", {}).pop("environment_variables", None)
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        if output.output_type == "stream":
            output.text = _without_places(output.text)
        elif isinstance(output.get("data", {}).get("text/plain"), str):
            output.data["text/plain"] = _without_places(output.data["text/plain"])


def _without_places(text: str) -> str:
    places = {sys.prefix: "<python>", str(PACKAGE.parent): "<checkout>", str(Path.home()): "~"}
    for place in sorted(places, key=len, reverse=True):
        if len(place) > 1:
            text = re.sub(re.escape(place) + r"(?![\w.-])", places[place], text)
    return text


def _engine() -> Any:
    """papermill's engine with a limit for the whole notebook, a cap on what a cell prints, and an own environment."""
    from nbclient.exceptions import DeadKernelError
    from papermill.clientwrap import PapermillNotebookClient
    from papermill.engines import NBClientEngine

    class Client(PapermillNotebookClient):
        printed: dict[int, int] = {}

        def start_new_kernel_client(self, **kwargs: Any) -> Any:
            """As nbclient's, which calls a kernel that died or hung before its first cell a mere RuntimeError."""
            try:
                return super().start_new_kernel_client(**kwargs)
            except RuntimeError as error:
                if isinstance(error, DeadKernelError) or not str(error).startswith("Kernel "):
                    raise
                raise DeadKernelError(str(error)) from error

        def output(self, outs: Any, msg: Any, display_id: Any, cell_index: int) -> Any:
            if msg["msg_type"] == "stream":
                text = msg["content"]["text"]
                before = self.printed.get(cell_index, 0)
                self.printed[cell_index] = before + len(text)
                if before > PRINTED_BYTES:
                    return None
                if before + len(text) > PRINTED_BYTES:
                    note = f"\n[more than {PRINTED_BYTES} characters; the rest is left out]\n"
                    msg["content"]["text"] = text[: PRINTED_BYTES - before] + note
            return super().output(outs, msg, display_id, cell_index)

    class Engine(NBClientEngine):
        @classmethod
        def execute_managed_notebook(
            cls,
            nb_man: Any,
            kernel_name: str,
            *,
            environment: Any = None,
            until: Any = None,
            folder: Any = None,
            **_: Any,
        ) -> Any:
            def left(cell: Any) -> float | None:
                return max(1.0, until - time.monotonic()) if until else None

            client = Client(
                nb_man,
                kernel_name=kernel_name,
                startup_timeout=120,
                timeout_func=left,
                store_widget_state=False,
                resources={"metadata": {"path": folder}},
                # A kernel on this machine talks over loopback alone; its warning of that would scare and say nothing.
                extra_arguments=["--IPKernelApp.log_level=50"],
            )
            client.printed = {}
            return client.execute(env=dict(environment))

    return Engine
