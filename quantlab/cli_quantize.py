"""``quantlab quantize``: the words of its command line, and what they ask for."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import difflib
import importlib
import pkgutil
from collections.abc import Iterable
from pathlib import Path

from quantlab import methods
from quantlab.block import Method
from quantlab.scheme import Scheme


def quantize_arguments(command: argparse.ArgumentParser) -> None:
    """Add the options of ``quantlab quantize``."""
    command.add_argument("model", metavar="MODEL", help="storyteller, or a model folder")
    command.add_argument(
        "--method", help=f"one of {', '.join(find_methods())} (default: gptq; with GGUF: none)"
    )
    command.add_argument("--bits", type=int, default=4, help="1 to 8 (default: 4)")
    command.add_argument(
        "--group-size", type=group_size, default=64, metavar="N", help="default: 64; row: whole row"
    )
    command.add_argument("--asymmetric", action="store_true", help="store zero points as well")
    command.add_argument(
        "--option", action="append", default=[], metavar="NAME=VALUE", help="such as damp=0.05"
    )
    command.add_argument("--calibration", type=Path, metavar="FILE", help="text; default: stories")
    command.add_argument(
        "--format", choices=["folder", "gguf"], default="folder", help="default: %(default)s"
    )
    command.add_argument("--type", metavar="TYPE", help="of a GGUF file (default: Q4_K_M)")
    command.add_argument(
        "--imatrix", metavar="FILE", help="for GGUF: a file, auto (measure it) or none (default)"
    )
    command.add_argument("--out", required=True, metavar="PATH", help="a new folder, or FILE.gguf")


def quantize(options: argparse.Namespace) -> int:
    """Quantize a model and write it as a new folder or a GGUF file, whole or not at all."""
    if options.format == "gguf":
        return quantize_gguf(options)
    from quantlab.checkpoint import quantize_checkpoint

    for name in ("type", "imatrix"):
        if getattr(options, name) is not None:
            raise ValueError(f"--{name} is for GGUF files; add --format gguf")
    method = make_method(options.method or "gptq", options.option)
    scheme = Scheme(options.bits, options.group_size, symmetric=not options.asymmetric)
    report = quantize_checkpoint(
        options.model, method, scheme, options.out, calibration=options.calibration
    )
    print(f"{report}\nwritten to {options.out}")
    return 0


def quantize_gguf(options: argparse.Namespace) -> int:
    """Write a model as a GGUF file, as llama-quantize does or by a method of ours."""
    from quantlab.export.gguf_convert import convert_to_gguf

    method = make_method(options.method, options.option) if options.method else None
    grid = (options.bits, options.group_size, options.asymmetric, options.option)
    if method is None and grid != (4, 64, False, []):
        raise ValueError(
            "--bits, --group-size, --asymmetric and --option are a method's; add --method"
        )
    report = convert_to_gguf(
        options.model,
        options.out,
        options.type,
        imatrix="none" if options.imatrix is None else options.imatrix,
        calibration=options.calibration,
        method=method,
        scheme=Scheme(options.bits, options.group_size, symmetric=not options.asymmetric),
    )
    print(f"{report}\nwritten to {options.out}")
    return 0


def group_size(text: str) -> int | None:
    """Read ``--group-size``: a number, or ``row`` for one scale per row."""
    return None if text == "row" else int(text)


def find_methods() -> dict[str, type]:
    """Return every method by its lower-case name: the dataclasses in quantlab/methods.

    Examples
    --------
    >>> find_methods()["gptq"].__name__
    'GPTQ'
    """
    found = {}
    for module_info in pkgutil.iter_modules(methods.__path__):
        module = importlib.import_module(f"{methods.__name__}.{module_info.name}")
        for name, item in vars(module).items():
            if hasattr(item, "quantize_block") and item.__module__ == module.__name__:
                found[name.lower()] = item
    return dict(sorted(found.items()))


def make_method(name: str, settings: list[str]) -> Method:
    """Return a method from its name and texts such as ``damp=0.05``.

    Examples
    --------
    >>> make_method("gptq", ["damp=0.05", "act_order=True"])
    GPTQ(damp=0.05, act_order=True, block_size=128)
    """
    known = find_methods()
    if name.lower() not in known:
        raise ValueError(unknown("method", name, known))
    method = known[name.lower()]
    fields = [field.name for field in dataclasses.fields(method)]
    values = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise ValueError(f"--option {setting!r} is not NAME=VALUE, such as damp=0.05")
        if key not in fields:
            raise ValueError(unknown(f"option of {method.__name__}", key, fields))
        values[key] = read_value(value)
    return method(**values)


def read_value(text: str) -> object:
    """Return a Python number, boolean or None from its text, any other text as it is."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """Return an error message that lists what exists and guesses what was meant.

    Examples
    --------
    >>> unknown("method", "gtpq", ["gptq", "rtn"])
    "unknown method 'gtpq'; did you mean 'gptq'? known: gptq, rtn"
    """
    names = sorted(known)
    guess = difflib.get_close_matches(name.lower(), names, n=1)
    hint = f"did you mean {guess[0]!r}? " if guess else ""
    return f"unknown {kind} {name!r}; {hint}known: {', '.join(names)}"
