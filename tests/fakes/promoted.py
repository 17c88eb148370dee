"""A shop with promotions behind it, to roll back and look at.

MLflow is a real sqlite store, the Hub the loopback one, and the whole gate decided; only the weights are texts.
"""

import json
import shutil
import sqlite3
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from huggingface_hub import HfApi
from mlflow import MlflowClient

from scripts import status_script
from src.core.params import Params, load_params
from src.core.records import read_object
from src.ledger.ports import Holders
from src.ledger.slots import LedgerView, Slot, slot_name
from src.model_selection import Decision
from tests.conftest import TOKENS
from tests.fakes.history_store import answers, challenger, deploy
from tests.fakes.loopback.publishing import release_folder
from tests.fakes.loopback_hub import WRITE, LoopbackHub
from utils import mlflow_utils
from utils.tracking.ledger import MlflowLedger
from utils.tracking.registry import MlflowRegistry

REPO = "acme/shop"
NAME = "ecommerce-chatbot"
SOURCE = Path(__file__).parents[2] / "params.yaml"
PUSHING = {"model_id": REPO, "push_to_hub": True, "create_model_card": True, "private": True, "deadline_seconds": 120}
Status = Callable[..., dict[str, Any]]


@dataclass(frozen=True)
class Shop:
    """Where one test's copy is."""

    root: Path
    hub: LoopbackHub

    @property
    def config(self) -> Path:
        return self.root / "params.yaml"

    @property
    def params(self) -> Params:
        return load_params(self.config)

    @property
    def client(self) -> MlflowClient:
        return mlflow_utils.connect(self.params.mlflow)

    @property
    def ledger(self) -> MlflowLedger:
        return MlflowLedger(self.client, NAME, self.params.mlflow.experiment_name)

    @property
    def view(self) -> LedgerView:
        return self.ledger.view()

    @property
    def head(self) -> Slot:
        head = self.view.head
        assert head
        return head

    @property
    def holders(self) -> Holders:
        return MlflowRegistry(self.client, NAME, save=lambda _: None, run_id=str, tags=dict).holders()

    @property
    def info(self) -> Mapping[str, Any]:
        return read_object(self.root / "results/deployment/deployment_info.json")

    def main(self, revision: str = "main") -> dict[str, str]:
        """Path to sha256 of what the Hub shows."""
        return {path: sha for path, sha in self.hub.files(REPO, revision).items() if path != ".gitattributes"}

    def bring(self, mark: str, right: int, *flags: str) -> Decision:
        """Train, evaluate, assemble and deploy a challenger that answers so many of 40 rows."""
        challenger(self.params, mark, answers(right))
        shutil.rmtree("results/release", ignore_errors=True)
        release_folder(Path("results/release"), mark.encode())
        return deploy(self.config, *flags)


def set_environment(patch: pytest.MonkeyPatch, root: Path, hub: LoopbackHub) -> None:
    """The environment and working directory of a shop's commands."""
    patch.chdir(root)
    for name in TOKENS:  # MLflow leaves its address in the environment of the next test
        patch.delenv(name, raising=False)
    for name, value in {"HF_TOKEN": WRITE, "HF_ENDPOINT": hub.url, "HF_HOME": str(root / "home"),
                        "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1,localhost"}.items():
        patch.setenv(name, value)


def run(script: ModuleType, *flags: object) -> int:
    """Run a script in this process, as if it were called with these flags."""
    before = sys.argv
    sys.argv = [str(script.__file__), *map(str, flags)]
    try:
        return int(script.main())
    finally:
        sys.argv = before


def status(capsys: pytest.CaptureFixture[str], *flags: str) -> dict[str, Any]:
    """What --json says, and the exit code in it."""
    capsys.readouterr()
    code = run(status_script, "--json", *flags)
    return {**json.loads(capsys.readouterr().out), "code": code}


def drift(told: dict[str, Any]) -> list[str]:
    altered = any(found["place"] == "ledger" for found in told["drift"])
    assert told["code"] == (5 if altered else 1 if told["drift"] else 0)
    return [f"{found['place']}: {found['text']}" for found in told["drift"]]


def lose_ledger(shop: Shop) -> None:
    """What a database without the ledger's experiment looks like."""
    found = shop.client.get_experiment_by_name(f"{NAME}.ledger")
    shop.client.rename_experiment(found.experiment_id, "lost")


def lose_mlflow(shop: Shop, migrated_store: Path) -> None:
    """A new, empty server."""
    from mlflow.tracking._tracking_service.utils import _get_store

    _get_store().engine.dispose()
    (shop.root / "mlflow.db").write_bytes(migrated_store.read_bytes())


def rewrite(shop: Shop, number: int, **changes: Any) -> None:
    """What somebody with access to the database can do to a slot."""
    slot = shop.view.slots[number - 1].model_copy(update=changes)
    with sqlite3.connect(shop.root / "mlflow.db") as database:
        database.execute("UPDATE params SET value = ? WHERE key = ? AND run_uuid = ?",
                         (slot.text(), slot_name(number), shop.ledger._find()))
    database.close()


def lose_mirror(shop: Shop) -> None:
    HfApi(endpoint=shop.hub.url, token=WRITE).delete_branch(REPO, branch="ledger")


def register(shop: Shop, stage: str = "None", alias: str | None = None) -> int:
    """A version that somebody made by hand."""
    home = mlflow_utils.ensure_experiment(shop.client, "by-hand", {})
    made = shop.client.create_run(home.experiment_id)
    if not shop.client.search_registered_models(f"name = '{NAME}'"):
        shop.client.create_registered_model(NAME)
    version = shop.client.create_model_version(NAME, f"{made.info.artifact_uri}/model", made.info.run_id).version
    if stage != "None":
        shop.client.transition_model_version_stage(NAME, version, stage)
    if alias:
        shop.client.set_registered_model_alias(NAME, alias, version)
    return int(version)
