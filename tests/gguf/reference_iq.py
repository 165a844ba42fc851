"""IQ4_NL and IQ4_XS the slow way: one sub-block at a time, one float32 operation a line."""

import numpy as np

F = np.float32
LEVELS = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113]


def nearest(v):
    """Return the code whose level is nearest to v, in exact arithmetic; of two, the upper."""
    return min(range(16), key=lambda code: (abs(float(v) - LEVELS[code]), -code))


def best_scale(x, w):
    """Return the scale of the best of sixteen sets of codes of 32 weights."""
    peak = max(x, key=abs)  # the first of equals
    if abs(peak) < F(1e-15):
        return F(0)
    scale, gain = F(0), F(0)
    inverses = [F(1) / (-peak / F(-127))] + [F(t - 127) / peak for t in range(-7, 8)]
    for number, inverse in enumerate(inverses):
        a, b = F(0), F(0)
        for xi, wi in zip(x, w, strict=True):
            q = F(LEVELS[nearest(inverse * xi)])
            a += wi * q * xi
            b += wi * q * q
        if number == 0 or (b > 0 and a * a > gain * b):
            scale = a / b if b > 0 else F(0)
            gain = scale * a
    return scale


def weights_of(block, importance):
    """Return the weight of each square in the search's sum."""
    if importance is None:
        return [xi * xi for xi in block]
    total = F(0)
    for xi in block:
        total += xi * xi
    spread = total * F(2 / len(block))
    return [qi * np.sqrt(spread + xi * xi) for xi, qi in zip(block, importance, strict=True)]


def packed(x, step):
    """Return 16 bytes: the codes of 32 weights on a grid of this step."""
    inverse = F(1) / step if step else F(0)
    codes = [nearest(inverse * xi) for xi in x]
    return bytes(codes[j] | codes[j + 16] << 4 for j in range(16))


def iq4_nl(block, importance):
    """Return the 18 bytes of 32 float32 weights."""
    scale = best_scale(block, weights_of(block, importance))
    return np.float16(scale).tobytes() + packed(block, scale)


def iq4_xs(block, importance):
    """Return the 136 bytes of 256 float32 weights."""
    w = weights_of(block, importance)
    parts = [slice(start, start + 32) for start in range(0, 256, 32)]
    scales = [best_scale(block[part], w[part]) for part in parts]
    largest = max([F(0), *scales], key=abs)
    d = -largest / F(32)
    inverse = F(1) / d if d else F(0)
    multiples = [min(31, max(-32, int(np.rint(inverse * scale)))) for scale in scales]
    bits = [multiple + 32 for multiple in multiples]
    high = sum((s >> 4) << 2 * g for g, s in enumerate(bits)).to_bytes(2, "little")
    low = bytes(bits[g] & 15 | (bits[g + 1] & 15) << 4 for g in range(0, 8, 2))
    grids = zip(parts, multiples, strict=True)
    return b"".join(
        [np.float16(d).tobytes(), high, low, *(packed(block[p], d * F(m)) for p, m in grids)]
    )


def quantize(row, name, importance=None):
    """Return the bytes of a row of float32 weights."""
    size, encode = {"IQ4_NL": (32, iq4_nl), "IQ4_XS": (256, iq4_xs)}[name]
    cuts = range(0, len(row), size)
    parts = [None if importance is None else importance[c : c + size] for c in cuts]
    joined = b"".join(encode(row[c : c + size], part) for c, part in zip(cuts, parts, strict=True))
    return np.frombuffer(joined, np.uint8)


# ---------------------------------------------------------------- lattices, bit by bit


def even(seven):
    """Return eight signs: seven bits and one more that makes the number of ones even."""
    return seven | (seven.bit_count() % 2) << 7


def iq2_xxs(take, i):
    g, k = i // 32, i // 8 % 4
    word = 16 + 64 * g + 32
    signs = even(take(word + 7 * k, 7))
    return take(16 + 64 * g + 8 * k, 8), signs, (0.5 + take(word + 28, 4), 0.25)


def iq2_xs(take, i):
    at = 16 + 16 * (i // 8)
    return take(at, 9), even(take(at + 9, 7)), (0.5 + take(8 * 66 + 4 * (i // 16), 4), 0.25)


def iq2_s(take, i):
    k = i // 8
    index = take(16 + 8 * k, 8) + 256 * take(8 * 66 + 2 * k, 2)
    return index, take(8 * 34 + 8 * k, 8), (0.5 + take(8 * 74 + 4 * (i // 16), 4), 0.25)


def iq3_xxs(take, i):
    word = 8 * 66 + 32 * (i // 32)
    signs = even(take(word + 7 * (i // 8 % 4), 7))
    return take(16 + 8 * (i // 4), 8), signs, (0.5 + take(word + 28, 4), 0.5)


def iq3_s(take, i):
    k = i // 4
    index = take(16 + 8 * k, 8) + 256 * take(8 * 66 + k, 1)
    return index, take(8 * 74 + 8 * (i // 8), 8), (1 + 2 * take(8 * 106 + 4 * (i // 32), 4),)


def iq1_s(take, i):
    k, word = i // 8, 8 * 34 + 16 * (i // 32)
    index = take(16 + 8 * k, 8) + 256 * take(word + 3 * (k % 4), 3)
    return index, take(word + 15, 1), (2 * take(word + 12, 3) + 1,)


def iq1_m(take, i):
    k, sixteen = i // 8, i // 16
    index = take(8 * k, 8) + 256 * take(8 * 32 + 4 * k, 3)
    s = take(8 * 48 + 16 * (sixteen // 4) + 3 * (sixteen % 4), 3)
    return index, take(8 * 32 + 4 * k + 3, 1), (2 * s + 1,)


def lattice_weights(block, name, points):
    """Return the 256 weights of the bytes of one block, given the type's list of points."""
    number = int.from_bytes(block, "little")

    def take(at, bits):
        return number >> at & (1 << bits) - 1

    top = sum(take(8 * 48 + 16 * i + 12, 4) << 4 * i for i in range(4))
    d = F(np.uint16(top if name == "IQ1_M" else take(0, 16)).view(np.float16))
    weights = []
    for i in range(256):
        index, flags, factors = globals()[name.lower()](take, i)
        step = d
        for factor in factors:
            step = step * F(factor)
        value = F(points[index][i % len(points[index])])
        if name.startswith("IQ1"):
            weights.append(step * (value + (F(-0.125) if flags else F(0.125))))
        else:
            weights.append(-(step * value) if flags >> i % 8 & 1 else step * value)
    return np.array(weights, np.float32)
