from contextlib import nullcontext
from pathlib import Path

import pytest

from src.core.errors import IntegrityError
from src.core.records import manifest, tree_digest
from src.ledger.ports import LEDGER_BRANCH
from src.ledger.slots import HubRef, LedgerView, Slot, parse_slots
from tests.fakes import factories
from tests.fakes.loopback.publishing import REPO, folder, hub, repository, shown
from tests.fakes.loopback_hub import LoopbackHub
from utils.hub.repository import HubPort

__all__ = ["folder", "hub"]  # fixtures, found by their names

KEY = "0123456789ab" + "c" * 52


def slot(hub_ref: HubRef | None) -> Slot:
    return factories.slot(LedgerView(()), "a", 0.5, key=KEY, hub=hub_ref)


@pytest.fixture
def port(hub: LoopbackHub, folder: Path) -> HubPort:
    return HubPort(repository(), folder, lambda _slot: nullcontext((folder, tree_digest(manifest(folder)))))


def test_a_key_becomes_a_branch_and_a_slot_becomes_main_and_tag(hub: LoopbackHub, folder: Path, port: HubPort) -> None:
    port.check()
    assert not port.holds_release()
    published = port.publish(KEY)
    assert hub.repos[f"models/{REPO}"]["branches"]["release/0123456789ab"] == published.commit
    assert published.tree == tree_digest(manifest(folder))
    head = slot(published)
    assert not port.shows(head)
    port.project(head)
    assert port.shows(head)
    assert port.holds_release()
    assert hub.repos[f"models/{REPO}"]["tags"] == {"v1": published.commit}
    assert list(hub.repos[f"models/{REPO}"]["branches"]) == ["main"]


def test_a_hand_edit_on_main_shows_and_is_repaired(hub: LoopbackHub, port: HubPort) -> None:
    head = slot(port.publish(KEY))
    port.project(head)
    hub.put(REPO, {"config.json": b"edited"})
    assert not port.shows(head)
    port.project(head)
    assert port.shows(head)


def test_a_release_branch_that_a_killed_run_left_is_deleted_by_the_next_one(hub: LoopbackHub, port: HubPort) -> None:
    head = slot(release := port.publish(KEY))
    port.project(head)
    branches = hub.repos[f"models/{REPO}"]["branches"]
    branches["release/0123456789ab"] = release.commit
    assert not port.shows(head)
    port.project(head)
    assert port.shows(head)
    assert list(branches) == ["main"]


def test_the_mirror_is_the_ledger_and_holds_nothing_else(hub: LoopbackHub, port: HubPort) -> None:
    hub.put(REPO, {"config.json": b"{}"})
    whole = factories.ledger(("a", 0.3), ("b", 0.4))
    port.mirror(LedgerView(whole.slots[:1]))
    port.mirror(whole)
    assert parse_slots(repository().mirrored() or []) == whole
    assert list(shown(hub, LEDGER_BRANCH)) == ["ledger.jsonl"]
    assert list(shown(hub)) == ["config.json"]


def test_a_slot_without_a_release_cannot_be_shown(hub: LoopbackHub, port: HubPort) -> None:
    with pytest.raises(IntegrityError, match="without the Hub"):
        port.project(slot(None))
