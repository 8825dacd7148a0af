"""One line of progress with an estimate of the time left, for a reader or for the runner in another process."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

VARIABLE = "MEDSHIFT_PROGRESS"  # names a file that the runner watches
EVERY = 5.0  # seconds between lines


class Progress:
    """Call it with the share done, 0 to 1; it says so at most every few seconds.

    Where the runner watches, the line goes to its file; else to standard error, over the last one in a terminal.
    """

    def __init__(self, label: str):
        self.label, self.start, self.last = label, time.monotonic(), 0.0
        self.first: float | None = None

    def __call__(self, done: float, note: str = "") -> None:
        """Report ``done`` (0 to 1) and a short note."""
        now = time.monotonic()
        if self.first is None:
            self.first, self.start = done, now
        if now - self.last < EVERY and done < 1:
            return
        self.last = now
        gained = done - self.first
        left = (now - self.start) * (1 - done) / gained if gained > 0 else None
        text = f"{self.label}: {100 * done:.0f} %"
        text += f", {left / 60:.1f} min left" if left is not None and done < 1 else ""
        text += f" ({note})" if note else ""
        file = os.environ.get(VARIABLE)
        if file:
            Path(file).write_text(text)
        elif sys.stderr.isatty():
            print(f"\r{text:<70}", end="\n" if done >= 1 else "", file=sys.stderr, flush=True)
        elif done >= 1:
            print(text, file=sys.stderr, flush=True)


class Watcher:
    """Prints what a notebook's `Progress` says, from the process that runs the notebook; a context manager."""

    def __init__(self, file: Path):
        self.file, self._stop = file, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Watcher:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.unlink(missing_ok=True)
        os.environ[VARIABLE] = str(self.file.resolve())
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        os.environ.pop(VARIABLE, None)
        self.file.unlink(missing_ok=True)

    def _watch(self) -> None:
        shown, terminal = "", sys.stderr.isatty()
        interval = EVERY if terminal else 6 * EVERY
        while not self._stop.wait(interval):
            text = self.file.read_text() if self.file.is_file() else ""
            if text and text != shown:
                shown = text
                end = "" if terminal else "\n"
                print(f"\r      {text:<70}" if terminal else f"      {text}", end=end, file=sys.stderr, flush=True)
        if shown and terminal:
            print(file=sys.stderr)
