import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from src.core.errors import InvalidInput
from src.evaluation import generation
from src.evaluation import generation as evaluation
from src.evaluation.predictions import Answer, AnsweredBatch
from src.models import merging
from tests.fakes import tiny_model


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[merging.Model, merging.Tokenizer]:
    folder = tmp_path_factory.mktemp("base")
    tiny_model.write_base(folder)
    return merging.load(folder, "float32")


@pytest.fixture
def greedy(loaded: tuple[merging.Model, merging.Tokenizer]) -> tuple[merging.Model, merging.Tokenizer]:
    model, tokenizer = loaded
    model.generation_config = GenerationConfig(eos_token_id=2)
    evaluation.set_greedy(model, tokenizer, max_new_tokens=12)
    return loaded


def prompts() -> list[list[dict[str, str]]]:
    return [row.prompt() for row in tiny_model.rows()]


def single(model: merging.Model, tokenizer: merging.Tokenizer) -> list[Answer]:
    """Each prompt on its own, by the library alone."""
    stops, answers = set(model.generation_config.eos_token_id), []
    for prompt in prompts():
        tokens = evaluation.prompt_tokens(tokenizer, prompt)
        [found] = model.generate(torch.tensor([tokens]), attention_mask=torch.ones(1, len(tokens), dtype=torch.long))
        answers.append(evaluation.as_answer(tokenizer, found[len(tokens):].tolist(), stops))
    return answers


@pytest.mark.parametrize("tokens", [1, 200, 300, 100_000])
def test_batched_answers_are_those_of_single_prompts_in_the_order_of_the_rows(
    tokens: int, greedy: tuple[merging.Model, merging.Tokenizer]
) -> None:
    expected = single(*greedy)
    assert evaluation.answer(*greedy, prompts(), tokens_per_batch=tokens) == expected
    assert len({answer.text for answer in expected}) == len(expected)


def test_answers_that_end_leave_the_batch_and_the_others_stay_as_they_are(
    greedy: tuple[merging.Model, merging.Tokenizer]
) -> None:
    model, _ = greedy
    model.generation_config.max_new_tokens = 40
    # Each prompt stops where its own answer brings one of these first: at six different lengths.
    tokens = [answer.tokens for answer in single(*greedy)]
    model.generation_config.eos_token_id = sorted({2, *(row[4 + 5 * place] for place, row in enumerate(tokens))})
    expected, rows = single(*greedy), []
    seen = model.forward

    def forward(*arguments: Any, **named: Any) -> Any:
        rows.append(named["input_ids"].shape[0])
        return seen(*arguments, **named)

    model.forward = forward
    try:
        assert evaluation.answer(*greedy, prompts(), tokens_per_batch=100_000) == expected
    finally:
        del model.forward
    lengths = [len(answer.tokens) for answer in expected]
    assert len(set(lengths)) > 2
    assert rows == [sum(length > step for length in lengths) for step in range(max(lengths))]


def test_a_batch_holds_what_the_token_budget_allows_and_similar_prompts() -> None:
    assert evaluation.plan([5, 30, 10, 30, 9], tokens_per_batch=80, max_new_tokens=10) == [[1, 3], [2, 4, 0]]
    assert evaluation.plan([70, 5, 100], tokens_per_batch=80, max_new_tokens=10) == [[2], [0], [1]]
    assert evaluation.plan([], tokens_per_batch=80, max_new_tokens=10) == []


def test_batches_that_were_answered_are_not_generated_again(greedy: tuple[merging.Model, merging.Tokenizer]) -> None:
    model, tokenizer = greedy
    encoded = [evaluation.prompt_tokens(tokenizer, prompt) for prompt in prompts()]
    batches = evaluation.plan([len(prompt) for prompt in encoded], tokens_per_batch=150, max_new_tokens=12)
    kept: list[AnsweredBatch] = []
    whole = evaluation.run(model, encoded, batches, done=[], keep=kept.append)
    assert [batch.places for batch in kept] == batches
    again: list[AnsweredBatch] = []
    assert evaluation.run(model, encoded, batches, done=kept[1:], keep=again.append) == whole
    assert again == kept[:1]
    shared = [evaluation.run(model, encoded, batches[rank::2], done=[], keep=again.append) for rank in (0, 1)]
    assert shared[0] | shared[1] == whole


@pytest.mark.parametrize(("change", "value"), [("identity", "b"), ("contract", "b"), ("tokens_per_batch", 2)])
def test_answers_of_another_model_contract_or_plan_have_another_fingerprint(
    change: str, value: Any, greedy: tuple[merging.Model, merging.Tokenizer]
) -> None:
    usual: dict[str, Any] = {"identity": "a", "contract": "a", "tokens_per_batch": 1}
    known = evaluation.fingerprint(greedy[0], **usual)
    assert evaluation.fingerprint(greedy[0], **usual) == known
    assert evaluation.fingerprint(greedy[0], **{**usual, change: value}) != known


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads_are_in_the_fingerprint_where_their_rounding_may_show(
    dtype: torch.dtype, loaded: tuple[merging.Model, merging.Tokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = copy.deepcopy(loaded[0]).to(dtype)
    found = set()
    for threads in (1, 2):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        found.add(evaluation.fingerprint(model, "a", "a", tokens_per_batch=1))
    assert len(found) == (1 if dtype == torch.float32 else 2)


def test_an_answer_ends_with_the_stop_token_or_is_truncated(greedy: tuple[merging.Model, merging.Tokenizer]) -> None:
    model, tokenizer = greedy
    [whole] = evaluation.answer(model, tokenizer, prompts()[:1], tokens_per_batch=1)
    assert whole.truncated
    assert len(whole.tokens) == 12
    model.generation_config.eos_token_id = [2, whole.tokens[3]]
    [stopped, *_] = evaluation.answer(model, tokenizer, prompts(), tokens_per_batch=1000)
    assert stopped.tokens == whole.tokens[: whole.tokens.index(whole.tokens[3]) + 1]
    assert not stopped.truncated


def test_a_stop_token_on_the_last_place_is_no_truncation(greedy: tuple[merging.Model, merging.Tokenizer]) -> None:
    model, tokenizer = greedy
    tokens = evaluation.answer(model, tokenizer, prompts()[:1], tokens_per_batch=1)[0].tokens
    model.generation_config.eos_token_id = [tokens[0]]
    model.generation_config.max_new_tokens = 1
    assert not evaluation.answer(model, tokenizer, prompts()[:1], tokens_per_batch=1)[0].truncated


def test_special_tokens_and_outer_blanks_are_no_part_of_an_answer(
    greedy: tuple[merging.Model, merging.Tokenizer]
) -> None:
    written = [*greedy[1]("  Where is it? \n")["input_ids"], 2]
    answer = evaluation.as_answer(greedy[1], written, {2})
    assert (answer.text, answer.tokens, answer.truncated) == ("Where is it?", written, False)


@pytest.mark.parametrize("asked", [{"num_beams": 2}, {"repetition_penalty": 1.3}, {"min_new_tokens": 3},
                                   {"max_new_tokens": None}, {"eos_token_id": None}], ids=str)
def test_settings_whose_result_would_depend_on_the_batches_are_refused(
    asked: dict[str, Any], greedy: tuple[merging.Model, merging.Tokenizer]
) -> None:
    greedy[0].generation_config.update(**asked)
    with pytest.raises(InvalidInput, match="call set_greedy first"):
        generation.generate(greedy[0], [[5, 6]], size=1)


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
    assert evaluation.answer(model, tokenizer, prompts(), tokens_per_batch=1000) == single(model, tokenizer)


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
        evaluation.answer(*greedy, [long, prompts()[0]], tokens_per_batch=1)
    assert "1 of 2 prompts leave less than 12 tokens of the context of 256" in caplog.text


def test_progress_is_logged_now_and_then_off_a_terminal(
    greedy: tuple[merging.Model, merging.Tokenizer], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "_LOG_SECONDS", 0)
    with caplog.at_level(logging.INFO):
        evaluation.answer(*greedy, prompts()[:3], tokens_per_batch=148)
    assert [record.message for record in caplog.records] == ["generated 2 of 3 answers", "generated 3 of 3 answers"]
