"""Marked secrets in the environment of real deployments, and a search for the mark in all that they leave."""

import base64
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import Message
from pathlib import Path

import pytest

from tests.fakes.faulty_hub import ROOT, opened, prepare
from tests.fakes.local_http import LocalServer
from tests.fakes.loopback_hub import TOKENS, WRITE
from tests.fakes.promoted import NAME, Shop

pytest_plugins = ["tests.fakes.promoted_fixtures"]

MARK = "C4N4RY"
USER = "ci-bot"
SECRETS = {name: f"{MARK}-{number}-{name.lower()}" for number, name in enumerate((
    "DAGSHUB_USER_TOKEN", "MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "GITHUB_TOKEN",
    "PGPASSWORD"))} | {"HF_TOKEN": f"hf_{MARK}{'x' * 28}"}
BASIC = base64.b64encode(f"{USER}:{SECRETS['MLFLOW_TRACKING_PASSWORD']}".encode())
MARKS = (MARK.encode(), BASIC)
CRASH = ("import os; from scripts.commands import deploy as deployer\n"
         "def broken(*_): raise RuntimeError(f'all that is known: {dict(os.environ)}')\n"
         "deployer.Deployer.decide = broken\n")


def hits(root: Path) -> list[str]:
    """Files below root, whatever they are, in whose bytes or name a mark stands."""
    files = (path for path in root.rglob("*") if path.is_file())
    return [str(path) for path in files if MARK in path.name or any(mark in path.read_bytes() for mark in MARKS)]


@contextmanager
def watched() -> Iterator[set[bytes]]:
    """The command lines of all processes of this machine meanwhile, as `ps` shows them to everybody."""
    seen: set[bytes] = set()
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.1):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    seen.add(path.read_bytes())
                except OSError:  # it ended
                    continue

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


def deploy(shop: Shop, name: str, prelude: str = "", **environment: str) -> int:
    """The deployment as a process; what it says is kept below the shop's root, which is searched."""
    said = shop.root / "said"
    said.mkdir(exist_ok=True)
    script = f"{prelude}import sys; from tests.fakes import weightless; sys.exit(weightless.call())"
    with (said / f"{name}.out").open("w") as out, (said / f"{name}.err").open("w") as err:
        return subprocess.run(
            [sys.executable, "-c", script], stdout=out, stderr=err, check=False,
            env={**os.environ, **SECRETS, "MLFLOW_TRACKING_USERNAME": USER, "PYTHONPATH": str(ROOT),
                 "HOME": str(shop.root / "home"), "TMPDIR": str(shop.root / "tmp"), **environment}).returncode


def said(shop: Shop, name: str) -> str:
    return (shop.root / "said" / f"{name}.err").read_text()


@pytest.fixture
def shop(tmp_path: Path, three_promotions: Path) -> Iterator[Shop]:
    prepared = prepare(three_promotions, tmp_path / "prepared")
    with opened(prepared, tmp_path / "shop") as shop:
        shop.hub.tokens = {SECRETS["HF_TOKEN"]: TOKENS[WRITE]}
        (shop.root / "tmp").mkdir()
        yield shop


class TellingServer(LocalServer):
    """A tracking server that refuses, and repeats in its refusal all that it was told."""

    def answer(self, _method: str, _path: str, headers: Message, _body: bytes) -> tuple[int, str]:
        return 401, f"refused {headers['Authorization']} {list(SECRETS.values())[:3]}\n{headers}"


REFUSAL = {"status": 403, "delay": 1, "headers": {"X-Error-Message": SECRETS["HF_TOKEN"]}, "body": {
    "error": f"{SECRETS} may not", "errors": [{"message": f"{SECRETS['HF_TOKEN']} may not"}]}}


def check(shop: Shop, processes: set[bytes]) -> None:
    """Nothing of it stands in any file, request or command line, and the search would have found it."""
    assert hits(shop.root) == []
    assert not [entry for entry in shop.hub.log if MARK in entry["path"]]
    assert any(b"utils.hub.upload" in line for line in processes)
    assert not [line for line in processes if any(mark in line for mark in MARKS)]
    assert list((shop.root / "home").rglob("*token*")) == []
    shop.client.set_model_version_tag(NAME, "4", "odd", SECRETS["GITHUB_TOKEN"])
    (shop.root / "results/release/extra.bin").write_bytes(b"\0" + BASIC)
    assert {Path(hit).name for hit in hits(shop.root)} >= {"mlflow.db", "extra.bin"}


def test_a_refused_and_a_finished_promotion_leave_no_secret_anywhere(shop: Shop) -> None:
    shop.hub.fault("/commit/release/", **REFUSAL)
    with watched() as processes:
        assert deploy(shop, "hub refuses") == 6
        assert deploy(shop, "promoted") == 0
    assert "*** may not" in said(shop, "hub refuses")
    check(shop, processes)


@pytest.mark.slow
def test_no_way_to_fail_leaves_a_secret_anywhere(shop: Shop) -> None:
    shop.hub.fault("/commit/main", **REFUSAL)
    with watched() as processes:
        assert deploy(shop, "crash", CRASH) == 1
        with TellingServer() as server:
            assert deploy(shop, "mlflow refuses", MLFLOW_TRACKING_URI=server.url) == 4
        assert deploy(shop, "odd token", HF_TOKEN=f"{SECRETS['HF_TOKEN']}\n{MARK}-rest") == 2
        assert deploy(shop, "a token for a reason", DEPLOY_REASON=f"as {SECRETS['HF_TOKEN']} says") == 75
        assert deploy(shop, "promoted") == 0
    assert "Traceback" in said(shop, "crash")
    assert "'HF_TOKEN': '***'" in said(shop, "crash")
    assert "refused Basic *** ['***'" in said(shop, "mlflow refuses")
    check(shop, processes)
