"""The fall-back for a bundle without compressed weights: transformers on the CPU, one answer at a time."""

from __future__ import annotations

import logging
import queue
import threading
from typing import TYPE_CHECKING, Any

from serving.generation import EngineError, Generation, Options
from serving.settings import SettingError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

logger = logging.getLogger(__name__)


class TransformersEngine:
    """Answers from the weights as they were released."""

    def __init__(self, folder: Path, *, threads: int) -> None:
        try:
            import torch
            import transformers
        except ImportError as error:
            raise SettingError(f"{folder}: holds no compressed weights, and {error}: install torch and transformers, "
                               "or make the bundle where optimum-intel is installed") from error
        if threads:
            torch.set_num_threads(threads)
        self.name = f"transformers {transformers.__version__}, safetensors"
        self._model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()
        self._waiting: queue.SimpleQueue[Generation | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="engine", daemon=True).start()

    def start(self, prompt: Sequence[int], options: Options) -> Generation:
        """Begin an answer, once those before it are done."""
        generation = Generation(prompt, options)
        self._waiting.put(generation)
        return generation

    def broken(self) -> str | None:
        """Each answer is on its own here: a failure of one spoils no other."""
        return None

    def close(self) -> None:
        """End the thread after the answer under way."""
        self._waiting.put(None)

    def _run(self) -> None:
        while generation := self._waiting.get():
            if generation.stopped:
                continue
            try:
                self._answer(generation)
            except RuntimeError as error:  # what torch raises, out of memory included
                logger.exception("an answer failed")
                generation.fail(EngineError(str(error)))

    def _answer(self, generation: Generation) -> None:
        import torch
        from transformers import StoppingCriteria, StoppingCriteriaList

        class Pass(StoppingCriteria):  # type: ignore[misc]
            """Hands over each token, and stops when nobody waits."""

            def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:  # noqa: ARG002
                generation.put([int(input_ids[0, -1])])
                return torch.full((1,), generation.stopped, dtype=torch.bool)

        options, prompt = generation.options, torch.tensor([list(generation.prompt)])
        sampling = {"do_sample": True, "temperature": options.temperature, "top_p": options.top_p}
        if options.temperature > 0:
            torch.manual_seed(options.seed)
        found = self._model.generate(
            input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=options.max_new_tokens,
            eos_token_id=sorted(options.stop_tokens) or None, stopping_criteria=StoppingCriteriaList([Pass()]),
            **(sampling if options.temperature > 0 else {"do_sample": False}),
        )
        ended = int(found[0, -1]) in options.stop_tokens
        generation.end("stop" if ended else "length")
