"""Runs a workflow's jobs and steps as GitHub does, in scratch clones; every `run:` step really runs.

Not GitHub's are: the actions (emulated here; an unknown one is an error), and the installation: where `make
.venv/.ready` would make an environment, a `.venv` that links to the tests' own lies ready, so that make finds it
current, and PYTHONPATH puts the clone before the editable install. Secrets and variables are those of one protected
environment: a job that does not name it gets none. Any secret in a step's output is an error.
"""

import fnmatch
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.fakes.actions.expressions import Open, Scope, UnknownExpression, condition, interpolated

NO_ACCOUNT = {"GIT_CONFIG_NOSYSTEM": "1", "GIT_TERMINAL_PROMPT": "0"}
_VENV = Path(sys.executable).parents[1]
Given = Mapping[str, str]
STEP_SECONDS = 1800
_WORKFLOW = {"name", True, "permissions", "concurrency", "env", "jobs"}  # YAML 1.1 reads `on` as true
_JOB = {"name", "needs", "if", "runs-on", "timeout-minutes", "environment", "permissions", "env", "outputs", "steps"}
_STEP = {"name", "id", "if", "run", "uses", "with", "env"}


# The actions that our workflows use, as far as they matter to a step after them.


@dataclass(frozen=True)
class Place:
    """Where a job works, and on what commit of what branch."""

    workspace: Path
    artifacts: Path
    remote: str
    branch: str
    sha: str


def _checkout(place: Place, given: Given) -> None:
    """As actions/checkout: one commit deep, on a local branch, no credentials left behind."""
    assert given == {"persist-credentials": "false"}
    there = f"refs/remotes/origin/{place.branch}"
    git(place.workspace, "init", "--quiet")
    git(place.workspace, "remote", "add", "origin", place.remote)
    git(place.workspace, "fetch", "--quiet", "--depth=1", "--no-tags", "origin", f"+{place.sha}:{there}")
    git(place.workspace, "checkout", "--quiet", "-B", place.branch, there)


def _setup_python(place: Place, _given: Given) -> None:
    venv = place.workspace / ".venv"
    venv.mkdir()
    for part in ("bin", "lib", "pyvenv.cfg"):
        (venv / part).symlink_to(_VENV / part)
    (venv / ".ready").touch()  # the checkout's files are older


def _upload(place: Place, given: Given) -> None:
    """Paths and `!` exceptions below the workspace; nothing hidden. One folder on its own loses its name."""
    kept, target = given["path"].split(), place.artifacts / given["name"]
    wanted = [Path(each) for each in kept if not each.startswith("!")]
    barred = [Path(each[1:]) for each in kept if each.startswith("!")]
    root = place.workspace / wanted[0] if len(wanted) == 1 else place.workspace
    files = [path for path in sorted(place.workspace.rglob("*")) if path.is_file()
             and any((each := path.relative_to(place.workspace)).is_relative_to(folder) for folder in wanted)
             and not any(each.is_relative_to(folder) for folder in barred)
             and not any(part.startswith(".") for part in each.parts)]
    assert files or given["if-no-files-found"] != "error", f"artifact {given['name']}: no files"
    for path in files:
        copy = target / path.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)


def _download(place: Place, given: Given) -> None:
    shutil.copytree(place.artifacts / given["name"], place.workspace, dirs_exist_ok=True)


ACTIONS: Mapping[str, tuple[set[str], Callable[[Place, Given], None]]] = {
    "actions/checkout": ({"persist-credentials"}, _checkout),
    "actions/setup-python": ({"python-version", "cache", "cache-dependency-path"}, _setup_python),
    "actions/upload-artifact": ({"name", "path", "if-no-files-found", "retention-days"}, _upload),
    "actions/download-artifact": ({"name"}, _download),
}


def known(found: Collection[object], wanted: Collection[object], where: str) -> None:
    """What is found beyond what is known is an error."""
    if extra := set(found) - set(wanted):
        raise UnknownExpression(f"{where}: {', '.join(map(str, extra))}: not known to this harness")


def git(folder: Path, *arguments: str) -> str:
    """What git prints; raises CalledProcessError."""
    return subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True,
                          env={**os.environ, **NO_ACCOUNT}).stdout.strip()


# Events, jobs and steps.


@dataclass(frozen=True)
class Event:
    """What started the workflow: `push` or `workflow_dispatch` on a branch, with the inputs that were filled in."""

    name: str
    branch: str
    inputs: Mapping[str, Any] = field(default_factory=dict)
    actor: str = "octocat"


@dataclass
class Step:
    """One step as it went; outcome is success, failure or skipped."""

    name: str
    outcome: str
    log: str = ""
    seconds: float = 0.0


@dataclass
class Job:
    """One job as it went, what it put on its summary page, and its outputs."""

    result: str
    steps: list[Step] = field(default_factory=list)
    summary: str = ""
    outputs: dict[str, str] = field(default_factory=dict)
    workspace: Path | None = None

    def step(self, name: str) -> Step:
        return next(step for step in self.steps if step.name == name)


@dataclass(frozen=True)
class GitHub:
    """A repository on GitHub: its bare origin, its protected environment, and where its runs leave what they make."""

    origin: Path
    root: Path
    environment: str
    secrets: Mapping[str, str]
    variables: Mapping[str, str]
    api: str = "http://127.0.0.1:9"
    server: str = "https://github.com"
    repository: str = "acme/shop"
    token: str = "ghs_canary"  # a job's GITHUB_TOKEN
    runner: Mapping[str, str] = field(default_factory=dict)  # what the machine has in its environment
    granted: Callable[[Mapping[str, str]], None] = lambda _: None  # is told the permissions of a job's token
    remote: str = ""  # the address that a job clones from; the origin's folder where there is none

    def run(self, workflow: Mapping[Any, Any], event: Event) -> dict[str, Job]:
        """The jobs of one run; empty where this event does not start the workflow."""
        known(workflow, _WORKFLOW, "workflow")
        if not triggered(workflow, event):
            return {}
        folder = self.root / f"run-{len(list(self.root.glob('run-*'))) + 1}"
        folder.mkdir(parents=True)
        run = _Run(self, workflow, event, folder, git(self.origin, "rev-parse", f"refs/heads/{event.branch}"))
        for name, job in workflow["jobs"].items():  # listed in an order that `needs` allows
            run.jobs[name] = run.job(name, job)
        return run.jobs


def triggered(workflow: Mapping[Any, Any], event: Event) -> bool:
    """Whether the workflow's `on:` names this event and branch."""
    if event.name not in workflow[True]:
        return False
    rule = workflow[True][event.name] or {}
    known(rule, {"branches-ignore", "inputs"}, f"on.{event.name}")
    return not any(fnmatch.fnmatchcase(event.branch, pattern) for pattern in rule.get("branches-ignore", []))


@dataclass
class _Run:
    github: GitHub
    workflow: Mapping[Any, Any]
    event: Event
    folder: Path
    sha: str
    jobs: dict[str, Job] = field(default_factory=dict)

    def job(self, name: str, job: Mapping[str, Any]) -> Job:
        known(job, _JOB, f"jobs.{name}")
        needs = [job["needs"]] if isinstance(job.get("needs"), str) else job.get("needs", [])
        failed = any(self.jobs[need].result != "success" for need in needs)
        contexts = {**self._contexts(job), "needs": {need: {"result": self.jobs[need].result, "outputs": {
            key: self.jobs[need].outputs.get(key) for key in self.workflow["jobs"][need].get("outputs", {})}}
            for need in needs}}
        if not condition(job.get("if"), Scope(contexts, failed=failed)):
            return Job("skipped")
        return _JobRun(self, name, job, contexts).go()

    def _contexts(self, job: Mapping[str, Any]) -> dict[str, Any]:
        event, github = self.event, self.github
        declared = (self.workflow[True].get("workflow_dispatch") or {}).get("inputs", {})
        known(event.inputs, declared, "inputs that the workflow declares")
        given = {name: event.inputs.get(name, spec.get("default")) if event.name == "workflow_dispatch" else None
                 for name, spec in declared.items()}
        protected = job.get("environment") == github.environment
        return {
            "inputs": given, "vars": Open(github.variables if protected else {}),
            "secrets": Open(github.secrets if protected else {}),
            "github": {"token": github.token, "event_name": event.name, "ref_name": event.branch,
                       "ref": f"refs/heads/{event.branch}", "sha": self.sha, "actor": event.actor,
                       "workflow": self.workflow["name"], "repository": github.repository},
        }


@dataclass
class _JobRun:
    run: _Run
    name: str
    job: Mapping[str, Any]
    contexts: dict[str, Any]
    failed: bool = False

    def go(self) -> Job:
        self.folder = self.run.folder / self.name
        self.workspace = self.folder / "workspace"
        for folder in (self.workspace, self.folder / "home", self.folder / "temp"):
            folder.mkdir(parents=True)
        for file in ("output", "env", "summary"):
            (self.folder / file).touch()
        (self.folder / "event.json").write_text(json.dumps({"inputs": dict(self.run.event.inputs)}))
        self.contexts["steps"] = {}
        self.run.github.granted(self.job.get("permissions", {}))
        self.contexts["env"] = {key: interpolated(value, Scope(self.contexts)) for key, value in
                                {**self.run.workflow.get("env", {}), **self.job.get("env", {})}.items()}
        done = Job("success", workspace=self.workspace)
        for spec in self.job["steps"]:
            done.steps.append(self._step(spec))
        done.result = "failure" if self.failed else "success"
        done.summary = (self.folder / "summary").read_text()
        done.outputs = {key: interpolated(value, Scope(self.contexts)) for key, value in
                        self.job.get("outputs", {}).items()}
        return done

    def _step(self, spec: Mapping[str, Any]) -> Step:
        name = spec.get("name", "?")
        known(spec, _STEP, f"step {name!r}")
        scope = Scope(self.contexts, failed=self.failed)
        step, started = Step(name, "skipped"), time.monotonic()
        if condition(spec.get("if"), scope):
            if "uses" in spec:
                self._emulate(spec, scope)
                step.outcome = "success"
            else:
                step.outcome, step.log = self._command(spec, scope)
        step.seconds = time.monotonic() - started
        self.failed = self.failed or step.outcome == "failure"
        outputs = Open(_pairs(self.folder / "output"))
        (self.folder / "output").write_text("")
        if "id" in spec:
            self.contexts["steps"][spec["id"]] = {"outcome": step.outcome, "conclusion": step.outcome,
                                                  "outputs": outputs}
        return step

    def _emulate(self, spec: Mapping[str, Any], scope: Scope) -> None:
        action = spec["uses"].partition("@")[0]
        if action not in ACTIONS:
            raise UnknownExpression(f"uses: {action}: not emulated here")
        wanted, emulation = ACTIONS[action]
        given = {key: interpolated(value, scope) for key, value in spec.get("with", {}).items()}
        known(given, wanted, f"with of {action}")
        emulation(Place(self.workspace, self.run.folder / "artifacts", self.run.github.remote
                        or f"file://{self.run.github.origin}", self.run.event.branch, self.run.sha), given)

    def _command(self, spec: Mapping[str, Any], scope: Scope) -> tuple[str, str]:
        assert "${{" not in spec["run"], f"an expression inside run: {spec['run']}"
        own = {key: interpolated(value, scope) for key, value in spec.get("env", {}).items()}
        done = subprocess.run(["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", spec["run"]],
                              cwd=self.workspace, env={**self._environment(), **own}, capture_output=True, text=True,
                              timeout=STEP_SECONDS, check=False)
        log = done.stdout + done.stderr
        for name, secret in {**self.run.github.secrets, "GITHUB_TOKEN": self.run.github.token}.items():
            assert secret not in log, f"{self.name}: {spec['name']}: prints {name}"
        return ("success" if done.returncode == 0 else "failure"), log

    def _environment(self) -> dict[str, str]:
        event, github = self.run.event, self.run.github
        return {
            "PATH": os.environ["PATH"], "HOME": str(self.folder / "home"), "LANG": "C.UTF-8", "CI": "true",
            "GITHUB_ACTIONS": "true", "GITHUB_ACTOR": event.actor, "GITHUB_API_URL": github.api,
            "GITHUB_BASE_REF": "", "GITHUB_EVENT_NAME": event.name, "GITHUB_HEAD_REF": "",
            "GITHUB_EVENT_PATH": str(self.folder / "event.json"), "GITHUB_REF": f"refs/heads/{event.branch}",
            "GITHUB_REF_NAME": event.branch, "GITHUB_REF_TYPE": "branch", "GITHUB_REPOSITORY": github.repository,
            "GITHUB_REPOSITORY_OWNER": github.repository.partition("/")[0], "GITHUB_RUN_ID": self.run.folder.name[4:],
            "GITHUB_SERVER_URL": github.server, "GITHUB_SHA": self.run.sha, "RUNNER_TEMP": str(self.folder / "temp"),
            "GITHUB_WORKFLOW": self.run.workflow["name"], "GITHUB_WORKSPACE": str(self.workspace),
            "GITHUB_OUTPUT": str(self.folder / "output"), "GITHUB_ENV": str(self.folder / "env"),
            "GITHUB_STEP_SUMMARY": str(self.folder / "summary"), "PYTHONPATH": str(self.workspace), **NO_ACCOUNT,
            **github.runner, **_pairs(self.folder / "env"), **self.contexts["env"],
        }


def read(path: Path) -> dict[Any, Any]:
    """A workflow file."""
    workflow: dict[Any, Any] = yaml.safe_load(path.read_text())
    return workflow


def _pairs(path: Path) -> dict[str, str]:
    return dict(line.split("=", 1) for line in path.read_text().splitlines())
