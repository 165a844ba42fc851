"""What ggml's own reader says of GGUF files; run as a program: a failed assertion ends it.

python ggml_reader.py FILE...      prints one JSON object a file, or null for a refused one
"""

import ctypes
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest


class Options(ctypes.Structure):
    """``gguf_init_params``: allocate nothing, and make no tensors."""

    _fields_ = (("no_alloc", ctypes.c_bool), ("tensors", ctypes.c_void_p))


def library() -> ctypes.CDLL:
    origin = importlib.util.find_spec("xllamacpp").origin
    [path] = Path(origin).parent.glob("xllamacpp*.so")
    ggml = ctypes.CDLL(str(path))
    ggml.gguf_init_from_file.restype = ctypes.c_void_p
    ggml.gguf_init_from_file.argtypes = (ctypes.c_char_p, Options)
    for name, result in {
        "get_version": ctypes.c_uint32,
        "get_alignment": ctypes.c_size_t,
        "get_data_offset": ctypes.c_size_t,
        "get_n_kv": ctypes.c_int64,
        "get_n_tensors": ctypes.c_int64,
    }.items():
        function = getattr(ggml, f"gguf_{name}")
        function.restype, function.argtypes = result, (ctypes.c_void_p,)
    for name, result in {
        "get_key": ctypes.c_char_p,
        "get_kv_type": ctypes.c_int,
        "get_tensor_name": ctypes.c_char_p,
        "get_tensor_offset": ctypes.c_size_t,
        "get_tensor_type": ctypes.c_int,
        "get_tensor_size": ctypes.c_size_t,
    }.items():
        function = getattr(ggml, f"gguf_{name}")
        function.restype, function.argtypes = result, (ctypes.c_void_p, ctypes.c_int64)
    return ggml


def describe(ggml: ctypes.CDLL, path: str) -> dict | None:
    file = ggml.gguf_init_from_file(path.encode(), Options(True, None))
    if not file:
        return None
    begin = ggml.gguf_get_data_offset(file)
    return {
        "version": ggml.gguf_get_version(file),
        "alignment": ggml.gguf_get_alignment(file),
        "values": [
            [ggml.gguf_get_key(file, i).decode(errors="replace"), ggml.gguf_get_kv_type(file, i)]
            for i in range(ggml.gguf_get_n_kv(file))
        ],
        "tensors": [
            [
                ggml.gguf_get_tensor_name(file, i).decode(errors="replace"),
                ggml.gguf_get_tensor_type(file, i),
                begin + ggml.gguf_get_tensor_offset(file, i),
                ggml.gguf_get_tensor_size(file, i),
            ]
            for i in range(ggml.gguf_get_n_tensors(file))
        ],
    }


def what_ggml_reads(*paths: Path) -> list[dict | None]:
    """Return ggml's account of each file, None where it refuses; skip the test without ggml."""
    if importlib.util.find_spec("xllamacpp") is None:
        pytest.skip("xllamacpp is not installed: no ggml to compare with")
    command = [sys.executable, __file__, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


if __name__ == "__main__":
    GGML = library()
    for argument in sys.argv[1:]:
        print(json.dumps(describe(GGML, argument)), flush=True)
