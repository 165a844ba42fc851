"""Simulated quantization of weights and activations, in float: see ``QuantSim``, ``DynamicSim``."""

from quantlab.sim.dynamic import DynamicSim
from quantlab.sim.quantsim import QuantSim

__all__ = ["DynamicSim", "QuantSim"]
