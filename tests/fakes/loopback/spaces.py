"""Spaces: what makes a repository run. RUNNING is true: the pushed tree is put together as its Dockerfile says, without
the RUN steps, and its CMD runs in a process of its own, with the Python that the hub was given.

How a build ends is programmed: `hub.spaces.outcomes` holds one word for each build to come, RUNNING where it is empty:
BUILD_ERROR, NEVER (it builds on), STALE (RUNNING is told, and what ran before goes on answering), OTHER (the same,
and the commit that is told is the one before).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..local_http import free_port
from .dockerfile import BuildError, image
from .reading import REPO, route
from .store import Reply, Stop

if TYPE_CHECKING:
    from pathlib import Path

    from .server import LoopbackHub, Request

BUILDING = 0.4  # seconds at least, so that a client that polls sees it


@dataclass
class Running:
    """A Space's stage and process; its port stays, as its address does."""

    port: int
    stage: str = "NO_APP_FILE"
    sha: str | None = None
    reason: str = ""
    process: subprocess.Popen[bytes] | None = None
    builds: int = 0

    def enter(self, stage: str, sha: str | None = None, reason: str = "") -> None:
        self.stage, self.sha, self.reason = stage, sha or self.sha, reason

    def end(self) -> None:
        if self.process:
            with suppress(ProcessLookupError):  # it ended by itself
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.process = None


class Spaces:
    """All Spaces of a hub."""

    def __init__(self, hub: LoopbackHub) -> None:
        self._hub = hub
        self.python = sys.executable
        self.outcomes: list[str] = []
        self.unpaid = False  # True: creating one is answered 402
        self.tells_commit = True
        self.lag = 0.0  # seconds for which the stage before a build is told still
        self.build_log = ["Job failed with exit code: 1"]
        self._running: dict[str, Running] = {}
        self._building = threading.Lock()

    def end(self) -> None:
        for each in self._running.values():
            each.builds += 1  # what waits to be built is not begun
            each.end()
        with self._building:
            for each in self._running.values():
                each.end()

    def __getitem__(self, name: str) -> Running:
        if name not in self._running:
            self._running[name] = Running(free_port())
        return self._running[name]

    def made(self, sdk: str | None) -> dict[str, Any]:
        """What a new Space's repository holds more than another's."""
        if sdk is None:
            raise Stop(400, "sdk is required")
        if self.unpaid and sdk == "docker":
            raise Stop(402, "Payment required: Docker Spaces need a PRO subscription")
        return {"sdk": sdk, "variables": {}}

    def told(self, name: str, repo: dict[str, Any]) -> dict[str, Any]:
        """What a Space's information holds more than another repository's."""
        return {"sdk": repo["sdk"], "subdomain": name.replace("/", "-"), "runtime": self.runtime(name),
                "host": f"http://127.0.0.1:{self[name].port}"}

    def runtime(self, name: str) -> dict[str, Any]:
        space = self[name]
        return {"stage": space.stage, "sha": space.sha if self.tells_commit else None, "gcTimeout": 172800,
                "storage": None, "hardware": {"current": "cpu-basic", "requested": "cpu-basic"},
                **({"errorMessage": space.reason} if space.reason else {})}

    def folder(self, name: str) -> Path:
        return self._hub.root / "spaces" / name.replace("/", "-")

    def build(self, name: str, outcome: str = "") -> None:
        """Begin with the head of main, in place of what is under way; the answer does not wait for it."""
        space = self[name]
        space.builds += 1
        if not self.lag:
            space.enter("BUILDING")
        outcome = outcome or (self.outcomes.pop(0) if self.outcomes else "RUNNING")
        threading.Thread(target=self._build, args=[name, outcome, space.builds], daemon=True).start()

    def _build(self, name: str, outcome: str, number: int) -> None:
        space = self[name]
        if self.lag:
            time.sleep(self.lag)
            space.enter("BUILDING")
        time.sleep(BUILDING)
        with self._building:
            with self._hub.lock:
                repo = self._hub.repos[f"spaces/{name}"]
                oid, commit = self._hub.resolve(repo, "main")
                variables = {key: each["value"] for key, each in repo["variables"].items()}
            if number == space.builds and outcome != "NEVER":
                stage, reason = self._outcome(name, outcome, commit, variables)
                if number == space.builds:
                    space.enter(stage, oid if outcome != "OTHER" else None, reason)

    def _outcome(self, name: str, outcome: str, commit: dict[str, Any], variables: dict[str, str]) -> tuple[str, str]:
        space = self[name]
        if outcome in ("STALE", "OTHER"):
            return "RUNNING", ""
        space.end()
        if outcome == "BUILD_ERROR":
            return outcome, self.build_log[-1]
        try:
            self._start(name, self._tree(name, commit), variables)
        except BuildError as error:
            return "BUILD_ERROR", str(error)
        space.enter("APP_STARTING")
        return ("RUNNING" if self._comes_up(space) else "RUNTIME_ERROR"), ""

    def _tree(self, name: str, commit: dict[str, Any]) -> Path:
        folder = self.folder(name) / "tree"
        shutil.rmtree(folder, ignore_errors=True)
        for path, file in commit["files"].items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self._hub.blob(file["sha256"]), folder / path)
        if not (folder / "Dockerfile").exists():
            raise BuildError("no Dockerfile")
        return folder

    def _start(self, name: str, tree: Path, variables: dict[str, str]) -> None:
        place, stage = image(tree, tree.parent / "image")
        program, *arguments = stage.one("CMD").arguments
        environment = {"PATH": os.environ["PATH"], "HOME": str(place), **stage.environment, "SPACE_ID": name,
                       "THREADS": "1", "HOST": "127.0.0.1", "PORT": str(self[name].port), **variables}
        with (tree.parent / "run.log").open("wb") as log:
            self[name].process = subprocess.Popen(
                [self.python if program == "python" else program, *arguments], cwd=place, env=environment,
                stdout=log, stderr=log, start_new_session=True)

    def _comes_up(self, space: Running) -> bool:
        until = time.monotonic() + 120
        while space.process and space.process.poll() is None and time.monotonic() < until:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{space.port}/healthz", timeout=30):
                    return True
            except OSError:
                time.sleep(0.05)
        return False


@route("GET", REPO + "/runtime")
def runtime(hub: LoopbackHub, request: Request, kind: str, name: str) -> Any:
    hub.repo(request.token, kind, name)
    return hub.spaces.runtime(name)


@route("POST", REPO + "/restart")
def restart(hub: LoopbackHub, request: Request, kind: str, name: str) -> Any:
    hub.repo(request.token, kind, name, write=True)
    hub.spaces.build(name)
    return hub.spaces.runtime(name)


@route("GET", REPO + "/variables")
def variables(hub: LoopbackHub, request: Request, kind: str, name: str) -> Any:
    return hub.repo(request.token, kind, name)["variables"]


@route("DELETE", REPO + "/variables")
@route("POST", REPO + "/variables")
def set_variable(hub: LoopbackHub, request: Request, kind: str, name: str) -> Any:
    wanted = request.json()
    with hub.lock:
        repo = hub.repo(request.token, kind, name, write=True)
        if repo["variables"].pop(wanted["key"], None) is None and "value" not in wanted:
            raise Stop(404, f"no variable {wanted['key']}")
        repo["variables"] |= {wanted["key"]: {"value": wanted["value"]}} if "value" in wanted else {}
        hub.save()
    if hub.spaces[name].process:
        hub.spaces.build(name, "RUNNING")
    return repo["variables"]


@route("GET", REPO + "/logs/(?P<which>build|run)")
def logs(hub: LoopbackHub, request: Request, *, kind: str, name: str, which: str) -> Any:
    hub.repo(request.token, kind, name)
    run = hub.spaces.folder(name) / "run.log"
    lines = hub.spaces.build_log if which == "build" else run.read_text().splitlines() if run.exists() else []
    events = [json.dumps({"data": f"{line}\n", "timestamp": ""}) for line in lines]
    return Reply("".join(f"data: {event}\n\n" for event in events), headers={"Content-Type": "text/event-stream"})
