"""What exercise checks are made of: call a learner's function, compare with what is right."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Iterable
from typing import Any

import torch


class Wrong(Exception):
    """An answer is incorrect; the message names the reason and shows the learner's value."""


class NotAttempted(Exception):
    """There is nothing to check yet."""


def call(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Call a learner's function; its exceptions become one readable line.

    Raises
    ------
    Wrong
        If it is no function, or raises: with the error and its line number.
    NotAttempted
        If it returns None or ``...``.
    """
    if not callable(function):
        raise Wrong(f"expected a function, yours is {show(function)}")
    try:
        result = function(*arguments, **named)
    except Exception as problem:  # whatever a learner's code raises is feedback, not our error
        shown = ", ".join([*map(show, arguments), *(f"{k}={show(v)}" for k, v in named.items())])
        raise Wrong(f"your function raised on ({shown}): {describe(problem)}") from None
    if result is None or result is ...:
        raise NotAttempted
    return result


def describe(problem: Exception) -> str:
    """Return an exception as one line with the line number where it was raised."""
    frames = traceback.extract_tb(problem.__traceback__)
    line = f" (line {frames[-1].lineno} of {frames[-1].name})" if frames else ""
    message = " ".join(str(problem).split())
    return (
        f"{type(problem).__name__}: {message}{line}"
        if message
        else f"{type(problem).__name__}{line}"
    )


def expect(
    value: Any, target: Any, what: str, *, rel: float = 0.0, abs_: float = 0.0, reveal: bool = False
) -> None:
    """Raise Wrong unless ``value`` equals ``target``: numbers, text, tensors, or lists of them.

    Parameters
    ----------
    value : the learner's
    target : number, str, bool, Tensor, list, tuple or dict
    what : str
        Names the thing in the message, such as "scale for uint8".
    rel, abs_ : float
        Tolerance for numbers; the wider one counts. 0 means exact.
    reveal : bool
        Show the right value too. Only where it does not give the exercise away: a function's
        result on one input may be shown, an asked number may not.

    Raises
    ------
    Wrong
        With the name, the kind of thing expected, and the learner's value.

    Examples
    --------
    >>> expect([1.0, 2.5], [1.0, 2.0], "sums")
    Traceback (most recent call last):
    quantlab.quiz.expect.Wrong: sums, value 2: 2.5 is not right
    """
    if isinstance(target, torch.Tensor):
        expect_tensor(value, target, what, rel, abs_, reveal)
    elif isinstance(target, dict):
        if not isinstance(value, dict):
            raise Wrong(
                f"{what}: expected a dict with {len(target)} entries, yours is {show(value)}"
            )
        for key, part in target.items():
            if key not in value:
                raise Wrong(f"{what}: {key!r} is missing")
            expect(value[key], part, f"{what}, {key}", rel=rel, abs_=abs_, reveal=reveal)
    elif isinstance(target, list | tuple):
        mine = value.tolist() if isinstance(value, torch.Tensor) else value
        if not isinstance(mine, list | tuple) or len(mine) != len(target):
            raise Wrong(f"{what}: expected {len(target)} values, yours is {show(value)}")
        for place, (entry, part) in enumerate(zip(mine, target, strict=True), 1):
            expect(entry, part, f"{what}, value {place}", rel=rel, abs_=abs_, reveal=reveal)
    elif isinstance(target, bool | str):
        if isinstance(value, bool) != isinstance(target, bool) or value != target:
            raise difference(value, target, what, reveal)
    elif not abs(as_float(value, what) - target) <= max(abs_, rel * abs(target)):
        raise difference(value, target, what, reveal)


def difference(value: Any, target: Any, what: str, reveal: bool) -> Wrong:
    """Return the error that names a wrong value."""
    if reveal:
        return Wrong(f"{what}: expected {show(target)}, yours is {show(value)}")
    return Wrong(f"{what}: {show(value)} is not right")


def as_float(value: Any, what: str) -> float:
    """Return a learner's number, or raise Wrong if it is none."""
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, str | bool | bytes) or not hasattr(value, "__float__"):
        raise Wrong(f"{what}: expected a number, yours is {show(value)}")
    try:
        number = float(value)
    except (TypeError, ValueError):  # several numbers: a tensor or an array
        raise Wrong(f"{what}: expected one number, yours is {show(value)}") from None
    if math.isnan(number):
        raise Wrong(f"{what}: expected a number, yours is NaN")
    return number


def expect_tensor(
    value: Any, target: torch.Tensor, what: str, rel: float, abs_: float, reveal: bool
) -> None:
    """Compare tensors: shape first, then the entry that is furthest off."""
    shape = tuple(target.shape)
    if not isinstance(value, torch.Tensor):
        raise Wrong(f"{what}: expected a tensor of shape {shape}, yours is {show(value)}")
    if value.shape != target.shape:
        raise Wrong(f"{what}: expected shape {shape}, yours is {tuple(value.shape)}")
    mine, right = value.detach().double(), target.detach().double()
    excess = (mine - right).abs() - (right.abs() * rel).clamp(min=abs_)
    excess = torch.where(mine == right, 0.0, excess.nan_to_num(nan=math.inf))  # inf equals inf
    if excess.numel() and not bool((excess <= 0).all()):
        place = torch.unravel_index(excess.argmax(), target.shape)
        index = tuple(int(part) for part in place)
        raise difference(mine[index], right[index], f"{what}, at {list(index)}", reveal)


def show(value: Any, most: int = 60) -> str:
    """Return a short one-line form of a value for a message.

    Examples
    --------
    >>> show(0.1 + 0.2), show(torch.zeros(2, 3))
    ('0.3', 'a tensor of shape (2, 3)')
    """
    if isinstance(value, torch.Tensor):
        if value.numel() != 1:
            return f"a tensor of shape {tuple(value.shape)}"
        value = value.item()
    if isinstance(value, float):
        return f"{value:.6g}"
    if callable(value) and hasattr(value, "__name__"):
        return f"the function {value.__name__}"
    text = " ".join(repr(value).split())
    return text if len(text) <= most else text[: most - 1] + "\u2026"


def compare_calls(
    function: Callable[..., Any],
    reference: Callable[..., Any],
    cases: Iterable[tuple[Any, ...]],
    *,
    rel: float = 0.0,
    abs_: float = 0.0,
) -> None:
    """Call a learner's function and a reference on the same cases; the first difference is Wrong.

    Tensors are cloned, so that a function that changes its input is not marked by it.

    Raises
    ------
    Wrong
        With the case, the expected value and the learner's.
    NotAttempted
        If the function returns None.
    """
    for case in cases:
        copies = [part.clone() if isinstance(part, torch.Tensor) else part for part in case]
        value = call(function, *copies)
        shown = ", ".join(map(show, case))
        name = getattr(function, "__name__", "f").replace("<lambda>", "f")
        expect(value, reference(*case), f"{name}({shown})", rel=rel, abs_=abs_, reveal=True)
