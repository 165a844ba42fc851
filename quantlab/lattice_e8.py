"""The lattice E8: its nearest point, and 2^16 of its points as a codebook for eight weights.

E8 = D8 and D8 + 1/2: all vectors of eight integers, or of eight half-odd numbers, with an even sum.
No other lattice of eight dimensions covers space with a smaller mean squared error.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from quantlab.native import compiled, share_rows

SIZE = 8
SHORT, LONGER, ENTRIES = 10.0, 12.0, 256  # squared norms; absolute patterns in the codebook
SMALL = 2**10  # fewer vectors are not worth a second thread


def nearest_e8(x: Tensor) -> Tensor:
    """Return the point of E8 nearest to each vector.

    Parameters
    ----------
    x : (..., 8) float tensor

    Returns
    -------
    (..., 8) tensor of x's dtype

    References
    ----------
    Conway and Sloane, Fast quantizing and decoding algorithms for lattice quantizers and codes,
    IEEE Transactions on Information Theory 28, 1982: the better of the two cosets' answers.

    Examples
    --------
    >>> nearest_e8(torch.tensor([0.9, 0.1, 0, 0, 0, 0, 0, 0.2])).tolist()
    [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]
    """
    whole, half = nearest_d8(x), nearest_d8(x - 0.5) + 0.5
    closer = (x - half).square().sum(-1) < (x - whole).square().sum(-1)
    return torch.where(closer[..., None], half, whole)


def nearest_d8(x: Tensor) -> Tensor:
    """Return the nearest vectors of integers with an even sum.

    Each number is rounded; if the sum is odd, the one that was rounded farthest goes to its other
    neighbor.
    """
    rounded = torch.round(x)
    error = x - rounded
    worst = error.abs().argmax(-1, keepdim=True)
    other = torch.where(error.gather(-1, worst) >= 0, 1.0, -1.0).to(x.dtype)
    odd = (rounded.sum(-1, keepdim=True) % 2).abs()
    return rounded.scatter_add(-1, worst, other * odd)


# ---------------------------------------------------------------- 2^16 points


@lru_cache
def patterns() -> Tensor:
    """Return the 256 patterns of absolute values, (256, 8) float32: half-odd numbers.

    All 227 with a squared norm of at most 10, and the first 29 of those with 12.
    """
    odd = torch.cartesian_prod(*[torch.tensor([0.5, 1.5, 2.5])] * SIZE)
    norm = odd.square().sum(-1)
    return torch.cat([odd[norm <= SHORT], odd[norm == LONGER]])[:ENTRIES]


def encode_e8(x: Tensor) -> Tensor:
    """Return the code of the nearest of 65,536 vectors.

    A code is, from its low bits: 8 bits of pattern, 7 signs (those of numbers 0 to 6, set if
    negative), and 1 bit of shift. The sign of number 7 makes the sum even; then 1/4 is added to all
    numbers, or taken from them if the shift is set. So all 2^16 lie in E8 + 1/4.

    Parameters
    ----------
    x : (n, 8) float tensor
        A normal distribution is met best with a standard deviation near 1.

    Returns
    -------
    (n,) int32 tensor

    References
    ----------
    Tseng et al., QuIP#, arXiv:2402.04396v2, section 4.2 and appendix (E8P). The paper picks other
    vectors of norm 12; the layout of the bits is ours.

    Examples
    --------
    >>> code = encode_e8(torch.full((1, 8), 0.75))
    >>> code.tolist(), decode_e8(code)[0, :2].tolist()
    ([0], [0.75, 0.75])
    """
    x = x.detach().contiguous()
    codes = np.empty(len(x), np.int32)
    table = patterns().to(x.dtype)
    parity = (table.sum(-1) % 2).bool().numpy()

    def work(low: int, high: int) -> None:
        nearest_codes(x.numpy()[low:high], table.numpy(), parity, codes[low:high])

    share_rows(work, len(x), threads=1 if len(x) < SMALL else torch.get_num_threads())
    return torch.from_numpy(codes)


@compiled
def nearest_codes(x, table, parity, codes):
    """Fill the codes of vectors (n, 8): for each shift and pattern, the best signs are known.

    With signs as in y, the squared distance is |y|^2 + |s|^2 - 2 sum |y_i| s_i; if their number has
    the wrong parity, the sign that costs least is turned, where |y_i| s_i is smallest.
    """
    y, size = np.empty(SIZE, x.dtype), np.empty(SIZE, x.dtype)
    for n in range(len(x)):
        best = np.inf
        for shift in range(2):
            norm, negative = 0.0, 0
            for i in range(SIZE):
                y[i] = x[n, i] + 0.5 * shift - 0.25
                size[i] = abs(y[i])
                norm += size[i] * size[i]
                negative += y[i] < 0
            for pattern in range(len(table)):
                distance, least, where = norm, np.inf, 0
                for i in range(SIZE):
                    s = table[pattern, i]
                    distance += s * s - 2 * size[i] * s
                    if size[i] * s < least:
                        least, where = size[i] * s, i
                turned = (negative % 2 == 1) != parity[pattern]
                distance += 4 * least * turned
                if distance < best:
                    best = distance
                    code = pattern + (shift << 15)
                    for i in range(SIZE - 1):
                        code |= ((y[i] < 0) != (turned and i == where)) << (SIZE + i)
                    codes[n] = code


def decode_e8(codes: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the vectors of codes 0 .. 65,535: (..., 8) for (...) integers."""
    codes = codes.int()
    size = patterns().to(codes.device, dtype)[(codes & 255).long()]
    negative = (codes[..., None] >> torch.arange(8, 15, device=codes.device)) & 1
    last = (negative.sum(-1) + size.sum(-1).int()) % 2  # so that the sum of all numbers is even
    sign = 1 - 2 * torch.cat([negative, last[..., None]], -1).to(dtype)
    offset = 0.25 - 0.5 * (codes >> 15 & 1).to(dtype)
    return size * sign + offset[..., None]
