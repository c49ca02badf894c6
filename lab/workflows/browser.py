"""A headless Chromium that is installed already, driven by Playwright."""

from __future__ import annotations

import importlib.util
import os
import shutil
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import ConsoleMessage, Error, Playwright

#: of the front end: no first-start screens, and text at every zoom
SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Minimap.Visible": False,
    "LiteGraph.Canvas.MinFontSizeForLOD": 0,
}
#: true once the front end is loaded and knows the pack's nodes
READY = "window.app?.graph && window.LiteGraph?.registered_node_types?.LikenessMiniatureLoader"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
TIMEOUT = 120  # seconds that a page has for what is asked of it, unless told


def find_chromium() -> str | None:
    """Path of a Chromium: ``CHROMIUM``, else the first of the usual names; None also where Playwright is missing."""
    if importlib.util.find_spec("playwright") is None:
        return None
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


@cache
def _driver() -> Playwright:
    """Playwright's own process; it serves all pages, as a thread can hold one only, and ends with this one."""
    from playwright.sync_api import sync_playwright

    return sync_playwright().start()


class Page:
    """One browser tab. Use as a context manager; ``errors`` collects what the page's console reports."""

    def __init__(self, program: str, profile: Path, size: tuple[int, int] = (1600, 1000)):
        self._program, self._profile, self._size = program, profile, size
        self.errors: list[dict[str, Any]] = []

    def __enter__(self) -> Page:
        self._context = _driver().chromium.launch_persistent_context(
            self._profile, executable_path=self._program, args=["--disable-gpu", "--disable-dev-shm-usage"],
            viewport={"width": self._size[0], "height": self._size[1]},
        )  # fmt: skip
        self._page = self._context.pages[0]
        self._page.set_default_timeout(TIMEOUT * 1000)
        self._page.on("console", self._note)
        self._page.on("pageerror", self._note_exception)
        self._page.on("dialog", lambda dialog: dialog.accept())  # an unsaved graph is left without being asked
        return self

    def __exit__(self, *_error: object) -> None:
        self._context.close()

    def open(self, url: str) -> None:
        """Go to ``url`` without waiting for it."""
        self._page.goto(url, wait_until="commit")

    def run(self, expression: str) -> Any:
        """Value of a JavaScript expression; promises are awaited.

        Raises:
            playwright.sync_api.Error: the expression threw.
        """
        return self._page.evaluate(expression)

    def wait_for(self, expression: str, timeout: float = TIMEOUT) -> None:
        """Poll until a JavaScript expression is true.

        Raises:
            playwright.sync_api.TimeoutError: it did not become true within ``timeout`` seconds.
        """
        self._page.wait_for_function(f"Boolean({expression})", timeout=timeout * 1000, polling=300)

    def screenshot(self, file: Path) -> None:
        """Save what the tab shows as PNG."""
        file.write_bytes(self.shot())

    def shot(self) -> bytes:
        """What the tab shows, as PNG."""
        return self._page.screenshot()

    def _note(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.errors.append({"text": message.text, "where": message.location})

    def _note_exception(self, error: Error) -> None:
        self.errors.append({"text": error.message, "where": error.stack})
