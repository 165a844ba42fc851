"""LoRA on a quantized model: frozen 4-bit weights, small trained matrices beside them (QLoRA).

    y = W x + (alpha / rank) B A x        W frozen, in 4 bits; A (rank, in) and B (out, rank) learn

B starts at zero, so that nothing changes until training does. Merging writes W + (alpha / rank) B A
into one matrix again; rounding that to 4 bits moves codes and loses part of what was learned.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantlab.codebook_tensor import CodebookTensor, PackedCodebook
from quantlab.data import check_tokens
from quantlab.methods.rtn import rtn
from quantlab.nn import QuantizedLinear
from quantlab.nn_codebook import CodebookLinear
from quantlab.pipeline import matrix
from quantlab.tensor import PackedTensor, QuantizedTensor
from quantlab.training import Adam, LearnedWeight, check_loss, cosine

Result = QuantizedTensor | CodebookTensor
BASES = QuantizedLinear | CodebookLinear | nn.Linear


class LoRALinear(nn.Module):
    """A frozen linear layer with a low-rank matrix that learns beside it.

    Parameters
    ----------
    base : QuantizedLinear, CodebookLinear or nn.Linear
        Frozen. Its output is kept exactly while B is zero.
    rank : int
        Inner size of B A.
    alpha : float
        The product is scaled by alpha / rank.
    generator : torch.Generator, optional
        Of A's first values, normal with variance 1 / in.

    References
    ----------
    Hu et al., LoRA, arXiv:2106.09685v2, section 4.1; Dettmers et al., QLoRA, arXiv:2305.14314v1.

    Examples
    --------
    >>> layer = LoRALinear(nn.Linear(8, 4), rank=2)
    >>> x = torch.ones(1, 8)
    >>> torch.equal(layer(x), layer.base(x)), sum(p.numel() for p in layer.adapter())
    (True, 24)
    """

    def __init__(
        self,
        base: QuantizedLinear | CodebookLinear | nn.Linear,
        rank: int = 4,
        alpha: float = 8.0,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        most = min(base.in_features, base.out_features)
        if type(rank) is not int or not 1 <= rank <= most:
            raise ValueError(f"rank is {rank!r}; choose 1..{most}, the smaller side of the layer")
        self.base = base.requires_grad_(False)
        self.scale = alpha / rank
        start = torch.randn(rank, base.in_features, generator=generator)
        self.A = nn.Parameter(start / base.in_features**0.5)
        self.B = nn.Parameter(torch.zeros(base.out_features, rank))

    def adapter(self) -> tuple[nn.Parameter, nn.Parameter]:
        """Return A and B."""
        return self.A, self.B

    def delta(self) -> Tensor:
        """Return what the adapter adds to the weight: (alpha / rank) B A, (out, in)."""
        return self.scale * (self.B @ self.A)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        return self.base(x) + self.scale * F.linear(F.linear(x, self.A), self.B)

    def extra_repr(self) -> str:
        """Name rank and cost in ``print(model)``."""
        return f"rank {len(self.A)}, {sum(p.numel() for p in self.adapter()):,} parameters"


def add_adapters_(
    model: nn.Module,
    *,
    rank: int = 4,
    alpha: float = 8.0,
    layers: Collection[str] | None = None,
    seed: int = 0,
) -> list[str]:
    """Freeze a model and give its quantized linears adapters, in place.

    Parameters
    ----------
    model : nn.Module
    rank, alpha
        As for ``LoRALinear``.
    layers : names, or None
        Which linears: full names, or last parts such as "q_proj". None: all quantized ones.
    seed : int
        Of the A matrices.

    Returns
    -------
    list of str
        The layers that got one.

    Raises
    ------
    ValueError
        If there is no such layer, or the rank does not fit.

    Examples
    --------
    >>> import quantlab as ql
    >>> model, _ = ql.load("storyteller")
    >>> report = ql.quantize_(model, ql.RTN(), ql.Scheme(4, 64))
    >>> len(add_adapters_(model, rank=4)), adapter_bytes(model)
    (28, 311296)
    """
    found = {name: m for name, m in model.named_modules() if isinstance(m, BASES)}
    if layers is None:
        chosen = {n: m for n, m in found.items() if not isinstance(m, nn.Linear)}
    else:
        chosen = {n: m for n, m in found.items() if {n, n.rpartition(".")[2]} & set(layers)}
    if not chosen:
        raise ValueError(
            f"no layer to adapt among {len(found)} linears with layers={layers!r}; quantize the "
            "model first, or name its linears"
        )
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, base in chosen.items():
        parent, _, attribute = name.rpartition(".")
        adapted = LoRALinear(base, rank, alpha, generator=generator)
        setattr(model.get_submodule(parent), attribute, adapted)
    return list(chosen)


def adapted(model: nn.Module) -> dict[str, LoRALinear]:
    """Return the layers with adapters, by name.

    Raises
    ------
    ValueError
        If there is none.
    """
    found = {name: m for name, m in model.named_modules() if isinstance(m, LoRALinear)}
    if not found:
        raise ValueError(f"{type(model).__name__} has no adapters; call add_adapters_ first")
    return found


def adapter_bytes(model: nn.Module) -> int:
    """Return the bytes of all A and B matrices."""
    layers = adapted(model).values()
    return sum(p.numel() * p.element_size() for layer in layers for p in layer.adapter())


class Adapters(LearnedWeight):
    """All adapters of a model at one rate: what ``Adam`` takes."""

    def __init__(self, model: nn.Module, rate: float) -> None:
        super().__init__()
        self.layers, self.rate = nn.ModuleList(adapted(model).values()), rate

    def rates(self) -> list[tuple[list[nn.Parameter], float]]:
        """Return A and B of each layer."""
        return [([p for p in self.layers.parameters() if p.requires_grad], self.rate)]


def train_adapters_(
    model: nn.Module,
    tokens: Tensor,
    *,
    steps: int,
    batch_size: int = 4,
    learning_rate: float = 0.002,
) -> list[float]:
    """Train the adapters of a language model to predict the next token; nothing else moves.

    Parameters
    ----------
    model : nn.Module
        With adapters; maps token ids to logits.
    tokens : (samples, length) LongTensor
        Batches are taken in order and repeated.
    steps, batch_size, learning_rate
        Adam, the rate falling as a cosine to 0.

    Returns
    -------
    list of float
        The loss of each step in nats a token, before that step's update.

    Raises
    ------
    ValueError
        If there are no adapters, no tokens, no steps, or the loss is not finite.
    """
    if type(steps) is not int or steps < 1:
        raise ValueError(f"steps is {steps!r}; choose a positive integer")
    optimizer = Adam({"adapters": Adapters(model, learning_rate)})
    batches = check_tokens(tokens).split(batch_size)
    losses: list[float] = []
    for step in range(steps):
        batch = batches[step % len(batches)]
        logits = model(batch[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        losses.append(loss.item())
        check_loss(losses, "adapters")
        loss.backward()
        optimizer.step(cosine(step / steps))
    return losses


@dataclass(frozen=True)
class Merge:
    """What became of one adapter.

    Attributes
    ----------
    changed : share of codes that differ from the base's, or None after a float merge
    lost : |stored - (W + delta)|^2 / |delta|^2
        0 is a perfect merge; at 1 the rounding error is as large as what was learned.
    """

    changed: float | None
    lost: float


@torch.no_grad()
def merge_adapters_(
    model: nn.Module,
    quantize: Callable[[Tensor], Result] | None = None,
    *,
    requantized: bool = True,
) -> dict[str, Merge]:
    """Write each adapter into its base, in place.

    Parameters
    ----------
    model : nn.Module
        With adapters.
    quantize : function of an (out, in) matrix, or None
        How merged weights are rounded, for instance ``ql.nf4``. None: to nearest, on the base's
        scheme; a codebook base asks for a function.
    requantized : bool
        False writes float layers: nothing is lost, and four bits become 32.

    Returns
    -------
    layer name -> Merge

    Raises
    ------
    ValueError
        If there are no adapters, or it is not known how to round.
    """
    merged = {}
    for name, layer in adapted(model).items():
        target = matrix(layer.base) + layer.delta()
        new = layer_of(target, layer.base, quantize) if requantized else dense(target, layer.base)
        error = (matrix(new) - target).square().sum() / layer.delta().square().sum()
        merged[name] = Merge(changed(layer.base, new), error.nan_to_num(0.0, posinf=0.0).item())
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, new)
    return merged


def layer_of(
    weight: Tensor, base: nn.Module, quantize: Callable[[Tensor], Result] | None
) -> nn.Module:
    """Return a quantized layer of a merged weight."""
    bias = getattr(base, "bias", None)
    if quantize is None:
        if not isinstance(base, QuantizedLinear):
            raise ValueError(
                f"a {type(base).__name__} has no scheme; pass a function such as ql.nf4"
            )
        return QuantizedLinear(rtn(weight, base.scheme).pack(), bias)
    result = quantize(weight)
    if isinstance(result, QuantizedTensor):
        return QuantizedLinear(result.pack(), bias)
    return CodebookLinear(result.pack(), bias)


def dense(weight: Tensor, base: nn.Module) -> nn.Linear:
    """Return a float layer of a merged weight."""
    bias = getattr(base, "bias", None)
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return layer


def changed(base: nn.Module, new: nn.Module) -> float | None:
    """Return the share of codes that differ, or None where one of the two has none."""
    before, after = codes(base), codes(new)
    if before is None or after is None:
        return None
    return (before != after).double().mean().item()


def codes(layer: nn.Module) -> Tensor | None:
    """Return the codes of a quantized layer's weight, (out, in)."""
    packed = layer.packed if isinstance(layer, QuantizedLinear | CodebookLinear) else None
    known = isinstance(packed, PackedTensor | PackedCodebook)
    return packed.unpack().codes if known else None
