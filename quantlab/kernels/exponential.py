"""exp of float32 by a polynomial, which the optimizer turns into vector instructions.

A call of the C library's exp for each number would take longer than the products of a small model.
"""

from __future__ import annotations

import numpy as np

from quantlab.native import compiled

LOG2_E = np.float32(1.4426950408889634)
LN2_HIGH = np.float32(0.693359375)  # nine bits, so that n * LN2_HIGH is exact
LN2_LOW = np.float32(-2.12194440054690583e-4)  # ln 2 - LN2_HIGH
LEAST, MOST = np.float32(-87.0), np.float32(88.0)  # beyond, float32 has only tiny numbers, or none
# Taylor coefficients 1/2! .. 1/6!: within |r| <= ln(2)/2 the next term is below 2e-7 of the sum
C2, C3, C4, C5, C6 = (np.float32(1 / k) for k in (2, 6, 24, 120, 720))
ONE, BIAS, MANTISSA_BITS = np.float32(1), np.int32(127), np.int32(23)


@compiled
def exponential(x):
    """Return e**x: x = n ln 2 + r, and 2**n is a matter of exponent bits. Relative error < 3e-7.

    Numbers below -87 count as -87 (1.6e-38), above 88 as 88 (1.7e38).
    """
    x = min(max(x, LEAST), MOST)
    n = np.rint(np.float32(x * LOG2_E))
    r = np.float32(np.float32(x - np.float32(n * LN2_HIGH)) - np.float32(n * LN2_LOW))
    p = np.float32(C5 + r * C6)
    p = np.float32(C4 + r * p)
    p = np.float32(C3 + r * p)
    p = np.float32(C2 + r * p)
    p = np.float32(ONE + r * p)
    p = np.float32(ONE + r * p)
    power = np.int32((np.int32(n) + BIAS) << MANTISSA_BITS).view(np.float32)
    return np.float32(p * power)
