"""What results/evaluations says is computed again, and the first value that differs is named."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from src.core.errors import InvalidInput
from src.data.rows import EvaluationRow, Turn
from src.evaluation.claims import check_answers, check_scores, disagreements
from src.evaluation.predictions import Prediction, rescored
from tests.fakes.history_store import STOP, answers, byte_tokenizer

PATH = Path("predictions.jsonl")
GIVEN = answers(3, rows=6)
ROWS = [EvaluationRow(id=row.id, intent=row.intent, messages=[*row.messages, Turn(role="assistant",
        content=row.reference)]) for row in GIVEN]


def check(given: list[Prediction], *, max_new_tokens: int = 160) -> None:
    def decode() -> list[str]:
        return byte_tokenizer().decode_batch([row.tokens for row in given])

    check_answers(PATH, given, ROWS, max_new_tokens=max_new_tokens, tokenizer="13a", decode=decode)


def tokens(text: str) -> list[int]:
    return [*byte_tokenizer().encode(text).ids, STOP]


def forged(text: str, **changes: Any) -> dict[str, Any]:
    """An answer that agrees with itself but for these fields."""
    true = GIVEN[4].model_copy(update={"prediction": text, "tokens": tokens(text), "new_tokens": len(tokens(text))})
    return {**rescored([true], "13a")[0].model_dump(exclude={"id", "intent", "messages"}), **changes}


def test_what_an_evaluation_wrote_is_found_true() -> None:
    check(GIVEN)


FORGERIES: list[tuple[str, dict[str, Any], str]] = [
    ("better statistics", {"stats": GIVEN[0].stats}, "stats is ["),
    ("a better text", {"prediction": GIVEN[4].reference, "stats": GIVEN[0].stats}, "prediction is "),
    ("an easier reference", {"reference": GIVEN[4].prediction}, "reference is "),
    ("an easier question", {"messages": [Turn(role="user", content="?")]}, "messages is "),
    ("another row", {"id": GIVEN[3].id}, "id is "),
    ("another intent", {"intent": "order"}, "intent is 'order', the split says None"),
    ("fewer tokens", {"new_tokens": 1}, "new_tokens is 1, its tokens are "),
    ("no tokens", forged("", tokens=[], new_tokens=0), "its tokens are 0, an answer has 1 to 160"),
    ("too many tokens", forged("x" * 200), "its tokens are 201, an answer has 1 to 160"),
    ("no token ids", forged("ab", tokens=[-1, STOP], new_tokens=2), "its tokens are no token ids"),
    ("said to be cut", {"truncated": True}, f"truncated is True, but stop token {STOP} stands among its tokens"),
    ("cut too early", forged("ab", tokens=tokens("ab")[:2], new_tokens=2, truncated=True),
     "truncated is True, but its tokens are 2 of 160"),
    ("said to be complete", forged("x" * 160, tokens=tokens("x" * 160)[:-1], new_tokens=160),
     "truncated is False, but stop token "),
]


@pytest.mark.parametrize(("changes", "said"), [case[1:] for case in FORGERIES], ids=[case[0] for case in FORGERIES])
def test_a_row_that_does_not_follow_from_its_text_and_the_split_is_named(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check([*GIVEN[:4], GIVEN[4].model_copy(update=changes), GIVEN[5]])
    message = str(caught.value)
    assert message.startswith("predictions.jsonl:5: row ")
    assert said in message
    assert message.endswith("run `dvc repro --force evaluation`")
    assert "\n" not in message


def test_a_cut_answer_has_as_many_tokens_as_may_be_generated() -> None:
    cut = forged("x" * 160, tokens=tokens("x" * 160)[:-1], new_tokens=160, truncated=True)
    check([*GIVEN[:4], GIVEN[4].model_copy(update=cut), GIVEN[5]])


@pytest.mark.parametrize("given", [GIVEN[:5], [*GIVEN, GIVEN[5]], [GIVEN[1], GIVEN[0], *GIVEN[2:]]])
def test_other_rows_or_another_order_are_refused(given: list[Prediction]) -> None:
    with pytest.raises(InvalidInput, match=r"predictions\.jsonl"):
        check(given)


CLAIMS: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda c: c.update(rows=5), "rows is 5, the answers give 6"),
    (lambda c: c["metrics"].update(bleu4=0.9), "metrics.bleu4 is 0.9, the answers give 0.5"),
    (lambda c: c["metrics"].pop("bleu4"), "metrics.bleu4 is None"),
    (lambda c: c["metrics"].update(bleu4=0.5 + 2e-9), "metrics.bleu4"),
]


@pytest.mark.parametrize(("change", "said"), CLAIMS)
def test_a_claim_that_the_answers_do_not_give_is_named_by_its_key(change: Callable[[dict[str, Any]], object],
                                                                   said: str) -> None:
    true = {"rows": 6, "metrics": {"bleu4": 0.5}}
    claimed = {"rows": 6, "metrics": {"bleu4": 0.5}}
    change(claimed)
    with pytest.raises(InvalidInput, match=said):
        check_scores(Path("report.json"), claimed, true)


def test_the_last_bit_of_a_logarithm_is_no_difference() -> None:
    assert list(disagreements({"bleu4": 0.5 + 1e-12}, {"bleu4": 0.5})) == []
