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
