"""Endpoints as huggingface_hub 2.4.0 calls them: who, repositories, reading. Each returns JSON, or a Reply."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote

import yaml

from .store import Reply, Stop

if TYPE_CHECKING:
    from .server import LoopbackHub, Request

Endpoint = Callable[..., Any]
ROUTES: list[tuple[str, re.Pattern[str], Endpoint]] = []
REPO = r"/api/(?P<kind>models|datasets|spaces)/(?P<name>[^/]+/[^/]+)"
GIT = r"/(?:(?P<kind>datasets|spaces)/)?(?P<name>[^/]+/[^/]+?)"


def route(method: str, pattern: str) -> Callable[[Endpoint], Endpoint]:
    """Serve these requests; groups of the pattern come unquoted as keyword arguments."""

    def add(function: Endpoint) -> Endpoint:
        ROUTES.append((method, re.compile(pattern), function))
        return function

    return add


def find(method: str, path: str) -> tuple[Endpoint, dict[str, str]]:
    for wanted, pattern, function in ROUTES:
        if wanted == method and (match := pattern.fullmatch(path)):
            return function, {key: unquote(value or "") for key, value in match.groupdict().items()}
    raise Stop(404, f"no such endpoint: {method} {path}")


# Who, and repositories.


@route("GET", "/api/whoami-v2")
def whoami(hub: LoopbackHub, request: Request) -> Any:
    if request.token is None:
        raise Stop(401, "Invalid username or password.")
    who = hub.tokens[request.token]
    access = {"displayName": "test", "role": who["role"]}
    if "scoped" in who:
        access["fineGrained"] = {"canReadGatedRepos": False, "global": [], "scoped": who["scoped"]}
    orgs = [{"type": "org", "name": name, "roleInOrg": "write"} for name in who["orgs"]]
    return {"type": "user", "name": who["name"], "orgs": orgs, "auth": {"type": "access_token", "accessToken": access}}


@route("POST", "/api/repos/create")
def create(hub: LoopbackHub, request: Request) -> Any:
    wanted = request.json()
    kind = f"{wanted.get('type') or 'model'}s"
    namespace = wanted.get("organization") or hub.tokens.get(request.token or "", {}).get("name", "")
    name = f"{namespace}/{wanted['name']}"
    url = f"{hub.url}/{name}" if kind == "models" else f"{hub.url}/{kind}/{name}"
    with hub.lock:
        if not hub.may(request.token, namespace + "/", "repo.write"):
            raise Stop(403, f"You don't have the rights to create a {kind[:-1]} under the namespace {namespace!r}")
        if f"{kind}/{name}" in hub.repos:
            raise Stop(409, "You already created this repo", url=url)
        more = hub.spaces.made(wanted.get("sdk")) if kind == "spaces" else {}
        hub.create(kind, name, private=wanted.get("visibility") == "private", **more)
    return {"url": url, "name": name}


@route("GET", REPO + "(?:/revision/(?P<revision>[^/]+))?")
def info(hub: LoopbackHub, request: Request, kind: str, name: str, revision: str) -> Any:
    with hub.lock:
        repo = hub.repo(request.token, kind, name)
        oid, commit = hub.resolve(repo, revision or "main")
    blobs = "blobs" in request.query
    siblings = [{"rfilename": path, **({"size": file["size"], "blobId": file["oid"], "lfs": _lfs(file, "sha256")}
                                       if blobs else {})} for path, file in sorted(commit["files"].items())]
    return {"id": name, "sha": oid, "private": repo["private"], "gated": False, "tags": [], "siblings": siblings,
            "lastModified": _date(commit), **(hub.spaces.told(name, repo) if kind == "spaces" else {})}


@route("GET", REPO + "/auth-check(?P<write>/write)?")
def auth_check(hub: LoopbackHub, request: Request, kind: str, name: str, write: str) -> Any:
    hub.repo(request.token, kind, name, write=bool(write))


@route("POST", "/api/validate-yaml")
def validate_yaml(_hub: LoopbackHub, request: Request) -> Any:
    front = re.match(r"---\n(.*?)\n---\n", request.json()["content"], re.DOTALL)
    try:
        yaml.safe_load(front[1] if front else "")
    except yaml.YAMLError as error:
        raise Stop(400, "Invalid metadata", errors=[{"message": str(error)}]) from None
    return {"errors": [], "warnings": []}


# Reading.


@route("GET", REPO + "/tree/(?P<revision>[^/]+)(?:/(?P<path>.*))?")
def tree(hub: LoopbackHub, request: Request, *, kind: str, name: str, revision: str, path: str) -> Any:
    commit = hub.resolve(hub.repo(request.token, kind, name), revision)[1]
    deep = request.query.get("recursive", ["false"])[0].lower() == "true"
    prefix = f"{path}/" if path else ""
    found: dict[str, Any] = {}
    for file in sorted(commit["files"]):
        below = file.removeprefix(prefix).split("/") if file.startswith(prefix) else []
        for depth in range(1, len(below)):
            folder = prefix + "/".join(below[:depth])
            if deep or depth == 1:
                found[folder] = {"type": "directory", "path": folder, "oid": hashlib.sha1(folder.encode()).hexdigest()}
        if below and (deep or len(below) == 1):
            found[file] = _listed(file, commit["files"][file])
    return list(found.values())


@route("POST", REPO + "/paths-info/(?P<revision>[^/]+)")
def paths_info(hub: LoopbackHub, request: Request, kind: str, name: str, revision: str) -> Any:
    wanted = parse_qs(request.read().decode()).get("paths", [])
    files = hub.resolve(hub.repo(request.token, kind, name), revision)[1]["files"]
    return [_listed(path, files[path]) for path in wanted if path in files]


@route("GET", REPO + "/refs")
def refs(hub: LoopbackHub, request: Request, kind: str, name: str) -> Any:
    with hub.lock:
        repo = hub.repo(request.token, kind, name)
        listed = {group: [{"name": ref, "ref": f"refs/{prefix}/{ref}", "targetCommit": oid}
                          for ref, oid in repo[group].items()] for group, prefix in
                  (("branches", "heads"), ("tags", "tags"))}
    return {"converts": [], "pullRequests": [], **listed}


@route("GET", REPO + "/commits/(?P<revision>[^/]+)")
def commits(hub: LoopbackHub, request: Request, kind: str, name: str, revision: str) -> Any:
    with hub.lock:
        found = hub.ancestors(hub.repo(request.token, kind, name), revision)
    return [{"id": oid, "title": commit["title"], "message": "", "date": _date(commit), "authors": [{"user": "alice"}]}
            for oid, commit in found]


def resolve(hub: LoopbackHub, request: Request, *, kind: str, name: str, revision: str, path: str) -> Any:
    oid, commit = hub.resolve(hub.repo(request.token, kind, name), revision)
    file = commit["files"].get(path)
    if file is None:
        stop = Stop(404, "Entry not found", "EntryNotFound")
        stop.headers["X-Repo-Commit"] = oid
        raise stop
    etag = file["sha256"] if file["lfs"] else file["oid"]
    start = int((re.match(r"bytes=(\d+)-", request.headers.get("Range", "")) or ["", "0"])[1])
    headers = {"X-Repo-Commit": oid, "ETag": f'"{etag}"', "Accept-Ranges": "bytes",
               "Content-Type": "application/octet-stream"}
    if start:
        headers["Content-Range"] = f"bytes {start}-{file['size'] - 1}/{file['size']}"
    return Reply((hub.blob(file["sha256"]), start, file["size"] - start), 206 if start else 200, headers)


for _method in ("GET", "HEAD"):
    route(_method, GIT + "/resolve/(?P<revision>[^/]+)/(?P<path>.+)")(resolve)


def _lfs(file: dict[str, Any], key: str) -> dict[str, Any] | None:
    return {key: file["sha256"], "size": file["size"], "pointerSize": 130} if file["lfs"] else None


def _listed(path: str, file: dict[str, Any]) -> dict[str, Any]:
    return {"type": "file", "path": path, "size": file["size"], "oid": file["oid"],
            **({"lfs": _lfs(file, "oid")} if file["lfs"] else {})}


def _date(commit: dict[str, Any]) -> str:
    return datetime.fromtimestamp(commit["time"], UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
