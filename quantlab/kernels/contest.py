"""What is timed: a product, the ways to compute it, and the proof that each way is right."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantlab.kernels.bandwidth import cache_bytes

# Largest error of an output, in units of the outputs' root mean square, by how a contestant
# holds activations. The largest of 500,000 normal errors is 5 times the typical one: 5 x 0.02 %
# in float32 sums, 5 x 0.3 % in bfloat16, and 5 x 2 % for bytes with one scale a token.
TOLERANCE = {"float32": 1e-3, "float16": 0.01, "bfloat16": 0.03, "int8": 0.12}
WARM_UP = 2  # calls of a turn that are not timed
MOST_SETS = 512
COLD = 4  # cold weights take more than so many times L3


class WrongKernel(ValueError):
    """A contestant whose result is not what it claims: there is nothing to time."""


@dataclass(frozen=True, eq=False)
class Product:
    """One product to time: activations (batch, in) with the transpose of a weight (out, in).

    Attributes
    ----------
    weight : (out, in) float32 tensor
    x : (batch, in) float32 tensor
    """

    weight: Tensor
    x: Tensor

    @classmethod
    def random(cls, rows: int, columns: int, batch: int = 1, *, seed: int = 0) -> Product:
        """Draw normal activations, and normal weights of standard deviation 0.02.

        Raises
        ------
        ValueError
            If a size is not above 0.
        """
        if min(rows, columns, batch) < 1:
            raise ValueError(f"a product of {rows}x{columns}, batch {batch}; all are above 0")
        draw = torch.Generator().manual_seed(seed)
        weight = torch.randn(rows, columns, generator=draw) * 0.02
        return cls(weight, torch.randn(batch, columns, generator=draw))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(out, in, batch)."""
        return (*self.weight.shape, len(self.x))  # type: ignore[return-value]

    @property
    def operations(self) -> int:
        """Multiplications and additions of one call."""
        rows, columns, batch = self.shape
        return 2 * rows * columns * batch

    def truth(self, weight: Tensor) -> NDArray[np.float64]:
        """Return x W^T (batch, out) in float64, for some form of the weight."""
        return (self.x.double() @ weight.double().T).numpy()


class Prepared(Protocol):
    """Weights made ready, in one or several sets, and the calls that use them.

    Attributes
    ----------
    process : the number of the child process in which they run, or None
    """

    process: int | None

    def result(self) -> NDArray[np.float64]:
        """Return the product (batch, out) with the first set."""
        ...

    def turn(self, calls: int, threads: int, *, cold: bool) -> list[float]:
        """Make calls that are not timed, then so many that are; return their seconds."""
        ...

    def close(self) -> None:
        """Give the weights back."""
        ...


class Calls:
    """Calls in this process, one for each set of weights."""

    def __init__(self, calls: Sequence[Callable[[], Tensor]]) -> None:
        self.calls, self.next = list(calls), 0
        self.process: int | None = None

    def result(self) -> NDArray[np.float64]:
        """Return the product (batch, out) with the first set."""
        return self.calls[0]().detach().double().numpy()

    def turn(self, calls: int, threads: int, *, cold: bool) -> list[float]:
        """Make calls that are not timed, then so many that are; return their seconds."""
        times = []
        for _ in range(WARM_UP + calls):
            call = self.calls[self.next if cold else 0]
            self.next = (self.next + 1) % len(self.calls)
            began = time.perf_counter()
            call()
            times.append(time.perf_counter() - began)
        return times[WARM_UP:]

    def close(self) -> None:
        """Give the weights back."""
        self.calls.clear()


@dataclass(frozen=True, eq=False)
class Contestant:
    """One way to compute a product.

    Attributes
    ----------
    name : str
    activations : ``float32``, ``bfloat16``, or ``int8`` and how many share a scale
        What they are when they are multiplied.
    weight_bytes : int
        Bytes of weights that one call reads.
    truth : (batch, out) float64 array
        The product of x and this contestant's own weight.
    prepare : sets -> Prepared
        Makes so many sets of weights ready.
    bits : stored bits per weight
    ours : bool
    note : what a reader must know, such as "without scales"
    exact : (tokens, out) array, or None
        What the result of the first tokens must be, to the last rounding of a float32.
    """

    name: str
    activations: str
    weight_bytes: int
    truth: NDArray[np.float64]
    prepare: Callable[[int], Prepared]
    bits: float
    ours: bool = False
    note: str = ""
    exact: NDArray[np.float64] | None = None


def weight_sets(nbytes: int) -> int:
    """Return how many sets of weights are more than four times the third cache, at least 2.

    Raises
    ------
    ValueError
        If that takes more than 512 sets: of so small a weight only hot times mean anything.

    Examples
    --------
    >>> weight_sets(10 * cache_bytes(3))
    2
    """
    sets = max(2, COLD * cache_bytes(3) // max(nbytes, 1) + 1)
    if sets > MOST_SETS:
        raise ValueError(
            f"a weight of {nbytes} bytes needs {sets} copies to be cold; time it hot, or take a "
            f"larger one"
        )
    return sets


def validate(contestant: Contestant, result: NDArray[np.float64]) -> float:
    """Return the relative error |y - truth| / |truth| of a result (batch, out).

    Raises
    ------
    WrongKernel
        If its shape is wrong, it is not finite, or some output is farther from the truth than its
        kind of activations explains; with ``exact``, than the rounding of a float32 explains.
    """
    truth, name = contestant.truth, contestant.name
    if result.shape != truth.shape:
        raise WrongKernel(f"{name} returns shape {result.shape}, not {truth.shape}")
    if not np.isfinite(result).all():
        raise WrongKernel(f"{name} returns {np.count_nonzero(~np.isfinite(result))} NaN or Inf")
    size = float(np.sqrt(np.mean(truth**2)))
    demands = [(truth, TOLERANCE[contestant.activations.split()[0]])]
    if contestant.exact is not None:
        demands.append((contestant.exact, 1e-5))
    for wanted, tolerance in demands:
        off = np.abs(result[: len(wanted)] - wanted)
        worst = np.unravel_index(off.argmax(), off.shape)
        if off[worst] > tolerance * size:
            raise WrongKernel(
                f"{name} gives {result[worst]:.6g} at {tuple(map(int, worst))} where "
                f"{wanted[worst]:.6g} is right; allowed is {tolerance:g} of {size:.3g}"
            )
    return float(np.linalg.norm(result - truth) / np.linalg.norm(truth)) if size else 0.0
