"""A headless Chromium, driven over the pipe of its DevTools protocol: nothing but the browser is needed."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

PATIENCE_S = 60.0
PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    "--remote-debugging-pipe",
)
_KEYS = {"Enter": ("\r", 13), "Tab": ("", 9), " ": (" ", 32), "Escape": ("", 27), "Delete": ("", 46)}
_KEYS |= {"ArrowLeft": ("", 37), "ArrowUp": ("", 38), "ArrowRight": ("", 39), "ArrowDown": ("", 40)}


class Browser:
    """A browser that is running; see :func:`chromium`."""

    def __init__(self, requests: int, answers: int):
        self._requests = requests
        self._answers = answers
        self._rest = b""
        self._last = 0
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, session: str = "", **params: Any) -> dict[str, Any]:
        """Call a method of the protocol, and return its result."""
        self._last += 1
        call = {
            "id": self._last,
            "method": method,
            "params": params,
            **({"sessionId": session} if session else {}),
        }
        os.write(self._requests, json.dumps(call).encode() + b"\0")
        until = time.monotonic() + PATIENCE_S
        while True:
            message = self._read(until)
            if message is None:
                raise TimeoutError(method)
            if message.get("id") != self._last:
                self.events.append(message)
                continue
            if "error" in message:
                raise RuntimeError(f"{method}: {message['error']}")
            return dict(message["result"])

    def _read(self, until: float) -> dict[str, Any] | None:
        while b"\0" not in self._rest:
            if not select.select([self._answers], [], [], max(0, until - time.monotonic()))[0]:
                return None
            chunk = os.read(self._answers, 1 << 20)
            if not chunk:
                raise ConnectionError("Chromium has ended")
            self._rest += chunk
        message, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(message))

    def open(self, url: str, width: int = 1280, height: int = 900, dark: bool = False) -> Page:
        """Return a new page, loaded, in an incognito window of its own."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session, context)
        for domain in ("Page", "Runtime", "Network", "Log", "DOM"):
            page.call(f"{domain}.enable")
        page.look(width, height, dark)
        page.call("Page.navigate", url=url)
        page.wait("document.readyState === 'complete'")
        return page


class Page:
    """A page of a browser."""

    def __init__(self, browser: Browser, session: str, context: str):
        self._browser = browser
        self._session = session
        self._context = context

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol for this page."""
        return self._browser.call(method, self._session, **params)

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression, awaited."""
        found = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True, userGesture=True
        )
        if "exceptionDetails" in found:
            raise RuntimeError(f"{expression}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def wait(self, expression: str) -> Any:
        """Return the value of an expression once it is true."""
        until = time.monotonic() + PATIENCE_S
        while not (value := self.evaluate(expression)):
            if time.monotonic() > until:
                text = self.evaluate("document.body.innerText")
                raise TimeoutError(f"{expression} is never true; the page says:\n{text}")
            time.sleep(0.02)
        return value

    def choose_files(self, selector: str, files: Sequence[Path]) -> None:
        """Choose files in a file input."""
        found = self.call("Runtime.evaluate", expression=f"document.querySelector({selector!r})")
        self.call(
            "DOM.setFileInputFiles", files=[str(file) for file in files], objectId=found["result"]["objectId"]
        )

    def save_into(self, folder: Path) -> None:
        """Let what is downloaded go into a folder."""
        where = {"browserContextId": self._context, "downloadPath": str(folder)}
        self._browser.call("Browser.setDownloadBehavior", behavior="allow", **where)

    def press(self, key: str, times: int = 1, modifiers: int = 0) -> None:
        """Press a key; ``modifiers`` of 8 is the shift key."""
        text, code = _KEYS.get(key, (key, ord(key.upper()) if len(key) == 1 else 0))
        both = {"key": key, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        for _ in range(times):
            self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **both)
            self.call("Input.dispatchKeyEvent", type="keyUp", **both)

    def write(self, text: str) -> None:
        """Write a text where the focus is."""
        self.call("Input.insertText", text=text)

    def look(self, width: int, height: int, dark: bool) -> None:
        """Set the size of the window, as a phone's where it is narrow, and the colour scheme."""
        phone = width < 600
        size = {"width": width, "height": height, "deviceScaleFactor": 2 if phone else 1, "mobile": phone}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.call("Emulation.setTouchEmulationEnabled", enabled=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, file: Path, whole: bool = True) -> None:
        """Write a picture of the page, PNG."""
        found = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(found["data"]))

    def await_event(self, method: str) -> dict[str, Any]:
        """Return the last event of a kind, once there is one."""
        until = time.monotonic() + PATIENCE_S
        while not (found := self._events(method)):
            assert time.monotonic() < until, method
            self.evaluate("1")  # takes in what has come
        return found[-1]

    def _events(self, method: str) -> list[dict[str, Any]]:
        mine = [event for event in self._browser.events if event.get("sessionId") == self._session]
        return [dict(event["params"]) for event in mine if event["method"] == method]

    @property
    def requests(self) -> list[str]:
        """Addresses that the page has asked for."""
        self.evaluate("1")
        return [event["request"]["url"] for event in self._events("Network.requestWillBeSent")]

    @property
    def complaints(self) -> list[str]:
        """What a developer would see in red: exceptions, violations of the policy, failed requests."""
        self.evaluate("1")
        said = [json.dumps(event["exceptionDetails"]) for event in self._events("Runtime.exceptionThrown")]
        said += [
            json.dumps(one["args"]) for one in self._events("Runtime.consoleAPICalled") if one["type"] == "error"
        ]
        entries = [event["entry"] for event in self._events("Log.entryAdded")]
        return said + [f"{one['text']} {one.get('url', '')}" for one in entries if one["level"] != "info"]


@contextlib.contextmanager
def chromium(folder: Path) -> Iterator[Browser]:
    """Run a browser, whose profile lies in a folder."""
    assert PROGRAM
    ends = [*os.pipe(), *os.pipe()]
    # far from 3 and 4, which the browser reads and writes
    read, requests, answers, write = (fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 20) for end in ends)
    for end in ends:
        os.close(end)

    def connect() -> None:
        os.dup2(read, 3)
        os.dup2(write, 4)

    command = [PROGRAM, *_OPTIONS, f"--user-data-dir={folder}", "about:blank"]
    quiet = subprocess.DEVNULL
    running = subprocess.Popen(command, stdout=quiet, stderr=quiet, preexec_fn=connect, pass_fds=(3, 4))
    os.close(read)
    os.close(write)
    browser = Browser(requests, answers)
    try:
        yield browser
    finally:
        with contextlib.suppress(OSError, TimeoutError):
            browser.call("Browser.close")
        try:
            running.wait(10)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()
        os.close(requests)
        os.close(answers)
