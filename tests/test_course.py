"""Copying the course: whole files, never over a learner's work; and JupyterLab really answers."""

import errno
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

import quantlab
from quantlab import cli, course


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A source with one notebook, one lab and one quiz."""
    folder = tmp_path / "shelf"
    for name in ("course/01_introduction.ipynb", "labs/01_lab.ipynb", "quizzes/01.yaml"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(f"first edition of {name}")
    monkeypatch.setattr(course, "source", lambda: folder)
    return folder


def test_the_source_holds_what_a_learner_needs():
    names = course.files(course.source())
    assert course.FIRST in names
    assert "course/README.md" in names  # every notebook links to the map
    assert "quizzes/01_introduction.yaml" in names
    assert not [name for name in names if "/src/" in name or name.endswith(".py")]


def test_a_second_copy_writes_nothing(shelf, tmp_path):
    first, second = course.copy_course(tmp_path / "mine"), course.copy_course(tmp_path / "mine")
    assert len(first.written) == 3
    assert (second.written, second.kept) == ([], [])


def test_a_learners_file_is_kept_and_named(shelf, tmp_path, capsys):
    mine = tmp_path / "mine"
    course.copy_course(mine)
    notebook = mine / course.FIRST
    notebook.write_text("my answers")
    (shelf / course.FIRST).write_text("second edition")
    assert cli.main(["course", str(mine), "--no-start"]) == 0
    assert "1 of your own kept as they are: course/01_introduction.ipynb" in capsys.readouterr().out
    assert notebook.read_text() == "my answers"


def test_an_untouched_file_follows_an_upgrade(shelf, tmp_path):
    mine = tmp_path / "mine"
    course.copy_course(mine)
    (shelf / course.FIRST).write_text("second edition")
    assert course.copy_course(mine).written == [course.FIRST]
    assert (mine / course.FIRST).read_text() == "second edition"


@pytest.mark.parametrize("record", ["", "[]", "{", "\xff"])
def test_without_a_record_every_differing_file_is_the_learners(record, shelf, tmp_path):
    mine = tmp_path / "mine"
    course.copy_course(mine)
    (mine / course.RECORD).write_text(record, encoding="latin-1")
    (mine / course.FIRST).write_text("my answers")
    assert course.copy_course(mine).kept == [course.FIRST]


def test_a_full_disk_is_one_line_and_leaves_no_half_file(shelf, tmp_path, monkeypatch, capsys):
    def full(self, content):
        self.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    assert cli.main(["course", str(tmp_path / "mine"), "--no-start"]) == 2
    error = capsys.readouterr().err
    assert "No space left" in error
    assert error.count("\n") == 1
    assert [path for path in (tmp_path / "mine").rglob("*") if path.is_file()] == []


def test_a_file_in_the_way_is_one_line(shelf, tmp_path, capsys):
    (tmp_path / "mine").write_text("not a folder")
    assert cli.main(["course", str(tmp_path / "mine"), "--no-start"]) == 2
    assert "choose another folder" in capsys.readouterr().err


def test_a_taken_port_is_named_and_a_free_one_is_found():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=rf"port {port} is not free"):
            course.free_port(port)
    assert course.free_port(None) in course.PORTS
    with pytest.raises(ValueError, match="port 99999 is not free"):
        course.free_port(99999)


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C cannot be sent to one process on Windows")
def test_jupyterlab_answers_at_the_printed_url_and_ctrl_c_ends_it(tmp_path):
    port = course.free_port(None)
    command = [sys.executable, "-m", "quantlab.cli", "course", "mine", "--port", str(port)]
    quiet = {"BROWSER": "none", "JUPYTER_CONFIG_DIR": str(tmp_path / "config")}
    env = os.environ | quiet | {"PYTHONPATH": str(Path(quantlab.__file__).parent.parent)}
    pipe = {"stdout": subprocess.PIPE, "text": True, "start_new_session": True}
    with subprocess.Popen(command, cwd=tmp_path, env=env, **pipe) as lab:
        try:
            url = re.search(r"http://\S+", "".join(itertools.islice(lab.stdout, 4)))[0]
            assert f":{port}/lab/tree/course/01_introduction.ipynb?token=" in url
            with urllib.request.urlopen(url, timeout=60) as page:
                assert "JupyterLab" in page.read().decode()
        finally:
            os.killpg(lab.pid, signal.SIGINT)
            status = lab.wait(timeout=60)
    assert status == 0
