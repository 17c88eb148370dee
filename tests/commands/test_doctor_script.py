"""The doctor on real services, good and broken: one line and one remedy each, and no secret in any."""

import base64
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from scripts.commands import diagnose
from src.core.params import load_params
from tests.fakes.doctor_world import BREAKING, DVC, LOGIN, NOWHERE, ROOT, SECRETS, World, server, world

__all__ = ["server", "world"]  # fixtures, found by their names

ROWS: list[tuple[str, str, int, str]] = [
    ("good", "mlflow", 0, "params are write-once, registry with aliases and stages"),
    ("without login", "mlflow", 2, "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"),
    ("wrong login", "mlflow", 4, "correct MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"),
    ("credentials in the address", "mlflow", 2, "put them in MLFLOW_TRACKING_USERNAME"),
    ("mlflow down", "mlflow", 4, "no answer; check that it runs"),
    ("mlflow hangs", "mlflow", 4, "took longer than 1 s; check the server"),
    ("a page instead", "mlflow", 4, "not in a valid JSON format"),
    ("mlflow too old", "mlflow", 4, "MLflow 2.2.2 is too old for the ledger; upgrade the server to 2.9"),
    ("rewritable params", "mlflow", 4, "lets a run param be overwritten"),
    ("read-only mlflow", "mlflow", 4, "may not write"),
    ("no registry", "mlflow", 4, "no Model Registry; use MLflow 2.9 or newer on a SQL store, or DagsHub"),
    ("no aliases", "mlflow", 4, "no aliases"),
    ("dagshub", "dagshub", 0, "as alice"),
    ("without dagshub token", "dagshub", 2, "DAGSHUB_TOKEN: not set; make a token at"),
    ("wrong dagshub token", "dagshub", 4, "DAGSHUB_USER_TOKEN could not be used"),
    ("dagshub by name", "dagshub", 0, "as alice"),
    ("dagshub by name", "mlflow", 0, "params are write-once"),
    ("wrong dagshub name", "mlflow", 4, "correct DAGSHUB_USERNAME and DAGSHUB_TOKEN, or MLFLOW_TRACKING_USERNAME and"),
    ("dagshub down", "dagshub", 4, "(ConnectError); check that it answers"),
    ("good", "hub", 0, "acme/shop: not there yet, and may be created, as alice (write token"),
    ("nothing pushed", "hub", 0, "nothing is pushed (DEPLOY_SKIP_HF_PUSH)"),
    ("without hub token", "hub", 2, "needs HF_TOKEN"),
    ("wrong hub token", "hub", 2, "401"),
    ("read-only hub token", "hub", 2, "may not create it (read-only token"),
    ("hub token for another repository", "hub", 2, "may not create it (fine-grained token"),
    ("hub down", "hub", 6, "check the network"),
    ("hub hangs", "hub", 6, "check the network"),
]


@pytest.mark.parametrize(("breaking", "service", "code", "words"), ROWS,
                         ids=[f"{row[1]}: {row[0]}" for row in ROWS])
def test_one_line_names_the_trouble_and_its_remedy(breaking: str, service: str, code: int, words: str, world: World
                                                   ) -> None:
    BREAKING[breaking](world)
    found = world.check(service)
    line = diagnose.text([found])
    print(f"\n{breaking:34} exit {found.code}  {line}", end="")
    assert (found.code, found.state in ("ok", "unused")) == (code, code == 0), line
    assert words in line
    assert (found.remedy != "") == (code != 0)
    basic = base64.b64encode(":".join(LOGIN).encode()).decode()
    assert not [secret for secret in (*SECRETS, basic) if secret in line]
    assert "\n" not in line


def test_a_python_that_is_too_new_and_a_full_disk_are_named(world: World) -> None:
    world.patch.setattr(diagnose, "_PYTHON", (3, 14))
    assert world.check("machine").text == "Python 3.14"
    world.patch.undo()
    world.patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**8))
    found = world.check("machine")
    assert (found.code, found.text) == (2, "0.1 GB free on this disk, 1 needed")


def test_a_branch_that_may_not_promote_is_a_warning(world: World) -> None:
    assert (world.check("git").state, world.check("git").text) == ("warning", "no commit here, so records name none")
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.com"]
    for command in (["init", "-q", "-b", "topic"], ["commit", "-q", "--allow-empty", "-m", "x"]):
        subprocess.run([*git, *command], check=True)
    assert world.check("git").state == "ok"
    found = world.check("git", promoting_branches=["main"])
    assert (found.state, found.code) == ("warning", 0)
    assert "this branch may not promote" in found.text


def name_base_model(world: World) -> None:
    values = yaml.safe_load(world.params().read_bytes())
    values["model"]["base_model"] = "acme/base"
    Path("params.yaml").write_text(yaml.safe_dump(values))


def configure_dvc(remote: str) -> None:
    Path(".dvc").mkdir(exist_ok=True)
    Path(".dvc/config").write_text(f"[core]\n    no_scm = true\n{remote}")


def test_a_base_model_of_the_hub_is_looked_for(world: World) -> None:
    name_base_model(world)
    asked = diagnose.checks(load_params(Path("params.yaml")))
    (absent,) = diagnose.performed({"base": asked["base"]})
    assert (absent.code, "acme/base" in absent.text) == (6, True)
    world.hub.put("acme/base", {"config.json": b"{}"})
    (found,) = diagnose.performed({"base": asked["base"]})
    assert (found.state, "acme/base at " in found.text) == ("ok", True)


def test_a_tokenizer_that_is_not_installed_is_told_before_anything_is_trained(world: World) -> None:
    config = world.params()
    config.write_text(config.read_text().replace("tokenizer: 13a", "tokenizer: ko-mecab"))
    world.patch.setattr(diagnose, "performed", lambda _: [])
    (found,) = diagnose.examine(config)
    assert found.code == 2
    assert found.remedy == "run `pip install 'sacrebleu[ko]'`, or choose another (docs/evaluation.md#languages)"


def test_a_remote_is_looked_at_by_dvc_itself(world: World) -> None:
    assert (world.check("dvc").code, world.check("dvc").remedy) == (2, "run it in the repository's root")
    configure_dvc("")
    assert world.check("dvc").state == "unused"
    said = []
    for url in (world.root / "gone", world.root / "hub", NOWHERE, f"{world.mlflow.url}/x", "s3://bucket/x"):
        configure_dvc(f"    remote = storage\n['remote \"storage\"']\n    url = {url}\n")
        found = world.check("dvc")
        said.append((found.code, found.state, found.remedy))
    assert said == [
        (4, "failed", "mount or make the folder"), (0, "ok", ""),
        (4, "failed", "check the address in .dvc/config and the network"),
        (4, "failed", "set its credentials, docs/remotes.md"), (2, "failed", f"pip install 'dvc[s3]=={DVC}'"),
    ]


def test_it_says_everything_of_the_embedded_default_within_seconds(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "HF_"))}
    done = subprocess.run([sys.executable, ROOT / "scripts/doctor_script.py", "--json"], cwd=tmp_path, check=False,
                          capture_output=True, text=True, env={**environment, "PYTHONPATH": str(ROOT)})
    told = json.loads(done.stdout)
    seen = {check["service"]: check["state"] for check in told["checks"]}
    assert seen == {"config": "ok", "machine": "ok", "git": "warning", "dvc": "failed", "mlflow": "ok", "hub": "unused"}
    assert (done.returncode, told["code"]) == (2, 2)
    assert not (tmp_path / "mlflow.db").exists()


def test_a_wrong_parameter_is_the_first_thing_said(world: World) -> None:
    world.params(significance="perhaps")
    first, *others = diagnose.examine(Path("params.yaml"))
    assert (first.service, first.code) == ("config", 2)
    assert [check.service for check in others] == ["git", "dvc"]


def test_the_first_failed_line_gives_the_exit_code() -> None:
    checks = [diagnose.Check("a", "ok", "x"), diagnose.Check("b", "warning", "x", "y"),
              diagnose.failed("c", 6, "x", "y"), diagnose.failed("d", 4, "x", "y")]
    assert (diagnose.exit_code(checks), diagnose.exit_code(checks[:2])) == (6, 0)
    assert diagnose.text(checks).splitlines()[2].split() == ["FAILED", "c", "x;", "y"]


@pytest.mark.parametrize(("version", "old"), [("2.8.1", True), ("2.9.0", False), ("2.22.0", False), ("3.17.2", False),
                                              ("1.30.0", True), ("weird", False)])
def test_servers_before_2_9_are_too_old(version: str, old: bool) -> None:
    assert diagnose.is_too_old(version) is old


@pytest.mark.slow  # the time limits of six services, one after another
def test_it_ends_within_a_minute_when_every_service_hangs(world: World) -> None:
    listener = socket.create_server(("127.0.0.1", 0), backlog=50)  # the kernel takes connections, nobody answers
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    world.set(MLFLOW_TRACKING_URI=url, HF_ENDPOINT=url, DAGSHUB_CLIENT_HOST=url, DAGSHUB_USER_TOKEN="hanging-canary",
              MLFLOW_TRACKING_USERNAME="", MLFLOW_TRACKING_PASSWORD="")
    name_base_model(world)
    configure_dvc(f"    remote = s\n['remote \"s\"']\n    url = {url}\n")
    started = time.monotonic()
    checks = diagnose.examine(Path("params.yaml"))
    assert time.monotonic() - started < 60
    print(f"\n{diagnose.text(checks)}\n{time.monotonic() - started:.0f} s")
    assert {check.service for check in checks if check.state == "failed"} == {"dvc", "dagshub", "mlflow", "hub", "base"}
    listener.close()
