"""One Hub repository as it is: may the token publish there, what do main, branches and tags hold."""

import hashlib
import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from huggingface_hub import HfApi, get_session, hf_hub_url
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils._headers import build_hf_headers
from huggingface_hub.utils._http import hf_raise_for_status
from huggingface_hub.utils.sha import git_hash

from src.errors import HubError, IntegrityError, InvalidParams
from src.hub_records import MANIFEST, HubState
from src.manifest import tree_digest
from utils.hub_client import HubBusy, endpoint, talking, time_limit
from utils.hub_identity import no_token, who

logger = logging.getLogger(__name__)

MAIN = "main"
ATTRIBUTES = ".gitattributes"  # the Hub keeps it for itself
MAX_PAUSE = 8.0  # seconds
READ_SECONDS = 60.0  # for an operation that only looks
NOT_FOUND = 404
T = TypeVar("T")


@dataclass(frozen=True)
class Patience:
    """How long to go on, all in seconds but `attempts`.

    deadline limits one operation, request one wait for the network, stall an upload in which nothing moves; a failed
    attempt is repeated after backoff, then twice that, and so on.
    """

    deadline: float
    request: float
    stall: float
    attempts: int
    backoff: float

    @classmethod
    def within(cls, seconds: float) -> "Patience":
        """The usual patience under this deadline."""
        return cls(deadline=seconds, request=30, stall=180, attempts=8, backoff=1)


@dataclass(frozen=True)
class Commit:
    """A commit and its files, path to sha256, without .gitattributes."""

    oid: str
    files: dict[str, str]


class HubReader:
    """The reading half of HubRepository; raises HubError where the Hub fails or refuses."""

    def __init__(self, *, repo_id: str, token: str | None, private: bool, patience: Patience) -> None:
        self.repo_id, self._token, self._private, self._patience = repo_id, token, private, patience
        self._api = HfApi(endpoint=endpoint(), token=token or False)
        self._sha256_of_blob: dict[str, str] = {}  # by git id
        self._end = 0.0

    def check(self) -> None:
        """Prove that the token may publish here; raises InvalidParams without one, HubError with the remedy."""
        if self._token is None:
            raise InvalidParams(no_token())
        self._ask(self._check)

    def tree(self, revision: str) -> dict[str, str] | None:
        """Path to sha256 without .gitattributes; None where repository or revision are absent."""
        commit = self._ask(lambda: self._read(revision))
        return commit.files if commit else None

    def holds_release(self) -> bool:
        """Whether main shows a Champion release, or any tag v<number> stands."""
        return MANIFEST in (self.tree(MAIN) or {}) or any(re.fullmatch(r"v\d+", tag) for tag in self.state().tags)

    def state(self) -> HubState:
        """What main, the tags and the branches are now."""
        return self._ask(self._state)

    def _ask(self, action: Callable[[], T]) -> T:
        return self._persist(action, min(READ_SECONDS, self._patience.deadline))

    def _persist(self, action: Callable[[], T], seconds: float) -> T:
        """Repeat an operation until it is done, refused, or out of time."""
        patience, pause = self._patience, self._patience.backoff
        self._end = time.monotonic() + seconds
        for attempt in range(1, patience.attempts + 1):
            try:
                return self._once(action)
            except HubBusy as busy:
                wait = pause if busy.retry_after is None else busy.retry_after
                if attempt == patience.attempts or time.monotonic() + wait > self._end:
                    raise HubError(f"{busy}; gave up after attempt {attempt}, run it again later") from busy
                logger.warning("%s; attempt %d in %.0f s", busy, attempt + 1, wait)
                time.sleep(wait)
                pause = min(2 * pause, MAX_PAUSE)
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _once(self, action: Callable[[], T]) -> T:
        seconds = self._end - time.monotonic()
        with time_limit(seconds, self._patience.request, client_waits=0), talking(self.repo_id):
            return action()

    def _check(self) -> None:
        identity = who(self._api)
        exists = self._read(MAIN) is not None
        if not identity.may_write(self.repo_id, creating=not exists):
            doing = "write to" if exists else "create"
            raise HubError(f"{self.repo_id}: the token of {identity.name} may not {doing} it ({identity.rights()}); "
                           "set HF_TOKEN to one that has write access there")
        if exists:
            self._api.auth_check(self.repo_id, write=True)

    def _read(self, revision: str) -> Commit | None:
        try:
            info = self._api.model_info(self.repo_id, revision=revision, files_metadata=True)
        except RevisionNotFoundError:
            return None
        except RepositoryNotFoundError as error:
            if error.response.status_code != NOT_FOUND:  # 401: it may be there, hidden from this token
                raise
            return None
        siblings = [sibling for sibling in info.siblings or [] if sibling.rfilename != ATTRIBUTES]
        oid = str(info.sha)
        return Commit(oid, {sibling.rfilename: self._sha256(oid, sibling) for sibling in siblings})

    def _sha256(self, oid: str, sibling: Any) -> str:
        """The Hub gives the sha256 of LFS files only; the others are small enough to be read."""
        if sibling.lfs:
            return str(sibling.lfs.sha256)
        if sibling.blob_id not in self._sha256_of_blob:
            data = self._download(oid, sibling.rfilename)
            if git_hash(data) != sibling.blob_id:
                raise IntegrityError(f"{self.repo_id}: {sibling.rfilename} at {oid} is not what its git id says; "
                                     "run it again, and distrust what stands between here and the Hub")
            self._sha256_of_blob[sibling.blob_id] = hashlib.sha256(data).hexdigest()
        return self._sha256_of_blob[sibling.blob_id]

    def _download(self, oid: str, path: str) -> bytes:
        url = hf_hub_url(self.repo_id, path, revision=oid, endpoint=self._api.endpoint)
        response = get_session().get(url, headers=build_hf_headers(token=self._token or False))
        hf_raise_for_status(response)
        return response.content

    def _state(self) -> HubState:
        main = self._read(MAIN)
        if main is None:
            return HubState(head=None, tree=None, tags={}, branches={})
        tags, branches = self._refs()
        return HubState(main.oid, tree_digest(main.files) if main.files else None, tags, branches)

    def _refs(self) -> tuple[dict[str, str], dict[str, str]]:
        """Tags and branches, name to commit."""
        refs = self._api.list_repo_refs(self.repo_id)
        tags, branches = ({ref.name: ref.target_commit for ref in group} for group in (refs.tags, refs.branches))
        return tags, branches
