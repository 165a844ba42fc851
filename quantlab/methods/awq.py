"""AWQ: make the weights that meet large inputs larger before rounding, and undo it afterwards.

Multiplying column j of W by s_j and dividing input j by s_j changes nothing in float. Rounded, the
error of that column shrinks by s_j as long as the group's step stays what it was: so the few
columns that meet large inputs are scaled up, and the division is folded into the norm or linear
before. How far is searched: s = mean|x|^ratio for twenty ratios, judged by the output of the
smallest module that holds all linears reading x. Ratio 0 is plain rounding, so the search cannot
lose on its own data.

    x -> norm gain / s -> [ W_q s | W_k s | W_v s ] -> ...

This is the original's variant (arXiv:2306.00978, llm-awq): no weight magnitude in s, ratio 1 never
tried. All searches of a block use its original weights and inputs. Deviations: inputs of grouped
query heads share one s, so that it folds into their value head; a group clipped on both sides gets
the middle code as zero point, where the original lets rounding noise decide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from quantlab.block import Block, Call, Method, Scaling, second_moment
from quantlab.scheme import Scheme
from quantlab.tensor import QuantizedTensor, check_weight, output_error
from quantlab.training import first

UNCLIPPED = ("q_proj", "k_proj", "query", "key")  # a clipped q or k would bend attention's softmax
SHRINKS = [1 - step / 20 for step in range(10)]  # 1.0 down to 0.55 of the range
INSPECTED = 4096  # tokens on which a whole module is run for each ratio


def mean_size(x: Tensor) -> Tensor:
    """Return mean |x_j| of inputs (tokens, in), as (in,) float64.

    Examples
    --------
    >>> mean_size(torch.tensor([[1.0, -2.0], [3.0, 0.0]])).tolist()
    [2.0, 1.0]
    """
    return x.abs().sum(0).double() / x.shape[0]


def input_scale(sizes: Tensor, ratio: float) -> Tensor:
    """Return s = sizes^ratio, normalized so that its extremes multiply to 1.

    Parameters
    ----------
    sizes : (in,) tensor
        mean |x_j|.
    ratio : float
        0 leaves the weights alone, 1 evens out the inputs.

    Examples
    --------
    >>> input_scale(torch.tensor([1.0, 16.0]), 0.5).tolist()
    [0.5, 2.0]
    """
    s = sizes.pow(ratio).clamp(min=1e-4)
    return s / (s.max() * s.min()).sqrt()


@dataclass(frozen=True)
class RatioSearch:
    """What the search over ratios found.

    Attributes
    ----------
    scale : (in,) tensor
        s at the best ratio.
    ratio : float
    losses : tuple of float
        Mean squared output error at each ratio tried, ratio 0 first.
    """

    scale: Tensor
    ratio: float
    losses: tuple[float, ...]


def search_ratio(sizes: Tensor, loss: Callable[[Tensor], float], ratios: int = 20) -> RatioSearch:
    """Try s = sizes^(i / ratios) for i = 0 .. ratios - 1; the first of the smallest losses wins.

    The loss over the ratio is jagged, so that no clever search replaces the grid.
    """
    tried = [input_scale(sizes, step / ratios) for step in range(ratios)]
    losses = [loss(s) for s in tried]
    best = min(range(ratios), key=losses.__getitem__)
    return RatioSearch(tried[best], best / ratios, tuple(losses))


def rounded(weight: Tensor, s: Tensor, scheme: Scheme) -> Tensor:
    """Return Q(W s) / s: what a rounded, scaled weight does to unscaled inputs."""
    groups = scheme.group(weight * s)
    scale, zero_point = scheme.grid(groups)
    codes = scheme.encode(weight * s, scale, zero_point)
    return scheme.decode(codes, scale, zero_point) / s


def awq(
    weight: Tensor,
    moment: Tensor,
    sizes: Tensor,
    scheme: Scheme,
    *,
    clip: bool = True,
    ratios: int = 20,
) -> tuple[QuantizedTensor, RatioSearch]:
    """Scale, clip and round one weight matrix, judged by its own output.

    Parameters
    ----------
    weight : (out, in) float tensor
        W of a linear layer y = W x. Not modified.
    moment : (in, in) tensor
        M = E[x x^T] of its inputs.
    sizes : (in,) tensor
        mean |x_j|.
    scheme : Scheme
    clip : bool
        Also search, for each group, a range narrower than its extremes.
    ratios : int
        Points of the grid.

    Returns
    -------
    QuantizedTensor, RatioSearch
        Of W s, and s: the layer's input has to be divided by ``found.scale``.

    Raises
    ------
    ValueError
        If the weight is not a finite float matrix or the scheme's groups do not divide it.

    References
    ----------
    Lin et al., AWQ, MLSys 2024, arXiv:2306.00978v5, Eq. (4) and (5).

    Examples
    --------
    >>> import quantlab as ql
    >>> W = torch.tensor([[0.31, 0.9, -0.7, 0.2]])
    >>> x = torch.tensor([[100.0, 1.0, 1.0, 1.0], [80.0, -1.0, 1.0, -1.0]])
    >>> q, found = awq(W, ql.second_moment(x), mean_size(x), Scheme(bits=3))
    >>> found.ratio > 0 and found.losses[0] > min(found.losses)
    True
    """
    check_weight(weight)
    W = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))

    def loss(s: Tensor) -> float:
        return output_error(W, rounded(W, s.to(W), scheme), moment) / len(W)

    found = search_ratio(sizes, loss, ratios)
    s = found.scale.to(W)
    scaled_moment = moment / torch.outer(found.scale, found.scale).to(moment)
    return clip_and_round(W * s, scaled_moment if clip else None, scheme), found


def clip_and_round(weight: Tensor, moment: Tensor | None, scheme: Scheme) -> QuantizedTensor:
    """Round (out, in) weights on each group's best clipped range; without a moment, on the full.

    A group's range is m = 1.0, 0.95 .. 0.55 of its largest |w|, both sides; the first m of least
    error in the group's own part of the output wins.
    """
    groups = scheme.group(weight)  # (out, groups, size)
    best = clipped_grid(groups, 1.0, scheme)
    if moment is not None:
        blocks = moment_blocks(moment.to(weight), groups.shape[1])
        best_error = torch.full_like(best[0], torch.inf)
        for shrink in SHRINKS:
            scale, zero_point = clipped_grid(groups, shrink, scheme)
            error = group_errors(weight, groups, (scale, zero_point), blocks, scheme)
            better = error < best_error
            best_error = torch.where(better, error, best_error)
            best = torch.where(better, scale, best[0]), torch.where(better, zero_point, best[1])
    return QuantizedTensor(scheme.encode(weight, *best), *best, scheme)


def clipped_grid(groups: Tensor, shrink: float, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """Return the grids (out, groups) of groups clipped to ``shrink`` of their largest size."""
    limit = groups.abs().amax(-1, keepdim=True) * shrink
    clipped = groups.clamp(-limit, limit)
    scale, zero_point = scheme.grid(clipped)
    both = clipped.amin(-1) == -clipped.amax(-1)  # -min / scale is then half a code: noise decides
    return scale, torch.where(both, torch.full_like(zero_point, scheme.middle), zero_point)


def moment_blocks(moment: Tensor, groups: int) -> Tensor:
    """Return the diagonal blocks (groups, size, size) of a second moment (in, in)."""
    size = len(moment) // groups
    return torch.stack([moment[g : g + size, g : g + size] for g in range(0, len(moment), size)])


def group_errors(
    weight: Tensor, groups: Tensor, grid: tuple[Tensor, Tensor], blocks: Tensor, scheme: Scheme
) -> Tensor:
    """Return E |d_g x_g|^2 of every group's own part of the output, (out, groups)."""
    codes = scheme.encode(weight, *grid)
    D = scheme.group(scheme.decode(codes, *grid)) - groups
    return torch.einsum("ogi,gij,ogj->og", D, blocks, D)


# ---------------------------------------------------------------- a block


@dataclass(frozen=True)
class AWQ:
    """Search input scales for the linears that share inputs, fold them, clip, and round.

    Parameters
    ----------
    clip : bool
        Search narrower ranges afterwards, but for queries and keys.
    ratios : int
        Points of the ratio grid.
    then : Method, optional
        Quantizes the scaled block instead of clipping and rounding, such as ``GPTQ()``.
    """

    clip: bool = True
    ratios: int = 20
    then: Method | None = None
    folds: ClassVar[bool] = True

    def quantize_block(self, block: Block, scheme: Scheme) -> dict[str, QuantizedTensor]:
        """Scale the block in place where scales can be folded, then quantize each linear."""
        for name, linear in block.linears.items():
            check_linear(linear, f"{block.name}.{name}", scheme)
        places = [place for place in block.scalings if foldable(block, place)]
        found = [(place, search_block(block, place, scheme, self.ratios)) for place in places]
        for place, search in found:
            fold_(block, place, search.scale)
        block.forget()  # the linears' inputs are others now
        if self.then is not None:
            return self.then.quantize_block(block, scheme)
        notes = {n: f"ratio {s.ratio:g}" for place, s in found for n in place.linears}
        moments = block.collect(second_moment) if self.clip else {}
        result = {}
        for name, linear in block.linears.items():
            clipped = None if any(part in name for part in UNCLIPPED) else moments.get(name)
            tensor = clip_and_round(linear.weight.detach().float(), clipped, scheme)
            note = notes.get(name, "no norm or linear before it takes a scale: clipped only")
            result[name] = replace(tensor, notes=(note,))
        return result


def check_linear(linear: nn.Linear, name: str, scheme: Scheme) -> None:
    """Raise a ValueError that names the layer unless it can be rounded."""
    check_weight(linear.weight.detach(), name)
    if scheme.bits > 8:
        raise ValueError(f"bits is {scheme.bits}; weights take 1..8 (16 is for activations)")
    try:
        scheme.group(linear.weight)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def foldable(block: Block, place: Scaling) -> bool:
    """Tell whether a block has all modules of a place, and s has somewhere to go."""
    modules = dict(block.module.named_modules())
    if place.previous not in modules or not set(place.linears) <= block.linears.keys():
        return False
    inputs = block.linears[place.linears[0]].in_features
    outputs = channels(modules[place.previous])
    return outputs == inputs or (inputs % outputs == 0 and head_size(block, place) is not None)


def channels(previous: nn.Module) -> int:
    """Return the number of outputs of a norm or linear."""
    weight = previous.weight
    assert isinstance(weight, Tensor)  # for the type checker
    return len(weight)


def head_size(block: Block, place: Scaling) -> int | None:
    """Return the width of an attention head, where grouped queries share a value head."""
    parent = block.module.get_submodule(place.previous.rpartition(".")[0])
    return getattr(parent, "head_dim", None)


def shared_sizes(block: Block, place: Scaling) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Return mean |x| per channel of ``previous``, and how its channels spread over the inputs.

    Query heads that share a value head share its channels: their sizes are averaged.
    """
    sizes = block.collect(mean_size)[place.linears[0]]
    outputs = channels(block.module.get_submodule(place.previous))
    if outputs == len(sizes):
        return sizes, lambda s: s
    heads = sizes.unflatten(0, (-1, len(sizes) // outputs, head_size(block, place) or 1))

    def spread(s: Tensor) -> Tensor:
        return s.view(heads.shape[0], 1, -1).expand(heads.shape).flatten()

    return heads.mean(1).flatten(), spread


@torch.no_grad()
def search_block(block: Block, place: Scaling, scheme: Scheme, ratios: int) -> RatioSearch:
    """Search the ratio for the linears of one place, on the output of the module it names."""
    sizes, spread = shared_sizes(block, place)
    weights = {name: block.linears[name].weight.detach().float() for name in place.linears}
    if place.linears == (place.inspect,):  # one linear alone: its second moment says it all
        W, M = weights[place.inspect], block.collect(second_moment)[place.inspect]

        def loss(s: Tensor) -> float:
            return output_error(W, rounded(W, spread(s).to(W), scheme), M) / len(W)

    else:
        module = block.module.get_submodule(place.inspect)
        calls = list(within(recorded(block, module), INSPECTED))
        targets = [first(module(*args, **kwargs)) for args, kwargs in calls]
        inner = {name: name.removeprefix(f"{place.inspect}.") for name in weights}

        def loss(s: Tensor) -> float:
            changed = {
                f"{inner[name]}.weight": rounded(W, spread(s).to(W), scheme).to(targets[0])
                for name, W in weights.items()
            }
            return module_error(module, changed, calls, targets)

    return search_ratio(sizes, loss, ratios)


def recorded(block: Block, module: nn.Module) -> list[Call]:
    """Run the block on its inputs and return the calls that reach one module inside it."""
    calls: list[Call] = []
    handle = module.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True
    )
    try:
        for args, kwargs in block.inputs:
            block.module(*args, **kwargs)
    finally:
        handle.remove()
    return calls


def within(calls: Sequence[Call], tokens: int) -> Iterator[Call]:
    """Yield calls until they hold ``tokens`` tokens, at least one."""
    seen = 0
    for args, kwargs in calls:
        if seen >= tokens:
            return
        x = args[0] if args else next(v for v in kwargs.values() if isinstance(v, Tensor))
        seen += x.shape[:-1].numel()
        yield args, kwargs


def module_error(
    module: nn.Module, weights: dict[str, Tensor], calls: list[Call], targets: list[Tensor]
) -> float:
    """Return the mean squared output error of a module with other weights."""
    total = 0.0
    for (args, kwargs), target in zip(calls, targets, strict=True):
        output = first(functional_call(module, weights, args, kwargs))
        total += (output - target).double().square().sum().item()
    return total / sum(target.numel() for target in targets)


@torch.no_grad()
def fold_(block: Block, place: Scaling, scale: Tensor) -> None:
    """Divide what comes before by s and multiply the linears' columns by it, in place.

    With powers of two as scales the float block's outputs do not change by one bit.

    Parameters
    ----------
    scale : (channels of ``place.previous``,) tensor
    """
    previous = block.module.get_submodule(place.previous)
    for parameter in (previous.weight, getattr(previous, "bias", None)):
        if isinstance(parameter, Tensor):
            s = scale.to(parameter)
            parameter.div_(s if parameter.ndim == 1 else s[:, None])
    _, spread = shared_sizes(block, place)
    for name in place.linears:
        weight = block.linears[name].weight
        weight.mul_(spread(scale).to(weight))
