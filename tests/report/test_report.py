from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from src.core.errors import InvalidInput
from src.core.params import METRICS
from src.core.records import Baseline, Metrics
from src.decisions.words import Headline, headline
from src.evaluation.metrics import RowStatistics, corpus_scores, row_statistics
from src.evaluation.significance import score_intervals, seed_from
from src.model_selection import ScoredRun
from src.report import page as report_page
from src.report.answers import ANSWERS, LONGEST, differences, ranked_answers
from src.report.page import ModelHistory, build, no_past, render, rival_run, rival_slot
from tests.fakes.parsed_html import Parsed
from tests.fakes.report_example import INTENTS, POLICY, decided, evaluated, ledger, records

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
    worse = row.model_copy(update={"prediction": f"{HOSTILE} no", "stats": row_statistics(["No."], ["Yes."], "13a")
                                   .to_rows()[0]})
    past = replace(whole.past, problem=HOSTILE, rival=[worse])
    told = {**whole.info, "explanation": HOSTILE, "actor": HOSTILE, "ci_url": HOSTILE}
    hostile = Parsed(render(records(predictions=[row, *whole.predictions[1:]], past=past, info=told)))
    assert not hostile.all("script", "img")
    assert not [name for _, attributes in hostile.tags for name in attributes if name.startswith("on")]
    assert hostile.text.count(HOSTILE.split(maxsplit=1)[0]) >= 5


def test_a_deployment_that_failed_shows_how_and_nothing_of_the_decision_before() -> None:
    text = text_of(info={"result": "invalid", "code": 3, "reason": "metrics.json: bleu4 missing"})
    assert "The deployment did not finish It ended with exit code 3 (invalid): metrics.json: bleu4 missing" in text
    assert "Gain over version" not in text
    assert "There is no decision on this model, so there is nothing to compare with." in text


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
    assert "MLflow has no evaluation of this model name on this test set." in text
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
    assert "Gain over" not in text


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


def test_each_compared_model_stands_once_with_all_its_roles(content: report_page.Page) -> None:
    assert [row[0] for row in content.sides.rows] == ["This model",
                                                      "Best evaluated, best promoted, champion (version 2)"]
    told, compared = decided(evaluated(2), ledger(evaluated(1)), [evaluated(1), evaluated(3)])
    own = evaluated(2)
    shown = build(records(report=own.report, predictions=own.predictions, info=told, comparison=compared))
    assert [row[0] for row in shown.sides.rows] == ["This model", "Best evaluated (version 3)",
                                                    "Best promoted, champion (version 1)"]


def test_every_intent_has_its_score_its_interval_and_its_gain_over_the_champion(content: report_page.Page) -> None:
    [table] = content.intents
    assert sorted(row[0] for row in table.rows) == sorted(INTENTS)
    assert [row[2] for row in table.rows] == sorted(row[2] for row in table.rows)
    own, other = evaluated(3), evaluated(2)
    places = np.array([place for place, row in enumerate(own.predictions) if row.intent == "returns"])
    statistics = [each.statistics.take(places) for each in (own, other)]
    scores = [sum(WEIGHTS[name] * value for name, value in corpus_scores(each).items()) for each in statistics]
    shown = next(row for row in table.rows if row[0] == "returns")
    assert (shown[1], shown[2]) == ("6", f"{scores[0]:.3f}")
    assert shown[4].partition(" ")[0] == f"{scores[0] - scores[1]:+.3f}"
    low, high = map(float, shown[3].split(" to "))
    assert 0 <= low <= scores[0] <= high <= 1


def test_data_without_intents_has_no_scores_by_intent() -> None:
    plain = [row.model_copy(update={"intent": None}) for row in evaluated(3).predictions]
    assert build(records(predictions=plain)).intents == []
    assert "Scores by intent" not in text_of(predictions=plain)


def test_intents_of_too_few_rows_have_no_interval_and_many_intents_are_folded_away() -> None:
    many = [row.model_copy(update={"intent": f"intent {place // 2}" if place < 20 else "rest"})
            for place, row in enumerate(evaluated(3).predictions)]
    weakest, every = build(records(predictions=many)).intents
    assert (len(weakest.rows), len(every.rows)) == (1, 11)
    assert weakest.rows[0][0] == "rest"
    assert {row[3] for row in every.rows if row[0] != "rest"} == {"too few rows"}


def test_the_score_of_copied_answers_stands_beside_the_models_and_says_if_it_is_better() -> None:
    report = records().report
    metrics = Metrics(**dict.fromkeys(METRICS, 0.95))
    better = report.model_copy(update={"nearest_neighbour": Baseline(weighted_score=0.95, metrics=metrics)})
    text = text_of(report=better)
    assert "Copied training answers 0.9500 better than this model: it is not worth serving yet" in text
    assert ("The model answers worse than copying the nearest training answer (0.950); it is not worth serving yet."
            in text)
    assert build(records(report=better)).score_table.heads[-1] == "Copied answers"
    worse = report.model_copy(update={"nearest_neighbour": Baseline(weighted_score=0.1, metrics=metrics)})
    assert "Copied training answers 0.1000 the score of copying" in text_of(report=worse)
    assert "Copied" not in text_of()


def test_a_champion_that_was_scored_again_keeps_the_place_of_its_promotion_and_is_marked() -> None:
    again = [replace(evaluated(number).scored, run_id=f"again{number}", finished_at=10 - number) for number in (2, 1)]
    never = ScoredRun("never", "f" * 64, "c", evaluated(1).report.metrics, 10**13)
    past = replace(records().past, runs=[evaluated(3).scored, *again, never])
    shown = build(records(past=past))
    assert shown.history
    assert [(row[0], row[3]) for row in shown.history.rows] == [
        ("Version 1", "scored again after its promotion"), ("Version 2", "scored again after its promotion"),
        ("Version 3", "this model, champion"), ("Not promoted", "")]
    assert shown.charts["history"].words.count("(scored again)") == 2


def test_a_promoted_version_without_a_score_on_this_test_set_is_named() -> None:
    past = replace(records().past, runs=[evaluated(1).scored, evaluated(3).scored])
    assert "Not shown, because it has no score on this test set: version 2." in text_of(past=past)


def test_the_history_marks_each_promotion_once_and_the_challenger() -> None:
    again = replace(evaluated(2).scored, run_id="again", finished_at=5)
    past = replace(records().past, runs=[*records().past.runs, again])
    chart = build(records(past=past)).charts["history"]
    assert chart.words.startswith("3 models with weighted scores from ")
    assert chart.words.count("version ") == 3
    for drawing in chart.drawings:
        assert [f">v{version}<" in drawing for version in (1, 2, 3)] == [True] * 3
        assert "this model" in drawing


def test_a_history_of_500_runs_and_answers_of_any_length_stay_below_a_megabyte() -> None:
    whole = records()
    runs = [ScoredRun(f"{n:032x}", f"{n:064x}", "c", whole.report.metrics.model_copy(update={"bleu1": n / 500}), n)
            for n in range(500)]
    long, longer = ([row.model_copy(update={"prediction": "\"\U0001f600'" * 400000, "reference": "'" * 40000})
                     for row in rows] for rows in (whole.predictions, whole.past.rival or ()))
    html = render(records(past=replace(whole.past, runs=runs, older=True, rival=longer), predictions=long))
    assert len(html.encode()) < 1_000_000
    assert "(the latest 500 evaluations; there are older ones)" in html
    assert str(1200000 - LONGEST) in html


def test_the_largest_wins_and_losses_add_up_to_most_of_the_gain() -> None:
    own, other = evaluated(3), evaluated(2)
    worse = [row.model_copy(update={"prediction": "No.", "stats": row_statistics(["No."], [row.reference], "13a")
                                    .to_rows()[0]}) if place < 12 else row
             for place, row in enumerate(own.predictions)]
    shown = ranked_answers(worse, other.predictions, WEIGHTS)
    assert list(shown) == ["wins", "losses"]
    wins, losses = ([row.change or 0.0 for row in rows] for rows in shown.values())
    assert (wins, losses) == (sorted(wins, reverse=True), sorted(losses))
    assert min(wins) > 0 > max(losses)
    assert len(losses) == ANSWERS
    assert not {row.row_id for row in shown["wins"]} & {row.row_id for row in shown["losses"]}
    theirs = {row.id: row.prediction for row in other.predictions}
    assert all(row.other and row.other.text == theirs[row.row_id] for rows in shown.values() for row in rows)


def test_two_models_that_answer_alike_are_said_to_do_so() -> None:
    same = replace(records().past, rival=records().predictions)
    assert "No answer changes the score." in text_of(past=same)


def test_without_another_model_the_best_and_the_worst_answers_are_shown() -> None:
    best, worst = ranked_answers(evaluated(3).predictions, [], WEIGHTS).values()
    assert len(best) == len(worst) == ANSWERS
    scores = [row.own.score for row in (*best, *reversed(worst))]
    assert scores == sorted(scores, reverse=True)
    assert all(row.other is None and row.change is None for row in (*best, *worst))


def test_three_rows_are_three_best_answers() -> None:
    (heading, rows), = ranked_answers(evaluated(3).predictions[:3], [], WEIGHTS).items()
    assert (heading, len(rows)) == ("best answers", 3)
    assert rows[0].other is None


@pytest.mark.parametrize(("answer", "expected", "shown"), [
    ("It takes 4 days.", "It takes 3 days.", "It takes <4> [3] days."),
    ("It takes days.", "It takes 3 days.", "It takes [3] days."),
    ("takes 3 days", "It takes 3 days.", "[It] takes 3 days [.]"),
    ("It takes 3 days.", "It takes 3 days.", "It takes 3 days."),
    ("It now\ntakes 3 days.", "It takes 3 days.", "It <now>\ntakes 3 days."),
    ("\u8fd0\u8d39\u662f\u4e94\u5143", "\u8fd0\u8d39\u662f\u4e09\u5143", "\u8fd0\u8d39\u662f<\u4e94> [\u4e09]\u5143"),
    ("Call us.", "Open Account > Orders and choose a date.", ""),
    ("", "It takes 3 days.", ""),
])
def test_words_that_differ_from_the_expected_answer_are_told_apart(answer: str, expected: str, shown: str) -> None:
    marks = {"same": "{}", "extra": "<{}>", "missing": "[{}]"}
    assert "".join(marks[piece.kind].format(piece.text) for piece in differences(answer, expected)) == shown


@pytest.mark.parametrize(("answer", "remark"), [
    ("yes " * 375, ""), ("a b " * 375, "too long to compare word by word"), ("No.", "has little in common with the")])
def test_an_answer_that_goes_round_in_circles_is_shown_without_long_comparisons(answer: str, remark: str) -> None:
    rows = [row.model_copy(update={"prediction": answer, "reference": "yes " * 300})
            for row in evaluated(3).predictions]
    best, _ = ranked_answers(rows, [], WEIGHTS).values()
    assert best[0].own.remark.startswith(remark)
    assert bool(best[0].own.pieces) == (not remark)


def test_differences_are_marked_in_words_and_not_by_colour_alone(page: Parsed) -> None:
    assert page.all("mark")
    assert page.all("ins")
    assert "marked words are not in the expected answer, and [underlined words in brackets] are missing" in page.text


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
