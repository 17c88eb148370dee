"""The chat page, driven in headless Chromium."""

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes import chromium
from tests.fakes.space_process import SPACE, Server, needs_serving, serve, unpack
from tests.report.test_report_page import contrast

STATIC = SPACE / "serving/static"
needs_chromium = pytest.mark.skipif(chromium.EXECUTABLE is None, reason="Chromium is missing: apt-get install chromium")
ANSWER = "document.querySelector('#talk .assistant .text')?.textContent ?? ''"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    bundle = unpack(tmp_path_factory.mktemp("space"))
    with serve(SPACE / "app.py", MODEL_DIR=str(bundle), MAX_NEW_TOKENS="8000") as started:
        yield started


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_texts_have_a_contrast_of_4_5(scheme: int) -> None:
    css = (STATIC / "chat.css").read_text(encoding="utf-8")
    colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", css.split(":root {")[1 + scheme].split("}")[0]))
    pairs = [("ink", "ground"), ("ink", "mine"), ("ink", "theirs"), ("quiet", "ground"), ("quiet", "theirs"),
             ("act", "ground"), ("on-act", "act"), ("bad", "ground")]
    assert {pair: contrast(colours[pair[0]], colours[pair[1]]) for pair in pairs
            if contrast(colours[pair[0]], colours[pair[1]]) < 4.5} == {}


@needs_serving
@needs_chromium
def test_in_chromium_it_streams_an_answer_stops_one_and_shows_the_version(server: Server, tmp_path: Path) -> None:
    with chromium.tab(tmp_path / "profile") as tab:
        for width, scheme in ((1280, "light"), (390, "dark")):
            tab.call("Emulation.setDeviceMetricsOverride", width=width, height=844, deviceScaleFactor=1,
                     mobile=width < 600)
            tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
            tab.call("Page.navigate", url=str(server.client.base_url))
            wait_for(tab, "document.querySelectorAll('#examples button').length === 4")
            assert tab.evaluate("document.getElementById('version').textContent") == "v7"
            assert tab.evaluate("document.title") == "tiny-chat"

            tab.evaluate("document.querySelector('#examples button').click(); 0")
            wait_for(tab, f"({ANSWER}).length > 20")
            grown = len(tab.evaluate(ANSWER))
            wait_for(tab, f"({ANSWER}).length > {grown}")
            assert server.metric("chat_answering") == 1
            tab.evaluate("document.getElementById('stop').click(); 0")
            wait_for(tab, "document.querySelector('#talk .assistant .note')?.textContent === 'Stopped.'")
            server.wait_for("chat_answering", 0)
            assert tab.evaluate("document.documentElement.scrollWidth") == width
            assert tab.evaluate("document.activeElement.id") == "question"
            assert tab.evaluate("document.querySelector('#talk .assistant').getAttribute('aria-busy')") == "false"


@needs_serving
@needs_chromium
def test_in_chromium_an_error_is_told_and_the_question_kept(server: Server, tmp_path: Path) -> None:
    with chromium.tab(tmp_path / "profile") as tab:
        tab.call("Page.navigate", url=str(server.client.base_url))
        wait_for(tab, "document.querySelectorAll('#examples button').length === 4")
        tab.evaluate("document.getElementById('question').focus(); 0")
        tab.call("Input.insertText", text="long " * 800)
        press(tab, "Enter")
        wait_for(tab, "document.getElementById('status').textContent.includes('tokens')")
        assert tab.evaluate("document.getElementById('question').value").startswith("long long")
        assert tab.evaluate("document.getElementById('question').clientHeight") > 100
        assert tab.evaluate("document.querySelectorAll('#talk li').length") == 0


@needs_serving
@needs_chromium
def test_in_chromium_the_keyboard_alone_asks_and_stops_and_a_screen_reader_is_told(server: Server, tmp_path: Path
                                                                                   ) -> None:
    with chromium.tab(tmp_path / "profile") as tab:
        tab.call("Page.navigate", url=str(server.client.base_url))
        wait_for(tab, "document.querySelectorAll('#examples button').length === 4")
        for reached in ("skip", "main", "Where is my order?"):
            press(tab, "Tab")
            assert reached in tab.evaluate("(e => [e.className, e.localName, e.textContent].join())"
                                           "(document.activeElement)")
        assert tab.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        press(tab, "Enter")
        wait_for(tab, f"({ANSWER}).length > 20")
        answers = tab.call("Accessibility.getFullAXTree")["nodes"]
        log, = (node for node in answers if node.get("role", {}).get("value") == "log")
        assert {"name": "live", "value": {"type": "token", "value": "polite"}} in log["properties"]
        assert tab.evaluate("document.querySelector('#talk .assistant').getAttribute('aria-busy')") == "true"
        press(tab, "Escape")
        wait_for(tab, "document.querySelector('#talk .assistant .note')?.textContent === 'Stopped.'")
        press(tab, "Tab")
        assert tab.evaluate("document.activeElement.id") == "send"


def press(tab: chromium.Tab, key: str) -> None:
    code = {"Tab": 9, "Enter": 13, "Escape": 27}[key]
    for kind in ("keyDown", "keyUp"):
        text = {"text": "\r"} if key == "Enter" and kind == "keyDown" else {}
        tab.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **text)


def wait_for(tab: chromium.Tab, expression: str) -> None:
    until = time.monotonic() + 10
    while not tab.evaluate(expression):
        assert time.monotonic() < until, expression
        time.sleep(0.05)
