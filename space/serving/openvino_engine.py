"""OpenVINO with continuous batching: one thread steps all the answers that are under way together."""

from __future__ import annotations

import itertools
import logging
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import openvino
from openvino_genai import (
    ContinuousBatchingPipeline,
    GenerationConfig,
    GenerationFinishReason,
    GenerationStatus,
    SchedulerConfig,
)

from serving.generation import EngineError, Generation, Options
from serving.settings import SettingError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

logger = logging.getLogger(__name__)


class OpenVinoEngine:
    """Answers from compressed weights."""

    def __init__(self, folder: Path, *, threads: int, concurrency: int) -> None:
        self.name = f"OpenVINO {openvino.__version__.partition('-')[0]}, {folder.name}"
        scheduler = SchedulerConfig()
        scheduler.max_num_seqs = concurrency
        properties = {"INFERENCE_NUM_THREADS": threads} if threads else {}
        try:
            self._pipeline = ContinuousBatchingPipeline(str(folder), scheduler, "CPU", properties)
        except RuntimeError as error:
            raise SettingError(f"{folder}: OpenVINO cannot load it: {error}") from error
        self._numbers = itertools.count()
        self._new: list[Generation] = []
        self._active: dict[Generation, Any] = {}  # to the pipeline's handle
        self._wake = threading.Condition()
        self._closing = False
        self._failure: str | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def start(self, prompt: Sequence[int], options: Options) -> Generation:
        """Begin an answer."""
        generation = Generation(prompt, options)
        with self._wake:
            self._new.append(generation)
            self._wake.notify()
        return generation

    def broken(self) -> str | None:
        """Why nothing can be generated any more."""
        return self._failure

    def close(self) -> None:
        """Stop every answer and end the thread."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._new or self._active or self._closing)
                if self._closing:
                    return
                new, self._new = self._new, []
            try:
                self._step(new)
            except RuntimeError as error:  # what OpenVINO raises, for everything
                self._fail(new, str(error))

    def _step(self, new: Sequence[Generation]) -> None:
        for generation in new:
            self._add(generation)
        for generation, handle in list(self._active.items()):
            if generation.stopped:
                handle.cancel()
                del self._active[generation]
        if self._pipeline.has_non_finished_requests():
            self._pipeline.step()
        for generation, handle in list(self._active.items()):
            if handle.can_read():
                self._deliver(generation, handle)
            elif handle.get_status() != GenerationStatus.RUNNING:  # no memory was left for it
                generation.end("length")
                del self._active[generation]

    def _add(self, generation: Generation) -> None:
        prompt = openvino.Tensor(np.array([generation.prompt], dtype=np.int64))
        try:
            handle = self._pipeline.add_request(next(self._numbers), prompt, _config(generation.options))
        except RuntimeError as error:  # what it does not take spoils no other answer
            generation.fail(EngineError(str(error)))
        else:
            self._active[generation] = handle

    def _deliver(self, generation: Generation, handle: Any) -> None:
        for output in handle.read().values():
            generation.put(output.generated_ids)
            if output.finish_reason != GenerationFinishReason.NONE:
                ended = output.finish_reason == GenerationFinishReason.LENGTH
                generation.end("length" if ended else "stop")
                self._active.pop(generation, None)

    def _fail(self, new: Sequence[Generation], reason: str) -> None:
        """A pipeline that failed once is in no known state: everything under way ends, and /healthz says so."""
        logger.error("the engine failed: %s", reason)
        self._failure = reason
        for generation in {*self._active, *new}:
            generation.fail(EngineError(reason))
        self._active.clear()


def _config(options: Options) -> GenerationConfig:
    config = GenerationConfig()
    config.max_new_tokens = options.max_new_tokens
    config.stop_token_ids = set(options.stop_tokens)
    if options.stop_tokens:
        config.eos_token_id = min(options.stop_tokens)
    if options.temperature > 0:
        config.do_sample, config.temperature = True, options.temperature
        config.top_p, config.rng_seed = options.top_p, options.seed
    return config
