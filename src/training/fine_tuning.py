"""LoRA on a chat model: the loss on the answers only, the best epoch by validation loss, resumable after a kill."""

import inspect
import json
import logging
import math
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import peft
import torch
import transformers
from accelerate import PartialState
from tqdm import tqdm
from transformers import DataCollatorForSeq2Seq, Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.utils import is_flash_attn_2_available
from transformers.utils import logging as transformers_logging

from src.core.errors import InvalidParams
from src.core.params import FineTuningParams
from src.core.records import BaseModelRef, DatasetRef, digest_of, file_sha256
from src.models import placement
from src.models.files import CONFIG_FILE, WEIGHTS_FILE
from src.models.merging import Model, Tokenizer, stop_tokens
from src.training import encoding
from src.training.checkpoints import CheckpointMarker, resumable_by_all
from src.training.model import add_adapter, load_base, with_batches_that_fit

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Epoch:
    """Cross entropy of the answers' tokens in nats, mean over batches: in an epoch of training, on validation after."""

    epoch: int
    train_loss: float
    validation_loss: float


def fine_tune(train: Sequence[encoding.Conversation], validation: Sequence[encoding.Conversation],
              params: FineTuningParams, *, base: Path, base_name: str, checkpoints: Path, adapter: Path) -> list[Epoch]:
    """Train a LoRA adapter on the base in a folder; the epoch of the lowest validation loss goes to `adapter`.

    A checkpoint of each epoch is kept in `checkpoints`, a folder of these inputs alone (`fingerprint`), from which a
    killed run goes on to the bytes that it would have reached; the caller removes it. base_name is what the adapter's
    configuration states. If a launcher started several processes, all of them call this and the first one writes.
    Raises InvalidInput if no row fits, InvalidParams for unknown target modules or a step that cannot be shared out,
    and RunAgain if another process is lost.
    """
    transformers_logging.set_verbosity_error()
    splits = {"train": train, "validation": validation}

    def attempt(batch_size: int) -> Trainer:
        transformers.set_seed(params.seed)
        trainer = _trainer(splits, params, base, checkpoints, batch_size)
        _train(trainer, checkpoints)
        return trainer

    size, alone = _share(params), _processes().num_processes == 1
    # One of several processes that lacks memory cannot try again without the others.
    trainer = with_batches_that_fit(attempt, size) if params.find_batch_size and alone else attempt(size)
    if _processes().is_main_process:
        _write_adapter(Path(trainer.state.best_model_checkpoint), adapter, base_name)
    return _curve(trainer.state.log_history)


def fingerprint(params: FineTuningParams, *, base: BaseModelRef, train: DatasetRef, validation: DatasetRef) -> str:
    """Sha256 (hex) of all that decides the adapter; a checkpoint of another fingerprint is never resumed from."""
    return digest_of([
        params.model_dump(mode="json"), base.sha256, train.sha256, validation.sha256, precision(params),
        torch.cuda.is_available(), torch.__version__, transformers.__version__, peft.__version__,
        *(file_sha256(Path(__file__).with_name(name)) for name in ("fine_tuning.py", "encoding.py", "model.py")),
    ])


def precision(params: FineTuningParams) -> Literal["float32", "bfloat16"]:
    """The precision to train in: as asked, or bfloat16 if the device computes it natively."""
    if params.precision != "auto":
        return params.precision
    native = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if native else "float32"


def _processes() -> PartialState:
    return PartialState(cpu=not torch.cuda.is_available())


def _share(params: FineTuningParams) -> int:
    """The most conversations of a step that one process takes at a time; a step's size is that of params."""
    step, count = params.batch_size * params.gradient_accumulation_steps, _processes().num_processes
    if step % count:
        raise InvalidParams(f"fine_tuning: a step of {step} conversations (batch_size x gradient_accumulation_steps) "
                            f"cannot be shared by {count} processes; change one of them")
    return math.gcd(params.batch_size, step // count)


def _train(trainer: Trainer, checkpoints: Path) -> None:
    try:
        trainer.train(resume_from_checkpoint=resumable_by_all(checkpoints))
    except RuntimeError as error:
        if "by peer" not in str(error):  # gloo has no class for it
            raise
        raise placement.lost("training", saved="its last checkpoint") from None


def _trainer(splits: Mapping[str, Sequence[encoding.Conversation]], params: FineTuningParams, base: Path,
             checkpoints: Path, batch_size: int) -> Trainer:
    """All that a training needs, with so many conversations at a time; more accumulation keeps the step's size."""
    model, tokenizer = load_base(base, params, precision(params))
    stops, limit = stop_tokens(model, tokenizer), _limit(model, params)
    sets = {what: encoding.encode_all(rows, tokenizer, stops=stops, limit=limit, what=what)
            for what, rows in splits.items()}
    arguments, collator = _arguments(params, checkpoints, batch_size), _collator(model, tokenizer, params)
    trainer = SharedTrainer(
        model=add_adapter(model, params).to(arguments.device), args=arguments, train_dataset=sets["train"],
        eval_dataset=sets["validation"], data_collator=collator, callbacks=[_Reporter(), CheckpointMarker()])
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


class _Reporter(TrainerCallback):  # type: ignore[misc]
    """One log line an epoch, and a progress bar on a terminal."""

    def on_train_begin(self, _args: object, state: TrainerState, _control: object, **_: object) -> None:
        self._bar = tqdm(total=state.max_steps, initial=state.global_step, desc="fine-tuning", unit="step",
                         disable=not (sys.stderr.isatty() and state.is_world_process_zero))

    def on_step_end(self, *_: object, **__: object) -> None:
        self._bar.update()

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, _control: object, **_: object) -> None:
        done = _curve(state.log_history)[-1]
        with tqdm.external_write_mode(file=sys.stderr):
            logger.info("epoch %d of %d: train loss %.4f, validation loss %.4f", done.epoch, args.num_train_epochs,
                        done.train_loss, done.validation_loss)

    def on_train_end(self, *_: object, **__: object) -> None:
        self._bar.close()


def _collator(model: Model, tokenizer: Tokenizer, params: FineTuningParams) -> object:
    if params.batches == "padded":
        return DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=encoding.IGNORED)
    if "logits_to_keep" not in inspect.signature(model.forward).parameters:
        raise InvalidParams(f"fine_tuning.batches: {type(model).__name__} cannot take conversations laid end to end; "
                            "choose padded")
    if model.device.type == "cuda" and is_flash_attn_2_available() and precision(params) == "bfloat16":
        model.set_attn_implementation("flash_attention_2")  # reads the borders of one long row off its positions
        return encoding.EndToEnd(row_tokens=sys.maxsize, pad=tokenizer.pad_token_id)
    return encoding.EndToEnd(row_tokens=_limit(model, params), pad=tokenizer.pad_token_id)


def _limit(model: Model, params: FineTuningParams) -> int:
    """The most tokens of a conversation: as asked, within the model's context."""
    context: int | None = getattr(model.config, "max_position_embeddings", None)
    return min(params.max_length, context or params.max_length)


def _arguments(params: FineTuningParams, checkpoints: Path, batch_size: int) -> TrainingArguments:
    step = params.batch_size * params.gradient_accumulation_steps
    return TrainingArguments(
        output_dir=str(checkpoints), num_train_epochs=params.epochs, seed=params.seed,
        per_device_train_batch_size=batch_size, per_device_eval_batch_size=batch_size,
        gradient_accumulation_steps=step // (batch_size * _processes().num_processes),
        learning_rate=params.learning_rate, lr_scheduler_type="cosine", weight_decay=params.weight_decay,
        warmup_steps=params.warmup_ratio,  # below 1 it is a share of all steps
        bf16=precision(params) == "bfloat16", torch_compile=params.compile,
        use_cpu=not torch.cuda.is_available(), dataloader_pin_memory=torch.cuda.is_available(),
        train_sampling_strategy="group_by_length" if params.batches == "padded" else "random",
        activation_checkpointing=params.gradient_checkpointing == "always",
        activation_checkpointing_kwargs={"use_reentrant": False},
        eval_strategy="epoch", save_strategy="epoch", logging_strategy="epoch",
        prediction_loss_only=True, metric_for_best_model="loss", greater_is_better=False,
        save_total_limit=2,  # the last and the best
        remove_unused_columns=False, ddp_find_unused_parameters=False, report_to="none", disable_tqdm=True)


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


class SharedTrainer(Trainer):  # type: ignore[misc]
    """The same conversations in each step, and a validation loss that differs by its batches alone."""

    def _get_train_sampler(self, train_dataset: object = None) -> object:
        sampler = super()._get_train_sampler(train_dataset)
        if isinstance(sampler, LengthGroupedSampler):
            sampler.batch_size *= self.args.world_size
        return sampler

    def compute_loss(self, model: torch.nn.Module, inputs: encoding.Batch, return_outputs: bool = False,
                     num_items_in_batch: torch.Tensor | None = None) -> object:
        """In validation each process's own mean: the rows that one repeats, to have as many, are then left out."""
        count = num_items_in_batch if model.training or self.args.world_size == 1 else None
        return super().compute_loss(model, inputs, return_outputs, count)
