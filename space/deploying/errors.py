"""How a deployment can end badly: one line each, and the exit code of docs/exit-codes.md."""

from __future__ import annotations

import os
import re

_TOKEN = re.compile(r"hf_[A-Za-z0-9]{20,}")
_QUERY = re.compile(r"(https?://[^\s?'\"]+)\?[^\s'\"]+")
_USERINFO = re.compile(r"(?<=://)[^\s/@'\"]+@")


class DeployError(Exception):
    """What, where, and what to do next."""

    code = 1


class Usage(DeployError):
    """A flag, a setting or a token is missing or wrong."""

    code = 2


class BadInput(DeployError):
    """The folder is not fit to be deployed."""

    code = 3


class Unsound(DeployError):
    """The bundle, or the version that answers, is not what was validated."""

    code = 5


class HubFailed(DeployError):
    """The Hub failed or refused, or the Space did not come up."""

    code = 6


class Later(DeployError):
    """Somebody else was faster: run it again."""

    code = 75


class Busy(Later):
    """The Hub is busy or out of reach: it may pass by itself."""


def clean(text: str) -> str:
    """Text fit to be shown: one line, without a token, a user's name in an address or a signed query."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        secret = os.environ.get(name, "").strip()
        text = text.replace(secret, "***") if secret else text
    return _QUERY.sub(r"\1", _USERINFO.sub("***@", _TOKEN.sub("***", " ".join(text.split()))))
