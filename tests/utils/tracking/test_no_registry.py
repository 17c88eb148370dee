"""A server without a Model Registry: the ledger numbers the versions, deployment runs keep their files."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient

from scripts import rollback_script, status_script
from scripts.commands.deploy import Deployer, challenger_setting
from scripts.deployment_script import PARSER
from src.core.errors import IntegrityError, Undecided
from src.core.params import MlflowParams
from src.core.records import OUTPUT_DIR, ModelIdentity, canonical_json, digest_of
from src.ledger.ports import Holders
from src.ledger.slots import LedgerView
from src.model_selection import Reason, Verdict
from src.promotion.protocol import Progress, promote
from tests.fakes.factories import IDENTITY, slot
from tests.fakes.history_store import answers, challenger, write_params
from tests.fakes.promoted import run
from utils import json_utils, mlflow_utils, no_registry, results, yaml_utils
from utils.no_registry import NoRegistry
from utils.tracking import registry as mlflow_registry
from utils.tracking.deployments import DeploymentRun
from utils.tracking.ledger import MlflowLedger

NAME = "test-model"
ONE = ModelIdentity.parse({**IDENTITY, "adapter_sha256": digest_of("one")}, where="")
KEY = ONE.key("contract")


@pytest.fixture
def client(mlflow_params: MlflowParams) -> MlflowClient:
    return mlflow_utils.connect(mlflow_params)


@pytest.fixture
def ledger(client: MlflowClient, mlflow_params: MlflowParams) -> MlflowLedger:
    return MlflowLedger(client, NAME, mlflow_params.experiment_name)


def save(folder: Path) -> None:
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "model.safetensors").write_bytes(b"weights")
    (folder / "components" / "tokenizer").mkdir(parents=True)
    (folder / "components" / "tokenizer" / "tokenizer.json").write_text("{}")


def never(_folder: Path) -> None:
    raise AssertionError("it is kept already")


@pytest.fixture
def registry(
    client: MlflowClient, mlflow_params: MlflowParams, ledger: MlflowLedger
) -> Callable[[str, Callable[[Path], None]], NoRegistry]:
    def made(key: str, save: Callable[[Path], None]) -> NoRegistry:
        run = DeploymentRun(client, mlflow_params.experiment_name, NAME, key)
        tags = {mlflow_registry.IDENTITY: canonical_json(ONE.model_dump(mode="json"))}
        return NoRegistry(client, mlflow_params.experiment_name, ledger, save=save, run_id=run.id, tags=lambda: tags)

    return made


def claim(ledger: MlflowLedger, model: str, version: int, key: str) -> LedgerView:
    assert ledger.claim(slot(ledger.view(), model, 0.5, version=version, key=key))
    return ledger.view()


def test_a_model_that_no_run_keeps_cannot_be_fetched(
    client: MlflowClient, mlflow_params: MlflowParams, tmp_path: Path
) -> None:
    with pytest.raises(Undecided, match="no deployment run in experiment 'test-evaluation' keeps its model"):
        no_registry.fetch(client, mlflow_params.experiment_name, slot(LedgerView(()), "a", 0.5), tmp_path / "model")


def test_an_upload_that_arrives_cut_short_does_not_count_as_kept(
    registry: Callable[..., NoRegistry], client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = client.log_artifacts
    monkeypatch.setattr(client, "log_artifacts", lambda run_id, folder, path: upload(run_id, f"{folder}/model",
                                                                                     f"{path}/model"))
    with pytest.raises(IntegrityError, match=r"model/components/tokenizer/tokenizer\.json was not kept"):
        registry(KEY, save).register(KEY)
    monkeypatch.undo()
    kept: list[Path] = []

    def keep(folder: Path) -> None:
        kept.append(folder)
        save(folder)

    assert registry(KEY, keep).register(KEY) == 1
    assert len(kept) == 1


def test_the_number_is_the_ledgers_for_a_known_key_and_the_next_one_for_a_new(
    registry: Callable[..., NoRegistry], ledger: MlflowLedger
) -> None:
    assert registry(KEY, save).register(KEY) == 1
    claim(ledger, "one", 1, KEY)
    claim(ledger, "two", 2, digest_of("two"))
    assert registry(KEY, never).register(KEY) == 1
    other = digest_of("three")
    assert registry(other, save).register(other) == 3


def test_who_loses_the_slot_takes_the_next_number_and_uploads_nothing_twice(
    registry: Callable[..., NoRegistry], ledger: MlflowLedger
) -> None:
    other = digest_of("two")
    assert [registry(KEY, save).register(KEY), registry(other, save).register(other)] == [1, 1]
    claim(ledger, "one", 1, KEY)
    assert registry(other, never).register(other) == 2


def test_there_are_no_aliases_no_stages_and_nothing_to_set_them_on(
    registry: Callable[..., NoRegistry], client: MlflowClient
) -> None:
    without = registry(KEY, save)
    without.set_alias("champion", 1)
    without.set_production(1)
    nobody = Holders(champion=None, previous=None, production=frozenset())
    assert without.holders() == without.expected(slot(LedgerView(()), "a", 0.5), None) == nobody
    assert client.search_registered_models() == []


def test_the_kept_model_comes_back_as_one_plain_folder_with_its_identity(
    registry: Callable[..., NoRegistry], ledger: MlflowLedger, client: MlflowClient, mlflow_params: MlflowParams,
    tmp_path: Path
) -> None:
    registry(KEY, save).register(KEY)
    head = claim(ledger, "one", 1, KEY).slots[0]
    folder, identity = no_registry.fetch(client, mlflow_params.experiment_name, head, tmp_path / "fetched")
    assert identity == ONE
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        "model.safetensors": b"weights", "tokenizer.json": b"{}"}


def deploy(config: Path, mark: str, right: int) -> Reason:
    """The whole deployment of a challenger; only merging is left out, and a text is kept."""
    challenger(yaml_utils.load_params(config), mark, answers(right))
    asked = PARSER.parse_args(["--config", str(config)])
    deployer = Deployer(challenger_setting(asked, results.check_output_dir(OUTPUT_DIR), results.LogBuffer()))
    assert isinstance(deployer.registry, NoRegistry)
    deployer.registry._save = save
    decision = promote(replace(deployer.ports(), assemble=lambda _: None), lambda _: None, Progress()).decided()
    assert decision.verdict is Verdict.PROMOTE
    return decision.reason


def test_gate_rollback_and_status_work_and_every_record_says_that_there_is_no_registry(
    mlflow_params: MlflowParams, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(mlflow_params.tracking_uri.removeprefix("sqlite:///")).parent
    config = write_params(root, Path(__file__).parents[3] / "params.yaml", registry="none", resamples=100)
    assert [deploy(config, "one", 10), deploy(config, "two", 20)] == [Reason.FIRST_MODEL, Reason.IMPROVED]
    record = json_utils.read_object(OUTPUT_DIR / results.INFO)
    assert (record["registry"], record["version"], record["model_uri"]) == ("none", 2, None)
    assert "version 2 (registry: none)" in capsys.readouterr().out
    assert run(rollback_script) == 0
    record = json_utils.read_object(OUTPUT_DIR / results.INFO)
    assert (record["registry"], record["champion"]["version"]) == ("none", 1)
    assert run(status_script) == 0
    told = capsys.readouterr().out
    assert "version 1 is the champion" in told
    assert "registry    none\n" in told
    assert MlflowClient(mlflow_params.tracking_uri).search_registered_models() == []
