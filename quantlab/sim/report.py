"""What a simulation holds: every tensor with its quantizer, or the reason why it stays in float."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from torch import nn

from quantlab.export.encodings import Encoding
from quantlab.report import Report
from quantlab.scheme import Scheme
from quantlab.sim.layer import SimulatedLayer


@dataclass(frozen=True)
class SimReport(Report):
    """A Report that also lists the activations.

    Attributes
    ----------
    tensors : name -> how it is quantized, or "float: reason"
    """

    tensors: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        ends = (".input", ".output")
        told = (how for name, how in self.tensors.items() if name.endswith(ends))
        kinds = Counter(how for how in told if not how.startswith("float"))
        lines = [f"activations: {number} tensors, {how}" for how, number in kinds.items()]
        return "\n".join([super().__str__(), *lines])


def describe(model: nn.Module, trained: dict[str, str]) -> dict[str, str]:
    """Return what becomes of every tensor of a simulated model.

    Parameters
    ----------
    model : nn.Module
        With ``SimulatedLayer`` in place.
    trained : layer name -> how its weight came about
    """
    told: dict[str, str] = {}
    twins = {name: m for name, m in model.named_modules() if isinstance(m, SimulatedLayer)}
    inside = {id(part) for twin in twins.values() for part in twin.modules()}
    for name, module in model.named_modules():
        dot = f"{name}." if name else ""
        if name in twins:
            told |= {dot + part: how for part, how in of_layer(twins[name]).items()}
            told[f"{dot}weight"] += f", {trained.get(name, 'rounded to nearest')}"
        elif id(module) not in inside and not any(True for _ in module.children()):
            kind = type(module).__name__
            for part, _ in module.named_parameters(recurse=False):
                told[dot + part] = f"float: {kind} is not simulated"
            told[f"{dot}output"] = f"float: {kind} is not simulated"
    return told


def of_layer(twin: SimulatedLayer) -> dict[str, str]:
    """Return what becomes of a simulated layer's tensors."""
    told = {"weight": of_weight(twin.weight_encoding)}
    if getattr(twin.layer, "bias", None) is not None:
        told["bias"] = "float: added after the product; version 2.0.0 gives it an int32 scale"
    for side, quantizer in (("input", twin.input), ("output", twin.output)):
        told[side] = of_activation(quantizer.scheme) if quantizer else "float: activations=None"
    return told


def of_weight(encoding: Encoding) -> str:
    """Return a weight's grid in words."""
    size = "tensor", "channel", f"group of {encoding.group_size}"
    symmetry = "symmetric" if encoding.symmetric else "asymmetric"
    return f"int{encoding.bits}, {symmetry}, a scale a {size[encoding.scale.ndim]}"


def of_activation(scheme: Scheme) -> str:
    """Return an activation's grid in words."""
    kind = "int{}, symmetric" if scheme.symmetric else "uint{}, asymmetric"
    return f"{kind.format(scheme.bits)}, a scale a tensor"
