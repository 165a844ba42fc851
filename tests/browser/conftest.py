"""A JupyterLab of our own and a Chromium that drives it; skipped where either is missing."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "only-for-this-test"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
NAMES = ("chromium", "chromium-browser", "google-chrome")


def browser_path():
    """The first browser on the PATH, or None."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)
            item.add_marker(pytest.mark.slow)


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


class Lab:
    """A running JupyterLab and one page that shows a notebook of it."""

    def __init__(self, url, page):
        self.url, self.page = url, page
        self.errors = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", self.listen)

    def listen(self, message):
        # A missing favicon or a request cut off by closing the page is not the widgets' doing.
        if message.type == "error" and "Failed to load resource" not in message.text:
            self.errors.append(message.text)

    def open(self, name):
        self.page.goto(f"{self.url}/lab/tree/{name}?token={TOKEN}&reset", timeout=120_000)
        self.page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=120_000)
        self.page.wait_for_function(
            "window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel"
            "?.status === 'idle'",
            timeout=180_000,
        )

    def run_all(self, timeout=300_000):
        """Run all cells as the Run menu does, and wait for the last."""
        self.page.evaluate(
            "() => { window.jupyterapp.commands.execute('notebook:run-all-cells'); }"
        )
        self.page.wait_for_function(
            """() => {
              const book = window.jupyterapp.shell.currentWidget;
              const code = book.content.widgets.filter((cell) => cell.model.type === 'code');
              return book.sessionContext.session.kernel.status === 'idle'
                && code.every((cell) => cell.model.executionCount
                  || cell.model.sharedModel.source.trim() === '');
            }""",
            timeout=timeout,
        )

    def cells(self):
        """What a stray shortcut would change: number of cells, active cell, texts, collapse."""
        return self.page.evaluate(
            """() => {
              const book = window.jupyterapp.shell.currentWidget.content;
              return {
                number: book.widgets.length,
                active: book.activeCellIndex,
                types: book.widgets.map((cell) => cell.model.type),
                texts: book.widgets.map((cell) => cell.model.sharedModel.source),
                hidden: book.widgets.map((cell) => cell.isHidden),
              };
            }"""
        )

    def failures(self):
        """Return the error outputs of the notebook."""
        return self.page.evaluate(
            """() => window.jupyterapp.shell.currentWidget.content.widgets
              .filter((cell) => cell.model.type === 'code')
              .flatMap((cell) => cell.model.outputs.toJSON())
              .filter((output) => output.output_type === 'error')
              .map((output) => output.ename + ': ' + output.evalue)"""
        )

    def show(self, selector):
        """Scroll to the first match, which a windowed notebook attaches only when near."""
        found = self.page.evaluate(
            """async (selector) => {
              const book = window.jupyterapp.shell.currentWidget.content;
              for (let k = 0; k < book.widgets.length; k++) {
                const has = () => book.widgets[k].node.querySelector(selector);
                if (!has()) {
                  await book.scrollToItem(k);
                  await new Promise((done) => setTimeout(done, 60));
                }
                if (has()) { await book.scrollToItem(k, 'start'); return true; }
              }
              return false;
            }""",
            selector,
        )
        assert found, f"the notebook shows no {selector}"
        self.page.locator(selector).first.scroll_into_view_if_needed()


@pytest.fixture
def lab(tmp_path):
    """Return a function (folder, dark) -> Lab; everything stops after the test."""
    path = browser_path()
    if path is None:
        pytest.skip("no Chromium on this machine; install the package chromium to run this test")
    pytest.importorskip("jupyterlab", reason="JupyterLab is not installed")
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    servers, contexts = [], []
    driver = playwright.sync_playwright().start()

    def start(folder, dark=False):
        server, url = start_server(folder, tmp_path / f"home{len(servers)}", dark)
        servers.append(server)
        context = driver.chromium.launch_persistent_context(
            tmp_path / f"profile{len(contexts)}",
            executable_path=path,
            args=FLAGS,
            viewport={"width": 1200, "height": 1000},
        )
        contexts.append(context)
        return Lab(url, context.pages[0] if context.pages else context.new_page())

    yield start
    for context in contexts:
        context.close()
    driver.stop()
    for server in servers:
        server.terminate()
        server.wait(timeout=30)


def start_server(folder, home, dark):
    settings = home / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    theme = "JupyterLab Dark" if dark else "JupyterLab Light"
    (settings / "themes.jupyterlab-settings").write_text(json.dumps({"theme": theme}))
    quiet = {"fetchNews": "false", "checkForUpdates": False}
    (settings / "notification.jupyterlab-settings").write_text(json.dumps(quiet))
    (home / "config").mkdir()
    lab = {"expose_app_in_browser": True}
    (home / "config" / "jupyter_lab_config.json").write_text(json.dumps({"LabApp": lab}))
    port = free_port()
    command = [sys.executable, "-m", "jupyterlab", "--no-browser"]
    command += [f"--port={port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={TOKEN}"]
    command += ["--ip=127.0.0.1", f"--ServerApp.root_dir={folder}"]
    environment = {
        **os.environ,
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        "IPYTHONDIR": str(home / "ipython"),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    if os.geteuid() == 0:
        command.append("--allow-root")
    with (home / "server.log").open("wb") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/api?token={TOKEN}", timeout=5):
                return server, url
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.3)
    server.kill()
    server.wait()
    pytest.fail("JupyterLab did not start:\n" + (home / "server.log").read_text()[-2000:])
