"""GitHub Actions: what a workflow run was asked to do, its summary page, and its one comment on the pull request."""

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from src.core.errors import InvalidParams, Refused
from src.core.params import Params, load_params, read_values
from utils import environment
from utils.process import redacted

logger = logging.getLogger(__name__)
PROFILE, THRESHOLD = "PIPELINE_PROFILE", "PIPELINE_MIN_IMPROVEMENT_THRESHOLD"
_THRESHOLD_KEY = "min_improvement_threshold"
_LEAST = 0.0001  # a smaller one is a typing error rather than a policy
_PER_PAGE = 100
_PAGES = 30
_REMEDIES = {
    401: "the token is wrong or has expired",
    403: "give the job `pull-requests: write`; a pull request from a fork gets a read-only token and no comment",
    404: "give the job `pull-requests: write`, and check GITHUB_REPOSITORY",
}


@dataclass(frozen=True)
class Overrides:
    """Parameters for this run only; empty if params.yaml is used as it is."""

    profile: str
    threshold: str

    def settings(self, config: Path) -> list[str]:
        """What `dvc exp run -S` takes; none: `dvc repro`. A threshold replaces that of the profile too."""
        given = {"profile": self.profile, f"deployment.{_THRESHOLD_KEY}": self.threshold}
        if self.threshold:
            values = read_values(config)
            name = self.profile or values.get("profile")
            if _THRESHOLD_KEY in ((values.get("profiles", {}).get(name) or {}).get("deployment") or {}):
                given[f"profiles.{name}.deployment.{_THRESHOLD_KEY}"] = self.threshold
        return [f"{key}={value}" for key, value in given.items() if value]


def overrides() -> Overrides:
    """PIPELINE_PROFILE and PIPELINE_MIN_IMPROVEMENT_THRESHOLD, not yet checked against params.yaml."""
    return Overrides(*(os.environ.get(name, "").strip() for name in (PROFILE, THRESHOLD)))


def checked_params(config: Path) -> Params:
    """The parameters that this run will work with.

    Raises Refused for an event that may not promote, and InvalidParams for an unknown profile, a threshold out of
    range, an unclear switch, or a forced promotion without the reason that params ask for.
    """
    _check_event()
    asked = overrides()
    given = {"deployment": {_THRESHOLD_KEY: _threshold(asked.threshold)}} if asked.threshold else {}
    params = load_params(config, given, profile=asked.profile)
    # As the deployment will ask, but for the Hub's token, which this step is not given.
    hub = params.deployment.huggingface.model_copy(update={"push_to_hub": False})
    unpushed = params.deployment.model_copy(update={"huggingface": hub})
    forced = environment.asked(unpushed, force=False, reason=None, skip_hf_push=False)
    if forced.force:
        logger.info("a forced promotion is asked for; reason: %s", forced.reason or "none given")
    return params


def _check_event() -> None:
    event, kind = os.environ.get("GITHUB_EVENT_NAME", ""), os.environ.get("GITHUB_REF_TYPE", "")
    if event and event not in ("push", "workflow_dispatch"):
        raise Refused(f"GITHUB_EVENT_NAME: a {event} event never promotes; push the branch, or start the workflow by "
                      "hand")
    if kind and kind != "branch":
        raise Refused(f"GITHUB_REF_TYPE: this is a {kind}; start the workflow from a branch, where its records can go")


def _threshold(text: str) -> float:
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", text) or 0 < float(text) < _LEAST:
        raise InvalidParams(f"{THRESHOLD}: {text!r} is no usable threshold; give 0, or a decimal number from "
                            f"{_LEAST} to 1 such as 0.002")
    return float(text)


def branch() -> str | None:
    """The branch that the workflow run is about, a pull request's own; None outside of Actions."""
    return os.environ.get("GITHUB_HEAD_REF", "").strip() or os.environ.get("GITHUB_REF_NAME", "").strip() or None


def append_summary(text: str) -> bool:
    """Add to the job's summary page; False if GITHUB_STEP_SUMMARY names none."""
    path = os.environ.get("GITHUB_STEP_SUMMARY", "").strip()
    if not path:
        return False
    try:
        with Path(path).open("a", encoding="utf-8") as page:
            page.write(text + "\n")
    except OSError as error:
        raise InvalidParams(f"GITHUB_STEP_SUMMARY: {path}: {error.strerror}; unset it to see the page here") from None
    return True


class GithubError(Exception):
    """GitHub refused or did not answer: a warning and no exit code, so it is none of src.core.errors."""


class PullRequests:
    """The pull requests of GITHUB_REPOSITORY at GITHUB_API_URL; raises GithubError."""

    def __init__(self) -> None:
        """Raises InvalidParams if GITHUB_REPOSITORY or GITHUB_TOKEN is missing."""
        self._name, token = (os.environ.get(each, "").strip() for each in ("GITHUB_REPOSITORY", "GITHUB_TOKEN"))
        if not self._name or not token:
            missing = "GITHUB_TOKEN" if self._name else "GITHUB_REPOSITORY"
            raise InvalidParams(f"{missing}: not set; in a workflow, pass the step "
                                "`GITHUB_TOKEN: ${{ github.token }}`")
        api = os.environ.get("GITHUB_API_URL", "").strip().rstrip("/") or "https://api.github.com"
        self._client = httpx2.Client(base_url=api, timeout=10, headers={
            "Authorization": f"Bearer {token}", "Accept": "application/vnd.github+json",
            "X-GitHub-Api-Version": "2022-11-28"})

    def number(self) -> int | None:
        """The pull request that the event is about, else the open one of this branch; None if there is none."""
        event = _event().get("pull_request")
        if isinstance(event, Mapping) and isinstance(event.get("number"), int):
            return int(event["number"])
        head = branch()
        if head is None:
            return None
        query = {"head": f"{self._name.partition('/')[0]}:{head}", "state": "open"}
        found = self._ask("GET", f"/repos/{self._name}/pulls", params=query)
        return int(found[0]["number"]) if found else None

    def comment(self, number: int, body: str, marker: str) -> str:
        """Write our comment on a pull request, over the one that stands; returns its address.

        Ours begins with the marker and is by whom the token belongs to: anybody may write a marker.
        """
        path, login = f"/repos/{self._name}/issues", self._login()
        for comment in self._comments(f"{path}/{number}/comments"):
            if (comment["user"] or {}).get("login") == login and str(comment["body"]).startswith(marker):
                made = self._ask("PATCH", f"{path}/comments/{comment['id']}", json={"body": body})
                break
        else:
            made = self._ask("POST", f"{path}/{number}/comments", json={"body": body})
        return str(made["html_url"])

    def _comments(self, path: str) -> Iterator[dict[str, Any]]:
        for page in range(1, _PAGES + 1):
            comments = self._ask("GET", path, params={"per_page": _PER_PAGE, "page": page})
            yield from comments
            if len(comments) < _PER_PAGE:
                return

    def _login(self) -> str:
        """The account that the token writes as; a workflow's own GITHUB_TOKEN may not ask for it."""
        try:
            return str(self._ask("GET", "/user")["login"])
        except GithubError as error:
            if isinstance(error.__cause__, httpx2.HTTPStatusError):
                return "github-actions[bot]"
            raise

    def _ask(self, method: str, path: str, **more: Any) -> Any:
        try:
            answer = self._client.request(method, path, **more)
            answer.raise_for_status()
            return answer.json()
        except httpx2.HTTPStatusError as error:
            status = error.response.status_code
            raise GithubError(f"{self._client.base_url}: {method} {path}: {status} {error.response.reason_phrase}; "
                              f"{_REMEDIES.get(status, 'run the step again')}") from error
        except (httpx2.HTTPError, httpx2.InvalidURL, json.JSONDecodeError) as error:
            what = f"{type(error).__name__}: {redacted(str(error))}"
            raise GithubError(f"{self._client.base_url}: {method} {path}: {what}; check GITHUB_API_URL and network, "
                              "and run the step again") from error


def _event() -> Mapping[str, Any]:
    path = os.environ.get("GITHUB_EVENT_PATH", "").strip()
    try:
        event = json.loads(Path(path).read_bytes()) if path else {}
    except (OSError, ValueError):
        return {}
    return event if isinstance(event, Mapping) else {}
