"""Simulated quantization of weights and activations, in float: see ``QuantSim``."""

from quantlab.sim.quantsim import QuantSim

__all__ = ["QuantSim"]
