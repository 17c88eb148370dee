from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from src.core.errors import InvalidInput
from src.decisions.words import Headline, headline
from src.evaluation.metrics import RowStatistics
from src.evaluation.significance import score_intervals, seed_from
from src.model_selection import ScoredRun
from src.report import page as report_page
from src.report.page import ModelHistory, build, no_past, ranked_answers, render, rival_run, rival_slot
from tests.fakes.parsed_html import Parsed
from tests.fakes.report_example import POLICY, decided, evaluated, ledger, records

WEIGHTS = POLICY.weighted_scoring.weights
HOSTILE = "<script>alert(1)</script><img src=https://x.test/a onerror=alert(2)>'\"&amp;"


@pytest.fixture(scope="module")
def content() -> report_page.Page:
    return build(records())


@pytest.fixture(scope="module")
def page() -> Parsed:
    return Parsed(render(records()))


def text_of(**changes: Any) -> str:
    return Parsed(render(records(**changes))).text


def judged(challenger: int, *, best: int, **changes: Any) -> Headline:
    """What the page says of a challenger to a champion, both by their numbers."""
    told, compared = decided(evaluated(challenger), ledger(evaluated(best)), [evaluated(best)], **changes)
    return headline(evaluated(challenger).report, told, compared, is_judged=True)


def test_markup_in_any_text_of_the_data_is_shown_and_never_run() -> None:
    whole = records()
    row = whole.predictions[0].model_copy(update={"prediction": HOSTILE, "reference": HOSTILE, "intent": HOSTILE})
    past = replace(whole.past, problem=HOSTILE, rival=[row])
    told = {**whole.info, "explanation": HOSTILE, "actor": HOSTILE, "ci_url": HOSTILE}
    hostile = Parsed(render(records(predictions=[row, *whole.predictions[1:]], past=past, info=told)))
    assert not hostile.all("script", "img")
    assert not [name for _, attributes in hostile.tags for name in attributes if name.startswith("on")]
    assert hostile.text.count(HOSTILE.split(maxsplit=1)[0]) >= 5


def test_a_deployment_that_failed_shows_how_and_nothing_of_the_decision_before() -> None:
    text = text_of(info={"result": "invalid", "code": 3, "reason": "metrics.json: bleu4 missing"})
    assert "The deployment did not finish It ended with exit code 3 (invalid): metrics.json: bleu4 missing" in text
    assert "Gain over best promoted" not in text
    assert "Without a decision on this model" in text


def test_a_decision_on_another_model_is_not_shown_as_this_ones() -> None:
    told, compared = decided(evaluated(2), ledger(evaluated(1)), [evaluated(1)])
    text = text_of(info=told, comparison=compared)
    assert "No decision on this model" in text
    assert told["key"] not in text
    assert records(info=told).deployment_run is None


def test_a_rollback_since_the_decision_is_not_shown_as_a_failed_deployment() -> None:
    text = text_of(info={"result": "rolled_back", "code": 0, "reason": "rollback", "model_name": "shop", "actor": "ana",
                         "champion": {"version": 1}, "stated_reason": "complaints", "hub": None})
    assert "No decision on this model The last change: rolled back by ana: complaints" in text


def test_a_model_that_was_never_judged_is_said_to_be_so() -> None:
    assert headline(evaluated(1).report, {}, {}, is_judged=False).heading == "No decision yet"


def test_answers_known_from_training_and_letters_that_the_tokenizer_does_not_split_are_told() -> None:
    found = evaluated(1).report
    report = found.model_copy(update={"answer_overlap_rows": 5, "unsplit_rows": found.rows // 10 + 1})
    notes = headline(report, {}, {}, is_judged=False).notes
    assert "reference answers that are in the training split too: 5." in notes[0]
    assert notes[1].startswith(f"{report.unsplit_rows} of {report.rows} references (")
    assert "set evaluation.tokenizer" in notes[1]
    few = report.model_copy(update={"unsplit_rows": found.rows // 10})
    assert len(headline(few, {}, {}, is_judged=False).notes) == 1


def test_a_history_without_a_run_and_a_training_without_losses_are_said() -> None:
    text = text_of(past=replace(no_past(""), ledger=ledger()), losses=None)
    assert "MLflow holds no evaluation of this model name under this score contract." in text
    assert "No loss curve was recorded." in text


@pytest.mark.parametrize("content", ["epoch,train_loss\n1,0.5\n", "epoch,train_loss,validation_loss\n1,x,2\n",
                                     "epoch,train_loss,validation_loss\n1,nan,2\n"])
def test_losses_that_are_not_numbers_are_refused_with_the_file_named(content: str) -> None:
    with pytest.raises(InvalidInput, match=r"results/training/loss\.csv: "):
        report_page.losses_of(content, where=Path("results/training/loss.csv"))


def test_the_decision_and_its_reason_come_first(page: Parsed) -> None:
    assert next(tag for tag, _ in page.tags if tag in ("h1", "h2", "table", "svg")) == "h1"
    gain = records().comparison["improvement"]
    assert ("deployment report Promoted to champion ecommerce-chatbot version 3 replaces version 2: score 0.919, gain "
            f"{gain:+.3f} (95 % interval +") in page.text


def test_a_challenger_that_was_kept_out_reads_why() -> None:
    told = judged(2, best=3)
    assert told.heading == "Not promoted"
    assert told.sentence == "Score 0.767 is 0.151 below the champion, version 1 (0.919)."


def test_a_run_that_was_never_promoted_and_alone_blocks_the_challenger_is_named() -> None:
    first, second, third = (evaluated(number) for number in (1, 2, 3))
    told, compared = decided(second, ledger(first), [first, third])
    sentence = headline(second.report, told, compared, is_judged=True).sentence
    assert sentence.endswith(f"`champion history --promote {third.report.run_id[:8]}`.")
    assert "only that model is in the way" in sentence
    assert "in the way" not in judged(2, best=3).sentence


def test_a_first_model_is_promoted_without_a_gain() -> None:
    first = evaluated(1)
    told, compared = decided(first, ledger(), [])
    past = ModelHistory([first.scored], older=False, ledger=ledger(first), rival=None, problem="")
    text = text_of(report=first.report, predictions=first.predictions, info=told, comparison=compared, past=past)
    assert "First model, now ecommerce-chatbot version 1 (score " in text
    assert "There is no other model to compare with yet." in text
    assert "Gain over best promoted" not in text


def test_a_dry_run_does_not_read_as_a_promotion() -> None:
    told = judged(3, best=1, dry_run=True)
    assert told.heading == "Would be promoted to champion"
    assert told.sentence.startswith("It would replace ecommerce-chatbot version 1: score 0.919, gain +")


def test_a_forced_promotion_names_what_it_set_aside() -> None:
    notes = judged(1, best=3, force=True).notes
    assert "Forced by ci; without --force-deploy: score 0.616 is 0.303 below the champion, version 1 (0.919)." in notes


def test_a_gain_without_its_interval_is_said() -> None:
    assert any(note.startswith("The gain has no interval") for note in judged(3, best=1, significance=False).notes)


def test_a_gain_whose_interval_includes_zero_is_called_possible_chance() -> None:
    whole = records()
    gain = {**whole.comparison["significance"], "low": -0.01}
    told = headline(whole.report, whole.info, {**whole.comparison, "significance": gain}, is_judged=True)
    assert told.notes[0] == ("The interval includes 0, so the two models may be equally good; with "
                             "deployment.significance: require, version 2 would have stayed the champion.")
    assert told.notes[1].startswith("With 30 evaluated rows, a true gain of ")


def test_every_score_has_the_interval_of_its_rows(content: report_page.Page) -> None:
    whole = records()
    statistics = RowStatistics.from_rows([row.stats for row in whole.predictions])
    expected = score_intervals(statistics, weights=whole.comparison["weights"], confidence=POLICY.confidence,
                               seed=seed_from(whole.report.contract_digest))
    scores = content.scores
    assert {score.name: (score.low, score.high) for score in scores} == expected
    assert scores[0].value == pytest.approx(whole.report.weighted_score)
    assert sum(score.contribution for score in scores[1:]) == pytest.approx(scores[0].value, abs=1e-8)


def test_an_adjusted_confidence_is_shown_in_full() -> None:
    whole = records()
    gain = {**whole.comparison["significance"], "confidence": 0.9975}
    assert "99.75 % interval" in text_of(comparison={**whole.comparison, "significance": gain})


def test_the_best_models_and_the_champion_are_side_by_side(content: report_page.Page) -> None:
    sides = content.sides
    assert [side.name for side in sides] == ["challenger", "best evaluated", "best promoted", "champion"]
    assert {side.run_id for side in sides[1:]} == {evaluated(2).report.run_id}


def test_the_history_marks_each_promotion_once_and_the_challenger() -> None:
    again = replace(evaluated(2).scored, run_id="again", finished_at=5)
    past = replace(records().past, runs=[*records().past.runs, again])
    chart = build(records(past=past)).charts["history"]
    assert chart.words.startswith("4 evaluations with weighted scores from ")
    assert chart.words.count("version ") == 3
    for drawing in chart.drawings:
        assert [f">v{version}<" in drawing for version in (1, 2, 3)] == [True] * 3
        assert "this challenger" in drawing


def test_a_history_of_500_runs_and_answers_of_any_length_stay_below_a_megabyte() -> None:
    whole = records()
    runs = [ScoredRun(f"{n:032x}", f"{n:064x}", "c", whole.report.metrics.model_copy(update={"bleu1": n / 500}), n)
            for n in range(500)]
    long = [row.model_copy(update={"prediction": "\"\U0001f600'" * 400000, "reference": "'" * 40000})
            for row in whole.predictions]
    html = render(records(past=replace(whole.past, runs=runs, older=True, rival=long), predictions=long))
    assert len(html.encode()) < 1_000_000
    assert "The latest 500 evaluations; older ones are left out here." in html
    assert f"[{1200000 - report_page.LONGEST} more characters]" in html


def test_answers_stand_beside_the_champions_and_no_row_is_both_best_and_worst() -> None:
    best, worst = ranked_answers(evaluated(3).predictions, evaluated(2).predictions, WEIGHTS).values()
    assert len(best) == len(worst) == report_page.ANSWERS
    assert not {row.row_id for row in best} & {row.row_id for row in worst}
    scores = [row.own.score for row in (*best, *reversed(worst))]
    assert scores == sorted(scores, reverse=True)
    theirs = {row.id: row.prediction for row in evaluated(2).predictions}
    assert all(row.other and row.other.text == theirs[row.row_id] for row in (*best, *worst))


def test_three_rows_are_three_best_answers() -> None:
    (heading, rows), = ranked_answers(evaluated(3).predictions[:3], [], WEIGHTS).items()
    assert (heading, len(rows)) == ("Best answers", 3)
    assert rows[0].other is None


def test_the_rival_is_the_champion_or_the_one_before_where_the_challenger_is_champion() -> None:
    first, second = evaluated(1), evaluated(2)
    view = ledger(first, second)
    assert rival_slot(ledger(), second.report.model_digest) is None
    assert rival_slot(ledger(first), first.report.model_digest) is None
    assert rival_slot(view, evaluated(3).report.model_digest) == view.slots[1]
    assert rival_slot(view, second.report.model_digest) == view.slots[0]


def test_the_rivals_answers_are_those_of_its_latest_run_under_todays_contract() -> None:
    first = evaluated(1)
    slot, again = ledger(first).slots[0], replace(first.scored, run_id="again")
    assert rival_run(slot, []) == first.report.run_id
    assert rival_run(slot, [first.scored, again]) == "again"
