"""A shop with promotions behind it, to roll back and look at.

MLflow is a real sqlite store, the Hub the loopback one, and the whole gate decided; only the weights are texts.
"""

import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from mlflow import MlflowClient

from src.ledger import LedgerView
from src.model_selection import Decision
from src.params import Params
from src.ports import Holders
from tests.history_store import answers, challenger, deploy
from tests.loopback.publishing import release_folder
from tests.loopback_hub import LoopbackHub
from utils import json_utils, mlflow_utils, yaml_utils
from utils.mlflow_ledger import MlflowLedger
from utils.mlflow_registry import MlflowRegistry

REPO = "acme/shop"
NAME = "ecommerce-chatbot"


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
        return yaml_utils.load_params(self.config)

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
    def holders(self) -> Holders:
        return MlflowRegistry(self.client, NAME, save=lambda _: None, run_id=str, tags=dict).holders()

    @property
    def info(self) -> Mapping[str, object]:
        return json_utils.read_object(self.root / "results/deployment/deployment_info.json")

    def main(self, revision: str = "main") -> dict[str, str]:
        """Path to sha256 of what the Hub shows."""
        return {path: sha for path, sha in self.hub.files(REPO, revision).items() if path != ".gitattributes"}

    def bring(self, mark: str, right: int, *flags: str) -> Decision:
        """Train, evaluate, assemble and deploy a challenger that answers so many of 40 rows."""
        challenger(self.params, mark, answers(right))
        shutil.rmtree("results/release", ignore_errors=True)
        release_folder(Path("results/release"), mark.encode())
        return deploy(self.config, *flags)


def run(script: ModuleType, *flags: object) -> int:
    """Run a script in this process, as if it were called with these flags."""
    before = sys.argv
    sys.argv = [str(script.__file__), *map(str, flags)]
    try:
        return int(script.main())
    finally:
        sys.argv = before
