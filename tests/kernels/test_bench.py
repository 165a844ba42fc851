"""The benchmark's harness: it refuses wrong kernels, rotates weights, and writes what it says."""

import json
import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from quantlab import cli
from quantlab.kernels import bandwidth, bench, contest, peers
from quantlab.kernels.bandwidth import calibrated, parse_size, read_bandwidth, together
from quantlab.kernels.bench import Bench, race
from quantlab.kernels.bench_text import text
from quantlab.kernels.contest import Calls, Contestant, Product, WrongKernel, validate
from quantlab.kernels.ggml_peer import Ggml, GgmlError
from quantlab.kernels.machine import Bystanders, Limits, Machine
from quantlab.kernels.own import own_contestants
from quantlab.kernels.own_blocks import own_block_contestants
from quantlab.kernels.peak import byte_peak, float_peak
from quantlab.kernels.peers import float_peers, int4_peers, int8_peers
from quantlab.kernels.read_only import add_up_shared, read_only
from quantlab.scheme import Scheme

SHORT = {"rounds": 5, "turn": 0.0, "patience": 0}
LIMITS = Limits(1, {"L2": 100e9, "L3": 50e9, "memory": 20e9}, 100e9, 400e9)
MACHINE = Machine("test", "portable", 1, {"L2": 1, "L3": 2}, "", "", {}, {}, (LIMITS,))
PRODUCT = Product.random(64, 128, 3, seed=1)


def contestant(weight=None, answer=None, **changes):
    """Make one that multiplies with ``weight``, or gives ``answer``."""
    weight = PRODUCT.weight if weight is None else weight

    def call():
        return PRODUCT.x @ weight.T if answer is None else answer

    fields = {
        "name": "planted",
        "activations": "float32",
        "weight_bytes": 4 * weight.numel(),
        "truth": PRODUCT.truth(PRODUCT.weight),
        "prepare": lambda sets: Calls([call] * sets),
        "bits": 32.0,
    }
    return Contestant(**(fields | changes))


def refusal(one):
    """Return why a contestant is refused."""
    run = Bench(MACHINE)
    assert run.run(PRODUCT, [one], caches=["hot"], **SHORT) == []
    return run.refused[one.name]


# ---------------------------------------------------------------- validation


def test_the_error_beside_a_time_is_the_relative_error_of_the_whole_result():
    truth = PRODUCT.truth(PRODUCT.weight)
    assert validate(contestant(), truth) == 0
    assert validate(contestant(), truth * (1 + 1e-4)) == pytest.approx(1e-4)


@pytest.mark.parametrize("activations", ["float32", "bfloat16", "int8 per 32"])
def test_one_wrong_output_among_all_is_refused_whatever_the_tolerance(activations):
    answer = torch.from_numpy(PRODUCT.truth(PRODUCT.weight))
    answer[2, 17] += 0.2 * answer.square().mean().sqrt()
    assert "at (2, 17)" in refusal(contestant(answer=answer, activations=activations))


def test_a_kernel_that_forgets_the_last_column_is_refused():
    weight = PRODUCT.weight.clone()
    weight[:, -1] = 0
    assert "is right; allowed is" in refusal(contestant(weight))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_results_that_are_no_numbers_are_refused(bad):
    answer = torch.from_numpy(PRODUCT.truth(PRODUCT.weight))
    answer[0, 0] = bad
    assert "1 NaN or Inf" in refusal(contestant(answer=answer))


def test_a_result_of_another_shape_is_refused():
    answer = torch.from_numpy(PRODUCT.truth(PRODUCT.weight)).T
    assert "shape (64, 3), not (3, 64)" in refusal(contestant(answer=answer))


def test_int8_activations_must_equal_the_definition_beyond_their_tolerance():
    truth = PRODUCT.truth(PRODUCT.weight)
    near = truth + 1e-3 * np.sqrt(np.mean(truth**2))
    one = contestant(activations="int8 per 32", exact=truth)
    assert validate(replace(one, exact=None), near) > 0
    with pytest.raises(WrongKernel, match="allowed is 1e-05"):
        validate(one, near)


def test_a_refused_contestant_does_not_stop_the_others_and_is_never_timed():
    run, timed = Bench(MACHINE), []

    class Watched(Calls):
        def turn(self, calls, threads, *, cold):
            timed.append(1)
            return super().turn(calls, threads, cold=cold)

    wrong = contestant(name="wrong", answer=torch.zeros(3, 64))
    wrong = replace(wrong, prepare=lambda sets: Watched([lambda: torch.zeros(3, 64)]))
    rows = run.run(PRODUCT, [wrong, contestant()], caches=["hot"], **SHORT)
    assert [row.name for row in rows] == ["planted"]
    assert list(run.refused) == ["wrong"]
    assert not timed
    assert "refused: wrong gives 0" in text(run)


# ---------------------------------------------------------------- timing


def test_cold_calls_go_around_all_weights_and_hot_calls_stay_with_one():
    used = []
    calls = Calls([lambda k=k: used.append(k) for k in range(5)])
    calls.turn(6, 1, cold=True)
    calls.turn(2, 1, cold=True)
    assert used == [k % 5 for k in range(12)], "8 timed calls and two warm-ups of 2"
    used.clear()
    assert len(calls.turn(3, 1, cold=False)) == 3
    assert used == [0] * 5


@pytest.mark.parametrize("count", [1, 2, 3])
def test_reading_in_parts_reads_every_number_once(count):
    numbers = np.arange(64 * 7, dtype=np.uint64)
    sums = np.zeros(count, np.uint64)
    add_up_shared(numbers, sums, 64)
    assert int(sums.sum()) == int(numbers.sum())
    assert (sums > 0).all()


def test_the_reader_takes_part_with_as_many_bytes_and_claims_nothing():
    reader = read_only(PRODUCT, 64 * 8 * 5 + 7)
    assert reader.weight_bytes == 64 * 8 * 5
    assert not reader.prepare(2).result().any()
    with pytest.raises(ValueError, match="asked to read 511 bytes"):
        read_only(PRODUCT, 511)


def test_cold_weights_are_more_than_four_caches(monkeypatch):
    monkeypatch.setattr(contest, "cache_bytes", lambda level: 1000)
    for nbytes in (10, 999, 1000, 4000, 10**6):
        sets = contest.weight_sets(nbytes)
        assert sets >= 2
        assert sets * nbytes > 4000
    with pytest.raises(ValueError, match="weight of 7 bytes needs 572 copies to be cold"):
        contest.weight_sets(7)


def test_each_contestant_has_a_turn_in_each_round_and_the_order_changes():
    order = []

    class Noted(Calls):
        def __init__(self, name):
            super().__init__([lambda: None])
            self.name = name

        def turn(self, calls, threads, *, cold):
            order.append(self.name)
            return super().turn(calls, threads, cold=cold)

    times = race({name: Noted(name) for name in "abcd"}, rounds=8, turn=0.0)
    rounds = ["".join(order[k : k + 4]) for k in range(4, len(order), 4)]
    assert [sorted(turn) for turn in rounds] == [list("abcd")] * 8
    assert len(set(rounds)) > 1
    assert {name: len(turns) for name, turns in times.items()} == dict.fromkeys("abcd", 8)


def test_a_row_says_what_its_samples_say(monkeypatch):
    def fixed(entries, **options):
        return {name: [[1e-3, 2e-3, 3e-3], [2e-3, 4e-3, 2e-3]] for name in entries}

    monkeypatch.setattr(bench, "race", fixed)
    run = Bench(MACHINE)
    [row] = run.run(PRODUCT, [contestant()], caches=["hot"], **SHORT)
    assert row.times.minimum == 1e-3
    assert row.times.median == 2e-3
    assert row.rounds == (2e-3, 2e-3)
    assert row.moved == 4 * (64 * 128 + 3 * 64 + 3 * 128)
    assert row.bandwidth == row.moved / 2e-3
    assert row.speed == 2 * 64 * 128 * 3 / 2e-3
    assert row.bandwidth_share == row.bandwidth / 100e9, "it fits the second cache"
    assert row.peak_share == row.speed / 100e9


def test_hot_bytes_are_measured_against_the_cache_that_holds_them(monkeypatch):
    monkeypatch.setattr("quantlab.kernels.machine.cache_bytes", lambda level: 1000 * level)
    two = replace(LIMITS, threads=2)
    assert [LIMITS.bandwidth(n, "hot") for n in (2000, 3000, 3001)] == [100e9, 50e9, 20e9]
    assert two.bandwidth(2500, "hot") == 100e9
    assert LIMITS.bandwidth(1, "cold") == 20e9
    peaks = [LIMITS.peak(kind) for kind in ("float32", "int8 per 32", "bfloat16")]
    assert peaks == [100e9, 400e9, None]


def test_a_disturbed_race_is_run_again_and_the_quietest_counts():
    def rows(share):
        return [replace(row, others=share)]

    [row] = Bench(MACHINE).run(PRODUCT, [contestant()], caches=["hot"], **SHORT)
    shares = iter([0.5, 0.2, 0.9, 0.3])
    [best] = bench.undisturbed(lambda: rows(next(shares)), 2)
    assert best.others == 0.2
    assert next(shares) == 0.3
    for quiet in (0.0, 0.05, None):
        shares = iter([quiet])
        assert bench.undisturbed(lambda: rows(next(shares)), 2)[0].others == quiet  # noqa: B023


def test_limits_measured_again_only_rise():
    run = Bench(MACHINE)
    [row] = run.run(PRODUCT, [contestant()], caches=["hot"], **SHORT)
    higher = replace(LIMITS, read=LIMITS.read | {"L2": 200e9, "L3": 1e9}, float32=1.0, int8=None)
    best = LIMITS.best(higher)
    assert best.read == {"L2": 200e9, "L3": 50e9, "memory": 20e9}
    assert (best.float32, best.int8) == (100e9, 400e9)
    again = bench.with_shares(row, replace(MACHINE, limits=(best,)))
    assert again.bandwidth_share == pytest.approx(row.bandwidth_share / 2)


def test_the_number_of_threads_is_given_back():
    before = torch.get_num_threads()
    two = replace(MACHINE, limits=(LIMITS, replace(LIMITS, threads=before + 1)))
    Bench(two).run(PRODUCT, [contestant()], caches=["hot"], threads=[before + 1], **SHORT)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"caches": ["warm"]}, "cache is 'warm'"),
        ({"threads": [3]}, "no limits for 3 threads; measured: 1"),
        ({"rounds": 0}, "rounds is 0"),
        ({"turn": math.nan}, "turn nan"),
        ({"patience": -1}, "patience -1"),
    ],
)
def test_runs_that_make_no_sense_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        Bench(MACHINE).run(PRODUCT, [contestant()], **(SHORT | {"caches": ["hot"]} | options))


# ---------------------------------------------------------------- the machine


def test_speeds_are_positive_and_their_numbers_are_checked():
    assert read_bandwidth(1 << 16, 2, seconds=0.001, repeats=1) > 0
    assert float_peak(2, seconds=0.001, repeats=1) > 0
    assert (byte_peak(seconds=0.001, repeats=1) or 1) > 0
    with pytest.raises(ValueError, match="asked to read 100 bytes with 1 threads"):
        read_bandwidth(100)
    for bad in ({"seconds": 0}, {"repeats": 0}, {"threads": 0}, {"seconds": math.inf}):
        with pytest.raises(ValueError, match="all are above 0"):
            read_bandwidth(1 << 20, **bad)
        with pytest.raises(ValueError, match="all are above 0"):
            float_peak(**bad)


def test_reading_adds_up_all_numbers_of_all_passes():
    numbers = np.arange(640, dtype=np.uint64)
    total = int(numbers.sum())
    assert bandwidth.add_up(numbers, 1) == total
    assert bandwidth.add_up(numbers, 2) == total ^ (total + 1)


@pytest.mark.parametrize("each", [1e-6, 1e-3, 0.3, 2.0])
def test_calibration_fills_the_time_that_was_asked_for(each):
    times = calibrated(lambda count: each * count, seconds=1.0)
    assert times == max(1, int(1 / each + 1e-6)) or abs(times * each - 1) < 0.01


def test_jobs_run_together_and_the_span_holds_all():
    seen = []
    assert together([lambda k=k: seen.append(k) for k in range(3)]) > 0
    assert sorted(seen) == [0, 1, 2]


def test_cache_sizes_are_read_as_the_system_writes_them(tmp_path, monkeypatch):
    for name, level, kind, size in (
        ("index0", 1, "Data", "32K"),
        ("index1", 1, "Instruction", "32K"),
        ("index2", 2, "Unified", "512K"),
        ("index3", 3, "Unified", "16M"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "level").write_text(f"{level}\n")
        (folder / "type").write_text(f"{kind}\n")
        (folder / "size").write_text(f"{size}\n")
    monkeypatch.setattr(bandwidth, "CACHES", tmp_path)
    assert [bandwidth.cache_bytes(level) for level in (2, 3)] == [512 << 10, 16 << 20]
    (tmp_path / "index3" / "size").write_text("much")
    assert bandwidth.cache_bytes(3) == bandwidth.L3
    monkeypatch.setattr(bandwidth, "CACHES", tmp_path / "none")
    assert bandwidth.cache_bytes(2) == bandwidth.L2
    assert parse_size("3G") == 3 << 30


def test_bystanders_are_told_from_ourselves(monkeypatch):
    watch = Bystanders()
    watch.began = (0.0, 100.0, 10.0)
    monkeypatch.setattr(watch, "reading", lambda: (10.0, 110.0, 12.0))
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    assert watch.share() == pytest.approx((10 - 2) / (10 * 4))
    monkeypatch.setattr(watch, "reading", lambda: (0.05, 110.0, 12.0))
    assert watch.share() is None, "too short to tell"
    monkeypatch.setattr(watch, "reading", lambda: None)
    assert watch.share() is None


def test_a_system_that_tells_nothing_is_no_error(monkeypatch, tmp_path):
    monkeypatch.setattr("quantlab.kernels.machine.PROC", tmp_path)
    assert Bystanders().share() is None
    assert Machine.measure(threads=()).cpu


# ---------------------------------------------------------------- who takes part


def test_ours_and_torchs_products_are_right():
    product = Product.random(64, 256, 2)
    run = Bench(MACHINE)
    schemes = [Scheme(4, 32), Scheme(4, 64, symmetric=False), Scheme(8, 128), Scheme(4)]
    contestants = [
        *float_peers(product),
        *own_contestants(product, schemes),
        *(peers.int4pack(product, size) for size in (32, 128)),
        *int8_peers(product),
        *own_block_contestants(product, ["Q4_0", "Q6_K"]),
    ]
    rows = run.run(product, contestants, caches=["hot"], **SHORT)
    assert not run.refused
    assert [row.name for row in rows] == [one.name for one in contestants]
    by_name = {row.name: row for row in rows}
    assert by_name["torch int4pack g32"].bits == 5
    assert by_name["quantlab W4A16 g32 sym"].error < 1e-6
    assert 1e-3 < by_name["quantlab W4A8 g32 sym"].error < 1e-2
    assert by_name["quantlab W4A8 g64 asym"].activations == "int8 per 64"
    assert by_name["quantlab W4A8 row sym"].ours
    assert by_name["quantlab Q6_K A16"].bits == 6.5625
    assert 1e-3 < by_name["torch bfloat16 linear"].error < 1e-2


@pytest.mark.slow  # to import bitsandbytes takes seconds
def test_bitsandbytes_product_is_right():
    pytest.importorskip("bitsandbytes")
    product = Product.random(64, 256, 2)
    contestants = int4_peers(product, [32, 33])
    rows = Bench(MACHINE).run(product, contestants, caches=["hot"], **SHORT)
    assert [row.name for row in rows] == ["torch int4pack g32", "bitsandbytes NF4"]
    assert all(1e-3 < row.error < 1e-2 for row in rows)


def test_copies_of_a_weight_are_equal_and_lie_apart():
    one, two = own_contestants(PRODUCT, [Scheme(4, 32, symmetric=False)])
    first, second = (c.prepare(3).calls for c in (one, two))
    places = [call.args[1].words.data_ptr() for call in first]
    assert len(set(places)) == 3
    assert places == [call.args[1].words.data_ptr() for call in second], "shared by A16 and A8"
    assert all(call().equal(first[0]()) for call in first)


def test_ggml_takes_part_in_a_process_of_its_own():
    pytest.importorskip("xllamacpp")
    product = Product.random(32, 256, 2)
    with Ggml() as ggml:
        contestants = ggml.contestants(product)
        names = [one.name for one in contestants]
        assert names[0] == "ggml Q4_0 (wheel)"
        assert {"ggml Q4_K (wheel)", "ggml Q6_K (wheel)", "ggml Q8_0 (wheel)"} <= set(names)
        run = Bench(MACHINE)
        rows = run.run(product, contestants, caches=["hot"], **SHORT)
        assert not run.refused
        assert all(row.note.startswith(f"ggml {ggml.version} with") for row in rows)
        prepared = contestants[0].prepare(3)
        assert prepared.process == ggml.child.pid
        assert len(prepared.turn(4, 2, cold=True)) == 4
        prepared.close()
        with pytest.raises(GgmlError, match="ended with exit status"):
            prepared.turn(1, 1, cold=False)
        with pytest.raises(GgmlError, match="ended with"):
            ggml.ask("about")


def test_ggml_refuses_what_it_cannot_multiply():
    pytest.importorskip("xllamacpp")
    product = Product.random(12, 256)  # no multiple of the 8 rows that are interleaved
    with Ggml() as ggml:
        assert [c.name for c in ggml.contestants(product, ["Q4_0"])] == ["ggml Q4_0 (wheel)"]
        blocks = np.zeros((12, 100), np.uint8)
        fields = {"rows": 12, "columns": 256, "batch": 1, "sets": 1, "buffer": "plain", "type": 2}
        with pytest.raises(GgmlError, match="1200 bytes, where ggml has 1728"):
            ggml.ask("prepare", blocks.tobytes() + bytes(4 * 256), key=1, **fields)
        with pytest.raises(GgmlError, match="no buffers of kind elsewhere"):
            ggml.ask("prepare", bytes(1728 + 1024), key=1, **(fields | {"buffer": "elsewhere"}))
        assert ggml.ask("about")[0]["version"] == ggml.version, "a refusal does not end it"


@pytest.mark.parametrize("kind", ["missing", "text", "other"])
def test_a_library_that_is_no_ggml_is_refused(kind, tmp_path):
    path = tmp_path / "libggml-cpu.so"
    if kind == "text":
        path.write_text("no library")
    if kind == "other":
        path = torch._C.__file__
    match = "no file; name a shared library" if kind == "missing" else "no ggml with a processor"
    with pytest.raises(GgmlError, match=match):
        Ggml(path)


# ---------------------------------------------------------------- what is written

SCHEMA = {
    "type": "object",
    "required": ["format", "units", "machine", "rows", "refused"],
    "additionalProperties": False,
    "properties": {
        "format": {"const": "quantlab bench 1"},
        "units": {"type": "object"},
        "refused": {"type": "object", "additionalProperties": {"type": "string"}},
        "machine": {
            "type": "object",
            "required": ["cpu", "path", "cores", "caches", "versions", "environment", "limits"],
            "properties": {
                "limits": {
                    "items": {
                        "required": ["threads", "read", "float32", "int8"],
                        "properties": {
                            "read": {"additionalProperties": {"exclusiveMinimum": 0}},
                            "float32": {"exclusiveMinimum": 0},
                        },
                    }
                }
            },
        },
        "rows": {
            "items": {
                "required": ["name", "activations", "bits", "error", "moved", "others", "note"],
                "properties": {
                    "shape": {"type": "array", "minItems": 3, "maxItems": 3},
                    "threads": {"type": "integer", "minimum": 1},
                    "cache": {"enum": ["hot", "cold"]},
                    "rounds": {"items": {"exclusiveMinimum": 0}, "minItems": 5},
                    "error": {"type": "number", "minimum": 0, "maximum": 0.1},
                    "bandwidth_share": {"type": "number", "exclusiveMinimum": 0},
                    "times": {
                        "required": ["minimum", "p10", "median", "p90", "count"],
                        "additionalProperties": {"exclusiveMinimum": 0},
                    },
                },
            }
        },
    },
}


@pytest.fixture
def soon(monkeypatch):
    """Measure limits in no time, and take bitsandbytes for absent: its import takes seconds."""
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    monkeypatch.setattr(
        Machine,
        "measure",
        lambda threads, **_: replace(
            MACHINE, limits=tuple(replace(LIMITS, threads=count) for count in threads)
        ),
    )


def test_the_command_writes_json_that_keeps_its_schema_and_a_table(soon, tmp_path, capsys):
    jsonschema = pytest.importorskip("jsonschema")
    path = tmp_path / "bench.json"
    words = "bench --shape 64x256 --batch 1 2 --threads 1 --cache hot --rounds 5 --scheme w4g32sym"
    assert cli.main([*words.split(), "--json", str(path), "--peers"]) == 0
    told = json.loads(path.read_text())
    jsonschema.validate(told, SCHEMA)
    names = [row["name"] for row in told["rows"]]
    assert names[0] == "torch float32 linear"
    printed = capsys.readouterr().out
    assert all(
        printed.count(name) == names.count(name) >= 2 for name in set(names) if "Q" not in name
    )
    assert "64x256, batch 2, 1 thread, hot weights" in printed
    assert not told["refused"]
    assert [p.name for p in tmp_path.iterdir()] == ["bench.json"]


@pytest.mark.parametrize("end", [".svg", ".png"])
def test_the_command_draws_a_roofline(soon, end, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    path = tmp_path / f"roof{end}"
    words = "bench --shape 32x64 --threads 1 --cache hot --rounds 5 --scheme w8g32asym"
    assert cli.main([*words.split(), "--picture", str(path)]) == 0
    data = path.read_bytes()
    assert data.startswith(b"<?xml" if end == ".svg" else b"\x89PNG")
    if end == ".svg":
        assert b"quantlab W8A8 g32 asym" in data, "letters stay text"


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ("--shape 64", "'64' is not OUTxIN"),
        ("--shape 0x64", "'0x64' is not OUTxIN"),
        ("--batch 0", "asked for 0"),
        ("--threads -1", "asked for -1"),
        ("--rounds 0", "asked for 0"),
        ("--cache warm", "warm"),
        ("--scheme w4x", "'w4x' is no scheme"),
        ("--picture roof.pdf", "end it with .svg or .png"),
        ("--json nowhere/bench.json", "nowhere is no folder"),
        ("--shape 32x100 --scheme w4g64sym --threads 1", "100 is not a multiple of group_size 64"),
        ("--shape 32x64 --scheme w3g32sym --threads 1", "kernels take 4 and 8 bits"),
        ("--shape 32x64 --scheme w4g32sym --threads 1", "copies to be cold"),
        ("--ggml no.so --shape 32x64", "no.so is no file"),
        ("--gguf Q3_K --shape 32x256 --threads 1 --scheme w4g32sym", "no product for Q3_K"),
    ],
)
def test_wrong_words_end_in_one_line(soon, words, match, capsys):
    assert cli.main(["bench", *words.split()]) == cli.WRONG
    printed = capsys.readouterr()
    assert match in printed.err
    assert printed.err.count("\n") == 1
    assert not printed.out


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="regular file"):
        Bench(MACHINE).write(tmp_path / "folder")
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_the_child_needs_the_standard_library_only():
    from quantlab.kernels import ggml_child

    code = "import sys, runpy; runpy.run_path(sys.argv[1]); print('numpy' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, ggml_child.__file__], capture_output=True, text=True
    )
    assert done.stdout.strip() == "False", done.stderr
