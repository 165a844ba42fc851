"""Widgets of the course: move a slider, and see what a bit, a byte, a clip or a column does.

Each works without a kernel once shown, and as a still picture where nothing can move.
"""

from quantlab.widgets.adascale_sliders import AdaScaleSliders
from quantlab.widgets.bit_inspector import BitInspector
from quantlab.widgets.block_explorer import BlockExplorer
from quantlab.widgets.clip_slider import ClipSlider
from quantlab.widgets.column_sweep import ColumnSweep
from quantlab.widgets.live_roofline import LiveRoofline
from quantlab.widgets.memory_dial import MemoryDial
from quantlab.widgets.migration_slider import MigrationSlider
from quantlab.widgets.module_tree import ModuleTree
from quantlab.widgets.nibble_packer import NibblePacker
from quantlab.widgets.overflow_meter import OverflowMeter
from quantlab.widgets.ratio_slider import RatioSlider
from quantlab.widgets.rounding_map import RoundingMap
from quantlab.widgets.threshold_slider import ThresholdSlider
from quantlab.widgets.traffic_tracer import TrafficTracer
from quantlab.widgets.vector_rotator import VectorRotator

__all__ = [
    "AdaScaleSliders",
    "BitInspector",
    "BlockExplorer",
    "ClipSlider",
    "ColumnSweep",
    "LiveRoofline",
    "MemoryDial",
    "MigrationSlider",
    "ModuleTree",
    "NibblePacker",
    "OverflowMeter",
    "RatioSlider",
    "RoundingMap",
    "ThresholdSlider",
    "TrafficTracer",
    "VectorRotator",
]
