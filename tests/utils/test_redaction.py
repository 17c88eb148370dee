import base64
import logging
import sys

import pytest

from utils import process
from utils.process import redacted

HF = f"hf_{'a' * 34}"


@pytest.mark.parametrize(("name", "value"), [
    ("HF_TOKEN", HF), ("MLFLOW_TRACKING_PASSWORD", "s3cr3t"), ("AWS_SECRET_ACCESS_KEY", "wJalr/XUtn+FEMI"),
    ("PGPASSWORD", "postgres-1"), ("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "eyJhbGciOi"),
])
def test_the_value_of_a_secret_variable_is_hidden(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    assert redacted(f"refused: {value}.") == "refused: ***."


@pytest.mark.parametrize(("name", "value"), [
    ("HF_TOKEN_PATH", "/home/me/token"), ("TOKENIZERS_PARALLELISM", "false-ish"), ("MY_TOKEN", "abc"),
    ("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE"),
])
def test_paths_names_and_what_is_too_short_to_tell_from_text_stay(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    assert redacted(f"see {value}") == f"see {value}"


def test_a_hub_token_is_hidden_wherever_it_comes_from() -> None:
    assert redacted(f"Bearer {HF}") == "Bearer ***"


def test_a_password_in_an_address_is_hidden() -> None:
    assert redacted("at postgresql://me:pw@host/db and https://x.example/a@b") == (
        "at postgresql://***@host/db and https://x.example/a@b")


def test_a_secret_is_hidden_as_http_and_urls_write_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "p/ss word")
    basic = base64.b64encode(b"me:p/ss word").decode()
    assert redacted(f"Authorization: Basic {basic}; p%2Fss%20word") == "Authorization: Basic ***; ***"


def test_both_lines_of_a_broken_token_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "first-part\nsecond-part")
    assert redacted(r"Illegal header value b'Bearer first-part\nsecond-part'") == (
        r"Illegal header value b'Bearer ***\n***'")


def test_a_log_line_and_its_traceback_are_redacted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "s3cr3t-token")
    formatter = process.Formatter("%(message)s")
    try:
        int("s3cr3t-token")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "x", 1, "%s", ("s3cr3t-token",), sys.exc_info())
        process.show_exception(*sys.exc_info())
    text, shown = formatter.format(record), capsys.readouterr().err
    assert "ValueError: invalid literal for int() with base 10: '***'" in text
    assert "ValueError: invalid literal for int() with base 10: '***'" in shown
    assert "s3cr3t-token" not in text + shown
