"""What version 0e3e8e5 left behind goes on working: its MLflow store, its ledger and its Hub repository.

tests/fakes/store_of_0e3e8e5.tar.xz was made by the scripts of that commit, on models of two layers: a first
promotion, a second one, a challenger that was not promoted, and a rollback; `said/` is what its commands printed.
"""

import json
import re
import shutil
import sqlite3
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts import evaluation_script, history_script, rollback_script, status_script
from src.core.errors import InvalidParams
from src.core.params import load_params
from tests.fakes import tiny_model, weightless
from tests.fakes.loopback_hub import LoopbackHub
from tests.fakes.promoted import Shop, run, set_environment
from utils import json_utils

STORE = Path(__file__).parents[1] / "fakes/store_of_0e3e8e5.tar.xz"
GONE: list[tuple[Callable[[Any], Any], list[str]]] = [
    (lambda values: values["deployment"], ["registry", "resamples"]),
    (lambda values: values["model"]["pocket"], ["vocabulary", "heads", "context", "batch_size", "learning_rate"])]
MADE_IN = "/tmp/champion-0e3e8e5"  # stands in the addresses of the store


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(STORE) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def shop(tmp_path: Path, unpacked: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    root = tmp_path / "shop"
    shutil.copytree(unpacked, root)
    move_store(root)
    with LoopbackHub(root / "hub") as hub:
        set_environment(monkeypatch, root, hub)
        monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
        yield Shop(root, hub)


def move_store(root: Path) -> None:
    """Rewrite the folder in which the store was made to the one in which it lies."""
    with sqlite3.connect(root / "mlflow.db") as database:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            for _, column, kind, *_ in database.execute(f"PRAGMA table_info({table})").fetchall():
                if "CHAR" in kind or "TEXT" in kind:
                    database.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?) "
                                     f"WHERE instr({column}, ?)", (MADE_IN, str(root), MADE_IN))
    database.close()
    for path in (root / "params.yaml", *(root / "results").glob("**/*.json")):
        path.write_text(path.read_text().replace(MADE_IN, str(root)))
    config = root / "params.yaml"
    values = yaml.safe_load(config.read_text())
    with pytest.raises(InvalidParams, match=r"^\S+: 7 problems: (\S+ is gone: [^;]+; delete the key(; |$)){7}"):
        load_params(config)
    for section, gone in GONE:
        for key in gone:
            del section(values)[key]
    config.write_text(yaml.safe_dump(values))


def printed(capsys: pytest.CaptureFixture[str], script: Any, *flags: object) -> str:
    capsys.readouterr()
    run(script, *flags)
    return capsys.readouterr().out


def said(shop: Shop, name: str) -> str:
    """What the old version printed, with today's ages and addresses."""
    return without_ages((shop.root / "said" / name).read_text())


def without_ages(text: str) -> str:
    return re.sub(r'\b\d+ (s|min|h|days?)\b(?=[",])', "AGE", text)


@pytest.mark.parametrize("form", ["json", "csv"])
def test_the_history_of_an_old_store_is_listed_as_before(shop: Shop, form: str,
                                                         capsys: pytest.CaptureFixture[str]) -> None:
    assert without_ages(printed(capsys, history_script, f"--{form}")) == said(shop, f"history.{form}")


def test_the_status_of_an_old_store_is_as_before_and_shows_no_drift(shop: Shop,
                                                                    capsys: pytest.CaptureFixture[str]) -> None:
    now, before = json.loads(printed(capsys, status_script, "--json")), json.loads(said(shop, "status.json"))
    assert now == before
    assert now["drift"] == []


def test_every_old_decision_is_explained_bit_for_bit(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [path.stem.removeprefix("explain_") for path in sorted((shop.root / "said").glob("explain_*.txt"))]
    assert len(runs) == 3
    for run_id in runs:
        now, before = (facts_in(text) for text in (printed(capsys, history_script, "--explain", run_id),
                                                   said(shop, f"explain_{run_id}.txt")))
        assert now == before
        assert now["replay"] == "the same result, bit for bit"


def facts_in(explained: str) -> dict[str, str]:
    """What an explanation says in numbers and names, whatever words its version puts around them."""
    rows = dict(re.findall(r"(?m)^  (\S+(?: \S+)?)  +(.+)$", explained))
    scores = {name: rows[name].split()[0] for name in ("challenger", "best evaluated", "best promoted")}
    same = {name: rows[name] for name in ("policy", "gain", "threshold", "guard", "force", "replay")}
    reason = re.search(r"(?m)^[A-Z ]+ \((\w+)\): ", explained)
    assert reason
    return {**scores, **same, "reason": reason[1]}


def test_an_old_history_is_decided_again_under_another_policy(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--backtest", "--set", "threshold=0.5", "--json")
    assert printed(capsys, history_script, *flags) == said(shop, "backtest.json")


@pytest.mark.filterwarnings("ignore:.*type hint:UserWarning")  # MLflow's, of its own code
def test_an_old_store_is_rolled_back_and_promoted_onto(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    before = shop.view.slots
    assert [slot.kind for slot in before] == ["promote", "promote", "rollback"]
    assert run(rollback_script, "--to", "2", "--reason", "it was the better one") == 0
    assert (shop.head.version, shop.main()) == (2, shop.main("v2"))

    shutil.rmtree("results/adapter")
    tiny_model.write_adapter(Path("results/base_model"), Path("results/adapter"), seed=31)
    location = Path("results/fine_tuned_model_location.json")
    json_utils.write_object(location, tiny_model.fine_tuned(shop.root).model_dump())
    assert run(evaluation_script) == 0
    assert weightless.call("--force-deploy", "--reason", "the next one", weights=True) == 0

    assert shop.view.slots[:3] == before
    assert (shop.head.number, shop.head.version, shop.head.kind) == (5, 3, "force")
    assert "champion.json" in shop.main()
    assert "champion.json" not in shop.main("v1")
    assert run(rollback_script, "--to", "1", "--reason", "a release without champion.json") == 0
    assert shop.main() == shop.main("v1")
    assert json.loads(printed(capsys, status_script, "--json"))["drift"] == []
