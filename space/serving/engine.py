"""The engine: a process of its own (serving/worker.py) that runs the weights, and the answers it generates.

OpenVINO holds Python's lock during a whole step: milliseconds for one token, seconds for a long prompt. If it ran in
the app's process, no other request would be answered meanwhile.
"""

import asyncio
import json
import logging
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path

from serving.settings import APP, SettingError

logger = logging.getLogger(__name__)
_PATIENCE = 10  # seconds to end in
_LONGEST_LINE = 1 << 24  # bytes of what it tells at once


class Engine:
    """Answers from the weights of one folder."""

    def __init__(self, name: str, process: Process) -> None:
        self.name, self.pid = name, process.pid
        self._process, self._numbers = process, count()
        self._active: dict[int, Generation] = {}
        self.failure: str | None = None  # why nothing can be generated any more
        self._closing = False
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def open(cls, folder: Path, *, threads: int, concurrency: int) -> "Engine":
        """Load the weights in a folder, an absolute path; raises SettingError if that fails."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "serving.worker", str(folder), str(threads), str(concurrency), cwd=APP,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=_LONGEST_LINE,
            start_new_session=True)  # a Ctrl+C is for this process, which lets the answers under way end
        line = await process.stdout.readline() if process.stdout else b""
        told = json.loads(line) if line else {"error": f"ended with {await process.wait()} while it loaded {folder}"}
        if "error" in told:
            raise SettingError(f"the engine: {told['error']}")
        return cls(told["name"], process)

    def start(self, prompt: Sequence[int], options: "Options") -> "Generation":
        """Begin an answer."""
        number = next(self._numbers)
        self._active[number] = generation = Generation(options, lambda: self._stop(number))
        if self.failure:
            generation.put(Piece(number, error=self.failure))
        self._tell({"start": number, "prompt": prompt, "options": asdict(options)})
        return generation

    async def died(self) -> bool:
        """Wait for the end of the process; whether it came unasked."""
        await asyncio.shield(self._reading)
        return not self._closing

    async def close(self) -> None:
        """Stop every answer and end the process."""
        self._closing = True
        if self._process.stdin:
            self._process.stdin.close()
        await asyncio.wait([self._reading], timeout=_PATIENCE)  # which ends with the process
        if not self._reading.done():
            self._process.kill()
            await self._reading

    def _stop(self, number: int) -> None:
        if self._active.pop(number, None):
            self._tell({"stop": number})

    def _tell(self, message: dict[str, object]) -> None:
        if self._process.stdin and not self.failure:  # it is written when the process reads, and never waited for
            self._process.stdin.write(json.dumps(message, default=list).encode() + b"\n")

    async def _read(self) -> None:
        while self._process.stdout and (line := await self._process.stdout.readline()):
            for told in json.loads(line):
                self._pass_on(Piece(**told))
        self.failure = f"the engine's process ended with {await self._process.wait()}"
        if not self._closing:
            logger.error("%s", self.failure)
        for number in list(self._active):
            self._pass_on(Piece(number, error=self.failure))

    def _pass_on(self, piece: "Piece") -> None:
        over = piece.finish_reason or piece.error
        generation = self._active.pop(piece.number, None) if over else self._active.get(piece.number)
        if generation:  # else nobody waits any more
            generation.put(piece)


class EngineError(Exception):
    """The engine failed while it generated."""


@dataclass(frozen=True)
class Options:
    """How to generate; a temperature of 0 is greedy."""

    max_new_tokens: int
    stop_tokens: Collection[int]
    temperature: float
    top_p: float
    seed: int


@dataclass(frozen=True)
class Piece:
    """What one step added to one answer: tokens, and in the last step stop, length or the error."""

    number: int
    tokens: Sequence[int] = ()
    finish_reason: str | None = None
    error: str | None = None


class Generation:
    """One answer, in the event loop alone. It holds at most `max_new_tokens` that nobody took yet."""

    def __init__(self, options: Options, stop: Callable[[], None]) -> None:
        self.finish_reason = "stop"
        self.stop = stop  # nobody waits any more
        self._stop_tokens = options.stop_tokens
        self._tokens: list[int] = []
        self._news, self._over = asyncio.Event(), False
        self._error: str | None = None

    def put(self, piece: Piece) -> None:
        """Take in what a step gave, without the tokens that end the answer."""
        self._tokens += [token for token in piece.tokens if token not in self._stop_tokens]
        self._over = bool(piece.finish_reason or piece.error)
        self.finish_reason, self._error = piece.finish_reason or "stop", piece.error
        self._news.set()

    async def tokens(self, seconds: float) -> AsyncIterator[list[int]]:
        """All that came since the last look; raises EngineError, and TimeoutError once so many seconds have passed."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + seconds
        while (left := deadline - clock()) > 0:
            async with asyncio.timeout(left):
                await self._news.wait()
            self._news.clear()
            new, self._tokens = self._tokens, []
            if new:
                yield new
            if self._over and not self._tokens:
                if self._error:
                    raise EngineError(self._error)
                return
        raise TimeoutError
