"""Batched greedy generation: what a merged model answers, as it is scored and as the release answers."""

import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from tqdm import tqdm
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from src.errors import InvalidInput
from src.merging import fit_threads

logger = logging.getLogger(__name__)

Conversation = Sequence[dict[str, str]]
_LOG_SECONDS = 30


@dataclass(frozen=True)
class Answer:
    """One generated answer. tokens are as generated, the stop token included; truncated: it ran into the limit."""

    text: str
    tokens: list[int]
    truncated: bool


def set_greedy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, max_new_tokens: int) -> None:
    """Give the model the generation settings that are scored and released, and no others.

    Replaces what a base may bring along (temperature, top_p, max_length). Raises InvalidInput without a stop token.
    """
    stops = stop_tokens(model, tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else stops[0]
    model.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=stops,
        pad_token_id=pad,
    )


def stop_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token id that ends an answer: the tokenizer's and those that the model itself states."""
    stated = model.generation_config.eos_token_id
    stops = {*(stated if isinstance(stated, list) else [stated]), tokenizer.eos_token_id} - {None}
    if not stops:
        raise InvalidInput(f"{tokenizer.name_or_path}: no end-of-turn token; set eos_token in tokenizer_config.json")
    return sorted(stops)


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, prompt: Conversation) -> list[int]:
    """The token ids of a conversation up to where the assistant's answer starts, by the tokenizer's chat template."""
    encoded = tokenizer.apply_chat_template(list(prompt), add_generation_prompt=True, return_dict=True)
    return list(encoded["input_ids"])


def answer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Conversation], *, batch_size: int
) -> list[Answer]:
    """The model's answers under its own generation settings (`set_greedy`), in the order of the prompts."""
    fit_threads(model)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    encoded = [prompt_tokens(tokenizer, prompt) for prompt in prompts]
    _warn_of_long_prompts(model, encoded)
    # Longest first: similar lengths share a batch, and a batch that does not fit fails at once.
    order = sorted(range(len(encoded)), key=lambda place: (-len(encoded[place]), place))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    answers: dict[int, Answer] = {}
    with _progress(len(prompts)) as advance:
        for batch in batches:
            found = _answer_batch(model, tokenizer, [encoded[place] for place in batch])
            answers |= zip(batch, found, strict=True)
            advance(len(batch))
    return [answers[place] for place in range(len(prompts))]


def _answer_batch(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch: list[list[int]]) -> list[Answer]:
    """Padded on the left, so that each answer continues its prompt's last token."""
    settings, width = model.generation_config, max(map(len, batch))
    lacking = [width - len(prompt) for prompt in batch]
    tokens = [[settings.pad_token_id] * gap + prompt for gap, prompt in zip(lacking, batch, strict=True)]
    mask = [[0] * gap + [1] * (width - gap) for gap in lacking]
    inputs = torch.tensor(tokens, device=model.device)
    with torch.inference_mode():
        output = model.generate(input_ids=inputs, attention_mask=torch.tensor(mask, device=model.device))
    return [_as_answer(tokenizer, row, set(settings.eos_token_id)) for row in output[:, width:].tolist()]


def _as_answer(tokenizer: PreTrainedTokenizerBase, tokens: list[int], stops: set[int]) -> Answer:
    end = next((place for place, token in enumerate(tokens) if token in stops), None)
    kept = tokens if end is None else tokens[: end + 1]
    text = tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return Answer(text=text.strip(), tokens=kept, truncated=end is None)


def _warn_of_long_prompts(model: PreTrainedModel, encoded: Sequence[list[int]]) -> None:
    context = getattr(model.config, "max_position_embeddings", None)
    limit = model.generation_config.max_new_tokens
    beyond = sum(context is not None and len(prompt) + limit > context for prompt in encoded)
    if beyond:
        logger.warning("%d of %d prompts leave less than %d tokens of the context of %d; their answers may degrade",
                       beyond, len(encoded), limit, context)


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], object]]:
    """A bar on a terminal; elsewhere a log line every half minute, so that long runs show that they live."""
    if sys.stderr.isatty():
        with tqdm(total=total, desc="generating", unit="answer") as bar:
            yield bar.update
        return
    done, due = 0, time.monotonic() + _LOG_SECONDS

    def advance(count: int) -> None:
        nonlocal done, due
        done += count
        if time.monotonic() >= due:
            logger.info("generated %d of %d answers", done, total)
            due = time.monotonic() + _LOG_SECONDS

    yield advance
