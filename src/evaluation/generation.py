"""What a merged model answers, as it is scored and as the release answers: batches planned, run and gathered."""

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
from transformers import DynamicCache, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteria

from src.core.errors import InvalidInput, InvalidParams
from src.core.records import digest_of, file_sha256
from src.evaluation.predictions import Answer, AnsweredBatch
from src.models import placement
from src.models.placement import fit_threads

logger = logging.getLogger(__name__)
Conversation = Sequence[dict[str, str]]
_LOG_SECONDS = 30
Tokens = list[int]
# Settings that mean the same where generation pauses and goes on; a penalty or a beam would not.
_UNDERSTOOD = {"max_new_tokens", "do_sample", "temperature", "top_k", "top_p", "bos_token_id", "eos_token_id",
               "pad_token_id", "transformers_version"}
# Generation pauses once one in so many answers is finished: to leave copies the others' keys and values.
_ONE_IN = 16


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


def answer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Conversation], *,
           tokens_per_batch: int) -> list[Answer]:
    """The model's answers under its own generation settings (`set_greedy`), in the order of the prompts.

    Raises as `src.evaluation.generation.generate` does.
    """
    encoded = [prompt_tokens(tokenizer, prompt) for prompt in prompts]
    batches = plan([len(prompt) for prompt in encoded], tokens_per_batch=tokens_per_batch,
                   max_new_tokens=model.generation_config.max_new_tokens)
    return gather(run(model, encoded, batches, done=[], keep=lambda _batch: None), model, tokenizer)


def plan(widths: Sequence[int], *, tokens_per_batch: int, max_new_tokens: int) -> list[list[int]]:
    """Prompts of these widths in batches: the places of each, decided by nothing but the arguments.

    Rows times (widest prompt + max_new_tokens) stays within tokens_per_batch, but for a prompt that is beyond it
    alone. Longest first: similar lengths share a batch, and a batch that does not fit the memory fails at once.
    """
    batches: list[list[int]] = []
    for place in sorted(range(len(widths)), key=lambda place: (-widths[place], place)):
        if batches and (widths[batches[-1][0]] + max_new_tokens) * (len(batches[-1]) + 1) <= tokens_per_batch:
            batches[-1].append(place)
        else:
            batches.append([place])
    return batches


def fingerprint(model: PreTrainedModel, identity: str, contract: str, *, tokens_per_batch: int) -> str:
    """Sha256 (hex) of all that decides the answers' tokens, from the digests of a model and of a score contract.

    Answers of another fingerprint are never gone on from. The device and its threads are in it, for they round; in
    float32 the threads are not, so that more or fewer processes may go on.
    """
    _place(model)
    device = torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else model.device.type
    threads = 0 if model.dtype == torch.float32 else torch.get_num_threads()
    return digest_of([identity, contract, tokens_per_batch, device, threads,
                      torch.__version__, transformers.__version__,
                      file_sha256(Path(__file__))])


def run(model: PreTrainedModel, prompts: Sequence[list[int]], batches: Sequence[list[int]], *,
        done: Sequence[AnsweredBatch], keep: Callable[[AnsweredBatch], object]) -> dict[int, list[int]]:
    """New tokens by place, of all batches; those that are among `done` are not generated again.

    `keep` is given each other one once it is whole. Where a launcher started several processes all of them call this
    with the same prompts and batches, share them out, and each returns all. The same batches give the same tokens,
    whichever were done: a size that memory forced upon a batch is kept with it, and holds for those after it. Raises
    as `src.evaluation.generation.generate` and `src.models.placement.gather` do.
    """
    _place(model)
    _warn_of_long_prompts(model, prompts)
    answered = {tuple(batch.places): batch for batch in placement.gather(done)}
    if answered:
        logger.info("going on: %d of %d batches were answered before", len(answered), len(batches))
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


def gather(found: Mapping[int, list[int]], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[Answer]:
    """Answers in the order of their places, from the new tokens of each."""
    stops = set(model.generation_config.eos_token_id)
    return [as_answer(tokenizer, found[place], stops) for place in range(len(found))]


def as_answer(tokenizer: PreTrainedTokenizerBase, tokens: list[int], stops: set[int]) -> Answer:
    """The text of new tokens, stripped and without special tokens."""
    text = tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return Answer(text=text.strip(), tokens=tokens, truncated=tokens[-1] not in stops)


def _place(model: PreTrainedModel) -> None:
    model.to(placement.state().device)
    fit_threads(model)


def _warn_of_long_prompts(model: PreTrainedModel, encoded: Sequence[list[int]]) -> None:
    context = getattr(model.config, "max_position_embeddings", None)
    limit = model.generation_config.max_new_tokens
    beyond = sum(context is not None and len(prompt) + limit > context for prompt in encoded)
    if beyond:
        logger.warning("%d of %d prompts leave less than %d tokens of the context of %d; their answers may degrade",
                       beyond, len(encoded), limit, context)


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], object]]:
    """A bar on a terminal; elsewhere a log line every half minute, so that long runs show that they live.

    Of several processes the first shows its own share.
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


def generate(model: PreTrainedModel, prompts: Sequence[Tokens], *, size: int) -> tuple[list[Tokens], int]:
    """The new tokens of each prompt, generated at most `size` prompts at a time, and the size that memory allowed.

    An answer ends with its stop token, or after max_new_tokens. Where memory is short the size is halved, by
    accelerate's finder, and what was answered stays. Raises InvalidInput for generation settings whose result would
    depend on the batches, InvalidParams where not even one prompt fits.
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


def _understood(model: PreTrainedModel) -> GenerationConfig:
    settings = model.generation_config
    found = {name for name, value in settings.to_diff_dict().items() if value is not None}
    if found - _UNDERSTOOD or not {"max_new_tokens", "eos_token_id", "pad_token_id"} <= found:
        raise InvalidInput("generation settings: answers take max_new_tokens, stop and pad tokens, and nothing else "
                           f"but sampling; found {', '.join(sorted(found))}; call set_greedy first")
    return settings


def _together(model: PreTrainedModel, settings: GenerationConfig, prompts: Sequence[Tokens]) -> list[Tokens]:
    """One batch, padded on the left, so that each answer continues its prompt's last token."""
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
    """Ends a call of `generate` once enough of its answers are finished.

    On a CPU it also looks, after the first token, whether keys and values of that length have room, in this process's
    share of what is free: Linux would not refuse them, but kill. Raises torch.OutOfMemoryError, as a GPU does.
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
