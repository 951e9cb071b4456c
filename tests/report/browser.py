"""A headless Chromium, spoken to through a pipe in its own protocol; nothing else is installed."""

import base64
import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
OPTIONS = (
    "--headless --no-sandbox --disable-gpu --hide-scrollbars --no-first-run --disable-extensions"
    " --disable-background-networking --disable-component-update --disable-sync"
    " --remote-debugging-pipe"
).split()


def chromium() -> str:
    """The program; without one the test is skipped, and fails in CI."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        if os.environ.get("CI"):
            pytest.fail("there is no Chromium, and CI must have one")
        pytest.skip("there is no Chromium on this machine")
    return found


class Browser:
    """One page at a time; `complaints` are what the console and the policy said of it."""

    def __init__(self, child: "subprocess.Popen[bytes]", write: int, read: int) -> None:
        self.child, self._write, self._read = child, write, read
        self._buffer, self._count = b"", 0
        self.events: list[dict[str, Any]] = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        found = self.ask("Target.attachToTarget", targetId=target, flatten=True)
        self._session = found["sessionId"]
        for room in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{room}.enable")

    _session: str | None = None

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._count:
                assert "error" not in answer, answer
                return answer["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            part = os.read(self._read, 1 << 20)
            assert part, "the browser has ended"
            self._buffer += part
        raw, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(raw)
        if "method" in message:
            self.events.append(message)
        return message

    def open(self, path: Path, width: int, height: int = 900, scheme: str = "light") -> None:
        """Load a page at a width in CSS pixels, and wait until it is there."""
        self.events.clear()
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.ask("Emulation.setDeviceMetricsOverride", **metrics)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.ask("Emulation.setEmulatedMedia", features=features)
        self.ask("Page.navigate", url=path.resolve().as_uri())
        end = time.monotonic() + 60
        while self.evaluate("document.readyState") != "complete":
            assert time.monotonic() < end, "the page does not load"

    def evaluate(self, code: str) -> Any:
        """The value of an expression in the page."""
        found = self.ask("Runtime.evaluate", expression=code, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    @property
    def complaints(self) -> list[str]:
        said = []
        for event in self.events:
            if event["method"] == "Runtime.exceptionThrown":
                said.append(str(event["params"]["exceptionDetails"]))
            elif event["method"] == "Log.entryAdded":
                said.append(event["params"]["entry"]["text"])
            elif event["method"] == "Runtime.consoleAPICalled":
                said.append(str(event["params"]["args"]))
        return said

    @property
    def requests(self) -> list[str]:
        """What was asked for besides the page itself."""
        asked = [e for e in self.events if e["method"] == "Network.requestWillBeSent"]
        return [e["params"]["request"]["url"] for e in asked][1:]

    def pdf(self) -> bytes:
        return base64.b64decode(self.ask("Page.printToPDF", preferCSSPageSize=True)["data"])

    def picture(self, path: Path) -> None:
        """The whole page as PNG."""
        found = self.ask("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))


@contextlib.contextmanager
def browser(home: Path) -> Iterator[Browser]:
    """A browser with a profile of its own, without any network, that ends with the block."""
    to_child, write = os.pipe()
    read, from_child = os.pipe()
    words = [
        chromium(),
        *OPTIONS,
        f"--user-data-dir={home}",
        "--host-resolver-rules=MAP * ~NOTFOUND",
    ]
    command = ["bash", "-c", f'exec "$@" 3<&{to_child} 4>&{from_child}', "bash", *words]
    silent = subprocess.DEVNULL
    child = subprocess.Popen(command, pass_fds=(to_child, from_child), stdout=silent, stderr=silent)
    os.close(to_child)
    os.close(from_child)
    try:
        yield Browser(child, write, read)
    finally:
        child.terminate()
        try:
            child.wait(20)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        os.close(write)
        os.close(read)
