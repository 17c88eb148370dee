"""Status on a real store and the loopback hub: every drift is named, repaired, or taken in."""

import json
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from scripts import rollback_script, status_script
from src.core.errors import HubError, IntegrityError, Refused, Undecided
from src.ledger.ports import Holders
from src.model_selection import Reason
from src.promotion.protocol import Step
from tests.fakes.loopback_hub import WRITE
from tests.fakes.promoted import NAME, REPO, Shop, Status, drift, lose_ledger, lose_mirror, run
from utils.tracking.deployments import Journal

pytest_plugins = ["tests.fakes.promoted_fixtures"]

SETTLED = Holders(champion=3, previous=2, production=frozenset({3}))


def test_a_quiet_shop_is_told_as_it_is(shop: Shop, status: Status, capsys: pytest.CaptureFixture[str]) -> None:
    told = status()
    assert (told["code"], told["drift"], told["unfinished"]) == (0, [], {})
    assert (told["champion"]["version"], told["previous"]["version"], told["blocked_versions"]) == (3, 2, [])
    assert told["registry"] == {"champion": 3, "previous": 2, "production": [3]}
    assert (told["hub"]["tag"], told["hub"]["release"], told["mirror_slots"]) == ("v3", "version 3", 3)
    assert told["hub"]["main"] == shop.hub.history(REPO)[0]
    assert [each["decision"] for each in told["decisions"]] == ["promote"] * 3
    assert run(status_script) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{NAME}: version 3 is the champion (score 0.")
    assert f"Hub            {REPO}: main shows version 3, tag v3, commit {told['hub']['main'][:8]}\n" in said
    assert "copy on Hub    3 entries\n" in said
    assert "last decision  promoted\n" in said
    assert "drift          none" in said


def test_looking_changes_nothing(shop: Shop, status: Status) -> None:
    shop.client.set_registered_model_alias(NAME, "champion", "1")
    shop.hub.log.clear()
    status()
    assert {entry["method"] for entry in shop.hub.log} == {"GET"}
    assert shop.holders.champion == 1


def test_every_hand_edit_is_named_and_repaired(shop: Shop, status: Status) -> None:
    release = shop.main()
    shop.client.set_registered_model_alias(NAME, "champion", "1")
    shop.client.delete_registered_model_alias(NAME, "previous")
    shop.client.transition_model_version_stage(NAME, "2", "Production")
    shop.hub.put(REPO, {"config.json": b"edited"})
    HfApi(endpoint=shop.hub.url, token=WRITE).delete_tag(REPO, tag="v3")
    lose_mirror(shop)
    Path("results/deployment/deployment_info.json").write_text('{"result": "promoted", "champion": {"version": 1}}')
    assert drift(status()) == [
        "registry: alias champion is at version 1; the ledger says version 3",
        "registry: alias previous is at no version; the ledger says version 2",
        "registry: stage Production holds versions 2, 3; the ledger says version 3",
        f"hub: {REPO} main holds files that are no release of this ledger; the ledger says version 3",
        "hub: tag v3 is missing",
        "mirror: is 3 entries behind the ledger",
        "record: deployment_info.json names version 1 as champion; the ledger says version 3",
    ]
    assert drift(status("--repair")) == []
    assert (shop.holders, shop.main(), shop.info["champion"]["version"]) == (SETTLED, release, 3)
    assert len(shop.view.slots) == 3


def test_a_moved_tag_is_named_and_never_moved_back_silently(shop: Shop, status: Status) -> None:
    hub = HfApi(endpoint=shop.hub.url, token=WRITE)
    hub.delete_tag(REPO, tag="v3")
    hub.create_tag(REPO, tag="v3", revision="v1")
    assert "hub: tag v3 is at" in drift(status())[0]
    with pytest.raises(IntegrityError, match="tags never move"):
        run(status_script, "--repair")


def test_a_version_that_is_gone_is_named(shop: Shop, status: Status) -> None:
    shop.client.delete_model_version(NAME, "3")
    assert "registry: version 3 is gone" in drift(status())
    with pytest.raises(Undecided, match=r"version 3 is the champion .*registry does not have it; .*champion status"):
        shop.bring("four", 35)
    assert run(rollback_script) == 0
    assert drift(status()) == []
    assert shop.holders.champion == 2


def test_an_old_version_may_be_deleted_and_nothing_stands_still(shop: Shop, status: Status) -> None:
    shop.client.delete_model_version(NAME, "2")  # `previous`
    assert drift(status()) == []
    assert drift(status("--repair")) == []
    assert shop.holders == Holders(champion=3, previous=None, production=frozenset({3}))
    assert shop.bring("four", 35).reason is Reason.IMPROVED
    assert shop.holders.previous == 3


def test_an_unfinished_promotion_is_found_on_this_machine_the_server_and_the_hub(shop: Shop, status: Status) -> None:
    shop.hub.fault("/tag/|/commit/release", status=403, times=9)
    with pytest.raises(HubError):
        shop.bring("four", 35)
    running = shop.client.search_runs(["1", "2"], "attributes.status = 'RUNNING'")[0]
    key = running.data.tags["champion.key"]
    Journal(key).note(Step.PUBLISH)
    told = status()
    assert told["code"] == 0
    (places,) = told["unfinished"].values()
    assert list(told["unfinished"]) == [key[:12]]
    assert [place.split(",")[0].split(" of ")[0] for place in places] == [
        "on this machine at step publish", f"MLflow run {running.info.run_id}", f"Hub branch release/{key[:12]}"]
    shop.hub.faults.clear()
    assert shop.bring("four", 35).reason is Reason.IMPROVED
    assert status()["unfinished"] == {}


def test_the_last_decisions_are_told_newest_first(shop: Shop, status: Status) -> None:
    shop.bring("weak", 2)
    told = status()["decisions"]
    assert [(each["decision"], each["reason"]) for each in told][:2] == [("keep", "not_best"), ("promote", "improved")]


def test_a_deleted_ledger_run_is_brought_back(shop: Shop, status: Status) -> None:
    view = shop.view
    shop.client.delete_run(shop.ledger._find())
    with pytest.raises(IntegrityError, match="is deleted"):
        run(status_script)
    assert drift(status("--repair")) == []
    assert shop.view == view


def test_a_ledger_run_that_is_gone_for_good_is_restored_from_the_mirror(shop: Shop, status: Status) -> None:
    view = shop.view
    shop.client.delete_run(shop.ledger._find())
    shop.client._tracking_client.store._hard_delete_run(shop.ledger._find())
    with pytest.raises(IntegrityError, match=r"is gone; .*--repair"):
        run(status_script)
    assert drift(status("--repair")) == []
    assert (shop.view, shop.holders) == (view, SETTLED)
    assert shop.bring("four", 35).reason is Reason.IMPROVED


def test_a_lost_experiment_and_lost_last_slots_are_restored_too(shop: Shop, status: Status) -> None:
    view = shop.view
    lose_ledger(shop)
    first = f"entry 1 (promote, version 1, by {json.dumps(view.slots[0].actor)}: \"no reason given\")"
    assert drift(status()) == [
        "registry: shows version 3 as champion, but the ledger is empty",
        f"copy: has 3 entries, the ledger 0, which lacks {first}",
        f"mirror: has 3 entries, the ledger 0, which lacks {first}",
        "record: deployment_info.json names version 3 as champion; the ledger says no version",
    ]
    for slot in view.slots[:2]:
        assert shop.ledger.claim(slot)
    lacking = "mirror: has 3 entries, the ledger 2, which lacks entry 3 ("
    assert any(line.startswith(lacking) for line in drift(status()))
    assert drift(status("--repair")) == []
    assert (shop.view, shop.holders) == (view, SETTLED)


def test_a_mirror_that_the_registry_contradicts_is_not_restored_but_adopted_onto(shop: Shop, status: Status) -> None:
    view = shop.view
    lose_ledger(shop)
    shop.client.set_registered_model_alias(NAME, "champion", "2")
    with pytest.raises(Refused, match=r"champion is version 2, that of the ledger's copy version 3; .*--adopt"):
        run(status_script, "--repair")
    assert list(shop.view.slots) == []
    assert drift(status("--adopt")) == []
    assert shop.view.slots[:3] == view.slots
    assert [(slot.version, slot.kind) for slot in shop.view.slots[3:]] == [(2, "force")]
    assert shop.main() == shop.main("v2")


def test_an_altered_mirror_restores_nothing(shop: Shop, status: Status) -> None:
    lose_ledger(shop)
    lines = shop.hub.blob(shop.main("ledger")["ledger.jsonl"]).read_bytes()
    shop.hub.put(REPO, {"ledger.jsonl": lines.replace(b'"score":"0.', b'"score":"1.', 1)}, "ledger")
    with pytest.raises(IntegrityError, match=r"entry 1 differs: score .*; delete the Hub's branch .*, and .*--repair"):
        run(status_script, "--repair")
    assert shop.view.slots == ()


def test_a_ledger_that_differs_from_its_mirror_is_named_and_left_to_a_person(shop: Shop, status: Status) -> None:
    lines = shop.hub.blob(shop.main("ledger")["ledger.jsonl"]).read_bytes()
    shop.hub.put(REPO, {"ledger.jsonl": lines.replace(b'"actor":"', b'"actor":"not ', 1)}, "ledger")
    (found,) = drift(status())
    assert found.startswith("ledger: entry 1 differs, the Hub's branch `ledger` stands alone: actor (MLflow")
    with pytest.raises(IntegrityError, match=r"; delete the Hub's branch `ledger`, and .*--repair` wri"):
        run(status_script, "--repair")
    lose_mirror(shop)
    assert drift(status("--repair")) == []
