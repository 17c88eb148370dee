"""New tokens for prompts by the model's own `generate`: finished answers leave, and a lack of memory halves a batch."""

import logging
from collections.abc import Sequence

import torch
from accelerate.utils import find_executable_batch_size, get_max_memory
from transformers import DynamicCache, GenerationConfig, PreTrainedModel, StoppingCriteria

from src import sharing
from src.errors import InvalidInput, InvalidParams

logger = logging.getLogger(__name__)

Tokens = list[int]

# Settings that mean the same where generation pauses and goes on; a penalty or a beam would not.
_UNDERSTOOD = {"max_new_tokens", "do_sample", "temperature", "top_k", "top_p", "bos_token_id", "eos_token_id",
               "pad_token_id", "transformers_version"}
# Generation pauses once one in so many answers is finished: to leave copies the others' keys and values.
_ONE_IN = 16


def answer(model: PreTrainedModel, prompts: Sequence[Tokens], *, size: int) -> tuple[list[Tokens], int]:
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
        if input_ids.device.type == "cpu" and missing > get_max_memory()["cpu"] / sharing.state().num_processes:
            raise torch.OutOfMemoryError(f"{len(input_ids)} answers of full length would run out of memory.")
