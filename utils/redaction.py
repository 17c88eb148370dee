"""No token leaves the process: what is logged, printed or recorded goes through here."""

import base64
import logging
import os
import re
import sys
import traceback
from collections.abc import Iterator
from types import TracebackType
from urllib.parse import quote

_SECRET_WORDS = {"TOKEN", "PASSWORD", "PGPASSWORD", "PASSWD", "SECRET", "SECRETS", "KEY"}
_NO_SECRETS = {"PATH", "FILE", "DIR", "ID", "URL"}  # the last word of HF_TOKEN_PATH and the like
_LEAST = 6  # characters; replacing less would garble any text
_HUB_TOKEN = re.compile(r"hf_[A-Za-z0-9]{20,}")
_USERINFO = re.compile(r"(?<=://)[^\s/@'\"]+@")


def redacted(text: str) -> str:
    """Text with *** for the Hub's tokens, user names and passwords in addresses, and what the environment hides.

    Hidden are the values of variables that are named a token, password, secret or key, also as a URL or HTTP's basic
    authentication writes them.
    """
    for secret in sorted(set(_secrets()), key=len, reverse=True):
        text = text.replace(secret, "***")
    return _USERINFO.sub("***@", _HUB_TOKEN.sub("***", text))


class Formatter(logging.Formatter):
    """Formats a record, traceback included, and redacts it."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one redacted text."""
        return redacted(super().format(record))


def show_exception(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A sys.excepthook that redacts the traceback."""
    sys.stderr.write(redacted("".join(traceback.format_exception(kind, error, trace))))


def _secrets() -> Iterator[str]:
    for name, value in os.environ.items():
        words = name.upper().split("_")
        if not _SECRET_WORDS.isdisjoint(words) and words[-1] not in _NO_SECRETS:
            for part in (value.strip(), *value.split()):
                if len(part) >= _LEAST:
                    yield from (part, quote(part, safe=""))
    user, password = (os.environ.get(f"MLFLOW_TRACKING_{name}", "") for name in ("USERNAME", "PASSWORD"))
    if password:
        yield base64.b64encode(f"{user}:{password}".encode()).decode()
