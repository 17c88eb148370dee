"""The Chromium of this machine, headless, driven by playwright, which downloads no browser of its own."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from playwright.sync_api import Page, sync_playwright

EXECUTABLE = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(EXECUTABLE is None, reason="Chromium is missing: apt-get install chromium")


@contextmanager
def open_page(**context: Any) -> Iterator[Page]:
    """An empty page of a fresh browser, which ends with the block; context as playwright's new_page takes it."""
    with sync_playwright() as driver, driver.chromium.launch(
            executable_path=EXECUTABLE, args=["--no-sandbox", "--disable-gpu"]) as browser:
        page = browser.new_page(**context)
        page.set_default_timeout(60_000)  # the longest wait for anything
        yield page
