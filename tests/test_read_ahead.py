"""Reading ahead and writing behind: order, bounds, errors in their place, and no thread left behind."""

import threading
from collections.abc import Iterator
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medshift.read_ahead import read_ahead, write_behind


def counting(stop: int, made: list[int], error: BaseException | None = None) -> Iterator[int]:
    """0, 1, …, noting each; then perhaps an error."""
    for i in range(stop):
        made.append(i)
        yield i
    if error:
        raise error


def no_more_threads(before: int) -> bool:
    return threading.active_count() == before


@given(st.integers(0, 30))
def test_nothing_is_lost_added_or_moved(count: int) -> None:
    before, written = threading.active_count(), []

    def write(item: int) -> int:
        written.append(item)
        return -item

    with closing(read_ahead(range(count))) as read, closing(write_behind(read, write)) as done:
        assert list(done) == [-i for i in range(count)]
    assert written == list(range(count)) and no_more_threads(before)


def test_values_that_look_like_an_end_pass() -> None:
    assert list(read_ahead([None, False, (), None])) == [None, False, (), None]
    assert list(write_behind([None, False], lambda item: None)) == [None, None]


def test_reading_is_by_another_thread_and_one_ahead() -> None:
    made: list[int] = []
    threads = set()

    def items() -> Iterator[int]:
        for i in counting(10, made):
            threads.add(threading.get_ident())
            yield i

    with closing(read_ahead(items())) as read:
        assert made == [], "nothing before it is asked for"
        for i in read:
            assert len(made) <= i + 2, "the one in use, and one more"
    assert len(made) == 10 and len(threads) == 1 and threading.get_ident() not in threads


def test_the_next_is_read_and_the_last_written_while_one_is_in_use() -> None:
    following, writing = threading.Event(), threading.Event()

    def items() -> Iterator[int]:
        yield 0
        yield 1
        following.set()
        yield 2

    def work(item: int) -> int:
        if item == 1:
            assert following.wait(60) and writing.wait(60)
        return item

    def write(item: int) -> int:
        writing.set()
        return item

    with closing(read_ahead(items())) as read:
        assert list(write_behind(map(work, read), write)) == [0, 1, 2]


def test_writing_is_one_at_a_time_and_one_behind() -> None:
    made: list[int] = []
    busy, gate = threading.Lock(), threading.Semaphore(0)
    ahead = []

    def write(item: int) -> int:
        assert busy.acquire(blocking=False), "another is being written"
        ahead.append(len(made) - item)
        gate.acquire(timeout=60)
        busy.release()
        return item

    with closing(write_behind(counting(6, made), write)) as done:
        for i in range(6):
            gate.release()
            assert next(done) == i
            gate.release()
            assert len(made) <= i + 2, "one written, one more made"
    assert max(ahead) <= 2 and no_more_threads(threading.active_count())


@pytest.mark.parametrize("error", [ValueError("bad"), KeyboardInterrupt(), SystemExit(3)])
def test_an_error_of_the_source_comes_after_the_items_before_it(error: BaseException) -> None:
    before, got, written = threading.active_count(), [], []
    with pytest.raises(type(error)) as caught, closing(read_ahead(counting(3, [], error))) as read:
        for item in read:
            got.append(item)
    assert caught.value is error and got == [0, 1, 2] and no_more_threads(before)
    with pytest.raises(type(error)), closing(write_behind(counting(3, [], error), written.append)) as done:
        list(done)
    assert written == [0, 1, 2] and no_more_threads(before), "what was made before the error is written"


def test_after_an_error_of_writing_nothing_more_is_written() -> None:
    before, written, made = threading.active_count(), [], []

    def write(item: int) -> None:
        if item == 2:
            raise OSError("full")
        written.append(item)

    with pytest.raises(OSError, match="full"), closing(write_behind(counting(9, made), write)) as done:
        list(done)
    assert written == [0, 1] and len(made) <= 4 and no_more_threads(before)


@pytest.mark.parametrize("used", [0, 1, 2])
def test_closing_early_stops_the_thread(used: int) -> None:
    before, made, written = threading.active_count(), [], []
    read = read_ahead(counting(1000, made))
    done = write_behind(read, written.append)
    for _ in range(used):
        next(done)
    done.close()
    read.close()
    assert no_more_threads(before) and len(made) <= used + 2 and len(written) == (used + 1 if used else 0)
    assert list(read) == [] == list(done)
