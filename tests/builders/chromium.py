"""Headless Chromium as a test drives it: the DevTools protocol over a pipe, without a package."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe")
QUIET = ("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync")


class Tab:
    """One page of a browser.

    Attributes:
        requests: addresses that it asked for, data: aside.
        complaints: what it wrote to its console as a warning or an error, and exceptions.
    """

    def __init__(self, read: int, write: int):
        self._in, self._out = os.fdopen(read, "rb"), os.fdopen(write, "wb")
        self._number, self._session, self._rest = 0, None, b""
        self.requests: list[str] = []
        self.complaints: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> Any:
        """One command; its result."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        self._out.write(json.dumps(message).encode() + b"\0")
        self._out.flush()
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            more = self._in.read1(1 << 16)
            if not more:
                raise RuntimeError("the browser is gone")
            self._rest += more
        one, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(one)
        self._note(message.get("method"), message.get("params", {}))
        return message

    def _note(self, method: str | None, params: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent" and not params["request"]["url"].startswith("data:"):
            self.requests.append(params["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(params["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.complaints.append(json.dumps(params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.complaints.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")

    def run(self, script: str) -> Any:
        """The value of an expression, or of its promise."""
        asked = {"expression": script, "awaitPromise": True, "returnByValue": True}
        answer = self.call("Runtime.evaluate", **asked)
        if "exceptionDetails" in answer:
            raise RuntimeError(json.dumps(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def until(self, condition: str) -> None:
        """Waits in the page for an expression to be true, 20 seconds at most."""
        look = f"if ({condition}) done(true); else if (Date.now() > end) done(false); else setTimeout(look, 20);"
        found = self.run(
            f"new Promise((done) => {{ const end = Date.now() + 20000; (function look() {{ {look} }})(); }})"
        )
        assert found, f"never came true: {condition}; {self.complaints}; {self.run('document.body.innerText')[:500]}"

    def open(self, page: Path, address: str = "") -> None:
        """Opens a file."""
        self.call("Page.navigate", url=page.resolve().as_uri() + address)

    def press(self, key: str, code: int) -> None:
        """One key down and up."""
        text = {"text": "\r"} if key == "Enter" else {"text": " "} if key == " " else {}
        for kind in ("keyDown", "keyUp"):
            more = text if kind == "keyDown" else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **more)

    def screenshot(self, file: Path, width: int, dark: bool = False, height: int = 900) -> None:
        """The whole page at a width, as PNG."""
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=features)
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        made = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(made["data"]))


def installed() -> str | None:
    """The path of Chromium; None: there is none."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


@contextlib.contextmanager
def chromium(profile: Path) -> Iterator[Tab]:
    """A tab of a headless Chromium; the test is skipped where there is none."""
    found = installed()
    if found is None:
        pytest.skip("there is no Chromium")
    read_command, write_command = os.pipe()
    read_answer, write_answer = os.pipe()
    os.set_inheritable(read_command, True)
    os.set_inheritable(write_answer, True)
    # The protocol takes descriptors 3 and 4; a shell moves ours there.
    moved = f'exec "$0" "$@" 3<&{read_command} 4>&{write_answer}'
    command = ["bash", "-c", moved, found, *FLAGS, *QUIET, f"--user-data-dir={profile}"]
    with open(os.devnull, "wb") as nowhere:
        process = subprocess.Popen(command, pass_fds=(read_command, write_answer), stderr=nowhere, stdout=nowhere)
    os.close(read_command)
    os.close(write_answer)
    try:
        yield Tab(read_answer, write_command)
    finally:
        process.terminate()
        process.wait(20)
