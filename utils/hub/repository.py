"""One Hub repository: what it holds, publishing to it, and the promotion protocol's view of it."""

import hashlib
import logging
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import CommitOperationCopy, CommitOperationDelete, HfApi, get_session, hf_hub_url
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils._headers import build_hf_headers
from huggingface_hub.utils._http import hf_raise_for_status
from huggingface_hub.utils.sha import git_hash

from src.core.errors import HubError, IntegrityError, InvalidParams
from src.core.params import HuggingFaceParams
from src.core.records import manifest, tree_digest
from src.ledger.ports import LEDGER_BRANCH, LEDGER_FILE, MANIFEST, HubState
from src.ledger.slots import HubRef, LedgerView, Slot
from utils.environment import token
from utils.hub.client import HubBusy, endpoint, explained, hub_errors, time_limit
from utils.hub.identity import TokenOwner, no_token, who
from utils.hub.upload import Job, XetFailed, commit_files

logger = logging.getLogger(__name__)
MAIN = "main"
ATTRIBUTES = ".gitattributes"  # the Hub manages this file itself
T = TypeVar("T")
_NO_SUCH_ROUTE = {404, 405, 501}  # from a Hub without that route; for an absent repository it is RepoNotFound
MARK = "Champion: "  # our commits' titles begin with it


@dataclass(frozen=True)
class Patience:
    """Time limits and retries, all in seconds but `attempts`.

    deadline limits one operation, request one wait for the network, stall an upload that sends no byte. A failed
    attempt is repeated after backoff, then after twice that, and so on.
    """

    deadline: float
    request: float
    stall: float
    attempts: int
    backoff: float

    @classmethod
    def within(cls, seconds: float) -> "Patience":
        """The usual limits under this deadline."""
        return cls(deadline=seconds, request=30, stall=180, attempts=8, backoff=1)


@dataclass(frozen=True)
class Commit:
    """A commit and its files, path to sha256, without .gitattributes."""

    oid: str
    files: dict[str, str]


class HubRepository:
    """One model repository. Raises HubError if the Hub fails or refuses, IntegrityError if bytes differ."""

    def __init__(self, *, repo_id: str, token: str | None, private: bool, patience: Patience) -> None:
        self.repo_id, self._token, self._private, self._patience = repo_id, token, private, patience
        self._api = HfApi(endpoint=endpoint(), token=token or False)
        self._sha256_of_blob: dict[str, str] = {}  # by git id
        self._end = 0.0
        self._xet = True  # until Xet has failed once

    def check(self) -> None:
        """Check that the token may publish here. Raises InvalidParams for a token that is missing, wrong or may not.

        Raises HubError if the Hub does not answer, or refuses although the token's own scopes allow it.
        """
        if self._token is None:
            raise InvalidParams(no_token())
        self._ask(self._check)

    def tree(self, revision: str) -> dict[str, str] | None:
        """Path to sha256 without .gitattributes; None if repository or revision do not exist."""
        commit = self._ask(lambda: self._read(revision))
        return commit.files if commit else None

    def holds_release(self) -> bool:
        """True if main shows a Champion release, or there is any tag v<number>."""
        return MANIFEST in (self.tree(MAIN) or {}) or any(re.fullmatch(r"v\d+", tag) for tag in self.state().tags)

    def state(self) -> HubState:
        """Main, tags and branches as they are now."""
        return self._ask(self._state)

    def holds(self, release: HubRef) -> bool:
        """True if a release's commit is there, with its files."""
        files = self.tree(release.commit)
        return files is not None and tree_digest(files) == release.tree

    def publish(self, folder: Path, branch: str, message: str) -> HubRef:
        """Publish the folder as one verified commit on its own branch; no new commit if the branch holds it already."""
        wanted = manifest(folder)
        self._learn(folder / path for path in wanted)
        return self._act(lambda: self._publish(folder, wanted, branch, message))

    def tagged(self, tag: str) -> HubRef | None:
        """The release that a tag names; None if there is no such tag."""
        commit = self.state().tags.get(tag)
        files = self.tree(commit) if commit else None
        return HubRef(repo=self.repo_id, commit=commit, tree=tree_digest(files)) if commit and files else None

    def restore_tags(self, releases: Mapping[str, HubRef]) -> list[str]:
        """Create those of these tags that are missing, at their releases' commits; returns the created ones."""
        tags = self.state().tags
        missing = [tag for tag, release in releases.items() if tag not in tags and self.holds(release)]
        for tag in missing:
            self._act(partial(self._api.create_tag, self.repo_id, tag=tag, revision=releases[tag].commit))
        return missing

    def project(self, release: HubRef, tag: str, branch: str) -> None:
        """Make main equal to the release's tree and tag its commit; then delete its branch, if nothing else is there.

        Needs no local file. An existing tag at another commit raises IntegrityError: tags never move.
        """
        self._act(lambda: self._project(release, tag, branch))

    def mirror(self, lines: Sequence[str]) -> None:
        """Append to ledger.jsonl on the branch `ledger`; raises IntegrityError if it holds other lines."""
        self._act(lambda: self._mirror(list(lines)))

    def mirrored(self) -> list[str] | None:
        """The mirrored lines, None if there is no mirror."""
        return self._ask(lambda: self._lines(self._read(LEDGER_BRANCH)))

    def _ask(self, action: Callable[[], T]) -> T:
        """Run an operation that only reads."""
        return self._persist(action, min(60.0, self._patience.deadline))

    def _act(self, action: Callable[[], T]) -> T:
        return self._persist(action, self._patience.deadline)

    def _persist(self, action: Callable[[], T], seconds: float) -> T:
        """Repeat an operation until it succeeds, is refused, or the time is over."""
        patience, pause = self._patience, self._patience.backoff
        self._end = time.monotonic() + seconds
        for attempt in range(1, patience.attempts + 1):
            try:
                left = self._end - time.monotonic()
                with time_limit(left, patience.request, client_waits=0), hub_errors(self.repo_id):
                    return action()
            except HubBusy as busy:
                wait = pause if busy.retry_after is None else busy.retry_after
                if attempt == patience.attempts or time.monotonic() + wait > self._end:
                    raise HubError(f"{busy}; gave up after attempt {attempt}, run it again later") from busy
                logger.warning("%s; attempt %d in %.0f s", busy, attempt + 1, wait)
                time.sleep(wait)
                pause = min(2 * pause, 8.0)
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _check(self) -> None:
        identity = self._owner()
        exists = self._read(MAIN) is not None
        if not identity.may_write(self.repo_id, creating=not exists):
            doing = "write to" if exists else "create"
            raise InvalidParams(f"{self.repo_id}: the token of {identity.name} may not {doing} it "
                                f"({identity.rights()}); set HF_TOKEN to one that has write access there")
        if exists:
            self._check_write()

    def _owner(self) -> TokenOwner:
        try:
            return who(self._api)
        except HfHubHTTPError as error:
            if error.response.status_code != 401:
                raise
            raise InvalidParams(f"HF_TOKEN: {explained(error, self.repo_id)}") from error

    def _check_write(self) -> None:
        try:
            self._api.auth_check(self.repo_id, write=True)
        except (RepositoryNotFoundError, GatedRepoError):
            raise
        except HfHubHTTPError as error:
            if error.response.status_code not in _NO_SUCH_ROUTE:
                raise
            logger.info("%s: this Hub cannot say whether the token may write; the upload will show it", self.repo_id)

    def _read(self, revision: str) -> Commit | None:
        try:
            info = self._api.model_info(self.repo_id, revision=revision, files_metadata=True)
        except RevisionNotFoundError:
            return None
        except RepositoryNotFoundError as error:
            if error.response.status_code != 404:  # 401: it may be there, hidden from this token
                raise
            return None
        oid = str(info.sha)
        return Commit(oid, {sibling.rfilename: self._sha256(oid, sibling) for sibling in info.siblings or []
                            if sibling.rfilename != ATTRIBUTES})

    def _sha256(self, oid: str, sibling: Any) -> str:
        """The sha256 of a file. The Hub states it for LFS files only; the others are small, so they are downloaded."""
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
        return ({ref.name: ref.target_commit for ref in refs.tags},
                {ref.name: ref.target_commit for ref in refs.branches})

    def _learn(self, paths: Iterable[Path]) -> None:
        """Hash the small local files, so that they need not be downloaded to be compared.

        The Hub stores larger ones by LFS, and gives their sha256.
        """
        for path in paths:
            if path.stat().st_size <= 16_000_000:
                data = path.read_bytes()
                self._sha256_of_blob[git_hash(data)] = hashlib.sha256(data).hexdigest()

    def _publish(self, folder: Path, wanted: Mapping[str, str], branch: str, message: str) -> HubRef:
        head = self._read(branch) or self._shown(wanted) or self._new_branch(branch)
        if head.files != wanted:
            self._refuse_foreign(branch)
            head = self._upload(branch, head, folder, wanted, message)
            self._compare(head, wanted)
        return HubRef(repo=self.repo_id, commit=head.oid, tree=tree_digest(head.files))

    def _shown(self, wanted: Mapping[str, str]) -> Commit | None:
        """The release if main shows it already: its tagged commit, because its branch is deleted."""
        main = self._read(MAIN)
        if main is None or main.files != wanted:
            return None
        tagged = (self._read(oid) for oid in self._refs()[0].values())
        return next((commit for commit in tagged if commit and commit.files == wanted), main)

    def _new_branch(self, branch: str) -> Commit:
        """A new branch that starts at main; the repository is created if it does not exist."""
        if self._read(MAIN) is None:
            self._api.create_repo(self.repo_id, private=self._private)
        self._api.create_branch(self.repo_id, branch=branch, revision=MAIN)
        return self._made(branch)

    def _refuse_foreign(self, branch: str) -> None:
        shown = {commit.commit_id for commit in self._api.list_repo_commits(self.repo_id, revision=MAIN)}
        for commit in self._api.list_repo_commits(self.repo_id, revision=branch):
            if commit.commit_id not in shown and not commit.title.startswith(MARK):
                raise HubError(f"{self.repo_id}: branch {branch} holds a commit by somebody else, {commit.commit_id} "
                               f"({commit.title}); save what it brings, delete the branch, and run it again")

    def _upload(self, branch: str, head: Commit, folder: Path, wanted: Mapping[str, str], message: str) -> Commit:
        """One commit on top of head that turns its files into the wanted ones."""
        add = {path: str(folder / path) for path in _differing(head.files, wanted) if path in wanted}
        stale = sorted(head.files.keys() - wanted.keys())
        job = Job(self.repo_id, branch, head.oid, MARK + message, add, stale)
        try:
            return self._made(self._sent(job))
        except XetFailed as failure:
            logger.warning("%s; plain LFS instead", failure)
            self._xet = False
            return self._made(self._sent(job))

    def _sent(self, job: Job) -> str:
        return commit_files(job, token=self._token or "", seconds=self._end - time.monotonic(),
                            stall_seconds=self._patience.stall, xet=self._xet)

    def _made(self, revision: str) -> Commit:
        if found := self._read(revision):
            return found
        raise HubBusy(f"{self.repo_id}: {revision} was made and does not show yet")

    def _compare(self, commit: Commit, wanted: Mapping[str, str]) -> None:
        if differing := _differing(commit.files, wanted):
            raise IntegrityError(f"{self.repo_id} at {commit.oid}: {', '.join(differing[:5])} differ from the "
                                 "manifest; do not use that commit, and run it again")

    def _project(self, release: HubRef, tag: str, branch: str) -> None:
        tags, branches = self._refs()
        self._check_tag(tags.get(tag, release.commit), release, tag)
        self._show(release, tag)
        if tag not in tags:
            self._api.create_tag(self.repo_id, tag=tag, revision=release.commit)
            self._check_tag(self._refs()[0].get(tag), release, tag)
        if branch in branches and (head := self._read(branch)) and tree_digest(head.files) == release.tree:
            try:
                self._api.delete_branch(self.repo_id, branch=branch)
            except RevisionNotFoundError:
                logger.info("%s: branch %s was gone already", self.repo_id, branch)

    def _check_tag(self, commit: str | None, release: HubRef, tag: str) -> None:
        if commit != release.commit:
            raise IntegrityError(f"{self.repo_id}: tag {tag} is at {commit}, not at {release.commit}; tags never "
                                 "move: find out who set it, and delete it if it is wrong")

    def _show(self, release: HubRef, tag: str) -> None:
        """One commit that turns main's files into the release's, copied on the Hub."""
        main = self._made(MAIN)
        if tree_digest(main.files) == release.tree:
            return
        source = self._read(release.commit)
        if source is None or tree_digest(source.files) != release.tree:
            raise IntegrityError(f"{self.repo_id}: commit {release.commit} is gone or not what the ledger says; "
                                 "publish the release again")
        changed = _differing(main.files, source.files)
        operations = [CommitOperationCopy(path, path, src_revision=release.commit) if path in source.files else
                      CommitOperationDelete(path) for path in changed]
        made = self._api.create_commit(self.repo_id, operations, commit_message=MARK + tag, parent_commit=main.oid)
        self._compare(self._made(made.oid), source.files)

    def _mirror(self, lines: list[str]) -> None:
        head = self._read(LEDGER_BRANCH) or self._new_branch(LEDGER_BRANCH)
        held = self._lines(head) or []
        if held[: len(lines)] == lines:  # complete, perhaps with somebody's later slots
            return
        if lines[: len(held)] != held:
            raise IntegrityError(f"{self.repo_id}: {LEDGER_FILE} on branch {LEDGER_BRANCH} does not continue in this "
                                 "ledger; run `champion status`")
        with tempfile.TemporaryDirectory() as name:
            file = Path(name, LEDGER_FILE)
            file.write_text("".join(f"{line}\n" for line in lines))
            self._learn([file])
            wanted = manifest(Path(name))
            self._compare(self._upload(LEDGER_BRANCH, head, Path(name), wanted, f"ledger, {len(lines)} slots"), wanted)

    def _lines(self, head: Commit | None) -> list[str] | None:
        if head is None or LEDGER_FILE not in head.files:
            return None
        return [line for line in self._download(head.oid, LEDGER_FILE).decode().split("\n") if line]


def _differing(files: Mapping[str, str], wanted: Mapping[str, str]) -> list[str]:
    """The paths that only one tree has, or that differ in content."""
    return [path for path in sorted(files.keys() | wanted.keys()) if files.get(path) != wanted.get(path)]


Standing = Callable[[Slot], AbstractContextManager[tuple[Path, str] | None]]


class HubPort:
    """The Hub as the promotion protocol sees it, over one repository.

    folder: the release that this run assembled.
    standing: yields a folder with the release of a slot's champion and its tree digest, or None, with a warning, if
    the release cannot be made again.
    """

    def __init__(self, repository: HubRepository, folder: Path, standing: Standing) -> None:
        self._repository, self._folder, self._standing = repository, folder, standing

    @property
    def repo(self) -> str:
        """The repository's id, owner/name."""
        return self._repository.repo_id

    def check(self) -> None:
        """Check token, rights and server; raises HubError or InvalidParams."""
        self._repository.check()

    def holds_release(self) -> bool:
        """True if main holds a release of Champion, known to this ledger or not."""
        return self._repository.holds_release()

    def publish(self, key: str) -> HubRef:
        """Publish the folder as one verified commit on branch release/<key12>."""
        return self._repository.publish(self._folder, _branch(key), f"release {key[:12]}")

    def holds(self, release: HubRef) -> bool:
        """True if the repository still has this release's commit."""
        return self._repository.holds(release)

    def republish(self, view: LedgerView) -> HubRef | None:
        """Publish the head's release again on branch release/<key12>; None if it cannot be made again.

        Raises IntegrityError if the repository holds another ledger's releases, or another one under the head's tag.
        """
        head = view.slots[-1]
        self.mirrored(view)
        with self._standing(head) as found:
            if found is None:
                return None
            folder, tree = found
            if tagged := self._repository.tagged(_tag(head)):
                return self._same(tagged, tree, f"tag {_tag(head)}; find out who set it, and delete it if it is wrong")
            release = self._repository.publish(folder, _branch(head.key), f"release {head.key[:12]}")
            return self._same(release, tree, f"{folder}, which changed while it was sent; run it again")

    def _same(self, release: HubRef, tree: str, otherwise: str) -> HubRef:
        if release.tree != tree:
            raise IntegrityError(f"{self.repo} at {release.commit}: is not the champion's release. It is {otherwise}")
        return release

    def mirrored(self, view: LedgerView) -> int:
        """The number of slots in the mirror; raises IntegrityError if the repository has another ledger's releases."""
        mirror, lines = self._repository.mirrored(), [slot.text() for slot in view.slots]
        if not lines:
            foreign = False  # the gate decides what a first promotion may do
        elif mirror is None:
            known = any(slot.hub and slot.hub.repo == self.repo for slot in view.slots)
            foreign = not known and self.holds_release()
        else:  # a longer mirror: somebody appended meanwhile, or the store lost slots
            foreign = any(theirs != ours for theirs, ours in zip(mirror, lines, strict=False))
        if foreign:
            raise IntegrityError(f"{self.repo}: holds the releases of another ledger, and nothing is published over "
                                 "them; correct deployment.huggingface.model_id or the MLflow store, and see "
                                 "`champion status`")
        return len(mirror or ())

    def project(self, slot: Slot) -> None:
        """Make main show the slot's tree and tag v<version> its commit; delete the release branch."""
        self._repository.project(_release(slot), _tag(slot), _branch(slot.key))

    def shows(self, slot: Slot) -> bool:
        """True if main and tag show this slot, and its release branch is deleted."""
        state, release = self._repository.state(), _release(slot)
        left = state.branches.get(_branch(slot.key)) == release.commit  # by a run that ended too early
        return (state.tree, state.tags.get(_tag(slot))) == (release.tree, release.commit) and not left

    def mirror(self, view: LedgerView) -> None:
        """Copy the slots to the branch `ledger`."""
        self._repository.mirror([slot.text() for slot in view.slots])


def repository(params: HuggingFaceParams) -> HubRepository:
    """The repository that releases are published to. Sends no request yet."""
    return HubRepository(repo_id=params.model_id, token=token(), private=params.private,
                         patience=Patience.within(params.deadline_seconds))


def _release(slot: Slot) -> HubRef:
    if slot.hub is None:
        raise IntegrityError(f"ledger slot {slot.number}: was promoted without the Hub, so the Hub cannot show it")
    return slot.hub


def _branch(key: str) -> str:
    return f"release/{key[:12]}"


def _tag(slot: Slot) -> str:
    return f"v{slot.version}"
