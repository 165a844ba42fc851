"""The comparison of all methods: its table says what its JSON holds, and so does the README."""

import json

import pytest
from test_contract import METHODS as CLASSES

from labs.experiments import methods


def made_up(ratios) -> dict:
    """Return a result whose cells have these ratios by method, in every scheme of one model."""
    result = methods.new_result()
    result["float"]["storyteller"] = {"perplexity": 14.0}
    for scheme in methods.SCHEMES:
        for name, ratio in ratios.items():
            cell = {"ratio": ratio, "ratio_se": 0.01, "seconds": 3.2}
            result["cells"][f"storyteller/{scheme}/{name}"] = cell
    return result


def test_every_method_takes_part():
    assert {type(method).__name__ for method in methods.METHODS.values()} == {
        cls.__name__ for cls in CLASSES
    }


def test_the_best_of_each_column_is_bold_and_a_missing_cell_is_named():
    result = made_up({"RTN": 1.5, "GPTQ": 1.2})
    text = methods.table(result)
    assert (
        "| storyteller (float: 14.00) | w4g64 | w3g64 | w2g32 | w4 | CPU seconds, w3g64 |" in text
    )
    assert "| RTN | 1.500 ± 0.010 |" in text
    assert "| GPTQ | **1.200 ± 0.010** |" in text
    assert "| AWQ | not measured |" in text
    assert "wins back" not in text  # not before all methods are known


def test_what_is_won_back_is_a_share_of_what_rounding_lost():
    result = made_up(dict.fromkeys(methods.METHODS, 1.5) | {"AdaRound": 1.1})
    assert methods.recovered("storyteller", "w3g64sym", result) == ("AdaRound", pytest.approx(0.8))
    assert "storyteller, w2g32: AdaRound wins back 80 %" in methods.table(result)


def test_a_second_run_measures_only_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(methods, "RESULTS", tmp_path / "methods.json")
    methods.save(made_up({"RTN": 1.5}))
    asked = []
    monkeypatch.setattr(
        methods, "measure_model", lambda name, wanted, _: asked.append((name, wanted))
    )
    methods.run("storyteller/*/RTN")
    assert asked == []
    methods.run("storyteller/w3g64sym/*Q")
    assert asked[-1] == (
        "storyteller",
        [("w3g64sym", name) for name in ("HQQ", "AWQ", "GPTQ", "AWQ+GPTQ")],  # no RTN
    )


def test_two_runs_side_by_side_keep_each_other_s_cells(monkeypatch, tmp_path):
    monkeypatch.setattr(methods, "RESULTS", tmp_path / "methods.json")
    methods.save(made_up({"RTN": 1.5}))
    methods.save(made_up({"GPTQ": 1.2}))  # read before the first was written
    cells = methods.read()["cells"]
    assert len(cells) == 2 * len(methods.SCHEMES)
    assert list(tmp_path.iterdir()) == [tmp_path / "methods.json"]


def test_cells_of_another_setting_are_not_mixed_in(monkeypatch, tmp_path):
    monkeypatch.setattr(methods, "RESULTS", tmp_path / "methods.json")
    result = made_up({"RTN": 1.5})
    methods.save(result | {"steps": 7})
    with pytest.raises(SystemExit, match="another 'steps'"):
        methods.run("*")


def test_the_readme_holds_the_table_of_the_json_once_it_is_complete():
    readme = (methods.ROOT / "README.md").read_text(encoding="utf-8")
    result = methods.new_result()
    if methods.RESULTS.exists():
        result = json.loads(methods.RESULTS.read_text(encoding="utf-8"))
    if not methods.complete(result):
        assert methods.BEGIN not in readme
        return
    inside = readme.partition(methods.BEGIN)[2].partition(methods.END)[0].strip()
    assert inside == methods.table(result)
