"""Weights that reach every corner of a kernel: any code, any zero point, scales of both signs."""

import torch

import quantlab as ql
from quantlab.tensor import PackedTensor, QuantizedTensor


def random_weight(
    rows: int, columns: int, scheme: ql.Scheme, generator: torch.Generator | None = None
) -> PackedTensor:
    """Return a packed weight whose bits are all random; one group in eight has scale 0."""
    draw = generator or torch.Generator().manual_seed(rows * columns)
    groups = columns // (scheme.group_size or columns)
    codes = torch.randint(0, scheme.levels, (rows, columns), generator=draw, dtype=torch.uint8)
    scale = torch.randn(rows, groups, generator=draw) / scheme.levels
    scale[torch.rand(rows, groups, generator=draw) < 0.125] = 0.0
    scale[0, 0] = -0.75
    zero = torch.full_like(scale, scheme.middle)
    if not scheme.symmetric:
        zero = torch.randint(0, scheme.levels, (rows, groups), generator=draw).float()
    return QuantizedTensor(codes, scale, zero, scheme).pack()
