"""A run that is served, over HTTP inside the process and on a port; a headless browser."""

import json
import os
import shutil
import socket
import subprocess
import threading
import time
from itertools import count

import pytest


@pytest.fixture(scope="module")
def answers(_trained_once):
    """The small trained run, loaded."""
    from llmrec.runs.folder import open_run
    from llmrec.server.answers import Answers

    return Answers(*open_run(str(_trained_once), []))


@pytest.fixture(scope="module")
def address(answers):
    """Where the run is served on the loopback address."""
    import uvicorn

    from llmrec.server.app import application

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    app = application(answers, hosts=["127.0.0.1"])
    settings = uvicorn.Config(app, "127.0.0.1", port, log_config=None)
    server = uvicorn.Server(settings)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()
    app.state.batcher.close()


class Browser:
    """A tab of headless Chromium, driven over its debugging pipe."""

    def __init__(self, program, folder):
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        flags = "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage"
        flags += " --no-first-run --hide-scrollbars"
        command = f"exec {program} {flags} --remote-debugging-pipe --user-data-dir={folder} "
        command += f"about:blank 3<&{to_browser} 4>&{from_browser}"
        self._process = subprocess.Popen(
            ["bash", "-c", command],  # dash knows no descriptors above 9
            pass_fds=(to_browser, from_browser),
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._numbers, self._left, self.errors = count(1), b"", []
        self._session = None
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method, **parameters):
        """The result of a command; errors that the page had meanwhile are kept."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            said = self._next()
            if said.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.errors.append(json.dumps(said["params"]))
            if said.get("id") == number:
                assert "error" not in said, said
                return said["result"]

    def _next(self):
        while b"\0" not in self._left:
            read = os.read(self._read, 1 << 16)
            assert read, "the browser ended"
            self._left += read
        said, self._left = self._left.split(b"\0", 1)
        return json.loads(said)

    def js(self, expression):
        """The value of an expression in the page."""
        found = self.send("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, expression, seconds=20):
        """Wait until an expression is true, and return its value."""
        end = time.monotonic() + seconds
        while not (value := self.js(expression)):
            assert time.monotonic() < end, f"never: {expression}"
            time.sleep(0.02)
        return value

    def open(self, address, width, height=900):
        """Show a page in a window of this size."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        self.send("Page.navigate", url=address)
        self.until("document.readyState === 'complete'")

    def key(self, name, text=None, ctrl=False):
        """Press a key and let it go."""
        codes = {"Enter": 13, "Tab": 9, "ArrowDown": 40, "Escape": 27, " ": 32}
        press = {"key": name, "windowsVirtualKeyCode": codes.get(name, 0), "modifiers": 2 * ctrl}
        if text is not None:
            press["text"] = text
        self.send("Input.dispatchKeyEvent", type="keyDown", **press)
        self.send("Input.dispatchKeyEvent", type="keyUp", **press)

    def type(self, text):
        """Type into what has the focus."""
        self.send("Input.insertText", text=text)

    def shot(self, path):
        """The whole page as a PNG."""
        import base64

        taken = self.send("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(taken["data"]))

    def close(self):
        """End the browser."""
        self._process.terminate()
        self._process.wait()
        os.close(self._write)
        os.close(self._read)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A headless Chromium; skips where there is none."""
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.skip("no Chromium on this machine")
    opened = Browser(program, tmp_path_factory.mktemp("browser"))
    yield opened
    opened.close()
