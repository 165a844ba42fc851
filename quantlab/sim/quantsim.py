"""Quantization simulation: a twin of a model that computes in float with quantized numbers.

Every Linear and Conv2d of the twin gets weights that lie on an integer grid, and its input and
output pass through a quantizer of their own: quantize, then dequantize. What the twin loses is what
an integer machine would lose, and its encodings say how to build that machine.

    1  sim = QuantSim(model, weights=..., activations=...)      a copy; the model never changes
    2  sim.apply(AdaScale(...), data)                           train weights, fold, freeze
    3  sim.compute_encodings(data)                              ranges of the activations
    4  perplexity(sim, tokens)                                  evaluate, beside weights_only()
    5  sim.export("out", "story")                               weights and encodings as files
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quantlab.block import Method
from quantlab.export.encodings import Encoding, encoding_of
from quantlab.models.families import UnsupportedModelError
from quantlab.pipeline import replace_layers_
from quantlab.scheme import Scheme
from quantlab.sim.export import biases, onnx_example, write_export
from quantlab.sim.layer import Quantizer, SimulatedLayer, plain, replace_, with_weight
from quantlab.sim.report import SimReport, describe
from quantlab.tensor import CalibrationError, QuantizedTensor
from quantlab.walk import BATCH, check_data


class QuantSim(nn.Module):
    """A copy of a model whose Linear and Conv2d layers are simulated on integer grids.

    Parameters
    ----------
    model : nn.Module
        Copied; never changed.
    weights : Scheme
        Bits 2..8. Symmetric: AdaScale's start range, so that scales are positive.
    activations : Scheme, or None
        Of every simulated layer's input and output, one range a tensor; None leaves them in float.

    Raises
    ------
    ValueError
        If a weight is not finite or does not fit the scheme.
    UnsupportedModelError
        If the model has no Linear and no Conv2d.

    References
    ----------
    The workflow of AIMET's QuantizationSimModel (aimet-torch 2.42.0); the grids are section by
    section those of ``AdaScale``.

    Examples
    --------
    >>> import quantlab as ql
    >>> net = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    >>> sim = QuantSim(net, weights=Scheme(4), activations=Scheme(8, symmetric=False))
    >>> data = torch.linspace(-1, 1, 8).view(2, 4)
    >>> sim.compute_encodings(data)
    >>> sim(data).shape, sorted(sim.encodings())
    (torch.Size([2, 4]), ['0.input', '0.output', '0.weight'])
    """

    def __init__(
        self, model: nn.Module, *, weights: Scheme, activations: Scheme | None = None
    ) -> None:
        super().__init__()
        self.weights, self.activations = weights, activations
        if not 2 <= weights.bits <= 8:
            raise ValueError(f"weights take 2..8 bits here, the scheme says {weights.bits}")
        self.model = copy.deepcopy(model).eval()
        self.applied: str | None = None
        self.trained: dict[str, str] = {}
        self.example: Tensor | None = None
        twins: dict[int, SimulatedLayer] = {}
        for path, layer in list(self.named_modules(remove_duplicate=False)):
            if isinstance(layer, nn.Linear | nn.Conv2d):
                if id(layer) not in twins:  # one layer in two places stays one
                    tensor = plain(layer.weight, weights, path.removeprefix("model."))
                    twins[id(layer)] = self.simulated(layer, with_weight(layer, tensor), tensor)
                replace_(self, path, twins[id(layer)])
        if not twins:
            raise UnsupportedModelError(
                f"{type(model).__name__} has no Linear and no Conv2d; there is nothing to simulate"
            )

    def simulated(
        self, layer: nn.Module, quantized: nn.Module, tensor: QuantizedTensor
    ) -> SimulatedLayer:
        """Return a layer's twin."""
        encoding = encoding_of(tensor.scheme, tensor.scale, tensor.zero_point, "weight")
        return SimulatedLayer(layer, quantized, encoding, self.activations)

    def simulated_layers(self) -> dict[str, SimulatedLayer]:
        """Return the twins by their layers' names in the model."""
        modules = self.model.named_modules()
        return {name: m for name, m in modules if isinstance(m, SimulatedLayer)}

    def quantizers(self) -> dict[str, Quantizer]:
        """Return the activation quantizers by tensor name."""
        return {
            f"{name}.{side}".lstrip("."): quantizer
            for name, twin in self.simulated_layers().items()
            for side, quantizer in (("input", twin.input), ("output", twin.output))
            if quantizer is not None
        }

    def tensors(self) -> dict[str, str]:
        """Return by name how each tensor is quantized, or "float: reason"."""
        return describe(self.model, self.trained)

    # ------------------------------------------------------------ 2 apply

    def apply(  # type: ignore[override]  # nn.Module.apply is another verb; AIMET's word is ours
        self,
        method: Method,
        data: Tensor | None = None,
        *,
        blocks: str | Sequence[str] | None = None,
        checkpoint: str | Path | None = None,
        progress: bool | None = None,
    ) -> SimReport:
        """Quantize the weights of every block with a method, and freeze their encodings.

        Activation quantizers are off meanwhile, and ranges that they have are dropped.

        Parameters
        ----------
        method : Method
            Such as ``AdaScale()``.
        data : (samples, ...) tensor
            What the model is called with.
        blocks, checkpoint, progress
            As for ``quantize_``.

        Raises
        ------
        ValueError
            If a method was applied before (its folded weights carry their own scales), or as
            ``quantize_`` does.
        UnsupportedModelError
            If the model's blocks are unknown: name them with ``blocks=``. Never a silent no-op.
        """
        if self.applied:
            raise ValueError(
                f"{self.applied} was applied already and its folded weights keep their scales; "
                "make a new QuantSim of the float model"
            )
        results: dict[int, SimulatedLayer] = {}  # by the float layer

        def store(layer: nn.Module, tensor: QuantizedTensor) -> nn.Module:
            if not isinstance(tensor, QuantizedTensor):
                raise ValueError(
                    f"encodings hold whole zero points, not the {type(tensor).__name__} of "
                    f"{type(method).__name__}; choose whole_zeros=True or a symmetric scheme"
                )
            tensor = replace(tensor, scale=tensor.scale.float())  # as encodings are written
            quantized = with_weight(layer, tensor)
            results[id(layer)] = self.simulated(layer, quantized, tensor)
            return quantized

        twins = self.places()
        with self.swapped(lambda twin: twin.float_layer) as model:
            rows = replace_layers_(
                model,
                method,
                self.weights,
                data,
                blocks=blocks,
                checkpoint=checkpoint,
                progress=progress,
                store=store,
                convolutions=True,
            )
        for path, twin in twins.items():
            replace_(self, path, results.get(id(twin.float_layer), twin))
        for quantizer in self.quantizers().values():
            quantizer.encoding = None
        self.applied = type(method).__name__
        self.trained = {row.name: f"by {self.applied}" for row in rows}
        tensors = self.tensors()
        left = {n: how[7:] for n, how in tensors.items() if how.startswith("float: ")}
        seconds = sum(row.seconds for row in rows)
        return SimReport(tuple(rows), left, self.applied, seconds, tensors)

    def places(self) -> dict[str, SimulatedLayer]:
        """Return the twins by their paths from here: all paths of a twin that has several."""
        modules = self.named_modules(remove_duplicate=False)
        return {path: m for path, m in modules if isinstance(m, SimulatedLayer)}

    @contextmanager
    def swapped(self, inner: Callable[[SimulatedLayer], nn.Module]) -> Iterator[nn.Module]:
        """Put a part of every twin in its place; then back every twin that was not replaced."""
        twins = self.places()
        for path, twin in twins.items():
            replace_(self, path, inner(twin))
        try:
            yield self.model
        finally:
            for path, twin in twins.items():
                if self.get_submodule(path) is inner(twin):
                    replace_(self, path, twin)

    # ------------------------------------------------------------ 3 and 4

    @torch.no_grad()
    def compute_encodings(
        self, data: Tensor | Callable[[nn.Module], Any], *, batch_size: int = BATCH
    ) -> None:
        """Run data through the simulation and turn the ranges seen into activation encodings.

        Parameters
        ----------
        data : (samples, ...) tensor, or function of the model
            A function calls the model itself, for models that take more than one tensor.
        batch_size : samples in a batch

        Raises
        ------
        CalibrationError
            If the data hold nothing, or a layer was never reached or saw NaN.
        """
        if isinstance(data, Tensor):
            check_data(self.model, data)
            self.example = data[:1]
        quantizers = self.quantizers()
        for quantizer in quantizers.values():
            quantizer.observe()
        try:
            if isinstance(data, Tensor):
                for batch in data.split(batch_size):
                    self.model(batch)
            else:
                data(self.model)
            for name, quantizer in quantizers.items():
                if not torch.isfinite(torch.tensor([quantizer.low, quantizer.high])).all():
                    raise CalibrationError(f"{name} saw NaN or infinity; check the model in float")
                if quantizer.low == quantizer.high:
                    raise CalibrationError(
                        f"{name} saw nothing but zeros, or was never reached by the data"
                    )
            for quantizer in quantizers.values():
                quantizer.settle()
        finally:
            for quantizer in quantizers.values():
                quantizer.observing = False

    def check_calibrated(self) -> None:
        """Raise a CalibrationError that names activations without a range."""
        missing = [name for name, one in self.quantizers().items() if one.encoding is None]
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise CalibrationError(
                f"no range for {', '.join(missing[:3])}{more}; "
                "call sim.compute_encodings(data) after sim.apply"
            )

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the simulation."""
        self.check_calibrated()
        return self.model(*args, **kwargs)

    def weights_only(self) -> nn.Module:
        """Return a copy of the model with weights on their grids and activations in float.

        Examples
        --------
        >>> sim = QuantSim(nn.Linear(4, 4), weights=Scheme(4), activations=Scheme(16))
        >>> sim.weights_only()(torch.ones(1, 4)).shape
        torch.Size([1, 4])
        """
        with self.swapped(lambda twin: twin.layer) as model:
            return copy.deepcopy(model)

    # ------------------------------------------------------------ 5 export

    def encodings(self) -> dict[str, Encoding]:
        """Return the encoding of every quantized tensor, by name."""
        found = {name: one.encoding for name, one in self.quantizers().items() if one.encoding}
        for name, twin in self.simulated_layers().items():
            found[f"{name}.weight".lstrip(".")] = twin.weight_encoding
        return found

    def export(
        self, folder: str | Path, prefix: str, *, version: str = "1.0.0", onnx: bool | None = None
    ) -> None:
        """Write ``prefix.safetensors`` and ``prefix.encodings``, and ``prefix.onnx``.

        Parameters
        ----------
        folder : path
            Must not exist, or be empty. It appears whole at the end or not at all.
        prefix : str
            Of the files.
        version : "0.6.1", "1.0.0" or "2.0.0"
            Of the encodings.
        onnx : bool, or None
            None: where the packages ``onnx`` and ``onnxscript`` are installed and
            ``compute_encodings`` was given a tensor. Its first sample is what is traced.

        Raises
        ------
        CalibrationError
            If activations have no range yet.
        ValueError
            If the folder is taken, the version cannot express an encoding, or ONNX cannot be made.
        """
        self.check_calibrated()
        encodings = self.encodings()
        if version == "2.0.0":
            encodings |= biases(self.simulated_layers())
        example = onnx_example(self.example, onnx)
        with self.swapped(lambda twin: twin.layer) as model:
            write_export(model, encodings, version, Path(folder), prefix, example)
