"""LoRA on a chat model: the loss on the answers only, the best epoch by validation loss, resumable after a kill."""

import json
import logging
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import peft
import torch
import transformers
from peft import LoraConfig, get_peft_model
from tqdm import tqdm
from transformers import (
    DataCollatorForSeq2Seq,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.utils import logging as transformers_logging

from src import chat_encoding, merging
from src.adapter import CONFIG_FILE, WEIGHTS_FILE
from src.errors import InvalidParams
from src.manifest import file_sha256, manifest, tree_digest
from src.params import FineTuningParams
from src.records import BaseModelRef, DatasetRef, digest_of

logger = logging.getLogger(__name__)

_STATE = "trainer_state.json"
_COMPLETE = ".sha256"


@dataclass(frozen=True)
class Epoch:
    """Cross entropy of the answers' tokens in nats, mean over batches: in an epoch of training, on validation after."""

    epoch: int
    train_loss: float
    validation_loss: float


def fine_tune(
    train: Sequence[chat_encoding.Conversation],
    validation: Sequence[chat_encoding.Conversation],
    params: FineTuningParams,
    *,
    base: Path,
    base_name: str,
    checkpoints: Path,
    adapter: Path,
) -> list[Epoch]:
    """Train a LoRA adapter on the base in a folder; the epoch of the lowest validation loss goes to `adapter`.

    A checkpoint of each epoch is kept in `checkpoints`, a folder of these inputs alone (`fingerprint`), from which a
    killed run goes on to the bytes that it would have reached; the caller removes it. base_name is what the adapter's
    configuration states. Raises InvalidInput where no row fits, InvalidParams for unknown target modules.
    """
    transformers_logging.set_verbosity_error()
    transformers.set_seed(params.seed)
    model, tokenizer = merging.load(base, precision(params))
    merging.fit_threads(model)
    stops, limit = _stops(model, tokenizer), _limit(model, params)
    train_set = chat_encoding.encode_all(train, tokenizer, stops=stops, limit=limit, what="train")
    validation_set = chat_encoding.encode_all(validation, tokenizer, stops=stops, limit=limit, what="validation")
    tokenizer.padding_side = "right"  # positions are counted from the left
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    trainer = Trainer(
        model=_with_lora(model, params),
        args=_arguments(params, checkpoints),
        train_dataset=train_set,
        eval_dataset=validation_set,
        data_collator=DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=chat_encoding.IGNORED),
        callbacks=[_Reporter(), _Checkpoints()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.train(resume_from_checkpoint=resumable(checkpoints))
    _write_adapter(Path(trainer.state.best_model_checkpoint), adapter, base_name)
    return _curve(trainer.state.log_history)


def fingerprint(params: FineTuningParams, *, base: BaseModelRef, train: DatasetRef, validation: DatasetRef) -> str:
    """Sha256 (hex) of all that decides the adapter; a checkpoint of another fingerprint is never resumed from."""
    return digest_of([
        params.model_dump(mode="json"), base.sha256, train.sha256, validation.sha256, precision(params),
        torch.cuda.is_available(), torch.__version__, transformers.__version__, peft.__version__,
        file_sha256(Path(__file__)), file_sha256(Path(chat_encoding.__file__)),
    ])


def precision(params: FineTuningParams) -> Literal["float32", "bfloat16"]:
    """The precision to train in: as asked, or bfloat16 where the device computes it natively."""
    if params.precision != "auto":
        return params.precision
    native = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if native else "float32"


def resumable(checkpoints: Path) -> str | None:
    """The newest checkpoint that is whole, as is the best one that it builds on; others are removed."""
    whole = {path for path in checkpoints.glob("checkpoint-*") if path.is_dir() and _is_whole(path)}
    for path in set(checkpoints.glob("checkpoint-*")) - whole - {_mark(path) for path in whole}:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in sorted(whole, key=lambda path: -int(path.name.rpartition("-")[2])):
        best = json.loads((path / _STATE).read_bytes())["best_model_checkpoint"]
        if Path(best) in whole:
            logger.info("resuming from %s", path)
            return str(path)
    return None


class _Checkpoints(TrainerCallback):  # type: ignore[misc]
    """Marks a checkpoint as whole, once it is: the digest of its files beside it."""

    def on_save(self, args: TrainingArguments, state: TrainerState, _control: TrainerControl, **_: object) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        _mark(folder).write_text(tree_digest(manifest(folder)), encoding="ascii")


class _Reporter(TrainerCallback):  # type: ignore[misc]
    """One log line an epoch, and a progress bar on a terminal."""

    def on_train_begin(self, _args: TrainingArguments, state: TrainerState, _control: TrainerControl,
                       **_: object) -> None:
        self._bar = tqdm(total=state.max_steps, initial=state.global_step, desc="fine-tuning", unit="step",
                         disable=not sys.stderr.isatty())

    def on_step_end(self, _args: TrainingArguments, _state: TrainerState, _control: TrainerControl,
                    **_: object) -> None:
        self._bar.update()

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, _control: TrainerControl,
                    **_: object) -> None:
        done = _curve(state.log_history)[-1]
        with tqdm.external_write_mode(file=sys.stderr):
            logger.info("epoch %d of %d: train loss %.4f, validation loss %.4f", done.epoch, args.num_train_epochs,
                        done.train_loss, done.validation_loss)

    def on_train_end(self, _args: TrainingArguments, _state: TrainerState, _control: TrainerControl,
                     **_: object) -> None:
        self._bar.close()


def _stops(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    stated = model.generation_config.eos_token_id
    return {*(stated if isinstance(stated, list) else [stated]), tokenizer.eos_token_id} - {None}


def _limit(model: PreTrainedModel, params: FineTuningParams) -> int:
    """The most tokens of a conversation: as asked, within the model's context."""
    context: int | None = getattr(model.config, "max_position_embeddings", None)
    return min(params.max_length, context or params.max_length)


def _with_lora(model: PreTrainedModel, params: FineTuningParams) -> peft.PeftModel:
    lora = params.lora
    names = [f".{name}" for name, _ in model.named_modules()]
    unknown = [target for target in lora.target_modules if not any(name.endswith(f".{target}") for name in names)]
    if unknown:
        raise InvalidParams(f"fine_tuning.lora.target_modules: the base has no module {', '.join(unknown)}; "
                            "name linear layers of the base")
    wrapped = get_peft_model(model, LoraConfig(
        task_type="CAUSAL_LM", r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout,
        target_modules=sorted(lora.target_modules),
    ))
    trainable, total = wrapped.get_nb_trainable_parameters()
    logger.info("LoRA trains %d of %d parameters (%.2f %%)", trainable, total, 100 * trainable / total)
    return wrapped


def _arguments(params: FineTuningParams, checkpoints: Path) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(checkpoints),
        num_train_epochs=params.epochs,
        per_device_train_batch_size=params.batch_size,
        per_device_eval_batch_size=params.batch_size,
        gradient_accumulation_steps=params.gradient_accumulation_steps,
        learning_rate=params.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=params.warmup_ratio,  # below 1 it is a share of all steps
        weight_decay=params.weight_decay,
        bf16=precision(params) == "bfloat16",
        use_cpu=not torch.cuda.is_available(),
        seed=params.seed,
        train_sampling_strategy="group_by_length",
        eval_strategy="epoch",
        save_strategy="epoch",
        logging_strategy="epoch",
        prediction_loss_only=True,
        metric_for_best_model="loss",
        greater_is_better=False,
        save_total_limit=2,  # the last and the best
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
    )


def _write_adapter(checkpoint: Path, folder: Path, base_name: str) -> None:
    """Weights and configuration, the latter in an order of its own: PEFT's follows the hashes of a set."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(checkpoint / WEIGHTS_FILE, folder / WEIGHTS_FILE)
    config: dict[str, Any] = json.loads((checkpoint / CONFIG_FILE).read_bytes())
    config |= {"base_model_name_or_path": base_name, "target_modules": sorted(config["target_modules"])}
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _curve(history: Sequence[dict[str, float]]) -> list[Epoch]:
    losses = [entry["loss"] for entry in history if "loss" in entry]
    validation = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    return [Epoch(number, *pair) for number, pair in enumerate(zip(losses, validation, strict=True), start=1)]


def _mark(checkpoint: Path) -> Path:
    return checkpoint.with_name(checkpoint.name + _COMPLETE)


def _is_whole(checkpoint: Path) -> bool:
    mark = _mark(checkpoint)
    return mark.is_file() and mark.read_text(encoding="ascii") == tree_digest(manifest(checkpoint))
