from pathlib import Path

import pytest

from src.core.errors import IntegrityError
from src.core.records import manifest, tree_digest
from src.ledger.ports import LEDGER_BRANCH
from src.ledger.slots import NO_SLOT, HubRef, LedgerView, Slot, parse_slots
from tests.fakes.loopback.publishing import REPO, release_folder, repository, shown
from tests.fakes.loopback_hub import LoopbackHub
from utils.hub.repository import HubPort

pytest_plugins = ["tests.fakes.loopback.fixtures"]

KEY = "0123456789ab" + "c" * 52


def slot(hub_ref: HubRef | None, *, version: int = 1, key: str = KEY, number: int = 1, previous: str = NO_SLOT) -> Slot:
    return Slot(number=number, kind="promote", key=key, model_digest=key, version=version, score="0.5", metrics=None,
                contract=None, evaluation_run=None, hub=hub_ref, blocks=[], unblocks=[], previous_sha256=previous,
                actor="test", reason="", git_commit="none", ci_url=None, time="2026-11-20T00:00:00Z")


@pytest.fixture
def port(hub: LoopbackHub, folder: Path) -> HubPort:
    return HubPort(repository(), folder)


def test_a_key_becomes_a_branch_and_a_slot_becomes_main_and_a_tag(
    hub: LoopbackHub, folder: Path, port: HubPort
) -> None:
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


def test_a_rollback_shows_the_older_slot(hub: LoopbackHub, folder: Path, port: HubPort, tmp_path: Path) -> None:
    first = slot(port.publish(KEY))
    port.project(first)
    newer = HubPort(repository(), release_folder(tmp_path / "newer", b"other"))
    second = slot(newer.publish("f" * 64), version=2, key="f" * 64, number=2, previous=first.sha256())
    newer.project(second)
    port.project(first)
    assert port.shows(first)
    assert shown(hub) == manifest(folder)


def test_the_mirror_is_the_ledger(hub: LoopbackHub, port: HubPort) -> None:
    first = slot(None)
    second = slot(None, number=2, version=2, previous=first.sha256())
    port.mirror(LedgerView((first,)))
    port.mirror(LedgerView((first, second)))
    lines = repository().mirrored()
    assert lines
    assert parse_slots(lines) == LedgerView((first, second))
    assert list(shown(hub, LEDGER_BRANCH)) == ["ledger.jsonl"]


def test_a_slot_without_a_release_cannot_be_shown(hub: LoopbackHub, port: HubPort) -> None:
    with pytest.raises(IntegrityError, match="without the Hub"):
        port.project(slot(None))
