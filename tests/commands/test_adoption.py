"""What stands outside of the ledger is taken in: a moved alias, an existing registry, a Hub repository alone."""

import shutil
from pathlib import Path

import pytest

from scripts import status_script
from src.core.errors import Refused
from src.core.records import ModelIdentity
from src.ledger.ports import Holders
from tests.fakes.promoted import NAME, REPO, Shop, Status, drift, lose_mirror, lose_mlflow, register, run
from utils.tracking.tag import IDENTITY

pytest_plugins = ["tests.fakes.promoted_fixtures"]


@pytest.fixture
def emptied(shop: Shop, migrated_store: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    """Without the Hub, and with a new MLflow server."""
    monkeypatch.setenv("DEPLOY_SKIP_HF_PUSH", "true")
    lose_mlflow(shop, migrated_store)
    return shop

def test_an_alias_that_was_moved_by_hand_becomes_the_champion(shop: Shop, status: Status) -> None:
    shop.client.set_registered_model_alias(NAME, "champion", "1")
    assert drift(status("--adopt", "--reason", "the shop wants it back")) == []
    head = shop.head
    assert (head.version, head.kind, head.reason) == (1, "force", "the shop wants it back")
    assert shop.holders == Holders(champion=1, previous=3, production=frozenset({1}))
    assert shop.main() == shop.main("v1")


def test_a_version_from_outside_becomes_the_champion_and_can_be_evaluated(shop: Shop, status: Status) -> None:
    version = register(shop, alias="champion")
    found = drift(status())
    unknown = "registry: alias champion is at version 4, which the ledger does not know; the ledger says version 3"
    assert found == [unknown]
    told = status("--adopt")
    assert drift(told) == [f"hub: version 4 was promoted without the Hub; {REPO} main holds version 3"]
    head = shop.head
    assert (head.version, head.kind, head.metrics, head.contract, head.hub) == (version, "force", None, None, None)
    tags = shop.client.get_model_version(NAME, str(version)).tags
    assert ModelIdentity.model_validate_json(tags[IDENTITY]).digest() == head.model_digest
    assert tags["champion.key"] == head.key
    assert status("--adopt")["ledger"]["slots"] == 4  # again: it is the head already


def test_an_existing_registry_is_taken_in_as_the_genesis_slot(emptied: Shop, status: Status) -> None:
    shutil.rmtree("results/deployment")
    register(emptied)
    version = register(emptied, stage="Production")
    assert drift(status()) == [f"registry: shows version {version} as champion, but the ledger is empty"]
    assert drift(status("--adopt")) == []
    assert [(slot.version, slot.kind) for slot in emptied.view.slots] == [(2, "genesis")]
    assert emptied.holders == Holders(champion=2, previous=None, production=frozenset({2}))


def test_of_several_in_production_none_is_guessed_until_an_alias_decides(emptied: Shop, status: Status) -> None:
    first, second = register(emptied, stage="Production"), register(emptied, stage="Production")
    with pytest.raises(Refused, match=f"versions {first}, {second} are in stage Production and no alias"):
        run(status_script, "--adopt")
    emptied.client.set_registered_model_alias(NAME, "champion", str(first))
    assert drift(status("--adopt")) == []
    assert emptied.holders.production == {first}


@pytest.mark.usefixtures("emptied")
def test_nothing_at_all_is_nothing_to_adopt() -> None:
    with pytest.raises(Refused, match="there is nothing to adopt"):
        run(status_script, "--adopt")


def test_where_the_registry_shows_the_champion_there_is_nothing_to_adopt(shop: Shop, status: Status) -> None:
    assert status("--adopt")["ledger"]["slots"] == 3
    shop.client.delete_registered_model_alias(NAME, "champion")
    with pytest.raises(Refused, match="shows no other champion than the ledger's, version 3"):
        run(status_script, "--adopt")


@pytest.mark.parametrize("mirrored", [True, False])
def test_a_hub_repository_alone_is_registered_and_taken_in(
    shop: Shop, status: Status, migrated_store: Path, monkeypatch: pytest.MonkeyPatch, mirrored: bool
) -> None:
    saved: list[set[str]] = []

    def save(release: Path, folder: Path) -> None:
        saved.append({path.name for path in release.iterdir()})
        shutil.copytree(release, folder / "model")

    monkeypatch.setattr(status_script, "_save_flavour", save)
    release, view = shop.main(), shop.view
    if not mirrored:
        lose_mirror(shop)
    lose_mlflow(shop, migrated_store)
    if mirrored:
        with pytest.raises(Refused, match=r"does not hold version 3, the mirror's champion; .*--adopt"):
            run(status_script, "--repair")
    else:
        assert f"hub: {REPO} holds a release, but the ledger is empty" in drift(status())
    told = status("--adopt")
    assert shop.view.slots[:-1] == (view.slots if mirrored else ())
    head = shop.head
    assert (head.version, head.kind) == (4, "force" if mirrored else "genesis")
    assert (shop.holders.champion, shop.main(), shop.main("v4")) == (4, release, release)
    assert saved == [{"model.safetensors", "config.json", "manifest.json"}]
    assert drift(told) == []
