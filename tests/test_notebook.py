"""The notebook helpers: numbers that repeat, source on the page, no way out to the network."""

import os
import random
import socket
import subprocess
import sys
from decimal import Decimal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import quantlab as ql
from quantlab.notebook import digits, notebook, show, table

finite = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e12, max_value=1e12)


@given(finite.filter(lambda x: x == 0 or abs(x) > 1e-12), st.integers(1, 6))
def test_digits_are_within_half_a_unit_of_the_last_printed_digit(x, sig):
    shown = Decimal(digits(x, sig=sig).rstrip("~"))
    unit = Decimal(1).scaleb(Decimal(repr(x)).adjusted() - sig + 1) if x else Decimal(1)
    # rounding up to the next power of ten drops one digit more
    assert abs(shown - Decimal(repr(x))) <= unit * (10 if shown.adjusted() else 1) / 2


@given(st.floats(0.1, 999.0), st.integers(2, 5))
def test_an_unmarked_number_prints_the_same_after_a_small_disturbance(x, sig):
    text = digits(x, sig=sig)
    nudge = 10.0 ** (Decimal(repr(x)).adjusted() - sig + 1) * 0.0199
    if (
        not text.endswith("~")
        and Decimal(repr(x + nudge)).adjusted() == Decimal(repr(x)).adjusted()
    ):
        assert digits(x + nudge, sig=sig).rstrip("~") == text


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (0.0, "0"),
        (0.5, "0.500"),
        (-0.0449, "-0.0449"),
        (9.996, "10.0"),
        (12345.0, "12300"),
        (2.0e9, "2.00e+9"),
        (float("nan"), "nan"),
        (float("-inf"), "-infinity"),
        (7, "7"),
        (True, "True"),
        (123456, "123456"),
        (0.1235, "0.124~"),
        (0.12349, "0.123~"),
        (0.12348, "0.123"),
    ],
)
def test_digits_of_known_numbers(x, text):
    assert digits(x) == text


def test_digits_take_tensors_and_arrays_and_nested_lists():
    assert digits(torch.tensor([[0.5, 2.0], [0.25, 1.0]])) == "[[0.500, 2.00], [0.250, 1.00]]"
    assert digits(np.array([1, 2])) == "[1, 2]"
    assert digits(np.float64(0.5), sig=1) == "0.5"


def test_show_prints_source_with_one_line_docstrings():
    text = str(show(ql.rtn))
    assert text.startswith("# quantlab/methods/rtn.py\ndef rtn(")
    assert "Parameters\n" not in text
    assert text.count('"""') == 2
    compile(text, "shown", "exec")
    assert show(ql.rtn)._repr_markdown_() == f"```python\n{text}\n```"


def test_show_keeps_comments_and_shows_classes_with_their_methods():
    text = str(show(ql.Scheme))
    assert text.splitlines()[1] == "@dataclass(frozen=True)"
    assert "def encode" in text
    assert "References\n" not in text


def test_show_of_a_number_is_its_digits():
    assert show(2 / 3) == digits(2 / 3)


def test_tables_align_text_left_and_numbers_right():
    lines = str(table([("a", 10, 0.5), ("long", 2, 0.25)], ["name", "n", "x"])).splitlines()
    assert lines[0] == "name   n      x"
    assert lines[2] == "a     10  0.500"
    assert lines[3] == "long   2  0.250"


def test_a_table_without_rows_is_its_headers():
    assert str(table([], ["a", "bc"])) == "a  bc\n-  --"


def test_a_row_of_the_wrong_length_is_named():
    with pytest.raises(ValueError, match=r"row \(1,\) has 1 cells for 2 headers"):
        table([(1,)], ["a", "b"])


@pytest.mark.parametrize("number", [0, 26, -1])
def test_there_are_25_modules(number):
    with pytest.raises(ValueError, match="choose 1 to 25"):
        notebook(number)


def in_fresh_python(code, **environment):
    """Run code in a new interpreter: settings of `notebook` are global to a process."""
    words = {**os.environ, **environment}
    done = subprocess.run(
        [sys.executable, "-c", code], env=words, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


SETTINGS = """
import random, socket, numpy, torch, quantlab as ql
ql.notebook(4)
print(torch.get_num_threads(), random.random(), numpy.random.rand(), torch.rand(1).item())
for address in [("192.0.2.1", 80), ("example.invalid", 80)]:
    for attempt in (lambda: socket.create_connection(address, 1),
                    lambda: socket.socket().connect(address),
                    lambda: socket.socket().connect_ex(address)):
        try:
            attempt()
        except ConnectionError as error:
            print(error)
server = socket.create_server(("127.0.0.1", 0))
socket.create_connection(server.getsockname()).close()
"""


def test_a_setup_line_fixes_threads_and_seeds_and_blocks_the_network():
    lines = in_fresh_python(SETTINGS, QUANTLAB_OFFLINE="1", QUANTLAB_THREADS="2").splitlines()
    random.seed(0)
    numbers = f"{random.random()} {np.random.RandomState(0).rand()}"
    assert lines[0] == "Module 4 of 25 is ready: fixed seeds, no network needed."
    assert lines[1].startswith(f"2 {numbers} 0.4962")
    assert len(lines) == 8
    assert all("was refused because QUANTLAB_OFFLINE=1" in line for line in lines[2:])


def test_the_network_is_left_alone_unless_asked():
    code = "import socket, quantlab as ql\nc = socket.socket.connect\nql.notebook(1)\n"
    code += "print(socket.socket.connect is c)"
    assert in_fresh_python(code, QUANTLAB_OFFLINE="").splitlines()[-1] == "True"


def test_our_own_sockets_still_work_here():
    assert socket.gethostbyname("localhost").startswith("127.")
