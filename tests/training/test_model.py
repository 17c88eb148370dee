"""How a step that lacks memory shrinks until it fits."""

import weakref

import pytest
import torch

from src.core.errors import InvalidParams
from src.training.model import with_batches_that_fit

TOO_MUCH = 1 << 60  # bytes: no machine gives so many


class Held:
    """What an attempt keeps in memory; it refers to itself, as transformers' Trainer does."""

    def __init__(self) -> None:
        self.me = self


def test_fewer_conversations_at_a_time_are_tried_until_they_fit(caplog: pytest.LogCaptureFixture) -> None:
    held: list[weakref.ref[Held]] = []

    def attempt(size: int) -> int:
        assert [each() for each in held] == [None] * len(held), "an earlier attempt is still in memory"
        here = Held()
        held.append(weakref.ref(here))
        torch.empty(TOO_MUCH if size > 2 else size, dtype=torch.uint8)
        return size

    assert with_batches_that_fit(attempt, 12) == 2
    assert caplog.messages == [f"not enough memory: trying {size} conversations at a time, and more accumulation"
                               for size in (6, 4, 3, 2)]


def test_a_memory_that_holds_not_one_conversation_is_told_in_one_line() -> None:
    with pytest.raises(InvalidParams, match="not even one conversation at a time fits the memory; lower max_length"):
        with_batches_that_fit(lambda _: torch.empty(TOO_MUCH, dtype=torch.uint8), 2)


def test_an_error_other_than_a_lack_of_memory_is_not_tried_again() -> None:
    def attempt(_: int) -> None:
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        with_batches_that_fit(attempt, 4)
