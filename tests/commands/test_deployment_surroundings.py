"""The deployment command in odd surroundings: a history that was lost, clocks, names, locales, no network."""

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from huggingface_hub import constants

from scripts.commands import deploy as deployer
from src.core.params import MlflowParams, Params, load_params
from src.core.records import EvaluationReport
from src.ledger.slots import LedgerView
from src.model_selection import Reason, Verdict
from tests.fakes.history_store import answers, challenger, deploy, evaluate, write_params
from tests.fakes.loopback_hub import WRITE, LoopbackHub
from tests.fakes.promoted import PUSHING, REPO
from tests.fakes.weightless import call
from utils import mlflow_utils
from utils.tracking import tag
from utils.tracking.ledger import MlflowLedger

ROOT = Path(__file__).parents[2]
CONFIG, REPORT = Path("params.yaml"), Path("results/evaluations/report.json")
INFO = Path("results/deployment/deployment_info.json")
NAME = "ecommerce-chatbot"
YEARS = timedelta(days=3652)
Line = Callable[[], str]  # the last one that was said


@pytest.fixture
def params(mlflow_params: MlflowParams, tmp_path: Path) -> Params:
    logging.getLogger("alembic").setLevel(logging.ERROR)
    return load_params(write_params(tmp_path, ROOT / "params.yaml"))


@pytest.fixture
def champion(params: Params) -> Params:
    """A champion, and a better challenger in results/."""
    challenger(params, "first", answers(20))
    deploy(CONFIG)
    challenger(params, "second", answers(30))
    return params


def view(params: Params) -> LedgerView:
    return MlflowLedger(mlflow_utils.connect(params.mlflow), NAME, params.mlflow.experiment_name).view()


@pytest.fixture
def line(capsys: pytest.CaptureFixture[str]) -> Line:
    return lambda: capsys.readouterr().err.splitlines()[-1]


def rename_experiment(params: Params, name: str) -> None:
    client = mlflow_utils.connect(params.mlflow)
    client.rename_experiment(client.get_experiment_by_name(params.mlflow.experiment_name).experiment_id, name)


def test_row_16_an_evaluation_whose_run_was_deleted_is_refused(champion: Params, line: Line) -> None:
    mlflow_utils.connect(champion.mlflow).delete_run(json.loads(REPORT.read_text())["run_id"])
    assert call() == 3
    assert "is deleted; run `dvc repro --force evaluation`" in line()
    assert len(view(champion).slots) == 1


def test_row_16_an_evaluation_of_another_experiment_is_refused(champion: Params, line: Line) -> None:
    rename_experiment(champion, "elsewhere")
    mlflow_utils.ensure_experiment(mlflow_utils.connect(champion.mlflow), champion.mlflow.experiment_name, {})
    assert call() == 3
    assert "is no evaluation of experiment" in line()


@pytest.mark.parametrize("known_run", [True, False])
def test_row_45_a_history_that_is_missing_beside_a_ledger_is_undecided_and_not_made_anew(
    champion: Params, line: Line, known_run: bool
) -> None:
    rename_experiment(champion, "lost")
    if not known_run:
        REPORT.write_text(json.dumps({**json.loads(REPORT.read_text()), "run_id": "0" * 32}))
    assert call() == 4
    assert "with its history is missing" in line()
    client = mlflow_utils.connect(champion.mlflow)
    assert mlflow_utils.find_experiment(client, champion.mlflow.experiment_name) is None
    assert len(view(champion).slots) == 1


@pytest.mark.parametrize("holders", [["alias"], ["Production"], ["Production", "Production"]])
def test_rows_53_and_54_a_champion_outside_of_an_empty_ledger_is_undecided(params: Params, line: Line,
                                                                            holders: list[str]) -> None:
    report, client = challenger(params, "first", answers(20)), mlflow_utils.connect(params.mlflow)
    client.create_registered_model(NAME)
    for held in holders:
        version = client.create_model_version(NAME, "file:///nowhere", report.run_id).version
        if held == "alias":
            client.set_registered_model_alias(NAME, "champion", str(version))
        else:
            client.transition_model_version_stage(NAME, str(version), held)
    assert call() == 4
    assert "run `champion status --adopt`" in line()
    assert view(params).head is None


def test_row_36_a_flag_wins_over_the_file_and_both_are_recorded(champion: Params) -> None:
    assert call("--min-improvement-threshold", "0.9", "--dry-run", "--output-dir", str(INFO.parent)) == 0
    assert json.loads(INFO.with_name("model_comparison.json").read_text())["threshold"] == 0.9
    assert "threshold: the flag 0.9 replaces 0.001 of params.yaml" in INFO.with_name("deployment_logs.txt").read_text()


def test_row_63_champions_follow_their_slots_by_any_clock(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    true_time, found = time.time, []
    for right, offset in ((10, YEARS), (20, timedelta()), (30, -YEARS)):
        shown = (datetime.now(UTC) + offset).isoformat(timespec="seconds")
        monkeypatch.setattr(time, "time", lambda offset=offset: true_time() + offset.total_seconds())
        monkeypatch.setattr(deployer, "datetime", type("Clock", (datetime,), {
            "now": classmethod(lambda _, __, shown=shown: datetime.fromisoformat(shown))}))
        challenger(params, str(right), answers(right))
        found.append(deploy(CONFIG).reason)
    assert found == [Reason.FIRST_MODEL, Reason.IMPROVED, Reason.IMPROVED]
    seen = view(params)
    assert [slot.time[:4] for slot in seen.slots] == sorted((slot.time[:4] for slot in seen.slots), reverse=True)
    assert (seen.head, seen.previous) == (seen.slots[2], seen.slots[1])
    assert deploy(CONFIG).reason is Reason.ALREADY


def test_row_66_words_from_outside_are_data_in_every_record(
    champion: Params, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    challenger(champion, "worse", answers(5))
    monkeypatch.setenv("DEPLOY_REASON", f"$(touch pwned) `id` \"'; exit 9\nPROMOTE result=kept\x1b[2J {'y' * 600}")
    monkeypatch.setenv("GITHUB_ACTOR", "mallory\n::set-output name=x::$(id)")
    assert call("--force-deploy") == 0
    head = view(champion).slots[-1]
    assert head.reason.startswith("$(touch pwned) `id` \"'; exit 9 PROMOTE result=kept [2J yyy")
    assert len(head.reason) == 500
    assert head.actor == "mallory ::set-output name=x::$(id)"
    info = json.loads(INFO.read_text())
    assert (info["stated_reason"], info["actor"]) == (head.reason, head.actor)
    told = capsys.readouterr()
    assert told.err.count("PROMOTE ") == 1
    assert "\x1b" not in told.out + told.err
    assert not list(Path().rglob("pwned"))


def test_row_67_a_path_with_blanks_and_umlauts_a_c_locale_and_an_odd_time_zone_change_nothing(
    champion: Params, tmp_path: Path
) -> None:
    odd = tmp_path / "a b \u00e9\u6f22 'q' $(touch pwned)"
    odd.mkdir()
    for name in ("results", "mlflow.db", "params.yaml"):
        (tmp_path / name).rename(odd / name)
    config = (odd / CONFIG).read_text().replace(f"sqlite:///{tmp_path}/mlflow.db", "sqlite:///mlflow.db")
    (odd / CONFIG).write_text(config)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LANG", "LC_", "MLFLOW_"))}
    done = subprocess.run([sys.executable, str(ROOT / "tests/fakes/weightless.py")], cwd=odd, capture_output=True,
                          check=False, env={**kept, "PYTHONPATH": str(ROOT), "LC_ALL": "C", "TZ": "Pacific/Chatham"})
    assert done.stderr.endswith(b"PROMOTE result=promoted code=0 reason=improved\n"), done.stderr
    assert json.loads((odd / INFO).read_text())["version"] == 2
    assert not list(tmp_path.rglob("pwned"))


def test_row_68_without_a_network_a_push_is_refused_and_the_rest_works(
    tmp_path: Path, champion: Params, monkeypatch: pytest.MonkeyPatch, line: Line
) -> None:
    write_params(tmp_path, ROOT / "params.yaml", huggingface=PUSHING)
    with LoopbackHub(tmp_path / "hub") as hub:
        for name, value in {"HF_TOKEN": WRITE, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "1"}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # read once, when the package is imported
        assert call() == 6
        assert "unset HF_HUB_OFFLINE" in line()
        assert (len(view(champion).slots), hub.repos.get(REPO)) == (1, None)
        assert call("--skip-hf-push") == 0
    assert len(view(champion).slots) == 2


def trained_on(params: Params, report: EvaluationReport, data: str) -> None:
    """What the fine-tuning stage logs of an evaluated adapter and its data."""
    tags = {tag.MODEL_NAME: params.deployment.model_registry_name, tag.ADAPTER: report.model.adapter_sha256,
            tag.DATA: f"{data}@{'0' * 64}"}
    with mlflow_utils.stage_run(params.mlflow, kind="fine_tuning", name="fine_tuning", tags=tags):
        pass


@pytest.mark.parametrize(("data", "told"), [("data/mine.csv", True), ("data/customer_support.csv", False)])
def test_own_data_may_replace_the_demos_champion_and_one_line_says_that_it_joined_its_history(
    data: str, told: bool, params: Params, capsys: pytest.CaptureFixture[str]
) -> None:
    demo = challenger(params, "demo", answers(20))
    trained_on(params, demo, "data/customer_support.csv")
    deploy(CONFIG)
    evaluate(params, demo.model, answers(10, split="Mine: "), Path("champion"))  # as the deployment does by itself
    trained_on(params, challenger(params, "mine", answers(30, split="Mine: ")), data)
    capsys.readouterr()
    assert deploy(CONFIG).verdict is Verdict.PROMOTE
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  note ") and "history" in line]
    assert notes == [("  note     Your data (data/mine.csv) joined the history of data/customer_support.csv, on which "
                     "version 1 was trained; a new value of deployment.model_registry_name gives it a history of its "
                     "own.")] * told
    better = challenger(params, "mine, better", answers(35, split="Mine: "))
    trained_on(params, better, data)
    assert deploy(CONFIG).verdict is Verdict.PROMOTE
    assert "joined the history" not in capsys.readouterr().out
