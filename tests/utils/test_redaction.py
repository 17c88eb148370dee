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


@pytest.mark.parametrize(("text", "shown"), [
    (f"a Hub token of no variable: Bearer {HF}", "a Hub token of no variable: Bearer ***"),
    ("at postgresql://me:pw@host/db and https://x.example/a@b", "at postgresql://***@host/db and https://x.example/a@b"),
    (f"Basic {base64.b64encode(b'me:p/ss word').decode()}; p%2Fss%20word", "Basic ***; ***"),
    (r"Illegal header value b'Bearer first-part\nsecond-part'", r"Illegal header value b'Bearer ***\n***'"),
])
def test_a_secret_is_hidden_as_http_urls_and_messages_write_it(
    monkeypatch: pytest.MonkeyPatch, text: str, shown: str
) -> None:
    for name, value in {"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_PASSWORD": "p/ss word",
                        "HF_TOKEN": "first-part\nsecond-part"}.items():
        monkeypatch.setenv(name, value)
    assert redacted(text) == shown


def test_a_log_line_and_its_traceback_are_redacted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "s3cr3t-token")
    try:
        int("s3cr3t-token")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "x", 1, "%s", ("s3cr3t-token",), sys.exc_info())
        process.show_exception(*sys.exc_info())
    text, shown = process.Formatter("%(message)s").format(record), capsys.readouterr().err
    assert "ValueError: invalid literal for int() with base 10: '***'" in text
    assert "ValueError: invalid literal for int() with base 10: '***'" in shown
    assert "s3cr3t-token" not in text + shown
