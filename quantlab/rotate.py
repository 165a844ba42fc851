"""Turn a whole model by rotations and leave its function as it was: see ``rotate_``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from quantlab.hadamard import split
from quantlab.methods.rotation import (
    OnlineHadamard,
    mix,
    reading,
    reading_heads,
    writing,
    writing_heads,
)
from quantlab.models.families import (
    LLAMA_SCALINGS,
    UnsupportedModelError,
    find_blocks,
    find_scalings,
)
from quantlab.nn import QuantizedLinear
from quantlab.orthogonal import rotation_matrix

READERS = {place.previous: place.linears for place in LLAMA_SCALINGS if "norm" in place.previous}
VALUE, OUTPUT, DOWN = "self_attn.v_proj", "self_attn.o_proj", "mlp.down_proj"
EMBEDDING, NORM, HEAD = "model.embed_tokens", "model.norm", "lm_head"


@dataclass(frozen=True, eq=False)
class Rotations:
    """The rotations of a model.

    Attributes
    ----------
    residual : (hidden, hidden) float64 tensor
        R1 of SpinQuant: turns the stream between the blocks.
    heads : tuple of (head, head) float64 tensors, one a block
        R2: turns the values of each head.
    online : bool
        Whether Hadamard transforms run inside the model, before o and down.
    kind : str
        Where they come from.
    losses : tuple of float
        Of the training, if they are learned.
    """

    residual: Tensor
    heads: tuple[Tensor, ...]
    online: bool
    kind: str
    losses: tuple[float, ...] = field(default=(), repr=False)

    def __str__(self) -> str:
        width, count, size = len(self.residual), len(self.heads), len(self.heads[0])
        runs = "Hadamards run before o and down" if self.online else "nothing runs online"
        return f"{self.kind}: residual {width} x {width}, {count} x heads of {size}; {runs}"


@torch.no_grad()
def rotate_(
    model: nn.Module,
    kind: str | Rotations = "hadamard",
    *,
    data: Tensor | None = None,
    online: bool = True,
    seed: int = 0,
) -> Rotations:
    """Rotate the residual stream and the value heads of a Llama, in place; its function stays.

    Norm gains move into the linears behind them, and a head that was tied to the embedding becomes
    a matrix of its own: it takes the last gain, which the embedding must not. All is computed in
    float64 and rounded once to the model's dtype. Quantize afterwards, with any method.

    Parameters
    ----------
    model : nn.Module
        A Llama of this library, or a Llama, Mistral, Qwen2, Qwen3 or SmolLM3 of transformers.
    kind : "hadamard", "random", "identity", "spin", or Rotations
        As for ``rotation_matrix``; "spin" learns them with ``learn_rotations``; or ready ones.
    data : (samples, length) LongTensor, or None
        For "spin" only.
    online : bool
        Also transform what passes a nonlinearity or the attention, while the model runs: before
        down_proj, and across heads before o_proj. False leaves a plain Llama.
    seed : int
        Of the random signs, matrices, or of the training.

    Returns
    -------
    Rotations
        What was applied.

    Raises
    ------
    UnsupportedModelError
        If the model is no such Llama, or was quantized or rotated before.
    ValueError
        If the kind is unknown, a size has no Hadamard matrix, ready rotations do not fit or are
        not orthogonal, or "spin" has no data.

    References
    ----------
    Ashkboos et al., QuaRot, arXiv:2404.00456; Liu et al., SpinQuant, arXiv:2405.16406.

    Examples
    --------
    >>> import quantlab as ql
    >>> model, tokenizer = ql.load("storyteller")
    >>> tokens = ql.test_set(tokenizer, samples=1)
    >>> before = model(tokens)
    >>> print(rotate_(model))
    hadamard: residual 256 x 256, 4 x heads of 32; Hadamards run before o and down
    >>> bool((model(tokens) - before).abs().max() < 1e-3)  # in float32
    True
    """
    parts = Parts(model, online=online)
    if kind == "spin":
        from quantlab.spinquant import learn_rotations  # it needs this file

        if data is None:
            raise ValueError(
                "kind='spin' learns from text: pass data=ql.calibration_set(tokenizer)"
            )
        kind = learn_rotations(model, data, online=online, seed=seed)
    if isinstance(kind, str):
        kind = parts.draw(kind, seed)
    parts.check(kind)
    parts.prepare_()
    for name, weight in parts.rotated(kind.residual, kind.heads):
        model.get_parameter(name).copy_(weight)
    return kind


class Parts:
    """The matrices of a Llama in float64, gains folded in, ready to be turned.

    Parameters
    ----------
    model : nn.Module
        Not modified until ``prepare_``.
    online : bool
        As for ``rotate_``.

    Raises
    ------
    UnsupportedModelError, ValueError
        As ``rotate_`` does.
    """

    def __init__(self, model: nn.Module, *, online: bool) -> None:
        self.model, self.online = model, online
        self.blocks = rotatable(model)
        self.tied = tied(model)
        self.width = wide(model, EMBEDDING).shape[1]
        self.head_size = int(next(iter(self.blocks.values())).self_attn.head_dim)  # type: ignore
        if online:
            block = next(iter(self.blocks.values()))
            split(linear(block, DOWN).in_features)
            split(linear(block, OUTPUT).in_features // self.head_size)

    def draw(self, kind: str, seed: int) -> Rotations:
        """Return rotations of a kind: one of the stream, and one for the heads of each block."""
        first, *rest = (
            rotation_matrix(size, kind, seed=1000 * seed + number)
            for number, size in enumerate([self.width] + [self.head_size] * len(self.blocks))
        )
        return Rotations(first, tuple(rest), self.online, kind)

    def check(self, rotations: Rotations) -> None:
        """Raise a ValueError unless the rotations fit this model and are orthogonal."""
        sizes = [self.width] + [self.head_size] * len(self.blocks)
        given = [rotations.residual, *rotations.heads]
        if [tuple(R.shape) for R in given] != [(size, size) for size in sizes]:
            raise ValueError(
                f"the rotations are of {rotations}; this model has width {self.width} and "
                f"{len(self.blocks)} blocks with heads of {self.head_size}"
            )
        if rotations.online != self.online:
            raise ValueError(
                f"the rotations have online={rotations.online}; pass the same to rotate_"
            )
        for R in given:
            error = (R @ R.T - torch.eye(len(R), dtype=R.dtype)).abs().max().item()
            if not error < 1e-6:
                raise ValueError(f"a rotation is off orthogonal by {error:.2g}; it would change y")

    def rotated(self, residual: Tensor, heads: Sequence[Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Yield every new parameter with its name, differentiable in the rotations, in their dtype.

        One at a time, each after all that is made from the same original: a large model can take
        them over as they come.
        """
        embedding, gain = wide(self.model, EMBEDDING), wide(self.model, NORM)
        head = embedding if self.tied else wide(self.model, HEAD)
        yield f"{HEAD}.weight", reading((head * gain).to(residual), residual)
        yield f"{EMBEDDING}.weight", reading(embedding.to(residual), residual)
        yield f"{NORM}.weight", torch.ones_like(gain).to(residual)
        for (name, block), R2 in zip(self.blocks.items(), heads, strict=True):
            for path, weight in chain(
                readers(block, residual, R2), self.writers(block, residual, R2)
            ):
                yield f"{name}.{path}", weight

    def writers(self, block: nn.Module, R: Tensor, R2: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield the new parameters of o and down by their paths in the block."""
        inner = ".linear" if self.online else ""
        for path in (OUTPUT, DOWN):
            layer = linear(block, path)
            weight = layer.weight.detach().double().to(R)
            if path == OUTPUT:
                weight = reading_heads(weight, R2)
            if self.online:
                weight = mix(weight, self.head_size if path == OUTPUT else 1)
            yield f"{path}{inner}.weight", writing(weight, R)
            if layer.bias is not None:
                yield f"{path}{inner}.bias", writing(layer.bias.detach().double().to(R), R)

    def prepare_(self) -> None:
        """Untie the head, and put the online transforms in, with the weights still unturned."""
        embedding = self.model.get_submodule(EMBEDDING).weight
        assert isinstance(embedding, Tensor)  # for the type checker
        if self.tied:
            vocabulary, width = embedding.shape
            head = nn.Linear(
                width, vocabulary, bias=False, dtype=embedding.dtype, device=embedding.device
            )
            self.model.lm_head = head
            config: Any = getattr(self.model, "config", None)
            if hasattr(config, "tie_word_embeddings"):
                config.tie_word_embeddings = False
        if not self.online:
            return
        for block in self.blocks.values():
            for path, width in ((OUTPUT, self.head_size), (DOWN, 1)):
                parent, _, name = path.rpartition(".")
                layer = OnlineHadamard(linear(block, path), width)
                setattr(block.get_submodule(parent), name, layer)


def rotatable(model: nn.Module) -> dict[str, nn.Module]:
    """Return the blocks of a model, or say why it cannot be rotated."""
    if find_scalings(model) is not LLAMA_SCALINGS:
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot be rotated: its norms and linears are not known to be "
            "those of a Llama, Mistral, Qwen2, Qwen3 or SmolLM3"
        )
    blocks = find_blocks(model)
    for name, block in blocks.items():
        for path in (
            *READERS["input_layernorm"],
            OUTPUT,
            *READERS["post_attention_layernorm"],
            DOWN,
        ):
            check_linear(block, path, name)
        for norm in READERS:
            check_norm(block.get_submodule(norm), f"{name}.{norm}")
    check_norm(model.get_submodule(NORM), NORM)
    return blocks


def check_linear(block: nn.Module, path: str, name: str) -> None:
    """Raise an UnsupportedModelError unless a float linear layer lies at the path."""
    layer = dict(block.named_modules()).get(path)
    if isinstance(layer, OnlineHadamard):
        raise UnsupportedModelError(f"{name}.{path} is rotated already; load the model anew")
    if isinstance(layer, QuantizedLinear):
        raise UnsupportedModelError(f"{name}.{path} is quantized; rotate first, then quantize")
    if not isinstance(layer, nn.Linear):
        found = "missing" if layer is None else f"a {type(layer).__name__}"
        raise UnsupportedModelError(f"{name}.{path} is {found}; rotate_ needs an nn.Linear there")


def check_norm(norm: nn.Module, name: str) -> None:
    """Raise an UnsupportedModelError unless a norm divides by a length, and only that."""
    if not type(norm).__name__.endswith("RMSNorm") or getattr(norm, "bias", None) is not None:
        raise UnsupportedModelError(
            f"{name} is a {type(norm).__name__}; only RMSNorm without a bias commutes with a "
            "rotation (LayerNorm also subtracts a mean)"
        )


def readers(block: nn.Module, R: Tensor, R2: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield the new parameters of norms, q, k, v, gate and up by their paths in the block."""
    for norm, paths in READERS.items():
        gain = wide(block, norm)
        for path in paths:
            weight = reading((wide(block, path) * gain).to(R), R)
            bias = linear(block, path).bias
            if path == VALUE:
                weight = writing_heads(weight, R2)
                if bias is not None:
                    yield f"{path}.bias", writing_heads(bias.detach().double().to(R), R2)
            yield f"{path}.weight", weight
        yield f"{norm}.weight", torch.ones_like(gain).to(R)


def linear(block: nn.Module, path: str) -> nn.Linear:
    """Return a linear layer of a block, also from behind its online transform."""
    layer = block.get_submodule(path)
    layer = layer.linear if isinstance(layer, OnlineHadamard) else layer
    assert isinstance(layer, nn.Linear)  # ``rotatable`` has seen to it
    return layer


def wide(root: nn.Module, path: str) -> Tensor:
    """Return a weight in float64."""
    weight = root.get_submodule(path).weight
    assert isinstance(weight, Tensor)  # for the type checker
    return weight.detach().double()


def tied(model: nn.Module) -> bool:
    """Tell whether the head is the embedding itself."""
    head = getattr(model, HEAD, None)
    return head is None or head.weight is model.get_submodule(EMBEDDING).weight
