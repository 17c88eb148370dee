"""Encode conversations as training examples, with labels on the answers only, and pack them into batches."""

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from src.core.errors import InvalidInput

logger = logging.getLogger(__name__)
IGNORED = -100  # the label that torch's cross entropy ignores
Conversation = Sequence[dict[str, str]]
Example = dict[str, list[int]]  # input_ids and labels, of equal length
Batch = dict[str, torch.Tensor | bool]


def encode_all(rows: Sequence[Conversation], tokenizer: PreTrainedTokenizerBase, *, stops: Collection[int], limit: int,
               what: str) -> list[Example]:
    """Encode every row. Rows whose prompt leaves no room for an answer are left out, and a warning counts them.

    `what` names the rows in messages. Raises InvalidInput if no row is left.
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


def encode(conversation: Conversation, tokenizer: PreTrainedTokenizerBase, *, stops: Collection[int],
           limit: int) -> Example | None:
    """Encode a conversation by the chat template, with labels on the last answer and its end-of-turn token.

    The prompt is tokenised as in generation. Tokens that the template adds after the end of the turn are left out. The
    result has at most `limit` tokens: a longer answer is cut. None if the prompt leaves no room for an answer.
    """
    prompt = _tokens(tokenizer, conversation[:-1])
    whole = _tokens(tokenizer, conversation)
    answer = whole[len(prompt):] if whole[: len(prompt)] == prompt else _answer_by_text(tokenizer, conversation)
    last = max((place for place, token in enumerate(answer) if token in stops), default=None)
    answer = [*answer, tokenizer.eos_token_id] if last is None else answer[: last + 1]
    if len(prompt) >= limit:
        return None
    return {"input_ids": (prompt + answer)[:limit], "labels": ([IGNORED] * len(prompt) + answer)[:limit]}


def _tokens(tokenizer: PreTrainedTokenizerBase, turns: Conversation) -> list[int]:
    ends_open = turns[-1]["role"] != "assistant"
    encoded = tokenizer.apply_chat_template(list(turns), add_generation_prompt=ends_open, return_dict=True)
    return list(encoded["input_ids"])


def _answer_by_text(tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> list[int]:
    """The answer's tokens, for tokenizers that join the end of the prompt with the start of the answer."""
    prompt = tokenizer.apply_chat_template(list(conversation[:-1]), add_generation_prompt=True, tokenize=False)
    whole = tokenizer.apply_chat_template(list(conversation), tokenize=False)
    if not whole.startswith(prompt):
        raise InvalidInput(f"{tokenizer.name_or_path}: by its chat template a conversation does not begin with its "
                           "prompt, so the answer cannot be told apart; choose another base or template")
    return list(tokenizer(whole[len(prompt):], add_special_tokens=False)["input_ids"])


@dataclass(frozen=True)
class EndToEnd:
    """A collator that packs conversations end to end into rows of similar length, about `row_tokens` at most.

    input_ids and position_ids: (rows, width). Positions restart with every conversation, and attention stays within it:
    without attention_mask and cache, transformers makes its masks from the positions. The cost of attention grows with
    the square of the width, so the width is limited. A shorter row ends with `pad` tokens, each a conversation of its
    own.
    logits_to_keep: (rows, width), True if the next token is learnt. labels and shift_labels: these tokens, (learnt,).
    The logits, the largest tensor of a step, thus have no unused rows.
    """

    row_tokens: int
    pad: int

    def __call__(self, examples: Sequence[Example]) -> Batch:
        """One batch with every example; none is cut."""
        total = sum(map(_length, examples))
        rows: list[list[Example]] = [[] for _ in range(-(-total // self.row_tokens))]
        for example in sorted(examples, key=_length, reverse=True):  # longest first: rows end about even
            min(rows, key=lambda row: sum(map(_length, row))).append(example)
        rows = [row for row in rows if row]
        tokens = _filled([[token for example in row for token in example["input_ids"]] for row in rows], self.pad)
        positions = _filled([[place for example in row for place in range(_length(example))] for row in rows], 0)
        labels = _filled([[label for example in row for label in example["labels"]] for row in rows], IGNORED)
        labels[positions == 0] = IGNORED  # nothing comes before a conversation's first token
        learnt = labels[labels != IGNORED]
        return {"input_ids": tokens, "position_ids": positions, "logits_to_keep": labels.roll(-1, dims=1) != IGNORED,
                "labels": learnt, "shift_labels": learnt, "use_cache": False}


def _filled(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)


def _length(example: Example) -> int:
    return len(example["labels"])
