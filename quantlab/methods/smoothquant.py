"""SmoothQuant: move the size of loud input channels into the weights before both are rounded.

One scale for all activations has to reach the loudest channel, and the quiet ones keep a few codes.
A scale per channel would cure that, but no integer product can carry it: it stands inside the sum
over channels. So the activations are divided by it beforehand, where that costs nothing, and the
weights take it up:

    s_j = max|X_j|^alpha / max|W_j|^(1 - alpha)          y = (W diag(s)) (x / s)

alpha is the migration strength. Afterwards max|X_j| has become (max|X_j| max|W_j|)^(1 - alpha), and
max|W_j| the same product to the power alpha: at 1/2 both sides have equal ranges in each channel.
The largest |W_j| is taken over all linears that read x. Deviations from the original code (which
clamps at 1e-5): a silent input, or a column of zeros, counts as the smallest of the others.

References
----------
Xiao et al., SmoothQuant, ICML 2023, arXiv:2211.10438, Eq. (4).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from quantlab.block import Block, Scaling, check_activations
from quantlab.folding import by_head, fold_, foldable
from quantlab.tensor import CalibrationError


def smooth_scales(inputs: Tensor, weights: Tensor, alpha: float = 0.5) -> Tensor:
    """Return s_j = max|X_j|^alpha / max|W_j|^(1 - alpha), (channels,).

    Parameters
    ----------
    inputs, weights : (channels,) tensors, not negative
        The largest |x_j| and |w_j| of each input channel.
    alpha : float from 0 to 1
        1 makes all input ranges equal, 0 all weight ranges.

    Raises
    ------
    ValueError
        If alpha lies outside 0 .. 1, the shapes differ, or a size is negative or not finite.

    Examples
    --------
    >>> smooth_scales(torch.tensor([64.0, 1.0]), torch.tensor([0.25, 0.25])).tolist()
    [16.0, 2.0]
    """
    if not 0 <= alpha <= 1:  # also NaN
        raise ValueError(f"alpha is {alpha}; choose a migration strength from 0 to 1, such as 0.5")
    if inputs.shape != weights.shape or inputs.ndim != 1:
        raise ValueError(
            f"inputs have shape {tuple(inputs.shape)} and weights {tuple(weights.shape)}; "
            "pass one largest size a channel, for both"
        )
    sizes = torch.stack([inputs.double(), weights.double()])
    if not (torch.isfinite(sizes) & (sizes >= 0)).all():
        raise ValueError("a largest size is negative or not finite; pass x.abs().amax(0)")
    x, w = (lifted(row) for row in sizes)
    return x.pow(alpha) / w.pow(1 - alpha)


def lifted(sizes: Tensor) -> Tensor:
    """Replace zeros by the smallest of the others, or by 1 if there is nothing else."""
    live = sizes[sizes > 0]
    return sizes.clamp(min=live.min().item() if live.numel() else 1.0)


def largest_inputs(block: Block) -> dict[str, Tensor]:
    """Run a block on its inputs; return the largest |x_j| of each linear, (in,) float64.

    Raises
    ------
    CalibrationError
        If there are no inputs, or a linear sees NaN, infinity or no token at all.
    """
    found: dict[str, Tensor] = {}

    def hook_for(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def watch(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0].detach().flatten(0, -2)
            check_activations(x, f"{block.name}.{name}")
            largest = x.abs().amax(0).double()
            found[name] = torch.maximum(found[name], largest) if name in found else largest

        return watch

    handles = [
        linear.register_forward_pre_hook(hook_for(name)) for name, linear in block.linears.items()
    ]
    try:
        with torch.no_grad():
            for args, kwargs in block.inputs:
                block.module(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    unseen = [name for name in block.linears if name not in found]
    if unseen:
        raise CalibrationError(
            f"{block.name}.{unseen[0]} saw no token; pass calibration text that reaches it"
        )
    return found


def block_scales(
    block: Block, alpha: float = 0.5, *, norms_only: bool = True
) -> dict[Scaling, Tensor]:
    """Return s for every place of a block where it can be folded, without folding it.

    Parameters
    ----------
    block : Block
    alpha : float from 0 to 1
    norms_only : bool
        As the paper does. False also takes the places behind linears: value to output, up to down.
    """
    places = [
        place
        for place in block.scalings
        if foldable(block, place) and not (norms_only and is_linear(block, place))
    ]
    largest = largest_inputs(block) if places else {}
    scales = {}
    for place in places:
        columns = [block.linears[name].weight.detach().abs().amax(0) for name in place.linears]
        weights = torch.stack(columns).amax(0).double()
        inputs, columns = (
            by_head(sizes, block, place).amax(1).flatten()
            for sizes in (largest[place.linears[0]], weights)
        )
        scales[place] = smooth_scales(inputs, columns, alpha)
    return scales


def is_linear(block: Block, place: Scaling) -> bool:
    """Tell whether a linear, not a norm, takes 1 / s."""
    return isinstance(block.module.get_submodule(place.previous), nn.Linear)


def smooth_block_(block: Block, scales: dict[Scaling, Tensor]) -> None:
    """Fold scales into a block, in place; in float its outputs stay what they were."""
    for place, scale in scales.items():
        fold_(block, place, scale)
    block.forget()
