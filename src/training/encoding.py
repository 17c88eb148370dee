"""Conversations as training examples: the tokens of the chat template, with labels on the answer only. No torch."""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from src.errors import InvalidInput

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

IGNORED = -100  # the label that torch's cross entropy leaves out

Conversation = Sequence[dict[str, str]]
Example = dict[str, list[int]]  # input_ids and labels, of equal length


def encode_all(
    rows: Sequence[Conversation], tokenizer: "PreTrainedTokenizerBase", *, stops: set[int], limit: int, what: str
) -> list[Example]:
    """Every row as `encode` sees it; rows without room for an answer are left out, and a warning counts them.

    `what` names the rows in messages. Raises InvalidInput where none is left.
    """
    encoded = [encode(row, tokenizer, stops=stops, limit=limit) for row in rows]
    examples = [example for example in encoded if example is not None]
    cut = sum(len(example["labels"]) == limit and example["labels"][-1] not in stops for example in examples)
    if len(examples) < len(rows) or cut:
        logger.warning("%s: %d of %d rows left out, their prompts alone reach %d tokens; %d answers cut there",
                       what, len(rows) - len(examples), len(rows), limit, cut)
    if not examples:
        raise InvalidInput(f"{what} split: none of {len(rows)} prompts is shorter than {limit} tokens; "
                           "raise fine_tuning.max_length or shorten data.system_prompt")
    return examples


def encode(
    conversation: Conversation, tokenizer: "PreTrainedTokenizerBase", *, stops: set[int], limit: int
) -> Example | None:
    """A conversation by the chat template, with labels on the last answer and the token that ends its turn.

    The prompt is tokenised as generation does it. What the template puts after the end of the turn is not learnt. At
    most `limit` tokens: a longer answer is cut at its end; None where the prompt alone leaves no room for one.
    """
    prompt = _tokens(tokenizer, conversation[:-1])
    whole = _tokens(tokenizer, conversation)
    answer = whole[len(prompt):] if whole[: len(prompt)] == prompt else _answer_by_text(tokenizer, conversation)
    last = max((place for place, token in enumerate(answer) if token in stops), default=None)
    answer = [*answer, tokenizer.eos_token_id] if last is None else answer[: last + 1]
    if len(prompt) >= limit:
        return None
    return {"input_ids": (prompt + answer)[:limit], "labels": ([IGNORED] * len(prompt) + answer)[:limit]}


def _tokens(tokenizer: "PreTrainedTokenizerBase", turns: Conversation) -> list[int]:
    ends_open = turns[-1]["role"] != "assistant"
    encoded = tokenizer.apply_chat_template(list(turns), add_generation_prompt=ends_open, return_dict=True)
    return list(encoded["input_ids"])


def _answer_by_text(tokenizer: "PreTrainedTokenizerBase", conversation: Conversation) -> list[int]:
    """For tokenizers that join the prompt's last characters with the answer's first ones."""
    prompt = tokenizer.apply_chat_template(list(conversation[:-1]), add_generation_prompt=True, tokenize=False)
    whole = tokenizer.apply_chat_template(list(conversation), tokenize=False)
    if not whole.startswith(prompt):
        raise InvalidInput(f"{tokenizer.name_or_path}: by its chat template a conversation does not begin with its "
                           "prompt, so the answer cannot be told apart; choose another base or template")
    return list(tokenizer(whole[len(prompt):], add_special_tokens=False)["input_ids"])
