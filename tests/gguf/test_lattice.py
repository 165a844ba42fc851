"""The IQ1, IQ2 and IQ3 types: their lists of points, and floats equal to ggml's in every bit."""

import importlib.util
from pathlib import Path

import ggml
import numpy as np
import pytest

from quantlab import gguf
from quantlab.gguf import lattice_points as lattice
from tests.gguf import reference_iq
from tests.gguf.rows import importance, mixed_rows

NAMES = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S")
each = pytest.mark.parametrize("name", NAMES)
QUICK = ("IQ2_XXS", "IQ3_XXS", "IQ3_S")
SIZES = {
    "IQ2_XXS": (256, 8),
    "IQ2_XS": (512, 8),
    "IQ2_S": (1024, 8),
    "IQ3_XXS": (256, 4),
    "IQ3_S": (512, 4),
    "IQ1_S": (2048, 8),
}
SCRIPT = Path(__file__).parents[2] / "labs" / "experiments" / "gguf_lattices.py"


def points_of(name):
    return lattice.lattice("IQ1_S" if name == "IQ1_M" else name)


def random_blocks(name, count, seed=0):
    """Return (count, bytes) of random bytes whose scale is any finite float16."""
    rng = np.random.default_rng(seed)
    layout = gguf.TYPES[name].layout
    d = rng.integers(0, 2**16, 2 * count + 100, np.uint16)
    d = d[np.isfinite(d.view(np.float16))][:count]
    blocks = rng.integers(0, 256, (count, layout.itemsize), np.uint8).view(layout)[:, 0]
    if name == "IQ1_M":
        nibbles = d[:, None] >> np.array([0, 4, 8, 12], np.uint16) & 15
        blocks["scales"] = blocks["scales"] & 0xFFF | nibbles << 12
    else:
        blocks["d"] = d.view(np.float16)
    return blocks.view(np.uint8).reshape(count, -1)


def same_bits(ours, theirs):
    np.testing.assert_array_equal(ours.view(np.uint32), theirs.view(np.uint32))


@each
def test_random_bytes_read_as_ggml_reads_them(name):
    data = random_blocks(name, 3000).reshape(1000, -1)
    same_bits(gguf.dequantize(data, name), ggml.dequantize(data, gguf.TYPES[name].id, 768))


@each
def test_random_bytes_read_as_the_slow_twin_reads_them(name):
    data = random_blocks(name, 40, seed=1)
    twin = [reference_iq.lattice_weights(block.tobytes(), name, points_of(name)) for block in data]
    same_bits(gguf.dequantize(data, name), np.array(twin))


@pytest.mark.parametrize(
    "name",
    [  # ggml first lists the neighbors of each point: half a minute for IQ1
        pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in NAMES
    ],
)
def test_blocks_that_ggml_quantized_read_alike(name):
    rows = mixed_rows(12, 512, 0)
    data = ggml.quantize(rows, gguf.TYPES[name].id, importance(512))
    ours = gguf.dequantize(data, name)
    same_bits(ours, ggml.dequantize(data, gguf.TYPES[name].id, 512))
    assert np.square(ours - rows)[0].mean() < 0.4 * np.square(rows)[0].mean()  # they are weights


@pytest.mark.parametrize("name", SIZES)
def test_a_lattice_holds_different_points_of_its_levels(name):
    points = lattice.lattice(name)
    assert points.shape == SIZES[name]
    assert len(np.unique(points, axis=0)) == len(points)
    assert set(points.ravel().tolist()) == set(lattice.LEVELS[name])


@pytest.mark.parametrize("name", SIZES)
def test_the_script_reads_the_committed_lattices_out_of_ggml(name):
    ggml.library()
    spec = importlib.util.spec_from_file_location(SCRIPT.stem, SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    levels = np.array(lattice.LEVELS[name])
    np.testing.assert_array_equal(levels[script.read_lattice(name)], lattice.lattice(name))


def test_stored_signs_come_back_even():
    assert len(lattice.EVEN_SIGNS) == len(set(lattice.EVEN_SIGNS.tolist())) == 128
    assert all(int(signs).bit_count() % 2 == 0 for signs in lattice.EVEN_SIGNS)


@each
def test_layouts_have_the_documented_size(name):
    assert gguf.TYPES[name].layout.itemsize == ggml.row_bytes(gguf.TYPES[name].id, 256)
    assert gguf.TYPES[name].__doc__.startswith(f"256 weights in {gguf.TYPES[name].layout.itemsize}")


@each
def test_threads_do_not_change_the_floats(name):
    data = random_blocks(name, 300).reshape(100, -1)
    same_bits(gguf.dequantize(data, name, threads=2), gguf.dequantize(data, name, threads=1))


@each
def test_a_damaged_scale_stays_visible_and_warns_nobody(name):
    data = np.full((1, gguf.TYPES[name].layout.itemsize), 0xFF, np.uint8)  # d is NaN
    data[0, 1::2] = 0x7D if name != "IQ1_M" else 0xFF  # a signaling one
    assert np.isnan(gguf.dequantize(data, name)).all()
