"""Keys and values in few bits: along which axis weights share a scale decides what is lost.

    x (batch, heads, tokens, head_dim)      codes = round((x - low) / scale) in each group

    axis "channel"   one channel, ``group`` neighboring tokens: an outlier channel hurts only itself
    axis "token"     one token, ``group`` neighboring channels: a token can be stored when it comes

Keys have outlier channels, values have none that stay in place; so KIVI stores keys along channels
and values along tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from quantlab.codebook_tensor import tensor_bytes
from quantlab.packing import check_bits, pack_codes, unpack_codes

Axis = Literal["channel", "token"]


@dataclass(frozen=True, eq=False)  # == on tensors is a tensor: compare the fields
class PackedStates:
    """Keys or values of some tokens in storage form.

    Attributes
    ----------
    data : (batch, heads, rows, columns, bytes) uint8 tensor
        Axis "channel": rows are groups of tokens, columns are channels. Axis "token": rows are
        tokens, columns are groups of channels. The codes of a group are a dense bit stream.
    scale, low : (batch, heads, rows, columns) float16 tensors
    bits : 1..8
    group : int
        Numbers that share a scale.
    axis : "channel" or "token"
    """

    data: Tensor
    scale: Tensor
    low: Tensor
    bits: int
    group: int
    axis: Axis

    @property
    def tokens(self) -> int:
        """Tokens held."""
        return self.data.shape[2] * (self.group if self.axis == "channel" else 1)

    @property
    def nbytes(self) -> int:
        """Bytes that the tensors occupy."""
        return tensor_bytes(self)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return (batch, heads, tokens, head_dim) in ``dtype``: low + scale * code."""
        codes = unpack_codes(self.data, self.bits, self.group).to(dtype)
        x = codes * self.scale.to(dtype)[..., None] + self.low.to(dtype)[..., None]
        if self.axis == "channel":
            return x.transpose(-1, -2).flatten(2, 3)
        return x.flatten(3, 4)

    def joined(self, later: PackedStates) -> PackedStates:
        """Return the states of these tokens and of later ones."""
        parts = zip(
            (self.data, self.scale, self.low), (later.data, later.scale, later.low), strict=True
        )
        data, scale, low = (torch.cat(pair, 2) for pair in parts)
        return PackedStates(data, scale, low, self.bits, self.group, self.axis)


def pack_states(x: Tensor, bits: int, *, axis: Axis, group: int = 32) -> PackedStates:
    """Quantize keys or values between the extremes of each group, and pack them.

    Parameters
    ----------
    x : (batch, heads, tokens, head_dim) float tensor
    bits : 1..8
    axis : "channel" or "token"
        What a group lies along: the tokens of one channel, or the channels of one token.
    group : int
        Divides the tokens (axis "channel") or head_dim (axis "token").

    Returns
    -------
    PackedStates
        Scale (high - low) / (2^bits - 1) and low rounded to float16; codes to nearest on that grid.

    Raises
    ------
    ValueError
        If a parameter is out of range, the group does not divide, or a range exceeds float16.

    References
    ----------
    Liu et al., KIVI, arXiv:2402.02750v2, section 3; Hooper et al., KVQuant, arXiv:2401.18079.

    Examples
    --------
    >>> x = torch.tensor([[1.0, 100.0], [2.0, 101.5], [3.0, 103.0], [4.0, 104.5]])[None, None]
    >>> pack_states(x, 2, axis="channel", group=4).dequantize().equal(x)
    True
    >>> pack_states(x, 2, axis="token", group=2).data.flatten().tolist()  # codes 0 and 3 each
    [12, 12, 12, 12]
    """
    check_bits(bits)
    if axis not in get_args(Axis):
        raise ValueError(f"axis is {axis!r}; choose 'channel' or 'token'")
    along = x.shape[-2] if axis == "channel" else x.shape[-1]
    if group < 1 or along % group:
        what = "tokens" if axis == "channel" else "channels of a head"
        raise ValueError(f"group {group} does not divide {along} {what}; choose a divisor")
    if axis == "channel":
        groups = x.unflatten(-2, (-1, group)).transpose(-1, -2)
    else:
        groups = x.unflatten(-1, (-1, group))
    low, high = groups.aminmax(dim=-1)
    low, scale = low.half(), ((high - low) / (2**bits - 1)).half()
    if not (torch.isfinite(low).all() and torch.isfinite(scale).all()):
        raise ValueError("keys or values exceed float16 (65504); check the model in float")
    step = torch.where(scale == 0, 1.0, scale.to(x.dtype))
    codes = torch.round((groups - low.to(x.dtype)[..., None]) / step[..., None])
    codes = codes.clamp(0, 2**bits - 1).to(torch.uint8)
    return PackedStates(pack_codes(codes, bits), scale, low, bits, group, axis)
