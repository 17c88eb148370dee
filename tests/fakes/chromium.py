"""Headless Chromium over the DevTools protocol, through two pipes: no port, no driver, no package."""

import base64
import itertools
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

EXECUTABLE = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-extensions",
          "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
          "--remote-debugging-pipe")
_LIMIT = 90  # seconds for all that is done in one tab
# Chromium reads commands from descriptor 3 and writes replies to 4.
_TO_PIPES = 'exec "$0" "$@" 3<&0 4>&1 >/dev/null'


@dataclass(frozen=True)
class Visit:
    """What came of opening a page; widths are in CSS pixels, requests are addresses, errors are texts."""

    page_width: int
    window_width: int
    requests: list[str]
    errors: list[str]


class Tab:
    """A tab that shows one page after another."""

    def __init__(self, commands: IO[bytes], replies: IO[bytes]) -> None:
        self._commands, self._replies, self._numbers = commands, replies, itertools.count(1)
        self._session: dict[str, str] = {}
        self._events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = {"sessionId": self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: object) -> dict[str, Any]:
        """The result of one command; events that come before it are kept."""
        number = next(self._numbers)
        self._commands.write(json.dumps({"id": number, "method": method, "params": params, **self._session}).encode())
        self._commands.write(b"\0")
        self._commands.flush()
        while (message := self._next()).get("id") != number:
            self._events.append(message)
        assert "error" not in message, (method, message["error"])
        result: dict[str, Any] = message["result"]
        return result

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"]["value"]

    def visit(self, page: Path, *, width: int, scheme: str, screenshot: Path) -> Visit:
        """Open a page at a width in light or dark, and take a picture of all of it."""
        self._events.clear()
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1,
                  mobile=width < 600)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Page.navigate", url=page.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self._events):
            self._events.append(self._next())
        page_width = self.evaluate("document.documentElement.scrollWidth")
        picture = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        screenshot.write_bytes(base64.b64decode(picture))
        return Visit(page_width, width, list(self._requests()), list(self._errors()))

    def _requests(self) -> Iterator[str]:
        for event in self._events:
            if event["method"] == "Network.requestWillBeSent":
                yield event["params"]["request"]["url"]

    def _errors(self) -> Iterator[str]:
        for event in self._events:
            method, params = event["method"], event["params"]
            if method in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled"):
                yield json.dumps(params)
            if method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
                yield str(params["entry"]["text"])

    def _next(self) -> dict[str, Any]:
        text = bytearray()
        while (byte := self._replies.read(1)) != b"\0":
            assert byte, "Chromium closed its pipe"
            text += byte
        message: dict[str, Any] = json.loads(text)
        return message


@contextmanager
def tab(profile: Path) -> Iterator[Tab]:
    """A tab of a fresh browser, which ends with the block."""
    assert EXECUTABLE
    command = ["sh", "-c", _TO_PIPES, EXECUTABLE, *_FLAGS, f"--user-data-dir={profile}"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as browser:
        assert browser.stdin
        assert browser.stdout
        overdue = threading.Timer(_LIMIT, browser.kill)  # closes the pipe that a reader waits at
        overdue.start()
        try:
            shown = Tab(browser.stdin, browser.stdout)
            yield shown
            shown.call("Browser.close")
        finally:
            overdue.cancel()
            browser.terminate()
