"""Fine-tuning for real, on a Llama of two layers: reproducible, resumable after a kill, and the best epoch kept."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import DataCollatorForSeq2Seq

from src.core.errors import InvalidInput, InvalidParams
from src.core.params import FineTuningParams, LoraParams
from src.core.records import BaseModelRef, DatasetRef, manifest, tree_digest
from src.models import merging
from src.training import checkpoints, fine_tuning
from src.training.encoding import IGNORED, encode_all

TARGETS = ["v_proj", "down_proj", "q_proj"]
PARAMS = FineTuningParams(
    lora=LoraParams(r=4, alpha=8, dropout=0.1, target_modules=TARGETS), epochs=4, batch_size=4,
    gradient_accumulation_steps=1, learning_rate=0.01, warmup_ratio=0.1, weight_decay=0.0, max_length=128,
    precision="float32", batches="padded", find_batch_size=False, gradient_checkpointing="never", quantization="none",
    compile=False, seed=5,
)
TOPICS = ("order", "refund", "parcel", "invoice", "voucher")
CHATS = [[{"role": "user", "content": f"Where is {'my ' * (number % 7)}{topic} {number}?"},
          {"role": "assistant", "content": f"The {topic} is here{', really' * (number % 4)}."}]
         for number in range(7) for topic in TOPICS]
TRAIN, VALIDATION = CHATS[:25], CHATS[25:]


class Run:
    """One training in a folder of its own."""

    def __init__(self, folder: Path, base: Path, **changes: Any) -> None:
        self.params = PARAMS.model_copy(update=changes)
        self.base, self.checkpoints, self.adapter = base, folder / "checkpoints", folder / "adapter"
        self.train = TRAIN

    def start(self) -> list[fine_tuning.Epoch]:
        return fine_tuning.fine_tune(self.train, VALIDATION, self.params, base=self.base,
                                     base_name="results/base_model", checkpoints=self.checkpoints,
                                     adapter=self.adapter)


@pytest.fixture(scope="module")
def finished(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(tmp_path_factory.mktemp("finished"), base)
    run.start()
    return run


def validation_loss(base: Path, adapter: Path) -> float:
    """Mean cross entropy of the answers' tokens, computed in a plain way."""
    model, tokenizer = merging.load_with_adapter(base, adapter, "float32")
    losses: list[float] = []
    for example in encode_all(VALIDATION, tokenizer, stops={tokenizer.eos_token_id}, limit=128, what="validation"):
        tokens, labels = (torch.tensor([example[name]]) for name in ("input_ids", "labels"))
        with torch.inference_mode():
            logits = model(input_ids=tokens).logits
        losses += torch.nn.functional.cross_entropy(
            logits[0, :-1], labels[0, 1:], ignore_index=IGNORED, reduction="none")[labels[0, 1:] != IGNORED].tolist()
    return sum(losses) / len(losses)


def test_the_loss_falls_and_nothing_is_printed(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    curve = Run(tmp_path, base).start()
    assert [epoch.epoch for epoch in curve] == [1, 2, 3, 4]
    assert curve[-1].train_loss < curve[0].train_loss - 1
    assert curve[-1].validation_loss < curve[0].validation_loss
    assert capsys.readouterr() == ("", "")


def test_the_adapter_is_two_files_that_state_what_was_trained(finished: Run, base: Path) -> None:
    assert sorted(manifest(finished.adapter)) == ["adapter_config.json", "adapter_model.safetensors"]
    config = json.loads((finished.adapter / "adapter_config.json").read_bytes())
    assert config["base_model_name_or_path"] == "results/base_model"
    assert config["target_modules"] == sorted(TARGETS)
    loaded = LoraConfig.from_pretrained(finished.adapter)
    assert (loaded.r, loaded.lora_alpha, loaded.lora_dropout) == (4, 8, 0.1)
    merging.merge(base, finished.adapter, "float32")


def test_another_seed_gives_other_bytes(finished: Run, base: Path, tmp_path: Path) -> None:
    other = Run(tmp_path, base, seed=6)
    other.start()
    assert manifest(other.adapter) != manifest(finished.adapter)


def test_the_epoch_of_the_lowest_validation_loss_is_kept(base: Path, tmp_path: Path) -> None:
    run = Run(tmp_path, base, learning_rate=0.03, epochs=8)
    run.train = [[*chat[:-1], {"role": "assistant", "content": "No."}] for chat in TRAIN[:5]]  # leads astray
    losses = [epoch.validation_loss for epoch in run.start()]
    assert min(losses) < losses[-1] - 0.03
    assert validation_loss(base, run.adapter) == pytest.approx(min(losses), abs=0.01)


def test_batches_hold_rows_of_similar_length_and_are_never_padded_further(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, list[int]]] = []

    class Watched(DataCollatorForSeq2Seq):  # type: ignore[misc]  # transformers is untyped
        def __call__(self, features: list[dict[str, list[int]]]) -> Any:
            batch = super().__call__(features)
            seen.append((batch["input_ids"].shape[1], [len(feature["input_ids"]) for feature in features]))
            return batch

    monkeypatch.setattr(fine_tuning, "DataCollatorForSeq2Seq", Watched)
    run = Run(tmp_path, base, epochs=1)
    run.train = TRAIN * 6  # the sampler sorts within a quarter of the rows
    run.start()
    assert all(width == max(lengths) for width, lengths in seen)
    padding = sum(width * len(lengths) - sum(lengths) for width, lengths in seen)
    assert padding < 0.1 * sum(sum(lengths) for _, lengths in seen)


# Killed as by `kill -9` while the third checkpoint is half written.
KILLED = """
import os, signal, sys
from pathlib import Path
from transformers import Trainer
from tests.training import test_fine_tuning

whole = Trainer._save_rng_state
def half(self, folder):
    if self.state.epoch == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    whole(self, folder)
Trainer._save_rng_state = half
test_fine_tuning.Run(Path(sys.argv[1]), Path(sys.argv[2]), batches=sys.argv[3]).start()
"""


@pytest.mark.parametrize("batches", ["padded", "end_to_end"])
def test_equal_inputs_give_equal_bytes_though_one_run_was_killed(base: Path, tmp_path: Path, batches: str) -> None:
    finished, run = (Run(tmp_path / name, base, batches=batches) for name in ("finished", "killed"))
    finished.start()
    killed = subprocess.run([sys.executable, "-W", "ignore", "-c", KILLED, tmp_path / "killed", base, batches],
                            check=False, cwd=Path(__file__).parents[2])
    left = {path.name for path in run.checkpoints.glob("checkpoint-*[0-9]")}
    assert killed.returncode == -signal.SIGKILL
    assert "checkpoint-21" in left
    assert not run.adapter.exists()
    curve = run.start()
    assert [epoch.epoch for epoch in curve] == [1, 2, 3, 4]
    assert manifest(run.adapter) == manifest(finished.adapter)


def write_checkpoint(folder: Path, step: int, best: int, *, whole: bool = True) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    state = {"best_model_checkpoint": str(folder / f"checkpoint-{best}")}
    (path / "trainer_state.json").write_text(json.dumps(state))
    if whole:
        path.with_name(f"{path.name}.sha256").write_text(tree_digest(manifest(path)))
    return path


def test_the_newest_whole_checkpoint_is_resumed_from_and_broken_ones_go(tmp_path: Path) -> None:
    for step in (7, 14):
        write_checkpoint(tmp_path, step, best=7)
    write_checkpoint(tmp_path, 21, best=7, whole=False)
    (write_checkpoint(tmp_path, 28, best=7) / "trainer_state.json").write_text("{}")
    assert checkpoints.resumable(tmp_path) == str(tmp_path / "checkpoint-14")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint-14", "checkpoint-14.sha256", "checkpoint-7", "checkpoint-7.sha256"]


def test_a_checkpoint_whose_best_one_is_lost_is_not_resumed_from(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 14, best=7)
    assert checkpoints.resumable(tmp_path) is None
    assert checkpoints.resumable(tmp_path / "none") is None


def test_machines_that_hold_different_checkpoints_do_not_train_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path, 7, best=7)
    assert checkpoints.resumable_by_all(tmp_path) == str(tmp_path / "checkpoint-7")
    monkeypatch.setattr(checkpoints, "gather_object", lambda found: [*found, None])
    with pytest.raises(InvalidInput, match="the machines hold different checkpoints; share the folder"):
        checkpoints.resumable_by_all(tmp_path)


INPUTS: dict[str, Any] = {
    "params": PARAMS,
    "base": BaseModelRef(name="pocket", revision="none", path="results/base_model", sha256="a" * 64),
    "train": DatasetRef(path="train.jsonl", sha256="b" * 64, rows=3),
    "validation": DatasetRef(path="validation.jsonl", sha256="c" * 64, rows=3),
}


@pytest.mark.parametrize(("name", "change"), [
    *(("params", change) for change in ({"epochs": 5}, {"batch_size": 2}, {"learning_rate": 0.02}, {"max_length": 64},
                                        {"seed": 6}, {"lora": PARAMS.lora.model_copy(update={"r": 8})})),
    *((name, {"sha256": "f" * 64}) for name in ("base", "train", "validation"))])
def test_any_other_input_has_checkpoints_of_its_own(name: str, change: dict[str, Any]) -> None:
    others = INPUTS | {name: INPUTS[name].model_copy(update=change)}
    assert fine_tuning.fingerprint(**INPUTS) == fine_tuning.fingerprint(**INPUTS)
    assert fine_tuning.fingerprint(**others) != fine_tuning.fingerprint(**INPUTS)


def test_unknown_target_modules_are_refused_by_name(base: Path, tmp_path: Path) -> None:
    lora = PARAMS.lora.model_copy(update={"target_modules": ["q_proj", "c_attn"]})
    with pytest.raises(InvalidParams, match=r"fine_tuning\.lora\.target_modules: the base has no module c_attn;"):
        Run(tmp_path, base, lora=lora).start()


@pytest.mark.parametrize(("asked", "native", "used"), [
    ("auto", True, "bfloat16"), ("auto", False, "float32"), ("float32", True, "float32"),
    ("bfloat16", False, "bfloat16"),
])
def test_precision_is_as_asked_or_what_the_device_does_well(
    monkeypatch: pytest.MonkeyPatch, asked: str, native: bool, used: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: native)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: native)
    assert fine_tuning.precision(PARAMS.model_copy(update={"precision": asked})) == used


def test_training_in_bfloat16_keeps_a_full_precision_adapter(base: Path, tmp_path: Path) -> None:
    run = Run(tmp_path, base, precision="bfloat16", epochs=2)
    curve = run.start()
    weights = load_file(run.adapter / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert curve[1].train_loss < curve[0].train_loss
