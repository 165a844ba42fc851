"""ggml, the engine of llama.cpp, as a contestant: from the wheel ``xllamacpp`` or a given library.

The wheel is compiled for AVX2 and leaves newer instructions unused. A ggml that was compiled for
this very processor is named by the path of its shared library: ``libggml-cpu.so`` of a build with
``cmake -DGGML_NATIVE=ON -DBUILD_SHARED_LIBS=ON``.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from quantlab.gguf import TYPES, dequantize, quantize
from quantlab.gguf.llama_cpp import death, find_library
from quantlab.kernels import ggml_child
from quantlab.kernels.contest import WARM_UP, Contestant, Product

CHILD = Path(ggml_child.__file__)
BLOCK_TYPES = ("Q4_0", "Q4_K", "Q6_K", "Q8_0")
REPACKED = "CPU_REPACK"  # ggml's name for buffers that interleave rows


class GgmlError(ValueError):
    """ggml is missing, refuses a product, or died of it."""


class Ggml:
    """A child process that multiplies with ggml.

    Parameters
    ----------
    library : path of a shared library, or None
        None takes the one in the installed ``xllamacpp``.

    Attributes
    ----------
    version : str
    features : list of str
        The instructions it was compiled for, as it tells them.
    buffers : list of str
        ``plain``, and what it can repack weights into.

    Raises
    ------
    GgmlError
        If there is no such library, or it is no ggml.
    """

    def __init__(self, library: str | os.PathLike[str] | None = None) -> None:
        path = find_library() if library is None else Path(library).absolute()
        if path is None:
            raise GgmlError("ggml is not here; pip install xllamacpp, or name a library")
        if not path.is_file():
            raise GgmlError(f"{path} is no file; name a shared library such as libggml-cpu.so")
        self.wheel, self.keys = library is None, itertools.count()
        self.child = subprocess.Popen(
            [sys.executable, "-P", str(CHILD), str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"GGML_NO_BACKTRACE": "1"},  # an abort would start a debugger
        )
        try:
            about = self.ask("about")[0]
        except GgmlError:
            self.close()
            raise
        self.version: str = about["version"]
        self.features: list[str] = about["features"]
        self.buffers: list[str] = about["buffers"]

    @staticmethod
    def installed() -> bool:
        """Tell whether ``xllamacpp`` is here."""
        return find_library() is not None

    def ask(self, task: str, data: bytes = b"", **fields: Any) -> tuple[Any, bytes]:
        """Have the child do a task; return the result and the bytes after it.

        Raises
        ------
        GgmlError
            If ggml refuses, or the child died.
        """
        head = json.dumps({"task": task, "bytes": len(data)} | fields).encode()
        assert self.child.stdin is not None
        assert self.child.stdout is not None
        try:
            self.child.stdin.write(head + b"\n" + data)
            self.child.stdin.flush()
            line = self.child.stdout.readline()
        except OSError:
            line = b""
        if not line:
            raise GgmlError(f"ggml {death(self.child.wait())} at {task}")
        told = json.loads(line)
        if "error" in told:
            raise GgmlError(told["error"])
        return told["ok"], self.child.stdout.read(told["bytes"])

    def close(self) -> None:
        """End the child."""
        for stream in (self.child.stdin, self.child.stdout):
            if stream is not None:
                with suppress(OSError):  # a dead child's pipe
                    stream.close()
        self.child.wait()

    def __enter__(self) -> Ggml:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def contestants(self, product: Product, types: Sequence[str] = BLOCK_TYPES) -> list[Contestant]:
        """Return ggml's products with each block type: plain, and repacked where ggml does that.

        Raises
        ------
        GgmlError
            If ggml refuses a product.
        """
        found = []
        for name in types:
            blocks = quantize(product.weight.numpy(), name)
            for buffer in ("plain", REPACKED):
                one = self.contestant(product, name, blocks, buffer)
                try:
                    one.prepare(1).close()
                except GgmlError:
                    if buffer == "plain":
                        raise
                else:
                    found.append(one)
        return found

    def contestant(
        self, product: Product, name: str, blocks: NDArray[np.uint8], buffer: str
    ) -> Contestant:
        """Return ggml's product with (out, bytes) blocks in one kind of buffer."""
        rows, columns, batch = *product.weight.shape, len(product.x)
        weight = torch.from_numpy(dequantize(blocks, name))
        fields = {
            "type": TYPES[name].id,
            "rows": rows,
            "columns": columns,
            "batch": batch,
            "buffer": buffer,
        }
        group = 256 if name.endswith("_K") else 32
        where = "wheel" if self.wheel else "native"
        return Contestant(
            name=f"ggml {name}{' repacked' if buffer == REPACKED else ''} ({where})",
            activations=f"int8 per {group}",
            weight_bytes=blocks.nbytes,
            truth=product.truth(weight),
            prepare=lambda sets: Remote(
                self, fields | {"sets": sets}, blocks.tobytes() + product.x.numpy().tobytes()
            ),
            bits=8 * blocks.nbytes / (rows * columns),
            note=f"ggml {self.version} with {' '.join(self.features)}",
        )


class Remote:
    """Weights that lie in the child process, and the calls it makes with them."""

    def __init__(self, ggml: Ggml, fields: dict[str, Any], data: bytes) -> None:
        self.ggml, self.key = ggml, next(ggml.keys)
        self.shape = fields["batch"], fields["rows"]
        self.process: int | None = ggml.child.pid
        ggml.ask("prepare", data, key=self.key, **fields)

    def result(self) -> NDArray[np.float64]:
        """Return the product (batch, out) with the first set."""
        data = self.ggml.ask("result", key=self.key, threads=1)[1]
        return np.frombuffer(data, np.float32).reshape(self.shape).astype(np.float64)

    def turn(self, calls: int, threads: int, *, cold: bool) -> list[float]:
        """Make calls that are not timed, then so many that are; return their seconds."""
        fields = {"warm_up": WARM_UP, "calls": calls, "threads": threads, "cold": cold}
        return self.ggml.ask("turn", key=self.key, **fields)[0]

    def close(self) -> None:
        """Give the weights back."""
        self.ggml.ask("close", key=self.key)
