"""A headless Chromium, driven over the DevTools protocol. Rule: knows pages and keys; expects nothing.

The protocol goes through two pipes (`--remote-debugging-pipe`): JSON messages that end in NUL. So there is
no port, no driver and no further package. https://chromedevtools.github.io/devtools-protocol/
"""

from __future__ import annotations

import base64
import json
import os
import select
import subprocess
import tempfile
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PROGRAM = "chromium"
_PATIENCE = 60.0
#: no sandbox: root has none, and every page is made here; no proxy and no name answers, so nothing leaves
_OPTIONS = (
    *("--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--no-first-run", "--disable-gpu"),
    *("--disable-extensions", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--disable-dev-shm-usage", "--mute-audio", "--hide-scrollbars"),
    *("--proxy-server=127.0.0.1:9", "--host-resolver-rules=MAP * ~NOTFOUND"),
)
_DOMAINS = ("Page", "Runtime", "Network", "Log")


class PageError(Exception):
    """The browser, or a script in the page, says that something failed."""


class Browser:
    """A running Chromium. Messages are numbered; events are kept in the order in which they come."""

    def __init__(self, profile: str) -> None:
        read, self._out = os.pipe()
        self._in, write = os.pipe()
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{read} 4>&{write}', "bash", PROGRAM, *_OPTIONS,
             f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(read, write), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env=os.environ | {"HOME": profile, "XDG_RUNTIME_DIR": profile},
        )  # fmt: skip
        os.close(read)
        os.close(write)
        self._rest, self._number = b"", 0
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """One command and its result; PageError where the browser refuses it."""
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": parameters}
        self._send(message | ({"sessionId": session} if session else {}))
        while True:
            answer = self.receive()
            if answer.get("id") == number:
                if "error" in answer:
                    raise PageError(f"{method}: {answer['error']['message']}")
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def _send(self, message: dict[str, Any]) -> None:
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._out, data) :]

    def receive(self) -> dict[str, Any]:
        """The next message."""
        deadline = time.monotonic() + _PATIENCE
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._in], [], [], max(0.0, deadline - time.monotonic()))
            data = os.read(self._in, 1 << 20) if ready else b""
            if not data:
                raise PageError("the browser says nothing" if not ready else "the browser is gone")
            self._rest += data
        message, _, self._rest = self._rest.partition(b"\0")
        answer: dict[str, Any] = json.loads(message)
        return answer

    def close(self) -> None:
        """Ends it, whatever it is doing."""
        try:
            self.call("Browser.close")
        except (PageError, OSError):
            self._process.kill()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
        for pipe in (self._in, self._out):
            os.close(pipe)


@contextmanager
def running() -> Iterator[Browser]:
    """A browser with an empty profile, gone afterwards."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser(profile)
        try:
            yield browser
        finally:
            browser.close()


class Page:
    """One tab. All that it asked for, logged or threw is in the browser's events."""

    def __init__(self, browser: Browser, width: int = 1280, height: int = 900) -> None:
        self.browser = browser
        self._target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        attached = browser.call("Target.attachToTarget", targetId=self._target, flatten=True)
        self._session = attached["sessionId"]
        for domain in _DOMAINS:
            self.call(f"{domain}.enable")
        self.call("Target.activateTarget", targetId=self._target)
        self.call("Emulation.setFocusEmulationEnabled", enabled=True)
        self.resize(width, height)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command to this tab."""
        return self.browser.call(method, self._session, **parameters)

    def resize(self, width: int, height: int) -> None:
        """The window's size in pixels."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                  mobile=False)  # fmt: skip

    def load(self, path: Path) -> None:
        """Opens a file and waits until it is whole."""
        begin = len(self.browser.events)
        self.call("Page.navigate", url=path.resolve().as_uri())
        while not any(self._is(event, "Page.loadEventFired") for event in self.browser.events[begin:]):
            self.browser.events.append(self.browser.receive())

    def _is(self, event: dict[str, Any], method: str) -> bool:
        return bool(event.get("method") == method and event.get("sessionId") == self._session)

    def events(self, method: str) -> list[dict[str, Any]]:
        """Parameters of the events of this tab so far, after one more turn of its loop."""
        self.evaluate("new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")
        return [event["params"] for event in self.browser.events if self._is(event, method)]

    def evaluate(self, expression: str) -> Any:
        """Value of a JavaScript expression; of a promise, what it resolves to."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True,
                           userGesture=True)  # fmt: skip
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise PageError(details.get("exception", {}).get("description") or details["text"])
        return answer["result"].get("value")

    def until(self, condition: str, patience: float = 10.0) -> None:
        """Waits for a JavaScript condition; PageError where it does not come true."""
        deadline = time.monotonic() + patience
        while not self.evaluate(condition):
            if time.monotonic() > deadline:
                raise PageError(f"never true: {condition}")
            time.sleep(0.02)

    def click(self, selector: str) -> None:
        """The mouse's left button in the middle of an element, which is scrolled into view and has come to
        rest: a page that is still being laid out moves under the mouse.
        """
        place = self.evaluate(
            f"""(async () => {{ const element = document.querySelector({json.dumps(selector)});
                const frame = () => new Promise((drawn) => setTimeout(drawn, 20));
                let before = null, box = null;
                for (let n = 0; n < 100 && (!before || before.x !== box.x || before.y !== box.y); n++) {{
                  before = box;
                  element.scrollIntoView({{block: "center", inline: "center", behavior: "instant"}});
                  await frame();
                  box = element.getBoundingClientRect();
                }}
                return {{x: box.x + box.width / 2, y: box.y + box.height / 2}}; }})()"""
        )
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **place)

    def press(self, key: str) -> None:
        """One key; `Enter`, `Escape`, `ArrowDown` or a printable sign."""
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
        codes = {
            "Enter": 13,
            "Escape": 27,
            "ArrowLeft": 37,
            "ArrowUp": 38,
            "ArrowRight": 39,
            "ArrowDown": 40,
            "Tab": 9,
        }
        of_key = {"key": key, "windowsVirtualKeyCode": codes.get(key, ord(key[0].upper()))}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **of_key)
        self.call("Input.dispatchKeyEvent", type="keyUp", **of_key)

    def type(self, text: str) -> None:
        """Into what has the focus."""
        self.call("Input.insertText", text=text)

    def media(self, kind: str = "", scheme: str = "light") -> None:
        """`print` or the screen; the colour scheme that the user prefers."""
        self.call("Emulation.setEmulatedMedia", media=kind,
                  features=[{"name": "prefers-color-scheme", "value": scheme}])  # fmt: skip

    def picture(self, path: Path, *, whole: bool = False) -> None:
        """A screenshot as PNG."""
        data = self.call("Page.captureScreenshot", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))

    def pdf(self) -> bytes:
        """As it is printed."""
        return base64.b64decode(self.call("Page.printToPDF", printBackground=True)["data"])
