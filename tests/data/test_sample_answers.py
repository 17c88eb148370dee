from pathlib import Path

import pytest
import torch

from benchmarks import sample_answers
from src.evaluation import generation
from src.models import merging
from tests.fakes import tiny_model


@pytest.mark.parametrize("count", [0, 5])
def test_rows_with_unequally_many_answers_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"{count} answers to 2 rows"):
        sample_answers.by_row(["text"] * count, 2)


def test_each_row_has_the_answers_that_stand_one_after_the_other() -> None:
    assert sample_answers.by_row(["a", "b", "c", "d", "e", "f"], 2) == [["a", "b", "c"], ["d", "e", "f"]]


def test_answers_are_drawn_from_the_whole_distribution_and_again_by_the_same_seed(tmp_path: Path) -> None:
    tiny_model.write_base(tmp_path)
    model, tokenizer = merging.load(tmp_path, "float32")
    model.generation_config.eos_token_id = 2
    sample_answers.set_sampling(model, tokenizer, max_new_tokens=1, temperature=1.0)
    prompts = [tiny_model.rows()[0].prompt()] * 150

    def drawn(seed: int) -> list[list[int]]:
        torch.manual_seed(seed)
        return [answer.tokens for answer in generation.answer(model, tokenizer, prompts, tokens_per_batch=10_000)]

    first = drawn(1)
    assert drawn(1) == first
    assert drawn(2) != first
    assert len({tuple(tokens) for tokens in first}) > 50  # the default top-k
