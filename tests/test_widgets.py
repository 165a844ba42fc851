"""Widgets without a browser: tables, positions, sentences, bundles, and rules for the scripts."""

import json
import re
from pathlib import Path

import pytest
import torch

import quantlab.widgets.base as base
from quantlab.floats import BF16, FP4_E2M1, FP8_E4M3
from quantlab.methods.gptq import gptq
from quantlab.plot_style import PALETTE
from quantlab.scheme import Scheme
from quantlab.tensor import output_error
from quantlab.widgets import BitInspector, ClipSlider, ColumnSweep, MemoryDial
from quantlab.widgets.bit_inspector import FORMATS
from quantlab.widgets.clip_slider import clip_errors
from quantlab.widgets.column_sweep import sweep

FOLDER = Path(base.__file__).parent
SCRIPTS = sorted(FOLDER.glob("*.js"))
REFERENCE = {"nbytes": 8_000_000, "perplexity": 4.0, "text": "Once upon a time"}


def dial_rows(groups=(32, None)):
    return [
        {
            "bits": bits,
            "group": group,
            "bits_per_weight": bits + 16 / (group or 256),
            "nbytes": bits * 500_000,
            "perplexity": 4 + 16 / 4**bits,
            "text": f"{bits} bits",
        }
        for bits in (2, 4, 8)
        for group in groups
    ]


def matrix(seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(8, 16, generator=generator, dtype=torch.float64)
    inputs = torch.randn(16, 100, generator=generator, dtype=torch.float64)
    inputs[1:] += 0.9 * inputs[:-1]
    return weight, inputs @ inputs.T / 100


@pytest.fixture(scope="module")
def widgets():
    weight, hessian = matrix()
    values = torch.randn(4096, generator=torch.Generator().manual_seed(1))
    return {
        "dial": MemoryDial(dial_rows(), REFERENCE),
        "bits": BitInspector(),
        "clip": ClipSlider(values),
        "sweep": ColumnSweep(weight, hessian, Scheme(3, 8)),
    }


NAMES = ["dial", "bits", "clip", "sweep"]


@pytest.mark.parametrize("name", NAMES)
def test_a_table_is_small_plain_json(widgets, name):
    text = json.dumps(widgets[name].table, allow_nan=False)
    assert len(text) <= 1_000_000
    assert json.loads(text)["choices" if name != "bits" else "formats"]


@pytest.mark.parametrize("name", NAMES)
def test_a_widget_shows_as_view_image_and_one_line(widgets, name):
    widget = widgets[name]
    data, about = widget._repr_mimebundle_()
    assert set(data) == {base.VIEW, "image/png", "text/plain"}
    assert data["text/plain"] == widget.sentence == about["image/png"]["alt"]
    assert "\n" not in data["text/plain"]
    assert data[base.VIEW]["model_id"] == widget.live().model_id


@pytest.mark.parametrize("name", NAMES)
def test_without_anywidget_the_picture_remains(widgets, name, monkeypatch):
    monkeypatch.setattr(base, "find_spec", lambda module: None)
    data, _ = widgets[name]._repr_mimebundle_()
    assert set(data) == {"image/png", "text/plain"}


def test_an_oversized_table_is_refused():
    class Big(MemoryDial):
        def __init__(self):
            base.Widget.__init__(self, {"choices": {}, "text": "x" * 1_000_001})

    with pytest.raises(ValueError, match=r"table of Big takes .* pass fewer"):
        Big()


def test_moving_reaches_the_browser_and_the_browser_s_moves_come_back():
    dial = MemoryDial(dial_rows(), REFERENCE)
    dial.move(bits=2)
    view = dial.live()
    assert view.position == {"bits": 2, "group": 0}
    dial.move(bits=8)
    assert view.position["bits"] == 8
    view.position = {"bits": 4, "group": 32}  # as the browser does
    assert dial.position == {"bits": 4, "group": 32}
    assert dial.sentence.startswith("4 bits in groups of 32")


def test_a_position_that_does_not_exist_is_named():
    dial = MemoryDial(dial_rows(), REFERENCE)
    with pytest.raises(ValueError, match="bits is 5; choose one of 2, 4, 8"):
        dial.move(bits=5)
    with pytest.raises(ValueError, match="no control 'width'; choose bits, group"):
        dial.move(width=4)
    assert dial.position == {"bits": 4, "group": 0}


def test_the_dial_says_what_it_costs():
    dial = MemoryDial(dial_rows(), REFERENCE, bits=4, group=32)
    assert dial.sentence == (
        "4 bits in groups of 32: 4.5 bits per weight, 2.00 MB (4.00 times smaller than float), "
        "perplexity 4.062 against 4 (+1.6 %)."
    )


def test_the_dial_needs_a_full_grid_and_all_fields():
    with pytest.raises(ValueError, match=r"no row with bits, group = \(2, 32\)"):
        MemoryDial(dial_rows()[1:], REFERENCE)
    row = dial_rows()[0]
    del row["nbytes"]
    with pytest.raises(ValueError, match="lacks 'nbytes'"):
        MemoryDial([row], REFERENCE)


def test_every_formula_of_the_inspector_computes_its_value():
    table = BitInspector().table["formats"]
    assert len(table) == len(FORMATS)
    for entry in table.values():
        for text, sentence in zip(entry["values"], entry["sentences"], strict=True):
            if text in ("NaN", "Infinity", "-Infinity"):
                assert sentence.endswith(f": {text}.")
                continue
            formula, value = sentence.split(": ")[-1].rstrip(".").split(" = ")
            assert value == text
            assert eval(formula.replace("^", "**").replace("×", "*")) == float(text)


def test_the_inspector_s_bits_are_the_code():
    inspector = BitInspector([FP8_E4M3], code=0b1_1010_011)
    assert "bits 1 1010 011:" in inspector.sentence
    assert inspector.sentence.endswith("= -11.")


def test_another_format_starts_at_its_code_of_one():
    inspector = BitInspector(code=255)
    inspector.move(format="FP4_E2M1")
    assert inspector.position == {"format": "FP4_E2M1", "code": 2}
    assert FP4_E2M1.values()[2] == 1
    inspector.move(format="INT4 (code - 8)")
    assert inspector.sentence.endswith("1 × (9 - 8) = 1.")
    with pytest.raises(ValueError, match="code is 16"):
        inspector.move(code=16)


def test_the_inspector_refuses_what_it_cannot_list():
    with pytest.raises(ValueError, match="has 16 bits; the inspector shows up to 8"):
        BitInspector([BF16])
    with pytest.raises(ValueError, match="pass a symmetric scheme"):
        BitInspector([Scheme(4, symmetric=False)])


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_clipping_and_rounding_add_up_to_the_error(bits):
    values = torch.randn(500, generator=torch.Generator().manual_seed(bits)).double()
    for clip in (0.3, 1.0, 5.0):
        middle = 2 ** (bits - 1) - 1
        grid = torch.arange(-middle, middle + 1).double() * clip / middle
        nearest = grid[(values[:, None] - grid).abs().argmin(1)]  # the slow twin
        whole = (nearest - values).square().mean()
        clipping, rounding, decibels = clip_errors(values, bits, clip)
        assert clipping + rounding == pytest.approx(whole.item(), rel=1e-12)
        expected = 10 * torch.log10(values.square().mean() / whole).item()
        assert decibels == pytest.approx(expected, abs=1e-9)


def test_the_best_4_bit_clip_of_a_gaussian_is_near_2_48_sigma():
    values = torch.randn(100_000, generator=torch.Generator().manual_seed(0)).double()
    slider = ClipSlider(values, bits=[4])
    _, clipping, rounding, decibels, _ = slider.table["curves"]["4"]
    best = min(range(100), key=lambda k: clipping[k] + rounding[k])
    clip = (best + 1) / 100 * slider.table["largest"]
    assert clip == pytest.approx(2.48, abs=0.06)  # one position is 0.04 sigma wide
    assert decibels[best] == pytest.approx(18.90, abs=0.1)  # the sample's own spread


def test_the_clip_slider_says_its_position(widgets):
    widgets["clip"].move(bits=2, clip=50)
    assert widgets["clip"].sentence.startswith("2 bits, clip at 50 % of the largest weight")
    with pytest.raises(ValueError, match="pass 1 to 131,072, not all 0"):
        ClipSlider(torch.zeros(4))


@pytest.mark.parametrize("scheme", ["w3g8sym", "w4g4asym", "w2"])
def test_the_last_state_of_the_sweep_is_gptq(scheme):
    weight, hessian = matrix(seed=3)
    states = sweep(weight, hessian, Scheme.parse(scheme))
    expected = gptq(weight, hessian, Scheme.parse(scheme)).dequantize()
    torch.testing.assert_close(states[-1], expected, rtol=0, atol=1e-12)
    assert states[0].equal(weight)


def test_the_sweep_moves_only_columns_to_the_right():
    weight, hessian = matrix()
    states = sweep(weight, hessian, Scheme(3, 8))
    for step in range(1, 17):
        change = (states[step] - states[step - 1]).abs().amax(0)
        assert (change[: step - 1] == 0).all()
        assert (change[step - 1 :] > 0).all()


def test_the_sweep_s_errors_are_the_library_s(widgets):
    weight, hessian = matrix()
    states = sweep(weight, hessian, Scheme(3, 8))
    widget = widgets["sweep"]
    for step, value in enumerate(widget.table["errors"]["GPTQ"]):
        expected = output_error(weight, states[step], hessian)
        assert value == pytest.approx(expected, rel=1e-4, abs=1e-12)  # 5 digits are sent
    assert widget.table["errors"]["GPTQ"][-1] < widget.table["errors"]["RTN"][-1]
    widget.move(step=16)
    assert widget.sentence.startswith("16 of 16 columns rounded: output error")


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_keeps_the_house_rules(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    assert re.findall(r"https?://\S+", text) in ([], ['http://www.w3.org/2000/svg";'])
    assert not re.search(r"\b(fetch|XMLHttpRequest|eval|import)\b|requestAnimationFrame", text)
    # Elements come from html(), which sets the attribute; nothing else may make one.
    made = text.count("createElement(")
    assert made == (1 if path.name == "frame.js" else 0)


def test_focusable_elements_keep_their_keys():
    frame = (FOLDER / "frame.js").read_text(encoding="utf-8")
    focusable = re.search(r"FOCUSABLE = new Set\((.*?)\)", frame).group(1)
    assert json.loads(focusable) == ["input", "select", "button"]
    assert '"data-lm-suppress-shortcuts", "true"' in frame
    assert 'root.addEventListener("keydown", (event) => event.stopPropagation())' in frame


def test_no_banned_interface_is_used():
    for path in FOLDER.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"\b(interact|Output|clear_output|display)\b", text), path.name


def test_the_style_sheet_has_the_palette_of_the_figures():
    css = (FOLDER / "style.css").read_text(encoding="utf-8")
    colors = dict(re.findall(r"--ql-(\w+): (#\w{6});", css))
    assert colors == {name: PALETTE[name] for name in colors}
    assert len(colors) == 6
    assert "animation" not in css
    assert "transition" not in css
