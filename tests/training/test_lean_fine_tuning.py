"""Fine-tuning without padding, with less memory, and on a GPU: other means, the same training."""

import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaMLP

from src.core.errors import InvalidParams
from src.models import merging
from tests.training.test_fine_tuning import PARAMS, Run

# Dropout draws in the order of the batch's places, which is what these runs differ in.
STILL = PARAMS.lora.model_copy(update={"dropout": 0.0})


def losses(run: Run) -> list[float]:
    return [loss for epoch in run.start() for loss in (epoch.train_loss, epoch.validation_loss)]


def lean(folder: Path, base: Path, **changes: Any) -> Run:
    return Run(folder, base, **{"lora": STILL, "batches": "end_to_end", "epochs": 2} | changes)


def test_conversations_end_to_end_are_learnt_as_well_as_padded_ones(base: Path, tmp_path: Path) -> None:
    end_to_end = Run(tmp_path / "end_to_end", base, batches="end_to_end").start()
    padded = Run(tmp_path / "padded", base).start()
    assert end_to_end[-1].validation_loss == pytest.approx(padded[-1].validation_loss, rel=0.15)
    assert end_to_end[-1].train_loss < end_to_end[0].train_loss - 1


def test_activations_computed_twice_change_no_loss(base: Path, tmp_path: Path) -> None:
    with mock.patch.object(LlamaMLP, "forward", autospec=True, side_effect=LlamaMLP.forward) as forward:
        kept = losses(lean(tmp_path / "kept", base))
        once = forward.call_count
        assert losses(lean(tmp_path / "twice", base, gradient_checkpointing="always")) == pytest.approx(kept, rel=1e-5)
    assert forward.call_count > 2.5 * once


def test_a_step_is_the_same_however_few_conversations_fit_at_a_time(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tokens: list[int] = []
    forward = LlamaMLP.forward

    def limited(layer: LlamaMLP, states: torch.Tensor) -> Any:
        tokens.append(states.shape[0] * states.shape[1])
        torch.empty(1 << 60 if tokens[-1] > limit else 1, dtype=torch.uint8)  # no machine gives so many bytes
        return forward(layer, states)

    limit = sys.maxsize
    monkeypatch.setattr(LlamaMLP, "forward", limited)
    roomy = losses(lean(tmp_path / "roomy", base))
    limit = max(tokens) - 1
    tight = losses(lean(tmp_path / "tight", base, find_batch_size=True))
    assert "not enough memory: trying " in caplog.text
    assert tight == pytest.approx(roomy, rel=1e-3)


def test_four_bits_without_what_they_need_are_refused_in_one_line(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InvalidParams, match=r"^fine_tuning\.quantization: 4bit needs a CUDA device; [^\n]+$"):
        Run(tmp_path, base, quantization="4bit").start()


def test_a_base_that_computes_every_logit_is_refused_without_padding(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Older(LlamaForCausalLM):  # type: ignore[misc]  # transformers is untyped
        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor) -> None: ...

    model, tokenizer = merging.load(base, "float32")
    monkeypatch.setattr(merging, "load", lambda *_: (Older(model.config), tokenizer))
    with pytest.raises(InvalidParams, match=r"Older cannot take conversations laid end to end; choose pad"):
        lean(tmp_path, base).start()


@pytest.mark.gpu
@pytest.mark.parametrize("changes", [{}, {"quantization": "4bit"}, {"gradient_checkpointing": "always"}])
def test_on_a_gpu_the_adapter_has_the_format_to_merge(base: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    if "quantization" in changes:
        pytest.importorskip("bitsandbytes")
    run = lean(tmp_path, base, precision="bfloat16", find_batch_size=True, **changes)
    curve = run.start()
    assert curve[-1].train_loss < curve[0].train_loss
    assert {tensor.dtype for tensor in load_file(run.adapter / "adapter_model.safetensors").values()} == {torch.float32}
    merging.merge(base, run.adapter, "float32")
