"""Reading a reader's answers: a number, choices among letters, tensors a function of theirs returns.

Whatever is wrong with an answer is a `NotYet`, which says what was found, what was expected and what to look at; never
a traceback through the companion's own code.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from medshift.flow import Velocity

__all__ = ["NotYet", "Watched", "letters", "number", "returned", "right", "rms", "same", "tensor"]


class NotYet(AssertionError):  # noqa: N818  not an error, but not yet an answer
    """An answer that is missing or not right yet; its message helps on without giving the answer away."""

    def _render_traceback_(self) -> list[str]:
        """What Jupyter shows of it: the message alone."""
        return [f"Not yet: {self}"]


def right(text: str) -> None:
    """Say that an answer is right, and why, on one line."""
    print(f"Right: {text}")


def number(answer: Any, name: str, *, whole: bool = False) -> float:
    """A finite number, also one of numpy or a tensor of one element.

    Raises:
        NotYet: it is something else.
    """
    kind = "a whole number" if whole else "a number"
    _given(answer, name, kind)
    try:
        assert not isinstance(answer, (bool, str, bytes))
        value = float(answer)
    except Exception:
        raise NotYet(f"{name} is {_short(answer)}; expected {kind}.") from None
    if not math.isfinite(value) or (whole and value != round(value)):
        raise NotYet(f"{name} is {value:g}; expected {kind}{'' if whole else ' that is finite'}.")
    return value


def letters(answer: Any, name: str, options: str, *, several: bool = False) -> set[str]:
    """The letters of a choice, such as {"a"} of "a", or {"a", "c"} of "ac" or "a, c" where `several` may be chosen.

    Raises:
        NotYet: it is no string of these letters, or not one letter where one is asked for.
    """
    kind = f"{'letters' if several else 'one letter'} of {', '.join(options)}, as a string"
    _given(answer, name, kind)
    found = set(answer.lower()) - set(" ,;") if isinstance(answer, str) else set()
    if not found or not found <= set(options) or (len(found) > 1 and not several):
        raise NotYet(f"{name} is {_short(answer)}; expected {kind}.")
    return found


def returned(function: Any, name: str, *arguments: Any) -> Any:
    """What a reader's function returns.

    Raises:
        NotYet: it is no function, stops with an error, or returns nothing or a ``...``.
    """
    _given(function, name, "a function")
    if not callable(function):
        raise NotYet(f"{name} is {_short(function)}; expected a function. Was its name given to something else?")
    try:
        value = function(*arguments)
    except NotYet:
        raise
    except Exception as error:
        reason = (str(error) or "no message").splitlines()[0]
        raise NotYet(f"{name} stopped with {type(error).__name__}{_where(function, error)}: {reason}") from None
    parts = value if isinstance(value, (tuple, list)) else [value]
    if any(part is ... for part in parts):
        raise NotYet(f"{name}(...) still returns ...; write its body, as the stub says.")
    if value is None:
        raise NotYet(f"{name}(...) returns nothing; does it end with `return`?")
    return value


def tensor(value: Any, name: str, shape: Sequence[int], *, whole: bool = False) -> Tensor:
    """`value`, a tensor of this shape, finite, of floating point or (`whole`) of integers.

    Raises:
        NotYet: it is something else.
    """
    kind = f"a tensor of {'integers' if whole else 'floats'} of shape {tuple(shape)}"
    if not isinstance(value, Tensor):
        raise NotYet(f"{name} is {_short(value)}; expected {kind}.")
    if value.shape != tuple(shape):
        raise NotYet(f"{name} has shape {tuple(value.shape)}; expected {tuple(shape)}.")
    if value.is_floating_point() == whole or value.dtype == torch.bool or value.is_complex():
        raise NotYet(f"{name} is of {value.dtype}; expected {kind}.")
    if not bool(value.isfinite().all()):
        share = float((~value.isfinite()).float().mean())
        raise NotYet(f"{name} is NaN or infinite in {share:.0%} of its entries; expected finite numbers.")
    return value


class Watched:
    """A velocity that tells a reader what it cannot be asked, and counts its calls."""

    def __init__(self, velocity: Velocity) -> None:
        """Wrap `velocity`."""
        self.velocity = velocity
        self.calls = 0

    def __call__(self, x: Any, t: Any, label: Any) -> Tensor:
        """The velocity at x (B, 2), t () or (B,) in [0, 1], label (B,).

        Raises:
            NotYet: an argument is something else.
        """
        self.calls += 1
        if not isinstance(t, Tensor):
            raise NotYet(f"velocity(x, t, label) was asked at t = {_short(t)}; expected a tensor: torch.tensor(t).")
        tensor(x, "the x that velocity(x, t, label) was asked at", (len(label), 2))
        if t.numel() != 1 and t.shape != (len(label),):
            raise NotYet(f"velocity(x, t, label) was asked at a t of shape {tuple(t.shape)}; expected () or (B,).")
        if not (float(t.min()) > -1e-5 and float(t.max()) < 1 + 1e-5):
            raise NotYet(f"velocity(x, t, label) was asked at t = {float(t.max()):g}; expected times from 0 to 1.")
        return self.velocity(x, t, label)


def same(a: Tensor, b: Tensor, tolerance: float = 1e-4) -> bool:
    """Whether two tensors agree entry by entry, within `tolerance` absolutely and relatively."""
    return torch.allclose(a.double(), b.double(), rtol=tolerance, atol=tolerance)


def rms(a: Tensor, b: Tensor) -> float:
    """The root of the mean squared distance between points a and b, both (B, 2)."""
    return float((a.double() - b.double()).square().sum(1).mean().sqrt())


def _given(answer: Any, name: str, kind: str) -> None:
    if answer is ...:
        raise NotYet(f"{name} is still ...; replace it by {kind}.")


def _short(value: Any) -> str:
    text = repr(value).splitlines()[0]
    return f"{text if len(text) <= 40 else text[:39] + '…'} ({type(value).__name__})"


def _where(function: Callable[..., Any], error: Exception) -> str:
    """The last line of the reader's own code on the way to an error, where it is known."""
    file = getattr(getattr(function, "__code__", None), "co_filename", None)
    lines = [frame.line for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f" at `{lines[-1]}`" if lines and lines[-1] else ""
