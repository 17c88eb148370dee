"""What the terminal says of a decision: one line with scores, gain and versions, and a note only if it is needed."""

from dataclasses import replace
from typing import Any

import pytest

from src.core.records import contributions
from src.decisions.record import comparison, info
from src.decisions.words import headline, rounded, terminal_summary, verdict_line
from src.ledger.slots import LedgerView
from src.model_selection import Question, decide
from tests.decisions.test_deployment_record import ASKED, request
from tests.fakes.factories import POLICY, WEIGHTS, evidence, ledger, question, run

EMPTY = LedgerView(())
FIRST = ledger(("champion", 0.4))
NOISE, CLEAR = evidence(-0.01, 0.03), evidence(0.0004, 0.03)
STRICT = replace(POLICY, require_significance=True)


def asked(score: float, champion: float | None = 0.4, **changes: Any) -> Question:
    """A challenger with this score beside a champion, version 1."""
    history = [] if champion is None else [run("champion", champion, contract=ASKED.report.contract_digest)]
    view = changes.pop("view", FIRST if champion is not None else EMPTY)
    return question(replace(ASKED.challenger, metrics=run("x", score).metrics), history, view, **changes)


def records(question: Question, *, dry_run: bool = False, reason: str = "") -> tuple[dict[str, Any], dict[str, Any]]:
    """deployment_info.json and model_comparison.json of the gate's answer, after the promotion if there is one."""
    decision, before = decide(question), question.ledger
    promoted = decision.verdict == "promote" and not dry_run
    view = ledger(*((slot.key, float(slot.score or 0), {"model_digest": slot.model_digest}) for slot in before.slots),
                  *([("new", 0.5, {"model_digest": question.challenger.model_digest})] if promoted else []))
    asks = request(force=question.force, reason=reason, actor="ana@laptop", policy=question.policy)
    facts = info(decision, asks, view, code=0, run_id="none: dry run" if dry_run else "7472d6ec" * 4, dry_run=dry_run)
    metrics = question.challenger.metrics.as_dict()
    compared = comparison(decision, asks, view)
    return facts, {**compared, "metrics": metrics, "contributions": contributions(metrics, WEIGHTS)}


LONE = question(replace(ASKED.challenger, metrics=run("x", 0.5).metrics),
                [run("champion", 0.4, contract=ASKED.report.contract_digest),
                 run("lone", 0.6, contract=ASKED.report.contract_digest, run_id="3fa94c1b" * 4)], FIRST)


@pytest.mark.parametrize(("question", "line"), [
    (asked(0.412, None), "PROMOTED: first model, now shop-bot version 1 (score 0.412)"),
    (asked(0.45, evidence=evidence(0.02, 0.08)),
     "PROMOTED: shop-bot version 2 replaces version 1: score 0.450, gain +0.050 (95 % interval +0.020 to +0.080)"),
    (asked(0.45, evidence=CLEAR), ("PROMOTED: shop-bot version 2 replaces version 1: score 0.4500, gain +0.0500 "
                                  "(95 % interval +0.0004 to +0.0300)")),
    (asked(0.45), "PROMOTED: shop-bot version 2 replaces version 1: score 0.450, gain +0.050"),
    (asked(0.367, force=True),
     "PROMOTED BY FORCE: shop-bot version 2 replaces version 1: score 0.367, gain -0.033"),
    (asked(0.367), "NOT PROMOTED: score 0.367 is 0.033 below the champion, version 1 (0.400)"),
    (asked(0.4), "NOT PROMOTED: score 0.400 equals that of the champion, version 1"),
    (asked(0.4004), ("NOT PROMOTED: score 0.4004 is 0.0004 above the champion, version 1 (0.4000); the threshold is "
                    "0.001")),
    (asked(0.41, evidence=NOISE, policy=STRICT),
     ("NOT PROMOTED: score 0.410 is 0.010 above the champion, version 1 (0.400), but the 95 % interval -0.010 to "
     "+0.030 includes 0, so the two models may be equally good")),
    (asked(0.5, failed_guard="metric_floors.bleu4: 0.1200 is below 0.2"),
     "NOT PROMOTED: it fails the guard metric_floors.bleu4: 0.1200 is below 0.2 (score 0.500)"),
    (asked(0.5, may_promote=False),
     "NOT PROMOTED: this branch may not promote (deployment.promoting_branches); its score is 0.500"),
    (LONE, ("NOT PROMOTED: score 0.500 is 0.100 below an earlier model that was not promoted (0.600), but it is 0.100 "
           "above the champion, version 1: only that model is in the way; decide about it with --promote, or take it "
           "out of the comparison with --exclude: `champion history --promote 3fa94c1b`")),
    (asked(0.4, None, view=ledger(("x", 0.4, {"model_digest": ASKED.challenger.model_digest}))),
     "NO CHANGE: this model is already the champion, version 1 (0.400)"),
    (asked(0.5, None, view=FIRST), ("NO DECISION: the champion, version 1, has no score on this test set; `champion "
     "status` shows its state, `champion deploy --force-deploy --reason TEXT` promotes without a comparison")),
], ids=lambda value: value[:40] if isinstance(value, str) else "")
def test_the_first_line_says_what_happened_with_scores_gain_and_versions(question: Question, line: str) -> None:
    assert verdict_line(*records(question)) == line


def test_a_dry_run_says_what_would_happen() -> None:
    assert verdict_line(*records(asked(0.412, None), dry_run=True)) == (
        "WOULD BE PROMOTED: it would be the first shop-bot (score 0.412)")
    assert verdict_line(*records(asked(0.45), dry_run=True)) == (
        "WOULD BE PROMOTED: it would replace shop-bot version 1: score 0.450, gain +0.050")


def test_a_promotion_within_noise_says_so_and_names_what_would_have_kept_the_champion() -> None:
    facts, compared = records(asked(0.41, evidence=NOISE))
    note = ("The interval includes 0, so the two models may be equally good; with deployment.significance: require, "
            "version 1 would have stayed the champion.")
    assert terminal_summary(facts, compared, "out").splitlines()[1] == f"  note     {note}"
    assert note in headline(ASKED.report, facts, compared, is_judged=True).notes


@pytest.mark.parametrize("question", [asked(0.412, None), asked(0.45, evidence=CLEAR), asked(0.3, evidence=NOISE)],
                         ids=["first", "clear", "not promoted"])
def test_no_other_decision_speaks_of_noise(question: Question) -> None:
    facts, compared = records(question)
    assert "note" not in terminal_summary(facts, compared, "out")
    assert not any("equally good" in note for note in headline(ASKED.report, facts, compared, is_judged=True).notes)


def test_a_forced_promotion_says_who_forced_it_why_and_what_the_gate_alone_would_say() -> None:
    facts, compared = records(asked(0.367, force=True), reason="it answers shorter")
    assert ("  note     Forced by ana@laptop: it answers shorter; without --force-deploy: score 0.367 is 0.033 below "
            "the champion, version 1 (0.400).") in terminal_summary(facts, compared, "out").splitlines()


def test_below_the_verdict_stand_the_metrics_themselves_and_where_to_look() -> None:
    facts, compared = records(asked(0.412, None))
    assert terminal_summary(facts, compared, "results/deployment").splitlines()[1:] == [
        "  metrics  BLEU-1 0.412, BLEU-2 0.412, BLEU-3 0.412, BLEU-4 0.412, ROUGE-L precision 0.412",
        "  Hub      not pushed",
        "  files    results/deployment",
        "  MLflow   sqlite:///mlflow.db, run 7472d6ec",
    ]


@pytest.mark.parametrize(("numbers", "texts"), [
    ((0.45, 0.416), ["0.450", "0.416"]), ((0.4504, 0.4496), ["0.4504", "0.4496"]), ((0.4, 0.4), ["0.400", "0.400"]),
    ((0.0004,), ["0.0004"]), ((0.0, 0.1), ["0.000", "0.100"]), ((1e-9,), ["0.000000"]),
    ((0.45041, 0.45042), ["0.45041", "0.45042"])])
def test_numbers_have_three_digits_or_as_many_as_tell_them_apart(numbers: tuple[float, ...], texts: list[str]) -> None:
    assert rounded(*numbers) == texts
