"""Slow twins of the methods that train: scalar loops over Python floats, nothing shared with them.

Tests compare in float64 with atol 1e-12. Append yours below the others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

Kernel = list[list[list[float]]]  # [channel][input channel][tap]; a Linear has one tap


@dataclass
class AdaScaleTwin:
    """One weight under AdaScale: forward, and the gradients that belong to G = dL/dQ.

    ``weight[o][i][t]`` with its ``s2`` of the same shape, one gamma, beta and s3 for each entry of
    ``channels`` (lists of o that share a range), one s4 for each i.
    """

    weight: Kernel
    bits: int
    channels: list[list[int]]
    gamma: list[float]
    beta: list[float]
    s2: Kernel
    s3: list[float]
    s4: list[float]
    Q: dict[tuple[int, int, int], float] = field(default_factory=dict)
    codes: dict[tuple[int, int, int], int] = field(default_factory=dict)
    folded: dict[tuple[int, int, int], float] = field(default_factory=dict)
    scale: list[float] = field(default_factory=list)

    def places(self, channel: int) -> list[tuple[int, int, int]]:
        """Return the indices of all weights that share this range."""
        return [
            (o, i, t)
            for o in self.channels[channel]
            for i in range(len(self.weight[o]))
            for t in range(len(self.weight[o][i]))
        ]

    def limits(self, channel: int) -> tuple[float, float]:
        """Return lo and hi at the start."""
        values = [self.weight[o][i][t] for o, i, t in self.places(channel)]
        N = 2**self.bits - 1
        positive, negative = N // 2, N - N // 2
        high, low = max([0.0, *values]), min([0.0, *values])
        if (high - low) / N < 2.0**-23:
            high, low = high + positive * 2.0**-23, low - negative * 2.0**-23
        first = positive + 1 if self.bits == 2 else positive
        step = max(high / first, -low / negative)
        return -negative * step, positive * step

    def run(self, G: Kernel) -> dict[str, dict]:
        """Fill Q, codes, folded and scale; return the gradients by parameter and index."""
        names = ("gamma", "beta", "s2", "s3", "s4")
        gradients: dict[str, dict] = {name: {} for name in names}
        N, qmin, qmax = 2**self.bits - 1, -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1
        self.scale = []
        for c in range(len(self.channels)):
            low, high = self.limits(c)
            s = (math.exp(self.gamma[c]) * high - math.exp(self.beta[c]) * low) / N
            self.scale.append(s)
            for o, i, t in self.places(c):
                divided = self.weight[o][i][t] / math.exp(self.s2[o][i][t]) / math.exp(self.s3[c])
                divided /= math.exp(self.s4[i])
                r = round(divided / s)  # Python rounds half to even
                q = min(max(r, qmin), qmax)
                inside = qmin <= r <= qmax
                self.folded[o, i, t], self.codes[o, i, t] = divided, q
                self.Q[o, i, t] = q * s
                g = G[o][i][t]
                dW, ds = (g, g * (r - divided / s)) if inside else (0.0, g * q)
                add(gradients["gamma"], c, ds * math.exp(self.gamma[c]) * high / N)
                add(gradients["beta"], c, -ds * math.exp(self.beta[c]) * low / N)
                add(gradients["s2"], (o, i, t), -divided * dW)
                add(gradients["s3"], c, -divided * dW)
                add(gradients["s4"], i, -divided * dW)
        return gradients


def add(sums: dict, key: object, value: float) -> None:
    """Add to an entry that may not be there yet."""
    sums[key] = sums.get(key, 0.0) + value


def adascale_training(
    W: list[list[float]], batches: list[list[list[float]]], bits: int, iterations: int
) -> tuple[list[float], AdaScaleTwin]:
    """Train the block y = x W^T against itself, batches of (tokens, in); Adam and cosine by hand.

    Returns
    -------
    losses, the twin as training leaves it
    """
    rows, columns = len(W), len(W[0])
    twin = AdaScaleTwin(
        [[[w] for w in row] for row in W],
        bits,
        [[o] for o in range(rows)],
        [0.0] * rows,
        [0.0] * rows,
        [[[0.0] for _ in row] for row in W],
        [0.0] * rows,
        [0.0] * columns,  # never moved: a Linear has no s4
    )
    zero = [[[0.0] for _ in row] for row in W]
    moments: dict[tuple, tuple[float, float]] = {}
    losses = []
    for step in range(iterations):
        x = batches[step % len(batches)]
        twin.run(zero)
        # output minus target of token n, feature o
        error = [
            [sum((twin.Q[o, i, 0] - W[o][i]) * xn[i] for i in range(columns)) for o in range(rows)]
            for xn in x
        ]
        losses.append(sum(e * e for row in error for e in row) / rows)
        G = [
            [[sum(2 * error[n][o] * x[n][i] for n in range(len(x))) / rows] for i in range(columns)]
            for o in range(rows)
        ]
        gradients = twin.run(G)
        share = (1 + math.cos(math.pi * step / iterations)) / 2
        for name, rate in (("gamma", 1e-3), ("beta", 1e-3), ("s2", 5e-4), ("s3", 5e-4)):
            for key, g in gradients[name].items():
                m, v = moments.get((name, key), (0.0, 0.0))
                m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
                moments[name, key] = m, v
                first, second = m / (1 - 0.9 ** (step + 1)), v / (1 - 0.999 ** (step + 1))
                change = rate * share * first / (math.sqrt(second) + 1e-8)
                if name == "s2":
                    o, i, t = key
                    twin.s2[o][i][t] -= change
                else:
                    getattr(twin, name)[key] -= change
    twin.run(zero)
    return losses, twin


# ------------------------------------------------------------------ one group of weights


def sigmoid(x: float) -> float:
    """Return 1 / (1 + e^-x)."""
    return 1 / (1 + math.exp(-x))


def adaround_weight(w: float, s: float, z: float, V: float, levels: int) -> tuple[float, float]:
    """Return one weight under AdaRound with soft rounding, and dQ/dV."""
    stretched = 1.2 * sigmoid(V) - 0.1
    h = min(max(stretched, 0.0), 1.0)
    code = math.floor(w / s) + h + z
    moves = 0 < stretched < 1 and 0 <= code <= levels - 1
    slope = s * 1.2 * sigmoid(V) * (1 - sigmoid(V)) if moves else 0.0
    return s * (min(max(code, 0.0), levels - 1) - z), slope


def flexround_weight(
    w: float, s: float, z: float, logs: tuple[float, float, float], levels: int
) -> tuple[float, int, tuple[float, float]]:
    """Return one weight under FlexRound, its code, and dQ/d(log s1) and dQ/d(log S2).

    ``logs`` are those of s1, S2 and s3; the last two have the same slope.
    """
    s1 = s * math.exp(logs[0])
    divided = w / math.exp(logs[1]) / math.exp(logs[2])
    x = divided / s1
    wanted = round(x) + round(z)  # Python rounds half to even
    code = min(max(wanted, 0), levels - 1)
    Q = s1 * (code - z)
    # Straight through: d round(x) = dx. x falls with log s1 and with log S2 by x each.
    slopes = (Q - divided, -divided) if wanted == code else (Q, 0.0)
    return Q, code, slopes


def clipped_group(
    values: list[float], g: float, b: float, bits: int, *, symmetric: bool
) -> dict[str, list[float]]:
    """Return a group under OmniQuant's clipping: Q, codes, grid, dQ/dg and dQ/db of each."""
    top, middle = 2**bits - 1, 2 ** (bits - 1)
    low, high = min(0.0, *values), max(0.0, *values)
    if symmetric:
        extreme = max(values, key=abs)
        s, z = sigmoid(g) * extreme / -middle, float(middle)
    else:
        s = (sigmoid(g) * high - sigmoid(b) * low) / top
        wanted_z = round(-sigmoid(b) * low / s)
        z = float(min(max(wanted_z, 0), top))
    answer: dict[str, list[float]] = {"Q": [], "codes": [], "grid": [s, z], "dg": [], "db": []}
    for w in values:
        wanted = round(w / s) + round(z)
        code = min(max(wanted, 0), top)
        ds = code - z - w / s if wanted == code else code - z
        if symmetric:
            dg, db = ds * s * (1 - sigmoid(g)), 0.0
        else:
            through_z = 0.0 if wanted == code or z != wanted_z else 1.0  # d(-s z) = d low
            # z = -low / s: a clipped weight is s (code - z) = s code + low
            total_s = ds if wanted == code or z != wanted_z else ds - sigmoid(b) * low / s
            dg = total_s / top * high * sigmoid(g) * (1 - sigmoid(g))
            db = (through_z - total_s / top) * low * sigmoid(b) * (1 - sigmoid(b))
        answer["Q"].append(s * (code - z))
        answer["codes"].append(code)
        answer["dg"].append(dg)
        answer["db"].append(db)
    return answer
