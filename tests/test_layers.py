"""Imports run only downward: the house plan, checked line by line."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "quantlab"
ROWS = (
    (
        "scheme",
        "floats",
        "packing",
        "accumulators",
        "tensor",
        "codebook_tensor",
        "float_zero",
        "lattice_e8",
        "blockwise",
        "blockwise_matrix",
        "double_quantization",
        "factor",
        "native",
        "grid_search",
        "clip_search",
        "hadamard",
        "orthogonal",
    ),
    ("block", "folding", "training", "fake_quant", "observers"),
    ("methods", "gguf", "kernels"),
    (
        "nn",
        "nn_codebook",
        "integer",
        "adapters",
        "layer_table",
        "nn_int8",
        "models",
        "data",
        "report",
        "resume",
        "walk",
        "pipeline",
        "sim",
        "rotate",
        "spinquant",
        "smooth",
        "allocate",
        "evaluate",
        "checkpoint",
        "export",
        "inspect_file",
        "safetensors_file",
        "weight_histogram",
    ),
    ("plot", "plot_*", "widgets", "quiz", "exercise*", "notebook", "show", "course", "doctor"),
    ("demo", "cli_bench", "cli_quantize", "cli", "__init__", "__main__"),
)
# Heavy or optional packages, and the only rooms that may import them.
ROOMS = {
    "matplotlib": ("plot", "widgets", "quiz", "report"),
    "anywidget": ("widgets", "quiz"),
    "ipywidgets": ("widgets", "quiz"),
    "IPython": ("widgets", "quiz", "notebook"),
    "transformers": ("models",),
    "bitsandbytes": ("export",),
    "triton": ("kernels",),
    "xllamacpp": (),
    "distributed": (),
    "yaml": (),
    "sklearn": ("models",),
}
# The one call upward: Report.plot() fetches its picture on demand, as the public contract asks.
UPWARD = {("report", "plot")}
FILES = sorted(PACKAGE.rglob("*.py"))


def room(module: str) -> str:
    return module.removeprefix("quantlab.").split(".")[0]


def row(name: str) -> int:
    for number, names in enumerate(ROWS):
        if any(Path(name).match(pattern) for pattern in names):
            return number
    raise AssertionError(f"quantlab/{name} stands in no row; add it to ROWS in {__file__}")


def imports(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} line {node.lineno}: write imports from the top"
            if node.module == "quantlab":
                found += [f"quantlab.{alias.name}" for alias in node.names]
            else:
                found.append(node.module or "")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_imports_run_downward(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    here = parts[0]
    for module in imports(path):
        if not module.startswith("quantlab."):
            continue
        downward = row(room(module)) <= row(here) or (here, room(module)) in UPWARD
        assert downward, f"{path.name} imports {module}, which is above it"
        sibling = here == "methods" == room(module) and len(parts) > 1
        assert not (sibling and module != f"quantlab.{'.'.join(parts)}"), f"{module}: a sibling"


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_heavy_packages_stay_in_their_rooms(path):
    here = path.relative_to(PACKAGE).with_suffix("").parts[0]
    for module in imports(path):
        package = module.split(".")[0]
        if package in ROOMS:
            assert here.split("_")[0] in ROOMS[package], f"{path.name} imports {package}"
