"""Simulated quantization in float: of whole models (``QuantSim``), of activations alone."""

from quantlab.sim.dynamic import DynamicSim
from quantlab.sim.quantsim import QuantSim
from quantlab.sim.static import StaticSim

__all__ = ["DynamicSim", "QuantSim", "StaticSim"]
