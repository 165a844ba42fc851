"""GGUF, the file format of llama.cpp, and ggml's block types, equal to them in every byte."""

from quantlab.gguf.block_type import TYPES, BlockType, find_type
from quantlab.gguf.codec import dequantize, quantize

__all__ = ["TYPES", "BlockType", "dequantize", "find_type", "quantize"]
