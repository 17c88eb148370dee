"""The gate's table, row by row and in order; tests/reliability/test_gate_sequences.py follows many decisions."""

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from src.core.params import METRICS, GuardParams
from src.core.records import EvaluationReport, contributions, digest_of, weighted_score
from src.ledger.slots import LedgerView
from src.model_selection import (
    Question,
    Reason,
    ScoredRun,
    Verdict,
    comparable,
    decide,
    failed_guard,
    needs_champion_evaluated,
    scores_to_beat,
)
from tests.fakes.factories import (
    CONTRACT,
    POLICY,
    WEIGHTS,
    ledger,
    metrics,
    question,
    report_values,
    rollback,
    run,
)

EMPTY = LedgerView(())
CHAMPION = ledger(("champion", 0.5))
NOISE = type("Evidence", (), {"includes_zero": True})()
SIGNAL = type("Evidence", (), {"includes_zero": False})()
NOTHING: dict[str, float] = dict.fromkeys(METRICS, 0.0)  # weights
REQUIRE = replace(POLICY, require_significance=True)


def answer(asked: Question) -> tuple[Verdict, Reason]:
    decision = decide(asked)
    return decision.verdict, decision.reason


def ask(score: float, others: dict[str, float] | None = None, view: LedgerView = CHAMPION, **changes: Any) -> Question:
    """A challenger with this score against other models' evaluations; the champion's is among them unless given."""
    history = [run(name, value) for name, value in ({"champion": 0.5} if others is None else others).items()]
    return question(run("challenger", score), history, view, **changes)


def again(**changes: Any) -> Question:
    """The champion itself comes again."""
    return question(run("champion", 0.5, run_id="second"), [run("champion", 0.5)], CHAMPION, **changes)


BLOCKED = rollback(ledger(("champion", 0.5), ("challenger", 0.6)), 1, blocks=[2])

# One row of the table in design.md each, in its order: a question, verdict and reason.
ROWS: list[tuple[str, Question, Verdict, Reason]] = [
    ("already", again(), Verdict.ALREADY, Reason.ALREADY),
    ("blocked", ask(0.9, view=BLOCKED), Verdict.REFUSED, Reason.BLOCKED),
    ("forced", ask(0.4, force=True), Verdict.PROMOTE, Reason.FORCED),
    ("branch", ask(0.9, may_promote=False), Verdict.KEEP, Reason.NOT_PROMOTING_BRANCH),
    ("incomparable", ask(0.9, {"rival": 0.1}), Verdict.UNDECIDED, Reason.INCOMPARABLE),
    ("empty beside a release", ask(0.9, {}, EMPTY, hub_holds_release=True), Verdict.UNDECIDED, Reason.INCOMPARABLE),
    ("first", ask(0.1, {}, EMPTY), Verdict.PROMOTE, Reason.FIRST_MODEL),
    ("first of equals", ask(0.1, {"rival": 0.1}, EMPTY), Verdict.PROMOTE, Reason.FIRST_MODEL),
    ("first not best", ask(0.1, {"rival": 0.2}, EMPTY), Verdict.KEEP, Reason.NOT_BEST),
    ("not best", ask(0.49), Verdict.KEEP, Reason.NOT_BEST),
    ("tie", ask(0.5), Verdict.KEEP, Reason.NOT_BEST),
    ("unpromoted rival", ask(0.6, {"champion": 0.5, "rival": 0.7}), Verdict.KEEP, Reason.NOT_BEST),
    ("below", ask(0.5009), Verdict.KEEP, Reason.BELOW_THRESHOLD),
    ("guard", ask(0.9, failed_guard="least_rows: 3"), Verdict.KEEP, Reason.GUARD),
    ("first with a guard", ask(0.9, {}, EMPTY, failed_guard="least_rows: 3"), Verdict.KEEP, Reason.GUARD),
    ("noise", ask(0.9, policy=REQUIRE, evidence=NOISE), Verdict.KEEP, Reason.WITHIN_NOISE),
    ("no evidence", ask(0.9, policy=REQUIRE), Verdict.UNDECIDED, Reason.INCOMPARABLE),
    ("noise, reported only", ask(0.9, evidence=NOISE), Verdict.PROMOTE, Reason.IMPROVED),
    ("significant", ask(0.9, policy=REQUIRE, evidence=SIGNAL), Verdict.PROMOTE, Reason.IMPROVED),
    ("improved", ask(0.501), Verdict.PROMOTE, Reason.IMPROVED),
]


@pytest.mark.parametrize(("asked", "verdict", "reason"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_a_row_of_the_table(asked: Question, verdict: Verdict, reason: Reason) -> None:
    assert answer(asked) == (verdict, reason)


@pytest.mark.parametrize(("counted", "limit", "said"), [
    (5, 1.0, None), (None, 1.0, None), (5, 0.5, None), (6, 0.5, None),
    (7, 0.5, "largest_answer_overlap: 7 of 12 rows, a share of 0.5 is allowed"),
    (None, 0.5, "largest_answer_overlap: not counted by the version that evaluated this model; evaluate it again"),
])
def test_the_share_of_references_among_the_training_answers_is_guarded(counted: int | None, limit: float,
                                                                       said: str | None) -> None:
    report = EvaluationReport.parse(report_values("a" * 64) | {"answer_overlap_rows": counted}, where="")
    assert failed_guard(GuardParams(largest_answer_overlap=limit), report, None) == said


# Each question fits its row and every later one that can hold beside it; taking a cause away leads to the next.
EVERYTHING = {"may_promote": False, "failed_guard": "x", "policy": REQUIRE, "evidence": NOISE}
ORDER: list[tuple[Question, Reason]] = [
    (again(**EVERYTHING, force=True), Reason.ALREADY),
    (ask(0.4, {}, BLOCKED, **EVERYTHING), Reason.BLOCKED),
    (ask(0.4, {}, **EVERYTHING), Reason.NOT_PROMOTING_BRANCH),
    (ask(0.4, {}, **{**EVERYTHING, "may_promote": True}), Reason.INCOMPARABLE),
    (ask(0.4, {}, EMPTY, **{**EVERYTHING, "may_promote": True}, hub_holds_release=True), Reason.INCOMPARABLE),
    (ask(0.4, **{**EVERYTHING, "may_promote": True}), Reason.NOT_BEST),
    (ask(0.5005, **{**EVERYTHING, "may_promote": True}), Reason.BELOW_THRESHOLD),
    (ask(0.6, **{**EVERYTHING, "may_promote": True}), Reason.GUARD),
    (ask(0.6, policy=REQUIRE, evidence=NOISE), Reason.WITHIN_NOISE),
]


@pytest.mark.parametrize(("asked", "reason"), ORDER, ids=[reason for _, reason in ORDER])
def test_the_first_row_that_matches_decides(asked: Question, reason: Reason) -> None:
    assert answer(asked)[1] is reason


@pytest.mark.parametrize("asked", [row[1] for row in ROWS], ids=[row[0] for row in ROWS])
def test_force_overrides_what_is_in_the_way_and_nothing_else(asked: Question) -> None:
    plain, forced = decide(replace(asked, force=False)), decide(replace(asked, force=True))
    if plain.verdict in (Verdict.PROMOTE, Verdict.ALREADY):
        assert forced == plain
        assert forced.overrode is None
    else:
        assert (forced.verdict, forced.reason, forced.overrode) == (Verdict.PROMOTE, Reason.FORCED, plain.reason)
        assert (forced.to_beat, forced.gain, forced.score) == (plain.to_beat, plain.gain, plain.score)


@pytest.mark.parametrize("k", range(0, 1000, 100))
def test_a_gain_of_exactly_the_threshold_promotes(k: int) -> None:
    for step in range(k, k + 100):
        best, challenger = step / 1000, (step + 1) / 1000
        asked = question(run("challenger", challenger), [run("champion", best)], ledger(("champion", best)))
        assert answer(asked) == (Verdict.PROMOTE, Reason.IMPROVED), f"{best} -> {challenger}"
        assert decide(asked).gain == Decimal("0.001")


def test_a_gain_of_a_billionth_less_does_not() -> None:
    policy = replace(POLICY, weights=NOTHING | {"bleu1": 1.0})
    assert answer(ask(0.500999999, policy=policy))[1] is Reason.BELOW_THRESHOLD
    assert answer(ask(0.501, policy=policy))[1] is Reason.IMPROVED


def test_with_a_threshold_of_zero_a_tie_still_keeps() -> None:
    policy = replace(POLICY, threshold=Decimal(0))
    assert answer(ask(0.5, policy=policy)) == (Verdict.KEEP, Reason.NOT_BEST)
    assert answer(ask(0.500000001, policy=policy)) == (Verdict.PROMOTE, Reason.IMPROVED)


def test_a_missing_component_has_no_score() -> None:
    with pytest.raises(KeyError, match="bleu4"):
        weighted_score({name: 0.5 for name in METRICS if name != "bleu4"}, WEIGHTS)


def test_a_run_of_zero_counts_as_history() -> None:
    assert answer(ask(0.0, {"rival": 0.0}, EMPTY)) == (Verdict.PROMOTE, Reason.FIRST_MODEL)
    assert decide(ask(0.0, {"rival": 0.0}, EMPTY)).to_beat.runs == 1
    view = ledger(("champion", 0.0))
    assert answer(ask(0.0, {"champion": 0.0}, view)) == (Verdict.KEEP, Reason.NOT_BEST)
    assert answer(ask(0.0009, {"champion": 0.0}, view)) == (Verdict.KEEP, Reason.BELOW_THRESHOLD)


def test_of_several_evaluations_of_one_model_the_latest_counts() -> None:
    history = [run("champion", 0.9, run_id="a", at=1), run("champion", 0.5, run_id="b", at=3),
               run("champion", 0.7, run_id="c", at=2)]
    found = decide(question(run("challenger", 0.6), history, CHAMPION))
    assert found.reason is Reason.IMPROVED
    assert found.gain == Decimal("0.1")
    assert found.to_beat.runs == 1
    assert decide(question(run("challenger", 0.6), history[::-1], CHAMPION)) == found


def test_the_challenger_is_never_its_own_rival_by_run_or_by_model() -> None:
    challenger = run("challenger", 0.6)
    history = [challenger, run("challenger", 0.95, run_id="older"), run("other", 0.9, run_id=challenger.run_id),
               run("champion", 0.5)]
    assert [found.model_digest for found in comparable(history, challenger, frozenset())] == [digest_of("champion")]


def test_another_contract_is_never_compared() -> None:
    other = digest_of("yesterday's contract")
    history = [run("champion", 0.5), run("rival", 0.99, contract=other)]
    assert answer(question(run("challenger", 0.6), history, CHAMPION)) == (Verdict.PROMOTE, Reason.IMPROVED)
    assert answer(question(run("challenger", 0.6), [run("champion", 0.5, contract=other)], CHAMPION)) == (
        Verdict.UNDECIDED, Reason.INCOMPARABLE)


def test_a_blocked_model_is_never_a_bar_unless_it_is_champion_again() -> None:
    history = [run("champion", 0.5), run("bad", 0.9)]
    view = rollback(ledger(("champion", 0.5), ("bad", 0.9)), 1, blocks=[2])
    found = decide(question(run("challenger", 0.6), history, view))
    assert (found.verdict, found.gain, found.to_beat.runs) == (Verdict.PROMOTE, Decimal("0.1"), 1)
    back = rollback(view, 2, blocks=[])
    assert answer(question(run("challenger", 0.6), history, back)) == (Verdict.KEEP, Reason.NOT_BEST)


def test_the_gain_is_measured_against_the_best_promoted_and_the_challenger_must_beat_the_best_evaluated() -> None:
    history = [run("old", 0.55), run("champion", 0.5), run("rival", 0.5999)]
    view = ledger(("old", 0.55), ("champion", 0.5, {"kind": "force"}))
    found = decide(question(run("challenger", 0.6), history, view))
    assert found.reason is Reason.IMPROVED
    assert found.gain == Decimal("0.05")
    best = found.to_beat
    assert [side and side.run_id for side in (best.best_evaluated, best.best_promoted, best.champion)] == [
        "run-rival", "run-old", "run-champion"]


def test_scores_are_taken_again_under_todays_weights() -> None:
    challenger = ScoredRun("c", digest_of("challenger"), CONTRACT, metrics(0.5).model_copy(update={"bleu1": 0.9}), 0)
    asked = question(challenger, [run("champion", 0.52)], CHAMPION)
    assert decide(asked).reason is Reason.IMPROVED
    only_bleu4 = replace(POLICY, weights=NOTHING | {"bleu4": 1.0})
    assert decide(replace(asked, policy=only_bleu4)).reason is Reason.NOT_BEST


@pytest.mark.parametrize(("view", "history", "needed"), [
    (EMPTY, [], False), (CHAMPION, [run("champion", 0.5)], False), (CHAMPION, [run("rival", 0.5)], True),
    (CHAMPION, [], True), (CHAMPION, [run("champion", 0.5, contract=digest_of("other"))], True),
    (ledger(("challenger", 0.5)), [], False)])
def test_a_champion_without_a_comparable_record_is_to_be_evaluated(view: LedgerView, history: list[ScoredRun],
                                                                   *, needed: bool) -> None:
    assert needs_champion_evaluated(question(run("challenger", 0.6), history, view)) is needed


def test_the_bars_name_who_they_are_and_over_how_many_runs() -> None:
    nobody = scores_to_beat(ask(0.5, {}, EMPTY))
    assert (nobody.best_evaluated, nobody.best_promoted, nobody.champion, nobody.runs) == (None, None, None, 0)
    assert scores_to_beat(ask(0.5, {"champion": 0.5, "rival": 0.4}, history_complete=False)).complete is False


def test_of_equals_the_earliest_is_the_bar() -> None:
    history = [run("late", 0.5, at=2), run("early", 0.5, at=1), run("champion", 0.4, at=3)]
    found = scores_to_beat(question(run("challenger", 0.6), history, ledger(("champion", 0.4))))
    assert found.best_evaluated == history[1]


def test_the_weighted_score_is_exact_and_rounded_half_even_to_a_billionth() -> None:
    assert weighted_score(metrics(0.1 + 0.2).as_dict(), WEIGHTS) == Decimal("0.300000000")
    only = NOTHING | {"bleu1": 1.0}
    assert weighted_score(metrics(0.1234567885).as_dict(), only) == Decimal("0.123456788")
    assert weighted_score(metrics(0.1234567895).as_dict(), only) == Decimal("0.123456790")
    assert weighted_score({**metrics(0).as_dict(), "bleu4": 1}, WEIGHTS) == Decimal("0.4")


def test_contributions_add_up_to_the_score() -> None:
    values = {"bleu1": 0.61, "bleu2": 0.52, "bleu3": 0.43, "bleu4": 0.34, "rougeL_precision": 0.66}
    parts = contributions(values, WEIGHTS)
    assert parts == {"bleu1": 0.061, "bleu2": 0.078, "bleu3": 0.1075, "bleu4": 0.136, "rougeL_precision": 0.066}
    assert sum(Decimal(str(part)) for part in parts.values()) == weighted_score(values, WEIGHTS)


def test_the_same_question_gets_the_same_answer() -> None:
    for _, asked, _, _ in ROWS:
        assert decide(asked) == decide(replace(asked, history=list(reversed(asked.history))))
