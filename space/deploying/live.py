"""Check the live Space as its visitors use it: health, version, a chat and the page."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx2

from deploying.hub import clean

NOTICE = "This is the fallback"  # what it says in every answer
_SECONDS = 60.0  # one request; a small machine's first answer takes its time
_APART = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.ProxyError, httpx2.UnsupportedProtocol, httpx2.InvalidURL)
_QUESTION = {"messages": [{"role": "user", "content": "Where is my order?"}], "max_tokens": 16}


@dataclass(frozen=True)
class Expected:
    """What /healthz has to state (empty: anything), and whether the fallback has to answer (None: either)."""

    answers: Mapping[str, Any]
    fallback: bool | None = False


@dataclass(frozen=True)
class LiveCheck:
    """What one check found: /healthz, and what is wrong (empty if nothing is).

    reached: /healthz answered. connected: there was a connection; if not, this machine's network may be at fault.
    """

    health: Mapping[str, Any]
    wrong: str = ""
    reached: bool = True
    connected: bool = True


def check(address: str, expected: Expected, *, token: str | None = None) -> LiveCheck:
    """Ask for the health, a chat and the page, once. The token is for a private Space, and goes to its address."""
    health: dict[str, Any] = {}
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with httpx2.Client(base_url=address, headers=headers, timeout=_SECONDS, follow_redirects=False) as client:
            told = client.get("/healthz")
            if told.status_code != httpx2.codes.OK:
                return LiveCheck({}, f"{address}/healthz answers {told.status_code}", reached=False)
            health = _mapping(told)
            wrong = _wrong_health(health, expected) or _wrong_chat(client, expected) or _wrong_page(client)
            return LiveCheck(health, wrong)
    except (ValueError, LookupError, TypeError):
        return LiveCheck(health, f"{address}: the answers are not this app's")
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        line = clean(f"{address}: {type(error).__name__}: {error}")
        if isinstance(error, _APART) and not health:
            return LiveCheck(health, f"cannot be reached from here: {line}", reached=False, connected=False)
        return LiveCheck(health, line, reached=False)


def settle(address: str, expected: Expected, seconds: float, *, token: str | None = None) -> LiveCheck:
    """Check until all is right, for so long: a Space that runs may still show what ran before."""
    end, pause = time.monotonic() + seconds, 0.5
    while (seen := check(address, expected, token=token)).wrong and time.monotonic() < end:
        time.sleep(pause)
        pause = min(2 * pause, 5)
    return seen


def _wrong_health(health: Mapping[str, Any], expected: Expected) -> str:
    if not health.get("ok"):
        return f"/healthz says {clean(str(dict(health)))[:200]}"
    if expected.fallback not in (None, bool(health.get("fallback"))):
        return "the fallback answers" if health.get("fallback") else "the app answers, not the fallback"
    wrong = [f"{key} {health.get(key)}, not {value}" for key, value in expected.answers.items()
             if health.get(key) != value and (key in health or key != "digest")]  # which the fallback does not tell
    return f"another version answers: {', '.join(wrong)}" if wrong else ""


def _wrong_chat(client: httpx2.Client, expected: Expected) -> str:
    reply = client.post("/v1/chat/completions", json=_QUESTION)
    choices = _mapping(reply).get("choices") if reply.status_code == httpx2.codes.OK else None
    if not choices:
        return f"a chat is answered {reply.status_code}: {clean(reply.text)[:200]}"
    said = str(choices[0]["message"]["content"])
    if expected.fallback and NOTICE not in said:
        return "the fallback does not say that it is the fallback"
    return "" if said.strip() else "a chat is answered with nothing"


def _wrong_page(client: httpx2.Client) -> str:
    page = client.get("/")
    is_page = page.status_code == httpx2.codes.OK and page.headers.get("content-type", "").startswith("text/html")
    return "" if is_page else f"the page answers {page.status_code}"


def _mapping(reply: httpx2.Response) -> dict[str, Any]:
    found = reply.json()
    if not isinstance(found, dict):
        raise TypeError("expected an object")
    return found
