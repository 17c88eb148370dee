"""The base model as a folder of safetensors, JSON and tokenizer files: trained here (`pocket`) or copied."""

import logging
import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from src.core.errors import InvalidInput, InvalidParams, Refused
from src.core.params import PocketParams
from src.core.records import BaseModelRef, manifest, tree_digest
from src.models import files
from src.models.placement import fit_threads

logger = logging.getLogger(__name__)

POCKET = "pocket"
NO_REVISION = "none"
_PAD, _END = "<|pad|>", "<|end|>"
_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
_MODEL_FILES = re.compile(r"[\w.+-]+\.(safetensors|json|jinja|model|txt)", re.ASCII)
_CHOOSE = "choose another model.base_model"

Conversation = Sequence[dict[str, str]]


def build_pocket(conversations: Sequence[Conversation], params: PocketParams, folder: Path) -> None:
    """Train a small Llama model and its tokenizer from scratch on the CPU, and save both in the folder.

    It learns from whole conversations and becomes a mediocre assistant that fine-tuning can improve. On one machine
    the seed determines every bit of the result. Raises InvalidParams for a shape that no Llama can have.
    """
    if params.hidden_size % (2 * params.heads):
        raise InvalidParams(f"model.pocket: hidden_size {params.hidden_size} is no multiple of twice the "
                            f"{params.heads} heads; change one of them")
    tokenizer = train_tokenizer(conversations, vocabulary=params.vocabulary, context=params.context)
    torch.manual_seed(params.seed)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=params.hidden_size, intermediate_size=4 * params.hidden_size,
        num_hidden_layers=params.layers, num_attention_heads=params.heads, num_key_value_heads=params.heads,
        max_position_embeddings=params.context, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, tie_word_embeddings=False))
    fit_threads(model)
    logger.info("pocket: %.1f million parameters, vocabulary of %d", model.num_parameters() / 1e6, len(tokenizer))
    encoded = tokenizer.apply_chat_template([list(c) for c in conversations], return_dict=True)["input_ids"]
    _train(model, [tokens[: params.context] for tokens in encoded], params, pad=tokenizer.pad_token_id)
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    transformers_logging.disable_progress_bar()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def train_tokenizer(conversations: Iterable[Conversation], *, vocabulary: int, context: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with at most `vocabulary` tokens and a chat template; it can encode any text.

    Every turn ends with one token, which is also eos. See https://huggingface.co/docs/tokenizers/pipeline.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[_PAD, _END, "<|system|>", "<|user|>", "<|assistant|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False)
    tokenizer.train_from_iterator((turn["content"] for turns in conversations for turn in turns), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=_END, pad_token=_PAD, model_max_length=context, chat_template=_TEMPLATE,
        clean_up_tokenization_spaces=False)


def take_over(source: Path, folder: Path) -> None:
    """Copy the configuration, tokenizer and safetensors files of a folder, and nothing else.

    DVC makes the files that it tracks read-only; with links it would change the source. Raises what `check` raises,
    before anything is copied.
    """
    check(source)
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.iterdir()):
        if path.is_file() and _MODEL_FILES.fullmatch(path.name):
            shutil.copyfile(path, folder / path.name)


def check(folder: Path) -> None:
    """Check that a folder holds a base model which the pipeline can fine-tune.

    Raises Refused if it has only pickled weights or custom code; InvalidInput without config.json, safetensors,
    tokenizer, chat template or end-of-turn token.
    """
    names = [path.name for path in folder.iterdir()]
    if "config.json" not in names:
        raise InvalidInput(f"{folder}: no config.json, so this is no model; {_CHOOSE}")
    pickles = sorted(name for name in names if Path(name).suffix in files.PICKLES)
    if pickles and not any(name.endswith(".safetensors") for name in names):
        raise Refused(f"{folder / pickles[0]}: pickled weights are never loaded; save the model as safetensors "
                      "(save_pretrained does)")
    files.check_base(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise InvalidInput(f"{folder}: no usable tokenizer ({str(error).splitlines()[0][:200]}); {_CHOOSE}") from error
    if not tokenizer.chat_template:
        raise InvalidInput(f"{folder}: the tokenizer has no chat template; choose a chat model, or put the template "
                           "into the folder as chat_template.jinja")
    if tokenizer.eos_token_id is None:
        raise InvalidInput(f"{folder}: the tokenizer has no end-of-turn token; set eos_token in tokenizer_config.json")


def reference(folder: Path, *, name: str, revision: str) -> BaseModelRef:
    """The record of the base model in a folder; its sha256 covers every file."""
    return BaseModelRef(name=name, revision=revision, path=folder.as_posix(), sha256=tree_digest(manifest(folder)))


def _train(model: LlamaForCausalLM, rows: Sequence[list[int]], params: PocketParams, *, pad: int) -> None:
    """Train with next-token prediction on every token, AdamW, and a learning rate with warm-up and cosine decay."""
    generator = torch.Generator().manual_seed(params.seed)
    steps = params.epochs * -(-len(rows) // params.batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=params.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, params.learning_rate, total_steps=steps + 1)
    model.train()
    for epoch in range(1, params.epochs + 1):
        batches = _batches(rows, params.batch_size, generator)
        total = 0.0
        for batch in tqdm(batches, desc=f"pocket epoch {epoch}", disable=not sys.stderr.isatty(), leave=False):
            tokens = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in batch], True, pad)
            mask, labels = (tokens != pad).long(), tokens.masked_fill(tokens == pad, -100)
            loss = model(input_ids=tokens, attention_mask=mask, labels=labels).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            total += loss.item()
        logger.info("pocket epoch %d of %d: loss %.3f", epoch, params.epochs, total / len(batches))
    model.eval()


def _batches(rows: Sequence[list[int]], size: int, generator: torch.Generator) -> list[list[list[int]]]:
    """Batches of rows with similar lengths, in random order, so that there is little padding."""
    shuffled = torch.randperm(len(rows), generator=generator).tolist()
    order = sorted(shuffled, key=lambda place: len(rows[place]))  # a stable sort: rows of equal length stay shuffled
    starts = [start * size for start in torch.randperm(-(-len(rows) // size), generator=generator).tolist()]
    return [[rows[place] for place in order[start : start + size]] for start in starts]
