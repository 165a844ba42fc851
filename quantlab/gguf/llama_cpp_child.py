"""The process in which llama.cpp runs: it answers one request of ``llama_cpp.py`` and ends.

llama.cpp aborts its process on files that it did not expect, so it gets a process of its own. This
file is run by its path and imports the standard library only: it starts in a blink, and owes
nothing to the library whose files it checks.

stdin: one JSON object, ``task``, ``library``, ``path`` and the task's own fields.
stdout: the result as one line of JSON; for logits that is their shape, and the float32 follow.
Exit status 3: llama.cpp refused, and the last line of stderr says why.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from ctypes import POINTER, c_bool, c_char_p, c_float, c_int8, c_int32, c_uint8, c_uint32, c_void_p
from typing import Any, BinaryIO

CHUNK = 512  # tokens decoded together: bounds the memory for logits
ERROR, F32 = 4, 0  # a ggml_log_level, a ggml_type
REFUSED = 3  # exit status
LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, c_char_p, c_void_p)
TAIL = ("tail", c_uint8 * 512)  # fields that a newer llama.cpp may have appended


class Refused(Exception):
    """llama.cpp said no; the message is for the user."""


class ModelParams(ctypes.Structure):
    """``llama_model_params`` of llama.h: how to load a file."""

    _fields_ = (
        ("devices", c_void_p),
        ("buffer_types", c_void_p),
        ("gpu_layers", c_int32),
        ("split_mode", c_int32),
        ("load_mode", c_int32),
        ("lazy_mode", c_int32),
        ("main_gpu", c_int32),
        ("tensor_split", c_void_p),
        ("progress", c_void_p),
        ("progress_data", c_void_p),
        ("overrides", c_void_p),
        ("vocab_only", c_bool),
        ("check_tensors", c_bool),
        ("extra_buffers", c_bool),
        ("no_host", c_bool),
        ("no_alloc", c_bool),
        TAIL,
    )
    # What llama_model_default_params must answer if the layout above is the library's.
    defaults = (
        ("gpu_layers", -1),
        ("split_mode", 1),
        ("load_mode", -1),
        ("lazy_mode", 1),
        ("main_gpu", 0),
        ("vocab_only", False),
        ("check_tensors", False),
        ("extra_buffers", True),
        ("no_host", False),
        ("no_alloc", False),
    )


class ContextParams(ctypes.Structure):
    """``llama_context_params`` of llama.h: how to run a model."""

    _fields_ = (
        ("n_ctx", c_uint32),
        ("n_batch", c_uint32),
        ("n_ubatch", c_uint32),
        ("sequences", c_uint32),
        ("snapshots", c_uint32),
        ("outputs", c_uint32),
        ("outputs_per_sequence", c_uint32),
        ("threads", c_int32),
        ("threads_batch", c_int32),
        ("kind", c_int32),
        ("rope_scaling", c_int32),
        ("pooling", c_int32),
        ("attention", c_int32),
        ("flash_attention", c_int32),
        ("rope", c_float * 7),  # two of RoPE's, four of YaRN's, its original context
        ("defragment", c_float),
        ("callback", c_void_p),
        ("callback_data", c_void_p),
        ("type_k", c_int32),
        ("type_v", c_int32),
        TAIL,
    )
    defaults = (
        ("n_ctx", 512),
        ("n_batch", 2048),
        ("n_ubatch", 512),
        ("rope_scaling", -1),
        ("pooling", -1),
        ("attention", -1),
        ("flash_attention", -1),
        ("defragment", -1.0),
        ("callback", None),
        ("type_k", 1),
        ("type_v", 1),
    )


class Batch(ctypes.Structure):
    """``llama_batch`` of llama.h: tokens, and whose logits are wanted."""

    _fields_ = (
        ("n_tokens", c_int32),
        ("tokens", POINTER(c_int32)),
        ("embeddings", c_void_p),
        ("positions", c_void_p),  # none: they go on where the last batch ended
        ("sequences", c_void_p * 2),  # none: all belong to sequence 0
        ("wanted", POINTER(c_int8)),
    )


PROTOTYPES = {
    "llama_log_set": (None, (LOG, c_void_p)),
    "llama_backend_init": (None, ()),
    "llama_model_default_params": (ModelParams, ()),
    "llama_context_default_params": (ContextParams, ()),
    "llama_model_load_from_file": (c_void_p, (c_char_p, ModelParams)),
    "llama_init_from_model": (c_void_p, (c_void_p, ContextParams)),
    "llama_model_get_vocab": (c_void_p, (c_void_p,)),
    "llama_vocab_n_tokens": (c_int32, (c_void_p,)),
    "llama_vocab_type": (c_int32, (c_void_p,)),
    "llama_decode": (c_int32, (c_void_p, Batch)),
    "llama_get_logits_ith": (POINTER(c_float), (c_void_p, c_int32)),
    "llama_tokenize": (
        c_int32,
        (c_void_p, c_char_p, c_int32, POINTER(c_int32), c_int32, c_bool, c_bool),
    ),
}


class Llama:
    """A file, opened by llama.cpp."""

    def __init__(self, library: str, path: str, *, vocab_only: bool) -> None:
        self.errors: list[str] = []
        self.listen = LOG(self.note)  # kept: the library holds only its address
        self.c = declare(ctypes.CDLL(library))
        self.c.llama_log_set(self.listen, None)
        self.c.llama_backend_init()
        params = checked(self.c.llama_model_default_params())
        params.vocab_only, params.gpu_layers = vocab_only, 0
        self.model = self.c.llama_model_load_from_file(os.fsencode(path), params)
        if not self.model:
            raise Refused(f"llama.cpp refuses {path}: {self.reason()}")
        self.vocabulary = self.c.llama_model_get_vocab(self.model)
        self.size: int = self.c.llama_vocab_n_tokens(self.vocabulary)

    def note(self, level: int, text: bytes, data: int | None) -> None:
        """Keep what llama.cpp logs as an error."""
        if level == ERROR:
            self.errors.append(text.decode("utf-8", "replace").strip())

    def reason(self) -> str:
        """Return the first error that was logged: later ones only say that loading failed."""
        return self.errors[0] if self.errors else "it gives no reason"

    def start(self, length: int, threads: int, f32_cache: bool) -> int:
        """Make a context for ``length`` tokens."""
        params = checked(self.c.llama_context_default_params())
        params.n_ctx, params.n_batch, params.n_ubatch = length, CHUNK, CHUNK
        params.outputs = params.outputs_per_sequence = CHUNK
        params.threads = params.threads_batch = threads
        params.flash_attention = 0
        if f32_cache:
            params.type_k = params.type_v = F32
        context = self.c.llama_init_from_model(self.model, params)
        if not context:
            raise Refused(f"llama.cpp makes no context for {length} tokens: {self.reason()}")
        return context

    def decode(self, context: int, tokens: Sequence[int], *, every: bool) -> Iterator[Any]:
        """Read tokens into the cache; yield pointers to the logits of every, or the last, token."""
        for first in range(0, len(tokens), CHUNK):
            part = tokens[first : first + CHUNK]
            count = len(part)
            last = first + count == len(tokens)
            wanted = [every or (last and i == count - 1) for i in range(count)]
            tokens_c, wanted_c = (c_int32 * count)(*part), (c_int8 * count)(*wanted)
            batch = Batch(n_tokens=count, tokens=tokens_c, wanted=wanted_c)
            code = self.c.llama_decode(context, batch)
            if code:
                raise Refused(f"llama_decode answers {code}: {self.reason()}")
            for i in [i for i in range(count) if wanted[i]]:
                yield self.c.llama_get_logits_ith(context, i)

    def check(self, tokens: Sequence[int]) -> None:
        """Refuse ids that the model has no embedding for."""
        bad = [token for token in tokens if not 0 <= token < self.size]
        if bad:
            raise Refused(f"token id {bad[0]} is outside of the vocabulary, 0..{self.size - 1}")


def declare(library: Any) -> Any:
    """Give the functions of a library their argument and result types."""
    for name, (result, arguments) in PROTOTYPES.items():
        if not hasattr(library, name):
            raise Refused(f"this xllamacpp has no {name}; {RELEASE}")
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


RELEASE = "quantlab was tested with xllamacpp 2026.10.11549"


def checked(params: Any) -> Any:
    """Return default parameters if they are where this file expects them."""
    for name, expected in params.defaults:
        found = getattr(params, name)
        if found != expected:
            raise Refused(
                f"{type(params).__name__}.{name} is {found} by default, not {expected}: this "
                f"xllamacpp lays its structures out differently; {RELEASE}"
            )
    return params


def logits(request: dict[str, Any], out: BinaryIO) -> None:
    """Write the shape and then the logits of all tokens."""
    llama = Llama(request["library"], request["path"], vocab_only=False)
    tokens = request["tokens"]
    llama.check(tokens)
    context = llama.start(len(tokens), request["threads"], request["f32_cache"])
    for number, row in enumerate(llama.decode(context, tokens, every=True)):
        if number == 0:
            answer(out, [len(tokens), llama.size])
        out.write(ctypes.string_at(row, 4 * llama.size))


def generate(request: dict[str, Any], out: BinaryIO) -> None:
    """Answer with the most likely continuation, one token at a time."""
    llama = Llama(request["library"], request["path"], vocab_only=False)
    prompt, new = request["tokens"], request["new_tokens"]
    llama.check(prompt)
    context = llama.start(len(prompt) + new, request["threads"], request["f32_cache"])
    added: list[int] = []
    step = prompt
    while len(added) < new:
        [row] = llama.decode(context, step, every=False)
        scores = row[: llama.size]
        step = [scores.index(max(scores))]
        if step[0] == request["end"]:
            break
        added += step
    answer(out, added)


def step_seconds(request: dict[str, Any], out: BinaryIO) -> None:
    """Answer with the seconds that each of the given tokens takes, one at a time."""
    llama = Llama(request["library"], request["path"], vocab_only=False)
    tokens, seconds = request["tokens"], []
    llama.check(tokens)
    context = llama.start(len(tokens), request["threads"], request["f32_cache"])
    for token in tokens:
        start = time.perf_counter()
        [_] = llama.decode(context, [token], every=False)
        seconds.append(time.perf_counter() - start)
    answer(out, seconds)


def tokenize(request: dict[str, Any], out: BinaryIO) -> None:
    """Answer with the ids of each text."""
    llama = Llama(request["library"], request["path"], vocab_only=True)
    if llama.c.llama_vocab_type(llama.vocabulary) == 0:
        raise Refused(f"{request['path']} holds no tokenizer")
    results = []
    for text in request["texts"]:
        data = text.encode("utf-8")
        room = len(data) + 8  # no text has more tokens than bytes, but for a begin and an end token
        ids = (c_int32 * room)()
        count = llama.c.llama_tokenize(
            llama.vocabulary, data, len(data), ids, room, request["add_bos"], request["special"]
        )
        if count < 0:
            raise Refused(f"llama_tokenize answers {count} for {text[:40]!r}")
        results.append(ids[:count])
    answer(out, results)


def answer(out: BinaryIO, result: list[Any]) -> None:
    """Write one line of JSON."""
    out.write(json.dumps(result).encode() + b"\n")


TASKS = {
    "logits": logits,
    "generate": generate,
    "step_seconds": step_seconds,
    "tokenize": tokenize,
}


def main() -> None:
    """Answer the request on stdin; whatever llama.cpp prints goes to stderr."""
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)
        request, status = json.loads(sys.stdin.buffer.read()), 0
        try:
            TASKS[request["task"]](request, out)
        except Refused as refusal:
            print("\n" + str(refusal).replace("\n", " "), file=sys.stderr, flush=True)
            status = REFUSED
    os._exit(status)  # without the library's destructors: the answer is out


if __name__ == "__main__":
    main()
