"""Turn a request into the pieces of its answer: prompt, limits, stop texts, counters."""

import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field

from serving.bundle import Bundle
from serving.engine import Engine, EngineError, Options
from serving.schema import ChatRequest
from serving.settings import Settings
from serving.telemetry import Telemetry

_COLDEST = 0.01  # below that, temperature and top_p mean greedy, and probabilities overflow


class TooLong(Exception):
    """The conversation has more tokens than are taken."""


@dataclass
class ChatAnswer:
    """An answer under way; what it took is known when its pieces are through."""

    bundle: Bundle
    engine: Engine
    telemetry: Telemetry
    prompt: list[int]
    options: Options
    stops: Sequence[str]
    seconds: int
    begun: float
    dropped: int = 0  # messages that were left out, the oldest, since the conversation was too long
    finish_reason: str = "stop"
    tokens: int = field(default=0, init=False)

    @classmethod
    def prepare(
        cls, request: ChatRequest, bundle: Bundle, engine: Engine, settings: Settings, telemetry: Telemetry
    ) -> "ChatAnswer":
        """Check and encode a request; raises TooLong, BadConversation."""
        messages = [{"role": each.role, "content": each.text} for each in request.messages]
        most = min(settings.max_input_tokens, bundle.context - 1)
        wanted = min(request.wanted_tokens or bundle.max_new_tokens, settings.max_new_tokens)
        if request.truncation == "auto":
            room = bundle.context - min(wanted, bundle.context // 2)  # so that the answer is not cut off at once
            dropped, prompt = _fitting(bundle, messages, min(most, room))
        else:
            dropped, prompt = 0, bundle.encode(messages)
        if len(prompt) > most:
            what = "the last question alone has" if dropped else "the conversation has"
            raise TooLong(f"{what} {len(prompt)} tokens, {most} are taken; shorten it or begin a new one")
        wanted = min(wanted, bundle.context - len(prompt))
        seed = time.monotonic_ns() % 2**31 if request.seed is None else request.seed
        temperature = request.temperature or 0.0
        options = Options(wanted, bundle.stop_tokens, temperature if temperature >= _COLDEST else 0.0,
                          max(request.top_p or 1.0, _COLDEST), seed)
        return cls(bundle, engine, telemetry, prompt, options, request.stops, settings.seconds, time.monotonic(),
                   dropped)

    async def pieces(self) -> AsyncGenerator[str, None]:
        """The text as it comes. Ends at a stop text, and after the time limit; stops the engine however it ends."""
        generation = self.engine.start(self.prompt, self.options)
        self.telemetry.tokens.labels("prompt").inc(len(self.prompt))
        cut = _Cut(self.stops)
        decode = self.bundle.decoder()
        try:
            async for tokens in generation.tokens(self.seconds):
                self._count(len(tokens))
                if text := cut(decode(tokens)):
                    yield text
                if cut.met:
                    return
            self.finish_reason = generation.finish_reason
        except TimeoutError:
            self.finish_reason = "length"
        except EngineError:
            self.telemetry.errors.inc()
            raise
        finally:
            generation.stop()
        if rest := cut.rest():
            yield rest

    def _count(self, tokens: int) -> None:
        if not self.tokens:
            self.telemetry.first_token.observe(time.monotonic() - self.begun)
        self.tokens += tokens
        self.telemetry.tokens.labels("completion").inc(tokens)


def _fitting(bundle: Bundle, messages: Sequence[Mapping[str, str]], most: int) -> tuple[int, list[int]]:
    """How many messages to leave out, and the tokens of the rest: at most so many, or the last question alone.

    The oldest questions go first, each with its answer. System messages at the head stay. What is tried grows from the
    newest question on, so that a long history costs no more time than what fits.
    """
    roles = [each["role"] for each in messages]
    head = next((place for place, role in enumerate(roles) if role != "system"), 0)
    starts = [head, *(place for place, role in enumerate(roles) if role == "user" and place > head)]

    fits = starts[-1], bundle.encode([*messages[:head], *messages[starts[-1]:]])
    for start in starts[-2::-1]:
        prompt = bundle.encode([*messages[:head], *messages[start:]])
        if len(prompt) > most:
            break
        fits = start, prompt
    return fits[0] - head, fits[1]


class _Cut:
    """Lets text through up to a stop text, and holds back what may be the beginning of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops, self._held, self.met = stops, "", False

    def __call__(self, text: str) -> str:
        held = self._held + text
        found = [place for place in (held.find(stop) for stop in self._stops) if place >= 0]
        if found:
            self._held, self.met = "", True
            return held[: min(found)]
        keep = max((_overlap(held, stop) for stop in self._stops), default=0)
        self._held = held[len(held) - keep:]
        return held[: len(held) - keep]

    def rest(self) -> str:
        """What was held back and turned out to be no stop text."""
        return "" if self.met else self._held


def _overlap(text: str, stop: str) -> int:
    """The longest end of the text that begins the stop text."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
