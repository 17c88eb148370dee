"""Faults of the loopback hub, by name: the rules that make them, and how a deployment must end."""

from collections.abc import Mapping
from typing import Any

from tests.fakes.loopback_hub import READ, UNKNOWN
from tests.fakes.promoted import REPO

RELEASE, MAIN = "/commit/release/", "/commit/main"
LOCK = {"status": 409, "body": {"error": "Another commit operation is in progress"}}
EXPIRED = {"status": 401, "body": {"error": "Invalid credentials in Authorization header"}, "times": 999}
FORBIDDEN = {"status": 403, "body": {"error": "You don't have the rights to write to this repository"}, "times": 999}
PAGE = {"status": 502, "headers": {"Content-Type": "text/html"}, "body": "<html>bad gateway</html>"}
LOST = {"after": True, "close": True}
Rule = dict[str, Any]
Rules = list[Rule]

PASSING: Mapping[str, Rules] = {
    "500 at the release's commit": [{"path": RELEASE, "status": 500}],
    "500 at main's commit, which was made": [{"path": MAIN, "status": 500, "after": True}],
    "429, Retry-After: 1": [{"path": RELEASE, "status": 429, "headers": {"Retry-After": "1"}}],
    "connection reset in the data": [{"path": "/_lfs/", "reset": True}],
    "lost replies of both commits": [{"path": path, **LOST} for path in (RELEASE, MAIN)],
    "stale parent on main (412)": [{"path": MAIN, "intrude": {
        "repo": REPO, "files": {"notes.txt": "by somebody else"}}}],
    "lock at both commits (409)": [{"path": path, **LOCK} for path in (RELEASE, MAIN)],
    "a proxy's page instead of an answer": [{"path": "/refs", **PAGE}],
    "an upload in which nothing moves": [{"path": "/_lfs/", "delay": 60}],
}
LASTING: Mapping[str, tuple[Mapping[str, str], Rules, int]] = {  # environment, rules, exit code
    "read-only token": ({"HF_TOKEN": READ}, [], 6),
    "expired token": ({"HF_TOKEN": UNKNOWN}, [], 6),
    "no server": ({"HF_ENDPOINT": "http://127.0.0.1:9"}, [], 6),
    "a server that never answers": ({}, [{"path": "^/api", "delay": 60, "times": 999}], 6),
    "answers that drip, a byte in 0.1 s": ({}, [{"path": "^/api", "drip": 0.1, "times": 999}], 6),
    "500 for ever at the release's commit": ({}, [{"path": RELEASE, "status": 500, "times": 999}], 6),
    "429, Retry-After: 3600": ({}, [{"path": "/preupload/release/", "status": 429, "headers": {"Retry-After": "3600"},
                                     "times": 999}], 6),
    "token without the right (403) at the release's commit": ({}, [{"path": RELEASE, **FORBIDDEN}], 6),
    "token expires (401) at the release's commit": ({}, [{"path": RELEASE, **EXPIRED}], 6),
    "token expires (401) at main's commit": ({}, [{"path": MAIN, **EXPIRED}], 75),
    "500 for ever at main's commit": ({}, [{"path": MAIN, "status": 500, "times": 999}], 75),
}

# At one request, and at it and all that follow.
ONCE: Mapping[str, Rule] = {
    "500": {"status": 500},
    "500 though the work was done": {"status": 500, "after": True},
    "connection reset": {"reset": True},
    "lost reply": LOST,
    "429": {"status": 429, "headers": {"Retry-After": "0"}},
    "409": LOCK,
}
FROM_THERE_ON: Mapping[str, Rule] = {
    "503": {"status": 503, "times": 9999},
    "connection reset": {"reset": True, "times": 9999},
    "token expired (401)": {**EXPIRED, "times": 9999},
    "token without the right (403)": {**FORBIDDEN, "times": 9999},
}
