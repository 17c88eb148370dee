"""What stands outside of the ledger is taken in: a moved alias, an existing registry, a Hub repository alone."""

import json
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from scripts import rollback_script, status_script
from scripts.commands.deploy import Deployer
from src.core.errors import IntegrityError, InvalidInput, Refused, RunAgain, Undecided
from src.core.records import ChampionFile, ModelIdentity, canonical_json, manifest
from src.ledger.copies import words
from src.ledger.ports import Holders
from src.ledger.slots import Slot
from src.model_selection import Reason
from tests.fakes import weightless
from tests.fakes.history_store import write_params
from tests.fakes.promoted import (
    NAME,
    REPO,
    SOURCE,
    Shop,
    Status,
    drift,
    lose_ledger,
    lose_mirror,
    lose_mlflow,
    register,
    rewrite,
    run,
)
from utils import json_utils
from utils.results import read_ledger
from utils.tracking.tag import IDENTITY, SUPERSEDED

pytest_plugins = ["tests.fakes.promoted_fixtures"]

COPY = Path("results/deployment/ledger.jsonl")


@pytest.fixture
def emptied(shop: Shop, migrated_store: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    """Without the Hub, with a new MLflow server and no records."""
    monkeypatch.setenv("DEPLOY_SKIP_HF_PUSH", "true")
    lose_mlflow(shop, migrated_store)
    shutil.rmtree("results/deployment")
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


def saving(monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """Save releases without a model in them; returns the names of the files that were saved."""
    saved: list[set[str]] = []

    def save(release: Path, folder: Path) -> None:
        saved.append({path.name for path in release.iterdir()})
        shutil.copytree(release, folder / "model")

    monkeypatch.setattr(status_script, "_save_flavour", save)
    return saved


def test_a_hub_repository_alone_is_registered_and_taken_in(
    shop: Shop, status: Status, migrated_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved, release = saving(monkeypatch), shop.main()
    lose_mirror(shop)
    lose_mlflow(shop, migrated_store)
    shutil.rmtree("results/deployment")
    assert f"hub: {REPO} holds a release, but the ledger is empty" in drift(status())
    told = status("--adopt")
    head = shop.head
    assert (head.number, head.version, head.kind) == (1, 4, "genesis")
    assert (shop.holders.champion, shop.main(), shop.main("v4")) == (4, release, release)
    assert saved == [{"model.safetensors", "config.json", "manifest.json"}]
    assert drift(told) == []


@pytest.mark.parametrize("kept", ["copy", "mirror"])
def test_a_lost_store_is_restored_with_the_same_slots_and_the_same_version_numbers(
    shop: Shop, status: Status, migrated_store: Path, monkeypatch: pytest.MonkeyPatch, kept: str
) -> None:
    saved, view, release = saving(monkeypatch), shop.view, shop.main()
    if kept == "copy":
        lose_mirror(shop)
    else:
        shutil.rmtree("results/deployment")
    lose_mlflow(shop, migrated_store)
    with pytest.raises(Refused, match=r"does not hold version 3, the champion of the ledger's copy; .*--adopt"):
        run(status_script, "--repair")
    assert drift(status("--adopt")) == []
    assert shop.view == view
    assert (shop.holders, shop.main()) == (Holders(3, None, frozenset({3})), release)
    assert saved == [{"model.safetensors", "config.json", "manifest.json"}]
    assert status("--adopt")["ledger"]["slots"] == 3  # again: nothing is left to do
    monkeypatch.setattr(Deployer, "_evaluate_champion", lambda _: None)  # its weights are a text
    assert shop.bring("four", 40, "--force-deploy", "--reason", "test").reason is Reason.FORCED
    assert shop.head.version == 4


def test_a_restored_version_keeps_what_its_evaluation_needs(
    shop: Shop, status: Status, migrated_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saving(monkeypatch)
    before = shop.client.get_model_version(NAME, "3").tags
    lose_mlflow(shop, migrated_store)
    status("--adopt")
    after = shop.client.get_model_version(NAME, "3").tags
    assert after.items() <= before.items()
    assert ModelIdentity.model_validate_json(after[IDENTITY]).digest() == shop.head.model_digest


@pytest.fixture
def rolled_back(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> Shop:
    """Without the Hub: three promotions, and back to version 1."""
    monkeypatch.setenv("DEPLOY_SKIP_HF_PUSH", "true")
    assert run(rollback_script, "--to", 1) == 0
    return shop


def test_a_lost_store_is_undecided_and_adopted_with_its_blocks(
    rolled_back: Shop, status: Status, migrated_store: Path
) -> None:
    shop, view, copy = rolled_back, rolled_back.view, COPY.read_bytes()
    lose_mlflow(shop, migrated_store)
    for flags in ([], ["--force-deploy"], ["--dry-run"]):
        with pytest.raises(Undecided, match=r"ledger.jsonl has 4 entries, but MLflow holds no ledger .*--adopt.*_name"):
            shop.bring("two", 20, *flags)
    with pytest.raises(Undecided, match="MLflow holds no ledger"):
        run(rollback_script, "--to", 2)
    assert shop.client.search_registered_models() == []
    assert shop.client.get_experiment_by_name(f"{NAME}.ledger") is None

    assert drift(status("--adopt")) == ["registry: version 1 has no weights in this MLflow store"]
    assert (shop.view, COPY.read_bytes()) == (view, copy)
    assert shop.holders == Holders(champion=1, previous=None, production=frozenset({1}))
    assert shop.bring("two", 20).reason is Reason.BLOCKED
    assert shop.view == view


def test_weights_that_are_lost_are_found_again_refused_and_replaced_by_force(
    rolled_back: Shop, status: Status, migrated_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop, _ = rolled_back, saving(monkeypatch)
    lose_mlflow(shop, migrated_store)
    status("--adopt")
    with pytest.raises(Undecided, match=r"version 1 is the champion, and its weights are not in .*--force-deploy"):
        shop.bring("four", 40)
    assert shop.bring("four", 40, "--force-deploy", "--reason", "the store was lost").reason is Reason.FORCED
    assert (shop.head.version, drift(status())) == (4, [])  # 2 and 3 were used up in the store that was lost
    with pytest.raises(Refused, match="version 1: its weights are not in this MLflow store"):
        run(rollback_script, "--to", 1)
    with pytest.raises(Refused, match="version 2: the registry does not hold it any more"):
        run(rollback_script, "--to", 2)


def test_weights_are_taken_from_results_release_once_they_are_back(
    rolled_back: Shop, status: Status, migrated_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop, saved = rolled_back, saving(monkeypatch)
    head = shop.head
    lose_mlflow(shop, migrated_store)
    status("--adopt")
    shutil.rmtree("results/release")
    folder = write_release(Path("results/release"), shop.view.slots[1])
    assert drift(status("--adopt")) == ["registry: version 1 has no weights in this MLflow store"]  # another model's
    shutil.rmtree(folder)
    write_release(folder, head.model_copy(update={"hub": None}))
    assert drift(status("--adopt")) == ["registry: version 1 has no weights in this MLflow store"]  # not as pushed
    assert saved == []


def test_without_the_hub_the_weights_come_back_from_results_release(
    shop: Shop, status: Status, migrated_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = saving(monkeypatch)
    shop.bring("four", 35, "--skip-hf-push")
    monkeypatch.setenv("DEPLOY_SKIP_HF_PUSH", "true")
    lose_mlflow(shop, migrated_store)
    shutil.rmtree("results/release")
    assert drift(status("--adopt")) == ["registry: version 4 has no weights in this MLflow store"]
    write_release(Path("results/release"), shop.head)
    assert drift(status("--adopt")) == []
    assert (len(saved), shop.holders.champion) == (1, 4)


def write_release(folder: Path, slot: Slot) -> Path:
    """A release as assemble_release leaves it, of a model without weights."""
    assert slot.metrics
    assert slot.contract
    folder.mkdir()
    champion = ChampionFile(format=1, key=slot.key, model_digest=slot.model_digest, model_name=NAME,
                            contract=slot.contract, metrics=slot.metrics)
    (folder / "champion.json").write_text(champion.text())
    json_utils.write_object(folder / "manifest.json", manifest(folder))
    return folder


def test_a_record_alone_keeps_a_worse_model_from_being_the_first_one(
    rolled_back: Shop, migrated_store: Path
) -> None:
    lose_mlflow(rolled_back, migrated_store)
    COPY.unlink()  # as before there was a copy
    flags = ("--config", str(rolled_back.config))
    for _ in range(2):  # a failure's record remembers the champion
        assert weightless.call(*flags) == 4
        assert "deployment_info.json names version 1 as champion, but MLflow" in rolled_back.info["reason"]
    assert rolled_back.client.search_registered_models() == []


def test_another_registered_name_starts_anew_beside_the_copy(rolled_back: Shop, migrated_store: Path) -> None:
    lose_mlflow(rolled_back, migrated_store)
    write_params(rolled_back.root, SOURCE, model_registry_name="another-shop")
    copy = COPY.read_text()
    assert rolled_back.bring("weak", 3).reason is Reason.FIRST_MODEL
    assert COPY.read_text().endswith(copy)
    assert COPY.read_text().startswith('{"identity":')
    assert '"model_name":"another-shop"' in COPY.read_text().splitlines()[0]


def test_a_ledger_that_lost_its_last_slots_is_undecided_and_repaired(shop: Shop, status: Status) -> None:
    view = shop.view
    lose_ledger(shop)
    for slot in view.slots[:2]:
        assert shop.ledger.claim(slot)
    with pytest.raises(Undecided, match=r"ledger has 2 entries and results/.*ledger.jsonl 3, .*--repair"):
        shop.bring("four", 35)
    with pytest.raises(Undecided, match="ledger has 2 entries"):
        run(rollback_script)
    assert drift(status("--repair")) == []
    assert shop.view == view


def add_to_copy(**changes: Any) -> str:
    """What a pull request can do: a slot that continues the chain. Returns how it is told."""
    last = read_ledger(COPY.parent, NAME)[-1]
    slot = last.slot.model_copy(update={"number": last.slot.number + 1, "previous_sha256": last.slot.sha256(),
                                        "actor": "mallory", "reason": "all is well", **changes})
    with COPY.open("a") as copy:
        copy.write(f"{canonical_json(last.model_copy(update={'slot': slot}).model_dump(mode='json'))}\n")
    return words(slot.text())


def test_a_slot_that_only_the_copy_in_git_has_is_named_and_taken_over_by_nobody_but_a_person(
    shop: Shop, status: Status, caplog: pytest.LogCaptureFixture
) -> None:
    assert run(rollback_script) == 0
    view, copy = shop.view, COPY.read_bytes()
    added = add_to_copy(kind="rollback", blocks=[], unblocks=[3])
    assert added == 'entry 5 (rollback, version 2, unblocks 3, by "mallory": "all is well")'
    with pytest.raises(Undecided, match=f"MLflow's lacks {re.escape(added)}.*somebody added to the copy.*or delete it"):
        shop.bring("three", 30)
    (found,) = status()["drift"]
    assert added in found["text"]
    assert "`git log -p -- " in found["remedy"]
    with pytest.raises(IntegrityError, match=f"jsonl alone has {re.escape(added)}; if somebody added them .*delete it"):
        run(status_script, "--repair")
    assert shop.view == view
    COPY.unlink()
    assert drift(status("--repair")) == []
    assert (COPY.read_bytes(), shop.bring("three", 30).reason) == (copy, Reason.BLOCKED)
    add_to_copy(kind="rollback", blocks=[], unblocks=[3])
    assert drift(status("--adopt")) == []
    assert f"taking over from {COPY}: {added}" in caplog.text
    assert shop.head.actor == "mallory"


def test_without_the_hub_a_repair_says_whose_word_it_takes_for_each_slot(
    rolled_back: Shop, status: Status, caplog: pytest.LogCaptureFixture
) -> None:
    added = add_to_copy(kind="rollback", unblocks=[2, 3])
    (found,) = status()["drift"]
    assert "if it was not, find out who added to the copy" in found["remedy"]
    assert drift(status("--repair")) == []
    assert f"taking over from {COPY}: {added}" in caplog.text
    assert rolled_back.head.actor == "mallory"


def test_a_repair_of_an_empty_store_leaves_the_record_that_names_a_champion(
    rolled_back: Shop, migrated_store: Path
) -> None:
    lose_mlflow(rolled_back, migrated_store)
    COPY.unlink()  # as before there was a copy
    with pytest.raises(Undecided, match=r"deployment_info\.json names version 1 as champion, but MLflow"):
        run(status_script, "--repair")
    assert rolled_back.info["champion"]["version"] == 1
    with pytest.raises(Undecided, match=r"deployment_info\.json names version 1 as champion, but MLflow"):
        rolled_back.bring("weak", 3)


def test_a_stranger_with_the_champions_number_does_not_become_the_champion(
    rolled_back: Shop, status: Status, migrated_store: Path
) -> None:
    lose_mlflow(rolled_back, migrated_store)
    register(rolled_back)
    with pytest.raises(Refused, match="version 1 is the champion of the ledger, and another model in this registry"):
        run(status_script, "--adopt")
    with pytest.raises(Refused, match="does not hold version 1, the champion of the ledger's copy"):
        run(status_script, "--repair")
    assert (rolled_back.view.slots, rolled_back.holders.champion) == ((), None)
    assert register(rolled_back, alias="champion") == 2  # a blocked version's number
    with pytest.raises(Refused, match=r"version 2: is another model in the ledger .* under a number above 3, set the"):
        run(status_script, "--adopt")
    register(rolled_back)
    assert register(rolled_back, alias="champion") == 4  # as the message says
    status("--adopt")
    assert (rolled_back.head.version, rolled_back.head.kind, rolled_back.holders.champion) == (4, "force", 4)
    assert sorted(rolled_back.view.blocked_versions) == [2, 3]


def test_where_the_champions_number_is_used_up_another_version_can_be_adopted(
    rolled_back: Shop, status: Status, migrated_store: Path
) -> None:
    lose_mlflow(rolled_back, migrated_store)
    for version in [register(rolled_back) for _ in range(3)]:
        rolled_back.client.delete_model_version(NAME, str(version))
    version = register(rolled_back)
    with pytest.raises(Refused, match=r"nothing to adopt: .*set the alias champion on the version to be adopted"):
        run(status_script, "--adopt")
    rolled_back.client.set_registered_model_alias(NAME, "champion", str(version))
    assert drift(status("--adopt")) == []
    assert rolled_back.head.version == version == 4


@pytest.mark.parametrize("killed_at", [("create_model_version", 1), ("create_model_version", 2),
                                       ("delete_model_version", 1), ("delete_model_version", 2)], ids=str)
def test_an_adoption_that_was_killed_is_finished_by_the_next_and_gives_no_number_twice(
    shop: Shop, status: Status, migrated_store: Path, monkeypatch: pytest.MonkeyPatch, killed_at: tuple[str, int]
) -> None:
    assert run(rollback_script, "--to", 1) == 0
    method, at = killed_at
    view, truly, calls = shop.view, getattr(MlflowClient, method), list[object]()
    lose_mlflow(shop, migrated_store)
    saving(monkeypatch)
    monkeypatch.setattr(Deployer, "_evaluate_champion", lambda _: None)  # its weights are a text

    def killed(*values: Any, **named: Any) -> Any:
        done = truly(*values, **named)
        calls.append(values)
        if len(calls) == at:
            raise KeyboardInterrupt
        return done

    monkeypatch.setattr(MlflowClient, method, killed)
    with pytest.raises(KeyboardInterrupt):
        run(status_script, "--adopt")
    with pytest.raises(RunAgain, match=r"version . is half restored, .*--adopt` again"):
        shop.bring("four", 40, "--force-deploy", "--reason", "test", "--skip-hf-push")
    assert drift(status("--adopt")) == []
    assert (shop.view, shop.holders) == (view, Holders(1, None, frozenset({1})))
    assert shop.bring("four", 40, "--force-deploy", "--reason", "test", "--skip-hf-push").reason is Reason.FORCED
    assert shop.head.version >= 4


def test_a_copy_that_is_behind_is_normal_and_completed_by_the_next_deployment(shop: Shop, status: Status) -> None:
    copy = COPY.read_bytes()
    COPY.write_bytes(b"".join(copy.splitlines(keepends=True)[:2]))
    assert drift(status()) == ["copy: is 1 entry behind the ledger"]
    assert shop.bring("three", 30).reason is Reason.ALREADY
    assert COPY.read_bytes() == copy
    COPY.unlink()
    assert shop.bring("three", 30).reason is Reason.ALREADY
    assert COPY.read_bytes() == copy
    lines = read_ledger(COPY.parent, NAME)
    assert [line.slot for line in lines] == list(shop.view.slots)
    assert [line.identity.digest() for line in lines if line.identity] == [line.slot.model_digest for line in lines]
    assert drift(status()) == []


@pytest.mark.parametrize("text", ["<<<<<<< HEAD\n", '{"model_name": "ecommerce-chatbot"}\n', "[]\n"])
def test_a_copy_that_cannot_be_read_stops_a_deployment_and_names_the_way_out(shop: Shop, text: str) -> None:
    COPY.write_text(text)
    with pytest.raises(InvalidInput, match=r"ledger.jsonl.*; `git checkout -- results/deployment/ledger.jsonl` brings"):
        shop.bring("four", 35)


def test_a_rewritten_slot_is_named_by_status_and_deployment_and_adopted_out_of(
    shop: Shop, status: Status, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEPLOY_SKIP_HF_PUSH", "true")
    view, old = shop.view, shop.ledger._find()
    rewrite(shop, 3, score="0.1", actor="mallory", reason="lower")
    says = 'MLflow: "0.1", results/deployment/ledger.jsonl: "0.'
    (found,) = drift(status())
    assert found.startswith("ledger: entry 3 differs: actor (MLflow: ")
    assert says in found
    with pytest.raises(IntegrityError, match=r"entry 3 differs: .*; find out which one is right: .*--adopt` writes"):
        shop.bring("four", 35)
    with pytest.raises(IntegrityError, match=r"entry 3 differs: .*--adopt` writes"):
        run(status_script, "--repair")
    assert drift(status("--adopt")) == []
    assert shop.view == view
    assert shop.ledger._find() != old
    note = json.loads(shop.client.get_run(old).data.tags[SUPERSEDED])
    assert note["ledger_run"] == shop.ledger._find()
    assert note.keys() == {"by", "ledger_run", "time"}
    assert "lower" in shop.client.get_run(old).data.params["s00000003"]  # nothing is deleted
    assert shop.bring("four", 35).reason is Reason.IMPROVED


def test_a_broken_chain_is_told_by_the_slot_that_was_altered_not_by_the_next(shop: Shop, status: Status) -> None:
    view = shop.view
    rewrite(shop, 1, score="0.9")
    for command in (partial(run, status_script), partial(shop.bring, "four", 35)):
        with pytest.raises(IntegrityError, match=r"entry 1 differs.*score \(MLflow: \"0.9\".*--adopt` writes"):
            command()
    assert drift(status("--adopt")) == []
    assert shop.view == view


def test_slots_that_only_the_altered_ledger_has_are_kept_if_they_continue_the_copy(shop: Shop, status: Status) -> None:
    view = shop.view
    lose_mirror(shop)
    COPY.write_bytes(b"".join(COPY.read_bytes().splitlines(keepends=True)[:2]))  # git was not pulled
    rewrite(shop, 1, reason="none")
    assert drift(status("--adopt")) == []
    assert shop.view == view


def test_two_intact_copies_that_differ_restore_nothing_until_one_is_gone(shop: Shop, status: Status) -> None:
    view = shop.view
    slots = [view.slots[0], view.slots[1].model_copy(update={"actor": "mallory"})]
    shop.hub.put(REPO, {"ledger.jsonl": "".join(f"{slot.text()}\n" for slot in slots).encode()}, "ledger")
    assert drift(status())[0].startswith("ledger: entry 2 differs, the Hub's branch `ledger` stands alone: actor (")
    rewrite(shop, 2, actor="eve")
    for flag in ("--repair", "--adopt"):
        with pytest.raises(IntegrityError, match="entry 2 differs"):
            run(status_script, flag)
    lose_mirror(shop)
    assert drift(status("--adopt")) == []
    assert shop.view == view


def test_an_altered_ledger_without_an_intact_copy_is_left_to_a_backup(shop: Shop) -> None:
    lose_mirror(shop)
    COPY.unlink()
    rewrite(shop, 1, score="0.9")
    with pytest.raises(IntegrityError, match=r"is intact; restore MLflow's database .* `git checkout COMMIT"):
        run(status_script, "--adopt")


def test_a_ledger_run_that_is_deleted_is_told_as_that_by_a_deployment(shop: Shop, status: Status) -> None:
    view, run_id = shop.view, shop.ledger._find()
    shop.client.delete_run(run_id)
    with pytest.raises(IntegrityError, match=f"ledger run {run_id} is deleted; `mlflow runs restore"):
        shop.bring("four", 35)
    shop.client._tracking_client.store._hard_delete_run(run_id)
    lose_mirror(shop)
    with pytest.raises(IntegrityError, match=r"is gone; .*--repair` restores it from results/deployment/ledger.jsonl"):
        shop.bring("four", 35)
    assert drift(status("--repair")) == []
    assert shop.view == view
