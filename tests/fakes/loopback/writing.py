"""Endpoints that change something: branches, tags, LFS objects, commits, and Xet as far as an upload goes."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import time
from threading import get_ident
from typing import TYPE_CHECKING, Any

from .reading import GIT, REPO, route
from .store import XET_TOKEN, Reply, Stop

if TYPE_CHECKING:
    from pathlib import Path

    from .server import LoopbackHub, Request


@route("POST", REPO + "/branch/(?P<branch>[^/]+)")
def create_branch(hub: LoopbackHub, request: Request, kind: str, name: str, branch: str) -> Any:
    with hub.lock:
        repo = hub.repo(request.token, kind, name, write=True)
        if branch in repo["branches"]:
            raise Stop(409, f"Reference already exists: {branch}")
        repo["branches"][branch] = hub.resolve(repo, request.json().get("startingPoint") or "main")[0]
        hub.save()


@route("POST", REPO + "/tag/(?P<revision>[^/]+)")
def create_tag(hub: LoopbackHub, request: Request, kind: str, name: str, revision: str) -> Any:
    with hub.lock:
        repo, tag = hub.repo(request.token, kind, name, write=True), request.json()["tag"]
        if tag in repo["tags"]:
            raise Stop(409, f"Tag reference exists already: {tag}")
        repo["tags"][tag] = hub.resolve(repo, revision)[0]
        hub.save()


@route("DELETE", REPO + "/(?P<group>branch|tag)/(?P<ref>[^/]+)")
def delete_ref(hub: LoopbackHub, request: Request, *, kind: str, name: str, group: str, ref: str) -> Any:
    with hub.lock:
        repo = hub.repo(request.token, kind, name, write=True)
        if ref == "main":
            raise Stop(403, "main is protected")
        if repo["branches" if group == "branch" else "tags"].pop(ref, None) is None:
            raise Stop(404, f"Reference does not exist: {ref}", "RevisionNotFound")
        hub.save()


@route("POST", REPO + "/preupload/(?P<revision>[^/]+)")
def preupload(hub: LoopbackHub, request: Request, kind: str, name: str, revision: str) -> Any:
    with hub.lock:
        files = hub.resolve(hub.repo(request.token, kind, name, write=True), revision)[1]["files"]
    return {"files": [
        {"path": file["path"], "uploadMode": "lfs" if hub.is_lfs(file["path"], file["size"]) else "regular",
         "shouldIgnore": False, "oid": _remote_oid(files.get(file["path"]))} for file in request.json()["files"]]}


@route("POST", GIT + r"\.git/info/lfs/objects/batch")
def lfs_batch(hub: LoopbackHub, request: Request, kind: str, name: str) -> Any:
    hub.repo(request.token, kind, name, write=True)
    return {"objects": [_lfs_actions(hub, item["oid"], item["size"]) for item in request.json()["objects"]]}


def _lfs_actions(hub: LoopbackHub, oid: str, size: int) -> dict[str, Any]:
    if hub.blob(oid).exists():
        return {"oid": oid, "size": size}
    href = f"{hub.url}/_lfs/{oid}"
    actions = {"upload": {"href": href, "header": {}}, "verify": {"href": f"{hub.url}/_verify"}}
    if size > hub.multipart_over:
        parts = range(1, -(-size // hub.part_size) + 1)
        urls = {f"{part:05d}": f"{href}/{part}" for part in parts}
        actions["upload"] = {"href": f"{href}/complete", "header": {"chunk_size": str(hub.part_size), **urls}}
    return {"oid": oid, "size": size, "actions": actions}


@route("PUT", "/_lfs/(?P<oid>[0-9a-f]{64})(?:/(?P<part>[0-9]+))?")
def lfs_put(hub: LoopbackHub, request: Request, oid: str, part: str) -> Any:
    target = hub.root / f"{oid}.{part or f'whole-{get_ident()}'}"  # several may send the same file at once
    digest = hashlib.sha256()
    with target.open("wb") as file:
        for block in request.blocks():
            file.write(block)
            digest.update(block)
    if not part:
        _keep(hub, oid, [target])
    return Reply(headers={"ETag": digest.hexdigest()})


@route("POST", "/_lfs/(?P<oid>[0-9a-f]{64})/complete")
def lfs_complete(hub: LoopbackHub, request: Request, oid: str) -> Any:
    _keep(hub, oid, [hub.root / f"{oid}.{part['partNumber']}" for part in request.json()["parts"]])


@route("POST", "/_verify")
def lfs_verify(hub: LoopbackHub, request: Request) -> Any:
    wanted = request.json()
    if hub.size(wanted["oid"]) != wanted["size"]:
        raise Stop(404, "Object does not exist")


@route("POST", REPO + "/commit/(?P<branch>[^/]+)")
def commit(hub: LoopbackHub, request: Request, kind: str, name: str, branch: str) -> Any:
    header, *operations = [json.loads(line) for line in request.read().splitlines()]
    with hub.lock:
        repo = hub.repo(request.token, kind, name, write=True)
        if branch not in repo["branches"]:
            raise Stop(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        head, before = hub.resolve(repo, branch)
        if header["value"].get("parentCommit", head) != head:
            raise Stop(412, "A commit has happened since. Please refresh and try again.")
        files = dict(before["files"])
        for operation in operations:
            _apply(hub, files, operation["key"], operation["value"])
        oid = hub.commit(repo, branch, files, header["value"]["summary"])
    if branch == "main" and repo.get("sdk") == "docker":
        hub.spaces.build(name)
    return {"success": True, "commitOid": oid, "commitUrl": f"{hub.url}/{name}/commit/{oid}"}


# Xet's content server takes every block for granted and keeps none. The client still cuts, hashes and sends the true
# bytes, and the sha256 in its commit is the one that hf_xet computed.


@route("GET", REPO + "/xet-write-token/(?P<revision>[^/]+)")
def write_token(hub: LoopbackHub, request: Request, kind: str, name: str, revision: str) -> Any:
    hub.repo(request.token, kind, name, write=True)
    if hub.xet_sizes is None:
        raise Stop(404, f"no Xet here: {revision}")
    return {"accessToken": XET_TOKEN, "exp": int(time.time()) + 3600, "casUrl": f"{hub.url}/_cas"}


@route("POST", "/_cas/v1/xorbs/default/(?P<digest>[0-9a-f]{64})")
def xorb(_hub: LoopbackHub, _request: Request, digest: str) -> Any:
    return {"was_inserted": bool(digest)}


@route("POST", "/_cas/v1/shards")
def shard(_hub: LoopbackHub, _request: Request) -> Any:
    return {"result": 1}


def _apply(hub: LoopbackHub, files: dict[str, Any], key: str, value: dict[str, Any]) -> None:
    path = value["path"]
    if key == "file":
        data = base64.b64decode(value["content"])
        files[path] = hub.entry(path, hub.store(data), len(data))
    elif key == "lfsFile":
        if hub.xet_sizes is not None and "size" in value:
            hub.xet_sizes[value["oid"]] = value["size"]
        size = hub.size(value["oid"])
        if size is None:
            raise Stop(400, f"LFS pointer pointed to a file that does not exist: {path}")
        files[path] = hub.entry(path, value["oid"], size)
    elif key == "deletedFile" and files.pop(path, None) is None:
        raise Stop(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")


def _keep(hub: LoopbackHub, oid: str, parts: list[Path]) -> None:
    whole, *rest = parts
    with whole.open("ab") as target:
        for part in rest:
            with part.open("rb") as file:
                shutil.copyfileobj(file, target)
            part.unlink()
    with whole.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != oid:
            raise Stop(400, "checksum mismatch")
    whole.replace(hub.blob(oid))


def _remote_oid(file: dict[str, Any] | None) -> str | None:
    return None if file is None else file["sha256"] if file["lfs"] else file["oid"]
