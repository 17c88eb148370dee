import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from src import evaluation, merging
from src.errors import InvalidInput
from src.predictions import parse_rows, score_contract, spread
from src.records import digest_of
from tests import tiny_model

SPLIT = Path("evaluation.jsonl")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[merging.Model, merging.Tokenizer]:
    folder = tmp_path_factory.mktemp("base")
    tiny_model.write_base(folder)
    return merging.load(folder, "float32")


@pytest.fixture
def greedy(loaded: tuple[merging.Model, merging.Tokenizer]) -> tuple[merging.Model, merging.Tokenizer]:
    model, tokenizer = loaded
    model.generation_config.eos_token_id = 2
    evaluation.set_greedy(model, tokenizer, max_new_tokens=12)
    return loaded


def prompts() -> list[list[dict[str, str]]]:
    return [row.prompt() for row in tiny_model.rows()]


# --- rows and contract

BAD_ROWS: dict[str, tuple[Callable[[list[dict[str, Any]]], object], str]] = {
    "none": (lambda rows: rows.clear(), "no rows to evaluate"),
    "given_twice": (lambda rows: rows.append(rows[0]), "is given twice"),
    "foreign_id": (lambda rows: rows[1].update(id="0" * 16), "evaluation.jsonl:2: id 0000000000000000 is not the hash"),
    "no_answer": (lambda rows: rows[2]["messages"].pop(), "evaluation.jsonl:3: does not end with an assistant's"),
    "one_message": (lambda rows: rows[0].update(messages=rows[0]["messages"][:1]), "evaluation.jsonl:1: messages"),
    "no_id": (lambda rows: rows[0].pop("id"), "evaluation.jsonl:1: id: required key is missing"),
}


@pytest.mark.parametrize(("spoil", "message"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_split_that_cannot_be_scored_is_refused(
    spoil: Callable[[list[dict[str, Any]]], object], message: str
) -> None:
    objects = tiny_model.row_objects()
    spoil(objects)
    with pytest.raises(InvalidInput) as caught:
        parse_rows(objects, where=SPLIT, max_rows=0)
    assert message in str(caught.value)


def test_an_answer_of_blanks_alone_is_no_reference() -> None:
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "  "}]
    with pytest.raises(InvalidInput, match="does not end with an assistant's answer"):
        parse_rows([{"id": digest_of(chat)[:16], "intent": None, "messages": chat}], where=SPLIT, max_rows=0)


def test_the_first_rows_are_scored_where_a_maximum_is_set() -> None:
    assert [row.id for row in parse_rows(tiny_model.row_objects(), where=SPLIT, max_rows=2)] == [
        row.id for row in tiny_model.rows()[:2]]


def test_the_contract_covers_prompts_order_decoding_and_nothing_else() -> None:
    rows = tiny_model.rows()
    contract = score_contract(rows, max_new_tokens=12)
    chat = tiny_model.row_objects()[0]["messages"]
    assert isinstance(chat, list)
    system = [{"role": "system", "content": "Be kind."}, *chat[1:]]
    other = parse_rows([{"id": digest_of(system)[:16], "intent": "order", "messages": system}], where=SPLIT, max_rows=0)
    changed = [[*other, *rows[1:]], rows[::-1], rows[:-1]]
    digests = {score_contract(each, max_new_tokens=12).digest() for each in changed}
    digests.add(score_contract(rows, max_new_tokens=13).digest())
    assert len(digests | {contract.digest()}) == 5
    assert score_contract([row.model_copy(update={"intent": None}) for row in rows], max_new_tokens=12) == contract


# --- answers


def test_batched_answers_are_those_of_single_prompts_in_the_order_of_the_rows(
    greedy: tuple[merging.Model, merging.Tokenizer]
) -> None:
    single = [evaluation.answer(*greedy, [prompt], batch_size=1)[0] for prompt in prompts()]
    assert evaluation.answer(*greedy, prompts(), batch_size=4) == single
    assert evaluation.answer(*greedy, prompts(), batch_size=99) == single
    assert len({answer.text for answer in single}) == len(single)


def test_an_answer_ends_with_the_stop_token_or_is_truncated(greedy: tuple[merging.Model, merging.Tokenizer]) -> None:
    model, tokenizer = greedy
    [whole] = evaluation.answer(model, tokenizer, prompts()[:1], batch_size=1)
    assert whole.truncated
    assert len(whole.tokens) == 12
    model.generation_config.eos_token_id = [2, whole.tokens[3]]
    [stopped, *_] = evaluation.answer(model, tokenizer, prompts(), batch_size=6)
    assert stopped.tokens == whole.tokens[: whole.tokens.index(whole.tokens[3]) + 1]
    assert not stopped.truncated


def test_a_stop_token_on_the_last_place_is_no_truncation(greedy: tuple[merging.Model, merging.Tokenizer]) -> None:
    model, tokenizer = greedy
    tokens = evaluation.answer(model, tokenizer, prompts()[:1], batch_size=1)[0].tokens
    model.generation_config.eos_token_id = [tokens[0]]
    model.generation_config.max_new_tokens = 1
    assert not evaluation.answer(model, tokenizer, prompts()[:1], batch_size=1)[0].truncated


def test_special_tokens_and_outer_blanks_are_no_part_of_an_answer(
    greedy: tuple[merging.Model, merging.Tokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = greedy
    written = [*tokenizer("  Where is it? \n")["input_ids"], 2, 0, 0]

    def generate(input_ids: Any, attention_mask: Any) -> Any:
        return input_ids.new_tensor([[*input_ids[0].tolist(), *written]])

    monkeypatch.setattr(model, "generate", generate)
    [answer] = evaluation.answer(model, tokenizer, prompts()[:1], batch_size=1)
    assert (answer.text, answer.tokens, answer.truncated) == ("Where is it?", written[:-2], False)


def test_greedy_settings_keep_every_stop_token_and_drop_the_rest(
    greedy: tuple[merging.Model, merging.Tokenizer]
) -> None:
    model, tokenizer = greedy
    model.generation_config.update(eos_token_id=[7, 9], temperature=0.3, do_sample=True, max_length=2048)
    evaluation.set_greedy(model, tokenizer, max_new_tokens=5)
    found = model.generation_config.to_diff_dict()
    found.pop("transformers_version")
    assert {name: value for name, value in found.items() if value is not None} == {
        "bos_token_id": 1, "do_sample": False, "eos_token_id": [2, 7, 9], "max_new_tokens": 5, "pad_token_id": 0}


def test_a_tokenizer_without_pad_token_is_padded_with_a_stop_token(tmp_path: Path) -> None:
    tiny_model.write_base(tmp_path)
    tiny_model.edit_json(tmp_path / "tokenizer_config.json", pad_token=None)
    model, tokenizer = merging.load(tmp_path, "float32")
    assert tokenizer.pad_token is None
    evaluation.set_greedy(model, tokenizer, max_new_tokens=4)
    single = [evaluation.answer(model, tokenizer, [prompt], batch_size=1)[0] for prompt in prompts()[:2]]
    assert evaluation.answer(model, tokenizer, prompts()[:2], batch_size=2) == single


def test_a_model_without_any_stop_token_is_refused(greedy: tuple[merging.Model, merging.Tokenizer]) -> None:
    model, tokenizer = greedy
    model.generation_config.eos_token_id = None
    eos, tokenizer.eos_token = tokenizer.eos_token, None
    try:
        with pytest.raises(InvalidInput, match="no end-of-turn token"):
            evaluation.set_greedy(model, tokenizer, max_new_tokens=5)
    finally:
        tokenizer.eos_token = eos


def test_prompts_that_leave_no_room_in_the_context_are_counted(
    greedy: tuple[merging.Model, merging.Tokenizer], caplog: pytest.LogCaptureFixture
) -> None:
    long = [{"role": "user", "content": "x?z " * 100}]
    with caplog.at_level(logging.WARNING):
        evaluation.answer(*greedy, [long, prompts()[0]], batch_size=1)
    assert "1 of 2 prompts leave less than 12 tokens of the context of 256" in caplog.text


def test_progress_is_logged_now_and_then_off_a_terminal(
    greedy: tuple[merging.Model, merging.Tokenizer], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "_LOG_SECONDS", 0)
    with caplog.at_level(logging.INFO):
        evaluation.answer(*greedy, prompts()[:3], batch_size=2)
    assert [record.message for record in caplog.records] == ["generated 2 of 3 answers", "generated 3 of 3 answers"]


def test_verified_rows_are_spread_over_all_predictions() -> None:
    assert spread(range(20), 4) == [0, 5, 10, 15]
    assert spread(range(3), 99) == [0, 1, 2]
