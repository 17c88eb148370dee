"""What the loopback hub holds: blobs by sha256 on disk, repositories as commits that map paths to blobs, tokens."""

import hashlib
import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WRITE, READ, SCOPED, UNKNOWN = (f"hf_{letter * 34}" for letter in "WRSU")
TOKENS: dict[str, dict[str, Any]] = {
    WRITE: {"name": "alice", "role": "write", "orgs": ["acme"]},
    READ: {"name": "alice", "role": "read", "orgs": ["acme"]},
    SCOPED: {"name": "alice", "role": "fineGrained", "orgs": [], "scoped": [
        {"entity": {"type": "model", "name": "acme/scoped"}, "permissions": ["repo.content.read", "repo.write"]}]},
}
XET_TOKEN = "xet-token"
LFS_SUFFIXES = (".safetensors", ".bin", ".model", ".parquet")
ATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"


@dataclass
class Reply:
    """Body: bytes or text as they are, a part of a file as (path, start, length), or anything else as JSON."""

    body: Any = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


class Stop(Exception):
    """Ends a request with an error reply; code is the X-Error-Code that chooses the client's exception."""

    def __init__(self, status: int, message: str, code: str = "", **body: Any) -> None:
        super().__init__(message)
        self.status, self.body = status, {"error": message, **body}
        self.headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})


class Store:
    """Everything is under one folder and survives a restart; `lock` is held over every request but a blob's."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.tokens = dict(TOKENS)
        self.lfs_over = 10_000_000
        self.xet_sizes: dict[str, int] | None = None  # a dict: Xet is offered, and takes all bytes for granted
        self.lock = threading.RLock()
        (root / "blobs").mkdir(parents=True, exist_ok=True)
        self._file = root / "state.json"
        self.repos: dict[str, dict[str, Any]] = json.loads(self._file.read_text()) if self._file.exists() else {}

    def save(self) -> None:
        temporary = self._file.with_suffix(".new")
        temporary.write_text(json.dumps(self.repos))
        temporary.replace(self._file)

    # What a test reads and does beside the protocol.

    def files(self, name: str, revision: str = "main", kind: str = "models") -> dict[str, str]:
        """Path to sha256."""
        commit = self.resolve(self.repos[f"{kind}/{name}"], revision)[1]
        return {path: entry["sha256"] for path, entry in commit["files"].items()}

    def history(self, name: str, revision: str = "main", kind: str = "models") -> list[str]:
        """Commit ids, newest first."""
        repo = self.repos[f"{kind}/{name}"]
        return [oid for oid, _ in self.ancestors(repo, revision)]

    def put(self, name: str, files: Mapping[str, bytes], branch: str = "main", kind: str = "models") -> str:
        """A commit by somebody else; makes the repository (public) and the branch where they are absent."""
        with self.lock:
            repo = self.repos.get(f"{kind}/{name}") or self.create(kind, name, private=False)
            head = repo["branches"].setdefault(branch, repo["branches"]["main"])
            added = {path: self.entry(path, self.store(data), len(data)) for path, data in files.items()}
            return self.commit(repo, branch, {**repo["commits"][head]["files"], **added}, "by somebody else")

    # Content.

    def blob(self, sha256: str) -> Path:
        return self.root / "blobs" / sha256

    def size(self, sha256: str) -> int | None:
        """Of an LFS object, None where there is none."""
        if (size := (self.xet_sizes or {}).get(sha256)) is not None:
            return size
        return self.blob(sha256).stat().st_size if self.blob(sha256).exists() else None

    def store(self, data: bytes) -> str:
        sha256 = hashlib.sha256(data).hexdigest()
        self.blob(sha256).write_bytes(data)
        return sha256

    def is_lfs(self, path: str, size: int) -> bool:
        return size > 0 and (path.endswith(LFS_SUFFIXES) or size > self.lfs_over)

    def entry(self, path: str, sha256: str, size: int) -> dict[str, Any]:
        """A file of a commit; oid is git's, of the bytes or of the LFS pointer."""
        lfs = self.is_lfs(path, size)
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
        data = pointer if lfs else self.blob(sha256).read_bytes()
        oid = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        return {"sha256": sha256, "size": size, "lfs": lfs, "oid": oid}

    def create(self, kind: str, name: str, *, private: bool, **more: Any) -> dict[str, Any]:
        repo = {"name": name, "private": private, "commits": {}, "branches": {}, "tags": {}, **more}
        self.repos[f"{kind}/{name}"] = repo
        files = {".gitattributes": self.entry(".gitattributes", self.store(ATTRIBUTES), len(ATTRIBUTES))}
        self.commit(repo, "main", files, "initial commit")
        return repo

    def commit(self, repo: dict[str, Any], branch: str, files: Mapping[str, Any], title: str) -> str:
        parent = repo["branches"].get(branch)
        text = json.dumps([parent, files, title, len(repo["commits"])], sort_keys=True)
        oid = hashlib.sha1(text.encode()).hexdigest()
        repo["commits"][oid] = {"parent": parent, "files": dict(files), "title": title, "time": time.time()}
        repo["branches"][branch] = oid
        self.save()
        return oid

    def resolve(self, repo: dict[str, Any], revision: str) -> tuple[str, dict[str, Any]]:
        oid = repo["branches"].get(revision) or repo["tags"].get(revision) or revision
        if oid not in repo["commits"]:
            raise Stop(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return oid, repo["commits"][oid]

    def ancestors(self, repo: dict[str, Any], revision: str) -> list[tuple[str, dict[str, Any]]]:
        found, (oid, commit) = [], self.resolve(repo, revision)
        while True:
            found.append((oid, commit))
            if (oid := commit["parent"]) is None:
                return found
            commit = repo["commits"][oid]

    # Who may do what.

    def known(self, token: str | None) -> None:
        if token is not None and token not in (*self.tokens, XET_TOKEN):
            raise Stop(401, "Invalid credentials in Authorization header")

    def may(self, token: str | None, name: str, permission: str) -> bool:
        if token is None:
            return False
        who, namespace = self.tokens[token], name.partition("/")[0]
        if who["role"] == "fineGrained":
            return any(permission in scope["permissions"] and scope["entity"]["name"] in (namespace, name)
                       for scope in who["scoped"])
        return namespace in (who["name"], *who["orgs"]) and (permission != "repo.write" or who["role"] == "write")

    def repo(self, token: str | None, kind: str, name: str, *, write: bool = False) -> dict[str, Any]:
        """The repository that a request is about, or the refusal that the real Hub gives."""
        found = self.repos.get(f"{kind or 'models'}/{name}")
        if found is None or (found["private"] and not self.may(token, name, "repo.content.read")):
            raise Stop(404 if token else 401, "Repository not found", "RepoNotFound")
        if write and not self.may(token, name, "repo.write"):
            raise Stop(403, "You don't have the rights to write to this repository with this token")
        return found
