"""The command ``quantlab``: each subcommand is one function, each expected error one line."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import quantlab
from quantlab.cli_bench import bench, bench_arguments
from quantlab.cli_quantize import quantize, quantize_arguments, unknown

WRONG = 2  # exit status of an expected error
INTERRUPTED = 130  # what shells use for Ctrl-C


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are ours: one line, no usage dump."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing; ``main`` prints."""
        raise ValueError(f"{message}; see: {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit status: 0, 2 for an error, 130 for Ctrl-C.

    Examples
    --------
    >>> main(["--version"])
    quantlab 0.1.0
    0
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return run(known_command(words))
    except KeyboardInterrupt:
        return complain("interrupted; nothing written", INTERRUPTED)
    except BrokenPipeError:  # the reader of our output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return WRONG
    except (ValueError, OSError, ImportError, MemoryError) as error:
        return complain(describe(error), WRONG)


def run(words: list[str]) -> int:
    """Parse the words and run the command they name."""
    try:
        options = parser().parse_args(words)
    except SystemExit as done:  # argparse's own --help and --version
        status = int(done.code or 0)
    else:
        status = options.run(options)
    sys.stdout.flush()  # a reader that left early shows here, where main can answer
    return status


def complain(message: str, status: int) -> int:
    """Print one line to stderr and return the status."""
    print(f"quantlab: error: {' '.join(message.split())}", file=sys.stderr)
    return status


def describe(error: Exception) -> str:
    """Return an expected error as a sentence in words."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, MemoryError):
        return "not enough memory; use a smaller model or fewer samples"
    return str(error) or type(error).__name__


def known_command(words: list[str]) -> list[str]:
    """Return the words, or say which command was meant; no words at all mean --help."""
    if words and not words[0].startswith("-") and words[0] not in COMMANDS:
        raise ValueError(unknown("command", words[0], COMMANDS))
    return words or ["--help"]


def parser() -> Parser:
    """Return the parser of the whole command line."""
    top = Parser(prog="quantlab", description="Quantize models, and see exactly what was lost.")
    top.add_argument("--version", action="version", version=f"quantlab {quantlab.__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, (run, add_arguments) in COMMANDS.items():
        text = (run.__doc__ or "").strip()
        command = commands.add_parser(name, help=text.splitlines()[0], description=text)
        add_arguments(command)
        command.set_defaults(run=run)
    return top


# ---------------------------------------------------------------- demo, doctor


def no_arguments(_: argparse.ArgumentParser) -> None:
    """Add nothing."""


def demo(_: argparse.Namespace) -> int:
    """Quantize the embedded model at 4, 3 and 2 bits and compare."""
    from quantlab.demo import run_demo

    run_demo()
    return 0


def doctor(_: argparse.Namespace) -> int:
    """Say what works on this machine, and how to get what is missing."""
    from quantlab.doctor import run_doctor

    return run_doctor()


# ---------------------------------------------------------------- course, quiz


def course_arguments(command: argparse.ArgumentParser) -> None:
    """Add the options of ``quantlab course``."""
    command.add_argument(
        "folder", metavar="DIR", nargs="?", default="quantlab-course", help="default: %(default)s"
    )
    command.add_argument("--no-start", action="store_true", help="only copy, open nothing")
    command.add_argument("--no-browser", action="store_true", help="only print the address")
    command.add_argument("--port", type=int, default=None, help="default: the first free from 8888")


def course(options: argparse.Namespace) -> int:
    """Copy course, labs and quizzes into a folder and open JupyterLab there."""
    from quantlab.course import copy_course, start

    print(f"{options.folder}: {copy_course(options.folder)}", flush=True)
    if options.no_start:
        return 0
    return start(Path(options.folder), port=options.port, browser=not options.no_browser)


def quiz_arguments(command: argparse.ArgumentParser) -> None:
    """Add the options of ``quantlab quiz``."""
    command.add_argument("name", nargs="?", help="such as 04_gptq or 4; without it: the list")


def quiz(options: argparse.Namespace) -> int:
    """Practice the questions of a module in the terminal."""
    from quantlab.quiz import bank_names, practice_in_terminal

    if options.name is None:
        print("\n".join(bank_names()))
    else:
        practice_in_terminal(options.name)
    return 0


# ---------------------------------------------------------------- evaluate, inspect


def evaluate_arguments(command: argparse.ArgumentParser) -> None:
    """Add the options of ``quantlab evaluate``."""
    command.add_argument("model", metavar="MODEL", help="storyteller, or a model folder")
    command.add_argument("--reference", metavar="MODEL", help="the float model, for KL and flips")
    command.add_argument("--text", type=Path, metavar="FILE", help="default: held-out stories")
    command.add_argument("--samples", type=int, default=32, help="windows (default: 32)")
    command.add_argument("--length", type=int, default=256, help="tokens each (default: 256)")


def evaluate(options: argparse.Namespace) -> int:
    """Measure a model: perplexity, bits per byte and, against a reference, KL and flips."""
    model, tokenizer = quantlab.load(options.model)
    tokens = quantlab.test_set(tokenizer, options.samples, options.length, path=options.text)
    reference = quantlab.load(options.reference)[0] if options.reference else None
    print(quantlab.evaluate(model, tokens, reference=reference, tokenizer=tokenizer))
    return 0


def inspect_arguments(command: argparse.ArgumentParser) -> None:
    """Add the options of ``quantlab inspect``."""
    command.add_argument("file", metavar="FILE", help="GGUF, safetensors, or a folder with one")
    command.add_argument("--json", action="store_true", help="everything, for programs")
    command.add_argument("--histogram", metavar="TENSOR", help="how its weights spread")
    command.add_argument("--bins", type=int, default=20, metavar="N", help="default: %(default)s")


def inspect(options: argparse.Namespace) -> int:
    """Show metadata, tensors and real bits per weight of a model file, without loading it."""
    from quantlab.inspect_file import inspect_file

    found = inspect_file(options.file)
    name = options.histogram
    bars = None if name is None else found.histogram(name, options.bins)
    if options.json:
        extra = {"histogram": dataclasses.asdict(bars)} if bars else {}
        print(json.dumps(found.to_dict() | extra, indent=1))
    else:
        print(bars or found)
    return 0


Command = tuple[Callable[[argparse.Namespace], int], Callable[[argparse.ArgumentParser], None]]
COMMANDS: dict[str, Command] = {
    "demo": (demo, no_arguments),
    "doctor": (doctor, no_arguments),
    "course": (course, course_arguments),
    "quantize": (quantize, quantize_arguments),
    "evaluate": (evaluate, evaluate_arguments),
    "inspect": (inspect, inspect_arguments),
    "bench": (bench, bench_arguments),
    "quiz": (quiz, quiz_arguments),
}

if __name__ == "__main__":
    sys.exit(main())
