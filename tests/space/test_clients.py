"""The serving app as others see it: OpenAI's own client, and a fuzzer that reads the app's schema."""

import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.fakes.space_process import SPACE, Server, needs_serving, serve, unpack

pytestmark = needs_serving
FUZZER = Path(sys.executable).with_name("schemathesis")
# 413 refuses what breaks the schema and is too large as well, which the fuzzer does not know.
SETTINGS = """[checks.negative_data_rejection]
expected-statuses = ["400", "404", "405", "413", "429"]
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    bundle = unpack(tmp_path_factory.mktemp("space"))
    with serve(SPACE / "app.py", MODEL_DIR=str(bundle), MAX_NEW_TOKENS="40") as started:
        yield started


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.client.base_url}/v1", api_key="none", max_retries=0) as made:
        yield made


def test_openais_client_is_told_what_was_wrong(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="messages"):
        client.chat.completions.create(model="tiny-chat", messages=[])
    with pytest.raises(openai.NotFoundError, match="there is no model gpt"):
        client.chat.completions.create(model="gpt", messages=[{"role": "user", "content": "hello"}])


def test_openais_client_chats_and_streams_the_same_answer(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny-chat"]
    ask: Any = partial(client.chat.completions.create, model="tiny-chat", max_tokens=30,
                       messages=[{"role": "user", "content": "hello"}])
    whole = ask()
    said = whole.choices[0].message.content or ""
    *chunks, last = ask(stream=True, stream_options={"include_usage": True})
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == said
    assert len(said) == 30
    assert last.usage == whole.usage
    assert whole.choices[0].finish_reason == chunks[-1].choices[0].finish_reason == "length"


@pytest.mark.parametrize("examples", [15, pytest.param(3000, marks=pytest.mark.slow)])
def test_what_a_fuzzer_makes_of_the_schema_is_answered_as_the_schema_says_and_never_with_5xx(
    server: Server, examples: int, tmp_path: Path
) -> None:
    before = server.metric('chat_requests_total{path="/v1/chat/completions",status="200"}')
    (tmp_path / "schemathesis.toml").write_text(SETTINGS)
    # A schema cannot say that the user speaks last, so what it allows may be refused.
    command = [str(FUZZER), "run", f"{server.client.base_url}/openapi.json", f"--max-examples={examples}", "--no-color",
               "--exclude-checks=positive_data_acceptance"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout[-4000:]
    assert server.metric('chat_requests_total{path="/v1/chat/completions",status="200"}') > before + 10
    assert server.metric('chat_requests_total{path="/v1/chat/completions",status="5') == 0
