"""Take the course out of the installed package and open it in JupyterLab.

A learner works on copies: the originals stay as tested, and an upgrade of quantlab replaces only
the copies that nobody has touched.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

ROOMS = ("course", "quizzes")  # labs as well, once there are some
FIRST = "course/01_introduction.ipynb"
RECORD = ".quantlab.json"  # what we wrote: path -> SHA-256
PORTS = range(8888, 8988)
PATIENCE = 60.0  # seconds for JupyterLab to answer


@dataclass(frozen=True)
class Copied:
    """What ``copy_course`` did, as paths relative to the target folder.

    Attributes
    ----------
    written : list of str
        New, or ours, untouched and now brought up to date.
    kept : list of str
        Changed by the learner and therefore left alone.
    """

    written: list[str]
    kept: list[str]

    def __str__(self) -> str:
        parts = [f"{len(self.written)} files written"]
        if self.kept:
            parts.append(f"{len(self.kept)} of your own kept as they are: {', '.join(self.kept)}")
        return "; ".join(parts)


def source() -> Path:
    """Return the folder that holds course/, labs/ and quizzes/: the wheel's, or the checkout.

    Raises
    ------
    ValueError
        If this installation has neither.

    Examples
    --------
    >>> (source() / "course").is_dir()
    True
    """
    package = Path(__file__).parent
    for folder in (package / "_course", package.parent):
        if all((folder / room).is_dir() for room in ROOMS):
            return folder
    raise ValueError("this installation of quantlab holds no course; install its wheel again")


def files(folder: Path) -> dict[str, Path]:
    """Return what a learner gets: relative path to file, sorted."""
    notebooks = ("course/*.ipynb", "course/README.md", "labs/*.ipynb")
    patterns = (*notebooks, "quizzes/*.yaml", "quizzes/schema.json")
    found = sorted(path for pattern in patterns for path in folder.glob(pattern))
    return {path.relative_to(folder).as_posix(): path for path in found}


def copy_course(target: str | Path) -> Copied:
    """Copy course, labs and quizzes into a folder, never over a file that the learner changed.

    Raises
    ------
    ValueError
        If the folder cannot be written; the message names the file and the reason.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     first, again = copy_course(folder), copy_course(folder)
    >>> again.written, again.kept
    ([], [])
    """
    target = Path(target)
    record = read_record(target)
    result = Copied([], [])
    for name, original in files(source()).items():
        content = original.read_bytes()
        mine, theirs = digest(content), current(target / name)
        if theirs is None or (theirs != mine and theirs == record.get(name)):
            write(target / name, content)
            result.written.append(name)
            theirs = mine
        elif theirs != mine:
            result.kept.append(name)
        if theirs == mine:
            record[name] = mine
    if result.written:
        write(target / RECORD, (json.dumps(record, indent=1, sort_keys=True) + "\n").encode())
    return result


def digest(content: bytes) -> str:
    """Return the SHA-256 of some bytes."""
    return hashlib.sha256(content).hexdigest()


def current(path: Path) -> str | None:
    """Return the digest of what lies at a path, or None if nothing does."""
    try:
        return digest(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}; choose another folder") from error


def read_record(target: Path) -> dict[str, str]:
    """Return what an earlier call wrote, or nothing if that is not known."""
    try:
        record = json.loads((target / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # without a record every differing file counts as the learner's
    return record if isinstance(record, dict) else {}


def write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, so that an interruption leaves no half notebook."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        raise ValueError(
            f"cannot write {path}: {error.strerror}; choose another folder or free some space"
        ) from error
    finally:
        with suppress(OSError):  # already renamed, or never made
            partial.unlink()


def free_port(wanted: int | None) -> int:
    """Return the wanted port, or the first free one from 8888 on.

    Raises
    ------
    ValueError
        If the wanted port, or every port of the range, is taken.
    """
    for port in PORTS if wanted is None else [wanted]:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except (OSError, OverflowError):
                continue
            return port
    taken = f"{PORTS[0]} to {PORTS[-1]} are" if wanted is None else f"{wanted} is"
    raise ValueError(f"port {taken} not free; choose another with --port")


def jupyter_command(folder: Path, port: int, token: str) -> list[str]:
    """Return the command that serves a folder to this machine only, without pop-ups."""
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--log-level=ERROR"]
    command += [f"--ServerApp.root_dir={folder}", f"--ServerApp.port={port}"]
    command += ["--ServerApp.ip=127.0.0.1", "--ServerApp.port_retries=0"]
    command += [f"--IdentityProvider.token={token}", "--LabApp.news_url=None"]
    command += ["--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--allow-root")  # containers; the server listens on this machine only
    return command


def start(folder: Path, *, port: int | None = None, browser: bool = True) -> int:
    """Serve a folder in JupyterLab, print the first notebook's URL, and stay until it ends.

    Returns
    -------
    int
        JupyterLab's exit status; 0 after Ctrl-C, which is how one leaves it.

    Raises
    ------
    ValueError
        If JupyterLab is missing or the port is taken.
    """
    if find_spec("jupyterlab") is None:
        raise ValueError("JupyterLab is not installed; run: pip install 'quantlab[course]'")
    port, token = free_port(port), secrets.token_hex(16)
    server = subprocess.Popen(jupyter_command(folder.resolve(), port, token))
    try:
        if answers(port, server):
            welcome(f"http://127.0.0.1:{port}/lab/tree/{FIRST}?token={token}", browser)
        return server.wait()
    except KeyboardInterrupt:
        server.terminate()
        server.wait()
        return 0


def answers(port: int, server: subprocess.Popen[bytes]) -> bool:
    """Wait until the server listens; False if it ended or stayed silent."""
    deadline = time.monotonic() + PATIENCE
    while server.poll() is None and time.monotonic() < deadline:
        with socket.socket() as probe:
            probe.settimeout(1.0)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return True
        time.sleep(0.1)
    return False


def welcome(url: str, browser: bool) -> None:
    """Print where the course is and, if asked, open a browser there."""
    print(f"The course is open at\n\n    {url}\n\nCtrl-C ends it. Your work stays in the folder.")
    sys.stdout.flush()
    if browser and os.environ.get("BROWSER", "") != "none":
        import webbrowser

        webbrowser.open(url)
