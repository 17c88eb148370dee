"""The metrics against sacrebleu and rouge_score themselves, as installed."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU

from src.core.errors import InvalidInput, InvalidParams
from src.core.params import METRICS
from src.core.records import ScoreContract
from src.evaluation.metrics import (
    RowStatistics,
    corpus_scores,
    row_contributions,
    row_counts,
    row_scores,
    row_statistics,
    scores_of_counts,
    signature,
    tokenizer_of,
)
from src.evaluation.predictions import score_contract
from src.evaluation.tokenizers import reads
from tests.fakes import tiny_model

WEIGHTS = {"bleu1": 0.10, "bleu2": 0.15, "bleu3": 0.25, "bleu4": 0.40, "rougeL_precision": 0.10}
ANSWER = "Your order #4521 ships within 2 days. You can follow it under My Orders, page 3."
OTHER = "Refunds of up to $50.00 reach your card in 5-7 working days; larger ones need a call."
LONG = " ".join(f"{ANSWER} {OTHER} Step {n}: wait." for n in range(10))

# name: predictions, references
CASES = {
    "identical": ([ANSWER, OTHER], [ANSWER, OTHER]),
    "no overlap": (["alpha beta gamma delta"], ["one two three four"]),
    "swapped rows": ([OTHER, ANSWER], [ANSWER, OTHER]),
    "empty prediction among others": (["", OTHER], [ANSWER, OTHER]),
    "only empty predictions": (["", ""], [ANSWER, OTHER]),
    "empty reference": ([ANSWER, OTHER], ["", OTHER]),
    "all empty": (["", ""], ["", ""]),
    "only spaces": (["  \t ", OTHER], [ANSWER, " \n "]),
    "one-word reference, hit": (["Yes"], ["Yes"]),
    "one-word reference, missed": (["No, that plan has no page for it."], ["Yes"]),
    "one-word prediction": (["Your"], [ANSWER]),
    "two words": (["two words"], ["two words"]),
    "three words, one matched": (["my big parcel"], ["my lost letter"]),
    "a matched word but no pair": (["days order ships"], [ANSWER]),
    "prediction too short": (["Your order ships within 2 days."], [ANSWER]),
    "prediction too long": ([f"{ANSWER} {OTHER}"], [ANSWER]),
    "another case": ([ANSWER.upper()], [ANSWER]),
    "repeated words": (["the the the the the the the"], ["the cat is on the mat"]),
    "repeated sentence": ([" ".join([ANSWER] * 5)], [ANSWER]),
    "punctuation": (["Wait... what?! (No, really!) [a/b] {c} <d>"], ["Wait , what ? ! ( No really ) a / b c d"]),
    "numbers": (["1,000.50 EUR or 3.5% in 2-3 days, 5-fold."], ["1,000.5 EUR or 3,5 % in 2 - 3 days , 5 fold ."]),
    "accents and other alphabets": (["Zażółć gęślą jaźń İstanbul ΟΔΟΣ"], ["zażółć GĘŚLĄ jaźń istanbul οδος"]),
    "no spaces between words": (["您的订单已发货。"], ["您的订单已经发货。"]),
    "emoji and symbols": (["Thanks \U0001f600 \u2122 5\u00a0\u20ac"], ["Thanks \U0001f600 5 \u20ac"]),
    "entities and skipped": (["a &amp;lt; b &quot;c&quot; <skipped> d<skip-\nped>"], ["a &lt; b 'c' \"d\""]),
    "lines and hyphenation": (["1. Log in\r\n2. Re-\nset it -\n now\x85end"], ["1. Log in 2. Reset it now end"]),
    "unusual spaces": (["a\u00a0b\u2028c\x1cd . , e\t.f"], ["a b c d . , e .f"]),
    "placeholders": (["Call {{Customer Support}} at {{Phone Number}}."], ["Call {{Phone Number}} {{Hours}}."]),
    "long": ([LONG, LONG[100:]], [LONG.replace("days", "weeks"), LONG]),
    "a word of 10,000 letters": (["x" * 10_000], ["x" * 10_000 + " y"]),
}  # fmt: skip


def library_scores(predictions: list[str], references: list[str]) -> dict[str, float]:
    """What sacrebleu and rouge_score say, in 0..1."""
    bleu = [BLEU(max_ngram_order=n, force=True).corpus_score(predictions, [references]).score for n in (1, 2, 3, 4)]
    scorer = RougeScorer(["rougeL"])
    rouge = [scorer.score(r, p)["rougeL"].precision for p, r in zip(predictions, references, strict=True)]
    return dict(zip(METRICS, [*(score / 100 for score in bleu), sum(rouge) / len(rouge)], strict=True))


def every_row() -> tuple[list[str], list[str]]:
    """The rows of all cases as one corpus."""
    predictions = [text for case in CASES.values() for text in case[0]]
    references = [text for case in CASES.values() for text in case[1]]
    return predictions, references


@pytest.mark.parametrize(("predictions", "references", "problem"), [
    (["a"], ["a", "b"], "1 predictions for 2 references"),
    ([], [], "no rows to score"),
    (["a", None], ["a", "b"], "row 1: None and 'b' must both be text"),
    (["a"], [3], "row 0: 'a' and 3 must both be text"),
])  # fmt: skip
def test_rows_that_cannot_be_scored_are_named(predictions: list[str], references: list[str], problem: str) -> None:
    with pytest.raises(InvalidInput, match=problem):
        row_statistics(predictions, references, "13a")


@pytest.mark.parametrize(("predictions", "references"), [*CASES.values(), every_row()], ids=[*CASES, "all as one"])
def test_corpus_scores_equal_the_libraries(predictions: list[str], references: list[str]) -> None:
    scores = corpus_scores(row_statistics(predictions, references, "13a"))
    assert scores == pytest.approx(library_scores(predictions, references), abs=1e-9, rel=0)
    assert all(0 <= score <= 1 for score in scores.values())


def random_texts() -> tuple[list[str], list[str]]:
    """Predictions and references of awkward characters."""
    rng = np.random.default_rng(11)
    pieces = np.array([*"aB19.,-&;<>'\"$%[]{}()/ \n\t\x1c\x85\u2028_\u00e9\u0130\u03a3\r", "-\n", "<skipped>", "&amp;"])
    texts = ["".join(rng.choice(pieces, size=size)) for size in rng.integers(0, 30, size=2_000)]
    return texts[:1_000], texts[1_000:]


@pytest.mark.parametrize(("predictions", "references"), [every_row(), random_texts()], ids=["all cases", "random"])
def test_row_statistics_are_those_of_the_libraries(predictions: list[str], references: list[str]) -> None:
    scorer = RougeScorer(["rougeL"])
    theirs = BLEU()._extract_corpus_statistics(predictions, [references])
    rouge = [scorer.score(r, p)["rougeL"].precision for p, r in zip(predictions, references, strict=True)]
    expected = [[*row[2:], *row[:2], value] for row, value in zip(theirs, rouge, strict=True)]
    assert row_statistics(predictions, references, "13a").to_rows() == expected


def test_each_row_score_weighs_sacrebleus_sentence_scores() -> None:
    predictions, references = every_row()
    scorer = RougeScorer(["rougeL"])
    expected = []
    for prediction, reference in zip(predictions, references, strict=True):
        orders = [BLEU(max_ngram_order=n, effective_order=True) for n in (1, 2, 3, 4)]
        bleu = [order.sentence_score(prediction, [reference]).score / 100 for order in orders]
        parts = [*bleu, scorer.score(reference, prediction)["rougeL"].precision]
        expected.append(sum(part * WEIGHTS[name] for name, part in zip(METRICS, parts, strict=True)))
    assert row_scores(row_statistics(predictions, references, "13a"), WEIGHTS) == pytest.approx(expected, abs=1e-9)


def test_weights_of_another_metric_are_refused() -> None:
    statistics = row_statistics([ANSWER], [ANSWER], "13a")
    with pytest.raises(InvalidParams, match="expected bleu1"):
        row_scores(statistics, {"bleu1": 0.5, "chrf": 0.5})


def test_resampled_scores_are_the_scores_of_the_drawn_rows() -> None:
    predictions, references = every_row()
    statistics = row_statistics(predictions, references, "13a")
    indices = np.random.default_rng(5).integers(len(predictions), size=(50, len(predictions)))
    expected = [list(corpus_scores(statistics.take(drawn)).values()) for drawn in indices]
    found = scores_of_counts(statistics, row_counts(indices, len(statistics)))
    assert found == pytest.approx(np.array(expected), abs=1e-9)


def test_statistics_survive_json(tmp_path: Path) -> None:
    statistics = row_statistics(*every_row(), "13a")
    file = tmp_path / "rows.json"
    file.write_text(json.dumps(statistics.to_rows()))
    restored = RowStatistics.from_rows(json.loads(file.read_text()))
    assert restored.to_rows() == statistics.to_rows()
    assert corpus_scores(restored) == corpus_scores(statistics)


@pytest.mark.parametrize(("place", "value"), [
    (0, 10.0),  # more matched than predicted
    (0, 0.5),  # not a count
    (4, 7.0),  # not the number of tokens
    (9, -1.0), (9, float("inf")), (10, 1.5), (10, float("nan")), (10, None),
])
def test_impossible_statistics_are_refused_by_row(place: int, value: float) -> None:
    rows = row_statistics(["a b c"] * 3, ["a b d"] * 3, "13a").to_rows()
    rows[1][place] = value
    with pytest.raises(InvalidInput, match="row statistics 1: "):
        RowStatistics.from_rows(rows)


@pytest.mark.parametrize(("rows", "problem"), [
    ([[1.0, 2.0]], "expected 11 numbers a row"), ([[0.0] * 11, [0.0] * 10], "expected 11 numbers a row"),
    ([["a"] * 11], "expected 11 numbers a row"), ([], "no rows to score")])
def test_rows_of_another_shape_and_none_are_refused(rows: list[list[float]], problem: str) -> None:
    with pytest.raises(InvalidInput, match=problem):
        RowStatistics.from_rows(rows)


# Answers that 13a or rouge_score cannot split, and a tokenizer that fits them.
FOREIGN = {
    "Chinese": ("您的订单已经发货。我们会尽快送达。", "zh"),
    "Chinese by characters": ("您的订单已经发货。我们会尽快送达。", "char"),
    "Japanese by characters": ("ご注文の商品は発送済みです。", "char"),
    "Arabic": ("تم شحن طلبك رقم ٤٥٢١ وسيصل خلال يومين.", "intl"),
    "Thai": ("คำสั่งซื้อของคุณถูกจัดส่งแล้ว", "char"),
    "Russian": ("Ваш заказ отправлен, он придёт завтра.", "intl"),
}


@pytest.mark.parametrize(("answer", "tokenizer"), FOREIGN.values(), ids=FOREIGN)
def test_an_answer_that_equals_its_reference_scores_1_in_every_metric_with_a_fitting_tokenizer(
        answer: str, tokenizer: str) -> None:
    assert corpus_scores(row_statistics([answer], [answer], tokenizer)) == dict.fromkeys(METRICS, 1.0)
    assert corpus_scores(row_statistics([answer], [answer], "13a"))["rougeL_precision"] == 0
    assert not reads(answer)


class AsBleu:
    """The tokenizer object that rouge_score takes, around one of sacrebleu's."""

    def __init__(self, name: str) -> None:
        self._tokenize = BLEU(tokenize=name).tokenizer

    def tokenize(self, text: str) -> list[str]:
        return str(self._tokenize(text.rstrip())).split()


@pytest.mark.parametrize("tokenizer", ["intl", "zh", "char"])
@pytest.mark.parametrize(("predictions", "references"), [every_row(), random_texts(), (
    [answer for answer, _ in FOREIGN.values()], [answer for answer, _ in reversed(FOREIGN.values())])],
    ids=["all cases", "random", "foreign"])
def test_another_tokenizer_serves_bleu_and_rouge_as_the_libraries_would(
        predictions: list[str], references: list[str], tokenizer: str) -> None:
    scorer = RougeScorer(["rougeL"], tokenizer=AsBleu(tokenizer))
    theirs = BLEU(tokenize=tokenizer)._extract_corpus_statistics(predictions, [references])
    rouge = [scorer.score(r, p)["rougeL"].precision for p, r in zip(predictions, references, strict=True)]
    expected = [[*row[2:], *row[:2], value] for row, value in zip(theirs, rouge, strict=True)]
    found = row_statistics(predictions, references, tokenizer)
    assert found.to_rows() == expected
    bleu = [BLEU(max_ngram_order=n, force=True, tokenize=tokenizer).corpus_score(predictions, [references]).score / 100
            for n in (1, 2, 3, 4)]
    assert list(corpus_scores(found).values()) == pytest.approx([*bleu, sum(rouge) / len(rouge)], abs=1e-9, rel=0)


@pytest.mark.parametrize(("tokenizer", "said"), [
    ("ja-mecab", "pip install 'sacrebleu[ja]'"), ("ko-mecab", "pip install 'sacrebleu[ko]'"),
    ("flores101", "sacrebleu_tokenizer_spm.model; download it once with `pip install sentencepiece`"),
    ("flores200", "flores200sacrebleuspm; download it once with `pip install sentencepiece`"),
    ("spacy", "'spacy' is unknown; choose one of 13a, intl, zh, char, ja-mecab, ko-mecab, flores101, flores200")])
def test_a_tokenizer_that_is_not_installed_is_refused_with_what_to_install(
        tokenizer: str, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sacrebleu.utils.SACREBLEU_DIR", str(tmp_path))
    for package in ("MeCab", "mecab_ko", "sentencepiece"):
        monkeypatch.setitem(sys.modules, package, None)
        monkeypatch.delitem(sys.modules, f"sacrebleu.tokenizers.tokenizer_{tokenizer.replace('-', '_')}", raising=False)
    with pytest.raises(InvalidParams) as caught:
        row_statistics([ANSWER], [ANSWER], tokenizer)
    assert said in str(caught.value)
    assert str(caught.value).startswith("evaluation.tokenizer: ")
    assert list(tmp_path.iterdir()) == []


def contract(tokenizer: str) -> ScoreContract:
    return score_contract(tiny_model.rows(), max_new_tokens=12, tokenizer=tokenizer)


@pytest.mark.parametrize("tokenizer", ["13a", "intl", "zh", "char"])
def test_a_contract_names_the_tokenizer_that_its_score_is_taken_again_with(tokenizer: str) -> None:
    assert tokenizer_of(contract(tokenizer)) == tokenizer


@pytest.mark.parametrize("stated", ["ja-mecab-0.996-IPA", "klingon", "13b"])
def test_a_contract_whose_tokenizer_is_not_here_is_no_guess(stated: str) -> None:
    signed = signature("13a").replace("tok:13a", f"tok:{stated}")
    with pytest.raises((InvalidParams, InvalidInput), match=r"ja-mecab|which is not available here"):
        tokenizer_of(contract("13a").model_copy(update={"metric_signature": signed}))


def test_the_signature_of_13a_and_with_it_every_contract_is_what_it_was() -> None:
    assert signature("13a") == ("bleu:corpus|nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|max_ngram_order:1..4|"
                                "rougeL:precision|stemmer:no|mean:rows|version:1")
    assert len({signature(name) for name in ("13a", "intl", "zh", "char")}) == 4


@pytest.mark.parametrize("text", [ANSWER, OTHER, "Größe, Überweisung, façade", "Twoje zamówienie zostało wysłane.",
                                  "订单 order number 4521"])
def test_what_is_mostly_latin_letters_and_digits_can_be_read(text: str) -> None:
    assert reads(text)


@pytest.mark.parametrize("text", ["\N{GRINNING FACE}", "...", "订单4521已经发货。"])
def test_what_is_mostly_something_else_cannot_be_read(text: str) -> None:
    assert not reads(text)


def test_the_signature_names_all_of_sacrebleus_settings_and_the_order_it_leaves_out() -> None:
    bleu = BLEU()
    bleu.corpus_score([ANSWER], [[OTHER]])
    settings = [part for part in str(bleu.get_signature()).split("|") if not part.startswith("version:")]
    assert set(settings) < set(signature("13a").split("|"))
    assert "max_ngram_order:1..4" in signature("13a")


def test_what_rows_contribute_is_what_the_score_loses_with_the_other_answer_in_their_place() -> None:
    references = ["the parcel comes on friday with a label", "you pay nothing for it at all", "write to us by mail"]
    ours, theirs = references, ["the parcel comes on monday with a label", "you pay it all", "write to us by mail"]
    weights: dict[str, float] = {name: 0.2 for name in METRICS}  # noqa: C420 - a dict of plain names

    def score(texts: list[str], expected: list[str]) -> float:
        return float(np.mean(list(corpus_scores(row_statistics(texts, expected, "13a")).values())))

    one, other = (row_statistics(texts, references, "13a") for texts in (ours, theirs))
    found = row_contributions(one, other, weights)
    expected = [score(ours, references) - score([*ours[:row], theirs[row], *ours[row + 1 :]], references)
                for row in range(3)]
    assert found == pytest.approx(expected, abs=1e-12)
    assert found[2] == 0
    alone = row_contributions(other, None, weights)
    left_out = [score(theirs, references) - score([*theirs[:row], *theirs[row + 1 :]],
                                                  [*references[:row], *references[row + 1 :]]) for row in range(3)]
    assert alone == pytest.approx(left_out, abs=1e-12)
