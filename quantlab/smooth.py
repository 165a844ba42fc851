"""Smooth a whole model: see ``smooth_``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from quantlab.methods.smoothquant import block_scales, smooth_block_
from quantlab.models.families import UnsupportedModelError, find_blocks, find_scalings
from quantlab.nn import is_quantized
from quantlab.walk import walk


@torch.no_grad()
def smooth_(
    model: nn.Module,
    data: Tensor,
    *,
    alpha: float = 0.5,
    norms_only: bool = True,
    change: Callable[[Tensor], Tensor] | None = None,
) -> dict[str, Tensor]:
    """Divide loud activation channels by s and multiply their weights by it, in place.

    The model's function stays what it was, up to rounding. Quantize it afterwards, with any method.

    Parameters
    ----------
    model : nn.Module
        In float.
    data : (samples, length) LongTensor
        Calibration text. Only the largest size of each channel is taken from it.
    alpha : float from 0 to 1
        The migration strength: 1 makes all input ranges equal, 0 all weight ranges.
    norms_only : bool
        Fold into norms alone, as the paper does; False also into value and up projections.
    change : function of (channels,) scales, optional
        Replaces the scales before they are folded: rounded to powers of two the float model keeps
        every bit, and shuffled they are a control that must not help.

    Returns
    -------
    dict of name -> (channels,) float64 tensor
        s, by the norm or linear that was divided by it.

    Raises
    ------
    UnsupportedModelError
        If no place is known where this model can take scales.
    ValueError
        If alpha lies outside 0 .. 1, the model is quantized, the text is empty, or ``change``
        returns unusable scales.
    CalibrationError
        If a linear sees NaN, infinity or no token. What was smoothed before it stays so.

    References
    ----------
    Xiao et al., SmoothQuant, ICML 2023, arXiv:2211.10438.

    Examples
    --------
    >>> import quantlab as ql
    >>> model, tokenizer = ql.load("storyteller-outlier")
    >>> scales = ql.smooth_(model, ql.calibration_set(tokenizer, samples=2, length=64))
    >>> len(scales), scales["model.layers.0.input_layernorm"].shape
    (8, torch.Size([256]))
    """
    if is_quantized(model):
        raise ValueError("the model is quantized; smooth it in float and quantize it afterwards")
    if not 0 <= alpha <= 1:  # before anything is changed
        raise ValueError(f"alpha is {alpha}; choose a migration strength from 0 to 1, such as 0.5")
    if not find_scalings(model):
        raise UnsupportedModelError(
            f"{type(model).__name__}: no norm or linear is known that could take its scales; "
            "use a model of the Llama family"
        )
    found: dict[str, Tensor] = {}
    training = model.training
    model.eval()
    try:
        for block in walk(model, find_blocks(model), data):
            scales = block_scales(block, alpha, norms_only=norms_only)
            if change is not None:
                scales = {place: change(scale) for place, scale in scales.items()}
            smooth_block_(block, scales)
            found |= {f"{block.name}.{place.previous}": s for place, s in scales.items()}
    finally:
        model.train(training)
    return found
