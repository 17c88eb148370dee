"""Compressed weights in OpenVINO with continuous batching: one step for the next token of all answers under way."""

import ctypes
import mmap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino_genai as genai

from serving.engine import EngineError, Options, Piece
from serving.settings import SettingError

_REASONS = {genai.GenerationFinishReason.STOP: "stop", genai.GenerationFinishReason.LENGTH: "length"}
_MAPS = Path("/proc/self/maps")
_INTERVAL = 0.05  # seconds


class OpenVinoModel:
    """Answers from compressed weights. What fails in a step is raised: no answer can go on after that."""

    def __init__(self, folder: Path, *, threads: int, concurrency: int) -> None:
        self.name = f"OpenVINO {openvino.__version__.partition('-')[0]}, {folder.name}"
        scheduler = genai.SchedulerConfig()
        scheduler.max_num_seqs = concurrency
        # With bf16, the default on processors that have it, an answer depends on the others in its batch.
        properties: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
        if threads:
            properties["INFERENCE_NUM_THREADS"] = threads
        try:
            self._pipeline = genai.ContinuousBatchingPipeline(str(folder), scheduler, "CPU", properties)
        except RuntimeError as error:
            raise SettingError(f"{folder}: OpenVINO cannot load it: {error}") from error
        self._file = folder / "openvino_model.bin"
        self._active: dict[int, Any] = {}  # the pipeline's handles

    def warm_up(self) -> None:
        """Generate one token: OpenVINO repacks the weights at its first answer. Unlike step, this releases the GIL."""
        once = genai.GenerationConfig()
        once.max_new_tokens = 1
        with dropping_pages(self._file):
            self._pipeline.generate([openvino.Tensor(np.zeros((1, 1), dtype=np.int64))], [once])

    def start(self, number: int, prompt: list[int], options: Options) -> None:
        """Begin an answer; raises EngineError for what OpenVINO does not take, which spoils no other answer."""
        tensor = openvino.Tensor(np.array([prompt], dtype=np.int64))
        try:
            self._active[number] = self._pipeline.add_request(number, tensor, _config(options))
        except RuntimeError as error:
            raise EngineError(str(error)) from error

    def stop(self, number: int) -> None:
        """Give up an answer, if it is still under way."""
        if handle := self._active.pop(number, None):
            handle.cancel()

    def idle(self) -> bool:
        """Whether no answer is under way; one that was stopped takes a step more, which frees its memory."""
        return not self._active and not self._pipeline.has_non_finished_requests()

    def step(self) -> list[Piece]:
        """The next token of every answer."""
        if self._pipeline.has_non_finished_requests():
            self._pipeline.step()
        pieces = [piece for number, handle in self._active.items() for piece in _pieces(number, handle)]
        for piece in pieces:
            if piece.finish_reason:
                self._active.pop(piece.number, None)
        return pieces


def _pieces(number: int, handle: Any) -> list[Piece]:
    if handle.can_read():
        return [Piece(number, output.generated_ids, _REASONS.get(output.finish_reason))
                for output in handle.read().values()]
    # no memory was left for it
    return [] if handle.get_status() == genai.GenerationStatus.RUNNING else [Piece(number, finish_reason="length")]


def _config(options: Options) -> genai.GenerationConfig:
    config = genai.GenerationConfig()
    config.max_new_tokens = options.max_new_tokens
    config.stop_token_ids = set(options.stop_tokens)
    if options.stop_tokens:
        config.eos_token_id = min(options.stop_tokens)
    if options.temperature > 0:
        config.do_sample, config.temperature = True, options.temperature
        config.top_p, config.rng_seed = options.top_p, options.seed
    return config


@contextmanager
def dropping_pages(file: Path) -> Iterator[None]:
    """Drop the weight file's pages while OpenVINO repacks them, so that only one copy is resident (on Linux)."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_INTERVAL):
            _drop_pages(file)
        _drop_pages(file)

    watcher = threading.Thread(target=watch, name="dropping-pages")
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def _drop_pages(file: Path) -> None:
    if not _MAPS.exists():
        return
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for line in _MAPS.read_text(encoding="utf-8").splitlines():
        place, may, *_, name = line.split(maxsplit=5)
        if name == str(file.resolve()) and may.startswith("r--"):  # read-only: they can be read again
            begin, end = (int(address, 16) for address in place.split("-"))
            madvise(begin, end - begin, mmap.MADV_DONTNEED)
