"""Drives Chromium by its DevTools protocol, through two pipes and without any package.

The protocol is described at https://chromedevtools.github.io/devtools-protocol/.
"""

import base64
import contextlib
import json
import os
import shutil
import subprocess
import time

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
OPTIONS = ("--headless", "--no-sandbox", "--no-zygote", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe")
# of the virtual keys
KEYS = {"Tab": 9, "PageUp": 33, "PageDown": 34, "End": 35, "Home": 36, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39,
        "ArrowDown": 40, " ": 32}  # fmt: skip
SECONDS = 20.0


def find_chromium():
    """The path of a Chromium, that of VNET_FAST_CHROMIUM first; None if there is none."""
    return os.environ.get("VNET_FAST_CHROMIUM") or next(filter(None, map(shutil.which, PROGRAMS)), None)


class Page:
    """A page in a browser.

    Args:
        call: sends a command with its arguments, and returns its result.
        events: the events since the page was opened.
    """

    def __init__(self, call, events):
        self.call, self.events = call, events

    def open(self, path):
        """Opens a file, and waits until it is loaded."""
        self.events.clear()
        self.call("Page.navigate", url=path.absolute().as_uri())
        end = time.monotonic() + SECONDS
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            assert time.monotonic() < end, f"not loaded: {path}"
            self.call("Page.getFrameTree")

    def evaluate(self, expression):
        """The value of an expression of JavaScript; an AssertionError if it throws."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, expression):
        """Waits until an expression is true."""
        end = time.monotonic() + SECONDS
        while not self.evaluate(expression):
            assert time.monotonic() < end, f"still not true: {expression}"
            time.sleep(0.02)

    def emulate(self, width, height=900, scheme="light", scripts=True, touch=False):
        """Changes the size of the window, the colour scheme, and whether scripts run."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=touch)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", features=features)
        self.call("Emulation.setScriptExecutionDisabled", value=not scripts)
        self.call("Emulation.setTouchEmulationEnabled", enabled=touch)

    def press(self, key, times=1):
        """Presses a key."""
        for _ in range(times):
            for kind in ("keyDown", "keyUp"):
                text = {"text": key} if len(key) == 1 and kind == "keyDown" else {}
                self.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=KEYS[key], **text)

    def mouse(self, kind, x, y, **more):
        """Sends an event of the mouse."""
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def click(self, x, y):
        """Clicks at a place of the window."""
        self.mouse("mousePressed", x, y, button="left", buttons=1, clickCount=1)
        self.mouse("mouseReleased", x, y, button="left", clickCount=1)

    def swipe(self, points):
        """Moves a finger from the first of some points to the last."""
        self.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": points[0][0], "y": points[0][1]}])
        for x, y in points[1:]:
            self.call("Input.dispatchTouchEvent", type="touchMove", touchPoints=[{"x": x, "y": y}])
        self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def screenshot(self):
        """The window as a PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])


@contextlib.contextmanager
def chromium(program, folder):
    """A new page in a new browser, which keeps its files in a folder."""
    to_browser, commands = os.pipe()
    answers, from_browser = os.pipe()
    words = [program, *OPTIONS, f"--user-data-dir={folder}"]
    # the browser reads from 3 and writes to 4
    shell = f'exec 5<&{to_browser} 6>&{from_browser}; exec 3<&5 4>&6 5<&- 6>&-; exec "$@"'
    process = subprocess.Popen(
        ["bash", "-c", shell, "chromium", *words], pass_fds=(to_browser, from_browser), stderr=subprocess.DEVNULL
    )
    os.close(to_browser)
    os.close(from_browser)
    try:
        with open(commands, "wb", buffering=0) as out, open(answers, "rb", buffering=0) as read:
            yield _new_page(out, read)
    finally:
        process.terminate()
        process.wait(SECONDS)


def _new_page(out, read):
    numbers, events, session, left = iter(range(1, 1 << 31)), [], {}, bytearray()

    def call(method, **arguments):
        number = next(numbers)
        command = {"id": number, "method": method, "params": arguments} | session
        out.write(json.dumps(command).encode() + b"\0")
        while True:
            while b"\0" not in left:
                received = read.read(1 << 16)
                assert received, "the browser has ended"
                left.extend(received)
            text, _, rest = bytes(left).partition(b"\0")
            left[:] = rest
            message = json.loads(text)
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            events.append(message)

    target = call("Target.createTarget", url="about:blank")["targetId"]
    session["sessionId"] = call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
    for domain in ("Page", "Runtime", "Log", "Network"):
        call(f"{domain}.enable")
    return Page(call, events)
