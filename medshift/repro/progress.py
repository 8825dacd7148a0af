"""How far the work is: a bar in a terminal, one line with an estimate now and then in a log.

A notebook's kernel tells its runner through the file of its events; outside of a runner it tells the reader itself.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

EVENTS = "MEDSHIFT_EVENTS"  # names the file a notebook tells its runner in what it made
EVERY = 1.0  # seconds between reports
LOG_EVERY = 30.0  # seconds between lines of a log
BAR = "      {desc:<26.26} {percentage:3.0f}% |{bar:20}| {postfix}"


class Progress:
    """Call it with the share done, 0 to 1; it says so at most once a second.

    Args:
        label: what the work is called.
        show: told label, share and note; by default a notebook's runner, or the reader where there is none.
    """

    def __init__(self, label: str, show: Callable[[str, float, str], None] | None = None):
        self.label, self.start, self.last = label, time.monotonic(), 0.0
        self.first: float | None = None
        self.show = show or (_tell_runner if os.environ.get(EVENTS) else Screen().show)

    def __call__(self, done: float, note: str = "") -> None:
        """Report ``done`` (0 to 1) and a short note."""
        now = time.monotonic()
        if self.first is None:
            self.first, self.start = done, now
        if now - self.last < EVERY and done < 1:
            return
        self.last = now
        gained = done - self.first
        left = (now - self.start) * (1 - done) / gained if gained > 0 and done < 1 else None
        text = ", ".join(part for part in (f"{left / 60:.1f} min left" if left is not None else "", note) if part)
        self.show(self.label, done, text)


def _tell_runner(label: str, done: float, text: str) -> None:
    Path(f"{os.environ[EVENTS]}.progress").write_text(json.dumps([label, done, text]))


class Screen:
    """Where progress is shown: a bar on a terminal, lines at long intervals anywhere else."""

    def __init__(self) -> None:
        self.terminal, self.shown = sys.stderr.isatty(), time.monotonic()
        self.bar: tqdm | None = None

    def show(self, label: str, done: float, text: str) -> None:
        """Show one state; a finished one ends its bar."""
        if self.terminal:
            if self.bar is None:
                self.bar = tqdm(total=1.0, bar_format=BAR, leave=False)
            self.bar.set_description_str(label, refresh=False)
            self.bar.set_postfix_str(text, refresh=False)
            self.bar.n = done
            self.bar.refresh()
            if done >= 1:
                self.close()
        elif done >= 1 or time.monotonic() - self.shown > LOG_EVERY:
            self.shown = time.monotonic()
            print(f"      {label}: {100 * done:.0f} %{', ' + text if text else ''}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """End the bar."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None


class Watcher:
    """Shows what a notebook's `Progress` says, from the process that runs the notebook; a context manager."""

    def __init__(self, events: Path):
        self.file, self._stop = Path(f"{events}.progress"), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Watcher:
        self.file.unlink(missing_ok=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        self.file.unlink(missing_ok=True)

    def _watch(self) -> None:
        screen, before = Screen(), ""
        while not self._stop.wait(EVERY):
            try:
                text = self.file.read_text()
                label, done, note = json.loads(text)
            except (OSError, ValueError):  # not there yet, or being written
                continue
            if text != before:
                screen.show(label, done, note)
                before = text
        screen.close()
