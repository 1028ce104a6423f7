"""A real browser without a driver: Chromium, spoken to over a pipe by its DevTools protocol."""

import base64
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next((found for name in PROGRAMS if (found := shutil.which(name))), None)
SECONDS = 120  # until the browser counts as dead


class Page:
    """One open page. What the browser complains of is kept in ``complaints``."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from = to_browser, os.fdopen(from_browser, "rb")
        self._number, self._session, self._rest = 0, "", b""
        self.complaints: list[str] = []
        self._events: list[str] = []

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol. Raises: RuntimeError when the browser refuses it or ends."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            piece = self._from.read1(1 << 16)
            if not piece:
                raise RuntimeError("the browser has ended")
            self._rest += piece
        text, _, self._rest = self._rest.partition(b"\0")
        answer = json.loads(text)
        method = answer.get("method", "")
        self._events.append(method)
        if method == "Log.entryAdded":
            self.complaints.append(answer["params"]["entry"]["text"])
        return answer

    def attach(self) -> None:
        """Open a tab."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Log", "Runtime"):
            self.call(f"{domain}.enable")

    def show(self, file: Path, width: int, *, dark: bool = False, phone: bool = False) -> None:
        """Open a file at a width in CSS pixels."""
        height = 844 if phone else 900
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media="", features=[scheme])
        self._events.clear()
        self.call("Page.navigate", url=file.resolve().as_uri())
        while "Page.loadEventFired" not in self._events:
            self._next()

    def close(self) -> None:
        """Let go of the pipes."""
        self._from.close()
        os.close(self._to)

    def value(self, expression: str) -> Any:
        """What a line of JavaScript gives."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(str(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def picture(self, whole: bool = False) -> bytes:
        """What is seen, as PNG; ``whole``: down to the end of the page."""
        shown = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        return base64.b64decode(shown["data"])

    def printed(self) -> bytes:
        """The page on paper, as PDF."""
        return base64.b64decode(self.call("Page.printToPDF", preferCSSPageSize=True, printBackground=True)["data"])


@contextmanager
def opened() -> Iterator[Page]:
    """A page in a fresh browser, which ends with the block."""
    assert CHROMIUM is not None, f"none of {', '.join(PROGRAMS)} is installed"
    (child_in, to_browser), (from_browser, child_out) = os.pipe(), os.pipe()

    def wired() -> None:  # the protocol's pipes are 3 and 4
        above = [os.dup(fd) for fd in (child_in, child_out)]
        for fd, place in zip(above, (3, 4), strict=True):
            os.dup2(fd, place)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                   "--no-first-run", "--disable-background-networking", "--remote-debugging-pipe",
                   f"--user-data-dir={profile}"]  # fmt: skip
        process = subprocess.Popen(
            command, preexec_fn=wired, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(child_in)
        os.close(child_out)
        page = Page(to_browser, from_browser)
        try:
            page.attach()
            yield page
        finally:
            process.kill()
            process.wait()
            page.close()
