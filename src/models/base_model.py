"""The base model as a folder of safetensors, JSON and tokenizer files: trained here (`pocket`) or copied."""

import logging
import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    get_cosine_schedule_with_warmup,
)
from transformers.utils import logging as transformers_logging

from src.core.errors import InvalidInput, InvalidParams, Refused
from src.core.params import PocketParams
from src.core.records import BaseModelRef, manifest, tree_digest
from src.models import files
from src.models.placement import fit_threads

logger = logging.getLogger(__name__)

POCKET = "pocket"
NO_REVISION = "none"
_PAD, _END, _USER, _ASSISTANT = "<|pad|>", "<|end|>", "<|user|>", "<|assistant|>"
_SPECIAL = (_PAD, _END, "<|system|>", _USER, _ASSISTANT)  # the ids 0 to 4
_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
_MODEL_FILES = re.compile(r"[\w.+-]+\.(safetensors|json|jinja|model|txt)", re.ASCII)
_CHOOSE = "choose another model.base_model"
# What nobody has to choose for the pocket model. Tuned on the shipped data: benchmarks/pocket.py.
_VOCABULARY, _CONTEXT = 2048, 512
_HEAD_WIDTH = 32
_BATCH = 16  # conversations
_MUON_RATE, _LEARNING_RATE, _WEIGHT_DECAY = 0.03, 0.006, 0.1
_WARM_UP = 0.1  # of all steps
_NOISE = 0.15  # of the questions' tokens
_IGNORED = -100  # the label that torch's cross entropy ignores

Conversation = Sequence[dict[str, str]]
_Example = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # of one length: tokens, labels, which are a question's


def build_pocket(conversations: Sequence[Conversation], params: PocketParams, folder: Path) -> int:
    """Train a small Llama model and its tokenizer from scratch on the CPU, and save both in the folder.

    Returns the number of parameters. On one machine the seed determines every bit of the result. Raises InvalidParams
    if hidden_size is not a multiple of the width of an attention head.
    """
    if params.hidden_size % _HEAD_WIDTH:
        raise InvalidParams(f"model.pocket.hidden_size: {params.hidden_size} is not a multiple of {_HEAD_WIDTH}; "
                            "choose one that is")
    tokenizer = train_tokenizer(conversations, vocabulary=_VOCABULARY, context=_CONTEXT)
    heads = params.hidden_size // _HEAD_WIDTH
    torch.manual_seed(params.seed)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=params.hidden_size, intermediate_size=4 * params.hidden_size,
        num_hidden_layers=params.layers, num_attention_heads=heads, num_key_value_heads=heads,
        max_position_embeddings=_CONTEXT, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, tie_word_embeddings=True))
    fit_threads(model)
    encoded = tokenizer.apply_chat_template([list(c) for c in conversations], return_dict=True)["input_ids"]
    _train(model, [tokens[:_CONTEXT] for tokens in encoded], params)
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    transformers_logging.disable_progress_bar()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return int(model.num_parameters())


def train_tokenizer(conversations: Iterable[Conversation], *, vocabulary: int, context: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with at most `vocabulary` tokens and a chat template; it can encode any text.

    Every turn ends with one token, which is also eos. See https://huggingface.co/docs/tokenizers/pipeline.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=list(_SPECIAL),
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


def _train(model: LlamaForCausalLM, rows: Sequence[list[int]], params: PocketParams) -> None:
    """Train to predict the answers' tokens; the learning rates warm up, then decay to 0 as a cosine.

    In every step other tokens of the questions are replaced at random. The model thus cannot learn whole questions by
    heart; it has to find the words in them that decide the answer.
    """
    generator = torch.Generator().manual_seed(params.seed)
    examples = [_example(tokens) for tokens in rows]
    steps = params.epochs * -(-len(rows) // _BATCH)
    optimizers = _optimizers(model)
    schedules = [get_cosine_schedule_with_warmup(one, int(_WARM_UP * steps), steps) for one in optimizers]
    model.train()
    for epoch in range(1, params.epochs + 1):
        batches = _batches(examples, _BATCH, generator)
        total = 0.0
        for batch in tqdm(batches, desc=f"pocket epoch {epoch}", disable=not sys.stderr.isatty(), leave=False):
            loss = _loss(model, batch, generator)
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for one in (*optimizers, *schedules):
                one.step()
            model.zero_grad()
            total += loss.item()
        logger.info("pocket epoch %d of %d: loss %.3f", epoch, params.epochs, total / len(batches))
    model.eval()


def _optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, which takes a quarter fewer epochs than AdamW alone; AdamW for all else."""
    matrices = {name: weight for name, weight in model.model.layers.named_parameters() if weight.ndim == 2}
    others = [weight for name, weight in model.named_parameters() if name.removeprefix("model.layers.") not in matrices]
    return [torch.optim.Muon(matrices.values(), lr=_MUON_RATE, weight_decay=_WEIGHT_DECAY),
            torch.optim.AdamW(others, _LEARNING_RATE, (0.9, 0.95), weight_decay=_WEIGHT_DECAY, fused=True)]


def _example(tokens: Sequence[int]) -> _Example:
    """A conversation's tokens, the same as labels with those outside of answers ignored, and which ones are asked."""
    turn, labels, asked = None, [], []
    for token in tokens:
        labels.append(token if turn == _SPECIAL.index(_ASSISTANT) else _IGNORED)
        if token < len(_SPECIAL):
            turn = token  # the role that begins, or the end of the turn
        asked.append(turn == _SPECIAL.index(_USER) and token >= len(_SPECIAL))
    return torch.tensor(tokens), torch.tensor(labels), torch.tensor(asked)


def _loss(model: LlamaForCausalLM, batch: Sequence[_Example], generator: torch.Generator) -> torch.Tensor:
    """Mean cross entropy of the answers' tokens, with noise in the questions."""
    pads = (_SPECIAL.index(_PAD), _IGNORED, False)
    tokens, labels, asked = (pad_sequence(list(parts), batch_first=True, padding_value=pad)
                             for parts, pad in zip(zip(*batch, strict=True), pads, strict=True))
    noisy = asked & (torch.rand(tokens.shape, generator=generator) < _NOISE)
    others = torch.randint(len(_SPECIAL), model.config.vocab_size, tokens.shape, generator=generator)
    # Padding is on the right, where causal attention does not see it: no mask, and the faster kernel.
    hidden = model.model(input_ids=torch.where(noisy, others, tokens), use_cache=False).last_hidden_state
    learnt = labels[:, 1:] != _IGNORED
    return torch.nn.functional.cross_entropy(model.lm_head(hidden[:, :-1][learnt]), labels[:, 1:][learnt])


def _batches(rows: Sequence[_Example], size: int, generator: torch.Generator) -> list[list[_Example]]:
    """Batches of rows with similar lengths, in random order, so that there is little padding."""
    shuffled = torch.randperm(len(rows), generator=generator).tolist()
    order = sorted(shuffled, key=lambda place: len(rows[place][0]))  # stable: rows of equal length stay shuffled
    starts = [start * size for start in torch.randperm(-(-len(rows) // size), generator=generator).tolist()]
    return [[rows[place] for place in order[start : start + size]] for start in starts]
