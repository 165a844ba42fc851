"""What the house asks of every file: sizes, words, types; and a README that tells the truth."""

import ast
import doctest
import json
import re
import statistics
import subprocess
import tomllib
from functools import lru_cache
from pathlib import Path

import pytest

import quantlab
from quantlab import cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CODE = sorted(
    path
    for folder in ("quantlab", "course/builder", "quizzes", "labs/experiments")
    for path in (ROOT / folder).rglob("*.py")
)
TEXT = {
    ".py",
    ".md",
    ".toml",
    ".txt",
    ".json",
    ".yaml",
    ".yml",
    ".js",
    ".css",
    ".cfg",
    ".ipynb",
    "",
}
PATHS = re.compile(r"(?<![\w./:~$}<-])/(?:home|root|tmp|work|opt|mnt|Users|private)/\w")
REGISTRY = re.compile(r"https?://[\w.-]*(?:index|registry|wheels?|simple|packages|mirror)[\w.-]*/")


@lru_cache
def tracked() -> list[Path]:
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listing.returncode:
        pytest.skip("this is no git checkout")
    paths = (ROOT / line for line in listing.stdout.splitlines())
    return [path for path in paths if path.suffix in TEXT and path.is_file()]


def functions(path: Path) -> list[ast.FunctionDef]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


def length(function: ast.FunctionDef) -> int:
    """Lines of a function without its docstring and decorators."""
    assert function.end_lineno is not None
    lines = function.end_lineno - function.lineno + 1
    first = function.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
        assert first.end_lineno is not None
        lines -= first.end_lineno - first.lineno + 1
    return lines


def compiled_by_itself(function: ast.FunctionDef) -> bool:
    """Whether Numba or Triton makes machine code of a function, or it is an instruction of ours."""
    decorators = set(map(ast.unparse, function.decorator_list))
    return bool({"compiled", "compiled_parallel", "intrinsic", "kernel"} & decorators)


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", CODE, ids=name)
def test_a_file_can_be_read_in_one_sitting(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400
    assert path.stem not in {"utils", "util", "helpers", "helper", "common", "misc"}


@pytest.mark.parametrize("path", CODE, ids=name)
def test_a_function_fits_on_a_screen(path):
    for function in functions(path):
        assert length(function) <= 60, f"{function.name}: {length(function)} lines"
        if compiled_by_itself(function):
            continue  # pointers and sizes come one by one: a kernel's argument is no Python object
        positional = function.args.posonlyargs + function.args.args
        count = len([a for a in positional if a.arg not in ("self", "cls")])
        assert count <= 6, f"{function.name} takes {count} by position; make some keyword-only"


def test_most_functions_are_short():
    lengths = [
        length(f) for path in CODE if path.parts[-2] != "experiments" for f in functions(path)
    ]
    assert statistics.median(lengths) <= 12
    assert statistics.quantiles(lengths, n=10)[-1] <= 30


@pytest.mark.parametrize("path", [p for p in CODE if "quantlab" in p.parts], ids=name)
def test_every_argument_and_result_has_a_type(path):
    for function in functions(path):
        if compiled_by_itself(function):
            continue  # Numba and Triton find types by themselves
        spec = function.args
        arguments = [*spec.posonlyargs, *spec.args, *spec.kwonlyargs, spec.vararg, spec.kwarg]
        bare = [a.arg for a in arguments if a and not a.annotation and a.arg not in ("self", "cls")]
        assert not bare, f"{function.name}: {bare}"
        assert function.returns is not None, f"{function.name} names no result"


def test_every_public_name_is_documented():
    public = [item for key, item in vars(quantlab).items() if not key.startswith("_")]
    bare = [item.__name__ for item in public if callable(item) and not item.__doc__]
    assert not bare


@pytest.mark.parametrize("path", [p for p in CODE if "quantlab" in p.parts], ids=name)
def test_nothing_is_left_for_later(path):
    found = re.findall(r"TO" r"DO|FIX" r"ME|X{3}|NotImplemented" r"Error", path.read_text("utf-8"))
    assert not found


def test_no_file_names_one_machine_or_one_mirror():
    for path in tracked():
        if path == Path(__file__).resolve():
            continue
        text = path.read_text(encoding="utf-8")
        assert not (found := PATHS.findall(text)), f"{name(path)}: {found}"
        assert not (found := REGISTRY.findall(text)), f"{name(path)}: {found}"


def test_generated_and_private_files_are_not_tracked():
    names = {name(path) for path in tracked()}
    assert not [
        n for n in names if "__pycache__" in n or ".ipynb_checkpoints" in n or "/.venv" in n
    ]


# ---------------------------------------------------------------- README, pyproject, Makefile


def test_the_readme_example_runs():
    code = "\n".join(re.findall(r"```python\n(.*?)```", README, re.DOTALL))
    example = doctest.DocTestParser().get_doctest(code, {}, "README.md", "README.md", 0)
    assert 3 <= len(example.examples) <= 20
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    assert doctest.DocTestRunner(optionflags=flags).run(example).failed == 0


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_relative_links_lead_somewhere(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert (ROOT / target).exists(), f"{document} links to {target}"


def test_the_readme_names_only_commands_that_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"make ([a-z]+)", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"make {target}"
    for command in re.findall(r"`quantlab ([a-z]+)|^quantlab ([a-z]+)", README, re.MULTILINE):
        assert "".join(command) in cli.COMMANDS


def test_the_readme_lists_every_module_and_only_links_those_that_exist():
    for module in json.loads((ROOT / "course/modules.json").read_text(encoding="utf-8")):
        slug = f"{module['number']:02}_{module['slug']}"
        assert module["title"] in README, f"{slug} is missing from the README"
        built = (ROOT / "course" / f"{slug}.ipynb").exists()
        assert (f"](course/{slug}.ipynb)" in README) == built, f"{slug}: link it when it is built"


def test_the_version_stands_in_one_more_place_only_and_agrees():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == quantlab.__version__
    assert f"## {quantlab.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_every_tested_pin_satisfies_its_lower_bound():
    requirements = pytest.importorskip("packaging.requirements")
    pins = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if "==" in line and not line.startswith("#")
    )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].items()
    untested = {"bnb"}  # a module that is not written yet
    wanted = [line for extra, lines in extras if extra not in untested for line in lines]
    for line in [*project["dependencies"], *wanted]:
        requirement = requirements.Requirement(line)
        if requirement.name != "quantlab":
            assert pins[requirement.name] in requirement.specifier, line
