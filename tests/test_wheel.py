"""The wheel: pure, small, whole, and able to run on its own in an empty environment."""

import os
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from quantlab import course

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
LIMIT = 15_000_000  # bytes


def run(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command that must not see this checkout."""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run([*map(str, words)], cwd=cwd, env=env, capture_output=True, text=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    command = (sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", out)
    built = run(*command, cwd=ROOT)
    assert built.returncode == 0, built.stderr
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def names(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def scripts(wheel, tmp_path_factory):
    """The script folder of a new environment that holds the wheel and what it needs, no more."""
    home = tmp_path_factory.mktemp("empty")
    run(sys.executable, "-m", "venv", "env", cwd=home)
    folder = home / "env" / ("Scripts" if os.name == "nt" else "bin")
    pip = (folder / "python", "-m", "pip", "--disable-pip-version-check", "install", "-q")
    pip = (*pip, "-c", ROOT / "constraints.txt")
    if (probe := run(*pip, "torch", cwd=home)).returncode:
        pytest.skip(f"pip finds no packages here: {probe.stderr.strip().splitlines()[-1]}")
    installed = run(*pip, wheel, cwd=home)
    assert installed.returncode == 0, installed.stderr
    return folder


def test_the_wheel_is_pure_and_small(wheel, names):
    assert wheel.name.endswith("-py3-none-any.whl")
    assert wheel.stat().st_size <= LIMIT
    assert not [name for name in names if name.endswith((".so", ".pyd", ".dylib", ".dll", ".pyc"))]


def test_the_wheel_holds_the_package_and_nothing_else(names):
    tracked = {path.relative_to(ROOT).as_posix() for path in (ROOT / "quantlab").rglob("*.py")}
    assert tracked <= names
    assert "quantlab/py.typed" in names
    assert "quantlab/gguf/lattices.npz" in names
    assert "quantlab/models/storyteller/config.json" in names
    assert "quantlab/models/storyteller/tokenizer.json" in names
    assert "quantlab/models/storyteller/model.safetensors" in names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"quantlab"}


def test_the_wheel_holds_course_labs_and_quizzes_without_their_sources(names):
    shipped = {name for name in names if name.startswith("quantlab/_course/")}
    assert shipped == {f"quantlab/_course/{name}" for name in course.files(ROOT)}


def test_the_metadata_names_every_extra_and_pins_nothing(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith("dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(name).decode())
    extras = {"notebook", "course", "bnb", "hf", "test", "gpu", "dask"}
    assert set(metadata.get_all("Provides-Extra", [])) == extras
    assert not [
        line for line in metadata.get_all("Requires-Dist", []) if "==" in line.split(";")[0]
    ]


def test_the_demo_runs_in_an_empty_environment(scripts, tmp_path):
    done = run(scripts / "quantlab", "demo", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for row in (
        "float32",
        *(f"{name} {bits} bit" for bits in (4, 3, 2) for name in ("RTN", "GPTQ")),
    ):
        assert row in done.stdout


def test_the_doctor_finds_the_empty_environment_healthy(scripts, tmp_path):
    done = run(scripts / "quantlab", "doctor", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert "pip install 'quantlab[notebook]'" in done.stdout


def test_the_course_comes_out_of_the_installed_package(scripts, tmp_path):
    done = run(scripts / "quantlab", "course", "mine", "--no-start", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    mine = tmp_path / "mine"
    assert set(course.files(mine)) == set(course.files(ROOT))
    assert (mine / course.FIRST).read_bytes() == (ROOT / course.FIRST).read_bytes()


def test_a_terminal_quiz_needs_no_notebook_packages(scripts, tmp_path):
    listed = run(scripts / "quantlab", "quiz", cwd=tmp_path)
    assert listed.returncode == 0, listed.stderr
    assert "04_gptq" in listed.stdout


def test_jupyterlab_missing_is_one_line(scripts, tmp_path):
    done = run(scripts / "quantlab", "course", "mine", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == (
        "quantlab: error: JupyterLab is not installed; run: pip install 'quantlab[course]'\n"
    )
