"""Say what works on this machine, what is missing, and how to get it."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec

import numba
import torch
from llvmlite import binding

from quantlab.methods.gptq import gptq
from quantlab.methods.rtn import rtn
from quantlab.models.loading import load
from quantlab.scheme import Scheme
from quantlab.tensor import output_error

PYTHON = (3, 11)
CORE = ("numpy", "torch", "numba", "safetensors", "tokenizers")
EXTRAS = {  # extra: (what to import, what it is for)
    "notebook": (("ipywidgets", "anywidget", "matplotlib", "sklearn"), "figures and sliders"),
    "course": (("jupyterlab", "ipykernel"), "JupyterLab on this machine"),
    "hf": (("transformers",), "models in Hugging Face folders"),
    "bnb": (("bitsandbytes",), "the comparison cells of modules 8 and 19"),
    "gpu": (("triton",), "GPU kernels"),
    "dask": (("distributed",), "sweeps and grading on a cluster"),
    "test": (("pytest", "hypothesis", "nbval", "jupytext"), "the test suite"),
}
VECTOR = ("sse4.2", "avx", "f16c", "fma", "avx2", "avx512f", "avx512vnni", "amx-int8")
VECTOR += ("neon", "dotprod", "i8mm", "sve")  # Arm's


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report.

    Attributes
    ----------
    subject : str
        What was looked at.
    state : str
        ``ok``; ``-`` for something optional that is absent; ``FAIL``.
    detail : str
        What was found, or what to do.
    """

    subject: str
    state: str
    detail: str

    def __str__(self) -> str:
        return f"{self.state:>4}  {self.subject:<12} {self.detail}"


def run_doctor(say: Callable[[str], None] = print) -> int:
    """Say every finding as it is made; return 0 if all that is needed works, else 1."""
    failures = 0
    for finding in findings():
        say(str(finding))
        failures += finding.state == "FAIL"
    if failures:
        say(f"\n{failures} of these must be repaired before quantlab works.")
        return 1
    say("\nAll that the library needs works here. Next: quantlab demo")
    return 0


def findings() -> Iterator[Finding]:
    """Look at Python, packages, processor, threads, cache and extras, then check ourselves."""
    yield python_version()
    yield packages()
    yield processor()
    yield threads()
    yield accelerator()
    yield compiled_cache()
    for extra, (modules, purpose) in EXTRAS.items():
        yield optional(extra, modules, purpose)
    yield self_check("rounding", check_rounding)
    yield self_check("GPTQ", check_gptq)
    yield self_check("storyteller", check_model)


def python_version() -> Finding:
    """Compare the interpreter with the oldest that we support."""
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.version_info >= PYTHON:
        return Finding("Python", "ok", found)
    return Finding("Python", "FAIL", f"{found}; install Python 3.11 or newer")


def packages() -> Finding:
    """List the versions of the packages that the library cannot do without."""
    return Finding("packages", "ok", ", ".join(f"{n} {metadata.version(n)}" for n in CORE))


def processor() -> Finding:
    """Name the vector instructions at hand and the set that torch chose."""
    features = binding.get_host_cpu_features()
    have = [name for name in VECTOR if features.get(name)]
    chosen = torch.backends.cpu.get_cpu_capability()
    return Finding("processor", "ok", f"{' '.join(have) or 'no vectors'} (torch uses {chosen})")


def threads() -> Finding:
    """Compare the cores that this process may use with the threads that it would start."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    used = f"torch {torch.get_num_threads()}, Numba {numba.config.NUMBA_NUM_THREADS}"  # type: ignore[attr-defined]
    return Finding("threads", "ok", f"{cores} cores for this process; {used}; notebooks use 1")


def accelerator() -> Finding:
    """Say whether torch sees a GPU; nothing in the library needs one."""
    if not torch.cuda.is_available():
        return Finding("GPU", "-", "none seen by torch; everything runs on the CPU")
    return Finding("GPU", "ok", torch.cuda.get_device_name(0))


def compiled_cache() -> Finding:
    """Find out whether Numba can keep compiled code, which saves seconds at each start."""

    def probe(x: float) -> float:
        return x

    try:
        numba.njit(cache=True)(probe)
    except RuntimeError:
        how = "nowhere to keep compiled code: each start compiles anew; set NUMBA_CACHE_DIR"
        return Finding("cache", "-", f"{how} to a folder that you can write")
    return Finding("cache", "ok", "compiled code is kept between runs")


def optional(extra: str, modules: tuple[str, ...], purpose: str) -> Finding:
    """Say whether an extra is complete, what it is for, and how to get it."""
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        detail = f"{purpose}: {', '.join(missing)} not installed; pip install 'quantlab[{extra}]'"
        return Finding(f"[{extra}]", "-", detail)
    return Finding(f"[{extra}]", "ok", purpose)


def self_check(subject: str, check: Callable[[], str]) -> Finding:
    """Run one check; whatever goes wrong in it is the finding."""
    started = time.perf_counter()
    try:
        detail = check()
    except Exception as error:  # a doctor reports every illness, also the unknown ones
        first = (str(error).splitlines() or [""])[0]
        return Finding(subject, "FAIL", f"{type(error).__name__}: {first}")
    return Finding(subject, "ok", f"{detail} ({time.perf_counter() - started:.1f} s)")


def sample() -> tuple[torch.Tensor, torch.Tensor]:
    """Return a seeded float64 matrix (64, 256) and second moments of correlated inputs."""
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 256, generator=draw, dtype=torch.float64)
    mixing = torch.randn(256, 256, generator=draw, dtype=torch.float64)
    x = torch.randn(1024, 256, generator=draw, dtype=torch.float64) @ mixing
    return weight, x.T @ x / len(x)


def check_rounding() -> str:
    """Round a matrix: no weight may move by more than one step, packing must lose nothing."""
    weight, _ = sample()
    for bits in range(1, 9):
        quantized = rtn(weight, Scheme(bits=bits, group_size=64))
        step = quantized.scale.abs().repeat_interleave(64, dim=1)
        if not ((quantized.dequantize() - weight).abs() <= step * (1 + 1e-9)).all():
            raise ArithmeticError(f"a weight moved by more than one step at {bits} bits")
        if not quantized.pack().unpack().codes.equal(quantized.codes):
            raise ArithmeticError(f"packing changed a code at {bits} bits")
    return "1 to 8 bits rounded and packed"


def check_gptq() -> str:
    """Solve a layer: white inputs must give RTN's codes, correlated ones a smaller error."""
    weight, moment = sample()
    scheme = Scheme(bits=4, group_size=64)
    rounded = rtn(weight, scheme)
    if not gptq(weight, torch.eye(256).double(), scheme).codes.equal(rounded.codes):
        raise ArithmeticError("GPTQ with an identity Hessian differs from RTN")
    before = output_error(weight, rounded.dequantize(), moment)
    after = output_error(weight, gptq(weight, moment, scheme).dequantize(), moment)
    if not after < before:
        raise ArithmeticError(f"GPTQ's output error {after:.3g} is not below RTN's {before:.3g}")
    return f"output error is {after / before:.2f} of RTN's on correlated inputs"


def check_model() -> str:
    """Open the embedded model and let it write."""
    model, tokenizer = load("storyteller")
    prompt = torch.tensor([tokenizer.encode("Once upon a time")])
    story = model.generate(prompt, 8)  # type: ignore[operator]
    return f'"{tokenizer.decode(story[0])} ..."'
