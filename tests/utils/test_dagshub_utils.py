"""DagsHub's token becomes MLflow's user and password if the address is DagsHub's, and nowhere else."""

import os
from base64 import b64encode
from collections.abc import Iterator
from email.message import Message

import pytest

from src.core.errors import Undecided
from tests.fakes.local_http import LocalServer
from utils.process import redacted
from utils.tracking import store

TOKEN = "dagshub-canary-token"
NAMES = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")


class DagsHub(LocalServer):
    """Knows one token, and says whose it is."""

    def answer(self, _method: str, path: str, headers: Message, _body: bytes) -> tuple[int, object]:
        known = headers["Authorization"] == f"Bearer {TOKEN}" and path == "/api/v1/user"
        return 200 if known else 401, {"id": 1, "login": "alice", "full_name": "Alice", "username": "alice"}


@pytest.fixture
def dagshub(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name in NAMES:
        monkeypatch.setenv(name, "")  # so that what is set is undone
    with DagsHub() as server:
        monkeypatch.setenv("DAGSHUB_CLIENT_HOST", server.url)
        monkeypatch.setenv("DAGSHUB_USER_TOKEN", TOKEN)
        yield server.url


def credentials() -> list[str]:
    return [os.environ[name] for name in NAMES]


def test_a_token_that_dagshub_does_not_know_is_undecided_and_not_repeated(
    dagshub: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSHUB_USER_TOKEN", "another-secret")
    with pytest.raises(Undecided, match="DAGSHUB_USER_TOKEN could not be used") as caught:
        store.log_in(f"{dagshub}/alice/shop.mlflow")
    assert "secret" not in str(caught.value)
    assert credentials() == ["", ""]


def test_a_dagshub_that_does_not_answer_is_undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSHUB_CLIENT_HOST", "http://127.0.0.1:9")
    monkeypatch.setenv("DAGSHUB_USER_TOKEN", "never-asked-about")  # its client remembers answers
    with pytest.raises(Undecided, match=r"127\.0\.0\.1:9: .* \(ConnectError\)"):
        store.log_in("http://127.0.0.1:9/alice/shop.mlflow")


def test_the_token_gives_user_and_password(dagshub: str) -> None:
    store.log_in(f"{dagshub}/alice/shop.mlflow")
    assert credentials() == ["alice", TOKEN]


@pytest.mark.parametrize(
    ("given", "used"),
    [({"DAGSHUB_TOKEN": TOKEN}, ["alice", TOKEN]), ({"DAGSHUB_TOKEN": f" {TOKEN}\n"}, ["alice", TOKEN]),
     ({"DAGSHUB_TOKEN": "of-bob-canary", "DAGSHUB_USERNAME": "bob"}, ["bob", "of-bob-canary"]),  # nobody is asked
     ({"DAGSHUB_USERNAME": "bob"}, ["bob", TOKEN]), ({"DAGSHUB_TOKEN": " ", "DAGSHUB_USERNAME": " "}, ["alice", TOKEN]),
     ({"DAGSHUB_TOKEN": "of-bob-canary", "MLFLOW_TRACKING_USERNAME": "eve"}, ["eve", ""])],
)
def test_the_documented_names_serve_mlflow_in_their_order(
    given: dict[str, str], used: list[str], dagshub: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    store.log_in(f"{dagshub}/alice/shop.mlflow")
    assert credentials() == used
    token, basic = used[1], b64encode(":".join(used).encode()).decode()
    if token:
        assert redacted(f"{token} {basic}") == "*** ***"


def test_the_variable_whose_token_dagshub_does_not_know_is_named(dagshub: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSHUB_TOKEN", "another-secret")
    with pytest.raises(Undecided, match="DAGSHUB_TOKEN could not be used") as caught:
        store.log_in(f"{dagshub}/alice/shop.mlflow")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("uri", ["http://mlflow.example.com", "sqlite:///mlflow.db", "https://dagshub.com/a/b.mlflow"])
def test_another_server_never_sees_the_token(dagshub: str, uri: str) -> None:
    store.log_in(uri)
    assert credentials() == ["", ""]


@pytest.mark.parametrize(("name", "value", "password"), [
    ("MLFLOW_TRACKING_PASSWORD", "mine", "mine"), ("DAGSHUB_USER_TOKEN", " ", "")])
def test_with_a_password_or_without_a_token_there_is_nothing_to_do(
    dagshub: str, monkeypatch: pytest.MonkeyPatch, name: str, value: str, password: str
) -> None:
    monkeypatch.setenv(name, value)
    store.log_in(f"{dagshub}/alice/shop.mlflow")
    assert credentials() == ["", password]
