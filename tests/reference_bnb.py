"""Slow twins of the bitsandbytes family: one number at a time, in NumPy's float32 scalars."""

from __future__ import annotations

import math

import numpy as np

f32 = np.float32


def nearest(value: np.float32, levels: list[float]) -> int:
    """Return the code of the nearest level by midpoints; a tie goes to the smaller level."""
    order = sorted(range(len(levels)), key=lambda code: levels[code])
    place = 0
    while place < len(order) - 1:
        low, high = f32(levels[order[place]]), f32(levels[order[place + 1]])
        if value <= f32((low + high) / f32(2)):
            break
        place += 1
    return order[place]


def quantize_blocks(x: np.ndarray, levels: list[float], size: int) -> tuple[list[int], list[float]]:
    """Return codes and absmax of a flat float32 array in blocks of ``size``."""
    codes, scales = [], []
    for start in range(0, len(x), size):
        block = [f32(v) for v in x[start : start + size]]
        absmax = max(abs(v) for v in block)
        whole = len(block) == size
        if not whole:
            absmax = max(absmax, f32(1e-38))
        inverse = f32(1) / max(absmax, f32(1e-38))
        for v in block:
            scaled = v * inverse if whole else v / absmax
            codes.append(nearest(min(max(scaled, f32(-1)), f32(1)), levels))
        scales.append(float(absmax))
    return codes, scales


def blockwise8(x: np.ndarray, levels: list[float], size: int) -> tuple[list[int], list[float]]:
    """Return codes and absmax by way of 65,536 points."""
    codes, scales = [], []
    for start in range(0, len(x), size):
        block = [f32(v) for v in x[start : start + size]]
        absmax = max(abs(v) for v in block)
        scales.append(float(absmax))
        for v in block:
            if absmax == 0:
                codes.append(0)
                continue
            scaled = min(max(v * (f32(1) / absmax), f32(-1)), f32(1))
            half = (scaled + f32(1)) * f32(0.5)
            point = math.floor(f32(float(half) * 65535 + 0.5))  # the sum is exact in float64
            codes.append(nearest(f32(-1) + f32(2 * point) / f32(65535), levels))
    return codes, scales


def int8_rows(x: np.ndarray, threshold: float) -> tuple[list[list[int]], list[float], list[int]]:
    """Return codes, absmax a row and outlier columns of a matrix."""
    half = x.astype(np.float16).astype(np.float32)
    columns = [
        j for j in range(x.shape[1]) if threshold and any(abs(v) >= threshold for v in half[:, j])
    ]
    codes, scales = [], []
    for row in half:
        absmax = max(0.0 if threshold and abs(v) >= threshold else abs(v) for v in row)
        factor = f32(1) / f32(absmax) * f32(127) if absmax else f32(0)
        codes.append([0 if j in columns else round(float(v * factor)) for j, v in enumerate(row)])
        scales.append(float(absmax))
    return codes, scales, columns


def llm_int8(x: np.ndarray, weight: np.ndarray, threshold: float) -> np.ndarray:
    """Return x weight^T in float64 by the decomposition, one entry at a time."""
    rows, row_scale, outliers = int8_rows(x, threshold)
    codes, scale, _ = int8_rows(weight, 0)
    y = np.zeros((len(x), len(weight)))
    for t in range(len(x)):
        for r in range(len(weight)):
            total = sum(a * b for a, b in zip(rows[t], codes[r], strict=True))  # Python integers
            y[t, r] = total * (row_scale[t] / 127) * (scale[r] / 127)
            y[t, r] += sum(float(x[t, j]) * codes[r][j] * scale[r] / 127 for j in outliers)
    return y
