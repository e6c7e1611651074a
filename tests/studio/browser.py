"""A browser without a window, driven through chromedriver's WebDriver protocol (W3C 2018) with nothing but urllib."""

import base64
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ENTER, LEFT, RIGHT = "\ue007", "\ue012", "\ue014"
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--mute-audio"]  # fmt: skip
PATIENCE = 60.0  # seconds


def programs() -> tuple[str, str] | None:
    """Returns the paths of Chromium and of its driver; None where one is missing."""
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    return None if browser is None or driver is None else (browser, driver)


class Browser:
    """An open window.

    address: of the session at the driver.
    """

    def __init__(self, address: str) -> None:
        self.address = address

    def ask(self, method: str, path: str, **body: Any) -> Any:
        return ask(method, f"{self.address}{path}", **body)

    def open(self, address: str) -> None:
        self.ask("POST", "/url", url=address)

    def run(self, script: str) -> Any:
        """Returns what a function body of JavaScript returns."""
        return self.ask("POST", "/execute/sync", script=script, args=[])

    def press(self, *keys: str) -> None:
        """Presses and releases keys one after another, as at a keyboard."""
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self.ask("POST", "/actions", actions=[{"type": "key", "id": "keyboard", "actions": actions}])

    def text(self, selector: str) -> str:
        return str(self.run(f"return document.querySelector({json.dumps(selector)}).innerText"))

    def shows(self, page: str) -> None:
        """Waits for a section of the page."""
        self.until(lambda: self.run("return document.body.dataset.page") == page, f"the page {page}")

    def until(self, true: Callable[[], Any], what: str) -> None:
        end = time.monotonic() + PATIENCE
        while not true():
            assert time.monotonic() < end, f"waited in vain for {what}: {self.run('return document.body.innerText')}"
            time.sleep(0.05)

    def size(self, width: int, height: int) -> None:
        self.ask("POST", "/goog/cdp/execute", cmd="Emulation.setDeviceMetricsOverride",
                 params={"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600})  # fmt: skip

    def picture(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.ask("GET", "/screenshot")))


def ask(method: str, address: str, **body: Any) -> Any:
    data = json.dumps(body).encode() if method == "POST" else None
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        return json.load(answer)["value"]


@contextmanager
def browser(profile: Path, *flags: str) -> Iterator[Browser]:
    """Opens a window with a new profile in an empty folder; closes it with its driver at the end."""
    found = programs()
    assert found is not None
    chromium, driver = found
    with subprocess.Popen([driver, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as running:
        try:
            assert running.stdout is not None
            started = next(line for line in running.stdout if "started successfully on port" in line)
            port = started.rpartition(" ")[2].strip(" .\n")
            options = {"binary": chromium, "args": [*FLAGS, f"--user-data-dir={profile}", *flags]}
            wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
            capabilities = {"alwaysMatch": wanted}
            session = ask("POST", f"http://127.0.0.1:{port}/session", capabilities=capabilities)["sessionId"]
            window = Browser(f"http://127.0.0.1:{port}/session/{session}")
            try:
                yield window
            finally:
                window.ask("DELETE", "")
        finally:
            running.terminate()
