"""A linear layer that computes LLM.int8(), and a model full of them."""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

from quantlab.methods.llm_int8 import THRESHOLD, Int8Rows, int8_rows, llm_int8
from quantlab.models.families import find_blocks, linears
from quantlab.pipeline import left_in_float
from quantlab.report import LayerResult, Report
from quantlab.tensor import check_weight, sqnr


class Int8Linear(nn.Module):
    """A linear layer with an int8 weight, whose inputs are quantized to int8 as they come.

    Parameters
    ----------
    weight : Int8Rows of (out, in)
    bias : (out,) float tensor, or None
    threshold : float
        Input channels in which any |x| reaches it are multiplied in float; 0: none is.

    Examples
    --------
    >>> layer = Int8Linear.of(nn.Linear(64, 8))
    >>> layer(torch.zeros(1, 64)).shape, layer.nbytes  # 512 codes, 8 scales, 8 biases
    (torch.Size([1, 8]), 576)
    """

    codes: Tensor
    absmax: Tensor
    bias: Tensor | None

    def __init__(
        self, weight: Int8Rows, bias: Tensor | None = None, *, threshold: float = THRESHOLD
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.codes.shape
        self.threshold = threshold
        self.register_buffer("codes", weight.codes)
        self.register_buffer("absmax", weight.absmax)
        self.register_buffer("bias", None if bias is None else bias.detach())

    @classmethod
    def of(cls, linear: nn.Linear, *, threshold: float = THRESHOLD) -> Int8Linear:
        """Quantize a float layer.

        Raises
        ------
        ValueError
            If its weight is not finite in float16, or the threshold is negative.
        """
        return cls(int8_rows(linear.weight), linear.bias, threshold=threshold)

    @property
    def rows(self) -> Int8Rows:
        """The weight, sharing this layer's memory."""
        nowhere = torch.zeros(self.in_features, dtype=torch.bool, device=self.codes.device)
        return Int8Rows(self.codes, self.absmax, nowhere)

    @property
    def weight(self) -> Tensor:
        """The int8 codes, (out, in): what ``is_quantized`` looks at."""
        return self.codes

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and bias."""
        return sum(b.numel() * b.element_size() for b in self.buffers())

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out) in the dtype of ``x``; outliers are sought in all tokens."""
        y = llm_int8(x.flatten(0, -2), self.rows, self.bias, threshold=self.threshold)
        return y.unflatten(0, x.shape[:-1])

    def extra_repr(self) -> str:
        """Name sizes, threshold and cost in ``print(model)``."""
        shape = f"{self.in_features}, {self.out_features}"
        return f"{shape}, threshold={self.threshold}, {self.nbytes} bytes"


@torch.no_grad()
def llm_int8_(model: nn.Module, *, threshold: float = THRESHOLD) -> Report:
    """Replace the linears of every block by LLM.int8() layers, in place; no data is needed.

    Parameters
    ----------
    model : nn.Module
        Its embedding, norms and head stay in float.
    threshold : float
        Input channels in which any |x| reaches it are multiplied in float.

    Raises
    ------
    ValueError
        If a weight is not finite in float16 (nothing is replaced then), or the threshold negative.
    UnsupportedModelError
        If the model has no blocks at a known path.

    References
    ----------
    Dettmers et al., LLM.int8(), arXiv:2208.07339.

    Examples
    --------
    >>> import quantlab as ql
    >>> model, tokenizer = ql.load("storyteller")
    >>> round(llm_int8_(model).bits_per_weight, 2)
    8.1
    """
    started = time.perf_counter()
    if not threshold >= 0:
        raise ValueError(f"threshold is {threshold!r}; choose 0 (no outliers) or a positive number")
    made: list[tuple[nn.Module, str, Int8Linear]] = []
    rows: list[LayerResult] = []
    for block_name, block in find_blocks(model).items():
        for name, linear in linears(block).items():
            check_weight(linear.weight, f"{block_name}.{name}")
            layer = Int8Linear.of(linear, threshold=threshold)
            parent, _, attribute = name.rpartition(".")
            made.append((block.get_submodule(parent), attribute, layer))
            rows.append(described(f"{block_name}.{name}", linear, layer))
    for parent_module, attribute, layer in made:
        setattr(parent_module, attribute, layer)
    seconds = time.perf_counter() - started
    return Report(tuple(rows), left_in_float(model), "LLM.int8()", seconds)


def described(name: str, linear: nn.Linear, layer: Int8Linear) -> LayerResult:
    """Return a layer's line of the report; its output error depends on the inputs to come."""
    nbytes = layer.codes.numel() + 4 * layer.absmax.numel()
    quality = sqnr(linear.weight, layer.rows.dequantize())
    return LayerResult(name, "int8", linear.weight.numel(), nbytes, quality, None, 0.0)
