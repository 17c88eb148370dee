"""Answers of a model: in batches as one at a time, ended as they should be, and in as little memory as there is."""

import copy
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from accelerate.utils import get_max_memory
from transformers import GenerationConfig

from src.core.errors import InvalidInput, InvalidParams
from src.evaluation import generation
from src.evaluation.predictions import AnsweredBatch, GeneratedAnswer
from src.models import merging, placement
from tests.fakes import tiny_model

Loaded = tuple[merging.Model, merging.Tokenizer]
ROWS = 1200
REFUSED = f"""
import json, logging, re, resource, sys
from pathlib import Path
from src.evaluation import generation
from src.models import merging, placement
from tests.fakes import tiny_model
logging.basicConfig(stream=sys.stderr)
model, tokenizer = merging.load(Path(sys.argv[1]), "float32")
placement.fit_threads(model)
generation.set_greedy(model, tokenizer, max_new_tokens=3)
prompts = [generation.prompt_tokens(tokenizer, row.prompt()) for row in tiny_model.rows()] * ({ROWS} // 6)
expected, _ = generation.generate(model, prompts[:6], size=6)
used = 1024 * int(re.search(r"VmSize:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
resource.setrlimit(resource.RLIMIT_AS, (used + 60 * 1000**2, resource.RLIM_INFINITY))
answers, size = generation.generate(model, prompts, size={ROWS})
print(json.dumps([answers == expected * ({ROWS} // 6), size]))
"""


@pytest.fixture(scope="module")
def loaded(base: Path) -> Loaded:
    return merging.load(base, "float32")


@pytest.fixture
def greedy(loaded: Loaded) -> Loaded:
    model, tokenizer = loaded
    model.generation_config = GenerationConfig(eos_token_id=2)
    generation.set_greedy(model, tokenizer, max_new_tokens=12)
    return loaded


def prompts() -> list[list[dict[str, str]]]:
    return [row.prompt() for row in tiny_model.rows()]


def single(model: merging.Model, tokenizer: merging.Tokenizer) -> list[GeneratedAnswer]:
    """Each prompt on its own, by the library alone."""
    stops, answers = set(model.generation_config.eos_token_id), []
    for prompt in prompts():
        tokens = generation.prompt_tokens(tokenizer, prompt)
        [found] = model.generate(torch.tensor([tokens]), attention_mask=torch.ones(1, len(tokens), dtype=torch.long))
        answers.append(generation.as_answer(tokenizer, found[len(tokens):].tolist(), stops))
    return answers


@pytest.mark.parametrize("tokens", [1, 200, 300, 100_000])
def test_batched_answers_are_those_of_single_prompts_in_the_order_of_the_rows(tokens: int, greedy: Loaded) -> None:
    expected = single(*greedy)
    assert generation.answer(*greedy, prompts(), tokens_per_batch=tokens) == expected
    assert len({answer.text for answer in expected}) == len(expected)


def test_answers_that_end_leave_the_batch_and_the_others_stay_as_they_are(greedy: Loaded) -> None:
    model, _ = greedy
    model.generation_config.max_new_tokens = 40
    # Each prompt stops where its own answer brings one of these first: at six different lengths.
    tokens = [answer.tokens for answer in single(*greedy)]
    model.generation_config.eos_token_id = sorted({2, *(row[4 + 5 * place] for place, row in enumerate(tokens))})
    expected = single(*greedy)
    with mock.patch.object(model, "forward", autospec=True, side_effect=model.forward) as forward:
        assert generation.answer(*greedy, prompts(), tokens_per_batch=100_000) == expected
    rows = [len(call.kwargs["input_ids"]) for call in forward.call_args_list]
    lengths = [len(answer.tokens) for answer in expected]
    assert len(set(lengths)) > 2
    assert rows == [sum(length > step for length in lengths) for step in range(max(lengths))]


def test_a_batch_holds_what_the_token_budget_allows_and_similar_prompts() -> None:
    assert generation.plan([5, 30, 10, 30, 9], tokens_per_batch=80, max_new_tokens=10) == [[1, 3], [2, 4, 0]]
    assert generation.plan([70, 5, 100], tokens_per_batch=80, max_new_tokens=10) == [[2], [0], [1]]
    assert generation.plan([], tokens_per_batch=80, max_new_tokens=10) == []


def test_batches_that_were_answered_are_not_generated_again(greedy: Loaded) -> None:
    model, tokenizer = greedy
    encoded = [generation.prompt_tokens(tokenizer, prompt) for prompt in prompts()]
    batches = generation.plan([len(prompt) for prompt in encoded], tokens_per_batch=150, max_new_tokens=12)
    kept: list[AnsweredBatch] = []
    whole = generation.run(model, encoded, batches, done=[], keep=kept.append)
    assert [batch.places for batch in kept] == batches
    again: list[AnsweredBatch] = []
    assert generation.run(model, encoded, batches, done=kept[1:], keep=again.append) == whole
    assert again == kept[:1]
    shared = [generation.run(model, encoded, batches[rank::2], done=[], keep=again.append) for rank in (0, 1)]
    assert shared[0] | shared[1] == whole


@pytest.mark.parametrize(("change", "value"), [("identity", "b"), ("contract", "b"), ("tokens_per_batch", 2)])
def test_answers_of_another_model_contract_or_plan_have_another_fingerprint(
    change: str, value: Any, greedy: Loaded
) -> None:
    usual: dict[str, Any] = {"identity": "a", "contract": "a", "tokens_per_batch": 1}
    known = generation.fingerprint(greedy[0], **usual)
    assert generation.fingerprint(greedy[0], **usual) == known
    assert generation.fingerprint(greedy[0], **{**usual, change: value}) != known


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads_are_in_the_fingerprint_where_their_rounding_may_show(
    dtype: torch.dtype, loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = copy.deepcopy(loaded[0]).to(dtype)
    found = set()
    for threads in (1, 2):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        found.add(generation.fingerprint(model, "a", "a", tokens_per_batch=1))
    assert len(found) == (1 if dtype == torch.float32 else 2)


def test_an_answer_ends_with_the_stop_token_or_is_truncated(greedy: Loaded) -> None:
    model, tokenizer = greedy
    [whole] = generation.answer(model, tokenizer, prompts()[:1], tokens_per_batch=1)
    assert whole.truncated
    assert len(whole.tokens) == 12
    model.generation_config.eos_token_id = [2, whole.tokens[3]]
    [stopped, *_] = generation.answer(model, tokenizer, prompts(), tokens_per_batch=1000)
    assert stopped.tokens == whole.tokens[: whole.tokens.index(whole.tokens[3]) + 1]
    assert not stopped.truncated
    model.generation_config.max_new_tokens = len(stopped.tokens)  # the stop token stands on the last place
    assert generation.answer(model, tokenizer, prompts()[:1], tokens_per_batch=1) == [stopped]


def test_special_tokens_and_outer_blanks_are_no_part_of_an_answer(greedy: Loaded) -> None:
    written = [*greedy[1]("  Where is it? \n")["input_ids"], 2]
    answer = generation.as_answer(greedy[1], written, {2})
    assert (answer.text, answer.tokens, answer.truncated) == ("Where is it?", written, False)


@pytest.mark.parametrize("asked", [{"num_beams": 2}, {"repetition_penalty": 1.3}, {"min_new_tokens": 3},
                                   {"max_new_tokens": None}, {"eos_token_id": None}], ids=str)
def test_settings_whose_result_would_depend_on_the_batches_are_refused(asked: dict[str, Any], greedy: Loaded) -> None:
    greedy[0].generation_config.update(**asked)
    with pytest.raises(InvalidInput, match="call set_greedy first"):
        generation.generate(greedy[0], [[5, 6]], size=1)


def test_greedy_settings_keep_every_stop_token_and_drop_the_rest(greedy: Loaded) -> None:
    model, tokenizer = greedy
    model.generation_config.update(eos_token_id=[7, 9], temperature=0.3, do_sample=True, max_length=2048)
    generation.set_greedy(model, tokenizer, max_new_tokens=5)
    found = model.generation_config.to_diff_dict()
    found.pop("transformers_version")
    assert {name: value for name, value in found.items() if value is not None} == {
        "bos_token_id": 1, "do_sample": False, "eos_token_id": [2, 7, 9], "max_new_tokens": 5, "pad_token_id": 0}


def test_a_tokenizer_without_pad_token_is_padded_with_a_stop_token(tmp_path: Path) -> None:
    tiny_model.write_base(tmp_path)
    tiny_model.edit_json(tmp_path / "tokenizer_config.json", pad_token=None)
    model, tokenizer = merging.load(tmp_path, "float32")
    assert tokenizer.pad_token is None
    generation.set_greedy(model, tokenizer, max_new_tokens=4)
    assert generation.answer(model, tokenizer, prompts(), tokens_per_batch=1000) == single(model, tokenizer)


def test_a_model_without_any_stop_token_is_refused(greedy: Loaded) -> None:
    model, tokenizer = greedy[0], copy.deepcopy(greedy[1])
    model.generation_config.eos_token_id = tokenizer.eos_token = None
    with pytest.raises(InvalidInput, match="no end-of-turn token"):
        generation.set_greedy(model, tokenizer, max_new_tokens=5)


def test_prompts_that_leave_no_room_in_the_context_are_told(greedy: Loaded, caplog: pytest.LogCaptureFixture) -> None:
    long = [{"role": "user", "content": "x?z " * 100}]
    with caplog.at_level(logging.WARNING):
        generation.answer(*greedy, [long, prompts()[0]], tokens_per_batch=1)
    assert "1 of 2 prompts leave less than 12 tokens of the context of 256" in caplog.text


def test_progress_is_logged_now_and_then_off_a_terminal(
    greedy: Loaded, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "_LOG_SECONDS", 0)
    with caplog.at_level(logging.INFO):
        generation.answer(*greedy, prompts()[:3], tokens_per_batch=148)
    assert [record.message for record in caplog.records] == ["generated 2 of 3 answers", "generated 3 of 3 answers"]


@pytest.fixture
def stopping(base: Path) -> merging.Model:
    """Every token is a stop token, so that an answer of any limit is one token long."""
    model, tokenizer = merging.load(base, "float32")
    model.generation_config = GenerationConfig(eos_token_id=list(range(300)))
    generation.set_greedy(model, tokenizer, max_new_tokens=1)
    return model


def limit_for(rows: int) -> int:
    """The max_new_tokens for which keys and values of so many rows just need the free memory of this machine."""
    bytes_per_token = 2 * 2 * 32 * 4  # keys and values, layers, hidden size, float32
    return int(get_max_memory()["cpu"] / (rows * bytes_per_token))


def test_memory_that_is_refused_halves_the_batch_and_changes_no_answer(base: Path) -> None:
    done = subprocess.run([sys.executable, "-c", REFUSED, base], check=False, capture_output=True, text=True,
                          cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    same, size = json.loads(done.stdout)
    assert same
    assert 1 < size <= ROWS // 2
    assert f"generating {ROWS // 2} answers at a time" in done.stderr


def test_room_that_full_answers_would_lack_halves_the_batch_before_linux_kills(
    stopping: merging.Model, caplog: pytest.LogCaptureFixture
) -> None:
    prompts = [[5, 6, 7]] * 8
    stopping.generation_config.max_new_tokens = limit_for(6)
    answers, size = generation.generate(stopping, prompts, size=8)
    assert [len(answer) for answer in answers] == [1] * 8
    assert size == 4
    assert [record.message for record in caplog.records] == ["not enough memory: generating 4 answers at a time"]


def test_each_process_counts_on_its_share_of_the_room(stopping: merging.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    stopping.generation_config.max_new_tokens = limit_for(6)
    monkeypatch.setattr(placement.state(), "num_processes", 2)
    _, size = generation.generate(stopping, [[5, 6, 7]] * 8, size=8)
    assert size == 2


def test_where_not_even_one_answer_fits_it_says_what_to_change(stopping: merging.Model) -> None:
    stopping.generation_config.max_new_tokens = 4 * limit_for(1)
    with pytest.raises(InvalidParams, match="not even one answer at a time fits the memory; lower"):
        generation.generate(stopping, [[5, 6, 7]] * 2, size=2)
