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
query heads share one s, so that it folds into their value head; an input that was silent gets the
least s of the others; a group clipped on both sides gets the middle code as zero point, where the
original lets rounding noise decide.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from quantlab.block import Block, Call, Method, Scaling, second_moment
from quantlab.clip_search import clip_and_round
from quantlab.folding import fold_, foldable, gather, spread
from quantlab.scheme import Scheme
from quantlab.tensor import CalibrationError, QuantizedTensor, check_weight
from quantlab.training import first

UNCLIPPED = ("q_proj", "k_proj", "query", "key", "qkv")  # clipped, they would bend the softmax


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
        mean |x_j|. Zeros count as the smallest of the others.
    ratio : float
        0 leaves the weights alone, 1 evens out the inputs.

    Examples
    --------
    >>> input_scale(torch.tensor([1.0, 16.0]), 0.5).tolist()
    [0.5, 2.0]
    """
    live = sizes[sizes > 0]
    least = live.min() if live.numel() else torch.ones_like(sizes[0])
    s = sizes.clamp(min=least).pow(ratio).clamp(min=1e-4)
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
        Squared output error at each ratio tried, ratio 0 first.
    """

    scale: Tensor
    ratio: float
    losses: tuple[float, ...]


def search_ratio(sizes: Tensor, loss: Callable[[Tensor], float], ratios: int = 20) -> RatioSearch:
    """Try s = sizes^(i / ratios) for i = 0 .. ratios - 1; the first of the smallest losses wins.

    The loss over the ratio is jagged, so that no clever search replaces the grid.

    Raises
    ------
    ValueError
        If ``ratios`` is no positive integer.
    CalibrationError
        If no loss is finite.
    """
    if isinstance(ratios, bool) or not isinstance(ratios, int) or ratios < 1:
        raise ValueError(f"ratios is {ratios!r}; choose a positive integer, such as 20")
    tried = [input_scale(sizes, step / ratios) for step in range(ratios)]
    losses = [loss(s) for s in tried]
    finite = [step for step in range(ratios) if math.isfinite(losses[step])]
    if not finite:
        raise CalibrationError(
            f"the output error is {losses[0]} at ratio 0; check the float model, or use float32"
        )
    best = min(finite, key=losses.__getitem__)
    return RatioSearch(tried[best], best / ratios, tuple(losses))


def rounded(weight: Tensor, s: Tensor, scheme: Scheme) -> Tensor:
    """Return Q(W s) / s: what a rounded, scaled weight does to unscaled inputs."""
    scaled = weight * s
    grid = scheme.grid(scheme.group(scaled))
    return scheme.decode(scheme.encode(scaled, *grid), *grid) / s


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
        W of a linear layer y = W x. Not modified; half precision is computed in float32.
    moment : (in, in) tensor
        M = E[x x^T] of its inputs.
    sizes : (in,) tensor
        mean |x_j|.
    scheme : Scheme
    clip : bool
        Also search, for each group, a range narrower than its extremes.
    ratios : int
        Points of the grid: ratio 0, 1/ratios, .. 1 - 1/ratios.

    Returns
    -------
    QuantizedTensor, RatioSearch
        Of W s, and s: the layer's input has to be divided by ``found.scale``. ``found.losses`` are
        E |(Q(W s) / s - W) x|^2 without clipping.

    Raises
    ------
    ValueError
        If the weight is not a finite float matrix, the shapes disagree, or the scheme's groups do
        not divide it.
    CalibrationError
        If a statistic is not finite, or a size is negative.

    References
    ----------
    Lin et al., AWQ, MLSys 2024, arXiv:2306.00978v5, Eq. (4) and (5).

    Examples
    --------
    >>> import quantlab as ql
    >>> W = torch.tensor([[0.31, 0.9, -0.7, 0.2]])
    >>> x = torch.tensor([[100.0, 1.0, 1.0, 1.0], [80.0, -1.0, 1.0, -1.0]])
    >>> q, found = ql.awq(W, ql.second_moment(x), ql.mean_size(x), ql.Scheme(bits=3))
    >>> found.ratio > 0 and found.losses[0] > min(found.losses)
    True
    """
    check_arguments(weight, moment, sizes, scheme)
    W = at_least_float32(weight)

    M = moment.to(W)

    def loss(s: Tensor) -> float:
        return weighted_error(rounded(W, s.to(W), scheme) - W, M)

    found = search_ratio(sizes.to(W.device), loss, ratios)
    scaled_moment = moment / torch.outer(found.scale, found.scale).to(moment)
    return clip_and_round(W * found.scale.to(W), scaled_moment if clip else None, scheme), found


def weighted_error(D: Tensor, M: Tensor) -> float:
    """Return tr(D M D^T) in the precision of the weight: twice as fast as float64, and enough."""
    return ((D @ M) * D).sum(dtype=torch.float64).item()


def at_least_float32(weight: Tensor) -> Tensor:
    """Return a weight without its history, half precision as float32."""
    return weight.detach().to(torch.promote_types(weight.dtype, torch.float32))


def check_arguments(weight: Tensor, moment: Tensor, sizes: Tensor, scheme: Scheme) -> None:
    """Raise unless weight, statistics and scheme fit together."""
    check_weight(weight)
    check_scheme(weight, scheme)
    columns = weight.shape[1]
    if moment.shape != (columns, columns) or sizes.shape != (columns,):
        raise ValueError(
            f"weight has {columns} inputs, moment has shape {tuple(moment.shape)} and sizes "
            f"{tuple(sizes.shape)}; pass second_moment(x) and mean_size(x) of the same inputs"
        )
    if not torch.isfinite(moment).all() or not (torch.isfinite(sizes) & (sizes >= 0)).all():
        raise CalibrationError(
            "moment or sizes hold NaN, infinity or a negative size; check the calibration inputs"
        )


def check_scheme(weight: Tensor, scheme: Scheme) -> None:
    """Raise a ValueError unless a scheme is for weights and its groups divide this one."""
    if scheme.bits > 8:
        raise ValueError(f"bits is {scheme.bits}; weights take 1..8 (16 is for activations)")
    scheme.group(weight)


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
    inspected : tokens
        On which a whole module is run for each ratio; at least one batch of two windows. More cost
        time in proportion, and gained up to 4 % KL at 2 bits on the storyteller.
    then : Method, optional
        Quantizes the scaled block instead of clipping and rounding, such as ``GPTQ()``.
    """

    clip: bool = True
    ratios: int = 20
    inspected: int = 512
    then: Method | None = None
    folds: ClassVar[bool] = True
    batch_size: ClassVar[int] = 2

    @property
    def wants_targets(self) -> bool:
        """Whether the method that follows wants the float stream; the search itself does not."""
        return getattr(self.then, "wants_targets", False)

    def quantize_block(self, block: Block, scheme: Scheme) -> dict[str, QuantizedTensor]:
        """Scale the block in place where scales can be folded, then quantize each linear."""
        for name, linear in block.linears.items():
            check_linear(linear, f"{block.name}.{name}", scheme)
        found = {}
        for place in block.scalings:
            if foldable(block, place):
                found[place] = search_block(block, place, scheme, self.ratios, self.inspected)
        for place, search in found.items():  # only now: every search saw the original block
            fold_(block, place, search.scale)
        block.forget()  # the linears' inputs are others now
        follow = self.then.quantize_block if self.then is not None else self.clip_each
        ratios = {n: f"ratio {s.ratio:g}" for place, s in found.items() for n in place.linears}
        return {
            name: replace(tensor, notes=(ratios.get(name, UNSCALED), *tensor.notes))
            for name, tensor in follow(block, scheme).items()
        }

    def clip_each(self, block: Block, scheme: Scheme) -> dict[str, QuantizedTensor]:
        """Clip and round each linear of a block that has been scaled."""
        moments = block.collect(second_moment) if self.clip else {}
        result = {}
        for name, linear in block.linears.items():
            spared = any(part in name for part in UNCLIPPED)
            moment = None if spared else moments.get(name)
            result[name] = clip_and_round(at_least_float32(linear.weight), moment, scheme)
        return result


UNSCALED = "not scaled: no known norm or linear before it takes 1 / s"


def check_linear(linear: nn.Linear, name: str, scheme: Scheme) -> None:
    """Raise a ValueError that names the layer unless it can be rounded."""
    check_weight(linear.weight.detach(), name)
    try:
        check_scheme(linear.weight, scheme)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


@torch.no_grad()
def search_block(
    block: Block, place: Scaling, scheme: Scheme, ratios: int, inspected: int
) -> RatioSearch:
    """Search the ratio for the linears of one place, on the output of the module it names."""
    sizes = gather(block.collect(mean_size)[place.linears[0]], block, place)
    weights = {name: at_least_float32(block.linears[name].weight) for name in place.linears}

    def changed(s: Tensor) -> dict[str, Tensor]:
        columns = spread(s, block, place)
        return {name: rounded(W, columns.to(W), scheme) for name, W in weights.items()}

    if place.linears == (place.inspect,):  # one linear alone: its second moment says it all
        W = weights[place.inspect]
        M = block.collect(second_moment)[place.inspect].to(W)
        return search_ratio(
            sizes, lambda s: weighted_error(changed(s)[place.inspect] - W, M), ratios
        )
    module = block.module.get_submodule(place.inspect)
    calls = recorded(block, module, inspected)
    targets = [first(module(*args, **kwargs)) for args, kwargs in calls]

    def loss(s: Tensor) -> float:
        new = {f"{n.removeprefix(f'{place.inspect}.')}.weight": W for n, W in changed(s).items()}
        return module_error(module, new, calls, targets)

    return search_ratio(sizes, loss, ratios)


def recorded(block: Block, module: nn.Module, tokens: int) -> list[Call]:
    """Run the block on so many input tokens; return the calls that reach a module inside it."""
    calls: list[Call] = []
    handle = module.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True
    )
    try:
        for args, kwargs in within(block.inputs, tokens):
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
    """Return the mean over tokens of the squared output error of a module with other weights."""
    total = 0.0
    for (args, kwargs), target in zip(calls, targets, strict=True):
        new = {name: weight.to(target) for name, weight in weights.items()}
        output = first(functional_call(module, new, args, kwargs))
        total += (output - target).double().square().sum().item()
    return total / sum(target.shape[:-1].numel() for target in targets)
