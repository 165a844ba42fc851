"""Many blocks of weights side by side in vector registers: what the scale searches build on.

A float sum must keep its order to be equal in every bit, so one block cannot be summed with vector
instructions, but ``LANES`` blocks can be summed at once. A *tile* is one flat array: number j of a
row of ``LANES`` belongs to block j, a block's weights follow one another as rows, and the inner
loops run over j without branches. Flat, with rows at constant places: only so does the compiler see
that the rows do not overlap.
"""

import numpy as np

from quantlab.native import compiled

LANES = np.uintp(32)  # unsigned, like all places: a signed index is tested for < 0 each time
SIXTEEN = np.uintp(16)
TINY = np.float32(1e-15)  # a block whose largest weight is below gets scale 0
ZERO, ONE, TENTH = np.float32(0), np.float32(1), np.float32(0.1)
INFINITE = np.float32(np.inf)
MAGIC = np.float32(3 << 22)  # adding it moves a float's integer part to the end of its mantissa
MANTISSA, MIDDLE = np.int32((1 << 23) - 1), np.int32(1 << 22)

# Places of the rows in a tile: numbers of a block, then its weights, importances and codes.
HIGH, LOW, SCALE, INVERSE, BASE, BEST = (LANES * np.uintp(row) for row in range(6))
TRY, TRY_SCALE, TRY_LOW, TRY_ERROR = (LANES * np.uintp(row) for row in range(6, 10))
SW, SX, SL, SLL, SLX, CHANGED = (LANES * np.uintp(row) for row in range(10, 16))
X, W, L = (LANES * np.uintp(16 + 32 * k) for k in range(3))
TILE = int(LANES) * (16 + 32 * 3)


@compiled
def nearest(v):
    """Round half to even, |v| < 2^22; beyond, and for NaN, give the integer that ggml gives."""
    return np.int32((np.float32(v + MAGIC).view(np.int32) & MANTISSA) - MIDDLE)


@compiled
def clipped(v, low, high):
    """Round to the nearest integer from ``low`` to ``high``, as a float."""
    code = nearest(v)
    code = code if code > low else low
    return np.float32(code if code < high else high)


@compiled
def load(x, start, tile, place):
    """Copy the blocks from ``start`` on into the lanes of a tile; lanes without one get zeros."""
    count = min(LANES, np.uintp(x.shape[0]) - start)
    for i in range(np.uintp(x.shape[1])):
        at = place + i * LANES
        for j in range(LANES):
            tile[at + j] = ZERO
        for j in range(count):
            tile[at + j] = x[start + j, i]


@compiled
def store(tile, place, start, out):
    """Copy a row of a tile to the blocks from ``start`` on."""
    for j in range(min(LANES, np.uintp(out.shape[0]) - start)):
        out[start + j] = tile[place + j]


@compiled
def store_codes(tile, start, out):
    """Copy the codes of a tile to the blocks from ``start`` on."""
    for j in range(min(LANES, np.uintp(out.shape[0]) - start)):
        for i in range(np.uintp(out.shape[1])):
            out[start + j, i] = np.uint8(tile[L + i * LANES + j])


@compiled
def find_extremes(t, n, lanes):
    """Put the first weight of largest size of each of so many blocks into the row HIGH."""
    for j in range(lanes):
        t[HIGH + j] = ZERO
    for i in range(n):
        at = X + i * LANES
        for j in range(lanes):
            x, high = t[at + j], t[HIGH + j]
            t[HIGH + j] = x if abs(x) > abs(high) else high


@compiled
def product_sums(t, low, high):
    """Round the weights times TRY to codes; SLX = sum (w x) l, SLL = sum (w l) l."""
    for j in range(LANES):
        t[SLX + j] = ZERO
        t[SLL + j] = ZERO
    for i in range(SIXTEEN):
        at = i * LANES
        for j in range(LANES):
            code = clipped(t[TRY + j] * t[X + at + j], low, high)
            t[L + at + j] = code
            t[SLX + j] += t[W + at + j] * t[X + at + j] * code
            t[SLL + j] += t[W + at + j] * code * code


@compiled
def improve(t, low, high, least, kept):
    """Move code after code to its best place given the others, until none moves, or five times.

    s = SLX - (w x) l and b = SLL - (w l) l are the sums of the others; b must be over ``least``.
    A code is stored with the bits ``kept``. Blocks have up to 16 weights; a row of zeros, here
    those after the last weight, changes nothing, and a constant number of rows is far faster.
    """
    for _ in range(5):
        for j in range(LANES):
            t[CHANGED + j] = ZERO
        for i in range(SIXTEEN):
            at = i * LANES
            for j in range(LANES):
                x, w, code = t[X + at + j], t[W + at + j], t[L + at + j]
                s = t[SLX + j] - w * x * code
                b = t[SLL + j] - w * code * code
                new = clipped(x * b / s, low, high)
                possible = (s > ZERO) & (b > least) & (new != code)
                s += w * x * new
                b += w * new * new
                take = possible & (b > ZERO) & (s * s * t[SLL + j] > t[SLX + j] * t[SLX + j] * b)
                t[L + at + j] = np.float32(np.int32(new) & kept) if take else code
                t[SLX + j] = s if take else t[SLX + j]
                t[SLL + j] = b if take else t[SLL + j]
                t[CHANGED + j] = ONE if take else t[CHANGED + j]
        changed = ZERO
        for j in range(LANES):
            changed = max(changed, t[CHANGED + j])
        if changed == ZERO:
            break
