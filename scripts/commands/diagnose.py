"""The checks of the doctor: this machine and each configured service, with one line and one remedy for each."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import requests
from huggingface_hub import HfApi
from mlflow.exceptions import MlflowException
from tabulate import tabulate

from src.core.errors import HubError, InvalidParams, PipelineError, Undecided
from src.core.params import Params, load_params
from src.evaluation import tokenizers
from utils import dvc_utils, environment, github_utils, mlflow_utils, process
from utils.hub.client import endpoint, hub_errors, time_limit
from utils.hub.identity import who
from utils.hub.repository import HubRepository, Patience
from utils.tracking import store
from utils.tracking.ledger import MlflowLedger

# 2.8 brought params of 6,000 characters, which a ledger slot needs, and 2.3 aliases; tested against 2.9.2.
OLDEST_MLFLOW = (2, 9)
_STATES = {"ok": "ok", "warning": "warning", "failed": "FAILED", "unused": "not used"}
MLFLOW_SECONDS = 12
HUB_SECONDS = 8
_PYTHON = sys.version_info[:2]
_PATIENCE = Patience(deadline=HUB_SECONDS, request=5, stall=5, attempts=1, backoff=1)
# The doctor checks whether a server answers now; a deployment waits longer.
IMPATIENT = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "5", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}


@dataclass(frozen=True)
class Check:
    """The result of one check.

    code: the exit code if it failed, else 0. remedy: what to do, empty if there is nothing to do.
    """

    service: str
    state: Literal["ok", "warning", "failed", "unused"]
    text: str
    remedy: str = ""
    code: int = 0


Checks = Mapping[str, Callable[[], Check | None]]


def failed(service: str, code: int, text: str, remedy: str) -> Check:
    """A check that failed."""
    return Check(service, "failed", text, remedy, code)


def failed_by(service: str, error: PipelineError) -> Check:
    """A check that failed with this error, whose message ends with `; ` and the remedy."""
    text, _, remedy = " ".join(str(error).split()).rpartition("; ")
    return failed(service, error.code, text or remedy, remedy if text else "see docs/troubleshooting.md")


def is_too_old(version: str) -> bool:
    """True if an MLflow server of this version cannot keep the ledger; False for a version that cannot be read."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return found is not None and (int(found[1]), int(found[2])) < OLDEST_MLFLOW


def exit_code(checks: Sequence[Check]) -> int:
    """The exit code of the first failed check, 0 if none failed."""
    return next((check.code for check in checks if check.state == "failed"), 0)


def facts(checks: Sequence[Check]) -> dict[str, Any]:
    """The checks as a JSON object."""
    return {"code": exit_code(checks), "checks": [asdict(check) for check in checks]}


def text(checks: Sequence[Check]) -> str:
    """One line for each check."""
    rows = [(_STATES[check.state], check.service, f"{check.text}{check.remedy and '; '}{check.remedy}")
            for check in checks]
    return tabulate(rows, tablefmt="plain", disable_numparse=True)


def accelerator() -> str | None:
    """Name and memory of the NVIDIA GPUs by nvidia-smi, None if there is none. Importing torch would take seconds."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return None
    return "; ".join(line.strip() for line in done.stdout.splitlines() if line.strip()) or None


def examine(config: Path) -> list[Check]:
    """Run every check. It takes at most a minute: each service has its own time limit."""
    try:
        params = load_params(config, profile=github_utils.overrides().profile)
    except InvalidParams as error:
        return [failed_by("config", error), *performed({"git": _git, "dvc": _dvc})]
    text = f"{config}: profile {params.profile}, model {params.deployment.model_registry_name}"
    try:
        tokenizers.load(params.evaluation.tokenizer)
    except InvalidParams as error:
        return [failed_by("config", error), *performed(checks(params))]
    return [Check("config", "ok", text), *performed(checks(params))]


def checks(params: Params) -> Checks:
    """The check of each service by its name. A check returns None if the configuration does not use its service."""
    return {
        "machine": lambda: _machine(params), "git": lambda: _branch(params), "dvc": _dvc,
        "dagshub": lambda: _dagshub(params), "mlflow": lambda: _mlflow(params), "hub": lambda: _hub(params),
        "base": lambda: _base(params),
    }


def performed(asked: Checks) -> list[Check]:
    """Run the checks; an error becomes a failed check."""
    os.environ.update(IMPATIENT)
    found = []
    for service, check in asked.items():
        try:
            found.append(check())
        except PipelineError as error:
            found.append(failed_by(service, error))
    return [check for check in found if check]


def _machine(params: Params) -> Check:
    python, free, fetched = ".".join(map(str, _PYTHON)), shutil.disk_usage(Path()).free / 1e9, _is_fetched(params)
    room = 12 if fetched else 1  # GB: for base, merged model, release and registered copy
    if python not in ("3.11", "3.12", "3.13"):
        return failed("machine", 2, f"Python {python}", "make the environment with Python 3.11, 3.12 or 3.13")
    if free < room:
        return failed("machine", 2, f"{free:.1f} GB free on this disk, {room} needed", "free some, or use another disk")
    gpu = accelerator()
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "mlflow", "dvc"))
    text = f"Python {python}, {versions}; {free:.0f} GB free; {gpu or 'no GPU'}"
    if fetched and not gpu:
        return Check("machine", "warning", text, f"{params.model.base_model} takes hours to train without one")
    return Check("machine", "ok", text)


def _git() -> Check:
    if shutil.which("git") is None:
        return failed("git", 2, "not installed", "install git")
    found = environment.git_identity()
    if found.commit == environment.NO_COMMIT:
        return Check("git", "warning", "no commit here, so records name none", "git init, git add, git commit")
    changes = ", uncommitted changes" if found.dirty else ""
    return Check("git", "ok", f"{found.branch or 'detached'}{changes}, commit {found.commit[:8]}")


def _branch(params: Params) -> Check:
    found = _git()
    branches = params.deployment.promoting_branches
    if found.state == "ok" and not environment.may_promote(branches, environment.git_identity().branch):
        return Check("git", "warning", f"{found.text}: this branch may not promote",
                     "add it to deployment.promoting_branches if it should")
    return found


def _dvc() -> Check:
    remote = dvc_utils.default_remote()
    if remote is None:
        return Check("dvc", "unused", "no remote: the cache stays on this machine (docs/remotes.md)")
    state = dvc_utils.look(remote)
    text = f"{remote.name} at {remote.url}: {state}"
    if state != "reachable":
        return Check("dvc", "warning", text, "give write access if `dvc push` is to work")
    return Check("dvc", "ok", text)


def _dagshub(params: Params) -> Check | None:
    uri = store.tracking_uri(params.mlflow.tracking_uri)
    if not store.is_dagshub(uri):
        return None
    host = store.host()
    if os.environ.get("MLFLOW_TRACKING_PASSWORD"):
        return Check("dagshub", "ok", f"{host}: MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD are used")
    login = store.dagshub_login()
    if login is None:
        return failed("dagshub", 2, "DAGSHUB_TOKEN: not set", f"make a token at {host}/user/settings/tokens")
    return Check("dagshub", "ok", f"{host}: as {login[0]}")


def _mlflow(params: Params) -> Check:
    uri = store.tracking_uri(params.mlflow.tracking_uri)
    if uri.startswith(store.SQLITE):
        if environment.in_ci() and params.deployment.huggingface.push_to_hub:
            return failed("mlflow", 2, f"{uri}: a file of this CI machine, which keeps no history",
                          "set MLFLOW_TRACKING_URI to a server")
        path = Path(uri.removeprefix(store.SQLITE))
        if not path.exists() and os.access(path.parent, os.W_OK):
            return Check("mlflow", "ok", f"{uri}: made by the first run")
    try:
        return _asked(params, uri)
    except Undecided as error:
        return _explained(error, uri)


def _asked(params: Params, uri: str) -> Check:
    name = params.deployment.model_registry_name
    with process.deadline(MLFLOW_SECONDS, f"MLflow at {uri}: asking it"):
        client = mlflow_utils.connect(params.mlflow)
        mlflow_utils.greet(client)
        server = mlflow_utils.version(uri) if uri.startswith("http") else importlib.metadata.version("mlflow")
        if server and is_too_old(server):
            return failed("mlflow", 4, f"{uri}: MLflow {server} is too old for the ledger", "upgrade the server to "
                          f"{'.'.join(map(str, OLDEST_MLFLOW))} or newer")
        if home := mlflow_utils.find_experiment(client, params.mlflow.experiment_name):
            mlflow_utils.refuse_local(uri, home.artifact_location)
        MlflowLedger(client, name, params.mlflow.experiment_name).probe()
        text = f"{uri}: MLflow {server or 'of unknown version'}, params are write-once"
        able = mlflow_utils.abilities(client, name)
        if not able.registry or not able.aliases:
            lacking = "aliases" if able.registry else "Model Registry"
            return failed("mlflow", 4, f"{text}, no {lacking}", "use MLflow 2.9 or newer on a SQL store, or DagsHub")
        mlflow_utils.may_register(client, name)
        stages = " and stages" if able.stages else ", without stages"
        return Check("mlflow", "ok", f"{text}, registry with aliases{stages}")


def _explained(error: Undecided, uri: str) -> Check:
    """The usual problems with a server, by MLflow's error codes."""
    cause = error.__cause__
    if not isinstance(cause, MlflowException) or uri.startswith(store.SQLITE):
        return failed_by("mlflow", error)
    if isinstance(cause.__context__, Undecided):  # our own deadline, in MLflow's words
        return failed_by("mlflow", cause.__context__)
    if isinstance(cause.__context__, requests.RequestException):
        return failed("mlflow", 4, f"{uri}: no answer", "check that it runs, MLFLOW_TRACKING_URI and the network")
    if cause.error_code == "UNAUTHENTICATED":
        return _unknown_user(uri)
    if cause.error_code == "PERMISSION_DENIED":
        return failed("mlflow", 4, f"{uri}: this user may not write",
                      "give it EDIT on what docs/troubleshooting.md lists")
    return failed_by("mlflow", error)


def _unknown_user(uri: str) -> Check:
    names = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    if store.is_dagshub(uri):
        names = f"DAGSHUB_USERNAME and DAGSHUB_TOKEN, or {names}"
    if os.environ.get("MLFLOW_TRACKING_PASSWORD"):
        return failed("mlflow", 4, f"{uri}: it does not know this user name and password", f"correct {names}")
    return failed("mlflow", 2, f"{uri}: it asks for a user name and a password", f"set {names}")


def _hub(params: Params) -> Check:
    hugging = params.deployment.huggingface
    if not environment.will_push(params.deployment, skip_hf_push=False):
        why = "DEPLOY_SKIP_HF_PUSH" if hugging.push_to_hub else "deployment.huggingface.push_to_hub: false"
        return Check("hub", "unused", f"nothing is pushed ({why})")
    token = environment.token()
    repository = HubRepository(repo_id=hugging.model_id, token=token, private=hugging.private, patience=_PATIENCE)
    try:
        repository.check()
    except HubError as error:  # its cause says what happened; the error itself says how often it was tried
        return failed_by("hub", error.__cause__ if isinstance(error.__cause__, HubError) else error)
    with time_limit(HUB_SECONDS, HUB_SECONDS, client_waits=0), hub_errors(hugging.model_id):
        identity = who(HfApi(endpoint=endpoint(), token=token))
    head = repository.state().head
    there = f"main at {head[:12]}" if head else "not there yet, and may be created"
    return Check("hub", "ok", f"{endpoint()}: {hugging.model_id}: {there}, as {identity.name} ({identity.rights()})")


def _base(params: Params) -> Check | None:
    """The base model, if it comes from the Hub."""
    if not _is_fetched(params):
        return None
    name, revision = params.model.base_model, params.model.revision
    with time_limit(HUB_SECONDS, HUB_SECONDS, client_waits=0), hub_errors(name):
        info = HfApi(endpoint=endpoint(), token=environment.token() or False).model_info(name, revision=revision)
    return Check("base", "ok", f"{endpoint()}: {name} at {str(info.sha)[:12]}")


def _is_fetched(params: Params) -> bool:
    return params.model.base_model != "pocket" and not Path(params.model.base_model).is_dir()
