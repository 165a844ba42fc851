"""Quantization encodings as JSON: versions 0.6.1, 1.0.0 and 2.0.0, written and read.

The file says how every tensor of a simulated model is quantized; the weights lie beside it, already
on their grids. Other programs count codes from 0 and call minus our zero point ``offset``:
w = scale * (code + offset). Field by field the files follow those that aimet-torch 2.42.0 writes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from quantlab.scheme import Scheme

VERSIONS = ("0.6.1", "1.0.0", "2.0.0")
Kind = Literal["weight", "activation", "bias"]


@dataclass(frozen=True, eq=False)
class Encoding:
    """How one tensor is quantized.

    Attributes
    ----------
    kind : "weight", "activation" or "bias"
    bits : int
    symmetric : bool
        Then the zero point is the middle code.
    scale : tensor
        () for one a tensor, (channels,) for one a row, (channels, groups) for groups of a row.
    zero_point : tensor of whole numbers, of the scale's shape
        w = scale * (code - zero_point), codes 0 .. 2^bits - 1.
    group_size : int or None
    """

    kind: Kind
    bits: int
    symmetric: bool
    scale: Tensor
    zero_point: Tensor
    group_size: int | None = None

    @property
    def levels(self) -> int:
        """Number of codes."""
        return 2**self.bits

    def quantize(self, tensor: Tensor) -> Tensor:
        """Return a float tensor rounded to this grid, of the same shape.

        Examples
        --------
        >>> grid = Encoding("activation", 8, False, torch.tensor(0.1), torch.tensor(3.0))
        >>> grid.quantize(torch.tensor([0.234, -9.0])).tolist()
        [0.20000000298023224, -0.30000001192092896]
        """
        dtype = tensor.dtype  # half precision cannot count to 2^16, and float32 only to 2^24
        tensor = tensor.to(torch.promote_types(dtype, torch.float32))
        tensor = tensor.double() if self.bits > 16 else tensor
        scale, zero_point = self.spread(self.scale, tensor), self.spread(self.zero_point, tensor)
        parts = tensor if self.group_size is None else tensor.unflatten(1, (-1, self.group_size))
        codes = (torch.round(parts / scale) + zero_point).clamp(0, self.levels - 1)
        return ((codes - zero_point) * scale).reshape(tensor.shape).to(dtype)

    def spread(self, values: Tensor, tensor: Tensor) -> Tensor:
        """Return one value a tensor, channel or group in a shape that broadcasts."""
        if values.ndim == 0:
            return values
        if self.group_size is not None:  # version 1.0.0 lists groups row after row
            return values.reshape(len(tensor), -1, 1)
        return values.view(-1, *[1] * (tensor.ndim - 1))

    def as_unsigned(self) -> tuple[list[float], list[int]]:
        """Return scales and offsets (minus zero points) as flat lists."""
        return self.scale.flatten().tolist(), [-int(z) for z in self.zero_point.flatten().tolist()]


def encoding_of(scheme: Scheme, scale: Tensor, zero_point: Tensor, kind: Kind) -> Encoding:
    """Return the encoding of a grid (out, groups): one group a row is a scale a channel."""
    if scheme.group_size is None and scale.ndim == 2:
        scale, zero_point = scale[:, 0], zero_point[:, 0]
    group_size = scheme.group_size if scale.ndim == 2 else None
    return Encoding(kind, scheme.bits, scheme.symmetric, scale, zero_point, group_size)


# ---------------------------------------------------------------- writing


def write_encodings(path: str | Path, encodings: Mapping[str, Encoding], version: str) -> None:
    """Write encodings as JSON.

    Parameters
    ----------
    path : path
    encodings : tensor name -> Encoding
    version : "0.6.1", "1.0.0" or "2.0.0"

    Raises
    ------
    ValueError
        If the version is another, or cannot express an encoding (0.6.1 knows no groups).
    """
    check_encodings(encodings, version)
    write = {"0.6.1": entry_0_6_1, "1.0.0": entry_1_0_0}.get(version)
    top: dict[str, Any] = {"version": version, "producer": producer()}
    if write is None:
        top["encodings"] = [entry_2_0_0(name, one) for name, one in encodings.items()]
    else:
        told = {n: e for n, e in encodings.items() if e.kind != "bias"}  # older files know none
        for key, kind in (("activation_encodings", "activation"), ("param_encodings", "weight")):
            entries = {name: write(name, one) for name, one in told.items() if one.kind == kind}
            top[key] = entries if version == "0.6.1" else list(entries.values())
        top |= {"excluded_layers": [], "quantizer_args": quantizer_args(told)}
    Path(path).write_text(json.dumps(top, indent=1) + "\n", encoding="utf-8")


def check_encodings(encodings: Mapping[str, Encoding], version: str) -> None:
    """Raise a ValueError if the version is unknown or cannot express an encoding."""
    if version not in VERSIONS:
        raise ValueError(f"version is {version!r}; choose one of {', '.join(VERSIONS)}")
    for name, one in encodings.items():
        if one.symmetric and (one.scale < 0).any():
            raise ValueError(
                f"{name} has a scale of {one.scale.min().item():g}, and a symmetric encoding has "
                "none below 0; apply a method whose scales stay positive, such as AdaScale"
            )
        if version == "0.6.1" and one.group_size is not None:
            raise ValueError(
                f"{name} has groups of {one.group_size}; version 0.6.1 has no field for it, "
                "1.0.0 and 2.0.0 have"
            )


def producer() -> dict[str, str]:
    """Return who wrote the file."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return {"package": "quantlab", "version": version("quantlab")}
    except PackageNotFoundError:  # run from a checkout that is not installed
        return {"package": "quantlab", "version": "unknown"}


def quantizer_args(encodings: Mapping[str, Encoding]) -> dict[str, Any]:
    """Return the settings that hold for the whole file."""
    weights = [one for one in encodings.values() if one.kind == "weight"]
    activations = [one for one in encodings.values() if one.kind == "activation"]
    return {
        "quant_scheme": "min_max",
        "param_bitwidth": weights[0].bits if weights else 32,
        "activation_bitwidth": activations[0].bits if activations else 32,
        "dtype": "int",
        "is_symmetric": all(one.symmetric for one in weights),
        "per_channel_quantization": any(one.scale.ndim for one in weights),
    }


def entry_0_6_1(name: str, one: Encoding) -> list[dict[str, Any]]:
    """Return one dict a channel."""
    return [
        {
            "bitwidth": one.bits,
            "dtype": "int",
            "is_symmetric": str(one.symmetric),  # a string, in this version
            "max": scale * (offset + one.levels - 1),
            "min": scale * offset,
            "offset": offset,
            "scale": scale,
        }
        for scale, offset in zip(*one.as_unsigned(), strict=True)
    ]


def entry_1_0_0(name: str, one: Encoding) -> dict[str, Any]:
    """Return one dict a tensor."""
    scales, offsets = one.as_unsigned()
    entry: dict[str, Any] = {
        "name": name,
        "dtype": "INT",
        "bw": one.bits,
        "is_sym": one.symmetric,
        "scale": scales,
        "offset": offsets,
        "enc_type": ("PER_TENSOR", "PER_CHANNEL", "PER_BLOCK")[one.scale.ndim],
    }
    return entry if one.group_size is None else entry | {"block_size": one.group_size}


def entry_2_0_0(name: str, one: Encoding) -> dict[str, Any]:
    """Return one dict a tensor; symmetric codes are signed, so that their zero point is 0."""
    signed = one.symmetric
    entry: dict[str, Any] = {
        "name": name,
        "output_dtype": f"{'' if signed else 'u'}int{one.bits}",
        "y_scale": one.scale.tolist(),
    }
    if one.scale.ndim:
        entry["axis"] = 0 if one.group_size is None else 1
    if one.group_size is not None:
        entry["block_size"] = one.group_size
    if not signed and (one.zero_point != 0).any():
        entry["y_zero_point"] = one.zero_point.int().tolist()
    return entry


# ---------------------------------------------------------------- reading


def read_encodings(path: str | Path) -> dict[str, Encoding]:
    """Read encodings of any of the three versions.

    Raises
    ------
    ValueError
        If the file is no such JSON, with the entry that is wrong.
    """
    try:
        top = json.loads(Path(path).read_text(encoding="utf-8"))
        version = top["version"]
        if version not in VERSIONS:
            raise ValueError(f"version {version!r}; known: {', '.join(VERSIONS)}")
        told = entries(top, version)
    except DAMAGE as error:
        raise ValueError(f"{path} holds no encodings ({reason(error)})") from error
    read = {"0.6.1": from_0_6_1, "1.0.0": from_1_0_0, "2.0.0": from_2_0_0}[version]
    found: dict[str, Encoding] = {}
    for name, kind, entry in told:
        try:
            found[name] = sound(read(entry, kind))
        except DAMAGE as error:
            raise ValueError(f"{path}, {name}: the entry is damaged ({reason(error)})") from error
    return found


DAMAGE = (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError, OverflowError)


def reason(error: Exception) -> str:
    """Return an error's first line, with its kind where it is but a name."""
    line = str(error).partition("\n")[0]
    return f"no field {line}" if isinstance(error, KeyError) else line


def sound(one: Encoding) -> Encoding:
    """Return an encoding unless its numbers make no grid."""
    if not isinstance(one.bits, int) or not 1 <= one.bits <= 32:
        raise ValueError(f"{one.bits!r} bits")
    if not isinstance(one.symmetric, bool):
        raise ValueError(f"symmetric is {one.symmetric!r}")
    size = one.group_size
    if size is not None and not (isinstance(size, int) and size > 0):
        raise ValueError(f"block_size is {size!r}")
    if one.scale.shape != one.zero_point.shape or one.scale.numel() == 0:
        raise ValueError(f"{one.scale.numel()} scales and {one.zero_point.numel()} zero points")
    if not (torch.isfinite(one.scale).all() and (one.scale != 0).all()):
        raise ValueError("a scale that is 0 or not finite")
    return one


def entries(top: dict[str, Any], version: str) -> Sequence[tuple[str, Kind, Any]]:
    """Return (name, kind, entry) of everything in the file."""
    if version == "2.0.0":
        return [(str(one["name"]), kind_2_0_0(one), one) for one in top["encodings"]]
    found: list[tuple[str, Kind, Any]] = []
    kinds: tuple[tuple[str, Kind], ...] = (
        ("activation_encodings", "activation"),
        ("param_encodings", "weight"),
    )
    for key, kind in kinds:
        part = top[key]
        pairs = part.items() if isinstance(part, dict) else [(one["name"], one) for one in part]
        for name, entry in pairs:
            found.append((str(name), kind, entry))
    return found


def kind_2_0_0(entry: dict[str, Any]) -> Kind:
    """Tell weights, biases and activations apart: the newest version does not say."""
    if entry["output_dtype"] == "int32":
        return "bias"
    return "weight" if "axis" in entry or entry["name"].endswith(".weight") else "activation"


def from_0_6_1(entry: list[dict[str, Any]], kind: Kind) -> Encoding:
    """Read one dict a channel."""
    scale = torch.tensor([one["scale"] for one in entry])
    zero_point = -torch.tensor([float(one["offset"]) for one in entry])
    first = entry[0]
    if kind == "activation":
        scale, zero_point = scale[0], zero_point[0]
    symmetric = first["is_symmetric"] == "True"
    return Encoding(kind, first["bitwidth"], symmetric, scale, zero_point)


def from_1_0_0(entry: dict[str, Any], kind: Kind) -> Encoding:
    """Read one dict a tensor; groups lie row after row."""
    scale = torch.tensor(entry["scale"])
    zero_point = -torch.tensor(entry["offset"], dtype=torch.float32)
    if entry["enc_type"] == "PER_TENSOR":
        scale, zero_point = scale[0], zero_point[0]
    return Encoding(kind, entry["bw"], entry["is_sym"], scale, zero_point, entry.get("block_size"))


def from_2_0_0(entry: dict[str, Any], kind: Kind) -> Encoding:
    """Read one dict a tensor; signed codes become unsigned ones."""
    kind_name = entry["output_dtype"]
    bits, signed = int(kind_name.lstrip("uint")), not kind_name.startswith("u")
    scale = torch.tensor(entry["y_scale"])
    zero_point = torch.tensor(entry.get("y_zero_point", 0), dtype=torch.float32).expand_as(scale)
    if signed:
        zero_point = zero_point + 2 ** (bits - 1)
    return Encoding(kind, bits, signed, scale, zero_point, entry.get("block_size"))
