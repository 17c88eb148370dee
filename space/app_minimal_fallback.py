"""The fallback: answer from stored questions and answers, with the standard library alone.

`cp app_minimal_fallback.py app.py` is a working deployment. It generates nothing, and says so in every answer.
"""

import html
import json
import logging
import math
import os
import re
import signal
import sys
import threading
import time
import uuid
from collections import Counter
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

logger = logging.getLogger("space")

HERE = Path(__file__).parent
NOTICE = "This is the fallback: the model is not running. The answer was stored for a similar question."
_NOTHING = "No stored answer fits this question. Please try again when the model is back."
_BODY = 512 * 1024  # bytes
_ENOUGH = 0.2  # of 1; what is less like the question is not given as an answer
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>{model}: fallback</title><link rel="icon" href="data:,"><style>
body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 42rem; margin: 2rem auto; padding: 0 1rem; }}
input, button {{ font: inherit; padding: .6rem; min-height: 2.75rem; box-sizing: border-box; }}
input {{ width: 100%; margin: .25rem 0 .5rem; }}
</style></head><body><h1>{model}</h1><p><strong>{notice}</strong></p>
<form><label for="q">Your question</label><input id="q" name="q" maxlength="4000" required value="{question}">
<button>Ask</button></form><p role="status">{answer}</p></body></html>"""


class StoredAnswers:
    """Stored answers, found by the words that their questions share with a new one (cosine of tf-idf)."""

    def __init__(self, rows: list[dict[str, str]]) -> None:
        words = [Counter(_words(row["question"])) for row in rows]
        seen = Counter(word for each in words for word in each)
        self._weights = {word: math.log(1 + len(rows) / count) for word, count in seen.items()}
        self._rows = [(self._vector(each), row["answer"]) for each, row in zip(words, rows, strict=True)]

    def nearest(self, question: str) -> str:
        """The answer to the likest question, or that there is none."""
        wanted = self._vector(Counter(_words(question)))
        likeness, answer = max(
            ((sum(wanted.get(word, 0) * value for word, value in stored.items()), answer)
             for stored, answer in self._rows), key=lambda found: found[0], default=(0.0, _NOTHING))
        return answer if likeness >= _ENOUGH else _NOTHING

    def _vector(self, words: Counter[str]) -> dict[str, float]:
        values = {word: count * self._weights[word] for word, count in words.items() if word in self._weights}
        length = math.hypot(*values.values())
        return {word: value / length for word, value in values.items()}


class Handler(BaseHTTPRequestHandler):
    """`/`, `/healthz` and `/v1/chat/completions`."""

    answers: StoredAnswers
    identity: dict[str, Any]
    timeout = 30
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """The page, which works without a script, and the health."""
        address = urlsplit(self.path)
        if address.path == "/healthz":
            self._json(HTTPStatus.OK, {"ok": True, **self.identity, "fallback": True})
        elif address.path == "/":
            question = parse_qs(address.query).get("q", [""])[0]
            answer = self.answers.nearest(question) if question else ""
            shown = {"model": self.identity["model"], "notice": NOTICE, "question": question, "answer": answer}
            page = _PAGE.format(**{key: html.escape(text) for key, text in shown.items()})
            self._send(HTTPStatus.OK, page, "text/html")
        else:
            self._refuse(HTTPStatus.NOT_FOUND, f"{address.path}: there is no such page")

    def do_POST(self) -> None:
        """A chat completion; it never streams."""
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > _BODY:
            self.close_connection = True
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE if length.isdecimal() else HTTPStatus.LENGTH_REQUIRED,
                         f"a body of at most {_BODY} bytes, with its Content-Length, is taken")
            return
        body = self.rfile.read(int(length))
        if self.path != "/v1/chat/completions":
            self._refuse(HTTPStatus.NOT_FOUND, f"{self.path}: there is no such page")
            return
        try:
            question = _question(json.loads(body))
        except (ValueError, RecursionError) as error:
            self._refuse(HTTPStatus.BAD_REQUEST, str(error))
            return
        content = f"{self.answers.nearest(question)}\n\n({NOTICE})"
        choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
        self._json(HTTPStatus.OK, {
            "id": f"chatcmpl-{uuid.uuid4().hex}", "object": "chat.completion", "created": int(time.time()),
            "model": self.identity["model"], "system_fingerprint": "fallback", "choices": [choice], "usage": usage})

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Quiet: a request is no event."""

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
        self._json(status, {"error": error})

    def _json(self, status: HTTPStatus, body: dict[str, Any]) -> None:
        self._send(status, json.dumps(body), "application/json")

    def _send(self, status: HTTPStatus, text: str, kind: str) -> None:
        body = text.encode("utf-8", "replace")
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _question(request: object) -> str:
    """The last thing the user said; raises ValueError that says what is wrong."""
    messages = request.get("messages") if isinstance(request, dict) else None
    if not isinstance(messages, list) or not all(isinstance(each, dict) for each in messages):
        raise ValueError("messages: expected a list of {role, content}")
    if isinstance(request, dict) and request.get("stream"):
        raise ValueError("stream: the fallback does not stream; ask without it")
    said = [each.get("content") for each in messages if each.get("role") == "user"]
    if not said or not isinstance(said[-1], str):
        raise ValueError("messages: expected a user's message with a text as its content")
    return said[-1]


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


def _load() -> tuple[list[dict[str, str]], dict[str, Any]]:
    """The questions, and which model this stands in for."""
    folders = [Path(os.environ["MODEL_DIR"])] if os.environ.get("MODEL_DIR") else []
    folders += [HERE / "assets", Path("assets"), Path("space/assets"), HERE]
    shipped = next(path for folder in folders if (path := folder / "questions.json").is_file())
    told = next((path for folder in folders if (path := folder / "identity.json").is_file()), None)
    known = json.loads(told.read_text(encoding="utf-8")) if told else {"model": "chat"}
    identity = {name: known.get(name) for name in ("model", "version", "commit")}
    return json.loads(shipped.read_text(encoding="utf-8")), identity


def main() -> int:
    """Serve until SIGTERM."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    rows, Handler.identity = _load()
    Handler.answers = StoredAnswers(rows)
    port = int(os.environ.get("PORT") or (7860 if os.environ.get("SPACE_ID") else 5000))
    host = os.environ.get("HOST") or "0.0.0.0"  # noqa: S104 - in a container it is reached from outside
    server = ThreadingHTTPServer((host, port), Handler)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    logger.info("%s %d stored answers; http://%s:%d", NOTICE, len(rows), host, port)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
