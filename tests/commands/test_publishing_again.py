"""The Hub is a copy of the ledger's head: a champion that it lacks is published, from proved files, and once."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from scripts import rollback_script, status_script
from scripts.commands import republish
from scripts.commands.assemble import save_flavour
from src.core.errors import IntegrityError, RunAgain, Undecided
from src.core.records import manifest, read_object
from src.model_selection import Verdict
from src.models import merging
from src.promotion.release import assemble_release, check_release, complete
from tests.fakes import tiny_model
from tests.fakes.history_store import deploy, write_params
from tests.fakes.loopback.publishing import release_folder
from tests.fakes.loopback_hub import WRITE, LoopbackHub
from tests.fakes.promoted import PUSHING, REPO, SOURCE, Shop, Status, drift, lose_ledger, run, set_environment
from utils.tracking.registry import plain

pytest_plugins = ["tests.fakes.promoted_fixtures"]
RELEASE = Path("results/release")
FROM_THE_REGISTRY = ["README.md", "champion.json", "manifest.json", "model.safetensors", "tokenizer.json"]
with_and_without_release = pytest.mark.parametrize("there", [True, False], ids=["release there", "release gone"])


@pytest.fixture
def local_shop(tmp_path: Path, migrated_store: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    """One promotion without the Hub, on which there is nothing yet."""
    (tmp_path / "mlflow.db").write_bytes(migrated_store.read_bytes())
    write_params(tmp_path, SOURCE, huggingface=PUSHING)
    with LoopbackHub(tmp_path / "hub") as hub:
        set_environment(monkeypatch, tmp_path, hub)
        shop = Shop(tmp_path, hub)
        shop.bring("one", 20, "--skip-hf-push")
        yield shop


def lose_repository(shop: Shop, *, made_again: bool) -> None:
    with shop.hub.lock:
        shop.hub.repos.clear()
        if made_again:
            shop.hub.create("models", REPO, private=True)
        shop.hub.save()


def is_published_once(shop: Shop, version: int) -> None:
    """Prove that the Hub shows the head by one commit of ours on main, its tag and the whole ledger."""
    assert shop.head.kind == "republish"
    assert shop.head.hub
    assert (shop.head.version, shop.head.hub.repo) == (version, REPO)
    assert len(shop.hub.history(REPO)) == 2  # the repository's own first one, and ours
    repo = shop.hub.repos[f"models/{REPO}"]
    assert repo["tags"] == {f"v{version}": shop.head.hub.commit}
    assert set(repo["branches"]) == {"main", "ledger"}
    assert shop.main(f"v{version}") == shop.main()
    mirror = shop.hub.blob(shop.hub.files(REPO, "ledger")["ledger.jsonl"]).read_text().splitlines()
    assert mirror == [slot.text() for slot in shop.view.slots]


@with_and_without_release
def test_a_champion_promoted_without_the_hub_is_published_by_the_next_deployment_that_pushes(
    local_shop: Shop, status: Status, there: bool, caplog: pytest.LogCaptureFixture
) -> None:
    shop = local_shop
    assert drift(status()) == ["hub: version 1 was promoted without the Hub; acme/shop main holds nothing"]
    wanted = manifest(RELEASE)
    if not there:
        shutil.rmtree(RELEASE)
    caplog.set_level("INFO")
    assert deploy(shop.config).verdict is Verdict.ALREADY
    assert "version 1: published to acme/shop; before, it was not on the Hub" in caplog.text
    is_published_once(shop, 1)
    assert shop.main() == wanted if there else sorted(shop.main()) == FROM_THE_REGISTRY
    first, again = shop.view.slots
    unchanged = {"key", "version", "model_digest", "score", "metrics", "contract", "evaluation_run"}
    assert again.model_dump(include=unchanged) == first.model_dump(include=unchanged)
    assert (again.blocks, again.unblocks, shop.info["ledger_slot"]) == ([], [], 2)
    assert drift(status()) == []
    before = shop.hub.repos
    assert deploy(shop.config).verdict is Verdict.ALREADY
    assert (shop.hub.repos, len(shop.view.slots)) == (before, 2)
    assert not list(Path("results").glob(".release.*"))


@pytest.mark.parametrize("made_again", [False, True], ids=["deleted", "made again, empty"])
@with_and_without_release
def test_a_deleted_repository_is_filled_again(shop: Shop, status: Status, there: bool, made_again: bool) -> None:
    lose_repository(shop, made_again=made_again)
    assert "hub: version 3 is no longer on the Hub; acme/shop main holds nothing" in drift(status())
    wanted = manifest(RELEASE)
    if not there:
        shutil.rmtree(RELEASE)
    assert deploy(shop.config).verdict is Verdict.ALREADY
    is_published_once(shop, 3)
    assert shop.main() == wanted if there else sorted(shop.main()) == FROM_THE_REGISTRY
    told = status()
    assert drift(told) == []
    assert told["lost_releases"] == [1, 2]
    assert (told["champion"]["kind"], told["champion"]["number"]) == ("promote", 3)


def test_a_repair_publishes_too_and_a_rollback_brings_a_lost_version_back(
    shop: Shop, status: Status, capsys: pytest.CaptureFixture[str]
) -> None:
    lose_repository(shop, made_again=False)
    assert run(status_script, "--repair") == 0
    assert "versions 1, 2 are no longer on the Hub; a rollback to one publishes it again" in capsys.readouterr().out
    is_published_once(shop, 3)
    assert run(rollback_script) == 0
    assert [(slot.kind, slot.version) for slot in shop.view.slots[3:]] == [
        ("republish", 3), ("rollback", 2), ("republish", 2)]
    assert sorted(shop.hub.repos[f"models/{REPO}"]["tags"]) == ["v2", "v3"]
    assert (shop.main(), sorted(shop.view.blocked_versions)) == (shop.main("v2"), [3])
    told = status()
    assert (drift(told), told["lost_releases"]) == ([], [1])


def test_a_better_challenger_takes_the_place_without_the_old_one_being_uploaded(local_shop: Shop) -> None:
    assert local_shop.bring("two", 30).verdict is Verdict.PROMOTE
    assert [slot.kind for slot in local_shop.view.slots] == ["promote", "promote"]
    assert list(local_shop.hub.repos[f"models/{REPO}"]["tags"]) == ["v2"]
    assert not local_shop.hub.requests("POST", f"/branch/release/{local_shop.view.slots[0].key[:12]}")


def test_a_challenger_that_is_kept_out_leaves_the_champion_published(local_shop: Shop) -> None:
    assert local_shop.bring("worse", 10).verdict is Verdict.KEEP
    is_published_once(local_shop, 1)
    assert sorted(local_shop.main()) == FROM_THE_REGISTRY  # results/release is another model's


def test_a_release_that_somebody_altered_is_not_believed(local_shop: Shop) -> None:
    (RELEASE / "model.safetensors").write_bytes(b"poisoned")
    deploy(local_shop.config)
    assert sorted(local_shop.main()) == FROM_THE_REGISTRY
    assert local_shop.hub.blob(local_shop.main()["model.safetensors"]).read_bytes() == b"weights"


def test_the_releases_of_another_ledger_are_not_overwritten(local_shop: Shop) -> None:
    local_shop.hub.put(REPO, {"manifest.json": b"{}", "model.safetensors": b"somebody else's"})
    before = local_shop.hub.history(REPO)
    with pytest.raises(IntegrityError, match="acme/shop: holds the releases of another ledger, and nothing is pub"):
        deploy(local_shop.config)
    assert (local_shop.hub.history(REPO), len(local_shop.view.slots)) == (before, 1)


def test_a_promotion_into_the_repository_of_another_ledger_is_not_begun(local_shop: Shop, status: Status) -> None:
    foreign = local_shop.hub.put(REPO, {"manifest.json": b"{}", "model.safetensors": b"somebody else's"})
    HfApi(endpoint=local_shop.hub.url, token=WRITE).create_tag(REPO, tag="v2", revision=foreign)
    before = local_shop.hub.repos[f"models/{REPO}"]["branches"]
    with pytest.raises(IntegrityError, match=r"holds the releases of another ledger, .*model_id or the MLflow store"):
        local_shop.bring("two", 30)
    assert (local_shop.hub.repos[f"models/{REPO}"]["branches"], len(local_shop.view.slots)) == (before, 1)
    write_params(local_shop.root, SOURCE, huggingface={**PUSHING, "model_id": "acme/own"})
    assert local_shop.bring("two", 30).verdict is Verdict.PROMOTE
    assert drift(status()) == []


def test_nothing_is_promoted_over_slots_that_only_the_mirror_has(
    shop: Shop, status: Status, capsys: pytest.CaptureFixture[str]
) -> None:
    copy, view = Path("results/deployment/ledger.jsonl"), shop.view
    lose_ledger(shop)  # a backup of the store, on a machine where git was not pulled
    for slot in view.slots[:2]:
        assert shop.ledger.claim(slot)
    copy.write_bytes(b"".join(copy.read_bytes().splitlines(keepends=True)[:2]))
    with pytest.raises(Undecided, match=r"copy on the Hub has 3 entries and MLflow has 2, .*champion status"):
        shop.bring("four", 40)
    assert shop.holders.champion == 3
    with pytest.raises(Undecided, match="copy on the Hub has 3 entries"):
        run(rollback_script)
    assert shop.view.slots == view.slots[:2]
    (found,) = [each for each in status()["drift"] if each["place"] == "mirror"]
    assert "if the store was put back to an older state, `--repair` restores it" in found["remedy"]
    assert run(status_script, "--repair") == 0
    assert shop.bring("four", 40).verdict is Verdict.PROMOTE
    assert drift(status()) == []


def test_a_champion_follows_to_another_repository_and_its_card_names_that(local_shop: Shop, tmp_path: Path) -> None:
    shutil.rmtree(RELEASE)
    release_folder(RELEASE, b"weights")
    card = "---\nmodel-index:\n- name: acme/old\n---\n# bot\n\nname = \"acme/old\"\n"
    (RELEASE / "README.md").write_text(card)
    (RELEASE / "manifest.json").write_text("{}")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    assert republish._for_repository(RELEASE, "acme/old", scratch) == RELEASE
    found = republish._for_repository(RELEASE, "acme/new", scratch)
    assert (found / "README.md").read_text() == card.replace("acme/old", "acme/new")
    files = manifest(found)
    del files["manifest.json"]
    assert read_object(found / "manifest.json") == files


def test_a_hub_that_fails_after_the_slot_is_finished_by_the_next_run(local_shop: Shop, status: Status) -> None:
    local_shop.hub.fault(f"/api/models/{REPO}/tag/", method="POST", status=403, times=99)
    with pytest.raises(RunAgain, match="version 1 was published again, but registry or Hub do not show it yet"):
        deploy(local_shop.config)
    local_shop.hub.faults.clear()
    deploy(local_shop.config)
    is_published_once(local_shop, 1)
    assert drift(status()) == []


def test_a_deleted_tag_of_an_older_version_is_seen_and_set_again(shop: Shop, status: Status) -> None:
    commit = shop.hub.repos[f"models/{REPO}"]["tags"]["v1"]
    HfApi(endpoint=shop.hub.url, token=WRITE).delete_tag(REPO, tag="v1")
    assert drift(status()) == ["hub: tag v1 is missing, and its commit is still there"]
    assert run(status_script, "--repair") == 0
    assert shop.hub.repos[f"models/{REPO}"]["tags"]["v1"] == commit


@pytest.mark.filterwarnings("ignore:.*type hint:UserWarning")  # MLflow's, of its own code
def test_what_mlflow_keeps_of_real_weights_makes_a_release_again(tmp_path: Path) -> None:
    tiny_model.write_base(tmp_path / "base")
    model, tokenizer = merging.load(tmp_path / "base", "float32")
    released = assemble_release(model, tokenizer, tmp_path / "release", max_new_tokens=8, texts={})
    save_flavour(tmp_path / "release", tmp_path / "kept")
    again = plain(tmp_path / "kept")
    made = complete(again, {})
    assert check_release(again) == made
    assert {name: made.get(name) for name in released if name.endswith((".safetensors", "tokenizer.json"))} == {
        name: sha256 for name, sha256 in released.items() if name.endswith((".safetensors", "tokenizer.json"))}
