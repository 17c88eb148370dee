"""Rollback on a real store and the loopback hub: bit for bit, told truthfully, and finished by whoever comes next."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from scripts import rollback_script, status_script
from src.core.errors import InvalidParams, Refused, RunAgain
from src.ledger.ports import Holders
from src.ledger.slots import Slot
from src.model_selection import Reason, Verdict
from tests.fakes.promoted import REPO, Shop, run
from utils.tracking.ledger import MlflowLedger

pytest_plugins = ["tests.fakes.promoted_fixtures"]

ROOT = Path(__file__).parents[2]


def versions(shop: Shop) -> list[tuple[int, str]]:
    return [(slot.version, slot.kind) for slot in shop.view.slots]


def test_a_rollback_restores_the_first_of_three_bit_for_bit(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    first = shop.main("v1")
    assert first != shop.main() == shop.main("v3")
    assert run(rollback_script, "--to", 1, "--reason", "three answers nonsense") == 0
    assert shop.main() == first
    assert shop.holders == Holders(champion=1, previous=None, production=frozenset({1}))
    assert versions(shop)[3:] == [(1, "rollback")]
    assert shop.view.blocked_versions == {2, 3}
    assert shop.head.reason == "three answers nonsense"
    said = capsys.readouterr()
    assert said.out.startswith("ROLLED BACK: ecommerce-chatbot version 1 is the champion again, instead of version 3\n")
    assert "blocked   versions 2, 3\n" in said.out
    assert said.err.endswith("PROMOTE result=rolled_back code=0 reason=rollback\n")
    assert (run(status_script), "drift          none" in capsys.readouterr().out) == (0, True)
    assert sorted(shop.hub.repos[f"models/{REPO}"]["tags"]) == ["v1", "v2", "v3"]


def test_after_a_rollback_a_challenger_is_measured_against_the_model_that_came_back(shop: Shop) -> None:
    run(rollback_script, "--to", 1)
    weaker = shop.bring("four", 15)  # weaker than two and three
    assert (weaker.verdict, weaker.reason) == (Verdict.PROMOTE, Reason.IMPROVED)
    first = shop.view.slots[0]
    to_beat = weaker.to_beat.best_promoted, weaker.to_beat.best_evaluated
    assert [best.run_id for best in to_beat if best] == [first.evaluation_run] * 2
    assert shop.bring("five", 12).reason is Reason.NOT_BEST
    assert shop.head.version == 4


def test_after_a_rollback_the_record_tells_the_truth_and_the_blocked_model_is_refused(shop: Shop) -> None:
    assert shop.info["champion"]["version"] == 3
    run(rollback_script)
    assert (shop.info["result"], shop.info["champion"]["version"]) == ("rolled_back", 2)
    again = shop.bring("three", 30)
    assert (again.verdict, again.reason) == (Verdict.REFUSED, Reason.BLOCKED)
    assert (shop.info["result"], shop.info["code"], shop.info["champion"]["version"]) == ("refused", 7, 2)
    assert shop.holders.champion == 2


def test_a_blocked_model_comes_back_by_force_under_its_old_number(shop: Shop) -> None:
    third = shop.main()
    run(rollback_script)
    assert shop.bring("three", 30, "--force-deploy", "--reason", "it was the data").reason is Reason.FORCED
    assert versions(shop)[3:] == [(2, "rollback"), (3, "force")]
    assert shop.view.blocked_versions == frozenset()
    assert shop.main() == third


def test_asking_again_for_the_same_version_changes_nothing(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    run(rollback_script, "--to", 2)
    view, commits = shop.view, shop.hub.history(REPO)
    assert run(rollback_script, "--to", 2) == 0
    assert (shop.view, shop.hub.history(REPO)) == (view, commits)
    assert "result=already code=0" in capsys.readouterr().err


def test_blocking_another_version_leaves_the_champion(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    shown = shop.main()
    assert run(rollback_script, "--block", 2) == 0
    assert versions(shop)[3:] == [(3, "rollback")]
    assert shop.view.blocked_versions == {2}
    assert (shop.main(), shop.holders.champion, shop.holders.previous) == (shown, 3, 1)
    assert "PROMOTE result=blocked code=0" in capsys.readouterr().err
    assert run(status_script) == 0


def test_a_dry_run_says_what_would_happen_and_does_nothing(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    before = shop.view, shop.holders, shop.main(), shop.info
    shop.hub.log.clear()
    assert run(rollback_script, "--dry-run") == 0
    assert capsys.readouterr().out.startswith(
        "WOULD BE ROLLED BACK: ecommerce-chatbot version 2 would be the champion again, instead of version 3\n")
    assert (shop.view, shop.holders, shop.main(), shop.info) == before
    assert {entry["method"] for entry in shop.hub.log} <= {"GET"}
    assert not (shop.root / ".promotion/rollback").exists()


def test_a_version_that_the_registry_lost_cannot_come_back(shop: Shop) -> None:
    shop.client.delete_model_version("ecommerce-chatbot", "2")
    with pytest.raises(Refused, match="version 2: the registry does not hold it"):
        run(rollback_script)
    assert (len(shop.view.slots), shop.holders.champion) == (3, 3)


def test_a_version_without_the_hub_is_published_from_the_registry(shop: Shop, capsys: pytest.CaptureFixture[str]
                                                                  ) -> None:
    shop.bring("four", 35, "--skip-hf-push")
    shop.bring("five", 39)
    assert run(rollback_script, "--to", 4, "--reason", "five is rude") == 0
    said = capsys.readouterr().out
    assert [slot.kind for slot in shop.view.slots[-2:]] == ["rollback", "republish"]
    assert shop.head.hub
    assert f"Hub       acme/shop, commit {shop.head.hub.commit[:8]}\n" in said
    assert re.search(r"  ledger    entry 6, rolled back by \S+: five is rude\n", said)
    assert sorted(shop.main()) == ["README.md", "champion.json", "manifest.json", "model.safetensors", "tokenizer.json"]
    assert (shop.main("v4"), shop.holders.champion) == (shop.main(), 4)
    assert run(status_script) == 0
    assert run(rollback_script, "--to", 5) == 0
    assert shop.view.blocked_versions == frozenset()


def test_a_version_that_cannot_be_published_again_is_the_champion_without_the_hub(
    shop: Shop, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    shop.bring("four", 35, "--skip-hf-push")
    shop.bring("five", 39)
    source = shop.client.get_model_version("ecommerce-chatbot", "4").source.removeprefix("file://")
    shutil.rmtree(Path(source) / "components")
    assert run(rollback_script, "--to", 4) == 0
    assert "Hub       does not have it" in capsys.readouterr().out
    assert "version 4 is not published to acme/shop: its release cannot be made again" in caplog.text
    assert run(status_script) == 1
    assert "version 4 was promoted without the Hub; acme/shop main holds version 5" in capsys.readouterr().out


@pytest.mark.parametrize(("script", "flags", "said"), [
    (status_script, ["--repair"], ""), (rollback_script, [], "PROMOTE result=already code=0 reason=finished")])
def test_a_rollback_that_the_hub_cut_short_is_finished_by_a_repair_or_by_itself_and_not_done_twice(
    shop: Shop, script: ModuleType, flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shop.hub.fault("/commit/main", status=403, times=99)
    with pytest.raises(RunAgain, match=r"version 2 is the champion by ledger entry 4, .*champion status --repair"):
        run(rollback_script)
    assert (shop.head.version, shop.holders.champion) == (2, 3)
    shop.hub.faults.clear()
    assert run(status_script) == 1
    assert run(script, *flags) == 0
    assert versions(shop)[3:] == [(2, "rollback")]
    assert (shop.main(), shop.holders.champion, shop.info["champion"]["version"]) == (shop.main("v2"), 2, 2)
    assert said in capsys.readouterr().err


def test_a_token_that_may_not_write_is_found_before_the_claim(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_" + "R" * 34)
    with pytest.raises(InvalidParams, match="read-only token"):
        run(rollback_script)
    assert (len(shop.view.slots), shop.holders.champion) == (3, 3)


def test_of_a_rollback_and_a_promotion_at_once_both_stand_and_the_named_wins(shop: Shop, monkeypatch: pytest.MonkeyPatch
                                                                             ) -> None:
    claim = MlflowLedger.claim
    claimed: list[Slot] = []

    def beaten(ledger: MlflowLedger, slot: Slot) -> bool:
        if not claimed:
            claimed.append(slot)
            shop.bring("four", 36)
        return claim(ledger, slot)

    monkeypatch.setattr(MlflowLedger, "claim", beaten)
    assert run(rollback_script) == 0  # to version 2, as it was when it was asked for
    assert versions(shop)[3:] == [(4, "promote"), (2, "rollback")]
    assert shop.view.blocked_versions == {3, 4}
    assert shop.main() == shop.main("v2")
    assert run(status_script) == 0


def test_in_a_terminal_a_refusal_is_one_line_and_a_promote_line_with_its_code(shop: Shop) -> None:
    done = subprocess.run([sys.executable, ROOT / "scripts/rollback_script.py", "--to", "9"], capture_output=True,
                          text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "ERROR version 9: was never promoted; the ledger knows 1, 2, 3",
        "PROMOTE result=invalid code=2 reason=version 9: was never promoted; the ledger knows 1, 2, 3",
    ]
    assert len(shop.view.slots) == 3
    with pytest.raises(InvalidParams, match="invalid int value"):
        run(rollback_script, "--to", "one")
