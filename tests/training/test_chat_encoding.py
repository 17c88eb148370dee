"""Conversations as training examples: what is learnt, what is cut, and what is left out."""

import logging
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from src.core.errors import InvalidInput
from src.evaluation.generation import prompt_tokens
from src.training.encoding import IGNORED, encode, encode_all
from tests.fakes.tiny_model import TEMPLATE

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where is my order?"},
        {"role": "assistant", "content": "On its way."}]
TWO_TURNS = [*CHAT, {"role": "user", "content": "When?"}, {"role": "assistant", "content": "Soon."}]
# What models in use do: a line break after the end of the turn, words that join the prompt's last space.
LINE_AFTER_END = TEMPLATE.replace("{{ eos_token }}", "{{ eos_token + '\n' }}")
JOINING = ("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{{ eos_token }}{% endfor %}"
           "{% if add_generation_prompt %}assistant: {% endif %}")
FORGETFUL = ("{% for m in messages %}{% if loop.last or not add_generation_prompt %}{{ m['content'] }}{% endif %}"
             "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}")


@pytest.fixture
def tokenizer(base: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(base)


def encoded(chat: list[dict[str, str]], tokenizer: PreTrainedTokenizerBase, *, stops: set[int], limit: int = 500
            ) -> dict[str, list[int]]:
    """The example of a conversation that is not left out."""
    example = encode(chat, tokenizer, stops=stops, limit=limit)
    assert example is not None
    return example


def learnt(tokenizer: PreTrainedTokenizerBase, example: dict[str, list[int]]) -> str:
    """What the labels spell; every one of them must be the token at its place."""
    pairs = list(zip(example["input_ids"], example["labels"], strict=True))
    assert all(label in (IGNORED, token) for token, label in pairs)
    return str(tokenizer.decode([label for _, label in pairs if label != IGNORED], clean_up_tokenization_spaces=False))


@pytest.mark.parametrize("template", [TEMPLATE, LINE_AFTER_END, JOINING])
def test_the_last_answer_and_the_end_of_its_turn_are_learnt_after_the_prompt_of_generation(
    tokenizer: PreTrainedTokenizerBase, template: str
) -> None:
    tokenizer.chat_template = template
    example = encoded(TWO_TURNS, tokenizer, stops={tokenizer.eos_token_id})
    prompt = prompt_tokens(tokenizer, TWO_TURNS[:-1])
    assert learnt(tokenizer, example) == "Soon.</s>"
    assert example["input_ids"][: len(prompt)] == prompt
    assert example["labels"].count(IGNORED) == len(prompt)


@pytest.mark.parametrize(("end", "answer"), [("\n", "On its way.\n</s>"), ("<s>\n", "On its way.<s>")])
def test_an_end_of_turn_that_the_template_lacks_is_added_and_another_stop_token_ends_it_too(
    tokenizer: PreTrainedTokenizerBase, end: str, answer: str
) -> None:
    tokenizer.chat_template = TEMPLATE.replace("{{ eos_token }}", end)
    example = encoded(CHAT, tokenizer, stops={tokenizer.eos_token_id, tokenizer.bos_token_id})
    assert learnt(tokenizer, example) == answer


def test_a_template_that_rewrites_the_prompt_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = FORGETFUL
    with pytest.raises(InvalidInput, match="a conversation does not begin with its prompt"):
        encode(CHAT, tokenizer, stops={tokenizer.eos_token_id}, limit=500)


def test_a_long_answer_is_cut_at_its_end_and_then_does_not_stop(tokenizer: PreTrainedTokenizerBase) -> None:
    limit = len(prompt_tokens(tokenizer, CHAT[:-1])) + 4
    example = encoded(CHAT, tokenizer, stops={tokenizer.eos_token_id}, limit=limit)
    assert len(example["input_ids"]) == len(example["labels"]) == limit
    assert "On its way.</s>".startswith(learnt(tokenizer, example))
    assert tokenizer.eos_token_id not in example["labels"]


def test_a_prompt_without_room_for_an_answer_is_left_out(tokenizer: PreTrainedTokenizerBase) -> None:
    prompt = prompt_tokens(tokenizer, CHAT[:-1])
    assert encode(CHAT, tokenizer, stops=set(), limit=len(prompt)) is None
    assert encode(CHAT, tokenizer, stops=set(), limit=len(prompt) + 1) is not None


def test_rows_left_out_and_answers_cut_are_counted(
    tokenizer: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture
) -> None:
    limit = len(prompt_tokens(tokenizer, CHAT[:-1])) + 2
    with caplog.at_level(logging.WARNING, logger="src"):
        examples = encode_all([CHAT, TWO_TURNS], tokenizer, stops={tokenizer.eos_token_id}, limit=limit, what="train")
    assert len(examples) == 1
    assert caplog.messages == [
        f"train: 1 of 2 rows left out, their prompts alone reach {limit} tokens; 1 answers cut there"]


def test_no_row_with_room_for_an_answer_is_an_error(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(InvalidInput, match=r"validation split: none of 1 prompts is shorter than 16 tokens; raise"):
        encode_all([CHAT], tokenizer, stops={tokenizer.eos_token_id}, limit=16, what="validation")
