"""The chat page, driven in headless Chromium."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, Request, expect

from tests.fakes.chromium import needs_chromium, open_page
from tests.fakes.space_process import SPACE, Server, needs_serving, serve, unpack
from tests.report.test_report_page import contrast

STATIC = SPACE / "serving/static"
ANSWER = "#talk .assistant"
EXAMPLES = ["Where is my order?", "May I pay later?", "Do you sell tea?", "Who are you?"]
expect.set_options(timeout=60_000)
# The page itself presses the button at the first 20 characters: then the answer, of thousands, cannot have ended.
STOP_AT_20 = """() => {
  window.lengths = [];
  new MutationObserver(() => {
    lengths.push((document.querySelector("#talk .assistant .text")?.textContent ?? "").length);
    if (lengths.at(-1) > 20) document.getElementById("stop").click();
  }).observe(document.getElementById("talk"), { childList: true, characterData: true, subtree: true });
}"""


def validated(folder: Path, **changes: object) -> Path:
    """The tiny bundle with what validate_bundle.py writes about it, as a stand-in made of pocket."""
    bundle = unpack(folder)
    identity = bundle / "identity.json"
    stated = json.loads(identity.read_text()) | {"base_model": "pocket", "parameters": 1_234_567} | changes
    identity.write_text(json.dumps(stated))
    record = {"verdict": "SAFE", "model_digest": "ab" * 32, "serves": ["int8"], "examples": EXAMPLES}
    (bundle / "validation.json").write_text(json.dumps(record))
    return bundle


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    bundle = validated(tmp_path_factory.mktemp("space"))
    with serve(SPACE / "app.py", MODEL_DIR=str(bundle), MAX_NEW_TOKENS="20000") as started:
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
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_in_chromium_it_streams_and_stops_answers_and_shows_a_version(server: Server, width: int, scheme: str) -> None:
    with opened(server, viewport={"width": width, "height": 844}, color_scheme=scheme) as page:
        expect(page.locator("#version")).to_have_text("version 7")
        expect(page.locator("#origin")).to_have_text(
            "A stand-in model with 1.2 million parameters, made in minutes on a laptop: expect mistakes.")
        assert page.locator("#examples button").all_text_contents() == EXAMPLES
        assert page.title() == "tiny-chat"
        page.evaluate(STOP_AT_20)
        with server.engine_held():
            page.locator("#examples button").first.click()
            server.wait_for("chat_answering", 1)
            expect(page.locator(ANSWER)).to_have_attribute("aria-busy", "true")
        expect(page.locator(f"{ANSWER} .note")).to_have_text("Stopped.")
        server.wait_for("chat_answering", 0)
        lengths = page.evaluate("lengths")
        assert lengths == sorted(lengths)
        assert len({*lengths}) > 1  # it grew while it was answered
        assert page.evaluate("document.documentElement.scrollWidth") == width
        expect(page.locator("#question")).to_be_focused()
        expect(page.locator(ANSWER)).to_have_attribute("aria-busy", "false")


@needs_serving
@needs_chromium
def test_in_chromium_no_question_is_suggested_for_a_bundle_that_was_not_validated(tmp_path: Path) -> None:
    bundle = validated(tmp_path, model_digest="cd" * 32)  # the validation is about another model
    with serve(SPACE / "app.py", MODEL_DIR=str(bundle)) as server, open_page() as page:
        page.goto(str(server.client.base_url))
        expect(page.locator("#version")).to_have_text("version 7")
        expect(page.locator("#examples button")).to_have_count(0)
        expect(page.locator("#try")).to_have_text("Ask the model a question")


@needs_serving
@needs_chromium
def test_in_chromium_an_error_is_told_and_the_question_kept(server: Server) -> None:
    with opened(server) as page:
        page.locator("#question").fill("long " * 800)
        page.keyboard.press("Enter")
        expect(page.locator("#status")).to_contain_text("tokens")
        assert page.locator("#question").input_value().startswith("long long")
        assert page.evaluate("document.getElementById('question').clientHeight") > 100
        expect(page.locator("#talk li")).to_have_count(0)


@needs_serving
@needs_chromium
def test_in_chromium_a_long_conversation_goes_on_without_its_oldest_turns_and_says_so(tmp_path: Path) -> None:
    bundle = validated(tmp_path)
    with (serve(SPACE / "app.py", MODEL_DIR=str(bundle), MAX_INPUT_TOKENS="80", MAX_NEW_TOKENS="10") as server,
          opened(server, viewport={"width": 390, "height": 844}) as page):
        asked: list[list[str]] = []

        def remember(request: Request) -> None:
            if request.post_data:
                asked.append([each["content"] for each in json.loads(request.post_data)["messages"]])

        page.on("request", remember)
        for number in range(1, 6):
            page.locator("#question").fill(f"question {number} of many")
            page.keyboard.press("Enter")
            expect(page.locator(ANSWER)).to_have_count(number)
            expect(page.locator(ANSWER).last).to_have_attribute("aria-busy", "false")
        notes = [text for text in page.locator(f"{ANSWER} .note").all_text_contents() if "cut off" not in text]
        start = "The conversation is too long for the model. It no longer sees "
        assert notes[0] == f"{start}your oldest question and its answer."
        assert notes[-1].startswith(f"{start}your ")
        assert notes[-1].endswith(" oldest questions and their answers.")
        assert "question 1 of many" not in asked[-1]  # nor is it sent again
        expect(page.locator("#status")).to_be_empty()
        page.screenshot(path=str(tmp_path / "page.png"))
        page.evaluate("messages = [...Array(80)].map((_, i) => ({role: i % 2 ? 'assistant' : 'user', content: 'x'}))")
        page.locator("#question").fill("the 41st")
        page.keyboard.press("Enter")
        expect(page.locator(ANSWER)).to_have_count(6)
        expect(page.locator(ANSWER).last).to_have_attribute("aria-busy", "false")
        assert page.locator(f"{ANSWER} .text").last.text_content()
        page.locator("#question").fill("long " * 100)
        page.keyboard.press("Enter")
        expect(page.locator("#status")).to_contain_text("the last question alone has")


@needs_serving
@needs_chromium
def test_in_chromium_the_keyboard_alone_asks_and_stops_and_a_screen_reader_is_told(server: Server) -> None:
    with opened(server) as page:
        for reached in ("skip", "main", EXAMPLES[0]):
            page.keyboard.press("Tab")
            assert reached in page.evaluate("(e => [e.className, e.localName, e.textContent].join())"
                                            "(document.activeElement)")
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        with server.engine_held():
            page.keyboard.press("Enter")
            server.wait_for("chat_answering", 1)
            expect(page.locator(ANSWER)).to_have_attribute("aria-busy", "true")
            nodes = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
            log, = (node for node in nodes if node.get("role", {}).get("value") == "log")
            assert {"name": "live", "value": {"type": "token", "value": "polite"}} in log["properties"]
            by_id = {node["nodeId"]: node for node in nodes}
            held, = (by_id[child] for child in log["childIds"])
            said = [by_id[child]["role"]["value"] for child in held["childIds"]]
            assert (held["role"]["value"], said) == ("list", ["listitem", "listitem"])
            page.keyboard.press("Escape")
            server.wait_for("chat_answering", 0)
        expect(page.locator("#question")).to_have_value(EXAMPLES[0])  # nothing was answered, so it goes back
        expect(page.locator("#question")).to_be_focused()
        page.keyboard.press("Tab")
        expect(page.locator("#send")).to_be_focused()


@contextmanager
def opened(server: Server, **context: Any) -> Iterator[Page]:
    """The chat page, once it knows its model."""
    with open_page(**context) as page:
        page.goto(str(server.client.base_url))
        expect(page.locator("#examples button")).to_have_count(4)
        yield page
