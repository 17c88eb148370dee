import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants

from src.core.errors import HubError, InvalidParams
from tests.fakes.loopback_hub import READ, SCOPED, UNKNOWN, WRITE, LoopbackHub
from utils import environment, huggingface_utils
from utils.hub import client

BASE = "acme/base"
COMMAND = "from utils.huggingface_utils import test_huggingface_connection; test_huggingface_connection()"
NOWHERE = "http://127.0.0.1:9"
Capture = pytest.CaptureFixture[str]
Said = Callable[[str | None], str]  # what the check says with this token


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*environment.TOKEN_NAMES, "HF_HUB_OFFLINE", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)  # without a .env
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_ENDPOINT", NOWHERE)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    with LoopbackHub(tmp_path / "hub") as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> Said:
    def check(token: str | None) -> str:
        if token is not None:
            monkeypatch.setenv("HF_TOKEN", token)
        code: object = 0
        try:
            huggingface_utils.test_huggingface_connection()
        except SystemExit as ended:
            code = ended.code
        out, err = capsys.readouterr()
        assert (code == 0) == ("connected as alice" in out)
        assert out.count("\n") == 1
        assert "Traceback" not in out + err
        return out

    return check


def test_a_newline_after_the_token_is_trimmed_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HF_TOKEN", f"{WRITE}\n")
    assert environment.token() == WRITE
    assert "HF_TOKEN" in caplog.text
    assert WRITE not in caplog.text


# The connection check.


def test_the_check_without_a_token_says_how_to_get_one(hub: LoopbackHub, said: Said) -> None:
    assert f"make a token with write access at {hub.url}/settings/tokens" in said(None)
    assert hub.log == []


@pytest.mark.parametrize(("token", "words"), [
    (UNKNOWN, "401.* wrong or has expired"), (READ, "connected as alice; read-only token"),
    (WRITE, "connected as alice; write token: may publish to alice, acme"),
    (SCOPED, r"fine-grained token: repo\.content\.read, repo\.write on acme/scoped"),
])
def test_the_check_says_what_a_token_may_and_hides_it(hub: LoopbackHub, said: Said, token: str, words: str) -> None:
    line = said(token)
    assert re.search(words, line)
    assert token not in line


@pytest.mark.parametrize("value", [f"{WRITE}\n{WRITE}", f"{WRITE} x", f"{WRITE}\u2019"])
def test_the_check_with_a_token_that_was_copied_badly_says_so(hub: LoopbackHub, said: Said, value: str) -> None:
    line = said(value)
    assert line.startswith("HF_TOKEN: holds a space, a line break or a letter")
    assert WRITE not in line
    assert hub.log == []


def test_the_check_without_a_server_says_what_to_look_at(said: Said) -> None:
    line = said(WRITE)
    assert NOWHERE in line
    assert "check the network" in line


def test_the_check_of_a_hung_server_ends(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, said: Said) -> None:
    monkeypatch.setattr(huggingface_utils, "CHECK_SECONDS", 0.3)
    hub.fault("/whoami", delay=60)
    started = time.monotonic()
    assert "check the network" in said(WRITE)
    assert time.monotonic() - started < 30


def test_the_check_of_a_dripping_answer_ends(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, said: Said) -> None:
    monkeypatch.setattr(huggingface_utils, "CHECK_SECONDS", 2)
    hub.fault("/whoami", drip=0.05)  # ends after 10 s
    assert "not done within 2 s" in said(WRITE)


@pytest.mark.parametrize(("address", "words"), [("no address", "correct HF_ENDPOINT"), ("ftp://x", "HF_ENDPOINT")])
def test_the_check_of_a_wrong_address_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, said: Said, address: str, words: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", address)
    assert words in said(WRITE)


def test_the_check_of_a_page_that_is_no_hub_says_so(hub: LoopbackHub, said: Said) -> None:
    hub.fault("/whoami", status=200, headers={"Content-Type": "text/html"}, body="<html>log in</html>")
    assert "is that a Hub, or a proxy's page?" in said(WRITE)


@pytest.mark.parametrize(("token", "codes", "words"), [
    (WRITE, {0}, "connected as alice"), (UNKNOWN, {2, 6}, "wrong or has expired"), ("", {2}, "HF_TOKEN: not set;")])
def test_the_documented_line_reads_env_and_its_exit_code_says_how_it_went(
    token: str, codes: set[int], words: str, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(__file__).parents[2]
    assert f'python -c "{COMMAND}"' in (root / "docs/troubleshooting.md").read_text()
    monkeypatch.delenv("HF_ENDPOINT")
    Path(".env").write_text(f"HF_TOKEN={token}\nHF_ENDPOINT={hub.url}\n")
    done = subprocess.run([sys.executable, "-c", COMMAND], capture_output=True, text=True, check=False,
                          env={**os.environ, "PYTHONPATH": str(root)})
    assert (done.returncode in codes, done.stderr) == (True, "")
    assert words in done.stdout
    assert done.stdout.count("\n") == 1


def test_the_check_imports_no_torch(hub: LoopbackHub) -> None:
    code = f"{COMMAND}; import sys; sys.exit(sum(name in sys.modules for name in ('torch', 'transformers', 'mlflow')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False,
                          env=os.environ | {"HF_TOKEN": WRITE, "PYTHONPATH": str(Path(__file__).parents[2])})
    assert (done.returncode, done.stderr) == (0, "")
    assert hub.log != []


def test_the_check_is_not_collected_as_a_test() -> None:
    assert getattr(huggingface_utils.test_huggingface_connection, "__test__", True) is False


# What errors say.


def test_a_message_holds_no_token_and_no_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "odd-token")
    text = f"refused odd-token and {WRITE}\n for https://s3.example.com/part?X-Amz-Signature=abc 'x'"
    assert client.one_line(text) == "refused *** and *** for https://s3.example.com/part 'x'"


def test_an_answer_that_repeats_the_token_does_not_leak_it(hub: LoopbackHub, said: Said) -> None:
    hub.fault("/whoami", status=403, body={"error": f"token {WRITE} may not"})
    line = said(WRITE)
    assert "token *** may not" in line
    assert WRITE not in line


# Base models.


@pytest.fixture
def base(hub: LoopbackHub) -> str:
    return hub.put(BASE, {"model.safetensors": b"weights", "config.json": b"{}", "tokenizer.json": b"{}",
                          "tokenizer.model": b"sp", "chat_template.jinja": b"{{ x }}", "merges.txt": b"a b",
                          "pytorch_model.bin": b"pickle", "modeling.py": b"print()", "README.md": b"card",
                          "onnx/config.json": b"{}", "consolidated.safetensors": b"weights"})


def test_a_snapshot_holds_weights_and_texts_alone_and_shows_no_bar_off_a_terminal(
    base: str, tmp_path: Path, capsys: Capture
) -> None:
    assert huggingface_utils.fetch_snapshot(BASE, "main", tmp_path / "base") == base
    assert capsys.readouterr().err == ""
    assert sorted(path.name for path in (tmp_path / "base").iterdir()) == [
        "chat_template.jinja", "config.json", "merges.txt", "model.safetensors", "tokenizer.json", "tokenizer.model"]
    assert (tmp_path / "base" / "model.safetensors").read_bytes() == b"weights"
    assert not [path for path in (tmp_path / "base").iterdir() if path.is_symlink()]


def test_a_snapshot_is_of_the_revision_asked_for(hub: LoopbackHub, base: str, tmp_path: Path) -> None:
    hub.put(BASE, {"config.json": b'{"newer": true}'})
    assert huggingface_utils.fetch_snapshot(BASE, base, tmp_path / "base") == base
    assert (tmp_path / "base" / "config.json").read_text() == "{}"


def test_a_pickle_that_lies_in_the_cache_stays_there(hub: LoopbackHub, base: str, tmp_path: Path) -> None:
    HfApi(endpoint=hub.url).hf_hub_download(BASE, "pytorch_model.bin")
    huggingface_utils.fetch_snapshot(BASE, "main", tmp_path / "base")
    assert not (tmp_path / "base" / "pytorch_model.bin").exists()


def test_a_model_of_pickles_alone_is_refused(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.put(BASE, {"pytorch_model.bin": b"pickle", "config.json": b"{}"})
    with pytest.raises(InvalidParams, match="no safetensors weights"):
        huggingface_utils.fetch_snapshot(BASE, "main", tmp_path / "base")


@pytest.mark.parametrize(("repo", "revision", "words"), [
    ("acme/none", "main", "correct the name"), (BASE, "no-such-branch", "Invalid rev id: no-such-branch")])
def test_an_absent_base_model_names_the_parameter(
    base: str, tmp_path: Path, *, repo: str, revision: str, words: str
) -> None:
    with pytest.raises(InvalidParams, match=rf"model\.base_model: {repo} at revision {revision}: .*{words}"):
        huggingface_utils.fetch_snapshot(repo, revision, tmp_path / "base")


def test_a_gated_base_model_says_where_to_accept(hub: LoopbackHub, base: str, tmp_path: Path) -> None:
    hub.fault("/api/models/", status=403, times=9, headers={"X-Error-Code": "GatedRepo"}, body={"error": "restricted"})
    with pytest.raises(InvalidParams, match=r"accept its conditions on .*/acme/base"):
        huggingface_utils.fetch_snapshot(BASE, "main", tmp_path / "base")


def test_a_repository_name_that_is_none_is_refused(hub: LoopbackHub, tmp_path: Path) -> None:
    with pytest.raises(HubError):
        huggingface_utils.fetch_snapshot("a/b/c", "main", tmp_path / "base")


def test_a_base_model_without_a_server_is_a_hub_error(tmp_path: Path) -> None:
    with pytest.raises(HubError, match="check the network"):
        huggingface_utils.fetch_snapshot(BASE, "main", tmp_path / "base")


def test_a_fetched_base_model_needs_no_server_again(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    huggingface_utils.fetch_snapshot(BASE, "main", tmp_path / "base")
    monkeypatch.setenv("HF_ENDPOINT", NOWHERE)
    assert huggingface_utils.fetch_snapshot(BASE, "main", tmp_path / "again") == base
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == b"weights"


def test_a_download_that_breaks_off_is_resumed(hub: LoopbackHub, base: str, tmp_path: Path) -> None:
    hub.put(BASE, {"model.safetensors": os.urandom(300_000)})
    hub.fault("/resolve/.*/model.safetensors", method="GET", status=503, times=1)
    with pytest.raises(HubError):
        huggingface_utils.fetch_snapshot(BASE, "main", tmp_path / "base")
    huggingface_utils.fetch_snapshot(BASE, "main", tmp_path / "base")
    assert (tmp_path / "base" / "model.safetensors").stat().st_size == 300_000
