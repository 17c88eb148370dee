"""The model that is trained: a base, in 4 bits if asked, with a LoRA adapter, in batches that fit its memory."""

import importlib.util
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar

import torch
from accelerate.utils.memory import clear_device_cache, find_executable_batch_size
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from src.core.errors import InvalidParams
from src.core.params import FineTuningParams
from src.models import merging
from src.models.placement import fit_threads

logger = logging.getLogger(__name__)
T = TypeVar("T")


def load_base(base: Path, params: FineTuningParams,
              precision: Literal["float32", "bfloat16"]) -> tuple[merging.Model, merging.Tokenizer]:
    """The base in a folder and its tokenizer, which pads on the right: positions are counted from the left.

    Raises InvalidParams for 4 bits without bitsandbytes or CUDA, and as merging.load does.
    """
    model, tokenizer = (_in_4_bits if params.quantization == "4bit" else merging.load)(base, precision)
    fit_threads(model)
    tokenizer.padding_side = "right"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return model, tokenizer


def add_adapter(model: merging.Model, params: FineTuningParams) -> PeftModel:
    """The model with a fresh adapter, by torch's seed; raises InvalidParams for target modules that it lacks."""
    lora = params.lora
    names = [f".{name}" for name, _ in model.named_modules()]
    unknown = [target for target in lora.target_modules if not any(name.endswith(f".{target}") for name in names)]
    if unknown:
        raise InvalidParams(f"fine_tuning.lora.target_modules: the base has no module {', '.join(unknown)}; "
                            "name linear layers of the base")
    adapted = get_peft_model(model, LoraConfig(
        task_type="CAUSAL_LM", r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout,
        target_modules=sorted(lora.target_modules)))
    trainable, total = adapted.get_nb_trainable_parameters()
    logger.info("LoRA trains %d of %d parameters (%.2f %%)", trainable, total, 100 * trainable / total)
    return adapted


def _in_4_bits(folder: Path, dtype: str) -> tuple[merging.Model, merging.Tokenizer]:
    """Linear layers as NF4 with double quantisation, on the GPU: QLoRA, https://arxiv.org/abs/2305.14314."""
    if not torch.cuda.is_available() or importlib.util.find_spec("bitsandbytes") is None:
        lacking = "bitsandbytes (`pip install bitsandbytes`)" if torch.cuda.is_available() else "a CUDA device"
        raise InvalidParams(f"fine_tuning.quantization: 4bit needs {lacking}; install it or choose none")
    computed = getattr(torch, dtype)
    quantized = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                                   bnb_4bit_compute_dtype=computed)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=computed, quantization_config=quantized, device_map={"": torch.cuda.current_device()},
        use_safetensors=True, trust_remote_code=False, local_files_only=True)
    model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    return model, AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)


def with_batches_that_fit(attempt: Callable[[int], T], batch_size: int) -> T:
    """Call `attempt` with batch_size; each time it runs out of memory, with the next smaller divisor of batch_size.

    Uses accelerate's finder. Raises InvalidParams if not even one conversation at a time fits.
    """
    smaller = (size for size in range(batch_size - 1, 0, -1) if batch_size % size == 0)

    def reduced() -> int:
        size = next(smaller, None)
        if size is None:
            raise InvalidParams("fine_tuning: not even one conversation at a time fits the memory; lower max_length, "
                                "or set gradient_checkpointing: always or quantization: 4bit")
        logger.warning("not enough memory: trying %d conversations at a time, and more accumulation", size)
        return size

    def with_memory_freed(size: int) -> T:
        clear_device_cache(garbage_collection=True)  # the attempt before is garbage only now: its error held it
        return attempt(size)

    found: T = find_executable_batch_size(with_memory_freed, batch_size, reduced)()
    return found
