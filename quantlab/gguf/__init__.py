"""GGUF, the file format of llama.cpp, and ggml's block types, equal to them in every byte."""

from quantlab.gguf.block_type import TYPES, BlockType, find_type
from quantlab.gguf.codec import dequantize, quantize
from quantlab.gguf.cursor import FormatError
from quantlab.gguf.file import GGUFFile, GGUFTensor, parse, read
from quantlab.gguf.writer import Raw, write

__all__ = [
    "TYPES",
    "BlockType",
    "FormatError",
    "GGUFFile",
    "GGUFTensor",
    "Raw",
    "dequantize",
    "find_type",
    "parse",
    "quantize",
    "read",
    "write",
]
