"""Reading and writing beside the work: one thread makes what comes next, another puts away what is done.

Two generators, for a chain of three stages that each hold one item at a time::

    with closing(read_ahead(read())) as items, closing(write_behind(map(work, items), write)) as written:
        for result in written: ...

Work stays in the caller's thread. Order is kept, and so is the place of an error: it reaches the caller where its
item would have. Closing waits for what a thread is at, which is therefore never left half done.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

__all__ = ["read_ahead", "write_behind"]

T = TypeVar("T")
R = TypeVar("R")


def read_ahead(items: Iterable[T]) -> Generator[T, None, None]:
    """The same items, each made by a thread while the one before is in use; at most one waits.

    Args:
        items: what to go through; a generator's body runs in that thread.

    Raises:
        Exception: what `items` raises, after the items before it.
    """
    source, end = iter(items), object()
    pool = ThreadPoolExecutor(1, "read-ahead")
    try:
        following: Future[Any] = pool.submit(next, source, end)
        while (item := following.result()) is not end:
            following = pool.submit(next, source, end)
            yield item
    finally:
        pool.shutdown(cancel_futures=True)


def write_behind(items: Iterable[T], write: Callable[[T], R]) -> Generator[R, None, None]:
    """What `write` returns for each item, called by a thread while the next item is made.

    An item handed to the thread is written, also where the next one raises or the caller closes this.

    Args:
        items: what to write; made in the caller's thread.
        write: called for one item after the other.

    Raises:
        Exception: what `write` or `items` raises; after an error of `write`, nothing more is written.
    """
    with ThreadPoolExecutor(1, "write-behind") as pool:
        writing: Future[R] | None = None
        for item in items:
            done = [] if writing is None else [writing.result()]
            writing = pool.submit(write, item)
            yield from done
        if writing is not None:
            yield writing.result()
