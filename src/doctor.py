"""What a check of the services found: one line and one remedy for each. Pure."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from src.errors import PipelineError

State = Literal["ok", "warning", "failed", "unused"]

# 2.9: params of 6,000 characters, which a ledger slot needs (2.8), and aliases (2.3); measured against 2.9.2.
OLDEST_MLFLOW = (2, 9)
_SPOKEN = {"ok": "ok", "warning": "warning", "failed": "FAILED", "unused": "not used"}


@dataclass(frozen=True)
class Check:
    """One service. code is the exit code that a failed one calls for; remedy is empty where there is nothing to do."""

    service: str
    state: State
    text: str
    remedy: str
    code: int


def good(service: str, text: str) -> Check:
    """It works."""
    return Check(service, "ok", text, "", 0)


def unused(service: str, text: str) -> Check:
    """The configuration does not ask for it."""
    return Check(service, "unused", text, "", 0)


def doubtful(service: str, text: str, remedy: str) -> Check:
    """It works, and somebody may want to know."""
    return Check(service, "warning", text, remedy, 0)


def failed(service: str, code: int, text: str, remedy: str) -> Check:
    """It does not work as configured."""
    return Check(service, "failed", text, remedy, code)


def failure(service: str, error: PipelineError) -> Check:
    """What an error says: its last part, after a semicolon, is the remedy."""
    text, _, remedy = " ".join(str(error).split()).rpartition("; ")
    return failed(service, error.code, text or remedy, remedy if text else "see docs/troubleshooting.md")


def is_too_old(version: str) -> bool:
    """Whether an MLflow server of this version lacks what the ledger needs; an unreadable version is not."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return found is not None and (int(found[1]), int(found[2])) < OLDEST_MLFLOW


def exit_code(checks: Sequence[Check]) -> int:
    """That of the first failed check, 0 where none failed."""
    return next((check.code for check in checks if check.state == "failed"), 0)


def facts(checks: Sequence[Check]) -> dict[str, Any]:
    """All that --json says."""
    return {"code": exit_code(checks), "checks": [asdict(check) for check in checks]}


def text(checks: Sequence[Check]) -> str:
    """A line for each service."""
    return "\n".join(_lines(checks))


def _lines(checks: Sequence[Check]) -> Iterator[str]:
    for check in checks:
        remedy = f"; {check.remedy}" if check.remedy else ""
        yield f"{_SPOKEN[check.state]:8}  {check.service:7}  {check.text}{remedy}"
