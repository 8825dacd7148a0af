"""How long notebook 00 takes, its figures and players included: `make bench`. Printed, never asserted."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.bench, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.mark.parametrize("threads", ["1", ""])
def test_notebook_00_from_start_to_end(threads: str, tmp_path: Path) -> None:
    """By the command that users run, in a folder of its own; on the wall, so the machine should be idle."""
    environment = os.environ | ({"OMP_NUM_THREADS": threads} if threads else {})
    if not threads:
        environment.pop("OMP_NUM_THREADS", None)
    command = [sys.executable, "-m", "medshift.cli", "run", "00", "-p", "profile", "cpu", "--out", str(tmp_path)]
    start = time.perf_counter()
    subprocess.run(command, env=environment, check=True, capture_output=True)
    seconds = time.perf_counter() - start
    print(f"\nNotebook 00, OMP_NUM_THREADS={threads or 'unset'}, {os.cpu_count()} cores: {seconds:.0f} s (goal: < 90)")
