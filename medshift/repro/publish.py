"""Copy the figures and tables of a profile's build to ``figures/<profile>``, whole or not at all.

What is published is what the receipts name, checked against the hashes they hold. SVGs stay in the build: they are
large, and the PDFs say the same.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medshift.errors import DataError
from medshift.repro.profiles import load_profile, resolve
from medshift.repro.receipts import file_hash
from medshift.repro.stage import locked

PUBLISHED = (".png", ".pdf", ".json", ".md", ".csv")
RECEIPT = ".receipt.json"
LEDGER, CLAIMS = "90_claims.md", "claims.md"  # a profile's ledger, and its copy beside the profiles


def publish(profile: str, *, out_dir: str = ".") -> tuple[Path, list[str]]:
    """Copy PNG, PDF, Markdown, CSV and sidecars of ``build/<profile>`` to ``figures/<profile>``.

    Afterwards that folder holds, for every notebook that has a receipt, exactly what the receipt names; files of other
    notebooks are left as they are. The ledger of claims, where there is one, is also written to ``figures/claims.md``.

    Args:
        profile: its name, or ``auto``.
        out_dir: holds ``build/``, and gets ``figures/``.

    Returns:
        The folder, and the names of the files that were published, sorted.

    Raises:
        ParameterError: no profile is called so.
        DataError: no notebook was run, a file that a receipt names is missing or another one than was drawn, or the
            folder cannot be written. Nothing has changed then.
    """
    name = resolve(profile)
    load_profile(name)
    build, target = Path(out_dir) / "build" / name, Path(out_dir) / "figures" / name
    held = receipts(build)
    if not held:
        raise DataError(f"{build} holds no notebook that was run to its end; run `medshift paper --profile {name}`.")
    files = _published(held)
    with rewritten(target, build / ".publish.lock") as new:
        if target.is_dir():
            shutil.copytree(target, new, dirs_exist_ok=True)
        prefixes = tuple(f"{stem[:2]}_" for stem in held)
        for old in [path for path in new.iterdir() if path.name.startswith(prefixes) and path.is_file()]:
            old.unlink()
        for file, sha in files.items():
            _copy(build / "figures" / file, sha, new / file, name)
        ledger = (new / LEDGER).read_text(encoding="utf-8") if LEDGER in files else ""
    if ledger:
        link = f"Profile `{name}`; figures and tables in [{name}/]({name}/). Every rule: `notebooks/claims.yaml`."
        below = ledger.replace("](", f"]({name}/")  # its links are to files beside it, and the copy lies above them
        (target.parent / CLAIMS).write_text(f"# Claims, one verdict each\n\n{link}\n\n{below}", encoding="utf-8")
    return target, sorted(files)


def receipts(build: Path) -> dict[str, dict[str, Any]]:
    """Notebook's stem -> receipt, of all notebooks of a build that have one, by name.

    Raises:
        DataError: one cannot be read.
    """
    found = {}
    for path in sorted(build.glob(f"*{RECEIPT}")):
        try:
            receipt = json.loads(path.read_text(encoding="utf-8"))
            dict(receipt["files"]), float(receipt["seconds"])
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(f"{path} cannot be read as a receipt ({error!r}); delete it and run again.") from None
        found[path.name.removesuffix(RECEIPT)] = receipt
    return found


def _published(held: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Name -> hash of everything the receipts name and that is published."""
    files = {name: sha for receipt in held.values() for name, sha in receipt["files"].items()}
    return {name: sha for name, sha in files.items() if Path(name).suffix in PUBLISHED}


def _copy(source: Path, sha: str, target: Path, profile: str) -> None:
    """Copy, then compare the copy's hash, so that a file which changes meanwhile is not published."""
    again = f"run `medshift paper --profile {profile}`, which makes it again"
    if not source.is_file():
        raise DataError(f"{source} is missing though its notebook's receipt names it; {again}. Nothing was published.")
    shutil.copyfile(source, target)
    if file_hash(target) != sha:
        raise DataError(f"{source} is another file than its notebook drew; {again}. Nothing was published.")


@contextmanager
def rewritten(target: Path, lock: Path) -> Iterator[Path]:
    """A new empty folder that takes the place of ``target`` when the block ends without an error.

    Two calls never work at once. Whatever interrupts this, ``target`` is the old folder or the new one.

    Args:
        target: the folder to replace; it need not exist.
        lock: file to lock.

    Raises:
        DataError: the folder cannot be written.
    """
    new, old = target.with_name(f".{target.name}.new"), target.with_name(f".{target.name}.old")
    with locked(lock, target.name):
        try:
            _settle(new, target, old)
            new.mkdir(parents=True)
            yield new
            _swap(new, target, old)
        except OSError as error:
            raise DataError(f"{target} cannot be made ({error}); make it writable and free some disk.") from None
        finally:
            _settle(new, target, old)


def _settle(new: Path, target: Path, old: Path) -> None:
    """Take back a folder that was moved aside for one that never came, and clear what was left behind."""
    if old.is_dir() and not target.is_dir():
        os.replace(old, target)
    for left in (new, old):
        shutil.rmtree(left, ignore_errors=True)


def _swap(new: Path, target: Path, old: Path) -> None:
    """Put ``new`` in the place of ``target``; between the two renames, `_settle` knows how to go back."""
    if target.is_dir():
        os.replace(target, old)
    os.replace(new, target)
