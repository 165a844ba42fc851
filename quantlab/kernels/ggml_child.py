"""The process in which ggml multiplies: it answers one request after the other until stdin ends.

ggml ends its process where it did not expect something, so it gets a process of its own. This file
is run by its path and imports the standard library only.

A request is a line of JSON with ``task`` and the task's own fields, and ``bytes`` of data may
follow. The answer is a line of JSON, ``{"ok": ...}`` or ``{"error": "why"}``.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from ctypes import POINTER, c_bool, c_char_p, c_int, c_int64, c_size_t, c_uint8, c_void_p
from typing import Any, BinaryIO

F32 = 0  # a ggml_type
OVERHEAD = 1 << 20  # bytes for the descriptions of a few tensors and a graph
POOL_SETTINGS = 4096  # bytes, more than ggml_threadpool_params has
BUFFER_AT = 8  # where a ggml_tensor names its buffer: after its type and 4 bytes of padding
FEATURES = ("avx2", "avx_vnni", "avx512", "avx512_vnni", "avx512_bf16", "neon", "matmul_int8")


class Settings(ctypes.Structure):
    """``ggml_init_params``."""

    _fields_ = (("size", c_size_t), ("memory", c_void_p), ("no_data", c_bool))


SIGNATURES: dict[str, tuple[Any, ...]] = {  # of functions: the result, then the arguments
    "ggml_init": (c_void_p, Settings),
    "ggml_free": (None, c_void_p),
    "ggml_version": (c_char_p,),
    "ggml_new_tensor_2d": (c_void_p, c_void_p, c_int, c_int64, c_int64),
    "ggml_mul_mat": (c_void_p, c_void_p, c_void_p, c_void_p),
    "ggml_nbytes": (c_size_t, c_void_p),
    "ggml_new_graph": (c_void_p, c_void_p),
    "ggml_build_forward_expand": (None, c_void_p, c_void_p),
    "ggml_backend_alloc_ctx_tensors_from_buft": (c_void_p, c_void_p, c_void_p),
    "ggml_backend_buffer_free": (None, c_void_p),
    "ggml_backend_buft_alloc_buffer": (c_void_p, c_void_p, c_size_t),
    "ggml_backend_buft_name": (c_char_p, c_void_p),
    "ggml_backend_cpu_buffer_type": (c_void_p,),
    "ggml_backend_cpu_init": (c_void_p,),
    "ggml_backend_cpu_reg": (c_void_p,),
    "ggml_backend_cpu_set_n_threads": (None, c_void_p, c_int),
    "ggml_backend_cpu_set_threadpool": (None, c_void_p, c_void_p),
    "ggml_backend_dev_supports_op": (c_bool, c_void_p, c_void_p),
    "ggml_backend_graph_compute": (c_int, c_void_p, c_void_p),
    "ggml_backend_reg_dev_get": (c_void_p, c_void_p, c_size_t),
    "ggml_backend_reg_get_proc_address": (c_void_p, c_void_p, c_char_p),
    "ggml_backend_tensor_get": (None, c_void_p, c_void_p, c_size_t, c_size_t),
    "ggml_backend_tensor_set": (None, c_void_p, c_void_p, c_size_t, c_size_t),
    "ggml_threadpool_free": (None, c_void_p),
    "ggml_threadpool_new": (c_void_p, c_void_p),
    "ggml_threadpool_params_init": (None, c_void_p, c_int),
}


class Refused(Exception):
    """What ggml cannot do, in words."""


class Library:
    """ggml's functions, its processor backend, and one pool of threads."""

    def __init__(self, path: str) -> None:
        try:
            self.c: Any = ctypes.CDLL(path)
            for name, (result, *arguments) in SIGNATURES.items():
                function = getattr(self.c, name)
                function.restype, function.argtypes = result, arguments
        except (OSError, AttributeError) as error:
            raise Refused(f"{path} is no ggml with a processor backend: {error}") from None
        self.backend = self.c.ggml_backend_cpu_init()
        registry = self.c.ggml_backend_cpu_reg()
        self.device = self.c.ggml_backend_reg_dev_get(registry, 0)
        self.threads, self.pool = 0, None
        self.buffers = {"plain": self.c.ggml_backend_cpu_buffer_type()}
        extra = self.c.ggml_backend_reg_get_proc_address(
            registry, b"ggml_backend_dev_get_extra_bufts"
        )
        if extra:
            kinds = ctypes.CFUNCTYPE(POINTER(c_void_p), c_void_p)(extra)(self.device)
            for kind in iterate(kinds):
                self.buffers[self.c.ggml_backend_buft_name(kind).decode()] = kind

    def about(self) -> dict[str, Any]:
        """Return version, instruction sets and kinds of buffers."""
        has = {name: getattr(self.c, f"ggml_cpu_has_{name}", None) for name in FEATURES}
        return {
            "version": self.c.ggml_version().decode(),
            "features": [name for name, ask in has.items() if ask is not None and ask()],
            "buffers": list(self.buffers),
        }

    def use_threads(self, count: int) -> None:
        """Give the backend a pool of so many threads: without one, it starts them at each call."""
        if count == self.threads:
            return
        settings = ctypes.create_string_buffer(POOL_SETTINGS)
        self.c.ggml_threadpool_params_init(settings, count)
        self.c.ggml_backend_cpu_set_n_threads(self.backend, count)
        pool = self.c.ggml_threadpool_new(settings)
        self.c.ggml_backend_cpu_set_threadpool(self.backend, pool)
        if self.pool:
            self.c.ggml_threadpool_free(self.pool)
        self.threads, self.pool = count, pool


def iterate(pointers: Any) -> Any:
    """Yield pointers up to the null at their end."""
    at = 0
    while pointers and pointers[at]:
        yield pointers[at]
        at += 1


class Weights:
    """One weight, in several sets, and the graph that multiplies each with the same activations."""

    def __init__(self, library: Library, request: dict[str, Any], data: bytes) -> None:
        self.library, self.next = library, 0
        self.size = 4 * request["rows"] * request["batch"]  # bytes of the result
        weight, x = data[: -4 * request["columns"] * request["batch"]], data
        self.sets = []
        for _ in range(request["sets"]):
            self.sets.append(self.one_set(request, weight, x[len(weight) :]))

    def one_set(self, request: dict[str, Any], weight: bytes, x: bytes) -> dict[str, Any]:
        """Return the contexts, buffers, result and graph of one more set of weights."""
        c, columns, batch = self.library.c, request["columns"], request["batch"]
        contexts = [c.ggml_init(Settings(OVERHEAD, None, True)) for _ in range(2)]
        W = c.ggml_new_tensor_2d(contexts[0], request["type"], columns, request["rows"])
        if c.ggml_nbytes(W) != len(weight):
            raise Refused(f"a weight of {len(weight)} bytes, where ggml has {c.ggml_nbytes(W)}")
        X = c.ggml_new_tensor_2d(contexts[1], F32, columns, batch)
        Y = c.ggml_mul_mat(contexts[1], W, X)
        kind = self.library.buffers.get(request["buffer"])
        if kind is None:
            raise Refused(f"this ggml has no buffers of kind {request['buffer']}")
        self.check(kind, W, Y, request["buffer"])
        graph = c.ggml_new_graph(contexts[1])
        c.ggml_build_forward_expand(graph, Y)
        plain = self.library.buffers["plain"]
        buffers = [
            c.ggml_backend_alloc_ctx_tensors_from_buft(context, where)
            for context, where in zip(contexts, (kind, plain), strict=True)
        ]
        c.ggml_backend_tensor_set(W, weight, 0, len(weight))  # repacks, in buffers that do
        c.ggml_backend_tensor_set(X, x, 0, len(x))
        return {"contexts": contexts, "buffers": buffers, "result": Y, "graph": graph}

    def check(self, kind: Any, W: Any, Y: Any, name: str) -> None:
        """Refuse a weight that a kind of buffer cannot hold: ggml would end this process."""
        if name == "plain":
            return
        c = self.library.c
        where = c_void_p.from_address(W + BUFFER_AT)
        empty = c.ggml_backend_buft_alloc_buffer(kind, 0)
        where.value = empty
        supported = c.ggml_backend_dev_supports_op(self.library.device, Y)
        where.value = None
        c.ggml_backend_buffer_free(empty)
        if not supported:
            raise Refused(f"{name} does not take this type or shape")

    def compute(self, number: int) -> None:
        """Multiply with one set of weights."""
        library = self.library
        status = library.c.ggml_backend_graph_compute(library.backend, self.sets[number]["graph"])
        if status:
            raise Refused(f"ggml's product ended with status {status}")

    def result(self, threads: int) -> bytes:
        """Return the float32 result (batch, rows) with the first set."""
        self.library.use_threads(threads)
        self.compute(0)
        out = (c_uint8 * self.size)()
        self.library.c.ggml_backend_tensor_get(self.sets[0]["result"], out, 0, self.size)
        return bytes(out)

    def turn(self, warm_up: int, calls: int, threads: int, cold: bool) -> list[float]:
        """Make calls that are not timed, then so many that are; return their seconds."""
        self.library.use_threads(threads)
        times = []
        for _ in range(warm_up + calls):
            number = self.next if cold else 0
            self.next = (self.next + 1) % len(self.sets)
            began = time.perf_counter()
            self.compute(number)
            times.append(time.perf_counter() - began)
        return times[warm_up:]

    def close(self) -> None:
        """Free everything."""
        for one in self.sets:
            for buffer in one["buffers"]:
                self.library.c.ggml_backend_buffer_free(buffer)
            for context in one["contexts"]:
                self.library.c.ggml_free(context)
        self.sets = []


class Server:
    """Weights by number, and the tasks."""

    def __init__(self, path: str) -> None:
        self.library = Library(path)
        self.weights: dict[int, Weights] = {}

    def answer(self, request: dict[str, Any], data: bytes) -> tuple[Any, bytes]:
        """Do a task; return its result, and bytes to send after it."""
        task, key = request["task"], request.get("key", 0)
        if task == "about":
            return self.library.about(), b""
        if task == "prepare":
            self.weights[key] = Weights(self.library, request, data)
            return True, b""
        if task == "result":
            return True, self.weights[key].result(request["threads"])
        if task == "turn":
            fields = (request[name] for name in ("warm_up", "calls", "threads", "cold"))
            return self.weights[key].turn(*fields), b""
        self.weights.pop(key).close()
        return True, b""


def main() -> None:
    """Answer requests; whatever ggml prints goes to stderr."""
    out: BinaryIO
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)
        server: Server | None = None
        for line in iter(sys.stdin.buffer.readline, b""):
            request = json.loads(line)
            data = sys.stdin.buffer.read(request.get("bytes", 0))
            try:
                if server is None:
                    server = Server(sys.argv[1])
                result, extra = server.answer(request, data)
                told = {"ok": result, "bytes": len(extra)}
            except Refused as refusal:
                told, extra = {"error": str(refusal), "bytes": 0}, b""
            out.write(json.dumps(told).encode() + b"\n" + extra)
            out.flush()
    os._exit(0)  # without the library's destructors


if __name__ == "__main__":
    main()
