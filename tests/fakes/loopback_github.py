"""GitHub's REST API as far as a comment on a pull request needs it, on this machine."""

import json
import re
from collections.abc import Iterator
from email.message import Message
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.fakes.local_http import LocalServer

TOKEN = "ghs_canary"
REPO = "acme/shop"
BOT = "github-actions[bot]"


class LoopbackGithub(LocalServer):
    """A context manager. pulls: branch to number; comments: what stands, oldest first; asked: the requests made."""

    def __init__(self) -> None:
        self.pulls: dict[str, int] = {"feature": 7}
        self.comments: list[dict[str, Any]] = []
        self.asked: list[str] = []
        self.login = BOT
        self.refuse: int | None = None  # the status of every write

    def environment(self, *, token: str = TOKEN) -> dict[str, str]:
        return {"GITHUB_API_URL": self.url, "GITHUB_REPOSITORY": REPO, "GITHUB_TOKEN": token}

    def add(self, body: str, login: str | None) -> dict[str, Any]:
        number = len(self.comments) + 1
        self.comments.append({"id": number, "body": body, "user": {"login": login} if login else None,
                              "html_url": f"https://github.com/{REPO}/pull/7#issuecomment-{number}"})
        return self.comments[-1]

    def answer(self, method: str, path: str, headers: Message, body: bytes) -> tuple[int, Any]:
        self.asked.append(f"{method} {path}")
        if headers["Authorization"] != f"Bearer {TOKEN}":
            return 401, {"message": "Bad credentials"}
        if method == "GET":
            return self._read(urlsplit(path).path, parse_qs(urlsplit(path).query))
        if self.refuse:
            return self.refuse, {"message": "Resource not accessible by integration"}
        return self._write(method, path, json.loads(body)["body"])

    def _read(self, path: str, query: dict[str, list[str]]) -> tuple[int, Any]:
        if path == "/user":
            return (403, {"message": "Resource not accessible"}) if self.login == BOT else (200, {"login": self.login})
        if path == f"/repos/{REPO}/pulls":
            owner, _, branch = query["head"][0].partition(":")
            assert (owner, query["state"]) == (REPO.partition("/")[0], ["open"])
            return 200, [{"number": self.pulls[branch]}] if branch in self.pulls else []
        if path != f"/repos/{REPO}/issues/7/comments":
            return 404, {"message": "Not Found"}
        size, page = (int(query[name][0]) for name in ("per_page", "page"))
        return 200, self.comments[size * (page - 1):size * page]

    def _write(self, method: str, path: str, body: str) -> tuple[int, Any]:
        if (method, path) == ("POST", f"/repos/{REPO}/issues/7/comments"):
            return 201, self.add(body, self.login)
        found = re.fullmatch(rf"/repos/{REPO}/issues/comments/(\d+)", path)
        if method != "PATCH" or found is None:
            return 404, {"message": "Not Found"}
        self.comments[int(found[1]) - 1]["body"] = body
        return 200, self.comments[int(found[1]) - 1]


def started() -> Iterator[LoopbackGithub]:
    """For a fixture."""
    with LoopbackGithub() as github:
        yield github
