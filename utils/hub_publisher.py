"""The publisher: releases, projections and the ledger's mirror in one Hub repository.

Every operation looks at the repository, does what is missing and reads back what it did. So the answer to a lost
reply, a stale parent, a lock or an overloaded server is one and the same: wait, and do the whole operation again.
"""

import hashlib
import logging
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from huggingface_hub import CommitOperationCopy, CommitOperationDelete
from huggingface_hub.errors import RevisionNotFoundError
from huggingface_hub.utils.sha import git_hash

from src.errors import HubError, IntegrityError
from src.hub_records import LEDGER_BRANCH, LEDGER_FILE, HubRelease
from src.manifest import manifest, tree_digest
from utils.hub_client import HubBusy
from utils.hub_reader import MAIN, Commit, HubReader
from utils.hub_upload import Job, XetFailed, commit_files

logger = logging.getLogger(__name__)

MARK = "Champion: "  # our commits' titles begin with it
T = TypeVar("T")
BLOB_LIMIT = 16_000_000  # bytes; the Hub stores larger files by LFS, and gives their sha256


class HubRepository(HubReader):
    """One model repository. Raises HubError where the Hub fails or refuses, IntegrityError where bytes differ."""

    _xet = True  # until it has failed

    def publish(self, folder: Path, branch: str, message: str) -> HubRelease:
        """The folder as one verified commit on a branch of its own; no commit where the branch holds it already."""
        wanted = manifest(folder)
        self._learn(folder / path for path in wanted)
        return self._act(lambda: self._publish(folder, wanted, branch, message))

    def project(self, release: HubRelease, tag: str, branch: str) -> None:
        """Main gets exactly the release's tree, the tag its commit; then the branch goes, if it holds just that.

        Needs no local file. An existing tag at another commit raises IntegrityError: tags never move.
        """
        self._act(lambda: self._project(release, tag, branch))

    def mirror(self, lines: Sequence[str]) -> None:
        """Append to ledger.jsonl on the branch `ledger`; raises IntegrityError where it holds other lines."""
        self._act(lambda: self._mirror(list(lines)))

    def mirrored(self) -> list[str] | None:
        """The mirrored lines, None where there is no mirror."""
        return self._ask(lambda: self._lines(self._read(LEDGER_BRANCH)))

    def _act(self, action: Callable[[], T]) -> T:
        return self._persist(action, self._patience.deadline)

    def _learn(self, paths: Iterable[Path]) -> None:
        """Spare reading back by download what is at hand."""
        for path in paths:
            if path.stat().st_size <= BLOB_LIMIT:
                data = path.read_bytes()
                self._sha256_of_blob[git_hash(data)] = hashlib.sha256(data).hexdigest()

    def _publish(self, folder: Path, wanted: Mapping[str, str], branch: str, message: str) -> HubRelease:
        head = self._read(branch) or self._shown(wanted) or self._new_branch(branch)
        if head.files != wanted:
            self._refuse_foreign(branch)
            head = self._upload(branch, head, folder, wanted, message)
            self._compare(head, wanted)
        return HubRelease(self.repo_id, head.oid, tree_digest(head.files))

    def _shown(self, wanted: Mapping[str, str]) -> Commit | None:
        """The release that main shows already: its tagged commit, since the branch it came by is gone."""
        main = self._read(MAIN)
        if main is None or main.files != wanted:
            return None
        tagged = (self._read(oid) for oid in self._refs()[0].values())
        return next((commit for commit in tagged if commit and commit.files == wanted), main)

    def _new_branch(self, branch: str) -> Commit:
        """A branch that starts where main is; the repository is made where it is absent."""
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
        seconds = self._end - time.monotonic()
        return commit_files(job, token=self._token or "", seconds=seconds, stall_seconds=self._patience.stall,
                            xet=self._xet)

    def _made(self, revision: str) -> Commit:
        if found := self._read(revision):
            return found
        raise HubBusy(f"{self.repo_id}: {revision} was made and does not show yet")

    def _compare(self, commit: Commit, wanted: Mapping[str, str]) -> None:
        if differing := _differing(commit.files, wanted):
            raise IntegrityError(f"{self.repo_id} at {commit.oid}: {', '.join(differing[:5])} differ from the "
                                 "manifest; do not use that commit, and run it again")

    def _project(self, release: HubRelease, tag: str, branch: str) -> None:
        tags, branches = self._refs()
        self._check_tag(tags.get(tag, release.commit), release, tag)
        self._show(release, tag)
        if tag not in tags:
            self._api.create_tag(self.repo_id, tag=tag, revision=release.commit)
            self._check_tag(self._refs()[0].get(tag), release, tag)
        if branch in branches and self._holds(branch, release):
            self._delete_branch(branch)

    def _check_tag(self, commit: str | None, release: HubRelease, tag: str) -> None:
        if commit != release.commit:
            raise IntegrityError(f"{self.repo_id}: tag {tag} is at {commit}, not at {release.commit}; tags never "
                                 "move: find out who set it, and delete it if it is wrong")

    def _show(self, release: HubRelease, tag: str) -> None:
        """One commit that turns main's files into the release's, copied on the Hub."""
        main = self._made(MAIN)
        if tree_digest(main.files) == release.tree:
            return
        source = self._read(release.commit)
        if source is None or tree_digest(source.files) != release.tree:
            raise IntegrityError(f"{self.repo_id}: commit {release.commit} is gone or not what the ledger says; "
                                 "publish the release again")
        changed = _differing(main.files, source.files)
        made = self._api.create_commit(
            self.repo_id,
            [CommitOperationCopy(path, path, src_revision=release.commit) for path in changed if path in source.files]
            + [CommitOperationDelete(path) for path in changed if path not in source.files],
            commit_message=MARK + tag,
            parent_commit=main.oid,
        )
        self._compare(self._made(made.oid), source.files)

    def _holds(self, branch: str, release: HubRelease) -> bool:
        head = self._read(branch)
        return head is not None and tree_digest(head.files) == release.tree

    def _delete_branch(self, branch: str) -> None:
        try:
            self._api.delete_branch(self.repo_id, branch=branch)
        except RevisionNotFoundError:
            logger.info("%s: branch %s was gone already", self.repo_id, branch)

    def _mirror(self, lines: list[str]) -> None:
        head = self._read(LEDGER_BRANCH) or self._new_branch(LEDGER_BRANCH)
        held = self._lines(head) or []
        if held[: len(lines)] == lines:  # somebody with more slots was here
            return
        if lines[: len(held)] != held:
            raise IntegrityError(f"{self.repo_id}: {LEDGER_FILE} on branch {LEDGER_BRANCH} does not continue in this "
                                 "ledger; run `python scripts/status_script.py`")
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
    """Paths that only one of them has, or that differ in content."""
    return [path for path in sorted(files.keys() | wanted.keys()) if files.get(path) != wanted.get(path)]
