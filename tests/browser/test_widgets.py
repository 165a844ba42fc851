"""All widgets in a real JupyterLab, over small synthetic tables."""

import nbformat
import pytest
from browser.probes import key_times, percentile, trapped

SETUP = """
import torch
from quantlab.scheme import Scheme
from quantlab.widgets import BitInspector, BlockExplorer, ClipSlider, ColumnSweep, MemoryDial
from quantlab.widgets import AdaScaleSliders, RatioSlider, RoundingMap, VectorRotator
from quantlab.widgets import MigrationSlider, ModuleTree, ThresholdSlider
from quantlab.widgets import LiveRoofline, NibblePacker, OverflowMeter, TrafficTracer
from quantlab.kernels.machine import Limits
from quantlab.methods.rtn import rtn
from quantlab.methods.gptq import gptq
"""
DIAL = """
rows = [
    dict(bits=b, group=g, bits_per_weight=b + 16 / (g or 256),
         nbytes=int(3.1e6 * (b + 16 / (g or 256)) / 8) + 1_000_000,
         perplexity=3.95 + 60 * 4.0 ** (1 - b) * (0.4 + (g or 256) / 400),
         text=f"Once upon a time there was a little model of {b} bits. It lived in a small house "
              "and liked to tell stories about a red ball.")
    for b in (2, 3, 4, 5, 6, 8) for g in (16, 32, 64, 128, None)
]
MemoryDial(rows, dict(nbytes=7_344_640, perplexity=3.952, text="Once upon a time"))
"""
CLIP = """
generator = torch.Generator().manual_seed(0)
ClipSlider(torch.randn(128, 128, generator=generator) * 0.05, start=(4, 70))
"""
SWEEP = """
W = torch.randn(8, 16, generator=generator, dtype=torch.float64) * 0.1
X = torch.randn(16, 200, generator=generator, dtype=torch.float64)
X[1:] += 0.9 * X[:-1]
ColumnSweep(W, X @ X.T / 200, Scheme(3, 8), step=6)
"""
RATIO = """
loud = X * torch.logspace(0, 2, 16, dtype=torch.float64)[:, None]
RatioSlider(W, loud @ loud.T / 200, loud.abs().mean(1), Scheme(3, 8))
"""
ADASCALE = """
row = torch.tensor([0.50, -0.30, 0.11, -0.62], dtype=torch.float64)
AdaScaleSliders(row, Scheme(4), torch.full((4, 4), 0.8).fill_diagonal_(1), element=1)
"""
ROUNDING = """
M = X @ X.T / 200
RoundingMap(W, gptq(W, M, Scheme(3)), M)
"""
THRESHOLD = """
ThresholdSlider(loud.T, W)
"""
MIGRATION = """
MigrationSlider(loud.T, W)
"""
ROTATOR = """
VectorRotator({"one loud": X[:, 0] + 20 * torch.eye(16, dtype=torch.float64)[3], "noise": X[:, 1]})
"""
TREE = """
import quantlab as ql
net = ql.digits_net().eval()
ModuleTree({"float": net, "int8": ql.quantize_dynamic(net)}, torch.zeros(1, 1, 8, 8), version=2)
"""
TRAFFIC = """
TrafficTracer(rtn(W[:, :16].float(), Scheme(4, 8)), torch.ones(16), tile=2, step=20)
"""
ROOFLINE = """
LiveRoofline(
    Limits(1, {"L2": 1e11, "L3": 7e10, "memory": 3e10}, 1.2e11, 4.7e11),
    {"hot": (3.5, 1.5e11), "cold": (3.5, 5e10)}, form="W4A8 g32", batch=4,
)
"""
TITLES = [
    "Live roofline",
    "Traffic tracer",
    "Memory dial",
    "Bit inspector",
    "Clip slider",
    "Column sweep",
    "Ratio slider",
    "AdaScale sliders",
    "Rounding map",
    "Nibble packer",
    "Overflow meter",
    "Threshold slider",
    "Migration slider",
    "Vector rotator",
    "Module tree",
    "Block explorer",
]


@pytest.fixture
def folder(tmp_path):
    """A folder with one notebook of all widgets between two headings."""
    folder = tmp_path / "course"
    folder.mkdir()
    cells = [nbformat.v4.new_markdown_cell("# Widgets")]
    widgets = (
        DIAL,
        "BitInspector()",
        CLIP,
        SWEEP,
        RATIO,
        ADASCALE,
        ROUNDING,
        "NibblePacker()",
        "OverflowMeter()",
        THRESHOLD,
        MIGRATION,
        ROTATOR,
        TREE,
        TRAFFIC,
        ROOFLINE,
        "BlockExplorer()",
    )
    for source in (SETUP, *widgets):
        cells.append(nbformat.v4.new_code_cell(source.strip()))
    cells.append(nbformat.v4.new_markdown_cell("## The end"))
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), folder / "w.ipynb")
    return folder


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_each_widget_draws_moves_and_keeps_its_keys_to_itself(lab, folder, tmp_path, dark):
    here = lab(folder, dark)
    here.open("w.ipynb")
    here.run_all()
    assert here.failures() == []
    for title in TITLES:
        selector = f'.ql-widget[aria-label="{title}"]'
        here.show(selector)
        root = here.page.locator(selector)
        name = title.replace(" ", "_").lower()
        root.screenshot(path=tmp_path / f"{name}_{'dark' if dark else 'light'}.png")
        picture, readout = root.locator("svg[role=img]"), root.locator(".ql-readout")
        assert picture.get_attribute("aria-label") == readout.inner_text()
        times = key_times(here.page, root, presses=8 if dark else 44)
        assert percentile(times, 0.95) <= 100, f"{title}: {sorted(times)[-5:]} ms"
        print(f"{title}: median {percentile(times, 0.5):.1f} ms, p95 {percentile(times, 0.95):.1f}")
        root.locator(".ql-toggle").click()
        assert root.locator("td").count() > 10
        root.screenshot(path=tmp_path / f"{name}_table.png")
        if not dark:
            assert trapped(here, root) == []
    assert here.errors == []
    print(tmp_path)


def test_the_number_box_is_the_slider_s_twin_and_python_hears_of_it(lab, folder):
    here = lab(folder)
    here.open("w.ipynb")
    here.run_all()
    here.show('.ql-widget[aria-label="Clip slider"]')
    root = here.page.locator('.ql-widget[aria-label="Clip slider"]')
    box, slider = root.locator("input[type=number]"), root.locator("input[type=range]")
    box.fill("41.3")
    box.press("Enter")
    assert slider.get_attribute("aria-valuetext") == "41 %"
    assert box.input_value() == "41"
    assert "clip at 41 %" in root.locator(".ql-readout").inner_text()
    box.press("ArrowUp")
    assert slider.get_attribute("aria-valuetext") == "42 %"
    root.locator("select").select_option(label="2")
    assert root.locator(".ql-readout").inner_text().startswith("2 bits, clip at 42 %")


def test_the_explorer_follows_the_keyboard_and_the_mouse_both_ways(lab, folder):
    here = lab(folder)
    here.open("w.ipynb")
    here.run_all()
    selector = '.ql-widget[aria-label="Block explorer"]'
    here.show(selector)
    root = here.page.locator(selector)
    readout = root.locator(".ql-readout")
    bytes_, codes = root.locator(".ql-cells").first, root.locator(".ql-cells").last
    assert bytes_.locator(".ql-cell").count() == 18
    bytes_.focus()
    here.page.keyboard.press("ArrowRight")
    assert readout.inner_text().startswith("Q4_0 byte 3 of 18")
    lit = codes.locator(".ql-cell[data-lit]")
    assert [cell.get_attribute("id").split("-")[-1] for cell in lit.all()] == ["1", "17"]
    active = bytes_.get_attribute("aria-activedescendant")
    assert root.locator(f"#{active}").get_attribute("aria-label").startswith("Q4_0 byte 3")
    codes.locator(".ql-cell").nth(17).hover()
    assert readout.inner_text().startswith("Q4_0 weight 17 of 32")
    lit = bytes_.locator(".ql-cell[data-lit]")
    assert [cell.get_attribute("id").split("-")[-1] for cell in lit.all()] == ["0", "1", "3"]
    root.locator("select").select_option(label="Q4_K")
    assert bytes_.locator(".ql-cell").count() == 144
    bytes_.locator(".ql-cell").nth(4).hover()
    assert codes.locator(".ql-cell[data-lit]").count() == 64  # a scale, and a part of another
    assert here.errors == []


def test_the_roof_tells_which_limit_counts(lab, folder):
    here = lab(folder)
    here.open("w.ipynb")
    here.run_all()
    here.show('.ql-widget[aria-label="Live roofline"]')
    root = here.page.locator('.ql-widget[aria-label="Live roofline"]')
    readout, box = root.locator(".ql-readout"), root.locator("input[type=number]")
    assert readout.inner_text().startswith("W4A8 g32, batch 4, cold: ")
    assert "Bytes are the limit" in readout.inner_text()
    box.fill("16")
    box.press("Enter")
    assert "Operations are the limit: at most 470 billion" in readout.inner_text()
    root.locator("select").first.select_option(label="float32")
    assert readout.inner_text().startswith("float32, batch 16, cold: ")
    assert "at most 120 billion" in readout.inner_text()
    assert here.errors == []


def test_the_packer_moves_one_digit_and_the_meter_crosses_the_line(lab, folder):
    here = lab(folder)
    here.open("w.ipynb")
    here.run_all()
    here.show('.ql-widget[aria-label="Nibble packer"]')
    root = here.page.locator('.ql-widget[aria-label="Nibble packer"]')
    readout = root.locator(".ql-readout")
    assert readout.inner_text().endswith(
        "bytes 21 43 65 87 in memory, the little-endian word 87654321."
    )
    root.locator("select").first.select_option(label="AWQ")
    root.locator("select").last.select_option(label="3")
    box = root.locator("input[type=number]")
    box.fill("15")
    box.press("Enter")
    assert readout.inner_text().endswith(
        "bytes 31 75 F2 86 in memory, the little-endian word 86F27531."
    )
    here.show('.ql-widget[aria-label="Overflow meter"]')
    root = here.page.locator('.ql-widget[aria-label="Overflow meter"]')
    readout = root.locator(".ql-readout")
    assert "32,768, and -32,768 is what is left" in readout.inner_text()
    root.locator("input[type=range]").press("ArrowLeft")
    assert (
        "511 terms (511 are safe): the worst codes add up to 32,704, which fits"
        in readout.inner_text()
    )
    root.locator("select").last.select_option(label="int32")
    assert readout.inner_text().startswith("int4 × int4 in int32, 524,288 terms")
    assert here.errors == []
