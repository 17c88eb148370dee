from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from src.core.errors import InvalidInput
from src.core.records import digest_of
from src.data.rows import parse_rows
from src.evaluation.predictions import rows_to_verify, score_contract
from tests.fakes import tiny_model

Rows = list[dict[str, Any]]
SPLIT = Path("evaluation.jsonl")

BAD_ROWS: dict[str, tuple[Callable[[Rows], object], str]] = {
    "none": (lambda rows: rows.clear(), "no rows to evaluate"),
    "given_twice": (lambda rows: rows.append(rows[0]), "is given twice"),
    "foreign_id": (lambda rows: rows[1].update(id="0" * 16), "evaluation.jsonl:2: id 0000000000000000 is not the hash"),
    "no_answer": (lambda rows: rows[2]["messages"].pop(), "evaluation.jsonl:3: does not end with an assistant's"),
    "one_message": (lambda rows: rows[0].update(messages=rows[0]["messages"][:1]), "evaluation.jsonl:1: messages"),
    "no_id": (lambda rows: rows[0].pop("id"), "evaluation.jsonl:1: id: required key is missing"),
}


@pytest.mark.parametrize(("spoil", "message"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_split_that_cannot_be_scored_is_refused(spoil: Callable[[Rows], object], message: str) -> None:
    objects = tiny_model.row_objects()
    spoil(objects)
    with pytest.raises(InvalidInput, match=message):
        parse_rows(objects, where=SPLIT, max_rows=0)


def test_an_answer_of_blanks_alone_is_no_reference() -> None:
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "  "}]
    with pytest.raises(InvalidInput, match="does not end with an assistant's answer"):
        parse_rows([{"id": digest_of(chat)[:16], "intent": None, "messages": chat}], where=SPLIT, max_rows=0)


def test_the_first_rows_are_scored_where_a_maximum_is_set() -> None:
    assert [row.id for row in parse_rows(tiny_model.row_objects(), where=SPLIT, max_rows=2)] == [
        row.id for row in tiny_model.rows()[:2]]


def test_the_contract_covers_prompts_order_decoding_tokenizer_and_nothing_else() -> None:
    rows = tiny_model.rows()
    contract = score_contract(rows, max_new_tokens=12, tokenizer="13a")
    chat = tiny_model.row_objects()[0]["messages"]
    assert isinstance(chat, list)
    system = [{"role": "system", "content": "Be kind."}, *chat[1:]]
    other = parse_rows([{"id": digest_of(system)[:16], "intent": "order", "messages": system}], where=SPLIT, max_rows=0)
    changed = [[*other, *rows[1:]], rows[::-1], rows[:-1]]
    digests = {score_contract(each, max_new_tokens=12, tokenizer="13a").digest() for each in changed}
    digests.add(score_contract(rows, max_new_tokens=13, tokenizer="13a").digest())
    digests.add(score_contract(rows, max_new_tokens=12, tokenizer="intl").digest())
    assert len(digests | {contract.digest()}) == 6
    assert score_contract([row.model_copy(update={"intent": None}) for row in rows], max_new_tokens=12,
                          tokenizer="13a") == contract


def test_the_rows_that_contribute_most_are_verified_and_as_many_drawn_ones() -> None:
    found = rows_to_verify([0.1, 0.5, -0.2, 0.5, 0.3], [3, 2, 0, 4, 1], 2)
    assert (found.largest, found.drawn, found.places) == ([1, 3], [2, 0], [0, 1, 2, 3])


def test_of_few_rows_all_are_verified() -> None:
    found = rows_to_verify([0.1, 0.5, 0.2], [2, 1, 0], 16)
    assert (found.largest, found.drawn) == ([1, 2, 0], [])
