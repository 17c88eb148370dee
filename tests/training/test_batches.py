"""Batches without padding: nothing is lost, nothing sees its neighbour, and the loss is that of rows on their own."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, DataCollatorForSeq2Seq, PreTrainedModel

from src.models import merging
from src.training.encoding import IGNORED, Batch, EndToEnd, Example, encode_all
from tests.training.test_fine_tuning import TRAIN

PAD = 0


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model(base: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(base).eval()


@pytest.fixture(scope="module")
def examples(base: Path) -> list[Example]:
    _, tokenizer = merging.load(base, "float32")
    return encode_all(TRAIN[:11], tokenizer, stops={tokenizer.eos_token_id}, limit=128, what="train")


def tensor(batch: Batch, name: str) -> torch.Tensor:
    return torch.as_tensor(batch[name])


def mean_loss(model: PreTrainedModel, batches: list[Batch]) -> float:
    """Of all learnt tokens of several batches, as Trainer weighs them over accumulation."""
    learnt = sum(int((tensor(batch, "labels") != IGNORED).sum()) for batch in batches)
    with torch.inference_mode():
        return sum(float(model(**batch, num_items_in_batch=learnt).loss) for batch in batches)


def alone(example: Example) -> Batch:
    return {name: torch.tensor([example[name]]) for name in ("input_ids", "labels")}


@pytest.mark.parametrize("row_tokens", [40, 128, 10_000])
def test_every_conversation_stands_in_one_row_once_and_rows_are_about_even(
    examples: list[Example], row_tokens: int
) -> None:
    batch = EndToEnd(row_tokens=row_tokens, pad=PAD)(examples)
    found = []
    rows, places = (tensor(batch, name).tolist() for name in ("input_ids", "position_ids"))
    for tokens, positions in zip(rows, places, strict=True):
        starts = [place for place, position in enumerate(positions) if position == 0] + [len(positions)]
        found += [tokens[start:end] for start, end in pairwise(starts)]
    longest, total = (function(len(example["labels"]) for example in examples) for function in (max, sum))
    assert sorted(piece for piece in found if piece != [PAD]) == sorted(example["input_ids"] for example in examples)
    assert found.count([PAD]) == tensor(batch, "input_ids").numel() - total
    assert tensor(batch, "input_ids").shape[1] < row_tokens + longest


@pytest.mark.parametrize(("row_tokens", "attention"), [(40, "sdpa"), (10_000, "sdpa"), (128, "eager")])
def test_the_loss_is_that_of_padded_rows_and_of_each_on_its_own(
    base: Path, examples: list[Example], row_tokens: int, attention: str
) -> None:
    model = AutoModelForCausalLM.from_pretrained(base, attn_implementation=attention).eval()
    _, tokenizer = merging.load(base, "float32")
    tokenizer.padding_side = "right"
    expected = mean_loss(model, [alone(example) for example in examples])
    padded = DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORED)(examples)
    assert mean_loss(model, [dict(padded)]) == pytest.approx(expected, rel=1e-5)
    assert mean_loss(model, [EndToEnd(row_tokens=row_tokens, pad=PAD)(examples)]) == pytest.approx(expected, rel=1e-5)


def test_accumulated_batches_of_unequal_length_weigh_every_token_alike(
    model: PreTrainedModel, examples: list[Example]
) -> None:
    collate = EndToEnd(row_tokens=128, pad=PAD)
    split = [collate(examples[:1]), collate(examples[1:4]), collate(examples[4:])]
    assert mean_loss(model, split) == pytest.approx(mean_loss(model, [collate(examples)]), rel=1e-5)


def test_another_neighbour_changes_nothing_for_a_conversation(model: PreTrainedModel, examples: list[Example]) -> None:
    collate = EndToEnd(row_tokens=10_000, pad=PAD)
    batch = collate([examples[0], examples[5]])  # the longer one first
    inputs = {name: batch[name] for name in ("input_ids", "position_ids", "use_cache")}
    first = len(examples[5]["labels"])
    with torch.inference_mode():
        expected = model(input_ids=tensor(batch, "input_ids")[:, first:]).logits
        beside, leaking = (model(**{**inputs, **more}).logits[:, first:] for more in ({}, {"use_cache": True}))
    assert expected.shape[1] == len(examples[0]["labels"])
    assert torch.allclose(beside, expected, atol=1e-4)
    assert not torch.allclose(leaking, expected, atol=1e-2)  # what the batch's use_cache is for


def test_what_is_learnt_are_the_answers_and_no_first_token(examples: list[Example]) -> None:
    whole = [{**example, "labels": list(example["input_ids"])} for example in examples]  # prompts learnt as well
    batch = EndToEnd(row_tokens=60, pad=PAD)(whole)
    kept, labels = tensor(batch, "logits_to_keep"), tensor(batch, "labels")
    assert int(kept.sum()) == len(labels) == sum(len(example["labels"]) - 1 for example in examples)
    assert torch.equal(tensor(batch, "input_ids").roll(-1, 1)[kept], labels)
    assert batch["labels"] is batch["shift_labels"]
