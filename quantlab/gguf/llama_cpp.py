"""Run a GGUF file in the real llama.cpp, to see that an export is what it should be.

llama.cpp comes with the optional package ``xllamacpp``. It runs in a child process, because a file
that it does not expect can end the process that reads it. On the processor only, without network.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quantlab.gguf import llama_cpp_child
from quantlab.gguf.llama_cpp_child import REFUSED

CHILD = Path(llama_cpp_child.__file__)


class LlamaCppError(ValueError):
    """llama.cpp is missing, refuses a file, or died of it."""


def find_library() -> Path | None:
    """Return the file in which llama.cpp lies, or None if ``xllamacpp`` is not installed."""
    spec = importlib.util.find_spec("xllamacpp")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent
    found = [path for end in ("so", "pyd") for path in sorted(folder.glob(f"xllamacpp*.{end}"))]
    return found[0] if found else None


def available() -> bool:
    """Tell whether llama.cpp is here: ``xllamacpp`` is installed."""
    return find_library() is not None


def logits(
    path: str | os.PathLike[str],
    tokens: ArrayLike,
    *,
    f32_cache: bool = True,
    threads: int = 1,
    timeout: float = 300,
) -> NDArray[np.float32]:
    """Return llama.cpp's logits for every token of one sequence.

    Parameters
    ----------
    path : GGUF file of a model
    tokens : (length,) ints
        As they are: no begin token is added.
    f32_cache : bool
        Keep keys and values in float32. llama.cpp's own default, float16, alone moves the logits
        of a small model by 0.003.
    threads : int
    timeout : seconds

    Returns
    -------
    (length, vocabulary) float32 array
        Row i scores the token after ``tokens[i]``.

    Raises
    ------
    LlamaCppError
        If ``xllamacpp`` is missing, or llama.cpp refuses the file, dies of it, or takes too long.
    ValueError
        If there is no such file, or tokens are no ids of the model.

    Notes
    -----
    With quantized weights llama.cpp rounds activations to 8 bits before each product, so these
    logits differ from those of the dequantized weights by more than rounding noise.
    """
    fields = {"tokens": ids(tokens), "f32_cache": f32_cache, "threads": at_least(1, threads)}
    shape, data = ask("logits", path, fields, timeout)
    return np.frombuffer(data, "<f4").reshape(shape).astype(np.float32)


def generate(
    path: str | os.PathLike[str],
    tokens: ArrayLike,
    new_tokens: int,
    *,
    end: int | None = None,
    f32_cache: bool = True,
    threads: int = 1,
    timeout: float = 300,
) -> list[int]:
    """Continue tokens (length,) by the most likely ones, as llama.cpp sees it.

    Parameters
    ----------
    path : GGUF file of a model
    tokens : (length,) ints
    new_tokens : int >= 0
        How many to add at most.
    end : int, optional
        The id at which to stop; it is not returned.
    f32_cache, threads, timeout
        As in ``logits``.

    Returns
    -------
    list of int
        The added ids.

    Raises
    ------
    LlamaCppError, ValueError
        As ``logits``.
    """
    fields = {
        "tokens": ids(tokens),
        "new_tokens": at_least(0, new_tokens),
        "end": end,
        "f32_cache": f32_cache,
        "threads": at_least(1, threads),
    }
    return ask("generate", path, fields, timeout)[0]


def step_seconds(
    path: str | os.PathLike[str],
    tokens: ArrayLike,
    *,
    f32_cache: bool = True,
    threads: int = 1,
    timeout: float = 300,
) -> list[float]:
    """Return how long llama.cpp takes for each of the tokens (length,), given one at a time.

    Parameters, and errors, are those of ``logits``. The logits are computed and not read.

    Returns
    -------
    list of float
        Seconds; the first few include what llama.cpp does once.
    """
    fields = {"tokens": ids(tokens), "f32_cache": f32_cache, "threads": at_least(1, threads)}
    return ask("step_seconds", path, fields, timeout)[0]


def tokenize(
    path: str | os.PathLike[str],
    texts: Sequence[str],
    *,
    add_bos: bool = False,
    special: bool = False,
    timeout: float = 300,
) -> list[list[int]]:
    """Return the ids that llama.cpp's tokenizer gives each text.

    Parameters
    ----------
    path : GGUF file
        Only its vocabulary is read.
    texts : sequence of str
    add_bos : bool
        Add the begin token where the file asks for one.
    special : bool
        Read the names of special tokens in a text as these tokens, not as letters.
    timeout : seconds

    Raises
    ------
    LlamaCppError, ValueError
        As ``logits``.
    """
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"texts is {texts!r:.60}; pass a list of strings")
    "".join(texts).encode()  # a lone surrogate is no text: a UnicodeEncodeError, which says where
    fields = {"texts": list(texts), "add_bos": add_bos, "special": special}
    return ask("tokenize", path, fields, timeout)[0]


def ids(tokens: ArrayLike) -> list[int]:
    """Return token ids as Python integers; a ValueError if they are no sequence of integers."""
    array = np.asarray(tokens)
    if array.ndim != 1 or not array.size or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(
            f"tokens are {array.dtype} of shape {array.shape}; pass one sequence of ids, (length,)"
        )
    return array.tolist()


def at_least(least: int, value: int) -> int:
    """Return a count; a ValueError if it is too small."""
    if value < least:
        raise ValueError(f"asked for {value}; a number of tokens or threads is {least} or more")
    return int(value)


def ask(
    task: str, path: str | os.PathLike[str], fields: dict[str, Any], timeout: float
) -> tuple[Any, bytes]:
    """Have a child process do a task; return the result and the bytes after it."""
    library = find_library()
    if library is None:
        raise LlamaCppError("llama.cpp is not here; it comes with: pip install xllamacpp")
    file = Path(path).absolute()
    if not file.is_file():
        raise ValueError(f"{path} is no file; export a model first")
    request = {"task": task, "library": str(library), "path": str(file)} | fields
    try:
        child = subprocess.run(
            [
                sys.executable,
                "-P",
                str(CHILD),
            ],  # -P: its folder does not shadow the library's names
            input=json.dumps(request).encode(),
            capture_output=True,
            timeout=timeout,
            env=os.environ | {"GGML_NO_BACKTRACE": "1"},  # an abort would start a debugger
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise LlamaCppError(
            f"llama.cpp did not finish {task} of {path} in {timeout:g} s; raise timeout, or the "
            "file makes it hang"
        ) from None
    if child.returncode == REFUSED:
        raise LlamaCppError(last_line(child))
    if child.returncode:
        line = re.sub(r"\S*/llama\.cpp/", "", last_line(child))  # without the builder's folders
        raise LlamaCppError(f"llama.cpp {death(child.returncode)} on {path}: {line}")
    head, _, data = child.stdout.partition(b"\n")
    return json.loads(head), data


def death(code: int) -> str:
    """Say how a process ended, from its exit status."""
    if code >= 0:
        return f"ended with exit status {code}"
    return f"was killed by {signal.Signals(-code).name}"


def last_line(child: subprocess.CompletedProcess[bytes]) -> str:
    """Return the last thing that a process wrote to stderr."""
    lines = child.stderr.decode("utf-8", "replace").strip().splitlines()
    return lines[-1] if lines else "it printed nothing"
