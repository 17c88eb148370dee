"""A decision on record: complete, plain, the same for the same evidence, and free of times."""

import json
from dataclasses import replace
from typing import Any

import pytest

from src.core.records import canonical_json
from src.decisions.record import Request, comparison, decision_id, info
from src.decisions.words import RESULTS, explain, percent, signed, terminal_summary, verdict_line
from src.ledger.slots import LedgerView
from src.model_selection import Decision, Question, Reason, Verdict, decide
from tests.decisions.test_model_selection import ROWS
from tests.fakes.factories import POLICY, WEIGHTS, evidence, hub_ref, ledger, model, question, report, rollback, run

EMPTY = LedgerView(())
DOCUMENTED = {"should_deploy", "current_score", "historical_best_score", "improvement", "threshold", "reason"}


def request(**changes: Any) -> Request:
    values = {"report": report(), "model": model(), "policy": POLICY, "model_name": "shop-bot",
              "force": False, "actor": "octocat", "reason": "", "git_commit": "0" * 40, "ci_url": None,
              "tracking_uri": "sqlite:///mlflow.db"}
    return Request(**{**values, **changes})


ASKED = request()
CHAMPION = ledger(("champion", 0.4, {"hub": hub_ref("champion")}))


def decided(asked: Request = ASKED, view: LedgerView = CHAMPION, champion: float = 0.4, **changes: Any) -> Decision:
    """The gate's answer for this request against one champion."""
    history = [run("champion", champion, contract=asked.report.contract_digest)] if view.head else []
    return decide(question(asked.challenger, history, view, **changes))


def facts_of(decision: Decision, asked: Request = ASKED, view: LedgerView = CHAMPION, **changes: Any) -> dict[str, Any]:
    return info(decision, asked, view, **{"code": 0, "run_id": "r", "dry_run": False, **changes})


def id_of(asked: Request = ASKED, code: int = 0, **changes: Any) -> str:
    return decision_id(decided(asked, **changes), asked, CHAMPION, code)


QUESTIONS: list[Question] = [row[1] for row in ROWS]


@pytest.mark.parametrize("reason", list(Reason))
def test_each_reason_has_words_and_leaves_no_gap_in_them(reason: Reason) -> None:
    asked = next(q for q in QUESTIONS if decide(q).reason is reason)
    decision = decide(asked)
    words = explain(replace(decision, evidence=evidence() if decision.evidence else None), POLICY, asked.ledger)
    assert words.isascii()
    assert "\n" not in words
    assert not {"{", "}", "none", "None", "()"} & set(words.replace(",", " ").split()), words


def test_what_cannot_be_compared_names_the_commands_that_lead_on() -> None:
    asked = question(run("a", 0.9), [], LedgerView(()), hub_holds_release=True)
    said = explain(decide(asked), POLICY, asked.ledger)
    assert [word for word in ("champion status", "--adopt", "--force-deploy") if word not in said] == []


def test_a_forced_promotion_says_what_it_set_aside() -> None:
    forced = decided(champion=0.6, force=True)
    assert explain(forced, POLICY, CHAMPION) == (
        "without --force-deploy: score 0.500 is 0.100 below the champion, version 1 (0.600)")
    assert facts_of(forced)["overrode"] == "not_best"


def test_a_challenger_that_is_not_best_is_told_who_is() -> None:
    words = explain(decided(champion=0.6), POLICY, CHAMPION)
    assert words == "score 0.500 is 0.100 below the champion, version 1 (0.600)"


@pytest.mark.parametrize(("score", "named"), [(0.5, True), (0.401, True), (0.4009, False), (0.4, False), (0.3, False)])
def test_a_model_that_was_never_promoted_is_named_where_it_alone_keeps_out_what_would_replace_the_champion(
    score: float, named: bool
) -> None:
    asked = question(run("new", score, at=3), [run("champion", 0.4, at=1), run("lone", 0.6, at=2)], CHAMPION)
    words = explain(decide(asked), POLICY, asked.ledger)
    assert words.endswith("`champion history --promote run-lone`") is named
    assert ("above the champion, version 1: only that model is in the way" in words) is named


@pytest.mark.parametrize("asked", QUESTIONS, ids=[row[0] for row in ROWS])
def test_every_decision_makes_records_that_json_can_hold(asked: Question) -> None:
    decision = decide(replace(asked, evidence=None))
    facts, compared = facts_of(decision, view=asked.ledger), comparison(decision, ASKED, asked.ledger)
    assert json.loads(canonical_json([facts, compared])) == json.loads(json.dumps([facts, compared]))
    assert compared.keys() >= DOCUMENTED
    assert compared["should_deploy"] is (decision.verdict is Verdict.PROMOTE)
    assert facts["result"] == RESULTS[decision.verdict]
    text = terminal_summary(facts, compared, "results/deployment")
    assert text.isascii()
    assert text.startswith(f"{verdict_line(facts, compared)}\n")
    assert "  files    results/deployment\n" in text


def test_no_record_holds_a_time_so_that_equal_decisions_make_equal_files() -> None:
    assert "2026" not in json.dumps([facts_of(decided()), comparison(decided(), ASKED, CHAMPION)])


def test_the_comparison_holds_the_true_metrics_and_not_their_contributions() -> None:
    compared = comparison(decided(), ASKED, CHAMPION)
    assert compared["metrics"]["bleu4"] == 0.5
    assert compared["contributions"]["bleu4"] == 0.2
    assert compared["weights"] == WEIGHTS
    assert (compared["current_score"], compared["historical_best_score"], compared["improvement"]) == (0.5, 0.4, 0.1)
    assert compared["historical_best_run_id"] == "run-champion"
    assert compared["champion"]["delta"] == 0.1


def test_a_first_model_is_compared_with_nothing() -> None:
    first = decided(view=EMPTY)
    compared = comparison(first, ASKED, EMPTY)
    assert {compared[key] for key in ("historical_best_score", "improvement", "best_evaluated", "champion")} == {None}
    facts = facts_of(first, view=EMPTY)
    assert {facts[key] for key in ("version", "champion", "previous_version", "model_uri", "hub")} == {None}
    assert "  Hub      not pushed\n" in terminal_summary(facts, compared, "out")


def test_the_record_names_the_champion_that_stands_and_a_version_only_for_what_it_promoted() -> None:
    kept = facts_of(decided(champion=0.6))
    assert kept["version"] is None
    assert kept["champion"] == {"version": 1, "score": "0.4", "key": CHAMPION.slots[0].key}
    assert (kept["model_uri"], kept["ledger_slot"]) == ("models:/shop-bot@champion", 1)
    made = facts_of(decided(), view=ledger(("champion", 0.4), ("x", 0.5)))
    assert (made["result"], made["version"], made["previous_version"]) == ("promoted", 2, 1)


def test_after_a_rollback_the_previous_version_is_one_that_may_come_back() -> None:
    view = rollback(ledger(("a", 0.1), ("b", 0.2), ("c", 0.3)), 2, blocks=[3])
    assert facts_of(decided(view=view), view=view)["previous_version"] == 1


def test_who_asked_and_why_is_on_record() -> None:
    asked = request(reason="it's time", ci_url="https://ci/1")
    facts = facts_of(decided(asked, EMPTY), asked, EMPTY)
    assert (facts["actor"], facts["stated_reason"], facts["ci_url"]) == ("octocat", "it's time", "https://ci/1")
    assert facts_of(decided())["stated_reason"] == "no reason given"


def test_a_dry_run_says_what_it_would_do_and_names_no_version() -> None:
    facts = facts_of(decided(), dry_run=True)
    assert (facts["result"], facts["version"], facts["dry_run"]) == ("would_promote", None, True)


def test_the_key_is_of_the_model_under_its_contract_and_of_nothing_else() -> None:
    assert request(reason="x", actor="y", force=True).key == request().key
    assert request().key == report().model.key(report().contract_digest)
    assert request(report=report(0.9)).key == request().key


def test_the_same_evidence_has_the_same_id_whoever_looks_and_whenever() -> None:
    assert id_of(request(actor="other", git_commit="1" * 40)) == id_of()
    assert facts_of(decided(), run_id="another")["decision_id"] == id_of()


def test_anything_that_a_reader_would_act_on_changes_the_id() -> None:
    ids = [
        id_of(), id_of(code=10), id_of(request(reason="why")), id_of(request(force=True)),
        id_of(champion=0.6), id_of(champion=0.6, force=True),
        id_of(failed_guard="least_rows: 3 evaluated"), id_of(failed_guard="other"),
        decision_id(decided(view=ledger(("champion", 0.4), ("x", 0.1))), ASKED, ledger(("x", 0.4)), 0),
        id_of(request(policy=replace(POLICY, threshold=POLICY.threshold * 2))),
        id_of(request(policy=replace(POLICY, require_significance=True))),
    ]
    assert len(set(ids)) == len(ids)


def test_a_gain_has_a_sign_and_six_digits() -> None:
    assert signed(decided().gain) == "+0.100000"
    assert signed(None) == "none"


@pytest.mark.parametrize(("confidence", "words"), [
    (0.95, "95 %"), (0.9, "90 %"), (0.9975, "99.75 %"), (0.983333333333, "98.3 %"), (0.999761904762, "99.976 %"),
    (1 - 4e-7, "99.99996 %"), (1.0, "100 %")])
def test_a_confidence_is_never_rounded_to_certainty(confidence: float, words: str) -> None:
    assert percent(confidence) == words
