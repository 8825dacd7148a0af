"""Live translations: the same numbers as `MedShift.translate`, cancelled at a step, and only the newest one tells."""

import threading
import time
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from medshift.codec import PatchCodec
from medshift.errors import ParameterError
from medshift.translate import MedShift
from medshift.widgets.live import Knobs, Newest, Step, translation


def velocity(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
    """A field that differs by label and by time, and for the null label."""
    return torch.sin(3 * x) * (1 + t) + 0.3 * label.view(-1, 1, 1, 1) - x


@pytest.fixture(scope="module")
def model() -> MedShift:
    return MedShift(velocity, PatchCodec(2), 2, ("a", "b"))


@pytest.mark.parametrize("knobs", [Knobs(0.3, 1.0, 15), Knobs(0.0, 2.5, 7), Knobs(0.95, 0.0, 5), Knobs(1.0, 1.0, 15)])
@pytest.mark.parametrize("size", [(8, 8), (9, 13)])
def test_the_last_step_is_the_translation(model: MedShift, knobs: Knobs, size: tuple[int, int]) -> None:
    image = torch.rand(1, 1, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    taken = list(translation(model, image, "a", "b", knobs))
    expected = model.translate(image, "a", "b", tau=knobs.tau, guidance=knobs.guidance, steps=knobs.steps)
    assert torch.equal(taken[-1].image, expected)
    done = [step.done for step in taken]
    assert done == sorted(done) and done[-1] == 1.0 and done.count(1.0) == 1
    assert not any(step.image.requires_grad for step in taken) and torch.is_grad_enabled()


def test_titles_go_down_to_tau_and_up_again(model: MedShift) -> None:
    image = torch.zeros(1, 1, 8, 8)
    titles = [step.title for step in translation(model, image, "a", "b", Knobs(0.5, 1.0, 5))]
    turn = titles.index("z_τ, 0.5")
    assert titles[0] == titles[-1] == "t = 1" and titles.count("z_τ, 0.5") == 1
    assert all(title.startswith("↓") for title in titles[1:turn]) and turn > 1
    assert all(title.startswith("↑") for title in titles[turn + 1 : -1]) and len(titles) == 2 * turn + 1
    still = [step.title for step in translation(model, image, "a", "b", Knobs(1.0, 1.0, 5))]
    assert set(still) == {"t = 1"}


def test_what_is_wrong_is_told_at_the_first_step(model: MedShift) -> None:
    with pytest.raises(ParameterError, match="guidance"):
        next(translation(model, torch.zeros(1, 1, 8, 8), "a", "b", Knobs(0.5, -1.0, 5)))
    with pytest.raises(ParameterError, match="Unknown domain"):
        next(translation(model, torch.zeros(1, 1, 8, 8), "a", "c", Knobs(0.5, 1.0, 5)))


class Slow:
    """A job whose steps wait to be let on, and that counts those it made."""

    def __init__(self, name: str, steps: int = 3) -> None:
        self.name, self.steps, self.made = name, steps, 0
        self.go = threading.Semaphore(0)

    def __call__(self) -> Iterator[Step]:
        for i in range(self.steps):
            self.go.acquire(timeout=10)
            self.made += 1
            yield Step((i + 1) / self.steps, self.name, torch.zeros(1, 1, 1, 1))


def joined(newest: Newest) -> None:
    assert newest.thread is not None
    newest.thread.join(10)
    assert not newest.thread.is_alive()


def test_only_the_newest_job_tells_and_older_ones_end_at_their_next_step() -> None:
    newest, told, failed = Newest(), [], []
    first, second, third = Slow("first", 5), Slow("second"), Slow("third")
    newest.ask(first, step=lambda step: told.append(step.title), failed=failed.append)
    first.go.release()
    deadline = time.monotonic() + 10
    while not told and time.monotonic() < deadline:
        time.sleep(0.005)
    newest.ask(second, step=lambda step: told.append(step.title), failed=failed.append)
    newest.ask(third, step=lambda step: told.append(step.title), failed=failed.append)
    for job in (first, second, third):
        for _ in range(5):
            job.go.release()
    joined(newest)
    assert told == ["first", "third", "third", "third"] and not failed
    assert first.made == 2 and second.made == 0  # one step was under way; the second was never begun


def test_stop_drops_the_job_and_an_error_is_told_once() -> None:
    newest, told, failed = Newest(), [], []
    job = Slow("x", 5)
    newest.ask(job, step=told.append, failed=failed.append)
    newest.stop()
    for _ in range(5):
        job.go.release()
    joined(newest)
    assert not told and not failed

    def broken() -> Iterator[Step]:
        raise ParameterError("no such knob")
        yield

    newest.ask(broken, step=told.append, failed=failed.append)
    joined(newest)
    assert [str(error) for error in failed] == ["no such knob"] and not told


def test_many_threads_may_ask_at_once() -> None:
    """A kernel's callbacks come from more than one thread."""
    newest, told, failed = Newest(), [], []

    def job() -> Iterator[Step]:
        yield Step(1.0, "done", torch.zeros(1, 1, 1, 1))

    def press() -> None:
        try:
            for _ in range(20):
                newest.ask(job, step=told.append, failed=failed.append)
        except Exception as error:  # noqa: BLE001  told below
            failed.append(error)

    for _ in range(10):
        threads = [threading.Thread(target=press) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        joined(newest)
    assert not failed and told
