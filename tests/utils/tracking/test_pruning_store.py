"""Old versions' weights on a real MLflow store: they go, their records stay, and a kill is made good by the next."""

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow.entities.model_registry import ModelVersion

from scripts import rollback_script, status_script
from src.core.errors import Refused
from src.model_selection import Reason
from tests.fakes.history_store import write_params
from tests.fakes.promoted import NAME, PUSHING, SOURCE, Shop, drift, run, status
from utils.tracking.tag import DECISION, FILES, REASON

pytest_plugins = ["tests.fakes.promoted_fixtures"]

ROOT = Path(__file__).parents[3]


@pytest.fixture
def shop(shop: Shop, three_promotions: Path) -> Shop:
    """With files of its own: the copied database names those that all tests share."""
    with contextlib.closing(sqlite3.connect(shop.root / "mlflow.db")) as store, store:
        for table, column in (("runs", "artifact_uri"), ("experiments", "artifact_location"),
                              ("model_versions", "source"), ("model_versions", "storage_location")):
            store.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)",
                          (str(three_promotions), str(shop.root)))
    return shop


def keep(shop: Shop, versions: int) -> None:
    write_params(shop.root, SOURCE, huggingface=PUSHING, keep_versions=versions)


def versions(shop: Shop) -> dict[int, ModelVersion]:
    return {int(version.version): version for version in shop.client.search_model_versions(f"name = '{NAME}'")}


def files(shop: Shop) -> dict[int, bool]:
    """Whether each version's files are there."""
    return {number: (Path(version.source.removeprefix("file://")) / "model.txt").exists()
            for number, version in versions(shop).items()}


def marks(shop: Shop) -> dict[int, str | None]:
    return {number: version.tags.get(FILES) for number, version in versions(shop).items()}


def test_once_it_is_asked_for_old_weights_go_and_records_stay(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    shop.bring("four", 35)
    assert files(shop) == dict.fromkeys((1, 2, 3, 4), True)
    keep(shop, 2)
    assert run(status_script, "--repair") == 0
    assert files(shop) == {1: False, 2: False, 3: True, 4: True}
    assert marks(shop) == {1: "pruned", 2: "pruned", 3: None, 4: None}
    told = status(capsys)
    assert (drift(told), told["pruned_versions"]) == ([], [1, 2])
    assert [slot.version for slot in shop.view.slots] == [1, 2, 3, 4]
    before = marks(shop)
    assert run(status_script, "--repair") == 0
    assert marks(shop) == before


def test_a_run_is_tagged_with_the_verdict_and_a_version_with_its_reason(shop: Shop) -> None:
    found = versions(shop)
    assert [found[number].tags.get(REASON) for number in (1, 2, 3)] == ["first_model", "improved", "improved"]
    for version in found.values():
        assert DECISION not in version.tags
        assert shop.client.get_run(version.run_id).data.tags[DECISION] == "promote"


def test_a_pruned_version_is_not_rolled_back_to_and_the_nearest_kept_is_named(shop: Shop) -> None:
    keep(shop, 2)
    shop.bring("four", 35)
    with pytest.raises(Refused, match=r"version 1: its weights were pruned .* nearest that is kept is version 3,"):
        run(rollback_script, "--to", 1)
    assert run(rollback_script) == 0
    assert shop.head.version == 3
    with pytest.raises(Refused, match=r"version 2: its weights were pruned .* nearest that is kept is version 4,"):
        run(rollback_script)
    assert run(rollback_script, "--to", 4) == 0
    assert files(shop) == {1: False, 2: False, 3: True, 4: True}


def test_a_version_that_may_go_at_any_time_is_refused_too(shop: Shop) -> None:
    keep(shop, 2)
    with pytest.raises(Refused, match="nearest that is kept is version 2"):
        run(rollback_script, "--to", 1)
    assert files(shop)[1]


KILL = """
import os, sys
from scripts.commands.services import managed_model, prune
from utils.tracking.registry import MlflowRegistry
delete = MlflowRegistry.delete_weights
MlflowRegistry.delete_weights = lambda *a: (sys.argv[1] == "after" and delete(*a), os.kill(os.getpid(), 9))
s = managed_model(None, skip_hf_push=True)
prune(s.params, s.ledger, s.registry)
"""


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_pruning_that_is_killed_is_finished_by_whoever_comes_next(shop: Shop, when: str) -> None:
    keep(shop, 2)
    killed = subprocess.run([sys.executable, "-c", KILL, when], check=False, capture_output=True, text=True,
                            env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert marks(shop) == {1: "pruning", 2: None, 3: None}
    with pytest.raises(Refused, match="were pruned"):
        run(rollback_script, "--to", 1)
    shop.bring("four", 35)
    assert files(shop) == {1: False, 2: False, 3: True, 4: True}
    assert marks(shop) == {1: "pruned", 2: "pruned", 3: None, 4: None}


def test_a_store_that_does_not_delete_stops_no_promotion(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

    monkeypatch.setattr(LocalArtifactRepository, "delete_artifacts", lambda *_: None)
    keep(shop, 2)
    shop.bring("four", 35)
    assert shop.head.version == 4
    assert "its artifact store deletes nothing; set deployment.keep_versions: 0" in caplog.text
    assert marks(shop)[1] == "pruning"


def test_a_pruned_model_that_is_forced_back_gets_weights_and_a_number_of_its_own(shop: Shop) -> None:
    first = shop.main("v1")
    keep(shop, 2)
    shop.bring("four", 35)
    assert shop.bring("one", 10, "--force-deploy", "--reason", "it was better").reason is Reason.FORCED
    assert (shop.head.version, shop.holders.champion, shop.holders.previous) == (5, 5, 4)
    assert files(shop) == {1: False, 2: False, 3: False, 4: True, 5: True}
    assert shop.main() == shop.main("v5") == first
