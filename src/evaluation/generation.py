"""Generate a model's answers in batches: plan the batches, run them on all processes, and gather the answers."""

import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import transformers
from accelerate.utils import find_executable_batch_size, get_max_memory
from tqdm import tqdm
from transformers import DynamicCache, GenerationConfig, StoppingCriteria

from src.core.errors import InvalidInput, InvalidParams
from src.core.records import digest_of, file_sha256
from src.evaluation.predictions import AnsweredBatch, GeneratedAnswer
from src.models import placement
from src.models.merging import Model, Tokenizer, stop_tokens
from src.models.placement import fit_threads

logger = logging.getLogger(__name__)
Conversation = Sequence[dict[str, str]]
Tokens = list[int]
_LOG_SECONDS = 30
# Settings whose result does not change if generation pauses and continues; a penalty or beams would change it.
_UNDERSTOOD = {"max_new_tokens", "do_sample", "temperature", "top_k", "top_p", "bos_token_id", "eos_token_id",
               "pad_token_id", "transformers_version"}
# Generation pauses once 1 in 16 answers is finished: removing them copies the keys and values of the others.
_ONE_IN = 16


def set_greedy(model: Model, tokenizer: Tokenizer, *, max_new_tokens: int) -> None:
    """Set the generation settings with which the model is scored and released, and remove all others.

    Base models may bring their own (temperature, top_p, max_length). Raises InvalidInput if there is no stop token.
    """
    stops = stop_tokens(model, tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else stops[0]
    model.generation_config = GenerationConfig(
        do_sample=False, max_new_tokens=max_new_tokens, bos_token_id=tokenizer.bos_token_id, eos_token_id=stops,
        pad_token_id=pad)


def prompt_tokens(tokenizer: Tokenizer, prompt: Conversation) -> list[int]:
    """The token ids of a conversation up to the start of the assistant's answer, by the tokenizer's chat template."""
    encoded = tokenizer.apply_chat_template(list(prompt), add_generation_prompt=True, return_dict=True)
    return list(encoded["input_ids"])


def answer(model: Model, tokenizer: Tokenizer, prompts: Sequence[Conversation], *,
           tokens_per_batch: int) -> list[GeneratedAnswer]:
    """The model's answers under its own generation settings (`set_greedy`), in the order of the prompts.

    Raises what `generate` raises.
    """
    encoded = [prompt_tokens(tokenizer, prompt) for prompt in prompts]
    batches = plan([len(prompt) for prompt in encoded], tokens_per_batch=tokens_per_batch,
                   max_new_tokens=model.generation_config.max_new_tokens)
    return gather(run(model, encoded, batches, done=[], keep=lambda _batch: None), model, tokenizer)


def plan(widths: Sequence[int], *, tokens_per_batch: int, max_new_tokens: int) -> list[list[int]]:
    """Divide prompts into batches: the places of the prompts in each batch. Equal arguments give equal batches.

    widths: the number of tokens of each prompt. Rows times (widest prompt + max_new_tokens) is at most
    tokens_per_batch, unless one prompt alone exceeds it. The longest come first: similar lengths share a batch, and a
    batch that does not fit into memory fails at once.
    """
    batches: list[list[int]] = []
    for place in sorted(range(len(widths)), key=lambda place: (-widths[place], place)):
        if batches and (widths[batches[-1][0]] + max_new_tokens) * (len(batches[-1]) + 1) <= tokens_per_batch:
            batches[-1].append(place)
        else:
            batches.append([place])
    return batches


def fingerprint(model: Model, identity: str, contract: str, *, tokens_per_batch: int) -> str:
    """Sha256 (hex) of everything that determines the tokens of the answers.

    identity and contract are the digests of the model and of the score contract. An interrupted evaluation continues
    only from answers with the same fingerprint. Device and threads belong to it because they affect rounding; in
    float32 the threads do not, so that another number of processes may continue.
    """
    _place(model)
    device = torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else model.device.type
    threads = 0 if model.dtype == torch.float32 else torch.get_num_threads()
    return digest_of([identity, contract, tokens_per_batch, device, threads, torch.__version__,
                      transformers.__version__, file_sha256(Path(__file__))])


def run(model: Model, prompts: Sequence[list[int]], batches: Sequence[list[int]], *,
        done: Sequence[AnsweredBatch], keep: Callable[[AnsweredBatch], object]) -> dict[int, list[int]]:
    """The new tokens of every prompt, by place. Batches in `done` are not generated again.

    keep: called with each newly answered batch.
    If a launcher started several processes, each of them calls this with the same prompts and batches, generates its
    share and returns all tokens. The same batches give the same tokens, whichever were done before: if memory forced a
    smaller size on a batch, that size is stored with it and used for the batches after it. Raises what `generate` and
    `src.models.placement.gather` raise.
    """
    _place(model)
    _warn_of_long_prompts(model, prompts)
    answered = {tuple(batch.places): batch for batch in placement.gather(done)}
    if answered:
        logger.info("resuming: %d of %d batches were answered before", len(answered), len(batches))
    size = min([len(max(batches, key=len, default=[0])), *(batch.size for batch in answered.values())])
    share, own = placement.own([places for places in batches if tuple(places) not in answered]), []
    with _progress(sum(map(len, share))) as advance:
        for places in share:
            tokens, size = generate(model, [prompts[place] for place in places], size=size)
            own.append(AnsweredBatch(places=places, size=size, tokens=tokens))
            keep(own[-1])
            advance(len(places))
    answered |= {tuple(batch.places): batch for batch in placement.gather(own)}
    return {place: tokens for places in batches
            for place, tokens in zip(places, answered[tuple(places)].tokens, strict=True)}


def gather(found: Mapping[int, list[int]], model: Model, tokenizer: Tokenizer) -> list[GeneratedAnswer]:
    """The answers in the order of the prompts; found maps the place of each prompt to its new tokens."""
    stops = set(model.generation_config.eos_token_id)
    return [as_answer(tokenizer, found[place], stops) for place in range(len(found))]


def as_answer(tokenizer: Tokenizer, tokens: list[int], stops: set[int]) -> GeneratedAnswer:
    """The answer of generated tokens: its text is stripped and has no special tokens."""
    text = tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return GeneratedAnswer(text=text.strip(), tokens=tokens, truncated=tokens[-1] not in stops)


def _place(model: Model) -> None:
    model.to(placement.state().device)
    fit_threads(model)


def _warn_of_long_prompts(model: Model, encoded: Sequence[list[int]]) -> None:
    context = getattr(model.config, "max_position_embeddings", None)
    limit = model.generation_config.max_new_tokens
    beyond = sum(context is not None and len(prompt) + limit > context for prompt in encoded)
    if beyond:
        logger.warning("%d of %d prompts leave less than %d tokens of the context of %d; their answers may degrade",
                       beyond, len(encoded), limit, context)


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], object]]:
    """Show progress: a bar on a terminal, else a log line every half minute.

    With several processes the bar shows the share of the first one.
    """
    if sys.stderr.isatty() and placement.state().is_main_process:
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


def generate(model: Model, prompts: Sequence[Tokens], *, size: int) -> tuple[list[Tokens], int]:
    """Generate at most `size` prompts at a time; returns the new tokens of each and the size that fits into memory.

    An answer ends with its stop token, or after max_new_tokens. If memory is short, accelerate halves the size, and
    finished answers are kept. Raises InvalidInput for generation settings whose result would depend on the batches,
    InvalidParams if not even one prompt fits.
    """
    settings = _understood(model)
    done: list[Tokens] = []

    def attempt(size: int) -> int:
        while len(done) < len(prompts):
            done.extend(_together(model, settings, prompts[len(done) : len(done) + size]))
        return size

    def halved() -> int:
        nonlocal size
        size = min(size, len(prompts) - len(done)) // 2
        if not size:
            raise InvalidParams("evaluation: not even one answer at a time fits the memory; lower "
                                "evaluation.max_new_tokens, or choose a smaller base")
        logger.warning("not enough memory: generating %d answers at a time", size)
        return size

    return done, find_executable_batch_size(attempt, size, halved)()


def _understood(model: Model) -> GenerationConfig:
    settings = model.generation_config
    found = {name for name, value in settings.to_diff_dict().items() if value is not None}
    if found - _UNDERSTOOD or not {"max_new_tokens", "eos_token_id", "pad_token_id"} <= found:
        raise InvalidInput("generation settings: answers take max_new_tokens, stop and pad tokens, and nothing else "
                           f"but sampling; found {', '.join(sorted(found))}; call set_greedy first")
    return settings


def _together(model: Model, settings: GenerationConfig, prompts: Sequence[Tokens]) -> list[Tokens]:
    """Generate one batch. It is padded on the left, so that each answer continues the last token of its prompt."""
    width, limit = max(map(len, prompts)), settings.max_new_tokens
    gaps = [width - len(prompt) for prompt in prompts]
    tokens = torch.tensor([[settings.pad_token_id] * gap + prompt for gap, prompt in zip(gaps, prompts, strict=True)],
                          device=model.device)
    mask = torch.tensor([[0] * gap + [1] * (width - gap) for gap in gaps], device=model.device)
    stops = torch.tensor(settings.eos_token_id, device=model.device).flatten()
    cache, rows = DynamicCache(config=model.config), torch.arange(len(prompts), device=model.device)
    found: dict[int, Tokens] = {}
    with torch.inference_mode():
        while len(rows):
            pause = _Pause(stops, cache, width + limit)
            tokens = model.generate(input_ids=tokens, attention_mask=mask, past_key_values=cache,
                                    max_new_tokens=width + limit - tokens.shape[1], stopping_criteria=[pause])
            new = tokens[:, width:]
            ended = torch.isin(new, stops).any(dim=1) | (new.shape[1] == limit)
            found |= zip(rows[ended].tolist(), new[ended].tolist(), strict=True)
            stay = (~ended).nonzero().flatten()
            rows, tokens = rows[stay], tokens[stay]
            mask = torch.nn.functional.pad(mask[stay], (0, tokens.shape[1] - mask.shape[1]), value=1)
            cache.batch_select_indices(stay)
    return [_to_stop(found[row], set(stops.tolist())) for row in range(len(prompts))]


def _to_stop(tokens: Tokens, stops: set[int]) -> Tokens:
    end = next((place for place, token in enumerate(tokens) if token in stops), len(tokens))
    return tokens[: end + 1]


class _Pause(StoppingCriteria):  # type: ignore[misc]
    """End a call of `generate` once enough of its answers are finished.

    On a CPU, after the first token, it also checks that keys and values of full length fit into this process's share
    of the free memory, and raises torch.OutOfMemoryError as a GPU does: Linux would kill the process instead.
    """

    def __init__(self, stops: torch.Tensor, cache: DynamicCache, length: int) -> None:
        self._stops, self._cache, self._length = stops, cache, length
        self._finished: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, _scores: torch.Tensor, **_: object) -> torch.Tensor:
        finished = torch.isin(input_ids[:, -1], self._stops)
        if self._finished is None:
            self._require_room(input_ids)
        else:
            finished |= self._finished
        self._finished = finished
        return torch.full_like(finished, bool(finished.sum() * _ONE_IN >= len(finished)))

    def _require_room(self, input_ids: torch.Tensor) -> None:
        held = sum(layer.keys.nbytes + layer.values.nbytes for layer in self._cache.layers)
        missing = held * (self._length / self._cache.get_seq_length() - 1)
        if input_ids.device.type == "cpu" and missing > get_max_memory()["cpu"] / placement.state().num_processes:
            raise torch.OutOfMemoryError(f"{len(input_ids)} answers of full length would run out of memory.")
