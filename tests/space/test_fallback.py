"""The fallback, on the standard library alone."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.space_process import CHAT, SPACE, Server, serve


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Deployed as `cp app_minimal_fallback.py app.py`, beside the questions, with no package to be had."""
    folder = tmp_path_factory.mktemp("fallback")
    shutil.copy(SPACE / "app_minimal_fallback.py", folder / "app.py")
    shutil.copy(SPACE / "questions.json", folder)
    (folder / "assets").mkdir()
    (folder / "assets/identity.json").write_text(json.dumps({"model": "tiny-chat", "version": 7, "commit": None}))
    with serve(folder / "app.py", python=sys.executable, PYTHONNOUSERSITE="1") as started:
        yield started


@pytest.mark.parametrize("body", [b"{nope", b"[]", b"{}", b'{"messages": [1]}', b'{"messages": []}',
                                  b'{"messages": [{"role": "user", "content": 1}]}',
                                  b'{"stream": true, "messages": [{"role": "user", "content": "x"}]}', b"[" * 100_000])
def test_a_bad_request_is_refused_with_its_reason(server: Server, body: bytes) -> None:
    reply = server.client.post(CHAT, content=body)
    assert reply.status_code == 400
    assert reply.json()["error"]["message"]


def test_what_is_too_large_or_elsewhere_is_refused(server: Server) -> None:
    assert server.client.post(CHAT, content=b"x" * 600_000).status_code == 413
    assert server.client.post("/nothing", content=b"{}").status_code == 404
    assert server.client.get("/nothing").status_code == 404


def test_the_nearest_stored_answer_comes_with_the_word_that_it_is_the_fallback(server: Server) -> None:
    said = server.answer("how can I get my money refunded, a refund")
    assert "Request a refund" in said
    assert "This is the fallback" in said
    assert "No stored answer fits this question" in server.answer("zxcvb qwert")


def test_the_page_answers_without_a_script_and_escapes_what_was_asked(server: Server) -> None:
    page = server.client.get("/", params={"q": "where is my order <script>"}).text
    assert "My orders" in page
    assert "This is the fallback" in page
    assert "<script>" not in page


def test_it_says_which_model_it_stands_in_for(server: Server) -> None:
    assert server.client.get("/healthz").json() == {
        "ok": True, "model": "tiny-chat", "version": 7, "commit": None, "fallback": True}


def test_it_imports_the_standard_library_alone() -> None:
    text = Path(SPACE / "app_minimal_fallback.py").read_text(encoding="utf-8")
    names = {line.split()[1].partition(".")[0] for line in text.splitlines() if line.startswith(("import ", "from "))}
    assert names <= sys.stdlib_module_names
