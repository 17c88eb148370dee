"""The memory of a step: what is counted, what it decides, and how a step shrinks until it fits."""

from typing import Any

import pytest
from peft import LoraConfig, PeftModel, get_peft_model

from src.core.errors import InvalidParams
from src.models import merging
from src.models.placement import fit_threads
from src.training import model as memory
from src.training.encoding import EndToEnd, Example
from tests.fakes.tiny_model import write_base
from tests.training.test_fine_tuning import PARAMS, TARGETS

EXAMPLES: list[Example] = [{"input_ids": [5] * length, "labels": [5] * length} for length in (9, 60, 30, 12, 48)]
COLLATE = EndToEnd(row_tokens=256, pad=0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PeftModel:
    folder = tmp_path_factory.mktemp("base")
    write_base(folder)
    loaded, _ = merging.load(folder, "float32")
    fit_threads(loaded)
    return get_peft_model(loaded, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=TARGETS))


def needed(model: PeftModel, count: int, **changes: Any) -> int:
    options: dict[str, Any] = {"times": 1.0, "precision": "float32", "checkpointed": False} | changes
    return memory.needed(model, COLLATE(EXAMPLES[:count]), **options)


def decided(model: PeftModel, monkeypatch: pytest.MonkeyPatch, *, room: int, batch_size: int = 4,
            **changes: Any) -> bool:
    monkeypatch.setattr(memory, "free", lambda _: room)
    return memory.checkpointing(model, COLLATE, EXAMPLES, PARAMS.model_copy(update=changes), batch_size=batch_size,
                                precision="float32")


def test_the_estimate_grows_with_the_batch_and_checkpointing_lowers_it(model: PeftModel) -> None:
    assert needed(model, 5) > 1.5 * needed(model, 2) > 1.5 * needed(model, 1)
    assert needed(model, 5, checkpointed=True) < 0.8 * needed(model, 5)


@pytest.mark.parametrize(("asked", "answer"), [("never", False), ("always", True)])
def test_what_is_asked_for_is_done_whatever_is_free(
    model: PeftModel, monkeypatch: pytest.MonkeyPatch, asked: str, answer: bool
) -> None:
    assert decided(model, monkeypatch, room=0, gradient_checkpointing=asked) is answer


def test_auto_checkpoints_only_where_memory_asks_for_it(model: PeftModel, monkeypatch: pytest.MonkeyPatch) -> None:
    assert decided(model, monkeypatch, room=10**10, gradient_checkpointing="auto") is False
    assert decided(model, monkeypatch, room=1000, gradient_checkpointing="auto") is True


def test_fewer_conversations_at_a_time_are_tried_where_none_fits(
    model: PeftModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    room = needed(model, 5, times=0.7)
    tried: list[int] = []

    def attempt(batch_size: int) -> int:
        tried.append(batch_size)
        decided(model, monkeypatch, room=room, batch_size=batch_size, find_batch_size=True)
        return batch_size

    assert memory.with_batches_that_fit(attempt, 4) == tried[-1] < 4
    assert tried == [4, 2, 1][: len(tried)]
    assert "not enough memory: trying 2 conversations at a time, and more accumulation" in caplog.messages


def test_a_memory_that_holds_not_one_conversation_is_told_in_one_line(
    model: PeftModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InvalidParams, match="not even one conversation at a time fits the memory; lower max_length"):
        memory.with_batches_that_fit(
            lambda size: decided(model, monkeypatch, room=0, batch_size=size, find_batch_size=True), 2)


def test_an_error_other_than_a_lack_of_memory_is_not_tried_again() -> None:
    def attempt(_: int) -> None:
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        memory.with_batches_that_fit(attempt, 4)
