from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from src.core.errors import IntegrityError, Undecided
from src.core.params import MlflowParams
from src.ledger.ports import Holders
from utils import mlflow_utils
from utils.tracking.registry import MlflowRegistry, fetch_version
from utils.tracking.tag import DUPLICATE

NAME = "test-model"


def write_model(folder: Path) -> None:
    folder.mkdir()
    (folder / "weights.safetensors").write_bytes(b"weights")
    (folder / "components").mkdir()
    (folder / "components" / "tokenizer.json").write_text("{}")


@pytest.fixture
def client(mlflow_params: MlflowParams) -> MlflowClient:
    return mlflow_utils.connect(mlflow_params)


@pytest.fixture
def registry(client: MlflowClient, mlflow_params: MlflowParams) -> MlflowRegistry:
    home = mlflow_utils.ensure_experiment(client, mlflow_params.experiment_name, {}).experiment_id

    def run_id() -> str:
        return str(client.create_run(home).info.run_id)

    return MlflowRegistry(client, NAME, save=write_model, run_id=run_id, tags=lambda: {"champion.score": "0.5"})


def test_an_upload_that_arrives_cut_short_registers_nothing(
    registry: MlflowRegistry, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = client.log_artifacts

    def cut(run_id: str, folder: str, path: str) -> None:
        upload(run_id, folder, path)
        kept = Path(client.get_run(run_id).info.artifact_uri) / path / "weights.safetensors"
        kept.write_bytes(b"wei")

    monkeypatch.setattr(client, "log_artifacts", cut)
    with pytest.raises(IntegrityError, match=r"weights\.safetensors was not kept"):
        registry.register("k" * 64)
    assert client.search_model_versions(f"name = '{NAME}'") == []


def test_a_store_that_fails_is_undecided(
    registry: MlflowRegistry, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(*_: object) -> None:
        raise MlflowException("the disk is gone")

    monkeypatch.setattr(client, "create_registered_model", down)
    with pytest.raises(Undecided, match="the disk is gone"):
        registry.register("k" * 64)


def test_a_version_that_was_not_made_here_cannot_be_fetched(
    registry: MlflowRegistry, client: MlflowClient, tmp_path: Path
) -> None:
    version = registry.register("k" * 64)
    with pytest.raises(Undecided, match="was not made here"):
        fetch_version(client, NAME, version, tmp_path / "fetched")


def test_one_key_is_registered_once_and_its_version_remembers_its_run(
    registry: MlflowRegistry, client: MlflowClient
) -> None:
    assert registry.register("k" * 64) == registry.register("k" * 64) == 1
    (version,) = client.search_model_versions(f"name = '{NAME}'")
    assert version.run_id is not None
    assert version.tags["champion.score"] == "0.5"


def test_production_is_set_on_a_server_that_fails_at_archiving(
    registry: MlflowRegistry, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow 3.17 on PostgreSQL under psycopg 3 compares the version's number with the text that came over HTTP."""
    transition: Callable[..., object] = client.transition_model_version_stage

    def strict(name: str, version: str, stage: str, archive_existing_versions: bool = False) -> object:
        if archive_existing_versions:
            raise MlflowException("operator does not exist: integer <> character varying")
        return transition(name, version, stage)

    monkeypatch.setattr(client, "transition_model_version_stage", strict)
    first, second = registry.register("a" * 64), registry.register("b" * 64)
    for version in (first, second, first):
        registry.set_production(version)
        assert registry.holders().production == {version}


def test_of_two_versions_made_by_a_lost_reply_the_lowest_counts_and_the_other_is_marked(
    registry: MlflowRegistry, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    create: Callable[..., object] = client.create_model_version

    def twice(*arguments: object, **more: object) -> object:
        create(*arguments, **more)
        return create(*arguments, **more)

    monkeypatch.setattr(client, "create_model_version", twice)
    assert registry.register("k" * 64) == 1
    assert client.get_model_version(NAME, "2").tags[DUPLICATE] == "1"


def test_a_promotion_archives_what_was_in_production_and_a_return_brings_it_back(
    registry: MlflowRegistry, client: MlflowClient
) -> None:
    assert registry.holders() == Holders(None, None, frozenset())
    first, second = registry.register("a" * 64), registry.register("b" * 64)
    for version, previous in ((first, None), (second, first)):
        registry.set_alias("champion", version)
        registry.set_alias("previous", previous)
        registry.set_production(version)
    assert registry.holders() == Holders(second, first, frozenset({second}))
    assert client.get_model_version(NAME, str(first)).current_stage == "Archived"
    registry.set_production(first)
    registry.set_alias("previous", None)
    assert registry.holders() == Holders(second, None, frozenset({first}))
