"""The model that is trained: a base, in 4 bits where asked, and a LoRA adapter on it."""

import importlib.util
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, TypeAlias, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import find_executable_batch_size, gather_object, get_max_memory, send_to_device
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from src.core.errors import InvalidParams
from src.core.params import FineTuningParams
from src.models import merging
from src.models.placement import fit_threads
from src.training.encoding import Batch, Example

logger = logging.getLogger(__name__)
Collator: TypeAlias = Callable[[list[Example]], Batch]
Precision = Literal["float32", "bfloat16"]
T = TypeVar("T")
# Backward keeps a few tensors of its own beside those that the forward pass left for it.
_MARGIN = 1.25
_SHARE = 0.9  # of what is free; the rest is for what no estimate sees
_OPTIMISER_BYTES = 12  # of a trained float32 weight: its gradient, and AdamW's two moments


def load(base: Path, params: FineTuningParams,
         precision: Literal["float32", "bfloat16"]) -> tuple[merging.Model, merging.Tokenizer]:
    """The base in a folder and its tokenizer, which pads on the right: positions are counted from the left.

    Raises InvalidParams for 4 bits without bitsandbytes or CUDA, and as merging.load does.
    """
    model, tokenizer = (_in_4_bits if params.quantization == "4bit" else merging.load)(base, precision)
    fit_threads(model)
    tokenizer.padding_side = "right"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return model, tokenizer


def wrap(model: merging.Model, params: FineTuningParams) -> PeftModel:
    """The model with a fresh adapter, by torch's seed; raises InvalidParams for target modules that it lacks."""
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


def _in_4_bits(folder: Path, dtype: str) -> tuple[merging.Model, merging.Tokenizer]:
    """Linear layers as NF4 with double quantisation, on the GPU: QLoRA, https://arxiv.org/abs/2305.14314."""
    if not torch.cuda.is_available() or importlib.util.find_spec("bitsandbytes") is None:
        lacking = "bitsandbytes (`pip install bitsandbytes`)" if torch.cuda.is_available() else "a CUDA device"
        raise InvalidParams(f"fine_tuning.quantization: 4bit needs {lacking}; install it or choose none")
    computed = getattr(torch, dtype)
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=computed,
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=computed),
        device_map={"": torch.cuda.current_device()},
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
    )
    model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    return model, AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)


def with_batches_that_fit(attempt: Callable[[int], T], batch_size: int) -> T:
    """`attempt` with batch_size, and after each lack of memory with the next smaller divisor of it.

    By accelerate's finder. Raises InvalidParams where not even one conversation at a time fits.
    """
    smaller = (size for size in range(batch_size - 1, 0, -1) if batch_size % size == 0)

    def reduced() -> int:
        size = next(smaller, None)
        if size is None:
            raise InvalidParams("fine_tuning: not even one conversation at a time fits the memory; lower max_length, "
                                "or set gradient_checkpointing: always or quantization: 4bit")
        logger.warning("not enough memory: trying %d conversations at a time, and more accumulation", size)
        return size

    found: T = find_executable_batch_size(attempt, batch_size, reduced)()
    return found


def checkpointing(model: PeftModel, collator: Collator, examples: Sequence[Example], params: FineTuningParams, *,
                  batch_size: int, precision: Precision) -> bool:
    """Whether to compute activations twice rather than keep them: as asked, or where the largest batch asks for it.

    The largest batch is that of the longest examples; where several processes train, it must fit in all. Raises
    torch.OutOfMemoryError where nothing allowed fits and `with_batches_that_fit` can try less.
    """
    if params.gradient_checkpointing != "auto" and not params.find_batch_size:
        return params.gradient_checkpointing == "always"
    longest = sorted(examples, key=lambda example: -len(example["labels"]))[:batch_size]
    one = collator(longest[:1])
    times = _places(collator(longest)) / _places(one)
    allowed = {"auto": (False, True), "never": (False,), "always": (True,)}[params.gradient_checkpointing]
    for chosen in allowed:
        need, room = needed(model, one, times=times, precision=precision, checkpointed=chosen), free(model.device)
        logger.info("%d conversations at a time, checkpointing %s: about %.1f of %.1f GB free memory", batch_size,
                    "on" if chosen else "off", need / 1e9, room / 1e9)
        if all(gather_object([need <= _SHARE * room])):
            return chosen
    if params.find_batch_size:
        raise torch.OutOfMemoryError(f"{batch_size} conversations at a time would run out of memory.")
    return allowed[-1]


def free(device: torch.device) -> int:
    """Bytes that a GPU, or this process's share of the machine's memory, can still give."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + cached
    processes: int = PartialState().num_processes
    return int(get_max_memory()["cpu"]) // processes


def needed(model: PeftModel, batch: Batch, *, times: float, precision: Precision, checkpointed: bool) -> int:
    """Estimate in bytes of what training adds to a loaded model, for a batch `times` as large as this one.

    1.25 times what autograd keeps from the forward pass for the backward pass, counted on this batch, and 8 bytes for
    each logit's gradient, plus 12 for each trained weight. With checkpointing it keeps each layer's input, and one
    layer at a time in full. Measured with 4 of TinyLlama's layers and 699 tokens: docs/tinyllama.md.
    """
    trained: int = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    kept = _kept(model, batch, precision)
    if checkpointed:
        width, layers = int(model.config.hidden_size), int(model.config.num_hidden_layers)
        kept = 4 * width * layers * _places(batch) + kept // layers
    kept += 8 * torch.as_tensor(batch["labels"]).numel() * int(model.config.vocab_size)
    return int(_MARGIN * times * kept) + _OPTIMISER_BYTES * trained


def _places(batch: Batch) -> int:
    """Tokens and padding."""
    return torch.as_tensor(batch["input_ids"]).numel()


def _kept(model: PeftModel, batch: Batch, precision: Precision) -> int:
    """Bytes of the storages, weights apart, that one forward pass saves; all are held here until they are counted."""
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    held: dict[int, torch.UntypedStorage] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            held[storage.data_ptr()] = storage
        return tensor.detach()

    model.train()
    with (torch.autocast(model.device.type, torch.bfloat16, enabled=precision == "bfloat16"),
          torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)):
        model(**send_to_device(batch, model.device))
    return sum(int(storage.nbytes()) for storage in held.values())
