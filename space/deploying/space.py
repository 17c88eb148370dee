"""One Space on the Hub: its files, variables and runtime. Every change looks first and does only what is missing."""

import functools
import json
import logging
import re
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi
from huggingface_hub.errors import RepositoryNotFoundError

from deploying import tree
from deploying.hub import HubFailed, HubUnavailable, Later, NotAllowed, fetched, persist

logger = logging.getLogger("space")

TITLE = "Champion: "  # our commits' titles begin with it
BUILD_KEY = "build key "  # and then so if the commit changes the Dockerfile alone
_LIVE = "live-"  # tags a commit that was seen answering: what a rollback may go back to
_ATTRIBUTES = ".gitattributes"  # the Hub keeps it for itself
_ON_THE_WAY = {"BUILDING", "RUNNING_BUILDING", "APP_STARTING", "RUNNING_APP_STARTING"}
_ASLEEP = {"PAUSED", "STOPPED", "SLEEPING"}
_GRACE = 20.0  # seconds after which an error is taken for this commit's own
_LINES = 500
_NAMED = 5  # files in one message
_KIND = "space"
_OVERTAKEN = "{}: somebody else pushed {} in the meantime; look at that commit, then run this again"
RUNNING = "RUNNING"


@dataclass(frozen=True)
class Head:
    """A commit: path to git's id, or to the sha256 of a file that is stored by LFS."""

    oid: str
    files: Mapping[str, str]
    address: str  # of the live Space
    private: bool


@dataclass(frozen=True)
class Runtime:
    """The Space's stage, the commit that runs (None if the Hub does not state it), and the Hub's reason."""

    stage: str
    sha: str | None
    reason: str


class Space:
    """One Space. Raises HubFailed when the Hub fails or refuses, Later when it stays busy or somebody else pushed.

    `ask` is called before each change, and raises to refuse it.
    """

    def __init__(self, api: HfApi, name: str, ask: Callable[[str], None]) -> None:
        self.api, self.name, self.ask = api, name, ask

    def head(self, revision: str = "main") -> Head | None:
        """The commit of a revision; None if there is no such Space."""
        return persist(lambda: self._head(revision), self.name)

    def hold(self, oid: str) -> None:
        """Raise Later unless main still is this commit."""
        if (head := self.head()) and head.oid != oid:
            raise Later(_OVERTAKEN.format(self.name, head.oid[:12]))

    def create(self, *, private: bool) -> None:
        """Create the Space if it is absent."""
        if self.head() is None:
            self.ask(f"create the {'private' if private else 'public'} Space {self.name}")
            persist(lambda: self._head("main") or self.api.create_repo(
                self.name, repo_type=_KIND, space_sdk="docker", private=private), self.name)

    def others(self, files: Mapping[str, Path], head: Head) -> list[str]:
        """Files of the head that a push of these files would delete, and that no push of this program put there."""
        stale = head.files.keys() - files.keys()
        if not stale:
            return []
        history = persist(lambda: self.api.list_repo_commits(self.name, repo_type=_KIND), self.name)
        last = next((each.commit_id for each in history if each.title.startswith(TITLE)
                     and not each.title.startswith(TITLE + BUILD_KEY)), None)
        before = self.head(last) if last else None
        return sorted(stale - (before.files.keys() if before else set()))

    def refuse_others(self, files: Mapping[str, Path], head: Head, *, delete: bool) -> None:
        """Raise NotAllowed if a push would delete somebody else's files, unless `delete`; then ask for it."""
        if not (others := self.others(files, head)):
            return
        named = ", ".join(others[:_NAMED]) + (f" and {len(others) - _NAMED} more" if len(others) > _NAMED else "")
        if not delete:
            raise NotAllowed(f"{self.name}: a push would delete {named}, which somebody else pushed there; copy what "
                             "is needed, then run it again with --delete-others")
        self.ask(f"delete {named}, which somebody else pushed to {self.name}")

    def push(self, files: Mapping[str, Path], title: str, on: str | None = None) -> str:
        """Make main exactly these files, by one commit on top of `on` (none if they are there); returns its id."""
        wanted = {name: tree.digests(path) for name, path in files.items()}

        def operations(head: Head) -> list[Any]:
            changed = [name for name, digests in wanted.items() if head.files.get(name) not in digests]
            stale = sorted(head.files.keys() - wanted.keys())
            return [*(CommitOperationAdd(name, files[name]) for name in changed), *map(CommitOperationDelete, stale)]

        return self._commit(operations, title, on)

    def amend(self, path: str, change: Callable[[str], str], title: str) -> str:
        """Change one text file by one commit; returns its id. Raises HubFailed if there is no such Space or file."""
        if self.head() is None:
            raise HubFailed(f"{self.name}: there is no such Space; deploy it first, or correct --space")

        def operations(head: Head) -> list[Any]:
            text = fetched(self.api, self.name, path, head.oid, _KIND)
            if text is None:
                raise HubFailed(f"{self.name}: the Space has no {path}; deploy it first")
            return [CommitOperationAdd(path, change(text).encode())]

        return self._commit(operations, title)

    def restore(self, oid: str, title: str, on: str) -> str:
        """Give main the tree of an earlier commit by one more, on top of `on` alone; returns its id."""
        def operations(head: Head) -> list[Any]:
            target = self._head(oid)
            if target is None:
                raise HubFailed(f"{self.name}: commit {oid} is gone, so it cannot be put back; deploy one that works")
            changed = [name for name, content in target.files.items() if head.files.get(name) != content]
            stale = sorted(head.files.keys() - target.files.keys())
            return [*(CommitOperationCopy(name, name, src_revision=oid) for name in changed),
                    *map(CommitOperationDelete, stale)]

        return self._commit(operations, title, on)

    def read(self, path: str, revision: str) -> str | None:
        """A text file of a commit; None if it has no such file."""
        return persist(lambda: fetched(self.api, self.name, path, revision, _KIND), self.name)

    def variables(self) -> dict[str, str]:
        """All that are set now, by whomever."""
        return {key: str(each.value) for key, each in
                persist(lambda: self.api.get_space_variables(self.name), self.name).items()}

    def set_variables(self, text: str | None, before: str | None) -> None:
        """Give the Space what a tree's variables.json sets, and take away what only the one before set.

        Others are left as they are. Each change starts the Space anew.
        """
        wanted, stale, there = _variables(text), _variables(before), self.variables()
        for key, value in wanted.items():
            if there.get(key) != value:
                self.ask(f"set the variable {key}={value} on {self.name}")
                persist(functools.partial(self.api.add_space_variable, self.name, key, value), self.name)
        for key in sorted(stale.keys() & there.keys() - wanted.keys()):
            self.ask(f"remove the variable {key} from {self.name}")
            persist(functools.partial(self._take, key), self.name)

    def mark_live(self, oid: str) -> None:
        """Remember on the Hub that this commit was seen answering."""
        if oid not in self.live():
            persist(lambda: self.api.create_tag(self.name, tag=_LIVE + oid[:12], revision=oid, repo_type=_KIND,
                                                exist_ok=True), self.name)

    def live(self) -> set[str]:
        """The commits that were seen answering."""
        tags = persist(lambda: self.api.list_repo_refs(self.name, repo_type=_KIND).tags, self.name)
        return {tag.target_commit for tag in tags if tag.name.startswith(_LIVE)}

    def last_live(self, *, but: str) -> str | None:
        """The newest other commit on main that was seen answering; None if there is none."""
        live = self.live()
        history = persist(lambda: self.api.list_repo_commits(self.name, repo_type=_KIND), self.name)
        return next((commit.commit_id for commit in history if commit.commit_id in live - {but}), None)

    def runtime(self) -> Runtime:
        """How it is now."""
        found = persist(lambda: self.api.get_space_runtime(self.name), self.name)
        return Runtime(str(getattr(found.stage, "value", found.stage)), found.raw.get("sha"),
                       str(found.raw.get("errorMessage") or ""))

    def log(self, *, build: bool) -> list[str]:
        """The last lines of the build's log, or of the app's."""
        return persist(lambda: [*deque(self.api.fetch_space_logs(self.name, build=build), _LINES)], self.name)

    def restart(self, *, from_scratch: bool) -> None:
        """Start it again, with from_scratch every layer built anew."""
        self.ask(f"{'build' if from_scratch else 'start'} {self.name} again")
        persist(lambda: self.api.restart_space(self.name, factory_reboot=from_scratch), self.name)

    def wait(self, oid: str, seconds: float, heard: Callable[[str], None], *, again: bool = False) -> Runtime:
        """Until this commit runs or has failed (again: anew), or the time is up; `heard` is told each stage."""
        began, pause, stages = time.monotonic(), 0.5, [""]
        while True:
            runtime, waited = self.runtime(), time.monotonic() - began
            if runtime.stage != stages[-1]:
                heard(runtime.stage)
                stages.append(runtime.stage)
                if runtime.stage in _ASLEEP:
                    self.restart(from_scratch=False)
            ours = runtime.sha in (None, oid)
            known = waited > _GRACE or (ours and bool(_ON_THE_WAY & {*stages})) or (runtime.sha == oid and not again)
            if waited > seconds or self._is_over(runtime, oid, known=known):
                return runtime
            time.sleep(pause)
            pause = min(pause * 1.3, 10)

    def _is_over(self, runtime: Runtime, oid: str, *, known: bool) -> bool:
        """Whether this commit runs or has failed; for a while the Hub still shows the stage of the one before."""
        if runtime.stage == RUNNING:
            return runtime.sha == oid or (runtime.sha is None and known)
        return known and runtime.stage not in _ON_THE_WAY | _ASLEEP

    def _head(self, revision: str) -> Head | None:
        try:
            info = self.api.space_info(self.name, revision=revision, files_metadata=True)
        except RepositoryNotFoundError as error:
            if error.response.status_code != 404:  # 401: it may be there, hidden from this token
                raise
            return None
        files = {each.rfilename: each.lfs.sha256 if each.lfs else str(each.blob_id)
                 for each in info.siblings or [] if each.rfilename != _ATTRIBUTES}
        host = re.sub(r"[^a-z0-9]+", "-", self.name.lower())
        return Head(str(info.sha), files, (info.host or f"https://{host}.hf.space").rstrip("/"), bool(info.private))

    def _commit(self, operations: Callable[[Head], list[Any]], title: str, on: str | None = None) -> str:
        """Commit on top of one head alone, `on` or the first attempt's: one that has moved holds somebody else's."""
        bases = {on} if on else set()

        def attempt() -> str:
            head = self._head("main")
            if head is None:
                raise HubUnavailable(f"{self.name}: was created, but the Hub does not show it yet")
            changes = operations(head)
            if not changes:
                return head.oid
            bases.add(head.oid)
            if len(bases) > 1:
                raise Later(_OVERTAKEN.format(self.name, head.oid[:12]))
            self.ask(f"commit to {self.name}: {title} ({len(changes)} files)")
            made = self.api.create_commit(self.name, changes, commit_message=TITLE + title, repo_type=_KIND,
                                          parent_commit=head.oid)
            return str(made.oid)

        return persist(attempt, self.name)

    def _take(self, key: str) -> None:
        if key in self.api.get_space_variables(self.name):  # else a reply was lost
            self.api.delete_space_variable(self.name, key)


def _variables(text: str | None) -> dict[str, str]:
    return {key: str(value) for key, value in json.loads(text or "{}").items()}
