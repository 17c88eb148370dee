"""GitHub on this machine: its REST API as far as a comment on a pull request needs it, and its git over HTTP."""

import base64
import json
import os
import re
import subprocess
from collections.abc import Iterator
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.fakes.local_http import Handler, LocalServer

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


class GitServer(LocalServer):
    """A folder of bare repositories: anybody may fetch, a push needs the token, which `may_write` just now or not."""

    def __init__(self, folder: Path, token: str) -> None:
        self.folder, self.may_write = folder, False
        self.login = base64.b64encode(f"x-access-token:{token}".encode()).decode()


class _Handler(Handler):
    owner: GitServer

    def _serve(self) -> None:
        asked = urlsplit(self.path)
        writes = "git-receive-pack" in self.path
        if writes and self.headers.get("Authorization", "").partition(" ")[2] != self.owner.login:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="GitHub"')
            self.end_headers()
        elif writes and not self.owner.may_write:
            self.send_error(403, "Permission to write denied to github-actions[bot]")
        else:
            self._backend(asked.path, asked.query)

    def _backend(self, path: str, query: str) -> None:
        """As CGI wants it; small pushes come in one piece."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        done = subprocess.run(["git", "http-backend"], input=body, capture_output=True, check=True, env={
            "PATH": os.environ["PATH"], "GIT_PROJECT_ROOT": str(self.owner.folder), "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": path, "QUERY_STRING": query, "REQUEST_METHOD": self.command, "REMOTE_USER": "github-actions",
            "CONTENT_TYPE": self.headers.get("Content-Type") or "", "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding") or "",
            "GIT_PROTOCOL": self.headers.get("Git-Protocol") or ""})
        head, _, answer = done.stdout.partition(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        self.send_response(int(fields.pop("Status", "200").split()[0]))
        for name, value in {**fields, "Content-Length": str(len(answer))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST = _serve  # noqa: N815 - the library's names


GitServer.handler = _Handler
