"""Git repositories over HTTP as GitHub serves them: anybody may fetch, a push needs a token that may write."""

import base64
import os
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

from tests.fakes.local_http import Handler, LocalServer


class GitServer(LocalServer):
    """A context manager around a folder of bare repositories; `may_write` says what the token may do just now."""

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
