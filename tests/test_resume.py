"""A killed run goes on where it was, to the same bytes; anything else is refused."""

import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field

import pytest
import torch

import quantlab as ql
from quantlab.block import Block
from quantlab.methods.gptq import GPTQ
from quantlab.models.llama import Llama, LlamaConfig
from quantlab.resume import run_key
from quantlab.scheme import Scheme

SCHEME = Scheme(4, 32)


def model() -> Llama:
    torch.manual_seed(0)
    return Llama(LlamaConfig(64, 3, 2, 1, 96, 50)).eval()


def data() -> torch.Tensor:
    return torch.randint(50, (4, 16), generator=torch.Generator().manual_seed(1))


def state(quantized) -> dict:
    return dict(quantized.state_dict())


def equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(one[k].equal(other[k]) for k in one)


@dataclass(frozen=True)
class Dies:
    """GPTQ that is interrupted in one block."""

    at: str
    method: GPTQ = field(default_factory=GPTQ)

    def __repr__(self) -> str:
        return repr(self.method)  # the run is the same but for its end

    def quantize_block(self, block: Block, scheme: Scheme) -> dict:
        """Work until the block named ``at``."""
        if block.name == self.at:
            raise KeyboardInterrupt
        return self.method.quantize_block(block, scheme)


def test_a_run_stopped_in_any_block_resumes_to_the_same_bytes(tmp_path):
    whole = model()
    ql.quantize_(whole, GPTQ(), SCHEME, data())
    for number in range(3):
        folder, half = tmp_path / str(number), model()
        with pytest.raises(KeyboardInterrupt):
            ql.quantize_(half, Dies(f"model.layers.{number}"), SCHEME, data(), checkpoint=folder)
        assert equal(state(half), state(model()))  # put back as it was
        assert len(list(folder.glob("*.safetensors"))) == number
        report = ql.quantize_(half, GPTQ(), SCHEME, data(), checkpoint=folder)
        assert equal(state(half), state(whole))
        assert len(report.rows) == 21


def test_a_finished_run_is_read_and_not_computed_again(tmp_path):
    one, other = model(), model()
    first = ql.quantize_(one, GPTQ(), SCHEME, data(), checkpoint=tmp_path)
    again = ql.quantize_(
        other, Dies("model.layers.0"), SCHEME, data(), checkpoint=tmp_path
    )  # would die if asked
    assert equal(state(one), state(other))
    assert [row.output_error for row in first.rows] == [row.output_error for row in again.rows]


@pytest.mark.parametrize("change", ["method", "scheme", "data", "model"])
def test_files_of_another_run_are_refused(tmp_path, change):
    ql.quantize_(model(), GPTQ(), SCHEME, data(), checkpoint=tmp_path)
    other = model()
    if change == "model":
        other.model.norm.weight.data[3] += 1e-6
    method = GPTQ(damp=0.02) if change == "method" else GPTQ()
    scheme = Scheme(3, 32) if change == "scheme" else SCHEME
    tokens = data().flip(0) if change == "data" else data()
    with pytest.raises(ValueError, match="another model, data, method or scheme"):
        ql.quantize_(other, method, scheme, tokens, checkpoint=tmp_path)


def test_a_buffer_counts_as_part_of_the_model():
    norm = torch.nn.BatchNorm1d(3)
    before = run_key(norm, GPTQ(), SCHEME, None)
    norm.running_mean[1] += 1e-3
    assert run_key(norm, GPTQ(), SCHEME, None) != before


def test_a_damaged_file_is_named(tmp_path):
    ql.quantize_(model(), GPTQ(), SCHEME, data(), checkpoint=tmp_path)
    path = tmp_path / "model.layers.1.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"layers\.1\.safetensors cannot be read.*delete it"):
        ql.quantize_(model(), GPTQ(), SCHEME, data(), checkpoint=tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match="cannot write"):
        ql.quantize_(model(), GPTQ(), SCHEME, data(), checkpoint=tmp_path / "file")


def test_a_killed_process_leaves_only_whole_blocks(tmp_path):
    program = (
        "import os, signal, quantlab as ql\n"
        "from quantlab import resume\n"
        "write = os.replace\n"
        "def die(*names):\n"
        "    if 'layers.1' in str(names[1]): os.kill(os.getpid(), signal.SIGKILL)\n"
        "    write(*names)\n"
        "resume.os.replace = die\n"
        "from test_resume import data, model, SCHEME\n"
        f"ql.quantize_(model(), ql.GPTQ(), SCHEME, data(), checkpoint={str(tmp_path)!r})\n"
    )
    path = os.pathsep.join(sys.path)
    done = subprocess.run([sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": path})
    assert done.returncode == -signal.SIGKILL
    assert [p.name for p in tmp_path.glob("*.safetensors")] == ["model.layers.0.safetensors"]
    whole, half = model(), model()
    ql.quantize_(whole, GPTQ(), SCHEME, data())
    ql.quantize_(half, GPTQ(), SCHEME, data(), checkpoint=tmp_path)
    assert equal(state(half), state(whole))
