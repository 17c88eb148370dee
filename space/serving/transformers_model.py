"""Released weights, run by transformers on the CPU: each step is one token of every answer, one after the other."""

import importlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from files import foreign_weights
from serving.engine import Options, Piece
from serving.settings import SettingError


@dataclass
class _ActiveAnswer:
    options: Options
    ids: Any  # what the model reads next: the prompt, then the last token
    pick: Any  # from logits to a token
    cache: Any = None
    count: int = field(default=0, init=False)


class TransformersModel:
    """Answers from the weights as they were released."""

    def __init__(self, folder: Path, *, threads: int) -> None:
        try:
            import torch
            import transformers
        except ImportError as error:
            raise SettingError(f"{folder}: holds no compressed weights, and {error}: install torch and transformers, "
                               "or make the bundle where optimum-intel is installed") from error
        if (folder / "adapter_config.json").is_file():
            _check_peft(folder)
        if foreign := foreign_weights(folder):
            raise SettingError(f"{foreign[0]}, which is no file of this folder; run prepare_assets.py again")
        if threads:
            torch.set_num_threads(threads)
        self.name = f"transformers {transformers.__version__}, safetensors"
        self._model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()
        self._active: dict[int, _ActiveAnswer] = {}

    def warm_up(self) -> None:
        """Nothing is left to do once the weights are loaded."""

    def start(self, number: int, prompt: list[int], options: Options) -> None:
        """Begin an answer."""
        import torch

        self._active[number] = _ActiveAnswer(options, torch.tensor([prompt]), _picker(options))

    def stop(self, number: int) -> None:
        """Give up an answer, if it is still under way."""
        self._active.pop(number, None)

    def idle(self) -> bool:
        """Whether no answer is under way."""
        return not self._active

    def step(self) -> list[Piece]:
        """The next token of every answer; a failure of one spoils no other."""
        pieces = [self._next(number, answer) for number, answer in self._active.items()]
        for piece in pieces:
            if piece.finish_reason or piece.error:
                del self._active[piece.number]
        return pieces

    def _next(self, number: int, answer: _ActiveAnswer) -> Piece:
        import torch

        try:
            with torch.inference_mode():
                out = self._model(input_ids=answer.ids, past_key_values=answer.cache, use_cache=True, logits_to_keep=1)
                token = answer.pick(out.logits[:, -1].float())
        except RuntimeError as error:  # what torch raises, out of memory included
            return Piece(number, error=str(error))
        answer.ids, answer.cache, answer.count = token, out.past_key_values, answer.count + 1
        ended = int(token) in answer.options.stop_tokens
        full = answer.count == answer.options.max_new_tokens
        return Piece(number, [int(token)], "stop" if ended else "length" if full else None)


def _check_peft(folder: Path) -> None:
    """Without peft, transformers passes over the adapter and answers as the base model, without a word."""
    try:
        importlib.import_module("peft")
    except ImportError as error:
        raise SettingError(f"{folder}: has an adapter that is not merged, and {error}: install the strategy cpu-only, "
                           "which has peft, or merge the adapter") from error


def _picker(options: Options) -> Any:
    """The likeliest token, or one drawn among those that together have the probability top_p."""
    import torch
    from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

    if not options.temperature:
        return lambda logits: logits.argmax(-1, keepdim=True)
    warp = LogitsProcessorList([TemperatureLogitsWarper(options.temperature), TopPLogitsWarper(options.top_p)])
    dice = torch.Generator().manual_seed(options.seed)
    return lambda logits: torch.multinomial(warp(None, logits).softmax(-1), 1, generator=dice)
