"""Load, check and merge a base model and its adapter: safetensors only, no custom code, never partly loaded."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from src.core.errors import IntegrityError, InvalidInput
from src.models.files import WEIGHTS_FILE, check_weight_map, tensor_shapes

logger = logging.getLogger(__name__)
Model: TypeAlias = PreTrainedModel
Tokenizer: TypeAlias = PreTrainedTokenizerBase
# An interrupted upload resumes with whole files, so it repeats at most this much.
SHARD_SIZE = "500MB"
_TRAIN_AGAIN = "run `dvc repro fine_tuning`"
_LOGITS_HELD = 2**24  # logits that are compared at once: 64 MB in float32, 524 tokens of a vocabulary of 32,000
_TIED_LAYERS = ("lm_head", "embed_tokens", "wte")


def load(folder: Path, dtype: str) -> tuple[Model, Tokenizer]:
    """Load a causal LM and its tokenizer from a local folder, on the CPU, in eval mode.

    dtype: a torch dtype's name, or `auto` for the stored one. Raises IntegrityError if anything is damaged or missing
    (transformers alone would use random weights instead), Refused for a weight index that leads out of the folder.
    """
    check_weight_map(folder)
    transformers_logging.disable_progress_bar()
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, trust_remote_code=False, local_files_only=True,
            output_loading_info=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise IntegrityError(f"{folder}: does not load: {_first_line(error)}; run `dvc repro`") from error
    lacking = sorted({*found["missing_keys"], *(str(key) for key in found["mismatched_keys"])})
    if lacking:
        raise IntegrityError(f"{folder}: no weights for {_some(lacking)}; run `dvc repro`")
    _check_tokenizer(folder, model, tokenizer)
    tokenizer.padding_side = "left"  # a decoder continues the last token; saved with the tokenizer
    return model.eval(), tokenizer


def stop_tokens(model: Model, tokenizer: Tokenizer) -> list[int]:
    """Every token id that ends an answer, from the tokenizer and from the model's own generation settings."""
    stated = model.generation_config.eos_token_id
    stops = {*(stated if isinstance(stated, list) else [stated]), tokenizer.eos_token_id} - {None}
    if not stops:
        raise InvalidInput(f"{tokenizer.name_or_path}: no end-of-turn token; set eos_token in tokenizer_config.json")
    return sorted(stops)


def merge(base: Path, adapter: Path, dtype: str) -> tuple[Model, Tokenizer]:
    """Merge the adapter into the base in the release precision; returns the model and the base's tokenizer.

    Call src.models.files.check_sources first. Raises IntegrityError for an adapter that does not fit, is not finite or
    changes nothing.
    """
    wrapped, tokenizer = load_with_adapter(base, adapter, dtype)
    try:
        _merge_in_place(wrapped)
    except ValueError as error:
        raise IntegrityError(f"{adapter}: does not merge: {_first_line(error)}; {_TRAIN_AGAIN}") from error
    merged: Model = wrapped.unload()
    _require_finite(merged.state_dict(), f"{base} merged with {adapter} in {dtype}")
    return merged.eval(), tokenizer


def _merge_in_place(wrapped: PeftModel) -> None:
    """Merge as `merge_and_unload(safe_merge=True)` does, in the memory of one model.

    PEFT replaces a weight by a new tensor, while the old tensor keeps its mmap alive. Copying the merged values into it
    lets each page be replaced in place; the mapping is private, so the file does not change.
    """
    for layer in wrapped.modules():
        if isinstance(layer, BaseTunerLayer):
            weight = layer.get_base_layer().weight
            place = weight.data
            layer.merge(safe_merge=True)
            weight.data = place.copy_(weight.data)


def load_with_adapter(base: Path, adapter: Path, dtype: str) -> tuple[PeftModel, Tokenizer]:
    """Load the base with the adapter attached and not merged. Raises what `merge` raises."""
    model, tokenizer = load(base, dtype)
    weights = _read_weights(adapter / WEIGHTS_FILE)
    if model.config.tie_word_embeddings and any(layer in key for key in weights for layer in _TIED_LAYERS):
        raise IntegrityError(f"{adapter}: trains one half of the base's tied embeddings, and merging would change "
                             "both; leave lm_head and embed_tokens out of fine_tuning.lora.target_modules")
    config = LoraConfig.from_pretrained(adapter)
    config.base_model_name_or_path = None  # check_sources has compared it; PEFT would warn about the local folder
    try:
        wrapped = get_peft_model(model, config)
    except (ValueError, TypeError) as error:
        raise IntegrityError(f"{adapter}: does not fit the base: {_first_line(error)}; {_TRAIN_AGAIN}") from error
    _check_fit(adapter, tensor_shapes(adapter / WEIGHTS_FILE), wrapped)
    set_peft_model_state_dict(wrapped, weights)
    return wrapped.eval(), tokenizer


def save(model: Model, tokenizer: Tokenizer, folder: Path) -> None:
    """Save weights, configuration and tokenizer; equal models give equal bytes."""
    model.save_pretrained(folder, max_shard_size=SHARD_SIZE)
    for note in ("is_local", "local_files_only"):  # how this process loaded it, which HF_HUB_OFFLINE changes
        tokenizer.init_kwargs.pop(note, None)
    tokenizer.save_pretrained(folder)


def logits(model: Model, sequences: Iterable[Sequence[int]], *, last: int) -> Iterator[torch.Tensor]:
    """The logits for the last `last` tokens of each sequence: (tokens, vocabulary), in the model's precision."""
    for sequence in sequences:
        yield _logits(model, sequence)[-last:].clone()


def logits_difference(first: Iterable[torch.Tensor], second: Iterable[torch.Tensor]) -> float:
    """The largest relative difference |a - b| / |a| of a sequence between two models' logits; NaN if one is NaN."""
    pairs = ((a.float(), b.float()) for a, b in zip(first, second, strict=True))
    return torch.stack([torch.linalg.norm(a - b) / torch.linalg.norm(a) for a, b in pairs]).max().item()


@torch.inference_mode()
def preference_gaps(model: Model, prompt: Sequence[int], answer: Sequence[int]) -> list[float]:
    """For each token of an answer, how far its logit lies below that of the model's first choice at this place.

    In standard deviations of the logits over the vocabulary; 0 for the first choice. Nothing is generated: the model
    reads prompt and answer once, without padding. Logits are held for a few tokens at a time.
    """
    step = max(1, _LOGITS_HELD // model.config.get_text_config().vocab_size)
    read = [*prompt, *answer[:-1]]
    cache, done, gaps = None, 0, list[torch.Tensor]()
    for first in range(0, len(answer), step):
        tokens = torch.tensor([answer[first : first + step]], device=model.device)
        end = len(prompt) + first + tokens.shape[1] - 1
        found = model(input_ids=torch.tensor([read[done:end]], device=model.device), past_key_values=cache,
                      use_cache=len(answer) > step, logits_to_keep=tokens.shape[1])
        logits = found.logits[0].float()
        chosen = logits.gather(1, tokens.T).flatten()
        gaps.append((logits.max(dim=1).values - chosen) / logits.std(dim=1))
        cache, done = found.past_key_values, end
    return [gap for part in gaps for gap in part.tolist()]


@torch.inference_mode()
def _logits(model: Model, tokens: Sequence[int]) -> torch.Tensor:
    inputs = torch.tensor([list(tokens)], device=model.device)
    found: torch.Tensor = model(input_ids=inputs).logits[0]
    return found.cpu()


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    try:
        weights: dict[str, torch.Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise IntegrityError(f"{path}: damaged safetensors file ({error}); {_TRAIN_AGAIN}") from None
    _require_finite(weights, str(path))
    if not any(bool(tensor.any()) for name, tensor in weights.items() if "lora_A" not in name):
        raise IntegrityError(f"{path}: adapter changes nothing, every lora_B is zero; {_TRAIN_AGAIN}")
    return weights


def _check_fit(adapter: Path, shapes: Mapping[str, tuple[int, ...]], wrapped: PeftModel) -> None:
    state = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    expected = {name: tuple(tensor.shape) for name, tensor in state.items()}
    foreign, missing = sorted(shapes.keys() - expected), sorted(expected.keys() - shapes)
    if foreign:
        raise IntegrityError(f"{adapter}: no layer of the base takes {_some(foreign)}; {_TRAIN_AGAIN}")
    if missing:
        raise IntegrityError(f"{adapter}: weights are missing for {_some(missing)}; {_TRAIN_AGAIN}")
    for name, shape in expected.items():
        if shapes[name] != shape:
            raise IntegrityError(f"{adapter}: {name} has shape {shapes[name]}, the settings give {shape}; "
                                 f"{_TRAIN_AGAIN}")


def _check_tokenizer(folder: Path, model: Model, tokenizer: Tokenizer) -> None:
    rows, highest = model.get_input_embeddings().num_embeddings, max(tokenizer.get_vocab().values())
    if highest >= rows:
        raise IntegrityError(f"{folder}: the tokenizer's ids go to {highest}, the model has {rows} embeddings; "
                             "choose a base whose tokenizer belongs to it")
    if highest + 1 < rows:
        logger.warning("%s: %d embeddings for %d token ids; the rest is taken for padding", folder, rows, highest + 1)
    if not tokenizer.chat_template:
        raise IntegrityError(f"{folder}: the tokenizer has no chat template; choose a chat model as base")
    head = model.get_output_embeddings()
    if model.config.tie_word_embeddings and not torch.equal(head.weight, model.get_input_embeddings().weight):
        raise IntegrityError(f"{folder}: tied embeddings, but the output layer differs; run `dvc repro`")


def _require_finite(weights: Mapping[str, torch.Tensor], what: str) -> None:
    # Minimum and maximum are NaN if any value is; torch.isfinite of a whole tensor would copy it.
    bad = sorted(name for name, tensor in weights.items() if not bool(torch.stack(tensor.aminmax()).isfinite().all()))
    if bad:
        raise IntegrityError(f"{what}: NaN or infinity in {_some(bad)}; {_TRAIN_AGAIN}")


def _some(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
