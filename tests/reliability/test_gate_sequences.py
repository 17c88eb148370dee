"""The gate over many decisions: what earlier ones left behind never decides a later one wrongly."""

from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from src.core.records import digest_of
from src.ledger.slots import LedgerView
from src.model_selection import Decision, Reason, ScoredRun, Verdict, decide, needs_champion_evaluated
from tests.fakes.factories import CONTRACT, question, rollback, run, slot

NEW_CONTRACT = digest_of("tomorrow's contract")


@dataclass
class Shop:
    """History and ledger as they grow; evaluations are logged before the gate is asked, one a minute."""

    view: LedgerView = field(default_factory=lambda: LedgerView(()))
    history: list[ScoredRun] = field(default_factory=list)

    def evaluate(self, model: str, score: float, contract: str = CONTRACT) -> ScoredRun:
        minute = len(self.history) + 1
        self.history.append(run(model, score, contract=contract, run_id=f"{model}-{minute}", at=60_000 * minute))
        return self.history[-1]

    def deploy(self, model: str, score: float, *, contract: str = CONTRACT, **changes: Any) -> Decision:
        """Evaluate a model and ask the gate; what it promotes becomes the next slot."""
        challenger = self.evaluate(model, score, contract)
        decision = decide(question(challenger, self.history, self.view, **changes))
        if decision.verdict is Verdict.PROMOTE:
            kind = "force" if decision.reason is Reason.FORCED else "promote"
            known = [each.version for each in self.view.slots if each.model_digest == challenger.model_digest]
            version = known[0] if known else len({each.version for each in self.view.slots}) + 1
            self.view = LedgerView((*self.view.slots, slot(self.view, model, score, kind=kind, version=version)))
        return decision

    @property
    def champion(self) -> str:
        assert self.view.head
        return self.view.head.evaluation_run.removeprefix("run-") if self.view.head.evaluation_run else ""


def reasons(shop: Shop, *deployments: tuple[str, float]) -> list[Reason]:
    return [shop.deploy(model, score).reason for model, score in deployments]


def test_small_steps_that_add_up_promote_once_they_reach_the_threshold() -> None:
    shop = Shop()
    found = reasons(shop, ("a", 0.5), *((f"s{k}", 0.5 + k / 10_000) for k in range(1, 25)))
    promoted = [k for k, reason in enumerate(found) if reason in (Reason.FIRST_MODEL, Reason.IMPROVED)]
    assert promoted == [0, 10, 20]
    assert set(found) == {Reason.FIRST_MODEL, Reason.BELOW_THRESHOLD, Reason.IMPROVED}


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_two_rivals_within_the_threshold_never_block_each_other_for_ever(order: tuple[str, str]) -> None:
    scores = {"a": 0.6000, "b": 0.6005}
    shop = Shop()
    shop.deploy("champion", 0.5)
    shop.evaluate("a", scores["a"])  # both were evaluated before either came to the gate
    shop.evaluate("b", scores["b"])
    for model in order:
        shop.deploy(model, scores[model])
    assert shop.champion == "b"


def test_of_a_tie_for_first_the_first_comer_wins_and_the_second_is_kept_out() -> None:
    shop = Shop()
    shop.evaluate("b", 0.5)
    assert reasons(shop, ("a", 0.5), ("b", 0.5)) == [Reason.FIRST_MODEL, Reason.NOT_BEST]
    assert shop.champion == "a"


def test_a_first_model_waits_for_a_better_one_that_was_evaluated() -> None:
    shop = Shop()
    shop.evaluate("better", 0.6)
    assert reasons(shop, ("a", 0.5), ("better", 0.6), ("a", 0.5)) == [
        Reason.NOT_BEST, Reason.FIRST_MODEL, Reason.NOT_BEST]


def test_the_best_evaluated_alone_blocks_even_where_it_was_never_promoted() -> None:
    shop = Shop()
    shop.deploy("champion", 0.5)
    assert shop.deploy("shy", 0.7, may_promote=False).reason is Reason.NOT_PROMOTING_BRANCH
    blocked = shop.deploy("challenger", 0.6)
    assert (blocked.reason, shop.champion) == (Reason.NOT_BEST, "champion")
    assert blocked.to_beat.best_evaluated
    assert blocked.to_beat.best_evaluated.model_digest == digest_of("shy")
    assert blocked.gain is not None
    assert blocked.gain > 0
    shop.history = [past for past in shop.history if past.model_digest != digest_of("shy")]  # history --exclude
    assert shop.deploy("challenger", 0.6).reason is Reason.IMPROVED


def test_a_forced_worse_model_is_champion_and_the_bar_stays_the_best() -> None:
    shop = Shop()
    shop.deploy("good", 0.6)
    forced = shop.deploy("bad", 0.4, force=True)
    assert (forced.reason, forced.overrode, shop.champion) == (Reason.FORCED, Reason.NOT_BEST, "bad")
    assert reasons(shop, ("bad", 0.4), ("middling", 0.5)) == [Reason.ALREADY, Reason.NOT_BEST]
    assert shop.deploy("good", 0.6).reason is Reason.IMPROVED  # the better one may come back by itself
    assert (shop.champion, shop.view.head and shop.view.head.version) == ("good", 1)
    assert reasons(shop, ("better", 0.601)) == [Reason.IMPROVED]


def test_after_a_rollback_the_next_weaker_challenger_meets_the_right_bar() -> None:
    shop = Shop()
    reasons(shop, ("a", 0.5), ("b", 0.6), ("c", 0.7))
    shop.view = rollback(shop.view, 1, blocks=[2, 3])
    assert reasons(shop, ("weaker", 0.5009)) == [Reason.BELOW_THRESHOLD]
    assert reasons(shop, ("d", 0.55)) == [Reason.IMPROVED]
    refused = shop.deploy("c", 0.7)
    assert (refused.verdict, refused.reason) == (Verdict.REFUSED, Reason.BLOCKED)
    assert shop.deploy("c", 0.7, force=True).overrode is Reason.BLOCKED
    assert shop.champion == "c"
    assert reasons(shop, ("e", 0.65)) == [Reason.NOT_BEST]  # c counts again


def test_a_changed_contract_compares_nothing_until_the_champion_was_evaluated_under_it() -> None:
    shop = Shop()
    reasons(shop, ("a", 0.5), ("b", 0.9))
    challenger = run("c", 0.3, contract=NEW_CONTRACT)
    asked = question(challenger, shop.history, shop.view)
    assert needs_champion_evaluated(asked)
    assert shop.deploy("c", 0.3, contract=NEW_CONTRACT).verdict is Verdict.UNDECIDED
    shop.evaluate("b", 0.25, NEW_CONTRACT)
    assert not needs_champion_evaluated(replace(asked, history=shop.history))
    assert shop.deploy("c", 0.3, contract=NEW_CONTRACT).reason is Reason.IMPROVED
    assert shop.champion == "c"
    assert needs_champion_evaluated(question(run("d", 0.95), shop.history, shop.view))  # back under the old one


def test_an_empty_store_beside_a_release_on_the_hub_decides_nothing_unless_forced() -> None:
    shop = Shop()
    found = shop.deploy("a", 0.9, hub_holds_release=True)
    assert (found.verdict, found.reason) == (Verdict.UNDECIDED, Reason.INCOMPARABLE)
    assert shop.view.head is None
    assert shop.deploy("a", 0.9, hub_holds_release=True, force=True).overrode is Reason.INCOMPARABLE
    assert shop.deploy("b", 0.95, hub_holds_release=True).reason is Reason.IMPROVED  # known by now


def test_running_again_is_already_however_often_and_whatever_the_new_score() -> None:
    shop = Shop()
    assert reasons(shop, ("a", 0.5), ("a", 0.5), ("a", 0.9), ("a", 0.1)) == [Reason.FIRST_MODEL, *[Reason.ALREADY] * 3]
    assert len(shop.view.slots) == 1


def test_a_champion_that_was_rolled_back_to_under_another_contract_is_no_dead_end() -> None:
    """One model in two versions, one of them blocked: the champion is compared all the same."""
    shop = Shop()
    reasons(shop, ("a", 0.5), ("b", 0.6))
    again = slot(shop.view, "a", 0.7, version=3, key=digest_of(["a", NEW_CONTRACT]), contract=NEW_CONTRACT)
    shop.view = LedgerView((*shop.view.slots, again))
    shop.view = rollback(rollback(shop.view, 2, blocks=[3]), 1, blocks=[2, 3])
    assert reasons(shop, ("c", 0.55)) == [Reason.IMPROVED]
