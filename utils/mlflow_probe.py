"""What an MLflow server can do, and whether we may do it there: asked without leaving a trace but the ledger's own."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import requests
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request

from utils.mlflow_utils import talking

_NO_ENDPOINT = ("ENDPOINT_NOT_FOUND", "NOT_IMPLEMENTED")
_ABSENT = ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND", "INVALID_PARAMETER_VALUE")
_TAG = "champion.doctor"
_SECONDS = 5


@dataclass(frozen=True)
class Abilities:
    """Which parts of the Model Registry a server has."""

    registry: bool
    aliases: bool
    stages: bool


def version(uri: str) -> str | None:
    """What the server says of itself; None where it says nothing (a service in MLflow's manner)."""
    try:
        reply = http_request(get_default_host_creds(uri), "/version", "GET", max_retries=0, timeout=_SECONDS)
    except (MlflowException, requests.RequestException):
        return None
    text = str(reply.text).strip()
    return text if reply.status_code == requests.codes.ok and len(text) < 20 else None


def greet(client: MlflowClient) -> None:
    """Reach the server as whom the credentials name; raises Undecided."""
    with talking():
        client.search_experiments(max_results=1)


def abilities(client: MlflowClient, name: str) -> Abilities:
    """Ask each endpoint for something that is not there; raises Undecided where one fails otherwise."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # stages are deprecated
        return Abilities(
            registry=_has(lambda: client.get_registered_model(name)),
            aliases=_has(lambda: client.get_model_version_by_alias(name, "champion")),
            stages=_has(lambda: client.transition_model_version_stage(name, "0", "Production")),
        )


def may_register(client: MlflowClient, name: str) -> None:
    """Tag the registered model and take the tag away; raises Undecided where that is refused. Absent: nothing."""
    try:
        client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code in _ABSENT:
            return
        with talking():
            raise
    with talking():
        client.set_registered_model_tag(name, _TAG, "write access")
        client.delete_registered_model_tag(name, _TAG)


def _has(ask: Callable[[], object]) -> bool:
    try:
        ask()
    except MlflowException as error:
        if error.error_code in _NO_ENDPOINT:
            return False
        if error.error_code not in _ABSENT:
            with talking():
                raise
    return True
