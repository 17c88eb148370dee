"""One command sets up a DVC remote; no secret goes where git or another user would see it."""

import importlib.metadata
import stat
import sys
from pathlib import Path

import pytest

from scripts import remote_script
from src.core.errors import InvalidParams
from tests.utils.test_dagshub_utils import TOKEN, dagshub
from utils import dvc_utils

__all__ = ["dagshub"]  # a fixture
SECRET = "dagshub-secret"
CONFIG = "[core]\n    no_scm = true\n    analytics = false\n"


@pytest.fixture(autouse=True)
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A DVC repository without git."""
    monkeypatch.chdir(tmp_path)
    for name in ("DAGSHUB_TOKEN", "DAGSHUB_USERNAME", "DAGSHUB_CLIENT_HOST"):
        monkeypatch.delenv(name, raising=False)
    Path(".dvc").mkdir()
    Path(".dvc/config").write_text(CONFIG)


def run(*arguments: str) -> None:
    before, sys.argv = sys.argv, ["remote_script.py", *arguments]
    try:
        assert remote_script.main() == 0
    finally:
        sys.argv = before


def remote() -> dvc_utils.Remote:
    found = dvc_utils.default_remote()
    assert found is not None
    return found


@pytest.mark.parametrize(("kind", "where"), [
    ("s3", "Bucket"), ("s3", "s3://"), ("dagshub", "owner"), ("dagshub", "a/b/c"), ("dagshub", "o/r; rm -rf /"),
    ("ssh", "host"), ("ssh", "user:password@host/path"), ("ssh", "host/a b"),
])
def test_an_address_that_is_none_is_refused(kind: str, where: str) -> None:
    with pytest.raises(InvalidParams, match=rf"^{kind} .*: expected"):
        run(kind, where)
    assert Path(".dvc/config").read_text() == CONFIG


@pytest.mark.parametrize("arguments", [["nfs", "/x"], ["local"], [], ["local", "x", "--endpoint-url", "http://x"]])
def test_a_wrong_command_line_is_one_line(arguments: list[str]) -> None:
    with pytest.raises(InvalidParams, match="see --help"):
        run(*arguments)


@pytest.mark.parametrize(("kind", "where"), [("s3", "bucket/prefix"), ("ssh", "me@host:22/srv/dvc")])
def test_a_package_that_is_missing_is_named_with_the_pip_line(kind: str, where: str) -> None:
    line = f"pip install 'dvc[{kind}]=={importlib.metadata.version('dvc')}'"
    with pytest.raises(InvalidParams) as caught:
        run(kind, where)
    assert str(caught.value).endswith(line)
    assert Path(".dvc/config").read_text() == CONFIG


def test_another_remote_is_not_replaced_unasked() -> None:
    run("local", "one")
    with pytest.raises(InvalidParams, match=r"storage is the default remote already, .*--replace"):
        run("local", "two")
    run("local", "two", "--replace")
    assert Path(remote().url).name == "two"


def test_a_dagshub_remote_without_a_token_says_where_to_get_one() -> None:
    with pytest.raises(InvalidParams, match=r"DAGSHUB_TOKEN: not set; make a token at https://dagshub\.com"):
        run("dagshub", "acme/shop")


def test_a_folder_is_made_and_found_again(capsys: pytest.CaptureFixture[str]) -> None:
    run("local", "store/dvc")
    run("local", "store/dvc")
    assert capsys.readouterr().out.splitlines() == [
        "remote: store/dvc: set up; commit .dvc/config, then `dvc push`", "remote: store/dvc: set up already"]
    assert Path("store/dvc").is_dir()
    assert dvc_utils.look(remote()) == "reachable"


def test_s3_takes_an_endpoint_where_its_package_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dvc_utils, "check_plugin", lambda _: None)
    run("s3", "s3://bucket/prefix", "--endpoint-url", "https://minio.example.com")
    config = Path(".dvc/config").read_text()
    assert "url = s3://bucket/prefix" in config
    assert "endpointurl = https://minio.example.com" in config
    run("ssh", "me@host:2222/srv/dvc", "--replace")
    assert remote().url == "ssh://me@host:2222/srv/dvc"
    assert "endpointurl" not in Path(".dvc/config").read_text()


def test_dagshubs_credentials_are_only_in_the_file_that_git_ignores(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DAGSHUB_USERNAME", "alice")
    monkeypatch.setenv("DAGSHUB_TOKEN", SECRET)
    run("dagshub", "acme/shop")
    local = Path(".dvc/config.local")
    assert remote().url == "https://dagshub.com/acme/shop.dvc"
    assert {"    auth = basic", "    user = alice", f"    password = {SECRET}"} < set(local.read_text().splitlines())
    assert stat.S_IMODE(local.stat().st_mode) == 0o600
    said = capsys.readouterr()
    assert SECRET not in said.out + said.err + Path(".dvc/config").read_text()


@pytest.mark.usefixtures("dagshub")
def test_whose_token_it_is_is_asked_of_dagshub(capsys: pytest.CaptureFixture[str]) -> None:
    run("dagshub", "acme/shop")
    assert "credentials: of alice" in capsys.readouterr().out
    assert TOKEN in Path(".dvc/config.local").read_text()


def test_credentials_have_nothing_to_do_for_other_remotes(capsys: pytest.CaptureFixture[str]) -> None:
    run("credentials")
    run("local", "store")
    run("credentials")
    assert capsys.readouterr().out.count("nothing to do") == 2
    assert not Path(".dvc/config.local").exists()
