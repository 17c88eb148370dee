"""Training batches without padding: the conversations laid end to end, logits only where something is learnt."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence

from src.chat_encoding import IGNORED, Example

Batch = dict[str, torch.Tensor | bool]


@dataclass(frozen=True)
class EndToEnd:
    """A collator: conversations end to end in rows of near-equal length, each of about `row_tokens` at most.

    input_ids and position_ids are (rows, width). Positions restart with every conversation, and attention stays within
    it: transformers' masks go by them where there is neither attention_mask nor cache. Rows bound what attention costs,
    which grows with the square of the width; the few places after a shorter row's end hold `pad`, each a conversation
    of its own. logits_to_keep (rows, width) is true where the next token is learnt; labels and shift_labels, equal, are
    these tokens (learnt,), so that the largest tensor of a step, the logits, has no row that nobody reads.
    """

    row_tokens: int
    pad: int

    def __call__(self, examples: Sequence[Example]) -> Batch:
        """One batch of every example, each whole."""
        total = sum(map(_length, examples))
        rows: list[list[Example]] = [[] for _ in range(-(-total // self.row_tokens))]
        for example in sorted(examples, key=_length, reverse=True):  # the longest first: then all end about even
            min(rows, key=_width).append(example)
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


def _width(row: Sequence[Example]) -> int:
    return sum(map(_length, row))
